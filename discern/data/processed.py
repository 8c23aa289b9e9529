"""Processed cells on their way to the network (`DISCERNData`) and results on their way to files.

TensorFlow is loaded where data sets are made.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from discern.data.annotation import batch_names, named_layers
from discern.data.chunks import Matrix, as_csr, in_gene_order, is_lazy, iter_blocks, read_cells
from discern.data.epochs import cells_of_step
from discern.data.records import SPLITS, current_records, serialise, write_records
from discern.data.scaling import parse_mean_var
from discern.data.structure import (
    PROCESSED_VERSION,
    check_finite,
    check_format,
    check_matrix,
    check_parts,
    check_texts,
    whole_number,
)
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.folder.layout import ExperimentFolder
from discern.folder.locks import recover
from discern.runtime.atomic import Scratch
from discern.runtime.foreign import reading, visible

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator
    from typing import Self

    import tensorflow as tf

    from discern.data.chunks import Undo
    from discern.data.scaling import Scaling
    from discern.data.structure import Findings

_LOGGER = logging.getLogger(__name__)


FORMAT = {"version": PROCESSED_VERSION}
"""Stamp `uns["DISCERN_format"]` of processed data: X is log-normalised. Version 1, the original, has none."""

LEFT_OUT = "DISCERN_left_out"
"""In uns of processed cells: names of the genes that too few cells have; cells were filtered by these genes, too."""


class DISCERNData(ad.AnnData):
    """Processed cells: an AnnData that also feeds the network.

    X is sparse (CSR, or a dask array of CSR blocks when it does not fit into memory), float32 and log-normalised:
    log1p of the counts scaled to the library size. The network works on standardised values, (x - mean) / std per gene;
    `tfdata` standardises. Parts of it (`data[cells]`) and copies are DISCERNData, too, and know all batches of the
    experiment: `obs["batch"]` keeps its categories.

    Args:
        adata: The result of `WAERecipe`, or what the original program stored (dense and standardised; converted).
            It is not modified; X is shared where it already has the form above.
        batch_size: Cells per minibatch of `tfdata`. Never more than there are validation cells (with a warning);
            without any, never more than a tenth of the training cells.
        cachefile: Folder for the record files of data that does not fit into memory and has none yet; by default a
            temporary one.
        seed: Of the order of the training cells.

    Raises:
        UnknownNameError: If `adata` was not processed, i.e. has no `uns["DISCERN"]`.
    """

    _in_progress: bool = False

    def __init__(self, adata: ad.AnnData, batch_size: int, cachefile: str | Path | None = "", seed: int = 0):
        if "DISCERN" not in adata.uns:
            raise UnknownNameError(
                "expected processed cells, these have no uns['DISCERN']; run `discern process` on them"
            )
        with reading("processed cells", "cannot be used", "run `discern process` again"):
            _check_parts_of(adata)
        in_progress = isinstance(adata, DISCERNData) and adata._in_progress
        super().__init__(_log_normalised(adata))
        self._order_batches()
        self._prepare(batch_size, cachefile, seed)
        self._in_progress = in_progress
        self.batch_size = batch_size

    @classmethod
    def in_progress(cls, adata: ad.AnnData, batch_size: int) -> Self:
        """Return raw or half processed cells of a recipe, as they are; `adata` is not to be used any more.

        Args:
            adata: The cells, with `uns["DISCERN"]["batch_key"]`.
            batch_size: Cells per minibatch once they are processed; if there are fewer validation cells, of as many.
        """
        data = cls.__new__(cls)
        ad.AnnData.__init__(data, adata)
        data._prepare(batch_size, "", 0)
        data._in_progress = True
        return data

    def _prepare(self, batch_size: int, cachefile: str | Path | None, seed: int) -> None:
        self._batch_size = batch_size
        self._cachefile = Path(cachefile) if cachefile else None
        self._temporary: Path | None = None
        self._tfrecords: Path | None = None
        self._streamed: Path | None = None
        self._seed = seed
        self._in_progress = False

    def __getitem__(self, index: object) -> Self:
        """Return some of the cells (and genes), as a view."""
        with ad.settings.override(remove_unused_categories=False):  # the batch's are the labels of the network
            return self._of_same_kind(super().__getitem__(index))  # the record files are of other cells

    def copy(self, filename: str | Path | None = None) -> Self:
        """Return a copy in memory, or of data on disk, in another file."""
        result = self._of_same_kind(super().copy(filename))
        result._cachefile, result._tfrecords = self._cachefile, self._tfrecords
        return result

    def _of_same_kind(self, adata: ad.AnnData) -> Self:
        adata.__class__ = type(self)
        result: Self = adata
        result._prepare(self._batch_size, "", self._seed)
        result._in_progress = self._in_progress
        return result

    @property
    def is_logged(self) -> bool:
        """Whether X is log-normalised; the cells of a recipe are once it has been called."""
        return not self._in_progress or "log1p" in self.uns

    def _order_batches(self) -> None:
        """Give `batch` the categories of the whole experiment: a subset of cells may have lost some."""
        self.obs["batch"] = _labels(self)

    @classmethod
    def read_h5ad(cls, filename: str | Path, batch_size: int, cachefile: str | Path | None = "") -> DISCERNData:
        """Read processed cells from an `.h5ad` file or a `.zarr` folder.

        Raises:
            MissingFileError: If there is no such file.
            InvalidInputError: If it cannot be read.
            UnknownNameError: If its cells were not processed.
        """
        path = Path(filename)
        adata = read_cells(path, undo=_undo_standardising)
        if is_lazy(adata.X):
            adata.X = adata.X.map_blocks(_finite, path, dtype=adata.X.dtype, meta=adata.X._meta)
        try:
            return cls(adata, batch_size=batch_size, cachefile=cachefile)
        except (InvalidInputError, UnknownNameError) as error:
            raise type(error)(f"{path}: {error}") from error

    @classmethod
    def from_folder(cls, folder: str | Path, batch_size: int, cachefile: str | Path | None = "") -> DISCERNData:
        """Read the processed cells of an experiment.

        Args:
            folder: Folder of the experiment, with `processed_data/concatenated_data.h5ad` and perhaps `TF_records/`.
            batch_size: Cells per minibatch.
            cachefile: See `DISCERNData`.

        Raises:
            MissingFileError: If the folder holds no processed data.
        """
        recover(Path(folder))
        processed = ExperimentFolder(Path(folder)).cells
        if not processed.exists():
            raise MissingFileError(f"{processed}: no such file; run `discern process` first")
        data = cls.read_h5ad(processed, batch_size=batch_size, cachefile=cachefile)
        data._tfrecords = ExperimentFolder(Path(folder)).records
        return data

    @property
    def config(self) -> Findings:
        """What preprocessing found out (`uns["DISCERN"]`): batch names, numbers of cells, LSN, MMD kernel."""
        found: Findings = self.uns["DISCERN"]
        return found

    @property
    def batch_size(self) -> int:
        """Cells per minibatch: never more than there are validation cells, see `DISCERNData`."""
        return cells_of_step(self.obs, self._batch_size)

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        if not value >= 1:
            raise InvalidInputError(f"batch_size: expected 1 or more cells, got {value}")
        self._batch_size = value
        if self.batch_size < value and (self.obs["split"] == "valid").any():
            warnings.warn(
                f"batch_size {value} is more than the {self.batch_size} validation cells: using {self.batch_size}",
                stacklevel=3,
            )

    @property
    def scaling(self) -> Scaling:
        """Mean and standard deviation of each gene, float32 of shape (n_genes,); 0 and 1 without `fixed_scaling`."""
        return parse_mean_var(self.var, self.uns.get("fixed_scaling"))

    @property
    def zeros(self) -> np.ndarray:
        """What a zero count is after standardising, float32 of shape (n_genes,)."""
        mean, std = self.scaling
        return np.asarray((0 - mean) / std)

    @property
    def tfdata(self) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        """Training and validation batches for `keras.Model.fit`, see `batches`."""
        return self.batches()

    def batches(self, thin_counts: float = 1.0, begun: int = 0) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        """Return training and validation batches for `keras.Model.fit`; the latter may be none.

        Elements are `({"input_data", "batch_input_enc", "batch_input_dec"}, (counts, counts))`, all float32; counts and
        `input_data` are the same standardised values (batch_size, n_genes), the labels are one-hot (batch_size,
        n_batches). Training cells come in another order every epoch. An incomplete last minibatch is left out.

        Args:
            thin_counts: Below 1, `input_data` of training cells (not the counts, which are the target) is what fewer
                reads would have given, see `discern.data.records.thinned`.
            begun: Number of steps of the first epoch that have been done: the order of the cells is another one then.
        """
        if "split" not in self.obs:
            raise UnknownNameError(f"obs has no column 'split', which says what to train on; it has {list(self.obs)}")
        from discern.data.minibatches import Batches, from_memory, stream

        n_labels = len(self.obs["batch"].cat.categories)
        makers = {
            "training": Batches(*self.scaling, n_labels, thin_counts),
            "validate": Batches(*self.scaling, n_labels),
        }
        seeds = {"training": self._seed + begun, "validate": None}
        if is_lazy(self.X):
            files = self._records()
            self._streamed = next(iter(files.values()))[0].parent
            counts = {split: int((self.obs["split"] == SPLITS[split]).sum()) for split in SPLITS}
            train, valid = (
                stream(files[split], counts[split], self.batch_size, makers[split], seed)
                for split, seed in seeds.items()
            )
        else:
            codes = self.obs["batch"].cat.codes.to_numpy(dtype=np.int32)
            X = sparse.csr_matrix(self.X)
            train, valid = (
                from_memory(
                    X, codes, np.flatnonzero(self.obs["split"] == SPLITS[split]), self.batch_size, make, seeds[split]
                )
                for split, make in makers.items()
            )
        return train, valid

    def reading_records(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for the training, in which damaged record files are told as such."""
        from discern.data.minibatches import damage_told

        return damage_told(self._streamed)

    def use_records(self, folder: Path) -> None:
        """Stream the cells from the record files of another folder, if they do not fit into memory.

        Raises:
            InvalidInputError: If they are of other cells.
        """
        if not current_records(folder, self):
            raise InvalidInputError(
                f"{folder}: expected record files of the experiment's cells, these are of other cells or incomplete; "
                "give the folder of the experiment that they belong to"
            )
        self._tfrecords = folder

    def _records(self) -> dict[str, list[Path]]:
        """Return the record files of these cells, which are written first if there are none yet."""
        if self._tfrecords is not None and (files := current_records(self._tfrecords, self)):
            return files
        if self._cachefile is None and self._temporary is None:
            scratch = _scratch(self._tfrecords)
            self._temporary = scratch.path
            weakref.finalize(self, scratch.close)
        folder = (self._cachefile or self._temporary or Path()) / "TF_records"
        if not (files := current_records(folder, self)):
            _LOGGER.info("These cells do not fit into memory and have no record files to stream: writing %s", folder)
            write_records(self, folder, seed=self._seed)
            files = current_records(folder, self)
        if not files:
            raise InvalidInputError(f"{folder}: the record files cannot be read back")
        return files


def _scratch(records: Path | None) -> Scratch:
    """Make a folder for record files: in that of the experiment, if there is one and it can be written to."""
    try:
        return Scratch("records", records and records.parent)
    except OSError:
        return Scratch("records", None)


def make_dataset_from_anndata(adata: ad.AnnData, for_tfrecord: bool = False) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Return the training and the validation cells one by one, in their order.

    Args:
        adata: Processed cells, with obs `batch` and `split`; log-normalised, or as the original stored them.
        for_tfrecord: Whether to give what `TFRecordsWriter.write_dataset` writes.

    Returns:
        For each split, elements `({"input_data", "batch_input_enc", "batch_input_dec"}, (counts, counts))` of one cell
        each: float32, standardised as `uns["fixed_scaling"]` says. For records, elements `{"record", "mean", "std"}`.

    Raises:
        UnknownNameError: If obs lacks the column `batch` or `split`.
    """
    import tensorflow as tf

    from discern.data.minibatches import Batches

    for column in ("batch", "split"):
        if column not in adata.obs:
            raise UnknownNameError(f"expected an obs column {column!r}, there are {list(adata.obs)}")
    cells = adata if isinstance(adata, DISCERNData) else _log_normalised(adata)
    labels = _labels(cells)
    split = cells.obs["split"].to_numpy(dtype=str)
    mean, std = parse_mean_var(cells.var, cells.uns.get("fixed_scaling"))

    def dataset(part: str) -> tf.data.Dataset:
        chosen = split == part

        def records() -> Iterator[bytes]:
            for rows, block in iter_blocks(cells.X):
                yield from serialise(block[chosen[rows]], labels.codes[rows][chosen[rows]])

        found = tf.data.Dataset.from_generator(records, output_signature=tf.TensorSpec((), tf.string))
        return found.apply(tf.data.experimental.assert_cardinality(int(chosen.sum())))

    datasets = [dataset(part) for part in SPLITS.values()]
    if for_tfrecord:
        train, valid = (found.map(lambda record: {"record": record, "mean": mean, "std": std}) for found in datasets)
    else:
        parse = Batches(mean, std, len(labels.categories)).parse
        train, valid = (found.batch(64).map(parse).unbatch() for found in datasets)
    return train, valid


def _labels(adata: ad.AnnData) -> pd.Categorical:
    """Return the batch of each cell; the categories are the batches of the whole experiment, if they are known."""
    batch = adata.obs["batch"]
    if "DISCERN" not in adata.uns:
        return pd.Categorical(batch)
    names = batch_names(adata.uns)
    unknown = sorted(set(batch.astype(str)) - set(names))
    if unknown:
        raise InvalidInputError(f"expected cells of the batches {names}, got also {unknown}")
    return pd.Categorical(batch.astype(str), categories=names)


def check_processed(data: object) -> None:
    """Raise InvalidInputError unless these are log-normalised cells that the network takes."""
    if not isinstance(data, DISCERNData):
        raise InvalidInputError(
            f"expected processed cells as DISCERNData, got {type(data).__name__}: write DISCERNData(cells, batch_size) "
            "with the result of WAERecipe, or use discern.reconstruct for raw counts"
        )
    if not data.is_logged:
        raise InvalidInputError(
            "these cells are not log-normalised: call the recipe, or after its scaling scanpy.pp.log1p(recipe.sc_raw)"
        )


def _check_parts_of(adata: ad.AnnData) -> None:
    """Raise unless processed cells have what all that is done with them relies on."""
    config = adata.uns["DISCERN"]
    check_format(adata.uns)
    names = config["batch_key"]
    codes = [int(code) for code in names]
    if len(set(names.values())) < len(names) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError("uns['DISCERN']['batch_key'] does not name each batch once")
    if len(set(codes)) < len(codes):
        raise ValueError("uns['DISCERN']['batch_key'] has a number twice")
    if "total_train_count" in config:
        whole_number(config, "total_train_count", 0)
    if "batch" not in adata.obs:
        raise ValueError(f"obs lacks 'batch', it has {visible(str(list(adata.obs)), 200)}")
    parse_mean_var(adata.var, adata.uns.get("fixed_scaling"))
    check_parts(adata.uns)
    for part in ("obs", "var"):
        check_texts(getattr(adata, part), part)
    if sparse.issparse(adata.X):
        check_matrix(adata.X)
        check_finite(adata.X.data, "X")
    elif isinstance(adata.X, np.ndarray):
        check_finite(adata.X, "X")


def _finite(block: sparse.csr_matrix, path: Path) -> sparse.csr_matrix:
    with reading(path, "cannot be used as processed cells", "run `discern process` again"):
        check_finite(block.data, "X")
    return block


def _undo_standardising(adata: ad.AnnData) -> Undo | None:
    """Return what turns blocks of the original program's X back to log-normalised values, if `adata` is of it.

    A value that was zero comes back as exactly zero: it differs from it by rounding only, relative to the mean.
    """
    check_format(adata.uns)
    if "DISCERN_format" in adata.uns or "fixed_scaling" not in adata.uns:
        return None
    _LOGGER.info("These cells were standardised by DISCERN 1: turning them back to log-normalised values")
    mean, std = parse_mean_var(adata.var, adata.uns["fixed_scaling"])
    tolerance = 16 * np.finfo(np.float32).eps * np.abs(mean)

    def undo(block: np.ndarray) -> np.ndarray:
        values: np.ndarray = block * std + mean
        values[np.abs(values) <= tolerance] = 0
        return values.astype(np.float32, copy=False)

    return undo


def _is_raw(adata: ad.AnnData) -> bool:
    """Whether cells are in the hands of a recipe that has not come to their logarithm."""
    return isinstance(adata, DISCERNData) and not adata.is_logged


def _log_normalised(adata: ad.AnnData) -> ad.AnnData:
    """Return a shallow copy with X sparse, float32 and log-normalised."""
    if adata.is_view:
        adata = adata.copy()
    X: Matrix = adata.X
    if isinstance(X, np.ndarray):
        undo = _undo_standardising(adata) or (lambda block: block)
        step = max(1, 2**25 // max(1, adata.n_vars))
        blocks = [as_csr(undo(X[start : start + step])) for start in range(0, adata.n_obs, step)]
        X = sparse.vstack(blocks, format="csr")
    elif not is_lazy(X):
        X = in_gene_order(X.tocsr().astype(np.float32, copy=False))
    result = ad.AnnData(
        X=X,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        uns={**adata.uns, **({} if _is_raw(adata) else {"DISCERN_format": dict(FORMAT)})},
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        layers=named_layers(adata),
    )
    return result
