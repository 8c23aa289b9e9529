"""Outputs that appear complete or not at all, and one command at a time on an experiment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from discern.errors import InUseError

if TYPE_CHECKING:
    from collections.abc import Iterator


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what `replacing` left in a folder when its process was killed; nobody else may be at work there."""
    for entry in folder.glob(".*.partial-*"):
        remove(entry)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; it becomes `path` when the block ends well.

    An exception leaves `path` as it was and removes what was written. The suffix of the name is kept.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "answer.txt"
        >>> with replacing(target) as partial:
        ...     _ = partial.write_text("42")
        >>> target.read_text()
        '42'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    partial = staging / path.name
    try:
        yield partial
        if path.is_dir():
            os.rename(path, staging / "replaced")  # noqa: PTH104
        try:
            os.replace(partial, path)  # noqa: PTH105
        except OSError:
            if (staging / "replaced").exists():
                os.rename(staging / "replaced", path)  # noqa: PTH104
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


_READY = ".ready"
_REPLACED = ".replaced"


def publish(staging: Path, folder: Path) -> None:
    """Replace entries of `folder` by the entries of the same names in `staging`: all of them or none.

    The first rename decides. If the process dies between it and the last one, `finish_publishing` does the rest.

    Args:
        staging: Complete files and folders, on the file system of `folder`; it is gone afterwards.
        folder: Where they go.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_text("old"), (folder / "staging").mkdir()
        >>> _ = (folder / "staging" / "a").write_text("new"), (folder / "staging" / "b").write_text("new")
        >>> publish(folder / "staging", folder)
        >>> [(entry.name, entry.read_text()) for entry in sorted(folder.iterdir())]
        [('a', 'new'), ('b', 'new')]
    """
    finish_publishing(folder)
    os.rename(staging, folder / _READY)  # noqa: PTH104
    finish_publishing(folder)


def finish_publishing(folder: Path) -> None:
    """Finish a `publish` into `folder` that was cut off after its first rename; otherwise do nothing."""
    ready = folder / _READY
    if not ready.is_dir():
        return
    replaced = ready / _REPLACED
    replaced.mkdir(exist_ok=True)
    for entry in sorted(ready.iterdir()):
        if entry.name == _REPLACED:
            continue
        target = folder / entry.name
        if target.exists():
            os.rename(target, replaced / entry.name)  # noqa: PTH104
        os.rename(entry, target)  # noqa: PTH104
    shutil.rmtree(ready)


@contextlib.contextmanager
def locked(experiment: Path) -> Iterator[None]:
    """Hold the experiment folder for one command; a second one is refused.

    The lock is a file `.NAME.lock` beside the folder (which may not exist yet). The system frees it when the process
    ends, however it ends. What the last holder had begun to publish (`publish`) is finished first.

    Raises:
        InUseError: if another command holds it.
    """
    lockfile = experiment.parent / f".{experiment.name}.lock"
    lockfile.parent.mkdir(parents=True, exist_ok=True)
    with lockfile.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "another command"
            raise InUseError(f"{experiment}: {owner} is at work on this experiment; wait for it to end") from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        try:
            finish_publishing(experiment)
            yield
        finally:
            handle.truncate(0)
