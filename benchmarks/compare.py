"""Whether `discern.compare`, trust figures, intervals and the line of the distance hold what they promise.

On real cells: the shipped pair of technologies and, with --data, others that do not ship (`pbmc3chem.h5ad`,
`pancreas5.h5ad`, `lines3_3tech_894.h5ad`: raw counts in X, obs `batch` and `celltype`). Half of the reference cells of
every type are never part of the experiment; they are the truth. Results go to JSON files in a folder as soon as they
are known, one for each kind of figures, and what is there already is not computed again; `table` prints all.

    python benchmarks/compare.py pairs --data FOLDER      # level and power of the test, coverage of intervals, trust
    python benchmarks/compare.py planted --data FOLDER    # genes shuffled between cells: are they called?
    python benchmarks/compare.py missing --data FOLDER    # types left out of the reference: found, and kept?
    python benchmarks/compare.py table
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import anndata as ad
import numpy as np
from quality import held_out
from record import record
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score
from tissues import of_own_type

import discern
from discern.config.reading import parse_experiment
from discern.datasets import lung_cell_lines
from discern.metrics.trust import Calibration, Unseen, calibrate, gene_trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    import pandas as pd

SHIPPED = ("lines", "dropseq", "celseq2")
PAIRS = (
    SHIPPED,
    ("pbmc3chem", "3pv1", "5p"),
    ("pancreas5", "indrop", "smartseq2"),
    ("lines3_3tech_894", "Drop-seq", "CEL-seq2"),
    ("pbmc3chem", "3pv2", "5p"),
    ("lines3_3tech_894", "10x", "CEL-seq2"),
    ("pancreas5", "celseq", "smartseq2"),
    ("pancreas5", "celseq2", "smartseq2"),
    ("pancreas5", "fluidigmc1", "smartseq2"),
)
HALVES = 50
LEVEL = 0.05
FEWEST = 8  # cells of a type on both sides, to be compared


def load(name: str, data: Path | None) -> ad.AnnData:
    """Return raw counts with obs `batch` and `celltype`."""
    if name == SHIPPED[0]:
        cells = ad.concat({batch: ad.read_h5ad(path) for batch, path in lung_cell_lines().items()}, label="batch")
        cells.obs_names_make_unique()
    else:
        assert data is not None
        cells = ad.read_h5ad(data / f"{name}.h5ad")
    for column in ("batch", "celltype"):
        cells.obs[column] = cells.obs[column].astype(str)
    return ad.AnnData(sparse.csr_matrix(cells.X, dtype=np.float32), obs=cells.obs[["batch", "celltype"]], var=cells.var)


def pair(name: str, source: str, reference: str, data: Path | None, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Return the cells of an experiment, and the half of the reference cells of every type that is not part of it."""
    cells = load(name, data)
    cells = cells[cells.obs["batch"].isin([source, reference])].copy()
    cells = cells[:, np.asarray((cells.X > 0).sum(axis=0)).ravel() >= 3].copy()
    hidden = held_out(cells, seed, reference)
    return cells[~hidden].copy(), cells[hidden].copy()


def fit(cells: ad.AnnData, seed: int, test_cells: float) -> discern.Reconstructor:
    """Train the preset."""
    model = discern.Reconstructor(seed=seed, min_genes=0, min_cells=0, test_cells=test_cells)
    return model.fit(cells)


def dense(matrix: Any) -> npt.NDArray:
    """Return a matrix as an array."""
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def log_normalise(counts: Any) -> npt.NDArray[np.float32]:
    """Return log1p of the counts scaled to 20,000 a cell."""
    values = dense(counts)
    return np.log1p(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-9) * 20_000).astype(np.float32)


def plain(values: Any, obs: pd.DataFrame, var: pd.DataFrame) -> ad.AnnData:
    """Return cells that `compare` takes for measured ones, whatever they are."""
    return ad.AnnData(sparse.csr_matrix(values), obs=obs, var=var[[]])


# --- the test --------------------------------------------------------------------------------------------------------


def level(source: ad.AnnData, seed: int) -> dict[str, Any]:
    """Compare halves of a type, drawn at random: by `compare`, and by Wilcoxon's test of reconstructed values."""
    kind = source.obs["celltype"].value_counts().index[0]
    cells = source[(source.obs["celltype"] == kind).to_numpy()].copy()
    estimates = plain(cells.layers["estimated_counts"], cells.obs, cells.var)
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"nominal": [], "called": [], "naive_nominal": [], "naive_called": []}
    for _ in range(HALVES):
        half = np.where(generator.permutation(cells.n_obs) < cells.n_obs // 2, "one", "other")
        cells.obs["half"] = estimates.obs["half"] = half
        for prefix, asked in (("", cells), ("naive_", estimates)):
            table = discern.compare(asked, "half", "one", "other", batch=None)
            shown = (table["detected_group"] > 0) | (table["detected_reference"] > 0)
            found[f"{prefix}nominal"].append(float((table["p_value"][shown] < LEVEL).mean()))
            found[f"{prefix}called"].append(int((table["fdr"] < LEVEL).sum()))
    figures: dict[str, Any] = {"type": kind, "cells": cells.n_obs}
    for name, values in found.items():
        figures |= {name: float(np.mean(values)), f"{name}_most": float(np.max(values))}
    return figures


def power(source: ad.AnnData, held: ad.AnnData) -> dict[str, float]:
    """Compare pairs of types; the truth is the same test of held-out reference cells, the sign included."""
    mine, theirs = source.obs["celltype"], held.obs["celltype"]
    types = [name for name in sorted(set(mine)) if min((mine == name).sum(), (theirs == name).sum()) >= FEWEST]
    estimates = plain(source.layers["estimated_counts"], source.obs, source.var)
    rows = []
    for one, other in itertools.combinations(types, 2):
        table = discern.compare(source, "celltype", one, other).loc[source.var_names]
        real = discern.compare(held, "celltype", one, other, batch=None).loc[source.var_names]
        naive = discern.compare(estimates, "celltype", one, other).loc[source.var_names]
        sign = np.sign(table["log2_fold_change_measured"])
        true = ((real["fdr"] < LEVEL) & (np.sign(real["log2_fold_change_measured"]) == sign)).to_numpy()
        p, weight = table["p_value"].to_numpy(), table["weight"].to_numpy()
        tested = (table["detected_group"] + table["detected_reference"] > 0).to_numpy()
        alone = np.zeros(len(p), dtype=bool)
        alone[tested] = stats.false_discovery_control(p[tested]) < LEVEL
        ours = (table["fdr"] < LEVEL).to_numpy()
        rate = float((alone & ~true).sum() / max(1, alone.sum()))
        rows.append(
            {
                "true": true.sum(),
                "measured_true": (alone & true).sum(),
                "measured_false_rate": rate,
                "compare_true": (ours & true).sum(),
                "compare_false_rate": (ours & ~true).sum() / max(1, ours.sum()),
                "compare_true_at_rate": _at_rate(p / weight, true, rate),
                "naive_called": (naive["fdr"] < LEVEL).sum(),
            }
        )
    return {"pairs_of_types": len(rows)} | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _at_rate(p: npt.NDArray, true: npt.NDArray, rate: float) -> int:
    """Return how many true genes the longest list of the surest genes has whose share of false ones is `rate`."""
    found = np.cumsum(true[np.argsort(p, kind="stable")])
    length = np.arange(1, len(p) + 1)
    enough = np.flatnonzero((length - found) / length <= rate)
    return int(found[enough[-1]]) if len(enough) else 0


def planted(name: str, source: str, reference: str, data: Path | None, seed: int) -> dict[str, Any]:
    """Shuffle a fifth of the genes between cells of a batch of like depth before training: no type differs in them."""
    cells, _ = pair(name, source, reference, data, seed)
    generator = np.random.default_rng(seed)
    is_null = generator.random(cells.n_vars) < 0.2
    values, batch = cells.X.toarray(), cells.obs["batch"].to_numpy()
    depth = values.sum(axis=1)
    for one in (source, reference):
        rows = np.flatnonzero(batch == one)
        rows = rows[np.argsort(depth[rows])]
        for part in np.array_split(rows, max(1, len(rows) // 20)):
            values[np.ix_(part, is_null)] = generator.permuted(values[np.ix_(part, is_null)], axis=0)
    cells.X = sparse.csr_matrix(values)
    result = fit(cells, seed, 0.2).project(reference)
    asked = result[(result.obs["batch"] == source).to_numpy()].copy()
    kinds = asked.obs["celltype"].value_counts()
    rows = []
    for one, other in itertools.combinations(sorted(kinds.index[kinds >= FEWEST]), 2):
        table = discern.compare(asked, "celltype", one, other).loc[asked.var_names]
        called, alone = (table["fdr"] < LEVEL), stats.false_discovery_control(table["p_value"]) < LEVEL
        rows.append(
            {
                "nominal": (table["p_value"][is_null] < LEVEL).mean(),
                "weight": table["weight"][is_null].mean(),
                "false_rate": (called & is_null).sum() / max(1, called.sum()),
                "measured_false_rate": (alone & is_null).sum() / max(1, alone.sum()),
            }
        )
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


# --- intervals and trust ---------------------------------------------------------------------------------------------


def sureness(model: discern.Reconstructor, result: ad.AnnData, held: ad.AnnData, reference: str) -> dict[str, Any]:
    """Judge what was learnt from the experiment's test cells by cells that were never part of it."""
    estimator, cells = model.estimator, model.data
    assert estimator is not None
    assert cells is not None
    assert estimator.batches is not None
    one = (np.array(estimator.batches) == reference).astype(np.float32)

    def rebuild(values: npt.NDArray, rows: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
        labels = np.repeat(one[np.newaxis], len(rows), axis=0)
        return estimator.generate_cells_from_latent(
            estimator.generate_latent_codes(values, labels, 512)[0], labels, 512
        )

    unseen = Unseen.of(cells.obs, reference)
    new = log_normalise(held.X)
    estimates, detection = rebuild(new, np.arange(len(new)))
    calibration = calibrate(cells.X, unseen, rebuild)
    figures = {"calibrated_on": calibration.cells, "judged_on": len(new)} | _coverage(
        calibration, new, estimates, detection
    )
    mine = (result.obs["batch"] != reference).to_numpy()
    low, high = (np.asarray(result.layers[name])[mine] for name in ("estimated_low", "estimated_high"))
    types, real_types = result.obs["celltype"].astype(str).to_numpy()[mine], held.obs["celltype"].to_numpy()
    generator = np.random.default_rng(0)
    shared = np.flatnonzero(np.isin(types, real_types))
    other = new[[generator.choice(np.flatnonzero(real_types == types[row])) for row in shared]]
    inside = (other >= low[shared]) & (other <= high[shared])
    figures["source_against_other_cell_of_type"] = float(inside[high[shared] > 0].mean())

    trust = result.var["discern_trust"].to_numpy()
    everyone = np.zeros(len(new), dtype=int)
    truth = gene_trust(new, Unseen(np.arange(len(new)), "test"), everyone, rebuild, seed=1)
    seen = np.flatnonzero(((cells.obs["batch"] == reference) & (cells.obs["split"] == "train")).to_numpy())
    trained = gene_trust(cells.X, Unseen(seen, "train"), np.zeros(cells.n_obs, dtype=int), rebuild)
    figures["trust_rho"] = _rho(trust, truth)
    figures["trust_rho_of_trained"] = _rho(trained, truth)
    figures |= {"trust_median": float(np.nanmedian(trust)), "truth_median": float(np.nanmedian(truth))}
    figures["trained_median"] = float(np.nanmedian(trained))
    figures |= _differences_by_trust(np.asarray(result.layers["estimated_counts"])[mine], types, new, real_types, trust)
    return figures


def _coverage(calibration: Calibration, new: npt.NDArray, estimates: npt.NDArray, detection: npt.NDArray) -> dict:
    low, high = calibration.interval(estimates, detection)
    inside = (new >= low) & (new <= high)
    figures = {
        "held": float(inside.mean()),
        "held_not_surely_zero": float(inside[high > 0].mean()),
        "not_surely_zero": float((high > 0).mean()),
        "width": float((high - low)[high > 0].mean()),
    }
    for begin, end in itertools.pairwise((0, 0.1, 0.3, 0.6, 0.9, 1.01)):
        chosen = (detection >= begin) & (detection < end)
        figures[f"held_detection_{begin}"] = float(inside[chosen].mean()) if chosen.any() else float("nan")
    return figures


def _rho(one: npt.NDArray, other: npt.NDArray) -> float:
    known = np.isfinite(one) & np.isfinite(other)
    return float(stats.spearmanr(one[known], other[known]).statistic)


def _differences_by_trust(
    ours: npt.NDArray, types: npt.NDArray, real: npt.NDArray, real_types: npt.NDArray, trust: npt.NDArray
) -> dict[str, float]:
    """Return r of the differences between types over genes of three thirds of trust, mean over pairs of types."""
    kinds = [kind for kind in np.unique(types) if min((types == kind).sum(), (real_types == kind).sum()) >= FEWEST]
    known = np.flatnonzero(np.isfinite(trust))
    thirds = np.array_split(known[np.argsort(trust[known])], 3)
    found = np.array(
        [
            [
                np.corrcoef(
                    ours[types == a][:, genes].mean(axis=0) - ours[types == b][:, genes].mean(axis=0),
                    real[real_types == a][:, genes].mean(axis=0) - real[real_types == b][:, genes].mean(axis=0),
                )[0, 1]
                for genes in thirds
            ]
            for a, b in itertools.combinations(kinds, 2)
        ]
    )
    return dict(zip(("difference_r_low", "difference_r_middle", "difference_r_high"), found.mean(axis=0), strict=True))


# --- types that the reference lacks ----------------------------------------------------------------------------------


def unaligned(model: discern.Reconstructor, reference: str) -> npt.NDArray[np.float32]:
    """Return the estimates of all cells, their codes left where they are."""
    trained = replace(model.estimator.trained, align_batches=False)
    estimator = discern.DISCERN.from_experiment(parse_experiment(model.parameters), trained)
    return dense(estimator.reconstruct(model.data, "batch", reference).layers["estimated_counts"])


def missing(name: str, source: str, reference: str, data: Path | None, seed: int) -> Iterator[tuple[str, Callable]]:
    """Leave each type out of the reference in turn, then all but the two that it has most cells of."""
    cells, held = pair(name, source, reference, data, seed)
    kinds = cells.obs.groupby("celltype")["batch"].value_counts().unstack(fill_value=0)
    enough = kinds.index[(kinds[source] >= 5) & (kinds[reference] >= 1)]
    cases = {kind: [kind] for kind in enough}
    if len(enough) > 2:
        most = kinds.loc[enough, reference].sort_values(ascending=False).index
        cases[f"all but {most[0]} and {most[1]}"] = list(most[2:])
    labels = cells.obs["celltype"].to_numpy(dtype=str)
    of_reference = (cells.obs["batch"] == reference).to_numpy()
    real = np.concatenate([log_normalise(cells.X[of_reference]), log_normalise(held.X)])
    real_labels = np.concatenate([labels[of_reference], held.obs["celltype"].to_numpy(dtype=str)])
    for case, lacking in cases.items():

        def make(lacking: list[str] = lacking) -> dict[str, Any]:
            left_out = of_reference & np.isin(labels, lacking)
            model = fit(cells[~left_out].copy(), seed, 0.2)
            result = model.project(reference)
            is_source = (result.obs["batch"] == source).to_numpy()
            mine = result[is_source]
            own = mine.obs["celltype"].to_numpy(dtype=str)
            lacks, beyond = np.isin(own, lacking), mine.obs["discern_beyond"].to_numpy()
            values = {
                "own_type": dense(mine.layers["estimated_counts"]),
                "own_type_unaligned": unaligned(model, reference)[is_source],
                "own_type_measured": dense(mine.layers["measured"]),
            }
            figures = {"cells": int(lacks.sum())}
            for key, of_cells in values.items():
                right, of_type = of_own_type(of_cells, own, real, real_labels)
                asked = np.isin(of_type, lacking)
                figures |= {key: float(right[asked].mean()) if asked.any() else float("nan")}
            return figures | {
                "auc": float(roc_auc_score(lacks, mine.obs["discern_distance"])),
                "beyond": float(beyond[lacks].mean()),
                "beyond_others": float(beyond[~lacks].mean()),
            }

        yield case, make


# --- all of it -------------------------------------------------------------------------------------------------------


def judge(name: str, source: str, reference: str, data: Path | None, seed: int) -> dict[str, Any]:
    """Train on a pair and compute all its figures."""
    cells, held = pair(name, source, reference, data, seed)
    model = fit(cells, seed, 0.2)
    result = model.project(reference, intervals=True)
    mine = result[(result.obs["batch"] == source).to_numpy()].copy()
    mine.obs["celltype"] = mine.obs["celltype"].astype(str)
    return {
        "level": level(mine, seed),
        "power": power(mine, held),
        "sureness": sureness(model, result, held, reference),
    }


def kept(results: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Return the rows of one kind of figures that are there."""
    path = results / f"compare-{kind}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def keep(results: Path, name: str, make: Callable[[], dict[str, dict[str, Any]]], last: str) -> None:
    """Compute the rows of a name, write and print them, unless that of the `last` kind is there."""
    if name in kept(results, last):
        return
    for kind, figures in make().items():
        plain = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
        record(results / f"compare-{kind}.json", {name: plain})
        show(kind, name, plain)


def show(kind: str, name: str, figures: dict[str, Any]) -> None:
    """Print a row."""
    texts = (f"{key} {value}" for key, value in figures.items() if key not in ("command", "date", "machine"))
    print(f"{kind}: {name}:", ", ".join(texts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["pairs", "planted", "missing", "table"])
    parser.add_argument("--data", type=Path, help="Folder of cells that do not ship; without it the shipped pair only.")
    parser.add_argument("--only", nargs="+", help="Pairs to take, as SET_SOURCE; by default all.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("compare"), help="folder of the JSON files")
    arguments = parser.parse_args()
    results = arguments.results
    for name, source, reference in PAIRS if arguments.command != "table" else ():
        if (name != SHIPPED[0] and arguments.data is None) or (
            arguments.only and f"{name}_{source}" not in arguments.only
        ):
            continue
        place = (name, source, reference, arguments.data, arguments.seed)
        title = f"{name}, {source} as {reference}, seed {arguments.seed}"
        if arguments.command == "missing":
            for case, make in missing(*place):
                keep(results, f"{title}, without {case}", lambda make=make: {"missing": make()}, "missing")
        elif arguments.command == "planted":
            keep(results, title, lambda place=place: {"planted": planted(*place)}, "planted")
        else:
            keep(results, title, lambda place=place: judge(*place), "sureness")
    if arguments.command == "table":
        for kind in ("level", "power", "sureness", "planted", "missing"):
            for name, figures in kept(results, kind).items():
                show(kind, name, figures)


if __name__ == "__main__":
    main()
