"""Wrong calls of the documented Python API: one line that says what to write."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scanpy

import discern
from discern.config import allowlist
from discern.data import processed, records
from discern.errors import InvalidInputError, UnknownNameError, UserError
from discern.inputs import merging
from discern.model.callbacks import create_callbacks
from discern.model.visualisation import VisualisationCallback

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata as ad

    from discern.preprocessing import recipe as preprocessing

EXPERIMENT: dict[str, Any] = {
    "input_ds": {
        "filtering": {"min_genes": 1, "min_cells": 1},
        "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
        "split": {"split_seed": 3, "valid_cells": 0.3, "mmd_cells": 1.0},
    },
    "model": {"latent_dim": 3, "layers": [8], "norm_type": ["conditionallayernorm"]},
    "training": {"batch_size": 10, "max_steps": 1, "GPU": [], "early_stopping": {}, "seed": 1, "visualisation": False},
}


@pytest.fixture
def recipe(make_raw_cells: Callable[..., ad.AnnData]) -> preprocessing.WAERecipe:
    return discern.WAERecipe(EXPERIMENT, make_raw_cells({"a": 60, "b": 41}))


def by_hand(recipe: preprocessing.WAERecipe, logged: bool) -> processed.DISCERNData:
    recipe.filtering(1, 1)
    recipe.celltypes()
    recipe.scaling(1000)
    recipe.split(3, 0.3, 1.0)
    recipe.projection_pca(32)
    if logged:
        scanpy.pp.log1p(recipe.sc_raw)
    recipe.kernel_mmd()
    recipe.mean_var_scaling()
    return recipe.sc_raw


def test_steps_by_hand_give_what_the_call_gives(
    recipe: preprocessing.WAERecipe, make_raw_cells: Callable[..., ad.AnnData]
) -> None:
    found = by_hand(recipe, logged=True)
    called = discern.WAERecipe(EXPERIMENT, make_raw_cells({"a": 60, "b": 41}))().sc_raw
    np.testing.assert_allclose(found.X.toarray(), called.X.toarray(), rtol=1e-5)
    assert found.is_logged
    assert np.isfinite(discern.DISCERN.from_json(EXPERIMENT).training(found, max_steps=1)["loss"])


def test_cells_that_are_not_logged_are_not_trained_on(recipe: preprocessing.WAERecipe) -> None:
    cells = by_hand(recipe, logged=False)
    for given in (cells, cells[:80].copy(), processed.DISCERNData(cells, 10)):
        with pytest.raises(InvalidInputError, match=r"not log-normalised: .* scanpy.pp.log1p\(recipe.sc_raw\)"):
            discern.DISCERN.from_json(EXPERIMENT).training(given, max_steps=1)


@pytest.mark.parametrize("wanted", [0, -5, math.nan, math.inf])
def test_library_sizes_are_positive(recipe: preprocessing.WAERecipe, wanted: float) -> None:
    with pytest.raises(InvalidInputError, match=r"scale\.LSN: expected a positive number"):
        recipe.scaling(wanted)


@pytest.mark.parametrize(
    "call",
    [
        lambda recipe: recipe.split(1, -0.2),
        lambda recipe: recipe.projection_pca(0),
        lambda recipe: (recipe.projection_pca(3), recipe.kernel_mmd(0, 10)),
        lambda recipe: (recipe.projection_pca(3), recipe.kernel_mmd(5, 0)),
    ],
)
def test_numbers_of_the_steps_are_checked(recipe: preprocessing.WAERecipe, call: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"expected .* got (-0.2|0)"):
        call(recipe)


def test_records_need_a_split(recipe: preprocessing.WAERecipe, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="expected an obs column 'split'"):
        recipe.dump_tf_records(tmp_path / "records")


def test_batches_of_no_cells_are_refused(recipe: preprocessing.WAERecipe) -> None:
    with pytest.raises(InvalidInputError, match="batch_size: expected 1 or more cells, got 0"):
        processed.DISCERNData(recipe().sc_raw, 0)


def test_whole_parameter_files_are_told(recipe: preprocessing.WAERecipe) -> None:
    whole = {"exp_param": {"experiments_dir": "x"}, "experiments": {"mine": EXPERIMENT}}
    for call in (discern.WAERecipe, discern.DISCERN.from_json):
        with pytest.raises(UnknownNameError, match=r"give \['experiments'\]\[NAME\] of it; NAME is one of mine"):
            call(whole)
        with pytest.raises(InvalidInputError, match=r"expected one experiment as a dictionary, got str"):
            call("parameters.json")


@pytest.mark.parametrize("split", ["training", "validate", "test", None])
def test_records_know_two_splits(tmp_path: Path, split: Any) -> None:
    with pytest.raises(ValueError, match="expected the split 'train' or 'valid'"):
        records.TFRecordsWriter(tmp_path).write_dataset([b"cell"], split)


def test_records_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="for_tfrecord=True"):
        records.TFRecordsWriter(tmp_path).write_dataset(np.zeros((3, 3)), "train")


def test_nothing_to_merge_is_told() -> None:
    with pytest.raises(InvalidInputError, match="expected cells to merge, got no input"):
        merging.merge_data_sets({}, {})


def test_no_name_is_no_function() -> None:
    with pytest.raises(KeyError, match="expected the name of a class or function, got None"):
        allowlist.get_function_by_name(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(0, 2, 100), (60, 0, 100), (60, 2, 0)])
def test_networks_have_positive_sizes(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInputError, match="expected a positive number"):
        discern.DISCERN.from_json(EXPERIMENT).build_model(*sizes)


def test_networks_take_numbers_of_numpy() -> None:
    model = discern.DISCERN.from_json(EXPERIMENT)
    model.build_model(np.int64(20), np.int64(2), np.float64(100))
    assert model.decoder.output_shape[0] == (None, 20)


def test_estimators_take_parameters_by_name() -> None:
    with pytest.raises(UserError, match="by name"):
        discern.DISCERN(EXPERIMENT)


def test_trainings_have_an_epoch(recipe: preprocessing.WAERecipe) -> None:
    with pytest.raises(InvalidInputError, match="max_steps: expected 1 epoch or more, got 0"):
        discern.DISCERN.from_json(EXPERIMENT).training(recipe().sc_raw, max_steps=0)


def test_callbacks_take_a_folder_as_text(recipe: preprocessing.WAERecipe, tmp_path: Path) -> None:
    assert create_callbacks({"patience": 3}, str(tmp_path))
    with pytest.raises(InvalidInputError, match="freq and batch_size"):
        VisualisationCallback(tmp_path, recipe().sc_raw, 10, freq=0)
