"""`python -m discern.plots._worker CELLS.h5ad FOLDER PREFIX`: draw UMAPs in a process of its own, giving way to others.

The names of the obs columns and of the representations in obsm are quoted as in URLs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import unquote

import anndata

from discern.plots.figures import draw_umaps
from discern.runtime.processes import die_with_parent

if __name__ == "__main__":
    # umap would import TensorFlow, for a part of it that is not used here: half a gigabyte beside the training.
    sys.modules["tensorflow"] = None  # type: ignore[assignment]
    os.nice(10)
    die_with_parent()
    quoted = anndata.read_h5ad(sys.argv[1])
    obsm = {unquote(title): values for title, values in quoted.obsm.items()}
    cells = anndata.AnnData(obs=quoted.obs.rename(columns=unquote), obsm=obsm)
    draw_umaps(cells, Path(sys.argv[2]), sys.argv[3])
