"""Trust figures, intervals and the line, of small real trainings and of made-up cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from discern.errors import InvalidInputError
from discern.metrics.trust import Calibration, Unseen, gene_reliability, gene_trust, halves
from discern.reconstructor import Reconstructor, reconstruct

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = {"min_genes": 0, "min_cells": 0, "latent_dim": 4, "layers": [16], "batch_size": 8, "max_steps": 2}


@pytest.fixture(scope="module")
def trained(make_raw_cells: Callable[..., ad.AnnData]) -> Reconstructor:
    model = Reconstructor(**SMALL, test_cells=0.3)
    return model.fit(make_raw_cells({"deep": 60, "shallow": 50}))


def test_both_halves_of_a_cell_have_all_its_counts_between_them() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (20, 50)).astype(float)
    scale = 20_000 / counts.sum(axis=1, keepdims=True)
    one, other = halves(np.log1p(counts * scale).astype(np.float32), rng)
    for half in (one, other):
        np.testing.assert_allclose(np.expm1(half).sum(axis=1), 20_000, rtol=1e-4)
    assert ((one > 0) | (other > 0)).sum() == (counts > 0).sum()


def log_counts(rates: np.ndarray, seed: int) -> np.ndarray:
    counts = np.random.default_rng(seed).poisson(rates)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 20_000).astype(np.float32)


def test_reliability_is_the_correlation_with_another_measurement() -> None:
    rng = np.random.default_rng(0)
    rates = rng.gamma(2, 1, (2000, 60)) * np.geomspace(0.1, 100, 60)
    rates[:, :10] = np.geomspace(0.1, 100, 10)
    cells, again = log_counts(rates, 1), log_counts(rates, 2)
    true = np.array([np.corrcoef(*pair)[0, 1] for pair in zip(cells.T, again.T, strict=True)])
    found = gene_reliability(cells, np.arange(2000), np.zeros(2000, dtype=np.intp))
    np.testing.assert_allclose(found, np.maximum(true, 0), atol=0.1)
    assert np.abs(found - true).mean() < 0.03


def test_the_batch_that_shows_a_gene_counts_and_their_difference_does_not() -> None:
    rates = np.ones((400, 100))
    rates[200:, 0] = 50  # batches differ in the first gene, cells do not
    rates[200:, 1] = np.where(np.arange(200) % 2, 2, 40)  # one batch alone shows the second
    batches = np.repeat([0, 1], 200)
    cells = log_counts(rates, 0)
    found = gene_reliability(cells, np.arange(400), batches)
    assert found[1] > 0.8
    assert max(found[0], *found[2:]) < 0.5
    assert not gene_reliability(cells, np.array([0, 1, 399]), batches).any()


def test_trust_is_high_for_what_is_foretold_and_none_for_noise() -> None:
    rng = np.random.default_rng(0)
    rates = np.ones((300, 40))
    rates[:, :10] = np.where(np.arange(300) % 2, 30, 3)[:, np.newaxis]
    rates[:, 10:20] = np.where(np.arange(300) % 2, 3, 30)[:, np.newaxis]
    counts = rng.poisson(rates)
    cells = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 20_000).astype(np.float32)
    unseen = Unseen(np.arange(300), "test")

    def perfect(_: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rates[rows] + rng.normal(0, 0.1, (len(rows), 40)), np.ones((len(rows), 40))

    trust = gene_trust(cells, unseen, np.zeros(300, dtype=int), perfect)
    assert trust[:20].min() > 0.7
    assert abs(np.mean(trust[20:])) < 0.1


def test_intervals_of_sparse_genes_hold_nine_in_ten_or_begin_at_zero() -> None:
    rng = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return np.log1p(rng.poisson(rates) * 2.0)

    rates = rng.gamma(0.5, 2, (200, 400))
    estimates, detection = np.log1p(rates * 2), 1 - np.exp(-rates)
    low, high = Calibration.of(draw(), estimates, detection).interval(estimates, detection)
    new = draw()
    inside = (new >= low) & (new <= high)
    assert inside[high > 0].mean() == pytest.approx(0.9, abs=0.02)
    assert (low[detection < 0.9] == 0).all()
    assert (high[detection < 0.05] == 0).all()


def test_unseen_cells_are_test_cells_before_validation_and_training_cells() -> None:
    obs = pd.DataFrame({"batch": ["a"] * 60 + ["b"] * 5, "split": ["train"] * 40 + ["valid"] * 15 + ["test"] * 10})
    assert Unseen.of(obs, "a").split == "valid"
    assert Unseen.of(obs, None).split == "test"
    assert Unseen.of(obs[:45], "a").split == "train"
    assert Unseen.of(obs, "b") is None
    assert Unseen.of(obs.assign(discern_split="train"), "a").split == "train"
    assert len(Unseen.of(obs, "a", most=12).rows) == 12


def test_every_projection_has_a_trust_figure_for_each_gene(trained: Reconstructor) -> None:
    for reference in ("deep", "", None):
        result = trained.project(reference)
        trust = result.var["discern_trust"]
        assert trust.notna().mean() > 0.9
        assert trust.dropna().between(-1, 1).all()
        assert result.uns["discern_trust"]["split"] == "test"


def test_intervals_come_with_the_projection_and_from_a_file(trained: Reconstructor, tmp_path: Path) -> None:
    result = trained.project("deep", intervals=True)
    low, high = result.layers["estimated_low"], result.layers["estimated_high"]
    assert (low <= high).all()
    assert low.min() >= 0
    layers = ["estimated_counts", "estimated_low", "estimated_high"]
    (path,) = trained.estimator.project_to_metadata(trained.data, ["batch:deep"], tmp_path, layers=layers)
    written = ad.read_h5ad(path)
    for name, values in (("estimated_low", low), ("estimated_high", high)):
        stored = written.layers[name]
        np.testing.assert_allclose(stored if isinstance(stored, np.ndarray) else stored.toarray(), values, atol=1e-5)
    np.testing.assert_allclose(written.var["discern_trust"], result.var["discern_trust"])


def test_intervals_need_one_batch_as_target(trained: Reconstructor, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="project to batch:NAME"):
        trained.project("", intervals=True)
    with pytest.raises(InvalidInputError, match="project to batch:NAME"):
        trained.estimator.project_to_metadata(
            trained.data, ["batch:deep", "celltype:"], tmp_path, layers=["estimated_low"]
        )
    assert not list(tmp_path.iterdir())


def test_intervals_without_held_out_cells_are_refused_before_training(
    make_raw_cells: Callable[..., ad.AnnData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reconstructor, "_train", lambda *_: pytest.fail("trained for nothing"))
    cells = make_raw_cells({"deep": 60, "shallow": 50})
    with pytest.raises(InvalidInputError, match=r"test_cells=0\.2"):
        reconstruct(cells, reference="deep", intervals=True, **SMALL)


def test_trust_of_trained_cells_is_told_as_such(
    make_raw_cells: Callable[..., ad.AnnData], caplog: pytest.LogCaptureFixture
) -> None:
    result = reconstruct(make_raw_cells({"deep": 60, "shallow": 50}), reference="deep", test_cells=0, **SMALL)
    assert result.uns["discern_trust"] == {"cells": 60, "split": "train"}
    assert "trained on" in caplog.text


def test_one_in_twenty_held_out_reference_cells_is_beyond_the_line(trained: Reconstructor) -> None:
    result = trained.project("deep")
    held_out = (result.obs["batch"] == "deep") & (result.obs["split"] == "test")
    line = result.uns["discern_line"]
    assert line["split"] == "test"
    assert line["distance"] == pytest.approx(np.quantile(result.obs.loc[held_out, "discern_distance"], 0.95))
    pd.testing.assert_series_equal(
        result.obs["discern_beyond"], result.obs["discern_distance"] > line["distance"], check_names=False
    )
