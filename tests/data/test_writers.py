from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from discern.data.chunks import hdf5_lock, iter_blocks, read_cells
from discern.data.writers import generate_h5ad, write_blocks
from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


def _header(n_cells: int, n_genes: int) -> ad.AnnData:
    return ad.AnnData(
        obs=pd.DataFrame({"batch": pd.Categorical(["a"] * n_cells)}, index=[f"c{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]),
        uns={"DISCERN": {"batch_key": {"0": "a"}}},
        obsm={"X_DISCERN": np.ones((n_cells, 2), dtype=np.float32)},
    )


def _read(path: Path) -> ad.AnnData:
    return scanpy.read_h5ad(path) if path.suffix == ".h5ad" else ad.io.read_zarr(path)


def _dense(X: Any) -> np.ndarray:
    return X.toarray() if sparse.issparse(X) else np.asarray(X)


@settings(max_examples=30)
@given(
    n_cells=st.integers(1, 60),
    n_genes=st.integers(1, 12),
    step=st.integers(1, 70),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    chunk_bytes=st.sampled_from([8, 100, 2**20]),
    suffix=st.sampled_from([".h5ad", ".zarr"]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    n_cells: int,
    n_genes: int,
    step: int,
    density: float,
    chunk_bytes: int,
    suffix: str,
) -> None:
    X = sparse.random(n_cells, n_genes, density=density, format="csr", dtype=np.float32, random_state=1)
    layer = np.random.default_rng(0).integers(0, 4, (n_cells, n_genes)).astype(np.float32)
    blocks = [
        {"X": X[start : start + step], "estimated_counts": layer[start : start + step]}
        for start in range(0, n_cells, step)
    ]
    path = tmp_path_factory.mktemp("round_trip") / f"cells{suffix}"
    write_blocks(path, _header(n_cells, n_genes), blocks, chunk_bytes=chunk_bytes)
    read = _read(path)
    np.testing.assert_array_equal(_dense(read.X), X.toarray())
    np.testing.assert_array_equal(_dense(read.layers["estimated_counts"]), layer)
    pd.testing.assert_frame_equal(read.obs, _header(n_cells, n_genes).obs)
    assert read.uns["DISCERN"]["batch_key"] == {"0": "a"}
    assert read.obsm["X_DISCERN"].shape == (n_cells, 2)


def test_sparse_and_compressed_where_that_is_smaller(tmp_path: Path) -> None:
    n_cells, n_genes = 500, 400
    random = np.random.default_rng(0)
    few = sparse.random(n_cells, n_genes, density=0.05, format="csr", random_state=0)
    full = random.normal(size=(n_cells, n_genes))
    coarse = random.integers(0, 3, (n_cells, n_genes))
    write_blocks(tmp_path / "cells.h5ad", _header(n_cells, n_genes), [{"X": few, "full": full, "coarse": coarse}])
    with h5py.File(tmp_path / "cells.h5ad") as file:
        assert file["X"].attrs["encoding-type"] == "csr_matrix"
        assert file["X/indices"].compression == "gzip"
        assert file["layers/full"].compression is None
        assert file["layers/coarse"].compression == "gzip"
        np.testing.assert_array_equal(file["layers/coarse"][:], coarse)


def test_half_precision(tmp_path: Path) -> None:
    layer = np.random.default_rng(0).random((20, 10))
    X = sparse.random(20, 10, density=0.1, format="csr", random_state=0)
    write_blocks(tmp_path / "cells.h5ad", _header(20, 10), [{"X": X, "p": layer}], dtype=np.float16)
    read = scanpy.read_h5ad(tmp_path / "cells.h5ad")
    assert (read.X.dtype, read.layers["p"].dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(read.layers["p"], layer, rtol=1e-3)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cells{suffix}"
    write_blocks(path, _header(2, 3), [{"X": np.ones((2, 3))}])

    def broken():
        yield {"X": np.zeros((1, 3))}
        raise RuntimeError("the network is gone")

    with pytest.raises(RuntimeError, match="the network is gone"):
        write_blocks(path, _header(2, 3), broken())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert (_dense(_read(path).X) == 1).all()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{"X": np.ones((1, 3))}], "X: expected 2 cells in all blocks, got 1"),
        (
            [{"X": np.ones((1, 3))}, {"Y": np.ones((1, 3))}],
            r"expected the matrices \['X'\] in every block, got \['Y'\]",
        ),
        ([{"X": np.ones((2, 4))}], "X: expected blocks of 3 genes, got 4"),
    ],
)
def test_blocks_that_do_not_fit(tmp_path: Path, blocks: list, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        write_blocks(tmp_path / "cells.h5ad", _header(2, 3), blocks)
    assert not list(tmp_path.iterdir())


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cells\.csv: expected a name that ends in \.h5ad or \.zarr"):
        write_blocks(tmp_path / "cells.csv", _header(1, 1), [])


@pytest.mark.parametrize("as_sparse", [False, True])
def test_generate_h5ad(tmp_path: Path, as_sparse: bool) -> None:
    random = np.random.default_rng(0)
    counts = random.random((30, 20)) * (random.random((30, 20)) < 0.3)
    given = sparse.csr_matrix(counts) if as_sparse else counts.copy()
    header = _header(30, 20)
    adata = generate_h5ad(given, header.var, header.obs, tmp_path / "cells.h5ad", uns={"a": 1})
    assert (_dense(given) == counts).all()
    expected = np.where(counts < 0.1, 0, counts).astype(np.float32)
    assert sparse.issparse(adata.X)
    read = scanpy.read_h5ad(tmp_path / "cells.h5ad")
    for result in (adata, read):
        np.testing.assert_array_equal(_dense(result.X), expected)
        assert result.uns["a"] == 1


def test_reading_ahead_and_writing_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holders: dict[str, list[bool]] = {"read": [], "write": []}

    def held(kind: str) -> None:
        """Note whether HDF5 is kept from other threads now."""

        def is_free() -> bool:
            free = hdf5_lock.acquire(blocking=False)
            if free:
                hdf5_lock.release()
            return free

        with ThreadPoolExecutor(1) as other:
            holders[kind].append(not other.submit(is_free).result())

    def read(block: np.ndarray) -> np.ndarray:
        if block.size:  # dask tries it on nothing first
            held("read")
        return block

    def resize(dataset: h5py.Dataset, *arguments: Any, **named: Any) -> None:
        held("write")
        original(dataset, *arguments, **named)

    original = h5py.Dataset.resize
    monkeypatch.setattr(h5py.Dataset, "resize", resize)
    X = da.from_array(np.eye(64, dtype=np.float32), chunks=(16, 64)).map_blocks(read, dtype=np.float32)
    write_blocks(
        tmp_path / "cells.h5ad",
        ad.AnnData(obs=pd.DataFrame(index=list(map(str, range(64)))), shape=(64, 64)),
        ({"X": block} for _, block in iter_blocks(X, cells=16)),
    )

    assert len(holders["read"]) >= 4
    assert len(holders["write"]) >= 2
    assert all(holders["read"] + holders["write"])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_batches_may_be_called_like_folders_of_each_other(tmp_path: Path, suffix: str) -> None:
    shares = {"a": 0.25, "a/b": 0.25, "50%": 0.25, "a%2Fb": 0.25}
    cells = ad.AnnData(np.ones((1, 2), np.float32), uns={"DISCERN": {"batch_ratios": shares}})
    write_blocks(tmp_path / f"cells{suffix}", cells, [{"X": cells.X}])
    assert read_cells(tmp_path / f"cells{suffix}").uns["DISCERN"]["batch_ratios"] == shares
