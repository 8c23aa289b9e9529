"""Which labels to decode cells with, and what the files are called and hold. Loads no TensorFlow."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from discern.data.annotation import CheckMetaData, parse_metadata
from discern.errors import InvalidInputError, UnknownNameError, nearest
from discern.runtime.text import file_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


RESULTS = ("X", "estimated_counts", "estimated_dropouts")
"""What a projected file holds unless another choice is made: the sampled expression and the layers."""

INTERVALS = ("estimated_low", "estimated_high")
"""The ends of the interval of each estimate."""

MATRICES = (*RESULTS, "measured", *INTERVALS)
"""What a projected file may hold: also the cells as they were measured, and intervals."""


@dataclass(frozen=True)
class OutputFormat:
    """What a projected file holds, and how.

    Attributes:
        layers: Some of `MATRICES`.
        dtype: "float32" or "float16", of matrices stored dense.
        suffix: ".h5ad" or ".zarr".

    Raises:
        UnknownNameError: If there is no such matrix.
        InvalidInputError: If there is none at all, or the type or suffix is another one.

    Example:
        >>> OutputFormat(["X", "counts"])
        Traceback (most recent call last):
        ...
        discern.errors.UnknownNameError: there is no layer 'counts' to write; layers are X, estimated_counts, ...
    """

    layers: Sequence[str] = RESULTS
    dtype: str = "float32"
    suffix: str = ".h5ad"

    def __post_init__(self) -> None:
        for layer in self.layers:
            if layer not in MATRICES:
                raise UnknownNameError(
                    f"there is no layer {layer!r} to write{nearest(layer, MATRICES)}; layers are {', '.join(MATRICES)}"
                )
        if not self.layers:
            raise InvalidInputError(f"expected at least one layer to write, of {', '.join(MATRICES)}")
        if self.dtype not in ("float32", "float16"):
            raise InvalidInputError(f"expected the type float32 or float16, got {self.dtype!r}")
        if self.suffix not in (".h5ad", ".zarr"):
            raise InvalidInputError(f"expected the format .h5ad or .zarr, got {self.suffix!r}")


def target_labels(obs: pd.DataFrame, own: np.ndarray, column: str | None, value: str | None) -> np.ndarray:
    """Return the labels to decode each cell with.

    Without a column, its own. With a column and a value, the mean label of the cells that have the value. With a column
    alone, the mean label of the cell's own group in that column; for `batch`, the mean over all cells. A cell without a
    value in the column keeps its own label. A batch that the model knows needs no cells here.

    Args:
        obs: The cells' annotation; the categories of `batch`, if it is categorical, are the columns of `own`.
        own: One-hot labels of the cells' own batches, cells x batches.
        column: obs column or None.
        value: One of its values; "" or None for each cell's own group.

    Returns:
        cells x batches, float32; every row sums to 1.

    Raises:
        UnknownNameError, InvalidInputError: See `CheckMetaData`.

    Example:
        >>> import numpy as np, pandas as pd
        >>> obs = pd.DataFrame({"batch": ["a", "b", "b"], "type": ["x", "x", "y"]})
        >>> own = np.array([[1, 0], [0, 1], [0, 1]])
        >>> target_labels(obs, own, "type", "x")[2].tolist()
        [0.5, 0.5]
        >>> target_labels(obs, own, "type", "").tolist()
        [[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]
    """
    own = np.asarray(own, dtype=np.float32)
    if column is None:
        return own
    CheckMetaData(obs).check((column, value))
    if value not in (None, ""):
        chosen = (obs[column].astype(str) == value).to_numpy() & obs[column].notna().to_numpy()
        if not chosen.any():
            label = (obs[column].cat.categories.astype(str) == value).astype(np.float32)
            return np.repeat(label[None], len(own), 0)
        return np.repeat(own[chosen].mean(0, dtype=np.float64, keepdims=True), len(own), 0).astype(np.float32)
    if column == "batch":
        return np.repeat(own.mean(0, dtype=np.float64, keepdims=True), len(own), 0).astype(np.float32)
    labels = own.copy()
    codes = obs[column].astype("category").cat.codes.to_numpy()
    if (codes < 0).any():
        warnings.warn(
            f"{int((codes < 0).sum())} cells have no value in {column!r}; they are decoded with their own batch",
            stacklevel=2,
        )
    for code in np.unique(codes[codes >= 0]):
        labels[codes == code] = own[codes == code].mean(0, dtype=np.float64)
    return labels


def file_name(column: str | None, value: str | None, suffix: str = ".h5ad", obs: pd.DataFrame | None = None) -> str:
    """Return the name of the file of a projection; characters unfit for a file name become `_`, dots are kept.

    Args:
        column: obs column or None.
        value: One of its values; "" or None for each cell's own group.
        suffix: ".h5ad" or ".zarr".
        obs: The cells' annotation: where another projection of these cells would get the same name, those whose name
            had to be changed get eight figures of a hash at the end. The name of a projection is the same in each call.

    Example:
        >>> file_name(None, None), file_name("batch", ""), file_name("batch", "donor 1/a.2")
        ('unprojected.h5ad', 'projected_to_average_batch.h5ad', 'projected_to_average_batch_donor_1_a.2.h5ad')
        >>> import pandas as pd
        >>> file_name("batch", "a/b", obs=pd.DataFrame({"batch": ["a/b", "a_b"]}))
        'projected_to_average_batch_a_b-2a4fd32e.h5ad'
    """
    if column is None:
        return f"unprojected{suffix}"
    wanted = _joined(column, value)
    name = file_part(wanted)
    if obs is not None and name.casefold() in _names_of_others(obs, column, value):
        changed = name != wanted or (value or "") == "" or _is_longer_column(obs, column)
        name = file_part(wanted, unique=changed)
    return f"projected_to_average_{name}{suffix}"


def reference_file_name(reference: str, suffix: str = ".h5ad", obs: pd.DataFrame | None = None) -> str:
    """Return the name of the file of all cells as if measured like those of a reference batch.

    Args:
        reference: The batch.
        suffix: ".h5ad" or ".zarr".
        obs: The cells' annotation: where two of its batches would get the same name, each ends in eight figures of a
            hash.

    Example:
        >>> reference_file_name("celseq2"), reference_file_name("donor 1/a")
        ('projected_to_reference_celseq2.h5ad', 'projected_to_reference_donor_1_a.h5ad')
    """
    name = file_part(reference)
    known: Sequence[str] = [] if obs is None else obs["batch"].astype("category").cat.categories.astype(str).tolist()
    if any(file_part(other).casefold() == name.casefold() for other in known if other != reference):
        name = file_part(reference, unique=True)
    return f"projected_to_reference_{name}{suffix}"


def projection_targets(
    metadata: Sequence[str | tuple[str | None, str | None]], reference: str | None, suffix: str, obs: pd.DataFrame
) -> dict[str, tuple[str | None, str | None]]:
    """Return what to project cells to, by the name of the file that holds it.

    Args:
        metadata: "column:value" or (column, value) pairs; empty for each cell's own batch, unless there is a reference.
        reference: A batch to decode all cells as; its file comes first.
        suffix: ".h5ad" or ".zarr".
        obs: The cells' annotation.

    Raises:
        UnknownNameError, InvalidInputError: See `CheckMetaData`.

    Example:
        >>> import pandas as pd
        >>> obs = pd.DataFrame({"batch": ["deep", "shallow"]})
        >>> projection_targets(["batch:shallow"], "deep", ".h5ad", obs)
        {'projected_to_reference_deep.h5ad': ('batch', 'deep'),
         'projected_to_average_batch_shallow.h5ad': ('batch', 'shallow')}
    """
    targets = [parse_metadata(target) for target in metadata]
    if not targets and reference is None:
        targets = [(None, None)]
    references: list[tuple[str | None, str | None]] = [] if reference is None else [("batch", reference)]
    check = CheckMetaData(obs)
    for column, value in [*targets, *references]:
        if column is not None:
            check.check((column, value))
    named = {} if reference is None else {reference_file_name(reference, suffix, obs): references[0]}
    return named | {file_name(*target, suffix, obs): target for target in targets}


def _joined(column: str, value: str | None) -> str:
    return f"{column}_{value}" if value else column


def _is_longer_column(obs: pd.DataFrame, column: str) -> bool:
    return any(column.startswith(f"{other}_") for other in map(str, obs.columns))


def _names_of_others(obs: pd.DataFrame, column: str, value: str | None) -> set[str]:
    """Return the names that projections to anything else get, of this column and those that begin like it."""
    names = set()
    for other in obs.columns:
        clean, own = (file_part(str(name)).casefold() for name in (other, column))
        if not (clean == own or clean.startswith(f"{own}_") or own.startswith(f"{clean}_")):
            continue
        known = obs[other]
        values = known.cat.categories if hasattr(known, "cat") else known.dropna().unique()
        names |= {
            file_part(_joined(str(other), text)).casefold()
            for text in {"", *map(str, values)}
            if (str(other), text) != (column, value or "")
        }
    return names
