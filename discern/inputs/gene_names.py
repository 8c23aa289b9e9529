"""Which columns of a matrix are genes, and by which name each is known in every file."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from discern.data.chunks import canonical
from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LOGGER = logging.getLogger(__name__)


SYMBOL_COLUMNS = (
    *(
        "gene",
        "gene_symbols",
        "gene_symbol",
        "symbols",
        "symbol",
        "gene_names",
        "gene_name",
        "genename",
        "feature_name",
    ),
    *("feature_names", "hgnc_symbol", "gene_short_name", "var_names", "features", "genes", "names", "name"),
)
"""Names under which programs keep the symbols of genes, as `normal` writes them."""

ID_COLUMNS = (
    *("gene_ids", "gene_id", "geneid", "ensembl_ids", "ensembl_id", "ensembl_gene_id", "ensemblid", "ensembl"),
    *("accession", "feature_ids", "feature_id", "ids", "id"),
)
"""Names under which programs keep the ids of genes, as `normal` writes them."""

_KIND_COLUMNS = ("feature_types", "feature_type", "featuretype", "modality")
_GENE_KINDS = {"gene expression", "gene", "genes", "gex", "rna", "mrna", "expression", "transcript", "transcripts"}
_OTHER_KINDS = {
    *("antibody capture", "antibody", "antibodies", "adt", "adts", "protein", "proteins", "prot", "hto", "htos"),
    *("peaks", "peak", "atac", "chromatin accessibility", "crispr guide capture", "crispr", "guide", "custom"),
    *("multiplexing capture", "antigen capture", "cell multiplexing oligo", "cmo", "hashtag", "vdj"),
}
_BYTES = re.compile(r"b'.*'")
_SURELY = 0.5
_SOME = 20
_MADE_UNIQUE = re.compile(r"(.+)[-.]\d+")
_DATE = re.compile(
    r"\d{1,2}-(Mar|Sep|Sept|Dec|Oct|Feb|Apr|Nov)|(Mar|Sep|Sept|Dec|Oct|Feb|Apr|Nov)-\d{1,2}", re.IGNORECASE
)

_GENE_NAME = re.compile(
    r"ENS[A-Z]{0,6}[GT]\d{6,}(\.\d+)?(_PAR_Y)?|FBgn\d{4,}|WBGene\d{4,}|AT[1-5CM]G\d{5}|[NX][MR]_\d+(\.\d+)?|LOC\d{3,}|"
    r"gene[-_. ]?\d+|MT-\w+|RP[LS]\d+[A-Z]?|RPLP\d|HLA[-.]\w+|KRT\d+|HIST\d\w+|IG[HKL][VDJC]\w*|TR[ABGD][VDJC]\w*|"
    r"HOX[ABCD]\d+|COL\d+A\d+|IL\d+R?\w*|CCL\d+|CXC[LR]\d+|CD\d+[A-Z]?\d?|ERCC-\d+|ZNF\d+|SLC\d+A\d+|"
    r"ACTB|GAPDH|MALAT1|B2M|TMSB4X|EEF1A1|FT[LH]1?|XIST|LYZ|MS4A1|GNLY|NKG7|INS|GCG|SST|PPY|ALB|TP53|MYC|EPCAM|PTPRC|VIM|NEAT1|UBC|"
    r"TMSB10|TPT1|FAU|JUN|FOS|PPIA|TUBA1A|TUBB|ACTG1|S100A\d+|APOE|LST1|PPBP|PF4|GFAP|SOX\d+|PAX\d+|GATA\d",
    re.IGNORECASE,
)
_CELL_NAME = re.compile(
    r"(.*[_.:#|-])?[ACGTN]{8,}([-_.]\w+)*|.*[_.-][A-P]\d{1,2}|cell[-_. ]?\d+.*|[SED]RR\d+\w*|GSM\d+.*|"
    r"(well|barcode|bc|sample|plate)[-_. ]?\d+.*",
    re.IGNORECASE,
)
_WELL = re.compile(r"[A-P]0?([1-9]|1\d|2[0-4])", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")


def normal(name: object) -> str:
    """Return a column's name without the differences that programs make.

    Example:
        >>> normal("Gene Name"), normal("gene.name")
        ('gene_name', 'gene_name')
    """
    return re.sub(r"[\s.\-]+", "_", str(name).strip().lower())


def only_genes(adata: ad.AnnData, source: str) -> ad.AnnData:
    """Return the counts of the genes alone, as numbers that are fit for use, each gene under a name of its own.

    Features of another kind than genes (`var["feature_types"]`: antibodies, peaks, ...) are left out. Of genes with
    the same name the one with the first id (`var["gene_ids"]` and the like) keeps it, the others are called by their
    ids, so that they have the same name in every file; without ids all are left out, as are genes without a name.

    Args:
        adata: Raw counts, (n_cells, n_genes), X of any kind that AnnData holds. Not modified.
        source: How messages call it.

    Returns:
        The cells with X as CSR or, where it was dask, dask array of CSR blocks; X, obs and var alone, and `uns`.

    Raises:
        InvalidInputError: If no feature is a gene, X holds no numbers, or cells and genes look exchanged.

    Example:
        >>> var = pd.DataFrame({"gene_ids": ["E1", "E2", "E3"]}, index=["A", "B", "A"])
        >>> only_genes(ad.AnnData(np.ones((1, 3)), var=var), "cells").var_names.to_list()
        ['A', 'B', 'E3']
    """
    if not adata.n_vars:
        raise InvalidInputError(f"{source}: expected genes, there are none")
    if adata.isbacked:
        adata = adata.to_memory()
    var = named_by_column(adata.var, source)
    if var is not adata.var:
        adata = ad.AnnData(X=adata.X, obs=adata.obs, var=var, uns=adata.uns)
    _check_orientation(adata, source)
    kept = _genes(adata.var, source)
    ids = _ids(adata.var)
    names = _names(adata.var_names, source)
    named = _unique(names[kept], None if ids is None else ids[kept], source)
    kept[kept] = named != ""
    if not kept.any():
        raise InvalidInputError(f"{source}: expected genes, none is left with a name of its own")
    X = canonical(adata.X, source)
    if not kept.all():
        X = X[:, np.flatnonzero(kept)]
    elif X is adata.X and (adata.var_names == names).all() and (names == named).all():
        return adata
    var = adata.var[kept].set_axis(pd.Index(named[named != ""]), axis=0)
    return ad.AnnData(X=X, obs=adata.obs, var=var, uns=adata.uns)


def _check_orientation(adata: ad.AnnData, source: str) -> None:
    """Raise InvalidInputError if the cells have names that only genes have, and the genes have none."""
    cells, genes = (
        [str(name) for name in names[:: 1 + len(names) // 2000]] for names in (adata.obs_names, adata.var_names)
    )
    if look_like_genes(cells) > _SURELY and look_like_genes(genes) <= 0:
        raise InvalidInputError(
            f"{source}: expected cells x genes, cells and genes are exchanged, as their names look (cells like "
            f"{adata.obs_names[0]!r}, genes like {adata.var_names[0]!r}): save adata.T; if they are right, rename the "
            "cells"
        )


def are_numbers(names: pd.Index) -> bool:
    """Return whether names are nothing but the places of the genes: "0", "1", ... or "1", "2", ..., R's "V1", "V2", ...

    Example:
        >>> are_numbers(pd.Index(["0", "1", "2"])), are_numbers(pd.Index(["V1", "V2"]))
        (True, True)
        >>> are_numbers(pd.Index(["7157", "672"]))
        False
    """
    if not len(names) or str(names[0]) not in ("0", "1", "V1", "X1"):
        return False
    letter, first = str(names[0])[:-1], int(str(names[0])[-1])
    return list(map(str, names)) == [f"{letter}{number}" for number in range(first, first + len(names))]


def check_names(inputs: Mapping[str, ad.AnnData]) -> None:
    """Raise InvalidInputError if genes of several inputs would be matched by their place, or one input is transposed.

    Args:
        inputs: Cells by path or name.
    """
    if len(inputs) < 2:
        return
    for path, adata in inputs.items():
        others = {name: other.var_names for name, other in inputs.items() if name != path}
        foreign = not any(adata.var_names.isin(names).any() for names in others.values())
        for other in (
            name for name, names in others.items() if foreign and adata.obs_names.isin(names).mean() > _SURELY
        ):
            raise InvalidInputError(
                f"{path}: expected cells x genes, its cells have the names of the genes of {other} (like "
                f"{adata.obs_names[0]!r}), its genes have not (like {adata.var_names[0]!r}): cells and genes are "
                "exchanged in one of the two; save adata.T of that one"
            )
        if are_numbers(adata.var_names) or (len(adata.var_names) >= _SOME and _counts_only(adata.var_names)):
            raise InvalidInputError(
                f"{path}: expected names of genes, got running numbers ({', '.join(adata.var_names[:3])}, ...), by "
                "which genes of different files cannot be matched; put the names of the genes into var_names and save "
                "it again"
            )


def column_of(frame: pd.DataFrame, wanted: Iterable[str]) -> str | None:
    """Return the first of the wanted columns that is there, whatever its case."""
    known = {normal(column): str(column) for column in reversed(frame.columns)}
    return next((known[name] for name in wanted if name in known), None)


def named_by_column(var: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return var under the names in one of its columns, if its index counts the genes only.

    Args:
        var: One row for each gene.
        source: How messages call it.
    """
    if not _counts_only(var.index):
        return var
    column = column_of(var, (*SYMBOL_COLUMNS, *ID_COLUMNS, "index", "_index"))
    if column is None:
        return var
    names = var[column].astype(object).where(var[column].notna(), "").map(str)
    if _counts_only(pd.Index(names)) or (names == "").all():
        return var
    _LOGGER.warning(
        "%s: the genes are numbered (%s, ...); their names are taken from var[%r] (%s, ...)",
        *(source, var.index[0], column, names.iloc[0]),
    )
    return var.set_axis(pd.Index(names), axis=0)


def look_like_genes(names: Sequence[str]) -> float:
    """Return how far names look like those of genes: 1 if all do, -1 if all look like those of cells.

    Example:
        >>> look_like_genes(["ENSG00000000003", "GAPDH"]), look_like_genes(["AAACCTGAGAAACCAT-1", "A1", "B1", "17"])
        (1.0, -1.0)
    """
    genes = cells = 0
    rows_of_wells = {name[0].upper() for name in names if _WELL.fullmatch(name)}
    for name in names:
        if _NUMBER.fullmatch(name):
            cells += 1
        elif _GENE_NAME.fullmatch(name):
            genes += 1
        elif _CELL_NAME.fullmatch(name) or (len(rows_of_wells) > 1 and _WELL.fullmatch(name)):
            cells += 1
    known = genes + cells
    # A tenth of names that are known is enough: most genes have none that only a gene can have.
    return (genes - cells) / known * min(1.0, 10 * known / len(names)) if known else 0.0


def _counts_only(names: pd.Index) -> bool:
    """Whether names are places in this matrix, or in a larger one of which some genes are left."""
    text = names.astype(str)
    if are_numbers(text):
        return True
    if not len(text) or not all(name.isdecimal() and len(name) < 7 for name in text):
        return False
    numbers = text.astype(np.int64).to_numpy()
    return bool(numbers[0] < 50 and numbers[-1] < 10 * len(numbers) and (np.diff(numbers) > 0).all())


def _genes(var: pd.DataFrame, source: str) -> np.ndarray:
    column = column_of(var, _KIND_COLUMNS)
    if column is None:
        return np.ones(len(var), dtype=bool)
    values = var[column].astype(object)
    kinds = values.where(values.notna(), "").map(lambda kind: str(kind).strip().lower())
    genes = kinds.isin(_GENE_KINDS)
    others = ~genes & (kinds != "") if genes.any() else kinds.isin(_OTHER_KINDS)
    if others.all():
        raise InvalidInputError(
            f"{source}: expected genes, var[{column!r}] says that all features are {_listed(values)}; give the file "
            "with the gene expression"
        )
    if others.any():
        _LOGGER.warning(
            "%s: %d of %d features are left out, as they are no genes: %s",
            *(source, others.sum(), len(others), _listed(values[others.to_numpy()])),
        )
    return ~others.to_numpy()


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{kind} ({count})" for kind, count in values.astype(str).value_counts().items())


def _ids(var: pd.DataFrame) -> np.ndarray | None:
    column = column_of(var, ID_COLUMNS)
    if column is None:
        return None
    values = var[column].astype(object)
    return values.where(values.notna(), "").map(lambda name: str(name).strip()).to_numpy(dtype=object)


def _names(index: pd.Index, source: str) -> np.ndarray:
    names = np.array([str(name).strip() for name in index], dtype=object)
    if len(names) and all(_BYTES.fullmatch(name) for name in names):
        names = np.array([name[2:-1] for name in names], dtype=object)
    dates = [name for name in names if _DATE.fullmatch(name)]
    if dates:
        _LOGGER.warning(
            "%s: %d names of genes look like dates that a spreadsheet made of them, e.g. %s (MARCH1, SEPT2, ...); "
            "they match no other file",
            *(source, len(dates), dates[0]),
        )
    return names


def _unique(names: np.ndarray, ids: np.ndarray | None, source: str) -> np.ndarray:
    """Give each gene a name that no other has, "" to those that are left out."""
    index = pd.Index(names, dtype=object)
    unclear = index.duplicated(keep=False) | (names == "")
    symbols = names
    if ids is not None:
        symbols = _before_numbering(names, ids)
        unclear |= pd.Index(symbols, dtype=object).duplicated(keep=False)
    if not unclear.any():
        return names
    named = np.where(unclear, "", names)
    if ids is not None:
        good = (ids != "") & ~pd.Index(ids, dtype=object).duplicated(keep=False) & ~np.isin(ids, named[named != ""])
        taken: set[str] = {""}
        for place in sorted(np.flatnonzero(unclear & good), key=lambda place: ids[place]):
            named[place] = ids[place] if symbols[place] in taken else symbols[place]
            taken.add(symbols[place])
        told = unclear & good & (symbols != "")
        if told.any():
            example = symbols[told][0]
            called = ", ".join(
                f"{name} ({of})" for name, of in zip(named, ids, strict=True) if of in ids[symbols == example]
            )
            _LOGGER.info(
                "%s: %d gene names occur more than once; the gene with the first id keeps it, the others are called by "
                "their ids, e.g. %s",
                *(source, len(set(symbols[told])), called),
            )
    dropped, nameless = (named == "") & (names != ""), (named == "") & (names == "")
    if dropped.any():
        lost = list(dict.fromkeys(names[dropped]))
        _LOGGER.warning(
            "%s: %d gene names occur more than once and no id tells them apart, e.g. %s; these %d genes are left out",
            *(source, len(lost), ", ".join(lost[:3]), dropped.sum()),
        )
    if nameless.any():
        _LOGGER.warning("%s: %d genes without a name are left out", source, nameless.sum())
    return named


def _before_numbering(names: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return names without the numbers that were appended to those that were equal: of DUP and DUP-1, of other ids."""
    places = {name: place for place, name in enumerate(names)}
    symbols = names.copy()
    for place, name in enumerate(names):
        parts = _MADE_UNIQUE.fullmatch(name) if name[-1:].isdigit() else None
        base = places.get(parts[1]) if parts else None
        if base is not None and ids[base] and ids[place] and ids[base] != ids[place] and name != ids[place]:
            symbols[place] = names[base]
    return symbols
