"""`python -m discern.draw CELLS.h5ad FOLDER PREFIX`: draw UMAPs in a process of its own, giving way to others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anndata

from discern.figures import draw_umaps

if __name__ == "__main__":
    os.nice(10)
    draw_umaps(anndata.read_h5ad(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
