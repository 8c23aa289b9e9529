"""Matrices of cells x genes, block of cells by block of cells.

A matrix is CSR in memory when it fits into a part of the machine's memory, else a dask array whose chunks are CSR
blocks of rows, read when they are needed. Nothing here makes a dense matrix of more than one block.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

import anndata as ad
import dask.array
import h5py
import numpy as np
import zarr
from anndata.io import read_elem
from scipy import sparse

from discern.data.containers import check_stored_sparse, open_hdf5, open_zarr
from discern.data.structure import (
    check_compressed,
    check_matrix,
    check_parts,
    check_shape,
    check_values,
    compressed,
    uns_as_written,
)
from discern.errors import InvalidInputError, MissingFileError
from discern.runtime.foreign import reading, visible
from discern.runtime.memory import block_budget, matrix_budget
from discern.runtime.progress import track
from discern.runtime.tasks import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike


Undo: TypeAlias = "Callable[[np.ndarray], np.ndarray]"
"""Turns stored values back into log-normalised ones."""
Matrix = Any
"""A matrix of cells x genes: ndarray, scipy.sparse matrix or dask array."""

_BlockInfo: TypeAlias = "Mapping[None, Mapping[str, Sequence[tuple[int, int]]]]"
"""What dask says of a block: where it is in the array."""

hdf5_lock = threading.RLock()
"""Held while blocks are read ahead and while they are written: HDF5 is not made for several threads, and the lock of
h5py does not cover the writing of compressed chunks."""

READ_PARTS = ("obs", "var", "uns", "obsm", "varm")
"""What of AnnData is read, beside X and layers."""


def rows_per_block(n_genes: int) -> int:
    """Return how many cells make a block: 128 MB of float32, would it be dense.

    Example:
        >>> rows_per_block(15_073)
        2226
    """
    return max(16, min(16384, block_budget() // max(1, n_genes)))


def is_lazy(matrix: Matrix) -> bool:
    """Return whether the matrix is a dask array."""
    return hasattr(matrix, "dask")


def estimate_csr_nbytes(mat: Matrix) -> int:
    """Return the bytes that a matrix takes, or would take, in CSR form.

    Args:
        mat: Sparse or dense matrix, (n_rows, n_columns).

    Example:
        >>> estimate_csr_nbytes(np.eye(3, dtype=np.float32))
        40
    """
    nnz = mat.nnz if sparse.issparse(mat) else int(np.count_nonzero(mat))
    return _csr_nbytes(mat.shape, nnz, mat.dtype)


def _csr_nbytes(shape: tuple[int, int], nnz: int, dtype: np.dtype) -> int:
    index = 4 if max(nnz, shape[1]) < 2**31 else 8
    return nnz * (dtype.itemsize + index) + (shape[0] + 1) * index


def as_csr(block: Matrix, dtype: DTypeLike | None = np.float32) -> sparse.csr_matrix:
    """Return a block of rows as CSR without stored zeros, in the type given, None for its own."""
    if block.dtype == np.float16:
        block = block.astype(np.float32)  # scipy knows no float16
    if isinstance(block, np.ndarray):
        return _csr_of_dense(np.asarray(block, dtype=dtype))
    csr = sparse.csr_matrix(block, dtype=dtype)
    if csr.nnz and not csr.data.all():
        if np.shares_memory(csr.data, block.data):
            csr = csr.copy()
        csr.eliminate_zeros()
    return csr


def _csr_of_dense(block: np.ndarray) -> sparse.csr_matrix:
    """Do what scipy does by way of the coordinates of all values, which takes it longer."""
    values = block.ravel()
    shown = np.flatnonzero(values)
    n_cells, n_genes = block.shape
    begins = np.searchsorted(shown, np.arange(n_cells + 1) * n_genes)
    return sparse.csr_matrix((values[shown], shown % max(n_genes, 1), begins), shape=block.shape)


def canonical(X: Matrix, source: str) -> Matrix:
    """Return counts of any kind as CSR of numbers that numpy calculates with, the entries of one place summed.

    Args:
        X: Dense, masked, sparse or dask matrix, (n_cells, n_genes). Not modified.
        source: How messages call it.

    Returns:
        A CSR matrix, X itself if it is one already; of a dask array, a dask array of CSR blocks.

    Raises:
        InvalidInputError: If X holds no real numbers, some are masked, or its parts do not fit together.

    Example:
        >>> twice = sparse.csr_matrix(([1, 2], [0, 0], [0, 2]), shape=(1, 1))
        >>> canonical(twice, "cells").data
        array([3])
    """
    dtype = usable_dtype(X.dtype, source)
    if is_lazy(X):
        rows = rows_per_block(X.shape[1])
        is_sparse = sparse.issparse(X._meta)
        chunks = {1: -1} if is_sparse or max(X.chunks[0], default=0) <= rows else {0: rows, 1: -1}
        meta = sparse.csr_matrix((0, 0), dtype=dtype)
        return X.rechunk(chunks).map_blocks(canonical, source, dtype=dtype, meta=meta)
    if isinstance(X, np.ma.MaskedArray):
        if (masked := int(np.ma.getmaskarray(X).sum())) > 0:
            raise InvalidInputError(f"{source}: expected a count of each gene in each cell, {masked} values are masked")
        X = X.data
    if sparse.issparse(X):
        with reading(source, "cannot be used"):
            check_matrix(X)
    else:
        X, rows = np.asarray(X), rows_per_block(X.shape[1])
        starts = range(0, max(1, X.shape[0]), rows)
        return sparse.vstack([as_csr(X[start : start + rows], dtype) for start in starts], format="csr")
    X = X if X.dtype == dtype else X.astype(dtype)
    return summed(X if isinstance(X, sparse.csr_matrix) else sparse.csr_matrix(X))


def usable_dtype(dtype: np.dtype, source: str) -> np.dtype:
    """Return the type in which counts of this type are held: of this machine, and known to scipy.

    Raises:
        InvalidInputError: If they are no real numbers.

    Example:
        >>> usable_dtype(np.dtype(">f2"), "cells"), usable_dtype(np.dtype(bool), "cells")
        (dtype('float32'), dtype('uint8'))
    """
    if dtype.kind not in "biuf":
        kind = {"c": "complex numbers", "O": "objects", "M": "dates", "m": "times"}.get(dtype.kind, "text")
        raise InvalidInputError(f"{source}: expected counts in X, got {kind} ({dtype})")
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float32 if dtype.itemsize == 2 else np.float64)
    return dtype.newbyteorder("=")


def summed(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the matrix with one entry for each place, the sum of those that it has; itself if it is so already."""
    if X.has_canonical_format:
        return X
    ordered = sparse.csr_matrix((X.data, X.indices, X.indptr), shape=X.shape, copy=True)
    ordered.sort_indices()
    if ordered.has_canonical_format:
        return ordered
    if X.dtype.kind in "iu" and X.dtype.itemsize < 4:
        ordered = ordered.astype(np.int32)
    ordered.sum_duplicates()
    return ordered


def in_gene_order(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the matrix with the entries of each cell in the order of the genes.

    Random numbers are drawn entry by entry: results must not depend on where the cells have been.
    """
    return X if X.has_sorted_indices else X.sorted_indices()


def some_rows(rows: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return so many of some rows, chosen by chance, in their order; all if there are no more.

    Example:
        >>> [len(some_rows(np.arange(n), 4, np.random.default_rng(0))) for n in (3, 9)]
        [3, 4]
    """
    return rows if len(rows) <= most else np.sort(generator.choice(rows, most, replace=False))


def iter_blocks(X: Matrix, cells: int | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Iterate over the rows of a matrix in order.

    Args:
        X: Sparse, dense or dask matrix, (n_cells, n_genes).
        cells: Rows of each block (the last one may have fewer); by default as many as `rows_per_block` says.

    Yields:
        The rows that the block is of, and the block as float32 CSR.

    Example:
        >>> [(rows.start, rows.stop, block.nnz) for rows, block in iter_blocks(np.eye(5), cells=2)]
        [(0, 2, 2), (2, 4, 2), (4, 5, 1)]
    """
    cells = cells or rows_per_block(X.shape[1])
    if not is_lazy(X):
        for start in range(0, X.shape[0], cells):
            stop = min(start + cells, X.shape[0])
            yield slice(start, stop), as_csr(X[start:stop])
        return
    start = 0
    for block in _regrouped(X, cells):
        yield slice(start, start + block.shape[0]), block
        start += block.shape[0]


def track_blocks(X: Matrix, description: str) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Iterate like `iter_blocks` while showing how far it is."""
    return track(iter_blocks(X), description, total=math.ceil(X.shape[0] / rows_per_block(X.shape[1])))


def _regrouped(X: Matrix, cells: int) -> Iterator[sparse.csr_matrix]:
    rest: sparse.csr_matrix | None = None
    for chunk in _read_ahead(X):
        if rest is not None and rest.shape[0]:
            chunk = sparse.vstack([rest, chunk], format="csr")
        full = chunk.shape[0] - chunk.shape[0] % cells
        for start in range(0, full, cells):
            yield chunk if chunk.shape[0] == cells else chunk[start : start + cells]
        rest = chunk[full:]
    if rest is not None and rest.shape[0]:
        yield rest


def _read_ahead(X: Matrix) -> Iterator[sparse.csr_matrix]:
    """Yield the chunks of a dask matrix; the next one is read while the caller is at work on one."""

    def read(number: int) -> sparse.csr_matrix:
        with hdf5_lock:
            block = X.blocks[number].compute(scheduler="synchronous")
        return as_csr(block)

    return ahead(map(read, range(X.numblocks[0])))


def read_cells(
    path: Path, undo: Callable[[ad.AnnData], Undo | None] | None = None, budget: int | None = None
) -> ad.AnnData:
    """Read an `.h5ad` file or a `.zarr` folder; X becomes CSR in memory if it fits, else a dask array of CSR blocks.

    Layers, `raw` and pairwise annotations are left out.

    Args:
        path: The file or folder.
        undo: Gets the AnnData without X; the function that it returns, if any, is applied to each block of a dense X.
        budget: Bytes that X may take in memory, by default `matrix_budget()`.

    Raises:
        MissingFileError: If there is no such file.
        InvalidInputError: If it cannot be read, or has no X.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file")
    with opened(path) as group:
        if "encoding-type" not in group.attrs or isinstance(group.get("obs"), h5py.Dataset):
            check_stored_sparse(group)
            adata = ad.read_h5ad(path)  # written by anndata < 0.7
            check_parts({"X": adata.X, "obsm": adata.obsm, "varm": adata.varm, "uns": adata.uns})
            adata.uns = uns_as_written(adata.uns)
            adata.X = canonical(adata.X, str(path))
            return adata
        for name in ("X", "obs", "var"):
            if name not in group:
                raise InvalidInputError(
                    f"{path}: expected a matrix X, obs and var, found only {[visible(key) for key in sorted(group)]}"
                )
        parts = {key: read_elem(group[key]) for key in READ_PARTS if key in group}
        check_parts({name: part for name, part in parts.items() if name not in ("obs", "var", "uns")})
        parts["uns"] = uns_as_written(parts.get("uns", {}))
        adata = ad.AnnData(**parts)
        adata.X = read_matrix(path, group["X"], adata.shape, budget, undo(adata) if undo else None)
    return adata


def read_layers(path: Path, names: Collection[str]) -> ad.AnnData:
    """Read obs, var and some matrices of an `.h5ad` file or a `.zarr` folder, each as `read_cells` reads X.

    Args:
        path: The file or folder.
        names: Of layers, or "X"; those that the file lacks are left out.

    Raises:
        MissingFileError: If there is no such file.
        InvalidInputError: If it cannot be read.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file")
    if path.suffix not in (".h5ad", ".zarr"):
        raise InvalidInputError(f"{path}: expected an .h5ad file or a .zarr folder")
    with opened(path) as group:
        for name in ("obs", "var"):
            if name not in group or isinstance(group[name], h5py.Dataset):
                raise InvalidInputError(f"{path}: expected a table {name}, as anndata writes it since version 0.7")
        adata = ad.AnnData(obs=read_elem(group["obs"]), var=read_elem(group["var"]))
        layers = group.get("layers", {})
        for name in names:
            if name in layers:
                adata.layers[name] = read_matrix(path, layers[name], adata.shape)
            elif name == "X" and name in group:
                adata.X = read_matrix(path, group[name], adata.shape)
    return adata


@contextlib.contextmanager
def opened(path: Path, again: bool = False) -> Iterator[h5py.Group]:
    """Open a file or folder of cells; what is wrong with it is an InvalidInputError that names it.

    Args:
        path: `.h5ad` or `.zarr`.
        again: Whether it has been checked before.
    """
    problem = f"cannot be read as {path.suffix}"
    if path.suffix == ".zarr":
        with reading(path, problem):
            yield zarr.open_group(path, mode="r", use_consolidated=False) if again else open_zarr(path, READ_PARTS)
    elif again:
        with reading(path, problem), h5py.File(path, "r") as group:
            yield group
    else:
        with open_hdf5(path, problem, whole=READ_PARTS) as group:
            yield group


def read_matrix(
    path: Path,
    elem: h5py.Group | h5py.Dataset,
    shape: tuple[int, int],
    budget: int | None = None,
    undo: Undo | None = None,
) -> Matrix:
    """Read a stored matrix as CSR if it fits into memory, else as dask array of CSR blocks.

    Args:
        path: The file that it is in, which blocks are read from later.
        elem: HDF5 or zarr, dense or sparse as anndata writes it, also as versions before 0.7 wrote it.
        shape: (n_cells, n_genes), as obs and var say.
        budget: Bytes that it may take in memory, by default `matrix_budget()`; at least as many if it is stored by
            genes, as its cells cannot be read one after the other.
        undo: Applied to each block of a dense matrix.

    Raises:
        InvalidInputError: If it holds no counts, or is stored by genes and does not fit into memory.
        ValueError: If its parts do not fit together.
    """
    budget = matrix_budget() if budget is None else budget
    is_sparse = isinstance(elem, h5py.Group | zarr.Group)
    encoding = str(elem.attrs.get("encoding-type", elem.attrs.get("h5sparse_format", "")))[:3]
    if is_sparse and encoding not in ("csr", "csc"):
        raise InvalidInputError(
            f"{path}: expected a dense or sparse matrix (CSR or CSC) as X, "
            f"got {visible(encoding) or 'something else'!r}"
        )
    sizes = elem.attrs["shape" if "shape" in elem.attrs else "h5sparse_shape"] if is_sparse else elem.shape
    stored = check_shape(sizes)
    if stored != shape:
        raise InvalidInputError(
            f"{path}: expected X of {shape[0]} cells x {shape[1]} genes as obs and var say, got "
            f"{stored[0]} x {stored[1]}"
        )
    if is_sparse:
        return _read_sparse(path, elem, shape, encoding == "csr", budget)
    return _read_dense(path, elem, undo, budget)


def _read_sparse(
    path: Path, elem: h5py.Group | h5py.Dataset, shape: tuple[int, int], by_rows: bool, budget: int
) -> Matrix:
    data, indices = elem["data"], elem["indices"]
    dtype = usable_dtype(data.dtype, str(path))
    nbytes = _csr_nbytes(shape, data.shape[0], np.dtype(np.float32))
    if nbytes <= (budget if by_rows else max(budget, matrix_budget())):
        found = compressed(data[...], indices[...], elem["indptr"][...], shape, by_rows).tocsr()
        return summed(found.astype(dtype, copy=False))
    if not by_rows:
        raise InvalidInputError(
            f"{path}: X is stored by genes (CSC) and takes {nbytes / 1e9:.1f} GB, too much for the memory of this "
            "machine; store it by cells (CSR)"
        )
    check_values(data)
    if elem["indptr"].shape != (shape[0] + 1,) or data.shape != indices.shape:
        raise ValueError(f"X: data, indices and indptr have {data.shape}, {indices.shape} and {elem['indptr'].shape}")
    indptr = elem["indptr"][...]
    check_compressed(shape, indptr, data.shape[0])
    return _lazy(functools.partial(_sparse_rows, path, elem.name, indptr, shape[1], dtype), shape, dtype)


def _lazy(read: Callable[..., sparse.csr_matrix], shape: tuple[int, int], dtype: np.dtype) -> Matrix:
    """Return a dask array of blocks of rows, each read when it is needed."""
    rows = rows_per_block(shape[1])
    sizes = tuple(min(rows, shape[0] - start) for start in range(0, shape[0], rows))
    return dask.array.map_blocks(
        read, chunks=(sizes, (shape[1],)), dtype=dtype, meta=sparse.csr_matrix((0, 0), dtype=dtype)
    )


def _sparse_rows(
    path: Path, name: str, indptr: np.ndarray, n_genes: int, dtype: np.dtype, block_info: _BlockInfo
) -> sparse.csr_matrix:
    start, stop = block_info[None]["array-location"][0]
    first, last = indptr[start], indptr[stop]
    with opened(path, again=True) as group:
        elem = group[name]
        data, indices = elem["data"][first:last], elem["indices"][first:last]
        found = compressed(data, indices, indptr[start : stop + 1] - first, (stop - start, n_genes))
        return summed(found.astype(dtype, copy=False))


def _dense_rows(path: Path, name: str, dtype: np.dtype, undo: Undo | None, block_info: _BlockInfo) -> sparse.csr_matrix:
    start, stop = block_info[None]["array-location"][0]
    with opened(path, again=True) as group:
        block = group[name][start:stop]
    return as_csr(undo(block) if undo else block, dtype)


def _read_dense(path: Path, elem: h5py.Group | h5py.Dataset, undo: Undo | None, budget: int) -> Matrix:
    dtype = np.dtype(np.float32) if undo else usable_dtype(elem.dtype, str(path))
    rows = rows_per_block(elem.shape[1])
    blocks: list[sparse.csr_matrix] = []
    for start in range(0, elem.shape[0], rows):
        block = elem[start : start + rows]
        blocks.append(as_csr(undo(block) if undo else block, dtype))
        if sum(block.data.nbytes + block.indices.nbytes for block in blocks) > budget / 2:
            break
    else:
        return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix(elem.shape, dtype=dtype)
    return _lazy(functools.partial(_dense_rows, path, elem.name, dtype, undo), elem.shape, dtype)


def block_bounds(X: Matrix) -> np.ndarray:
    """Return where the blocks of a matrix on disk begin and end, in cells; a matrix in memory is one block.

    Example:
        >>> block_bounds(np.eye(6)).tolist()
        [0, 6]
    """
    return np.cumsum([0, *(X.chunks[0] if is_lazy(X) else [X.shape[0]])])


def cell_blocks(X: Matrix, rows: np.ndarray, cells: int = 512) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    """Iterate over some rows of a matrix, reading only the blocks on disk that hold any.

    Args:
        X: Sparse, dense or dask matrix, (n_cells, n_genes).
        rows: Numbers of the rows, ascending.
        cells: Most rows of a block.

    Yields:
        Numbers of the rows, and these rows as float32 CSR.

    Example:
        >>> [(rows.tolist(), block.nnz) for rows, block in cell_blocks(np.eye(6), np.array([0, 2, 5]), cells=2)]
        [([0, 2], 2), ([5], 1)]
    """
    for number, (begin, end) in enumerate(itertools.pairwise(block_bounds(X))):
        inside = rows[(rows >= begin) & (rows < end)]
        if not len(inside):
            continue
        chunk = X.blocks[number].compute(scheduler="synchronous") if is_lazy(X) else X
        for first in range(0, len(inside), cells):
            part = inside[first : first + cells]
            yield part, as_csr(chunk[part - begin])
