"""The two-sample statistic against plain numpy: `python benchmarks/mmd.py [CELLS] [DIMENSIONS] [--results FILE]`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from record import record

from discern.metrics.two_sample import SCALES, mmd_loss


def plain_mmd_loss(random_cells: np.ndarray, valid_cells: np.ndarray, sigma: float) -> float:
    def distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return (rows**2).sum(1)[:, None] + (columns**2).sum(1) - 2 * rows @ columns.T

    n, m = len(random_cells), len(valid_cells)
    within_n, within_m = distances(random_cells, random_cells), distances(valid_cells, valid_cells)
    between = distances(random_cells, valid_cells)
    values = []
    for scale in SCALES:
        gamma = 1 / (2 * scale * sigma)
        first = np.exp(-gamma * within_n)
        second = np.exp(-gamma * within_m)
        values.append(
            (first.sum() - np.trace(first)) / (n * (n - 1))
            + (second.sum() - np.trace(second)) / (m * (m - 1))
            - 2 * np.exp(-gamma * between).mean()
        )
    return max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=int, nargs="?", default=5000)
    parser.add_argument("dimensions", type=int, nargs="?", default=32)
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    arguments = parser.parse_args()
    cells, dimensions = arguments.cells, arguments.dimensions
    rng = np.random.default_rng(0)
    random_cells = rng.normal(size=(cells, dimensions)).astype(np.float32)
    valid_cells = rng.normal(0.1, 1, size=(cells, dimensions)).astype(np.float32)
    print(f"{cells} x {cells} cells, {dimensions} dimensions; best of three")
    seconds, values = {}, {}
    for name, function in {"plain numpy": plain_mmd_loss, "discern": mmd_loss}.items():
        seconds[name] = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            values[name] = function(random_cells, valid_cells, float(dimensions))
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
        print(f"{name:12} {seconds[name]:8.3f} s   mmd_loss = {values[name]:.9f}")
    row = {
        "seconds": seconds["discern"],
        "seconds of plain numpy": seconds["plain numpy"],
        "ratio": seconds["plain numpy"] / seconds["discern"],
        "relative difference": abs(values["plain numpy"] / values["discern"] - 1),
    }
    print(f"ratio        {row['ratio']:8.1f}")
    print(f"difference   {row['relative difference']:8.1e} (relative)")
    if arguments.results:
        record(arguments.results, {f"`mmd_loss` of {cells:,} x {cells:,} cells, {dimensions} dimensions": row})


if __name__ == "__main__":
    main()
