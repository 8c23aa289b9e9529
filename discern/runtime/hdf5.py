"""HDF5 files that are written, safe from full disks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import h5py

if TYPE_CHECKING:
    from pathlib import Path


class OutputFile(h5py.File):
    """A new HDF5 file. HDF5 cannot close a file on a full disk: it crashes, at the latest when the program ends.

    Here the first write that fails is noted, those after it are swallowed, for the file is lost anyway, and the error
    is raised by `check` or at the end of the `with` block.

    Args:
        path: The file; what is there is overwritten.

    Raises:
        OSError: If it cannot be made.

    Example:
        >>> with OutputFile("/dev/full") as file:
        ...     file["x"] = 1
        Traceback (most recent call last):
        ...
        OSError: [Errno 28] No space left on device
    """

    def __init__(self, path: Path) -> None:
        self._disk = _Disk(path)
        super().__init__(self._disk, "w")

    def check(self) -> None:
        """Raise the error of a write that failed; to be called now and then while much is written."""
        if self._disk.error is not None:
            raise self._disk.error

    def __exit__(self, *_: object) -> None:
        try:
            self.close()
        finally:
            self._disk.file.close()
            self.check()


class _Disk:
    """What HDF5 reads from and writes to."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "w+b", buffering=0)  # noqa: PTH123, SIM115 (closed by OutputFile)
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        """Tell h5py that this can be read; it calls `readinto`."""
        return self.file.read(size) or b""

    def readinto(self, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer) and (count := self.file.readinto(buffer[done:])):
            done += count
        buffer[done:] = bytes(len(buffer) - done)  # never written, or lost
        return len(buffer)

    def write(self, data: memoryview) -> int:
        done = 0
        while self.error is None and done < len(data):
            try:
                done += self.file.write(data[done:])
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int) -> int:
        if self.error is None:
            try:
                self.file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""
