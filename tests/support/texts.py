"""Texts of an index, of which pandas 3 makes another type when it reads them than when it is given them."""

from __future__ import annotations

from typing import TypeVar

import pandas as pd

Index = TypeVar("Index", bound=pd.Index)


def plain(index: Index) -> Index:
    """Return an index, texts as objects; one of anything else as it is."""
    return index.astype(object) if isinstance(index.dtype, pd.StringDtype) else index


def plainly_indexed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with such an index."""
    return frame.set_axis(plain(frame.index))
