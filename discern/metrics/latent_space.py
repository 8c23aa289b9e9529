"""Who is close to whom: distance from a reference, mixing of batches, neighbourhoods kept. Loads no TensorFlow."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from discern.data.annotation import CheckMetaData
from discern.data.chunks import some_rows
from discern.errors import InvalidInputError, UnknownNameError
from discern.metrics.trust import Unseen

if TYPE_CHECKING:
    import anndata
    import pandas as pd

_LOGGER = logging.getLogger(__name__)


#: Reference cells to which the distance of a cell is the mean.
NEIGHBOURS = 5

#: A cell's nearest in its batch, of which those that have it among theirs, too, share their distances with it.
OWN_NEIGHBOURS = 15

MOST_CELLS = 10_000
"""Reference cells that distances are measured to, and cells of a batch among which neighbours are sought: more would
not change distances by much."""

_STRANGE = 0.5
"""Share of a batch beyond the line from which on it is unlike the reference as a whole."""


def training_cells(obs: pd.DataFrame, batch: str) -> np.ndarray:
    """Return which cells are of a batch and trained on, bool of shape (cells,); none without a column `split`.

    Example:
        >>> import pandas as pd
        >>> training_cells(pd.DataFrame({"batch": ["a", "a", "b"], "split": ["train", "valid", "train"]}), "a").tolist()
        [True, False, False]
    """
    split = "discern_split" if "discern_split" in obs else "split"  # results keep the user's own column `split`
    if split not in obs:
        return np.zeros(len(obs), dtype=bool)
    return ((obs["batch"].astype(str) == batch) & (obs[split] == "train")).to_numpy()


def nearest_points(points: np.ndarray, k: int, queries: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and numbers of the k nearest points; of each point itself, without it, if queries is None."""
    from sklearn.neighbors import NearestNeighbors

    distances, numbers = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors(queries)
    return distances, numbers


def reference_distance(
    latent: np.ndarray,
    batches: np.ndarray,
    is_reference: np.ndarray,
    k: int = NEIGHBOURS,
    seed: int = 0,
    most_cells: int = MOST_CELLS,
) -> np.ndarray:
    """Return how far each cell is from the reference, in units of a reference cell's usual distance from its like.

    Distance is that between the directions of two codes, seen from the centre of the prior: the length of a code says
    more of how deeply a cell was sequenced than of what it is. A cell's is the mean to its `k` nearest reference cells
    (itself not counted), averaged over the cell and its mutual nearest neighbours in its own batch: those of its 15
    nearest that have it among their 15 nearest. Neighbours that are alike cancel the noise of single cells, and a cell
    that is unlike its neighbours, as one of a rare type, is left alone. Divided by the median over reference cells:
    about 1 for a cell as the reference has many; one whose type the reference lacks, or that was encoded badly, stands
    out.

    Args:
        latent: Latent codes, cells x latent dimensions.
        batches: The batch of each cell.
        is_reference: Which cells are the reference: its training cells.
        k: Neighbours in the reference; fewer if it is small.
        seed: Of the choice of cells.
        most_cells: Of more reference cells, as many are chosen; neighbours in the own batch are sought in parts of as
            many.

    Returns:
        float32, (cells,).

    Raises:
        InvalidInputError: If there are fewer than two reference cells.

    Example:
        >>> codes = np.random.default_rng(0).normal(size=(300, 8)) + [3, 0, 0, 0, 0, 0, 0, 0]
        >>> codes[-1] = [0, 5, 0, 0, 0, 0, 0, 0]
        >>> distance = reference_distance(codes, np.arange(300) < 200, np.arange(300) < 200)
        >>> [bool(part) for part in (0.8 < np.median(distance[200:-1]) < 1.2, distance[-1] > 2)]
        [True, True]
    """
    _, distance, scale = _unscaled(latent, batches, is_reference, k, np.random.default_rng(seed), most_cells)
    scaled: np.ndarray = distance / scale
    return scaled


def _unscaled(
    latent: np.ndarray,
    batches: np.ndarray,
    is_reference: np.ndarray,
    k: int,
    generator: np.random.Generator,
    most_cells: int = MOST_CELLS,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the numbers of the reference cells used, the distance of each cell, and the unit of these distances."""
    reference = np.flatnonzero(is_reference)
    if len(reference) < 2:
        raise InvalidInputError(f"expected at least two reference cells, got {len(reference)}")
    reference = some_rows(reference, most_cells, generator)
    others = np.setdiff1d(np.arange(len(latent)), reference)
    k = min(k, len(reference) - 1)
    directions = directions_of(latent)
    own = np.empty(len(latent), dtype=np.float32)
    own[reference] = nearest_points(directions[reference], k)[0].mean(axis=1)
    if len(others):
        own[others] = nearest_points(directions[reference], k, directions[others])[0].mean(axis=1)
    distance = _smoothed(own, directions, batches, generator, most_cells)
    scale = float(np.median(distance[reference]))
    return reference, distance, scale if scale > 0 else 1.0


def directions_of(latent: np.ndarray) -> np.ndarray:
    """Return points, of length 1 each; one at the origin stays there."""
    length = np.linalg.norm(latent, axis=1, keepdims=True)
    return latent / np.where(length > 0, length, 1)


def _smoothed(
    own: np.ndarray,
    directions: np.ndarray,
    batches: np.ndarray,
    generator: np.random.Generator,
    most_cells: int = MOST_CELLS,
) -> np.ndarray:
    """Return the mean of each cell's value and those of its mutual nearest neighbours in its batch."""
    smoothed = np.empty_like(own)
    for batch in np.unique(batches):
        cells = generator.permutation(np.flatnonzero(batches == batch))
        for part in np.array_split(cells, -(-len(cells) // most_cells)):
            smoothed[part] = _mutual_mean(directions[part], own[part])
    return smoothed


@dataclass(frozen=True)
class Yardstick:
    """What the distance of new cells from a reference is measured with: no more than directions of latent codes.

    Attributes:
        directions: Latent codes of training cells of the reference, of length 1, (at most 10,000, n_latent).
        unit: A reference cell's usual distance from its like.
        line: The distance below which 95 % of the reference's held-out cells are, see `add_distance`.
        split: What cells the line is of: "test", "valid" or "train".
    """

    directions: np.ndarray
    unit: float
    line: float
    split: str

    @classmethod
    def of(cls, latent: np.ndarray, obs: pd.DataFrame, reference: str) -> Self | None:
        """Return that of a batch of processed cells; None if fewer than two of its cells were trained on.

        Args:
            latent: Latent codes, (n_cells, n_latent).
            obs: Annotation with `batch` and `split`.
            reference: The batch.
        """
        training = training_cells(obs, reference)
        if training.sum() < 2:
            return None
        batches = obs["batch"].astype(str).to_numpy()
        used, distance, unit = _unscaled(latent, batches, training, NEIGHBOURS, np.random.default_rng(0))
        line, split = _line(distance / unit, obs, reference, training)
        return cls(directions_of(latent[used]).astype(np.float32), unit, line, split)

    def distance(self, latent: np.ndarray, batches: np.ndarray, seed: int = 0) -> np.ndarray:
        """Return how far new cells are from the reference, see `reference_distance`; neighbours are new cells, too.

        Args:
            latent: Latent codes of cells that are not the reference's own, (n_cells, n_latent).
            batches: The batch of each cell.
            seed: See `reference_distance`.
        """
        directions = directions_of(latent)
        k = min(NEIGHBOURS, len(self.directions) - 1)
        own = nearest_points(self.directions, k, directions)[0].mean(axis=1).astype(np.float32)
        found = _smoothed(own, directions, batches, np.random.default_rng(seed)) / self.unit
        return found.astype(np.float32)


def _line(distance: np.ndarray, obs: pd.DataFrame, reference: str, training: np.ndarray) -> tuple[float, str]:
    """Return the distance below which 95 % of the reference's unseen cells are, and which cells these are."""
    unseen = Unseen.of(obs, reference, most=len(obs))
    line = float(np.quantile(distance[training if unseen is None else unseen.rows], 0.95))
    return line, "train" if unseen is None else unseen.split


def _mutual_mean(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of each point's value and those of its mutual nearest neighbours."""
    from sklearn.neighbors import kneighbors_graph

    if len(points) == 1:
        return values
    near = kneighbors_graph(points, min(OWN_NEIGHBOURS, len(points) - 1))
    mutual = near.multiply(near.T)
    return np.asarray((values + mutual @ values) / (1 + np.asarray(mutual.sum(axis=1)).ravel()))


def other_batch_share(
    latent: np.ndarray, batches: np.ndarray, labels: np.ndarray | None = None, k: int = 15
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
    _, neighbours = nearest_points(latent, min(k, len(latent) - 1))
    result = {
        "share": float((batches[neighbours] != batches[:, np.newaxis]).mean()),
        "expected": _expected_others(batches, np.zeros(len(batches))),
    }
    if labels is not None:
        result["expected_within_label"] = _expected_others(batches, np.asarray(labels))
    return result


def _expected_others(batches: np.ndarray, groups: np.ndarray) -> float:
    """Return the chance that another cell of a cell's group is of another batch, mean over cells."""
    _, group = np.unique(groups, return_inverse=True)
    _, batch = np.unique(batches, return_inverse=True)
    counts = np.zeros((group.max() + 1, batch.max() + 1))
    np.add.at(counts, (group, batch), 1)
    size = counts.sum(axis=1, keepdims=True)
    chance = np.divide(size - counts, size - 1, out=np.zeros_like(counts), where=size > 1)
    return float((counts * chance).sum() / counts.sum())


def kept_neighbours(before: np.ndarray, after: np.ndarray, k: int = 15) -> dict[str, float]:
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
    _, first = nearest_points(before, k)
    _, second = nearest_points(after, k)
    shared = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(first, second, strict=True)]
    return {"share": float(np.mean(shared) / k), "expected": k / (cells - 1)}


def add_distance(
    adata: anndata.AnnData, reference: str, k: int = NEIGHBOURS, lacking: np.ndarray | None = None
) -> None:
    """Add `obs["discern_distance"]`, how far each cell is from the reference in latent space, and who is beyond a line.

    See `reference_distance` for its meaning. A cell that stands out is of a type that the reference lacks, and its
    reconstruction is not to be trusted. `obs["discern_beyond"]` is true where the distance is greater than that of 95 %
    of the reference's cells that training did not see (or of those that it saw, if fewer than ten were held out);
    `uns["discern_line"]` holds that distance and what cells it is of. One in twenty cells of a type that the reference
    has is beyond, too: it is whole types or clusters of which most cells are that count.

    Args:
        adata: Projected cells with `obsm["X_DISCERN"]` and obs `batch` and `split`, those of the reference among them.
        reference: The batch that is the reference; its training cells are used.
        k: Neighbours.
        lacking: By how much the distance of each cell is to be multiplied, (n_cells,), see
            `discern.metrics.alignment.lacking`.

    Raises:
        UnknownNameError: If `adata` does not have these.
        InvalidInputError: If it has fewer than two training cells of the reference.
    """
    missing = [name for name in ("batch", "split") if name not in adata.obs]
    if missing or "X_DISCERN" not in adata.obsm:
        wanted = [f"obs[{name!r}]" for name in missing] or ["obsm['X_DISCERN']"]
        raise UnknownNameError(f"the cells have no {' and '.join(wanted)}: expected the result of `discern project`")
    CheckMetaData(adata.obs).check(("batch", reference))
    training = training_cells(adata.obs, reference)
    batch = adata.obs["batch"].astype(str)
    distance = reference_distance(np.asarray(adata.obsm["X_DISCERN"]), batch.to_numpy(), training, k)
    if lacking is not None:
        distance = distance * lacking
    line, split = _line(distance, adata.obs, reference, training)
    note_distance(adata, distance, line, split)
    for name in sorted(set(batch) - {reference}):
        _LOGGER.info("%s", _told(adata.obs, name, reference))


def note_distance(adata: anndata.AnnData, distance: np.ndarray, line: float, split: str) -> None:
    """Write distances from a reference into obs, and the line that is the 95 % of its own cells into uns."""
    adata.obs["discern_distance"], adata.obs["discern_beyond"] = distance, distance > line
    adata.uns["discern_line"] = {"distance": line, "split": split}


def warn_of_strangers(obs: pd.DataFrame, reference: str) -> None:
    """Say of each batch of new cells how many are beyond the line, as a warning if it is every second one.

    Args:
        obs: Annotation with `batch` and `discern_beyond`.
        reference: The batch from which the distance is.
    """
    for name, cells in obs.groupby("batch", observed=True):
        told = _told(cells, str(name), reference)
        if cells["discern_beyond"].mean() < _STRANGE:
            _LOGGER.info("%s", told)
        else:
            _LOGGER.warning(
                "%s: they are unlike all that the model has seen of it, and their reconstruction is not to be trusted; "
                "obs['discern_distance'] says how far each is",
                told,
            )


def _told(obs: pd.DataFrame, name: str, reference: str) -> str:
    beyond = obs.loc[obs["batch"].astype(str) == name, "discern_beyond"]
    share = f"{beyond.sum()} of {len(beyond)} cells ({100 * beyond.mean():.0f} %)"
    return f"{name}: {share} are farther from {reference} than 95 % of its own"
