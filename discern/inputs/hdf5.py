"""Raw counts from AnnData (HDF5 and zarr), 10x Genomics' HDF5 and loom."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy import sparse

from discern.data.chunks import as_csr, read_matrix, rows_per_block, summed, usable_dtype
from discern.data.containers import check_hdf5, open_hdf5, open_zarr
from discern.data.structure import check_shape, compressed
from discern.errors import InvalidInputError, UnknownNameError
from discern.inputs import raw_counts
from discern.inputs.gene_names import (
    ID_COLUMNS,
    SYMBOL_COLUMNS,
    are_numbers,
    column_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOGGER = logging.getLogger(__name__)


_CELL_NAMES = (
    *("cellid", "cell_id", "cell_ids", "cell_names", "cell_name", "obs_names", "barcodes", "barcode", "cell_barcode"),
    *("cells", "cell", "names", "name", "index", "_index"),
)
_READ_WHOLE = ("obs", "var", "row_attrs", "col_attrs")
_MARKS = ("DISCERN", "log1p")
"""Entries of uns that say that the values are no raw counts."""


def read_hdf5(path: Path, budget: int | None, layer: str | None = None) -> ad.AnnData:
    """Read an HDF5 file of whatever program, found out from what is in it.

    Args:
        path: `.h5ad`, `.h5`, `.loom`.
        budget: Bytes that the counts may take in memory.
        layer: The layer with the counts of AnnData, "raw" for `.raw.X`; None for X.

    Raises:
        InvalidInputError: If it is none of AnnData, 10x and loom.
        UnknownNameError: If there is no such layer.
    """
    try:
        h5py.File(path, "r").close()
    except OSError as error:
        raise InvalidInputError(
            f"{path}: cannot be read: it is truncated or damaged; download or copy it again ({error})"
        ) from error
    with open_hdf5(path, "cannot be read", whole=_READ_WHOLE) as file:
        if "obs" in file and "var" in file:
            return read_anndata(file, path, budget, layer)
        if layer not in (None, raw_counts.X):
            raise UnknownNameError(f"{path}: expected AnnData with a layer {layer!r}, this file has no layers")
        if isinstance(file.get("matrix"), h5py.Dataset):
            return _read_loom(file, path)
        genomes = [name for name in file if isinstance(file[name], h5py.Group) and "barcodes" in file[name]]
        if genomes and "barcode_idx" not in file:
            check_hdf5(file, genomes)
            return _read_10x(file, genomes, path)
        raise InvalidInputError(f"{path}: {_stranger(file)}")


def read_zarr(path: Path, budget: int | None, layer: str | None = None) -> ad.AnnData:
    """Read a zarr folder that anndata wrote.

    Args:
        path: The folder.
        budget: Bytes that the counts may take in memory.
        layer: The layer with the counts, "raw" for `.raw.X`; None for X.

    Raises:
        InvalidInputError: If it holds no AnnData.
        UnknownNameError: If there is no such layer.
    """
    group = open_zarr(path, _READ_WHOLE)
    if "obs" not in group or "var" not in group:
        raise InvalidInputError(f"{path}: expected AnnData with X, obs and var, found {sorted(group) or 'nothing'}")
    return read_anndata(group, path, budget, layer)


def read_anndata(group: h5py.Group, path: Path, budget: int | None, layer: str | None = None) -> ad.AnnData:
    """Read X, obs and var, and nothing else, of AnnData.

    A column of obs or var that cannot be read is left out, with a warning.

    Args:
        group: The open HDF5 file or zarr group.
        path: How messages call it.
        budget: Bytes that X may take in memory, see `discern.data.chunks.read_matrix`.
        layer: What becomes X, see `read_hdf5`.

    Raises:
        InvalidInputError: If there is no X, or names of cells and genes do not fit to it.
    """
    matrix, genes = raw_counts.place(group, layer, path)
    uns = group.get("uns", {})
    obs, var = _frame(group["obs"], "obs", uns, path), _frame(genes, "var", uns, path)
    X = read_matrix(path, matrix, (len(obs), len(var)), budget)
    marks: dict[str, dict[str, str]] = {mark: {} for mark in _MARKS if "uns" in group and mark in group["uns"]}
    return ad.AnnData(X=X, obs=obs, var=var, uns=marks)


def _frame(elem: h5py.Group, part: str, uns: h5py.Group, path: Path) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(encoding metadata|old version of AnnData)")
        if isinstance(elem, h5py.Dataset):
            frame = _compound(elem, uns)
        else:
            try:
                frame = read_elem(elem)
            except Exception as error:  # noqa: BLE001 - whatever a column of a foreign file raises
                _LOGGER.debug("%s: %s as a whole: %s", path, part, error)
                frame = _column_by_column(elem, part, path)
    if not isinstance(frame, pd.DataFrame):
        raise InvalidInputError(f"{path}: expected a table as {part}, got {type(frame).__name__}")
    missing = frame.index.isna()
    return frame.set_axis(pd.Index(["" if no else _text(name) for name, no in zip(frame.index, missing, strict=True)],
                                   name=frame.index.name), axis=0)  # fmt: skip


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _column_by_column(elem: h5py.Group, part: str, path: Path) -> pd.DataFrame:
    """Read what can be read of a table."""
    attributes = dict(elem.attrs)
    key = str(attributes.get("_index", "_index"))
    if key not in elem:
        raise InvalidInputError(f"{path}: expected the names in {part}[{key!r}], there is only {sorted(elem)}")
    index = pd.Index(np.asarray(_column(elem[key]), dtype=object), name=None if key == "_index" else key)
    columns, lost = {}, []
    for name in attributes.get("column-order", [name for name in elem if name not in (key, "__categories")]):
        try:
            values = _column(elem[name])
            if len(values) != len(index):
                raise ValueError(f"{len(values)} values for {len(index)} rows")
            columns[str(name)] = values
        except Exception as error:  # noqa: BLE001 - whatever a column of a foreign file raises
            _LOGGER.debug("%s: %s[%r]: %s", path, part, name, error)
            lost.append(str(name))
    if lost:
        _LOGGER.warning("%s: columns of %s that cannot be read are left out: %s", path, part, ", ".join(lost))
    return pd.DataFrame(columns, index=index)


def _column(elem: h5py.Dataset) -> Any:
    values = read_elem(elem)
    categories = elem.attrs.get("categories")
    if isinstance(categories, h5py.Reference):  # anndata 0.7
        return _categorical(values, read_elem(elem.file[categories]))
    return values


def _categorical(codes: np.ndarray, categories: Any) -> pd.Categorical:
    return pd.Categorical.from_codes(codes.astype(np.int64), pd.Index(categories))


def _compound(elem: h5py.Dataset, uns: h5py.Group) -> pd.DataFrame:
    """Read a table of anndata before 0.7: records, whose codes of categories `uns` explains."""
    records = elem[:]
    columns = {
        name: np.array([_text(value) for value in records[name]], dtype=object)
        if records[name].dtype.kind in "SOU"
        else records[name].astype(records[name].dtype.newbyteorder("="))
        for name in records.dtype.names
    }
    for name, values in columns.items():
        if f"{name}_categories" in uns and values.dtype.kind in "iu":
            categories = [_text(value) for value in np.atleast_1d(uns[f"{name}_categories"][()])]
            columns[name] = _categorical(values, categories)
    frame = pd.DataFrame(columns)
    return frame.set_index(frame.columns[0]).rename_axis(None)


def _read_10x(file: h5py.File, genomes: list[str], path: Path) -> ad.AnnData:
    if len(genomes) > 1:
        raise InvalidInputError(
            f"{path}: holds cells of {len(genomes)} genomes, {' and '.join(genomes)}; save one of them: "
            f"scanpy.read_10x_h5(file, genome={genomes[0]!r}).write_h5ad(...)"
        )
    group = file[genomes[0]]
    features = group.get("features", group)
    n_genes, n_cells = check_shape(group["shape"][:])
    dtype = usable_dtype(group["data"].dtype, str(path))
    data, indices, indptr = (group[name][:] for name in ("data", "indices", "indptr"))
    X = summed(compressed(data, indices, indptr, (n_cells, n_genes)).astype(dtype, copy=False))
    names = {"gene_names": "index", "name": "index", "genes": "gene_ids", "id": "gene_ids", "genome": "genome",
             "feature_type": "feature_types"}  # fmt: skip
    var = pd.DataFrame({new: _texts(features[old]) for old, new in names.items() if old in features})
    if "index" not in var:
        raise InvalidInputError(f"{path}: expected names of genes, there are only {sorted(features)}")
    var = var.set_index("index").rename_axis(None)
    if "genome" in var and (species := [name for name in var["genome"].unique() if name]) and len(species) > 1:
        _LOGGER.warning("%s: holds genes of %d genomes, %s; all are read", path, len(species), " and ".join(species))
    return ad.AnnData(X=X, obs=pd.DataFrame(index=_texts(group["barcodes"])), var=var)


def _texts(values: h5py.Dataset) -> list[str]:
    return [_text(value) for value in values[:]]


def _read_loom(file: h5py.File, path: Path) -> ad.AnnData:
    matrix = file["matrix"]
    var, obs = (
        _attributes(file, part, size) for part, size in zip(("row_attrs", "col_attrs"), matrix.shape, strict=True)
    )
    symbols = [
        key for key in (column_of(var, [name]) for name in (*SYMBOL_COLUMNS, *ID_COLUMNS, "index", "_index")) if key
    ]
    key = next((key for key in symbols if not are_numbers(pd.Index(var[key].astype(str)))), None)
    if key is None:
        raise InvalidInputError(
            f"{path}: expected the names of the genes in a row attribute such as Gene, gene_names or Accession, "
            f"there are {list(var) or 'none'}"
        )
    var = var.set_index(pd.Index(var[key].astype(str))).drop(columns=key).rename_axis(None)
    names = column_of(obs, _CELL_NAMES)
    if names is None:
        _LOGGER.warning("%s: no names of cells among the column attributes %s; they are numbered", path, list(obs))
        obs.index = obs.index.astype(str)
    else:
        obs = obs.set_index(pd.Index(obs[names].astype(str))).drop(columns=names).rename_axis(None)
    dtype, step = usable_dtype(matrix.dtype, str(path)), rows_per_block(len(var))
    blocks = [as_csr(matrix[:, start : start + step].T, dtype) for start in range(0, max(1, len(obs)), step)]
    return ad.AnnData(X=sparse.vstack(blocks, format="csr"), obs=obs, var=var)


def _attributes(file: h5py.File, part: str, size: int) -> pd.DataFrame:
    """Read the attributes of a loom file that have one value for each row or column."""
    found: dict[str, list[str] | np.ndarray] = {}
    for name, elem in file.get(part, {}).items():
        if isinstance(elem, h5py.Dataset) and elem.shape in ((size,), (size, 1)) and elem.dtype.kind in "biufSOU":
            values = elem[:].ravel()
            found[name] = [_text(value) for value in values] if values.dtype.kind in "SOU" else values
    return pd.DataFrame(found, index=range(size))


def _stranger(file: h5py.File) -> str:
    known: dict[str, Callable[[], str]] = {
        "mod": lambda: (
            f"holds MuData of {', '.join(file['mod'])}; save the gene expression: mudata['rna'].write_h5ad(...)"
        ),
        "assays": lambda: "is a Seurat file; write it as .h5ad in R (SeuratDisk::Convert, or anndataR::write_h5ad)",
        "barcode_idx": lambda: "lists molecules of 10x (molecule_info); give filtered_feature_bc_matrix.h5 instead",
    }
    for key, say in known.items():
        if key in file:
            return say()
    return (
        "expected AnnData (X, obs, var), 10x counts (matrix) or loom (matrix, row_attrs, col_attrs), found "
        f"{sorted(file)[:10] or 'nothing'}"
    )
