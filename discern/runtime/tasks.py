"""Several pieces of work: one after another, the next ahead in a thread, or side by side in processes.

`discern.runtime.ray_cluster` runs the same tasks on a cluster.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import queue
import warnings
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from discern.runtime import logs
from discern.runtime.processes import as_child, end_children, raise_if_told_to_end, run_in_child
from discern.runtime.progress import phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_T = TypeVar("_T")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task(Generic[_T]):
    """One experiment's step.

    Attributes:
        function: A top-level function, since another process may call it.
        arguments: Its arguments. On a cluster, paths are those of the shared storage.
        cpus: Number of CPUs to reserve on a cluster; never more than its largest node has (with a warning).
        gpus: Number of GPUs, likewise.
    """

    function: Callable[..., _T]
    arguments: tuple[object, ...]
    cpus: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Share:
    """What one of several processes may use of the machine.

    Attributes:
        cpus: Numbers of its CPUs; none for all.
        gpu: Number of its GPU; None for those that TensorFlow finds.
    """

    cpus: frozenset[int] = frozenset()
    gpu: int | None = None


Results: TypeAlias = "dict[str, _T | Exception]"
"""For each task what its function returned, or the exception that ended it."""


def ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Iterate; the next item is made, in a thread, while the caller is at work on one.

    Example:
        >>> list(ahead(number**2 for number in range(4)))
        [0, 1, 4, 9]
    """
    iterator = iter(items)

    def one() -> list[_T]:
        return list(itertools.islice(iterator, 1))

    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(one)
        while made := following.result():
            following = thread.submit(one)
            yield from made


def run_here(tasks: Mapping[str, Task[_T]]) -> Results[_T]:
    """Run one task after another; one that fails does not stop the others."""
    return {name: _outcome(task.function, *task.arguments) for name, task in tasks.items()}


def run_in_processes(tasks: Mapping[str, Task[_T]], shares: Sequence[Share], what: str) -> Results[_T]:
    """Run each task in a process of its own, as many at once as there are shares.

    A process that is killed takes no other task with it. What the processes log is shown here, headed by the names.

    Args:
        tasks: Name -> what to do.
        shares: What each of the processes at work at the same time may use.
        what: Of the progress bar.
    """
    context = multiprocessing.get_context("spawn")
    free: queue.SimpleQueue[Share] = queue.SimpleQueue()
    for share in shares:
        free.put(share)
    results: Results[_T] = {}
    with (
        logs.collecting(context) as messages,
        phase(what, len(tasks)) as advance,
        ThreadPoolExecutor(len(shares)) as threads,
    ):

        def run(name: str) -> _T:
            share = free.get()
            try:
                with ProcessPoolExecutor(1, context, _begin, (messages, name, share)) as pool:
                    return pool.submit(run_in_child, tasks[name].function, *tasks[name].arguments).result()
            finally:
                free.put(share)

        running: dict[Future[_T], str] = {threads.submit(run, name): name for name in tasks}
        try:
            for future in as_completed(running):
                name = running[future]
                results[name] = _outcome(future.result)
                _LOGGER.info("%s: %s", name, "failed" if isinstance(results[name], Exception) else "done")
                advance()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            end_children(running)
            raise
    return {name: results[name] for name in tasks}


def _begin(messages: logs.Messages, name: str, share: Share) -> None:
    as_child()
    logs.forward(messages, name)
    warnings.filterwarnings("ignore", message=".*n_cpus_preprocessing asks for")  # the parent has said so
    if share.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share.cpus)
    if share.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(share.gpu)


def _outcome(call: Callable[..., _T], *arguments: object) -> _T | Exception:
    try:
        return call(*arguments)
    except BrokenProcessPool:
        return RuntimeError("its process was killed, most likely for lack of memory")
    except Exception as error:  # noqa: BLE001 (returned to the caller, who tells it)
        return error
    finally:
        raise_if_told_to_end()
