"""Whether a figure that needs no labels and no truth says when to stop, and which recipe is better: docs/quality.md.

    python benchmarks/stopping.py --data CELLS --folder FOLDER --seeds 0 --results benchmarks/results/stopping.json

On the pairs of `tissues.py`, for some recipes and at some epochs of each training, two figures are taken that every
user could take: *projection*, of test cells of the reference, thinned to the depth of the source, reconstructed as what
they are: the correlation with what was measured of them, cell by cell, the mean of the reference's training cells taken
off; and *mixing*, how many of a cell's nearest codes are of the other batch. Beside them the true ones of `tissues.py`.
FOLDER gets one JSON file for each pair, recipe and seed; what is there is not computed again. The table has rank
correlations with the true figures, mean over pairs, of these two, their product and, for epochs, the number of epochs.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
from quality import ABLATION, PRESET, log_normalise, merged, row, set_up, thin
from record import record
from scipy.stats import spearmanr
from tissues import EXPRESSION, IDENTITY, Estimate, Pair, figures, file_of, pairs

from discern.data.annotation import np_one_hot
from discern.metrics.latent_space import other_batch_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from discern.data.processed import DISCERNData
    from discern.model.estimator import DISCERN

EPOCHS = (10, 20, 30, 45, 60, 75)
RECIPES = ["preset", "no MMD between batches", "MMD between batches, weight 4000", "layers 128, 64, 32", "dropout 0.3"]
FREE = ("projection", "mixing", "both")

#: Each epoch has the weights of its last step, so that the end of the training is not judged by an average.
_SHARED: dict[str, Any] = {"input_ds": {"split": {"test_cells": 0.2}}, "training": {"average_weights": None}}
_LEAST_SHARE, _MOST_SHARE = 0.05, 0.5


class Watch(keras.callbacks.Callback):
    """Take all figures at some epochs.

    Args:
        estimator: What is trained.
        data: On what.
        pair: The cells, and the truth.
        seed: Of the thinning.
    """

    def __init__(self, estimator: DISCERN, data: DISCERNData, pair: Pair, seed: int) -> None:
        super().__init__()
        self._estimator, self._data, self._pair = estimator, data, pair
        self.found: dict[int, dict[str, float]] = {}
        counts = pair.cells[list(data.obs_names)]
        is_reference = (data.obs["batch"] == pair.reference).to_numpy()
        totals = np.asarray(counts.X.sum(axis=1)).ravel()
        share = np.clip(np.median(totals[~is_reference]) / np.median(totals[is_reference]), _LEAST_SHARE, _MOST_SHARE)
        held_out = counts[is_reference & (data.obs["split"] == "test").to_numpy()]
        thinned = thin(held_out, share, pair.reference, np.random.default_rng(seed))
        trained_on = counts[is_reference & (data.obs["split"] == "train").to_numpy()]
        self._usual = log_normalise(trained_on.X).mean(axis=0)
        self._measured, self._thinned = log_normalise(held_out.X) - self._usual, log_normalise(thinned.X)
        own = (np.array(data.obs["batch"].cat.categories) == pair.reference).astype(np.float32)
        self._labels = np.repeat(own[np.newaxis], len(self._thinned), axis=0)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Take them, if it is one of the epochs."""
        if epoch + 1 in EPOCHS:
            self.found[epoch + 1] = self._of_user() | self._true()

    def _of_user(self) -> dict[str, float]:
        model = self._estimator
        codes, _ = model.generate_latent_codes(self._thinned, self._labels, 512)
        estimates = model.generate_cells_from_latent(codes, self._labels, 512)[0] - self._usual
        projection = np.mean([np.corrcoef(*both)[0, 1] for both in zip(estimates, self._measured, strict=True)])
        batch = self._data.obs["batch"]
        every, _ = model.generate_latent_codes(self._data.X, np_one_hot(batch.array), 512)
        mixing = other_batch_share(every, batch.to_numpy(dtype=str))["share"]
        return {"projection": float(projection), "mixing": mixing, "both": float(projection * mixing)}

    def _true(self) -> dict[str, float]:
        result = self._estimator.reconstruct(self._data, "batch", self._pair.reference)[self._pair.cells.obs_names]
        values = np.asarray(result.layers["estimated_counts"])
        found = figures(self._pair, Estimate(values[self._pair.is_source], values, result.obsm["X_DISCERN"]))
        return {
            kind: float(np.mean([found[name] for name in names]))
            for kind, names in (("expression", EXPRESSION), ("identity", IDENTITY))
        }


def watch(pair: Pair, changes: Mapping[str, Any], seed: int) -> dict[int, dict[str, float]]:
    """Train a recipe on a pair; return its figures by epoch."""
    estimator, data, _ = set_up(pair.cells, merged(merged(PRESET, dict(changes)), _SHARED), seed)
    callback = Watch(estimator, data, pair, seed)
    estimator.training(data, [callback], max_steps=max(EPOCHS))
    return callback.found


def table(folder: Path) -> dict[str, dict[str, float]]:
    """Return rank correlations with the true figures, and what is gained by choosing by each figure."""
    rows = []
    for path in sorted(folder.glob("*/*.json")):
        kept = json.loads(path.read_text())
        of_epochs = kept.pop("figures")
        rows += [kept | {"epochs": int(epoch)} | found for epoch, found in of_epochs.items()]
    everything = pd.DataFrame(rows)
    place = ["pair", "seed"]
    of_preset = dict(list(everything[everything["recipe"] == "preset"].groupby(place)))
    at_end = dict(list(everything[everything["epochs"] == max(EPOCHS)].groupby(place)))
    as_is = {key: one[one["recipe"] == "preset"].iloc[0] for key, one in at_end.items()}
    result = {}
    for title, groups, chosen_by in (("epochs", of_preset, (*FREE, "epochs")), ("recipes", at_end, FREE)):
        for figure in chosen_by:
            shown: dict[str, float] = {"trainings": len(groups)}
            for truth in ("expression", "identity"):
                ranks = [spearmanr(one[figure], one[truth]).statistic for one in groups.values()]
                gains = [one[truth].iloc[one[figure].argmax()] - as_is[key][truth] for key, one in groups.items()]
                shown[f"rank correlation, {truth}"] = round(float(np.mean(ranks)), 3)
                shown[f"chosen by it, {truth}"] = round(float(np.mean(gains)), 4)
            result[f"{title}: {figure}"] = shown
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the cells; without it, only the table of what is there")
    parser.add_argument("--folder", type=Path, required=True, help="for what was found")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", nargs="+", default=["pancreas", "blood, 3'", "lines"], help="parts of their names")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=list(ABLATION))
    parser.add_argument("--results", type=Path, help="JSON file to add the table to")
    arguments = parser.parse_args()
    for seed in arguments.seeds if arguments.data else ():
        for name, make in pairs(arguments.data, seed).items():
            if not any(part in name for part in arguments.pairs):
                continue
            for recipe in arguments.recipes:
                path = file_of(arguments.folder, name, recipe.replace(" ", "-").replace(",", ""), seed)
                if path.exists():
                    continue
                found = watch(make(), ABLATION[recipe], seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                kept = {"pair": name, "recipe": recipe, "seed": seed, "figures": found}
                path.write_text(json.dumps(kept, indent=1) + "\n")
                for epoch, one in found.items():
                    row(f"{name}: {recipe}, seed {seed}, epoch {epoch}", one)
    rows = table(arguments.folder)
    for title, shown in rows.items():
        row(title, shown)
    if arguments.results:
        record(arguments.results, rows)


if __name__ == "__main__":
    main()
