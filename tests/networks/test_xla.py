from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import tensorflow as tf

from discern.networks import xla

if TYPE_CHECKING:
    from collections.abc import Callable

X = tf.constant(np.random.default_rng(0).normal(size=(6, 5)).astype("float32"))
Y = tf.constant(np.random.default_rng(1).normal(size=(6, 5)).astype("float32"))


def of_rows(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.sin(x * y), axis=-1)


def of_all(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.sin(x * y))


@pytest.fixture(autouse=True)
def _forget() -> None:
    xla.xla_works.cache_clear()


def gradients(function: Callable[..., tf.Tensor]) -> list[tf.Tensor | None]:
    with tf.GradientTape() as tape:
        tape.watch([X, Y])
        loss = tf.reduce_sum(tf.exp(function(X, Y)) * tf.range(1.0, 7.0))
    return tape.gradient(loss, [X, Y])


@pytest.mark.parametrize("function", [of_rows, of_all])
def test_value_and_gradients(function: Callable[..., tf.Tensor]) -> None:
    both = xla.with_gradient(function, by=2)
    np.testing.assert_allclose(both(X, Y), function(X, Y), rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(both), gradients(function), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_other_arguments_are_constants() -> None:
    by_x, by_y = gradients(xla.with_gradient(of_rows))
    np.testing.assert_allclose(by_x, gradients(of_rows)[0], rtol=1e-4, atol=1e-5)
    assert by_y is None


def test_without_xla_the_function_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(function: Callable, **options: object) -> Callable:
        def call(*inputs: tf.Tensor) -> tf.Tensor:
            raise tf.errors.UnimplementedError(None, None, "no compiler")

        return call

    wrapped = xla.with_gradient(of_rows)
    monkeypatch.setattr(tf, "function", fails)
    np.testing.assert_array_equal(wrapped(X, Y), of_rows(X, Y))
    wrapped(X, Y)
    assert caplog.text.count("XLA does not work here (no compiler); training goes on without it") == 1
