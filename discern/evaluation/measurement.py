"""All figures of an evaluation, from a trained model and the cells of its experiment."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from discern.data.chunks import cell_blocks, iter_blocks
from discern.data.components import PrincipalComponents
from discern.evaluation.agreement import (
    MethodMetrics,
    NeighboursKept,
    PairMetrics,
    PairResult,
    ReferenceCells,
    SourceResult,
    TypeMetrics,
    finite,
)
from discern.evaluation.results import (
    METHODS,
    Distances,
    DistanceSummary,
    Evaluation,
    EvaluationResult,
    GeneSummary,
    Mixing,
    SourceDistances,
)
from discern.inputs.labels import gene_symbols
from discern.metrics.alignment import lacking
from discern.metrics.gene_agreement import (
    GeneErrors,
    GroupStatistics,
    averages,
    compare_differences,
    compare_groups,
    shared_groups,
)
from discern.metrics.latent_space import (
    NEIGHBOURS,
    kept_neighbours,
    other_batch_share,
    reference_distance,
    training_cells,
)
from discern.metrics.two_sample import auc, mmd_loss
from discern.model.projection import EncodedCells, OwnCells, codes, decoded_chunks
from discern.runtime import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from discern.data.chunks import Matrix
    from discern.data.processed import DISCERNData
    from discern.evaluation.selection import Comparison
    from discern.model.trained import TrainedNetwork


_SAMPLE = 9000  # cells in pictures and in figures that take time with the square of the cells
_SAMPLE_OF_EACH = 300
_DRAWN = ("measured", "X", "estimated_counts")


def measure(
    trained: TrainedNetwork,
    data: DISCERNData,
    comparison: Comparison,
    experiment: str = "an experiment",
    markers: Sequence[str] = (),
) -> Evaluation:
    """Compute all that `evaluate` writes.

    Args:
        trained: A trained network.
        data: The cells of its experiment.
        comparison: Which of them to compare.
        experiment: The experiment's name.
        markers: Names of genes to show: measured, reconstructed and in real cells.
    """
    own = OwnCells.of(trained, data)
    cells = replace(own.cells, latent=codes(trained, own, ("batch", comparison.reference)))
    sample = Sample.draw(data, cells.batch, comparison)
    distance = reference_distance(own.cells.latent, cells.batch, training_cells(data.obs, comparison.reference))
    distance *= lacking(own.cells.latent, cells.batch, own.alignments(comparison.reference))
    real = _measured(data, comparison, comparison.held_out, sample)
    rest = _measured(data, comparison, comparison.rest, sample)
    sources, means = {}, {}
    shown_genes = [(comparison.reference, "measured", real)]
    for source in progress.track(comparison.sources, "projecting and comparing", len(comparison.sources)):
        mask = cells.batch == source
        statistics = _projected(trained, data, cells, comparison, mask, sample) | {"real": rest}
        kept = _neighbours_kept(cells, sample, mask[sample.rows])
        sources[source] = compare(
            statistics, real, sample, comparison, mask, data.config["mmd_kernel"]["all"], neighbours_kept=kept
        )
        means[source] = {method: _means(statistics[method]) for method in _DRAWN}
        shown_genes += [(source, method, statistics[method]) for method in _DRAWN]
    genes = gene_errors(trained, data, own.cells, comparison.split)
    labels = comparison.labels.codes[sample.rows] if comparison.label is not None else None
    result = EvaluationResult(
        experiment=experiment,
        epoch=trained.epoch,
        n_cells=data.n_obs,
        n_genes=data.n_vars,
        batches={str(name): int(n) for name, n in zip(*np.unique(cells.batch, return_counts=True), strict=True)},
        reference=ReferenceCells(
            comparison.reference, comparison.split, int(comparison.held_out.sum()), int(comparison.rest.sum())
        ),
        label=comparison.label,
        sources=sources,
        latent=Mixing(**other_batch_share(cells.latent[sample.rows], cells.batch[sample.rows], labels)),
        distance=summarise_distances(distance, cells.batch, comparison),
        genes=GeneSummary.of(genes),
    )
    table = data.obs[["batch", "split"]].assign(discern_distance=distance).rename_axis("cell")
    shown = pd.DataFrame({"batch": pd.Categorical(cells.batch[sample.rows])})
    if comparison.label is not None:
        shown[comparison.label] = comparison.labels[sample.rows].remove_unused_categories()
    representations = _representations(cells, sample, comparison.sources)
    chosen = marker_table(shown_genes, data.var, markers) if markers else pd.DataFrame()
    return Evaluation(result, table, genes, means, _means(real), shown, representations, chosen)


def marker_table(
    statistics: Sequence[tuple[str, str, GroupStatistics]], var: pd.DataFrame, markers: Sequence[str]
) -> pd.DataFrame:
    """Return expression and detection of some genes in each cell type.

    Args:
        statistics: Batch, matrix and its statistics; of the reference, those of its held-out cells.
        var: The genes.
        markers: Their names.

    Returns:
        A row for each gene, batch, matrix and type: `gene`, `symbol`, `batch`, `matrix` ("measured", "X" or
        "estimated_counts"), `celltype`, `cells`, `mean` of log-normalised expression, and `detected`, the share of the
        cells in which it is above zero (missing for estimated_counts, which are hardly ever zero).
    """
    columns = var.index.get_indexer(pd.Index(markers))
    symbols = gene_symbols(var)[columns]
    rows = []
    for batch, method, found in statistics:
        means, detections = found.mean[:, columns], found.detection[:, columns]
        for group, kind in enumerate(found.groups):
            if cells := int(found.cells[group]):
                of_type = zip(markers, symbols, means[group], detections[group], strict=True)
                rows += [(*gene, batch, method, kind, cells, mean, share) for *gene, mean, share in of_type]
    names = ["gene", "symbol", "batch", "matrix", "celltype", "cells", "mean", "detected"]
    table = pd.DataFrame(rows, columns=names)
    table.loc[table["matrix"] == "estimated_counts", "detected"] = np.nan
    return table


@dataclass(frozen=True)
class Sample:
    """Some cells of each role, whose principal components are kept as their chunks pass.

    Attributes:
        rows: Numbers of the cells, ascending.
        space: The way into the space of the components.
        components: For each method that changes expression, the cells' components, (n_rows, n_components).
    """

    rows: npt.NDArray[np.intp]
    space: PrincipalComponents
    components: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def draw(cls, data: DISCERNData, batch: npt.NDArray[np.str_], comparison: Comparison) -> Self:
        """Draw the cells, as many of each role."""
        roles = [comparison.held_out, comparison.rest, *(batch == name for name in comparison.sources)]
        rng = np.random.default_rng(0)
        most = max(_SAMPLE_OF_EACH, _SAMPLE // len(roles))
        rows = np.sort(np.concatenate([rng.permutation(np.flatnonzero(role))[:most] for role in roles]))
        space = PrincipalComponents.of(data)
        empty = {method: np.zeros((len(rows), space.n_components), np.float32) for method in _DRAWN}
        return cls(rows, space, empty)

    def keep(self, method: str, rows: npt.NDArray[np.intp], chunk: Matrix) -> None:
        """Keep the components of those rows of a chunk that are in the sample."""
        _, inside, position = np.intersect1d(rows, self.rows, assume_unique=True, return_indices=True)
        self.components[method][position] = self.space.project(chunk[inside])


def _measured(
    data: DISCERNData, comparison: Comparison, mask: npt.NDArray[np.bool_], sample: Sample
) -> GroupStatistics:
    """Return the statistics of cells as measured."""
    statistics = GroupStatistics(comparison.labels.categories, data.n_vars)
    for rows, chunk in cell_blocks(data.X, np.flatnonzero(mask)):
        statistics.add(chunk, comparison.labels.codes[rows])
        sample.keep("measured", rows, chunk)
    return statistics


def _projected(
    trained: TrainedNetwork,
    data: DISCERNData,
    cells: EncodedCells,
    comparison: Comparison,
    mask: npt.NDArray[np.bool_],
    sample: Sample,
) -> dict[str, GroupStatistics]:
    """Project some cells to the reference; returns their statistics as measured and reconstructed."""
    found = {method: GroupStatistics(comparison.labels.categories, data.n_vars) for method in _DRAWN[1:]}
    target = (np.array(cells.batches) == comparison.reference).astype(np.float32)
    members = np.flatnonzero(mask)
    for decoded in decoded_chunks(trained, cells.latent[members], target):
        rows = members[decoded.rows]
        for method, chunk in (("estimated_counts", decoded.counts), ("X", decoded.sampled(cells.numbers[rows]))):
            found[method].add(chunk, comparison.labels.codes[rows])
            sample.keep(method, rows, chunk)
    return {"measured": _measured(data, comparison, mask, sample)} | found


def compare(
    statistics: dict[str, GroupStatistics],
    real: GroupStatistics,
    sample: Sample,
    comparison: Comparison,
    mask: npt.NDArray[np.bool_],
    kernel_width: float,
    neighbours_kept: NeighboursKept | None = None,
) -> SourceResult:
    """Compare a batch, by each of `METHODS`, with the held-out cells of the reference.

    Args:
        statistics: For each method, expression of each cell type.
        real: The same of the held-out cells.
        sample: Cells in the space of the components.
        comparison: Which cells are compared.
        mask: Which cells are the batch's.
        kernel_width: Of the MMD's kernel.
        neighbours_kept: Goes into the result.
    """
    shared = shared_groups(statistics["measured"], real)
    real = real.at(shared)
    held_out = sample.components["measured"][comparison.held_out[sample.rows]]
    methods: dict[str, MethodMetrics] = {}
    types: dict[str, dict[str, TypeMetrics]] = {name: {} for name in shared}
    pairs: dict[tuple[str, str], dict[str, PairMetrics]] = {pair: {} for pair in itertools.combinations(shared, 2)}
    for method in METHODS:
        ours = statistics[method].at([name for name in shared if name in statistics[method].present])
        by_type, by_pair = compare_groups(ours, real), compare_differences(ours, real)
        if method == "real":
            space = sample.components["measured"][comparison.rest[sample.rows]]
        else:
            space = sample.components[method][mask[sample.rows]]
        enough = min(len(space), len(held_out)) >= 2
        methods[method] = MethodMetrics(
            **{name: finite(value) for name, value in averages(by_type, by_pair).items()},
            mmd=finite(mmd_loss(space, held_out, kernel_width)) if enough else None,
            auc=finite(auc(space, held_out)) if enough else None,
        )
        for name, found in zip(by_type.index, TypeMetrics.of_rows(by_type), strict=True):
            types[str(name)][method] = found
        for pair, difference in zip(by_pair.index, PairMetrics.of_rows(by_pair), strict=True):
            pairs[pair][method] = difference
    return SourceResult(
        cells=int(mask.sum()),
        shared_types=shared,
        other_types=[name for name in statistics["measured"].present if name not in shared],
        methods=methods,
        types=types,
        pairs=[PairResult(pair, by_method) for pair, by_method in pairs.items()],
        neighbours_kept=neighbours_kept,
    )


def _neighbours_kept(cells: EncodedCells, sample: Sample, inside: npt.NDArray[np.bool_]) -> NeighboursKept | None:
    if inside.sum() < 4:
        return None
    before = sample.components["measured"][inside]
    latent = kept_neighbours(before, cells.latent[sample.rows][inside])
    shares = {name: kept_neighbours(before, sample.components[name][inside])["share"] for name in _DRAWN[1:]}
    return NeighboursKept(latent=latent["share"], expected=latent["expected"], **shares)


def gene_errors(trained: TrainedNetwork, data: DISCERNData, cells: EncodedCells, split: str) -> pd.DataFrame:
    """Return how well each gene is auto-encoded, and how often it is detected.

    Args:
        trained: A trained network.
        data: The cells of its experiment.
        cells: The same, encoded.
        split: The cells to auto-encode are those of all batches in this split.

    Returns:
        A row per gene: `symbol`, if that is not its name; `discern_rmse` and `discern_r`, error and correlation over
        cells; `detection_BATCH`.
    """
    codes = pd.Categorical(cells.batch, categories=cells.batches).codes
    errors = GeneErrors(len(cells.batches), data.n_vars)
    for rows, chunk in cell_blocks(data.X, np.flatnonzero(data.obs["split"] == split)):
        for decoded in decoded_chunks(trained, cells.latent[rows], cells.batch_onehot[rows]):
            errors.add(chunk.toarray(), decoded.counts, codes[rows])
    statistics = GroupStatistics(cells.batches, data.n_vars)
    for part, chunk in iter_blocks(data.X):
        statistics.add(chunk, codes[part])
    table = pd.DataFrame({"discern_rmse": errors.rmse, "discern_r": errors.correlation}, data.var_names)
    symbols = gene_symbols(data.var)
    if (symbols != data.var_names).any():
        table.insert(0, "symbol", symbols)
    for name, detection in zip(cells.batches, statistics.detection, strict=True):
        table[f"detection_{name}"] = detection
    return table.rename_axis("gene")


def summarise_distances(
    distance: npt.NDArray[np.floating], batch: npt.NDArray[np.str_], comparison: Comparison
) -> DistanceSummary:
    """Describe how far groups of cells are from the reference.

    Args:
        distance: Of each cell, (n_cells,).
        batch: The batch of each cell, (n_cells,).
        comparison: Which cells are compared.
    """
    labels = comparison.labels
    line = float(np.quantile(distance[comparison.held_out], 0.95))
    sources = {}
    for source in comparison.sources:
        mask = batch == source
        of_type = {name: mask & (labels.codes == code) for code, name in enumerate(labels.categories)}
        types = {name: Distances.of(distance[chosen], line) for name, chosen in of_type.items() if chosen.any()}
        sources[source] = SourceDistances(**vars(Distances.of(distance[mask], line)), types=types)
    return DistanceSummary(NEIGHBOURS, Distances.of(distance[comparison.held_out], line), sources, line)


def _representations(
    cells: EncodedCells, sample: Sample, sources: tuple[str, ...]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the cells in pictures before and after, and their codes."""
    of_sources = np.isin(cells.batch[sample.rows], sources)[:, np.newaxis]
    return {
        "as measured": sample.components["measured"],
        "latent code": cells.latent[sample.rows],
        "reconstructed": np.where(of_sources, sample.components["X"], sample.components["measured"]),
    }


def _means(statistics: GroupStatistics) -> pd.DataFrame:
    return pd.DataFrame(statistics.mean, index=statistics.groups).dropna(how="all")
