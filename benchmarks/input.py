"""Measure whether the training waits for its input, and how well streamed cells are shuffled.

    python benchmarks/scale.py 20000 --density 0.1 --folder scale
    python benchmarks/input.py scale/experiments/cells-20000-0.1

Trains the default network on the record files of a processed experiment (streamed, X left on disk) and on one batch
held in memory, in turn, and prints the median seconds of a step and their ratio. Then the shuffling: the spread of the
share of one batch of cells among mini-batches, relative to that of a perfect shuffle (1 is perfect), for the stream and
for what the original program does, a buffer of 10,000 cells over cells in the order of the file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from record import record

from discern import DISCERN, DISCERNData
from discern.config.reading import load_parameters
from discern.data.chunks import read_cells

_BUFFER = 10_000


class _Times(keras.callbacks.Callback):
    """Seconds between the ends of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.ends.append(time.perf_counter())

    def median(self) -> float:
        return float(np.median(np.diff(self.ends[1:])))


def buffered(labels: np.ndarray, buffer: int, seed: int = 0) -> np.ndarray:
    """Return labels in the order in which `tf.data`'s shuffle buffer gives them out."""
    generator = np.random.default_rng(seed)
    held, given = list(labels[:buffer]), []
    for label in labels[buffer:]:
        number = generator.integers(len(held))
        given.append(held[number])
        held[number] = label
    return np.array([*given, *generator.permutation(held)])


def spread(labels: np.ndarray, batch_size: int) -> float:
    """Return the standard deviation of the share of label 1 among mini-batches, relative to that of random ones."""
    batches = labels[: len(labels) // batch_size * batch_size].reshape(-1, batch_size).mean(1)
    share = labels.mean()
    return float(batches.std() / np.sqrt(share * (1 - share) / batch_size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="folder of a processed experiment with TF_records/")
    parser.add_argument("--steps", type=int, default=12, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--xla", action="store_true", help="compile the step, as the published parameters ask for")
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    arguments = parser.parse_args()

    (experiment,) = load_parameters(arguments.experiment / "parameters.json").experiments.values()
    file = arguments.experiment / "processed_data" / "concatenated_data.h5ad"
    data = DISCERNData(read_cells(file, budget=0), experiment.training.batch_size, cachefile=arguments.experiment)
    training = experiment.training.model_copy(update={"XLA": arguments.xla})
    model = DISCERN.from_experiment(experiment.model_copy(update={"training": training}))
    model.prepare(data)
    streamed, _ = data.tfdata
    held = tf.data.Dataset.from_tensors(next(iter(streamed))).cache().repeat()
    seconds: dict[str, list[float]] = {"held": [], "streamed": []}
    for round_ in range(arguments.rounds + 1):
        for name, dataset in (("held", held), ("streamed", streamed.repeat())):
            times = _Times()
            model.wae_model.fit(dataset.take(arguments.steps), callbacks=[times], verbose=0, shuffle=False)
            if round_:  # the first one compiles
                seconds[name].append(times.median())
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    order = np.concatenate([inputs["batch_input_enc"].numpy()[:, 1] for inputs, _ in streamed])
    in_file = data.obs["batch"].cat.codes.to_numpy()[(data.obs["split"] == "train").to_numpy()]
    rows = {
        "step with a batch held in memory": {"seconds": median["held"]},
        "step with streamed batches": {"seconds": median["streamed"], "ratio": median["streamed"] / median["held"]},
        "shuffling, streamed": {"spread, 1 is perfect": spread(order, data.batch_size)},
        f"shuffling, buffer of {_BUFFER:,} cells": {
            "spread, 1 is perfect": spread(buffered(in_file, _BUFFER), data.batch_size)
        },
    }
    for name, row in rows.items():
        print(f"{name}:", *(f"{figure} {value:.3g}" for figure, value in row.items()))
    if arguments.results:
        record(arguments.results, rows)


if __name__ == "__main__":
    main()
