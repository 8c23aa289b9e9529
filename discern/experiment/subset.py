"""Some cells, genes and matrices of a file, as a smaller file. Loads no TensorFlow."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem
from scipy import sparse

from discern.data.annotation import CheckMetaData, parse_metadata
from discern.data.chunks import READ_PARTS, is_lazy, opened, read_matrix, rows_per_block, usable_dtype
from discern.data.structure import check_parts, uns_as_written
from discern.data.writers import write_blocks
from discern.errors import InvalidInputError, UnknownNameError, nearest
from discern.inputs.labels import find_genes
from discern.runtime import progress
from discern.runtime.foreign import check_file, check_input, reading
from discern.runtime.memory import matrix_budget

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from discern.data.chunks import Matrix

_LOGGER = logging.getLogger(__name__)


_LEFT_OUT = ("raw", "obsp", "varp")
IN_MEMORY = 2**27
_PIECES = 8  # of a block


def write_subset(
    path: str | Path,
    output: str | Path,
    cells: Sequence[str] = (),
    genes: Sequence[str] = (),
    layers: Sequence[str] | None = None,
    in_memory: int = IN_MEMORY,
) -> Path:
    """Write some cells, genes and matrices of an AnnData file to another one, block of cells by block of cells.

    Args:
        path: `.h5ad` or `.zarr`, e.g. a result of `discern project`.
        output: `.h5ad` or `.zarr` to write; must not be there yet.
        cells: Which cells: "COLUMN:VALUE" of obs, or a text file with the name of a cell in each line. Values of one
            column add up, all else must hold together. None for all.
        genes: Which genes: names, symbols or ids, or a text file with one in each line. None for all. They stay in the
            order of the file.
        layers: Which matrices: "X" and names of layers; None for all.
        in_memory: Bytes that a sparse matrix may take in memory; a larger one is read in blocks.

    Returns:
        The file written, with obs, var, uns, obsm and varm; `raw`, obsp and varp are left out.

    Raises:
        MissingFileError: If there is no such file.
        UnknownNameError: If a column, a cell, a gene or a layer does not exist.
        InvalidInputError: If the file cannot be read, a value does not exist, no cell is left, or `output` is there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> whole = ad.AnnData(np.eye(3), {"batch": ["a", "b", "b"]}, {"gene_symbols": ["X", "Y", "Z"]})
        >>> whole.write_h5ad(folder / "whole.h5ad")
        >>> small = ad.read_h5ad(write_subset(folder / "whole.h5ad", folder / "small.h5ad", ["batch:b"], ["Y"]))
        >>> small.X.tolist()
        [[1.0], [0.0]]
    """
    path, output = Path(path), Path(output)
    check_input(path)
    if output.suffix not in (".h5ad", ".zarr"):
        raise InvalidInputError(f"{output}: expected a name that ends in .h5ad or .zarr")
    if output.exists():
        raise InvalidInputError(f"{output} is there already: remove it or give another name")
    with opened(path) as group:
        header, stored = _parts(path, group, layers)
        rows = np.flatnonzero(_chosen_cells(header.obs, cells))
        columns = _chosen_genes(header.var, genes)
        if not len(rows):
            raise InvalidInputError(f"{path}: no cell is left by {' and '.join(cells)}")
        matrices = {name: _matrix(path, elem, header.shape, in_memory) for name, elem in stored.items()}
        step = rows_per_block(header.n_vars)
        blocks = _blocks(matrices, rows, columns, step)
        parts = progress.track(blocks, f"writing {output.name}", len(np.unique(rows // step)) * _PIECES)
        write_blocks(output, header[rows, columns].copy(), parts, _dtype(stored))
    _LOGGER.info(
        "%s: %s of %s cells, %s of %s genes; %s",
        *(
            output,
            f"{len(rows):,}",
            f"{header.n_obs:,}",
            f"{len(columns):,}",
            f"{header.n_vars:,}",
            ", ".join(matrices),
        ),
    )
    return output


def _parts(path: Path, group: h5py.Group, layers: Sequence[str] | None) -> tuple[ad.AnnData, dict[str, Matrix]]:
    """Return the tables, and the stored matrices by name."""
    if "obs" not in group or "var" not in group or not hasattr(group["obs"], "keys"):
        raise InvalidInputError(f"{path}: expected AnnData with obs and var")
    tables = {name: read_elem(group[name]) for name in READ_PARTS if name in group}
    check_parts({name: table for name, table in tables.items() if name not in ("obs", "var", "uns")})
    tables["uns"] = uns_as_written(tables.get("uns", {}))
    header = ad.AnnData(**tables)
    stored = {"X": group["X"]} if "X" in group else {}
    if "layers" in group:
        stored |= {name: group["layers"][name] for name in sorted(group["layers"])}
    for name in layers or ():
        if name not in stored:
            raise UnknownNameError(
                f"{path}: there is no layer {name!r}{nearest(name, stored)}; there are {', '.join(stored) or 'none'}"
            )
    stored = {name: elem for name, elem in stored.items() if layers is None or name in layers}
    if not stored:
        raise InvalidInputError(f"{path}: expected a matrix X or layers")
    if left_out := [name for name in _LEFT_OUT if name in group and list(getattr(group[name], "keys", tuple)())]:
        _LOGGER.info("%s: %s left out", path, ", ".join(left_out))
    return header, stored


def _matrix(path: Path, elem: h5py.Dataset, shape: tuple[int, int], in_memory: int) -> Matrix:
    """Return a stored matrix: a dense one as it is on disk, a sparse one in memory or by blocks."""
    if not isinstance(elem, h5py.Group | zarr.Group):
        usable_dtype(elem.dtype, str(path))
        if elem.shape != shape:
            raise ValueError(f"expected matrices of {shape[0]} cells x {shape[1]} genes, got {elem.shape}")
        return elem
    by_genes = str(elem.attrs.get("encoding-type", "")).startswith("csc")
    return read_matrix(path, elem, shape, matrix_budget() if by_genes else in_memory)


def _dtype(stored: Mapping[str, Matrix]) -> np.dtype:
    """Return the type that holds the values of all matrices; that of CSR is float32 at least, whatever is said."""
    is_sparse = {name: isinstance(elem, h5py.Group | zarr.Group) for name, elem in stored.items()}
    types = [np.dtype((elem["data"] if is_sparse[name] else elem).dtype) for name, elem in stored.items()]
    narrow = [kind for kind, name in zip(types, stored, strict=True) if not (is_sparse[name] and kind == np.float32)]
    found = np.result_type(*(narrow or types))
    return np.dtype(np.uint8) if found.kind == "b" else found.newbyteorder("=")


def _blocks(
    matrices: Mapping[str, Matrix], rows: np.ndarray, columns: np.ndarray, step: int
) -> Iterator[dict[str, Matrix]]:
    """Yield the wanted rows and columns of all matrices, each block in pieces that need little memory."""
    for number in np.unique(rows // step):
        inside = rows[rows // step == number]
        begin = number * step
        lazy = {
            name: matrix.blocks[int(number)].compute(scheduler="synchronous")
            for name, matrix in matrices.items()
            if is_lazy(matrix)
        }
        for piece in np.array_split(inside, min(_PIECES, len(inside))):
            block = {}
            for name, matrix in matrices.items():
                if name in lazy:
                    part = lazy[name][piece - begin]
                elif sparse.issparse(matrix):
                    part = matrix[piece]
                else:
                    part = matrix[piece[0] : piece[-1] + 1][piece - piece[0]]
                block[name] = part if len(columns) == part.shape[1] else part[:, columns]
            yield block


def _chosen_cells(obs: pd.DataFrame, cells: Sequence[str]) -> np.ndarray:
    """Return which cells are wanted."""
    wanted = np.ones(len(obs), dtype=bool)
    by_column: dict[str, np.ndarray] = {}
    for text in cells:
        if Path(text).is_file():
            names = _lines(Path(text))
            if unknown := sorted(set(names) - set(obs.index)):
                raise UnknownNameError(
                    f"{text}: {len(unknown)} of {len(names)} names are of no cell, such as {unknown[0]!r}"
                )
            wanted &= obs.index.isin(names)
            continue
        if ":" not in text:
            raise InvalidInputError(f"expected COLUMN:VALUE or a file with names of cells, got {text!r}")
        column, value = CheckMetaData(obs).check(parse_metadata(text))
        if not value:
            raise InvalidInputError(f"expected COLUMN:VALUE, got {text!r}")
        has_value = ((obs[column].astype(str) == value) & obs[column].notna()).to_numpy()
        by_column[str(column)] = by_column.get(str(column), np.zeros(len(obs), dtype=bool)) | has_value
    for has_value in by_column.values():
        wanted &= has_value
    return wanted


def _chosen_genes(var: pd.DataFrame, genes: Sequence[str]) -> np.ndarray:
    """Return the numbers of the wanted genes, ascending."""
    if not genes:
        return np.arange(len(var))
    names = [name for text in genes for name in (_lines(Path(text)) if Path(text).is_file() else [text])]
    if not names:
        raise InvalidInputError(f"{genes[0]}: expected the name of a gene in each line, the file is empty")
    return np.sort(var.index.get_indexer(pd.Index(find_genes(names, var))))


def _lines(path: Path) -> list[str]:
    check_file(path)
    with reading(path, "cannot be read as text"):
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
