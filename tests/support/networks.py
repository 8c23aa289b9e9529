"""Small networks that the tests of this folder share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import tensorflow as tf

from discern.networks.autoencoder import WAE, create_decoder, create_encoder, create_model
from discern.networks.losses import DummyLoss, HuberLoss, MaskedCrossEntropy

if TYPE_CHECKING:
    import keras

REGULARIZATION = {"name": "tensorflow.keras.regularizers.L1L2", "l2": 0.0}
MISH = "tensorflow_addons.activations.mish"


def make_model(
    n_genes: int = 20,
    n_labels: int = 2,
    latent_dim: int = 4,
    layers: tuple[int, ...] = (16, 8),
    norm: str = "conditionallayernorm",
    output_fn: Any = None,
    dtype: str | None = None,
    total: int = 100,
    dropout: float = 0.4,
) -> WAE:
    norms = [norm] * len(layers)
    encoder = create_encoder(
        latent_dim, list(layers), norms, MISH, n_genes, n_labels, dropout, REGULARIZATION, dtype=dtype
    )
    decoder = create_decoder(
        latent_dim,
        n_genes,
        list(layers[::-1]),
        norms,
        MISH,
        output_fn,
        n_labels,
        0.0,
        20000,
        REGULARIZATION,
        dtype=dtype,
    )
    return create_model(encoder, decoder, total)


def make_original_model() -> WAE:
    """The network of the golden experiment."""
    return make_model(n_genes=1500, latent_dim=8, layers=(64, 32), total=176)


def compile_model(
    model: WAE, optimizer: keras.optimizers.Optimizer, zeros: Any = 0.0, jit_compile: bool | str = False
) -> WAE:
    model.compile(
        optimizer=optimizer,
        loss={
            "decoder_counts": HuberLoss(delta=9.0),
            "decoder_dropouts": MaskedCrossEntropy(zeros, lower_label_smoothing=0.1),
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
    return model


def random_cells(cells: int = 64, n_genes: int = 20, n_labels: int = 2) -> tf.data.Dataset:
    expression = np.random.default_rng(0).normal(size=(cells, n_genes)).astype("float32")
    return dataset(expression, np.eye(n_labels, dtype="float32")[np.arange(cells) % n_labels])


def dataset(expression: np.ndarray, labels: np.ndarray) -> tf.data.Dataset:
    inputs = {"input_data": expression, "batch_input_enc": labels, "batch_input_dec": labels}
    return tf.data.Dataset.from_tensor_slices((inputs, (expression, expression)))


def original_cells(experiment: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised expression, one-hot labels, and the zeros of the genes."""
    cells = anndata.read_h5ad(experiment / "processed_data" / "concatenated_data.h5ad")
    labels = np.eye(2, dtype="float32")[cells.obs["batch"].cat.codes]
    zeros = -cells.var["mean_scaling"].to_numpy() / cells.var["var_scaling"].to_numpy()
    return np.asarray(cells.X, dtype="float32"), labels, zeros.astype("float32")
