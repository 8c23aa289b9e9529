"""How good reconstructions are, measured on real cells that training never saw: every figure of docs/quality.md.

The cells are the shipped ones: three human lung cancer cell lines, measured with Drop-seq and with CEL-seq2. Each
command prints one table, a row as soon as it is known, and with --results keeps it in FOLDER/quality-COMMAND.json:

    python benchmarks/quality.py table --seeds 0 1 2     # Drop-seq as CEL-seq2, against held-out CEL-seq2 cells
    python benchmarks/quality.py ablation                # the preset without each of its ingredients
    python benchmarks/quality.py pairs                   # other batches: thinned, three, unequal, few and many cells
    python benchmarks/quality.py leave-out --seeds 0 1 2 # one line missing in CEL-seq2: is it kept, and flagged?
    python benchmarks/quality.py variation               # does what varies within a line survive?
    python benchmarks/quality.py precision               # the demo in each precision
    python benchmarks/quality.py table --results benchmarks/results
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import anndata as ad
import numpy as np
import pandas as pd
from record import record
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from discern.config.reading import parse_experiment
from discern.config.schema import Precision
from discern.data.epochs import number_of_epochs
from discern.data.processed import DISCERNData
from discern.datasets import lung_cell_lines
from discern.metrics.gene_agreement import GroupStatistics, agreement
from discern.metrics.latent_space import other_batch_share
from discern.model.estimator import DISCERN
from discern.preprocessing.recipe import WAERecipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    Recipes = dict[str, dict[str, Any]]
    Rows = Iterator[tuple[str, dict[str, float]]]

SOURCE, REFERENCE = "dropseq", "celseq2"
LSN = 20_000
FIGURES = (
    *("mean_r", "difference_r", "t_rho", "top200", "detection_r", "mean_rmse"),
    *("PC1", "PC2", "PC3", "spread"),
)

#: Cells and genes are chosen here, not by the recipe.
PREPARED: dict[str, Any] = {"input_ds": {"filtering": {"min_genes": 0, "min_cells": 0}}}
PRESET: dict[str, Any] = PREPARED | {"preset": "auto"}
PUBLISHED: dict[str, Any] = {
    "input_ds": PREPARED["input_ds"] | {"scale": {"LSN": LSN, "fixed_scaling": {"mean": "genes", "var": "genes"}}},
    "training": {"max_steps": 60, "early_stopping": {}},
}
RECIPES = {"preset": PRESET, "published": PUBLISHED}
_ALL = ["conditionallayernorm"] * 2
ABLATION: dict[str, dict[str, Any]] = {
    "preset": {},
    "no MMD between batches": {"model": {"weighting_batch_mmd": 0}},
    "MMD between batches, weight 500": {"model": {"weighting_batch_mmd": 500}},
    "MMD between batches, weight 4000": {"model": {"weighting_batch_mmd": 4000}},
    "decoder conditional in every layer": {"model": {"norm_type": _ALL}},
    "counts not thinned": {"training": {"thin_counts": 1}},
    "counts thinned to 30 % at the least": {"training": {"thin_counts": 0.3}},
    "a tenth of the cells for validation": {"input_ds": {"split": {"valid_cells": 0.1}}},
    "published layers 1024, 512, 256": {"model": {"layers": [1024, 512, 256]}},
    "layers 256, 128, 64": {"model": {"layers": [256, 128, 64]}},
    "layers 128, 64, 32": {"model": {"layers": [128, 64, 32]}},
    "dropout 0.3": {"model": {"encoder": {"regularization": 0.3}, "decoder": {"regularization": 0.0}}},
    "40 epochs": {"training": {"max_steps": 40}},
    "120 epochs": {"training": {"max_steps": 120}},
}


# --- cells -----------------------------------------------------------------------------------------------------------


def shipped_cells() -> ad.AnnData:
    """Return raw counts of both batches on the genes that both have and at least 3 cells show."""
    cells = ad.concat({name: ad.read_h5ad(path) for name, path in lung_cell_lines().items()}, label="batch")
    cells.obs["celltype"] = cells.obs["celltype"].astype(str)
    cells.obs_names_make_unique()
    cells.X = sparse.csr_matrix(cells.X, dtype=np.float32)
    return cells[:, np.asarray((cells.X > 0).sum(axis=0)).ravel() >= 3].copy()


def held_out(cells: ad.AnnData, seed: int, reference_batch: str = REFERENCE) -> npt.NDArray:
    """Return the half of the reference cells of every type that training must not see, as a mask over all cells."""
    generator = np.random.default_rng(1000 + seed)
    mask = np.zeros(cells.n_obs, dtype=bool)
    reference = np.flatnonzero(cells.obs["batch"] == reference_batch)
    lines = cells.obs["celltype"].to_numpy()[reference]
    for line in np.unique(lines):
        those = reference[lines == line]
        mask[generator.permutation(those)[: len(those) // 2]] = True
    return mask


def log_normalise(counts: sparse.csr_matrix) -> npt.NDArray:
    """Return log1p(counts / total * LSN), dense."""
    dense = counts.toarray()
    return np.log1p(dense / np.maximum(dense.sum(axis=1, keepdims=True), 1e-9) * LSN)


def thin(cells: ad.AnnData, keep: float, batch: str, generator: np.random.Generator) -> ad.AnnData:
    """Return the cells with each count kept with probability `keep`, as another batch."""
    result = cells.copy()
    result.X.data = generator.binomial(result.X.data.astype(int), keep).astype(np.float32)
    result.X.eliminate_zeros()
    result.obs["batch"] = batch
    result.obs_names = result.obs_names + f"-{batch}"
    return result


def mix(cells: ad.AnnData, n_cells: int, generator: np.random.Generator) -> ad.AnnData:
    """Return as many new cells, each half of the counts of two cells of one batch and line."""
    groups = cells.obs.groupby(["batch", "celltype"], observed=True).indices
    numbers = generator.choice(len(groups), n_cells)
    pairs = np.array([generator.choice(list(groups.values())[number], 2) for number in numbers])
    X = (cells.X[pairs[:, 0]] + cells.X[pairs[:, 1]]).tocsr()
    X.data = generator.binomial(X.data.astype(int), 0.5).astype(np.float32)
    X.eliminate_zeros()
    obs = cells.obs.iloc[pairs[:, 0]].set_index(pd.Index([f"mixed-{number}" for number in range(n_cells)]))
    return ad.AnnData(X, obs=obs, var=cells.var)


# --- reconstruction and figures --------------------------------------------------------------------------------------


def merged(experiment: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment with some keys changed."""
    result = copy.deepcopy(experiment)
    for key, value in changes.items():
        result[key] = merged(result.get(key) or {}, value) if isinstance(value, dict) and value else value
    return result


def set_up(cells: ad.AnnData, experiment: dict[str, Any], seed: int) -> tuple[DISCERN, DISCERNData, int]:
    """Process cells; return an estimator for them, the cells, and how many epochs a training has."""
    seeds = {"input_ds": {"split": {"split_seed": seed}}, "training": {"seed": seed}}
    parameters = parse_experiment(merged(experiment, seeds))
    recipe = WAERecipe(parameters, inputs={"cells": cells}, input_files={"cells": "batch"}, n_jobs=1)
    data = DISCERNData(recipe().sc_raw, parameters.training.batch_size)
    return DISCERN.from_experiment(parameters), data, number_of_epochs(parameters.training, data.obs)


def reconstruct(
    cells: ad.AnnData, experiment: dict[str, Any], seed: int, reference_batch: str = REFERENCE
) -> ad.AnnData:
    """Process and train on all cells, and return them as cells of the reference, with their distance from it."""
    start = time.perf_counter()
    model, data, epochs = set_up(cells, experiment, seed)
    model.training(data, max_steps=epochs)
    result = model.reconstruct(data, "batch", reference_batch)
    result.uns["seconds"] = time.perf_counter() - start
    result.obs.index = result.obs.index.astype(str)
    return result


def of_source(result: ad.AnnData, values: npt.NDArray | None = None) -> GroupStatistics:
    """Return the statistics of the lines of all cells that are not of the reference."""
    mask = (result.obs["batch"] != REFERENCE).to_numpy()
    values = result.layers["estimated_counts"] if values is None else values
    return GroupStatistics.of(values[mask], result.obs["celltype"].astype(str).to_numpy()[mask])


def row(name: str, figures: dict[str, float]) -> None:
    """Print one row of a table."""
    print(f"{name:44}", *(f"{key} {value:.3f}" for key, value in figures.items()), sep="  ", flush=True)


def with_mean(name: str, rows: Iterable[tuple[int, dict[str, float]]]) -> Rows:
    """Give a row for each seed and, if there are several, their mean."""
    found = []
    for seed, figures in rows:
        yield f"{name}, seed {seed}", figures
        found.append(figures)
    if len(found) > 1:
        yield f"{name}, mean", mean(found)


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over some rows."""
    return {key: float(np.mean([figures[key] for figures in rows])) for key in rows[0]}


def measure(cells: ad.AnnData, truth: GroupStatistics, experiment: dict[str, Any], seed: int) -> dict[str, float]:
    """Train on cells and compare with the truth."""
    result = reconstruct(cells, experiment, seed)
    lines = result.obs["celltype"].astype(str).to_numpy()
    mixing = other_batch_share(result.obsm["X_DISCERN"], result.obs["batch"].astype(str).to_numpy(), lines)["share"]
    figures = agreement(of_source(result), truth)
    return shown(figures) | {"mixing": float(mixing), "seconds": result.uns["seconds"]}


def shown(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures of a table, in its order."""
    return {key: float(figures[key]) for key in FIGURES if key in figures}


# --- the tables ------------------------------------------------------------------------------------------------------


def main_pair(seed: int) -> tuple[ad.AnnData, GroupStatistics]:
    """Return the cells to train on, and the truth."""
    cells = shipped_cells()
    hidden = held_out(cells, seed)
    truth = GroupStatistics.of(log_normalise(cells.X[hidden]), cells.obs["celltype"].to_numpy()[hidden])
    return cells[~hidden].copy(), truth


def table(seeds: list[int], recipes: Recipes) -> Rows:
    """Drop-seq as CEL-seq2: floor, ceiling, published parameters, preset."""

    def as_measured(batch: str, seed: int) -> dict[str, float]:
        cells, truth = main_pair(seed)
        own = cells[cells.obs["batch"] == batch]
        return shown(agreement(GroupStatistics.of(log_normalise(own.X), own.obs["celltype"]), truth))

    for name, batch in (("Drop-seq as it is (floor)", SOURCE), ("other real CEL-seq2 cells (ceiling)", REFERENCE)):
        yield from with_mean(name, ((seed, as_measured(batch, seed)) for seed in seeds))
    for name, experiment in recipes.items():
        yield from with_mean(name, ((seed, measure(*main_pair(seed), experiment, seed)) for seed in seeds))


def ablation(seeds: list[int], _: Recipes) -> Rows:
    """The preset without, or with another value of, each of its ingredients."""

    def changed(changes: dict[str, Any], seed: int) -> dict[str, float]:
        cells, truth = main_pair(seed)
        result = reconstruct(cells, merged(PRESET, changes), seed)
        return shown(agreement(of_source(result), truth) | within_lines(result))

    for name, changes in ABLATION.items():
        yield from with_mean(name, ((seed, changed(changes, seed)) for seed in seeds))


def other_pairs(seed: int) -> Iterable[tuple[str, Callable[[], tuple[ad.AnnData, GroupStatistics]]]]:
    """Give name and maker of (cells to train on, truth)."""
    cells = shipped_cells()
    hidden = held_out(cells, seed)
    lines = cells.obs["celltype"].to_numpy()
    truth = GroupStatistics.of(log_normalise(cells.X[hidden]), lines[hidden])
    seen = cells[~hidden].copy()
    is_reference = (seen.obs["batch"] == REFERENCE).to_numpy()
    reference, source = seen[is_reference].copy(), seen[~is_reference].copy()
    generator = np.random.default_rng(seed)

    def thinned(keep: float) -> tuple[ad.AnnData, GroupStatistics]:
        return ad.concat([reference, thin(cells[hidden], keep, "thinned", generator)]), truth

    def three() -> tuple[ad.AnnData, GroupStatistics]:
        half = generator.permutation(source.n_obs) < source.n_obs // 2
        return ad.concat([reference, source[half], thin(source[~half], 0.4, "thinned", generator)]), truth

    def unequal() -> tuple[ad.AnnData, GroupStatistics]:
        few = [
            generator.choice(those, 4, replace=False) for those in reference.obs.groupby("celltype").indices.values()
        ]
        return ad.concat([reference[np.concatenate(few)], source]), truth

    def of_size(n_cells: int) -> tuple[ad.AnnData, GroupStatistics]:
        if n_cells < seen.n_obs:
            return seen[generator.choice(seen.n_obs, n_cells, replace=False)].copy(), truth
        return mix(seen, n_cells, generator), truth

    for keep in (0.05, 0.1, 0.2):
        yield f"CEL-seq2 thinned to {keep:.0%}", lambda keep=keep: thinned(keep)
    yield "three batches", three
    yield "19 Drop-seq cells for each CEL-seq2 cell", unequal
    for n_cells in (200, 2000, 20000):
        yield f"{n_cells} cells", lambda n_cells=n_cells: of_size(n_cells)


def pairs(seeds: list[int], recipes: Recipes) -> Rows:
    """Preset and published parameters on other batches."""
    for seed in seeds:
        for name, make in other_pairs(seed):
            cells, truth = make()
            source = cells[cells.obs["batch"] != REFERENCE]
            floor = GroupStatistics.of(log_normalise(source.X), source.obs["celltype"])
            yield f"{name}: floor, seed {seed}", shown(agreement(floor, truth))
            for title, experiment in recipes.items():
                yield f"{name}: {title}, seed {seed}", measure(cells, truth, experiment, seed)


def nearest_share(values: npt.NDArray, centres: npt.NDArray, number: int) -> float:
    """Return the share of cells whose mean expression profile correlates best with that of line `number`."""
    correlation = np.corrcoef(np.concatenate([values, centres]))[: len(values), len(values) :]
    return float((correlation.argmax(axis=1) == number).mean())


def leave_out(seeds: list[int], recipes: Recipes) -> Rows:
    """Each line left out of CEL-seq2 in turn: are its Drop-seq cells still nearest to it, and do they stand out?"""
    cells = shipped_cells()
    lines = cells.obs["celltype"].to_numpy()
    is_reference = (cells.obs["batch"] == REFERENCE).to_numpy()
    measured = log_normalise(cells.X)
    names = sorted(set(lines))
    centres = np.array([measured[is_reference & (lines == name)].mean(axis=0) for name in names])
    source = lines[~is_reference]

    def difference_r(values: npt.NDArray, number: int) -> float:
        means = [values[source == name].mean(axis=0) for name in names]
        others = [other for other in range(len(names)) if other != number]
        rs = [np.corrcoef(means[number] - means[k], centres[number] - centres[k])[0, 1] for k in others]
        return float(np.mean(rs))

    for title, experiment in recipes.items():
        rows = []
        for seed, (number, name) in itertools.product(seeds, enumerate(names)):
            missing = is_reference & (lines == name)
            result = reconstruct(cells[~held_out(cells, seed) & ~missing].copy(), experiment, seed)
            ours = result[(result.obs["batch"] != REFERENCE).to_numpy()]
            left_out = source == name
            values = np.asarray(ours.layers["estimated_counts"])
            figures = {
                "nearest": nearest_share(values[left_out], centres, number),
                "nearest_floor": nearest_share(measured[~is_reference][left_out], centres, number),
                "difference": difference_r(values, number),
                "difference_floor": difference_r(measured[~is_reference], number),
                "flag_auc": float(roc_auc_score(left_out, ours.obs["discern_distance"])),
            }
            rows.append(figures)
            yield f"{title}, without {name}, seed {seed}", figures
        yield f"{title}, mean", mean(rows)


def scores(values: npt.NDArray, totals: npt.NDArray, loadings: npt.NDArray) -> npt.NDArray:
    """Return principal components for cells of one line, without what total counts explain."""
    components = (values - values.mean(axis=0)) @ loadings
    design = np.column_stack([np.ones(len(totals)), np.log(totals)])
    return components - design @ np.linalg.lstsq(design, components, rcond=None)[0]


def within_lines(result: ad.AnnData) -> dict[str, float]:
    """Return the correlation, over the Drop-seq cells of a line, of scores before and after; mean over lines.

    The components are those of the real CEL-seq2 cells of the line, so that noise of the Drop-seq cells has no part in
    them. And the spread of the reconstructed cells, as a share of that of real CEL-seq2 cells.
    """
    cells = shipped_cells()
    is_reference = (cells.obs["batch"] == REFERENCE).to_numpy()
    lines = cells.obs["celltype"].to_numpy()
    measured = log_normalise(cells.X)
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    after = np.asarray(result[(result.obs["batch"] != REFERENCE).to_numpy()].layers["estimated_counts"])
    kept, spread = [], []
    for line in np.unique(lines):
        real = measured[is_reference & (lines == line)]
        loadings = PCA(3, random_state=0).fit(real).components_.T
        mine, those = ~is_reference & (lines == line), lines[~is_reference] == line
        one = scores(measured[mine], totals[mine], loadings)
        two = scores(after[those], totals[mine], loadings)
        kept.append([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, two.T, strict=True)])
        spread.append(after[those].std(axis=0).mean() / real.std(axis=0).mean())
    return dict(zip(("PC1", "PC2", "PC3"), np.mean(kept, axis=0), strict=True)) | {"spread": float(np.mean(spread))}


def variation(seeds: list[int], recipes: Recipes) -> Rows:
    """What varies within a line, before and after."""
    for title, experiment in recipes.items():
        kept = ((seed, within_lines(reconstruct(main_pair(seed)[0], experiment, seed))) for seed in seeds)
        yield from with_mean(title, kept)


def precision(seeds: list[int], _: Recipes) -> Rows:
    """The demo, with its figures (a) mean_r and (b) difference_r, in each precision."""
    cells = shipped_cells()
    of_reference = (cells.obs["batch"] == REFERENCE).to_numpy()
    lines = cells.obs["celltype"].to_numpy()
    truth = GroupStatistics.of(log_normalise(cells.X[of_reference]), lines[of_reference])
    demo = merged(PRESET, {"input_ds": {"split": {"test_cells": 0.2}}})
    for name in get_args(Precision):
        experiment = merged(demo, {"training": {"precision": name}})
        yield from with_mean(name, ((seed, measure(cells, truth, experiment, seed)) for seed in seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {
        "table": table,
        "ablation": ablation,
        "pairs": pairs,
        "leave-out": leave_out,
        "variation": variation,
        "precision": precision,
    }
    parser.add_argument("table", choices=[*commands, "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", choices=list(RECIPES), nargs="+", default=list(RECIPES))
    parser.add_argument("--results", type=Path, help="folder of JSON files to add the rows to")
    arguments = parser.parse_args()
    recipes = {name: RECIPES[name] for name in arguments.recipes}
    for name, command in commands.items():
        if arguments.table in (name, "all"):
            print(f"\n{name}: {(command.__doc__ or '').splitlines()[0]}")
            for title, figures in command(arguments.seeds, recipes):
                row(title, figures)
                if arguments.results:
                    rounded = {key: round(value, 4) for key, value in figures.items()}
                    record(arguments.results / f"quality-{name}.json", {title: rounded})


if __name__ == "__main__":
    main()
