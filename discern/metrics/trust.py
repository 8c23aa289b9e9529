"""How sure estimates are, from reference cells that training did not see: a figure per gene, an interval per estimate.

Loads no TensorFlow.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from discern.data.chunks import cell_blocks
from discern.errors import InvalidInputError
from discern.metrics.gene_agreement import GeneErrors

_LOGGER = logging.getLogger(__name__)


if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import pandas as pd

    from discern.data.chunks import Matrix

    Coding = Callable[[npt.NDArray[np.float32], npt.NDArray[np.intp]], tuple[np.ndarray, np.ndarray]]

HELD = 0.9
"""Share of new measurements that an interval holds."""

_MOST_CELLS, _FEWEST_CELLS = 500, 10
_CELLS_AT_ONCE = 128
_BINS, _FEWEST_VALUES = 20, 200
_SURE = (1 - HELD) / 2


@dataclass(frozen=True)
class Unseen:
    """Cells to judge by.

    Attributes:
        rows: Their numbers, ascending.
        split: "test" or "valid": training did not see them; "train": it did, there being too few others.
    """

    rows: npt.NDArray[np.intp]
    split: str

    @classmethod
    def of(cls, obs: pd.DataFrame, reference: str | None, most: int = _MOST_CELLS, seed: int = 0) -> Self | None:
        """Choose cells of a batch, or of all: test cells, or validation cells if there are fewer than ten, or others.

        Args:
            obs: Annotation of processed cells, with `batch` and `split`.
            reference: The batch; None for all.
            most: No more cells than that.
            seed: Of the choice of these.

        Returns:
            None if there are not even ten training cells.
        """
        column = "discern_split" if "discern_split" in obs else "split"  # results keep the user's own column `split`
        if column not in obs:
            return None
        inside = (
            np.ones(len(obs), dtype=bool) if reference is None else (obs["batch"].astype(str) == reference).to_numpy()
        )
        for split in ("test", "valid", "train"):
            rows = np.flatnonzero(inside & (obs[column] == split).to_numpy())
            if len(rows) >= _FEWEST_CELLS:
                chosen = np.random.default_rng(seed).permutation(rows)[:most]
                return cls(np.sort(chosen), split)
        return None


def gene_trust(
    X: Matrix, unseen: Unseen, batches: npt.NDArray[np.intp], rebuild: Coding, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Return how well the reconstruction of half of a cell's counts foretells the other half, gene by gene.

    The counts of each cell are dealt at random to two halves, of which one is encoded and decoded. What the other half
    shows is as new to the network as another measurement of the cell. Sequencing noise in that half bounds the figure:
    a gene of few counts cannot come near 1, be it estimated ever so well.

    Args:
        X: Log-normalised, (n_cells, n_genes).
        unseen: The cells to judge by.
        batches: Number of each cell's batch, (n_cells,); correlations are taken within batches.
        rebuild: Gets log-normalised cells and their numbers and returns their estimated expression first.
        seed: Of the dealing.

    Returns:
        Pearson correlation over cells, (n_genes,); NaN for a gene that does not vary among them.
    """
    generator = np.random.default_rng(seed)
    errors = GeneErrors(int(batches.max()) + 1, X.shape[1])
    for rows, block in cell_blocks(X, unseen.rows, _CELLS_AT_ONCE):
        seen, other = halves(block.toarray(), generator)
        errors.add(other, rebuild(seen, rows)[0], batches[rows])
    return errors.correlation.astype(np.float32)


def gene_reliability(
    X: Matrix, rows: npt.NDArray[np.intp], batches: npt.NDArray[np.intp], seed: int = 0
) -> npt.NDArray[np.float32]:
    """Return which share of what is measured of a gene another measurement of the same cells would show again.

    The counts of each cell are dealt at random to two halves. The correlation r of these over the cells of a batch is
    that of measurements of half the depth; 2 r / (1 + r) is that of whole ones (Spearman, British Journal of Psychology
    3:271, 1910, and Brown, ibid. 296). It is that of the batch which shows the gene best.

    Args:
        X: Log-normalised, (n_cells, n_genes).
        rows: Numbers of the cells to look at, ascending.
        batches: Number of each cell's batch, (n_cells,).
        seed: Of the dealing.

    Returns:
        Between 0 and 1, (n_genes,); 0 for a gene that does not vary within batches. Batches with fewer than ten cells
        say nothing; if there are no others, it is 0 for all.

    Example:
        >>> rates = np.ones((100, 9))
        >>> rates[::2, 0] = 20
        >>> cells = np.log1p(np.random.default_rng(0).poisson(rates)).astype("float32")
        >>> (gene_reliability(cells, np.arange(100), np.zeros(100, dtype=np.intp)) > 0.8).tolist()
        [True, False, False, False, False, False, False, False, False]
    """
    best, alone = np.zeros(X.shape[1], np.float32), np.zeros_like(batches)
    for batch in np.unique(batches[rows]):
        cells = Unseen(rows[batches[rows] == batch], "train")
        if len(cells.rows) >= _FEWEST_CELLS:
            best = np.fmax(best, gene_trust(X, cells, alone, lambda half, _: (half, half), seed))
    return np.asarray(2 * best / (1 + best))


def halves(
    cells: npt.NDArray[np.float32], generator: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Deal the counts of cells to two halves.

    Args:
        cells: Log-normalised, (n_cells, n_genes). The smallest value of a cell is taken for a single count.
        generator: Deals.

    Returns:
        Both halves, log-normalised to the same totals as before.

    Example:
        >>> one, two = halves(np.log1p([[2.0, 4.0, 0.0, 14.0]]).astype("float32"), np.random.default_rng(0))
        >>> [round(float(np.expm1(half).sum())) for half in (one, two)]
        [20, 20]
    """
    amounts = np.expm1(cells.astype(np.float64))
    single = np.where(amounts > 0, amounts, np.inf).min(axis=1, keepdims=True)
    counts = np.rint(amounts / single).astype(np.int64)
    first = generator.binomial(counts, 0.5)
    totals = amounts.sum(axis=1, keepdims=True)
    one, two = (
        np.log1p(half * (totals / np.maximum(half.sum(axis=1, keepdims=True), 1))) for half in (first, counts - first)
    )
    return one.astype(np.float32), two.astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Where a new measurement by the reference's technology lies, given estimates: learnt from unseen cells.

    Estimates are sorted into bins by their detection probability. In a bin where a twentieth of the cells or less do
    not show the gene, an interval reaches from the 5th to the 95th percentile of measured less estimated values. Where
    more do not, it begins at 0 and ends where nine in ten lie below; where nine in ten do not, it is 0 alone.

    Attributes:
        edges: Detection probabilities between the bins.
        low: What is added to an estimate in each bin for the lower end, -inf for an end at 0.
        high: The same for the upper end.
        cells: How many cells it was learnt from.
    """

    edges: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    cells: int

    @classmethod
    def of(cls, measured: np.ndarray, estimates: np.ndarray, detection: np.ndarray) -> Self:
        """Learn it from cells.

        Args:
            measured: Log-normalised, (n_cells, n_genes).
            estimates: Their estimated expression.
            detection: The probability that a gene is detected.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> estimates = rng.uniform(2, 4, (100, 300))
            >>> cells, new = (estimates + rng.normal(0, 0.5, estimates.shape) for _ in range(2))
            >>> detection = np.ones_like(estimates)
            >>> low, high = Calibration.of(cells, estimates, detection).interval(estimates, detection)
            >>> round(float(((new >= low) & (new <= high)).mean()), 2)
            0.9
        """
        x, likely = measured.ravel(), detection.ravel()
        bins = int(max(1, min(_BINS, len(x) // _FEWEST_VALUES)))
        edges = np.unique(np.quantile(likely, np.arange(1, bins) / bins)) if bins > 1 else np.empty(0)
        place = np.searchsorted(edges, likely, side="right")
        residual = x - estimates.ravel()
        low, high = np.full(len(edges) + 1, -np.inf), np.full(len(edges) + 1, -np.inf)
        for number in range(len(edges) + 1):
            inside = place == number
            if not inside.any():
                continue
            shown = inside & (x > 0)
            absent = 1 - shown.sum() / inside.sum()
            if absent <= _SURE:
                low[number], high[number] = np.quantile(residual[inside], [_SURE, 1 - _SURE])
            elif absent < HELD:
                high[number] = np.quantile(residual[shown], (HELD - absent) / (1 - absent))
        return cls(edges, low, high, len(measured))

    def interval(
        self, estimates: np.ndarray, detection: np.ndarray
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return both ends for estimates of any cells, log-normalised, at least 0."""
        place = np.searchsorted(self.edges, detection, side="right")
        low, high = (np.maximum(estimates + ends[place], 0).astype(np.float32) for ends in (self.low, self.high))
        return low, high


def calibrate(X: Matrix, unseen: Unseen | None, rebuild: Coding) -> Calibration:
    """Learn intervals from cells of the reference.

    Args:
        X: Log-normalised, (n_cells, n_genes).
        unseen: The cells, of the reference.
        rebuild: See `gene_trust`.

    Raises:
        InvalidInputError: If there are none that training did not see.
    """
    _check(unseen)
    assert unseen is not None
    parts: list[tuple[Any, ...]] = []
    for rows, block in cell_blocks(X, unseen.rows, _CELLS_AT_ONCE):
        cells = block.toarray()
        parts.append((cells, *rebuild(cells, rows)))
    return Calibration.of(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def check_enough_held_out(obs: pd.DataFrame, reference: str) -> None:
    """Raise InvalidInputError unless intervals can be learnt: before a training that would be for nothing."""
    _check(Unseen.of(obs, reference))


def _check(unseen: Unseen | None) -> None:
    if unseen is None or unseen.split == "train":
        raise InvalidInputError(
            f"intervals are learnt from at least {_FEWEST_CELLS} cells of the reference that training did not see, and "
            "there are fewer: hold some out with input_ds.split.test_cells (0.2, say; in Python test_cells=0.2), then "
            "process and train"
        )


def tell_split(unseen: Unseen | None, what: str) -> None:
    """Say in the log when a figure is of no use, or too good."""
    if unseen is None:
        _LOGGER.info("%s is NaN: there are too few cells of the reference with a known split", what)
    elif unseen.split == "train":
        _LOGGER.warning(
            "%s is of cells that were trained on, as fewer than %d of the reference were held out: too high, for an "
            "order of the genes at best; input_ds.split.test_cells holds cells out",
            what,
            _FEWEST_CELLS,
        )
