"""How far the cells of a batch agree with real ones: its figures, typed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class PairMetrics:
    """How well the differences between two cell types agree (`discern.metrics.gene_agreement.compare_differences`)."""

    difference_r: float | None = None
    t_rho: float | None = None
    top200: float | None = None

    @classmethod
    def of_rows(cls, table: pd.DataFrame) -> list[Self]:
        """Take the rows of a table of `compare_differences`."""
        rows = table[["difference_r", "t_rho", "top200"]].itertuples(index=False, name=None)
        return [cls(*map(finite, row)) for row in rows]


@dataclass(frozen=True)
class TypeMetrics:
    """How well the means of a cell type agree, see `discern.metrics.gene_agreement.compare_groups`."""

    cells: int
    real_cells: int
    mean_r: float | None = None
    mean_rmse: float | None = None
    detection_r: float | None = None

    @classmethod
    def of_rows(cls, table: pd.DataFrame) -> list[Self]:
        """Take the rows of a table of `compare_groups`."""
        columns = ["cells", "real_cells", "mean_r", "mean_rmse", "detection_r"]
        rows = table[columns].itertuples(index=False, name=None)
        return [cls(int(cells), int(real), *map(finite, rest)) for cells, real, *rest in rows]


@dataclass(frozen=True)
class MethodMetrics:
    """Means over cell types and pairs of types, and how well a classifier tells the cells from real ones.

    `mmd` and `auc` are in the space of the principal components. None: not defined for these cells.
    """

    mean_r: float | None = None
    mean_rmse: float | None = None
    detection_r: float | None = None
    difference_r: float | None = None
    t_rho: float | None = None
    top200: float | None = None
    mmd: float | None = None
    auc: float | None = None


@dataclass(frozen=True)
class PairResult:
    """Two cell types and what each method makes of their differences."""

    types: tuple[str, str]
    methods: dict[str, PairMetrics]


@dataclass(frozen=True)
class NeighboursKept:
    """Which share of a cell's nearest neighbours, as measured, are among them in another space."""

    latent: float
    X: float
    estimated_counts: float
    expected: float


@dataclass(frozen=True)
class SourceResult:
    """A batch, projected and compared.

    Attributes:
        cells: Number of its cells.
        shared_types: Cell types that it and the held-out cells of the reference have.
        other_types: Its other types.
        methods: For each of `METHODS` its figures.
        types: For each shared type, those of each method.
        pairs: The same for each pair of shared types.
        neighbours_kept: None for too few cells.
    """

    cells: int
    shared_types: list[str]
    other_types: list[str]
    methods: dict[str, MethodMetrics]
    types: dict[str, dict[str, TypeMetrics]]
    pairs: list[PairResult]
    neighbours_kept: NeighboursKept | None = None


@dataclass(frozen=True)
class ReferenceCells:
    """The batch to compare with: which of its cells are held out, and how many."""

    batch: str
    split: str
    held_out_cells: int
    other_cells: int


def finite(value: float | np.floating | None) -> float | None:
    """Return None for what JSON has no word for, NaN and infinity.

    Example:
        >>> finite(0.5), finite(float("nan"))
        (0.5, None)
    """
    return None if value is None or not math.isfinite(value) else float(value)
