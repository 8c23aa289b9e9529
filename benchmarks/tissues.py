"""How good reconstructions are on real tissues, and by truths of other kinds: "Real tissues" in docs/quality.md.

    python benchmarks/tissues.py --data CELLS --results FOLDER --seeds 0 1 2
    python benchmarks/tissues.py --data CELLS --results FOLDER --methods scVI sysVI --scvi scvi/bin/python
    python benchmarks/tissues.py --data CELLS --results FOLDER --recipe wide=wide.json --methods wide --seeds 0 1 2
    python benchmarks/tissues.py --results FOLDER --choose preset wide
    python benchmarks/tissues.py --results FOLDER --docs docs/quality.md

CELLS has raw counts as h5ad files, `batch` and `celltype` in obs: pancreas5 (panc8), pbmc3chem, lines3_3tech_894,
cite_pbmc_eccite (antibody counts in obsm["protein_counts"]), pbmc1k_v3_allgenes, bulk_lines. Half of the reference
cells of every type is kept out of training and is the truth; figures of types are of those with 5 cells on both sides,
clusters are of all cells. FOLDER gets one JSON file for each pair, method and seed;
what is there is not computed again. MAGIC, scVI and sysVI need interpreters of their own, see other_methods.py. A
recipe is a JSON file with what it changes in the preset.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import anndata as ad
import numpy as np
import pandas as pd
from quality import (
    PRESET,
    PUBLISHED,
    REFERENCE,
    held_out,
    log_normalise,
    merged,
    reconstruct,
    row,
    scores,
    shipped_cells,
    thin,
)
from scipy import sparse
from scipy.stats import spearmanr

from discern.metrics.gene_agreement import GroupStatistics, agreement

if TYPE_CHECKING:
    import numpy.typing as npt

EXPRESSION = ("mean_r", "difference_r", "t_rho", "top200")
IDENTITY = ("own_type", "ari", "ari_latent", "ari_joint", "ari_joint_latent", "transfer")
FIGURES = {
    "mean_r": "means",
    "difference_r": "differences",
    "t_rho": "t",
    "top200": "top 200",
    "own_type": "own type",
    "ari": "ARI",
    "ari_latent": "ARI latent",
    "ari_joint": "ARI both",
    "ari_joint_latent": "ARI both, latent",
    "transfer": "transfer",
    "PC1": "PC1",
    "PC2": "PC2",
    "PC3": "PC3",
    "spread": "spread",
    "bulk_mean_r": "bulk means",
    "bulk_difference_r": "bulk differences",
    "bulk_cell_rho": "bulk, a cell",
    "protein_rho": "protein",
    "isotype_rho": "isotype",
    "squared_error": "squared error",
    "seconds": "seconds",
}
METHODS = ("measured", "real", "preset", "published", "MAGIC", "scVI", "sysVI")
_RESOLUTIONS = (0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.7, 1, 1.5, 2)

#: Antibody -> gene of its protein: those whose transcript a tenth of the deep cells or an own cluster of them shows.
PROTEINS = {
    "CCR7": "CCR7",
    "CD11b": "ITGAM",
    "CD11c": "ITGAX",
    "CD14": "CD14",
    "CD16": "FCGR3A",
    "CD19": "CD19",
    "CD2": "CD2",
    "CD26 (Adenosine)": "DPP4",
    "CD27": "CD27",
    "CD28": "CD28",
    "CD3": "CD3E",
    "CD4": "CD4",
    "CD44": "CD44",
    "CD5": "CD5",
    "CD56": "NCAM1",
    "CD62L": "SELL",
    "CD7": "CD7",
    "CD8": "CD8A",
    "IL7Ralpha (CD127)": "IL7R",
    "MHCII (HLA-DR)": "HLA-DRA",
    "PECAM (CD31)": "PECAM1",
}
ISOTYPES = ("IgG1", "IgG2a")

#: Mixture -> shares of the three lines, in the order of their names.
MIXTURES = {
    "one": (1, 0, 0),
    "two": (0, 1, 0),
    "three": (0, 0, 1),
    "most of one": (0.68, 0.16, 0.16),
    "most of two": (0.16, 0.68, 0.16),
    "most of three": (0.16, 0.16, 0.68),
    "all": (1 / 3, 1 / 3, 1 / 3),
}


# --- cells -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pair:
    """Cells of a source and of a reference batch, raw counts, and what they are compared with.

    Attributes:
        cells: What methods get: all source cells and half of the reference cells.
        truth: The other half of the reference cells; the counts held back for `squared_error`.
        reference: Name of the reference batch.
        bulk: Log-normalised expression of each type in bulk, types x genes, for some of the genes.
        proteins: Antibody counts of `cells`.
    """

    cells: ad.AnnData
    truth: ad.AnnData
    reference: str
    bulk: pd.DataFrame | None = None
    proteins: pd.DataFrame | None = None

    @property
    def is_source(self) -> npt.NDArray:
        """Which cells are to be reconstructed: those of other batches, or all if there is one batch."""
        other = (self.cells.obs["batch"] != self.reference).to_numpy()
        return other if other.any() else ~other


def read(path: Path) -> ad.AnnData:
    cells = ad.read_h5ad(path)
    cells.X = sparse.csr_matrix(cells.X, dtype=np.float32)
    cells.obs = cells.obs.astype(str)
    cells.obs_names_make_unique()
    return cells


def pair_of(cells: ad.AnnData, source: str, reference: str, seed: int, bulk: pd.DataFrame | None = None) -> Pair:
    """Return two of the batches, half of the reference set aside, on the genes that 3 of the other cells show."""
    cells = cells[cells.obs["batch"].isin([source, reference])].copy()
    hidden = held_out(cells, seed, reference)
    genes = np.asarray((cells.X[~hidden] > 0).sum(axis=0)).ravel() >= 3
    return Pair(cells[~hidden, genes].copy(), cells[hidden, genes].copy(), reference, bulk)


def bulk_expression(folder: Path) -> pd.DataFrame:
    """Return log-normalised mean expression of the replicates, lines x genes."""
    bulk = read(folder / "bulk_lines.h5ad")
    return pd.DataFrame(log_normalise(bulk.X), bulk.obs["celltype"], bulk.var_names).groupby(level=0).mean()


def shipped(folder: Path, seed: int) -> Pair:
    """Return the pair of quality.py, on its genes."""
    cells = shipped_cells()
    hidden = held_out(cells, seed)
    return Pair(cells[~hidden].copy(), cells[hidden].copy(), REFERENCE, bulk_expression(folder))


def mixtures(seed: int) -> Pair:
    """Return the shipped pair, its lines mixed: types that differ little, of which each cell says little.

    A cell of a mixture has counts of one cell of each line, thinned to half of their shares; 32 source cells and 16
    reference cells of each. Cells of the truth are mixed from others than those of the reference.
    """
    cells = shipped_cells()
    batch, lines = (cells.obs[name].to_numpy(str) for name in ("batch", "celltype"))
    hidden = held_out(cells, seed)
    generator = np.random.default_rng(500 + seed)

    def mixed(those: npt.NDArray, each: int) -> ad.AnnData:
        rows, names = [], np.repeat(list(MIXTURES), each)
        for name in names:
            parts = []
            for line, share in zip(np.unique(lines), MIXTURES[name], strict=True):
                part = cells.X[generator.choice(np.flatnonzero(those & (lines == line)))].copy()
                part.data = generator.binomial(part.data.astype(int), share / 2).astype(np.float32)
                parts.append(part)
            rows.append(sum(parts))
        X = sparse.vstack(rows, format="csr", dtype=np.float32)
        X.eliminate_zeros()
        obs = pd.DataFrame({"batch": batch[those][0], "celltype": names}, index=map(str, range(len(names))))
        return ad.AnnData(X, obs, cells.var)

    of_reference = batch == REFERENCE
    both = ad.concat([mixed(~of_reference, 32), mixed(of_reference & ~hidden, 16)], index_unique="-", keys=["s", "r"])
    genes = np.asarray((both.X > 0).sum(axis=0)).ravel() >= 3
    return Pair(both[:, genes].copy(), mixed(of_reference & hidden, 16)[:, genes].copy(), REFERENCE)


def proteins(folder: Path, seed: int) -> Pair:
    """Return blood cells, half of them thinned to 20 % of their counts, with their antibody counts."""
    cells = read(folder / "cite_pbmc_eccite.h5ad")
    antibodies = cells.obsm.pop("protein_counts")
    generator = np.random.default_rng(seed)
    shallow = generator.permutation(cells.n_obs) < cells.n_obs // 2
    both = ad.concat([thin(cells[shallow], 0.2, "thinned", generator), cells[~shallow]])
    pair = pair_of(both, "thinned", "ECCITE-seq", seed)
    pair.proteins = antibodies.loc[pair.cells.obs_names.str.removesuffix("-thinned")]
    return pair


def molecules(folder: Path, seed: int) -> Pair:
    """Return blood cells of one batch with 9 in 10 of their counts; the truth is the tenth."""
    cells = read(folder / "pbmc1k_v3_allgenes.h5ad")
    most = thin(cells, 0.9, "10x", np.random.default_rng(seed))
    rest = cells.copy()
    rest.X = sparse.csr_matrix(cells.X - most.X)
    return Pair(most, rest, "10x")


def pairs(folder: Path, seed: int) -> dict[str, Any]:
    """Return name -> function that makes the pair."""
    made: dict[str, Any] = {}

    def add(name: str, file: str, source: str, reference: str, of_lines: bool = False) -> None:
        bulk = bulk_expression if of_lines else lambda _: None
        made[name] = lambda: pair_of(read(folder / file), source, reference, seed, bulk(folder))

    for source in ("celseq", "celseq2", "fluidigmc1", "indrop"):
        add(f"pancreas, {source} as smartseq2", "pancreas5.h5ad", source, "smartseq2")
    for source, name in (("3pv1", "3'v1"), ("3pv2", "3'v2")):
        add(f"blood, {name} as 5'", "pbmc3chem.h5ad", source, "5p")
    for source in ("10x", "Drop-seq"):
        add(f"lines, 889 genes, {source} as CEL-seq2", "lines3_3tech_894.h5ad", source, "CEL-seq2", of_lines=True)
    made["lines, Drop-seq as CEL-seq2"] = lambda: shipped(folder, seed)
    made["mixtures of lines, Drop-seq as CEL-seq2"] = lambda: mixtures(seed)
    made["blood, thinned to 20 %, with proteins"] = lambda: proteins(folder, seed)
    made["blood, 9 in 10 counts"] = lambda: molecules(folder, seed)
    return made


# --- figures ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Estimate:
    """What a method makes of the cells of a pair, in their order.

    Attributes:
        source: Log-normalised expression of the source cells as cells of the reference.
        joint: The same of all cells; None if it does not make it.
        latent: Codes of all cells; None if there are none.
    """

    source: npt.NDArray
    joint: npt.NDArray | None = None
    latent: npt.NDArray | None = None


def _shared_types(labels: npt.NDArray, others: npt.NDArray, least: int = 5) -> list[str]:
    both = sorted(set(labels) & set(others))
    return [name for name in both if min((labels == name).sum(), (others == name).sum()) >= least]


def _standardised(rows: npt.NDArray) -> npt.NDArray:
    return (rows - rows.mean(axis=1, keepdims=True)) / (rows.std(axis=1, keepdims=True) + 1e-9)


def of_own_type(
    values: npt.NDArray, labels: npt.NDArray, real: npt.NDArray, real_labels: npt.NDArray
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.str_]]:
    """Return which cells are nearest (correlation over genes) to the real mean of their own type, and their types.

    Cells and real means are centred by their own mean over types. Types with at least 5 cells on both sides; cells of
    others are left out.
    """
    types = _shared_types(labels, real_labels)
    centres = np.stack([real[real_labels == name].mean(axis=0) for name in types])
    middle = np.stack([values[labels == name].mean(axis=0) for name in types]).mean(axis=0)
    asked = np.isin(labels, types)
    nearest = (_standardised(values[asked] - middle) @ _standardised(centres - centres.mean(axis=0)).T).argmax(axis=1)
    return np.array(types)[nearest] == labels[asked], labels[asked]


def clustering(values: npt.NDArray, labels: npt.NDArray, seed: int = 0) -> float:
    """Return the adjusted Rand index of Leiden clusters with the types, the best of ten resolutions."""
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    cells = ad.AnnData(np.asarray(values, np.float32))
    sc.pp.pca(cells, n_comps=min(30, min(cells.shape) - 1), random_state=seed)
    sc.pp.neighbors(cells, n_neighbors=15, random_state=seed)
    best = 0.0
    for resolution in _RESOLUTIONS:
        sc.tl.leiden(cells, resolution=resolution, random_state=seed, flavor="igraph", n_iterations=2)
        best = max(best, adjusted_rand_score(labels, cells.obs["leiden"]))
    return float(best)


def transfer(values: npt.NDArray, labels: npt.NDArray, real: npt.NDArray, real_labels: npt.NDArray) -> float:
    """Return the balanced accuracy, on reconstructed cells, of a classifier that learned the types on real ones.

    Logistic regression on 30 principal components of the real cells. Types with at least 5 cells on both sides.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    types = _shared_types(labels, real_labels)
    known, asked = np.isin(real_labels, types), np.isin(labels, types)
    space = PCA(min(30, known.sum() - 1), random_state=0).fit(real[known])
    classifier = LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced")
    classifier.fit(space.transform(real[known]) / 10, real_labels[known])
    right = classifier.predict(space.transform(values[asked]) / 10) == labels[asked]
    return float(np.mean([right[labels[asked] == name].mean() for name in types]))


def within_types(pair: Pair, values: npt.NDArray) -> dict[str, float]:
    """Return what of the variation within types is kept, as `quality.within_lines`; types of 15 cells on both sides."""
    measured = log_normalise(pair.cells.X)
    labels, is_source = pair.cells.obs["celltype"].to_numpy(), pair.is_source
    real = np.concatenate([measured[~is_source], log_normalise(pair.truth.X)])
    real_labels = np.concatenate([labels[~is_source], pair.truth.obs["celltype"]])
    totals = np.asarray(pair.cells.X.sum(axis=1)).ravel()
    kept, spread = [], []
    from sklearn.decomposition import PCA

    for name in _shared_types(labels[is_source], real_labels, 15):
        like = real[real_labels == name]
        loadings = PCA(3, random_state=0).fit(like).components_.T
        mine = is_source & (labels == name)
        after = values[labels[is_source] == name]
        before_and_after = (scores(each, totals[mine], loadings).T for each in (measured[mine], after))
        kept.append([np.corrcoef(a, b)[0, 1] for a, b in zip(*before_and_after, strict=True)])
        spread.append(after.std(axis=0).mean() / like.std(axis=0).mean())
    return dict(zip(("PC1", "PC2", "PC3"), np.mean(kept, axis=0), strict=True)) | {"spread": float(np.mean(spread))}


def against_bulk(values: npt.NDArray, labels: npt.NDArray, genes: pd.Index, bulk: pd.DataFrame) -> dict[str, float]:
    """Return correlations with bulk RNA: of means and differences of types, and of each cell (rank correlation)."""
    shared = genes.intersection(bulk.columns)
    ours = values[:, genes.get_indexer(shared)]
    types = sorted(set(labels) & set(bulk.index))
    truth = bulk.loc[types, shared].to_numpy()
    means = np.stack([ours[labels == name].mean(axis=0) for name in types])
    combinations = list(itertools.combinations(range(len(types)), 2))
    cells = [spearmanr(cell, truth[types.index(label)])[0] for cell, label in zip(ours, labels, strict=True)]
    return {
        "bulk_mean_r": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(means, truth, strict=True)])),
        "bulk_difference_r": float(
            np.mean([np.corrcoef(means[a] - means[b], truth[a] - truth[b])[0, 1] for a, b in combinations])
        ),
        "bulk_cell_rho": float(np.mean(cells)),
    }


def against_proteins(values: npt.NDArray, genes: pd.Index, antibodies: pd.DataFrame) -> dict[str, float]:
    """Return the mean rank correlation over cells of RNA and its protein, and its size with antibodies that bind none.

    A gene that does not vary correlates 0.
    """
    known = {antibody: gene for antibody, gene in PROTEINS.items() if gene in genes}

    def rho(gene: str, antibody: str) -> float:
        expression = values[:, genes.get_loc(gene)]
        return float(spearmanr(expression, antibodies[antibody])[0]) if np.ptp(expression) > 0 else 0.0

    own = [rho(gene, antibody) for antibody, gene in known.items()]
    isotypes = [name for name in ISOTYPES if antibodies[name].nunique() > 1]
    none = [rho(gene, isotype) for gene in known.values() for isotype in isotypes]
    return {"protein_rho": float(np.mean(own)), "isotype_rho": float(np.mean(np.abs(none)))}


def squared_error(values: npt.NDArray, rest: sparse.csr_matrix) -> float:
    """Return the mean squared error of log counts per 10,000 against the counts held back."""

    def of_ten_thousand(expression: npt.NDArray) -> npt.NDArray:
        return np.log1p(expression / np.maximum(expression.sum(axis=1, keepdims=True), 1e-9) * 1e4)

    return float(((of_ten_thousand(np.expm1(values)) - of_ten_thousand(rest.toarray())) ** 2).mean())


def figures(pair: Pair, estimate: Estimate, are_source: bool = True) -> dict[str, float]:
    """Return all figures that the pair has a truth for.

    Args:
        pair: The pair.
        estimate: What a method made of it.
        are_source: Whether `estimate.source` are the source cells; if not, they are the other reference cells.
    """
    if "celltype" not in pair.cells.obs:
        return {"squared_error": squared_error(estimate.source, pair.truth.X)} if are_source else {}
    values, chosen = estimate.source, pair.is_source == are_source
    all_labels, real_labels = (cells.obs["celltype"].to_numpy(dtype=str) for cells in (pair.cells, pair.truth))
    labels, real = all_labels[chosen], log_normalise(pair.truth.X)
    types = _shared_types(labels, real_labels)
    statistics = (GroupStatistics.of(*side).at(types) for side in ((values, labels), (real, real_labels)))
    found = agreement(*statistics)
    if len(set(real_labels)) > 1:
        found["own_type"] = of_own_type(values, labels, real, real_labels)[0].mean()
        found["transfer"] = transfer(values, labels, real, real_labels)
        found["ari"] = clustering(values, labels)
        if estimate.joint is not None:
            found["ari_joint"] = clustering(estimate.joint, all_labels)
        if estimate.latent is not None:
            found["ari_latent"] = clustering(estimate.latent[chosen], labels)
            found["ari_joint_latent"] = clustering(estimate.latent, all_labels)
    if are_source:
        found |= within_types(pair, values)
    if pair.bulk is not None:
        found |= against_bulk(values, labels, pair.cells.var_names, pair.bulk)
    if pair.proteins is not None:
        found |= against_proteins(values, pair.cells.var_names, pair.proteins[chosen])
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


# --- methods ---------------------------------------------------------------------------------------------------------


def estimate_of(method: str, pair: Pair, seed: int, recipes: dict[str, Any], python: dict[str, Path]) -> Estimate:
    """Return what a method makes of the cells of a pair."""
    measured = log_normalise(pair.cells.X)
    if method == "measured":
        return Estimate(measured[pair.is_source], measured)
    if method == "real":
        return Estimate(measured[~pair.is_source])
    if method in recipes:
        result = reconstruct(pair.cells, recipes[method], seed, pair.reference)[pair.cells.obs_names]
        values = np.asarray(result.layers["estimated_counts"])
        return Estimate(values[pair.is_source], values, result.obsm["X_DISCERN"])
    from other_methods import _MAGIC, _SCVI, _SYSVI, run

    script, key, expression = {
        "MAGIC": (_MAGIC, "imputed", measured),
        "scVI": (_SCVI, "draws", pair.cells.X.toarray()),
        "sysVI": (_SYSVI, "decoded", measured),
    }[method]
    batch = pair.cells.obs["batch"].to_numpy(dtype=str)
    arrays = {"values": expression, "batch": batch, "reference": np.array(pair.reference)}
    made, _ = run(script, python[method], seed, **arrays)
    return Estimate(made[key][pair.is_source], made[key], made.get("latent"))


def file_of(results: Path, pair: str, method: str, seed: int) -> Path:
    safe = "".join(letter if letter.isalnum() else "-" for letter in pair)
    return results / safe / f"{method}-{seed}.json"


def measure(name: str, method: str, seed: int, pair: Pair, results: Path, **how: Any) -> None:
    """Run a method on a pair and write its figures."""
    start = time.perf_counter()
    estimate = estimate_of(method, pair, seed, **how)
    seconds = time.perf_counter() - start
    found = figures(pair, estimate, are_source=method != "real") | {"seconds": seconds}
    if len(found) > 1:
        written = {"pair": name, "method": method, "seed": seed, "recipe": how["recipes"].get(method), "figures": found}
        path = file_of(results, name, method, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(written, indent=1) + "\n")
        row(f"{name}: {method}, seed {seed}", found)


# --- tables ----------------------------------------------------------------------------------------------------------


def table(results: Path) -> pd.DataFrame:
    """Return the figures, mean over seeds: a row for each pair and method."""
    read_files = [json.loads(path.read_text()) for path in sorted(results.glob("*/*.json"))]
    rows = [{"pair": one["pair"], "method": one["method"], "seed": one["seed"], **one["figures"]} for one in read_files]
    if not rows:
        raise SystemExit(f"{results}: no results yet")
    groups = pd.DataFrame(rows).groupby(["pair", "method"])
    means = groups[[name for name in FIGURES if name in rows[0] or any(name in row for row in rows)]].mean()
    return means.assign(seeds=groups.size())


def markdown(means: pd.DataFrame) -> str:
    """Return the figures as tables of Markdown: the common ones, then those of truths that few pairs have."""
    order = {name: number for number, name in enumerate(METHODS)}
    rows = sorted(means.index, key=lambda key: (key[0], order.get(key[1], len(order)), key[1]))
    common = [name for name in (*EXPRESSION, *IDENTITY, "PC1", "PC2", "PC3", "spread") if name in means]
    tables = []
    for shown in (common, [name for name in FIGURES if name in means and name not in (*common, "seconds")]):
        lines = [["", "", "seeds", *(FIGURES[name] for name in shown)], ["---"] * (len(shown) + 3)]
        for pair, method in rows:
            values = means.loc[(pair, method), shown]
            if values.notna().any():
                seeds = str(int(means.loc[(pair, method), "seeds"]))
                lines.append([pair, method, seeds, *map(_number, values)])
        firsts = [None, *(line[0] for line in lines)]
        for line, before in zip(lines, firsts, strict=False):
            line[0] = "" if line[0] == before and before != "---" else line[0]
        if len(lines) > 2:
            tables.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(tables)


def _number(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if np.isfinite(value) else ""


def write_docs(file: Path, means: pd.DataFrame) -> None:
    """Put the tables between the two marks of a page."""
    begin, end = (f"<!-- benchmarks/tissues.py: {which} -->" for which in ("begin", "end"))
    text = file.read_text()
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{file}: expected the lines {begin} and {end} once each")
    before, after = text.split(begin)[0], text.split(end)[1]
    file.write_text(f"{before}{begin}\n\n{markdown(means)}\n\n{end}{after}")


def choose(means: pd.DataFrame, names: list[str], tolerance: float = 0.005) -> pd.DataFrame:
    """Choose a recipe for each pair by what all others say of it.

    Of the recipes that lose no more than `tolerance` against the first, in each figure of expression averaged over the
    other pairs, that with the highest mean of the figures of identity; a pair counts as much as another.

    Args:
        means: From `table`.
        names: Methods, the first of them what has been.
        tolerance: What may be lost in expression.

    Returns:
        For each pair, and for "all" where none is left out: the choice, and identity and expression of the pair itself
        with the first recipe and with the choice.
    """
    shown = [name for name in (*EXPRESSION, *IDENTITY) if name in means]
    wanted = means.loc[means.index.get_level_values("method").isin(names), shown].unstack("method").dropna(how="all")
    complete = wanted["mean_r"].notna().all(axis=1) & wanted["own_type"].notna().all(axis=1)
    wanted = wanted[complete]

    def of(those: pd.DataFrame, method: str, what: tuple[str, ...]) -> pd.Series:
        return pd.Series({name: those[name, method].mean() for name in what})

    rows = {}
    for left_out in (*wanted.index, "all"):
        others = wanted.drop(left_out, errors="ignore")
        first = of(others, names[0], EXPRESSION)
        harmless = [name for name in names if (of(others, name, EXPRESSION) >= first - tolerance).all()]
        choice = max(harmless, key=lambda name: of(others, name, IDENTITY).mean())
        own = wanted.loc[[left_out]] if left_out in wanted.index else wanted
        rows[left_out] = {"choice": choice} | {
            f"{kind}, {which}": of(own, method, what).mean()
            for kind, what in (("identity", IDENTITY), ("expression", EXPRESSION))
            for which, method in ((names[0], names[0]), ("choice", choice))
        }
    return pd.DataFrame(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the cells; without it, only the tables of what is there")
    parser.add_argument("--results", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", nargs="+", help="parts of the names of pairs; all if not given")
    parser.add_argument("--methods", nargs="+", help="some of the methods and recipes; all if not given")
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME=FILE.json")
    parser.add_argument("--choose", nargs="+", metavar="METHOD", help="choose one, each pair left out in turn")
    parser.add_argument("--docs", type=Path, help="page whose tables are made anew")
    for method in ("magic", "scvi"):
        parser.add_argument(f"--{method}", type=Path, help="interpreter that has it")
    arguments = parser.parse_args()
    recipes = {"preset": PRESET, "published": PUBLISHED}
    for given in arguments.recipe:
        name, _, file = given.partition("=")
        recipes[name] = merged(PRESET, json.loads(Path(file).read_text()))
    python = {"MAGIC": arguments.magic, "scVI": arguments.scvi, "sysVI": arguments.scvi}
    methods = arguments.methods or [*METHODS, *(name for name in recipes if name not in METHODS)]
    for method in [name for name in methods if python.get(name, Path()) is None]:
        print(f"{method}: left out, no interpreter given (--{'magic' if method == 'MAGIC' else 'scvi'})")
        methods.remove(method)
    for seed in arguments.seeds if arguments.data else ():
        for name, make in pairs(arguments.data, seed).items():
            if arguments.pairs and not any(part in name for part in arguments.pairs):
                continue
            missing = [method for method in methods if not file_of(arguments.results, name, method, seed).exists()]
            pair = make() if missing else None
            for method in missing:
                measure(name, method, seed, pair, arguments.results, recipes=recipes, python=python)
    means = table(arguments.results)
    with pd.option_context("display.width", 250, "display.max_columns", None, "display.max_rows", None):
        print(means.round(3).rename(columns=FIGURES).to_string(na_rep=""))
        if arguments.choose:
            print(choose(means, arguments.choose).to_string(float_format="{:.3f}".format))
    if arguments.docs:
        write_docs(arguments.docs, means[means.index.get_level_values("method").isin(METHODS)])


if __name__ == "__main__":
    main()
