"""Whether a folder is the one that this user made on this machine.

What Ray leaves for `--resume` is pickled, so that reading it runs what it says. A folder that came from elsewhere, in
an archive or on a shared disk, must not get that far. Each search is entered, with a random token, in the user's own
state folder (`$XDG_STATE_HOME/discern`, by default `~/.local/state/discern`), where nobody else can write.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import stat
import uuid
from pathlib import Path

from discern.errors import InvalidInputError

_LOGGER = logging.getLogger(__name__)


_TOKEN = ".origin"


def make_own(folder: Path) -> None:
    """Make a new folder that only this user may enter, and remember it; a warning if it cannot be remembered.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "search"
        >>> make_own(folder)
        >>> check_own(folder)
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    token = secrets.token_hex(32)
    _write_private(folder / _TOKEN, token)
    try:
        state = _state_folder()
        _write_private(state / _entry(folder), json.dumps(_identity(folder) | {"token": token}))
    except OSError as error:
        _LOGGER.warning("%s: --resume will not know it: %s", folder, error)


def check_own(folder: Path) -> None:
    """Refuse a folder that is not one that `make_own` made, or that others may have written to.

    Raises:
        InvalidInputError: If it is not, with the reason.
    """
    reason = _reason_against(folder)
    if reason:
        raise InvalidInputError(
            f"{folder}: {reason}, and going on with it would run whatever lies in its files: start a new search, "
            "without --resume"
        )


def _reason_against(folder: Path) -> str:
    foreign = "this search was not started by you on this machine, or its folder has been moved or copied since"
    if folder.is_symlink():
        return "this is a link"
    try:
        known = json.loads((_state_folder() / _entry(folder)).read_text())
        token = (folder / _TOKEN).read_text()
    except (OSError, ValueError):
        return foreign
    if not isinstance(known, dict) or known != _identity(folder) | {"token": token}:
        return foreign
    return next(filter(None, map(_reason_against_entry, [folder, *folder.rglob("*")])), "")


def _reason_against_entry(path: Path) -> str:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return f"{path.name} in it is a link"
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return f"{path.name} in it is neither a file nor a folder"
    if found.st_uid != os.getuid():
        return f"{path.name} belongs to another user"
    return ""


def _identity(folder: Path) -> dict[str, str | int]:
    found = folder.lstat()
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return {}  # open to others: equal to no entry
    return {"folder": str(folder.resolve()), "inode": found.st_ino, "user": os.getuid(), "machine": _machine()}


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip() or str(uuid.getnode())
    except OSError:
        return str(uuid.getnode())


def _entry(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or ""
    state = (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "discern"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = state.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{state} is not a folder of this user alone")
    return state


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
