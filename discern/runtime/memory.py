"""How much memory there is, how much of it a matrix and a block of its rows may take, and what the process keeps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class _Limits:
    matrix: int | None = None
    block: int = 2**25  # 128 MB of float32


_in_force = [_Limits()]

# Of mallopt(3). Whoever sets one ends glibc's own adjustment: what is set afterwards is where that ends up.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25, _MMAP_MAX: 65_536}
_KEEP = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}


def usable_memory() -> int:
    """Return how many bytes of memory this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def matrix_budget() -> int:
    """Return how many bytes one matrix may take in memory: an eighth of what this process may use."""
    limit = _in_force[-1].matrix
    return usable_memory() // 8 if limit is None else limit


def block_budget() -> int:
    """Return how many numbers a block of rows may have, were it dense."""
    return _in_force[-1].block


@contextlib.contextmanager
def limited(matrix: int | None = None, block: int | None = None) -> Iterator[None]:
    """Let this process take other amounts of memory for the time being.

    Args:
        matrix: Bytes of one matrix, see `matrix_budget`; None for as many as before.
        block: Numbers in a block of rows, see `block_budget`; None for as many as before.

    Example:
        >>> with limited(matrix=0):
        ...     matrix_budget(), block_budget()
        (0, 33554432)
    """
    before = _in_force[-1]
    _in_force.append(_Limits(before.matrix if matrix is None else matrix, before.block if block is None else block))
    try:
        yield
    finally:
        _in_force.pop()


@contextlib.contextmanager
def keeping_large_arrays() -> Iterator[None]:
    """Within the context, memory of large arrays that are freed stays with the process, for the next of that size.

    The C library gives arrays of more than 32 MB back to the system at once, which hands out the next as cleared pages
    of 4 KB each. A step of a training needs hundreds of megabytes for gradients, so that this is a fifth of its time.
    At the end what is free goes back. Without effect where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    try:
        for option, value in _KEEP.items():
            library.mallopt(option, value)
        yield
    finally:
        for option, value in _USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
