from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from discern.data.annotation import np_one_hot
from discern.data.chunks import is_lazy, iter_blocks
from discern.data.processed import DISCERNData, make_dataset_from_anndata
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.preprocessing.recipe import WAERecipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import tensorflow as tf


@pytest.fixture(scope="module")
def recipe(make_raw_cells: Callable[..., ad.AnnData]) -> WAERecipe:
    parameters = {
        "filtering": {"min_genes": 1, "min_cells": 1},
        "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
        "split": {"valid_cells": 0.3},
    }
    return WAERecipe(parameters, inputs=make_raw_cells({"a": 60, "b": 40}))()


@pytest.fixture
def experiment(recipe: WAERecipe, tmp_path: Path) -> Path:
    recipe.dump(tmp_path / "experiment")
    recipe.dump_tf_records(tmp_path / "experiment" / "TF_records")
    return tmp_path / "experiment"


@pytest.fixture
def without_memory(limit_memory: Callable[..., None]) -> None:
    limit_memory(matrix=0, block=30 * 16)


def _cells(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Counts and labels of all batches; checks what holds for each."""
    counts, labels = [], []
    for inputs, (target, zeros_target) in dataset.as_numpy_iterator():
        assert set(inputs) == {"input_data", "batch_input_enc", "batch_input_dec"}
        assert all(value.dtype == np.float32 for value in inputs.values())
        np.testing.assert_array_equal(target, inputs["input_data"])
        np.testing.assert_array_equal(zeros_target, inputs["input_data"])
        np.testing.assert_array_equal(inputs["batch_input_enc"], inputs["batch_input_dec"])
        counts.append(target)
        labels.append(inputs["batch_input_enc"])
    return np.concatenate(counts), np.concatenate(labels)


def _sorted(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]


# --- labels ----------------------------------------------------------------------------------------------------------


@given(codes=st.lists(st.integers(0, 4), max_size=30))
def test_one_hot(codes: list[int]) -> None:
    labels = pd.Categorical.from_codes(codes, categories=list("vwxyz"))
    found = np_one_hot(labels)
    assert (found.shape, found.dtype) == ((len(codes), 5), np.float32)
    np.testing.assert_array_equal(found.sum(axis=1), 1)
    np.testing.assert_array_equal(found.argmax(axis=1) if codes else [], codes)
    np.testing.assert_array_equal(found.sum(axis=0), np.bincount(codes, minlength=5))


def test_one_hot_needs_labels() -> None:
    with pytest.raises(InvalidInputError, match="a label for every cell, 2 are missing"):
        np_one_hot(pd.Categorical(["a", None, np.nan]))


# --- folders of the original -----------------------------------------------------------------------------------------


def _log_normalised(golden: Path, data: ad.AnnData) -> np.ndarray:
    raw = ad.concat([ad.read_h5ad(golden / "raw" / f"{name}.h5ad") for name in ("celseq2", "dropseq")])
    counts = raw[data.obs_names, data.var_names].X.toarray().astype(np.float64)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 20_000)


@pytest.mark.parametrize("lazy", [False, True])
def test_original_folder_becomes_sparse_and_log_normalised(
    golden: Path, original_experiment: Path, request: pytest.FixtureRequest, lazy: bool
) -> None:
    if lazy:
        request.getfixturevalue("without_memory")
    data = DISCERNData.from_folder(original_experiment, batch_size=32)
    assert is_lazy(data.X) == lazy
    found = np.concatenate([block.toarray() for _, block in iter_blocks(data.X)])
    wanted = _log_normalised(golden, data)
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    np.testing.assert_array_equal(found == 0, wanted == 0)
    assert data.config["batch_key"] == {"0": "celseq2", "1": "dropseq"}


def test_original_anndata_in_memory_is_left_alone(original_experiment: Path) -> None:
    adata = ad.read_h5ad(original_experiment / "processed_data" / "concatenated_data.h5ad")
    before = adata.copy()
    data = DISCERNData(adata, batch_size=32)
    assert sparse.issparse(data.X)
    np.testing.assert_array_equal(adata.X, before.X)
    assert "DISCERN_format" not in adata.uns


def test_network_sees_what_the_original_stored(original_experiment: Path) -> None:
    adata = ad.read_h5ad(original_experiment / "processed_data" / "concatenated_data.h5ad")
    _, valid = DISCERNData.from_folder(original_experiment, batch_size=44).tfdata
    counts, _ = _cells(valid)
    np.testing.assert_allclose(counts, adata[adata.obs["split"] == "valid"].X, atol=1e-5)


# --- our data --------------------------------------------------------------------------------------------------------


def test_zeros_are_what_zero_counts_become(experiment: Path) -> None:
    data = DISCERNData.from_folder(experiment, batch_size=10)
    mean, std = data.scaling
    np.testing.assert_array_equal(data.zeros, (0 - mean) / std)
    counts, _ = _cells(data.tfdata[1])
    was_zero = data.X[(data.obs["split"] == "valid").to_numpy()].toarray() == 0
    np.testing.assert_array_equal(counts[was_zero], np.broadcast_to(data.zeros, counts.shape)[was_zero])


@pytest.mark.parametrize("lazy", [False, True])
def test_batches(experiment: Path, request: pytest.FixtureRequest, lazy: bool) -> None:
    if lazy:
        request.getfixturevalue("without_memory")
    data = DISCERNData.from_folder(experiment, batch_size=10)
    assert is_lazy(data.X) == lazy
    train, valid = data.tfdata
    assert (train.cardinality(), valid.cardinality()) == (7, 3)
    assert train.element_spec[0]["input_data"].shape == (10, 30)
    assert train.element_spec[0]["batch_input_enc"].shape == (10, 2)
    X = np.concatenate([block.toarray() for _, block in iter_blocks(data.X)])
    mean, std = data.scaling
    for dataset, split in ((train, "train"), (valid, "valid")):
        counts, labels = _cells(dataset)
        chosen = (data.obs["split"] == split).to_numpy()
        np.testing.assert_allclose(_sorted(counts), _sorted((X[chosen] - mean) / std), atol=1e-5)
        np.testing.assert_array_equal(labels.sum(axis=0), np_one_hot(data.obs["batch"].array)[chosen].sum(axis=0))
    first, second = _cells(train)[0], _cells(train)[0]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(_sorted(first), _sorted(second))


def test_incomplete_batches_are_left_out(experiment: Path) -> None:
    train, valid = DISCERNData.from_folder(experiment, batch_size=20).tfdata
    assert (len(_cells(train)[0]), len(_cells(valid)[0])) == (60, 20)


def test_labels_belong_to_the_cells(experiment: Path) -> None:
    data = DISCERNData.from_folder(experiment, batch_size=30)
    _, labels = _cells(data.tfdata[1])
    valid = data.obs["split"] == "valid"
    np.testing.assert_array_equal(labels, np_one_hot(data.obs["batch"].array)[valid])


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize("cached", [False, True])
def test_data_that_does_not_fit_is_streamed_without_records_too(experiment: Path, tmp_path: Path, cached: bool) -> None:
    shutil.rmtree(experiment / "TF_records")
    cache = tmp_path / "cache" if cached else ""
    data = DISCERNData.from_folder(experiment, batch_size=10, cachefile=cache)
    assert len(_cells(data.tfdata[0])[0]) == 70
    assert (tmp_path / "cache" / "TF_records" / "meta.json").exists() == cached
    assert not (experiment / "TF_records").exists()


def test_batch_size_is_at_most_the_validation_cells(experiment: Path) -> None:
    with pytest.warns(UserWarning, match="batch_size 64 is more than the 30 validation cells: using 30"):
        data = DISCERNData.from_folder(experiment, batch_size=64)
    assert data.batch_size == 30
    data.batch_size = 12
    assert data.batch_size == 12


def test_subset_keeps_the_labels_of_all_batches(experiment: Path) -> None:
    data = DISCERNData.from_folder(experiment, batch_size=5)
    only_b = DISCERNData(data[data.obs["batch"] == "b"].copy(), batch_size=5)
    assert list(only_b.obs["batch"].cat.categories) == ["a", "b"]
    assert (_cells(only_b.tfdata[1])[1] == [0, 1]).all()


def test_views_are_fine(recipe: WAERecipe) -> None:
    data = DISCERNData(recipe.sc_raw[:50], batch_size=5)
    assert data.shape == (50, 30)


def test_unknown_batch(recipe: WAERecipe) -> None:
    other = recipe.sc_raw.copy()
    other.obs["batch"] = "c"
    with pytest.raises(InvalidInputError, match=r"cells of the batches \['a', 'b'\], got also \['c'\]"):
        DISCERNData(other, batch_size=5)


def test_seed_fixes_the_order(recipe: WAERecipe) -> None:
    orders = [_cells(DISCERNData(recipe.sc_raw, batch_size=10, seed=seed).tfdata[0])[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


def test_raw_cells_are_refused(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    with pytest.raises(UnknownNameError, match=r"no uns\['DISCERN'\]; run `discern process`"):
        DISCERNData(make_raw_cells({"a": 3}), batch_size=1)


def test_cells_without_split_cannot_train(recipe: WAERecipe) -> None:
    cells = recipe.sc_raw.copy()
    del cells.obs["split"]
    with pytest.raises(UnknownNameError, match=r"no column 'split'.*\['batch', "):
        _ = DISCERNData(cells, batch_size=1).tfdata


def test_folder_without_processed_data(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"concatenated_data\.h5ad: no such file; run `discern process` first"):
        DISCERNData.from_folder(tmp_path, batch_size=1)


def test_dataset_of_an_anndata(recipe: WAERecipe) -> None:
    adata = recipe.sc_raw
    mean, std = adata.var["mean_scaling"].to_numpy(), adata.var["var_scaling"].to_numpy()
    datasets = zip(
        ("train", "valid"), make_dataset_from_anndata(adata), make_dataset_from_anndata(adata, True), strict=True
    )
    for split, dataset, records in datasets:
        found = np.stack([inputs["input_data"] for inputs, _ in dataset.as_numpy_iterator()])
        wanted = adata[adata.obs["split"] == split].X.toarray()
        np.testing.assert_allclose(found, (wanted - mean) / std, atol=1e-5)
        assert records.cardinality() == len(wanted)
