"""One command at a time on an experiment, and what a killed one left is removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from typing import TYPE_CHECKING

from discern.errors import InUseError, InvalidInputError, OutputError
from discern.folder.layout import OUTPUTS, ExperimentFolder, is_output
from discern.runtime.atomic import (
    READY,
    finish_publishing,
    is_own_folder,
    open_own,
    refuse_link,
    remove,
    settle,
    unfinished_replacements,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_FORMER_WORK = ".online"  # of 2.0.0

_OWN = (
    *OUTPUTS,
    *("original_data", "parameters.json", "hyperparameter_search.json", _FORMER_WORK, READY),
    *("job/train", "job/validation", "job/UMAP"),
)
_FOLDERS_WITH_OUTPUTS = ("", "*", "job/UMAP", "projected/*")


def refuse_links(experiment: Path) -> None:
    """Refuse an experiment's folder in which a part that commands write to is a link to somewhere else.

    The folder itself may be a link, to an experiment or to an empty folder.

    Raises:
        InvalidInputError: If there is such a link; it names it.
    """
    if experiment.is_symlink():
        names = os.listdir(experiment) if experiment.is_dir() else ["nothing"]  # noqa: PTH208
        if names and not {"parameters.json", "processed_data"}.intersection(names):
            raise InvalidInputError(
                f"{experiment}: a link, to {experiment.readlink()}, which is neither an experiment nor an empty "
                "folder: commands would write there; remove the link"
            )
    for part in _OWN:
        for path in experiment.glob(part):
            refuse_link(path)


@contextlib.contextmanager
def locked(experiment: Path) -> Iterator[None]:
    """Hold the experiment folder for one command; a second one is refused.

    The lock is a file `.NAME.lock` beside the folder (which may not exist yet). The system frees it when the process
    ends, however it ends. What a killed command left is finished or removed first.

    Raises:
        InUseError: If another command holds it.
        InvalidInputError: If the lock or a part of the folder is a link.
        OutputError: If the lock cannot be made or opened.
    """
    lockfile = experiment.parent / f".{experiment.name}.lock"
    with writing(lockfile):
        lockfile.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = open_own(lockfile, os.O_RDWR)
        except PermissionError:
            if not lockfile.exists():
                raise
            descriptor = open_own(lockfile, os.O_RDONLY)  # another user's file can be held all the same
    try:
        with writing(lockfile):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                written = re.match(rb"process \d+", os.pread(descriptor, 100, 0))
                owner = written[0].decode() if written else "another command"
                raise InUseError(f"{experiment}: {owner} is at work on this experiment; wait for it to end") from None
        _write_owner(descriptor, f"process {os.getpid()}")
        try:
            with writing(experiment):
                _tidy(experiment)
            yield
        finally:
            _write_owner(descriptor, "")
    finally:
        os.close(descriptor)


def _write_owner(descriptor: int, text: str) -> None:
    """Write into a lock file who holds it, for the message to others; not through a second name of another file."""
    if os.fstat(descriptor).st_nlink == 1:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)


def recover(experiment: Path) -> None:
    """Finish or remove what a killed command left, for those who only look; nothing if another command is at work.

    Args:
        experiment: EXPERIMENTS_DIR/NAME; it need not exist.
    """
    place = _place(experiment)
    beside = any(path == place for _, path in unfinished_replacements(place.parent))
    if beside or any(os.path.lexists(place / name) for name in (READY, _FORMER_WORK)) or any(_partial_outputs(place)):
        with contextlib.suppress(InUseError, OutputError), locked(experiment):
            pass


def recover_all(folder: Path) -> None:
    """Do what `recover` does, for an experiment or for all experiments in a folder."""
    if not folder.is_dir() or ExperimentFolder(folder).parameters.exists():
        recover(folder)
        return
    beside = [path for _, path in unfinished_replacements(folder) if not is_output(path.name)]
    within = [entry for entry in sorted(folder.iterdir()) if ExperimentFolder(entry).parameters.is_file()]
    for experiment in (*beside, *within):
        recover(experiment)


def _place(experiment: Path) -> Path:
    try:
        return experiment.resolve()
    except (OSError, RuntimeError):
        raise InvalidInputError(f"{experiment}: links in a circle") from None


def _partial_outputs(place: Path) -> Iterator[tuple[Path, Path]]:
    for pattern in _FOLDERS_WITH_OUTPUTS:
        for folder in [place] if not pattern else place.glob(pattern):
            if is_own_folder(folder):
                yield from unfinished_replacements(folder)


def _tidy(experiment: Path) -> None:
    place = _place(experiment)
    for staging, path in unfinished_replacements(place.parent):
        if path == place:
            settle(staging, path)
    refuse_links(experiment)
    if place.is_dir():
        finish_publishing(place)
        remove(place / _FORMER_WORK)
        for staging, path in list(_partial_outputs(place)):
            settle(staging, path)
