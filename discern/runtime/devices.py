"""CPUs, GPUs and threads; TensorFlow is started here."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING

from discern.errors import InvalidInputError
from discern.runtime.logs import without_native_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOGGER = logging.getLogger(__name__)


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def clamp_cpus(wanted: int | None, what: str) -> int:
    """Return `wanted`, but never more than there are CPUs (with a warning); None: all of them.

    Args:
        wanted: Number of CPUs asked for.
        what: The parameter that asks, for the message.

    Example:
        >>> clamp_cpus(1, "n_cpus_preprocessing")
        1
    """
    present = available_cpus()
    if wanted is None:
        return present
    if wanted > present:
        warnings.warn(f"{what} asks for {wanted} CPUs, this machine has {present}: using {present}", stacklevel=2)
    return max(1, min(wanted, present))


def set_gpu_and_threads(n_threads: int | None, gpus: Sequence[int] | None = None) -> None:
    """Limit the GPUs and the CPU threads of TensorFlow, which has two pools of threads that share them.

    One in five threads, and at least one, starts operations side by side; the others work within operations.

    Args:
        n_threads: Threads of both pools together; 0 or None: TensorFlow's choice. With 1 each has one. More than there
            are CPUs is clamped with a warning.
        gpus: See `start_tensorflow`.

    Raises:
        InvalidInputError: If the number is negative.
    """
    if not n_threads:
        _start_tensorflow(None, gpus)
        return
    if n_threads < 0:
        raise InvalidInputError(
            f"n_threads: expected a number of threads, or 0 for TensorFlow's choice, got {n_threads}"
        )
    threads = clamp_cpus(n_threads, "n_threads")
    between = max(1, threads // 5)
    _start_tensorflow((max(1, threads - between), between), gpus)


def start_tensorflow(threads: int | None, gpus: Sequence[int] | None) -> None:
    """Choose the GPUs and the number of CPU threads that TensorFlow uses.

    Works only before TensorFlow has run its first operation; later, what cannot be changed any more stays as it is.

    Args:
        threads: Threads of one operation, and operations side by side; 0 or None: TensorFlow's choice. The two are
            rarely at work at once, so that both may have all CPUs. More than there are CPUs is clamped with a warning.
        gpus: Numbers of the GPUs to use, an empty list for none, None for all. Those that this machine does not have
            are left out with a warning. Their memory is taken as needed, not as a whole.
    """
    each = clamp_cpus(threads, "parallel_pc") if threads else None
    _start_tensorflow(None if each is None else (each, each), gpus)


def _start_tensorflow(threads: tuple[int, int] | None, gpus: Sequence[int] | None) -> None:
    with without_native_messages():  # that there are no drivers for GPUs
        import tensorflow as tf

        present = tf.config.list_physical_devices("GPU")
    wanted = list(range(len(present))) if gpus is None else list(gpus)
    missing = [gpu for gpu in wanted if not 0 <= gpu < len(present)]
    if missing:
        rest = [gpu for gpu in wanted if gpu not in missing]
        warnings.warn(
            f"GPU {missing} asked for, this machine has {len(present)}: using {rest or 'the CPU'}", stacklevel=3
        )
        wanted = rest
    try:
        tf.config.set_visible_devices([present[gpu] for gpu in wanted], "GPU")
        for gpu in wanted:
            tf.config.experimental.set_memory_growth(present[gpu], enable=True)
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads[0])
            tf.config.threading.set_inter_op_parallelism_threads(threads[1])
    except RuntimeError as error:
        _LOGGER.info("TensorFlow has already started; its devices and threads stay as they are (%s)", error)
