"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from discern.errors import InvalidInputError, OutputError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGER = logging.getLogger(__name__)


READY = ".ready"
_REPLACED = ".replaced"
_OLD = "replaced"
_STAGING = re.compile(r"\.(?P<name>.+)\.partial-[a-z0-9_]{8}")

_CAUSES = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files of this size are not allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an error",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
    errno.ELOOP: "there is a link where none is allowed, or links in a circle",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EISDIR: "there is a folder of that name",
    errno.EEXIST: "there is something else of that name",
    errno.ENOTSUP: "the file system does not support it",
}
_TOLD_IN_TEXT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE),
)


def cause_in_system(error: BaseException | None) -> str | None:
    """Return in words why the system refused to read or write something, None if the error is not of that kind.

    HDF5, TensorFlow and Ray put the system's words into errors of their own; these are recognised as well.

    Example:
        >>> cause_in_system(OSError(errno.ENOSPC, "No space left on device", "/data/x"))
        'no space left on the disk (/data/x)'
        >>> cause_in_system(RuntimeError("Unable to write (errno = 28, error message = 'No space left on device')"))
        'no space left on the disk'
        >>> cause_in_system(KeyError("x"))
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _CAUSES:
            place = error.filename2 or error.filename
            named = isinstance(place, str | os.PathLike) and not _STAGING.search(os.fspath(place))
            return _CAUSES[error.errno] + (f" ({place})" if named else "")
        if not isinstance(error, UserError):
            text = str(error)
            for code in _TOLD_IN_TEXT:
                if os.strerror(code) in text:
                    return _CAUSES[code]
        error = error.__cause__
    return None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system has against writing a file or folder into an error that names it.

    Raises:
        OutputError: If there is no space, no permission and the like.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, OutputError):
            raise
        # An error within a folder that is being made tells of a place that nobody knows: the outermost name counts.
        reason = cause_in_system(error.__cause__ if isinstance(error, OutputError) else error)
        if reason is None:
            raise
        reason = reason.removesuffix(f" ({path})")
        raise OutputError(f"{path}: not written: {reason}; what was there is as it was") from error


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all in it, is on the disk."""
    if path.is_symlink():
        return
    if path.is_dir():
        for entry in os.scandir(path):
            if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                flush(Path(entry.path))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:  # a file of somebody else, which was only linked to
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems know no fsync of folders
            raise
    finally:
        os.close(descriptor)


def _flush_entries(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    with contextlib.suppress(OSError):  # the data is there; the names follow within seconds
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or folder to; it becomes `path` when the block ends well.

    It is on the disk before it does. An exception leaves `path` as it was and removes what was written. The suffix of
    the name is kept.

    Raises:
        OutputError: If there is no space, no permission and the like.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "answer.txt"
        >>> with replacing(target) as partial:
        ...     _ = partial.write_text("42")
        >>> target.read_text()
        '42'
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Scratch(path.name, path.parent)
    partial = staging.path / path.name
    try:
        with writing(path):
            yield partial
            flush(partial)
            if not (path.is_dir() and _exchange(partial, path)):
                _put_in_place(partial, path, staging.path / _OLD)
            _flush_entries(path.parent)
    finally:
        staging.close()


class Scratch:
    """A folder for what is needed for a while; the next command removes it if the process is killed.

    Args:
        name: What it is for.
        folder: Where it is made, that of an experiment; None for the temporary files of the system.

    Attributes:
        path: The folder.

    Raises:
        OSError: If it cannot be made.

    Example:
        >>> scratch = Scratch("drawing", None)
        >>> scratch.path.is_dir()
        True
        >>> scratch.close()
        >>> scratch.path.exists()
        False
    """

    def __init__(self, name: str, folder: Path | None) -> None:
        prefix = f".{name}.partial-" if folder is not None else f"discern-{name}-"
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        # Held as long as the process lives, so that nobody takes it for a leftover.
        self._descriptor = os.open(self.path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # closed before
            os.close(self._descriptor)


def _is_in_use(staging: Path) -> bool:
    """Whether the process that made a `Scratch` lives; False where the file system cannot tell."""
    try:
        descriptor = os.open(staging, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once; False where the system cannot (it is not Linux, or a file system over the network)."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    from_here, exchange = -100, 2
    return bool(rename(from_here, os.fsencode(one), from_here, os.fsencode(other), exchange) == 0)


def _put_in_place(partial: Path, path: Path, old: Path) -> None:
    """Rename, a folder in the way to `old` first; a process that dies in between leaves work to `_settle`."""
    if path.is_dir():
        os.rename(path, old)  # noqa: PTH104
    try:
        os.replace(partial, path)  # noqa: PTH105
    except OSError:
        if old.exists():
            os.rename(old, path)  # noqa: PTH104
        raise


def settle(staging: Path, path: Path) -> None:
    """Remove what `replacing` left when its process was killed; if it died while swapping folders, put one in place."""
    if _is_in_use(staging):
        return
    old, new = staging / _OLD, staging / path.name
    if is_own_folder(staging) and is_own_folder(old) and not os.path.lexists(path):
        os.rename(new if is_own_folder(new) else old, path)  # noqa: PTH104
    _LOGGER.warning("removing %s, which an interrupted run left", staging)
    remove(staging)


def unfinished_replacements(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield what `replacing` left in a folder, with the path that it was to become."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):  # noqa: PTH208
            if match := _STAGING.fullmatch(name):
                yield folder / name, folder / match["name"]


def remove_partial(folder: Path) -> None:
    """Remove what `replacing` left in a folder when its process was killed."""
    for staging, path in unfinished_replacements(folder):
        settle(staging, path)


def is_own_folder(path: Path) -> bool:
    """Return whether a path is a folder and no link."""
    return path.is_dir() and not path.is_symlink()


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
    with writing(folder):
        flush(staging)
        os.rename(staging, folder / READY)  # noqa: PTH104
        _flush_entries(folder)
        try:
            finish_publishing(folder)
        except OSError:
            if not (folder / READY / _REPLACED).exists():  # nothing has been moved yet
                os.rename(folder / READY, staging)  # noqa: PTH104
            raise


def finish_publishing(folder: Path) -> None:
    """Finish a `publish` into `folder` that was cut off after its first rename; otherwise do nothing."""
    ready = folder / READY
    if not os.path.lexists(ready):
        return
    replaced = ready / _REPLACED
    for path in (ready, replaced, *(ready.iterdir() if is_own_folder(ready) else ())):
        refuse_link(path)
    if not ready.is_dir():
        return
    replaced.mkdir(exist_ok=True)
    for entry in sorted(ready.iterdir()):
        if entry.name == _REPLACED:
            continue
        target = folder / entry.name
        if os.path.lexists(target):
            os.rename(target, replaced / entry.name)  # noqa: PTH104
        os.rename(entry, target)  # noqa: PTH104
    _flush_entries(folder)
    shutil.rmtree(ready)


def refuse_link(path: Path) -> None:
    """Raise an `InvalidInputError` that names a path if it is a link."""
    if path.is_symlink():
        raise InvalidInputError(
            f"{path}: a link, to {path.readlink()}: expected a file or folder of the experiment's own, for commands "
            "write there; put what it points to in its place, or remove it"
        )


def open_own(path: Path, flags: int) -> int:
    """Open a file without following a link, and make it if it is not there and to be written; returns the descriptor.

    Args:
        path: The file.
        flags: `os.O_RDWR`, `os.O_WRONLY | os.O_APPEND`, ...

    Raises:
        InvalidInputError: If it is a link, a folder, a pipe or a device.
        OSError: If it cannot be opened.
    """
    refuse_link(path)
    if path.is_dir():
        raise InvalidInputError(f"{path}: expected a file, this is a folder; remove it")
    try:
        make = os.O_CREAT if flags & (os.O_WRONLY | os.O_RDWR) else 0
        descriptor = os.open(path, flags | make | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe that nobody reads
            raise InvalidInputError(f"{path}: expected a file, this is a pipe or a device; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInputError(f"{path}: expected a file, this is a pipe or a device; remove it")
    return descriptor
