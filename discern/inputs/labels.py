"""Which obs column holds the cell types, and how genes are called in words. Loads no TensorFlow."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from discern.errors import UnknownNameError, nearest
from discern.inputs.gene_names import ID_COLUMNS, SYMBOL_COLUMNS, column_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import pandas as pd


MOST_TYPES = 200
"""A column with more values holds no cell types."""

_USUAL = (
    *("celltype", "celltypes", "cellontologyclass", "authorcelltype", "celltypename", "celltypelabel"),
    *("celltypeannotation", "cellannotation", "celllabel", "celllabels", "predictedcelltype", "annotation"),
    *("annotations", "cellidentity", "cellline", "label", "labels", "clusternames", "clustername", "cluster"),
    *("clusters", "seuratclusters", "leiden", "louvain"),
)


def label_column(obs: pd.DataFrame) -> str | None:
    """Return the obs column that holds the cell types, by the names that it usually has.

    Args:
        obs: The cells' annotation.

    Returns:
        The first of `celltype`, `cell_type`, `cell_ontology_class`, `label`, `cluster` and the like (whatever its case
        and separators) with 2 to 200 values; None if there is none.

    Example:
        >>> import pandas as pd
        >>> label_column(pd.DataFrame({"label": ["1", "2"], "CellType": ["B cell", "T cell"]}))
        'CellType'
        >>> label_column(pd.DataFrame({"cell_type": ["unknown", "unknown"]})) is None
        True
    """
    known: dict[str, list[str]] = {}
    for column in obs:
        known.setdefault(re.sub(r"[\s._-]+", "", str(column)).lower(), []).append(str(column))
    columns = (column for name in _USUAL for column in known.get(name, ()))
    return next((column for column in columns if 2 <= obs[column].nunique() <= MOST_TYPES), None)


def gene_symbols(var: pd.DataFrame) -> npt.NDArray[np.object_]:
    """Return the symbol of each gene: that of a column of var such as `gene_symbols`, else the gene's name.

    Args:
        var: One row for each gene.

    Example:
        >>> import pandas as pd
        >>> gene_symbols(pd.DataFrame({"gene_symbols": ["EGFR", None]}, index=["ENSG1", "ENSG2"])).tolist()
        ['EGFR', 'ENSG2']
    """
    names = var.index.astype(str).to_numpy(dtype=object)
    column = column_of(var, SYMBOL_COLUMNS)
    if column is None:
        return names
    texts = var[column].astype(object).where(var[column].notna(), "").map(lambda text: str(text).strip())
    return np.where(texts.to_numpy() == "", names, texts.to_numpy(dtype=object))


def find_genes(wanted: Sequence[str], var: pd.DataFrame) -> list[str]:
    """Return the names in `var` of genes that are given by name, symbol or id.

    Args:
        wanted: Names, symbols or ids, in any case.
        var: One row for each gene.

    Raises:
        UnknownNameError: If there is no such gene; the message has the nearest name.

    Example:
        >>> import pandas as pd
        >>> var = pd.DataFrame({"gene_symbols": ["EGFR", "KRT18"]}, index=["ENSG1", "ENSG2"])
        >>> find_genes(["krt18", "ENSG1"], var)
        ['ENSG2', 'ENSG1']
        >>> find_genes(["EGRF"], var)
        Traceback (most recent call last):
        ...
        discern.errors.UnknownNameError: there is no gene 'EGRF' among the 2 of the experiment (did you mean 'EGFR'?)
    """
    names = var.index.astype(str).to_numpy(dtype=object)
    kinds = [names, gene_symbols(var)]
    if (ids := column_of(var, ID_COLUMNS)) is not None:
        kinds.append(var[ids].astype(str).to_numpy(dtype=object))
    exact: dict[str, str] = {}
    folded: dict[str, str] = {}
    for kind in kinds:
        for text, name in zip(kind, names, strict=True):
            exact.setdefault(text, name)
            folded.setdefault(text.casefold(), name)
    found = []
    for gene in wanted:
        name = exact.get(gene, folded.get(gene.casefold()))
        if name is None:
            raise UnknownNameError(
                f"there is no gene {gene!r} among the {len(var):,} of the experiment{nearest(gene, exact)}"
            )
        found.append(name)
    return list(dict.fromkeys(found))
