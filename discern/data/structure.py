"""Whether arrays are what they say, before anything works with them: sparse structure, shapes, values, numbers.

A compressed sparse matrix whose indices do not fit makes compiled code read and write elsewhere in memory. The checks
raise ValueError with a reason; `reading` of `discern.runtime.foreign` adds the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from discern.runtime.foreign import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike


DEEPEST_NESTING = 50

_MOST_REPEATS = 10
LARGEST_SHAPE = 2**48
_LARGEST_VALUE = 1e18
"""Its square is no float32 any more."""


# --- sparse matrices -------------------------------------------------------------------------------------------------


def check_compressed(shape: Sequence[int], indptr: np.ndarray, n_entries: int, by_rows: bool = True) -> None:
    """Raise ValueError unless `indptr` is that of a CSR (or CSC) matrix of this shape and number of entries.

    Args:
        shape: (n_rows, n_columns).
        indptr: Where each row (column) begins.
        n_entries: Length of data and indices.
        by_rows: Whether it is CSR.

    Example:
        >>> check_compressed((2, 3), np.array([0, 2, 1]), 1)
        Traceback (most recent call last):
        ...
        ValueError: indptr goes back at row 1
    """
    major, minor = check_shape(shape) if by_rows else check_shape(shape)[::-1]
    kind = "row" if by_rows else "column"
    if indptr.ndim != 1 or indptr.dtype.kind not in "iu":
        raise ValueError(f"indptr is no list of whole numbers but {_described(indptr)}")
    if len(indptr) != major + 1:
        raise ValueError(f"indptr has {len(indptr)} numbers for {major} {kind}s, expected {major + 1}")
    if indptr[0] != 0 or indptr[-1] != n_entries:
        raise ValueError(f"indptr goes from {indptr[0]} to {indptr[-1]}, expected 0 to the {n_entries} entries")
    back = indptr[1:] < indptr[:-1]
    if back.any():
        raise ValueError(f"indptr goes back at {kind} {int(back.argmax())}")
    longest = int(np.diff(indptr).max(initial=0))
    if longest > _MOST_REPEATS * max(minor, 1):
        raise ValueError(f"a {kind} of {minor} places has {longest} entries")


def check_indices(indices: np.ndarray, below: int) -> None:
    """Raise ValueError unless all indices are whole numbers from 0 to `below` - 1.

    Example:
        >>> check_indices(np.array([0, 7]), 5)
        Traceback (most recent call last):
        ...
        ValueError: indices go from 0 to 7, expected 0 to 4
    """
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(f"indices are no list of whole numbers but {_described(indices)}")
    if indices.size and (indices.min() < 0 or indices.max() >= below):
        raise ValueError(f"indices go from {indices.min()} to {indices.max()}, expected 0 to {below - 1}")


def check_shape(shape: ArrayLike) -> tuple[int, int]:
    """Return a stored shape as two whole numbers, or raise ValueError."""
    sizes = np.asarray(shape)
    if sizes.shape != (2,) or sizes.dtype.kind not in "iu" or (sizes < 0).any() or (sizes > LARGEST_SHAPE).any():
        raise ValueError(f"the shape is {visible(str(sizes.tolist()), 60)}, expected two numbers, rows and columns")
    return int(sizes[0]), int(sizes[1])


def compressed(
    data: ArrayLike, indices: ArrayLike, indptr: ArrayLike, shape: ArrayLike, by_rows: bool = True
) -> sparse.csr_matrix | sparse.csc_matrix:
    """Return a CSR or CSC matrix of arrays from somewhere, or raise ValueError if they do not fit together."""
    data, indices, indptr = (np.asarray(part) for part in (data, indices, indptr))
    rows, columns = check_shape(shape)
    check_values(data)
    if data.ndim != 1 or data.shape != indices.shape:
        raise ValueError(f"data has the shape {data.shape}, indices {indices.shape}: expected two lists of one length")
    check_compressed((rows, columns), indptr, len(data), by_rows)
    check_indices(indices, columns if by_rows else rows)
    data = data.astype(np.float32 if data.dtype == np.float16 else data.dtype.newbyteorder("="), copy=False)
    made = sparse.csr_matrix if by_rows else sparse.csc_matrix
    return made((data, indices, indptr), shape=(rows, columns))


def check_values(values: np.ndarray) -> None:
    """Raise ValueError unless an array, in a file or in memory, is of real numbers."""
    if getattr(values.dtype, "kind", "O") not in "biuf":
        raise ValueError(f"expected numbers, the values are of type {visible(str(values.dtype), 60)}")


def check_matrix(matrix: Any) -> None:
    """Raise ValueError if a sparse matrix in memory does not hold together; others pass."""
    if sparse.issparse(matrix) and matrix.format in ("csr", "csc"):
        by_rows = matrix.format == "csr"
        check_values(matrix.data)
        if matrix.data.shape != matrix.indices.shape:
            raise ValueError(f"data has {matrix.data.shape} values, indices {matrix.indices.shape}")
        check_compressed(matrix.shape, matrix.indptr, len(matrix.data), by_rows)
        check_indices(matrix.indices, matrix.shape[by_rows])
    elif sparse.issparse(matrix) and matrix.format == "coo":
        check_values(matrix.data)
        for indices, below in zip((matrix.row, matrix.col), matrix.shape, strict=True):
            check_indices(indices, below)


def check_parts(parts: object, depth: int = 0) -> None:
    """Raise ValueError if a sparse matrix in nested mappings does not hold together."""
    if depth > DEEPEST_NESTING:
        raise ValueError("nested too deeply")
    if hasattr(parts, "items") and not hasattr(parts, "dtype") and not hasattr(parts, "dtypes"):
        for name, part in parts.items():
            try:
                check_parts(part, depth + 1)
            except ValueError as error:
                raise ValueError(f"{visible(str(name), 60)}: {error}") from None
    elif isinstance(parts, h5py.Reference | np.void | tuple):
        raise ValueError("expected a number, a text or an array")
    else:
        check_matrix(parts)


def check_texts(frame: pd.DataFrame, part: str) -> None:
    r"""Raise ValueError if names or texts of a table hold what no file can hold: NUL, half a character, a reference.

    Args:
        frame: obs or var.
        part: How messages call it.

    Example:
        >>> check_texts(pd.DataFrame(index=["a", "b\0"]), "obs")
        Traceback (most recent call last):
        ...
        ValueError: obs: the name 'b\x00' holds a character that no file can hold
    """
    columns: dict[str, pd.Index | pd.Series] = {"the name": frame.index}
    for number, name in enumerate(frame.columns):
        column = frame.iloc[:, number]
        categories = getattr(column.dtype, "categories", None)
        columns[f"column {visible(str(name), 60)!r}:"] = column if categories is None else categories
    columns["the column"] = frame.columns
    for what, values in columns.items():
        if pd.api.types.is_numeric_dtype(values.dtype) or values.dtype.kind in "mM":
            continue
        strange = next((value for value in values if isinstance(value, h5py.Reference | np.void | tuple)), None)
        if strange is not None:
            raise ValueError(f"{part}: {what} expected numbers or text, got neither")
        texts = [value for value in values if isinstance(value, str)]
        if _is_storable("\n".join(texts)):
            continue
        bad = next(text for text in texts if not _is_storable(text))
        raise ValueError(f"{part}: {what} '{visible(bad, 60)}' holds a character that no file can hold")


def _is_storable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def check_finite(values: np.ndarray, name: str, positive: bool = False) -> None:
    """Raise ValueError if numbers are not finite, or beyond what float32 can be calculated with.

    Args:
        values: Numbers.
        name: What they are.
        positive: Whether they must be above 0.

    Example:
        >>> check_finite(np.array([1.0, np.nan]), "weights of layer a")
        Traceback (most recent call last):
        ...
        ValueError: weights of layer a: 1 of 2 values is not a number, infinite or above 1e+18
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{visible(name)}: expected numbers, got {visible(str(values.dtype), 60)}")
    if not values.size:
        return
    lowest, highest = values.min(), values.max()  # NaN if there is one; no array of truth values
    if not (lowest >= -_LARGEST_VALUE and highest <= _LARGEST_VALUE):
        bad = int((~(np.abs(values) <= _LARGEST_VALUE)).sum())
        verb = "is" if bad == 1 else "are"
        raise ValueError(
            f"{visible(name)}: {bad} of {values.size} values {verb} not a number, infinite or above {_LARGEST_VALUE:g}"
        )
    if positive and lowest <= 0:
        raise ValueError(f"{visible(name)}: expected numbers above 0, the smallest is {lowest:g}")


def number(values: Mapping[str, object], name: str, lowest: float, highest: float = 2**53) -> float:
    """Return a number that a file says, or raise ValueError if it is none, or none that can be.

    Args:
        values: Attributes of the file, or another mapping.
        name: Of the number.
        lowest: That it can be.
        highest: That it can be.

    Example:
        >>> number({"epoch": "three"}, "epoch", 0)
        Traceback (most recent call last):
        ...
        ValueError: epoch is three, expected a number from 0 to 9.0072e+15
    """
    value = np.asarray(values[name])
    if value.shape != () or value.dtype.kind not in "iuf" or not lowest <= value <= highest:
        raise ValueError(f"{name} is {visible(str(value), 60)}, expected a number from {lowest:g} to {highest:g}")
    found: float = value.item()
    return found


def whole_number(values: Mapping[str, object], name: str, lowest: int, highest: int = 2**53) -> int:
    """Return a whole number that a file says; see `number`."""
    found = number(values, name, lowest, highest)
    if found != int(found):
        raise ValueError(f"{name} is {found}, expected a whole number")
    return int(found)


class Findings(TypedDict, total=False):
    """`uns["DISCERN"]`: what preprocessing has found out; what of it there is depends on the steps done."""

    batch_key: dict[str, str]
    scale: dict[str, float]
    mmd_kernel: dict[str, float]
    valid_cells_no: dict[str, int]
    train_cells_no: dict[str, int]
    batch_ratios: dict[str, float]
    total_count: int
    common_genes_count: int
    total_train_count: int
    total_valid_count: int
    user_columns: dict[str, dict[str, str]]


_BY_BATCH: tuple[Literal["valid_cells_no", "train_cells_no", "batch_ratios"], ...] = (
    "valid_cells_no",
    "train_cells_no",
    "batch_ratios",
)


def uns_to_write(uns: Mapping[str, Any]) -> dict[str, Any]:
    """Return uns whose numbers by batch have keys that a file can hold: "%2F" is the slash in the name of a batch.

    Example:
        >>> uns_to_write({"DISCERN": {"batch_ratios": {"10x/v3": 1.0}}})
        {'DISCERN': {'batch_ratios': {'10x%2Fv3': 1.0}}}
    """
    return _renamed(uns, lambda values: {_quoted(name): value for name, value in values.items()})


def uns_as_written(uns: Mapping[str, Any]) -> dict[str, Any]:
    """Return uns of a file with the names of batches as they are; older files have groups in place of slashes.

    Example:
        >>> uns_as_written({"DISCERN": {"batch_ratios": {"10x%2Fv3": 0.5, "smart": {"seq2": 0.5}}}})
        {'DISCERN': {'batch_ratios': {'10x/v3': 0.5, 'smart/seq2': 0.5}}}
    """
    return _renamed(uns, lambda values: {_unquoted(name): value for name, value in _flat(values)})


def _renamed(uns: Mapping[str, Any], rename: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    found = uns.get("DISCERN")
    if not isinstance(found, Mapping):
        return dict(uns)
    numbers = {key: rename(found[key]) for key in _BY_BATCH if isinstance(found.get(key), Mapping)}
    return {**uns, "DISCERN": {**found, **numbers}}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}/")
        else:
            yield f"{before}{name}", value


def _quoted(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F") if re.search("/|%2F|%25", name) else name


def _unquoted(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")


PROCESSED_VERSION = 2
"""Of the form that processed cells have, see `discern.io.FORMAT`."""


def check_format(uns: Mapping[str, Any]) -> None:
    """Raise ValueError if processed cells are in a form that this program does not know.

    Args:
        uns: Of the cells; without `DISCERN_format` they are of the original program.

    Example:
        >>> check_format({"DISCERN_format": {"version": 3}})
        Traceback (most recent call last):
        ...
        ValueError: uns["DISCERN_format"] is 3, written by a newer DISCERN; this one reads up to 2
    """
    if "DISCERN_format" not in uns:
        return
    stamp = uns["DISCERN_format"]
    version = np.asarray(stamp["version"] if hasattr(stamp, "keys") and "version" in stamp else stamp)
    if version.shape == () and version.dtype.kind in "iuf" and version == PROCESSED_VERSION:
        return
    newer = version.shape == () and version.dtype.kind in "iuf" and version > PROCESSED_VERSION
    raise ValueError(
        f'uns["DISCERN_format"] is {visible(str(version), 60)}'
        + (f", written by a newer DISCERN; this one reads up to {PROCESSED_VERSION}" if newer else ", expected 2")
    )


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
