"""Value and gradient of a function in one program: fewer passes over large arrays than operation by operation."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from collections.abc import Callable

_LOGGER = logging.getLogger(__name__)


def with_gradient(function: Callable[..., tf.Tensor], by: int = 1) -> Callable[..., tf.Tensor]:
    """Let XLA compute a function of float tensors and its gradients by the first ones together.

    The matrix products of a training step are fastest outside XLA on CPUs, everything elementwise inside; this puts
    one function inside. It may return one number, or one for each row if the row depends on the same row of the inputs
    only. Where XLA does not work, the function is left as it is.

    Args:
        function: What to compute from tensors. Anything else that it uses is fixed when it is first called.
        by: Number of arguments that need a gradient; the others are taken as constants.

    Example:
        >>> square = with_gradient(lambda x: tf.reduce_sum(x**2))
        >>> float(square(tf.constant([3.0, 4.0])))
        25.0
    """
    value = tf.function(function, jit_compile=True, autograph=False)

    @tf.function(jit_compile=True, autograph=False)
    def gradients(upstream: tf.Tensor, *inputs: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs[:by])
            result = function(*inputs)
        found: list[tf.Tensor] = tape.gradient(result, inputs[:by], upstream)
        return found

    @tf.custom_gradient
    def fused(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor | None]]]:
        return value(*inputs), lambda upstream: [*gradients(upstream, *inputs), *[None] * (len(inputs) - by)]

    return lambda *inputs: (fused if xla_works() else function)(*inputs)


@functools.cache
def xla_works() -> bool:
    """Whether XLA can compile for the devices of this machine; if not, this is said once."""
    try:
        with tf.init_scope():
            tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(1.0))
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        _LOGGER.warning("XLA does not work here (%s); training goes on without it, more slowly", error)
        return False
    return True
