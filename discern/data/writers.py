"""Results written block of cells by block of cells, as `.h5ad` or `.zarr` that scanpy reads."""

from __future__ import annotations

import functools
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import zarr
from anndata.io import write_elem
from scipy import sparse

from discern.data.annotation import named_layers, storable
from discern.data.chunks import as_csr, estimate_csr_nbytes, hdf5_lock, in_gene_order, rows_per_block
from discern.data.scaling import is_standardised, parse_mean_var, sample_counts
from discern.data.structure import uns_to_write
from discern.errors import InvalidInputError
from discern.runtime.atomic import replacing
from discern.runtime.devices import available_cpus
from discern.runtime.hdf5 import OutputFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Executor

    import h5py
    import pandas as pd
    from numpy.typing import DTypeLike

    from discern.data.chunks import Matrix


CHUNK_BYTES = 2**20
_SMALLEST_SPARSE: dict[str, type] = {"f": np.float32, "u": np.uint8, "i": np.int8}
_FILTERS = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


class _Array:
    """An array on disk that grows along its first axis, chunk by chunk."""

    def __init__(self, row_shape: tuple[int, ...], dtype: np.dtype, chunk_bytes: int):
        self.rows = 0
        self._chunk = (max(1, chunk_bytes // (dtype.itemsize * int(np.prod(row_shape)))), *row_shape)
        self._dtype = dtype
        self._rest = np.empty((0, *row_shape), dtype=dtype)

    def append(self, values: np.ndarray) -> None:
        values = values.astype(self._dtype, copy=False)
        if len(self._rest):
            values = np.concatenate([self._rest, values])
        full = len(values) - len(values) % self._chunk[0]
        if full:
            self._write(values[:full])
            self.rows += full
        self._rest = values[full:].copy()

    def close(self) -> None:
        self._write(self._rest)
        self.rows += len(self._rest)

    def _write(self, values: np.ndarray) -> None:
        raise NotImplementedError


class _H5Array(_Array):
    """Compresses chunks side by side: HDF5 itself would compress them one after the other.

    The chunks stay uncompressed where that would not halve them, as with the mantissas of estimates.
    """

    def __init__(
        self,
        group: h5py.Group,
        name: str,
        row_shape: tuple[int, ...],
        dtype: np.dtype,
        pool: Executor,
        chunk_bytes: int,
    ):
        super().__init__(row_shape, dtype, chunk_bytes)
        self._group, self._name, self._pool = group, name, pool
        self.dataset: h5py.Dataset | None = None
        self._filters: dict[str, Any] = {}

    def _write(self, values: np.ndarray) -> None:
        if self.dataset is None and len(values) < self._chunk[0]:  # all there is
            self._chunk = (max(1, len(values)), *self._chunk[1:])
        chunk_rows = self._chunk[0]
        if self.dataset is None:
            sample = values[:chunk_rows]
            self._filters = _FILTERS if len(_packed(sample)) < 0.5 * sample.nbytes else {}
            with hdf5_lock:
                self.dataset = self._group.create_dataset(
                    self._name,
                    (0, *self._chunk[1:]),
                    self._dtype,
                    maxshape=(None, *self._chunk[1:]),
                    chunks=self._chunk,
                    **self._filters,
                )
        if not self._filters:
            with hdf5_lock:
                self.dataset.resize(self.rows + len(values), axis=0)
                self.dataset[self.rows :] = values
            return
        pieces = [values[start : start + chunk_rows] for start in range(0, len(values), chunk_rows)]
        if pieces and len(pieces[-1]) < chunk_rows:
            padding = [(0, chunk_rows - len(pieces[-1]))] + [(0, 0)] * len(self._chunk[1:])
            pieces[-1] = np.pad(pieces[-1], padding)
        chunks = list(self._pool.map(_packed, pieces))
        with hdf5_lock:
            self.dataset.resize(self.rows + len(values), axis=0)
            for number, packed in enumerate(chunks):
                offset = (self.rows + number * chunk_rows, *(0 for _ in self._chunk[1:]))
                self.dataset.id.write_direct_chunk(offset, packed)


def _packed(values: np.ndarray) -> bytes:
    """What HDF5's filters shuffle and gzip (level 1) make of a chunk."""
    flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize)
    return zlib.compress(flat.T.tobytes(), 1)


class _ZarrArray(_Array):
    def __init__(self, group: zarr.Group, name: str, row_shape: tuple[int, ...], dtype: np.dtype, chunk_bytes: int):
        super().__init__(row_shape, dtype, chunk_bytes)
        self.dataset = group.create_array(name, shape=(0, *row_shape), dtype=dtype, chunks=self._chunk)

    def _write(self, values: np.ndarray) -> None:
        self.dataset.resize((self.rows + len(values), *self._chunk[1:]))
        if len(values):
            self.dataset[self.rows :] = values


class _Dense:
    """A matrix stored as an array."""

    def __init__(self, name: str, n_genes: int, dtype: np.dtype, make: Callable[..., _Array]):
        self._name = name
        self._array = make(name, (n_genes,), dtype)

    def append(self, block: Matrix) -> None:
        self._array.append(block.toarray() if sparse.issparse(block) else np.asarray(block))

    def close(self, group: h5py.Group) -> int:
        self._array.close()
        group[self._name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return int(self._array.rows)


class _Sparse:
    """A matrix stored as CSR."""

    def __init__(self, name: str, n_genes: int, dtype: np.dtype, make: Callable[..., _Array]):
        self._name, self._n_genes, self._dtype = name, n_genes, dtype
        self._data = make(f"{name}/data", (), dtype)
        self._indices = make(f"{name}/indices", (), np.dtype(np.int32))
        self._indptr = [np.zeros(1, dtype=np.int64)]
        self._make = make

    def append(self, block: Matrix) -> None:
        csr = in_gene_order(as_csr(block, self._dtype))
        self._data.append(csr.data)
        self._indices.append(csr.indices)
        self._indptr.append(csr.indptr[1:].astype(np.int64) + self._indptr[-1][-1])

    def close(self, group: h5py.Group) -> int:
        indptr = np.concatenate(self._indptr)
        pointers = self._make(f"{self._name}/indptr", (), np.dtype(np.int32 if indptr[-1] < 2**31 else np.int64))
        pointers.append(indptr)
        for array in (self._data, self._indices, pointers):
            array.close()
        shape = [len(indptr) - 1, self._n_genes]
        group[self._name].attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        return shape[0]


def write_blocks(
    path: str | Path,
    adata: ad.AnnData,
    blocks: Iterable[Mapping[str, Matrix]],
    dtype: DTypeLike = np.float32,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Write an AnnData whose matrices come block of cells by block of cells; only one block is in memory at a time.

    The file appears when it is complete; an error leaves what was there before. Chunks are compressed with gzip, which
    every HDF5 library reads, where that is worth it.

    Args:
        path: File to write, `.h5ad`, or folder to write, `.zarr`.
        adata: obs, var, uns, obsm and varm of all cells; its X and layers are not looked at.
        blocks: For consecutive blocks of cells, the rows of each matrix (n_cells of the block, n_genes), sparse or
            dense: key "X" and the names of layers. Each matrix is stored as CSR where this makes the first block
            smaller, else dense.
        dtype: Type of the stored values, e.g. np.float16. (CSR stays float32 then: scipy has no smaller float.)
        chunk_bytes: Bytes of a chunk in the file.

    Raises:
        InvalidInputError: If the suffix is another one, or the blocks differ in keys or have not the cells of `adata`.

    Example:
        >>> import tempfile
        >>> adata = ad.AnnData(obs={"n": [1, 2, 3]}, shape=(3, 2))
        >>> file = Path(tempfile.mkdtemp()) / "cells.h5ad"
        >>> write_blocks(file, adata, [{"X": np.eye(2)}, {"X": np.ones((1, 2))}])
        >>> ad.read_h5ad(file).X
        array([[1., 0.],
               [0., 1.],
               [1., 1.]], dtype=float32)
    """
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise InvalidInputError(f"{path}: expected a name that ends in .h5ad or .zarr")
    header = ad.AnnData(
        obs=storable(adata.obs, path.name, categories=False),
        var=storable(adata.var, path.name, "var", categories=False),
        uns=uns_to_write(adata.uns),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
    )
    with replacing(path) as partial, ThreadPoolExecutor(max_workers=available_cpus()) as pool:
        if path.suffix == ".h5ad":
            with OutputFile(partial) as group:
                write_elem(group, "/", header)
                make = functools.partial(_H5Array, group, pool=pool, chunk_bytes=chunk_bytes)
                _write_matrices(group, header, _checked(blocks, group), np.dtype(dtype), make)
        else:
            group = zarr.open_group(partial, mode="w", zarr_format=2)
            write_elem(group, "/", header)
            make_zarr = functools.partial(_ZarrArray, group, chunk_bytes=chunk_bytes)
            _write_matrices(group, header, blocks, np.dtype(dtype), make_zarr)


def _checked(blocks: Iterable[Mapping[str, Matrix]], file: OutputFile) -> Iterator[Mapping[str, Matrix]]:
    """End the work on a full disk with the block that did not fit."""
    for block in blocks:
        file.check()
        yield block


def _write_matrices(
    group: h5py.Group,
    adata: ad.AnnData,
    blocks: Iterable[Mapping[str, Matrix]],
    dtype: np.dtype,
    make: Callable[..., _Array],
) -> None:
    matrices: dict[str, _Dense | _Sparse] = {}
    for block in blocks:
        if not matrices:
            for key, rows in block.items():
                name = key if key == "X" else f"layers/{key}"
                if estimate_csr_nbytes(rows) < rows.shape[0] * rows.shape[1] * dtype.itemsize:
                    matrices[key] = _Sparse(
                        name, adata.n_vars, np.promote_types(dtype, _SMALLEST_SPARSE[dtype.kind]), make
                    )
                else:
                    matrices[key] = _Dense(name, adata.n_vars, dtype, make)
        if block.keys() != matrices.keys():
            raise InvalidInputError(f"expected the matrices {sorted(matrices)} in every block, got {sorted(block)}")
        for key, rows in block.items():
            if rows.shape[1] != adata.n_vars:
                raise InvalidInputError(f"{key}: expected blocks of {adata.n_vars} genes, got {rows.shape[1]}")
            matrices[key].append(rows)
    for key, matrix in matrices.items():
        n_cells = matrix.close(group)
        if n_cells != adata.n_obs:
            raise InvalidInputError(f"{key}: expected {adata.n_obs} cells in all blocks, got {n_cells}")


def generate_h5ad(
    counts: Matrix | tuple[np.ndarray, np.ndarray],
    var: pd.DataFrame,
    obs: pd.DataFrame,
    save_path: str | Path | None = None,
    threshold: float = 0.1,
    **kwargs: Any,
) -> ad.AnnData:
    """Make an AnnData of estimated expression, and write it if a path is given.

    Args:
        counts: Expression, (n_cells, n_genes), sparse or dense, not modified; or a pair of dense matrices: counts and
            the probability that the gene is detected. Log-normalised, or standardised as the original's
            (`discern.functions.is_standardised(uns)`), which is undone.
        var: One row per gene.
        obs: One row per cell.
        save_path: `.h5ad` or `.zarr` to write.
        threshold: Smaller values of X become zero.
        kwargs: Further parts of the AnnData: `uns`, `obsm`, `varm`, `layers`.

    Returns:
        The AnnData, float32, log-normalised, without `uns["fixed_scaling"]`; X is CSR where that is smaller than dense.
        With a pair, X has each count with its probability, else zero (the draw is seeded), and `layers` have
        `estimated_counts` and `estimated_dropouts`.

    Raises:
        InvalidInputError: If counts and probabilities differ in shape.

    Example:
        >>> import pandas as pd
        >>> generate_h5ad(np.array([[0.05, 1.5]]), pd.DataFrame(index=["A", "B"]), pd.DataFrame(index=["cell"])).X
        array([[0. , 1.5]], dtype=float32)
    """
    uns = kwargs.pop("uns", None) or {}
    scaling = uns["fixed_scaling"] if is_standardised(uns) else None
    layers = dict(kwargs.pop("layers", None) or {})
    if isinstance(counts, tuple | list):
        estimated, dropouts = (np.asarray(part, dtype=np.float32) for part in counts)
        estimated = _unscaled(estimated, var, scaling)
        layers = {"estimated_counts": estimated, "estimated_dropouts": dropouts} | layers
        X: Matrix = sample_counts(estimated, dropouts)
    else:
        X = counts.astype(np.float32) if sparse.issparse(counts) else np.array(counts, dtype=np.float32)
        X = _unscaled(X, var, scaling)
    values = X.data if sparse.issparse(X) else X
    values[values < threshold] = 0
    if sparse.issparse(X):
        X = X.tocsr()
        X.eliminate_zeros()
    if estimate_csr_nbytes(X) < X.shape[0] * X.shape[1] * X.dtype.itemsize:
        X = as_csr(X)
    elif sparse.issparse(X):
        X = X.toarray()
    uns = {key: value for key, value in uns.items() if key != "fixed_scaling"}
    adata = ad.AnnData(X=X, obs=obs, var=var, uns=uns, layers=layers, **kwargs)
    if save_path is not None:
        step = rows_per_block(adata.n_vars)
        matrices = {"X": adata.X, **named_layers(adata)}
        write_blocks(
            save_path,
            adata,
            (
                {key: matrix[start : start + step] for key, matrix in matrices.items()}
                for start in range(0, adata.n_obs, step)
            ),
        )
    return adata


def _unscaled(counts: Matrix, var: pd.DataFrame, scaling: Mapping[str, object] | None) -> Matrix:
    if scaling is None:
        return counts
    mean, std = parse_mean_var(var, scaling)
    return np.maximum((counts.toarray() if sparse.issparse(counts) else counts) * std + mean, 0)
