"""HDF5 of AnnData, 10x and loom: what is counted, under which names, and what does not keep it from being read."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from discern.data.chunks import iter_blocks
from discern.errors import InvalidInputError
from discern.inputs.readers import read_raw_input, read_raw_inputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNTS = np.array([[1, 0, 2], [0, 3, 0]])
"""2 cells x 3 genes."""
GENES, CELLS = ["A", "B", "C"], ["c1", "c2"]

pytestmark = pytest.mark.filterwarnings("ignore:.*zarr v[23]")  # of anndata, about its future default


def _cells(X: Any = COUNTS, **columns: list[str]) -> ad.AnnData:
    return ad.AnnData(
        sparse.csr_matrix(X) if X is COUNTS else X,
        obs=pd.DataFrame(index=CELLS),
        var=pd.DataFrame(columns, index=GENES),
    )


def _assert_is(adata: ad.AnnData) -> None:
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert (list(adata.var_names), list(adata.obs_names)) == (GENES, CELLS)


def _loom(path: Path, genes: str | None, cells: str | None, **more: list[str]) -> Path:
    with h5py.File(path, "w") as file:
        file["matrix"] = COUNTS.T.astype(np.float32)
        file["layers/spliced"] = COUNTS.T
        rows = {**({genes: GENES} if genes else {}), **more}
        for name, values in rows.items():
            file[f"row_attrs/{name}"] = np.array(values, "S")
        if cells:
            file[f"col_attrs/{cells}"] = np.array(CELLS, "S")
    return path


@pytest.mark.parametrize(
    ("genes", "cells"),
    [("Gene", "CellID"), ("gene_names", "cell_names"), ("var_names", "obs_names"), ("Accession", "barcode")],
)
def test_loom_with_the_usual_names(tmp_path: Path, genes: str, cells: str) -> None:
    _assert_is(read_raw_input(_loom(tmp_path / "c.loom", genes, cells)))


def test_loom_keeps_accessions_and_passes_over_numbers(tmp_path: Path) -> None:
    path = _loom(tmp_path / "c.loom", None, "CellID", Gene=["0", "1", "2"], Name=GENES, Accession=["E1", "E2", "E3"])
    read = read_raw_input(path)
    _assert_is(read)
    assert list(read.var["Accession"]) == ["E1", "E2", "E3"]


def test_loom_without_names_of_genes_is_refused_and_cells_are_numbered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidInputError, match=r"a\.loom: expected the names of the genes .* there are \['other'\]"):
        read_raw_input(_loom(tmp_path / "a.loom", "other", "CellID"))
    assert list(read_raw_input(_loom(tmp_path / "b.loom", "Gene", None)).obs_names) == ["0", "1"]
    assert "they are numbered" in caplog.text


def _10x(path: Path, version: int = 3, genomes: tuple[str, ...] = ("hg38",), kinds: list[str] | None = None) -> Path:
    genes = sparse.csc_matrix(COUNTS.T)
    with h5py.File(path, "w") as file:
        for genome in genomes if version == 2 else ["matrix"]:
            group = file.create_group(genome)
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(genes, name)
            group["shape"] = genes.shape
            group["barcodes"] = np.array(CELLS, "S")
            ids = np.array(["E1", "E2", "E3"], "S")
            if version == 2:
                group["genes"], group["gene_names"] = ids, np.array(GENES, "S")
                continue
            group["features/id"], group["features/name"] = ids, np.array(GENES, "S")
            group["features/genome"] = np.array((list(genomes) * 3)[:3], "S")
            group["features/feature_type"] = np.array(kinds or ["Gene Expression"] * 3, "S")
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["c.h5", "c.h5ad", "c.hdf5"])
def test_10x_under_any_name(tmp_path: Path, version: int, name: str) -> None:
    read = read_raw_input(_10x(tmp_path / name, version))
    _assert_is(read)
    assert list(read.var["gene_ids"]) == ["E1", "E2", "E3"]


def test_10x_of_two_genomes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InvalidInputError, match=r"2 genomes, hg19 and mm10; save one of them"):
        read_raw_input(_10x(tmp_path / "old.h5", 2, ("hg19", "mm10")))
    _assert_is(read_raw_input(_10x(tmp_path / "new.h5", 3, ("hg19", "mm10"))))
    assert "genes of 2 genomes, hg19 and mm10" in caplog.text


def test_anndata_called_h5(tmp_path: Path) -> None:
    _cells().write_h5ad(tmp_path / "c.h5")
    _assert_is(read_raw_input(tmp_path / "c.h5"))


@pytest.mark.parametrize("suffix", ["10x.h5", ".h5ad", ".zarr"])
def test_features_that_are_no_genes_are_left_out_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    kinds = ["Gene Expression", "Antibody Capture", "Gene Expression"]
    path = tmp_path / f"c{suffix}"
    if suffix == "10x.h5":
        _10x(path, kinds=kinds)
    elif suffix == ".h5ad":
        _cells(feature_types=kinds).write_h5ad(path)
    else:
        _cells(feature_types=kinds).write_zarr(path)
    read = read_raw_input(path)
    np.testing.assert_array_equal(read.X.toarray(), COUNTS[:, [0, 2]])
    assert "1 of 3 features are left out, as they are no genes: Antibody Capture (1)" in caplog.text


@pytest.mark.parametrize("values", [["protein_coding", "lncRNA", "lncRNA"], ["", "", ""]])
def test_a_column_that_says_something_else_leaves_nothing_out(tmp_path: Path, values: list[str]) -> None:
    _cells(feature_types=values).write_h5ad(tmp_path / "c.h5ad")
    _assert_is(read_raw_input(tmp_path / "c.h5ad"))


def test_only_peaks_are_refused(tmp_path: Path) -> None:
    _cells(feature_types=["Peaks"] * 3).write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(InvalidInputError, match=r"c\.h5ad: expected genes, .*Peaks \(3\)"):
        read_raw_input(tmp_path / "c.h5ad")


def test_numbered_genes_are_called_as_a_column_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = _cells(gene_name=GENES)
    cells.var_names = ["0", "1", "2"]
    cells.write_h5ad(tmp_path / "c.h5ad")
    _assert_is(read_raw_input(tmp_path / "c.h5ad"))
    assert "their names are taken from var['gene_name']" in caplog.text


def test_numbered_genes_of_several_files_are_not_matched_by_place(tmp_path: Path) -> None:
    cells = _cells()
    cells.var_names = ["0", "1", "2"]
    for name in ("a.h5ad", "b.h5ad"):
        cells.write_h5ad(tmp_path / name)
    assert read_raw_input(tmp_path / "a.h5ad").n_vars == 3
    with pytest.raises(InvalidInputError, match=r"a\.h5ad: expected names of genes, got running numbers \(0, 1, 2"):
        read_raw_inputs([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])


def test_parts_that_are_not_needed_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = _cells(good=["x", "y", "z"])
    cells.obs["fine"], cells.obs["broken"] = [1, 2], ["a", "b"]
    cells.obsm["X_pca"], cells.uns["note"], cells.layers["log"] = np.ones((2, 2)), {"a": 1}, COUNTS.astype(float)
    cells.varm["PCs"], cells.obsp["near"] = np.ones((3, 2)), sparse.csr_matrix(np.eye(2))
    cells.write_h5ad(tmp_path / "c.h5ad")
    with h5py.File(tmp_path / "c.h5ad", "r+") as file:
        for place in ("obsm/X_pca", "uns/note", "layers/log", "varm/PCs", "obsp/near", "obsm", "uns", "obs/broken"):
            file[place].attrs["encoding-type"] = "of-the-future"
    read = read_raw_input(tmp_path / "c.h5ad")
    _assert_is(read)
    assert (list(read.obs), list(read.var)) == (["fine"], ["good"])
    assert "columns of obs that cannot be read are left out: broken" in caplog.text


def _twice(dtype: Any = np.float32) -> sparse.csr_matrix:
    """The counts with one of them in two entries."""
    return sparse.csr_matrix((np.array([1, 1, 1, 3], dtype), [0, 2, 2, 1], [0, 3, 4]), shape=(2, 3))


@pytest.mark.parametrize(
    "X",
    [
        COUNTS.astype(np.float16), COUNTS.astype(">f4"), COUNTS.astype(np.int64), COUNTS.astype(np.uint8),
        np.asfortranarray(COUNTS), sparse.csc_matrix(COUNTS), sparse.csr_array(COUNTS), _twice(), _twice(np.uint8),
        _twice().tocsc(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("budget", [None, 0])
def test_every_kind_of_numbers_is_read(
    tmp_path: Path, limit_memory: Callable[..., None], X: Any, budget: int | None
) -> None:
    limit_memory(block=3)
    _cells(X).write_h5ad(tmp_path / "c.h5ad")
    if budget == 0 and isinstance(X, sparse.csc_matrix):
        return
    read = read_raw_input(tmp_path / "c.h5ad", budget=budget)
    found = sparse.vstack([block for _, block in iter_blocks(read.X)])
    np.testing.assert_array_equal(found.toarray(), COUNTS)
    assert found.nnz == 3


@pytest.mark.parametrize(("X", "kind"), [(COUNTS * 1j, "complex numbers"), (COUNTS.astype(str), "text|objects")])
def test_what_is_no_number_is_refused(tmp_path: Path, X: Any, kind: str) -> None:
    _cells(X).write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(InvalidInputError, match=rf"c\.h5ad: expected counts in X, got ({kind})"):
        read_raw_input(tmp_path / "c.h5ad")


def test_file_of_old_anndata_with_records_and_sparse_x(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        X = file.create_group("X")
        X.attrs["h5sparse_format"], X.attrs["h5sparse_shape"] = "csr", (2, 3)
        for name in ("data", "indices", "indptr"):
            X[name] = getattr(sparse.csr_matrix(COUNTS), name)
        file["obs"] = np.array([(b"c1", 1), (b"c2", 0)], dtype=[("index", "S2"), ("donor", "i1")])
        file["var"] = np.array([(b"A",), (b"B",), (b"C",)], dtype=[("index", "S1")])
        file["uns/donor_categories"] = np.array([b"d one", b"d2"])
    read = read_raw_input(tmp_path / "old.h5ad")
    _assert_is(read)
    assert list(read.obs["donor"]) == ["d2", "d one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.h5ad.gz", gzip.compress(b"\x89HDF\r\n\x1a\n", mtime=0), r"unpack it first: gunzip .*c\.h5ad\.gz"),
        ("c.h5ad", gzip.compress(b"\x89HDF\r\n\x1a\n", mtime=0), "is compressed"),
        ("c.rds", b"X\n", "this is an R object; write it as .h5ad"),
        ("c.h5seurat", b"\x89HDF\r\n\x1a\n", "this is a Seurat file"),
        ("c.tar.gz", b"\x1f\x8b", "this is an archive; unpack it first"),
        ("c.csv", b"PK\x03\x04", "this is an archive"),
        ("c.xlsx", b"PK\x03\x04", "this is a spreadsheet"),
        ("c.csv", b"\x89HDF\r\n\x1a\n", "cannot be read"),
        ("c.loom", b"no HDF5", "no HDF5 file, or damaged"),
    ],
)
def test_what_to_do_with_other_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=rf"{name}: .*{message}"):
        read_raw_input(tmp_path / name)


@pytest.mark.parametrize(
    ("part", "message"),
    [("mod/rna", "holds MuData of rna"), ("assays/RNA", "is a Seurat file"), ("barcode_idx", "molecule_info")],
)
def test_hdf5_of_other_programs_is_named(tmp_path: Path, part: str, message: str) -> None:
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_group(part)
    with pytest.raises(InvalidInputError, match=rf"c\.h5: .*{message}"):
        read_raw_input(tmp_path / "c.h5")


def test_truncated_file_says_what_to_do(tmp_path: Path) -> None:
    _cells().write_h5ad(tmp_path / "c.h5ad")
    (tmp_path / "c.h5ad").write_bytes((tmp_path / "c.h5ad").read_bytes()[:3000])
    with pytest.raises(
        InvalidInputError, match=r"c\.h5ad: cannot be read: it is truncated or damaged; download or copy it again"
    ):
        read_raw_input(tmp_path / "c.h5ad")


def test_cells_and_genes_exchanged_are_refused(tmp_path: Path) -> None:
    cells = _cells()
    cells.obs_names, cells.var_names = ["GAPDH", "ACTB"], ["AAACCTGAG-1", "AAACCTGAC-1", "AAACCTGAT-1"]
    cells.write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(InvalidInputError, match=r"c\.h5ad: expected cells x genes, .* exchanged, as their names look"):
        read_raw_input(tmp_path / "c.h5ad")


def test_a_folder_of_samples_names_them(tmp_path: Path) -> None:
    for sample in ("s1", "s2"):
        (tmp_path / sample).mkdir()
        (tmp_path / sample / "matrix.mtx").touch()
    _cells().write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(InvalidInputError, match=r"give what is in it: .*c\.h5ad .*s1 .*s2"):
        read_raw_input(tmp_path)
