"""Ray: connecting to it, and experiments handed to it as tasks with the CPUs and GPUs that they ask for."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from discern.errors import InvalidInputError, MissingFileError, UnsupportedError
from discern.runtime import logs
from discern.runtime.progress import phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from discern.runtime.tasks import Results, Task


_T = TypeVar("_T")
_OWN_STORE = 256 * 2**20  # bytes; a trial passes a few figures, so Ray's default (30 % of the memory) is not needed

# Arguments of ray.init that are not in its signature.
_HIDDEN = ("_redis_password", "_redis_username", "_node_ip_address", "_temp_dir", "_system_config", "_memory")
_RENAMED = {"redis_password": "_redis_password", "temp_dir": "_temp_dir", "memory": "_memory"}


def run_on_ray(address: str, tasks: Mapping[str, Task[_T]]) -> Results[_T]:
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

    results: Results[_T] = {}
    with connected({"address": address, "log_to_driver": False}):
        import ray
        from ray.util.queue import Queue

        messages = Queue(actor_options={"num_cpus": 0})
        messages.qsize()  # waits until it runs: what nobody has used yet, Ray may take for abandoned
        step: Any = ray.remote(_step)
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


def _step(
    messages: logs.Messages, name: str, folder: Path, function: Callable[..., _T], arguments: tuple[object, ...]
) -> _T | Exception:
    """Run in a worker: an exception is a result like another, so that it keeps its type."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logs.forward(messages, name)
    with contextlib.suppress(OSError):  # another machine need not have the folder; absolute paths work there
        os.chdir(folder)
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 (reported for each experiment at the end)
        return error


def _largest_node(nodes: list[dict[str, dict[str, float]]]) -> dict[str, int]:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return {kind: int(max((node.get(kind, 0) for node in alive), default=0)) for kind in ("CPU", "GPU")}


def _clamped(wanted: int, most: int, what: str) -> int:
    if wanted > most:
        warnings.warn(f"{what}: asked for {wanted}, using {most}: no node of the cluster has more", stacklevel=3)
    return min(wanted, most)


@contextlib.contextmanager
def connected(setup: Mapping[str, Any]) -> Iterator[None]:
    """Connect to Ray, or start it in processes of this one where there is no address, and leave it again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    arguments = {_RENAMED.get(key, key): value for key, value in setup.items()}
    hidden = {key: arguments.pop(key) for key in _HIDDEN if key in arguments}
    arguments = known_arguments(ray.init, arguments, "setup") | hidden
    if isinstance(level := arguments.get("logging_level"), str):
        arguments["logging_level"] = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    address = arguments.pop("address", None) or "local"
    try:
        if address == "local":
            ray.init(address, **{"object_store_memory": _OWN_STORE, "include_dashboard": False} | arguments)
        else:
            _connect(address, arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "local":
            raise InvalidInputError(f"setup: Ray cannot be started: {error}") from error
        hint = "if it asks for a token, set RAY_AUTH_MODE=token and have its ~/.ray/auth_token here"
        raise InvalidInputError(f"setup: Ray cannot be reached: {error}; {hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str, arguments: Mapping[str, Any]) -> None:
    """Connect to a running Ray.

    Ray gives the user's token only to a head node on this machine that it finds itself, not to an address that it is
    told; so it is asked to find the one at a local address.
    """
    import ray

    _check_reachable(address)
    host, _, port = address.rpartition(":")
    if host in ("127.0.0.1", "localhost") and not {"RAY_AUTH_MODE", "RAY_ADDRESS"}.intersection(os.environ):
        try:
            ray.init("auto", **arguments)
        except ConnectionError:
            if "RAY_AUTH_MODE" in os.environ:
                raise
        else:
            found = ray.get_runtime_context().gcs_address
            if found.endswith(f":{port}"):
                return
            ray.shutdown()
            raise ConnectionError(
                f"this machine's head node is at {found}, not at {address}; set RAY_ADDRESS={address}"
            )
    ray.init(address, **arguments)


def _check_reachable(address: str) -> None:
    """Ask at once, with a message that helps; Ray itself would wait half a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise MissingFileError(
            f"no Ray head node answers at {address} ({error}): start one with "
            f"`ray start --head --port {port}`, or leave the address out to work on this machine alone"
        ) from error


def known_arguments(function: Callable[..., object], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the arguments that a function takes; warn about the others."""
    known = inspect.signature(function).parameters
    unknown = [key for key in given if key not in known]
    if unknown:
        warnings.warn(f"{what}: today's {function.__name__} takes no {', '.join(unknown)}: left out", stacklevel=2)
    return {key: value for key, value in given.items() if key not in unknown}
