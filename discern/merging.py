"""Several inputs made one: their genes matched, their cells told apart by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import dask.array
import pandas as pd
from anndata.utils import make_index_unique
from scipy import sparse

from discern.blocks import Matrix, is_lazy, rows_per_block
from discern.errors import InvalidInputError, UnknownNameError, UnsupportedError, nearest
from discern.gene_names import only_genes
from discern.reading import dataset_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


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
        >>> import numpy as np
        >>> cells = [ad.AnnData(np.ones((2, 2)), var=pd.DataFrame(index=genes)) for genes in (["A", "B"], ["B", "C"])]
        >>> merged = merge_data_sets({"raw/a.h5ad": cells[0], "raw/b.h5ad": cells[1]}, {})
        >>> merged.shape, merged.uns["DISCERN"]["batch_key"]
        ((4, 1), {'0': 'a', '1': 'b'})
    """
    raw_inputs = {key: only_genes(adata, key) for key, adata in raw_inputs.items()}
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
    return X if adata.var_names.equals(genes) else X[:, adata.var_names.get_indexer(genes)]


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
