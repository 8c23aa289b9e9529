"""Time of one training step beside that of what it is made of, in one run.

    python benchmarks/training_step.py [--genes 15073] [--rounds 8] [--results FILE]

The limit is the time of all matrix products of a forward and backward pass through the default network, and of nothing
else, in the precision of the step. Beside it stand the other things that go through all weights: the optimiser's update
and, in half precision, the casts of weights and gradients. All are measured in turn, so that a busy machine slows all
of them: compare ratios.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf
from record import record

from discern.networks.autoencoder import WAE, create_decoder, create_encoder, create_model
from discern.networks.losses import DummyLoss, HuberLoss, MaskedCrossEntropy
from discern.networks.optimizers import RectifiedAdam
from discern.runtime.memory import keeping_large_arrays

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, LABELS, LATENT, LAYERS = 192, 2, 48, [1024, 512, 256]


def matrix_products(genes: int, dtype: tf.DType, jit_compile: bool) -> Callable[[], None]:
    """Forward, by the weights, and (not for the first layer) by the input, for each dense layer."""
    sizes = [genes, *LAYERS, LATENT, *reversed(LAYERS), genes]
    shapes = [*itertools.pairwise(sizes), (LAYERS[-1], LATENT), (LAYERS[0], genes)]
    arrays = [
        [tf.cast(tf.random.normal(shape), dtype) for shape in ((BATCH, rows), (rows, columns), (BATCH, columns))]
        for rows, columns in shapes
    ]

    @tf.function(jit_compile=jit_compile)
    def multiply(arrays: list[list[tf.Tensor]]) -> list[tf.Tensor]:
        products = []
        for index, (given, weight, upstream) in enumerate(arrays):
            products += [tf.matmul(given, weight), tf.matmul(given, upstream, transpose_a=True)]
            if index > 0:
                products.append(tf.matmul(upstream, weight, transpose_b=True))
        return products

    return lambda: multiply(arrays)[-1].numpy()


def training_step(genes: int, jit_compile: bool | str, dtype: str) -> Callable[[], None]:
    """The step that `fit` takes, on one batch of cells in memory."""
    model = make_model(genes, dtype)
    model.compile(
        optimizer=make_optimizer(),
        loss={
            "decoder_counts": HuberLoss(delta=9.0),
            "decoder_dropouts": MaskedCrossEntropy(np.full(genes, -0.5), lower_label_smoothing=0.1),
            "mmdpp": DummyLoss(),
            "sigma_regularization": DummyLoss(),
        },
        loss_weights={
            "decoder_counts": 15000.0,
            "decoder_dropouts": 10000.0,
            "mmdpp": 1500.0,
            "sigma_regularization": 1e-8,
        },
        jit_compile=jit_compile,
    )
    model.make_train_function()
    generator = np.random.default_rng(0)
    cells = np.where(generator.random((BATCH, genes)) < 0.18, generator.normal(size=(BATCH, genes)), -0.5)
    labels = np.eye(LABELS)[np.arange(BATCH) % LABELS].astype("float32")
    cells = tf.constant(cells, tf.float32)
    inputs = {"input_data": cells, "batch_input_enc": labels, "batch_input_dec": labels}
    batches = iter(tf.data.Dataset.from_tensors((inputs, (cells, cells))).repeat())

    def step() -> None:
        float(model.train_function(batches)["loss"])

    return step


def update(genes: int) -> Callable[[], None]:
    """The optimiser's update of all weights."""
    weights, optimizer = make_model(genes, "float32").trainable_variables, make_optimizer()
    optimizer.build(weights)
    gradients = [tf.ones_like(weight.value) for weight in weights]

    @tf.function
    def apply() -> None:
        optimizer.apply(gradients, weights)

    return apply


def casts(genes: int) -> Callable[[], None]:
    """All weights to half precision, and as many gradients back."""
    weights = [weight.value for weight in make_model(genes, "float32").trainable_variables]
    gradients = [tf.cast(weight, tf.bfloat16) for weight in weights]

    @tf.function
    def cast(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        return [tf.cast(weight, tf.bfloat16) for weight in weights] + [tf.cast(one, tf.float32) for one in gradients]

    return lambda: cast(gradients)[-1].numpy()


def make_optimizer() -> RectifiedAdam:
    return RectifiedAdam(1e-3, beta_1=0.85, beta_2=0.95)


def make_model(genes: int, dtype: str) -> WAE:
    norms = ["conditionallayernorm"] * len(LAYERS)
    encoder = create_encoder(LATENT, LAYERS, norms, "mish", genes, LABELS, 0.4, dtype=dtype)
    decoder = create_decoder(LATENT, genes, LAYERS[::-1], norms, "mish", None, LABELS, 0.0, dtype=dtype)
    return create_model(encoder, decoder, 20000)


def measure(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=15073)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    genes = arguments.genes
    functions = {
        "products": matrix_products(genes, tf.float32, jit_compile=False),
        "products, XLA": matrix_products(genes, tf.float32, jit_compile=True),
        "products, bfloat16": matrix_products(genes, tf.bfloat16, jit_compile=False),
        "RectifiedAdam": update(genes),
        "casts to bfloat16 and back": casts(genes),
        "step": training_step(genes, jit_compile="auto", dtype="float32"),
        "step, all in XLA": training_step(genes, jit_compile=True, dtype="float32"),
        "step, mixed_bfloat16": training_step(genes, jit_compile="auto", dtype="mixed_bfloat16"),
    }
    with keeping_large_arrays():  # as in a training
        medians = measure(functions, arguments.rounds)
    limits = dict.fromkeys(functions, min(medians["products"], medians["products, XLA"]))
    limits["step, mixed_bfloat16"] = medians["products, bfloat16"]
    print(f"{'':28}{'ms':>8}{'it / step':>12}{'limit / it':>12}")
    for name, seconds in medians.items():
        row = {"ms": round(1000 * seconds), "it / step": round(seconds / medians["step"], 3)}
        if name.startswith("step"):
            row["limit / it"] = round(limits[name] / seconds, 3)
        print(f"{name:28}{row['ms']:8}{row['it / step']:12.2f}{row.get('limit / it', ''):>12}")
        if arguments.results:
            record(arguments.results, {name: row})


if __name__ == "__main__":
    main()
