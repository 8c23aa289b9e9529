"""Whether to use reconstructed cells, by a rule that is stated. Loads no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from discern.evaluation.agreement import ReferenceCells, SourceResult


Grade = Literal["good", "doubtful", "do not use"]

_NOTICEABLE = 0.005
_NOTHING_TO_GAIN = 0.01
_ENOUGH_OF_THE_GAP = 0.5
_FEWEST_REAL_CELLS = 20
_MOST_UNJUDGED = 0.2

RULE = (
    "Compared are estimated_counts, by r of differences between cell types (r of means where there are no two types). "
    f"Do not use: the reconstructed cells agree less with the held-out real cells than the measured ones do, by more "
    f"than {_NOTICEABLE} in r of differences or of means. Good: at least half of the gap between the measured cells "
    "and other real cells is closed, and there is no reason for doubt. Reasons for doubt: no two cell types to "
    f"compare; fewer than {_FEWEST_REAL_CELLS} held-out cells; more than {_MOST_UNJUDGED:.0%} of the cells of types "
    f"that the held-out cells lack; nothing to gain, the measured cells being within {_NOTHING_TO_GAIN} of real ones; "
    "less than half of the gap closed."
)


@dataclass(frozen=True)
class Verdict:
    """Whether to use a reconstruction.

    Attributes:
        grade: "good", "doubtful" or "do not use".
        figures: The figures that it rests on, a sentence.
        reason: Why, a sentence that begins with the grade.
    """

    grade: Grade
    figures: str
    reason: str


def judge(found: SourceResult, reference: ReferenceCells) -> Verdict:
    """Judge the reconstruction of a batch by `RULE`.

    Args:
        found: Its figures.
        reference: What it was compared with.

    Example:
        >>> from discern.evaluation.agreement import MethodMetrics, ReferenceCells, SourceResult, TypeMetrics
        >>> r = {"measured": 0.776, "estimated_counts": 0.834, "real": 0.833}
        >>> methods = {name: MethodMetrics(mean_r=value, difference_r=value) for name, value in r.items()}
        >>> types = {name: {"measured": TypeMetrics(100, 27)} for name in ("A", "B")}
        >>> found = SourceResult(200, ["A", "B"], [], methods, types, [])
        >>> verdict = judge(found, ReferenceCells("good", "test", 54, 9))
        >>> print(verdict.figures)
        Differences between cell types agree with real good cells by r .776 measured, .834 reconstructed, .833 other
        real cells.
        >>> print(verdict.reason)
        Good: reconstruction closes all of the gap to real cells.
    """
    differences = [_value(found, method, "difference_r") for method in _COMPARED]
    means = [_value(found, method, "mean_r") for method in _COMPARED]
    has_types = None not in differences[:2]
    before, after, real = differences if has_types else means
    what = "Differences between cell types agree" if has_types else "Mean expression agrees"
    figures = (
        f"{what} with real {reference.batch} cells by r {_shown(before)} measured, {_shown(after)} reconstructed, "
        f"{_shown(real)} other real cells."
    )
    if before is None or after is None:
        return Verdict("doubtful", figures, "Doubtful: there are no cells to compare.")
    fallen = min(now - then for then, now in ((before, after), means[:2]) if then is not None and now is not None)
    if fallen < -_NOTICEABLE:
        reason = "reconstructed cells agree less with real ones than the measured cells do"
        return Verdict("do not use", figures, f"Do not use: {reason}.")
    doubts = list(_doubts(found, has_types))
    closed = None
    if real is None:
        doubts.append("there are no other real cells to tell how well cells can agree")
    elif real - before <= _NOTHING_TO_GAIN:
        doubts.append("the measured cells agree as well as real ones do, so that there is nothing to gain")
    else:
        closed = (after - before) / (real - before)
        if closed < _ENOUGH_OF_THE_GAP:
            doubts.append(f"reconstruction closes {max(closed, 0):.0%} of the gap to real cells")
    if doubts:
        return Verdict("doubtful", figures, f"Doubtful: {'; '.join(doubts)}.")
    share = "all" if closed is not None and closed > 0.95 else f"{closed:.0%}"
    return Verdict("good", figures, f"Good: reconstruction closes {share} of the gap to real cells.")


_COMPARED = ("measured", "estimated_counts", "real")


def _value(found: SourceResult, method: str, name: str) -> float | None:
    return getattr(found.methods.get(method), name, None)


def _doubts(found: SourceResult, has_types: bool) -> list[str]:
    doubts = []
    if not has_types:
        doubts.append("there are no two cell types whose differences could be compared")
    compared = [by_method["measured"] for by_method in found.types.values() if "measured" in by_method]
    real_cells = sum(metrics.real_cells for metrics in compared)
    if real_cells < _FEWEST_REAL_CELLS:
        doubts.append(f"only {real_cells} held-out cells could be compared with")
    unjudged = 1 - sum(metrics.cells for metrics in compared) / max(found.cells, 1)
    if unjudged > _MOST_UNJUDGED:
        doubts.append(f"{unjudged:.0%} of the cells are of types that the held-out cells lack")
    return doubts


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".replace("0.", ".", 1)
