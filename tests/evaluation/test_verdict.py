"""Whether a reconstruction is to be used, by the rule that the report states."""

from __future__ import annotations

from typing import Any

import pytest

from discern.evaluation.agreement import MethodMetrics, ReferenceCells, SourceResult, TypeMetrics
from discern.evaluation.verdict import judge

REFERENCE = ReferenceCells("good", "test", 60, 200)


def found(
    differences: tuple[float | None, ...] = (0.7, 0.8, 0.85),
    means: tuple[float | None, ...] = (0.9, 0.97, 0.98),
    real_cells: int = 30,
    others: int = 0,
) -> SourceResult:
    """Figures of cells as measured, reconstructed and real, of two types of 50 cells, and of cells of other types."""
    methods = {
        name: MethodMetrics(mean_r=mean, difference_r=difference)
        for name, mean, difference in zip(("measured", "estimated_counts", "real"), means, differences, strict=True)
    }
    types = {name: {"measured": TypeMetrics(50, real_cells)} for name in ("x", "y")}
    return SourceResult(100 + others, ["x", "y"], ["z"] * bool(others), methods, types, [])


@pytest.mark.parametrize(
    ("arguments", "grade", "reason"),
    [
        ({}, "good", "Good: reconstruction closes 67% of the gap to real cells."),
        ({"differences": (0.776, 0.834, 0.833)}, "good", "Good: reconstruction closes all of the gap to real cells."),
        ({"differences": (0.7, 0.74, 0.85)}, "doubtful", "Doubtful: reconstruction closes 27% of the gap"),
        ({"differences": (0.84, 0.845, 0.845)}, "doubtful", "there is nothing to gain"),
        ({"differences": (0.7, 0.8, None)}, "doubtful", "there are no other real cells to tell"),
        ({"real_cells": 5}, "doubtful", "only 10 held-out cells could be compared with"),
        ({"others": 50}, "doubtful", "33% of the cells are of types that the held-out cells lack"),
        ({"differences": (None,) * 3}, "doubtful", "there are no two cell types whose differences"),
        ({"differences": (0.7, 0.6, 0.85)}, "do not use", "Do not use: reconstructed cells agree less"),
        ({"means": (0.97, 0.9, 0.98)}, "do not use", "Do not use: reconstructed cells agree less"),
        ({"differences": (None,) * 3, "means": (0.9, 0.8, 0.9)}, "do not use", "Do not use"),
        ({"differences": (None,) * 3, "means": (None,) * 3}, "doubtful", "Doubtful: there are no cells to compare."),
    ],
)
def test_the_rule(arguments: dict[str, Any], grade: str, reason: str) -> None:
    verdict = judge(found(**arguments), REFERENCE)

    assert verdict.grade == grade
    assert reason in verdict.reason


def test_all_reasons_for_doubt_are_told() -> None:
    reason = judge(found(differences=(0.7, 0.72, 0.85), real_cells=4, others=40), REFERENCE).reason

    assert reason.startswith("Doubtful: only 8 held-out cells")
    assert "29% of the cells are of types" in reason
    assert "13% of the gap" in reason
