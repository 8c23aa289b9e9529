from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from discern.errors import InvalidInputError, UnknownNameError, UnsupportedError
from discern.model import checkpoint
from discern.model.restoring import load_model_from_directory
from discern.networks.autoencoder import WAE, create_decoder, create_encoder
from discern.networks.optimizers import Lookahead, RectifiedAdam
from tests.support.conformance import check_modes
from tests.support.networks import (
    compile_model,
    dataset,
    make_model,
    make_original_model,
    original_cells,
    random_cells,
)

PARTS = ["decoder_counts", "decoder_dropouts", "mmdpp", "sigma_regularization"]


def encoder(**changed: Any) -> keras.Model:
    arguments = {
        "latent_dim": 4,
        "enc_layers": [16, 8],
        "enc_norm_type": ["conditionallayernorm"] * 2,
        "activation_fn": "mish",
        "input_dim": 20,
        "n_labels": 2,
        "regularization": 0.4,
    }
    return create_encoder(**{**arguments, **changed})


def decoder(**changed: Any) -> keras.Model:
    arguments = {
        "latent_dim": 4,
        "output_cells_dim": 20,
        "dec_layers": [8, 16],
        "dec_norm_type": ["conditionallayernorm"] * 2,
        "activation_fn": "mish",
        "output_fn": None,
        "n_labels": 2,
        "regularization": 0.0,
    }
    return create_decoder(**{**arguments, **changed})


def labelled(array: np.ndarray) -> list[np.ndarray]:
    return [array, np.eye(2, dtype="float32")[np.arange(len(array)) % 2]]


def test_encoder_layers() -> None:
    made = encoder(activation_fn="tensorflow_addons.activations.mish")
    shapes = {variable.path: tuple(variable.shape) for variable in made.weights}
    assert shapes == {
        "encoder_dense_0/kernel": (20, 16),
        "encoder_offset_0/kernel": (2, 16),
        "encoder_dense_1/kernel": (16, 8),
        "encoder_offset_1/kernel": (2, 8),
        "latent/kernel": (8, 4),
        "latent/bias": (4,),
        "sigma_enc/kernel": (8, 4),
        "sigma_enc/bias": (4,),
    }
    assert made.get_layer("sigma_enc").bias.numpy().tolist() == [-10] * 4
    assert made.get_layer("encoder_offset_0").kernel.numpy().any() == np.False_
    assert made.get_layer("encoder_dropout_1").rate == 0.4
    assert made.get_layer("encoder_activation_0").activation is keras.activations.mish


def test_first_block_by_hand() -> None:
    made = encoder(enc_layers=[16], enc_norm_type=["conditionallayernorm"])
    offsets = np.random.default_rng(1).normal(size=(2, 16)).astype("float32")
    made.get_layer("encoder_offset_0").kernel.assign(offsets)
    cells, labels = labelled(np.random.default_rng(0).normal(size=(6, 20)).astype("float32"))
    hidden = cells @ made.get_layer("encoder_dense_0").kernel.numpy()
    hidden = (hidden - hidden.mean(axis=1, keepdims=True)) / np.sqrt(hidden.var(axis=1, keepdims=True) + 1e-3)
    hidden = hidden + labels @ offsets
    hidden = hidden * np.tanh(np.log1p(np.exp(hidden)))
    latent, sigma = made([cells, labels])
    for head, output in (("latent", latent), ("sigma_enc", sigma)):
        layer = made.get_layer(head)
        np.testing.assert_allclose(output, hidden @ layer.kernel.numpy() + layer.bias.numpy(), rtol=1e-4, atol=1e-5)


def test_decoder_outputs() -> None:
    counts, dropouts = decoder()(labelled(np.ones((3, 4), "float32")))
    assert counts.shape == dropouts.shape == (3, 20)
    assert (np.asarray(dropouts) > 0).all()
    assert (np.asarray(dropouts) < 1).all()
    assert not any(layer.name.startswith("decoder_offset") for layer in decoder(dec_norm_type=["layernorm"] * 2).layers)


@pytest.mark.parametrize("output_fn", ["softmax", "LSN", "sigsoftmax"])
def test_output_functions_with_a_library_size(output_fn: str) -> None:
    counts, _ = decoder(output_fn=output_fn, output_lsn=500)(labelled(np.ones((3, 4), "float32")))
    np.testing.assert_allclose(np.expm1(counts).sum(axis=1), 500, rtol=1e-4)
    with pytest.raises(InvalidInputError, match=f"output_fn '{output_fn}' needs the library size, input_ds.scale.LSN"):
        decoder(output_fn=output_fn)


@pytest.mark.parametrize("output_fn", ["softplus", "tensorflow.keras.activations.softplus", keras.activations.softplus])
def test_output_function_of_keras(output_fn: Any) -> None:
    counts, _ = decoder(output_fn=output_fn)(labelled(np.ones((3, 4), "float32")))
    assert (np.asarray(counts) > 0).all()


def test_batch_norm_learns_its_statistics() -> None:
    model = make_model(norm="conditionalbatchnorm")
    before = [variable.numpy() for variable in model.non_trainable_weights]
    assert len(before) == 8
    compile_model(model, RectifiedAdam()).fit(random_cells().batch(32), verbose=0, shuffle=False)
    assert all((old != new.numpy()).any() for old, new in zip(before, model.non_trainable_weights, strict=True))


@pytest.mark.parametrize("part", [lambda norm: encoder(enc_norm_type=norm), lambda norm: decoder(dec_norm_type=norm)])
def test_unknown_norm(part: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"'layernom' is not one of .* \(did you mean 'layernorm'\?\)"):
        part(["layernorm", "layernom"])
    with pytest.raises(NotImplementedError, match="conditional"):
        part(["conditional", "layernorm"])
    with pytest.raises(InvalidInputError, match=r"2 layers .* need as many norm_type, not 1"):
        part(["layernorm"])


def test_unknown_activation_and_regularizer() -> None:
    with pytest.raises(InvalidInputError, match=r"there is no activation 'mich' \(did you mean 'mish'\?\)"):
        encoder(activation_fn="mich")
    with pytest.raises((InvalidInputError, UnknownNameError), match=r"os\.system"):
        encoder(activation_fn="os.system")
    with pytest.raises(InvalidInputError, match="there is no regulariser 'L12'"):
        encoder(conditional_regularization={"name": "L12"})
    with pytest.raises(InvalidInputError, match=r"cannot be made from {.l7.: 1}"):
        encoder(conditional_regularization={"name": "keras.regularizers.L2", "l7": 1})
    with pytest.raises(InvalidInputError, match="needs the key 'name'"):
        encoder(conditional_regularization={"l2": 0.5})


def test_activity_regularizer_is_part_of_the_loss() -> None:
    made = encoder(conditional_regularization={"name": "tensorflow.keras.regularizers.L1L2", "l2": 0.5})
    made.get_layer("encoder_offset_0").kernel.assign(np.full((2, 16), 2.0))
    model = WAE(made, decoder(), 100)
    compile_model(model, RectifiedAdam())
    logs = model.evaluate(random_cells().batch(64), verbose=0, return_dict=True)
    weighted = sum(model._compile_config.config["loss_weights"][part] * logs[f"{part}_loss"] for part in PARTS)
    assert logs["loss"] - weighted == pytest.approx(0.5 * 16 * 4, rel=0.01)


def test_model_inputs_and_outputs() -> None:
    model = make_model()
    assert list(model.input) == ["input_data", "batch_input_enc", "batch_input_dec"]
    assert list(model.output) == PARTS
    cells, labels = labelled(np.random.default_rng(0).normal(size=(6, 20)).astype("float32"))
    inputs = {"input_data": cells, "batch_input_enc": labels, "batch_input_dec": labels[::-1]}
    output = model(inputs)
    latent, sigma = model.encoder([cells, labels])
    counts, dropouts = model.decoder([latent, tf.constant(labels[::-1])])
    np.testing.assert_array_equal(output["decoder_counts"], counts)
    np.testing.assert_array_equal(output["decoder_dropouts"], dropouts)
    np.testing.assert_allclose(output["sigma_regularization"], 4 * np.abs(sigma).mean(axis=1), rtol=1e-5)
    assert (model(inputs, training=True)["decoder_counts"] != counts).numpy().any()
    assert model.predict(inputs, batch_size=3, verbose=0)["mmdpp"].shape == (2,)


def test_eager_graph_and_xla_agree() -> None:
    model = make_model()
    cells, labels = labelled(np.random.default_rng(0).normal(size=(6, 20)).astype("float32"))

    def parts(cells: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        output = model({"input_data": cells, "batch_input_enc": labels, "batch_input_dec": labels})
        return [output[part] for part in PARTS if part != "mmdpp"]

    check_modes(parts, tf.constant(cells), tf.constant(labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("dtype", [None, "mixed_bfloat16"])
def test_fit_lowers_the_loss(jit_compile: bool, dtype: str | None) -> None:
    model = compile_model(make_model(dtype=dtype), keras.optimizers.Adam(0.01), jit_compile=jit_compile)
    cells = random_cells().batch(32, drop_remainder=True)
    history = model.fit(cells, validation_data=cells, epochs=12, verbose=0, shuffle=False).history
    assert history.keys() == {
        f"{split}{name}" for split in ("", "val_") for name in ("loss", *(f"{part}_loss" for part in PARTS))
    }
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert all(variable.dtype == "float32" for variable in model.weights)
    outputs = model({name: value[:3] for name, value in next(iter(cells))[0].items()})
    assert {value.dtype for value in outputs.values()} == {tf.float32}


def test_xla_for_the_whole_step_is_for_gpus_and_on_request() -> None:
    model = compile_model(make_model(), RectifiedAdam(), jit_compile="auto")
    assert model.jit_compile is bool(tf.config.list_logical_devices("GPU"))
    assert compile_model(make_model(), RectifiedAdam(), jit_compile=True).jit_compile is True


def test_config_round_trip(tmp_path: Path) -> None:
    model = make_model(norm="conditionalbatchnorm", output_fn="softmax")
    again = WAE.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    again.set_weights(model.get_weights())
    cells, labels = labelled(np.random.default_rng(0).normal(size=(6, 20)).astype("float32"))
    inputs = {"input_data": cells, "batch_input_enc": labels, "batch_input_dec": labels}
    np.testing.assert_array_equal(again(inputs)["decoder_counts"], model(inputs)["decoder_counts"])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(inputs)["decoder_counts"], model(inputs)["decoder_counts"])


def test_losses_of_the_original(golden: Path, golden_json: dict) -> None:
    expression, labels, zeros = original_cells(golden / "experiment")
    model = make_original_model()
    checkpoint.load_weights(model, golden / "experiment" / "job" / "best_model.hdf5")
    compile_model(model, RectifiedAdam(), zeros)
    logs = model.evaluate(dataset(expression, labels).batch(220), verbose=0, return_dict=True)
    for part, wanted in golden_json["eval"].items():
        assert logs[f"{part}_loss"] == pytest.approx(wanted, rel=1e-5)
    total = 15000 * logs["decoder_counts_loss"] + 10000 * logs["decoder_dropouts_loss"] + 1500 * logs["mmdpp_loss"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


def test_two_replicas_train_together() -> None:
    script = """
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        import numpy as np
        from discern.estimators.optimizers import Lookahead, RectifiedAdam
        from tests.support.networks import compile_model, make_model, random_cells

        with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
            model = make_model(norm="conditionalbatchnorm", dropout=0.0)
            compile_model(model, Lookahead(RectifiedAdam(1e-5), sync_period=2))
        cells = random_cells().batch(32, drop_remainder=True)
        losses = model.fit(cells, epochs=6, verbose=0, shuffle=False).history["loss"]
        assert losses[-1] < losses[0], losses
        for variable in model.trainable_variables:
            one, other = (value.numpy() for value in variable.value.values)
            np.testing.assert_array_equal(one, other)
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("folder", ["", "job"])
def test_load_model_from_directory(folder: str, original_experiment: Path, golden: Path) -> None:
    model, epoch = load_model_from_directory(original_experiment / folder)
    assert epoch == 8
    expected = np.load(golden / "expected.npz")
    expression, labels, _ = original_cells(original_experiment)
    latent, sigma = model.encoder([expression, labels])
    np.testing.assert_allclose(latent, expected["X_DISCERN"], atol=1e-4)
    np.testing.assert_allclose(sigma, expected["X_DISCERN_sigma"], atol=1e-4)


def test_load_model_from_directory_without_model(tmp_path: Path) -> None:
    assert load_model_from_directory(tmp_path) == (None, 0)


def test_training_with_lookahead_and_a_schedule() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-5, 10, 0.9)
    model = compile_model(make_model(), Lookahead(RectifiedAdam(schedule)), jit_compile=True)
    losses = model.fit(random_cells().batch(32, drop_remainder=True), epochs=12, verbose=0, shuffle=False).history[
        "loss"
    ]
    assert losses[-1] < losses[0]
