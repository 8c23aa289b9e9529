"""What the published documentation promises of the data side of the Python API, called as a script would."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

import discern
from discern.config import allowlist
from discern.data import annotation, chunks, processed, scaling, writers
from discern.data import records as io
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.experiment.online import online_training
from discern.inputs import merging, readers
from discern.metrics import two_sample
from discern.model.transfer import update_model
from discern.preprocessing import recipe as preprocessing
from discern.preprocessing.appending import save_data
from discern.preprocessing.new_cells import OnlineWAERecipe
from discern.runtime import devices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PARAMETERS: dict[str, Any] = {
    "filtering": {"min_genes": 1, "min_cells": 1},
    "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
    "split": {"split_seed": 3, "valid_cells": 0.3, "mmd_cells": 1.0},
}
EXPERIMENT: dict[str, Any] = {
    "input_ds": PARAMETERS,
    "model": {"latent_dim": 3, "layers": [8], "norm_type": ["conditionallayernorm"]},
    "training": {"batch_size": 10, "max_steps": 1, "GPU": [], "early_stopping": {}, "seed": 1, "visualisation": False},
}
GENES = 30


@pytest.fixture(scope="module")
def raw(make_raw_cells: Callable[..., ad.AnnData]) -> dict[str, ad.AnnData]:
    cells = {name: make_raw_cells({name: size}, seed=size) for name, size in (("a", 60), ("b", 41), ("c", 33))}
    for name, adata in cells.items():
        adata.obs_names = [f"{name}{number}" for number in range(adata.n_obs)]
    return cells


@pytest.fixture(scope="module")
def recipe(raw: dict[str, ad.AnnData]) -> preprocessing.WAERecipe:
    return preprocessing.WAERecipe(EXPERIMENT, {name: raw[name] for name in "ab"})()


@pytest.fixture
def data(recipe: preprocessing.WAERecipe) -> processed.DISCERNData:
    return recipe.sc_raw.copy()


@pytest.fixture(scope="module")
def trained(recipe: preprocessing.WAERecipe) -> discern.DISCERN:
    model = discern.DISCERN.from_json(EXPERIMENT)
    model.training(recipe.sc_raw, max_steps=1)
    return model


@pytest.fixture
def untidy() -> Iterator[None]:
    """For calls that warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def standardised(data: ad.AnnData, cells: Any = slice(None)) -> np.ndarray:
    mean, std = (data.var[column].to_numpy() for column in ("mean_scaling", "var_scaling"))
    return (data.X[cells].toarray() - mean) / std


def inputs_of(dataset: Any) -> np.ndarray:
    return np.stack([inputs["input_data"] for inputs, _ in dataset.as_numpy_iterator()])


# --- the package ------------------------------------------------------------------------------------------------------


def test_modules_are_there_after_importing_the_package() -> None:
    code = """
import discern, sys
assert "tensorflow" not in sys.modules
discern.io.DISCERNData, discern.preprocessing.WAERecipe, discern.functions.scale, discern.mmd.mmd_loss
assert "tensorflow" not in sys.modules
discern.online_learning.OnlineWAERecipe, discern.estimators.DISCERNRunner, discern.estimators.batch_integration.DISCERN
assert {"io", "preprocessing"} <= set(dir(discern))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_process_loads_no_tensorflow(raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
    for name in "ab":
        raw[name].write_h5ad(tmp_path / f"{name}.h5ad")
    files = [str(tmp_path / f"{name}.h5ad") for name in "ab"]
    experiment = {**EXPERIMENT, "input_ds": {**PARAMETERS, "raw_input": files}}
    file = {"exp_param": {"experiments_dir": str(tmp_path / "experiments")}, "experiments": {"small": experiment}}
    (tmp_path / "parameters.json").write_text(json.dumps(file))
    code = """
import sys
from discern.cli import cli
cli(["process", sys.argv[1]], standalone_mode=False)
loaded = {name.partition(".")[0] for name in sys.modules}
assert loaded.isdisjoint({"tensorflow", "keras"}), "TensorFlow was loaded"
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "parameters.json")], check=True)
    records = tmp_path / "experiments" / "small" / "TF_records"
    train, valid = annotation.prepare_train_valid(records)
    data = processed.DISCERNData.from_folder(tmp_path / "experiments" / "small", batch_size=5)
    for part, files_of_part in (("train", train), ("valid", valid)):
        found = inputs_of(io.parse_tfrecords(files_of_part, GENES, 2))
        wanted = standardised(data, (data.obs["split"] == part).to_numpy())
        order, wanted_order = np.lexsort(found.round(3).T), np.lexsort(wanted.round(3).T)
        np.testing.assert_allclose(found[order], wanted[wanted_order], atol=1e-5)


# --- DISCERNData ------------------------------------------------------------------------------------------------------


def test_cells_of_a_recipe_are_discern_data_from_the_start(raw: dict[str, ad.AnnData]) -> None:
    recipe = discern.WAERecipe(PARAMETERS, {"a": raw["a"]})
    assert type(recipe.sc_raw) is discern.DISCERNData
    assert recipe.sc_raw.config == {"batch_key": {"0": "a"}}
    assert recipe.config is recipe.sc_raw.config
    assert "DISCERN_format" not in recipe.sc_raw.uns
    assert "DISCERN_format" not in processed.DISCERNData(recipe.sc_raw, batch_size=5).uns
    with pytest.warns(UserWarning, match="one batch"):
        assert type(recipe().sc_raw) is discern.DISCERNData
    assert recipe.sc_raw.config["total_count"] == 60


def test_recipe_feeds_training_and_reconstruction(recipe: preprocessing.WAERecipe, trained: discern.DISCERN) -> None:
    data = recipe.sc_raw
    result = trained.reconstruct(data, "batch", "a")
    assert result.shape == data.shape
    assert result.obsm["X_DISCERN"].shape == (101, 3)
    part = data[data.obs["batch"] == "b"]
    np.testing.assert_allclose(
        trained.reconstruct(part, "batch", "a").layers["estimated_counts"],
        result.layers["estimated_counts"][(data.obs["batch"] == "b").to_numpy()],
        rtol=1e-4,
        atol=1e-5,
    )


def test_batch_size_is_that_of_the_parameters(
    recipe: preprocessing.WAERecipe, raw: dict[str, ad.AnnData], data: processed.DISCERNData
) -> None:
    assert recipe.sc_raw.batch_size == 10
    assert preprocessing.WAERecipe(PARAMETERS, {"a": raw["a"]}).sc_raw.batch_size == 192
    data.batch_size = 7
    assert data.batch_size == 7
    train, _ = data.tfdata
    assert train.element_spec[0]["input_data"].shape == (7, GENES)


@pytest.mark.parametrize("kind", ["view", "copy of a view", "copy", "view of a view"])
def test_parts_and_copies_are_discern_data_with_the_labels_of_all_batches(
    data: processed.DISCERNData, kind: str
) -> None:
    of_b = data.obs["batch"] == "b"
    part = data[of_b]
    if "copy" in kind:
        part = (part if "view" in kind else data).copy()
    if kind == "view of a view":
        part = part[: part.n_obs]
    assert isinstance(part, processed.DISCERNData)
    assert list(part.obs["batch"].cat.categories) == ["a", "b"]
    assert part.config["batch_key"] == {"0": "a", "1": "b"}
    assert part.batch_size == 10
    np.testing.assert_array_equal(part.zeros, data.zeros)
    _, valid = part.tfdata
    labels = np.concatenate([inputs["batch_input_enc"] for inputs, _ in valid.as_numpy_iterator()])
    if kind != "copy":
        np.testing.assert_array_equal(labels, np.tile([0, 1], (10, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata: a view becomes a copy
        part.obs["new"] = 1
    assert isinstance(part, processed.DISCERNData)
    assert "new" not in data.obs


def test_a_part_has_no_more_cells_in_a_step_than_it_has_validation_cells(data: processed.DISCERNData) -> None:
    valid = np.flatnonzero(data.obs["split"] == "valid")[:4]
    assert data[np.r_[np.flatnonzero(data.obs["split"] == "train"), valid]].batch_size == 4


def test_genes_of_discern_data_can_be_chosen(data: processed.DISCERNData) -> None:
    part = data[:, data.var_names[:5]]
    assert part.shape == (101, 5)
    assert part.zeros.shape == (5,)


def test_discern_data_reads_files_and_folders(recipe: preprocessing.WAERecipe, tmp_path: Path) -> None:
    recipe.dump(tmp_path)
    recipe.dump_tf_records(tmp_path / "TF_records")
    file = tmp_path / "processed_data" / "concatenated_data.h5ad"
    for data in (
        processed.DISCERNData.read_h5ad(file, 8, cachefile=None),
        processed.DISCERNData.from_folder(folder=tmp_path, batch_size=8, cachefile=""),
        processed.DISCERNData(ad.read_h5ad(file), 8),
    ):
        assert isinstance(data, processed.DISCERNData)
        assert isinstance(data.batch_size, int)
        assert (data.X != recipe.sc_raw.X).nnz == 0
        train, valid = data.tfdata
        assert (train.cardinality(), valid.cardinality()) == (71 // 8, 30 // 8)


def test_parts_of_cells_that_do_not_fit_into_memory(
    recipe: preprocessing.WAERecipe,
    tmp_path: Path,
    limit_memory: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe.dump(tmp_path)
    recipe.dump_tf_records(tmp_path / "TF_records")
    limit_memory(matrix=0)
    data = processed.DISCERNData.from_folder(tmp_path, 10)
    of_b = (data.obs["batch"] == "b").to_numpy()
    for part in (data[of_b], data[of_b].copy()):
        assert chunks.is_lazy(part.X)
        _, valid = part.tfdata
        ((inputs, _),) = valid.as_numpy_iterator()
        chosen = of_b & (data.obs["split"] == "valid").to_numpy()
        np.testing.assert_array_equal(inputs["batch_input_enc"], np.tile([0, 1], (10, 1)))
        _, valid = processed.make_dataset_from_anndata(part)
        np.testing.assert_allclose(inputs_of(valid), standardised(recipe.sc_raw, chosen), atol=1e-5)
    assert "not of these cells" not in caplog.text


# --- reading and merging ----------------------------------------------------------------------------------------------


def test_inputs_and_input_files_are_both_read(raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
    raw["b"].write_h5ad(tmp_path / "b.h5ad")
    for files in ([tmp_path / "b.h5ad"], {tmp_path / "b.h5ad": "batch"}, {str(tmp_path / "b.h5ad"): None}):
        recipe = discern.WAERecipe(params=PARAMETERS, inputs={"a": raw["a"]}, input_files=files, n_jobs=1)
        assert recipe.sc_raw.obs["batch"].value_counts().to_dict() == {"a": 60, "b": 41}
        assert list(recipe.sc_raw.obs_names[:60]) == list(raw["a"].obs_names)
    one = discern.WAERecipe(PARAMETERS, raw["a"], [tmp_path / "b.h5ad"])
    assert set(one.sc_raw.obs["batch"]) == {"a", "b"}


def test_input_files_name_the_columns_of_inputs(raw: dict[str, ad.AnnData]) -> None:
    recipe = discern.WAERecipe(PARAMETERS, {"a": raw["a"]}, {"a": "celltype"})
    assert set(recipe.sc_raw.obs["batch"]) == {"T cell", "B cell"}
    assert recipe.sc_raw.n_obs == 60


def test_merge_data_sets_returns_cells_and_numbers_of_batches(raw: dict[str, ad.AnnData]) -> None:
    merged, batches = merging.merge_data_sets(
        raw_inputs={"a": raw["a"], "b": raw["b"]}, batch_keys={"a": "batch", "b": "batch"}
    )
    assert isinstance(merged, ad.AnnData)
    assert batches == {0: "a", 1: "b"}
    assert [batches[code] for code in merged.obs["batch"].cat.codes.unique()] == ["a", "b"]


def test_read_raw_input_refuses_other_formats(tmp_path: Path) -> None:
    (tmp_path / "cells.docx").touch()
    with pytest.raises(ValueError, match=r"cells\.docx"):
        readers.read_raw_input(file_path=tmp_path / "cells.docx")


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_dump_writes_parameters_from_which_all_goes_on(raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
    files = []
    for name in "ab":
        raw[name].write_h5ad(tmp_path / f"{name}.h5ad")
        files.append(tmp_path / f"{name}.h5ad")
    recipe = discern.WAERecipe(EXPERIMENT, input_files=files)()
    recipe.dump(tmp_path / "experiment")
    written = json.loads((tmp_path / "experiment" / "parameters.json").read_text())
    assert written["input_ds"]["raw_input"] == [str(file) for file in files]
    assert written["training"]["batch_size"] == 10
    again = discern.WAERecipe.from_path(tmp_path / "experiment")
    assert isinstance(again, discern.WAERecipe)
    assert again.params == {**recipe.params, "raw_input": [str(file) for file in files]}
    assert (again().sc_raw.X != recipe.sc_raw.X).nnz == 0


def test_dump_of_cells_in_memory_names_them(recipe: preprocessing.WAERecipe, tmp_path: Path) -> None:
    recipe.dump(job_dir=tmp_path)
    assert json.loads((tmp_path / "parameters.json").read_text())["input_ds"]["raw_input"] == ["a", "b"]
    before = (tmp_path / "parameters.json").stat().st_mtime_ns
    recipe.dump(tmp_path)
    assert (tmp_path / "parameters.json").stat().st_mtime_ns == before


def test_dump_leaves_parameters_of_the_same_preprocessing_as_they_are(
    recipe: preprocessing.WAERecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = json.dumps({"input_ds": {**PARAMETERS, "raw_input": ["a", "b"]}, "model": {"latent_dim": 5}})
    (tmp_path / "parameters.json").write_text(text)
    recipe.dump(tmp_path)
    assert (tmp_path / "parameters.json").read_text() == text
    (tmp_path / "parameters.json").write_text(text.replace("1000", "999"))
    recipe.dump(tmp_path)
    written = json.loads((tmp_path / "parameters.json").read_text())
    assert written["model"] == {"latent_dim": 5}
    assert written["input_ds"]["scale"]["LSN"] == 1000
    assert "is of another preprocessing; its input_ds is replaced" in caplog.text


def test_dump_of_cells_that_are_not_logged_yet_warns(raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
    recipe = discern.WAERecipe(PARAMETERS, {"a": raw["a"]})
    with pytest.warns(UserWarning, match=r"the cells are not logged: call the recipe, or scanpy\.pp\.log1p\(sc_raw\)"):
        recipe.dump(tmp_path)
    assert (tmp_path / "processed_data" / "concatenated_data.h5ad").is_file()


def test_read_process_serialize(raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
    for name in "ab":
        raw[name].write_h5ad(tmp_path / f"{name}.h5ad")
    section = {**PARAMETERS, "raw_input": [str(tmp_path / "a.h5ad"), str(tmp_path / "b.h5ad")]}
    for folder, records in (("with", True), ("without", False)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "parameters.json").write_text(json.dumps({**EXPERIMENT, "input_ds": section}))
        preprocessing.read_process_serialize(job_path=tmp_path / folder, with_tfrecords=records)
        assert (tmp_path / folder / "processed_data" / "concatenated_data.h5ad").is_file()
        assert (tmp_path / folder / "TF_records").exists() == records


def test_steps_one_by_one_are_the_call(raw: dict[str, ad.AnnData], recipe: preprocessing.WAERecipe) -> None:
    steps = discern.WAERecipe(PARAMETERS, {name: raw[name] for name in "ab"})
    steps.filtering(min_genes=1, min_cells=1)
    steps.celltypes()
    steps.scaling(scale=1000)
    steps.split(split_seed=3, valid_cells_ratio=0.3, mmd_cells_ratio=1.0)
    steps.projection_pca(pcs=32)
    steps.kernel_mmd(neighbors_mmd=50, no_cells_mmd=10000)
    scanpy.pp.log1p(steps.sc_raw)
    steps.mean_var_scaling()
    assert isinstance(steps.sc_raw, processed.DISCERNData)
    found, wanted = ({**each.config} for each in (steps, recipe))
    assert found.pop("mmd_kernel")["all"] == pytest.approx(wanted.pop("mmd_kernel")["all"])
    assert found == wanted
    np.testing.assert_allclose(steps.sc_raw.X.toarray(), recipe.sc_raw.X.toarray(), rtol=1e-6)
    assert not scaling.is_standardised(steps.sc_raw.uns)
    pd.testing.assert_series_equal(steps.sc_raw.obs["split"], recipe.sc_raw.obs["split"])
    np.testing.assert_allclose(np.abs(steps.sc_raw.varm["PCs"]), np.abs(recipe.sc_raw.varm["PCs"]))
    assert steps.sc_raw.uns["fixed_scaling"] == recipe.sc_raw.uns["fixed_scaling"]


def test_default_number_of_components(raw: dict[str, ad.AnnData]) -> None:
    recipe = discern.WAERecipe(PARAMETERS, {"a": raw["a"]})
    recipe.projection_pca()
    assert recipe.sc_raw.varm["PCs"].shape == (GENES, 25)


@pytest.mark.parametrize("ratio", [1.5, 2, 500, -0.1])
def test_more_cells_for_mmd_than_validation_cells_are_refused(raw: dict[str, ad.AnnData], ratio: float) -> None:
    recipe = discern.WAERecipe(PARAMETERS, {"a": raw["a"], "b": raw["b"]})
    with pytest.raises(ValueError, match=r"split\.mmd_cells: expected a share .*, 0 to 1, got"):
        recipe.split(3, 0.3, ratio)
    assert "split" not in recipe.sc_raw.obs


def test_celltype_is_an_aggregate(raw: dict[str, ad.AnnData]) -> None:
    cells = raw["a"].copy()
    cells.obs = cells.obs.rename(columns={"celltype": "cluster_names"})
    recipe = discern.WAERecipe(PARAMETERS, {"a": cells})
    recipe.celltypes()
    assert list(recipe.sc_raw.obs["celltype"].cat.categories) == ["B cell", "T cell"]


# --- new cells --------------------------------------------------------------------------------------------------------


def test_new_cells_of_a_known_batch_keep_it(recipe: preprocessing.WAERecipe, raw: dict[str, ad.AnnData]) -> None:
    new = OnlineWAERecipe(recipe.sc_raw, EXPERIMENT, inputs={"b": raw["b"], "c": raw["c"]})
    with pytest.warns(UserWarning, match="has a batch 'b' already: the 41 new cells of this name are taken as cells"):
        new()
    assert isinstance(new.sc_raw, processed.DISCERNData)
    assert new.sc_raw.obs["batch"].value_counts().to_dict() == {"b": 41, "c": 33, "a": 0}
    assert new.config["batch_key"] == {"0": "a", "1": "b", "2": "c"}


@pytest.mark.usefixtures("untidy")
def test_saved_data_counts_old_and_new_cells_of_a_batch(
    recipe: preprocessing.WAERecipe, raw: dict[str, ad.AnnData], tmp_path: Path
) -> None:
    new = OnlineWAERecipe(recipe.sc_raw, EXPERIMENT, {"b": raw["b"], "c": raw["c"]})().sc_raw
    save_data(file=tmp_path / "both.h5ad", data=new, old_data=recipe.sc_raw)
    both = processed.DISCERNData.read_h5ad(tmp_path / "both.h5ad", 10)
    assert both.obs["batch"].value_counts().to_dict() == {"b": 82, "a": 60, "c": 33}
    for part in ("train", "valid"):
        wanted = both.obs["batch"][both.obs["split"] == part].value_counts().to_dict()
        assert both.config[f"{part}_cells_no"] == wanted
    assert both.config["batch_ratios"]["b"] == pytest.approx(82 / 175)
    assert both.config["total_count"] == 175


def test_other_components_than_the_reference_s_are_refused(
    recipe: preprocessing.WAERecipe, raw: dict[str, ad.AnnData]
) -> None:
    new = OnlineWAERecipe(recipe.sc_raw, EXPERIMENT, {"c": raw["c"]})
    with pytest.raises(
        ValueError, match="pcs: expected 30, the number of principal components of the reference, got 25"
    ):
        new.projection_pca()
    new.filtering(1, 3)
    new.projection_pca(pcs=30)
    np.testing.assert_array_equal(new.sc_raw.varm["PCs"], recipe.sc_raw.varm["PCs"])


@pytest.fixture
def experiment(recipe: preprocessing.WAERecipe, trained: discern.DISCERN, tmp_path: Path) -> Path:
    recipe.dump(tmp_path / "experiment")
    trained.save(tmp_path / "experiment" / "job", epoch=1)
    return tmp_path / "experiment"


@pytest.mark.usefixtures("untidy")
def test_online_training_with_new_cells_of_a_known_batch(
    experiment: Path, raw: dict[str, ad.AnnData], tmp_path: Path
) -> None:
    raw["b"].write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(
        InvalidInputError, match="nothing would be trained: all new cells are of batches that the model"
    ):
        online_training(exp_folder=experiment, filename=tmp_path / "b.h5ad", freeze=True)
    assert processed.DISCERNData.from_folder(experiment, 10).n_obs == 101
    online_training(experiment, tmp_path / "b.h5ad", freeze=False)
    data = processed.DISCERNData.from_folder(experiment, 10)
    assert data.obs["batch"].value_counts().to_dict() == {"b": 82, "a": 60}


def test_unchanged_layers_freeze_in_a_model_that_has_not_grown(trained: discern.DISCERN) -> None:
    other = discern.DISCERN.from_json(EXPERIMENT)
    other.build_model(GENES, 2, 70)
    assert other.wae_model is not None
    assert update_model(trained.wae_model, other.wae_model, freeze_unchanged=True) is other.wae_model
    assert not other.encoder.trainable_variables
    for old, new in zip(trained.wae_model.get_weights(), other.wae_model.get_weights(), strict=True):  # type: ignore[union-attr]
        np.testing.assert_array_equal(old, new)


# --- functions --------------------------------------------------------------------------------------------------------


def test_scale_takes_mean_and_deviation_from_the_genes(data: processed.DISCERNData) -> None:
    wanted = standardised(data)
    cells = ad.AnnData(data.X.toarray(), var=data.var)
    assert scaling.scale(cells) is cells
    np.testing.assert_allclose(cells.X, wanted, rtol=1e-5, atol=1e-5)
    given = scaling.scale(ad.AnnData(np.full((2, 2), 3.0)), np.array([1, 2]), var=np.array([2, 1]))
    np.testing.assert_array_equal(given.X, [[1, 1], [1, 1]])


def test_scale_without_mean_and_deviation_says_so() -> None:
    with pytest.raises(UnknownNameError, match="no var column 'mean_scaling'"):
        scaling.scale(ad.AnnData(np.ones((2, 2))))
    with pytest.raises(InvalidInputError, match="mean: expected one number, or one for each of the 2 genes, got 3"):
        scaling.scale(ad.AnnData(np.ones((2, 2))), mean=np.ones(3), var=1.0)
    with pytest.raises(InvalidInputError, match="var: expected positive"):
        scaling.scale(ad.AnnData(np.ones((2, 2))), mean=0.0, var=0.0)


def test_rescaling_clips_at_zero(data: processed.DISCERNData) -> None:
    cells = ad.AnnData(np.array([[-9.0, 1.0]]), var=data.var[:2])
    assert scaling.rescale_by_params(adata=cells, scalings={"mean": 2.0, "var": 3.0}) is cells
    np.testing.assert_allclose(cells.X, [[0, 5]])
    cells = ad.AnnData(data.X.toarray(), var=data.var)
    scalings = data.uns["fixed_scaling"]
    scaling.rescale_by_params(scaling.scale_by_params(cells, scalings), scalings)
    np.testing.assert_allclose(cells.X, data.X.toarray(), atol=1e-5)


@pytest.mark.parametrize("function", [scaling.scale_by_params, scaling.rescale_by_params])
@pytest.mark.parametrize(
    "scalings", [{"mean": "cells", "var": "genes"}, {"mean": 0, "var": None}, {"mean": 0, "var": 1, "add_to_var": "1"}]
)
def test_scalings_are_numbers_or_genes(data: processed.DISCERNData, function: Any, scalings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fixed_scaling\.\w+: expected"):
        function(ad.AnnData(data.X, var=data.var), scalings)


def test_mean_and_variance_of_each_gene(data: processed.DISCERNData) -> None:
    mean, var = scaling.parse_mean_var(features=data.var, scalings={"mean": "genes", "var": 2})
    assert isinstance(mean, np.ndarray)
    np.testing.assert_allclose(mean, data.var["mean_scaling"], rtol=1e-6)
    np.testing.assert_array_equal(var, np.full(GENES, 2))


def test_sampled_zeros_are_zero_on_the_scale_of_the_counts(data: processed.DISCERNData) -> None:
    counts, never = np.ones((3, GENES)), np.zeros((3, GENES))
    np.testing.assert_array_equal(scaling.sample_counts(counts, never), 0)
    np.testing.assert_array_equal(scaling.sample_counts(counts, never, var=data.var, uns=data.uns), 0)
    original = {"fixed_scaling": data.uns["fixed_scaling"]}
    found = scaling.sample_counts(counts, never, data.var, original)
    np.testing.assert_allclose(found, np.tile(data.zeros, (3, 1)), rtol=1e-6)


def test_functions_by_name() -> None:
    import tensorflow as tf

    assert allowlist.get_function_by_name(func_str="tensorflow.nn.softplus") is tf.nn.softplus
    for name in ("tensorflow.nn.no_such_function", "no_such_module.function", "os.system", "softplus"):
        with pytest.raises(KeyError, match=name.replace(".", r"\.")):
            allowlist.get_function_by_name(name)


def test_classes_of_a_module() -> None:
    wanted = {"DISCERNData": processed.DISCERNData, "TFRecordsWriter": io.TFRecordsWriter}
    assert allowlist.getmembers(name="discern.io") == wanted


def test_record_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("training.tfrecords_v2", "validate.tfrecords_v2"):
        (tmp_path / name).touch()
    train, valid = annotation.prepare_train_valid(input_tfr=tmp_path)
    assert (train, valid) == ([tmp_path / "training.tfrecords_v2"], [tmp_path / "validate.tfrecords_v2"])


@pytest.mark.parametrize(
    ("threads", "cpus", "within", "between"), [(1, 8, 1, 1), (2, 8, 1, 1), (8, 8, 7, 1), (10, 16, 8, 2), (8, 2, 1, 1)]
)
@pytest.mark.usefixtures("untidy")
def test_threads_are_shared_by_both_pools(
    monkeypatch: pytest.MonkeyPatch, threads: int, cpus: int, within: int, between: int
) -> None:
    asked = _threads_asked_for(monkeypatch, cpus)
    devices.set_gpu_and_threads(threads, [])
    assert asked == {"intra": within, "inter": between}


def test_no_threads_means_what_tensorflow_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _threads_asked_for(monkeypatch, 8)
    devices.set_gpu_and_threads(n_threads=0, gpus=None)
    devices.start_tensorflow(0, [])
    assert asked == {}
    with pytest.raises(InvalidInputError, match=r"n_threads: expected a number .*, got -1"):
        devices.set_gpu_and_threads(-1, [])


def test_runs_give_both_pools_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _threads_asked_for(monkeypatch, 8)
    devices.start_tensorflow(4, [])
    assert asked == {"intra": 4, "inter": 4}


def _threads_asked_for(monkeypatch: pytest.MonkeyPatch, cpus: int) -> dict[str, int]:
    import tensorflow as tf

    asked: dict[str, int] = {}
    monkeypatch.setattr(devices, "available_cpus", lambda: cpus)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *_: None)
    for kind in ("intra", "inter"):
        monkeypatch.setattr(
            tf.config.threading, f"set_{kind}_op_parallelism_threads", lambda n, kind=kind: asked.update({kind: n})
        )
    return asked


def test_parameter_files_may_ask_for_no_threads() -> None:
    from discern.config.reading import parse_experiment

    assert parse_experiment({"training": {"parallel_pc": 0}}).as_dict()["training"]["parallel_pc"] == 0


# --- data sets, records, results --------------------------------------------------------------------------------------


def test_data_sets_of_training_and_validation_cells(data: processed.DISCERNData) -> None:
    train, valid = processed.make_dataset_from_anndata(adata=data)
    for dataset, split in ((train, "train"), (valid, "valid")):
        chosen = (data.obs["split"] == split).to_numpy()
        np.testing.assert_allclose(inputs_of(dataset), standardised(data, chosen), atol=1e-5)
        labels = np.stack([inputs["batch_input_dec"] for inputs, _ in dataset.as_numpy_iterator()])
        np.testing.assert_array_equal(labels, annotation.np_one_hot(data.obs["batch"].array)[chosen])


def test_data_sets_of_some_cells_keep_all_labels(data: processed.DISCERNData) -> None:
    for cells in (data[data.obs["batch"] == "b"], ad.AnnData(data)[data.obs["batch"] == "b"]):
        _, valid = processed.make_dataset_from_anndata(cells)
        labels = np.stack([inputs["batch_input_enc"] for inputs, _ in valid.as_numpy_iterator()])
        np.testing.assert_array_equal(labels, np.tile([0, 1], (len(labels), 1)))


def test_data_sets_of_what_the_original_stored(original_experiment: Path) -> None:
    stored = ad.read_h5ad(original_experiment / "processed_data" / "concatenated_data.h5ad")
    _, valid = processed.make_dataset_from_anndata(stored)
    np.testing.assert_allclose(inputs_of(valid), stored[stored.obs["split"] == "valid"].X, atol=1e-5)


@pytest.mark.parametrize("column", ["batch", "split"])
def test_data_sets_need_batch_and_split(data: processed.DISCERNData, column: str) -> None:
    cells = ad.AnnData(data)
    del cells.obs[column]
    with pytest.raises(UnknownNameError, match=f"expected an obs column '{column}'"):
        processed.make_dataset_from_anndata(cells)


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_written_to_records_is_read(data: processed.DISCERNData, tmp_path: Path, shuffled: bool) -> None:
    with io.TFRecordsWriter(out_dir=tmp_path / "records") as writer:
        assert writer.out_dir == str(tmp_path / "records")
        for dataset, split in zip(
            processed.make_dataset_from_anndata(data, for_tfrecord=True), ("train", "valid"), strict=True
        ):
            writer.write_dataset(dataset.filter(lambda _: True) if shuffled else dataset, split=split)
    files = annotation.prepare_train_valid(tmp_path / "records")
    for written, dataset in zip(files, processed.make_dataset_from_anndata(data), strict=True):
        found = io.parse_tfrecords(tfr_files=written, genes_no=GENES, n_labels=2)
        np.testing.assert_allclose(inputs_of(found), inputs_of(dataset), atol=1e-6)
        for inputs, (counts, zeros) in found.take(2).as_numpy_iterator():
            assert set(inputs) == {"input_data", "batch_input_enc", "batch_input_dec"}
            assert inputs["batch_input_enc"].shape == (2,)
            np.testing.assert_array_equal(counts, zeros)


def test_records_of_another_split_are_refused(data: processed.DISCERNData, tmp_path: Path) -> None:
    train, _ = processed.make_dataset_from_anndata(data, True)
    with (
        io.TFRecordsWriter(tmp_path) as writer,
        pytest.raises(ValueError, match="expected the split 'train' or 'valid'"),
    ):
        writer.write_dataset(train, "test")


def test_records_need_a_data_set_made_for_them(data: processed.DISCERNData, tmp_path: Path) -> None:
    train, _ = processed.make_dataset_from_anndata(data)
    with io.TFRecordsWriter(tmp_path) as writer, pytest.raises(InvalidInputError, match="for_tfrecord=True"):
        writer.write_dataset(train, "train")


def test_a_split_written_again_replaces_the_former_shards(tmp_path: Path) -> None:
    for cells in (5000, 1):
        io.TFRecordsWriter(tmp_path).write_dataset([b"cell"] * cells, "train")
    assert [file.name for file in tmp_path.glob("training*")] == ["training-00000-of-00001.tfrecords"]


def test_records_are_checked_against_what_is_expected(
    recipe: preprocessing.WAERecipe, golden: Path, tmp_path: Path
) -> None:
    recipe.dump_tf_records(path=tmp_path / "records")
    train, _ = annotation.prepare_train_valid(tmp_path / "records")
    with pytest.raises(InvalidInputError, match="its cells have 30 genes, expected 31"):
        io.parse_tfrecords(train, 31, 2)
    with pytest.raises(InvalidInputError, match="its cells are of 2 batches, expected 1"):
        io.parse_tfrecords(train, GENES, 1)
    with pytest.raises(MissingFileError, match="no such file"):
        io.parse_tfrecords(tmp_path / "none.tfrecords", GENES, 2)
    with pytest.raises(InvalidInputError, match="expected 6004 bytes a cell, of 1499 genes and 1 batches, got 6012"):
        io.parse_tfrecords(golden / "experiment" / "TF_records" / "training.tfrecords_v2", 1499, 1)


def test_one_hot_labels() -> None:
    found = annotation.np_one_hot(labels=pd.Categorical(["b", "a", "b"]))
    np.testing.assert_array_equal(found, [[0, 1], [1, 0], [0, 1]])


def test_bytes_of_a_sparse_matrix() -> None:
    dense = np.diag(np.arange(4, dtype=np.float32))
    csr = sparse.csr_matrix(dense)
    found = chunks.estimate_csr_nbytes(mat=dense)
    assert isinstance(found, int)
    assert found == csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes


def test_results_of_counts_and_dropouts(data: processed.DISCERNData, tmp_path: Path) -> None:
    """Standardised counts, as the original's network gave them."""
    counts = np.random.default_rng(0).normal(size=(101, GENES))
    dropouts = np.tile([0.0, 1.0], (101, GENES // 2))
    uns = {"fixed_scaling": {"mean": "genes", "var": "genes"}, "other": 1}
    file = tmp_path / "cells.h5ad"
    found = writers.generate_h5ad(
        counts=(counts, dropouts), var=data.var, obs=data.obs, save_path=file, threshold=0.2, uns=uns
    )
    wanted = np.maximum(counts * data.var["var_scaling"].to_numpy() + data.var["mean_scaling"].to_numpy(), 0)
    np.testing.assert_allclose(found.layers["estimated_counts"], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.layers["estimated_dropouts"], dropouts)
    X = found.X.toarray() if sparse.issparse(found.X) else found.X
    np.testing.assert_allclose(X, np.where((dropouts > 0) & (wanted >= 0.2), wanted, 0), rtol=1e-4, atol=1e-5)
    assert dict(found.uns) == {"other": 1}
    read = ad.read_h5ad(file)
    np.testing.assert_array_equal(read.layers["estimated_counts"], found.layers["estimated_counts"])
    assert set(uns) == {"fixed_scaling", "other"}


def test_results_of_our_counts_are_not_rescaled(data: processed.DISCERNData, trained: discern.DISCERN) -> None:
    labels = annotation.np_one_hot(data.obs["batch"].array)
    latent, _ = trained.generate_latent_codes(data.X, labels, 32)
    counts, dropouts = trained.generate_cells_from_latent(latent, labels, 32)
    found = writers.generate_h5ad((counts, dropouts), data.var, data.obs, uns=data.uns)
    np.testing.assert_array_equal(found.layers["estimated_counts"], counts)


def test_results_of_one_matrix(data: processed.DISCERNData) -> None:
    scaled = standardised(data)
    found = writers.generate_h5ad(scaled, data.var, data.obs, uns={"fixed_scaling": data.uns["fixed_scaling"]})
    X = found.X.toarray() if sparse.issparse(found.X) else found.X
    np.testing.assert_allclose(X, data.X.toarray(), atol=1e-4)
    assert not found.layers


def test_results_of_counts_and_dropouts_of_other_shapes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="expected probabilities of shape"):
        writers.generate_h5ad(
            (np.ones((2, 3)), np.ones((3, 2))), pd.DataFrame(index=range(3)), pd.DataFrame(index=range(2))
        )


def test_mmd_loss_is_a_number() -> None:
    random = np.random.default_rng(0)
    near, far = random.normal(size=(30, 4)), random.normal(3, size=(40, 4))
    found = two_sample.mmd_loss(random_cells=near, valid_cells=far, sigma=2.0)
    assert isinstance(found, float)
    assert found > two_sample.mmd_loss(near, random.normal(size=(40, 4)), 2.0)
