from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from discern.data.containers import open_hdf5
from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


def _with_texts(path: Path, number: int) -> Path:
    with h5py.File(path, "w") as file:
        file["names"] = np.array([f"gene-{i:05}" for i in range(number)], dtype=h5py.string_dtype())
        file.attrs["written"] = "by a test"
    return path


@pytest.mark.parametrize("number", [3, 5000])
def test_heaps_of_texts_are_read(tmp_path: Path, number: int) -> None:
    with open_hdf5(_with_texts(tmp_path / "texts.h5", number), "cannot be read") as file:
        assert file["names"].asstr()[number - 1] == f"gene-{number - 1:05}"


@pytest.mark.parametrize("which", [0, -1])
def test_a_heap_that_the_library_would_read_for_ever(tmp_path: Path, which: int) -> None:
    path = _with_texts(tmp_path / "texts.h5", 5000)
    content = bytearray(path.read_bytes())
    heaps = [found.start() for found in re.finditer(rb"GCOL\x01\0\0\0", content)]
    assert len(heaps) > 1
    begin = heaps[which] + 16
    content[begin : begin + 100] = bytes(100)
    path.write_bytes(content)
    with (
        pytest.raises(InvalidInputError, match=r"texts.h5: cannot be read \(a heap of texts in it is damaged\)"),
        open_hdf5(path, "cannot be read"),
    ):
        pass


@pytest.mark.parametrize("claimed", [0, 2**20, 2**60])
def test_heaps_within_heaps_take_no_time(tmp_path: Path, claimed: int) -> None:
    path = _with_texts(tmp_path / "texts.h5", 3)
    path.write_bytes(path.read_bytes() + (b"GCOL\x01\0\0\0" + claimed.to_bytes(8, "little")) * 300_000)
    begin = time.monotonic()
    with (
        pytest.raises(InvalidInputError, match=r"texts.h5: cannot be read \(the heaps of texts in it overlap\)"),
        open_hdf5(path, "cannot be read"),
    ):
        pass
    assert time.monotonic() - begin < 20
