"""The documented Python API of the estimator and of what runs it: arguments, results, errors and effects."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import anndata as ad
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from discern.config.reading import parse_experiment
from discern.data.annotation import CheckMetaData
from discern.data.processed import DISCERNData
from discern.errors import InvalidInputError, UnknownNameError
from discern.experiment.folder import setup_exp
from discern.experiment.project import run_projection
from discern.experiment.runner import DISCERNRunner, run_exp_multiprocess
from discern.experiment.train import run_train
from discern.model.estimator import DISCERN
from discern.model.restoring import load_model_from_directory
from discern.networks import layers, losses
from discern.networks.autoencoder import create_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def data(golden: Path) -> DISCERNData:
    return DISCERNData.from_folder(golden / "experiment", 32)


@pytest.fixture
def small() -> DISCERN:
    side = {"layers": [8], "norm_type": ["conditionallayernorm"], "regularization": 0.0}
    return DISCERN(latent_dim=3, encoder=side, decoder=side, seed=1, weighting_decoder_dropout=10000.0)


def test_a_file_without_detection_has_none() -> None:
    model = parse_experiment({"model": {}, "training": {}}).as_dict()["model"]

    assert model["weighting_decoder_dropout"] == 0.0
    assert model["crossentropy"].get("lower_label_smoothing", 0.0) == 0.0
    assert model["crossentropy"].get("label_smoothing", 0.0) == 0.0


def test_the_estimator_has_no_detection_unless_it_is_asked_for() -> None:
    model = DISCERN(latent_dim=3)

    assert model.weighting_decoder_dropout == 0.0
    assert model.crossentropy == {}


def test_a_preset_keeps_its_detection() -> None:
    model = parse_experiment({"preset": "auto"}).as_dict()["model"]

    assert model["weighting_decoder_dropout"] == 10000
    assert model["crossentropy"] == {"label_smoothing": 0.0, "lower_label_smoothing": 0.1}


def test_from_json_needs_its_sections() -> None:
    with pytest.raises(KeyError, match="lacks the section 'training'"):
        DISCERN.from_json({"model": {}})


def test_an_unknown_argument_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no parameter 'latent_dims' .did you mean 'latent_dim'"):
        DISCERN(latent_dims=3)


def test_build_model_sets_loss_and_optimiser(small: DISCERN) -> None:
    small.build_model(n_genes=12, n_labels=2, scale=100)

    assert small.wae_model.compiled
    assert isinstance(small.wae_model.optimizer, keras.optimizers.Optimizer)


def test_parts_of_a_network_that_is_not_built_are_no_attributes(small: DISCERN) -> None:
    with pytest.raises(AttributeError, match="call build_model, restore_model or training first"):
        small.encoder  # noqa: B018


def test_training_returns_the_losses_of_the_last_epoch_and_writes_one_file(
    small: DISCERN, data: DISCERNData, tmp_path: Path
) -> None:
    losses_of_last = small.training(data, savepath=tmp_path / "model.hdf5", max_steps=2)

    assert isinstance(losses_of_last, dict)
    assert losses_of_last["loss"] == losses_of_last.history["loss"][-1]
    assert len(losses_of_last.history["loss"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model.hdf5"]


def test_reconstruct_gives_what_was_measured_as_a_layer_and_no_raw(small: DISCERN, data: DISCERNData) -> None:
    small.prepare(data)
    result = small.reconstruct(data, "batch", "celseq2")

    assert result.raw is None
    np.testing.assert_allclose(np.asarray(result.layers["measured"].toarray()), data.X.toarray())


def test_cells_that_were_not_processed_are_refused_with_what_to_write(small: DISCERN, data: DISCERNData) -> None:
    plain = ad.AnnData(np.ones((2, 3)))

    for call in (small.training, lambda cells: small.reconstruct(cells, "batch", "celseq2")):
        with pytest.raises(InvalidInputError, match=r"got AnnData: write DISCERNData\(cells, batch_size\)"):
            call(plain)


def test_metadata_is_checked_and_returned() -> None:
    check = CheckMetaData(pd.DataFrame({"batch": ["a", "b"]}))

    assert check.check(("batch", "b")) == ("batch", "b")
    assert check.check("batch:b") == ("batch", "b")
    with pytest.raises(KeyError, match="no metadata column 'bacth'"):
        check.check(("bacth", "b"))
    with pytest.raises(ValueError, match="has no value 'c'"):
        check.check(("batch", "c"))


def test_condlayernorm_adds_the_offset_of_the_batch_only() -> None:
    cells, labels = keras.Input((4,)), keras.Input((2,))
    output = layers.condlayernorm(cells, labels, 4, {"name": "L1L2", "l2": 0.1})
    model = keras.Model([cells, labels], output)
    values = np.random.default_rng(0).normal(3, 2, (5, 4)).astype(np.float32)
    batch = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0]]

    np.testing.assert_array_equal(model([values, batch]), values)
    model.weights[0].assign([[1, 2, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_allclose(
        model([values, batch]), values + batch @ np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), rtol=1e-6
    )
    assert model.losses


def test_a_regulariser_that_is_none_is_told() -> None:
    with pytest.raises(InvalidInputError, match=r"no regulariser 'L1L3' .did you mean 'L1L2'"):
        layers.condlayernorm(keras.Input((4,)), keras.Input((2,)), 4, {"name": "L1L3"})


@pytest.mark.parametrize("layer", ["GaussianReparametrization", "SigmaRegularization"])
def test_layers_take_the_documented_arguments(layer: str) -> None:
    made = layers.getmembers()[layer](True, "mine", None, False)

    assert made.name == "mine"
    with pytest.raises(InvalidInputError, match="dynamic=True: Keras 3 has no such layers"):
        layers.getmembers()[layer](dynamic=True)


def test_losses_take_the_reduction_of_their_time() -> None:
    y, z = tf.constant([[1.0, 2.0]]), tf.constant([[1.5, 2.0]])

    assert float(losses.HuberLoss(1.0, "auto", "mine")(y, z)) == pytest.approx(0.0625)
    assert losses.Lnorm(2, "mine", "auto", 0, 1e-20, True).pnorm == 2
    assert float(losses.DummyLoss("auto", "mine")(y, z)) == pytest.approx(float(tf.reduce_mean(z)))
    with pytest.raises(KeyError):
        losses.reconstruction_loss({"name": "NoLoss"})


def test_a_model_file_of_the_original_alone_can_be_loaded(golden: Path, tmp_path: Path) -> None:
    shutil.copy(golden / "experiment" / "job" / "best_model.hdf5", tmp_path)
    alone, step = load_model_from_directory(tmp_path)
    known, epochs = load_model_from_directory(golden / "experiment")

    assert (step, epochs) == (0, 8)
    for one, other in zip(alone.weights, known.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    random = np.random.default_rng(0).normal(size=(4, 1500)).astype(np.float32)
    batch = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    for side in ("encoder", "decoder"):
        inputs = [random if side == "encoder" else random[:, :8], batch]
        for one, other in zip(getattr(alone, side)(inputs), getattr(known, side)(inputs), strict=True):
            np.testing.assert_allclose(one, other)


def test_an_empty_folder_holds_no_model(tmp_path: Path) -> None:
    assert load_model_from_directory(tmp_path) == (None, 0)


def test_the_steps_run_from_the_folder_of_an_experiment(original_experiment: Path) -> None:
    model, parameters = setup_exp(original_experiment)
    assert isinstance(model, DISCERN)
    assert "training" in parameters

    for metadata in (["batch:celseq2"], [("batch", "celseq2")]):
        written = run_projection(original_experiment, metadata, None, False, False)
        assert [path.name for path in written] == ["projected_to_average_batch_celseq2.h5ad"]
    with pytest.raises(InvalidInputError, match="expected COLUMN:VALUE or COLUMN:, got 'batch'"):
        run_projection(original_experiment, ["batch"], None, False, False)


def test_the_runner_takes_a_step_by_name_and_folders(original_experiment: Path) -> None:
    results = DISCERNRunner(gpus=[])("project", [original_experiment], {"metadata": ["batch:celseq2"]})

    (written,) = results.values()
    assert [path.name for path in written] == ["projected_to_average_batch_celseq2.h5ad"]
    with pytest.raises(UnknownNameError, match=r"no step 'projekt' .did you mean 'project'"):
        DISCERNRunner()("projekt", [original_experiment])


def _fails(folder: Path) -> None:
    raise InvalidInputError(f"{folder}: nothing to do")


def _notes(folder: Path, text: str) -> None:
    (folder / "note").write_text(text)


def test_one_experiment_with_a_gpu_of_a_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gpus = [3]

    assert run_exp_multiprocess(tmp_path, gpus, _notes, {"text": "done"}) == 0
    assert (tmp_path / "note").read_text() == "done"
    assert gpus == [3]
    assert run_exp_multiprocess(tmp_path, [], _fails) == 1
    assert "nothing to do" in caplog.text


def test_training_from_the_folder_takes_other_cells(original_experiment: Path) -> None:
    parameters = original_experiment / "parameters.json"
    parameters.write_text(parameters.read_text().replace('"max_steps": 8', '"max_steps": 9'))
    other = shutil.copytree(original_experiment, original_experiment.parent / "other")

    written = run_train(original_experiment, other)

    assert (original_experiment / "job" / "last_model.h5") in written


def test_create_model_has_the_documented_outputs(small: DISCERN) -> None:
    small.build_model(n_genes=12, n_labels=2, scale=100)
    model = create_model(small.encoder, small.decoder, 100.0, "mine")
    inputs: dict[str, Any] = {
        "input_data": np.zeros((2, 12), np.float32),
        "batch_input_enc": np.eye(2, dtype=np.float32),
        "batch_input_dec": np.eye(2, dtype=np.float32),
    }

    assert model.name == "mine"
    assert set(model(inputs)) >= {"decoder_counts", "decoder_dropouts", "mmdpp", "sigma_regularization"}
