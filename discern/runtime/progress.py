"""Progress of long phases: a bar on a terminal or in a notebook, log lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import sys
import time
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, TypeVar

from discern.runtime.processes import raise_if_told_to_end
from discern.runtime.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_T = TypeVar("_T")

_LOGGER = logging.getLogger(__name__)


_ROOM_FOR_CONTROL_C = 3  # columns: a terminal writes ^C behind a bar, which must not begin a new line


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def shows_bars() -> bool:
    """Whether a person watches: the main process, with a notebook or a terminal, and messages of level INFO are wanted.

    In a notebook they are, unless `logging.getLogger("discern").setLevel(logging.WARNING)` says otherwise.
    """
    if multiprocessing.parent_process() is not None:
        return False
    if in_notebook():
        return logging.getLogger("discern").level <= logging.INFO
    return sys.stderr.isatty() and _LOGGER.isEnabledFor(logging.INFO)


@contextlib.contextmanager
def phase(description: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    """Show one phase of work; yields `advance(steps=1, detail="")`.

    A bar ends full when the work ends well, also where there was less to do than expected; after an exception it stays.

    Example:
        >>> with phase("counting", total=3) as advance:
        ...     for _ in range(3):
        ...         advance()
    """
    raise_if_told_to_end()
    if shows_bars() and in_notebook():
        line = _NotebookLine(description, total)
        yield line.advance
        line.end()
        return
    if shows_bars():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[share]:>4}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            # What is left of the line: on a narrow terminal the end of the detail is cut, not the bar and the time.
            TextColumn(
                "{task.fields[detail]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
        )
        console = Console(stderr=True)
        console.width = max(20, console.width - _ROOM_FOR_CONTROL_C)
        with Progress(*columns, console=console, expand=True) as bar:
            task = bar.add_task(visible(description), total=total, detail="", share="0%" if total else "")
            done = 0.0

            def advance(steps: float = 1, detail: str = "") -> None:
                nonlocal done
                done += steps
                share = f"{min(1, done / total):.0%}" if total else ""
                bar.update(task, advance=steps, detail=visible(detail), share=share)

            yield advance
            bar.update(task, total=total or 1, completed=total or 1, share="100%")
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


class _NotebookLine:
    """One line of output that is rewritten; appears when the phase takes longer than a moment.

    Rich's own bar would need ipywidgets; this is shown by every program that shows notebooks.
    """

    def __init__(self, description: str, total: float | None) -> None:
        self._description, self._total = description, total
        self._begin = self._last = time.monotonic()
        self._done, self._detail = 0.0, ""
        self._handle: Any = None

    def advance(self, steps: float = 1, detail: str = "") -> None:
        self._done += steps
        self._detail = detail
        now = time.monotonic()
        if now - self._last >= 0.5:
            self._last = now
            self._show(self._bar(now - self._begin))

    def end(self) -> None:
        if self._handle is not None:
            self._show(f"done in {time.monotonic() - self._begin:.1f} s")

    def _bar(self, seconds: float) -> str:
        if not self._total:
            return f"{seconds:.0f} s"
        share = min(1.0, self._done / self._total)
        bar = "█" * round(24 * share)
        left = f", {seconds / share - seconds:.0f} s left" if share else ""
        return f"{bar:░<24} {share:.0%} after {seconds:.0f} s{left}"

    def _show(self, state: str) -> None:
        from IPython.display import display

        text = {"text/plain": f"{self._description}: {state}  {self._detail}".rstrip()}
        text = {kind: visible(shown) for kind, shown in text.items()}
        if self._handle is None:
            self._handle = display(text, raw=True, display_id=True)
        else:
            self._handle.update(text, raw=True)


def track(items: Iterable[_T], description: str, total: float | None = None) -> Iterator[_T]:
    """Iterate over `items` while showing how far it is."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with phase(description, total) as advance:
        for item in items:
            yield item
            advance()
