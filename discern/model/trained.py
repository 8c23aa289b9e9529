"""Encode and decode cells with a trained network, standardised at its edges, sparse everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from discern.data.chunks import iter_blocks
from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from discern.data.chunks import Matrix
    from discern.model.estimator import DISCERN
    from discern.networks.autoencoder import WAE


def check_fits(model: DISCERN, genes: Sequence[str], batches: Sequence[str]) -> None:
    """Raise InvalidInputError if cells with these genes and batches cannot go through the network of a model."""
    n_genes, n_labels = (given.shape[-1] for given in model.encoder.inputs)
    if len(genes) != n_genes:
        raise InvalidInputError(
            f"the model was trained on {n_genes} genes, the data has {len(genes)}: use the data that the "
            "experiment processed, or train a new model"
        )
    if model.genes is not None and list(genes) != model.genes:
        first = next(i for i, (a, b) in enumerate(zip(genes, model.genes, strict=True)) if a != b)
        raise InvalidInputError(
            f"the data has the genes of the model in another order or other ones (gene {first + 1} is "
            f"{genes[first]!r}, expected {model.genes[first]!r}): process it with the same experiment"
        )
    unknown = [batch for batch in batches if model.batches is not None and batch not in model.batches]
    if unknown or (model.batches is None and len(batches) != n_labels):
        known = f" ({', '.join(model.batches)})" if model.batches is not None else ""
        raise InvalidInputError(
            f"the model knows {n_labels} batches{known}, the data has {', '.join(map(repr, unknown or batches))}: "
            "add new batches with `discern onlinetraining`"
        )


class Coder:
    """A network as functions of log-normalised expression: standardising is at its edge.

    Args:
        network: The network, which lives on the standardised scale.
        scaling: Mean and standard deviation of each gene; None for 0 and 1.
    """

    def __init__(self, network: WAE, scaling: tuple[np.ndarray, np.ndarray] | None) -> None:
        encoder, decoder = network.encoder, network.decoder
        n_genes, n_labels = (given.shape[-1] for given in encoder.inputs)
        self._latent_dim = decoder.inputs[0].shape[-1]
        mean, std = scaling or (np.zeros(n_genes, np.float32), np.ones(n_genes, np.float32))
        genes, labels, latent = (tf.TensorSpec((None, n), tf.float32) for n in (n_genes, n_labels, self._latent_dim))

        @tf.function(input_signature=[genes, labels])
        def encode(expression: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return encoder([(expression - mean) / std, labels], training=False)

        @tf.function(input_signature=[latent, labels])
        def decode(latent: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            counts, dropouts = decoder([latent, labels], training=False)
            return tf.nn.relu(counts * std + mean), dropouts

        self._encode, self._decode = encode, decode

    def encode(self, counts: Matrix, labels: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Return latent codes and log standard deviations; `cells` go through the network at once."""
        latent = np.empty((counts.shape[0], self._latent_dim), dtype=np.float32)
        sigma = np.empty_like(latent)
        for rows, block in iter_blocks(counts, cells):
            codes, deviations = self._encode(
                tf.constant(block.toarray(), tf.float32), tf.constant(labels[rows], tf.float32)
            )
            latent[rows], sigma[rows] = codes.numpy(), deviations.numpy()
        return latent, sigma

    def decode(self, latent: np.ndarray, labels: np.ndarray, cells: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield estimated expression and detection probability of `cells` after `cells`."""
        for begin in range(0, len(latent), cells):
            rows = slice(begin, begin + cells)
            counts, dropouts = self._decode(
                tf.constant(latent[rows], tf.float32), tf.constant(np.ascontiguousarray(labels[rows]), tf.float32)
            )
            yield counts.numpy(), dropouts.numpy()
