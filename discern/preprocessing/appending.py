"""Append new cells to a processed file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

import anndata as ad
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from discern.data.chunks import iter_blocks
from discern.data.processed import FORMAT
from discern.data.writers import write_blocks
from discern.errors import UnknownNameError
from discern.inputs.merging import stacked
from discern.runtime.progress import track

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from scipy import sparse

    from discern.data.structure import Findings

_LOGGER = logging.getLogger(__name__)

_Number = TypeVar("_Number", int, float)


def save_data(file: str | Path, data: ad.AnnData, old_data: ad.AnnData) -> None:
    """Write old and new cells to one file, block of cells by block of cells.

    Genes are those that both have, in the order of the old ones. var, varm and uns are those of the old cells, with the
    numbers of cells and batches of both in `uns["DISCERN"]`. obs has the columns of both, without values where one
    lacks it. Old cells keep their names; new ones with a name that is there already get a number.

    Args:
        file: The `.h5ad` to write; complete or not there.
        data: New cells, processed by `OnlineWAERecipe`; log-normalised.
        old_data: Old cells, processed; log-normalised.

    Raises:
        UnknownNameError: If one of the two was not processed.
    """
    for name, cells in (("data", data), ("old_data", old_data)):
        if "DISCERN" not in cells.uns:
            raise UnknownNameError(
                f"{name}: expected processed cells, these have no uns['DISCERN']: give recipe.sc_raw"
            )
    header = _joined_header(data, old_data)

    def blocks() -> Iterator[dict[str, sparse.csr_matrix]]:
        for part in (old_data, data):
            order = part.var_names.get_indexer(header.var_names)
            same = part.var_names.equals(header.var_names)
            for _, block in iter_blocks(part.X):
                yield {"X": block if same else block[:, order]}

    write_blocks(file, header, track(blocks(), "writing old and new cells"))


def joined(data: ad.AnnData, old_data: ad.AnnData) -> ad.AnnData:
    """Return old and new cells together in memory, as `save_data` writes them.

    Args:
        data: New cells, processed by `OnlineWAERecipe`; log-normalised.
        old_data: Old cells, processed, with the same genes.
    """
    result = _joined_header(data, old_data)
    result.X = stacked([old_data.X, data.X])
    return result


def _joined_header(data: ad.AnnData, old_data: ad.AnnData) -> ad.AnnData:
    genes = old_data.var_names[old_data.var_names.isin(data.var_names)]
    columns = old_data.var_names.get_indexer(genes)
    return ad.AnnData(
        obs=_joined_obs(old_data.obs, data.obs),
        var=old_data.var.iloc[columns].copy(),
        uns={
            **old_data.uns,
            "DISCERN": _joined_config(old_data.uns["DISCERN"], data.uns["DISCERN"], len(genes)),
            "DISCERN_format": dict(FORMAT),
        },
        varm={key: np.asarray(value)[columns] for key, value in old_data.varm.items()},
        obsm={
            key: np.concatenate([old_data.obsm[key], data.obsm[key]])
            for key in old_data.obsm.keys() & data.obsm.keys()
            if np.shape(old_data.obsm[key])[1:] == np.shape(data.obsm[key])[1:]
        },
    )


def _joined_obs(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    index = pd.Index([*old.index.astype(str), *new.index.astype(str)])
    repeated = int(index.duplicated().sum())
    if repeated:
        _LOGGER.warning("%d new cells have names that are there already: a number is appended to them", repeated)
        index = make_index_unique(index)
    joined = pd.DataFrame(index=index)
    for column in dict.fromkeys([*old, *new]):
        joined[column] = _joined_column([frame.get(column, _missing(frame)) for frame in (old, new)])
    return joined


def _missing(frame: pd.DataFrame) -> pd.Series:
    return pd.Series(pd.NA, index=frame.index, dtype=object)


def _joined_column(parts: list[pd.Series]) -> np.ndarray | pd.api.extensions.ExtensionArray:
    """Return the values of both parts in a type that h5ad files know: numbers, truth values, texts or categories."""
    filled = [part for part in parts if part.notna().any()] or parts
    complete = all(part.notna().all() for part in parts)
    if all(pd.api.types.is_bool_dtype(part) for part in filled):
        values = pd.concat([part.astype("boolean") for part in parts], ignore_index=True)
        return values.to_numpy(bool) if complete else values.array
    if all(pd.api.types.is_numeric_dtype(part) for part in filled):
        return np.concatenate(
            [part.to_numpy() if complete else part.to_numpy(float, na_value=np.nan) for part in parts]
        )
    values = pd.concat([part.astype(object) for part in parts], ignore_index=True)
    if complete and all(isinstance(value, str) for value in values) and not any(map(_is_category, parts)):
        return values.to_numpy()
    known = [part.cat.categories if _is_category(part) else part.dropna().unique() for part in parts]
    categories = list(dict.fromkeys(name for names in known for name in names))
    if len({type(name) for name in categories}) > 1:
        values = values.map(str, na_action="ignore")
        categories = list(dict.fromkeys(map(str, categories)))
    return pd.Categorical(values, categories=categories)


def _is_category(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype)


def _joined_config(old: Findings, new: Findings, n_genes: int) -> Findings:
    """Return the reference's `uns["DISCERN"]` with the batches and the numbers of cells of both."""
    total = int(old["total_count"]) + int(new["total_count"])
    cells = _added(
        *(
            {name: float(ratio) * int(part["total_count"]) for name, ratio in part["batch_ratios"].items()}
            for part in (old, new)
        )
    )
    joined: Findings = {
        **old,
        "total_count": total,
        "total_train_count": int(old["total_train_count"]) + int(new["total_train_count"]),
        "total_valid_count": int(old["total_valid_count"]) + int(new["total_valid_count"]),
        "train_cells_no": _added(old["train_cells_no"], new["train_cells_no"]),
        "valid_cells_no": _added(old["valid_cells_no"], new["valid_cells_no"]),
        "batch_ratios": {name: number / total for name, number in cells.items()},
        "batch_key": dict(new["batch_key"]),
        "common_genes_count": n_genes,
    }
    if "user_columns" in {**old, **new}:
        joined["user_columns"] = _joined_names(old, new)
    return joined


def _added(old: Mapping[str, _Number], new: Mapping[str, _Number]) -> dict[str, _Number]:
    return {**old, **{name: old.get(name, 0) + number for name, number in new.items()}}


def _joined_names(old: Findings, new: Findings) -> dict[str, dict[str, str]]:
    """Return what the user's columns are called whose names the program uses."""
    parts = [config.get("user_columns", {}) for config in (old, new)]
    return {part: {**parts[1].get(part, {}), **parts[0].get(part, {})} for part in {**parts[0], **parts[1]}}
