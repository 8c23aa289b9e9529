"""The documented Python API of networks, losses, callbacks and the estimator, item by item."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import anndata as ad
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from scipy import sparse

import discern
from discern.data.processed import DISCERNData
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, UnsupportedError, UserError
from discern.estimators import callbacks, customlayers, losses, run_exp, utilities_wae
from discern.metrics.two_sample import mmd_loss
from discern.online_learning import save_data, update_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

RANDOM = np.random.default_rng(0)
CELLS = RANDOM.random((7, 1500)).astype(np.float32)
LABELS = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1, 1]]
CODES = RANDOM.normal(size=(7, 3)).astype(np.float32)
TRUE = tf.constant([[1.0, 2.0], [0.0, 0.0]])
PREDICTED = tf.constant([[1.5, 2.0], [3.0, 0.0]])


def small(**arguments: Any) -> discern.DISCERN:
    side = {"layers": [8], "norm_type": ["conditionallayernorm"], "regularization": 0.0}
    given = {"latent_dim": 3, "encoder": side, "decoder": side, "seed": 1, "weighting_decoder_dropout": 1e4}
    return discern.DISCERN(**given | arguments)


@pytest.fixture(scope="module")
def data(golden: Path) -> DISCERNData:
    return DISCERNData.from_folder(golden / "experiment", 32)


@pytest.fixture(scope="module")
def experiment(golden: Path) -> dict[str, Any]:
    parameters: dict[str, Any] = json.loads((golden / "experiment" / "parameters.json").read_text())
    return parameters


@pytest.fixture(scope="module")
def model(data: DISCERNData) -> discern.DISCERN:
    built = small()
    built.prepare(data)
    return built


def one_line(error: BaseException) -> bool:
    return isinstance(error, UserError) and "\n" not in str(error)


# --- the estimator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda model, data, path: model.encoder,
        lambda model, data, path: model.decoder,
        lambda model, data, path: model.compile(keras.optimizers.Adam()),
        lambda model, data, path: model.generate_latent_codes(CELLS, LABELS, 2),
        lambda model, data, path: model.generate_cells_from_latent(CODES, LABELS, 2),
        lambda model, data, path: model.reconstruct(data, "batch", "celseq2"),
        lambda model, data, path: model.project_to_metadata(data, [("batch", "celseq2")], path),
    ],
)
def test_what_is_not_built_is_no_attribute(call: Callable[..., Any], data: DISCERNData, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="call build_model, restore_model or training first") as caught:
        call(small(), data, tmp_path)
    assert one_line(caught.value)


def test_attributes_can_be_set() -> None:
    built, other = small(), small()
    built.build_model(12, 2, 10.0)
    assert (other.wae_model, other.start_step) == (None, 0)

    other.wae_model = built.wae_model
    other.start_step = 4

    assert other.wae_model is built.wae_model
    assert other.start_step == 4
    assert other.encoder is built.encoder


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_model_without_such_a_part_is_told(side: str) -> None:
    other = small()
    other.wae_model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])  # type: ignore[assignment]

    with pytest.raises(ValueError, match=side):
        getattr(other, side)


@pytest.mark.parametrize("lacking", ["model", "training"])
def test_sections_that_are_lacking_are_key_errors(experiment: dict[str, Any], lacking: str) -> None:
    with pytest.raises(KeyError, match=lacking):
        discern.DISCERN.from_json({key: value for key, value in experiment.items() if key != lacking})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"reconstruction_loss": {"delta": 9}}, KeyError),
        ({"reconstruction_loss": {"name": "NoLoss"}}, KeyError),
        ({"optimizer": {"learning_rate": 1e-3}}, KeyError),
        ({"optimizer": {"algorithm": "tensorflow.keras.optimizers.Adam", "rate": 9}}, ValueError),
        ({"encoder": {"layer": [3]}}, KeyError),
        ({"crossentropy": {"smoothing": 1}}, KeyError),
        ({"activation_fn": "reluu"}, ValueError),
        ({"output_fn": "nope"}, ValueError),
        ({"precision": "float99"}, ValueError),
        ({"latent_dim": 0}, ValueError),
        ({"latent_dim": "3"}, ValueError),
        ({"encoder": {"layers": [8], "norm_type": ["nonorm"]}}, NotImplementedError),
    ],
)
def test_parameters_that_cannot_be_are_told_in_a_line(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        small(**arguments).build_model(3, 2, 10)
    assert one_line(caught.value)


@pytest.mark.parametrize("sizes", [("3", 2, 10), (3.5, 2, 10), (3, 2, float("nan")), (3, None, 10)])
def test_sizes_of_a_network_are_whole_numbers(sizes: tuple[Any, Any, Any]) -> None:
    with pytest.raises(InvalidInputError, match="expected a positive"):
        small().build_model(*sizes)


def test_compile_takes_an_optimiser_and_a_scale(model: discern.DISCERN) -> None:
    model.compile(keras.optimizers.Adam(1e-3), 15000.0)
    model.compile(optimizer="adam", scale=3)
    with pytest.raises(InvalidInputError, match="get_optimizer"):
        model.compile("adamm")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "counts",
    [
        CELLS,
        tf.constant(CELLS),
        tf.Variable(CELLS),
        CELLS.astype(np.float64),
        CELLS.astype(np.float16),
        (CELLS * 3).astype(int),
        sparse.csr_matrix(CELLS),
        sparse.csc_array(CELLS),
        pd.DataFrame(CELLS),
        CELLS.tolist(),
    ],
    ids=lambda counts: type(counts).__name__,
)
def test_cells_of_every_kind_are_encoded(model: discern.DISCERN, counts: Any) -> None:
    found = model.generate_latent_codes(counts, tf.constant(LABELS), 3)

    assert isinstance(found, tuple)
    for part in found:
        assert (type(part), part.shape, part.dtype) == (np.ndarray, (7, 3), np.float32)
    again, _ = model.generate_latent_codes(counts=counts, batch_labels=LABELS.tolist(), batch_size=100)
    np.testing.assert_allclose(found[0], again, atol=1e-5)


@pytest.mark.parametrize("codes", [CODES, tf.constant(CODES), CODES.tolist(), CODES.astype(np.float64)])
@pytest.mark.parametrize("labels", [LABELS, tf.constant(LABELS), np.full((7, 2), 0.5)])
def test_codes_of_every_kind_are_decoded(model: discern.DISCERN, codes: Any, labels: Any) -> None:
    found = model.generate_cells_from_latent(latent_codes=codes, output_batch_labels=labels, batch_size=3)

    assert isinstance(found, tuple)
    for part in found:
        assert (type(part), part.shape, part.dtype) == (np.ndarray, (7, 1500), np.float32)
    assert ((found[1] >= 0) & (found[1] <= 1)).all()


def test_no_cells_are_encoded_and_decoded_to_none(model: discern.DISCERN) -> None:
    assert [part.shape for part in model.generate_latent_codes(CELLS[:0], LABELS[:0], 4)] == [(0, 3)] * 2
    assert [part.shape for part in model.generate_cells_from_latent(CODES[:0], LABELS[:0], 4)] == [(0, 1500)] * 2


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.generate_latent_codes(CELLS[:, :10], LABELS, 3),
        lambda model: model.generate_latent_codes(CELLS, LABELS[:3], 3),
        lambda model: model.generate_latent_codes(CELLS, np.eye(3)[[0] * 7], 3),
        lambda model: model.generate_latent_codes(CELLS, np.zeros(7), 3),
        lambda model: model.generate_latent_codes(CELLS, LABELS, 0),
        lambda model: model.generate_cells_from_latent(CODES[:, :2], LABELS, 3),
        lambda model: model.generate_cells_from_latent(CODES, LABELS[:2], 3),
        lambda model: model.generate_cells_from_latent(CODES, np.eye(3)[[0] * 7], 3),
        lambda model: model.generate_cells_from_latent(CODES, LABELS, 0),
    ],
)
def test_shapes_that_do_not_fit_are_told_in_a_line(model: discern.DISCERN, call: Callable[..., Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"expected .* got"):
        call(model)


def test_training_takes_its_arguments_by_place_and_returns_numbers(data: DISCERNData) -> None:
    trained = small()

    found = trained.training(data, [keras.callbacks.TerminateOnNaN()], None, 1)

    assert {"loss", "val_loss"} <= set(found)
    assert {type(value) for value in found.values()} == {float}
    assert trained.start_step == 1


@pytest.mark.parametrize(
    "arguments", [{"callbacks": ["none"]}, {"max_steps": 5.5}, {"max_steps": 0}, {"savepath": "model.keras"}]
)
def test_arguments_of_a_training_are_checked(data: DISCERNData, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="expected"):
        small().training(data, **arguments)


@pytest.mark.parametrize("savepath", ["job", "my.hdf5"])
def test_what_training_saves_is_restored_and_loaded(data: DISCERNData, tmp_path: Path, savepath: str) -> None:
    trained = small(output_fn="softplus")
    trained.training(data, savepath=tmp_path / "made" / savepath, max_steps=1)
    folder = tmp_path / "made" / savepath if savepath == "job" else tmp_path / "made"

    restored = small(output_fn="softplus")
    restored.restore_model(folder)
    loaded, step = utilities_wae.load_model_from_directory(folder)

    assert restored.wae_model is not None
    assert restored.wae_model.compiled
    assert (restored.start_step, step) == (1, 1)
    assert isinstance(loaded, keras.Model)
    assert loaded.compiled
    inputs = {"input_data": CELLS, "batch_input_enc": LABELS, "batch_input_dec": LABELS[::-1]}
    for of_file, of_training in ((loaded, trained.wae_model), (restored.wae_model, trained.wae_model)):
        for name in ("decoder_counts", "decoder_dropouts"):
            np.testing.assert_allclose(of_file(inputs)[name], of_training(inputs)[name], atol=1e-6)  # type: ignore[misc]
    if savepath != "job":
        restored.restore_model(folder / savepath)
        assert restored.start_step == 1


def test_a_model_of_functions_without_names_needs_its_parameters(data: DISCERNData, tmp_path: Path) -> None:
    small(activation_fn=lambda x: tf.nn.relu(x)).training(data, savepath=tmp_path / "job" / "m.h5", max_steps=1)

    with pytest.raises(MissingFileError, match=r"parameters\.json: not found; it describes the network"):
        utilities_wae.load_model_from_directory(tmp_path / "job")


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "best_model.hdf5").write_bytes(b"nothing")
    for call in (small().restore_model, utilities_wae.load_model_from_directory):
        with pytest.raises(InvalidInputError, match="not a complete model file"):
            call(tmp_path)
    with pytest.raises(FileNotFoundError, match="no trained model"):
        small().restore_model(tmp_path / "nowhere")
    assert utilities_wae.load_model_from_directory(tmp_path / "nowhere") == (None, 0)


@pytest.mark.parametrize("place", ["experiment", "experiment/job"])
def test_the_original_s_model_has_its_epochs(experiment: dict[str, Any], golden: Path, place: str) -> None:
    estimator = discern.DISCERN.from_json(jsondata=experiment)
    estimator.restore_model(directory=golden / place)
    assert estimator.start_step == 8


@pytest.mark.parametrize(
    "arguments", [("batch", "celseq2"), ("batch", "celseq2", True), (None, None), ("batch", None), ("batch", "")]
)
def test_reconstruct_returns_cells_with_latent_codes(
    model: discern.DISCERN, data: DISCERNData, arguments: tuple[Any, ...]
) -> None:
    found = model.reconstruct(data, *arguments)

    assert type(found) is ad.AnnData
    assert found.obsm["X_DISCERN"].shape == (data.n_obs, 3)
    assert ("X_DISCERN_sigma" in found.obsm) == (len(arguments) == 3)
    assert found.var_names.equals(data.var_names)
    assert {"estimated_counts", "estimated_dropouts"} <= set(found.layers)


@pytest.mark.parametrize(
    ("column", "value", "error"),
    [("nope", "x", KeyError), ("batch", "nope", ValueError), ("batch", 3, ValueError)],
)
def test_unknown_targets_are_told(
    model: discern.DISCERN, data: DISCERNData, tmp_path: Path, column: str, value: Any, error: type[Exception]
) -> None:
    for call in (
        lambda: model.reconstruct(data, column, value),
        lambda: model.project_to_metadata(data, [(column, value)], tmp_path / "projected"),
    ):
        with pytest.raises(error, match=r"there is no|has no value") as caught:
            call()
        assert one_line(caught.value)
    assert not (tmp_path / "projected").exists()


def test_no_cells_cannot_be_reconstructed(model: discern.DISCERN, data: DISCERNData) -> None:
    with pytest.raises(InvalidInputError, match="expected cells to reconstruct, got none"):
        model.reconstruct(data[:0], "batch", "celseq2")


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ([("batch", "celseq2")], "projected_to_average_batch_celseq2"),
        ([["batch", "celseq2"]], "projected_to_average_batch_celseq2"),
        (["batch:celseq2"], "projected_to_average_batch_celseq2"),
        ("batch:celseq2", "projected_to_average_batch_celseq2"),
        ([("batch", "")], "projected_to_average_batch"),
        ([], "unprojected"),
        (None, "unprojected"),
    ],
)
def test_projections_have_their_documented_names(
    model: discern.DISCERN, data: DISCERNData, tmp_path: Path, metadata: Any, name: str
) -> None:
    model.project_to_metadata(input_data=data, metadata=metadata, save_path=str(tmp_path), store_sigmas=True)

    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.h5ad"]
    assert "X_DISCERN_sigma" in ad.read_h5ad(tmp_path / f"{name}.h5ad").obsm


# --- callbacks -------------------------------------------------------------------------------------------------------


def stopped_after(callback: keras.callbacks.Callback, validation_losses: Sequence[float]) -> int | None:
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    network.compile("sgd", "mse")
    callback.set_model(network)
    callback.on_train_begin()
    for epoch, loss in enumerate(validation_losses):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {"val_loss": loss})
        if network.stop_training:
            return epoch
    return None


def test_early_stopping_waits_for_its_delay() -> None:
    assert stopped_after(callbacks.DelayedEarlyStopping(patience=2), [1, 2, 3, 4]) == 2
    assert stopped_after(callbacks.DelayedEarlyStopping(), [1, 2]) == 1
    assert stopped_after(callbacks.DelayedEarlyStopping(3, patience=2), [0, 0, 0, 4, 5, 6, 7]) == 5


def test_early_stopping_takes_its_arguments_by_place() -> None:
    made = callbacks.DelayedEarlyStopping(2, "loss", 0.1, 3, 0, "min", 5.0, True)

    assert (made.delay, made.monitor, made.patience, made.verbose) == (2, "loss", 3, 0)
    assert (abs(made.min_delta), made.baseline, made.restore_best_weights) == (0.1, 5.0, True)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"patiens": 1}, r"no argument 'patiens' .did you mean 'patience'"),
        ({"delay": 1, "start_from_epoch": 1}, "give one"),
        ({"mode": "down"}, "expected the mode auto, min or max"),
        ({"patience": -1}, "expected 0 or more epochs"),
    ],
)
def test_limits_that_cannot_be_are_told(limits: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        callbacks.create_callbacks(limits, tmp_path)


def test_the_delay_has_its_name_in_keras_too(tmp_path: Path) -> None:
    made = callbacks.create_callbacks({"patience": 1, "start_from_epoch": 3}, tmp_path)[-1]
    assert isinstance(made, callbacks.DelayedEarlyStopping)
    assert made.delay == 3


def test_callbacks_are_a_list_with_pictures_if_there_are_cells(data: DISCERNData, tmp_path: Path) -> None:
    plain = ad.AnnData(data.X.copy(), obs=data.obs.copy(), var=data.var.copy())
    for cells in (data, plain):
        made = callbacks.create_callbacks({"patience": 3, "min_delta": 0.1, "delay": 5}, tmp_path, cells, 10, 2, 7)
        assert isinstance(made, list)
        (pictures,) = (callback for callback in made if isinstance(callback, callbacks.VisualisationCallback))
        assert (pictures.freq, pictures.batch_size) == (7, 10)


def test_pictures_are_of_annotated_cells(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="expected cells as AnnData, got ndarray"):
        callbacks.VisualisationCallback(tmp_path, np.ones((3, 2)), 3)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="expected an obs column 'batch'"):
        callbacks.VisualisationCallback(tmp_path, ad.AnnData(np.ones((3, 2))), 3)


HOOKS = ["on_batch_begin", "on_batch_end"] + [
    f"on_{part}_batch_{when}" for part in ("predict", "test", "train") for when in ("begin", "end")
]


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_every_callback_are_there(hook: str, data: DISCERNData, tmp_path: Path) -> None:
    for callback in (callbacks.DelayedEarlyStopping(), callbacks.VisualisationCallback(tmp_path, data, 5)):
        getattr(callback, hook)(0)
        getattr(callback, hook)(batch=0, logs=None)


# --- layers ----------------------------------------------------------------------------------------------------------


def test_noise_is_added_in_training_only() -> None:
    inputs = (tf.constant(CODES), tf.zeros((7, 3)))
    call = customlayers.GaussianReparametrization.call
    layer = customlayers.GaussianReparametrization()

    for still in (call(inputs), call(inputs, training=False), layer(inputs)):
        np.testing.assert_array_equal(still, CODES)
    for noisy in (call(inputs, training=True), layer(inputs, training=True)):
        assert not np.allclose(noisy, CODES)
        assert noisy.shape == (7, 3)


@pytest.mark.parametrize(
    "layer",
    [
        customlayers.GaussianReparametrization(name="mine"),
        customlayers.MMDPP(5.0, name="mine"),
        customlayers.SigmaRegularization(name="mine"),
    ],
)
def test_layers_are_made_again_from_their_configuration(layer: keras.layers.Layer) -> None:
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.name == "mine"


@pytest.mark.parametrize("layer", [customlayers.GaussianReparametrization(), customlayers.MMDPP(5.0)])
def test_layers_are_built_for_two_inputs_of_one_shape(layer: keras.layers.Layer) -> None:
    layer.build((tf.TensorShape([None, 3]), tf.TensorShape([None, 3])))
    with pytest.raises(InvalidInputError, match="of one shape"):
        layer.build(((None, 3), (None, 4)))


def test_penalties_are_one_number_and_one_for_each_cell() -> None:
    layer = customlayers.MMDPP(scale=5.0)
    assert layer.scale == layer.get_config()["scale"] == 5.0
    for found in (
        layer((CODES, 0 * CODES)),
        layer.call((tf.constant(CODES), tf.zeros((7, 3))), training=True),
        customlayers.mmdpp_penalty(CODES, CODES, 0 * CODES, total_number_cells=100, latent_dim=3),
    ):
        assert found.shape == ()
    sigma = customlayers.SigmaRegularization().call(tf.constant([[1.0, -2.0, 3.0]]), training=True)
    np.testing.assert_allclose(sigma, [6.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: customlayers.mmdpp_penalty(CODES, CODES, CODES, 100, 4),
        lambda: customlayers.mmdpp_penalty(CODES, CODES[:, :2], CODES, 100, 3),
        lambda: customlayers.MMDPP(0),
        lambda: customlayers.condlayernorm(keras.Input((4,)), keras.Input((2,)), 5),
        lambda: customlayers.condlayernorm(keras.Input((4,)), keras.Input((2,)), 4, {"l2": 0.0}),
    ],
)
def test_layers_that_cannot_be_are_told(call: Callable[[], Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert one_line(caught.value)


@pytest.mark.parametrize("regularization", [None, {}, {"name": "tensorflow.keras.regularizers.L1L2", "l2": 0.0}])
def test_condlayernorm_keeps_the_shape(regularization: dict[str, Any] | None) -> None:
    found = customlayers.condlayernorm(keras.Input((4,)), keras.Input((2,)), 4, regularization)
    assert found.shape == (None, 4)


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, list, tf.constant])
def test_losses_take_true_values_of_every_kind(kind: Any) -> None:
    numbers = TRUE.numpy()
    true = numbers.tolist() if kind is list else tf.constant(numbers) if kind is tf.constant else numbers.astype(kind)
    for predicted in (PREDICTED, PREDICTED.numpy(), PREDICTED.numpy().astype(np.float64)):
        np.testing.assert_allclose(losses.HuberLoss().call(true, predicted), [0.0625, 1.25])
        np.testing.assert_allclose(losses.Lnorm(1).call(true, predicted), [3.5, 0])
        expected = [-np.log([0.5, 0.5]).mean(), -np.log([0.5, 0.5]).mean()]
        found = losses.MaskedCrossEntropy(0.0).call(true, 0 * predicted + 0.5)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        losses.DummyLoss(),
        losses.HuberLoss(3.0),
        losses.Lnorm(2, axis=1, use_root=True, epsilon=1e-3),
        losses.MaskedCrossEntropy(np.array([0.0, 1.0]), 1e-3, 0.2, label_smoothing=0.1),
    ],
)
def test_losses_are_made_again_from_their_configuration(loss: keras.losses.Loss) -> None:
    config = loss.get_config()
    assert json.loads(json.dumps(config)) == config
    assert type(loss).from_config(config).get_config() == config
    again = keras.losses.deserialize(keras.losses.serialize(loss), custom_objects=losses.getmembers())
    assert again.get_config() == config


def test_losses_have_their_documented_defaults() -> None:
    assert (losses.HuberLoss().delta, losses.HuberLoss().name, losses.DummyLoss().name) == (1.0, "huber_loss", "Dummy")
    norm = losses.Lnorm(1)
    assert (norm.pnorm, norm.name, norm.axis, norm.epsilon, norm.use_root) == (1, "LNorm", 0, 1e-20, False)
    assert losses.MaskedCrossEntropy(np.zeros(2)).zeros_eps == 1e-6


@pytest.mark.parametrize("reduction", ["auto", "none", "sum", "sum_over_batch_size", None])
def test_losses_are_reduced_as_asked(reduction: str | None) -> None:
    expected = {"auto": 0.65625, "sum_over_batch_size": 0.65625, "sum": 1.3125}.get(str(reduction), [0.0625, 1.25])
    np.testing.assert_allclose(losses.HuberLoss(1.0, reduction)(TRUE, PREDICTED), expected)
    assert np.isfinite(losses.MaskedCrossEntropy(0.0, reduction=reduction)(TRUE, tf.sigmoid(PREDICTED))).all()


def test_detection_may_be_predicted_as_logits() -> None:
    of_logits = losses.MaskedCrossEntropy(0.0, from_logits=True)(TRUE, PREDICTED)
    np.testing.assert_allclose(of_logits, losses.MaskedCrossEntropy(0.0)(TRUE, tf.sigmoid(PREDICTED)), rtol=1e-5)
    with pytest.raises(UnknownNameError, match=r"no argument 'from_logit' .did you mean 'from_logits'"):
        losses.MaskedCrossEntropy(0.0, from_logit=True)


@pytest.mark.parametrize(
    ("loss_type", "error"),
    [
        ({"name": "Nope"}, KeyError),
        ({"name": "DummyLos"}, KeyError),
        ({}, KeyError),
        ({"name": None}, KeyError),
        ({"name": 3}, KeyError),
        ("nope", KeyError),
        (None, ValueError),
        ({"name": "HuberLoss", "weight": 9.0}, ValueError),
        ({"name": "Lnorm"}, ValueError),
    ],
)
def test_losses_that_are_none_are_told(loss_type: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        losses.reconstruction_loss(loss_type)
    assert one_line(caught.value)


def test_losses_are_made_from_dictionaries_that_stay_as_they_are() -> None:
    given = {"name": "HuberLoss", "delta": 9.0}
    assert losses.reconstruction_loss(loss_type=given).delta == 9.0
    assert given == {"name": "HuberLoss", "delta": 9.0}
    assert losses.reconstruction_loss({"name": "Lnorm", "p": 2}).pnorm == 2
    assert isinstance(losses.reconstruction_loss({"name": "MeanSquaredError"}), keras.losses.MeanSquaredError)


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [tf.nn.relu, "relu", "tensorflow.nn.relu", "tensorflow_addons.activations.mish"])
def test_encoders_take_activations_by_name_or_as_functions(activation: Any) -> None:
    made = utilities_wae.create_encoder(3, [8, 4], ["layernorm", "conditionalbatchnorm"], activation, 10, 2, 0.1)
    assert made.name == "encoder"
    assert [tensor.shape for tensor in made.inputs] == [(None, 10), (None, 2)]
    assert [tensor.shape for tensor in made.outputs] == [(None, 3)] * 2


@pytest.mark.parametrize(
    "output", [None, "softmax", "LSN", "sigsoftmax", "softplus", "tensorflow.nn.softplus", tf.nn.relu]
)
def test_decoders_take_output_functions_by_name_or_as_functions(output: Any) -> None:
    made = utilities_wae.create_decoder(3, 10, [8], ["layernorm"], tf.nn.relu, output, 2, 0.0, 1000.0)
    assert made.name == "decoder"
    assert [tensor.shape for tensor in made.outputs] == [(None, 10)] * 2


@pytest.mark.parametrize("norm", ["nonorm", None, "conditional"])
def test_unknown_normalisations_are_not_implemented(norm: Any) -> None:
    with pytest.raises(UnsupportedError, match="is not one of"):
        utilities_wae.create_encoder(3, [8], [norm], "relu", 10, 2, 0.1)
    with pytest.raises(NotImplementedError):
        utilities_wae.create_decoder(3, 10, [8], [norm], "relu", None, 2, 0.1)


def test_a_model_is_made_of_parts_that_fit() -> None:
    encoder = utilities_wae.create_encoder(3, [8], ["layernorm"], "relu", 10, 2, 0.1)
    decoder = utilities_wae.create_decoder(3, 10, [8], ["layernorm"], "relu", None, 2, 0.0)
    made = utilities_wae.create_model(encoder, decoder, 100.0)

    assert made.name == "WAE"
    assert made.get_layer("encoder") is encoder
    assert made.get_layer("decoder") is decoder
    kinds = {type(layer).__name__ for layer in made.layers}
    assert {"MMDPP", "SigmaRegularization", "GaussianReparametrization"} <= kinds
    other = utilities_wae.create_decoder(4, 10, [8], ["layernorm"], "relu", None, 2, 0.0)
    with pytest.raises(InvalidInputError, match="codes of 3 dimensions for 2 batches, the decoder takes 4 and 2"):
        utilities_wae.create_model(encoder, other, 100.0)


# --- running, and what is left ---------------------------------------------------------------------------------------


def _note(exp_folder: Path, **arguments: Any) -> None:
    (exp_folder / "note").write_text(str(arguments))


def test_experiments_run_with_folders_as_text_and_steps_by_name(original_experiment: Path) -> None:
    assert run_exp.run_exp_multiprocess(str(original_experiment), [0], _note, {"a": 1}) == 0  # type: ignore[arg-type]
    assert (original_experiment / "note").read_text() == "{'a': 1}"
    assert run_exp.run_exp_multiprocess(exp_folder=original_experiment, available_gpus=None, func="train") == 0
    assert run_exp.run_exp_multiprocess(original_experiment, [], "trane") == 1


def test_a_runner_takes_a_parameter_file(original_experiment: Path) -> None:
    assert run_exp.DISCERNRunner(False, [])("train", original_experiment / "parameters.json") == {"original": []}


def test_records_of_another_folder_are_of_the_experiment_s_cells(original_experiment: Path, tmp_path: Path) -> None:
    from discern.data.records import write_records

    data = DISCERNData.from_folder(original_experiment, 32)
    write_records(data, tmp_path / "fast")
    assert run_exp.run_train(original_experiment, tmp_path / "fast") == []
    write_records(data[:100].copy(), tmp_path / "other")
    with pytest.raises(InvalidInputError, match="expected record files of the experiment's cells"):
        run_exp.run_train(original_experiment, input_path=tmp_path / "other")


@pytest.mark.parametrize("given", [["batch", "b"], ("batch", "b"), "batch:b"])
def test_checked_metadata_is_a_pair(given: Any) -> None:
    assert run_exp.CheckMetaData(pd.DataFrame({"batch": ["a", "b"]})).check(metadata_tuple=given) == ("batch", "b")


def test_metadata_is_checked_in_a_data_frame(data: DISCERNData) -> None:
    with pytest.raises(InvalidInputError, match="expected a data frame, the obs of the cells, got DISCERNData"):
        run_exp.CheckMetaData(data)  # type: ignore[arg-type]
    for pair in (["batch"], ["a", "b", "c"]):
        with pytest.raises(InvalidInputError, match="expected COLUMN:VALUE"):
            run_exp.CheckMetaData(data.obs).check(pair)


def test_distances_are_numbers_of_finite_cells() -> None:
    first, second = RANDOM.normal(size=(50, 4)), RANDOM.normal(1, 1, size=(60, 4))
    assert type(mmd_loss(random_cells=tf.constant(first), valid_cells=pd.DataFrame(second), sigma=4)) is float
    first[3, 2] = np.nan
    with pytest.raises(InvalidInputError, match="expected finite numbers"):
        mmd_loss(first, second, 4.0)
    with pytest.raises(InvalidInputError, match="expected finite numbers"):
        mmd_loss(sparse.csr_matrix(first), second, 4.0)


def test_saved_cells_were_processed(data: DISCERNData, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"data: expected processed cells, .* give recipe\.sc_raw"):
        save_data(tmp_path / "both.h5ad", ad.AnnData(np.ones((2, 2))), data)


def test_a_model_is_updated_in_place() -> None:
    def network(labels: int) -> keras.Model:
        return keras.Sequential([keras.Input((labels,)), keras.layers.Dense(2), keras.layers.Dense(1)])

    old, new = network(2), network(3)
    assert update_model(old_model=old, new_model=new, freeze_unchanged=True) is new
    np.testing.assert_array_equal(new.layers[0].kernel[:2], old.layers[0].kernel)
    assert [layer.trainable for layer in new.layers] == [True, False]
    with pytest.raises(InvalidInputError, match="do not fit"):
        update_model(network(3), network(2))


def test_one_model_file_of_several_is_the_newest(golden: Path, tmp_path: Path) -> None:
    shutil.copy(golden / "experiment" / "job" / "best_model.hdf5", tmp_path / "named.hdf5")
    loaded, step = utilities_wae.load_model_from_directory(str(tmp_path))  # type: ignore[arg-type]
    assert isinstance(loaded, keras.Model)
    assert step == 0
