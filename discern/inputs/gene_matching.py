"""Which genes of several inputs are the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from discern.data.annotation import as_text
from discern.errors import InvalidInputError
from discern.inputs.gene_names import ID_COLUMNS, column_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping


_FEW = 0.5
"""Share of the genes of the smallest input; fewer in common are few."""
_LEAST_BY_COLUMN = 0.2
_ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*\d{6,})\.\d+$")
_GENOME = re.compile(r"^(GRC[A-Z]\d+|HG\d+|MM\d+|RN\d+|HUMAN|MOUSE)(\.\w+)?[_-]+")
"""What genomes of several species have in front of the names of their genes."""
_WHOLE = re.compile(r"^(\d+)\.0$")
_SHOWN = 3


@dataclass(frozen=True)
class Matched:
    """The genes that all inputs have.

    Attributes:
        names: Their names: those of the first input, in its order.
        columns: For each input, which of its columns they are.
        by: Where they are matched by a column of var: its name.
        keys: What they are matched by.
        different: Names that stand for genes of different ids; they are left out.
        warnings: What may be wrong with them.
        remarks: What was done.
    """

    names: pd.Index
    columns: dict[str, np.ndarray]
    by: str | None
    keys: pd.Index
    different: pd.Index
    warnings: list[str]
    remarks: list[str]


def match(tables: Mapping[str, pd.DataFrame]) -> Matched:
    """Match the genes of several inputs by their names.

    Where few names are the same, but those of one input stand in a column of another (ids here, symbols there), by that
    column.

    Args:
        tables: var of each input, whose index are unique names.

    Raises:
        InvalidInputError: If no gene is in all inputs.

    Example:
        >>> found = match({"a": pd.DataFrame(index=["A", "B"]), "b": pd.DataFrame(index=["C", "B"])})
        >>> found.names.to_list(), found.columns["b"].tolist()
        (['B'], [1])
    """
    keys: dict[str, Hashable] = dict.fromkeys(tables)
    common = _in_all(tables, keys)
    smallest = min(map(len, tables.values()))
    remarks = [
        f"{name}: {count:,} genes are left out, whose names occur more than once"
        for name, table in tables.items()
        if (count := int(table.index.duplicated(keep=False).sum()))
    ]
    if len(common) < _FEW * smallest:
        other = _best_keys(tables)
        by_column = _in_all(tables, other)
        if len(by_column) > max(2 * len(common), _LEAST_BY_COLUMN * smallest):
            how = ", ".join(
                f"var {column!r} of {name}" if column is not None else f"names of {name}"
                for name, column in other.items()
            )
            remarks.append(
                f"genes are matched by {how}: {len(by_column):,} in common; by their names there would be "
                f"{len(common):,}"
            )
            keys, common = other, by_column
    different = common[:0]
    if not any(keys.values()):
        different, notes = _of_different_ids(tables, common)
        remarks += notes
        common = common[~common.isin(different)]
    if not len(common) and len(tables) > 1:
        raise InvalidInputError(_none_in_common(tables))
    columns = {name: _names(table, keys[name]).get_indexer(common) for name, table in tables.items()}
    warnings = _few(tables, keys, common, smallest)
    for note, count in _nearly_equal(tables, keys):
        (warnings if count >= 0.01 * smallest else remarks).append(note)
    (first, table), *_ = tables.items()
    by = next((str(column) for column in keys.values() if column is not None), None)
    names = pd.Index(table.index.astype(str)[columns[first]], dtype=object)
    return Matched(names, columns, by, common, different, warnings, remarks)


def _names(table: pd.DataFrame, column: Hashable) -> pd.Index:
    """Return the names of all genes; those that are missing or not unique become numbers, which match none."""
    texts = table.index.astype(str) if column is None else as_text(table[column])
    names = pd.Series(np.asarray(texts, dtype=object))
    unusable = names.isna() | names.duplicated(keep=False)
    return pd.Index(names.where(~unusable, pd.Series(range(len(names)), dtype=object)), dtype=object)


def _in_all(tables: Mapping[str, pd.DataFrame], keys: Mapping[str, Hashable]) -> pd.Index:
    """Return the names that all have, in the order of the first."""
    common, *others = (_names(table, keys[name]) for name, table in tables.items())
    common = common[[isinstance(name, str) for name in common]]
    for names in others:
        common = common[common.isin(names)]
    return common


def _of_different_ids(tables: Mapping[str, pd.DataFrame], common: pd.Index) -> tuple[pd.Index, list[str]]:
    """Return the names that stand for different genes, as their ids say, and what to say of them."""
    ids = {}
    for name, table in tables.items():
        column = column_of(table, ID_COLUMNS)
        if column is not None:
            texts = pd.Series(np.asarray(as_text(table[column]), dtype=object)).fillna("").astype(str).str.strip()
            ids[name] = texts.str.replace(_ENSEMBL_VERSION, r"\1", regex=True).to_numpy()[
                _names(table, None).get_indexer(common)
            ]
    different, notes = np.zeros(len(common), dtype=bool), []
    first = next(iter(ids), "")
    for name in [name for name in ids if name != first]:
        known = (ids[first] != "") & (ids[name] != "")
        others = known & (ids[first] != ids[name])
        if others.any() and others.sum() < _FEW * known.sum():  # else they are ids of different kinds
            place = np.flatnonzero(others)[0]
            notes.append(
                f"{int(others.sum()):,} genes are left out, whose name stands for different genes in {first} and "
                f"{name}, e.g. {common[place]!r}: {ids[first][place]} and {ids[name][place]}"
            )
            different |= others
    return common[different], notes


def _best_keys(tables: Mapping[str, pd.DataFrame]) -> dict[str, Hashable]:
    """Return for each input the column (None: the names) with which most genes are in all inputs."""
    kinds = {
        name: {
            column: {text for text in _names(table, column) if isinstance(text, str)}
            for column in [None, *(column for column in table if _may_name(table[column]))]
        }
        for name, table in tables.items()
    }
    best: tuple[int, dict[str, Hashable]] = (0, dict.fromkeys(tables))
    for target in (names for columns in kinds.values() for names in columns.values()):
        chosen = {
            name: max(columns, key=lambda column: len(columns[column] & target)) for name, columns in kinds.items()
        }
        shared = set.intersection(*(kinds[name][column] for name, column in chosen.items()))
        if len(shared) > best[0]:
            best = len(shared), chosen
    return best[1]


def _may_name(values: pd.Series) -> bool:
    if not isinstance(values.dtype, pd.CategoricalDtype) and pd.api.types.is_numeric_dtype(values.dtype):
        return False
    return as_text(values).categories.size > _FEW * len(values)


def _few(
    tables: Mapping[str, pd.DataFrame], keys: Mapping[str, Hashable], common: pd.Index, smallest: int
) -> list[str]:
    if len(common) >= _FEW * smallest:
        return []
    return [
        f"only {len(common):,} of {smallest:,} genes are in all inputs: have they names of the same kind? "
        f"{_examples(tables, keys, common)}"
    ]


def _examples(tables: Mapping[str, pd.DataFrame], keys: Mapping[str, Hashable], common: pd.Index) -> str:
    """Show names that not all have, of two inputs."""
    shown = []
    for name, table in [*tables.items()][:2]:
        names = _names(table, keys[name])
        others = names[~names.isin(common)]
        shown.append(f"{name} has names like {[str(text) for text in others[:2]]}")
    return ", ".join(shown)


def _nearly_equal(tables: Mapping[str, pd.DataFrame], keys: Mapping[str, Hashable]) -> list[tuple[str, int]]:
    """Say which names of the first input and another one differ in case, punctuation, version or genome only."""
    (first, table), *others = tables.items()
    own = _names(table, keys[first])
    found = []
    for name, other in others:
        theirs = _names(other, keys[name])
        left, right = _simplified(own[~own.isin(theirs)]), _simplified(theirs[~theirs.isin(own)])
        pairs = [(left[text], right[text]) for text in left if text in right]
        if pairs:
            examples = ", ".join(f"{a!r} and {b!r}" for a, b in pairs[:_SHOWN])
            found.append(
                (
                    f"{len(pairs):,} genes have nearly the same name in {first} and {name}, e.g. {examples}: they are "
                    "taken as different genes; if they are the same, give them the same name in var_names",
                    len(pairs),
                )
            )
    return found


def _simplified(names: pd.Index) -> dict[str, str]:
    """Return names by what is left of them without case, punctuation, version and genome, where that is unique."""
    simple: dict[str, str] = {}
    twice = set()
    for name in names:
        if isinstance(name, str):
            text = _WHOLE.sub(r"\1", _ENSEMBL_VERSION.sub(r"\1", _GENOME.sub("", name.strip().upper())))
            text = re.sub(r"[\W_]+", "-", text)
            (twice.add(text) if text in simple else simple.setdefault(text, name))
    return {text: name for text, name in simple.items() if text not in twice}


def _none_in_common(tables: Mapping[str, pd.DataFrame]) -> str:
    (first, table), *others = tables.items()
    own = _names(table, None)
    name, other = next(((name, other) for name, other in others if not own.isin(_names(other, None)).any()), others[-1])
    pairs = {first: table, name: other}
    message = (
        f"{name}: expected genes in common with {first}, there are none: {first} has names like "
        f"{[str(text) for text in own[:2]]}, {name} like {[str(text) for text in _names(other, None)[:2]]}"
    )
    near = _nearly_equal(pairs, dict.fromkeys(pairs))
    if near:
        return f"{message}; {near[0][0]}"
    return f"{message}; give them names of the same kind in var_names, or the other kind in a column of var"
