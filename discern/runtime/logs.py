"""Where messages go: short ones to stderr, everything to a file, those of other processes to the same places."""

from __future__ import annotations

import contextlib
import copy
import logging
import logging.handlers
import os
import sys
import tempfile
import warnings
from typing import TYPE_CHECKING, Protocol, TextIO, TypeAlias

from discern.errors import InvalidInputError, UserError
from discern.runtime.atomic import cause_in_system, open_own
from discern.runtime.text import message as one_line
from discern.runtime.text import page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import BaseContext
    from pathlib import Path
    from types import TracebackType


_ROOT = logging.getLogger()
_NATIVE = logging.getLogger("discern.native")
_WARNINGS = logging.getLogger("discern.warnings")

_Exception: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]"


class _Terminal(logging.Handler):
    """Write one line a message to what `sys.stderr` is at that moment (progress bars and tests replace it)."""

    def __init__(self, level: int, tracebacks: bool):
        super().__init__(level)
        self.tracebacks = tracebacks

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = one_line(prefix + record.getMessage())
        if self.tracebacks and record.exc_info:
            text += "\n" + page(logging.Formatter().formatException(record.exc_info))
        elif self.tracebacks and record.exc_text:
            text += "\n" + record.exc_text
        with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more
            print(text, file=sys.stderr, flush=True)


class _Lines(logging.Formatter):
    """One line a message, whatever names from files are in it; tracebacks below."""

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        if record.exc_info:
            record.exc_text = None  # another formatter's, with whatever the exception says
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: _Exception) -> str:
        return page(super().formatException(ei))


class _Forward(logging.handlers.QueueHandler):
    """Put records into a queue, with the traceback as a text."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        trace = page(logging.Formatter().formatException(record.exc_info)) if record.exc_info else None
        record = copy.copy(record)
        record.exc_info = record.exc_text = None
        record = super().prepare(record)
        record.exc_text = trace
        return record


class _Dispatch(logging.Handler):
    """Hand a record that came from another process to its logger here."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


def configure(verbosity: int = 0, debug: bool = False) -> None:
    """Send messages to stderr.

    Args:
        verbosity: -1: warnings and errors only; 0: also what DISCERN does; 1: with details; 2: other libraries as well.
        debug: Show the traceback of errors.
    """
    for handler in [*_ROOT.handlers]:
        if isinstance(handler, _Terminal):
            _ROOT.removeHandler(handler)
    level = {-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG)
    _ROOT.addHandler(_Terminal(level, tracebacks=debug))
    _ROOT.setLevel(logging.INFO if verbosity >= 2 else logging.WARNING)
    logging.getLogger("discern").setLevel(logging.DEBUG)
    logging.getLogger("discern.runtime.progress").setLevel(level)
    warnings.showwarning = _show_warning
    warnings.filterwarnings("default", category=DeprecationWarning, module=r"discern\b")


class _File(logging.StreamHandler[TextIO]):
    """Append to a file; when that fails, say so once and leave it."""

    def __init__(self, path: Path) -> None:
        descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
        if os.fstat(descriptor).st_nlink > 1:
            os.close(descriptor)
            raise InvalidInputError(f"{path}: has a second name (a hard link), so something else may be it; remove it")
        super().__init__(os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace"))
        self._path = path

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            _ROOT.removeHandler(self)
            _warn_without_log(self._path, error)
        else:
            super().handleError(record)


def _warn_without_log(path: Path, error: OSError) -> None:
    _WARNINGS.warning("%s: not written: %s; going on without a log", path, cause_in_system(error) or error)


@contextlib.contextmanager
def to_file(path: Path) -> Iterator[bool]:
    """Append all messages, with time, process and tracebacks, to a file as well.

    Yields:
        Whether there is such a file: one that cannot be written is no reason to fail, but for a warning.

    Raises:
        InvalidInputError: If it is a link, a pipe or a folder, so that something else would be written to.
    """
    try:
        handler = _File(path)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        _warn_without_log(path, error)
        yield False
        return
    handler.setFormatter(_Lines("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    _ROOT.addHandler(handler)
    try:
        yield True
    finally:
        _ROOT.removeHandler(handler)
        with contextlib.suppress(OSError):  # what a full disk did not take; it has been said
            handler.stream.close()
        handler.close()


@contextlib.contextmanager
def without_native_messages() -> Iterator[None]:
    """Keep what C++ libraries write to stderr while they are imported out of sight; it is logged as a detail."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)
            hidden.seek(0)
            for line in hidden:
                _NATIVE.debug("%s", line.rstrip())


class Messages(Protocol):
    """A queue, of whatever kind, for what other processes log."""

    def get(self) -> logging.LogRecord:
        """Return the next message."""

    def put_nowait(self, item: logging.LogRecord, /) -> None:
        """Add a message."""


@contextlib.contextmanager
def collecting(context: BaseContext) -> Iterator[Messages]:
    """Show here what other processes log.

    Yields:
        The queue to give to `forward` in each of them, as in
        `ProcessPoolExecutor(initializer=forward, initargs=(queue, label))`.
    """
    queue = context.Queue()
    with listening(queue):
        yield queue
    queue.close()


@contextlib.contextmanager
def listening(queue: Messages) -> Iterator[None]:
    """Show here what others put into a queue with `forward`; any queue with `get` and `put_nowait` will do."""
    listener = logging.handlers.QueueListener(queue, _Dispatch())
    listener.start()
    try:
        yield
    finally:
        listener.stop()


def forward(queue: Messages, label: str) -> None:
    """Send all messages and warnings of this process, headed by `label`, to the one that made the queue."""
    handler = _Forward(queue)
    handler.setFormatter(logging.Formatter(f"{label.replace('%', '%%')}: %(message)s"))
    _ROOT.handlers[:] = [handler]
    logging.getLogger("discern").setLevel(logging.DEBUG)
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    ours = "/discern/" in filename.replace("\\", "/") and issubclass(category, UserWarning | DeprecationWarning)
    if ours:
        _WARNINGS.warning("%s", message)
    else:
        _WARNINGS.debug("%s:%d: %s: %s", filename, lineno, category.__name__, message)
