"""Progress of long phases: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import sys
import time
from collections.abc import Sized
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")


def shows_bars() -> bool:
    """Whether a person watches: the main process, with a terminal, and messages of level INFO are wanted."""
    is_child = multiprocessing.parent_process() is not None
    return not is_child and sys.stderr.isatty() and _LOGGER.isEnabledFor(logging.INFO)


@contextlib.contextmanager
def phase(description: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """Show one phase of work; yields `advance(steps=1, detail="")`.

    Example:
        >>> with phase("counting", total=3) as advance:
        ...     for _ in range(3):
        ...         advance()
    """
    if shows_bars():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total, detail="")

            def advance(steps: float = 1, detail: str = "") -> None:
                bar.update(task, advance=steps, detail=detail)

            yield advance
        return

    begin = last = time.monotonic()
    done = 0.0

    def report(steps: float = 1, detail: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= 15:
            last = now
            share = f" {done / total:.0%}" if total else ""
            _LOGGER.info("%s:%s after %.0f s %s", description, share, now - begin, detail)

    _LOGGER.info("%s ...", description)
    yield report
    _LOGGER.info("%s: done in %.1f s", description, time.monotonic() - begin)


def track(items: Iterable[_T], description: str, total: float | None = None) -> Iterator[_T]:
    """Iterate over `items` while showing how far it is."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with phase(description, total) as advance:
        for item in items:
            yield item
            advance()
