from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io as scipy_io
from scipy import sparse

from discern.errors import InvalidInputError, MissingFileError
from discern.inputs.readers import dataset_name, read_raw_input

if TYPE_CHECKING:
    from pathlib import Path

COUNTS = np.array([[1, 0, 2], [0, 3, 0]])
"""2 cells x 3 genes."""


def _assert_is_counts(adata: ad.AnnData, genes: list[str], cells: list[str]) -> None:
    assert sparse.issparse(adata.X)
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert list(adata.var_names) == genes
    assert list(adata.obs_names) == cells


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".csv.gz", ".tsv.gz"])
def test_tables_are_genes_x_cells(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"donor{suffix}"
    table = pd.DataFrame(COUNTS.T, index=["A", "B", "C"], columns=["c1", "c2"])
    table.to_csv(path, sep="," if "csv" in suffix else "\t")
    _assert_is_counts(read_raw_input(path), ["A", "B", "C"], ["c1", "c2"])


def test_table_whose_header_names_only_the_cells(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("c1\tc2\nA\t1\t0\nB\t0\t3\nC\t2\t0\n")
    _assert_is_counts(read_raw_input(tmp_path / "r.txt"), ["A", "B", "C"], ["c1", "c2"])


@pytest.mark.parametrize("barcodes", [True, False])
def test_folder_of_10x_version_2(tmp_path: Path, barcodes: bool) -> None:
    scipy_io.mmwrite(tmp_path / "matrix.mtx", sparse.coo_matrix(COUNTS.T))
    (tmp_path / "genes.tsv").write_text("ENSG1\tA\nENSG2\tB\nENSG3\tA\n")
    if barcodes:
        (tmp_path / "barcodes.tsv").write_text("AAC-1\nGGT-1\n")
    adata = read_raw_input(tmp_path)
    _assert_is_counts(adata, ["A", "B", "ENSG3"], ["AAC-1", "GGT-1"] if barcodes else ["0", "1"])
    assert list(adata.var["gene_ids"]) == ["ENSG1", "ENSG2", "ENSG3"]


def test_folder_of_10x_version_3_keeps_gene_expression(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "matrix.mtx.gz", "wb") as file:
        scipy_io.mmwrite(file, sparse.coo_matrix(np.vstack([COUNTS.T, [[7, 7]]])))
    kinds = ["Gene Expression"] * 3 + ["Antibody Capture"]
    with gzip.open(tmp_path / "features.tsv.gz", "wt") as file:
        file.writelines(f"ENSG{i}\t{name}\t{kind}\n" for i, (name, kind) in enumerate(zip("ABCD", kinds, strict=True)))
    with gzip.open(tmp_path / "barcodes.tsv.gz", "wt") as file:
        file.write("AAC-1\nGGT-1\n")
    _assert_is_counts(read_raw_input(tmp_path), ["A", "B", "C"], ["AAC-1", "GGT-1"])


def test_10x_h5(tmp_path: Path) -> None:
    genes = sparse.csc_matrix(COUNTS.T)
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(genes, name)
        group["shape"] = genes.shape
        group["barcodes"] = np.array([b"AAC-1", b"GGT-1"])
        features = group.create_group("features")
        features["id"] = np.array([b"ENSG1", b"ENSG2", b"ENSG3"])
        features["name"] = np.array([b"A", b"B", b"A"])
        features["feature_type"] = np.array([b"Gene Expression"] * 3)
        features["genome"] = np.array([b"hg38"] * 3)
    _assert_is_counts(read_raw_input(tmp_path / "cells.h5"), ["A", "B", "ENSG3"], ["AAC-1", "GGT-1"])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore:.*zarr v[23]")  # of anndata, about its future default
@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # made here on purpose
def test_anndata_files(tmp_path: Path, suffix: str) -> None:
    adata = ad.AnnData(
        sparse.csr_matrix(COUNTS.astype(np.uint16)),
        obs=pd.DataFrame(index=["c1", "c2"]),
        var=pd.DataFrame({"gene_ids": ["ENSG1", "ENSG2", "ENSG3"]}, index=["A", "B", "A"]),
    )
    path = tmp_path / f"cells{suffix}"
    adata.write_h5ad(path) if suffix == ".h5ad" else adata.write_zarr(path)
    read = read_raw_input(path)
    _assert_is_counts(read, ["A", "B", "ENSG3"], ["c1", "c2"])
    assert read.X.dtype == np.uint16


@pytest.mark.parametrize("name", ["cells.rds", "cells", "folder/"])
def test_unknown_format_names_the_path_and_what_is_supported(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else path.write_text("?")
    with pytest.raises(ValueError, match=rf"{path.name}: unknown format; expected \.h5ad, .*matrix\.mtx"):
        read_raw_input(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.h5ad: no such file or folder"):
        read_raw_input(tmp_path / "none.h5ad")


@pytest.mark.parametrize("name", ["c.h5ad", "c.h5", "c.loom", "c.csv", "c.txt", "c.csv.gz", "folder.h5ad/"])
def test_corrupt_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    else:
        path.write_bytes(b"x,c1\nA,one\n" if ".csv" in name else b"\x89 nothing of the kind \x00")
    with pytest.raises(InvalidInputError, match=rf"{path.name}: "):
        read_raw_input(path)


def test_folder_whose_files_disagree(tmp_path: Path) -> None:
    scipy_io.mmwrite(tmp_path / "matrix.mtx", sparse.coo_matrix(COUNTS.T))
    with pytest.raises(InvalidInputError, match=r"expected genes\.tsv or features\.tsv\.gz"):
        read_raw_input(tmp_path)
    (tmp_path / "genes.tsv").write_text("ENSG1\tA\n")
    with pytest.raises(InvalidInputError, match=r"expected a matrix of 1 genes x any number of cells .* got 3 x 2"):
        read_raw_input(tmp_path)


def test_name_of_a_dataset() -> None:
    assert dataset_name("raw/celseq2.h5ad") == "celseq2"
