"""Minibatches for the network, of cells in memory or in record files.

Sparse, log-normalised cells become dense, standardised ones in TensorFlow.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import tensorflow as tf

from discern.data.record_format import CELLS_PER_SHARD, gene_dtype
from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from scipy import sparse


_SHUFFLED = 10_000


_DAMAGED = "the records are damaged"


@contextlib.contextmanager
def damage_told(folder: Path | None) -> Iterator[None]:
    """Tell what TensorFlow raises over damaged records as an InvalidInputError; all else passes.

    Args:
        folder: Of the records that are streamed in the block; None if there are none.
    """
    try:
        yield
    except tf.errors.OpError as error:
        told = (_DAMAGED, "expected to contain")  # the latter when there are fewer records than cells
        damaged = isinstance(error, tf.errors.DataLossError | tf.errors.NotFoundError)
        if folder is None or not (damaged or any(words in str(error) for words in told)):
            raise
        raise InvalidInputError(
            f"{folder}: {_DAMAGED}; run `discern process` again, or remove the folder: it is made anew then"
        ) from error


Minibatch: TypeAlias = tuple[dict[str, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""Inputs of the network by name, and the expression that its two outputs are compared with."""


class Batches:
    """Makes standardised dense batches of sparse log-normalised cells, in TensorFlow.

    Args:
        mean: Of each gene, float32 (n_genes,).
        std: Standard deviation of each gene, float32 (n_genes,).
        n_labels: Number of batches that cells are of.
        thin_counts: Smallest share of the counts of a cell that its input keeps, see `thinned`; 1 for all of them.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, n_labels: int, thin_counts: float = 1.0):
        self.n_genes, self.n_labels, self.thin_counts = len(mean), n_labels, thin_counts
        self._mean, self._std, self._zeros = mean, std, (0 - mean) / std

    def map(self, dataset: tf.data.Dataset, function: Callable[..., Minibatch], seed: int | None) -> tf.data.Dataset:
        """Map a data set with `parse` or what else ends in a call of this; the same random numbers for a seed."""
        if self.thin_counts < 1:
            draws = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
            dataset = tf.data.Dataset.zip(dataset, draws)
        return dataset.map(function, num_parallel_calls=2, deterministic=True).prefetch(2)

    def __call__(
        self, lengths: tf.Tensor, genes: tf.Tensor, values: tf.Tensor, codes: tf.Tensor, draw: tf.Tensor | None = None
    ) -> Minibatch:
        """Return ({"input_data", "batch_input_enc", "batch_input_dec"}, (counts, counts)).

        Args:
            lengths: How many genes each cell has, int32 (n_cells,).
            genes: The numbers of these genes, cell after cell, int32.
            values: Their log-normalised values.
            codes: Number of the batch of each cell, int32 (n_cells,).
            draw: Random integer to thin the counts of `input_data` with; None to leave them.
        """
        counts = inputs = self._dense(lengths, genes, values)
        if draw is not None:
            inputs = self._dense(lengths, genes, thinned(lengths, values, self.thin_counts, draw))
        label = tf.one_hot(codes, self.n_labels)
        return {"input_data": inputs, "batch_input_enc": label, "batch_input_dec": label}, (counts, counts)

    def _dense(self, lengths: tf.Tensor, genes: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        n_cells = tf.shape(lengths)[0]
        values = (values - tf.gather(self._mean, genes)) / tf.gather(self._std, genes)
        positions = tf.repeat(tf.range(n_cells) * self.n_genes, lengths) + genes
        dense = tf.tensor_scatter_nd_update(tf.tile(self._zeros, [n_cells]), positions[:, tf.newaxis], values)
        return tf.reshape(dense, (lengths.shape[0] or -1, self.n_genes))

    def parse(self, records: tf.Tensor, draw: tf.Tensor | None = None) -> Minibatch:
        """Return the same for a batch of records."""
        gene_bytes = gene_dtype(self.n_genes).itemsize
        lengths = (tf.strings.length(records) - 4) // (gene_bytes + 4)
        tf.debugging.assert_equal(tf.strings.length(records), lengths * (gene_bytes + 4) + 4, _DAMAGED)
        genes = tf.strings.substr(records, tf.fill(tf.shape(lengths), 4), lengths * gene_bytes)
        values = tf.strings.substr(records, 4 + lengths * gene_bytes, lengths * 4)
        codes = tf.strings.substr(records, tf.zeros_like(lengths), tf.fill(tf.shape(lengths), 4))
        numbers = tf.cast(_decoded(genes, tf.uint16 if gene_bytes == 2 else tf.int32), tf.int32)
        labels = tf.ensure_shape(_decoded(codes, tf.int32), records.shape)
        expression = tf.debugging.assert_all_finite(_decoded(values, tf.float32), _DAMAGED)
        checks = [
            check
            for found, below in ((numbers, self.n_genes), (labels, self.n_labels))
            for check in (
                tf.debugging.assert_non_negative(found, _DAMAGED),
                tf.debugging.assert_less(found, below, _DAMAGED),
            )
            if check is not None  # None where it was checked at once
        ]
        with tf.control_dependencies(checks):  # before anything looks the numbers up
            numbers, labels = tf.identity(numbers), tf.identity(labels)
        return self(lengths, numbers, expression, labels, draw)


def thinned(lengths: tf.Tensor, values: tf.Tensor, smallest: float, draw: tf.Tensor) -> tf.Tensor:
    """Return the cells as if they had been sequenced less deeply, each to a share of its own.

    The counts come back from the log-normalised values: the smallest value of a cell is taken for a single count. Each
    count is kept with a probability that is drawn for the cell; the cell is then scaled to the same total as before.

    Args:
        lengths: How many genes each cell has, int32 (n_cells,).
        values: Their log-normalised values, cell after cell.
        smallest: Probabilities are drawn between this and 1.
        draw: Random integer, int64; the same one gives the same result.

    Returns:
        Log-normalised values like `values`, some of them zero.

    Example:
        >>> cells = tf.math.log1p([10.0, 20.0, 70.0, 1.0, 1.0])
        >>> few = tf.math.expm1(thinned(tf.constant([3, 2]), cells, 0.5, tf.constant(1, tf.int64)))
        >>> round(float(tf.reduce_sum(few[:3])), 3) in (0.0, 100.0)
        True
    """
    cell = tf.repeat(tf.range(tf.size(lengths)), lengths)
    amounts = tf.math.expm1(values)

    def of_cells(reduce: Callable[..., tf.Tensor], each: tf.Tensor) -> tf.Tensor:
        return tf.gather(reduce(each, cell, tf.size(lengths)), cell)

    single = of_cells(tf.math.unsorted_segment_min, tf.where(amounts > 0, amounts, np.inf))
    counts = tf.round(amounts / single)
    share = tf.random.stateless_uniform(tf.shape(lengths), (draw, 0), smallest, 1)
    kept = tf.random.stateless_binomial(
        tf.shape(counts), (draw, 1), counts, tf.gather(share, cell), output_dtype=tf.float32
    )
    total, left = (of_cells(tf.math.unsorted_segment_sum, each) for each in (amounts, kept))
    return tf.math.log1p(tf.math.divide_no_nan(kept * total, left))


def _decoded(pieces: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.io.decode_raw(tf.strings.reduce_join(pieces), dtype)


def stream(files: Sequence[Path], n_cells: int, batch_size: int, batches: Batches, seed: int | None) -> tf.data.Dataset:
    """Return the batches of some shards.

    Args:
        files: The shards.
        n_cells: Number of cells in all of them.
        batch_size: Cells per minibatch; an incomplete last one is left out.
        batches: Makes the batches.
        seed: Shuffle with this seed, in another order each epoch; None: leave the order.
    """
    names = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    if seed is None:
        records = names.flat_map(tf.data.TFRecordDataset)
    else:
        records = (
            names.shuffle(len(files), seed=seed)
            .interleave(
                lambda name: tf.data.TFRecordDataset(name).shuffle(2 * CELLS_PER_SHARD, seed=seed), cycle_length=2
            )
            .shuffle(_SHUFFLED, seed=seed)
        )
    dataset = batches.map(records.batch(batch_size, drop_remainder=True), batches.parse, seed)
    return dataset.apply(tf.data.experimental.assert_cardinality(n_cells // batch_size))


def from_memory(
    X: sparse.csr_matrix,
    codes: np.ndarray,
    cells: np.ndarray,
    batch_size: int,
    batches: Batches,
    seed: int | None,
) -> tf.data.Dataset:
    """Return the minibatches of some cells of a matrix in memory; with a seed, in another order each epoch.

    Args:
        X: Log-normalised float32, (n_cells, n_genes).
        codes: Number of the batch of each cell of X, int32 (n_cells,).
        cells: Rows of X.
        batch_size: Cells per minibatch; an incomplete last one is left out.
        batches: Makes the minibatches.
        seed: Of the order; None: the order of `cells`.
    """

    def gather(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = X[numbers]
        return np.diff(rows.indptr).astype(np.int32), rows.indices.astype(np.int32), rows.data, codes[numbers]

    def batch(numbers: tf.Tensor, draw: tf.Tensor | None = None) -> Minibatch:
        parts = tf.numpy_function(gather, [numbers], [tf.int32, tf.int32, tf.float32, tf.int32])
        for part, length in zip(parts, (numbers.shape[0], None, None, numbers.shape[0]), strict=True):
            part.set_shape((length,))
        lengths, genes, values, labels = parts
        return batches(lengths, genes, values, labels, draw)

    dataset = tf.data.Dataset.from_tensor_slices(cells)
    if seed is not None and len(cells):
        dataset = dataset.shuffle(len(cells), seed=seed)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    return batches.map(dataset, batch, seed)
