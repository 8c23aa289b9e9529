"""Text from files on its way out: to a terminal, a log, a report or a table.

Names of batches, cells and genes come from files, and a terminal obeys control characters, a spreadsheet formulas.
"""

from __future__ import annotations

import hashlib
import re
from typing import TypeVar

LONGEST_MESSAGE = 2_000
"""Characters of a message; a longer one loses its middle."""

# C0 and C1 controls, marks and overrides of the direction of writing, invisible characters, line separators, what is no
# character at all.
_T = TypeVar("_T")
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_FORMULA = ("=", "+", "-", "@")
_QUOTE = "'"
_LONGEST_PART = 150  # bytes; a file name may have 255


def has_control(text: str) -> bool:
    r"""Whether a text holds a character that does something rather than being shown.

    Example:
        >>> has_control("Müller 3"), has_control("a\x1b[2J"), has_control("a\u202eb")
        (False, True, True)
    """
    return _CONTROL.search(text) is not None


def visible(text: str) -> str:
    r"""Return a text with its control characters written out.

    Example:
        >>> print(visible("a\x1b[31m\u202eb"))
        a\x1b[31m\u202eb
    """
    return _CONTROL.sub(lambda found: _escaped(found[0]), text)


def message(text: str) -> str:
    r"""Return a message as one line of bounded length, without control characters.

    Example:
        >>> print(message("two\nlines\x07"))
        two lines\x07
        >>> len(message("x" * 10_000))
        2000
    """
    return _cut(visible(" ".join(text.splitlines())))


def page(text: str) -> str:
    r"""Return a text of several lines for the terminal, each as `message` would.

    Example:
        >>> page("a\tb\nc\x1b") == "a\tb\nc\\x1b"
        True
    """
    return "\n".join("\t".join(_cut(visible(part)) for part in line.split("\t")) for line in text.split("\n"))


def short(name: object, most: int = 60) -> str:
    """Return a name for a picture or a column of a table: visible, of at most `most` characters.

    Example:
        >>> len(short("x" * 300)), short("abcdef", most=5)
        (60, 'ab...')
    """
    text = visible(str(name))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def file_part(name: str, unique: bool = False) -> str:
    """Return a name as part of a file name: unfit characters become `_`, dots are kept.

    Args:
        name: Any text.
        unique: Whether names that would become the same are to be told apart: by eight figures of a hash at the end. A
            name of more than 150 bytes is cut and gets them always.

    Example:
        >>> file_part("Donor 1/A"), file_part("Donor 1/A", unique=True), len(file_part("x" * 300))
        ('Donor_1_A', 'Donor_1_A-86f7cc9f', 150)
    """
    clean = re.sub(r"[^\w.+-]", "_", name)
    encoded = clean.encode()
    if not unique and len(encoded) <= _LONGEST_PART:
        return clean
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{encoded[: _LONGEST_PART - 9].decode(errors='ignore')}-{digest}"


def cell(value: _T) -> _T | str:
    r"""Return a value for a csv table that no spreadsheet takes for a formula; `from_cell` turns it back.

    A text that begins with `=`, `+`, `-`, `@` or `'`, or holds control characters, gets a `'` in front; in it, a
    backslash is doubled and control characters are written out.

    Example:
        >>> cell("=1+1"), cell("CD3"), cell(-1.5), from_cell(cell("'\t\\"))
        ("'=1+1", 'CD3', -1.5, "'\t\\")
    """
    if not isinstance(value, str) or not (value.startswith((*_FORMULA, _QUOTE)) or has_control(value)):
        return value
    return _QUOTE + visible(value.replace("\\", "\\\\"))


def from_cell(value: _T) -> _T | str:
    """Return what `cell` was given."""
    if not isinstance(value, str) or not value.startswith(_QUOTE):
        return value
    return re.sub(
        r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4}))",
        lambda found: found[1] or chr(int(found[2] or found[3], 16)),
        value[1:],
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _cut(text: str) -> str:
    if len(text) <= LONGEST_MESSAGE:
        return text
    half = (LONGEST_MESSAGE - 5) // 2
    return f"{text[: LONGEST_MESSAGE - 5 - half]} ... {text[-half:]}"
