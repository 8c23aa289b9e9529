"""Which cells of a batch have counterparts in another, and where their codes belong: mutual nearest neighbours.

Loads no TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from discern.data.chunks import cell_blocks, some_rows
from discern.data.components import PrincipalComponents
from discern.metrics.latent_space import OWN_NEIGHBOURS, directions_of, nearest_points

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from scipy import sparse

    from discern.data.chunks import Matrix

COUNTERPARTS = 10
"""Nearest cells of the other batch among which a counterpart is; a fifth of them in a batch of fewer than 50."""

COMPONENTS = 20
MOST_CELLS = 5000
"""Cells of a batch among which counterparts are sought."""

MOST_KEPT = 2000
_FEWEST_ANCHORS = 5
_AROUND = 20
_CELLS_AT_ONCE = 4096


@dataclass(frozen=True)
class Alignment:
    """Which cells of a batch have counterparts in another, and what moves their codes onto those.

    Attributes:
        codes: Latent codes of training cells of the batch, (n_kept, n_latent).
        shares: Share of the ten nearest cells of the other batch that have the cell among their own ten, (n_kept,).
        moves: From each code to the mean code of its counterparts, (n_kept, n_latent); 0 where there are none.
        usual: The mean share around a cell that three in four of those with counterparts exceed.
    """

    codes: npt.NDArray[np.float32]
    shares: npt.NDArray[np.float32]
    moves: npt.NDArray[np.float32]
    usual: float

    @classmethod
    def of(
        cls,
        codes: npt.NDArray[np.float32],
        reference_codes: npt.NDArray[np.float32],
        counterparts: sparse.csr_matrix,
        generator: np.random.Generator,
    ) -> Self:
        """Return that of a batch and a reference.

        Args:
            codes: Latent codes of cells of the batch, (n_cells, n_latent).
            reference_codes: The same of the reference, (n_reference, n_latent).
            counterparts: Which of these are mutual nearest neighbours, 1 or 0, (n_cells, n_reference).
            generator: Chooses 2,000 of more cells to keep.

        Example:
            >>> from scipy import sparse
            >>> codes = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
            >>> same = sparse.eye_array(200, format="csr")
            >>> alignment = Alignment.of(codes, codes + 3, same, np.random.default_rng(0))
            >>> bool(np.allclose(alignment.moved(codes), codes + 3, atol=1e-5))
            True
        """
        n_cells, n_reference = counterparts.shape
        kept = some_rows(np.arange(n_cells), MOST_KEPT, generator)
        number = np.asarray(counterparts[kept].sum(axis=1)).ravel()
        means = (counterparts[kept] @ reference_codes) / np.maximum(number, 1)[:, np.newaxis]
        moves = np.where(number[:, np.newaxis] > 0, means - codes[kept], 0)
        shares = (number / _nearest(n_reference)).astype(np.float32)
        around = _means_around(codes[kept], shares, codes[kept][number > 0]) if number.any() else shares
        return cls(codes[kept], shares, moves.astype(np.float32), float(np.quantile(around, 0.25)))

    def moved(self, latent: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return codes of cells of the batch, (n_cells, n_latent), as codes of the other.

        The move of a code is the mean of those of all cells that have counterparts, each weighted by exp(-d / w): d is
        its squared distance, w the mean of d over the 20 nearest. A code far from all of them moves as many of them do,
        not as the one that happens to be nearest. After Haghverdi et al. (Nature Biotechnology 36:421, 2018), who
        correct expression so, with one w for all. Where fewer than five cells have counterparts, codes stay.
        """
        anchors = self.shares > 0
        if anchors.sum() < _FEWEST_ANCHORS:
            return latent
        codes, moves = self.codes[anchors], self.moves[anchors]
        result = np.empty_like(latent)
        around = min(_AROUND, len(codes))
        for begin in range(0, len(latent), _CELLS_AT_ONCE):
            rows = slice(begin, begin + _CELLS_AT_ONCE)
            squares = _squared_distances(latent[rows], codes)
            width = np.partition(squares, around - 1, axis=1)[:, :around].mean(axis=1, keepdims=True)
            nearest = squares.min(axis=1, keepdims=True)
            weights = np.exp((nearest - squares) / np.maximum(width, np.finfo(np.float32).tiny))
            result[rows] = latent[rows] + (weights @ moves) / weights.sum(axis=1, keepdims=True)
        return result

    def lacking(self, latent: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return how far the like of cells of the batch, (n_cells, n_latent), lack counterparts, (n_cells,).

        (1 - c) / (1 - usual), with c the mean share of the 15 kept cells whose codes are nearest by direction: below 1
        for most cells that have counterparts, above for those of a type that the other batch lacks.
        """
        return (1 - _means_around(self.codes, self.shares, latent)) / np.float32(max(1 - self.usual, 0.1))


def _means_around(
    codes: npt.NDArray[np.float32], values: npt.NDArray[np.float32], asked: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the mean value of the 15 codes whose directions are nearest to those of the codes asked for."""
    _, near = nearest_points(directions_of(codes), min(OWN_NEIGHBOURS, len(codes)), directions_of(asked))
    means: npt.NDArray[np.float32] = values[near].mean(axis=1)
    return means


def _nearest(n_points: int) -> int:
    return min(COUNTERPARTS, max(n_points // 5, 1))


def _squared_distances(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    squares: npt.NDArray[np.float32] = (left**2).sum(axis=1)[:, np.newaxis] + (right**2).sum(axis=1)
    squares -= 2 * left @ right.T
    return squares.clip(min=0)


def mutual_neighbours(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> sparse.csr_matrix:
    """Return which points are among each other's ten nearest of the other side, 1 or 0, (n_left, n_right).

    Of fewer than 50 points, a fifth are near.

    Example:
        >>> mutual_neighbours(np.array([[0.0], [1.0], [9.0]]), np.array([[0.1], [1.2]])).toarray().tolist()
        [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    from sklearn.neighbors import NearestNeighbors

    def near(points: npt.NDArray[np.float64], queries: npt.NDArray[np.float64]) -> sparse.csr_matrix:
        found = NearestNeighbors(n_neighbors=_nearest(len(points)), algorithm="brute").fit(points)
        return found.kneighbors_graph(queries)

    return near(right, left).multiply(near(left, right).T).tocsr()


def find_alignment(
    X: Matrix,
    latent: npt.NDArray[np.float32],
    rows: npt.NDArray[np.intp],
    reference_rows: npt.NDArray[np.intp],
    seed: int = 0,
) -> Alignment:
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
    """
    generator = np.random.default_rng(seed)
    chosen = [some_rows(those, MOST_CELLS, generator) for those in (rows, reference_rows)]
    own, there = ([block for _, block in cell_blocks(X, those)] for those in chosen)
    space = PrincipalComponents.found(own + there, most=COMPONENTS, standardised=False)
    points, reference_points = (
        directions_of(np.concatenate([space.project(block) for block in blocks])) for blocks in (own, there)
    )
    codes, reference_codes = (latent[those] for those in chosen)
    return Alignment.of(codes, reference_codes, mutual_neighbours(points, reference_points), generator)


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


def lacking(
    latent: npt.NDArray[np.float32], batches: npt.NDArray[np.str_], alignments: Mapping[str, Alignment]
) -> npt.NDArray[np.float32]:
    """Return how far the like of each cell lack counterparts, see `Alignment.lacking`; 1 for those of other batches."""
    result = np.ones(len(latent), dtype=np.float32)
    for name, alignment in alignments.items():
        if (of_batch := batches == name).any():
            result[of_batch] = alignment.lacking(latent[of_batch])
    return result
