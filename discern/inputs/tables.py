"""Raw counts from tables of text, whose separator and direction follow from their content."""

from __future__ import annotations

import csv
import io
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from discern.errors import InvalidInputError, UserError
from discern.inputs.gene_names import are_numbers, look_like_genes, normal
from discern.runtime.foreign import open_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

_LOGGER = logging.getLogger(__name__)


TABLES = {".txt": "\t", ".tsv": "\t", ".tab": "\t", ".csv": ","}
"""What separates the columns by the name of the file, if the content leaves a choice."""

_VALUES_AT_ONCE = 2**23
_SAMPLE_LINES = 50
_SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", " ": "blank"}

_GENE_CORNERS = {
    *("gene", "genes", "gene_id", "gene_ids", "geneid", "gene_name", "gene_names", "gene_symbol", "symbol", "symbols"),
    *("ensembl", "ensembl_id", "ensembl_gene_id", "entrez", "entrez_id", "feature", "features", "feature_name", "ensg"),
    *("hgnc_symbol", "genename", "gene_short_name", "transcript", "transcript_id", "target_id", "accession", "hgnc"),
}
_CELL_CORNERS = {
    *("cell", "cells", "cell_index", "cell_id", "cell_ids", "cellid", "cell_name", "cell_names", "cell_barcode"),
    *("barcode", "barcodes", "well", "wells", "sample", "samples", "sample_id", "cell_label", "bc", "obs_names"),
}
_NO_CELLS = {
    *("chr", "chrom", "chromosome", "seqname", "start", "end", "strand", "length", "gene_length", "exon_length"),
    *("gene_biotype", "biotype", "gene_type", "description", "gene_description", "gc_content", "entrezgene"),
    *("chromosome_name", "start_position", "end_position", "width", "entrez_id", "entrez", "entrezid", "hgnc_id"),
    *("entrez_gene_id", "ncbi_gene_id", "ncbi_id", "transcript_length", "cds_length", "exon_count", "gc_percent"),
    *("percentage_gene_gc_content", "basepairs", "locus", "map_location"),
}
_ONE_SAMPLE = {
    *("est_counts", "eff_length", "effective_length", "tpm", "fpkm", "rpkm", "expected_count", "isopct"),
    *("numreads", "effectivelength"),
}
_TOTAL = re.compile(r"((grand|row|col|column)_?)?(total|sum)s?|total_counts?")
_COUNTED_APART = re.compile(
    r"__(no_feature|ambiguous|too_low_aqual|not_aligned|alignment_not_unique)|N_(unmapped|multimapping|noFeature|ambiguous)",
    re.IGNORECASE,
)
"""What HTSeq and STAR count beside the genes."""


def read_table(path: Path, suffix: str, genes: Collection[str] = ()) -> ad.AnnData:
    """Read a table of counts with a line of names above it and a column of names before it.

    Which of both are the genes is found out from the names themselves; if they tell nothing, the rows are.

    Args:
        path: The table, perhaps gzipped, columns separated by tab, comma, semicolon or blanks, `#` or `%` before lines
            of comment at its head.
        suffix: What its name says about the separator, a key of `TABLES`.
        genes: Names of genes of other inputs; they decide which way round the table is.

    Raises:
        InvalidInputError: If it is no such table; says where it is not.
    """
    encoding = _encoding(path)
    try:
        return _read(path, _layout(path, encoding, TABLES[suffix]), genes)
    except UnicodeDecodeError:
        return _read(path, _layout(path, "latin-1", TABLES[suffix]), genes)


@dataclass(frozen=True)
class _Layout:
    """How a table is written.

    Attributes:
        encoding: Of its text.
        separator: Between two columns; a blank is any number of blanks.
        decimal: Point or comma.
        skipped: Lines before the first row of values.
        header: What stands above the columns of values.
        corner: What stands above the names of the rows.
        names: The column with the names of the rows.
        rows: Names of the first rows.
        first: The first column of values.
        closed: Whether a separator ends each row.
    """

    encoding: str
    separator: str
    decimal: str
    skipped: int
    header: list[str]
    corner: str
    rows: list[str]
    first: int
    closed: bool


def _encoding(path: Path) -> str:
    with open_text(path) as file:
        start = file.read(4096)
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        raise InvalidInputError(f"{path}: expected a table genes x cells, got an empty file")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in start:
        raise InvalidInputError(
            f"{path}: expected a table of text, got a binary file; its name says another format than it has"
        )
    return "utf-8-sig"


def _layout(path: Path, encoding: str, usual: str) -> _Layout:
    with open_text(path) as file, io.TextIOWrapper(file, encoding=encoding, newline=None) as text:
        lines: list[str] = []
        skipped = 0
        for line in text:
            line = line.rstrip("\n")
            if not lines and (not line.strip() or line.lstrip().startswith(("#", "%"))):
                skipped += 1
                comment = line
                if line.strip() and line.lstrip().startswith("%%MatrixMarket"):
                    raise InvalidInputError(
                        f"{path}: is a MatrixMarket file; call it .mtx, with its genes and barcodes beside it"
                    )
                continue
            if line.strip():
                lines.append(line)
            if len(lines) > _SAMPLE_LINES:
                break
    if skipped and lines and (heading := comment.lstrip("# ")) and _is_heading(heading, lines[0]):
        lines.insert(0, heading)
        skipped -= 1
    if not lines:
        raise InvalidInputError(f"{path}: expected a table genes x cells, there are only lines of comment")
    if len(lines) == 1:
        raise InvalidInputError(
            f"{path}: expected a line of names and a row for each gene, there is only one line: {_cut(lines[0])}"
        )
    separator, decimal = _separator(path, lines, usual)
    header, *rows = (_fields(line, separator) for line in lines)
    width = len(rows[0])
    closed = width > 2 and all(row[-1] == "" for row in rows) and (len(header) < width or header[-1] == "")
    if closed:
        rows, header, width = [row[:-1] for row in rows], header[: width - 1], width - 1
    if len(header) == width - 1:
        header = ["", *header]
    first = _first_column(path, header, rows)
    names = [row[first - 1] for row in rows]
    return _Layout(encoding, separator, decimal, skipped + 1, header[first:], header[first - 1], names, first, closed)


def _is_heading(comment: str, first: str) -> bool:
    return any(
        len(_fields(comment, separator)) > 2 and len(_fields(comment, separator)) == len(_fields(first, separator))
        for separator in _SEPARATORS
    )


def _first_column(path: Path, header: list[str], rows: list[list[str]]) -> int:
    """Return where the values begin, after the names of the rows; check the names of the columns."""
    repeated = len(set(header[1:])) < len(header) - 1 and len(header) > 3
    like_a_row = header[0] != "" and re.sub(r"\d+", "0", header[0]) == re.sub(r"\d+", "0", rows[0][0])
    if (repeated or like_a_row) and all(_is_number(name) for name in header[1:]):
        raise InvalidInputError(
            f"{path}: expected names of cells or genes in the first line, got numbers: {_cut(', '.join(header))}"
        )
    names = [row[0] for row in rows]
    if all(map(_is_number, names)) and len(set(names)) < 0.9 * len(names):
        raise InvalidInputError(
            f"{path}: expected names of genes or cells in the first column, got numbers that repeat: "
            f"{_cut(', '.join(names))}; write the names in front of each row"
        )
    numbered = are_numbers(pd.Index(names))
    if len(header) > 2 and numbered and not any(_is_number(row[1]) for row in rows):
        _LOGGER.warning("%s: the first column numbers the rows; their names are taken from column %r", path, header[1])
        return 2
    return 1


def _fields(line: str, separator: str) -> list[str]:
    if separator == " ":
        return next(csv.reader([" ".join(line.split())], delimiter=" "), [])
    return [field.strip() for field in next(csv.reader([line], delimiter=separator), [])]


def _is_number(text: str, decimal: str = ".") -> bool:
    try:
        float(text.replace(decimal, ".") if decimal != "." else text)
    except ValueError:
        return text == ""
    return True


def _separator(path: Path, lines: list[str], usual: str) -> tuple[str, str]:
    """Find what separates the columns: the character that leaves most fields that are numbers."""
    best, most = ("", "."), 0
    for separator in sorted(_SEPARATORS, key=lambda separator: separator != usual):
        rows = [_fields(line, separator) for line in lines[1:]]
        if len(rows[0]) < 2:
            continue
        for decimal in (".",) if separator == "," else (".", ","):
            numbers = sum(_is_number(field, decimal) and field != "" for row in rows for field in row[1:])
            if numbers > most:
                best, most = (separator, decimal), numbers
    separator, decimal = best
    if not separator:
        raise InvalidInputError(
            f"{path}: expected columns separated by tab, comma, semicolon or blanks, the first lines are: "
            f"{_cut(lines[0])!r} and {_cut(lines[1])!r}"
        )
    commas = [field for line in lines[1:] for field in _fields(line, separator)[1:] if "," in field]
    if decimal == "," and all(re.fullmatch(r"\d{1,3}(,\d{3})+", field) for field in commas):
        raise InvalidInputError(
            f"{path}: expected plain numbers, {commas[0]!r} is a thousand or a fraction; write it without comma"
        )
    widths = [len(_fields(line, separator)) for line in lines]
    for number, width in enumerate(widths[1:], start=2):
        if width != widths[1]:
            raise InvalidInputError(
                f"{path}: expected the same number of columns in each row, row {number} has {width}, row 2 has "
                f"{widths[1]} (separated by {_SEPARATORS[separator]}): {_cut(lines[number - 1])!r}"
            )
    if widths[0] not in (widths[1], widths[1] - 1):
        raise InvalidInputError(
            f"{path}: expected a name for each column, the first line has {widths[0]} names, the rows {widths[1]} "
            f"columns (separated by {_SEPARATORS[separator]}): {_cut(lines[0])!r}"
        )
    return separator, decimal


def _cut(text: str) -> str:
    return text if len(text) < 80 else text[:77] + "..."


def _read(path: Path, layout: _Layout, genes: Collection[str]) -> ad.AnnData:
    turned = _cells_are_rows(path, layout, genes)
    kept = _value_columns(path, layout, turned)
    parts: list[sparse.csr_matrix] = []
    names: list[str] = []
    at_once = max(16, min(512, _VALUES_AT_ONCE // len(layout.header)))
    places = [layout.first + place for place in kept.tolist()]
    options: dict[str, Any] = {
        "sep": r"\s+" if layout.separator == " " else layout.separator,
        "header": None,
        "names": range(layout.first + len(layout.header) + layout.closed),
        "skiprows": layout.skipped,
        "encoding": layout.encoding,
        "decimal": layout.decimal,
        "keep_default_na": False,
        "na_filter": False,
        "skip_blank_lines": True,
        "skipinitialspace": True,
    }
    unwanted = sorted(set(options["names"]) - {layout.first - 1, *places})
    try:
        # `dtype` would make a Series of each column
        as_text = {layout.first - 1: str.strip}
        with open_text(path) as file, pd.read_csv(file, converters=as_text, chunksize=at_once, **options) as reader:
            for part in reader:
                names.extend(part[layout.first - 1])
                del part[layout.first - 1]
                values = part.drop(columns=unwanted).to_numpy() if unwanted else part.to_numpy()
                if values.dtype.kind not in "iuf":
                    raise ValueError("not all are numbers")
                parts.append(sparse.csr_matrix(values, dtype=np.float32))
    except (UnicodeDecodeError, UserError):
        raise
    except (ValueError, pd.errors.ParserError) as error:
        raise _not_a_number(path, layout, places, options, error) from error
    rows = np.array(names, dtype=object)
    counts = sparse.vstack(parts, format="csr")
    columns = np.array(layout.header, dtype=object)[kept]
    if not turned:
        genuine = np.array([not _is_no_gene(name) for name in rows])
        if not genuine.all():
            _LOGGER.warning("%s: rows that are no genes are left out: %s", path, ", ".join(rows[~genuine]))
            counts, rows = counts[np.flatnonzero(genuine)], rows[genuine]
    if are_numbers(pd.Index(columns if turned else rows)) and not genes:
        raise InvalidInputError(
            f"{path}: expected the names of the genes in the {'first line' if turned else 'first column'}, got running "
            f"numbers ({', '.join((columns if turned else rows)[:3])}, ...)"
        )
    X, cells, found = (counts, rows, columns) if turned else (counts.T.tocsr(), columns, rows)
    return ad.AnnData(X=X, obs=pd.DataFrame(index=pd.Index(cells)), var=pd.DataFrame(index=pd.Index(found)))


def _is_no_gene(name: str) -> bool:
    return bool(_TOTAL.fullmatch(normal(name)) or _COUNTED_APART.fullmatch(name))


def _is_no_cell(name: str) -> bool:
    return bool(_TOTAL.fullmatch(normal(name))) or normal(name) in _NO_CELLS


def _value_columns(path: Path, layout: _Layout, turned: bool) -> np.ndarray:
    """Which of the columns hold counts."""
    one_sample = [name for name in layout.header if normal(name) in _ONE_SAMPLE]
    if one_sample and not turned:
        raise InvalidInputError(
            f"{path}: expected a column for each cell, columns {', '.join(one_sample)} are of one sample's result "
            "(kallisto, RSEM, salmon); make one table of the counts of all cells"
        )
    out = np.array([_is_no_gene(name) if turned else _is_no_cell(name) for name in layout.header])
    if out.any():
        left = ", ".join(np.array(layout.header)[out])
        _LOGGER.warning("%s: columns that are no %s are left out: %s", path, "genes" if turned else "cells", left)
    kept = np.flatnonzero(~out)
    if not len(kept):
        raise InvalidInputError(f"{path}: expected a column for each cell, there are only {', '.join(layout.header)}")
    return kept


def _cells_are_rows(path: Path, layout: _Layout, genes: Collection[str]) -> bool:
    """Decide which way round a table is, and say so."""
    header = [name for name in layout.header if not _is_no_cell(name)]
    known = set(genes)
    rows, columns = sum(name in known for name in layout.rows), sum(name in known for name in header)
    shares = rows / len(layout.rows), columns / max(1, len(header))
    if max(shares) > 0 and max(shares) > 2 * min(shares):
        turned, why = shares[1] > shares[0], "as the genes of the other inputs say"
    else:
        columns_look = 0.0 if are_numbers(pd.Index(header)) else look_like_genes(header[:: 1 + len(header) // 2000])
        score = columns_look - look_like_genes(layout.rows)
        corner = normal(layout.corner)
        score += (corner in _CELL_CORNERS) - (corner in _GENE_CORNERS)
        turned, why = score > 0, "as their names look"
        if abs(score) < 0.3:
            turned = False
            _LOGGER.warning(
                "%s: taken as genes x cells, which its names neither say nor deny (rows like %s, columns like %s); "
                "transpose it if its rows are cells",
                *(path, ", ".join(layout.rows[:2]), ", ".join(header[:2])),
            )
    if turned:
        _LOGGER.warning(
            "%s: the rows (%s, ...) are taken as cells, the columns (%s, ...) as genes, %s",
            *(path, layout.rows[0], header[0] if header else "", why),
        )
    return turned


def _not_a_number(
    path: Path, layout: _Layout, kept: Sequence[int], options: dict[str, Any], error: Exception
) -> InvalidInputError:
    """Say where a table holds something else than a number."""
    try:
        with open_text(path) as file, pd.read_csv(file, dtype=str, chunksize=64, **options) as reader:
            for part in reader:
                name = part[layout.first - 1]
                for place in kept:
                    for row, value in zip(name, part[place], strict=True):
                        text = "" if not isinstance(value, str) else value.strip()
                        if text == "" or not _is_number(text, layout.decimal):
                            column = layout.header[place - layout.first]
                            advice = "take columns that are no cells out, and put the names into the first"
                            said = f"holds {_cut(text)!r}" if text else "holds nothing"
                            return InvalidInputError(
                                f"{path}: expected a number in each column but the first, column {column!r} {said} in "
                                f"row {row!r}; {advice if text else 'write 0 where nothing was counted'}"
                            )
    except (ValueError, pd.errors.ParserError):
        pass
    return InvalidInputError(f"{path}: expected rows of the same length with a name and numbers ({error})")
