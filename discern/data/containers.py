"""HDF5 files and zarr folders that may come from anybody: opened only if they are what they say.

A small file can claim to hold terabytes, or to continue in another file. The checks raise ValueError with a reason;
`reading` of `discern.runtime.foreign` adds the file.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import h5py
import numpy as np
import zarr

from discern.data.structure import (
    DEEPEST_NESTING,
    LARGEST_SHAPE,
    check_compressed,
    check_indices,
    check_shape,
    check_values,
)
from discern.runtime.foreign import check_file, check_tree, reading, visible
from discern.runtime.memory import usable_memory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence


_MOST_PARTS = 30_000
_HIGHEST_COMPRESSION = 2000
"""More than any compression of real values: deflate, the usual one, ends at 1032."""

_LARGEST_METADATA = 2**28

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEAP = b"GCOL\x01\0\0\0"
_HEAPS_AT_ONCE = 2**24
_SMALLEST_HEAP, _LARGEST_HEAP = 2**12, 2**28

_CODECS = frozenset(
    {"blosc", "zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "shuffle", "delta", "fixedscaleoffset", "quantize"}
    | {"vlen-utf8", "vlen-bytes", "vlen-array", "bytes", "transpose", "sharding_indexed"}
    | {"packbits", "astype", "bitround", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"}
)
"""Codecs of zarr that only unpack numbers and texts; `pickle` is none of them."""


# --- HDF5 ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_hdf5(path: Path, problem: str, advice: str = "", whole: Collection[str] | None = None) -> Iterator[h5py.File]:
    """Open somebody else's HDF5 file to read from it; the block is one of `discern.runtime.foreign.reading`.

    Args:
        path: The file.
        problem: See `reading`.
        advice: See `reading`.
        whole: Names of the parts that will be read as a whole, by default all.

    Raises:
        MissingFileError: If there is no such file.
        InvalidInputError: If it is no HDF5 file, continues in other files, or claims to be larger than it is; and what
            `reading` raises.
    """
    check_file(path)
    with reading(path, problem, advice):
        state = path.stat()
        _check_heaps(path, state.st_size, state.st_mtime_ns)
        with h5py.File(path, "r") as handle:
            check_hdf5(handle, whole)
            yield handle


@functools.lru_cache(maxsize=64)
def _check_heaps(path: Path, size: int, changed: int) -> None:
    """Raise ValueError if a heap of texts has a free object of no size, which the HDF5 library would read for ever.

    Heaps do not overlap: those that do, and would be walked through again and again, are refused, too.

    Args:
        path: The file.
        size: Its size, and
        changed: when it was changed: what has been looked at is not looked at again.
    """
    with path.open("rb") as file:
        start = file.read(16)
        if start[:8] != _HDF5:
            return
        length = start[14] if start[8] < 2 else start[10]
        position, kept, left = 0, b"", 4 * size
        file.seek(0)
        while block := file.read(_HEAPS_AT_ONCE):
            text, begin = kept + block, position - len(kept)
            found = text.find(_HEAP)
            while found >= 0:
                left -= max(_SMALLEST_HEAP, _check_heap(file, begin + found, length))
                if left < 0:
                    raise ValueError("the heaps of texts in it overlap")
                found = text.find(_HEAP, found + 1)
            kept = text[1 - len(_HEAP) :]
            position += len(block)
            file.seek(position)


def _check_heap(file: BinaryIO, begin: int, length: int) -> int:
    """Walk through the objects of a global heap collection as the HDF5 library does (its file format, III.E).

    Returns:
        Bytes read.
    """
    file.seek(begin + len(_HEAP))
    size = int.from_bytes(file.read(length), "little")
    header = -(-(8 + length) // 8) * 8
    file.seek(begin)
    heap = file.read(min(size, _LARGEST_HEAP))
    place = header
    while place + header <= len(heap):
        is_free = heap[place : place + 2] == b"\0\0"
        taken = int.from_bytes(heap[place + 8 : place + 8 + length], "little")
        if is_free and taken < header:
            raise ValueError("a heap of texts in it is damaged")
        place += taken if is_free else header + -(-taken // 8) * 8
    return len(heap)


def check_hdf5(file: h5py.File, whole: Collection[str] | None = None) -> None:
    """Raise ValueError if a file continues in others, nests without end or claims to be larger than it is.

    Args:
        file: The open file.
        whole: Names of the parts that will be read as a whole, by default all.
    """
    claims = _Claims()
    groups = [(file["/"], 0, whole is None)]
    parts = 0
    while groups:
        group, depth, is_read = groups.pop()
        for name in group:
            place = f"{'' if group.name in (None, '/') else group.name}/{name}"
            parts += 1
            if parts > _MOST_PARTS or depth > DEEPEST_NESTING:
                raise ValueError(f"{place} and others: nested without end")
            part = _linked(group, name, place)
            inside = is_read or (depth == 0 and whole is not None and name in whole)
            if isinstance(part, h5py.Group):
                groups.append((part, depth + 1, inside))
            elif isinstance(part, h5py.Dataset):
                _check_dataset(part, place)
                if inside:
                    stored = part.id.get_storage_size()
                    claims.add(place, part.shape or (), part.id.get_type().get_size(), stored)


def _linked(group: h5py.Group, name: str, place: str) -> h5py.Group | h5py.Dataset:
    try:
        link = group.get(name, getlink=True)
    except TypeError:
        raise ValueError(f"{place} is a link of an unknown kind, which is not followed") from None
    if isinstance(link, h5py.ExternalLink):
        raise ValueError(f"{place} is a link to another file, which is not followed")
    try:
        return group[name]
    except KeyError:
        raise ValueError(f"{place} leads nowhere") from None


def _check_dataset(dataset: h5py.Dataset, place: str) -> None:
    made = dataset.id.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{place} is put together from other files, which are not read")
    if made.get_external_count():
        raise ValueError(f"{place} is stored in other files, which are not read")
    if made.get_layout() == h5py.h5d.CHUNKED:
        _check_chunk(place, made.get_chunk(), dataset.id.get_type().get_size())


def _check_chunk(place: str, chunk: Sequence[int], itemsize: int) -> None:
    if math.prod(chunk) * itemsize > usable_memory() // 8:
        raise ValueError(f"{place} is stored in chunks of {math.prod(chunk) * itemsize / 1e9:.1f} GB")


class _Claims:
    """Adds up what arrays claim to hold."""

    def __init__(self) -> None:
        self.total = self.empty = 0

    def add(self, place: str, shape: Sequence[int], itemsize: int, stored: int) -> None:
        nbytes = math.prod(shape) * itemsize
        self.total += nbytes
        if nbytes > _HIGHEST_COMPRESSION * stored:
            self.empty += nbytes
        if self.empty > usable_memory() // 8 or self.total > usable_memory():
            raise ValueError(f"{place} claims {nbytes / 1e9:.3g} GB, {stored:,} bytes of it are stored")


def check_stored_sparse(group: h5py.Group) -> None:
    """Raise ValueError if any sparse matrix of an HDF5 group, of old AnnData or 10x, does not hold together.

    For formats that libraries read without a check; its arrays are read once more for it.
    """
    for name in group:
        part = group[name]
        if not isinstance(part, h5py.Group):
            continue
        try:
            if all(isinstance(part.get(key), h5py.Dataset) for key in ("data", "indices", "indptr")):
                _check_arrays(part)
        except ValueError as error:
            raise ValueError(f"{part.name}: {error}") from None
        check_stored_sparse(part)


def _check_arrays(part: h5py.Group) -> None:
    by_rows = "csc" not in str(part.attrs.get("h5sparse_format", part.attrs.get("encoding-type", "csr")))
    shape = part.attrs.get("h5sparse_shape", part.attrs.get("shape"))
    if shape is None and isinstance(part.get("shape"), h5py.Dataset):  # 10x: genes x cells, by cells
        shape, by_rows = part["shape"][()], False
    rows, columns = check_shape(shape)
    if part["data"].shape != part["indices"].shape or len(part["data"].shape) != 1:
        raise ValueError(f"data has the shape {part['data'].shape}, indices {part['indices'].shape}")
    check_values(part["data"])
    check_compressed((rows, columns), part["indptr"][()], len(part["data"]), by_rows)
    indices = part["indices"]
    for start in range(0, len(indices), 2**24):
        check_indices(indices[start : start + 2**24], columns if by_rows else rows)


# --- Matrix Market ---------------------------------------------------------------------------------------------------


def check_header(header: tuple[int, int, int, str, str, str], path: Path) -> None:
    """Raise ValueError if the header of a Matrix Market file claims more than the file can hold.

    Args:
        header: Rows, columns, entries and kinds, as `scipy.io.mminfo` returns it.
        path: The file.
    """
    rows, columns, entries = header[:3]
    if "complex" in header:
        raise ValueError("its header says complex numbers, expected counts")
    characters = path.stat().st_size * (_HIGHEST_COMPRESSION if path.suffix == ".gz" else 1)
    if min(rows, columns, entries) < 0 or entries > characters or max(rows, columns) > usable_memory() // 64:
        raise ValueError(f"its header says {rows} x {columns} with {entries} entries, more than the file can hold")


# --- zarr ------------------------------------------------------------------------------------------------------------


def open_zarr(path: Path, whole: Collection[str] | None = None) -> zarr.Group:
    """Open somebody else's zarr folder to read from it.

    What a consolidated summary says is not believed: each part's own metadata are read.

    Args:
        path: The folder.
        whole: Names of the parts that will be read as a whole, by default all.

    Raises:
        InvalidInputError: If it is no folder, or holds links or other things that are neither file nor folder.
        ValueError: If its codecs could run code, or it claims to be larger than it is.
    """
    sizes = check_tree(path)
    stored: dict[str, int] = {}
    for file, nbytes in sizes.items():
        folder = file.rpartition(os.sep)[0]
        stored[folder] = stored.get(folder, 0) + nbytes
    waiting = sorted(stored, key=len)
    while waiting:  # longest first; a folder may hold folders only
        folder = waiting.pop()
        above = folder.rpartition(os.sep)[0]
        if above and above not in stored:
            bisect.insort(waiting, above, key=len)
        stored[above] = stored.get(above, 0) + stored[folder]
    claims = _Claims()
    for file, nbytes in sizes.items():
        folder, _, name = file.rpartition(os.sep)
        if name in (".zarray", "zarr.json"):
            place = os.path.relpath(folder, path)
            if nbytes > _LARGEST_METADATA:
                raise ValueError(f"{visible(place)}: {name} has {nbytes / 1e6:.0f} MB")
            metadata = json.loads(Path(file).read_bytes())
            is_read = whole is None or place.partition("/")[0] in whole
            if isinstance(metadata, dict) and metadata.get("node_type", "array") == "array":
                _check_array(place, metadata, stored[folder], claims if is_read else None)
    return zarr.open_group(path, mode="r", use_consolidated=False)


def _check_array(place: str, metadata: Mapping[str, Any], stored: int, claims: _Claims | None) -> None:
    for name in _codecs([metadata.get(key) for key in ("codecs", "filters", "compressor")]):
        if name.removeprefix("numcodecs.") not in _CODECS:
            raise ValueError(f"{place}: the codec {visible(name, 60)!r} is not used, it may run code")
    shape: Any = metadata.get("shape")
    grid = (metadata.get("chunk_grid") or {}).get("configuration") or {}
    chunk = metadata.get("chunks", grid.get("chunk_shape"))
    for sizes in (shape, chunk):
        if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size < LARGEST_SHAPE for size in sizes):
            raise ValueError(f"{place}: the shape is {visible(str(sizes), 60)}")
    itemsize = _itemsize(metadata.get("dtype", metadata.get("data_type")))
    _check_chunk(place, chunk, itemsize)
    if claims is not None:
        claims.add(place, shape, itemsize, stored)


def _codecs(tree: object) -> Iterator[str]:
    """Yield the names of all codecs, also of those inside of others."""
    for part in tree if isinstance(tree, list) else [tree]:
        if isinstance(part, dict):
            yield str(part.get("id", part.get("name")))
            configuration = part.get("configuration") or {}
            yield from _codecs([configuration.get(key) or [] for key in ("codecs", "index_codecs")])
        elif isinstance(part, list):
            yield from _codecs(part)


def _itemsize(dtype: object) -> int:
    if isinstance(dtype, dict):
        return int((dtype.get("configuration") or {}).get("length_bytes", 8))
    if isinstance(dtype, str) and (bits := re.fullmatch(r"[a-z]+(\d+)", dtype)):
        return max(1, int(bits[1]) // 8)
    if isinstance(dtype, str) and re.match(r"[<>|]", dtype):
        return np.dtype(dtype).itemsize
    return 8
