"""Which precision the layers compute in fastest on this machine."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, get_args

import tensorflow as tf

from discern.config.schema import LayerPrecision
from discern.networks.layers import GeneDense

if TYPE_CHECKING:
    from collections.abc import Callable

_LOGGER = logging.getLogger(__name__)

_CELLS, _MOST_GENES = 192, 2048
_ROUNDS, _SECONDS = 7, 0.3  # at the least: on a busy machine a single round says nothing
_WORTH_IT = 1.2  # times as fast; the optimiser and all else of a step gain nothing


def faster_precision(n_genes: int, width: int) -> LayerPrecision:
    """Return the precision in which the largest layer is faster here, measured in less than a second, and log it.

    Args:
        n_genes: Number of genes.
        width: Size of the hidden layer beside them.

    Returns:
        "mixed_bfloat16" where processor or GPU multiply such matrices faster (AVX512_BF16, AMX, tensor cores);
        otherwise "float32".
    """
    layers = {precision: _layer(precision, min(n_genes, _MOST_GENES), width) for precision in get_args(LayerPrecision)}
    seconds = {precision: _time(layer) for precision, layer in layers.items()}
    rounds, until = 0, time.perf_counter() + _SECONDS
    while rounds < _ROUNDS or time.perf_counter() < until:
        rounds += 1
        seconds = {precision: min(seconds[precision], _time(layer)) for precision, layer in layers.items()}
    ratio = seconds["float32"] / seconds["mixed_bfloat16"]
    picked: LayerPrecision = "mixed_bfloat16" if ratio >= _WORTH_IT else "float32"
    _LOGGER.info("precision: %s (matrix products in bfloat16 %.1f times as fast here)", picked, ratio)
    return picked


def _layer(precision: str, n_genes: int, width: int) -> Callable[[], object]:
    """Return what computes a layer to the genes and its gradients, casts among them."""
    layer = GeneDense(n_genes, kernel_initializer="ones", dtype=precision, name="measured")
    layer.build((None, width))
    hidden = tf.ones((_CELLS, width), layer.compute_dtype)

    @tf.function(autograph=False)
    def gradients() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            genes = layer(hidden)
        found: list[tf.Tensor] = tape.gradient(genes, [hidden, layer.kernel.value])
        return found

    return lambda: gradients()[-1][0].numpy()


def _time(compute: Callable[[], object]) -> float:
    begin = time.perf_counter()
    compute()
    return time.perf_counter() - begin
