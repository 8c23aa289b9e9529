"""Cells that come later are projected as though they had been there from the start, without training."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from scipy import sparse

from discern.cli.commands import cli
from discern.data.annotation import named_layers
from discern.experiment import new_cells
from discern.model import exported, projection
from discern.reconstructor import Reconstructor

if TYPE_CHECKING:
    from collections.abc import Callable

N_GENES, RARE = 60, 20
EXPERIMENT = {
    "input_ds": {
        "filtering": {"min_genes": 22, "min_cells": 6},
        "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
        "split": {"valid_cells": 0.15, "test_cells": 0.3},
    },
    "model": {
        "latent_dim": 4,
        "encoder": {"layers": [16]},
        "decoder": {"layers": [16]},
        "weighting_decoder_dropout": 1000,
        "align_batches": True,
    },
    "training": {"batch_size": 8, "max_steps": 4, "GPU": [], "XLA": False, "visualisation": False, "seed": 7},
}
OUTPUT = ("--layers", "X,estimated_counts,estimated_dropouts,measured", "--intervals", "--store-sigmas")


def make_cells(make_raw_cells: Callable[..., ad.AnnData]) -> ad.AnnData:
    """Two batches; the last genes are in so few cells that processing leaves them out, having counted them."""
    cells = make_raw_cells({"good": 90, "poor/1": 90}, n_genes=N_GENES, density=0.55)
    counts = cells.X.toarray()
    counts[:, -RARE:] = 0
    random = np.random.default_rng(1)
    for gene in range(N_GENES - RARE, N_GENES):
        counts[random.choice(len(counts), 5, replace=False), gene] = 1
    cells.X = sparse.csr_matrix(counts)
    cells.var["gene_ids"] = [f"ENSG{number:011d}" for number in range(N_GENES)]
    return cells


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_raw_cells: Callable[..., ad.AnnData]) -> Path:
    """A folder with raw cells, a trained experiment and its own projections."""
    folder = tmp_path_factory.mktemp("made")
    make_cells(make_raw_cells).write_h5ad(folder / "cells.h5ad")
    experiment = {**EXPERIMENT, "input_ds": {**EXPERIMENT["input_ds"], "raw_input": [str(folder / "cells.h5ad")]}}
    content = {"exp_param": {"experiments_dir": str(folder / "runs")}, "experiments": {"one": experiment}}
    (folder / "p.json").write_text(json.dumps(content))
    for command in (["process"], ["train"], ["project", "--reference", "good", *OUTPUT]):
        run(*command, folder / "p.json")
    run("export", folder / "runs" / "one", folder / "model.discern", "--licence", "CC0")
    return folder


@pytest.fixture
def raw(made: Path) -> ad.AnnData:
    return ad.read_h5ad(made / "cells.h5ad")


@pytest.fixture
def whole(made: Path) -> ad.AnnData:
    """What the experiment's own cells get."""
    return ad.read_h5ad(made / "runs" / "one" / "projected" / "projected_to_reference_good.h5ad")


@pytest.fixture
def experiment(made: Path, tmp_path: Path) -> Path:
    """A private copy of the parameter file and its experiment."""
    shutil.copytree(made / "runs" / "one", tmp_path / "runs" / "one")
    content = json.loads((made / "p.json").read_text())
    content["exp_param"]["experiments_dir"] = str(tmp_path / "runs")
    (tmp_path / "p.json").write_text(json.dumps(content))
    return tmp_path / "p.json"


def run(*arguments: str | Path, code: int = 0) -> Result:
    outcome = CliRunner().invoke(cli, list(map(str, arguments)))
    assert outcome.exit_code == code, outcome.output
    return outcome


def dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def assert_as_from_the_start(new: ad.AnnData, whole: ad.AnnData) -> None:
    """The new cells have what the same cells of the experiment have."""
    own = whole[new.obs_names]
    assert list(new.var_names) == list(own.var_names)
    pd.testing.assert_frame_equal(new.var.drop(columns="discern_trust"), own.var.drop(columns="discern_trust"))
    np.testing.assert_allclose(new.var["discern_trust"], own.var["discern_trust"], atol=1e-5)
    assert sorted(named_layers(new)) == sorted(named_layers(own))
    for name in named_layers(new):
        np.testing.assert_allclose(dense(new.layers[name]), dense(own.layers[name]), atol=1e-5, err_msg=name)
    np.testing.assert_allclose(dense(new.X), dense(own.X), atol=1e-5)
    for name in new.obsm:
        np.testing.assert_allclose(new.obsm[name], own.obsm[name], atol=1e-5)
    assert list(new.obs) == list(own.obs)
    for name in ("n_genes", "n_counts"):
        np.testing.assert_allclose(new.obs[name], own.obs[name], rtol=1e-6)
    assert new.uns["DISCERN"]["projected_to"] == own.uns["DISCERN"]["projected_to"]
    assert new.uns["discern_line"] == own.uns["discern_line"]


def files_of(folder: Path) -> dict[str, bytes]:
    found = {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: content for name, content in found.items() if not name.endswith((".lock", "discern.log"))}


# --- as from the start -----------------------------------------------------------------------------------------------


def shuffled_genes(cells: ad.AnnData) -> ad.AnnData:
    return cells[:, np.random.default_rng(5).permutation(cells.n_vars)].copy()


def more_genes(cells: ad.AnnData) -> ad.AnnData:
    others = ad.AnnData(np.full((cells.n_obs, 9), 3.0), cells.obs, pd.DataFrame(index=[f"other{n}" for n in range(9)]))
    return ad.concat([others, cells], axis=1, merge="first")


def by_ids(cells: ad.AnnData) -> ad.AnnData:
    cells.var = pd.DataFrame({"symbol": cells.var_names}, index=cells.var["gene_ids"].rename(None))
    return cells


def names_in_var(cells: ad.AnnData) -> ad.AnnData:
    cells.var = pd.DataFrame({"what": cells.var_names}, index=[f"probe{n}" for n in range(cells.n_vars)])
    return cells


def as_dense(cells: ad.AnnData) -> ad.AnnData:
    cells.X = cells.X.toarray()
    return cells


def by_genes(cells: ad.AnnData) -> ad.AnnData:
    cells.X = cells.X.tocsc()
    return cells


def in_a_layer(cells: ad.AnnData) -> ad.AnnData:
    cells.layers["counts"], cells.X = cells.X, cells.X.multiply(0.37).tocsr()
    return cells


def in_raw(cells: ad.AnnData) -> ad.AnnData:
    raw = cells.copy()
    cells.X = cells.X.multiply(0.37).tocsr()
    cells.raw = raw
    return cells


def a_few(cells: ad.AnnData) -> ad.AnnData:
    return cells[[3, 40, 41, 77, 80]].copy()


KINDS = (shuffled_genes, more_genes, by_ids, names_in_var, as_dense, by_genes, in_a_layer, in_raw, a_few)


@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__)
@pytest.mark.parametrize("with_file", [False, True], ids=["experiment", "exported"])
def test_new_cells_get_what_they_would_have_from_the_start(
    change: Callable[[ad.AnnData], ad.AnnData],
    with_file: bool,
    made: Path,
    raw: ad.AnnData,
    whole: ad.AnnData,
    tmp_path: Path,
) -> None:
    change(raw[raw.obs["batch"] == "poor/1"].copy()).write_h5ad(tmp_path / "new.h5ad")
    model = ("--model", made / "model.discern") if with_file else (made / "p.json",)

    run(
        "project",
        *model,
        "--input",
        tmp_path / "new.h5ad",
        "--output",
        tmp_path / "out",
        "--reference",
        "good",
        *OUTPUT,
    )

    new = ad.read_h5ad(tmp_path / "out" / "projected_to_reference_good.h5ad")
    of_batch = whole.obs_names[whole.obs["batch"] == "poor/1"]
    if change is not a_few:
        assert set(new.obs_names) == set(of_batch), "the same cells are filtered out"
        np.testing.assert_allclose(
            new.obs["discern_distance"], whole.obs.loc[new.obs_names, "discern_distance"], atol=1e-5
        )
    assert set(new.obs["split"]) == {"new"}
    assert_as_from_the_start(new, whole)


def test_genes_that_were_left_out_decide_which_cells_stay(made: Path, raw: ad.AnnData, whole: ad.AnnData) -> None:
    kept = raw[:, whole.var_names]
    enough = np.asarray((kept.X > 0).sum(axis=1)).ravel() >= 22
    assert set(raw.obs_names[enough]) < set(whole.obs_names), "the cells of this test show nothing"


def test_a_table_of_counts_is_read_as_process_reads_it(
    made: Path, raw: ad.AnnData, whole: ad.AnnData, tmp_path: Path
) -> None:
    part = raw[raw.obs["batch"] == "good"]
    part.to_df().T.to_csv(tmp_path / "later.csv")
    options = ("--batch", "good", "--output", tmp_path / "out", "--reference", "good", *OUTPUT)

    run("project", made / "p.json", "--input", tmp_path / "later.csv", *options)

    new = ad.read_h5ad(tmp_path / "out" / "projected_to_reference_good.h5ad")
    new.obs.insert(1, "celltype", whole.obs.loc[new.obs_names, "celltype"])
    assert_as_from_the_start(new, whole)
    assert set(new.obs["batch"]) == {"good"}


def test_a_column_says_the_batch(made: Path, raw: ad.AnnData, whole: ad.AnnData, tmp_path: Path) -> None:
    raw.obs["donor"], raw.obs["batch"] = raw.obs["batch"], "run 7"
    raw.write_h5ad(tmp_path / "new.h5ad")
    options = ("--batch-column", "donor", "--output", tmp_path / "out", "--reference", "good")

    run("project", made / "p.json", "--input", tmp_path / "new.h5ad", *options)

    new = ad.read_h5ad(tmp_path / "out" / "projected_to_reference_good.h5ad")
    np.testing.assert_allclose(new.obsm["X_DISCERN"], whole[new.obs_names].obsm["X_DISCERN"], atol=1e-5)
    assert set(new.obs["batch_original"]) == {"run 7"}


def test_targets_are_those_of_the_experiment(made: Path, raw: ad.AnnData, tmp_path: Path) -> None:
    """The average cell is that of the experiment, not of the new cells."""
    raw[:30].write_h5ad(tmp_path / "new.h5ad")
    targets = ("--metadata", "batch:", "--all-batches", "--layers", "estimated_counts", "--dtype", "float16")
    own = tmp_path / "own"
    shutil.copytree(made / "runs", own)
    run("project", *targets, own / "one" / "parameters.json")

    run("project", made / "p.json", "--input", tmp_path / "new.h5ad", *targets, "--output", tmp_path / "out")

    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(written) == 3
    for name in written:
        new, old = (ad.read_h5ad(folder / name) for folder in (tmp_path / "out", own / "one" / "projected"))
        assert new.layers["estimated_counts"].dtype == np.float16
        np.testing.assert_allclose(
            dense(new.layers["estimated_counts"]).astype(float),
            dense(old[new.obs_names].layers["estimated_counts"]).astype(float),
            atol=1e-5,
        )


def test_without_a_target_each_cell_is_decoded_as_its_own_batch_into_zarr(
    made: Path, raw: ad.AnnData, tmp_path: Path
) -> None:
    raw[:30].write_h5ad(tmp_path / "new.h5ad")
    run("project", made / "p.json", "--input", tmp_path / "new.h5ad", "--output", tmp_path / "out", "--format", "zarr")
    new = ad.read_zarr(tmp_path / "out" / "unprojected.zarr")
    assert "discern_distance" not in new.obs
    assert "discern_trust" in new.var


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_experiment_s_own_cells_are_encoded_once(
    experiment: Path, raw: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = experiment.parent / "runs" / "one" / "job" / "seen_cells.hdf"
    kept.unlink()
    raw[:30].write_h5ad(tmp_path / "new.h5ad")
    command = ("project", experiment, "--input", tmp_path / "new.h5ad", "--reference", "good")
    run(*command)
    assert kept.is_file()
    monkeypatch.setattr(new_cells, "load_experiment", lambda *args, **kwargs: pytest.fail("the cells are read again"))

    run(*command)

    result = experiment.parent / "runs" / "one" / "projected" / "new" / "projected_to_reference_good.h5ad"
    assert ad.read_h5ad(result).n_obs > 10


def test_codes_move_with_those_of_the_experiment(
    experiment: Path, raw: ad.AnnData, whole: ad.AnnData, tmp_path: Path
) -> None:
    """Whether they do may be changed after training; what is kept of the cells follows."""
    raw[raw.obs["batch"] == "poor/1"].write_h5ad(tmp_path / "new.h5ad")
    content = json.loads(experiment.read_text())
    folder = experiment.parent / "runs" / "one"
    command = ("project", experiment, "--input", tmp_path / "new.h5ad", "--reference", "good", *OUTPUT)
    codes = {}
    for moved in (True, False):
        content["experiments"]["one"]["model"]["align_batches"] = moved
        experiment.write_text(json.dumps(content))
        run(*command)
        new = ad.read_h5ad(folder / "projected" / "new" / "projected_to_reference_good.h5ad")
        run("project", experiment, "--reference", "good", *OUTPUT)
        own = ad.read_h5ad(folder / "projected" / "projected_to_reference_good.h5ad")
        assert_as_from_the_start(new, own)
        codes[moved] = new.obsm["X_DISCERN"]
        np.testing.assert_allclose(codes[moved], own[new.obs_names].obsm["X_DISCERN"], atol=1e-5)
    np.testing.assert_allclose(codes[True], whole[new.obs_names].obsm["X_DISCERN"], atol=1e-5)
    assert np.abs(codes[True] - codes[False]).max() > 0.01


@pytest.mark.parametrize("damage", ["truncated", "of another model", "of another format", "NaN"])
def test_what_is_kept_is_made_anew_if_it_is_of_no_use(
    damage: str, experiment: Path, raw: ad.AnnData, whole: ad.AnnData, tmp_path: Path
) -> None:
    kept = experiment.parent / "runs" / "one" / "job" / "seen_cells.hdf"
    if damage == "truncated":
        kept.write_bytes(kept.read_bytes()[:-500])
    else:
        with h5py.File(kept, "r+") as file:
            if damage == "of another model":
                file.attrs["model"] = "0" * 64
            elif damage == "of another format":
                file.attrs["seen_cells_version"] = 99
            else:
                group = next(group for group in file["seen"].values() if "directions" in group)
                group["directions"][0, 0] = np.nan
    raw[raw.obs["batch"] == "poor/1"].write_h5ad(tmp_path / "new.h5ad")

    run("project", experiment, "--input", tmp_path / "new.h5ad", "--reference", "good", *OUTPUT)

    result = experiment.parent / "runs" / "one" / "projected" / "new" / "projected_to_reference_good.h5ad"
    assert_as_from_the_start(ad.read_h5ad(result), whole)


def test_the_experiment_s_own_results_and_cells_stay(experiment: Path, raw: ad.AnnData, tmp_path: Path) -> None:
    before = files_of(experiment.parent / "runs")
    raw[:30].write_h5ad(tmp_path / "new.h5ad")

    run("project", experiment, "--input", tmp_path / "new.h5ad", "--reference", "good")

    after = files_of(experiment.parent / "runs")
    assert {name: after[name] for name in before} == before
    assert [Path(name).name for name in after.keys() - before.keys()] == ["projected_to_reference_good.h5ad"]


# --- cells unlike what was seen --------------------------------------------------------------------------------------


def test_cells_of_an_unknown_batch_can_be_encoded_as_a_known_one(
    made: Path, raw: ad.AnnData, whole: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poor = raw[raw.obs["batch"] == "poor/1"].copy()
    poor.obs["batch"] = "strange"
    poor.write_h5ad(tmp_path / "new.h5ad")
    options = ("--output", tmp_path / "out", "--reference", "good", "--as-batch", "poor/1")

    run("project", made / "p.json", "--input", tmp_path / "new.h5ad", *options)

    new = ad.read_h5ad(tmp_path / "out" / "projected_to_reference_good.h5ad")
    assert set(new.obs["batch"]) == {"strange"}
    assert set(new.obs["discern_encoded_as"]) == {"poor/1"}
    np.testing.assert_allclose(new.obsm["X_DISCERN"], whole[new.obs_names].obsm["X_DISCERN"], atol=1e-5)
    np.testing.assert_allclose(new.obs["discern_distance"], whole.obs.loc[new.obs_names, "discern_distance"], atol=1e-5)


def test_only_cells_of_unknown_batches_are_encoded_as_another(made: Path, raw: ad.AnnData) -> None:
    raw.obs["batch"] = np.where(np.arange(raw.n_obs) % 3 == 0, "strange", raw.obs["batch"])
    new = Reconstructor.load(made / "model.discern").project("good", adata=raw, as_batch="good")
    encoded = new.obs["discern_encoded_as"].astype(str)
    strange = (new.obs["batch"] == "strange").to_numpy()
    assert set(encoded[strange]) == {"good"}
    assert (encoded[~strange] == new.obs["batch"].astype(str)[~strange]).all()


def test_cells_unlike_all_that_was_seen_are_told(made: Path, raw: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    model = Reconstructor.load(made / "model.discern")
    seen = model._of_file.seen["good"]
    yardstick = dataclasses.replace(seen.yardstick, line=0.05)  # as though the reference's own cells were all alike
    model._of_file = dataclasses.replace(model._of_file, seen={"good": dataclasses.replace(seen, yardstick=yardstick)})
    with caplog.at_level(logging.WARNING):
        new = model.project("good", adata=raw)
    assert new.obs["discern_beyond"].mean() > 0.5
    assert new.uns["discern_line"]["distance"] == 0.05
    assert "are farther from good than 95 % of its own: they are unlike all that the model has seen" in caplog.text


def test_missing_genes_are_zero_and_counted(
    made: Path, raw: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = raw[:60].copy()
    gone = list(part.var_names[[2, 5, 7]])
    zero = part.copy()
    zero.X = sparse.csr_matrix(np.where(np.isin(zero.var_names, gone), 0, zero.X.toarray()))
    model = Reconstructor.load(made / "model.discern")
    with caplog.at_level(logging.WARNING):
        new = model.project("good", adata=part[:, ~part.var_names.isin(gone)].copy())
    wanted = model.project("good", adata=zero)
    assert "3 of the 40 genes of the model are missing and taken as zero: 'gene2', 'gene5', 'gene7'" in caplog.text
    np.testing.assert_allclose(new.X, wanted.X, atol=1e-5)


# --- mistakes --------------------------------------------------------------------------------------------------------


def unknown_batch(cells: ad.AnnData) -> ad.AnnData:
    cells.obs["batch"] = "strange"
    return cells


def no_batch_column(cells: ad.AnnData) -> ad.AnnData:
    del cells.obs["batch"]
    return cells


def few_genes(cells: ad.AnnData) -> ad.AnnData:
    return cells[:, 10:].copy()


def other_genes(cells: ad.AnnData) -> ad.AnnData:
    cells.var = pd.DataFrame(index=[f"other{n}" for n in range(cells.n_vars)])
    return cells


def logged(cells: ad.AnnData) -> ad.AnnData:
    cells.X = cells.X.log1p()
    return cells


def negative(cells: ad.AnnData) -> ad.AnnData:
    cells.X = -cells.X
    return cells


def in_an_odd_layer(cells: ad.AnnData) -> ad.AnnData:
    cells.layers["molecules"], cells.X = cells.X, cells.X.multiply(0.37).tocsr()
    return cells


def nothing_left(cells: ad.AnnData) -> ad.AnnData:
    keep = np.arange(cells.n_vars) < 10
    cells.X = sparse.csr_matrix(np.where(keep, cells.X.toarray(), 0))
    return cells


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (unknown_batch, (), "discern onlinetraining"),
        (unknown_batch, (), "--as-batch good"),
        (no_batch_column, (), "180 cells of 'new': the model knows only the batches 'good', 'poor/1'"),
        (ad.AnnData.copy, ("--batch", "goood"), "batch 'goood': the model knows no such batch (did you mean 'good'?)"),
        (ad.AnnData.copy, ("--as-batch", "x"), "as_batch 'x': the model knows no such batch"),
        (ad.AnnData.copy, ("--batch-column", "donor"), "expected an obs column 'donor' for the batch"),
        (ad.AnnData.copy, ("--batch", "good", "--batch-column", "batch"), "--batch and --batch-column"),
        (ad.AnnData.copy, ("--reference", "x"), "no value 'x'"),
        (ad.AnnData.copy, ("--metadata", "celltype:T cell"), "new cells are decoded as batches"),
        (ad.AnnData.copy, ("--layers", "X,counts"), "there is no layer 'counts' to write"),
        (ad.AnnData.copy, ("--intervals",), "intervals are of a new measurement"),
        (few_genes, (), "lacks 10 of the 40 genes of the model, more than 20%"),
        (other_genes, (), "lacks 40 of the 40 genes"),
        (logged, (), "logged"),
        (negative, (), "expected raw counts in X, some are negative"),
        (in_an_odd_layer, (), "layers['molecules'] may hold them: put them into X"),
        (nothing_left, (), "filtering.min_genes: expected cells with 22 or more genes"),
    ],
)
@pytest.mark.parametrize("with_file", [False, True], ids=["experiment", "exported"])
def test_a_mistake_is_told_in_one_line_and_changes_nothing(
    change: Callable[[ad.AnnData], ad.AnnData],
    options: tuple[str, ...],
    said: str,
    with_file: bool,
    made: Path,
    raw: ad.AnnData,
    tmp_path: Path,
) -> None:
    change(raw).write_h5ad(tmp_path / "new.h5ad")
    before = files_of(made), files_of(tmp_path)
    model = ("--model", made / "model.discern") if with_file else (made / "p.json",)

    result = run("project", *model, "--input", tmp_path / "new.h5ad", "--output", tmp_path / "out", *options, code=2)

    errors = [line for line in result.output.splitlines() if "error:" in line]
    assert len(errors) == 1, result.output
    assert said in errors[0]
    assert (files_of(made), files_of(tmp_path)) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch", "good"), "--batch is for new cells: give --input as well"),
        (("--output", "x"), "--output is for new cells"),
        (("--input", "none.h5ad"), "--input: none.h5ad: no such file"),
        (("--input", "MADE/cells.h5ad", "--model", "MADE/model.discern"), "PARAMETERS.json and --model"),
        (("--input", "MADE/cells.h5ad", "--filename", "MADE/cells.h5ad"), "--filename is for processed cells"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], said: str, made: Path) -> None:
    result = run("project", made / "p.json", *(text.replace("MADE", str(made)) for text in options), code=2)
    assert said in result.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "expected PARAMETERS.json"),
        (("--input", "MADE/cells.h5ad"), "expected PARAMETERS.json or --model MODEL.discern"),
        (("--input", "MADE/cells.h5ad", "--model", "MADE/model.discern"), "--model: expected --output as well"),
    ],
)
def test_without_a_parameter_file(options: tuple[str, ...], said: str, made: Path) -> None:
    result = run("project", *(text.replace("MADE", str(made)) for text in options), code=2)
    assert said in result.output


def test_results_do_not_go_through_a_link(experiment: Path, raw: ad.AnnData, tmp_path: Path) -> None:
    raw[:30].write_h5ad(tmp_path / "new.h5ad")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "one" / "projected" / "new").symlink_to(tmp_path / "elsewhere")
    result = run("project", experiment, "--input", tmp_path / "new.h5ad", "--reference", "good", code=2)
    assert "a link" in result.output
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_failure_while_a_result_is_written_leaves_the_former_one(
    experiment: Path, raw: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw[:30].write_h5ad(tmp_path / "new.h5ad")
    command = ("project", experiment, "--input", tmp_path / "new.h5ad", "--reference", "good")
    run(*command)
    folder = tmp_path / "runs" / "one" / "projected" / "new"
    before = files_of(folder)

    def fails(*args: Any, **kwargs: Any) -> Any:
        yield {"X": np.zeros((1, 40), np.float32)}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(projection, "_written_chunks", fails)
    run(*command, "--layers", "X", code=2)
    assert files_of(folder) == before
    assert [path.name for path in folder.iterdir()] == ["projected_to_reference_good.h5ad"]


def test_leftovers_of_a_killed_projection_are_removed(experiment: Path, raw: ad.AnnData, tmp_path: Path) -> None:
    raw[:30].write_h5ad(tmp_path / "new.h5ad")
    left = tmp_path / "runs" / "one" / "projected" / "new" / ".projected_to_reference_good.h5ad.partial-abcdefgh"
    left.mkdir(parents=True)
    run("project", experiment, "--input", tmp_path / "new.h5ad", "--reference", "good")
    assert not left.exists()


@pytest.mark.parametrize("with_file", [False, True], ids=["experiment", "exported"])
def test_a_dry_run_says_what_would_be_made_and_makes_nothing(with_file: bool, made: Path, tmp_path: Path) -> None:
    model = ("--model", made / "model.discern") if with_file else (made / "p.json",)
    before = files_of(made)
    options = ("--output", tmp_path / "out", "--reference", "good", "--dry-run")
    result = run("project", *model, "--input", made / "cells.h5ad", *options)
    assert "180 cells x 60 genes" in result.output
    assert "projected_to_reference_good.h5ad" in result.output
    assert files_of(made) == before
    assert not (tmp_path / "out").exists()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_large_files_are_read_block_by_block_and_never_made_dense(
    made: Path,
    raw: ad.AnnData,
    whole: ad.AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit_memory: Callable[..., None],
) -> None:
    many = ad.concat([raw] * 12, index_unique="-")
    many.var = raw.var
    many.write_h5ad(tmp_path / "new.h5ad")
    limit_memory(matrix=1000, block=200 * N_GENES)
    sizes = []
    to_dense = sparse.csr_matrix.toarray

    def watched(self: sparse.csr_matrix, *args: Any, **kwargs: Any) -> np.ndarray:
        sizes.append(self.shape[0])
        return to_dense(self, *args, **kwargs)

    monkeypatch.setattr(sparse.csr_matrix, "toarray", watched)

    run(
        "project",
        made / "p.json",
        "--input",
        tmp_path / "new.h5ad",
        "--output",
        tmp_path / "out",
        "--reference",
        "good",
    )

    assert max(sizes) <= 512
    new = ad.read_h5ad(tmp_path / "out" / "projected_to_reference_good.h5ad")
    first = new[new.obs_names.str.endswith("-7")]
    own = whole[first.obs_names.str.removesuffix("-7")]
    np.testing.assert_allclose(dense(first.X), dense(own.X), atol=1e-5)


# --- a model to give away --------------------------------------------------------------------------------------------


def test_a_model_holds_no_cells_and_no_paths(made: Path, raw: ad.AnnData) -> None:
    content = (made / "model.discern").read_bytes()
    assert str(made).encode() not in content
    with h5py.File(made / "model.discern") as file:
        texts: list[str] = []

        def gather(name: str, part: Any) -> None:
            texts.append(name)
            if isinstance(part, h5py.Dataset) and h5py.check_string_dtype(part.dtype):
                texts.extend(map(str, np.atleast_1d(part.asstr()[()])))

        file.visititems(gather)
        assert not set(raw.obs_names) & set(texts)
        assert "optimizer" not in file
    found = exported.read(made / "model.discern")
    assert found.card["licence"] == "CC0"
    assert found.card["trained_on"]["genes"] == 40
    assert found.card["trained_on"]["cells_of_batches"].keys() == {"good", "poor/1"}
    assert found.card["evaluation"] is None
    assert list(found.parameters.input_ds.raw_input) == ["cells"]


def test_the_card_has_the_figures_of_evaluate(experiment: Path, tmp_path: Path) -> None:
    run("evaluate", "--reference", "good", experiment)
    run("export", tmp_path / "runs" / "one", tmp_path / "model.discern")
    figures = exported.read(tmp_path / "model.discern").card["evaluation"]
    assert figures["epoch"] == 4
    assert "poor/1" in figures["sources"]
    shown = run("info", tmp_path / "model.discern").output
    for text in ("licence    none is given", "poor/1 as good: ", "latent codes are kept", "40, such as gene0"):
        assert text in shown


@pytest.mark.parametrize(
    ("folder", "file", "said"),
    [
        ("runs/one", "model.h5", "expected a name that ends in .discern"),
        ("runs/none", "model.discern", "holds no processed experiment"),
        ("runs/one", "there.discern", "is there already"),
    ],
)
def test_mistakes_of_an_export(folder: str, file: str, said: str, experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "there.discern").touch()
    before = files_of(tmp_path)
    result = run("export", tmp_path / folder, tmp_path / file, code=2)
    assert said in result.output
    assert files_of(tmp_path) == before
