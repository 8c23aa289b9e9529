"""MatrixMarket files as programs and archives write them."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import io as scipy_io
from scipy import sparse

from discern.errors import InvalidInputError
from discern.inputs.readers import dataset_name, read_raw_input

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

COUNTS = np.array([[1, 0, 2], [0, 3, 0]])
"""2 cells x 3 genes."""
GENES, CELLS = ["A", "B", "C"], ["AAC-1", "GGT-1"]


def _write(folder: Path, matrix: str, genes: str, barcodes: str, turned: bool = False) -> None:
    """Write a set of files; with two columns of genes unless the matrix is cells x genes."""
    lines = GENES if turned else [f"ENSG{number}\t{name}" for number, name in enumerate(GENES)]
    for name, text in {genes: "\n".join(lines) + "\n", barcodes: "\n".join(CELLS) + "\n"}.items():
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with (gzip.open if matrix.endswith(".gz") else open)(folder / matrix, "wb") as file:
        scipy_io.mmwrite(file, sparse.coo_matrix(COUNTS if turned else COUNTS.T))


def _assert_is(adata: ad.AnnData) -> None:
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert (list(adata.var_names), list(adata.obs_names)) == (GENES, CELLS)


@pytest.mark.parametrize(
    ("matrix", "genes", "barcodes"),
    [
        ("GSM1_matrix.mtx.gz", "GSM1_features.tsv.gz", "GSM1_barcodes.tsv.gz"),
        ("GSM1_s.matrix.mtx", "GSM1_s.genes.tsv", "GSM1_s.barcodes.tsv"),
        ("UniqueAndMult-EM.mtx", "features.tsv", "barcodes.tsv"),
    ],
)
def test_one_set_of_any_name_is_read(tmp_path: Path, matrix: str, genes: str, barcodes: str) -> None:
    _write(tmp_path, matrix, genes, barcodes)
    _assert_is(read_raw_input(tmp_path))
    _assert_is(read_raw_input(tmp_path / matrix))
    assert dataset_name(tmp_path / matrix) == matrix.removesuffix(".gz").removesuffix(".mtx")


@pytest.mark.parametrize(
    ("matrix", "genes", "barcodes"),
    [
        ("cells_x_genes.mtx", "cells_x_genes.genes.txt", "cells_x_genes.barcodes.txt"),
        ("quants_mat.mtx.gz", "quants_mat_cols.txt", "quants_mat_rows.txt"),
        ("matrix.mtx", "genes.tsv", "barcodes.tsv"),
    ],
)
def test_cells_x_genes_is_found_out_from_the_lists(tmp_path: Path, matrix: str, genes: str, barcodes: str) -> None:
    _write(tmp_path, matrix, genes, barcodes, turned=True)
    _assert_is(read_raw_input(tmp_path))


def test_a_square_matrix_of_kallisto_is_cells_x_genes(tmp_path: Path) -> None:
    scipy_io.mmwrite(tmp_path / "cells_x_genes.mtx", sparse.coo_matrix([[0, 5], [0, 0]]))
    (tmp_path / "cells_x_genes.genes.txt").write_text("A\nB\n")
    (tmp_path / "cells_x_genes.barcodes.txt").write_text("c\nd\n")
    assert read_raw_input(tmp_path)["c", "B"].X.toarray() == 5


def test_several_sets_are_named(tmp_path: Path) -> None:
    for sample in ("GSM1", "GSM2"):
        _write(tmp_path, f"{sample}_matrix.mtx.gz", f"{sample}_genes.tsv.gz", f"{sample}_barcodes.tsv.gz")
    with pytest.raises(InvalidInputError, match=r"one matrix, there are 2: GSM1_matrix\.mtx\.gz, GSM2_matrix\.mtx\.gz"):
        read_raw_input(tmp_path)
    _assert_is(read_raw_input(tmp_path / "GSM2_matrix.mtx.gz"))


def test_matrix_alone_names_what_is_missing(tmp_path: Path) -> None:
    scipy_io.mmwrite(tmp_path / "matrix.mtx", sparse.coo_matrix(COUNTS.T))
    with pytest.raises(InvalidInputError, match=r"expected genes\.tsv or features\.tsv\.gz beside matrix\.mtx"):
        read_raw_input(tmp_path / "matrix.mtx")


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_that_starsolo_calls_float_with_zeros_among_them(tmp_path: Path, packed: bool) -> None:
    _write(tmp_path, "x.mtx", "features.tsv", "barcodes.tsv")
    (tmp_path / "x.mtx").unlink()
    text = "%%MatrixMarket matrix coordinate float general\n%\n3 2 4\n1 1 1.5\n3 1 2\n2 2 3\n1 2 0\n"
    name = "matrix.mtx.gz" if packed else "matrix.mtx"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    np.testing.assert_array_equal(read_raw_input(tmp_path).X.toarray(), [[1.5, 0, 2], [0, 3, 0]])


def test_entries_of_one_place_are_summed(tmp_path: Path) -> None:
    _write(tmp_path, "matrix.mtx", "features.tsv", "barcodes.tsv")
    (tmp_path / "matrix.mtx").write_text(
        "%%MatrixMarket matrix coordinate integer general\n3 2 4\n1 1 1\n1 1 4\n3 1 2\n2 2 3\n"
    )
    read = read_raw_input(tmp_path).X
    assert (read[0, 0], read.nnz) == (5, 3)


def test_lists_with_a_heading_quotes_and_names_that_look_like_something_else(tmp_path: Path) -> None:
    scipy_io.mmwrite(tmp_path / "matrix.mtx", sparse.coo_matrix(COUNTS.T))
    (tmp_path / "genes.tsv").write_text('id\tsymbol\n"E1"\t"NA"\nE2\tnan\nE3\t\n')
    (tmp_path / "barcodes.tsv").write_text("barcode\n001\nNA\n")
    read = read_raw_input(tmp_path)
    assert (list(read.var_names), list(read.obs_names)) == (["NA", "nan", "E3"], ["001", "NA"])


@pytest.mark.parametrize("field", ["pattern", "complex"])
def test_matrix_without_counts_is_refused(tmp_path: Path, field: str) -> None:
    (tmp_path / "matrix.mtx").write_text(f"%%MatrixMarket matrix coordinate {field} general\n1 1 0\n")
    (tmp_path / "genes.tsv").write_text("A\n")
    with pytest.raises(InvalidInputError, match=rf"expected counts, this matrix is of type '{field}'"):
        read_raw_input(tmp_path)


def test_only_other_features_than_genes(tmp_path: Path) -> None:
    _write(tmp_path, "matrix.mtx", "features.tsv", "barcodes.tsv")
    (tmp_path / "features.tsv").write_text("".join(f"P{n}\tP{n}\tAntibody Capture\n" for n in range(3)))
    with pytest.raises(InvalidInputError, match=r"all features are Antibody Capture \(3\)"):
        read_raw_input(tmp_path)
