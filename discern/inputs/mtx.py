"""Raw counts from a MatrixMarket file with the names of its genes and cells beside it."""

from __future__ import annotations

import logging
from typing import IO, TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import io as scipy_io
from scipy import sparse

from discern.data.chunks import summed, usable_dtype
from discern.data.containers import check_header
from discern.errors import InvalidInputError
from discern.inputs.gene_names import are_numbers
from discern.runtime.foreign import open_text

if TYPE_CHECKING:
    from pathlib import Path

    from discern.data.chunks import Matrix

_LOGGER = logging.getLogger(__name__)


_MATRIX = (".mtx", ".mtx.gz")
_LISTS = tuple(f".{suffix}{packed}" for suffix in ("tsv", "txt", "csv") for packed in ("", ".gz"))
_LARGEST_LIST = 2**30
_GENE_WORDS = ("features", "genes", "gene", "cols", "gene_names", "feature")
_CELL_WORDS = ("barcodes", "barcode", "cells", "rows", "cell_ids", "cell_metadata")
_CELLS_FIRST = (
    "cells_x_genes",
    "cells_x_tcc",
    "cell_x_gene",
    "quants_mat",
    "genes.mtx",
    "spliced",
    "unspliced",
    "count_matrix",
)
"""Names of matrices that kallisto, alevin and split-pipe write, cells x genes."""


def is_mtx(path: Path) -> bool:
    """Return whether this is a MatrixMarket file by its name."""
    return path.name.lower().endswith(_MATRIX)


def has_mtx(folder: Path) -> bool:
    """Return whether there is a MatrixMarket file in the folder."""
    return any(is_mtx(path) for path in folder.iterdir())


def read_mtx(path: Path) -> ad.AnnData:
    """Read a matrix and the names of its genes and cells.

    Args:
        path: A MatrixMarket file (`.mtx`, `.mtx.gz`), or a folder with one. Beside it, with the same beginning of their
            names if there are several, lie the genes (`features.tsv`, `genes.tsv`, `cells_x_genes.genes.txt`, ...: a
            name, or an id and a symbol and perhaps the type of the feature) and perhaps the barcodes. Whether the
            matrix is genes x cells or cells x genes follows from their lengths.

    Raises:
        InvalidInputError: If there is no such set of files, or more than one, or they do not fit together.
    """
    matrix = _only_matrix(path) if path.is_dir() else path
    genes_path, barcodes_path = _lists_beside(matrix)
    if genes_path is None:
        raise InvalidInputError(
            f"{path}: expected genes.tsv or features.tsv.gz beside {matrix.name}, there is only "
            f"{_listed(sorted(other.name for other in matrix.parent.iterdir() if other != matrix))}"
        )
    X = _matrix(matrix)
    genes = _rows(genes_path)
    barcodes = _rows(barcodes_path) if barcodes_path else None
    X, genes, barcodes = _fitted(X, genes, barcodes, path, matrix)
    var = _gene_table(genes, genes_path)
    if are_numbers(var.index):
        raise InvalidInputError(f"{genes_path}: expected the names of the genes, got running numbers")
    if barcodes is None:
        _LOGGER.warning("%s: no barcodes beside %s; the cells are numbered", path, matrix.name)
        names = [str(number) for number in range(X.shape[0])]
    else:
        names = [row[0] for row in barcodes]
    return ad.AnnData(X=X, obs=pd.DataFrame(index=pd.Index(names, dtype=object)), var=var)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "nothing"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _only_matrix(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if is_mtx(path))
    usual = [path for path in found if path.name in ("matrix.mtx", "matrix.mtx.gz")]
    if usual:
        if len(others := [path.name for path in found if path not in usual]) > 0:
            _LOGGER.info("%s: %s is read, not %s", folder, usual[0].name, _listed(others))
        return usual[0]
    if len(found) > 1:
        raise InvalidInputError(
            f"{folder}: expected one matrix, there are {len(found)}: {_listed([path.name for path in found])}; "
            "give one of these files, or put each into a folder of its own with its genes and barcodes"
        )
    return found[0]


def _stem(name: str) -> str:
    for suffix in (*_MATRIX, *_LISTS):
        if name.lower().endswith(suffix) and not name.lower().endswith(suffix + ".gz"):
            return name[: -len(suffix)]
    return name


def _lists_beside(matrix: Path) -> tuple[Path | None, Path | None]:
    """Find the files with the names of genes and cells that belong to a matrix."""
    stem = _stem(matrix.name)
    prefix = stem.removesuffix("matrix")
    beginnings = list(dict.fromkeys([prefix, f"{stem}.", f"{stem}_", ""]))
    files = sorted(path for path in matrix.parent.iterdir() if path.name.lower().endswith(_LISTS))
    names = {path: _stem(path.name) for path in files}

    def find(words: tuple[str, ...], suffix: str) -> Path | None:
        for beginning in beginnings:
            for word in words:
                for path, name in names.items():
                    if name.lower() == f"{beginning}{word}".lower():
                        return path
        fitting = [path for path, name in names.items() if name.lower().endswith(words) and _mark(name) == _mark(stem)]
        return fitting[0] if len(fitting) == 1 else None

    return find(_GENE_WORDS, "genes"), find(_CELL_WORDS, "barcodes")


def _mark(name: str) -> str:
    """Return what a GEO archive puts before the names of one sample's files."""
    first = name.split("_")[0]
    return first if first.startswith("GSM") else ""


def _rows(path: Path) -> list[list[str]]:
    with open_text(path) as file:
        content = file.read(_LARGEST_LIST + 1)
    if len(content) > _LARGEST_LIST:
        raise InvalidInputError(f"{path}: expected a list of names, got more than {_LARGEST_LIST >> 20} MB")
    text = content.decode("utf-8-sig", "replace")
    separator = "," if ".csv" in path.name.lower() else "\t"
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    return [[part.strip().strip('"') for part in line.split(separator)] for line in lines]


class _Renamed:
    """A MatrixMarket file whose first line calls the numbers `real`: scipy does not know `float` and `double`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._start = file.readline().replace(b" float", b" real").replace(b" double", b" real")

    def read(self, size: int = -1) -> bytes:
        start, self._start = self._start, b""
        if size < 0:
            return start + self._file.read()
        self._start = start[size:]
        return start[:size] + self._file.read(max(0, size - len(start)))


def _matrix(path: Path) -> sparse.coo_matrix:
    with open_text(path) as file:
        header = file.readline(1000).decode("utf-8", "replace").lower().split()
        if header[:2] != ["%%matrixmarket", "matrix"] or len(header) < 5:
            raise InvalidInputError(f"{path}: expected a MatrixMarket file, which begins with %%MatrixMarket matrix")
        if header[3] in ("pattern", "complex"):
            raise InvalidInputError(f"{path}: expected counts, this matrix is of type {header[3]!r}")
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if header[3] in ("integer", "real") and packed == path.name.endswith(".gz"):
        check_header(scipy_io.mminfo(path), path)
        return scipy_io.mmread(path)
    with open_text(path) as file:
        check_header(scipy_io.mminfo(_Renamed(file)), path)
    with open_text(path) as file:
        return scipy_io.mmread(_Renamed(file))


def _fitted(
    X: Matrix, genes: list[list[str]], barcodes: list[list[str]] | None, path: Path, matrix: Path
) -> tuple[sparse.csr_matrix, list[list[str]], list[list[str]] | None]:
    """Turn the matrix to cells x genes, and take headings off the lists."""
    rows, columns = X.shape
    places = [(genes, barcodes, columns, rows, False), (genes, barcodes, rows, columns, True)]
    stem = _stem(matrix.name).lower()
    if not any(stem.startswith(name) for name in _CELLS_FIRST):
        places.reverse()
    for exact in (True, False):
        for names, cells, n_genes, n_cells, turned in places:
            fitting = _without_heading(names, n_genes, exact), _without_heading(cells, n_cells, exact)
            if fitting[0] is not None and (cells is None or fitting[1] is not None):
                if not turned and n_genes != n_cells:
                    _LOGGER.info("%s: %s is cells x genes", path, matrix.name)
                turn = X.T if turned else X
                dtype = usable_dtype(turn.dtype, str(path))
                return summed(sparse.csr_matrix(turn, dtype=dtype)), fitting[0], fitting[1]
    wanted = "any number of" if barcodes is None else len(barcodes)
    raise InvalidInputError(
        f"{path}: expected a matrix of {len(genes)} genes x {wanted} cells as the other files say, "
        f"got {rows} x {columns}"
    )


def _without_heading(rows: list[list[str]] | None, size: int, exact: bool) -> list[list[str]] | None:
    if rows is None or len(rows) == size:
        return rows
    return rows[1:] if not exact and len(rows) == size + 1 else None


_KINDS = {"gene expression", "antibody capture", "peaks", "crispr guide capture", "custom", "multiplexing capture"}


def _gene_table(rows: list[list[str]], path: Path) -> pd.DataFrame:
    """Make var of the lines of genes.tsv or features.tsv: id, symbol, type of the feature."""
    width = max(map(len, rows))
    columns = [
        np.array([row[place] if place < len(row) else "" for row in rows], dtype=object) for place in range(width)
    ]
    if width > 1 and are_numbers(pd.Index(columns[0])):
        columns = columns[1:]
    kinds = next((column for column in columns[1:] if set(map(str.lower, column)) & _KINDS), None)
    texts = [column for column in columns[:3] if column is not kinds]
    ids, symbols = texts[0], texts[1] if len(texts) > 1 else texts[0]
    if _share_of_ids(symbols) > _share_of_ids(ids):
        ids, symbols = symbols, ids
    symbols = np.where(symbols == "", ids, symbols)
    var = pd.DataFrame({"gene_ids": ids}, index=pd.Index(symbols, dtype=object))
    if kinds is not None:
        var["feature_types"] = kinds
    return var


def _share_of_ids(names: np.ndarray) -> float:
    return float(np.mean([name.startswith(("ENS", "FBgn", "WBGene")) and name[-1:].isdigit() for name in names]))
