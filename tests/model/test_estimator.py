"""The estimator: against the original's numbers, and as a user calls it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import dask.array as da
import h5py
import keras
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from discern import DISCERN, DISCERNData
from discern.data.annotation import np_one_hot
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.model.callbacks import DelayedEarlyStopping
from discern.model.projection import OwnCells, project
from discern.model.targets import OutputFormat
from discern.networks import losses, optimizers

if TYPE_CHECKING:
    from pathlib import Path


PROJECTIONS = {
    "unprojected": (None, None),
    "projected_to_average_batch": ("batch", ""),
    "projected_to_average_batch_celseq2": ("batch", "celseq2"),
    "projected_to_average_celltype": ("celltype", ""),
}


FAST = {"algorithm": "keras.optimizers.Adam", "learning_rate": 0.01}


@pytest.fixture(scope="module")
def parameters(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "experiment" / "parameters.json").read_text())


@pytest.fixture(scope="module")
def expected(golden: Path) -> Any:
    return np.load(golden / "expected.npz")


@pytest.fixture(scope="module")
def cells(golden: Path) -> DISCERNData:
    return DISCERNData.from_folder(golden / "experiment", batch_size=32)


@pytest.fixture(scope="module")
def original(golden: Path, parameters: dict[str, Any]) -> DISCERN:
    """The model that the original trained."""
    model = DISCERN.from_json(parameters)
    model.restore_model(golden / "experiment" / "job")
    return model


def small(**arguments: Any) -> DISCERN:
    """A network that trains within a second."""
    side = {"layers": [16], "norm_type": ["conditionallayernorm"], "regularization": 0.0}
    return DISCERN(**{"latent_dim": 4, "encoder": side, "decoder": side, "seed": 1} | arguments)


def in_model(model: DISCERN) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.wae_model.weights]


def test_a_projection_holds_what_was_chosen(original: DISCERN, cells: DISCERNData, tmp_path: Path) -> None:
    targets = [("batch", "celseq2")]
    (whole,) = original.project_to_metadata(cells, targets, tmp_path / "whole")
    (chosen,) = original.project_to_metadata(
        cells, targets, tmp_path / "chosen", layers=["estimated_counts"], dtype="float16", suffix=".zarr"
    )
    projected = ad.io.read_zarr(chosen)
    assert projected.X is None
    assert list(projected.layers) == ["estimated_counts"]
    assert projected.layers["estimated_counts"].dtype == np.float16
    wanted = ad.read_h5ad(whole).layers["estimated_counts"]
    np.testing.assert_allclose(projected.layers["estimated_counts"], wanted, rtol=1e-3, atol=1e-4)


class TestAgainstTheOriginal:
    def test_latent_codes(self, original: DISCERN, cells: DISCERNData, expected: Any) -> None:
        original.prepare_projection(cells)
        latent, sigma = original.generate_latent_codes(cells.X, np_one_hot(cells.obs["batch"]), batch_size=50)
        assert list(cells.obs_names) == list(expected["obs_names"])
        np.testing.assert_allclose(latent, expected["X_DISCERN"], atol=1e-5)
        np.testing.assert_allclose(sigma, expected["X_DISCERN_sigma"], atol=1e-5)

    def test_projections(self, original: DISCERN, cells: DISCERNData, expected: Any, tmp_path: Path) -> None:
        written = original.project_to_metadata(cells, list(PROJECTIONS.values()), tmp_path, store_sigmas=True)
        assert [path.stem for path in written] == list(PROJECTIONS)
        rows = expected["rows_of_layers"]
        for path in written:
            projected = ad.read_h5ad(path)
            for layer in ("estimated_counts", "estimated_dropouts"):
                ours = projected.layers[layer][rows]
                np.testing.assert_allclose(ours, expected[f"{path.stem}/{layer}"], atol=1e-5, err_msg=path.stem)
            np.testing.assert_allclose(projected.obsm["X_DISCERN_sigma"], expected["X_DISCERN_sigma"], atol=1e-5)

    def test_loss_parts(self, original: DISCERN, cells: DISCERNData, golden_json: dict) -> None:
        """In inference mode, on all cells at once: also the losses know what a zero has become."""
        everything = ad.AnnData(cells.copy())
        everything.obs["split"] = "valid"
        everything = DISCERNData(everything, batch_size=220)
        original.prepare(everything)
        logs = original.wae_model.evaluate(everything.tfdata[1], verbose=0, return_dict=True)
        for part, wanted in golden_json["eval"].items():
            assert logs[f"{part}_loss"] == pytest.approx(wanted, rel=1e-4), part
        parts = {"decoder_counts": 15000, "decoder_dropouts": 10000, "mmdpp": 1500, "sigma_regularization": 1e-8}
        total = sum(weight * logs[f"{part}_loss"] for part, weight in parts.items())
        assert logs["loss"] == pytest.approx(total, rel=1e-5)

    def test_training_goes_on_where_the_original_stopped(
        self, golden: Path, parameters: dict[str, Any], cells: DISCERNData, tmp_path: Path
    ) -> None:
        model = DISCERN.from_json(parameters)
        model.restore_model(golden / "experiment" / "job")
        model.prepare(cells)
        assert model.start_step == 8
        assert int(model.wae_model.optimizer.iterations.numpy()) == 40
        history = model.training(cells, savepath=tmp_path, max_steps=10)
        assert model.start_step == 10
        assert len(history.history["loss"]) == 2
        fresh = DISCERN.from_json(parameters).training(cells, max_steps=1)
        assert history.history["val_loss"][0] < fresh.history["val_loss"][0]


class TestProjection:
    def test_files_hold_what_they_should(self, original: DISCERN, cells: DISCERNData, tmp_path: Path) -> None:
        (path,) = original.project_to_metadata(cells, [], tmp_path)
        projected = ad.read_h5ad(path)
        assert path.name == "unprojected.h5ad"
        assert projected.shape == cells.shape
        pd.testing.assert_frame_equal(projected.obs, cells.obs)
        pd.testing.assert_frame_equal(projected.var.drop(columns="discern_trust"), cells.var)
        assert projected.var["discern_trust"].notna().any()
        assert "fixed_scaling" not in projected.uns
        assert projected.uns["DISCERN"]["batch_key"] == cells.config["batch_key"]
        assert set(projected.obsm) == {"X_DISCERN"}
        counts, dropouts = projected.layers["estimated_counts"], projected.layers["estimated_dropouts"]
        assert counts.min() >= 0
        assert dropouts.min() >= 0
        assert dropouts.max() <= 1
        X = projected.X.toarray() if sparse.issparse(projected.X) else projected.X
        kept = X > 0
        np.testing.assert_array_equal(X[kept], counts[kept])
        detected = (counts > 0) * dropouts
        assert kept.sum() == pytest.approx(detected.sum(), abs=5 * float(np.sqrt((detected * (1 - dropouts)).sum())))

    @pytest.mark.parametrize("target", PROJECTIONS.values(), ids=PROJECTIONS)
    def test_reconstruct_gives_the_same_in_memory(
        self, original: DISCERN, cells: DISCERNData, tmp_path: Path, target: tuple[str | None, str | None]
    ) -> None:
        (path,) = original.project_to_metadata(cells, [target], tmp_path, store_sigmas=True)
        stored = ad.read_h5ad(path)
        ours = original.reconstruct(cells, *target, store_sigmas=True)
        np.testing.assert_array_equal(ours.X, stored.X.toarray() if sparse.issparse(stored.X) else stored.X)
        for layer in stored.layers:
            np.testing.assert_array_equal(ours.layers[layer], stored.layers[layer], err_msg=layer)
        for key in ("X_DISCERN", "X_DISCERN_sigma"):
            np.testing.assert_array_equal(ours.obsm[key], stored.obsm[key])
        assert (ours.layers["measured"] != cells.X).nnz == 0
        assert ours.raw is None

    def test_blocks_do_not_show(self, original: DISCERN, cells: DISCERNData, tmp_path: Path) -> None:
        layers = ("estimated_counts", "estimated_dropouts", "measured")
        (whole,) = original.project_to_metadata(cells, [("batch", "celseq2")], tmp_path / "whole", layers=layers)
        targets = {"parts.h5ad": ("batch", "celseq2")}
        (parts,) = project(
            original.trained,
            cells,
            OwnCells.of(original.trained, cells),
            targets,
            tmp_path,
            OutputFormat(layers),
            chunk_size=37,
        )
        for layer in layers:
            ours, wanted = (ad.read_h5ad(path).layers[layer] for path in (parts, whole))
            if sparse.issparse(wanted):
                ours, wanted = ours.toarray(), wanted.toarray()
            np.testing.assert_allclose(ours, wanted, atol=1e-5)

    @pytest.mark.parametrize("kind", ["dense", "csc", "dask", "float64"])
    def test_any_kind_of_matrix_encodes_alike(self, original: DISCERN, cells: DISCERNData, kind: str) -> None:
        original.prepare_projection(cells)
        labels = np_one_hot(cells.obs["batch"])
        kinds = {
            "dense": lambda: cells.X.toarray(),
            "csc": lambda: cells.X.tocsc(),
            "dask": lambda: da.from_array(cells.X.toarray(), chunks=(30, -1)).map_blocks(sparse.csr_matrix),
            "float64": lambda: cells.X.astype(np.float64),
        }
        latent, _ = original.generate_latent_codes(kinds[kind](), labels, batch_size=50)
        wanted, _ = original.generate_latent_codes(cells.X, labels, batch_size=50)
        np.testing.assert_allclose(latent, wanted, atol=1e-5)

    def test_cells_of_one_batch_keep_their_label(
        self, original: DISCERN, cells: DISCERNData, expected: Any, tmp_path: Path
    ) -> None:
        """A subset of the cells, which has lost a category, is encoded with the labels of the model."""
        chosen = (cells.obs["batch"] == "dropseq").to_numpy()
        subset = DISCERNData(ad.AnnData(cells[chosen].copy()), batch_size=16)
        (path,) = original.project_to_metadata(subset, [], tmp_path)
        np.testing.assert_allclose(ad.read_h5ad(path).obsm["X_DISCERN"], expected["X_DISCERN"][chosen], atol=1e-5)

    def test_distance_is_from_the_training_cells_of_the_batch_if_there_are_any(
        self, original: DISCERN, cells: DISCERNData, tmp_path: Path
    ) -> None:
        """New cells that somebody wants projected have been split by nobody."""
        (split,) = original.project_to_metadata(cells, [("batch", "celseq2")], tmp_path / "split")
        new = ad.AnnData(cells.copy())
        new.obs = new.obs.drop(columns=["split", "for_mmd"])
        (unsplit,) = original.project_to_metadata(
            DISCERNData(new, batch_size=1), [("batch", "celseq2")], tmp_path / "unsplit"
        )
        assert list(ad.read_h5ad(unsplit).obs) == list(new.obs)
        training = ((cells.obs["batch"] == "celseq2") & (cells.obs["split"] == "train")).to_numpy()
        distance = ad.read_h5ad(split).obs["discern_distance"]
        assert distance[training].median() == pytest.approx(1)

    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            (("bach", "celseq2"), UnknownNameError, "no metadata column 'bach'"),
            (("batch", "celseq"), InvalidInputError, "has no value 'celseq'"),
        ],
    )
    def test_a_bad_target_writes_nothing(
        self,
        original: DISCERN,
        cells: DISCERNData,
        tmp_path: Path,
        target: tuple[str, str],
        error: type[Exception],
        message: str,
    ) -> None:
        with pytest.raises(error, match=message):
            original.project_to_metadata(cells, [("batch", "dropseq"), target], tmp_path / "projected")
        assert not (tmp_path / "projected").exists()

    def test_two_targets_with_one_file_name_get_two_files(
        self, original: DISCERN, cells: DISCERNData, tmp_path: Path
    ) -> None:
        annotated = DISCERNData(cells, batch_size=16)
        annotated.obs["kind"] = pd.Categorical(np.where(np.arange(cells.n_obs) < 100, "a b", "a_b"))
        written = original.project_to_metadata(annotated, [("kind", "a b"), ("kind", "a_b")], tmp_path)
        assert len(set(written)) == 2
        first, second = (ad.read_h5ad(path).layers["estimated_counts"] for path in written)
        assert not np.allclose(first, second)

    def test_the_input_is_left_as_it_was(self, original: DISCERN, cells: DISCERNData, tmp_path: Path) -> None:
        before = cells.copy()
        original.project_to_metadata(cells, [("batch", "celseq2")], tmp_path)
        original.reconstruct(cells, "batch", "celseq2")
        assert (before.X != cells.X).nnz == 0
        assert set(before.uns) == set(cells.uns)
        pd.testing.assert_frame_equal(before.obs, cells.obs)


class TestFit:
    """Does a model fit these cells?"""

    def test_other_number_of_genes(self, original: DISCERN, cells: DISCERNData) -> None:
        fewer = DISCERNData(ad.AnnData(cells[:, :100].copy()), batch_size=16)
        with pytest.raises(InvalidInputError, match=r"trained on 1500 genes, the data has 100"):
            original.reconstruct(fewer, None, None)

    def test_genes_in_another_order(self, cells: DISCERNData) -> None:
        model = small()
        model.prepare(cells)
        turned = DISCERNData(ad.AnnData(cells[:, ::-1].copy()), batch_size=16)
        with pytest.raises(InvalidInputError, match=r"genes of the model in another order.*gene 1 is"):
            model.reconstruct(turned, None, None)

    def test_a_batch_that_the_model_does_not_know(self, cells: DISCERNData) -> None:
        model = small()
        model.prepare(cells)
        other = ad.AnnData(cells.copy())
        other.obs["batch"] = other.obs["batch"].cat.rename_categories({"dropseq": "smartseq"})
        other.uns["DISCERN"] = {**other.uns["DISCERN"], "batch_key": {"0": "celseq2", "1": "smartseq"}}
        with pytest.raises(InvalidInputError, match=r"celseq2, dropseq.*'smartseq'.*discern onlinetraining"):
            model.reconstruct(DISCERNData(other, batch_size=16), None, None)

    def test_without_a_model(self, cells: DISCERNData) -> None:
        with pytest.raises(InvalidInputError, match="there is no model yet: call build_model, restore_model"):
            small().reconstruct(cells, None, None)

    def test_restore_from_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError, match="no trained model"):
            small().restore_model(tmp_path)


class TestTraining:
    def test_learns(self, cells: DISCERNData) -> None:
        history = small(optimizer=FAST).training(cells, max_steps=6).history
        assert history["val_loss"][-1] < 0.9 * history["val_loss"][0]
        assert np.isfinite(history["loss"]).all()

    def test_same_seed_same_model(self, cells: DISCERNData) -> None:
        first, second, third = small(seed=3), small(seed=3), small(seed=4)
        for model in (first, second, third):
            model.training(DISCERNData(cells, batch_size=32), max_steps=1)
        for one, other in zip(in_model(first), in_model(second), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert not np.allclose(in_model(first)[0], in_model(third)[0])

    def test_goes_on_from_its_file(self, cells: DISCERNData, tmp_path: Path) -> None:
        model = small()
        model.training(cells, savepath=tmp_path, max_steps=2)
        assert model.start_step == 2
        again = small(seed=9)
        again.restore_model(tmp_path)
        assert again.start_step == 2
        for one, other in zip(in_model(model), in_model(again), strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(model.wae_model.optimizer.variables, again.wae_model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
        assert len(again.training(cells, savepath=tmp_path, max_steps=3).history["loss"]) == 1
        assert again.start_step == 3

    def test_trained_model_carries_genes_batches_and_scaling(self, cells: DISCERNData, tmp_path: Path) -> None:
        small().training(cells, savepath=tmp_path, max_steps=1)
        again = small()
        again.restore_model(tmp_path)
        assert again.genes == list(cells.var_names)
        assert again.batches == ["celseq2", "dropseq"]
        for ours, wanted in zip(again.scaling, cells.scaling, strict=True):
            np.testing.assert_array_equal(ours, wanted)

    def test_nothing_is_written_without_savepath(
        self, cells: DISCERNData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        small().training(cells, max_steps=1)
        assert list(tmp_path.iterdir()) == []

    def test_a_diverged_training_says_so_and_keeps_the_last_good_model(
        self, cells: DISCERNData, tmp_path: Path
    ) -> None:
        small().training(cells, savepath=tmp_path, max_steps=1)
        good = (tmp_path / "last_model.h5").read_bytes()

        class Poison(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                variable = self.model.trainable_variables[0]
                variable.assign(variable * np.nan)

        model = small()
        model.restore_model(tmp_path)
        with pytest.raises(InvalidInputError, match=r"diverged .* in epoch 2: lower training.optimizer.learning_rate"):
            model.training(cells, [keras.callbacks.TerminateOnNaN(), Poison()], tmp_path, max_steps=4)
        assert (tmp_path / "last_model.h5").read_bytes() == good

    def test_too_few_cells_are_told(self, cells: DISCERNData) -> None:
        few = ad.AnnData(cells[:20].copy())
        few.obs["split"] = ["valid"] * 15 + ["train"] * 5
        with pytest.raises(InvalidInputError, match=r"5 training cells .* batch_size 8"):
            small().training(DISCERNData(few, batch_size=8), max_steps=1)

    def test_without_validation_cells_all_are_trained_on(self, cells: DISCERNData, tmp_path: Path) -> None:
        all_train = ad.AnnData(cells.copy())
        all_train.obs["split"] = "train"
        data = DISCERNData(all_train, batch_size=10_000)
        assert data.batch_size == data.n_obs // 10
        history = small().training(data, savepath=tmp_path, max_steps=2).history
        assert len(history["loss"]) == 2
        assert "val_loss" not in history
        assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "last_model.h5"]
        with pytest.raises(InvalidInputError, match="early_stopping needs validation cells"):
            small().training(data, [DelayedEarlyStopping(patience=1)], max_steps=2)


class TestParameters:
    def test_from_json_takes_the_published_defaults(self) -> None:
        model = DISCERN.from_json({"model": {}, "training": {}, "input_ds": {"raw_input": ["x.h5ad"]}})
        assert model.parameters.latent_dim == 48
        assert model.parameters.encoder["layers"] == [1024, 512, 256]
        assert model.parameters.decoder["layers"] == [256, 512, 1024]
        optimizer = model.get_optimizer()
        assert isinstance(optimizer, optimizers.RectifiedAdam)
        assert (float(optimizer.learning_rate), optimizer.beta_1, optimizer.beta_2) == (
            pytest.approx(1e-3),
            0.85,
            0.95,
        )

    def test_defaults_without_json_are_the_same(self) -> None:
        by_json, by_hand = DISCERN.from_json({"model": {}, "training": {}}).parameters, DISCERN().parameters
        ignored = {"output_lsn", "xla", "encoder", "decoder"}
        for name, value in vars(by_hand).items():
            if name not in ignored:
                assert getattr(by_json, name) == value, name
        for side in ("encoder", "decoder"):
            assert getattr(by_json, side).items() >= getattr(by_hand, side).items()

    def test_every_argument_counts(self, parameters: dict[str, Any]) -> None:
        parameters = json.loads(json.dumps(parameters))
        parameters["model"]["wae_lambda"] = 0
        parameters["model"]["crossentropy"] = {"label_smoothing": 0, "lower_label_smoothing": 0}
        model = DISCERN.from_json(parameters)
        assert model.parameters.wae_lambda == 0
        assert model.parameters.crossentropy["lower_label_smoothing"] == 0
        assert model.parameters.output_lsn == 20000

    def test_learning_decay_and_lookahead(self) -> None:
        model = small(
            optimizer={
                "algorithm": "tensorflow.keras.optimizers.Adam",
                "learning_rate": 0.5,
                "learning_decay": {
                    "name": "tensorflow.keras.optimizers.schedules.ExponentialDecay",
                    "decay_steps": 10,
                    "decay_rate": 0.5,
                },
                "Lookahead": True,
            }
        )
        optimizer = model.get_optimizer()
        assert isinstance(optimizer, optimizers.Lookahead)
        schedule = optimizer.optimizer._learning_rate
        assert [float(schedule(step)) for step in (0, 10)] == pytest.approx([0.5, 0.25])

    def test_an_argument_that_the_optimiser_does_not_take(self) -> None:
        with pytest.raises(InvalidInputError, match=r"RectifiedAdam does not take .*'wight_decay'"):
            small(
                optimizer={"algorithm": "discern.estimators.optimizers.RectifiedAdam", "wight_decay": 1}
            ).get_optimizer()

    def test_weights_of_the_losses(self, cells: DISCERNData) -> None:
        model = small(wae_lambda=7.0, weighting_decoder_dropout=8.0, weighting_random_encoder=9.0)
        model.prepare(cells)
        model.compile(model.get_optimizer(), scale=10.0)
        assert model.wae_model._compile_loss._user_loss_weights == {
            "decoder_counts": 10.0,
            "decoder_dropouts": 8.0,
            "mmdpp": 7.0,
            "sigma_regularization": 9.0,
        }
        entropy = model.wae_model._compile_loss._user_loss["decoder_dropouts"]
        assert isinstance(entropy, losses.MaskedCrossEntropy)
        np.testing.assert_allclose(entropy.zeros, cells.zeros, rtol=1e-6)

    def test_mixed_precision_gives_float32_results(self, cells: DISCERNData) -> None:
        model = small(precision="mixed_bfloat16")
        model.training(cells, max_steps=1)
        reconstructed = model.reconstruct(cells, None, None)
        assert reconstructed.X.dtype == np.float32
        assert np.isfinite(reconstructed.layers["estimated_counts"]).all()


def test_model_file_is_plain_hdf5(cells: DISCERNData, tmp_path: Path) -> None:
    small().training(cells, savepath=tmp_path, max_steps=1)
    with h5py.File(tmp_path / "last_model.h5") as handle:
        assert "model_config" not in handle.attrs
        assert handle.attrs["format_version"] == 2
