"""Cells a second of a training beside that of scVI: the same cells, genes and processors.

    python benchmarks/generate_cells.py 20000 cells.h5ad --density 0.09
    python benchmarks/training_speed.py cells.h5ad --scvi scvi/bin/python --results FILE.json

The preset of DISCERN against scVI with 30 latent dimensions and 2 layers (as in `other_methods.py`) and as it is
without any arguments, one after the other. Time is that of whole epochs after the first, which compiles. Both hold the
cells in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import anndata as ad
import keras
import numpy as np
from other_methods import run
from quality import PRESET, set_up
from record import record

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCVI = """
import json, sys, time
import anndata, lightning.pytorch as lightning, numpy, scvi

class Times(lightning.Callback):
    times = []
    def on_train_epoch_start(self, *_):
        self.begin = time.perf_counter()
    def on_train_epoch_end(self, *_):
        self.times.append(time.perf_counter() - self.begin)

file = numpy.load(sys.argv[1])
scvi.settings.seed = int(sys.argv[3])
cells = anndata.read_h5ad(str(file["cells"]))
scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
model = scvi.model.SCVI(cells, **json.loads(str(file["network"])))
model.train(
    max_epochs=int(file["epochs"]), accelerator="cpu", enable_progress_bar=False, train_size=1.0, callbacks=[Times()]
)
numpy.savez(sys.argv[2], seconds=Times.times)
"""
_NETWORKS = {"30 latent dimensions, 2 layers": {"n_latent": 30, "n_layers": 2}, "its defaults": {}}


class Times(keras.callbacks.Callback):
    """Take the seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Begin."""
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """End."""
        self.seconds.append(time.perf_counter() - self._begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, help="h5ad file with raw counts and obs `batch`")
    parser.add_argument("--scvi", type=Path, help="interpreter that has scvi-tools")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    arguments = parser.parse_args()
    cells = ad.read_h5ad(arguments.cells)

    def tell(name: str, seconds: list[float]) -> None:
        speed = cells.n_obs / statistics.median(seconds[1:])
        print(f"{name:40} {speed:8.0f} cells a second", flush=True)
        if arguments.results:
            record(arguments.results, {name: {"cells a second": round(speed)}})

    times = Times()
    estimator, data, _ = set_up(cells, PRESET, 0)
    estimator.training(data, [times], max_steps=arguments.epochs)
    tell("DISCERN, preset", times.seconds)
    place = np.array(str(arguments.cells.absolute()))
    for name, network in _NETWORKS.items() if arguments.scvi else ():
        given = {"cells": place, "epochs": np.array(arguments.epochs), "network": np.array(json.dumps(network))}
        made, _ = run(_SCVI, arguments.scvi, 0, **given)
        tell(f"scVI, {name}", list(made["seconds"]))


if __name__ == "__main__":
    main()
