"""Raw counts from the formats in which cells are published, and several of them made one."""

from __future__ import annotations

import logging
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import dask.array
import numpy as np
import pandas as pd
import scanpy
from anndata.utils import make_index_unique
from scipy import io as scipy_io
from scipy import sparse

from discern.blocks import Matrix, as_csr, is_lazy, read_cells, rows_per_block
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, UnsupportedError, UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LOGGER = logging.getLogger(__name__)

_SUPPORTED = (
    ".h5ad, .zarr, .h5 (10x), .loom, .txt/.tsv/.csv (genes x cells, also .gz), "
    "or a folder with matrix.mtx(.gz) and genes.tsv or features.tsv.gz"
)
_TABLES = {".txt": "\t", ".tsv": "\t", ".csv": ","}
_GENES_AT_ONCE = 512


def read_raw_input(file_path: str | Path, budget: int | None = None) -> ad.AnnData:
    """Read raw counts of cells.

    Args:
        file_path: `.h5ad`, `.zarr`, `.h5` (10x), `.loom`; a table `.txt`, `.tsv` (tab) or `.csv`, genes x cells,
            perhaps gzipped; or a folder with `matrix.mtx`, `genes.tsv` (second column: symbol) and perhaps
            `barcodes.tsv`, or their gzipped successors (`features.tsv.gz`) of 10x version 3.
        budget: bytes that the counts may take in memory, by default a part of the machine's. Larger `.h5ad` and `.zarr`
            are read when needed (X is a dask array of CSR blocks then).

    Returns:
        The cells, X sparse (cells x genes), with unique gene names.

    Raises:
        MissingFileError: if the path does not exist.
        InvalidInputError: if it is of another format, or cannot be read.
        UnsupportedError: if reading it needs a library that is not installed.
    """
    path = Path(file_path)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder")
    try:
        adata = _read(path, budget)
    except UserError:
        raise
    except ImportError as error:
        raise UnsupportedError(f"{path}: {error.name} is needed to read this; pip install 'discern[loom]'") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        _LOGGER.info("%s: %d gene names occur more than once, e.g. %s", path, len(repeated), repeated[0])
        adata.var_names_make_unique()
    return adata


def _read(path: Path, budget: int | None) -> ad.AnnData:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique", category=UserWarning)
        if suffix in (".h5ad", ".zarr"):
            return read_cells(path, budget=budget)
        if path.is_dir() and any((path / name).exists() for name in ("matrix.mtx", "matrix.mtx.gz")):
            return _read_mtx(path)
        if path.is_dir() or suffix not in (".h5", ".loom", *_TABLES):
            raise InvalidInputError(f"{path}: unknown format; expected {_SUPPORTED}")
        if suffix == ".h5":
            adata = scanpy.read_10x_h5(path)
        elif suffix == ".loom":
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
                return pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)
    return None


def _read_table(path: Path, separator: str) -> ad.AnnData:
    parts = []
    names: list[str] = []
    with pd.read_csv(path, sep=separator, index_col=0, chunksize=_GENES_AT_ONCE) as reader:
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


def merge_data_sets(raw_inputs: Mapping[str, ad.AnnData], batch_keys: Mapping[str, str | None]) -> ad.AnnData:
    """Make one AnnData of several, restricted to the genes that all have.

    Args:
        raw_inputs: raw counts by path or name. They are not modified.
        batch_keys: for the inputs whose obs says the batch of each cell, the name of that column.

    Returns:
        All cells, X as CSR or dask array of CSR blocks, in the type of the inputs, genes in the order of the first. obs
        has `dataset` (name of the file) and the categorical `batch` (from the column, else the name of the file);
        `uns["DISCERN"]["batch_key"]` numbers the batches: {"0": first name, ...}.

    Raises:
        InvalidInputError: if no gene is in all inputs, or two inputs have the same name.
        UnknownNameError: if an input has not the column.
        UnsupportedError: if a column name occurs twice in an obs.

    Example:
        >>> cells = [ad.AnnData(np.ones((2, 2)), var=pd.DataFrame(index=genes)) for genes in (["A", "B"], ["B", "C"])]
        >>> merged = merge_data_sets({"raw/a.h5ad": cells[0], "raw/b.h5ad": cells[1]}, {})
        >>> merged.shape, merged.uns["DISCERN"]["batch_key"]
        ((4, 1), {'0': 'a', '1': 'b'})
    """
    names = {key: dataset_name(key) for key in raw_inputs}
    if len(set(names.values())) < len(names):
        repeated = next(name for name in names.values() if list(names.values()).count(name) > 1)
        raise InvalidInputError(
            f"expected inputs of different names, all of {[key for key in names if names[key] == repeated]} are "
            f"{repeated!r}; rename them"
        )
    genes = _common_genes(raw_inputs)
    obs = _joined([_labelled(adata, names[key], batch_keys.get(key)) for key, adata in raw_inputs.items()])
    merged = ad.AnnData(
        X=_stacked([_with_genes(adata, genes) for adata in raw_inputs.values()]),
        obs=obs,
        var=_common_columns([adata.var.reindex(genes) for adata in raw_inputs.values()]),
    )
    merged.uns["DISCERN"] = {"batch_key": batch_key(obs["batch"].cat.categories)}
    return merged


def batch_key(names: Iterable[str]) -> dict[str, str]:
    """Number the batches; the keys are text, as h5ad files know no others."""
    return {str(code): name for code, name in enumerate(names)}


def check_columns(obs: pd.DataFrame) -> None:
    """Raise UnsupportedError if a column name occurs twice."""
    if not obs.columns.is_unique:
        repeated = list(obs.columns[obs.columns.duplicated()].unique())
        raise UnsupportedError(f"expected every obs column once, these occur more than once: {repeated}; rename them")


def _labelled(adata: ad.AnnData, name: str, column: str | None) -> pd.DataFrame:
    check_columns(adata.obs)
    obs = adata.obs.copy()
    if column is None:
        obs["batch"] = name
    elif column not in obs:
        raise UnknownNameError(
            f"{name}: expected an obs column {column!r} for the batch{nearest(column, obs.columns)}, "
            f"there are {list(obs.columns)}"
        )
    elif obs[column].isna().any():
        raise InvalidInputError(
            f"{name}: expected the batch of every cell, {int(obs[column].isna().sum())} have none in {column!r}"
        )
    else:
        obs["batch"] = obs[column].astype(str)
    obs["dataset"] = name
    return obs


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Append the rows; names become unique, columns of text or mixed types categorical (which files can hold)."""
    obs = pd.concat(frames)
    for column in obs.select_dtypes([object, "category"]):
        obs[column] = pd.Categorical(obs[column].astype(str).where(obs[column].notna()))
    obs.index = make_index_unique(obs.index.astype(str))
    return obs


def _common_genes(raw_inputs: Mapping[str, ad.AnnData]) -> pd.Index:
    (first, adata), *others = raw_inputs.items()
    genes = adata.var_names
    for key, other in others:
        common = genes[genes.isin(other.var_names)]
        if not len(common):
            raise InvalidInputError(
                f"{key}: expected genes in common with {first}, there are none: {first} has names like "
                f"{list(adata.var_names[:2])}, {key} like {list(other.var_names[:2])}"
            )
        genes = common
    return genes


def _with_genes(adata: ad.AnnData, genes: pd.Index) -> Matrix:
    X = adata.X
    if isinstance(X, np.ndarray):
        X = sparse.vstack([as_csr(block, X.dtype) for block in _row_blocks(X)], format="csr")
    elif not is_lazy(X):
        X = X.tocsr()
    return X if adata.var_names.equals(genes) else X[:, adata.var_names.get_indexer(genes)]


def _row_blocks(X: np.ndarray) -> list[np.ndarray]:
    step = rows_per_block(X.shape[1])
    return [X[start : start + step] for start in range(0, max(1, X.shape[0]), step)]


def _stacked(matrices: list[Matrix]) -> Matrix:
    if len(matrices) == 1:
        return matrices[0]
    if not any(is_lazy(matrix) for matrix in matrices):
        return sparse.vstack(matrices, format="csr")
    return dask.array.concatenate(
        [
            matrix
            if is_lazy(matrix)
            else dask.array.from_array(matrix, chunks=(rows_per_block(matrix.shape[1]), -1), asarray=False)
            for matrix in matrices
        ]
    )


def _common_columns(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Keep the columns that all have with the same values."""
    first, *others = frames
    same = [
        column for column in first if all(column in frame and frame[column].equals(first[column]) for frame in others)
    ]
    return first[same].copy()
