"""The API for cells in memory, and that it does what the command line does."""

from __future__ import annotations

import itertools
import json
import logging
import sys
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import sparse

import discern
from discern.cli.commands import cli
from discern.config.reading import parse_experiment
from discern.data.annotation import named_layers
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.experiment.info import describe
from discern.reconstructor import _PLACES, _SECTIONS, Reconstructor, reconstruct
from discern.runtime import progress
from tests.support.texts import plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARAMETERS: dict[str, Any] = {
    "min_genes": 5,
    "min_cells": 3,
    "latent_dim": 4,
    "encoder": {"layers": [16]},
    "decoder": {"layers": [16]},
    "batch_size": 8,
    "max_steps": 3,
    "GPU": [],
    "XLA": False,
    "visualisation": False,
    "fixed_scaling": {"mean": "genes", "var": "genes"},
    "LSN": 1000,
}
EXPERIMENT = {
    "input_ds": {
        "filtering": {"min_genes": 5, "min_cells": 3},
        "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
    },
    "model": {"latent_dim": 4, "encoder": {"layers": [16]}, "decoder": {"layers": [16]}},
    "training": {"batch_size": 8, "max_steps": 3, "GPU": [], "XLA": False, "visualisation": False, "seed": 7},
}
#: What a file without these keys does not have, and the published file does.
DETECTION = {"weighting_decoder_dropout": 10000, "crossentropy": {"label_smoothing": 0.0, "lower_label_smoothing": 0.1}}


@pytest.fixture
def cells(make_raw_cells: Callable[..., ad.AnnData]) -> ad.AnnData:
    cells = make_raw_cells({"good": 90, "poor": 90})
    cells.obs["protocol"] = pd.Categorical(cells.obs.pop("batch"))
    cells.layers["other"] = cells.X * 2
    cells.obsm["X_umap"] = np.zeros((180, 2))
    return cells


def _stored_backwards(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the same matrix, the entries of each cell from the last gene to the first."""
    back = np.concatenate([np.arange(stop, start, -1) - 1 for start, stop in itertools.pairwise(X.indptr)])
    return sparse.csr_matrix((X.data[back], X.indices[back], X.indptr), shape=X.shape)


def _dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def _assert_same_result(one: ad.AnnData, other: ad.AnnData) -> None:
    pd.testing.assert_index_equal(plain(one.obs_names), plain(other.obs_names))
    pd.testing.assert_index_equal(plain(one.var_names), plain(other.var_names))
    np.testing.assert_array_equal(one.obs["split"].astype(str), other.obs["split"].astype(str))
    np.testing.assert_allclose(one.obsm["X_DISCERN"], other.obsm["X_DISCERN"], atol=1e-6)
    for name in ("estimated_counts", "estimated_dropouts"):
        np.testing.assert_allclose(_dense(one.layers[name]), _dense(other.layers[name]), atol=1e-5)
    np.testing.assert_allclose(_dense(one.X), _dense(other.X), atol=1e-5)


@pytest.mark.parametrize("preset", ["auto", None], ids=["preset", "published"])
def test_result_is_that_of_the_command_line(preset: str | None, cells: ad.AnnData, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "cells.h5ad")
    held_out = {} if preset is None else {"split": {"test_cells": 0.1}}  # as `discern init` writes it
    experiment = {**EXPERIMENT, "preset": preset, "input_ds": {**EXPERIMENT["input_ds"], **held_out}}
    if preset is None:
        experiment["model"] = {**EXPERIMENT["model"], **DETECTION}
    experiment["input_ds"]["raw_input"] = {str(tmp_path / "cells.h5ad"): "protocol"}
    file = tmp_path / "parameters.json"
    file.write_text(json.dumps({"exp_param": {"experiments_dir": str(tmp_path)}, "experiments": {"both": experiment}}))
    for command in (["process"], ["train"], ["project", "--metadata", "batch:good"]):
        outcome = CliRunner().invoke(cli, [*command, str(file)])
        assert outcome.exit_code == 0, outcome.output
    from_files = ad.read_h5ad(tmp_path / "both" / "projected" / "projected_to_average_batch_good.h5ad")

    cells.X = _stored_backwards(cells.X)
    in_memory = reconstruct(cells, reference="good", batch_key="protocol", seed=7, preset=preset, **PARAMETERS)

    _assert_same_result(in_memory, from_files)
    np.testing.assert_allclose(in_memory.obs["discern_distance"], from_files.obs["discern_distance"], rtol=1e-4)


def test_input_is_left_alone(cells: ad.AnnData) -> None:
    before = cells.copy()

    reconstruct(cells, reference="good", batch_key="protocol", **PARAMETERS)

    pd.testing.assert_frame_equal(cells.obs, before.obs)
    pd.testing.assert_frame_equal(cells.var, before.var)
    assert cells.uns == before.uns
    assert (cells.X != before.X).nnz == 0
    assert list(named_layers(cells)) == ["other"]


def test_steps_are_the_one_call_and_survive_saving(cells: ad.AnnData, tmp_path: Path) -> None:
    at_once = reconstruct(cells, reference="good", batch_key="protocol", seed=7, **PARAMETERS)

    model = Reconstructor(seed=7, **PARAMETERS).fit(cells, batch_key="protocol")
    folder = model.save(tmp_path / "experiments" / "saved")
    loaded = Reconstructor.load(folder)

    _assert_same_result(model.project("good"), at_once)
    _assert_same_result(loaded.project("good"), at_once)
    assert len(model.history["loss"]) == 3
    assert loaded.history == {name: pytest.approx(values) for name, values in model.history.items()}
    assert loaded.parameters["model"] == model.parameters["model"]
    outcome = CliRunner().invoke(cli, ["project", "--metadata", "batch:good", str(folder / "parameters.json")])
    assert outcome.exit_code == 0, outcome.output
    _assert_same_result(ad.read_h5ad(folder / "projected" / "projected_to_average_batch_good.h5ad"), at_once)


def test_targets_of_a_projection(cells: ad.AnnData) -> None:
    model = Reconstructor(**PARAMETERS).fit(cells, batch_key="protocol")

    own, poor = model.project(store_sigmas=True), model.project("poor")

    is_poor = (own.obs["batch"] == "poor").to_numpy()
    np.testing.assert_array_equal(own.layers["estimated_counts"][is_poor], poor.layers["estimated_counts"][is_poor])
    assert not np.array_equal(own.layers["estimated_counts"][~is_poor], poor.layers["estimated_counts"][~is_poor])
    assert own.obsm["X_DISCERN_sigma"].shape == own.obsm["X_DISCERN"].shape
    assert model.project("", column="celltype").shape == own.shape
    assert own.layers["measured"].shape == own.shape
    assert own.raw is None


def test_a_seed_decides(cells: ad.AnnData) -> None:
    def latent(seed: int) -> np.ndarray:
        one = PARAMETERS | {"max_steps": 1}
        return Reconstructor(seed=seed, **one).fit(cells, "protocol").project().obsm["X_DISCERN"]

    np.testing.assert_array_equal(latent(1), latent(1))
    assert not np.allclose(latent(1), latent(2))


def test_a_layer_can_hold_the_counts(cells: ad.AnnData) -> None:
    counts = cells.copy()
    cells.layers["counts"], cells.X = cells.X, cells.X.multiply(0.37).tocsr()

    model = Reconstructor(**PARAMETERS)
    expected, actual = model._process(counts, "protocol", None), model._process(cells, "protocol", "counts")

    assert (expected.X != actual.X).nnz == 0


def test_sections_and_single_parameters_make_the_same_experiment() -> None:
    parts = Reconstructor(**EXPERIMENT, test_cells=0.2).parameters
    assert parts == Reconstructor(seed=7, test_cells=0.2, **PARAMETERS).parameters


@pytest.mark.parametrize("preset", ["auto", None])
def test_parameters_are_those_of_a_file_with_the_same_preset(preset: str | None) -> None:
    assert (
        Reconstructor(preset=preset, **EXPERIMENT).parameters
        == parse_experiment({**EXPERIMENT, "preset": preset}).as_dict()
    )


def test_the_preset_is_the_default() -> None:
    held_out = {"split": {"test_cells": 0.1}}
    in_file = parse_experiment({"preset": "auto", "input_ds": held_out, "training": {"seed": 0}}).as_dict()

    assert Reconstructor().parameters == Reconstructor(preset="auto").parameters == in_file
    published = Reconstructor(preset=None).parameters
    assert published["model"] == parse_experiment({"model": DETECTION}).as_dict()["model"]
    assert "preset" not in published
    given = Reconstructor(layers=[9], max_steps=5, LSN=None).parameters
    assert given["model"]["encoder"]["layers"] == [9]
    assert given["model"]["weighting_batch_mmd"] == in_file["model"]["weighting_batch_mmd"]
    assert given["training"]["max_steps"] == 5
    assert "LSN" not in given["input_ds"]["scale"]


def test_what_is_saved_can_be_evaluated_as_info_proposes(cells: ad.AnnData, tmp_path: Path) -> None:
    folder = Reconstructor(**PARAMETERS).fit(cells, batch_key="protocol").save(tmp_path / "saved")

    said = describe(folder)

    command = f"discern evaluate --reference good {folder / 'parameters.json'}"
    assert command in said
    outcome = CliRunner().invoke(cli, command.split()[1:])
    assert outcome.exit_code == 0, outcome.output
    assert "against 9 test cells of good" in outcome.output


def test_without_cells_to_evaluate_with_info_proposes_none(cells: ad.AnnData, tmp_path: Path) -> None:
    model = Reconstructor(test_cells=0, **PARAMETERS | {"max_steps": 1}).fit(cells, batch_key="protocol")

    said = describe(model.save(tmp_path / "saved"))

    assert "discern project --reference good" in said
    assert "discern evaluate" not in said


def test_names_of_other_programs_and_paths_get_a_hint() -> None:
    with pytest.raises(InvalidInputError, match=r"got a path: read it first, with scanpy.read_h5ad\('file.h5ad'\)"):
        reconstruct("file.h5ad", reference="good")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"expected cells as AnnData, got DataFrame"):
        reconstruct(pd.DataFrame(), reference="good")  # type: ignore[arg-type]
    for given, ours in (("epochs", "max_steps"), ("n_latent", "latent_dim"), ("lr", "optimizer=")):
        with pytest.raises(UnknownNameError, match=f"unknown parameter '{given}'; it is called {ours}"):
            reconstruct(ad.AnnData(), reference="good", **{given: 3})


def test_models_say_what_they_are(cells: ad.AnnData) -> None:
    model = Reconstructor(**PARAMETERS | {"max_steps": 1})
    assert repr(model) == "<Reconstructor: preset auto, not trained>"
    model.fit(cells, batch_key="protocol")
    assert repr(model) == "<Reconstructor: 180 cells x 30 genes, batches 'good', 'poor', trained for 1 epochs>"
    assert "encoder [16], latent_dim 4, decoder [16]; 30 genes, 2 batches, trained for 1 epochs" in repr(
        model.estimator
    )
    recipe = discern.WAERecipe({"filtering": {"min_genes": 1, "min_cells": 1}}, {"cells": cells})
    assert repr(recipe) == "<WAERecipe: 180 cells x 30 genes, 1 batches, raw counts>"


def test_without_preset_scale_is_as_published_unless_its_section_is_given() -> None:
    published = {"LSN": 20000.0, "fixed_scaling": {"mean": "genes", "var": "genes", "add_to_mean": 0, "add_to_var": 0}}

    def scale(**parameters: Any) -> dict[str, Any]:
        return Reconstructor(preset=None, **parameters).parameters["input_ds"]["scale"]

    assert scale() == published
    assert scale(LSN=10) == published | {"LSN": 10.0}
    assert scale(LSN=None).keys() == {"fixed_scaling"}
    assert scale(scale={}) == {}
    assert scale(input_ds={"filtering": {"min_genes": 1}}) == {}


def test_every_parameter_has_one_place() -> None:
    names = [key for fields in _SECTIONS.values() for key in fields.model_fields]
    assert sorted(names) == sorted(set(names))
    assert set(names) - {"raw_input"} <= set(_PLACES)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"max_step": 3}, UnknownNameError, "unknown parameter 'max_step' .did you mean 'max_steps'"),
        ({"raw_input": ["a.h5ad"]}, UnknownNameError, "unknown parameter 'raw_input'"),
        ({"latent_dim": 0}, InvalidInputError, "model.latent_dim: expected 1 or more, got 0"),
        ({"preset": "fast"}, InvalidInputError, "preset: expected 'auto', got \"fast\""),
        ({"seed": 1, "training": {"seed": 2}}, InvalidInputError, "parameter 'seed' is given twice"),
        (
            {"min_genes": 1, "filtering": {"min_genes": 2}},
            InvalidInputError,
            "given twice, by itself and in 'filtering'",
        ),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Reconstructor(**parameters)


def test_names_are_checked_before_training(cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reconstructor, "_train", lambda *_: pytest.fail("trained"))

    with pytest.raises(InvalidInputError, match=r"no value 'god' .did you mean 'good'"):
        reconstruct(cells, reference="god", batch_key="protocol", **PARAMETERS)
    with pytest.raises(
        UnknownNameError, match=r"expected an obs column 'protocl' for the batch .did you mean 'protocol'"
    ):
        reconstruct(cells, reference="good", batch_key="protocl", **PARAMETERS)
    with pytest.raises(UnknownNameError, match="no layer 'count'"):
        reconstruct(cells, reference="good", batch_key="protocol", layer="count", **PARAMETERS)


def test_nothing_is_overwritten_or_made_of_nothing(cells: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no trained model yet: call fit or load"):
        Reconstructor().project("good")
    with pytest.raises(MissingFileError, match="holds no processed experiment"):
        Reconstructor.load(tmp_path)
    model = Reconstructor(**PARAMETERS | {"max_steps": 1}).fit(cells, "protocol")
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InvalidInputError, match="expected a new or an empty folder"):
        model.save(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_backed_and_repeated_gene_names(cells: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        cells.var_names = ["gene0", *cells.var_names[:-1]]
        cells.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")

    with caplog.at_level("WARNING", logger="discern"):
        data = Reconstructor(**PARAMETERS)._process(backed, "protocol", None)

    assert data.n_vars == 28
    assert "gene0" not in data.var_names
    assert "these 2 genes are left out" in caplog.text
    assert list(backed.var_names[:2]) == ["gene0", "gene0"]


def test_exported_lazily() -> None:
    assert discern.reconstruct is reconstruct
    assert discern.Reconstructor is Reconstructor


class _Display:
    """Takes the place of IPython and records the lines that a notebook would show."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.display = SimpleNamespace(display=self._display)

    def get_ipython(self) -> SimpleNamespace:
        return SimpleNamespace(kernel=object())

    def _display(self, data: dict[str, str], raw: bool, display_id: bool) -> _Display:
        assert raw
        assert display_id
        self.update(data, raw)
        return self

    def update(self, data: dict[str, str], raw: bool) -> None:
        self.lines.append(data["text/plain"])


def test_progress_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _Display()
    clock = iter(range(100))
    monkeypatch.setitem(sys.modules, "IPython", shown)
    monkeypatch.setitem(sys.modules, "IPython.display", shown.display)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(logging.getLogger("discern"), "level", logging.NOTSET)

    with progress.phase("training", total=4) as advance:
        advance(detail="loss 3")
        advance(detail="loss 2")

    assert shown.lines == [
        "training: ██████░░░░░░░░░░░░░░░░░░ 25% after 1 s, 3 s left  loss 3",
        "training: ████████████░░░░░░░░░░░░ 50% after 2 s, 2 s left  loss 2",
        "training: done in 3.0 s  loss 2",
    ]
    monkeypatch.setattr(logging.getLogger("discern"), "level", logging.WARNING)
    assert not progress.shows_bars()


@pytest.mark.parametrize("preset", ["auto", None], ids=["preset", "published"])
def test_new_batches_are_learnt_as_onlinetraining_does(preset: str | None, cells: ad.AnnData, tmp_path: Path) -> None:
    cells.obs["protocol"] = np.repeat(["good", "poor", "later"], 60)
    old, new = cells[:120].copy(), cells[120:].copy()
    model = Reconstructor(seed=7, preset=preset, **PARAMETERS).fit(old, batch_key="protocol")
    folder = model.save(tmp_path / "runs" / "saved")
    before = model.project("good").layers["estimated_counts"]
    new.obs["batch"] = new.obs["protocol"]
    new.write_h5ad(tmp_path / "later.h5ad")
    outcome = CliRunner().invoke(
        cli, ["onlinetraining", "--freeze", "--filename", str(tmp_path / "later.h5ad"), str(folder / "parameters.json")]
    )
    assert outcome.exit_code == 0, outcome.output
    by_command = Reconstructor.load(folder)

    assert model.update(new) is model

    assert model.estimator.batches == by_command.estimator.batches == ["good", "poor", "later"]
    weights = [one.estimator.wae_model.weights for one in (model, by_command)]
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5, err_msg=ours.path)
    _assert_same_result(model.project("good"), by_command.project("good"))
    np.testing.assert_allclose(model.project("good").layers["estimated_counts"][: len(before)], before, atol=1e-5)
    assert len(model.history["loss"]) == 3


def test_an_update_that_fails_leaves_the_model(cells: ad.AnnData) -> None:
    model = Reconstructor(seed=7, **PARAMETERS).fit(cells, batch_key="protocol")
    before = model.project("good")
    with pytest.raises(InvalidInputError, match="nothing would be trained"), pytest.warns(UserWarning, match="already"):
        model.update(cells, batch_key="protocol")
    _assert_same_result(model.project("good"), before)


def test_new_cells_in_memory_are_as_from_the_start(cells: ad.AnnData) -> None:
    model = Reconstructor(seed=7, **PARAMETERS).fit(cells, batch_key="protocol")
    whole = model.project("good", intervals=False)
    poor = cells[cells.obs["protocol"] == "poor"].copy()
    before = poor.copy()

    new = model.project("good", adata=poor, batch_key="protocol")

    own = whole[new.obs_names]
    np.testing.assert_allclose(_dense(new.X), _dense(own.X), atol=1e-5)
    for name in ("estimated_counts", "estimated_dropouts", "measured"):
        np.testing.assert_allclose(_dense(new.layers[name]), _dense(own.layers[name]), atol=1e-5)
    np.testing.assert_allclose(new.obs["discern_distance"], own.obs["discern_distance"], atol=1e-5)
    np.testing.assert_allclose(new.var["discern_trust"], own.var["discern_trust"], atol=1e-5)
    pd.testing.assert_frame_equal(poor.obs, before.obs)
    with pytest.raises(InvalidInputError, match="new cells are decoded as batches"):
        model.project("T cell", adata=poor, column="celltype")
