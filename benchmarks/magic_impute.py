"""MAGIC on the test of docs/quality.md: Drop-seq cells imputed, compared with held-out CEL-seq2 cells.

MAGIC (van Dijk et al., Cell 174:716, 2018) with its default parameters, on log-normalised values; cells, split and
figures are those of benchmarks/quality.py. The release of 2021 does not run with numpy 2 and pandas 2.1, so it gets an
environment of its own:

    python -m venv magic && magic/bin/pip install magic-impute==3.0.0 "numpy<2"
    python benchmarks/magic_impute.py magic/bin/python --seeds 0 1 2

MAGIC knows nothing of batches: it fills in what neighbours show. "both batches" lets it take neighbours from the
CEL-seq2 cells that are not held out, "Drop-seq alone" does not.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from quality import SOURCE, average, log_normalise, main_pair, row

from discern.agreement import GroupStatistics, agreement

if TYPE_CHECKING:
    import numpy.typing as npt

_IMPUTE = """
import sys, magic, numpy
values = numpy.load(sys.argv[1])
numpy.save(sys.argv[2], magic.MAGIC(random_state=int(sys.argv[3]), verbose=0).fit_transform(values))
"""


def impute(values: npt.NDArray, python: Path, seed: int) -> tuple[npt.NDArray, float]:
    """Return log-normalised values, cells x genes, imputed by MAGIC, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.npy"), Path(folder, "after.npy")
        np.save(before, values)
        start = time.perf_counter()
        command = [python.absolute(), "-c", _IMPUTE, before, after, str(seed)]
        subprocess.run(command, check=True, cwd=folder)
        return np.load(after), time.perf_counter() - start


def main(python: Path, seeds: list[int]) -> None:
    """Print the figures of MAGIC on both batches, and on Drop-seq alone."""
    for name, alone in (("MAGIC, both batches", False), ("MAGIC, Drop-seq alone", True)):
        rows = []
        for seed in seeds:
            cells, truth = main_pair(seed)
            if alone:
                cells = cells[cells.obs["batch"] == SOURCE]
            values, seconds = impute(log_normalise(cells.X), python, seed)
            source = (cells.obs["batch"] == SOURCE).to_numpy()
            figures = agreement(GroupStatistics.of(values[source], cells.obs["celltype"].to_numpy()[source]), truth)
            row(f"{name}, seed {seed}", figures, seconds=seconds)
            rows.append(figures)
        average(name, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="interpreter that has magic-impute")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    main(arguments.python, arguments.seeds)
