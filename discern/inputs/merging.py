"""Several inputs made one: their genes matched, their cells told apart by batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import anndata as ad
import dask.array
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from scipy import sparse

from discern.data.annotation import (
    OBS_COLUMNS,
    VAR_COLUMNS,
    appended,
    as_text,
    check_columns,
    free_name,
    rename_columns,
    set_aside,
    storable,
)
from discern.data.chunks import Matrix, is_lazy, rows_per_block
from discern.data.structure import check_texts
from discern.errors import InvalidInputError, UnknownNameError, UnsupportedError, nearest
from discern.inputs import gene_matching
from discern.inputs.gene_names import SYMBOL_COLUMNS, column_of, only_genes
from discern.inputs.gene_names import check_names as check_gene_names
from discern.inputs.readers import dataset_name
from discern.runtime.foreign import reading

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_LOGGER = logging.getLogger(__name__)


BatchColumn = str | Literal[False] | None
"""obs column with the batch; None: `batch` if there is one, else the name of the input; False: the name in any case."""

_BATCH = "batch"
_SHOWN = 5
_FEW_DIFFERENCES = 0.1
_ENOUGH_CELLS = 20
MOST_BATCHES = 200
_LIKE_MISSING = {"nan", "na", "n/a", "none", "null", "<na>", "nat", "-", "?"}


class Source(NamedTuple):
    """What is taken from one input.

    Attributes:
        batch: obs column with the batch; None for `batch` if there is one, else the name of the input; False for the
            name in any case.
        layer: The layer with the counts, "raw" for `.raw.X`; None for X.
    """

    batch: BatchColumn = None
    layer: str | None = None


def sources(raw_input: Iterable[str | Path] | Mapping[str, object] | None) -> dict[str, Source]:
    """Return what is taken from each input, as `input_ds.raw_input` says it.

    Args:
        raw_input: Paths or names; as a mapping with the obs column of each (None, False: see `Source`), or
            {"batch": column, "layer": name}.

    Raises:
        InvalidInputError: If something else is said of an input.

    Example:
        >>> sources({"a.h5ad": "donor", "b.h5ad": {"layer": "counts"}})["b.h5ad"]
        Source(batch=None, layer='counts')
    """
    said = raw_input if isinstance(raw_input, Mapping) else dict.fromkeys(raw_input or ())
    return {str(path): _source(str(path), value) for path, value in said.items()}


def _source(path: str, value: object) -> Source:
    if isinstance(value, Source):
        return value
    options = dict(value) if isinstance(value, Mapping) else {"batch": value}
    batch, layer = options.pop("batch", None), options.pop("layer", None)
    if options or not (batch is None or batch is False or isinstance(batch, str)) or not isinstance(layer, str | None):
        raise InvalidInputError(
            f"{path}: expected an obs column, None, False or {{'batch': ..., 'layer': ...}}, got {value!r}"
        )
    return Source(batch, layer)


def merge_data_sets(
    raw_inputs: Mapping[str, ad.AnnData], batch_keys: Mapping[str, BatchColumn]
) -> tuple[ad.AnnData, dict[int, str]]:
    """Make one AnnData of several, restricted to the genes that all have.

    The obs column `batch` of an input is its batch, or the column that is named; the name of the input only if there is
    none. Columns that the program uses itself get another name: `batch` (if another column is the batch), `split`, ...
    become `batch_original`, `split_original`. A column `dataset` stays; the name of the file is in `discern_dataset`
    then. All columns become such that files can hold them, see `discern.data.annotation.storable`.

    Args:
        raw_inputs: Raw counts by path or name. They are not modified.
        batch_keys: For each input the obs column that says the batch; see `Source.batch`.

    Returns:
        All cells, X as CSR or dask array of CSR blocks, in the type of the inputs, genes in the order of the first. obs
        has `dataset` (name of the file) and the categorical `batch`; var has the columns that all inputs share;
        `uns["DISCERN"]["batch_key"]` numbers the batches: {"0": first name, ...}. Beside it the same numbers, {0: first
        name, ...}.

    Raises:
        InvalidInputError: If no gene is in all inputs, genes have running numbers as names, an input is transposed, two
            inputs have the same name, cells have no batch, or nearly each has its own.
        UnknownNameError: If an input has not the column.
        UnsupportedError: If a column name occurs twice in an obs or var.

    Example:
        >>> import numpy as np
        >>> cells = [ad.AnnData(np.ones((2, 2)), var=pd.DataFrame(index=genes)) for genes in (["A", "B"], ["B", "C"])]
        >>> merged, batches = merge_data_sets({"raw/a.h5ad": cells[0], "raw/b.h5ad": cells[1]}, {})
        >>> merged.shape, batches
        ((4, 1), {0: 'a', 1: 'b'})
    """
    if not raw_inputs:
        raise InvalidInputError("expected cells to merge, got no input")
    check_names(raw_inputs)
    for key, adata in raw_inputs.items():
        if not adata.n_obs:
            raise InvalidInputError(f"{key}: expected cells, there are none")
        with reading(key, "cannot be used"):
            check_texts(pd.DataFrame(index=adata.obs_names), "obs")
            check_texts(pd.DataFrame(index=adata.var_names), "var")
    raw_inputs = {key: only_genes(adata, key) for key, adata in raw_inputs.items()}
    check_gene_names(raw_inputs)
    batches = {key: batches_of(key, adata.obs, batch_keys.get(key)) for key, adata in raw_inputs.items()}
    for note in check_batches(batches):
        warnings.warn(note, stacklevel=2)
    matched = gene_matching.match({key: adata.var for key, adata in raw_inputs.items()})
    for note in matched.warnings:
        warnings.warn(note, stacklevel=2)
    for note in matched.remarks:
        _LOGGER.info("%s", note)
    obs, renamed_obs = _merged_obs(raw_inputs, batches)
    var, renamed_var = _merged_var(raw_inputs, matched)
    merged = ad.AnnData(
        X=stacked([_with_genes(adata, matched.columns[key]) for key, adata in raw_inputs.items()]), obs=obs, var=var
    )
    names = obs[_BATCH].cat.categories
    renamed = {part: names for part, names in (("obs", renamed_obs), ("var", renamed_var)) if names}
    merged.uns["DISCERN"] = {"batch_key": batch_key(names)} | ({"user_columns": renamed} if renamed else {})
    return merged, dict(enumerate(names))


def batch_key(names: Iterable[str]) -> dict[str, str]:
    """Number the batches; the keys are text, as h5ad files know no others."""
    names = list(names)
    if any(not str(name).strip() for name in names):
        raise InvalidInputError("some cells have an empty text as their batch: give these cells a name")
    return {str(code): name for code, name in enumerate(names)}


def check_names(inputs: Iterable[str]) -> None:
    """Raise InvalidInputError if two inputs have the same name, which may become their batch."""
    by_name: dict[str, list[str]] = {}
    for key in inputs:
        by_name.setdefault(dataset_name(key), []).append(key)
    for name, keys in by_name.items():
        if len(keys) > 1:
            raise InvalidInputError(f"expected inputs of different names, all of {keys} are {name!r}; rename them")


# --- batches ---------------------------------------------------------------------------------------------------------


def batches_of(key: str, obs: pd.DataFrame, column: BatchColumn) -> pd.Categorical:
    """Return the batch of each cell of an input, as text.

    Args:
        key: Path or name of the input.
        obs: Its annotation.
        column: See `Source.batch`.

    Raises:
        UnknownNameError: If there is no such column.
        UnsupportedError: If a column name occurs twice.
        InvalidInputError: If a cell has no batch, or nearly each has its own.
    """
    try:
        check_columns(obs)
    except UnsupportedError as error:
        raise UnsupportedError(f"{key}: {error}") from None
    if column is None:
        column = _BATCH if _BATCH in obs and obs[_BATCH].notna().any() else False
    if column is False:
        return pd.Categorical.from_codes(np.zeros(len(obs), dtype=int), pd.Index([dataset_name(key)], dtype=object))
    known = {str(name): name for name in obs}
    if column not in known:
        raise UnknownNameError(
            f"{key}: expected an obs column {column!r} for the batch{nearest(column, known)}, there are {list(known)}"
        )
    batches = as_text(obs[known[column]]).remove_unused_categories()
    batches = batches.remove_categories([name for name in batches.categories if not name.strip()])
    missing = int((batches.codes < 0).sum())
    if missing:
        raise InvalidInputError(
            f"{key}: expected the batch of every cell, {missing:,} of {len(obs):,} cells have none in obs column "
            f"{column!r}: fill them in, leave these cells out, or choose another column; false in its place takes the "
            "name of the file"
        )
    different = len(batches.categories)
    if len(obs) >= _ENOUGH_CELLS and different > len(obs) / 2:
        raise InvalidInputError(
            f"{key}: expected a batch of many cells, obs column {column!r} has {different:,} different values for "
            f"{len(obs):,} cells, like {batches.categories[0]!r}: name another column; false in its place takes the "
            "name of the file"
        )
    return batches.reorder_categories(sorted(batches.categories))


def check_batches(batches: Mapping[str, pd.Categorical]) -> list[str]:
    """Return what may be wrong with the names of the batches of several inputs.

    Args:
        batches: For each input the batch of each cell.

    Example:
        >>> check_batches({"a": pd.Categorical(["1"]), "b": pd.Categorical(["1"])})[0][:59]
        "batch '1' has the same name in 'a' and 'b': its cells are o"
    """
    notes = []
    for owning, names in shared_batches(batches).items():
        several = len(names) > 1
        notes.append(
            f"batch{'es' * several} {listed(names)} {'have' if several else 'has'} the same name in "
            f"{' and '.join(map(repr, owning[:_SHOWN]))}{' ...' * (len(owning) > _SHOWN)}: "
            f"{'their cells are one batch each' if several else 'its cells are one batch'}; if they were measured "
            "apart, give them different names in obs, or name another column, or false, for the name of the file, "
            "in raw_input"
        )
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for values in batches.values() for name in values.categories):
        alike.setdefault("".join(name.split()).casefold(), []).append(name)
    notes += [
        f"batches {listed(names)} differ in case or blanks only: they are taken as different batches"
        for names in alike.values()
        if len(names) > 1
    ]
    for key, values in batches.items():
        if len(values.categories) > MOST_BATCHES:
            average = len(values) // len(values.categories)
            notes.append(
                f"{key}: {len(values.categories):,} batches, of {average} cells on average: "
                f"{listed(list(values.categories[:2]))} ...; is that the column with the batch?"
            )
        if missing := [name for name in values.categories if name.strip().casefold() in _LIKE_MISSING]:
            notes.append(
                f"{key}: {int(values.isin(missing).sum()):,} cells have the batch {listed(missing)}, which looks like "
                "a missing value: it is taken as the name of a batch"
            )
    return notes


def shared_batches(batches: Mapping[str, pd.Categorical]) -> dict[tuple[str, ...], list[str]]:
    """Return the batches that several inputs have, by these inputs."""
    owners: dict[str, list[str]] = {}
    for key, values in batches.items():
        for name in values.categories:
            owners.setdefault(str(name), []).append(key)
    shared: dict[tuple[str, ...], list[str]] = {}
    for name, keys in owners.items():
        if len(keys) > 1:
            shared.setdefault(tuple(keys), []).append(name)
    return shared


def listed(names: list[str]) -> str:
    """Return the first few names in words."""
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


# --- obs and var -----------------------------------------------------------------------------------------------------


def _merged_obs(
    raw_inputs: Mapping[str, ad.AnnData], batches: Mapping[str, pd.Categorical]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Append the rows; returns also what the user's columns are called whose names the program uses."""
    frames = {key: storable(adata.obs, key) for key, adata in raw_inputs.items()}
    renamed = set_aside(frames, OBS_COLUMNS, "obs")
    taken = {column for frame in frames.values() for column in frame}
    kept = any(
        _BATCH in frame and not _same(frame[_BATCH], pd.Series(batches[key], index=frame.index))
        for key, frame in frames.items()
    )
    if kept:
        aside = free_name(f"{_BATCH}_original", taken)
        _LOGGER.warning("the obs column 'batch' is kept as %r, as the batch is taken from elsewhere", aside)
    names = {key: dataset_name(key) for key in frames}
    own = any(
        "dataset" in frame and not (as_text(frame["dataset"]) == names[key]).all() for key, frame in frames.items()
    )
    dataset = free_name("discern_dataset", taken) if own else "dataset"
    if own:
        _LOGGER.info("the obs column 'dataset' stays; the name of the file is in %r", dataset)
    for key, frame in frames.items():
        if _BATCH in frame and kept:
            rename_columns(frame, {_BATCH: aside})
        frame[_BATCH] = batches[key]
        frame[dataset] = pd.Categorical.from_codes([0] * len(frame), pd.Index([names[key]], dtype=object))
    obs = appended(list(frames.values()))
    obs[_BATCH] = obs[_BATCH].cat.reorder_categories(sorted(obs[_BATCH].cat.categories))
    return _unique_names(obs), {old: new for old, new in renamed.items() if not old.startswith("discern_")}


def _unique_names(obs: pd.DataFrame) -> pd.DataFrame:
    repeated = obs.index.duplicated()
    if repeated.any():
        name = obs.index[repeated][0]
        obs[free_name("name_original", obs.columns)] = pd.Categorical(obs.index)
        label = obs.index.name
        obs.index = make_index_unique(obs.index)
        obs.index.name = label
        _LOGGER.info(
            "%d cells have a name that came before: a number is appended, the first %r is now %r; obs column %r holds "
            "the names as they were",
            repeated.sum(),
            name,
            obs.index[repeated][0],
            obs.columns[-1],
        )
    return obs


def _merged_var(
    raw_inputs: Mapping[str, ad.AnnData], matched: gene_matching.Matched
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Keep the columns that all have with the same values, or of text nearly so."""
    frames = {}
    for key, adata in raw_inputs.items():
        frames[key] = storable(adata.var, key, "var", categories=False).iloc[matched.columns[key]]
        frames[key].index = matched.names.rename(frames[key].index.name)
    (first, var), *others = frames.items()
    kept = []
    for column in var:
        if not all(column in frame for _, frame in others):
            continue
        different = [~_equal(var[column], frame[column]) for _, frame in others]
        most = max((int(rows.sum()) for rows in different), default=0)
        if most and (most > _FEW_DIFFERENCES * len(var) or pd.api.types.is_numeric_dtype(var[column].dtype)):
            continue
        kept.append(column)
        if most:
            number = next(number for number, rows in enumerate(different) if rows.any())
            key, frame = others[number]
            row = int(np.flatnonzero(different[number])[0])
            _LOGGER.warning(
                "var column %r differs in %d of %d genes, e.g. %s: %r in %s, %r in %s; those of %s are kept",
                *(column, most, len(var), var.index[row], var[column].iloc[row], first, frame[column].iloc[row], key),
                first,
            )
    result = var[kept].copy()
    renamed = set_aside({first: result}, VAR_COLUMNS, "var")
    if matched.by is not None and matched.by not in result:
        result[matched.by] = np.asarray(matched.keys, dtype=object)
    if column_of(result, SYMBOL_COLUMNS) is None:
        _keep_symbols(result, frames)
    return result, renamed


def _keep_symbols(result: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> None:
    """Add the symbols of the genes, if a single input has them."""
    found = {key: column for key, frame in frames.items() if (column := column_of(frame, SYMBOL_COLUMNS)) is not None}
    if len(found) != 1:
        return
    ((key, column),) = found.items()
    symbols = frames[key][column]
    if not pd.api.types.is_numeric_dtype(symbols.dtype):
        result[column] = symbols.to_numpy()
        _LOGGER.info("the symbols of the genes, var column %r, are those of %s", column, key)


def _equal(one: pd.Series, other: pd.Series) -> np.ndarray:
    """Return where values are the same, or both missing; as text, unless both are numbers."""
    if pd.api.types.is_numeric_dtype(one.dtype) and pd.api.types.is_numeric_dtype(other.dtype):
        a, b = (values.to_numpy(np.float64, na_value=np.nan) for values in (one, other))
        return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))
    a, b = (np.asarray(as_text(values).astype(object), dtype=object) for values in (one, other))
    return np.asarray((a == b) | (pd.isna(a) & pd.isna(b)))


def _same(one: pd.Series, other: pd.Series) -> bool:
    return bool(_equal(one, other).all())


# --- counts ----------------------------------------------------------------------------------------------------------


def _with_genes(adata: ad.AnnData, columns: np.ndarray) -> Matrix:
    X = adata.X
    return X if np.array_equal(columns, np.arange(X.shape[1])) else X[:, columns]


def stacked(matrices: list[Matrix]) -> Matrix:
    """Return matrices of the same genes below each other, CSR or, if one of them is lazy, a dask array."""
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
