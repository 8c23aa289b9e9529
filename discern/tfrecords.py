"""Cells as TFRecords, to stream training cells that do not fit into memory.

A folder holds shards `training-00000-of-00008.tfrecords`, `validate-...` and `meta.json`. A record is one cell: the
number of its batch (int32), the numbers of the genes that it has (uint16, or int32 if there are more than 65536 genes)
and their log-normalised values (float32), little-endian one after the other. Cells are dealt out to the shards at
random, so every shard is a random sample of all cells, and each is shuffled when it is read.

The original program's files (`training.tfrecords_v2`, gzipped; a record is the standardised values of all genes, the
one-hot batch and a 1, all float32) can be read by `parse_tfrecords`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from discern.blocks import in_gene_order, track_blocks
from discern.errors import InvalidInputError
from discern.files import replacing
from discern.foreign import check_file
from discern.functions import prepare_train_valid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import anndata as ad
    from scipy import sparse

_LOGGER = logging.getLogger(__name__)

FORMAT_VERSION = 2
SPLITS = {"training": "train", "validate": "valid"}
"""Name of the files -> value of obs `split`."""

_CELLS_PER_SHARD = 4096
_MOST_SHARDS = 256
_SHUFFLED = 10_000
_ORIGINAL = ".tfrecords_v2"


def _gene_dtype(n_genes: int) -> np.dtype:
    return np.dtype("<u2" if n_genes <= 2**16 else "<i4")


def serialise(block: sparse.csr_matrix, codes: np.ndarray) -> Iterator[bytes]:
    """Return a record for each cell.

    Args:
        block: log-normalised float32, (n_cells, n_genes).
        codes: number of the batch of each cell, (n_cells,).
    """
    block = in_gene_order(block)
    dtype = _gene_dtype(block.shape[1])
    genes = memoryview(block.indices.astype(dtype).tobytes())
    values = memoryview(block.data.astype("<f4", copy=False).tobytes())
    labels = memoryview(np.asarray(codes, dtype="<i4").tobytes())
    for cell, (start, stop) in enumerate(zip(block.indptr[:-1], block.indptr[1:], strict=True)):
        yield b"".join(
            (
                labels[4 * cell : 4 * cell + 4],
                genes[start * dtype.itemsize : stop * dtype.itemsize],
                values[start * 4 : stop * 4],
            )
        )


def fingerprint(adata: ad.AnnData) -> str:
    """Return a digest of what the record files of some cells depend on: the cells, genes, batches, split and scale."""
    digest = hashlib.sha256()
    parts: list[Iterable[str]] = [adata.obs_names, adata.var_names]
    parts += [adata.obs[column].astype(str) for column in ("batch", "split")]
    for part in parts:
        digest.update("\n".join(part).encode())
    if "mean_scaling" in adata.var:
        digest.update(adata.var["mean_scaling"].to_numpy().tobytes())
    return digest.hexdigest()


class TFRecordsWriter:
    """Writes the shards of a folder.

    Args:
        out_dir: the folder; it is made if need be.
        seed: of the dealing out of cells to shards.
        stamp: what else to write to `meta.json`, e.g. the fingerprint of the cells.
    """

    def __init__(self, out_dir: str | Path, seed: int = 0, stamp: dict[str, Any] | None = None):
        self._folder = Path(out_dir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._random = np.random.default_rng(seed)
        self._meta: dict[str, Any] = {"format_version": FORMAT_VERSION, **(stamp or {}), "counts": {}}

    def write_dataset(self, dataset: tf.data.Dataset | Sequence[bytes], split: str) -> None:
        """Write all cells of one split.

        Args:
            dataset: serialised cells, from `make_dataset_from_anndata(adata, for_tfrecord=True)`.
            split: "training" or "validate".
        """
        records = dataset.as_numpy_iterator() if isinstance(dataset, tf.data.Dataset) else dataset
        with self.shards(split, len(dataset)) as write:
            for record in records:
                write(record)

    @contextlib.contextmanager
    def shards(self, split: str, n_cells: int) -> Iterator[Callable[[bytes], None]]:
        """Open the shards of one split; yields a function that writes the next record.

        Args:
            split: "training" or "validate".
            n_cells: how many records will be written.

        Raises:
            InvalidInputError: if it is another split, or at the end, if the number of records was another.
        """
        if split not in SPLITS:
            raise InvalidInputError(f"expected the split {' or '.join(map(repr, SPLITS))}, got {split!r}")
        number = min(_MOST_SHARDS, max(1, -(-n_cells // _CELLS_PER_SHARD)))
        shard_of = self._random.integers(number, size=n_cells)
        written = 0
        with contextlib.ExitStack() as stack:
            names = [self._folder / f"{split}-{shard:05d}-of-{number:05d}.tfrecords" for shard in range(number)]
            files = [stack.enter_context(tf.io.TFRecordWriter(str(name))) for name in names]

            def write(record: bytes) -> None:
                nonlocal written
                if written == n_cells:
                    raise InvalidInputError(f"{split}: expected {n_cells} cells, got more")
                files[shard_of[written]].write(record)
                written += 1

            yield write
        if written != n_cells:
            raise InvalidInputError(f"{split}: expected {n_cells} cells, got {written}")
        self._meta["counts"][split] = n_cells
        (self._folder / "meta.json").write_text(json.dumps(self._meta, indent=2) + "\n")


def write_records(adata: ad.AnnData, folder: Path, seed: int = 0) -> None:
    """Write the training and validation cells to a folder, which is replaced when all is written.

    Args:
        adata: processed cells, X log-normalised, obs `batch` (categorical) and `split`.
        folder: `TF_records` of an experiment.
        seed: of the order of the cells.
    """
    codes = adata.obs["batch"].cat.codes.to_numpy()
    split = adata.obs["split"].to_numpy(dtype=str)
    stamp = {
        "fingerprint": fingerprint(adata),
        "n_genes": adata.n_vars,
        "batches": list(adata.obs["batch"].cat.categories),
    }
    with replacing(folder) as partial, contextlib.ExitStack() as stack:
        writer = TFRecordsWriter(partial, seed, stamp)
        write = {
            part: stack.enter_context(writer.shards(name, int((split == part).sum()))) for name, part in SPLITS.items()
        }
        for rows, block in track_blocks(adata.X, "writing records"):
            for part, record in zip(split[rows], serialise(block, codes[rows]), strict=True):
                if part in write:
                    write[part](record)


def current_records(folder: Path, adata: ad.AnnData) -> dict[str, list[Path]] | None:
    """Return the shards of each split, or None (and say why in the log) if they cannot serve for these cells.

    Args:
        folder: `TF_records` of an experiment; it need not exist.
        adata: the processed cells.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if any(path.suffix == _ORIGINAL for path in folder.iterdir()):
        _LOGGER.info("%s: records of DISCERN 1, not used; the cells are taken from the h5ad file", folder)
        return None
    try:
        check_file(folder / "meta.json")
        known = dict(json.loads((folder / "meta.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        _LOGGER.warning("%s: no sound meta.json, the records are incomplete and not used", folder)
        return None
    if known.get("format_version") != FORMAT_VERSION or known.get("fingerprint") != fingerprint(adata):
        _LOGGER.warning("%s: the records are not of these cells and not used; run `discern process` again", folder)
        return None
    files = dict(zip(SPLITS, prepare_train_valid(folder), strict=True))
    for paths in files.values():
        complete = {path.name.split("-of-")[-1] for path in paths} == {f"{len(paths):05d}.tfrecords"}
        if not complete or any(path.is_symlink() or not path.is_file() for path in paths):
            _LOGGER.warning("%s: some records are missing, they are not used; run `discern process` again", folder)
            return None
    return files


_DAMAGED = "the records are damaged"


@contextlib.contextmanager
def damage_told(folder: Path | None) -> Iterator[None]:
    """Tell what TensorFlow raises over damaged records as an InvalidInputError; all else passes.

    Args:
        folder: of the records that are streamed in the block; None if there are none.
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


class Batches:
    """Makes standardised dense batches of sparse log-normalised cells, in TensorFlow.

    Args:
        mean: of each gene, float32 (n_genes,).
        std: standard deviation of each gene, float32 (n_genes,).
        n_labels: number of batches that cells are of.
        thin_counts: smallest share of the counts of a cell that its input keeps, see `thinned`; 1 for all of them.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, n_labels: int, thin_counts: float = 1.0):
        self.n_genes, self.n_labels, self.thin_counts = len(mean), n_labels, thin_counts
        self._mean, self._std, self._zeros = mean, std, (0 - mean) / std

    def map(self, dataset: tf.data.Dataset, function: Callable[..., Any], seed: int | None) -> tf.data.Dataset:
        """Map a data set with `parse` or what else ends in a call of this; the same random numbers for a seed."""
        if self.thin_counts < 1:
            draws = tf.data.Dataset.random(seed, rerandomize_each_iteration=True)
            dataset = tf.data.Dataset.zip(dataset, draws)
        return dataset.map(function, num_parallel_calls=2, deterministic=True).prefetch(2)

    def __call__(
        self, lengths: tf.Tensor, genes: tf.Tensor, values: tf.Tensor, codes: tf.Tensor, draw: tf.Tensor | None = None
    ) -> Any:
        """Return ({"input_data", "batch_input_enc", "batch_input_dec"}, (counts, counts)).

        Args:
            lengths: how many genes each cell has, int32 (n_cells,).
            genes: the numbers of these genes, cell after cell, int32.
            values: their log-normalised values.
            codes: number of the batch of each cell, int32 (n_cells,).
            draw: random integer to thin the counts of `input_data` with; None to leave them.
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

    def parse(self, records: tf.Tensor, draw: tf.Tensor | None = None) -> Any:
        """Return the same for a batch of records."""
        gene_bytes = _gene_dtype(self.n_genes).itemsize
        lengths = (tf.strings.length(records) - 4) // (gene_bytes + 4)
        tf.debugging.assert_equal(tf.strings.length(records), lengths * (gene_bytes + 4) + 4, _DAMAGED)
        genes = tf.strings.substr(records, tf.fill(tf.shape(lengths), 4), lengths * gene_bytes)
        values = tf.strings.substr(records, 4 + lengths * gene_bytes, lengths * 4)
        codes = tf.strings.substr(records, tf.zeros_like(lengths), tf.fill(tf.shape(lengths), 4))
        numbers = tf.cast(_decoded(genes, tf.uint16 if gene_bytes == 2 else tf.int32), tf.int32)
        labels = tf.ensure_shape(_decoded(codes, tf.int32), records.shape)
        expression = tf.debugging.assert_all_finite(_decoded(values, tf.float32), _DAMAGED)
        for found, below in ((numbers, self.n_genes), (labels, self.n_labels)):
            tf.debugging.assert_non_negative(found, _DAMAGED)
            tf.debugging.assert_less(found, below, _DAMAGED)
        return self(lengths, numbers, expression, labels, draw)


def thinned(lengths: tf.Tensor, values: tf.Tensor, smallest: float, draw: tf.Tensor) -> tf.Tensor:
    """Return the cells as if they had been sequenced less deeply, each to a share of its own.

    The counts come back from the log-normalised values: the smallest value of a cell is taken for a single count. Each
    count is kept with a probability that is drawn for the cell; the cell is then scaled to the same total as before.

    Args:
        lengths: how many genes each cell has, int32 (n_cells,).
        values: their log-normalised values, cell after cell.
        smallest: probabilities are drawn between this and 1.
        draw: random integer, int64; the same one gives the same result.

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
        files: the shards.
        n_cells: number of cells in all of them.
        batch_size: cells per batch; an incomplete last batch is left out.
        batches: makes the batches.
        seed: shuffle with this seed, in another order each epoch; None: leave the order.
    """
    names = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    if seed is None:
        records = names.flat_map(tf.data.TFRecordDataset)
    else:
        records = (
            names.shuffle(len(files), seed=seed)
            .interleave(
                lambda name: tf.data.TFRecordDataset(name).shuffle(2 * _CELLS_PER_SHARD, seed=seed), cycle_length=2
            )
            .shuffle(_SHUFFLED, seed=seed)
        )
    dataset = batches.map(records.batch(batch_size, drop_remainder=True), batches.parse, seed)
    return dataset.apply(tf.data.experimental.assert_cardinality(n_cells // batch_size))


def parse_tfrecords(tfr_files: Path | Sequence[Path], genes_no: int, n_labels: int) -> tf.data.Dataset:
    """Read record files, ours or the original program's, cell by cell.

    Args:
        tfr_files: the files.
        genes_no: number of genes.
        n_labels: number of batches that cells are of.

    Returns:
        Elements `({"input_data", "batch_input_enc", "batch_input_dec"}, (counts, counts))` of one cell each. The values
        are as stored: log-normalised in our files, standardised in the original's.
    """
    files = [Path(tfr_files)] if isinstance(tfr_files, str | Path) else [Path(file) for file in tfr_files]
    names = [str(file) for file in files]
    if all(file.suffix == _ORIGINAL for file in files):

        def split(record: tf.Tensor) -> Any:
            values = tf.ensure_shape(tf.io.decode_raw(record, tf.float32), (genes_no + n_labels + 1,))
            counts, label = values[:genes_no], values[genes_no : genes_no + n_labels]
            return {"input_data": counts, "batch_input_enc": label, "batch_input_dec": label}, (counts, counts)

        return tf.data.TFRecordDataset(names, compression_type="GZIP").map(split)
    batches = Batches(np.zeros(genes_no, dtype=np.float32), np.ones(genes_no, dtype=np.float32), n_labels)
    return tf.data.TFRecordDataset(names).batch(64).map(batches.parse).unbatch()
