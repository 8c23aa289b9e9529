"""What record files look like, for those who write and those who stream them."""

from __future__ import annotations

import numpy as np

CELLS_PER_SHARD = 4096


def gene_dtype(n_genes: int) -> np.dtype:
    """Return the type of the numbers of genes in a record."""
    return np.dtype("<u2" if n_genes <= 2**16 else "<i4")
