"""Cells as TFRecords, to stream training cells that do not fit into memory.

A folder holds shards `training-00000-of-00008.tfrecords`, `validate-...`, `meta.json` and `scaling.npz`: the mean and
standard deviation of each gene, with which the network wants the values standardised. A record is one cell: the number
of its batch (int32), the numbers of the genes that it has (uint16, or int32 if there are more than 65536 genes) and
their log-normalised values (float32), little-endian one after the other. Cells are dealt out to the shards at random,
so every shard is a random sample of all cells, and each is shuffled when it is read.

The original program's files (`training.tfrecords_v2`, gzipped; a record is the standardised values of all genes, the
one-hot batch and a 1, all float32) can be read by `parse_tfrecords`.

Writing needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import itertools
import json
import logging
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from discern.data.annotation import prepare_train_valid
from discern.data.chunks import in_gene_order, track_blocks
from discern.data.record_format import CELLS_PER_SHARD, gene_dtype
from discern.data.scaling import parse_mean_var
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.runtime.atomic import replacing
from discern.runtime.foreign import check_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import BinaryIO, Self

    import anndata as ad
    import tensorflow as tf
    from scipy import sparse

    from discern.data.scaling import Scaling

_LOGGER = logging.getLogger(__name__)


FORMAT_VERSION = 2
SPLITS = {"training": "train", "validate": "valid"}
"""Name of the files -> value of obs `split`."""

_MOST_SHARDS = 256
_FILES_OF = {value: split for split, value in SPLITS.items()}
_ORIGINAL = ".tfrecords_v2"
_META = "meta.json"
_SCALING = "scaling.npz"


def serialise(block: sparse.csr_matrix, codes: np.ndarray) -> Iterator[bytes]:
    """Return a record for each cell.

    Args:
        block: Log-normalised float32, (n_cells, n_genes).
        codes: Number of the batch of each cell, (n_cells,).
    """
    block = in_gene_order(block)
    dtype = gene_dtype(block.shape[1])
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
    """Writes the shards of a folder; a context manager.

    Args:
        out_dir: The folder; it is made if need be.
        seed: Of the dealing out of cells to shards.
        stamp: What else to write to `meta.json`, e.g. the fingerprint of the cells.
        scaling: Mean and standard deviation of each gene, float32 (n_genes,); by default what the data sets hold.

    Attributes:
        out_dir: The folder.

    Example:
        >>> import tempfile
        >>> with TFRecordsWriter(tempfile.mkdtemp()) as writer:
        ...     writer.write_dataset([b"cell"], "train")
        >>> [path.name for path in sorted(Path(writer.out_dir).iterdir())]
        ['meta.json', 'training-00000-of-00001.tfrecords']
    """

    def __init__(
        self,
        out_dir: str | Path,
        seed: int = 0,
        stamp: Mapping[str, object] | None = None,
        scaling: Scaling | None = None,
    ):
        self.out_dir = str(out_dir)
        self._folder = Path(out_dir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._random = np.random.default_rng(seed)
        self._meta: dict[str, Any] = {"format_version": FORMAT_VERSION, **(stamp or {}), "counts": {}}
        self._scaling = scaling

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: each split is complete when it has been written."""

    def write_dataset(self, dataset: tf.data.Dataset | Sequence[bytes], split: str) -> None:
        """Write all cells of one split, in place of those that the folder has of it.

        Args:
            dataset: Cells from `make_dataset_from_anndata(adata, for_tfrecord=True)`, or serialised cells.
            split: "train" or "valid".

        Raises:
            InvalidInputError: If it is another split, or the data set was made for something else.
        """
        if isinstance(dataset, Sequence):
            records, number = iter(dataset), len(dataset)
        else:
            records = self._records_of(dataset)
            number = int(dataset.cardinality()) if hasattr(dataset, "cardinality") else -1
            if number < 0:  # unknown
                number = sum(1 for _ in self._records_of(dataset))
        with self.shards(split, number) as write:
            for record in records:
                write(record)

    def _records_of(self, dataset: tf.data.Dataset) -> Iterator[bytes]:
        if not isinstance(getattr(dataset, "element_spec", None), dict) or "record" not in dataset.element_spec:
            raise InvalidInputError(
                "expected cells made for records: write what make_dataset_from_anndata(adata, for_tfrecord=True) gives"
            )
        for element in dataset.as_numpy_iterator():
            scaling = element["mean"], element["std"]
            if self._scaling is None:
                self._scaling = scaling
            elif not all(map(np.array_equal, self._scaling, scaling)):
                raise InvalidInputError(f"{self.out_dir}: expected cells that are all standardised in the same way")
            yield element["record"]

    @contextlib.contextmanager
    def shards(
        self, split: str, n_cells: int, cells_per_shard: int = CELLS_PER_SHARD
    ) -> Iterator[Callable[[bytes], None]]:
        """Open the shards of one split; yields a function that writes the next record.

        Args:
            split: See `write_dataset`.
            n_cells: How many records will be written.
            cells_per_shard: How many go into a file; about, as they are dealt at random.

        Raises:
            InvalidInputError: If it is another split, or at the end, if the number of records was another.
        """
        if split not in _FILES_OF:
            raise InvalidInputError(f"expected the split 'train' or 'valid', got {split!r}")
        split = _FILES_OF[split]
        number = min(_MOST_SHARDS, max(1, -(-n_cells // cells_per_shard)))
        shard_of = self._random.integers(number, size=n_cells)
        written = 0
        names = [self._folder / f"{split}-{shard:05d}-of-{number:05d}.tfrecords" for shard in range(number)]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(name.open("wb")) for name in names]

            def write(record: bytes) -> None:
                nonlocal written
                if written == n_cells:
                    raise InvalidInputError(f"{split}: expected {n_cells} cells, got more")
                _write_record(files[shard_of[written]], record)
                written += 1

            yield write
        if written != n_cells:
            raise InvalidInputError(f"{split}: expected {n_cells} cells, got {written}")
        for former in set(self._folder.glob(f"{split}-*-of-*.tfrecords")) - set(names):
            former.unlink()
        if self._scaling is not None:
            np.savez(self._folder / _SCALING, mean=self._scaling[0], std=self._scaling[1])
        self._meta["counts"][split] = n_cells
        (self._folder / _META).write_text(json.dumps(self._meta, indent=2) + "\n")


def _write_record(file: BinaryIO, record: bytes) -> None:
    """Write one record in the format that TensorFlow reads: length, checksum, record, checksum."""
    length = struct.pack("<Q", len(record))
    file.write(b"".join((length, _checksum(length), record, _checksum(record))))


def _checksum(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_records(adata: ad.AnnData, folder: Path, seed: int = 0, cells_per_shard: int = CELLS_PER_SHARD) -> None:
    """Write the training and validation cells to a folder, which is replaced when all is written.

    Args:
        adata: Processed cells, X log-normalised, obs `batch` (categorical) and `split`.
        folder: `TF_records` of an experiment.
        seed: Of the order of the cells.
        cells_per_shard: See `TFRecordsWriter.shards`.
    """
    if "split" not in adata.obs:
        raise UnknownNameError("expected an obs column 'split', which says what to train on: split the cells first")
    codes = adata.obs["batch"].cat.codes.to_numpy()
    split = adata.obs["split"].to_numpy(dtype=str)
    stamp = {
        "fingerprint": fingerprint(adata),
        "n_genes": adata.n_vars,
        "batches": list(adata.obs["batch"].cat.categories),
    }
    with replacing(folder) as partial, contextlib.ExitStack() as stack:
        writer = TFRecordsWriter(partial, seed, stamp, parse_mean_var(adata.var, adata.uns.get("fixed_scaling")))
        sizes = {part: int((split == part).sum()) for part in SPLITS.values()}
        write = {part: stack.enter_context(writer.shards(part, n, cells_per_shard)) for part, n in sizes.items()}
        for rows, block in track_blocks(adata.X, "writing records"):
            for part, record in zip(split[rows], serialise(block, codes[rows]), strict=True):
                if part in write:
                    write[part](record)


def current_records(folder: Path, adata: ad.AnnData) -> dict[str, list[Path]] | None:
    """Return the shards of each split, or None (and say why in the log) if they cannot serve for these cells.

    Args:
        folder: `TF_records` of an experiment; it need not exist.
        adata: The processed cells.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if any(path.suffix == _ORIGINAL for path in folder.iterdir()):
        _LOGGER.info("%s: records of DISCERN 1, not used; the cells are taken from the h5ad file", folder)
        return None
    known = _meta_of(folder)
    if not known:
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


def parse_tfrecords(tfr_files: Path | Sequence[Path], genes_no: int, n_labels: int) -> tf.data.Dataset:
    """Read record files, ours or the original program's, cell by cell.

    Args:
        tfr_files: The files.
        genes_no: Number of genes.
        n_labels: Number of batches that cells are of.

    Returns:
        Elements `({"input_data", "batch_input_enc", "batch_input_dec"}, (counts, counts))` of one cell each, all
        float32; counts and `input_data` are the same values (genes_no,), standardised as the network wants them (as
        they are, log-normalised, where the folder has no `scaling.npz`), the labels one-hot (n_labels,).

    Raises:
        MissingFileError: If a file is not there.
        InvalidInputError: If there is none, or they hold another number of genes or batches.
    """
    files = [Path(tfr_files)] if isinstance(tfr_files, str | Path) else [Path(file) for file in tfr_files]
    if not files:
        raise InvalidInputError("expected record files, got none")
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{file}: no such file")
    datasets = [
        (_original_cells if original else _cells)(list(group), genes_no, n_labels)
        for (_, original), group in itertools.groupby(files, lambda file: (file.parent, file.suffix == _ORIGINAL))
    ]
    return functools.reduce(lambda first, second: first.concatenate(second), datasets)


def _original_cells(files: Sequence[Path], n_genes: int, n_labels: int) -> tf.data.Dataset:
    import tensorflow as tf

    size = n_genes + n_labels + 1
    for file in files:
        if (found := _first_record_bytes(file)) not in (None, 4 * size):
            raise InvalidInputError(
                f"{file}: expected {4 * size} bytes a cell, of {n_genes} genes and {n_labels} batches, got {found}"
            )

    def split(record: tf.Tensor) -> tf.Tensor:
        values = tf.ensure_shape(tf.io.decode_raw(record, tf.float32), (size,))
        counts, label = values[:n_genes], values[n_genes : n_genes + n_labels]
        return {"input_data": counts, "batch_input_enc": label, "batch_input_dec": label}, (counts, counts)

    return tf.data.TFRecordDataset([str(file) for file in files], compression_type="GZIP").map(split)


def _first_record_bytes(file: Path) -> int | None:
    try:
        with gzip.open(file) as stream:
            length = stream.read(8)
    except (OSError, EOFError) as error:
        raise InvalidInputError(f"{file}: cannot be read as gzipped records ({error})") from None
    return struct.unpack("<Q", length)[0] if len(length) == 8 else None


def _cells(files: Sequence[Path], n_genes: int, n_labels: int) -> tf.data.Dataset:
    import tensorflow as tf

    from discern.data.minibatches import Batches

    folder = files[0].parent
    batches = _meta_of(folder).get("batches")
    if isinstance(batches, list) and len(batches) > n_labels:
        raise InvalidInputError(f"{folder}: its cells are of {len(batches)} batches, expected {n_labels}")
    mean, std = _scaling_of(folder, n_genes)
    names = [str(file) for file in files]
    return tf.data.TFRecordDataset(names).batch(64).map(Batches(mean, std, n_labels).parse).unbatch()


def _meta_of(folder: Path) -> Mapping[str, object]:
    try:
        check_file(folder / _META)
        content = json.loads((folder / _META).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _scaling_of(folder: Path, n_genes: int) -> Scaling:
    """Return mean and standard deviation of each gene; 0 and 1 if the folder does not tell."""
    file = folder / _SCALING
    if not file.is_file():
        _LOGGER.warning("%s: no %s, the values stay log-normalised; `discern process` writes it", folder, _SCALING)
        return np.zeros(n_genes, dtype=np.float32), np.ones(n_genes, dtype=np.float32)
    try:
        with np.load(file, allow_pickle=False) as content:
            mean, std = content["mean"].astype(np.float32), content["std"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{file}: cannot be read ({error}); run `discern process` again") from None
    if mean.shape != (n_genes,) or std.shape != (n_genes,):
        raise InvalidInputError(f"{folder}: its cells have {mean.size} genes, expected {n_genes}")
    return mean, std
