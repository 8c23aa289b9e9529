"""Who is close to whom: distance from a reference, mixing of batches, neighbourhoods kept. Loads no TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from discern.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

#: Reference cells to which the distance of a cell is the mean.
NEIGHBOURS = 5

#: Reference cells that distances are measured to; more do not change them by much.
_REFERENCE_CELLS = 20_000


def training_cells(obs: pd.DataFrame, batch: str) -> npt.NDArray:
    """Return which cells are of a batch and trained on, bool of shape (cells,); none without a column `split`.

    Example:
        >>> import pandas as pd
        >>> training_cells(pd.DataFrame({"batch": ["a", "a", "b"], "split": ["train", "valid", "train"]}), "a").tolist()
        [True, False, False]
    """
    if "split" not in obs:
        return np.zeros(len(obs), dtype=bool)
    return ((obs["batch"].astype(str) == batch) & (obs["split"] == "train")).to_numpy()


def _neighbours(points: npt.NDArray, k: int, queries: npt.NDArray | None = None) -> tuple[npt.NDArray, npt.NDArray]:
    """Return distances and numbers of the k nearest points; of each point itself, without it, if queries is None."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors(queries)


def reference_distance(
    latent: npt.NDArray, is_reference: npt.NDArray, k: int = NEIGHBOURS, seed: int = 0
) -> npt.NDArray:
    """Return how far each cell is from the reference, in units of a reference cell's usual distance from its like.

    The mean Euclidean distance in latent space to the `k` nearest reference cells (a cell's own is not counted),
    divided by the median of that over reference cells. About 1 for a cell as the reference has many; a cell whose type
    the reference lacks, or that was encoded badly, stands out.

    Args:
        latent: Latent codes, cells x latent dimensions.
        is_reference: Which of them are the reference: its training cells.
        k: Neighbours; fewer if the reference is small.
        seed: Of the choice of 20,000 reference cells, if there are more.

    Returns:
        float32, (cells,).

    Raises:
        InvalidInputError: If there are fewer than two reference cells.

    Example:
        >>> codes = np.random.default_rng(0).normal(size=(300, 8))
        >>> codes[-1] += 5
        >>> distance = reference_distance(codes, np.arange(300) < 200)
        >>> [bool(part) for part in (0.8 < np.median(distance[200:-1]) < 1.2, distance[-1] > 2)]
        [True, True]
    """
    reference = np.flatnonzero(is_reference)
    if len(reference) < 2:
        raise InvalidInputError(f"expected at least two reference cells, got {len(reference)}")
    if len(reference) > _REFERENCE_CELLS:
        reference = np.sort(np.random.default_rng(seed).choice(reference, _REFERENCE_CELLS, replace=False))
    others = np.setdiff1d(np.arange(len(latent)), reference)
    k = min(k, len(reference) - 1)
    distance = np.empty(len(latent), dtype=np.float32)
    distance[reference] = _neighbours(latent[reference], k)[0].mean(axis=1)
    if len(others):
        distance[others] = _neighbours(latent[reference], k, latent[others])[0].mean(axis=1)
    scale = np.median(distance[reference])
    return distance / (scale if scale > 0 else 1)


def other_batch_share(
    latent: npt.NDArray, batches: npt.NDArray, labels: npt.NDArray | None = None, k: int = 15
) -> dict[str, float]:
    """Return how far batches are mixed: which share of a cell's nearest neighbours is of another batch.

    Args:
        latent: Latent codes, cells x latent dimensions.
        batches: The batch of each cell.
        labels: The type of each cell, if known.
        k: Neighbours, the cell itself not counted.

    Returns:
        `share`, mean over cells; `expected`, the same if batch did not matter; with labels, `expected_within_label`:
        if batch did not matter among cells of a type and all neighbours were of the cell's type.

    Example:
        >>> codes = np.random.default_rng(0).normal(size=(400, 4))
        >>> batch = np.arange(400) % 2
        >>> {name: round(value, 1) for name, value in other_batch_share(codes, batch).items()}
        {'share': 0.5, 'expected': 0.5}
        >>> codes[batch == 1] += 100
        >>> other_batch_share(codes, batch)["share"]
        0.0
    """
    batches = np.asarray(batches)
    _, neighbours = _neighbours(latent, min(k, len(latent) - 1))
    result = {
        "share": float((batches[neighbours] != batches[:, np.newaxis]).mean()),
        "expected": _expected_others(batches, np.zeros(len(batches))),
    }
    if labels is not None:
        result["expected_within_label"] = _expected_others(batches, np.asarray(labels))
    return result


def _expected_others(batches: npt.NDArray, groups: npt.NDArray) -> float:
    """Return the chance that another cell of a cell's group is of another batch, mean over cells."""
    _, group = np.unique(groups, return_inverse=True)
    _, batch = np.unique(batches, return_inverse=True)
    counts = np.zeros((group.max() + 1, batch.max() + 1))
    np.add.at(counts, (group, batch), 1)
    size = counts.sum(axis=1, keepdims=True)
    chance = np.divide(size - counts, size - 1, out=np.zeros_like(counts), where=size > 1)
    return float((counts * chance).sum() / counts.sum())


def kept_neighbours(before: npt.NDArray, after: npt.NDArray, k: int = 15) -> dict[str, float]:
    """Return which share of a cell's nearest neighbours are among its nearest neighbours afterwards.

    Args:
        before: Cells of one batch in some space, cells x dimensions.
        after: The same cells in another, cells x dimensions.
        k: Neighbours, the cell itself not counted; at most a quarter of the cells.

    Returns:
        `share`, mean over cells, and `expected`, that of an arbitrary order.

    Example:
        >>> cells = np.random.default_rng(0).normal(size=(101, 3))
        >>> kept_neighbours(cells, 2 * cells)
        {'share': 1.0, 'expected': 0.15}
    """
    cells = len(before)
    k = max(1, min(k, cells // 4))
    _, first = _neighbours(before, k)
    _, second = _neighbours(after, k)
    shared = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(first, second, strict=True)]
    return {"share": float(np.mean(shared) / k), "expected": k / (cells - 1)}
