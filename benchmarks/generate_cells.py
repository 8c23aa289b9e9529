"""Generate many realistic cells from the shipped ones: mixtures of two cells of a line, thinned to a wanted density.

    python benchmarks/generate_cells.py 20000 cells.h5ad --density 0.18

Raw counts (uint16) of the genes common to both shipped files, in two batches named like these (first column of obs:
`batch`), with the cell line as `celltype`. Memory stays bounded however many cells there are; the seed fixes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from discern.data.writers import write_blocks
from discern.datasets import lung_cell_lines
from discern.runtime.progress import track

if TYPE_CHECKING:
    from collections.abc import Iterator

_CELLS_AT_ONCE = 2048


def templates() -> dict[str, ad.AnnData]:
    """Return the shipped cells by batch, restricted to their common genes."""
    cells = {name: ad.read_h5ad(path) for name, path in lung_cell_lines().items()}
    genes = cells["dropseq"].var_names[cells["dropseq"].var_names.isin(cells["celseq2"].var_names)]
    return {name: adata[:, genes].copy() for name, adata in cells.items()}


def plan(n_cells: int, shipped: dict[str, ad.AnnData], random: np.random.Generator) -> pd.DataFrame:
    """Choose for each new cell its batch, its line and the two shipped cells that it is mixed from."""
    batch = np.sort(random.choice(list(shipped), size=n_cells))
    first = np.empty(n_cells, dtype=np.int64)
    second = np.empty(n_cells, dtype=np.int64)
    lines = np.empty(n_cells, dtype=object)
    for name, adata in shipped.items():
        line = adata.obs["celltype"].to_numpy(dtype=str)
        mine = np.flatnonzero(batch == name)
        lines[mine] = random.choice(np.unique(line), size=len(mine))
        for wanted in np.unique(line):
            cells = mine[lines[mine] == wanted]
            first[cells], second[cells] = random.choice(np.flatnonzero(line == wanted), size=(2, len(cells)))
    return pd.DataFrame(
        {"batch": pd.Categorical(batch), "celltype": pd.Categorical(lines), "first": first, "second": second}
    )


def thinned(shipped: ad.AnnData, cells: pd.DataFrame, keep: float, random: np.random.Generator) -> sparse.csr_matrix:
    """Return counts of mixed cells, of which each count is kept with probability `keep`."""
    X = shipped.X.astype(np.int32)
    mixed = (X[cells["first"].to_numpy()] + X[cells["second"].to_numpy()]).tocsr()
    mixed.data = random.binomial(mixed.data, keep).astype(np.uint16)
    mixed.eliminate_zeros()
    return mixed


def keep_for(density: float, shipped: ad.AnnData, random: np.random.Generator) -> float:
    """Find by bisection the probability that leaves the wanted share of non-zero entries."""
    cells = plan(200, {"any": shipped}, random)
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        sample = thinned(shipped, cells, middle, random)
        low, high = (middle, high) if sample.nnz < density * np.prod(sample.shape) else (low, middle)
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_cells", type=int)
    parser.add_argument("file", type=Path, help=".h5ad or .zarr")
    parser.add_argument("--density", type=float, default=0.18, help="share of non-zero entries")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    random = np.random.default_rng(arguments.seed)
    shipped = templates()
    keep = {name: keep_for(arguments.density, adata, random) for name, adata in shipped.items()}
    cells = plan(arguments.n_cells, shipped, random)

    def blocks() -> Iterator[dict[str, sparse.csr_matrix]]:
        for start in track(range(0, len(cells), _CELLS_AT_ONCE), "generating cells"):
            part = cells.iloc[start : start + _CELLS_AT_ONCE]
            yield {
                "X": sparse.vstack(
                    [
                        thinned(shipped[name], group, keep[name], random)
                        for name, group in part.groupby("batch", observed=True)
                    ],
                    format="csr",
                )
            }

    adata = ad.AnnData(
        obs=cells[["batch", "celltype"]].set_index(pd.Index([f"cell{number}" for number in range(len(cells))])),
        var=pd.DataFrame(index=shipped["dropseq"].var_names),
    )
    write_blocks(arguments.file, adata, blocks(), dtype=np.uint16)


if __name__ == "__main__":
    main()
