"""Raw counts from the formats in which cells are published."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from discern.data.chunks import estimate_csr_nbytes, is_lazy
from discern.errors import InvalidInputError
from discern.inputs import raw_counts
from discern.inputs.gene_names import check_names, only_genes
from discern.inputs.hdf5 import read_hdf5, read_zarr
from discern.inputs.mtx import has_mtx, is_mtx, read_mtx
from discern.inputs.tables import TABLES, read_table
from discern.runtime.foreign import check_input, reading
from discern.runtime.memory import matrix_budget
from discern.runtime.progress import track

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import anndata as ad


_SUPPORTED = (
    ".h5ad, .zarr, .h5 (10x), .loom, .txt/.tsv/.csv (a table, also .gz), "
    "or a folder with matrix.mtx(.gz) and genes.tsv or features.tsv.gz"
)
_HDF5 = (".h5ad", ".h5", ".hdf5", ".loom")
_HDF5_START = b"\x89HDF\r\n\x1a\n"
_ADVICE = {
    (".rds", ".rdata", ".rda", ".qs"): "an R object; write it as .h5ad in R, e.g. with anndataR::write_h5ad",
    (".h5seurat",): "a Seurat file; write it as .h5ad in R, e.g. with SeuratDisk::Convert",
    (".h5mu",): "MuData; save the gene expression alone: mudata['rna'].write_h5ad(...)",
    (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"): "an archive; unpack it first",
    (".xls", ".xlsx", ".ods", ".numbers"): "a spreadsheet; save it as .csv (names of genes as text, not dates)",
    (
        ".fastq",
        ".fq",
        ".bam",
        ".sam",
        ".cram",
        ".sra",
    ): "reads; count them first, e.g. with cellranger, STARsolo or kallisto",
    (".npz", ".npy", ".pkl", ".pickle", ".mat", ".parquet", ".feather"): "a matrix without the names of its genes and "
    "cells; write it as .h5ad",
    (".results", ".sf"): "the result of one sample (RSEM, salmon); make one table of the counts of all cells",
}


def read_raw_input(
    file_path: str | Path, budget: int | None = None, layer: str | None = None, genes: Collection[str] = ()
) -> ad.AnnData:
    """Read raw counts of cells.

    Args:
        file_path: `.h5ad`, `.zarr`, `.h5` (10x), `.loom`; a table `.txt`, `.tsv` or `.csv`, genes x cells or cells x
            genes, perhaps gzipped; or `matrix.mtx`, or a folder with it, with `genes.tsv` (id, symbol) and perhaps
            `barcodes.tsv` beside it, or their gzipped successors (`features.tsv.gz`) of 10x version 3.
        budget: Bytes that the counts may take in memory, by default a part of the machine's. Larger `.h5ad` and `.zarr`
            are read when needed (X is a dask array of CSR blocks then).
        layer: The layer with the counts, "raw" for `.raw.X`; by default X.
        genes: Names of genes that other inputs have; they help to find out which way round a table is.

    Returns:
        The cells with X sparse (cells x genes), obs and var. Each gene has a name of its own, see
        `discern.inputs.gene_names.only_genes`, which also says what is left out.

    Raises:
        MissingFileError: If the path does not exist.
        InvalidInputError: If it is of another format, or cannot be read.
        UnknownNameError: If it has no such layer.
    """
    path = Path(file_path)
    check_input(path)
    with warnings.catch_warnings(), reading(path, "cannot be read"):
        warnings.filterwarnings("ignore", message="(Variable|Observation) names are not unique", category=UserWarning)
        return only_genes(_read(path, budget, layer, genes), str(path))


def read_raw_inputs(
    files: Iterable[str | Path], budget: int | None = None, layers: Mapping[str, str | None] | None = None
) -> dict[str, ad.AnnData]:
    """Read several files whose genes will be matched.

    Args:
        files: See `read_raw_input`. Tables are read last: the genes of the others say which way round they are.
        budget: Bytes that all counts together may take in memory, by default a part of the machine's.
        layers: The layer with the counts, by path; X where it says nothing.

    Returns:
        The cells by path, in the order of the files.

    Raises:
        UserError: See `read_raw_input`.
        InvalidInputError: If genes would be matched by their place, for want of names.
    """
    paths = list(map(str, files))
    left = matrix_budget() if budget is None else budget
    layers = layers or {}
    found: dict[str, ad.AnnData] = {}
    genes: Collection[str] = ()
    for path in track(sorted(paths, key=_is_table), "reading"):
        found[path] = read_raw_input(path, left, layers.get(path), genes)
        genes = genes or frozenset(found[path].var_names)
        if not is_lazy(found[path].X):
            left -= estimate_csr_nbytes(found[path].X)
    _turn_first_table(found)
    check_names(found)
    return {path: found[path] for path in paths}


def _turn_first_table(found: dict[str, ad.AnnData]) -> None:
    """Read the table again that was read before any genes were known, if they stand in its other direction."""
    first = next(iter(found), "")
    genes = frozenset(name for path, adata in found.items() if path != first for name in adata.var_names)
    if _is_table(first) and genes.isdisjoint(found[first].var_names) and not genes.isdisjoint(found[first].obs_names):
        found[first] = read_raw_input(first, genes=genes)


def _is_table(path: str) -> bool:
    return Path(path.lower().removesuffix(".gz")).suffix in TABLES


def _read(path: Path, budget: int | None, layer: str | None, genes: Collection[str]) -> ad.AnnData:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")
    if path.is_dir():
        if suffix == ".zarr":
            return read_zarr(path, budget, layer)
        if has_mtx(path):
            return raw_counts.chosen(read_mtx(path), layer, str(path))
        raise InvalidInputError(f"{path}: unknown format; expected {_SUPPORTED}{_inside(path)}")
    with path.open("rb") as file:
        start = file.read(8)
    if suffix in _HDF5 and start[:2] == b"\x1f\x8b":
        raise InvalidInputError(f"{path}: is compressed, which HDF5 files cannot be; unpack it first: gunzip {path}")
    advice = _advice(suffixes, start)
    if suffix in _HDF5 or (start == _HDF5_START and not advice):
        if start != _HDF5_START:
            raise InvalidInputError(
                f"{path}: cannot be read as {suffix}: it is no HDF5 file, or damaged at its beginning{advice}; "
                "download or copy it again"
            )
        return read_hdf5(path, budget, layer)
    if advice or not (is_mtx(path) or suffix in TABLES):
        raise InvalidInputError(f"{path}: unknown format; expected {_SUPPORTED}{advice}")
    cells = read_mtx(path) if is_mtx(path) else read_table(path, suffix, genes)
    return raw_counts.chosen(cells, layer, str(path))


def _advice(suffixes: list[str], start: bytes) -> str:
    """Say what to do with a file of a known format that is not read."""
    if start[:4] in (b"PK\x03\x04", b"BZh9") or start[:6] == b"\xfd7zXZ\x00":
        suffixes = [*suffixes, ".xlsx" if ".xlsx" in suffixes else ".zip"]
    for suffix in reversed(suffixes):
        for known, words in _ADVICE.items():
            if suffix in known:
                return f"; this is {words}"
    return ""


def _inside(folder: Path) -> str:
    """Say which of the things in a folder could be read."""
    found = [
        str(path)
        for path in sorted(folder.iterdir())
        if (path.is_dir() and (path.suffix == ".zarr" or has_mtx(path)))
        or (path.is_file() and dataset_name(path) != path.name.removesuffix(".gz"))
    ]
    if (folder / ".zgroup").exists() or (folder / "zarr.json").exists():
        return f"; this is a zarr folder: its name has to end with .zarr (mv {folder} {folder}.zarr)"
    if not found:
        return f"; it holds {', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
    return f"; give what is in it: {' '.join(found[:8])}{' ...' if len(found) > 8 else ''}"


def dataset_name(path: str | Path) -> str:
    """Return the name of a file's cells: its name without suffixes that say the format.

    Example:
        >>> dataset_name("raw/donor.1.csv.gz"), dataset_name("raw/pbmc.v2")
        ('donor.1', 'pbmc.v2')
    """
    name = Path(path).name
    for suffix in (".gz", *_HDF5, ".zarr", ".mtx", *TABLES):
        name = name.removesuffix(suffix)
    return name
