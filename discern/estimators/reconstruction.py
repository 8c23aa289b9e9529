"""Cells through a trained network: those that fit it encoded once, decoded with any labels, block by block."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import tensorflow as tf

from discern import progress
from discern.annotation import give_back
from discern.errors import InvalidInputError
from discern.evaluation import add_distance
from discern.functions import sample_counts
from discern.io import DISCERNData, iter_blocks, np_one_hot, write_blocks
from discern.neighbours import training_cells
from discern.projection import target_labels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from discern.blocks import Matrix
    from discern.estimators.batch_integration import DISCERN
    from discern.estimators.utilities_wae import WAE

_CELLS_AT_ONCE = 512


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


class EncodedCells:
    """Cells with their latent codes, to be decoded as if they had been measured otherwise.

    Args:
        model: A trained model.
        data: Processed cells that fit it; their expression is log-normalised.
        store_sigmas: Whether results get `obsm["X_DISCERN_sigma"]`.

    Raises:
        InvalidInputError: If the model does not fit.
    """

    def __init__(self, model: DISCERN, data: DISCERNData, store_sigmas: bool) -> None:
        model.prepare_projection(data)
        self._model, self._data = model, data
        self._obs = data.obs
        if model.batches is not None:
            self._obs = data.obs.assign(batch=data.obs["batch"].cat.set_categories(model.batches))
        self._own = np_one_hot(self._obs["batch"].array)
        self._latent, sigma = model.generate_latent_codes(data.X, self._own, _CELLS_AT_ONCE)
        self._obsm = {"X_DISCERN": self._latent} | ({"X_DISCERN_sigma": sigma} if store_sigmas else {})

    def _without_matrices(self, column: str | None, value: str | None) -> anndata.AnnData:
        data = self._data
        uns = {key: value for key, value in data.uns.items() if key != "fixed_scaling"}
        cells = anndata.AnnData(obs=data.obs.copy(), var=data.var.copy(), uns=uns, obsm=dict(self._obsm))
        if column == "batch" and value and training_cells(cells.obs, value).sum() > 1:
            add_distance(cells, value)
        give_back(cells)
        return cells

    def decoded(self, column: str | None, value: str | None) -> anndata.AnnData:
        """Return the cells decoded in memory; see `DISCERN.reconstruct`."""
        labels = target_labels(self._obs, self._own, column, value)
        result = self._without_matrices(column, value)
        counts, dropouts = self._model.generate_cells_from_latent(self._latent, labels, _CELLS_AT_ONCE)
        result.X = sample_counts(counts, dropouts, seed=self._model.seed or 0)
        result.layers["estimated_counts"] = counts
        result.layers["estimated_dropouts"] = dropouts
        result.layers["measured"] = self._data.X
        return result

    def write(self, path: Path, column: str | None, value: str | None, layers: Sequence[str], dtype: str) -> None:
        """Decode the cells into a file; see `DISCERN.project_to_metadata`."""
        labels = target_labels(self._obs, self._own, column, value)
        cells = self._without_matrices(column, value)
        count = -(-len(self._latent) // _CELLS_AT_ONCE)
        write_blocks(path, cells, progress.track(self._blocks(labels, layers), f"writing {path.name}", count), dtype)

    def _blocks(self, labels: np.ndarray, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
        generator = np.random.default_rng(self._model.seed or 0)
        decoded = self._model.coder.decode(self._latent, labels, _CELLS_AT_ONCE)
        measured = iter_blocks(self._data.X, _CELLS_AT_ONCE) if "measured" in layers else itertools.repeat((None, None))
        for (counts, dropouts), (_, cells) in zip(decoded, measured, strict=False):
            block = {"estimated_counts": counts, "estimated_dropouts": dropouts, "measured": cells}
            if "X" in layers:
                block["X"] = sample_counts(counts, dropouts, seed=generator)
            yield {layer: block[layer] for layer in layers}
