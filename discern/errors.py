"""Mistakes of the user, as opposed to faults of the program.

The command line shows them as one line and exits with code 2. In Python each keeps the built-in type that a caller
would expect, so `except KeyError` catches an `UnknownNameError`.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UserError(Exception):
    """Something in the files, parameters or options that only the user can put right."""

    def __str__(self) -> str:
        return " ".join(str(arg) for arg in self.args)  # KeyError would show the repr


class InvalidInputError(UserError, ValueError):
    """A value or a file that cannot be used."""


class NotBuiltError(InvalidInputError, AttributeError):
    """A part of a network that has not been built yet."""


class UnknownNameError(UserError, KeyError):
    """A name (key, column, loss, ...) that does not exist."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class UnsupportedError(UserError, NotImplementedError):
    """A valid request for something that DISCERN does not do."""


class OutputError(UserError, OSError):
    """A file or folder that cannot be written: no space, no permission, a file system that is read-only."""


class InUseError(UserError, RuntimeError):
    """An experiment on which another command is at work."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name closest to `name`, or an empty string.

    Example:
        >>> nearest("latend_dim", ["latent_dim", "layers"])
        " (did you mean 'latent_dim'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
