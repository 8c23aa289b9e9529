"""Colours and markers of all pictures: told apart by everybody, and in one figure each with one meaning.

The first eight colours are those of Okabe & Ito, the others were added one by one, each as far as possible from those
before it, to ordinary eyes and to people without one of the three kinds of cones (Machado et al. 2009).

Source:
    Okabe & Ito, "Color Universal Design" (2008); Machado, Oliveira & Fernandes, "A physiologically-based model for
    simulation of color vision deficiency", IEEE TVCG 15:1291 (2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable


COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#f0e442"),
    *("#8700f0", "#5a2d00", "#001e87", "#b4e196", "#5a4b5a", "#9678ff", "#3c004b", "#2df0ff"),
    *("#87a55a", "#964b3c", "#f0b4b4", "#87f069"),
)
"""In the order in which they are given; black and yellow, which stand out too much and too little, are late."""

MARKERS = ("o", "s", "^", "D", "v", "P")
"""With another marker, the colours are given again."""

STAGES = {"measured": "#e69f00", "reconstructed": "#0072b2", "real": "#000000"}
"""Cells as they were measured, the same cells reconstructed, and real cells of the reference."""

_T = TypeVar("_T")


def palette(categories: Iterable[_T], skip: int = 0) -> dict[_T, str]:
    """Return a colour for each category, as #rrggbb; from the 21st on, colours come again with other `markers`.

    Args:
        categories: Names, each once.
        skip: How many colours have another meaning in the figure already.

    Example:
        >>> palette(["a", "b"]), palette(["T cell"], skip=2)
        ({'a': '#0072b2', 'b': '#e69f00'}, {'T cell': '#009e73'})
    """
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(categories, skip)}


def markers(categories: Iterable[_T], skip: int = 0) -> dict[_T, str]:
    """Return a marker for each category, as matplotlib calls it; see `palette`.

    Example:
        >>> sorted(set(markers(range(20)).values())), markers(range(21))[20]
        (['o'], 's')
    """
    return {name: MARKERS[number // len(COLOURS) % len(MARKERS)] for number, name in enumerate(categories, skip)}
