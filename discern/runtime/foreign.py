"""Files that come from others: what stands at a path, and one line for all that a reader of such a file can raise."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from typing import IO, TYPE_CHECKING, Any, cast

from discern.errors import InvalidInputError, MissingFileError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_LONGEST = 600
_DEEPEST = 64
LONGEST_LINE = 2**26
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
}


@contextlib.contextmanager
def reading(path: Path | str, problem: str, advice: str = "") -> Iterator[None]:
    """Turn whatever a reader of somebody else's file raises into one line that names the file.

    Put only the reading into the block: faults of the program's own would be told as faults of the file.

    Args:
        path: The file or folder.
        problem: What is wrong then, e.g. "cannot be read as .h5ad".
        advice: What to do.

    Raises:
        InvalidInputError: For every exception in the block but `UserError`, `ImportError` and `NameError`.

    Example:
        >>> with reading("cells.h5ad", "cannot be read as .h5ad", "export it again"):
        ...     {}["X"]
        Traceback (most recent call last):
        ...
        discern.errors.InvalidInputError: cells.h5ad: cannot be read as .h5ad (it lacks 'X'); export it again
    """
    try:
        yield
    except (UserError, ImportError, NameError):
        raise
    except Exception as error:  # readers raise everything, even that
        message = f"{visible(str(path))}: {problem} ({reason(error)})"
        raise InvalidInputError(f"{message}; {advice}" if advice else message) from error


def reason(error: BaseException) -> str:
    r"""Return in one line of words, without names of classes, what an exception says.

    Example:
        >>> reason(ValueError("a very\nlong story")), reason(RecursionError()), reason(EOFError())
        ('a very long story', 'nested too deeply', 'it ends too early')
    """
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, UnicodeError):
        return "text that is not UTF-8"
    if isinstance(error, EOFError):
        return "it ends too early"
    text = str(error)
    if isinstance(error, KeyError):
        text = f"it lacks {text}" if re.fullmatch(r"'[^']*'", text) else text.strip("\"'")
    if isinstance(error, OSError) and error.strerror and error.errno is not None:
        text = error.strerror
    if "No read method registered" in text or "IOSpec" in text:
        text = "a part is stored in an unknown way"
    places = re.findall(r"(?:reading|writing) key '([^']*)'", " ".join(getattr(error, "__notes__", ())) + text)
    text = re.sub(r"<class '([^']*)'>|<([\w.]+) object at 0x[0-9a-f]+>", "object", text)
    text = visible(" ".join(text.split())) or "it is damaged"
    return text + (f", at {visible(places[0])}" if places and places[0] not in text else "")


def visible(text: str, longest: int = _LONGEST) -> str:
    r"""Return a text with control characters as escapes, cut in its middle if it is long.

    Example:
        >>> visible("a\x1b[2Jb"), visible("x" * 100, 11)
        ('a\\x1b[2Jb', 'xxx ... xxx')
    """
    if len(text) > longest:
        half = (longest - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def check_file(path: Path) -> None:
    """Refuse what is no ordinary file, without opening it: a named pipe would wait for ever.

    Raises:
        MissingFileError: If nothing is there.
        InvalidInputError: If it is a folder, a named pipe, a socket or a device, or out of reach.
    """
    _check_kind(path, stat.S_IFREG)


def check_folder(path: Path) -> None:
    """Refuse what is no folder; see `check_file`."""
    _check_kind(path, stat.S_IFDIR)


def check_input(path: Path) -> None:
    """Refuse what is neither a file nor a folder; see `check_file`."""
    _check_kind(path, stat.S_IFREG, stat.S_IFDIR)


def _check_kind(path: Path, *wanted: int) -> None:
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116 (Path.stat is the same; this takes any path)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{visible(str(path))}: no such file or folder") from None
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{visible(str(path))}: cannot be opened ({reason(error)})") from None
    if kind not in wanted:
        expected = " or ".join(_KINDS[each] for each in wanted)
        raise InvalidInputError(
            f"{visible(str(path))}: expected {expected}, this is {_KINDS.get(kind, 'something else')}"
        )


def check_tree(folder: Path) -> dict[str, int]:
    """Return the bytes of each file in a folder and its folders, by path.

    Raises:
        InvalidInputError: If there is something else in it: a link, a named pipe, a device.
    """
    check_folder(folder)
    sizes: dict[str, int] = {}
    folders = [(str(folder), 0)]
    while folders:
        place, depth = folders.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if depth == _DEEPEST:
                        raise InvalidInputError(f"{visible(str(folder))}: folders are nested too deeply")
                    folders.append((entry.path, depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    sizes[entry.path] = entry.stat(follow_symlinks=False).st_size
                else:
                    kind = "a link" if entry.is_symlink() else "neither a file nor a folder"
                    inside = os.path.relpath(entry.path, folder)
                    raise InvalidInputError(
                        f"{visible(str(folder))}: {visible(inside)} is {kind}, which is not followed; "
                        "put the file itself there"
                    )
    return sizes


class _ShortLines(io.RawIOBase):
    """A binary file that refuses a line without end, as a tiny compressed file can hold."""

    def __init__(self, handle: IO[bytes], longest: int) -> None:
        self._handle = handle
        self._longest = longest
        self._since = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._handle.read(len(buffer))
        buffer[: len(data)] = data
        last = data.rfind(b"\n")
        self._since = self._since + len(data) if last < 0 else len(data) - last - 1
        if self._since > self._longest:
            raise ValueError(f"a line of more than {self._longest >> 20} MB")
        return len(data)

    def close(self) -> None:
        self._handle.close()
        super().close()


def open_text(path: Path, longest_line: int = LONGEST_LINE) -> io.BufferedReader:
    r"""Open a text file as bytes, unpacked if it is gzipped, whatever its name; no line is longer than memory.

    Args:
        path: The file.
        longest_line: Bytes of a line; a longer one is a ValueError when it is read.

    Raises:
        MissingFileError: If nothing is there.
        InvalidInputError: If it is no ordinary file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "genes.tsv"
        >>> _ = path.write_text("A\t1\n")
        >>> with open_text(path) as file:
        ...     file.readline()
        b'A\t1\n'
    """
    import gzip

    check_file(path)
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    handle = cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb")  # noqa: SIM115 (closed with what is returned)
    return io.BufferedReader(_ShortLines(handle, longest_line), 2**20)
