"""Experiments handed to a Ray cluster, each as a task with the CPUs and GPUs that it asks for."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discern import logs
from discern.errors import UnsupportedError
from discern.progress import phase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Task:
    """One experiment's step.

    Attributes:
        function: A top-level function; it runs on a node where DISCERN is installed.
        arguments: Its arguments. Paths are those of the shared storage.
        cpus: Number of CPUs to reserve; never more than the largest node has (with a warning).
        gpus: Number of GPUs, likewise.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    cpus: int = 1
    gpus: int = 0


def run_on_ray(address: str, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Run tasks on a Ray cluster, as many at once as it has room for.

    What they log comes back and is headed by their names. A task that fails does not stop the others.

    Args:
        address: Of the head node, e.g. "127.0.0.1:6379", or "auto" for the one on this machine.
        tasks: The name of each experiment and what to do for it.

    Returns:
        For each experiment what its function returned, or the exception that ended it.

    Raises:
        MissingFileError: If no head node answers at the address.
        InvalidInputError: If it refuses.
        UnsupportedError: If Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UnsupportedError("--ray needs Ray, which is not installed: pip install 'discern[tune]'")
    from discern.hyperparameter_search import connected

    results: dict[str, Any] = {}
    with connected({"address": address, "log_to_driver": False}):
        import ray
        from ray.util.queue import Queue

        messages = Queue(actor_options={"num_cpus": 0})
        messages.qsize()  # waits until it runs: what nobody has used yet, Ray may take for abandoned
        step = ray.remote(_step)
        limits = _largest_node(ray.nodes())
        with logs.listening(messages), phase("experiments on the cluster", len(tasks)) as advance:
            running = {}
            for name, task in tasks.items():
                resources = {
                    "num_cpus": _clamped(task.cpus, limits["CPU"], f"{name}: CPUs"),
                    "num_gpus": _clamped(task.gpus, limits["GPU"], f"{name}: GPUs"),
                }
                remote = step.options(**resources, max_retries=0)
                running[remote.remote(messages, name, Path.cwd(), task.function, task.arguments)] = name
            while running:
                (done,), _ = ray.wait(list(running))
                name = running.pop(done)
                try:
                    results[name] = ray.get(done)
                except ray.exceptions.RayError as error:  # the process or the node died
                    results[name] = error
                advance(detail=name)
        messages.shutdown()
    return {name: results[name] for name in tasks}


def _step(messages: Any, name: str, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Run in a worker: an exception is a result like another, so that it keeps its type."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logs.forward(messages, name)
    with contextlib.suppress(OSError):  # another machine need not have the folder; absolute paths work there
        os.chdir(folder)
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 (reported for each experiment at the end)
        return error


def _largest_node(nodes: list[dict[str, Any]]) -> dict[str, int]:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return {kind: int(max((node.get(kind, 0) for node in alive), default=0)) for kind in ("CPU", "GPU")}


def _clamped(wanted: int, most: int, what: str) -> int:
    if wanted > most:
        warnings.warn(f"{what}: asked for {wanted}, using {most}: no node of the cluster has more", stacklevel=3)
    return min(wanted, most)
