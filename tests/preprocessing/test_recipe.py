from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from discern.data.chunks import estimate_csr_nbytes, is_lazy, iter_blocks
from discern.data.processed import DISCERNData
from discern.data.records import current_records
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, UnsupportedError
from discern.preprocessing.recipe import WAERecipe, read_process_serialize
from tests.support.texts import plainly_indexed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[..., ad.AnnData]

LAX = {"filtering": {"min_genes": 1, "min_cells": 1}}
"""Parameters with which small made-up cells survive."""


def _dense(X: Any) -> np.ndarray:
    return np.concatenate([block.toarray() for _, block in iter_blocks(X)])


# --- against the original --------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "lazy"])
def golden_recipe(
    request: pytest.FixtureRequest, golden: Path, monkeypatch: pytest.MonkeyPatch, limit_memory: Callable[..., None]
) -> WAERecipe:
    if request.param == "lazy":
        limit_memory(matrix=0, block=1500 * 37)
    monkeypatch.chdir(golden)
    recipe = WAERecipe(json.loads((golden / "experiment" / "parameters.json").read_text()))
    assert is_lazy(recipe.sc_raw.X) == (request.param == "lazy")
    return recipe()


@pytest.fixture(scope="module")
def original(golden: Path) -> ad.AnnData:
    return ad.read_h5ad(golden / "experiment" / "processed_data" / "concatenated_data.h5ad")


def test_cells_genes_and_split_are_the_originals(golden_recipe: WAERecipe, original: ad.AnnData) -> None:
    (obs, var), (original_obs, original_var) = (
        map(plainly_indexed, (cells.obs, cells.var)) for cells in (golden_recipe.sc_raw, original)
    )
    pd.testing.assert_frame_equal(obs, original_obs, check_like=True, check_categorical=False)
    pd.testing.assert_frame_equal(var, original_var, check_like=True, check_dtype=True, rtol=1e-5, atol=1e-6)
    assert (golden_recipe.sc_raw.var["pca_genes"] == original.var["pca_genes"]).all()
    np.testing.assert_allclose(np.abs(golden_recipe.sc_raw.varm["PCs"]), np.abs(original.varm["PCs"]), atol=2e-5)


def test_config_is_the_originals(golden_recipe: WAERecipe, golden_json: dict) -> None:
    found, wanted = dict(golden_recipe.config), dict(golden_json["config"])
    assert found.pop("mmd_kernel") == pytest.approx(wanted.pop("mmd_kernel"), rel=1e-4)
    assert found == wanted
    assert golden_recipe.sc_raw.uns["fixed_scaling"]["mean"] == "genes"


def test_matrix_is_sparse_and_log_normalised(golden_recipe: WAERecipe, original: ad.AnnData) -> None:
    adata = golden_recipe.sc_raw
    mean, std = original.var["mean_scaling"].to_numpy(), original.var["var_scaling"].to_numpy()
    np.testing.assert_allclose((_dense(adata.X) - mean) / std, original.X, atol=2e-5)


def test_experiment_on_disk(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(golden)
    (tmp_path / "parameters.json").write_text((golden / "experiment" / "parameters.json").read_text())
    read_process_serialize(tmp_path)
    data = DISCERNData.from_folder(tmp_path, batch_size=32)
    assert data.shape == (220, 1500)
    assert data.X.dtype == np.float32
    assert data.uns["DISCERN_format"]["version"] == 2
    assert current_records(tmp_path / "TF_records", data) is not None
    scanpy.read_h5ad(tmp_path / "processed_data" / "concatenated_data.h5ad")


def test_without_record_files(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(golden)
    (tmp_path / "parameters.json").write_text((golden / "experiment" / "parameters.json").read_text())
    read_process_serialize(tmp_path, with_tfrecords=False)
    assert not (tmp_path / "TF_records").exists()


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_inputs_in_memory_are_left_alone(make_raw_cells: Make) -> None:
    cells = make_raw_cells({"a": 30, "b": 20})
    before = cells.copy()
    recipe = WAERecipe({**LAX, "scale": {"LSN": 1000}}, inputs=cells)()
    assert recipe.sc_raw.n_obs == 50
    assert (cells.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    pd.testing.assert_frame_equal(cells.var, before.var)


def test_inputs_by_name_are_batches(make_raw_cells: Make) -> None:
    inputs = {"a": make_raw_cells({"x": 30}), "b": make_raw_cells({"x": 20}, seed=1)}
    for cells in inputs.values():
        del cells.obs["batch"]
    recipe = WAERecipe({"input_ds": LAX}, inputs=inputs)
    assert recipe.config["batch_key"] == {"0": "a", "1": "b"}
    by_column = WAERecipe(LAX, inputs=inputs, input_files={"b": "celltype"})
    assert by_column.config["batch_key"] == {"0": "B cell", "1": "T cell", "2": "a"}


@pytest.mark.parametrize("form", [np.asarray, sparse.csc_matrix, sparse.csr_array])
def test_forms_of_counts_give_the_same(make_raw_cells: Make, form: Callable) -> None:
    cells = make_raw_cells({"a": 30, "b": 20})
    wanted = WAERecipe(LAX, inputs=cells)().sc_raw
    cells.X = form(cells.X.toarray())
    found = WAERecipe(LAX, inputs=cells)().sc_raw
    np.testing.assert_array_equal(found.X.toarray(), wanted.X.toarray())


def test_single_input_needs_a_column_batch(make_raw_cells: Make) -> None:
    cells = make_raw_cells({"a": 3})
    del cells.obs["batch"]
    with pytest.raises(UnknownNameError, match=r"expected an obs column 'batch'.*\['celltype'\]"):
        WAERecipe(LAX, inputs=cells)


def test_nothing_to_read() -> None:
    with pytest.raises(InvalidInputError, match=r"neither inputs, nor input_files, nor input_ds\.raw_input"):
        WAERecipe(LAX)


def test_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"gone\.h5ad: no such file"):
        WAERecipe(LAX, input_files=[tmp_path / "gone.h5ad"])


def test_counts_that_do_not_fit_into_memory_give_the_same(
    make_raw_cells: Make, tmp_path: Path, limit_memory: Callable[..., None]
) -> None:
    parameters = {
        "filtering": {"min_genes": 14, "min_cells": 60},
        "scale": {"LSN": 1000},
        "split": {"valid_cells": 0.2, "test_cells": 0.1},
    }
    for number, name in enumerate(("first", "second")):
        cells = make_raw_cells({name: 100}, seed=number)[:, : 30 - number].copy()
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
    wanted = WAERecipe(parameters, input_files=files)().sc_raw
    limit_memory(matrix=estimate_csr_nbytes(cells.X) + 1000, block=30 * 16)
    recipe = WAERecipe(parameters, input_files=files)
    assert is_lazy(recipe.sc_raw.X)
    found = recipe().sc_raw
    assert 0 < found.n_obs < 200
    assert 0 < found.n_vars < 29
    np.testing.assert_array_equal(_dense(found.X), wanted.X.toarray())
    pd.testing.assert_frame_equal(found.obs, wanted.obs)
    pd.testing.assert_frame_equal(found.var, wanted.var)
    np.testing.assert_allclose(found.varm["PCs"], wanted.varm["PCs"], atol=1e-6)
    assert found.uns["DISCERN"]["mmd_kernel"]["all"] == pytest.approx(wanted.uns["DISCERN"]["mmd_kernel"]["all"])


# --- filtering -------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(min_genes=st.integers(0, 12), min_cells=st.integers(0, 12), seed=st.integers(0, 9))
def test_filtering_is_scanpys(make_raw_cells: Make, min_genes: int, min_cells: int, seed: int) -> None:
    cells = make_raw_cells({"a": 20, "b": 20}, seed=seed)
    recipe = WAERecipe(LAX, inputs=cells)
    recipe.filtering(min_genes, min_cells)
    scanpy.pp.filter_cells(cells, min_genes=min_genes)
    scanpy.pp.filter_genes(cells, min_cells=min_cells)
    assert list(recipe.sc_raw.obs_names) == list(cells.obs_names)
    assert list(recipe.sc_raw.var_names) == list(cells.var_names)
    assert (recipe.sc_raw.X != cells.X).nnz == 0
    np.testing.assert_array_equal(recipe.sc_raw.obs["n_genes"], cells.obs["n_genes"])
    np.testing.assert_array_equal(recipe.sc_raw.var["n_cells"], cells.var["n_cells"])


@pytest.mark.parametrize(
    ("min_genes", "min_cells", "message"),
    [
        (1000, 1, r"min_genes: expected cells with 1000 or more genes, the best of 20 cells has \d+; lower it"),
        (1, 1000, r"min_cells: expected genes in 1000 or more of the 20 cells left, .* is in \d+; lower it"),
    ],
)
def test_nothing_left(make_raw_cells: Make, min_genes: int, min_cells: int, message: str) -> None:
    recipe = WAERecipe(LAX, inputs=make_raw_cells({"a": 20}))
    with pytest.raises(InvalidInputError, match=message):
        recipe.filtering(min_genes, min_cells)
    assert recipe.sc_raw.n_obs == 20


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1, "some are negative, the smallest is -1"), (np.nan, "some are not finite"), (np.inf, "some are not finite")],
)
def test_no_counts(make_raw_cells: Make, value: float, message: str) -> None:
    cells = make_raw_cells({"a": 20})
    cells.X.data[7] = value
    with pytest.raises(InvalidInputError, match=message):
        WAERecipe(LAX, inputs=cells).filtering(1, 1)


def test_normalised_counts_are_pointed_out(make_raw_cells: Make) -> None:
    cells = make_raw_cells({"a": 20})
    cells.X.data *= 1.5
    with pytest.warns(UserWarning, match="not whole numbers.*normalised already"):
        WAERecipe(LAX, inputs=cells).filtering(1, 1)


def test_batch_that_loses_all_cells_is_left_out(make_raw_cells: Make) -> None:
    rich, poor = make_raw_cells({"rich": 30}), make_raw_cells({"poor": 30}, density=0.05)
    recipe = WAERecipe(LAX, inputs={"poor": poor, "rich": rich})
    with pytest.warns(UserWarning, match=r"no cell of the batches \['poor'\] has 8 genes: they are left out"):
        recipe.filtering(8, 1)
    assert recipe.config["batch_key"] == {"0": "rich"}
    assert list(recipe.sc_raw.obs["batch"].cat.categories) == ["rich"]


# --- cell types, scaling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "source"),
    [(["cluster"], "cluster"), (["cluster", "cluster_names"], "cluster_names"), (["cluster", "celltype"], "celltype")],
)
def test_celltypes(make_raw_cells: Make, columns: list[str], source: str) -> None:
    cells = make_raw_cells({"a": 4})
    del cells.obs["celltype"]
    for column in columns:
        cells.obs[column] = [f"{column} {number}" for number in (1, 2, 1, 2)]
    recipe = WAERecipe(LAX, inputs=cells)
    recipe.celltypes()
    assert list(recipe.sc_raw.obs["celltype"].cat.categories) == [f"{source} 1", f"{source} 2"]


@settings(max_examples=25)
@given(scale=st.floats(1, 1e6), seed=st.integers(0, 99), density=st.floats(0.01, 1))
def test_scaling_gives_every_cell_the_same_total(make_raw_cells: Make, scale: float, seed: int, density: float) -> None:
    cells = make_raw_cells({"a": 10, "b": 5}, seed=seed, density=density)
    recipe = WAERecipe(LAX, inputs=cells)
    recipe.scaling(scale)
    totals = cells.X.sum(axis=1).A1
    np.testing.assert_allclose(recipe.sc_raw.X.sum(axis=1).A1, np.where(totals > 0, scale, 0), rtol=1e-5)
    np.testing.assert_array_equal(recipe.sc_raw.X.toarray() == 0, cells.X.toarray() == 0)
    np.testing.assert_array_equal(recipe.sc_raw.obs["n_counts"], totals)
    assert recipe.config["scale"]["LSN"] == scale


def test_without_lsn_counts_are_only_logged(make_raw_cells: Make) -> None:
    cells = make_raw_cells({"a": 30, "b": 20})
    adata = WAERecipe(LAX, inputs=cells)().sc_raw
    np.testing.assert_allclose(adata.X.toarray(), np.log1p(cells[:, adata.var_names].X.toarray()), rtol=1e-6)
    assert "scale" not in adata.uns["DISCERN"]
    assert "fixed_scaling" not in adata.uns


# --- split -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(10, 40), min_size=2, max_size=4),
    valid=st.floats(0.1, 0.5),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 2**32 - 1),
)
def test_split(make_raw_cells: Make, sizes: list[int], valid: float, test: float, seed: int) -> None:
    cells = make_raw_cells({f"b{number}": size for number, size in enumerate(sizes)}, n_genes=3)
    recipe, without_test = WAERecipe(LAX, inputs=cells), WAERecipe(LAX, inputs=cells)
    recipe.split(seed, valid, 0.5, test)
    without_test.split(seed, valid, 0.5)
    obs = recipe.sc_raw.obs
    for number, size in enumerate(sizes):
        part = obs.loc[obs["batch"] == f"b{number}", "split"].value_counts()
        assert part["valid"] == int(valid * size) == recipe.config["valid_cells_no"][f"b{number}"]
        assert part.get("test", 0) == int(test * size)
        assert part["train"] == recipe.config["train_cells_no"][f"b{number}"]
    assert sum(recipe.config["batch_ratios"].values()) == pytest.approx(1)
    for column in ("split", "for_mmd"):
        drawn = obs[column] if column == "for_mmd" else obs[column] == "valid"
        other = without_test.sc_raw.obs[column]
        np.testing.assert_array_equal(drawn, other if column == "for_mmd" else other == "valid")
    assert obs.loc[obs["for_mmd"], "split"].eq("valid").all()
    assert obs["for_mmd"].sum() == pytest.approx(0.5 * recipe.config["total_valid_count"], abs=0.5)


def test_split_is_drawn_as_published(make_raw_cells: Make) -> None:
    recipe = WAERecipe(LAX, inputs=make_raw_cells({"b": 20, "a": 30}))
    recipe.split(7, 0.2)
    obs = recipe.sc_raw.obs
    random = np.random.RandomState(7)
    drawn = [random.choice(obs.index[obs["batch"] == name], size, replace=False) for name, size in (("a", 6), ("b", 4))]
    wanted = np.concatenate(drawn)
    assert set(obs.index[obs["split"] == "valid"]) == set(wanted)


def test_number_of_validation_cells(make_raw_cells: Make) -> None:
    recipe = WAERecipe(LAX, inputs=make_raw_cells({"a": 60, "b": 40}))
    with pytest.warns(UserWarning, match="valid_cells is 10, more than 1: taken as a number of cells"):
        recipe.split(0, 10)
    assert recipe.config["valid_cells_no"] == {"a": 6, "b": 4}
    with pytest.raises(InvalidInputError, match="expected less than the 100 cells, got 100"):
        recipe.split(0, 100)


def test_test_cells_teach_nothing(make_raw_cells: Make) -> None:
    cells = make_raw_cells({"a": 60, "b": 40})
    parameters = {**LAX, "split": {"test_cells": 0.3, "valid_cells": 0.1}}
    recipe = WAERecipe(parameters, inputs=cells)()
    test = recipe.sc_raw.obs["split"] == "test"
    assert test.sum() == 30
    learned = recipe.sc_raw[~test].X.toarray()
    np.testing.assert_allclose(recipe.sc_raw.var["mean_scaling"], learned.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(recipe.sc_raw.var["var_scaling"], learned.std(axis=0), atol=1e-6)
    cells.X[test.to_numpy().nonzero()[0]] *= 7
    other = WAERecipe(parameters, inputs=cells)().sc_raw
    pd.testing.assert_frame_equal(recipe.sc_raw.var, other.var)
    np.testing.assert_array_equal(recipe.sc_raw.varm["PCs"], other.varm["PCs"])
    assert recipe.config["mmd_kernel"] == other.uns["DISCERN"]["mmd_kernel"]


def test_mmd_sample_follows_the_frequencies(make_raw_cells: Make) -> None:
    cells = make_raw_cells({"a": 1000, "b": 100}, n_genes=3)
    cells.obs["celltype"] = "T cell"
    recipe = WAERecipe(LAX, inputs=cells)
    recipe.split(0, 0.5, mmd_cells_ratio=0.1)
    chosen = recipe.sc_raw.obs.loc[recipe.sc_raw.obs["for_mmd"], "batch"].value_counts()
    assert chosen["a"] > 50 * max(1, chosen["b"]) or chosen["b"] == 0


def test_one_batch_is_pointed_out(make_raw_cells: Make) -> None:
    with pytest.warns(UserWarning, match="all cells are of one batch, a"):
        WAERecipe(LAX, inputs=make_raw_cells({"a": 20})).split(0, 0.5)


def test_batch_too_small_for_a_validation_cell(make_raw_cells: Make) -> None:
    with pytest.warns(UserWarning, match=r"the batches \['tiny'\] are too small to have a validation cell"):
        WAERecipe(LAX, inputs=make_raw_cells({"a": 20, "tiny": 4})).split(0, 0.1)


def test_no_validation_cell_at_all(make_raw_cells: Make) -> None:
    with pytest.raises(
        InvalidInputError, match=r"valid_cells: expected a validation cell in some batch, .* only 9 cells"
    ):
        WAERecipe(LAX, inputs=make_raw_cells({"a": 9, "b": 8})).split(0, 0.1)


def test_validation_cells_are_not_needed(make_raw_cells: Make) -> None:
    recipe = WAERecipe(LAX, inputs=make_raw_cells({"a": 9, "b": 8}))
    recipe.split(0, 0)
    assert (recipe.sc_raw.obs["split"] == "train").all()
    assert not recipe.sc_raw.obs["for_mmd"].any()
    assert recipe.config["total_valid_count"] == 0


def test_nothing_to_train_on(make_raw_cells: Make) -> None:
    with pytest.raises(InvalidInputError, match=r"valid_cells 0\.5 and test_cells 0\.5 take all"):
        WAERecipe(LAX, inputs=make_raw_cells({"a": 9, "b": 8})).split(0, 0.5, 1.0, 0.5)


def test_columns_that_occur_twice(make_raw_cells: Make) -> None:
    recipe = WAERecipe(LAX, inputs=make_raw_cells({"a": 20, "b": 20}))
    recipe.sc_raw.obs = pd.concat([recipe.sc_raw.obs, recipe.sc_raw.obs[["celltype"]]], axis=1)
    with pytest.raises(UnsupportedError, match=r"more than once: \['celltype'\]") as caught:
        recipe.split(0, 0.1)
    assert isinstance(caught.value, NotImplementedError)


# --- components and kernel -------------------------------------------------------------------------------------------


def test_kernel_needs_components(make_raw_cells: Make) -> None:
    with pytest.raises(UnknownNameError, match="call projection_pca before kernel_mmd"):
        WAERecipe(LAX, inputs=make_raw_cells({"a": 20})).kernel_mmd()


def test_components_do_not_depend_on_when_values_are_logged(make_raw_cells: Make) -> None:
    first, second = (WAERecipe(LAX, inputs=make_raw_cells({"a": 40, "b": 40})) for _ in range(2))
    first.projection_pca(5)
    second._log1p()
    second.projection_pca(5)
    np.testing.assert_array_equal(first.sc_raw.var["pca_genes"], second.sc_raw.var["pca_genes"])
    np.testing.assert_allclose(np.abs(first.sc_raw.varm["PCs"]), np.abs(second.sc_raw.varm["PCs"]), atol=1e-4)


def test_kernel_of_a_sample_is_near_that_of_all(make_raw_cells: Make) -> None:
    recipe = WAERecipe(LAX, inputs=make_raw_cells({"a": 300, "b": 300}))
    recipe.projection_pca(3)
    recipe.kernel_mmd(10, 600)
    of_all = recipe.config["mmd_kernel"]["all"]
    recipe.kernel_mmd(10, 300)
    assert of_all < recipe.config["mmd_kernel"]["all"] < 2 * of_all
