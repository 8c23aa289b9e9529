"""Cells a second of a training beside that of scVI: the same cells, genes and processors.

    python benchmarks/generate_cells.py 20000 cells.h5ad --density 0.09
    python benchmarks/training_speed.py cells.h5ad --scvi scvi/bin/python --results FILE.json

The preset of DISCERN against scVI with 30 latent dimensions and 2 layers (as in `other_methods.py`) and as it is
without any arguments, each in a process of its own, in turn. Time is that of whole epochs after the first, which
compiles. Both hold the cells in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from record import record

_SCVI = """
import json, sys, time
import anndata, lightning.pytorch as lightning, scvi

class Times(lightning.Callback):
    times = []
    def on_train_epoch_start(self, *_):
        self.begin = time.perf_counter()
    def on_train_epoch_end(self, *_):
        self.times.append(time.perf_counter() - self.begin)

scvi.settings.seed = 0
cells = anndata.read_h5ad(sys.argv[1])
scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
model = scvi.model.SCVI(cells, **json.loads(sys.argv[4]))
model.train(
    max_epochs=int(sys.argv[3]), accelerator="cpu", enable_progress_bar=False, train_size=1.0, callbacks=[Times()]
)
json.dump({"cells": cells.n_obs, "seconds": Times.times}, open(sys.argv[2], "w"))
"""
_DISCERN = """
import json, sys, time
from pathlib import Path
import anndata, keras
from quality import PRESET, set_up

class Times(keras.callbacks.Callback):
    times = []
    def on_epoch_begin(self, epoch, logs=None):
        self.begin = time.perf_counter()
    def on_epoch_end(self, epoch, logs=None):
        self.times.append(time.perf_counter() - self.begin)

cells = anndata.read_h5ad(sys.argv[1])
estimator, data, _ = set_up(cells, PRESET, 0)
estimator.training(data, [Times()], max_steps=int(sys.argv[3]))
Path(sys.argv[2]).write_text(json.dumps({"cells": data.n_obs, "seconds": Times.times}))
"""


def cells_per_second(python: str | Path, script: str, cells: Path, epochs: int, arguments: str = "") -> float:
    """Train in an interpreter; return cells a second, median over the epochs after the first."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [python, "-c", script, cells.absolute(), found, str(epochs), arguments]
        subprocess.run(command, check=True, cwd=Path(__file__).parent)
        measured = json.loads(found.read_text())
    seconds = sorted(measured["seconds"][1:])
    return float(measured["cells"] / seconds[len(seconds) // 2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, help="h5ad file with raw counts and obs `batch`")
    parser.add_argument("--scvi", type=Path, help="interpreter that has scvi-tools")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    arguments = parser.parse_args()
    who = {"DISCERN, preset": (Path(sys.executable), _DISCERN, "")}
    if arguments.scvi:
        scvi = arguments.scvi.absolute()
        who["scVI, 30 latent dimensions, 2 layers"] = (scvi, _SCVI, json.dumps({"n_latent": 30, "n_layers": 2}))
        who["scVI, its defaults"] = (scvi, _SCVI, "{}")
    for name, (python, script, options) in who.items():
        speed = cells_per_second(python, script, arguments.cells, arguments.epochs, options)
        print(f"{name:40} {speed:8.0f} cells a second", flush=True)
        if arguments.results:
            record(arguments.results, {name: {"cells a second": round(speed)}})


if __name__ == "__main__":
    main()
