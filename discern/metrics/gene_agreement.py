"""How well two sets of cells agree, gene by gene, from sums that are fed block by block. Loads no TensorFlow.

Mean, variance and detection of every gene in every group of cells are all that is needed, so that a matrix of cells x
genes never has to be in memory, dense or as a whole.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from discern.data.chunks import Matrix


#: Genes compared in `top200`.
TOP_GENES = 200


class GroupStatistics:
    """Mean, variance and detection rate of each gene in groups of cells.

    Args:
        groups: Names of the groups, e.g. cell types.
        n_genes: Number of genes.

    Attributes:
        groups: The names, as an index.
        cells: Number of cells of each group seen so far, (groups,).

    Example:
        >>> statistics = GroupStatistics(["a", "b"], n_genes=2)
        >>> statistics.add(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([0, 0]))
        >>> statistics.add(sparse.csr_matrix([[5.0, 1.0], [9.0, 9.0]]), np.array([1, -1]))
        >>> statistics.cells.tolist(), statistics.mean.tolist()
        ([2, 1], [[2.0, 0.0], [5.0, 1.0]])
        >>> statistics.variance.tolist(), statistics.detection.tolist()
        ([[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]])
    """

    def __init__(self, groups: Iterable[str], n_genes: int) -> None:
        self.groups = pd.Index(groups)
        self.cells = np.zeros(len(self.groups), dtype=np.int64)
        self._sums = np.zeros((3, len(self.groups), n_genes))

    @classmethod
    def of(cls, values: Matrix, labels: npt.ArrayLike) -> GroupStatistics:
        """Return the statistics of a matrix that is in memory.

        Args:
            values: Log-normalised expression, cells x genes, dense or sparse.
            labels: The group of each cell; cells without one (NaN) are left out.
        """
        codes, groups = pd.factorize(np.asarray(labels), sort=True)
        result = cls(groups, values.shape[1])
        result.add(values, codes)
        return result

    def add(self, values: Matrix, codes: np.ndarray) -> None:
        """Add a block of cells.

        Args:
            values: Log-normalised expression, cells x genes, dense or sparse.
            codes: For each cell the number of its group, -1 for none.
        """
        rows = np.flatnonzero(codes >= 0)
        if not len(rows):
            return
        block = values[rows]
        block = sparse.csr_array(block, dtype=np.float64) if sparse.issparse(block) else block.astype(np.float64)
        ones = np.ones(len(rows))
        members = sparse.csr_array((ones, (codes[rows], np.arange(len(rows)))), (len(self.groups), len(rows)))
        self.cells += np.bincount(codes[rows], minlength=len(self.groups))
        for total, part in zip(self._sums, (block, block**2, block > 0), strict=True):
            added = members @ part
            total += added.toarray() if sparse.issparse(added) else added

    def _per_cell(self, sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return sums / self.cells[:, np.newaxis]

    @property
    def mean(self) -> np.ndarray:
        """Mean expression, groups x genes; NaN for a group without cells."""
        return self._per_cell(self._sums[0])

    @property
    def variance(self) -> np.ndarray:
        """Population variance, groups x genes."""
        return np.asarray(np.maximum(self._per_cell(self._sums[1]) - self.mean**2, 0))

    @property
    def detection(self) -> np.ndarray:
        """Share of the cells in which the gene is above zero, groups x genes."""
        return self._per_cell(self._sums[2])

    def at(self, groups: Sequence[str]) -> GroupStatistics:
        """Return the statistics of some of the groups."""
        chosen = self.groups.get_indexer(pd.Index(groups))
        result = GroupStatistics(groups, self._sums.shape[2])
        result.cells, result._sums = self.cells[chosen], self._sums[:, chosen]
        return result

    @property
    def present(self) -> list[str]:
        """The groups that have cells."""
        return list(self.groups[self.cells > 0])


def shared_groups(*statistics: GroupStatistics) -> list[str]:
    """Return the groups of which all have cells, in the order of the first."""
    others = [set(one.present) for one in statistics[1:]]
    return [group for group in statistics[0].present if all(group in other for other in others)]


def compare_groups(ours: GroupStatistics, real: GroupStatistics) -> pd.DataFrame:
    """Compare each group with the same group of real cells.

    Args:
        ours: Of reconstructed cells.
        real: Of real cells of the wanted batch, the same genes.

    Returns:
        A row for each group that both have: `cells` and `real_cells`; `mean_r` and `mean_rmse`, Pearson correlation
        over genes and root mean squared difference of mean expression; `detection_r`, correlation of the detection
        rates. NaN where a correlation is not defined.
    """
    groups = shared_groups(ours, real)
    a, b = ours.at(groups), real.at(groups)
    return pd.DataFrame(
        {
            "cells": a.cells,
            "real_cells": b.cells,
            "mean_r": list(map(_pearson, a.mean, b.mean)),
            "mean_rmse": np.sqrt(((a.mean - b.mean) ** 2).mean(axis=1)),
            "detection_r": list(map(_pearson, a.detection, b.detection)),
        },
        index=pd.Index(groups, name="group"),
    )


def compare_differences(ours: GroupStatistics, real: GroupStatistics) -> pd.DataFrame:
    """Compare the differences between two groups with those between the same groups of real cells.

    Args:
        ours: Of reconstructed cells.
        real: Of real cells of the wanted batch, the same genes.

    Returns:
        A row for each pair of the groups that both have: `difference_r`, Pearson correlation over genes of the
        differences of mean expression; `t_rho`, Spearman correlation of the genes' t statistics (Welch, population
        variances, 1e-6 added under the root); `top200`, shared part of the 200 genes that differ most.
    """
    groups = shared_groups(ours, real)
    sides = [(one.mean, one.variance / one.cells[:, np.newaxis]) for one in (ours.at(groups), real.at(groups))]
    rows = []
    for a, b in itertools.combinations(range(len(groups)), 2):
        differences = [mean[a] - mean[b] for mean, _ in sides]
        t = [
            difference / np.sqrt(error[a] + error[b] + 1e-6)
            for difference, (_, error) in zip(differences, sides, strict=True)
        ]
        top = [set(np.argsort(-np.abs(difference))[:TOP_GENES]) for difference in differences]
        rows.append((_pearson(*differences), _pearson(*map(rankdata, t)), len(top[0] & top[1]) / TOP_GENES))
    pairs = pd.MultiIndex.from_tuples(itertools.combinations(groups, 2), names=["group", "other"])
    return pd.DataFrame(rows, index=pairs, columns=["difference_r", "t_rho", "top200"], dtype=float)


def agreement(ours: GroupStatistics, real: GroupStatistics) -> dict[str, float]:
    """Return the means over groups, and over pairs of groups, of all figures; NaN for those that need a second group.

    Args:
        ours: Of reconstructed cells.
        real: Of real cells of the wanted batch, the same genes.

    Returns:
        `mean_r`, `mean_rmse`, `detection_r` as in `compare_groups`, `difference_r`, `t_rho`, `top200` as in
        `compare_differences`. Higher is better but for `mean_rmse`.

    Example:
        >>> cells = np.array([[0.0, 1.0, 2.0], [0.5, 1.0, 2.0], [2.0, 0.0, 3.0], [2.0, 0.5, 3.0]])
        >>> one = GroupStatistics.of(cells, ["a", "a", "b", "b"])
        >>> {name: round(value, 3) for name, value in agreement(one, one).items()}
        {'mean_r': 1.0, 'mean_rmse': 0.0, 'detection_r': 1.0, 'difference_r': 1.0, 't_rho': 1.0, 'top200': 0.015}
    """
    return averages(compare_groups(ours, real), compare_differences(ours, real))


def averages(groups: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, float]:
    """Return the means of the tables of `compare_groups` and `compare_differences`, as `agreement` does."""
    columns = [groups["mean_r"], groups["mean_rmse"], groups["detection_r"], *(pairs[name] for name in pairs)]
    return {str(column.name): float(column.mean()) for column in columns}


class GeneErrors:
    """How well single genes are rebuilt cell by cell, from sums fed in blocks.

    Correlations are taken within each batch and pooled over batches, so that a gene does not look reliable only because
    batches differ in it.

    Args:
        n_batches: Number of batches.
        n_genes: Number of genes.

    Example:
        >>> errors = GeneErrors(n_batches=1, n_genes=2)
        >>> errors.add(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 1.0], [3.0, 1.0]]), np.array([0, 0]))
        >>> errors.rmse.tolist(), errors.correlation.tolist()
        ([1.0, 0.0], [1.0, nan])
    """

    def __init__(self, n_batches: int, n_genes: int) -> None:
        self._cells = np.zeros(n_batches)
        self._sums = np.zeros((5, n_batches, n_genes))

    def add(self, measured: np.ndarray, rebuilt: np.ndarray, batches: np.ndarray) -> None:
        """Add a block of cells.

        Args:
            measured: Log-normalised expression, cells x genes, dense.
            rebuilt: The same of the auto-encoded cells.
            batches: Number of each cell's batch.
        """
        x, y = np.asarray(measured, dtype=np.float64), np.asarray(rebuilt, dtype=np.float64)
        for batch in np.unique(batches):
            rows = batches == batch
            a, b = x[rows], y[rows]
            self._cells[batch] += len(a)
            self._sums[:, batch] += [a.sum(0), b.sum(0), (a**2).sum(0), (b**2).sum(0), (a * b).sum(0)]

    @property
    def rmse(self) -> np.ndarray:
        """Root mean squared error of each gene over all cells, (genes,)."""
        _, _, xx, yy, xy = self._sums.sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(xx + yy - 2 * xy, 0) / self._cells.sum()))

    @property
    def correlation(self) -> np.ndarray:
        """Pearson correlation of each gene over cells, within batches, (genes,); NaN for a gene that does not vary."""
        x, y, xx, yy, xy = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.where(self._cells > 0, 1 / self._cells, 0)[:, np.newaxis]
            within = [total - one * other * scale for total, one, other in ((xx, x, x), (yy, y, y), (xy, x, y))]
            # what rounding leaves of a gene that does not vary is no variation
            squares = [
                np.where(part > 1e-12 * total, part, 0).sum(0) for part, total in zip(within[:2], (xx, yy), strict=True)
            ]
            return np.asarray(np.clip(within[2].sum(0) / np.sqrt(squares[0] * squares[1]), -1, 1))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(x @ y / norm, -1, 1)) if norm > 0 else float("nan")
