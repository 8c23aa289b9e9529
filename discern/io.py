"""Processed cells on their way to the network (`DISCERNData`) and results on their way to files."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from discern.blocks import Matrix, as_csr, estimate_csr_nbytes, is_lazy, iter_blocks, read_cells
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.functions import parse_mean_var
from discern.writing import generate_h5ad, write_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import tensorflow as tf

    from discern.blocks import Undo

__all__ = [
    "DISCERNData",
    "estimate_csr_nbytes",
    "generate_h5ad",
    "iter_blocks",
    "np_one_hot",
    "write_blocks",
]

_LOGGER = logging.getLogger(__name__)

FORMAT = {"version": 2}
"""Stamp `uns["DISCERN_format"]` of processed data: X is log-normalised. Version 1, the original, has none."""


def np_one_hot(labels: pd.Categorical) -> np.ndarray:
    """Return one row per label with a one at its category.

    Args:
        labels: n labels of k categories, of which some may be unused.

    Returns:
        float32 of shape (n, k).

    Raises:
        InvalidInputError: if a label is missing.

    Example:
        >>> np_one_hot(pd.Categorical(["b", "a"]))
        array([[0., 1.],
               [1., 0.]], dtype=float32)
    """
    labels = pd.Categorical(labels)
    if (labels.codes < 0).any():
        raise InvalidInputError(f"expected a label for every cell, {int((labels.codes < 0).sum())} are missing")
    one_hot = np.zeros((len(labels), len(labels.categories)), dtype=np.float32)
    one_hot[np.arange(len(labels)), labels.codes] = 1
    return one_hot


class DISCERNData(ad.AnnData):
    """Processed cells: an AnnData that also feeds the network.

    X is sparse (CSR, or a dask array of CSR blocks when it does not fit into memory), float32 and log-normalised:
    log1p of the counts scaled to the library size. The network works on standardised values, (x - mean) / std per gene;
    `tfdata` standardises.

    Args:
        adata: the result of `WAERecipe`, or what the original program stored (dense and standardised; converted).
            It is not modified; X is shared where it already has the form above.
        batch_size: cells per batch of `tfdata`. Never more than there are validation cells (with a warning).
        cachefile: folder for the record files of data that does not fit into memory and has none yet; by default a
            temporary one.
        seed: of the order of the training cells.

    Raises:
        UnknownNameError: if `adata` was not processed, i.e. has no `uns["DISCERN"]`.
    """

    def __init__(self, adata: ad.AnnData, batch_size: int, cachefile: str | Path = "", seed: int = 0):
        if "DISCERN" not in adata.uns:
            raise UnknownNameError(
                "expected processed cells, these have no uns['DISCERN']; run `discern process` on them"
            )
        super().__init__(_log_normalised(adata))
        self._order_batches()
        self._cachefile = Path(cachefile) if cachefile else None
        self._tfrecords: Path | None = None
        self._seed = seed
        self.batch_size = batch_size

    def _order_batches(self) -> None:
        """Give `batch` the categories of the whole experiment: a subset of cells may have lost some."""
        key = self.config["batch_key"]
        names = [key[code] for code in sorted(key, key=int)]
        unknown = sorted(set(self.obs["batch"].astype(str)) - set(names))
        if unknown:
            raise InvalidInputError(f"expected cells of the batches {names}, got also {unknown}")
        self.obs["batch"] = pd.Categorical(self.obs["batch"].astype(str), categories=names)

    @classmethod
    def read_h5ad(cls, filename: str | Path, batch_size: int, cachefile: str | Path = "") -> DISCERNData:  # type: ignore[override]
        """Read processed cells from an `.h5ad` file or a `.zarr` folder.

        Raises:
            MissingFileError: if there is no such file.
            InvalidInputError: if it cannot be read.
            UnknownNameError: if its cells were not processed.
        """
        return cls(read_cells(Path(filename), undo=_undo_standardising), batch_size=batch_size, cachefile=cachefile)

    @classmethod
    def from_folder(cls, folder: str | Path, batch_size: int, cachefile: str | Path = "") -> DISCERNData:
        """Read the processed cells of an experiment.

        Args:
            folder: folder of the experiment, with `processed_data/concatenated_data.h5ad` and perhaps `TF_records/`.
            batch_size: cells per batch.
            cachefile: see `DISCERNData`.

        Raises:
            MissingFileError: if the folder holds no processed data.
        """
        processed = Path(folder) / "processed_data" / "concatenated_data.h5ad"
        if not processed.exists():
            raise MissingFileError(f"{processed}: no such file; run `discern process` first")
        data = cls.read_h5ad(processed, batch_size=batch_size, cachefile=cachefile)
        return data

    @property
    def config(self) -> Mapping[str, Any]:
        """What preprocessing found out (`uns["DISCERN"]`): batch names, numbers of cells, LSN, MMD kernel."""
        return self.uns["DISCERN"]

    @property
    def batch_size(self) -> int:
        """Cells per batch."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        valid = int((self.obs["split"] == "valid").sum()) if "split" in self.obs else 0
        if 0 < valid < value:
            warnings.warn(f"batch_size {value} is more than the {valid} validation cells: using {valid}", stacklevel=3)
            value = valid
        self._batch_size = value

    @property
    def scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each gene, float32 of shape (n_genes,); 0 and 1 without `fixed_scaling`."""
        return parse_mean_var(self.var, self.uns.get("fixed_scaling"))

    @property
    def zeros(self) -> np.ndarray:
        """What a zero count is after standardising, float32 of shape (n_genes,)."""
        mean, std = self.scaling
        return (0 - mean) / std

    @property
    def tfdata(self) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        """Training and validation batches for `keras.Model.fit`.

        Elements are `({"input_data", "batch_input_enc", "batch_input_dec"}, (counts, counts))`, all float32; counts and
        `input_data` are the same standardised values (batch_size, n_genes), the labels are one-hot (batch_size,
        n_batches). Training cells come in another order every epoch. An incomplete last batch is left out.
        """
        if "split" not in self.obs:
            raise UnknownNameError(f"obs has no column 'split', which says what to train on; it has {list(self.obs)}")
        split = self.obs["split"].to_numpy()
        labels = np_one_hot(self.obs["batch"].array)
        return self._batches(split == "train", labels, self._seed), self._batches(split == "valid", labels, None)

    def _batches(self, chosen: np.ndarray, labels: np.ndarray, seed: int | None) -> tf.data.Dataset:
        import tensorflow as tf

        X, n_genes, n_labels = self.X, self.n_vars, labels.shape[1]
        mean, std = self.scaling
        zeros = (0 - mean) / std

        def standardised(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            block = X[cells]
            dense = np.empty(block.shape, dtype=np.float32)
            dense[:] = zeros
            rows = np.repeat(np.arange(len(cells)), np.diff(block.indptr))
            dense[rows, block.indices] = (block.data - mean[block.indices]) / std[block.indices]
            return dense, labels[cells]

        def batch(cells: tf.Tensor) -> Any:
            counts, label = tf.numpy_function(standardised, [cells], [tf.float32, tf.float32])
            counts.set_shape((self.batch_size, n_genes))
            label.set_shape((self.batch_size, n_labels))
            return {"input_data": counts, "batch_input_enc": label, "batch_input_dec": label}, (counts, counts)

        cells = np.flatnonzero(chosen)
        dataset = tf.data.Dataset.from_tensor_slices(cells)
        if seed is not None and len(cells):
            dataset = dataset.shuffle(len(cells), seed=seed)
        return (
            dataset.batch(self.batch_size, drop_remainder=True)
            .map(batch, num_parallel_calls=2, deterministic=True)
            .prefetch(2)
        )


def _undo_standardising(adata: ad.AnnData) -> Undo | None:
    """Return what turns blocks of the original program's X back to log-normalised values, if `adata` is of it.

    A value that was zero comes back as exactly zero: it differs from it by rounding only, relative to the mean.
    """
    if "DISCERN_format" in adata.uns or "fixed_scaling" not in adata.uns:
        return None
    _LOGGER.info("These cells were standardised by DISCERN 1: turning them back to log-normalised values")
    mean, std = parse_mean_var(adata.var, adata.uns["fixed_scaling"])
    tolerance = 16 * np.finfo(np.float32).eps * np.abs(mean)

    def undo(block: np.ndarray) -> np.ndarray:
        values = block * std + mean
        values[np.abs(values) <= tolerance] = 0
        return values.astype(np.float32, copy=False)

    return undo


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
        X = X.tocsr().astype(np.float32, copy=False)
    result = ad.AnnData(
        X=X,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        uns={**adata.uns, "DISCERN_format": dict(FORMAT)},
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        layers=dict(adata.layers),
    )
    return result
