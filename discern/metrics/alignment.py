"""Where the codes of one batch belong among those of another: moves between mutual nearest neighbours.

Loads no TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from discern.data.chunks import cell_blocks, some_rows
from discern.data.components import PrincipalComponents

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from scipy import sparse

    from discern.data.chunks import Matrix

COUNTERPARTS = 10
"""Nearest cells of the other batch among which a counterpart is."""

COMPONENTS = 20
MOST_CELLS = 5000
"""Cells of a batch among which counterparts are sought."""

MOST_ANCHORS = 2000
_FEWEST_ANCHORS = 5
_AROUND = 20
_CELLS_AT_ONCE = 4096


@dataclass(frozen=True)
class Alignment:
    """How codes of a batch are moved onto those of another: as those of its cells that have counterparts there.

    Attributes:
        codes: Latent codes of these cells, (n_anchors, n_latent).
        moves: From each of them to the mean code of its counterparts, (n_anchors, n_latent).
    """

    codes: npt.NDArray[np.float32]
    moves: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls,
        codes: npt.NDArray[np.float32],
        reference_codes: npt.NDArray[np.float32],
        counterparts: sparse.csr_matrix,
        generator: np.random.Generator,
    ) -> Self | None:
        """Return that of a batch and a reference; None if fewer than five cells have counterparts.

        Args:
            codes: Latent codes of cells of the batch, (n_cells, n_latent).
            reference_codes: The same of the reference, (n_reference, n_latent).
            counterparts: Which of these are mutual nearest neighbours, 1 or 0, (n_cells, n_reference).
            generator: Chooses 2,000 of more cells.

        Example:
            >>> from scipy import sparse
            >>> codes = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
            >>> same = sparse.eye_array(200, format="csr")
            >>> alignment = Alignment.of(codes, codes + 3, same, np.random.default_rng(0))
            >>> bool(np.allclose(alignment.moved(codes), codes + 3, atol=1e-5))
            True
        """
        number = np.asarray(counterparts.sum(axis=1)).ravel()
        anchors = some_rows(np.flatnonzero(number), MOST_ANCHORS, generator)
        if len(anchors) < _FEWEST_ANCHORS:
            return None
        means = (counterparts[anchors] @ reference_codes) / number[anchors, np.newaxis]
        return cls(codes[anchors], (means - codes[anchors]).astype(np.float32))

    def moved(self, latent: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return codes of cells of the batch, (n_cells, n_latent), as codes of the other.

        The move of a code is the mean of those of all cells that have counterparts, each weighted by exp(-d / w): d is
        its squared distance, w the mean of d over the 20 nearest. A code far from all of them moves as many of them do,
        not as the one that happens to be nearest. After Haghverdi et al. (Nature Biotechnology 36:421, 2018), who
        correct expression so, with one w for all.
        """
        result = np.empty_like(latent)
        around = min(_AROUND, len(self.codes))
        for begin in range(0, len(latent), _CELLS_AT_ONCE):
            rows = slice(begin, begin + _CELLS_AT_ONCE)
            squares = _squared_distances(latent[rows], self.codes)
            width = np.partition(squares, around - 1, axis=1)[:, :around].mean(axis=1, keepdims=True)
            nearest = squares.min(axis=1, keepdims=True)
            weights = np.exp((nearest - squares) / np.maximum(width, np.finfo(np.float32).tiny))
            result[rows] = latent[rows] + (weights @ self.moves) / weights.sum(axis=1, keepdims=True)
        return result


def _squared_distances(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    squares: npt.NDArray[np.float32] = (left**2).sum(axis=1)[:, np.newaxis] + (right**2).sum(axis=1)
    squares -= 2 * left @ right.T
    return squares.clip(min=0)


def mutual_neighbours(
    left: npt.NDArray[np.float64], right: npt.NDArray[np.float64], k: int = COUNTERPARTS
) -> sparse.csr_matrix:
    """Return which points are among each other's `k` nearest of the other side, 1 or 0, (n_left, n_right).

    Example:
        >>> mutual_neighbours(np.array([[0.0], [1.0], [9.0]]), np.array([[0.1], [1.2]]), k=1).toarray().tolist()
        [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    from sklearn.neighbors import NearestNeighbors

    def near(points: npt.NDArray[np.float64], queries: npt.NDArray[np.float64]) -> sparse.csr_matrix:
        found = NearestNeighbors(n_neighbors=min(k, len(points)), algorithm="brute").fit(points)
        return found.kneighbors_graph(queries)

    return near(right, left).multiply(near(left, right).T).tocsr()


def find_alignment(
    X: Matrix,
    latent: npt.NDArray[np.float32],
    rows: npt.NDArray[np.intp],
    reference_rows: npt.NDArray[np.intp],
    seed: int = 0,
) -> Alignment | None:
    """Find the counterparts of a batch's cells in a reference, by what was measured in both, and what moves them there.

    Counterparts are mutual nearest neighbours by direction in 20 principal components of both batches' expression,
    which is not standardised: the genes that many counts show stand out, and a technology's own offset is small beside
    differences between types. A type that one side lacks has hardly any, whatever the shares of the others.

    Args:
        X: Log-normalised, (n_cells, n_genes).
        latent: Latent codes, (n_cells, n_latent).
        rows: Numbers of the batch's cells, ascending; of more than 5,000, as many are chosen.
        reference_rows: The same of the reference.
        seed: Of the choice.

    Returns:
        None if there are hardly any counterparts.
    """
    generator = np.random.default_rng(seed)
    chosen = [some_rows(those, MOST_CELLS, generator) for those in (rows, reference_rows)]
    own, there = ([block for _, block in cell_blocks(X, those)] for those in chosen)
    space = PrincipalComponents.found(own + there, most=COMPONENTS, standardised=False)
    points, reference_points = (
        _directions(np.concatenate([space.project(block) for block in blocks])) for blocks in (own, there)
    )
    codes, reference_codes = (latent[those] for those in chosen)
    return Alignment.of(codes, reference_codes, mutual_neighbours(points, reference_points), generator)


def _directions(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(length > 0, length, 1)


def aligned(
    latent: npt.NDArray[np.float32], batches: npt.NDArray[np.str_], alignments: Mapping[str, Alignment]
) -> npt.NDArray[np.float32]:
    """Return latent codes, those of each batch moved as its alignment says; others as they are.

    Args:
        latent: (n_cells, n_latent).
        batches: The batch of each cell, (n_cells,).
        alignments: Batch -> alignment.
    """
    if not alignments:
        return latent
    result = latent.copy()
    for name, alignment in alignments.items():
        of_batch = batches == name
        result[of_batch] = alignment.moved(latent[of_batch])
    return result
