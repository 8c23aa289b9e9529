"""Matrices of cells x genes, block of cells by block of cells.

A matrix is CSR in memory when it fits into a part of the machine's memory, else a dask array whose chunks are CSR
blocks of rows, read when they are needed. Nothing here makes a dense matrix of more than one block.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import zarr
from anndata.experimental import read_elem_lazy
from anndata.io import read_elem
from scipy import sparse

from discern.errors import InvalidInputError, MissingFileError
from discern.progress import track

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Undo = Callable[[np.ndarray], np.ndarray]

Matrix = Any
"""A matrix of cells x genes: ndarray, scipy.sparse matrix or dask array."""

hdf5_lock = threading.RLock()
"""Held while blocks are read ahead and while they are written: HDF5 is not made for several threads, and the lock of
h5py does not cover the writing of compressed chunks."""

_BLOCK_ENTRIES = 2**25
_READ_PARTS = ("obs", "var", "uns", "obsm", "varm")


def rows_per_block(n_genes: int) -> int:
    """Return how many cells make a block: 128 MB of float32, would it be dense.

    Example:
        >>> rows_per_block(15_073)
        2226
    """
    return max(16, min(16384, _BLOCK_ENTRIES // max(1, n_genes)))


def memory_budget() -> int:
    """Return how many bytes one matrix may take in memory: an eighth of what this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total // 8


def is_lazy(matrix: Any) -> bool:
    """Return whether the matrix is a dask array."""
    return hasattr(matrix, "dask")


def estimate_csr_nbytes(mat: Matrix) -> int:
    """Return the bytes that a matrix takes, or would take, in CSR form.

    Args:
        mat: sparse or dense matrix, (n_rows, n_columns).

    Example:
        >>> estimate_csr_nbytes(np.eye(3, dtype=np.float32))
        40
    """
    nnz = mat.nnz if sparse.issparse(mat) else int(np.count_nonzero(mat))
    return _csr_nbytes(mat.shape, nnz, mat.dtype)


def _csr_nbytes(shape: tuple[int, int], nnz: int, dtype: np.dtype) -> int:
    index = 4 if max(nnz, shape[1]) < 2**31 else 8
    return nnz * (dtype.itemsize + index) + (shape[0] + 1) * index


def as_csr(block: Any, dtype: Any = np.float32) -> sparse.csr_matrix:
    """Return a block of rows as CSR without stored zeros, in the type given, None for its own."""
    if block.dtype == np.float16:
        block = block.astype(np.float32)  # scipy knows no float16
    csr = sparse.csr_matrix(block, dtype=dtype)
    if csr.nnz and not csr.data.all():
        if sparse.issparse(block) and np.shares_memory(csr.data, block.data):
            csr = csr.copy()
        csr.eliminate_zeros()
    return csr


def canonical(X: Any, source: str) -> Matrix:
    """Return counts of any kind as CSR of numbers that numpy calculates with, the entries of one place summed.

    Args:
        X: dense, masked, sparse or dask matrix, (n_cells, n_genes). Not modified.
        source: how messages call it.

    Returns:
        A CSR matrix, X itself if it is one already; of a dask array, a dask array of CSR blocks.

    Raises:
        InvalidInputError: if X holds no real numbers, or some are masked.

    Example:
        >>> twice = sparse.csr_matrix(([1, 2], [0, 0], [0, 2]), shape=(1, 1))
        >>> canonical(twice, "cells").data
        array([3])
    """
    dtype = usable_dtype(X.dtype, source)
    if is_lazy(X):
        rows = rows_per_block(X.shape[1])
        is_sparse = sparse.issparse(X._meta)
        chunks: dict[int, Any] = {1: -1} if is_sparse or max(X.chunks[0], default=0) <= rows else {0: rows, 1: -1}
        meta = sparse.csr_matrix((0, 0), dtype=dtype)
        return X.rechunk(chunks).map_blocks(canonical, source, dtype=dtype, meta=meta)
    if isinstance(X, np.ma.MaskedArray):
        if (masked := int(np.ma.getmaskarray(X).sum())) > 0:
            raise InvalidInputError(f"{source}: expected a count of each gene in each cell, {masked} values are masked")
        X = X.data
    if not sparse.issparse(X):
        X, rows = np.asarray(X), rows_per_block(X.shape[1])
        starts = range(0, max(1, X.shape[0]), rows)
        return sparse.vstack([as_csr(X[start : start + rows], dtype) for start in starts], format="csr")
    X = X if X.dtype == dtype else X.astype(dtype)
    return summed(X if isinstance(X, sparse.csr_matrix) else sparse.csr_matrix(X))


def usable_dtype(dtype: np.dtype, source: str) -> np.dtype:
    """Return the type in which counts of this type are held: of this machine, and known to scipy.

    Raises:
        InvalidInputError: if they are no real numbers.

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


def iter_blocks(X: Matrix, cells: int | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Iterate over the rows of a matrix in order.

    Args:
        X: sparse, dense or dask matrix, (n_cells, n_genes).
        cells: rows of each block (the last one may have fewer); by default as many as `rows_per_block` says.

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

    with ThreadPoolExecutor(max_workers=1) as reader:
        following = reader.submit(read, 0)
        for number in range(1, X.numblocks[0]):
            chunk, following = following.result(), reader.submit(read, number)
            yield chunk
        yield following.result()


def read_cells(
    path: Path, undo: Callable[[ad.AnnData], Undo | None] | None = None, budget: int | None = None
) -> ad.AnnData:
    """Read an `.h5ad` file or a `.zarr` folder; X becomes CSR in memory if it fits, else a dask array of CSR blocks.

    Layers, `raw` and pairwise annotations are left out.

    Args:
        path: the file or folder.
        undo: gets the AnnData without X; the function that it returns, if any, is applied to each block of a dense X.
        budget: bytes that X may take in memory, by default `memory_budget()`.

    Raises:
        MissingFileError: if there is no such file.
        InvalidInputError: if it cannot be read, or has no X.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file")
    try:
        group = zarr.open_group(path, mode="r") if path.suffix == ".zarr" else h5py.File(path, "r")
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInputError(f"{path}: cannot be read as {path.suffix} ({error})") from error
    try:
        if "encoding-type" not in group.attrs or isinstance(group.get("obs"), h5py.Dataset):
            adata = ad.read_h5ad(path)  # written by anndata < 0.7
            adata.X = canonical(adata.X, str(path))
            return adata
        parts = {key: read_elem(group[key]) for key in _READ_PARTS if key in group}
        if "X" not in group:
            raise InvalidInputError(f"{path}: expected a matrix X, found only {sorted(group)}")
        adata = ad.AnnData(**parts)
        adata.X = read_matrix(group["X"], str(path), budget, undo(adata) if undo else None)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{path}: cannot be read as {path.suffix} ({error})") from error
    finally:
        if isinstance(group, h5py.File):
            group.close()
    return adata


def read_matrix(elem: Any, source: str, budget: int | None = None, undo: Undo | None = None) -> Matrix:
    """Read a stored matrix as CSR if it fits into memory, else as dask array of CSR blocks.

    Args:
        elem: HDF5 or zarr, dense or sparse as anndata writes it, also as versions before 0.7 wrote it.
        source: how messages call the file.
        budget: bytes that it may take in memory, by default `memory_budget()`.
        undo: applied to each block of a dense matrix.

    Raises:
        InvalidInputError: if it holds no counts, or is stored by genes and does not fit into memory.
    """
    budget = memory_budget() if budget is None else budget
    if hasattr(elem, "keys"):
        return _read_sparse(elem, source, budget)
    dtype = np.dtype(np.float32) if undo else usable_dtype(elem.dtype, source)
    rows = rows_per_block(elem.shape[1])
    blocks: list[sparse.csr_matrix] = []
    for start in range(0, elem.shape[0], rows):
        block = elem[start : start + rows]
        blocks.append(as_csr(undo(block) if undo else block, dtype))
        if sum(block.data.nbytes + block.indices.nbytes for block in blocks) > budget / 2:
            break
    else:
        return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix(elem.shape, dtype=dtype)
    return read_elem_lazy(elem, chunks=(rows, -1)).map_blocks(
        lambda block: as_csr(undo(block) if undo else block, dtype),
        dtype=dtype,
        meta=sparse.csr_matrix((0, 0), dtype=dtype),
    )


def _read_sparse(elem: Any, source: str, budget: int) -> Matrix:
    encoding = str(elem.attrs.get("encoding-type", elem.attrs.get("h5sparse_format", "")))[:3]
    if encoding not in ("csr", "csc"):
        raise InvalidInputError(
            f"{source}: expected a dense or sparse matrix (CSR or CSC) as X, got {encoding or 'something else'!r}"
        )
    n_cells, n_genes = elem.attrs["shape" if "shape" in elem.attrs else "h5sparse_shape"]
    shape = int(n_cells), int(n_genes)
    dtype = usable_dtype(elem["data"].dtype, source)
    nbytes = _csr_nbytes(shape, elem["data"].shape[0], np.dtype(np.float32))
    if nbytes <= budget:
        parts = [elem["data"][:].astype(dtype, copy=False)]
        parts += [_native(elem[name][:]) for name in ("indices", "indptr")]
        kind = sparse.csr_matrix if encoding == "csr" else sparse.csc_matrix
        return summed(kind(tuple(parts), shape=shape).tocsr())
    if encoding == "csc":
        raise InvalidInputError(
            f"{source}: X is stored by genes (CSC) and takes {nbytes / 1e9:.1f} GB, too much for the memory of this "
            "machine; store it by cells (CSR)"
        )
    if dtype != elem["data"].dtype and elem["data"].dtype.kind != "b":
        raise InvalidInputError(
            f"{source}: X is stored as {elem['data'].dtype}, which is not read block by block; store it as {dtype}"
        )
    lazy = read_elem_lazy(elem, chunks=(rows_per_block(shape[1]), -1))
    return lazy.map_blocks(canonical, source, dtype=dtype, meta=sparse.csr_matrix((0, 0), dtype=dtype))


def _native(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)


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
    bounds = np.cumsum([0, *(X.chunks[0] if is_lazy(X) else [X.shape[0]])])
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        inside = rows[(rows >= begin) & (rows < end)]
        if not len(inside):
            continue
        chunk = X.blocks[number].compute(scheduler="synchronous") if is_lazy(X) else X
        for first in range(0, len(inside), cells):
            part = inside[first : first + cells]
            yield part, as_csr(chunk[part - begin])
