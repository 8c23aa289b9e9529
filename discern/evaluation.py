"""How close reconstructed cells come to real cells of the wanted batch. Loads no TensorFlow."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scipy import sparse


def group_means(values: np.ndarray | sparse.spmatrix, labels: pd.Series) -> pd.DataFrame:
    """Return the mean of each gene in each group of cells.

    Args:
        values: Log-normalised expression, cells x genes, dense or sparse.
        labels: The group of each cell, e.g. its type.

    Returns:
        Groups x genes.

    Example:
        >>> group_means(np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 1.0]]), pd.Series(["a", "a", "b"])).to_numpy().tolist()
        [[2.0, 0.0], [5.0, 1.0]]
    """
    labels = np.asarray(labels)
    groups = sorted(pd.unique(labels))
    return pd.DataFrame([np.asarray(values[labels == group].mean(axis=0)).ravel() for group in groups], index=groups)


def agreement(ours: pd.DataFrame, real: pd.DataFrame) -> Mapping[str, float]:
    """Compare mean expression of groups with that of the same groups in real cells.

    Args:
        ours: Mean log-normalised expression, groups x genes.
        real: The same of the real cells.

    Returns:
        `mean_r`: Pearson correlation over genes, mean over groups. `difference_r`: correlation of the differences
        between two groups, mean over pairs of groups.

    Example:
        >>> means = pd.DataFrame([[0.0, 1.0, 2.0], [2.0, 1.0, 3.0]], index=["a", "b"])
        >>> {name: round(value, 6) for name, value in agreement(means, means).items()}
        {'mean_r': 1.0, 'difference_r': 1.0}
    """
    groups = sorted(set(ours.index) & set(real.index))
    pairs = list(itertools.combinations(groups, 2))
    return {
        "mean_r": float(np.mean([np.corrcoef(ours.loc[g], real.loc[g])[0, 1] for g in groups])),
        "difference_r": float(
            np.mean([np.corrcoef(ours.loc[a] - ours.loc[b], real.loc[a] - real.loc[b])[0, 1] for a, b in pairs])
        ),
    }
