"""A trained network: cells in, cells out, standardised at its edges, sparse everywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from discern.data.chunks import iter_blocks
from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from scipy import sparse

    from discern.data.chunks import Matrix
    from discern.data.scaling import Scaling
    from discern.networks.autoencoder import WAE

CHUNK_SIZE = 512
"""Cells that go through the network at once."""


class EncodedChunk(NamedTuple):
    """Some cells, encoded.

    Attributes:
        rows: Which cells.
        counts: They as measured, log-normalised, (n_chunk, n_genes).
        latent: Latent codes, (n_chunk, n_latent).
        sigma: Logarithm of the standard deviation of their noise, (n_chunk, n_latent).
    """

    rows: slice
    counts: sparse.csr_matrix
    latent: npt.NDArray[np.float32]
    sigma: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Begun:
    """How far a training is within an epoch.

    Attributes:
        epoch: Number of epochs before this one.
        step: Number of its steps that are done.
        metrics: The variables of the model's metrics, from which its losses are averaged.
    """

    epoch: int
    step: int
    metrics: tuple[np.ndarray, ...]

    def add_to_metrics(self, model: WAE) -> None:
        """Let the model's metrics, which are sums, go on from where they were, after its first step.

        A model that has other ones starts them anew.
        """
        variables = model.metrics_variables
        if [tuple(variable.shape) for variable in variables] == [values.shape for values in self.metrics]:
            for variable, values in zip(variables, self.metrics, strict=True):
                variable.assign(variable.numpy() + values)


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network with what it was trained on. Expression goes in and comes out log-normalised.

    Attributes:
        network: The network, which lives on the standardised scale.
        scaling: Mean and standard deviation of each gene, (n_genes,) each; None for 0 and 1.
        genes: Their names; None if the model file does not say (the original program's do not).
        batches: Names of the batches in the order of the one-hot columns; None as with the genes.
        epoch: Number of epochs that it has been trained for.
        experiment: The EXPERIMENT of a parameter file that describes it; None if there is none.
        begun: How far it is in the next epoch already, if an interrupted training goes on; else None.
        gene_weights: How much each gene counts in its reconstruction loss, (n_genes,), 1 on average; None if all count
            alike, or it has not met the cells that say it.
        align_batches: Whether codes of a batch are moved onto those of another before they are decoded as its cells.
    """

    network: WAE
    scaling: Scaling | None = None
    genes: tuple[str, ...] | None = None
    batches: tuple[str, ...] | None = None
    epoch: int = 0
    experiment: Mapping[str, Any] | None = None
    begun: Begun | None = None
    gene_weights: npt.NDArray[np.float32] | None = None
    align_batches: bool = False

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return int(self.network.encoder.inputs[0].shape[-1])

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return int(self.network.encoder.inputs[1].shape[-1])

    @property
    def n_latent(self) -> int:
        """Dimensions of the latent code."""
        return int(self.network.decoder.inputs[0].shape[-1])

    def check(self, genes: Sequence[str], batches: Sequence[str]) -> None:
        """Raise InvalidInputError if cells with these genes and batches cannot go through the network."""
        if len(genes) != self.n_genes:
            raise InvalidInputError(
                f"the model was trained on {self.n_genes} genes, the data has {len(genes)}: use the data that the "
                "experiment processed, or train a new model"
            )
        if self.genes is not None and tuple(genes) != self.genes:
            first = next(i for i, (a, b) in enumerate(zip(genes, self.genes, strict=True)) if a != b)
            raise InvalidInputError(
                f"the data has the genes of the model in another order or other ones (gene {first + 1} is "
                f"{genes[first]!r}, expected {self.genes[first]!r}): process it with the same experiment"
            )
        unknown = [batch for batch in batches if self.batches is not None and batch not in self.batches]
        if unknown or (self.batches is None and len(batches) != self.n_batches):
            known = f" ({', '.join(self.batches)})" if self.batches is not None else ""
            raise InvalidInputError(
                f"the model knows {self.n_batches} batches{known}, the data has "
                f"{', '.join(map(repr, unknown or batches))}: add new batches with `discern onlinetraining`"
            )

    @cached_property
    def _functions(self) -> tuple[Callable[..., tuple[tf.Tensor, tf.Tensor]], ...]:
        encoder, decoder = self.network.encoder, self.network.decoder
        mean, std = self.scaling or (np.zeros(self.n_genes, np.float32), np.ones(self.n_genes, np.float32))
        sizes = (self.n_genes, self.n_batches, self.n_latent)
        genes, batches, codes = (tf.TensorSpec((None, size), tf.float32) for size in sizes)

        @tf.function(input_signature=[genes, batches])
        def encode(expression: tf.Tensor, batch_onehot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            latent, sigma = encoder([(expression - mean) / std, batch_onehot], training=False)
            return latent, sigma

        @tf.function(input_signature=[codes, batches])
        def decode(latent: tf.Tensor, batch_onehot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            counts, dropouts = decoder([latent, batch_onehot], training=False)
            return tf.nn.relu(counts * std + mean), dropouts

        return encode, decode

    def encode(
        self, counts: Matrix, batch_onehot: npt.NDArray[np.float32], chunk_size: int = CHUNK_SIZE
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Encode cells.

        Args:
            counts: Log-normalised expression, (n_cells, n_genes); dense, sparse or a dask array.
            batch_onehot: The cells' own batches, (n_cells, n_batches).
            chunk_size: Cells that go through the network at once.

        Returns:
            Latent codes and the logarithm of the standard deviation of their noise, (n_cells, n_latent) each.

        Raises:
            InvalidInputError: If cells, genes or batches differ in number from what the network knows or each other.
        """
        latent = np.empty((counts.shape[0], self.n_latent), dtype=np.float32)
        sigma = np.empty_like(latent)
        for chunk in self.encoded_chunks(counts, batch_onehot, chunk_size):
            latent[chunk.rows], sigma[chunk.rows] = chunk.latent, chunk.sigma
        return latent, sigma

    def encoded_chunks(
        self, counts: Matrix, batch_onehot: npt.NDArray[np.float32], chunk_size: int = CHUNK_SIZE
    ) -> Iterator[EncodedChunk]:
        """Encode cells, chunk by chunk; see `encode`."""
        encode, _ = self._functions
        self._check_shapes("counts", counts, (self.n_genes, "genes"), batch_onehot, chunk_size)
        for rows, chunk in iter_blocks(counts, chunk_size):
            n = chunk.shape[0]
            codes, deviations = encode(_filled(chunk.toarray(), chunk_size), _filled(batch_onehot[rows], chunk_size))
            yield EncodedChunk(rows, chunk, codes.numpy()[:n], deviations.numpy()[:n])

    def decode(
        self, latent: npt.NDArray[np.float32], batch_onehot: npt.NDArray[np.float32], chunk_size: int = CHUNK_SIZE
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Decode latent codes, chunk by chunk.

        Args:
            latent: Latent codes, (n_cells, n_latent).
            batch_onehot: The batches to decode as, (n_cells, n_batches): one-hot, or a mixture that sums to 1.
            chunk_size: Cells that go through the network at once.

        Yields:
            Estimated expression (log-normalised, >= 0) and detection probability, (n_chunk, n_genes) each.

        Raises:
            InvalidInputError: If cells, dimensions or batches differ in number from what the network knows or each
                other.
        """
        _, decode = self._functions
        self._check_shapes("latent_codes", latent, (self.n_latent, "dimensions"), batch_onehot, chunk_size)
        for begin in range(0, len(latent), chunk_size):
            rows = slice(begin, begin + chunk_size)
            n = len(latent[rows])
            counts, dropouts = decode(_filled(latent[rows], chunk_size), _filled(batch_onehot[rows], chunk_size))
            yield counts.numpy()[:n], dropouts.numpy()[:n]

    def _check_shapes(
        self, name: str, cells: Matrix, columns: tuple[int, str], batch_onehot: np.ndarray, chunk_size: int
    ) -> None:
        if chunk_size < 1:
            raise InvalidInputError(f"batch_size: expected 1 or more cells, got {chunk_size}")
        wanted = (*cells.shape[:1], self.n_batches)
        if batch_onehot.shape != wanted:
            raise InvalidInputError(
                f"batch labels: expected one row for each of {wanted[0]} cells and {self.n_batches} columns, one for "
                f"each batch, got the shape {batch_onehot.shape}"
            )
        if cells.shape[1:] != columns[:1]:
            raise InvalidInputError(f"{name}: expected cells x {columns[0]} {columns[1]}, got the shape {cells.shape}")


def _filled(cells: npt.NDArray[np.float32], size: int) -> tf.Tensor:
    """Return cells with rows of zeros after them, as many as other chunks have.

    What a cell gets then does not depend, not even in its last digits, on how many cells came with it. Chunks of a size
    of the caller's own are left as they are: it may be anything.
    """
    full = np.zeros((size if size == CHUNK_SIZE else len(cells), cells.shape[1]), dtype=np.float32)
    full[: len(cells)] = cells
    return tf.constant(full)
