"""Tables of the figures that benchmarks have measured, made from `benchmarks/results`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_result_tables(results: Path, generated: Path) -> None:
    """Write a page part for each file of results: a row for each entry, then commands, machines and dates."""
    for path in sorted(results.glob("*.json")):
        (generated / f"{path.stem}.md").write_text(table(json.loads(path.read_text())))


def table(rows: dict[str, dict[str, float | str]]) -> str:
    """Return a Markdown table; what repeats a row is named below it."""
    figures = list(dict.fromkeys(key for row in rows.values() for key in row if key not in ("command", *_ABOUT)))
    lines = [f"| | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(_shown(row.get(figure, '')) for figure in figures)} |" for name, row in rows.items()
    ]
    commands = dict.fromkeys(str(row["command"]) for row in rows.values())
    about = dict.fromkeys(", ".join(str(row[key]) for key in _ABOUT) for row in rows.values())
    return "\n".join(
        [*lines, "", "Again with", "", *(f"- `{one}`" for one in commands), "", f"({'; '.join(about)})", ""]
    )


_ABOUT = ("date", "machine")


def _shown(figure: float | str) -> str:
    if isinstance(figure, str):
        return figure
    return f"{figure:.3g}" if abs(figure) < 100 and isinstance(figure, float) else f"{figure:,.0f}"
