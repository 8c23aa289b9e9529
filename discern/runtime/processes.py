"""How processes end: cleanly when they are told to, and not without those that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from concurrent.futures import Future
    from types import FrameType

_T = TypeVar("_T")


class Terminated(KeyboardInterrupt):
    """A scheduler or the user told the process to end: all is cleaned up as after Ctrl-C."""

    signal_number = signal.SIGTERM


class _HungUp(Terminated):
    signal_number = signal.SIGHUP


_received: type[KeyboardInterrupt] | None = None


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP unless it is ignored (`nohup`), raise `Terminated` in the main thread, as Ctrl-C does.

    A library in whose midst the signal comes may make something else of that, a SystemError for example, or forget it:
    what ends the block after a signal is always the signal, and a new phase of work does not begin.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {}
    for number, kind in {
        signal.SIGINT: KeyboardInterrupt,
        Terminated.signal_number: Terminated,
        _HungUp.signal_number: _HungUp,
    }.items():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            former[number] = signal.signal(number, _raising(kind))
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda what: None if what.exc_type is _received else unraisable(what)
    try:
        yield
    except Exception:
        raise_if_told_to_end()
        raise
    finally:
        _received = None
        sys.unraisablehook = unraisable
        for number, handler in former.items():
            signal.signal(number, handler)


def raise_if_told_to_end() -> None:
    """Raise what a signal in `ending_cleanly` was to raise, if there was one and it did not come through."""
    if _received is not None and threading.current_thread() is threading.main_thread():
        raise _received


def _raising(kind: type[KeyboardInterrupt]) -> Callable[[int, FrameType | None], NoReturn]:
    def handler(number: int, frame: FrameType | None) -> NoReturn:
        global _received
        _received = kind
        raise kind

    return handler


def as_child() -> None:
    """Leave Ctrl-C to the parent, which ends this process, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


def die_with_parent() -> None:
    """Ask the system, if it is Linux, to send SIGTERM when the thread that started this process is gone."""
    import ctypes

    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def run_in_child(function: Callable[..., _T], *arguments: object) -> _T:
    """Call a function in a process of a pool; one that is told to end cleans up and fails."""
    parent = os.getppid()
    try:
        with ending_cleanly():
            return function(*arguments)
    except Terminated:
        raise RuntimeError("its process was told to end") from None
    finally:
        if os.getppid() != parent:  # nobody waits for the result, and the pool would wait for work for ever
            os._exit(1)


def end_children(running: Collection[Future[_T]]) -> None:
    """Tell the processes of pools to end, and wait until what threads of this process wait for is done."""
    import multiprocessing

    told: set[int] = set()
    while not all(future.done() for future in running):
        for child in multiprocessing.active_children():
            if child.pid is not None and child.pid not in told:
                told.add(child.pid)
                child.terminate()
        time.sleep(0.02)
