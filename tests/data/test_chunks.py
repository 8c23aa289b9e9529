from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import dask.array
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from discern.data.chunks import as_csr, estimate_csr_nbytes, is_lazy, iter_blocks, read_cells
from discern.errors import InvalidInputError, MissingFileError
from discern.runtime.memory import matrix_budget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _matrix(n_cells: int, n_genes: int = 7) -> sparse.csr_matrix:
    return sparse.random(n_cells, n_genes, density=0.4, format="csr", dtype=np.float32, random_state=0)


@given(n_cells=st.integers(0, 40), cells=st.integers(1, 50), chunk=st.integers(1, 50), form=st.sampled_from("sdl"))
def test_blocks_are_the_matrix_in_order(n_cells: int, cells: int, chunk: int, form: str) -> None:
    matrix = _matrix(n_cells)
    X = {
        "s": matrix,
        "d": matrix.toarray(),
        "l": dask.array.from_array(matrix, chunks=(chunk, -1), asarray=False) if n_cells else matrix,
    }[form]
    found = list(iter_blocks(X, cells))
    assert [rows.stop - rows.start for rows, _ in found[:-1]] == [cells] * (len(found) - 1)
    assert all(block.shape[0] == rows.stop - rows.start for rows, block in found)
    assert all(isinstance(block, sparse.csr_matrix) and block.dtype == np.float32 for _, block in found)
    assert sum(block.shape[0] for _, block in found) == n_cells
    for rows, block in found:
        np.testing.assert_array_equal(block.toarray(), matrix[rows].toarray())


def test_stored_zeros_vanish_from_blocks_but_not_from_the_matrix() -> None:
    matrix = sparse.csr_matrix((np.array([1.0, 0.0], dtype=np.float32), [0, 1], [0, 2]), shape=(1, 2))
    ((_, block),) = iter_blocks(matrix)
    assert (block.nnz, matrix.nnz) == (1, 2)


def test_estimate_is_what_scipy_takes() -> None:
    matrix = _matrix(50)
    taken = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    assert estimate_csr_nbytes(matrix) == taken
    assert estimate_csr_nbytes(matrix.toarray()) == taken


def test_budget_is_a_part_of_the_memory() -> None:
    assert 2**20 < matrix_budget() < 2**50


@pytest.fixture
def cells() -> ad.AnnData:
    X = _matrix(200)
    return ad.AnnData(X=X, obs=pd.DataFrame({"n": range(200)}, index=[f"c{i}" for i in range(200)]))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("budget", [0, None])
@pytest.mark.filterwarnings("ignore:.*zarr v[23]")  # of anndata, about its future default
def test_read_cells_lazily_or_not_gives_the_same(
    cells: ad.AnnData,
    tmp_path: Path,
    limit_memory: Callable[..., None],
    suffix: str,
    dense: bool,
    budget: int | None,
) -> None:
    limit_memory(block=7 * 64)
    path = tmp_path / f"cells{suffix}"
    stored = cells.copy()
    if dense:
        stored.X = cells.X.toarray()
    stored.write_h5ad(path) if suffix == ".h5ad" else stored.write_zarr(path)
    read = read_cells(path, budget=budget)
    assert is_lazy(read.X) == (budget == 0)
    found = sparse.vstack([block for _, block in iter_blocks(read.X)])
    assert (found != cells.X).nnz == 0
    pd.testing.assert_frame_equal(read.obs, cells.obs)


def test_cells_by_genes_too_large_for_memory_say_what_to_do(
    cells: ad.AnnData, tmp_path: Path, limit_memory: Callable[..., None]
) -> None:
    cells.X = cells.X.tocsc()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert read_cells(tmp_path / "cells.h5ad").X.format == "csr"
    assert read_cells(tmp_path / "cells.h5ad", budget=0).X.format == "csr", "they cannot be read block by block"
    limit_memory(matrix=0)
    with pytest.raises(InvalidInputError, match=r"stored by genes \(CSC\).*store it by cells"):
        read_cells(tmp_path / "cells.h5ad", budget=0)


def test_files_of_old_anndata_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.eye(2, dtype=np.float32)
        file["obs"] = np.array([(b"a",), (b"b",)], dtype=[("index", "S1")])
        file["var"] = np.array([(b"x",), (b"y",)], dtype=[("index", "S1")])
    with pytest.warns(Warning, match="old|legacy|encod"):
        read = read_cells(tmp_path / "old.h5ad")
    assert list(read.obs_names) == ["a", "b"]
    assert sparse.issparse(read.X)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    with pytest.raises(MissingFileError, match=r"cells\.h5ad: no such file"):
        read_cells(path)
    path.write_text("no HDF5")
    with pytest.raises(InvalidInputError, match=r"cells\.h5ad: cannot be read as \.h5ad"):
        read_cells(path)


def test_truncated_file_is_named(cells: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InvalidInputError, match=r"cells\.h5ad: cannot be read"):
        read_cells(path)


def test_file_without_matrix(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.X = None
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(InvalidInputError, match="expected a matrix X"):
        read_cells(tmp_path / "cells.h5ad")


@pytest.mark.parametrize(
    "block",
    [
        np.array([[0.0, 1.5], [0.0, 0.0]]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([[0, 3]], dtype=np.uint16),
        np.array([[True, False]]),
        np.array([[0.5, 0]], dtype=np.float16),
        np.asmatrix([[0.0, 2.0], [1.0, 0.0]]),
        np.zeros((0, 4)),
        np.zeros((3, 0)),
    ],
    ids=lambda block: f"{type(block).__name__}-{block.dtype}-{block.shape}",
)
def test_a_dense_block_becomes_the_csr_matrix_that_scipy_makes(block: np.ndarray) -> None:
    wanted = sparse.csr_matrix(np.asarray(block, dtype=np.float32))
    made = as_csr(block)
    assert made.dtype == np.float32
    assert made.indices.dtype == wanted.indices.dtype
    assert made.has_sorted_indices
    np.testing.assert_array_equal(made.toarray(), wanted.toarray())
    assert made.nnz == wanted.nnz
