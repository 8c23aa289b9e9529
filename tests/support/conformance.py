"""What every layer, loss, optimiser and model of the package must stand: one harness for all of them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def check_config(made: Any) -> Any:
    """An argument of `__init__` is an attribute and a key of the config; an equal object comes back from it.

    `dynamic` is an argument of the published layers that Keras 3 does not keep.
    """
    config = made.get_config()
    arguments = [
        parameter.name
        for parameter in inspect.signature(vars(type(made)).get("__init__", lambda self: None)).parameters.values()
        if parameter.name not in ("self", "dynamic") and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for argument in arguments:
        assert argument in config, f"{type(made).__name__}.get_config lacks {argument!r}"
        assert hasattr(made, argument), f"{type(made).__name__} has no attribute {argument!r}"
    again = type(made).from_config(made.get_config())
    assert _comparable(again.get_config()) == _comparable(config)
    registered = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert type(registered) is type(made)
    assert _comparable(registered.get_config()) == _comparable(config)
    return again


def check_modes(function: Callable[..., Any], *inputs: Any, rtol: float = 1e-5, atol: float = 1e-6) -> Any:
    """Eager, graph and XLA give the same; returns it."""
    eager = tf.nest.map_structure(np.asarray, function(*inputs))
    for jit_compile in (False, True):
        compiled = tf.function(function, jit_compile=jit_compile)(*inputs)
        tf.nest.map_structure(
            lambda wanted, found, mode=jit_compile: np.testing.assert_allclose(
                found, wanted, rtol=rtol, atol=atol, err_msg=f"jit_compile={mode}"
            ),
            eager,
            compiled,
        )
    return eager


def check_layer(layer: keras.layers.Layer, inputs: Any, tmp_path: Path) -> Any:
    """Config, modes (in inference), saving inside a model, and training of that model; returns the output."""
    check_config(layer)
    output = check_modes(lambda *tensors: layer(_one_or_list(tensors)), *_flat(inputs))
    symbols = [keras.Input(np.shape(value)[1:]) for value in _flat(inputs)]
    dense = [keras.layers.Dense(symbol.shape[-1])(symbol) for symbol in symbols]
    model = keras.Model(symbols, layer(_one_or_list(dense)))
    model.compile(optimizer=keras.optimizers.SGD(1e-3), loss=_mean_of_output, jit_compile=False)
    targets = np.zeros(len(_flat(inputs)[0]), dtype="float32")
    before = [variable.numpy() for variable in model.trainable_variables]
    # one batch: an output need not have an axis of cells
    history = model.train_on_batch(_flat(inputs), targets)
    assert np.isfinite(history).all()
    changed = [(old != new.numpy()).any() for old, new in zip(before, model.trainable_variables, strict=True)]
    assert any(changed), f"no gradient passes through {type(layer).__name__}"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    for old, new in zip(model.trainable_variables, loaded.trainable_variables, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())
    return output


def check_loss(loss: keras.losses.Loss, y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Config, modes with gradients, and one fit that lowers it; returns the loss."""
    again = check_config(loss)

    def value_and_gradient(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(y_true, y_pred)
        return value, tape.gradient(value, y_pred)

    value, gradient = check_modes(value_and_gradient, tf.constant(y_true), tf.constant(y_pred))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(again(y_true, y_pred), value)
    model = keras.Sequential([keras.layers.Dense(y_true.shape[-1], activation="sigmoid")])
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss, jit_compile=False)
    losses = model.fit(y_pred, y_true, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    return float(value)


def check_optimizer(optimizer: keras.optimizers.Optimizer, tmp_path: Path) -> None:
    """Config, modes, state through a save, replicas, and one fit."""
    check_config(optimizer)
    start = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    gradients = np.random.default_rng(1).normal(size=(14, 5, 3)).astype("float32")

    def trajectory(mode: bool | None, strategy: tf.distribute.Strategy | None = None) -> np.ndarray:
        with (strategy or tf.distribute.get_strategy()).scope():
            made = type(optimizer).from_config(optimizer.get_config())
            weight = keras.Variable(start)
            made.build([weight])

        def step(gradient: tf.Tensor) -> None:
            made.apply([tf.identity(gradient)], [weight])  # a copy: a strategy wants to know its device

        taken = step if mode is None else tf.function(step, jit_compile=mode)
        if strategy is not None:
            taken = tf.function(lambda gradient: strategy.run(step, (gradient,)))
        weights = []
        for gradient in gradients:
            taken(tf.constant(gradient))
            weights.append(weight.numpy())
        assert made.iterations.numpy() == len(gradients)
        return np.array(weights)

    eager = trajectory(None)
    for mode in (False, True):
        np.testing.assert_allclose(trajectory(mode), eager, rtol=1e-5, atol=1e-6)
    mirrored = tf.distribute.MirroredStrategy(["/cpu:0"])
    np.testing.assert_allclose(trajectory(None, mirrored), eager, rtol=1e-5, atol=1e-6)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss=keras.losses.MeanSquaredError(), jit_compile=False)
    model.fit(start, start[:, :1], epochs=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for old, new in zip(optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_allclose(old.numpy(), new.numpy(), rtol=1e-6)
    again = [each.fit(start, start[:, :1], epochs=8, verbose=0).history["loss"] for each in (model, loaded)]
    np.testing.assert_allclose(again[0], again[1], rtol=1e-5)


def _flat(inputs: Any) -> list[Any]:
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def _one_or_list(values: Any) -> Any:
    return values[0] if len(values) == 1 else list(values)


def _mean_of_output(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(y_pred)


def _comparable(value: Any) -> Any:
    """Configs with floats as float32 sees them: a learning rate comes back from a variable."""
    if isinstance(value, dict):
        return {key: _comparable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(entry) for entry in value]
    return float(np.float32(value)) if isinstance(value, float) else value
