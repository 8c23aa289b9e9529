"""The comparison of groups of cells: its level, its arithmetic, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import sparse, stats

import discern
from discern.cli.commands import cli
from discern.errors import InvalidInputError, UnknownNameError
from discern.evaluation.differential import weights

if TYPE_CHECKING:
    from pathlib import Path

N_GENES = 300


def _cells(n_cells: int = 120, differing: int = 0, seed: int = 0) -> ad.AnnData:
    """Return counts of two types in two batches of other depth; the first genes are threefold in type b."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"type": np.where(np.arange(n_cells) % 2, "b", "a")}, map(str, range(n_cells)))
    obs["batch"] = np.where(rng.random(n_cells) < 0.4, "deep", "shallow")
    rates = rng.gamma(2, 0.5, N_GENES) * np.where(obs["batch"] == "deep", 2.0, 1.0)[:, np.newaxis]
    rates[np.ix_(obs["type"] == "b", np.arange(N_GENES) < differing)] *= 3
    return ad.AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs)


def _reconstructed(cells: ad.AnnData, differing: int = 0) -> ad.AnnData:
    """Return the cells as a projection holds them: log-normalised, with estimates that know what differs."""
    amounts = cells.X.toarray()
    measured = np.log1p(amounts / amounts.sum(axis=1, keepdims=True) * 20_000)
    estimates = np.repeat(measured.mean(axis=0, keepdims=True), len(measured), axis=0)
    estimates[np.ix_(cells.obs["type"] == "b", np.arange(N_GENES) < differing)] += 1
    return ad.AnnData(
        estimates, obs=cells.obs, layers={"measured": sparse.csr_matrix(measured), "estimated_counts": estimates}
    )


def test_of_one_batch_it_is_the_rank_sum_test_of_scipy() -> None:
    cells = _cells()
    cells = cells[(cells.obs["batch"] == "deep").to_numpy()].copy()
    table = discern.compare(cells, "type", "a", "b").loc[cells.var_names]
    values = cells.X.toarray()
    values = np.log1p(values / values.sum(axis=1, keepdims=True) * 20_000)
    of_a = (cells.obs["type"] == "a").to_numpy()
    expected = stats.mannwhitneyu(values[of_a], values[~of_a], method="asymptotic").pvalue
    np.testing.assert_allclose(table["p_value"], expected, rtol=1e-6)
    np.testing.assert_allclose(table["fdr"], stats.false_discovery_control(expected), rtol=1e-6)
    difference = (values[of_a].mean(axis=0) - values[~of_a].mean(axis=0)) / np.log(2)
    np.testing.assert_allclose(table["log2_fold_change_measured"], difference, atol=1e-5)


def test_a_difference_between_batches_is_none_between_groups() -> None:
    rng = np.random.default_rng(1)
    cells = _cells(400)
    cells.obs["type"] = np.where(rng.random(400) < np.where(cells.obs["batch"] == "deep", 0.8, 0.2), "a", "b")
    shift = np.where(cells.obs["batch"] == "deep", 3.0, 1.0)[:, np.newaxis]
    cells.X = sparse.csr_matrix(rng.poisson(np.where(np.arange(N_GENES) < 60, shift, 1.0)).astype(np.float32))
    within = discern.compare(cells, "type", "a", "b")
    across = discern.compare(cells, "type", "a", "b", batch=None)
    assert (within["fdr"] < 0.05).sum() <= 1
    assert (across["fdr"] < 0.05).sum() > 50


def test_halves_of_one_type_differ_in_no_more_genes_than_chance_has_it() -> None:
    cells = _cells(100)
    cells = _reconstructed(cells, 30)
    rng = np.random.default_rng(0)
    nominal, called = [], []
    for _ in range(20):
        cells.obs["half"] = rng.permutation(np.arange(100) % 2).astype(str)
        table = discern.compare(cells, "half", "0", "1")
        nominal.append((table["p_value"] < 0.05).mean())
        called.append((table["fdr"] < 0.05).sum())
    assert np.mean(nominal) < 0.05 + 3 * np.std(nominal) / np.sqrt(20)
    assert np.mean(called) <= 1


def test_reconstruction_that_knows_which_genes_vary_finds_more_of_them() -> None:
    found = {"measured": 0, "both": 0}
    for seed in range(5):
        cells = _cells(24, differing=30, seed=seed)
        reconstructed = _reconstructed(cells, 30)
        true = [str(number) for number in range(30)]
        found["both"] += (discern.compare(reconstructed, "type", "a", "b").loc[true, "fdr"] < 0.05).sum()
        del reconstructed.layers["estimated_counts"]
        found["measured"] += (discern.compare(reconstructed, "type", "a", "b").loc[true, "fdr"] < 0.05).sum()
    assert found["both"] > 1.1 * found["measured"]


def test_weights_do_not_follow_which_cell_is_of_which_group() -> None:
    cells = _reconstructed(_cells(60), 30)
    cells.obs["group"] = np.random.default_rng(0).permutation(cells.obs["type"].to_numpy())
    table = discern.compare(cells, "group", "a", "b")
    assert (table["weight"] == 1).all()


def test_weights_of_genes_without_difference_are_one_on_average_and_none_is_nothing() -> None:
    rng = np.random.default_rng(0)
    found = weights(np.concatenate([rng.random(5000), rng.random(1000) / 1e4]), np.arange(6000.0))
    assert found[:5000].mean() < 1.05
    assert found[5000:].mean() > 2
    assert found.min() >= 0.2


def _with_samples(paired: bool, effect: float) -> ad.AnnData:
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(8), 20)
    kind = np.tile(np.repeat(["a", "b"], 10), 8) if paired else np.where(donor < 4, "a", "b")
    rates = rng.gamma(3, 1, (8, N_GENES))[donor]  # donors differ in every gene
    rates[np.ix_(kind == "b", np.arange(N_GENES) < 20)] *= effect
    obs = pd.DataFrame({"type": kind, "donor": donor.astype(str)}, map(str, range(160)))
    return ad.AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs)


def test_with_samples_what_differs_between_donors_is_not_called() -> None:
    cells = _with_samples(paired=False, effect=1)
    assert (discern.compare(cells, "type", "a", "b")["fdr"] < 0.05).sum() > 100
    assert (discern.compare(cells, "type", "a", "b", sample="donor")["fdr"] < 0.05).sum() <= 1


def test_samples_with_cells_of_both_groups_are_paired() -> None:
    cells = _with_samples(paired=True, effect=4)
    table = discern.compare(cells, "type", "b", "a", sample="donor")
    called = table.index[table["fdr"] < 0.05]
    assert len(set(called) & {str(number) for number in range(20)}) >= 18
    assert (table.loc[called[:15], "log2_fold_change_measured"] > 0).all()


@pytest.mark.parametrize("layer", [None, "X", "estimated_counts"])
def test_reconstructed_values_are_refused(layer: str | None) -> None:
    cells = _reconstructed(_cells(), 10)
    del cells.layers["measured"]
    with pytest.raises(InvalidInputError, match="reconstructed"):
        discern.compare(cells, "type", "a", "b", layer=layer)


def test_scaled_values_are_refused() -> None:
    cells = _cells()
    cells.X = cells.X.toarray() - 1
    with pytest.raises(InvalidInputError, match="negative"):
        discern.compare(cells, "type", "a", "b")


def test_names_that_do_not_exist_are_told_with_those_that_do() -> None:
    cells = _cells()
    with pytest.raises(UnknownNameError, match="did you mean 'type'"):
        discern.compare(cells, "tipe", "a", "b")
    with pytest.raises(InvalidInputError, match=r"no value 'c'.* it has 'a', 'b'"):
        discern.compare(cells, "type", "a", "c")
    with pytest.raises(InvalidInputError, match="'a' twice"):
        discern.compare(cells, "type", "a", "a")
    with pytest.raises(UnknownNameError, match="layer 'raw'"):
        discern.compare(cells, "type", "a", "b", layer="raw")


def test_too_few_cells_and_samples_are_refused() -> None:
    cells = _cells()
    cells.obs["rare"] = ["yes", "yes", *["no"] * (cells.n_obs - 2)]
    with pytest.raises(InvalidInputError, match="at least 3 cells"):
        discern.compare(cells, "rare", "yes", batch=None)
    cells.obs["donor"] = cells.obs["type"] + np.where(np.arange(cells.n_obs) < 60, "1", "2")
    with pytest.raises(InvalidInputError, match="at least 3 samples"):
        discern.compare(cells, "type", "a", "b", sample="donor", batch=None)


def test_genes_that_nobody_shows_are_not_called() -> None:
    cells = _reconstructed(_cells(60, differing=20), 20)
    values = cells.layers["measured"].toarray()
    values[:, 0] = 0
    cells.layers["measured"] = sparse.csr_matrix(values)
    gene = discern.compare(cells, "type", "a", "b").loc["0"]
    assert (gene["p_value"], gene["fdr"], gene["detected_group"]) == (1, 1, 0)


def test_the_command_writes_what_the_call_returns(tmp_path: Path) -> None:
    cells = _reconstructed(_cells(60, differing=20), 20)
    cells.var_names = ["=cmd|' /C calc'!A0", *cells.var_names[1:]]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["compare", str(tmp_path / "cells.h5ad"), "--groupby", "type", "--group", "a", "--reference", "b"]
    run = CliRunner().invoke(cli, [*arguments, "--output", str(tmp_path / "out.csv")])
    assert run.exit_code == 0, run.output
    assert "genes differ at a false discovery rate of 5%" in run.output
    expected = discern.compare(cells, "type", "a", "b")
    written = pd.read_csv(tmp_path / "out.csv", index_col=0)
    np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-6)
    assert "'=cmd|' /C calc'!A0" in written.index


def test_a_command_that_fails_writes_nothing(tmp_path: Path) -> None:
    cells = _reconstructed(_cells(60), 20)
    del cells.layers["measured"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["compare", str(tmp_path / "cells.h5ad"), "--groupby", "type", "--group", "a"]
    run = CliRunner().invoke(cli, [*arguments, "--output", str(tmp_path / "out.csv")])
    assert run.exit_code == 2
    assert not (tmp_path / "out.csv").exists()
