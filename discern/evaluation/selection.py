"""Which cells an evaluation compares with which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from discern.data.annotation import CheckMetaData
from discern.errors import InvalidInputError
from discern.inputs.labels import MOST_TYPES, label_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


_ALL_CELLS = "all cells"


@dataclass(frozen=True)
class Comparison:
    """Which cells are compared with which.

    Attributes:
        reference: The batch to project to.
        sources: The batches whose cells are projected.
        label: obs column of the cell types, None if there is none.
        split: "test" or "valid": the reference cells that training did not see.
        labels: The type of each cell, missing where unknown; one type for all if there is no label.
        held_out: Which cells are the real ones to compare with.
        rest: The other cells of the reference batch.
    """

    reference: str
    sources: tuple[str, ...]
    label: str | None
    split: str
    labels: pd.Categorical
    held_out: np.ndarray
    rest: np.ndarray

    @classmethod
    def choose(cls, obs: pd.DataFrame, reference: str | None, sources: Sequence[str], label: str | None) -> Comparison:
        """Check the names and choose those not given.

        Args:
            obs: Annotation of processed cells, with `batch` (categorical), `split` and `n_genes`.
            reference: The batch to project to; None for the one with most genes detected in its median cell.
            sources: The batches to project; none for all others.
            label: Column of the cell types; None for the one found by `discern.inputs.labels.label_column`, if any.

        Raises:
            UnknownNameError: If there is no such column.
            InvalidInputError: If there is no such batch, or nothing to compare.
        """
        batch = obs["batch"].astype(str).to_numpy()
        check = CheckMetaData(obs)
        for name in [*([reference] if reference is not None else []), *sources]:
            check.check(("batch", name))
        if label is not None:
            check.check((label, None))
        if reference is None:
            if "n_genes" not in obs:
                raise InvalidInputError("obs has no column 'n_genes', which would choose the reference: name a batch")
            reference = best_measured(obs)
        chosen = tuple(dict.fromkeys(sources)) or tuple(name for name in sorted(set(batch)) if name != reference)
        if not chosen:
            raise InvalidInputError(f"there is nothing to compare: {reference!r} is the only batch of the experiment")
        if reference in chosen:
            raise InvalidInputError(f"batch {reference!r} cannot be both the reference and a source")
        of_reference, split = batch == reference, obs["split"].astype(str).to_numpy()
        held_out = next((name for name in ("test", "valid") if (of_reference & (split == name)).any()), None)
        if held_out is None:
            raise InvalidInputError(
                f"batch {reference!r} has no cells that training did not see; set input_ds.split.test_cells or "
                "valid_cells and run `discern process` and `discern train` again"
            )
        label = label or label_column(obs)
        labels = _categorical(pd.Series(_ALL_CELLS, obs.index) if label is None else obs[label])
        mask = of_reference & (split == held_out)
        return cls(reference, chosen, label, held_out, labels, mask, of_reference & ~mask)


def best_measured(obs: pd.DataFrame) -> str:
    """Return the batch with most genes detected in its median cell, which is the usual reference.

    Args:
        obs: Annotation of processed cells, with `batch` and `n_genes`; without the latter, the first batch is it.

    Example:
        >>> best_measured(pd.DataFrame({"batch": ["a", "b"], "n_genes": [900, 4000]}))
        'b'
    """
    batch = obs["batch"].astype(str).to_numpy()
    if "n_genes" not in obs:
        return str(min(batch))
    return str(obs["n_genes"].groupby(batch).median().idxmax())


def _categorical(column: pd.Series) -> pd.Categorical:
    texts = column.astype(str).where(column.notna())
    if texts.nunique() > MOST_TYPES:
        raise InvalidInputError(
            f"column {column.name!r} has {texts.nunique()} values, more than {MOST_TYPES}: expected cell types"
        )
    return pd.Categorical(texts.astype(object))
