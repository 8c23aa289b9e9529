"""Raw counts from the formats in which cells are published."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy
from scipy import io as scipy_io
from scipy import sparse

from discern import counts
from discern.blocks import as_csr, read_cells
from discern.errors import InvalidInputError, UnsupportedError
from discern.foreign import check_file, check_input, open_table, reading
from discern.structure import check_header, check_stored_sparse, open_hdf5

_LOGGER = logging.getLogger(__name__)

_SUPPORTED = (
    ".h5ad, .zarr, .h5 (10x), .loom, .txt/.tsv/.csv (genes x cells, also .gz), "
    "or a folder with matrix.mtx(.gz) and genes.tsv or features.tsv.gz"
)
_TABLES = {".txt": "\t", ".tsv": "\t", ".csv": ","}
_GENES_AT_ONCE = 512


def read_raw_input(file_path: str | Path, budget: int | None = None, layer: str | None = None) -> ad.AnnData:
    """Read raw counts of cells.

    Args:
        file_path: `.h5ad`, `.zarr`, `.h5` (10x), `.loom`; a table `.txt`, `.tsv` (tab) or `.csv`, genes x cells,
            perhaps gzipped; or a folder with `matrix.mtx`, `genes.tsv` (second column: symbol) and perhaps
            `barcodes.tsv`, or their gzipped successors (`features.tsv.gz`) of 10x version 3.
        budget: bytes that the counts may take in memory, by default a part of the machine's. Larger `.h5ad` and `.zarr`
            are read when needed (X is a dask array of CSR blocks then).
        layer: the layer with the counts, "raw" for `.raw.X`; by default X.

    Returns:
        The cells, X sparse (cells x genes), with unique gene names.

    Raises:
        MissingFileError: if the path does not exist.
        InvalidInputError: if it is of another format, or cannot be read.
        UnknownNameError: if it has no such layer.
        UnsupportedError: if reading it needs a library that is not installed.
    """
    path = Path(file_path)
    check_input(path)
    try:
        with reading(path, "cannot be read"):
            adata = _read(path, budget, layer)
            if layer is not None and path.suffix.lower() not in (".h5ad", ".zarr"):
                adata = counts.chosen(adata, layer, str(path))
    except ImportError as error:
        raise UnsupportedError(f"{path}: {error.name} is needed to read this; pip install 'discern[loom]'") from error
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        _LOGGER.info("%s: %d gene names occur more than once, e.g. %s", path, len(repeated), repeated[0])
        adata.var_names_make_unique()
    return adata


def _read(path: Path, budget: int | None, layer: str | None) -> ad.AnnData:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique", category=UserWarning)
        if suffix in (".h5ad", ".zarr"):
            return read_cells(path, budget=budget, layer=layer)
        if path.is_dir() and any((path / name).exists() for name in ("matrix.mtx", "matrix.mtx.gz")):
            return _read_mtx(path)
        if path.is_dir() or suffix not in (".h5", ".loom", *_TABLES):
            raise InvalidInputError(f"{path}: unknown format; expected {_SUPPORTED}")
        if suffix == ".h5":
            with open_hdf5(path, "cannot be read") as group:
                check_stored_sparse(group)
            adata = scanpy.read_10x_h5(path)
        elif suffix == ".loom":
            with open_hdf5(path, "cannot be read", whole=("row_attrs", "col_attrs", "attrs")):
                pass
            adata = ad.io.read_loom(path, sparse=True, X_name="", validate=False)
        else:
            return _read_table(path, _TABLES[suffix])
    adata.X = as_csr(adata.X, adata.X.dtype)
    return adata


def _read_mtx(folder: Path) -> ad.AnnData:
    genes = _table_of(folder, "genes.tsv", "features.tsv")
    if genes is None:
        raise InvalidInputError(f"{folder}: expected genes.tsv or features.tsv.gz beside matrix.mtx")
    barcodes = _table_of(folder, "barcodes.tsv")
    name = "matrix.mtx" if (folder / "matrix.mtx").exists() else "matrix.mtx.gz"
    check_file(folder / name)
    check_header(scipy_io.mminfo(folder / name), folder / name)
    X = sparse.csr_matrix(scipy_io.mmread(folder / name).T)
    if X.shape[1] != len(genes) or (barcodes is not None and X.shape[0] != len(barcodes)):
        cells = "any number of" if barcodes is None else len(barcodes)
        raise InvalidInputError(
            f"{folder}: expected a matrix of {len(genes)} genes x {cells} cells as the other files say, "
            f"got {X.shape[1]} x {X.shape[0]}"
        )
    var = pd.DataFrame({"gene_ids": genes[0].to_numpy()}, index=pd.Index(genes[min(1, genes.shape[1] - 1)].to_numpy()))
    obs = pd.DataFrame(index=barcodes[0].to_numpy() if barcodes is not None else _numbers(X.shape[0]))
    adata = ad.AnnData(X=X, obs=obs, var=var)
    if genes.shape[1] > 2 and (genes[2] == "Gene Expression").any():
        adata = adata[:, (genes[2] == "Gene Expression").to_numpy()].copy()
    return adata


def _table_of(folder: Path, *names: str) -> pd.DataFrame | None:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                with open_table(path) as table:
                    return pd.read_csv(table, sep="\t", header=None, dtype=str, keep_default_na=False)
    return None


def _read_table(path: Path, separator: str) -> ad.AnnData:
    parts = []
    names: list[str] = []
    with (
        open_table(path) as table,
        pd.read_csv(table, sep=separator, index_col=0, chunksize=_GENES_AT_ONCE) as reader,
    ):
        for part in reader:
            parts.append(sparse.csr_matrix(part.to_numpy(dtype=np.float32)))
            names.extend(part.index.astype(str))
            cells = part.columns.astype(str)
    if not parts:
        raise InvalidInputError(f"{path}: expected a table genes x cells, got an empty one")
    X = sparse.vstack(parts).T.tocsr()
    return ad.AnnData(X=X, obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=names))


def _numbers(count: int) -> pd.Index:
    return pd.Index([str(number) for number in range(count)])


def dataset_name(path: str | Path) -> str:
    """Return the name of a file's cells: its name without suffixes that say the format.

    Example:
        >>> dataset_name("raw/donor.1.csv.gz"), dataset_name("raw/pbmc.v2")
        ('donor.1', 'pbmc.v2')
    """
    name = Path(path).name
    for suffix in (".gz", ".h5ad", ".zarr", ".h5", ".loom", *_TABLES):
        name = name.removesuffix(suffix)
    return name
