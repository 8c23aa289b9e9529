"""Where the raw counts of an input are: X, a layer, or `raw`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anndata as ad
import h5py
import numpy as np
import zarr
from scipy import sparse

from discern.data.annotation import named_layers
from discern.data.chunks import usable_dtype
from discern.errors import InvalidInputError, UnknownNameError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from discern.data.chunks import Matrix


RAW = "raw"
"""How `.raw.X` is called where a layer may be named (unless there is a layer of this name)."""
X = "X"
"""How X is called where a layer may be named."""

_USUAL_NAMES = ("counts", "raw_counts", "count", "umi", "umi_counts", RAW)
_SAMPLE = 10_000
_ENOUGH = 1000
_T = TypeVar("_T")


def check(name: str, cells: ad.AnnData | Path, counts: Matrix, layer: str | None) -> None:
    """Look at the first cells whether a matrix can be raw counts.

    Args:
        name: Of the input, for messages.
        cells: Where else there may be counts: the cells, or the file that they are from.
        counts: The matrix, (n_cells, n_genes).
        layer: What the user chose; None for X, with nothing said.

    Raises:
        InvalidInputError: If some are negative or not finite; or if they are no whole numbers, all 0, or nothing but 0
            and 1 while counts lie beside them, unless this matrix was chosen.
    """
    values = first_values(counts)
    usable_dtype(values.dtype, name)
    place = "X" if layer is None else shown(layer)
    wrong = f"negative, the smallest is {values.min():g}" if values.size and values.min() < 0 else ""
    wrong = wrong if np.isfinite(values).all() else "not finite (NaN or infinity)"
    if wrong:
        raise InvalidInputError(f"{name}: expected raw counts in {place}, some are {wrong}{beside(cells, layer)}")
    fraction = (values != np.floor(values)).any()
    binary = values.max(initial=0) <= 1 and (values.any() or _is_empty(counts))
    if layer is None and (fraction or binary) and (other := beside(cells, layer)):
        kind = f"values like {_example(values)}" if fraction else "nothing but 0 and 1" if values.any() else "all are 0"
        raise InvalidInputError(f'{name}: X holds no raw counts ({kind}){other}; layer "X" takes X all the same')
    if not fraction and binary and np.count_nonzero(values) >= _ENOUGH:
        warnings.warn(
            f"{name}: the counts are nothing but 0 and 1: raw counts are expected; have they been made so?",
            stacklevel=2,
        )


def _is_empty(counts: Matrix) -> bool:
    """Return whether all counts of a matrix in memory are 0; of one that is read later, nobody knows."""
    if hasattr(counts, "dask"):
        return False
    return not (counts.data if sparse.issparse(counts) else np.asarray(counts)).any()


def _example(values: np.ndarray) -> str:
    return f"{values[values != np.floor(values)][0]:.4g}"


def beside(cells: ad.AnnData | Path, layer: str | None = None) -> str:
    """Say in a half-sentence which other matrices look like raw counts, and how they are chosen; "" if none does."""
    found = [place for place in places(cells) if place != layer]
    if not found:
        return ""
    names = " and ".join(map(shown, found))
    how = f'"raw_input": {{"{cells}": {{"layer": "{found[0]}"}}}}' if isinstance(cells, Path) else f'layer="{found[0]}"'
    return f"; {names} {'does' if len(found) == 1 else 'do'}: choose with {how}"


def shown(layer: str) -> str:
    """Return the name of a matrix as it stands in Python.

    Example:
        >>> shown("raw"), shown("counts")
        ('raw.X', "layers['counts']")
    """
    return {RAW: "raw.X", X: "X"}.get(layer, f"layers[{layer!r}]")


def places(cells: ad.AnnData | Path) -> list[str]:
    """Return which matrices beside X look like raw counts, the usual names first.

    Args:
        cells: In memory, or an `.h5ad` or `.zarr` file; in other files there are none.
    """
    if isinstance(cells, ad.AnnData):
        matrices = named_layers(cells)
        if cells.raw is not None:
            matrices.setdefault(RAW, cells.raw.X)
        return _sorted([name for name, values in matrices.items() if _look_like_counts(values)])
    return _in_file(cells, _places_in) or []


def _places_in(group: h5py.Group) -> list[str]:
    return _sorted([name for name, values in _matrices(group).items() if _look_like_counts(values)])


def suggested(path: Path) -> str | None:
    """Return the layer of a file to take the counts from: None where X holds some, or nothing surely does.

    Args:
        path: Any input.
    """

    def choose(group: h5py.Group) -> str | None:
        if "X" in group and _look_like_counts(group["X"]):
            return None
        usual = [name for name in _places_in(group) if name.lower() in _USUAL_NAMES]
        return usual[0] if usual else None

    return _in_file(path, choose)


def _in_file(path: Path, function: Callable[[h5py.Group], _T]) -> _T | None:
    """Call a function with the group of a file; a file that cannot be read so tells nothing."""
    if path.suffix not in (".h5ad", ".zarr") or not path.exists():
        return None
    try:
        if path.suffix == ".zarr":
            return function(zarr.open_group(path, mode="r"))
        with h5py.File(path) as group:
            return function(group)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError):
        return None


def _matrices(group: h5py.Group) -> dict[str, Matrix]:
    found = {str(name): group["layers"][name] for name in group.get("layers", ())}
    if "raw" in group and "X" in group["raw"]:
        found.setdefault(RAW, group["raw"]["X"])
    return found


def _sorted(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: _USUAL_NAMES.index(name.lower()) if name.lower() in _USUAL_NAMES else 99)


def _look_like_counts(matrix: Matrix) -> bool:
    """Return whether a matrix in memory or in a file starts with whole numbers, not all of them 0 and 1."""
    try:
        values = first_values(matrix)
        return bool(
            values.size
            and np.isfinite(values).all()
            and (values == np.floor(values)).all()
            and values.min() >= 0
            and values.max() > 1
        )
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        return False


def first_values(matrix: Matrix) -> np.ndarray:
    """Return values of the first cells of a matrix, in memory, lazy or in a file."""
    if isinstance(matrix, h5py.Group | zarr.Group):
        stored: Matrix = matrix["data"]
        return np.asarray(stored[:_SAMPLE])
    rows = max(1, 50 * _SAMPLE // max(1, matrix.shape[1]))
    if hasattr(matrix, "dask"):
        matrix = matrix.blocks[0].compute(scheduler="synchronous")
    block = matrix[:rows]
    return np.asarray(block.tocsr().data if sparse.issparse(block) else block).ravel()


def chosen(cells: ad.AnnData, layer: str | None, name: str = "cells") -> ad.AnnData:
    """Return cells with the counts of a layer as X, shared with `cells`; obs and var without the rest.

    Args:
        cells: In memory.
        layer: Name of the layer, "raw" for `.raw.X` (with the genes of `raw`), "X" or None for X.
        name: Of the cells, for messages.

    Raises:
        UnknownNameError: If there is no such layer.
        InvalidInputError: If there is no X.
    """
    if layer is not None and layer in cells.layers:
        return ad.AnnData(X=cells.layers[layer], obs=cells.obs, var=cells.var)
    if layer == RAW and cells.raw is not None:
        return ad.AnnData(X=cells.raw.X, obs=cells.obs, var=cells.raw.var)
    if layer not in (None, X):
        known = [*named_layers(cells), *([RAW] if cells.raw is not None else [])]
        raise UnknownNameError(_no_layer(name, str(layer), known))
    if cells.X is None:
        raise InvalidInputError(f"{name}: expected raw counts in X, there is no X{beside(cells)}")
    return ad.AnnData(X=cells.X, obs=cells.obs, var=cells.var)


def place(group: h5py.Group, layer: str | None, path: Path) -> tuple[h5py.Dataset, h5py.Group]:
    """Return the matrix of an open `.h5ad` or `.zarr` that holds the counts, and its genes.

    Args:
        group: The file.
        layer: See `chosen`.
        path: Its name, for messages.

    Raises:
        UnknownNameError: If there is no such layer.
        InvalidInputError: If there is no X.
    """
    layers = group.get("layers", {})
    if layer is not None and layer in layers:
        return layers[layer], group["var"]
    if layer == RAW and RAW in group:
        return group[RAW]["X"], group[RAW]["var"]
    if layer not in (None, X):
        raise UnknownNameError(_no_layer(str(path), str(layer), [*layers, *([RAW] if RAW in group else [])]))
    if X not in group:
        raise InvalidInputError(f"{path}: expected a matrix X, found only {sorted(group)}{beside(path)}")
    return group[X], group["var"]


def _no_layer(name: str, layer: str, known: list[str]) -> str:
    """Return the message that a layer is not there."""
    return f"{name}: there is no layer {layer!r}{nearest(layer, known)}; layers: {known}"
