from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from discern.runtime.processes import Terminated, ending_cleanly
from discern.runtime.progress import phase
from discern.runtime.tasks import Task, run_here

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Begin with the handlers of a fresh process: Ray leaves its own, and SIGINT is ignored in the background."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    assert {number: signal.getsignal(number) for number in usual} == usual
    for number, handler in before.items():
        signal.signal(number, handler)


def swallowed(number: int) -> None:
    """Stand for a library in C that makes another error of an exception in its midst."""
    try:
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)
    except KeyboardInterrupt:
        raise SystemError("bad argument to internal function") from None


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_what_a_library_makes_of_a_signal_is_still_the_signal(number: int, kind: type[KeyboardInterrupt]) -> None:
    with pytest.raises(KeyboardInterrupt) as raised, ending_cleanly():
        swallowed(number)
    assert raised.type is kind


def test_an_error_without_a_signal_stays() -> None:
    with pytest.raises(SystemError, match="of its own"), ending_cleanly():
        raise SystemError("of its own")
    with pytest.raises(KeyboardInterrupt), ending_cleanly():
        swallowed(signal.SIGINT)
    with pytest.raises(SystemError, match="of its own"), ending_cleanly():
        raise SystemError("of its own")


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_signal_ends_all_tasks(forgotten: bool) -> None:
    done = []

    def first() -> None:
        try:
            swallowed(signal.SIGTERM)
        except SystemError:
            if not forgotten:
                raise

    tasks = {"first": Task(first, ()), "second": Task(done.append, (1,))}
    with pytest.raises(Terminated), ending_cleanly():
        run_here(tasks)
    assert not done


def test_a_forgotten_signal_ends_the_work_before_its_next_phase(capsys: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)

    began = []

    def work() -> None:
        dying = Dying()
        del dying
        began.append(1)
        with phase("the next phase"):
            began.append(2)

    with pytest.raises(Terminated), ending_cleanly():
        work()
    assert began == [1]
    assert "Terminated" not in capsys.readouterr().err
