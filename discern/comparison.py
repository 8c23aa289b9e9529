"""Which cells are compared with which, and all figures of the comparison. See `discern.evaluation`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from discern import progress
from discern.agreement import (
    GeneErrors,
    GroupStatistics,
    averages,
    compare_differences,
    compare_groups,
    shared_groups,
)
from discern.blocks import as_csr, is_lazy, iter_blocks
from discern.errors import InvalidInputError
from discern.mmd import auc, mmd_loss
from discern.neighbours import NEIGHBOURS, kept_neighbours, other_batch_share, reference_distance, training_cells
from discern.projection import CheckMetaData

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    from scipy import sparse

    from discern.blocks import Matrix
    from discern.estimators.batch_integration import DISCERN
    from discern.io import DISCERNData

FORMAT_VERSION = 1

#: What is compared with the held-out cells of the reference batch, as keys of the figures -> in words.
METHODS = {
    "measured": "not reconstructed (floor)",
    "X": "reconstructed, X (sampled)",
    "estimated_counts": "reconstructed, estimated_counts",
    "real": "other real reference cells (ceiling)",
}

#: The same in a word, for the heads of tables.
SHORT = {"measured": "floor", "X": "X", "estimated_counts": "estimated_counts", "real": "ceiling"}

#: The figures of each method -> in words.
FIGURES = {
    "mean_r": "r of means",
    "mean_rmse": "RMSE of means",
    "detection_r": "r of detection",
    "difference_r": "r of differences",
    "t_rho": "rho of t",
    "top200": "top 200 shared",
    "mmd": "MMD",
    "auc": "AUC",
}

_ALL_CELLS = "all cells"
_MOST_LABELS = 200
_CELLS_AT_ONCE = 512
_SAMPLE = 9000  # cells in pictures and in figures that take time with the square of the cells
_SAMPLE_OF_EACH = 300


@dataclass(frozen=True)
class Comparison:
    """Which cells are compared with which.

    Attributes:
        reference: The batch to project to.
        sources: The batches whose cells are projected.
        label: obs column of the cell types, None if there is none.
        split: "test" or "valid": the reference cells that training did not see.
        labels: The type of each cell, missing where unknown; one type for all if there is no label.
        held_out: Which cells are the real ones to compare with.
        rest: The other cells of the reference batch.
    """

    reference: str
    sources: tuple[str, ...]
    label: str | None
    split: str
    labels: pd.Categorical
    held_out: npt.NDArray
    rest: npt.NDArray

    @classmethod
    def choose(cls, obs: pd.DataFrame, reference: str | None, sources: Sequence[str], label: str | None) -> Comparison:
        """Check the names and choose those not given.

        Args:
            obs: Annotation of processed cells, with `batch` (categorical), `split` and `n_genes`.
            reference: The batch to project to; None for the one with most genes detected in its median cell.
            sources: The batches to project; none for all others.
            label: Column of the cell types; None for `celltype`, if there is one.

        Raises:
            UnknownNameError: If there is no such column.
            InvalidInputError: If there is no such batch, or nothing to compare.
        """
        batch = obs["batch"].astype(str).to_numpy()
        check = CheckMetaData(obs)
        for name in [*([reference] if reference is not None else []), *sources]:
            check.check(("batch", name))
        if label is not None:
            check.check((label, None))
        if reference is None:
            if "n_genes" not in obs:
                raise InvalidInputError("obs has no column 'n_genes', which would choose the reference: name a batch")
            reference = str(obs["n_genes"].groupby(batch).median().idxmax())
        chosen = tuple(dict.fromkeys(sources)) or tuple(name for name in sorted(set(batch)) if name != reference)
        if not chosen:
            raise InvalidInputError(f"there is nothing to compare: {reference!r} is the only batch of the experiment")
        if reference in chosen:
            raise InvalidInputError(f"batch {reference!r} cannot be both the reference and a source")
        of_reference, split = batch == reference, obs["split"].astype(str).to_numpy()
        held_out = next((name for name in ("test", "valid") if (of_reference & (split == name)).any()), None)
        if held_out is None:
            raise InvalidInputError(
                f"batch {reference!r} has no cells that training did not see; set input_ds.split.test_cells or "
                "valid_cells and run `discern process` and `discern train` again"
            )
        label = label or ("celltype" if "celltype" in obs else None)
        labels = _categorical(pd.Series(_ALL_CELLS, obs.index) if label is None else obs[label])
        mask = of_reference & (split == held_out)
        return cls(reference, chosen, label, held_out, labels, mask, of_reference & ~mask)


def _categorical(column: pd.Series) -> pd.Categorical:
    texts = column.astype(str).where(column.notna())
    if texts.nunique() > _MOST_LABELS:
        raise InvalidInputError(
            f"column {column.name!r} has {texts.nunique()} values, more than {_MOST_LABELS}: expected cell types"
        )
    return pd.Categorical(texts.astype(object))


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        figures: All numbers, as in `evaluation.json`.
        cells: A row per cell: `batch`, `split`, `discern_distance`.
        genes: A row per gene: `discern_rmse`, `discern_r`, `detection_BATCH`.
        means: For each source and method, mean expression in each cell type, types x genes.
        real_means: The same of the held-out reference cells.
        shown: Annotation of the cells in pictures: `batch` and the label.
        representations: Title -> those cells in some space, cells x dimensions.
    """

    figures: dict[str, Any]
    cells: pd.DataFrame
    genes: pd.DataFrame
    means: dict[str, dict[str, pd.DataFrame]] = field(default_factory=dict)
    real_means: pd.DataFrame = field(default_factory=pd.DataFrame)
    shown: pd.DataFrame = field(default_factory=pd.DataFrame)
    representations: dict[str, npt.NDArray] = field(default_factory=dict)


def measure(model: DISCERN, data: DISCERNData, comparison: Comparison) -> Evaluation:
    """Compute all that `evaluate` writes.

    Args:
        model: A trained model.
        data: The cells of its experiment.
        comparison: Which of them to compare.
    """
    measurement = _Measurement(model, data, comparison)
    sources = {}
    for source in progress.track(comparison.sources, "projecting and comparing", len(comparison.sources)):
        sources[source] = measurement.compare_source(source)
    figures = measurement.describe() | {"sources": sources, "latent": measurement.mixing()}
    genes = measurement.genes()
    return Evaluation(
        figures=_finite(figures | {"distance": measurement.distances(), "genes": _gene_summary(genes)}),
        cells=measurement.cells(),
        genes=genes,
        means=measurement.means,
        real_means=_means(measurement.real),
        shown=measurement.shown(),
        representations=measurement.representations(),
    )


class _Measurement:
    """The cells, encoded, and what is kept of them between the steps of a comparison."""

    def __init__(self, model: DISCERN, data: DISCERNData, comparison: Comparison) -> None:
        from discern.io import np_one_hot

        self.model, self.data, self.comparison = model, data, comparison
        self.batch = data.obs["batch"].astype(str).to_numpy()
        model.prepare_projection(data)
        self.batches = model.batches or [str(name) for name in data.obs["batch"].cat.categories]
        self.own = np_one_hot(pd.Categorical(self.batch, categories=self.batches))
        with progress.phase("encoding"):
            self.latent, _ = model.generate_latent_codes(data.X, self.own, _CELLS_AT_ONCE)
        self.training = training_cells(data.obs, comparison.reference)
        self.distance = reference_distance(self.latent, self.batch, self.training)

        roles = [comparison.held_out, comparison.rest, *(self.batch == name for name in comparison.sources)]
        rng = np.random.default_rng(0)
        most = max(_SAMPLE_OF_EACH, _SAMPLE // len(roles))
        samples = [rng.permutation(np.flatnonzero(role))[:most] for role in roles]
        self.sample = np.sort(np.concatenate(samples))
        components = data.varm["PCs"].shape[1]
        self.components = {
            name: np.zeros((len(self.sample), components), np.float32) for name in ("measured", "X", "estimated_counts")
        }
        scale = data.var["var_scaling"].to_numpy()[:, np.newaxis]
        self._loadings = np.asarray(data.varm["PCs"]) / scale
        self._origin = data.var["mean_scaling"].to_numpy() @ self._loadings

        self.means: dict[str, dict[str, pd.DataFrame]] = {}
        self.real = self._measured(comparison.held_out)
        self.rest = self._measured(comparison.rest)

    def _measured(self, mask: npt.NDArray) -> GroupStatistics:
        """Return the statistics of cells as measured, and keep the principal components of those in the sample."""
        statistics = GroupStatistics(self.comparison.labels.categories, self.data.n_vars)
        for rows, block in cell_blocks(self.data.X, np.flatnonzero(mask)):
            statistics.add(block, self.comparison.labels.codes[rows])
            self._keep("measured", rows, block)
        return statistics

    def _keep(self, method: str, rows: npt.NDArray, block: Matrix) -> None:
        _, inside, position = np.intersect1d(rows, self.sample, assume_unique=True, return_indices=True)
        self.components[method][position] = block[inside] @ self._loadings - self._origin

    def compare_source(self, source: str) -> dict[str, Any]:
        """Project a batch and return its figures."""
        from discern.functions import sample_counts

        mask = self.batch == source
        statistics = {name: GroupStatistics(self.real.groups, self.data.n_vars) for name in METHODS}
        statistics |= {"measured": self._measured(mask), "real": self.rest}
        rng = np.random.default_rng(0)
        target = np.zeros((1, len(self.batches)), np.float32)
        target[0, self.batches.index(self.comparison.reference)] = 1
        cells = np.flatnonzero(mask)
        for begin in range(0, len(cells), _CELLS_AT_ONCE):
            rows = cells[begin : begin + _CELLS_AT_ONCE]
            counts, dropouts = self.model.generate_cells_from_latent(
                self.latent[rows], np.repeat(target, len(rows), 0), _CELLS_AT_ONCE
            )
            for name, block in (("estimated_counts", counts), ("X", sample_counts(counts, dropouts, seed=rng))):
                statistics[name].add(block, self.comparison.labels.codes[rows])
                self._keep(name, rows, block)
        self.means[source] = {name: _means(statistics[name]) for name in ("measured", "X", "estimated_counts")}
        return self._compared(source, statistics) | {"neighbours_kept": self._kept(mask)}

    def _compared(self, source: str, statistics: Mapping[str, GroupStatistics]) -> dict[str, Any]:
        shared = shared_groups(statistics["measured"], self.real)
        real = self.real.at(shared)
        sampled = {
            name: (self.comparison.rest if name == "real" else self.batch == source)[self.sample] for name in METHODS
        }
        held_out = self.components["measured"][self.comparison.held_out[self.sample]]
        methods: dict[str, dict[str, Any]] = {}
        types: dict[str, dict[str, Any]] = {name: {} for name in shared}
        pairs: dict[Any, dict[str, Any]] = {pair: {} for pair in itertools.combinations(shared, 2)}
        for method in METHODS:
            ours = statistics[method].at([name for name in shared if name in statistics[method].present])
            by_type, by_pair = compare_groups(ours, real), compare_differences(ours, real)
            space = self.components["measured" if method == "real" else method][sampled[method]]
            enough = min(len(space), len(held_out)) >= 2
            methods[method] = averages(by_type, by_pair) | {
                "mmd": mmd_loss(space, held_out, self.data.config["mmd_kernel"]["all"]) if enough else None,
                "auc": auc(space, held_out) if enough else None,
            }
            for name, row in by_type.to_dict("index").items():
                types[str(name)][method] = row
            for pair, row in by_pair.to_dict("index").items():
                pairs[pair][method] = row
        return {
            "cells": int((self.batch == source).sum()),
            "shared_types": shared,
            "other_types": [name for name in statistics["measured"].present if name not in shared],
            "methods": methods,
            "types": types,
            "pairs": [{"types": list(pair)} | found for pair, found in pairs.items()],
        }

    def _kept(self, mask: npt.NDArray) -> dict[str, Any]:
        inside = mask[self.sample]
        if inside.sum() < 4:
            return {}
        before = self.components["measured"][inside]
        spaces = {"latent": self.latent[self.sample][inside]}
        spaces |= {name: self.components[name][inside] for name in ("X", "estimated_counts")}
        kept = {name: kept_neighbours(before, after) for name, after in spaces.items()}
        return {name: one["share"] for name, one in kept.items()} | {"expected": kept["latent"]["expected"]}

    def mixing(self) -> dict[str, float]:
        """Return how far the batches are mixed in latent space."""
        known = self.comparison.label is not None
        labels = self.comparison.labels.codes[self.sample] if known else None
        return other_batch_share(self.latent[self.sample], self.batch[self.sample], labels)

    def describe(self) -> dict[str, Any]:
        """Return what was compared with what."""
        return {
            "format_version": FORMAT_VERSION,
            "epoch": self.model.start_step,
            "n_cells": self.data.n_obs,
            "n_genes": self.data.n_vars,
            "batches": {
                str(name): int(count) for name, count in zip(*np.unique(self.batch, return_counts=True), strict=True)
            },
            "reference": {
                "batch": self.comparison.reference,
                "split": self.comparison.split,
                "held_out_cells": int(self.comparison.held_out.sum()),
                "other_cells": int(self.comparison.rest.sum()),
            },
            "label": self.comparison.label,
        }

    def genes(self) -> pd.DataFrame:
        """Return error and correlation of auto-encoding held-out cells of all batches, and detection in each batch."""
        codes = pd.Categorical(self.batch, categories=self.batches).codes
        errors = GeneErrors(len(self.batches), self.data.n_vars)
        held_out = (self.data.obs["split"] == self.comparison.split).to_numpy()
        for rows, block in cell_blocks(self.data.X, np.flatnonzero(held_out)):
            counts, _ = self.model.generate_cells_from_latent(self.latent[rows], self.own[rows], _CELLS_AT_ONCE)
            errors.add(block.toarray(), counts, codes[rows])
        statistics = GroupStatistics(self.batches, self.data.n_vars)
        for part, block in iter_blocks(self.data.X):
            statistics.add(block, codes[part])
        table = pd.DataFrame({"discern_rmse": errors.rmse, "discern_r": errors.correlation}, self.data.var_names)
        for name, detection in zip(self.batches, statistics.detection, strict=True):
            table[f"detection_{name}"] = detection
        return table.rename_axis("gene")

    def cells(self) -> pd.DataFrame:
        """Return each cell's distance from the reference."""
        table = self.data.obs[["batch", "split"]].copy()
        table["discern_distance"] = self.distance
        return table.rename_axis("cell")

    def distances(self) -> dict[str, Any]:
        """Return how far groups of cells are from the reference."""

        def described(mask: npt.NDArray) -> dict[str, Any]:
            low, median, high = np.quantile(self.distance[mask], [0.05, 0.5, 0.95])
            return {"cells": int(mask.sum()), "q05": low, "median": median, "q95": high}

        labels = self.comparison.labels
        sources = {}
        for source in self.comparison.sources:
            mask = self.batch == source
            types = {
                name: described(mask & (labels.codes == code))
                for code, name in enumerate(labels.categories)
                if (mask & (labels.codes == code)).any()
            }
            sources[source] = described(mask) | {"types": types}
        return {"neighbours": NEIGHBOURS, "held_out": described(self.comparison.held_out), "sources": sources}

    def shown(self) -> pd.DataFrame:
        """Return the annotation of the cells in pictures."""
        table = pd.DataFrame({"batch": pd.Categorical(self.batch[self.sample])})
        if self.comparison.label is not None:
            table[self.comparison.label] = self.comparison.labels[self.sample].remove_unused_categories()
        return table

    def representations(self) -> dict[str, npt.NDArray]:
        """Return the cells in pictures before and after, and their codes."""
        source = np.isin(self.batch[self.sample], self.comparison.sources)[:, np.newaxis]
        after = np.where(source, self.components["X"], self.components["measured"])
        return {
            "as measured": self.components["measured"],
            "latent code": self.latent[self.sample],
            "reconstructed": after,
        }


def cell_blocks(
    X: Matrix, rows: npt.NDArray, cells: int = _CELLS_AT_ONCE
) -> Iterator[tuple[npt.NDArray, sparse.csr_matrix]]:
    """Iterate over some rows of a matrix, reading only the blocks on disk that hold any.

    Args:
        X: Sparse, dense or dask matrix, (n_cells, n_genes).
        rows: Numbers of the rows, ascending.
        cells: Most rows of a block.

    Yields:
        Numbers of the rows, and these rows as float32 CSR.

    Example:
        >>> [(rows.tolist(), block.nnz) for rows, block in cell_blocks(np.eye(6), np.array([0, 2, 5]), cells=2)]
        [([0, 2], 2), ([5], 1)]
    """
    bounds = np.cumsum([0, *(X.chunks[0] if is_lazy(X) else [X.shape[0]])])
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        inside = rows[(rows >= begin) & (rows < end)]
        if not len(inside):
            continue
        chunk = X.blocks[number].compute(scheduler="synchronous") if is_lazy(X) else X
        for first in range(0, len(inside), cells):
            part = inside[first : first + cells]
            yield part, as_csr(chunk[part - begin])


def _means(statistics: GroupStatistics) -> pd.DataFrame:
    return pd.DataFrame(statistics.mean, index=statistics.groups).dropna(how="all")


def _gene_summary(genes: pd.DataFrame) -> dict[str, Any]:
    r = genes["discern_r"]
    return {
        "median_rmse": float(genes["discern_rmse"].median()),
        "median_r": float(r.median()),
        "r_above": {str(limit): int((r > limit).sum()) for limit in (0.3, 0.5, 0.7, 0.9)},
        "r_undefined": int(r.isna().sum()),
    }


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for, NaN and infinity, by None."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
