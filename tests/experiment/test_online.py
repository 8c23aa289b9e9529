"""New batches for a trained experiment."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from discern import DISCERN, DISCERNData, WAERecipe
from discern.config.reading import load_parameters
from discern.data.chunks import is_lazy
from discern.data.records import current_records
from discern.errors import InvalidInputError, MissingFileError
from discern.experiment import online
from discern.experiment.online import OnlineDISCERNRunner, online_training
from discern.experiment.project import run_projection
from discern.experiment.train import run_train
from discern.model.transfer import update_model
from discern.preprocessing import appending
from discern.preprocessing.appending import save_data
from discern.preprocessing.new_cells import OnlineWAERecipe
from discern.preprocessing.recipe import read_process_serialize
from discern.runtime.atomic import finish_publishing, publish
from discern.runtime.memory import limited
from tests.support.texts import plainly_indexed

if TYPE_CHECKING:
    from collections.abc import Callable

    import keras

LSN = 20000
PARAMETERS = {"filtering": {"min_genes": 200, "min_cells": 3}, "scale": {"LSN": LSN}, "split": {"valid_cells": 0.2}}


@pytest.fixture(scope="module")
def raw(golden: Path) -> dict[str, ad.AnnData]:
    """Real raw counts of three batches: half of the Drop-seq cells are new to a model of the rest."""
    celseq2, dropseq = (ad.read_h5ad(golden / "raw" / f"{name}.h5ad") for name in ("celseq2", "dropseq"))
    for cells in (celseq2, dropseq):
        del cells.obs["batch"]
    return {"celseq2": celseq2, "dropseq": dropseq[:55].copy(), "new": dropseq[55:].copy()}


@pytest.fixture(scope="module")
def reference(raw: dict[str, ad.AnnData]) -> DISCERNData:
    scaled = PARAMETERS | {"scale": {"LSN": LSN, "fixed_scaling": {"mean": "genes", "var": "genes"}}}
    recipe = WAERecipe(scaled, {name: raw[name] for name in ("celseq2", "dropseq")})()
    return DISCERNData(recipe.sc_raw, batch_size=16)


def processed(reference: ad.AnnData, inputs: Any, **arguments: Any) -> ad.AnnData:
    return OnlineWAERecipe(reference, PARAMETERS, inputs, **arguments)().sc_raw


def snapshot(folder: Path) -> dict[str, str]:
    """Name -> digest of every file and folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


class TestRecipe:
    def test_cells_are_processed_as_the_reference_was(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        """The reference's own cells, taken for new ones, come out as they are in the reference."""
        again = processed(reference, {"again": raw["dropseq"]})
        old = reference[reference.obs["batch"] == "dropseq"]
        np.testing.assert_allclose(again.X.toarray(), old.X.toarray(), rtol=1e-6)
        np.testing.assert_array_equal(again.obs["n_genes"] <= old.obs["n_genes"].to_numpy(), True)
        np.testing.assert_allclose(again.obs["n_counts"], old.obs["n_counts"])

    def test_values(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        new = processed(reference, {"new": raw["new"]})
        counts = raw["new"][:, reference.var_names].X.toarray().astype(float)
        wanted = np.log1p(counts * (LSN / counts.sum(1, keepdims=True)))
        assert isinstance(new.X, sparse.csr_matrix)
        assert new.X.dtype == np.float32
        np.testing.assert_allclose(new.X.toarray(), wanted, rtol=1e-5)

    def test_genes_and_what_is_known_of_them_are_the_reference_s(
        self, reference: DISCERNData, raw: dict[str, ad.AnnData]
    ) -> None:
        shuffled = raw["new"][:, ::-1].copy()
        new = processed(reference, {"new": shuffled})
        pd.testing.assert_frame_equal(new.var, reference.var)
        np.testing.assert_array_equal(new.varm["PCs"], reference.varm["PCs"])
        assert new.uns["fixed_scaling"] == reference.uns["fixed_scaling"]
        assert new.uns["DISCERN"]["mmd_kernel"] == reference.config["mmd_kernel"]
        for ours, wanted in zip(DISCERNData(new, 8).scaling, reference.scaling, strict=True):
            np.testing.assert_array_equal(ours, wanted)

    def test_library_size_is_the_reference_s(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        other = OnlineWAERecipe(reference, PARAMETERS | {"scale": {"LSN": 7}}, {"new": raw["new"]})()
        np.testing.assert_allclose(np.expm1(other.sc_raw.X.toarray()).sum(1), LSN, rtol=1e-4)

    def test_numbers_of_cells_are_of_the_new_ones(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        config = processed(reference, {"new": raw["new"]}).uns["DISCERN"]
        assert config["batch_key"] == {"0": "celseq2", "1": "dropseq", "2": "new"}
        assert (config["total_count"], config["total_train_count"], config["total_valid_count"]) == (55, 44, 11)
        assert config["train_cells_no"] == {"new": 44}

    def test_a_number_of_validation_cells_means_the_reference_s_share(
        self, reference: DISCERNData, raw: dict[str, ad.AnnData]
    ) -> None:
        split = {"split": {"valid_cells": 3000}}
        new = OnlineWAERecipe(reference, PARAMETERS | split, {"new": raw["new"]})().sc_raw
        assert (new.obs["split"] == "valid").sum() == int(55 * (reference.obs["split"] == "valid").mean())

    def test_inputs_are_left_as_they_were(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        cells, known = raw["new"].copy(), reference.copy()
        with pytest.warns(UserWarning, match="has a batch 'dropseq' already"):
            processed(reference, {"dropseq": cells})
        pd.testing.assert_frame_equal(cells.obs, raw["new"].obs)
        assert (cells.X != raw["new"].X).nnz == 0
        pd.testing.assert_frame_equal(known.obs, reference.obs)
        assert known.uns["DISCERN"]["batch_key"] == reference.config["batch_key"]

    def test_from_path(self, original_experiment: Path, golden: Path) -> None:
        recipe = OnlineWAERecipe.from_path(original_experiment, [golden / "raw" / "dropseq.h5ad"])
        assert recipe.sc_raw.shape == (110, 1500)

    @pytest.mark.parametrize("lazy", [False, True])
    def test_cells_that_do_not_fit_into_memory_stay_on_disk(
        self,
        reference: DISCERNData,
        raw: dict[str, ad.AnnData],
        tmp_path: Path,
        limit_memory: Callable[..., None],
        lazy: bool,
    ) -> None:
        raw["new"][:, 7:].write_h5ad(tmp_path / "new.h5ad")
        if lazy:
            limit_memory(matrix=0)
        new = OnlineWAERecipe(
            reference, PARAMETERS, input_files=[tmp_path / "new.h5ad"], fill_missing_genes=True
        )().sc_raw
        assert is_lazy(new.X) == lazy
        X = new.X.compute() if is_lazy(new.X) else new.X
        wanted = processed(reference, {"new": raw["new"][:, 7:].copy()}, fill_missing_genes=True)
        np.testing.assert_array_equal(X.toarray(), wanted.X.toarray())


class TestMissingGenes:
    def test_are_named(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        genes = list(reference.var_names[[3, 5]])
        cells = raw["new"][:, ~raw["new"].var_names.isin(genes)].copy()
        with pytest.raises(InvalidInputError, match=rf"new: lacks 2 of the \d+ genes .*: {', '.join(genes)}; .*--fill"):
            processed(reference, {"new": cells})

    def test_a_long_list_is_cut(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        with pytest.raises(InvalidInputError, match=r"new: lacks \d+ of .* and \d+ more"):
            processed(reference, {"new": raw["new"][:, 700:].copy()})

    def test_are_zero_on_request(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        genes = reference.var_names[[3, 5]]
        cells = raw["new"][:, ~raw["new"].var_names.isin(genes)].copy()
        new = processed(reference, {"new": cells}, fill_missing_genes=True)
        assert new.var_names.equals(reference.var_names)
        assert new[:, genes].X.nnz == 0
        zeroed = raw["new"].copy()
        zeroed.X = zeroed.X.multiply(~zeroed.var_names.isin(genes)).tocsr()
        np.testing.assert_array_equal(new.X.toarray(), processed(reference, {"new": zeroed}).X.toarray())

    def test_of_one_file_do_not_touch_another(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        gene = reference.var_names[int(np.argmax(reference.X.sum(0)))]
        lacking = raw["dropseq"][:, raw["dropseq"].var_names != gene].copy()
        new = processed(reference, {"full": raw["new"], "lacking": lacking}, fill_missing_genes=True)
        detected = new[:, gene].X.toarray().ravel() > 0
        assert detected[(new.obs["batch"] == "full").to_numpy()].any()
        assert not detected[(new.obs["batch"] == "lacking").to_numpy()].any()

    @pytest.mark.parametrize("fill", [False, True])
    def test_other_names_for_all_genes(self, reference: DISCERNData, raw: dict[str, ad.AnnData], fill: bool) -> None:
        cells = raw["new"].copy()
        cells.var_names = [f"gene{number}" for number in range(cells.n_vars)]
        with pytest.raises(InvalidInputError, match="names like gene0, gene1"):
            processed(reference, {"new": cells}, fill_missing_genes=fill)


class TestBatches:
    def test_cells_of_a_known_batch_stay_of_it_and_that_is_said(
        self, reference: DISCERNData, raw: dict[str, ad.AnnData], tmp_path: Path
    ) -> None:
        with pytest.warns(
            UserWarning, match=r"has a batch 'dropseq' already: the 55 new cells .* are taken as cells of"
        ):
            new = processed(reference, {"dropseq": raw["new"]})
        assert list(new.obs["batch"].cat.categories) == ["celseq2", "dropseq"]
        assert set(new.obs["batch"]) == {"dropseq"}
        assert new.config["batch_key"] == reference.config["batch_key"]
        save_data(tmp_path / "both.h5ad", new, reference)
        both = DISCERNData.read_h5ad(tmp_path / "both.h5ad", batch_size=16)
        train = both.obs["batch"][both.obs["split"] == "train"].value_counts().to_dict()
        assert both.config["train_cells_no"] == train
        assert both.config["batch_ratios"]["dropseq"] == pytest.approx((both.obs["batch"] == "dropseq").mean())

    def test_new_names_come_after_the_old_ones(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        new = processed(reference, {"z": raw["new"][:30].copy(), "a": raw["new"][30:].copy()})
        assert list(new.obs["batch"].cat.categories) == ["celseq2", "dropseq", "a", "z"]

    def test_labelling_twice_changes_nothing(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        recipe = OnlineWAERecipe(reference, PARAMETERS, {"new": raw["new"]})
        recipe.filtering(200, 3)
        before = recipe.sc_raw.obs["batch"].copy()
        recipe.fix_batch_labels()
        pd.testing.assert_series_equal(recipe.sc_raw.obs["batch"], before)

    def test_of_a_column(self, reference: DISCERNData, raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
        cells = raw["new"].copy()
        cells.obs["donor"] = np.where(np.arange(55) < 25, "d1", "d2")
        cells.write_h5ad(tmp_path / "new.h5ad")
        explicit = OnlineWAERecipe(reference, PARAMETERS, input_files={tmp_path / "new.h5ad": "donor"})
        assert set(explicit.sc_raw.obs["batch"]) == {"d1", "d2"}
        as_reference = PARAMETERS | {"raw_input": {"a.h5ad": "donor", "b.h5ad": "donor"}}
        usual = OnlineWAERecipe(reference, as_reference, input_files=[tmp_path / "new.h5ad"])
        assert set(usual.sc_raw.obs["batch"]) == {"d1", "d2"}
        raw["new"].write_h5ad(tmp_path / "without.h5ad")
        without = OnlineWAERecipe(reference, as_reference, input_files=[tmp_path / "without.h5ad"])
        assert set(without.sc_raw.obs["batch"]) == {"without"}


class TestAlreadyProcessed:
    def test_by_discern(self, reference: DISCERNData) -> None:
        with pytest.raises(InvalidInputError, match=r"new: expected raw counts, .* processed by DISCERN"):
            processed(reference, {"new": ad.AnnData(reference)})

    def test_logged_by_scanpy(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        cells = raw["new"].copy()
        cells.uns["log1p"] = {}
        with pytest.raises(InvalidInputError, match=r"new: expected raw counts, .* logged \(uns\[\"log1p\"\]\)"):
            processed(reference, {"new": cells})

    def test_logged_without_a_trace(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        cells = raw["new"].copy()
        cells.X = cells.X.log1p()
        with pytest.raises(InvalidInputError, match=r"logged \(fractions of at most \d"):
            processed(reference, {"new": cells})

    def test_estimated_counts_are_counts(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        """Fractions alone say nothing: several programs estimate counts."""
        cells = raw["new"].copy()
        cells.X = cells.X * np.float32(0.9)
        with pytest.warns(UserWarning, match="not whole numbers"):
            new = processed(reference, {"new": cells})
        np.testing.assert_allclose(new.X.toarray(), processed(reference, {"new": raw["new"]}).X.toarray(), rtol=1e-5)

    def test_standardised(self, reference: DISCERNData, raw: dict[str, ad.AnnData]) -> None:
        cells = raw["new"].copy()
        cells.X = sparse.csr_matrix(cells.X.toarray() - 1)
        with pytest.raises(InvalidInputError, match="some are negative"):
            processed(reference, {"new": cells})


class TestSaveData:
    def test_old_and_new_cells(self, reference: DISCERNData, raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
        new = processed(reference, {"new": raw["new"]})
        save_data(tmp_path / "both.h5ad", new, reference)
        both = DISCERNData.read_h5ad(tmp_path / "both.h5ad", batch_size=16)
        np.testing.assert_array_equal(both.X.toarray(), sparse.vstack([reference.X, new.X]).toarray())
        pd.testing.assert_frame_equal(plainly_indexed(both.var), plainly_indexed(reference.var))
        np.testing.assert_array_equal(both.varm["PCs"], reference.varm["PCs"])
        assert list(both.obs["batch"].cat.categories) == ["celseq2", "dropseq", "new"]
        old_obs = both.obs.iloc[: reference.n_obs]
        for column in reference.obs:
            assert old_obs[column].astype(str).tolist() == reference.obs[column].astype(str).tolist(), column
        assert both.config["batch_key"] == {"0": "celseq2", "1": "dropseq", "2": "new"}
        assert both.config["total_count"] == both.n_obs
        assert both.config["total_train_count"] == (both.obs["split"] == "train").sum()
        assert both.config["train_cells_no"] == both.obs["batch"][both.obs["split"] == "train"].value_counts().to_dict()
        assert sum(both.config["batch_ratios"].values()) == pytest.approx(1)
        assert both.config["batch_ratios"]["new"] == pytest.approx(55 / both.n_obs)
        assert both.config["mmd_kernel"] == reference.config["mmd_kernel"]
        assert both.config["scale"] == reference.config["scale"]

    def test_names_that_are_there_already_get_a_number(
        self, reference: DISCERNData, raw: dict[str, ad.AnnData], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save_data(tmp_path / "both.h5ad", processed(reference, {"again": raw["dropseq"]}), reference)
        names = ad.read_h5ad(tmp_path / "both.h5ad").obs_names
        assert names.is_unique
        assert list(names[: reference.n_obs]) == list(reference.obs_names)
        assert list(names[reference.n_obs :]) == [f"{name}-1" for name in raw["dropseq"].obs_names]
        assert "55 new cells have names that are there already" in caplog.text

    @pytest.mark.parametrize("where", ["old", "new"])
    @pytest.mark.parametrize(
        "values",
        [["T cell", "B cell"], [1, 2], [0.5, 1.5], [True, False], pd.Categorical(["x", "y"]), pd.Categorical([1, 2])],
        ids=["text", "int", "float", "bool", "category", "category of int"],
    )
    def test_a_column_of_one_side_only(
        self, reference: DISCERNData, raw: dict[str, ad.AnnData], tmp_path: Path, where: str, values: Any
    ) -> None:
        old, new = reference.copy(), processed(reference, {"new": raw["new"]})
        side, rows = (old, slice(0, old.n_obs)) if where == "old" else (new, slice(old.n_obs, None))
        side.obs["extra"] = pd.Series(values)[np.arange(side.n_obs) % 2].to_numpy()
        if isinstance(values, pd.Categorical):
            side.obs["extra"] = side.obs["extra"].astype("category")
        save_data(tmp_path / "both.h5ad", new, old)
        column = ad.read_h5ad(tmp_path / "both.h5ad").obs["extra"]
        assert column.iloc[rows].tolist() == side.obs["extra"].tolist()
        assert column.isna().sum() == len(column) - side.n_obs
        assert column.drop(column.index[rows]).isna().all()

    @pytest.mark.parametrize(
        ("old_values", "new_values", "wanted"),
        [
            ([1, 2], [0.5, 0.5], [1, 2, 0.5]),
            (["1", "2"], [1, 3], ["1", "2", "1"]),
            ([True, False], [False, False], [True, False, False]),
            (pd.Categorical(["b", "a"], categories=["b", "a"]), ["c", "c"], ["b", "a", "c"]),
        ],
        ids=["numbers", "text and number", "bool", "category and text"],
    )
    def test_columns_of_two_types(
        self,
        reference: DISCERNData,
        raw: dict[str, ad.AnnData],
        tmp_path: Path,
        old_values: Any,
        new_values: Any,
        wanted: list[Any],
    ) -> None:
        old, new = reference.copy(), processed(reference, {"new": raw["new"]})
        for side, values in ((old, old_values), (new, new_values)):
            column = pd.Series(values)[np.arange(side.n_obs) % 2]
            side.obs["extra"] = column.set_axis(side.obs_names)
        save_data(tmp_path / "both.h5ad", new, old)
        column = ad.read_h5ad(tmp_path / "both.h5ad").obs["extra"]
        assert column.iloc[[0, 1, old.n_obs]].tolist() == wanted

    def test_genes_are_those_of_both(self, reference: DISCERNData, raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
        new = processed(reference, {"new": raw["new"]})[:, 100:0:-1].copy()
        save_data(tmp_path / "both.h5ad", new, reference)
        both = ad.read_h5ad(tmp_path / "both.h5ad")
        genes = reference.var_names[1:101]
        assert both.var_names.equals(genes)
        np.testing.assert_array_equal(both.varm["PCs"], reference.varm["PCs"][1:101])
        X = both.X.toarray() if sparse.issparse(both.X) else both.X
        np.testing.assert_array_equal(X[reference.n_obs :], new[:, genes].X.toarray())

    def test_a_failure_leaves_the_old_file(
        self,
        reference: DISCERNData,
        raw: dict[str, ad.AnnData],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        new = processed(reference, {"new": raw["new"]})
        (tmp_path / "both.h5ad").write_text("old")

        def breaks(*_: Any) -> Any:
            raise OSError("disk full")
            yield

        monkeypatch.setattr(appending, "iter_blocks", breaks)
        with pytest.raises(OSError, match="disk full"):
            save_data(tmp_path / "both.h5ad", new, reference)
        assert [path.name for path in tmp_path.iterdir()] == ["both.h5ad"]
        assert (tmp_path / "both.h5ad").read_text() == "old"


def network(labels: int, norm: str = "conditionallayernorm", genes: int = 30, **arguments: Any) -> DISCERN:
    side = {"layers": [8], "norm_type": [norm], "regularization": 0.1}
    model = DISCERN(**{"latent_dim": 3, "encoder": side, "decoder": side, "seed": labels} | arguments)
    model.build_model(genes, labels, scale=100)
    return model


def randomised(model: DISCERN) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    for variable in model.wae_model.weights:
        variable.assign(random.uniform(0.1, 1, variable.shape))
    return weights_of(model)


def weights_of(model: DISCERN) -> dict[str, np.ndarray]:
    return {variable.path: variable.numpy() for variable in model.wae_model.weights}


class TestUpdateModel:
    def test_takes_over_weights_and_appends_rows(self) -> None:
        old, new = network(2), network(4)
        trained, fresh = randomised(old), weights_of(new)
        assert update_model(old.wae_model, new.wae_model) is new.wae_model
        for path, values in weights_of(new).items():
            rows = len(trained[path])
            np.testing.assert_array_equal(values[:rows], trained[path], err_msg=path)
            np.testing.assert_array_equal(values[rows:], fresh[path][rows:], err_msg=path)
        assert len(new.wae_model.trainable_weights) == len(old.wae_model.trainable_weights)

    def test_old_labels_give_the_same_cells(self) -> None:
        old, new = network(2), network(3)
        randomised(old)
        update_model(old.wae_model, new.wae_model)
        cells, labels = np.random.default_rng(1).random((5, 30), np.float32), np.eye(2)[[0, 1, 1, 0, 1]]
        wider = np.pad(labels, ((0, 0), (0, 1)))
        wanted, _ = old.generate_latent_codes(cells, labels, 5)
        latent, _ = new.generate_latent_codes(cells, wider, 5)
        np.testing.assert_allclose(latent, wanted, atol=1e-6)
        for ours, theirs in zip(
            new.generate_cells_from_latent(latent, wider, 5),
            old.generate_cells_from_latent(wanted, labels, 5),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)

    @pytest.mark.parametrize("norm", ["conditionallayernorm", "conditionalbatchnorm"])
    @pytest.mark.parametrize(
        "optimizer",
        [
            {"algorithm": "discern.estimators.optimizers.RectifiedAdam", "learning_rate": 0.01},
            {"algorithm": "discern.estimators.optimizers.RectifiedAdam", "learning_rate": 0.01, "weight_decay": 0.1},
            {"algorithm": "discern.estimators.optimizers.RectifiedAdam", "learning_rate": 0.01, "Lookahead": True},
            {"algorithm": "keras.optimizers.SGD", "learning_rate": 1e-5, "momentum": 0.9},
        ],
        ids=["default", "weight decay", "lookahead", "sgd"],
    )
    @pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
    def test_frozen_weights_are_bit_identical_after_training(
        self, norm: str, optimizer: dict[str, Any], xla: bool
    ) -> None:
        regularizer = {"name": "keras.regularizers.L1L2", "l2": 0.1}
        side = {"layers": [8], "norm_type": [norm], "regularization": 0.1, "conditional_regularization": regularizer}
        old, new = (network(n, optimizer=optimizer, xla=xla, encoder=side, decoder=side) for n in (2, 3))
        trained = randomised(old)
        update_model(old.wae_model, new.wae_model, freeze_unchanged=True)
        before = weights_of(new)
        new.compile(new.get_optimizer())
        cells = np.random.default_rng(1).random((32, 30), np.float32)
        labels = np.eye(3, dtype=np.float32)[[2] * 32]
        new.wae_model.fit(
            {"input_data": cells, "batch_input_enc": labels, "batch_input_dec": labels},
            (cells, cells),
            batch_size=8,
            epochs=3,
            verbose=0,
        )
        moved = set()
        for path, values in weights_of(new).items():
            rows = len(trained[path])
            np.testing.assert_array_equal(values[:rows], trained[path], err_msg=path)
            if (values[rows:] != before[path][rows:]).any():
                moved.add(path)
        assert moved == {"encoder_offset_0/kernel", "decoder_offset_0/kernel"}

    def test_without_freezing_all_weights_train(self) -> None:
        old, new = network(2), network(3)
        randomised(old)
        update_model(old.wae_model, new.wae_model)
        assert all(layer.trainable for layer in new.encoder.layers + new.decoder.layers)
        assert all(variable.constraint is None for variable in new.wae_model.weights)

    def test_nothing_depends_on_the_batch(self) -> None:
        old, new = network(2, "layernorm"), network(3, "layernorm")
        update_model(old.wae_model, new.wae_model, freeze_unchanged=True)
        assert not new.wae_model.trainable_variables

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ((2, "conditionallayernorm", 30), (3, "conditionallayernorm", 31), "layer counts: .* another network"),
            ((3, "conditionallayernorm", 30), (2, "conditionallayernorm", 30), "encoder_offset_0: .* another network"),
            ((2, "conditionallayernorm", 30), (3, "layernorm", 30), r"network has \d+ layers with weights"),
        ],
        ids=["genes", "fewer labels", "layers"],
    )
    def test_another_network_is_refused_and_left_as_it_was(self, old: Any, new: Any, message: str) -> None:
        trained, fresh = network(*old), network(*new)
        before = weights_of(fresh)
        with pytest.raises(InvalidInputError, match=message):
            update_model(trained.wae_model, fresh.wae_model, freeze_unchanged=True)
        for path, values in weights_of(fresh).items():
            np.testing.assert_array_equal(values, before[path])
        assert all(layer.trainable for layer in fresh.encoder.layers)


class TestOptimiserState:
    def fitted(self, **optimizer: Any) -> DISCERN:
        model = network(2, optimizer={"algorithm": "discern.estimators.optimizers.RectifiedAdam"} | optimizer)
        model.compile(model.get_optimizer())
        model.wae_model.optimizer.build(model.wae_model.trainable_variables)
        for number, variable in enumerate(self.moments(model).values()):
            variable.assign(np.full(variable.shape, number + 1.0))
        model.wae_model.optimizer.iterations.assign(77)
        return model

    @staticmethod
    def moments(model: DISCERN) -> dict[str, keras.Variable]:
        optimizer = getattr(model.wae_model.optimizer, "optimizer", model.wae_model.optimizer)
        return {v.path: v for v in optimizer.variables if "momentum" in v.path or "velocity" in v.path}

    @pytest.mark.parametrize("lookahead", [False, True])
    def test_is_taken_over_and_begins_at_zero_for_new_rows(self, lookahead: bool) -> None:
        old = self.fitted(learning_rate=0.1, Lookahead=lookahead)
        new = network(3, optimizer=old.parameters.optimizer)
        update_model(old.wae_model, new.wae_model)
        new.compile(new.get_optimizer())
        online._take_over_state(old.wae_model, new.wae_model)
        assert int(new.wae_model.optimizer.iterations.numpy()) == 77
        known = self.moments(old)
        assert len(known) == 2 * len(old.wae_model.trainable_variables)
        for path, variable in self.moments(new).items():
            rows = known[path].shape[0]
            np.testing.assert_array_equal(variable.numpy()[:rows], known[path].numpy())
            np.testing.assert_array_equal(variable.numpy()[rows:], 0)
        if lookahead:
            for slow, weight in zip(new.wae_model.optimizer._copies, new.wae_model.trainable_variables, strict=True):
                np.testing.assert_array_equal(slow.numpy(), weight.numpy())

    @pytest.mark.parametrize(
        "schedule",
        [
            {"total_steps": 50, "learning_rate": 0.1},
            {
                "learning_rate": 0.1,
                "learning_decay": {"name": "keras.optimizers.schedules.CosineDecay", "decay_steps": 50},
            },
        ],
        ids=["warm-up", "decay"],
    )
    def test_a_schedule_begins_anew(self, schedule: dict[str, Any]) -> None:
        old = self.fitted(**schedule)
        new = network(3, optimizer=old.parameters.optimizer)
        update_model(old.wae_model, new.wae_model)
        new.compile(new.get_optimizer())
        online._take_over_state(old.wae_model, new.wae_model)
        assert int(new.wae_model.optimizer.iterations.numpy()) == 0


@pytest.fixture(scope="module")
def trained(raw: dict[str, ad.AnnData], golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the raw files and an experiment of two batches, processed and trained by us."""
    root = tmp_path_factory.mktemp("trained")
    for name, cells in raw.items():
        cells.write_h5ad(root / f"{name}.h5ad")
    parameters = json.loads((golden / "experiment" / "parameters.json").read_text())
    parameters["input_ds"]["raw_input"] = [str(root / f"{name}.h5ad") for name in ("celseq2", "dropseq")]
    parameters["training"] |= {"batch_size": 8, "max_steps": 2, "visualisation": False, "seed": 1}
    experiment = root / "experiments" / "lung"
    experiment.mkdir(parents=True)
    (experiment / "parameters.json").write_text(json.dumps(parameters))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_process_serialize(experiment)
    run_train(experiment)
    return root


@pytest.fixture
def ours(trained: Path, tmp_path: Path) -> Path:
    """A private copy of the experiment."""
    return Path(shutil.copytree(trained / "experiments" / "lung", tmp_path / "experiments" / "lung"))


@pytest.fixture
def theirs(original_experiment: Path) -> Path:
    """An experiment of the original program, to be trained quickly and without pictures."""
    file = original_experiment / "parameters.json"
    parameters = json.loads(file.read_text())
    parameters["training"] |= {"batch_size": 8, "max_steps": 2, "visualisation": False}
    file.write_text(json.dumps(parameters))
    return original_experiment


def projected(experiment: Path, batch: str) -> ad.AnnData:
    (path,) = run_projection(experiment, [("batch", batch)], None, all_batches=False, store_sigmas=False)
    return ad.read_h5ad(path)


def weights_in(job: Path) -> dict[str, np.ndarray]:
    experiment = load_parameters(job.parent / "parameters.json").experiments.popitem()[1]
    model = DISCERN.from_experiment(experiment)
    model.restore_model(job)
    return weights_of(model)


@pytest.mark.parametrize("freeze", [False, True], ids=["all", "frozen"])
@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_online_training(who: str, freeze: bool, trained: Path, request: pytest.FixtureRequest) -> None:
    experiment: Path = request.getfixturevalue(who)
    old_job = snapshot(experiment / "job")
    old_weights = weights_in(experiment / "job")
    old_data = DISCERNData.from_folder(experiment, 8)
    old_cells = {batch: projected(experiment, batch)[: old_data.n_obs] for batch in ("celseq2", "dropseq")}
    shutil.rmtree(experiment / "projected")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = online_training(experiment, trained / "new.h5ad", freeze)

    assert written == [
        experiment / "job" / "last_model.h5",
        experiment / "processed_data" / "concatenated_data.h5ad",
    ]
    assert all(path.is_file() for path in written)
    assert {path.name for path in experiment.iterdir()} == {
        "parameters.json",
        "processed_data",
        "TF_records",
        "job",
        "backup",
    }
    assert snapshot(experiment / "backup") == old_job
    data = DISCERNData.from_folder(experiment, 8)
    assert data.n_obs == old_data.n_obs + 55
    assert current_records(experiment / "TF_records", data) is not None

    changed = set()
    for path, values in weights_in(experiment / "job").items():
        rows = len(old_weights[path])
        if (values[:rows] != old_weights[path]).any():
            changed.add(path)
        assert len(values) == rows or "offset" in path
    if freeze:
        assert changed == set()
        new_rows = weights_in(experiment / "job")["encoder_offset_0/kernel"][2:]
        assert new_rows.shape[0] == 1
        assert new_rows.any()
    else:
        assert len(changed) > 0.8 * len(old_weights)

    for batch in ("celseq2", "dropseq", "new"):
        now = projected(experiment, batch)
        assert now.n_obs == data.n_obs
        assert np.isfinite(now.layers["estimated_counts"]).all()
        if batch in old_cells and freeze:
            for layer in ("estimated_counts", "estimated_dropouts"):
                wanted = old_cells[batch].layers[layer]
                np.testing.assert_allclose(now.layers[layer][: old_data.n_obs], wanted, atol=1e-5)


def test_training_learns_the_new_batch(ours: Path, trained: Path) -> None:
    """Reconstructed as themselves, new cells are closer to what was measured than before as any old batch."""
    online_training(ours, trained / "new.h5ad", freeze=False)
    with_new = DISCERNData.from_folder(ours, 8)
    new = (with_new.obs["batch"] == "new").to_numpy()
    measured = with_new.X[new].toarray().mean(0)

    def distance(batch: str) -> float:
        return float(np.abs(projected(ours, batch).layers["estimated_counts"][new].mean(0) - measured).mean())

    assert distance("new") < distance("celseq2")


def test_goes_on_training_afterwards(
    ours: Path, trained: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`discern train` on the folder goes on with the new model, on all cells."""
    online_training(ours, trained / "new.h5ad", freeze=True)
    parameters = json.loads((ours / "parameters.json").read_text())
    parameters["training"]["max_steps"] = 3
    (ours / "parameters.json").write_text(json.dumps(parameters))
    caplog.set_level("INFO")
    run_train(ours)
    assert "going on with the model of epoch 2" in caplog.text
    assert "optimiser" not in caplog.text
    assert len(weights_in(ours / "job")["encoder_offset_0/kernel"]) == 3


def test_several_files_at_once(ours: Path, trained: Path, raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
    raw["new"][:30].copy().write_h5ad(tmp_path / "one.h5ad")
    raw["new"][30:].copy().write_h5ad(tmp_path / "two.h5ad")
    online_training(ours, [tmp_path / "one.h5ad", str(tmp_path / "two.h5ad")], freeze=True)
    data = DISCERNData.from_folder(ours, 8)
    assert list(data.obs["batch"].cat.categories) == ["celseq2", "dropseq", "one", "two"]
    assert projected(ours, "two").n_obs == data.n_obs


def test_twice_in_a_row(ours: Path, trained: Path, raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
    online_training(ours, trained / "new.h5ad", freeze=True)
    first = weights_in(ours / "job")
    first_job = snapshot(ours / "job")
    raw["new"].write_h5ad(tmp_path / "newer.h5ad")
    online_training(ours, tmp_path / "newer.h5ad", freeze=True)
    data = DISCERNData.from_folder(ours, 8)
    assert list(data.obs["batch"].cat.categories) == ["celseq2", "dropseq", "new", "newer"]
    assert data.obs_names.is_unique
    assert snapshot(ours / "backup") == first_job
    for path, values in weights_in(ours / "job").items():
        np.testing.assert_array_equal(values[: len(first[path])], first[path], err_msg=path)
    assert projected(ours, "newer").n_obs == data.n_obs


def test_data_that_does_not_fit_into_memory(ours: Path, trained: Path) -> None:
    with limited(matrix=0):
        assert is_lazy(DISCERNData.from_folder(ours, 8).X)
        online_training(ours, trained / "new.h5ad", freeze=False)
    assert DISCERNData.from_folder(ours, 8).n_obs == 165 + 55
    assert projected(ours, "new").n_obs == 165 + 55


def test_without_record_files_there_are_none(ours: Path, trained: Path) -> None:
    shutil.rmtree(ours / "TF_records")
    online_training(ours, trained / "new.h5ad", freeze=True)
    assert not (ours / "TF_records").exists()


class TestMistakes:
    """What cannot be done is told, and the folder stays as it was."""

    def test_no_model(self, ours: Path, trained: Path) -> None:
        shutil.rmtree(ours / "job")
        before = snapshot(ours)
        with pytest.raises(MissingFileError, match="no trained model: run `discern train` first"):
            online_training(ours, trained / "new.h5ad", freeze=False)
        assert snapshot(ours) == before

    def test_no_file(self, ours: Path, tmp_path: Path) -> None:
        before = snapshot(ours)
        with pytest.raises(MissingFileError, match=r"nowhere\.h5ad: no such file"):
            online_training(ours, tmp_path / "nowhere.h5ad", freeze=False)
        assert snapshot(ours) == before

    def test_missing_genes(self, ours: Path, raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
        raw["new"][:, 50:].copy().write_h5ad(tmp_path / "few.h5ad")
        before = snapshot(ours)
        with pytest.raises(InvalidInputError, match="lacks 50 of the"):
            online_training(ours, tmp_path / "few.h5ad", freeze=False)
        assert snapshot(ours) == before
        online_training(ours, tmp_path / "few.h5ad", freeze=True, fill_missing_genes=True)
        assert DISCERNData.from_folder(ours, 8).n_obs == 165 + 55

    def test_too_few_cells(self, ours: Path, raw: dict[str, ad.AnnData], tmp_path: Path) -> None:
        raw["new"][:3].copy().write_h5ad(tmp_path / "three.h5ad")
        before = snapshot(ours)
        with pytest.raises(InvalidInputError, match=r"validation cell"):
            online_training(ours, tmp_path / "three.h5ad", freeze=False)
        assert snapshot(ours) == before


STAGES = {
    "reading": "discern.inputs.readers.read_raw_input",
    "writing cells": "discern.preprocessing.appending.write_blocks",
    "writing records": "discern.experiment.online.write_records",
    "weights": "discern.experiment.online.update_model",
    "first checkpoint": "discern.model.callbacks.save",
    "end of training": "discern.model.callbacks.TrainingProgress.on_train_end",
    "backup": "discern.experiment.online.shutil.copytree",
    "publishing": "discern.experiment.online.publish",
}


class TestInterruption:
    @pytest.mark.parametrize("stage", STAGES)
    def test_leaves_all_as_it_was_and_can_be_repeated(
        self, ours: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        before = snapshot(ours)

        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(STAGES[stage], interrupt)
            with pytest.raises(KeyboardInterrupt):
                online_training(ours, trained / "new.h5ad", freeze=True)
        assert snapshot(ours) == before
        if stage == "publishing":
            online_training(ours, trained / "new.h5ad", freeze=True)
            assert projected(ours, "new").n_obs == 165 + 55

    def test_killed_while_training(self, ours: Path, trained: Path) -> None:
        """A process that dies cannot clean up; the next one does."""
        before = snapshot(ours)
        code = f"""
            import os, signal
            from discern.model import callbacks
            from discern.online_learning import online_training
            callbacks.Checkpoint.on_epoch_end = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
            online_training({str(ours)!r}, {str(trained / "new.h5ad")!r}, freeze=True)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert {name: digest for name, digest in snapshot(ours).items() if not name.startswith(".online")} == before
        assert list(ours.glob(".online*"))
        assert projected(ours, "dropseq").n_obs == 165
        online_training(ours, trained / "new.h5ad", freeze=True)
        assert list(ours.glob(".online*")) == []
        assert projected(ours, "new").n_obs == 165 + 55


class Died(BaseException):
    """Stands for the end of the process."""


class TestPublish:
    PARTS = ("a_file", "folder", "job", "new")

    def prepare(self, root: Path) -> tuple[dict[str, str], dict[str, str]]:
        for folder, text, parts in ((root, "old", self.PARTS[:3]), (root / "staging", "new", self.PARTS)):
            for part in parts:
                file = folder / part if part == "a_file" else folder / part / "inside"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        (root / "untouched").write_text("old")
        (root / "job" / "surplus").write_text("old")
        new = snapshot(root / "staging") | {"untouched": hashlib.sha256(b"old").hexdigest()}
        return snapshot(root), new

    def test_replaces_all(self, tmp_path: Path) -> None:
        _, new = self.prepare(tmp_path)
        publish(tmp_path / "staging", tmp_path)
        assert snapshot(tmp_path) == new

    @pytest.mark.parametrize("calls", range(12))
    def test_dying_at_any_point_gives_the_old_or_the_new(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
    ) -> None:
        """The process dies before its n-th change of the file system; the next one looks again."""
        old, new = self.prepare(tmp_path)
        left = calls

        def dying(real: Any) -> Any:
            def change(*arguments: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Died
                left -= 1
                return real(*arguments, **kwargs)

            return change

        with monkeypatch.context() as patch:
            for function in ("rename", "unlink", "rmdir", "mkdir"):
                patch.setattr(os, function, dying(getattr(os, function)))
            try:
                publish(tmp_path / "staging", tmp_path)
            except Died:
                died = True
            else:
                died = False
        assert died == (left == 0 and snapshot(tmp_path) != new)
        finish_publishing(tmp_path)
        assert snapshot(tmp_path) == (old if calls == 0 else new)

    def test_nothing_to_finish(self, tmp_path: Path) -> None:
        before = snapshot(tmp_path)
        finish_publishing(tmp_path)
        finish_publishing(tmp_path / "nowhere")
        assert snapshot(tmp_path) == before

    def test_the_next_command_finishes(self, ours: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Cut off in the middle of the swap, the folder is whole again before the next command looks at it."""
        rename, calls = os.rename, []

        def dying(*arguments: Any) -> None:
            calls.append(arguments)
            if len(calls) == 5:
                raise Died
            rename(*arguments)

        def die_in_publish(staging: Path, folder: Path) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", dying)
                publish(staging, folder)

        monkeypatch.setattr(online, "publish", die_in_publish)
        with pytest.raises(Died):
            online_training(ours, trained / "new.h5ad", freeze=True)
        assert (ours / ".ready").is_dir()
        assert projected(ours, "new").n_obs == 165 + 55
        assert not (ours / ".ready").exists()


class TestRunner:
    def parameters(self, experiments: list[Path]) -> Any:
        file = experiments[0].parent.parent / "parameters.json"
        content = {path.name: json.loads((path / "parameters.json").read_text()) for path in experiments}
        file.write_text(
            json.dumps({"exp_param": {"experiments_dir": str(experiments[0].parent)}, "experiments": content})
        )
        return load_parameters(file)

    def test_a_failing_experiment_does_not_stop_the_others(self, ours: Path, trained: Path) -> None:
        broken = Path(shutil.copytree(ours, ours.with_name("broken")))
        shutil.rmtree(broken / "job")
        kwargs = {"filename": (trained / "new.h5ad",), "freeze": True}
        results = OnlineDISCERNRunner(debug=False, gpus=None)(online_training, self.parameters([broken, ours]), kwargs)
        assert isinstance(results["broken"], MissingFileError)
        assert results["lung"] == [ours / "job" / "last_model.h5", ours / "processed_data" / "concatenated_data.h5ad"]

    def test_a_missing_file_is_told_before_anything_is_done(self, ours: Path, tmp_path: Path) -> None:
        def never(*_: Any, **__: Any) -> None:
            raise AssertionError

        with pytest.raises(MissingFileError, match=r"nowhere\.h5ad"):
            OnlineDISCERNRunner(debug=False, gpus=None)(
                never, self.parameters([ours]), {"filename": [tmp_path / "nowhere.h5ad"], "freeze": True}
            )
