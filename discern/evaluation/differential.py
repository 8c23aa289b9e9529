"""Which genes differ between groups of cells: a test of measured counts that reconstruction makes sharper, not bolder.

Reconstructed cells of a type are alike, so that a test which takes their scatter for that of measurements calls nearly
every gene. Here p-values come from the cells as they were measured; the reconstruction says how large a difference is,
and which genes vary at all, which is where a test is worth its price. Loads no TensorFlow.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse, stats

from discern.data.annotation import named_layers
from discern.data.chunks import iter_blocks, read_layers
from discern.errors import InvalidInputError, UnknownNameError, UserError, nearest
from discern.inputs import raw_counts
from discern.metrics.gene_agreement import GroupStatistics
from discern.runtime import progress
from discern.runtime.atomic import replacing
from discern.runtime.foreign import check_input
from discern.runtime.text import cell

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad
    import numpy.typing as npt

    from discern.data.chunks import Matrix

_LOGGER = logging.getLogger(__name__)


REST = "rest"
"""As `reference`: all cells of the other groups."""
LIBRARY_SIZE = 20_000
"""Total counts of a cell after normalisation, where raw counts are given."""

_ESTIMATES = "estimated_counts"
_RECONSTRUCTED = (_ESTIMATES, "estimated_dropouts", "estimated_low", "estimated_high")
_FEWEST_CELLS, _FEWEST_SAMPLES = 3, 3
_GENES_AT_ONCE = 256
_BINS, _FOLDS = 10, 5
_SMALLEST_WEIGHT, _SMALLEST_SHARE = 0.2, 0.01


@dataclass(frozen=True)
class _Cells:
    """The cells to compare, sorted into strata within which they may be exchanged.

    Attributes:
        rows: Their numbers, ascending.
        in_group: Which of them are of the group; the others are of the reference.
        stratum: The number of the batch of each.
        sample: The sample of each, None if cells are the replicates.
    """

    rows: npt.NDArray[np.intp]
    in_group: npt.NDArray[np.bool_]
    stratum: npt.NDArray[np.intp]
    sample: npt.NDArray[np.str_] | None


def compare(
    adata: ad.AnnData,
    groupby: str,
    group: str,
    reference: str = REST,
    *,
    layer: str | None = None,
    batch: str | None = "batch",
    sample: str | None = None,
) -> pd.DataFrame:
    """Test which genes differ between two groups of cells, on measured counts, with reconstructed effects beside them.

    The test is a Wilcoxon rank sum test of the measured cells, batch by batch and combined (van Elteren), so that a
    difference between batches is none between groups. With samples (donors, mice, ...) the replicates are these, not
    their cells: a t test of the mean expression of a sample's cells, paired where samples have cells of both groups.
    The false discovery rate is that of Benjamini and Hochberg with a weight for each gene. The weight is learnt from
    all p-values and how far the gene's reconstructed values vary over the compared cells of a batch. Which cell is of
    which group has no part in that (independent filtering, Bourgon et al. 2010; grouped weights, Hu et al. 2010; folds
    of genes, Ignatiadis et al. 2016).

    The level holds for groups that were known before, or were found otherwise: sorted or labelled cells, conditions,
    genotypes, clusters of other cells. Clusters found in these very cells differ by construction: take their p-values
    for an order, no more. Cells of a donor are no replicates of a treatment: give `sample`.

    Args:
        adata: Cells as `discern.reconstruct` returns them, or as `discern project` writes them with `measured` among
            its `--layers`; a subset of them, say. (n_cells, n_genes). Without `layers["estimated_counts"]` (cells that
            were not reconstructed) all weights are 1.
        groupby: obs column of the groups.
        group: The group to compare, of `groupby`.
        reference: The group to compare it with, or "rest" for all cells of the other groups.
        layer: The layer with the measured cells, raw counts or log-normalised, "X" for X, "raw" for `.raw.X`; None for
            `measured`, or X if nothing here is reconstructed.
        batch: obs column of the batches to compare within; None to compare across, or if there is none of them.
        sample: obs column of the replicates; None for single cells.

    Returns:
        A row per gene, the surest first: `log2_fold_change`, of reconstructed expression, the difference of the means
        of log2(1 + normalised counts), group less reference, mean over batches; `log2_fold_change_measured`, the same
        of measured cells; `p_value`, of the measured cells; `weight`; `fdr`, the smallest false discovery rate
        at which the gene is called; `detected_group` and `detected_reference`, share of the measured cells that show
        it. Genes that no compared cell shows have p-value and rate 1.

    Raises:
        UnknownNameError: If a column or layer does not exist.
        InvalidInputError: If there is no such group, there are too few cells or samples, or the values are
            reconstructed ones.

    Source:
        van Elteren, Bulletin of the ISI 37:351 (1960); Genovese et al., Biometrika 93:509 (2006), for weights.

    Example:
        >>> import anndata as ad
        >>> rng = np.random.default_rng(0)
        >>> depth = np.where(np.arange(120)[:, None] < 60, 1.0, [[3.0] * 5 + [1.0] * 95])
        >>> cells = ad.AnnData(rng.poisson(depth).astype("float32"))
        >>> cells.obs["type"] = ["a"] * 60 + ["b"] * 60
        >>> sorted(compare(cells, "type", "b", "a").index[:5])
        ['0', '1', '2', '3', '4']
    """
    measured = _measured(adata, layer)
    cells = _choose(adata.obs, groupby, group, reference, batch, sample)
    estimates = adata.layers.get(_ESTIMATES)
    measured = _log_normalised(measured, cells.rows)
    found = _moments(measured, cells)
    table = pd.DataFrame({"log2_fold_change": np.nan, "log2_fold_change_measured": found.difference}, adata.var_names)
    if cells.sample is None:
        table["p_value"] = _rank_sum(measured, cells)
    else:
        table["p_value"] = _of_samples(measured, cells)
    tested = found.variance > 0
    table.loc[~tested, "p_value"] = 1.0
    table["weight"] = 1.0
    if estimates is not None:
        rebuilt = _moments(estimates, cells, rows=cells.rows)
        table["log2_fold_change"] = rebuilt.difference
        table.loc[tested, "weight"] = weights(table["p_value"].to_numpy()[tested], rebuilt.variance[tested])
    table["fdr"] = 1.0
    weighted = np.minimum(table["p_value"] / table["weight"], 1.0)
    if tested.any():
        table.loc[tested, "fdr"] = stats.false_discovery_control(weighted[tested])
    table["detected_group"], table["detected_reference"] = found.detected
    return table.rename_axis("gene").iloc[np.lexsort((table["p_value"], weighted))]


def compare_file(
    path: Path,
    output: Path,
    groupby: str,
    group: str,
    reference: str = REST,
    *,
    layer: str | None = None,
    batch: str | None = "batch",
    sample: str | None = None,
) -> pd.DataFrame:
    """Write the table of `compare` for the cells of a file; matrices that do not fit into memory are read in blocks.

    Args:
        path: An `.h5ad` file or `.zarr` folder.
        output: The `.csv` to write; appears complete or not at all.
        groupby: See `compare`, as all that follow.
        group: The group to compare.
        reference: The group to compare it with.
        layer: The layer with the measured cells.
        batch: obs column of the batches.
        sample: obs column of the replicates.

    Returns:
        The table.

    Raises:
        UserError: As `compare`, and if a file cannot be read or written; nothing is written then.
    """
    if output.suffix != ".csv":
        raise InvalidInputError(f"{output}: expected a name that ends in .csv")
    check_input(path)
    names = ["measured" if layer is None else layer, _ESTIMATES]
    cells = read_layers(path, names)
    if layer is None and not named_layers(cells):
        cells = read_layers(path, [raw_counts.X])
    try:
        table = compare(cells, groupby, group, reference, layer=layer, batch=batch, sample=sample)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    with replacing(output) as partial:
        table.rename(index=cell).to_csv(partial)
    return table


def summary(table: pd.DataFrame, group: str, reference: str, rate: float = 0.05) -> str:
    """Return how many genes `compare` calls, and the first ten, for the terminal."""
    called = table[table["fdr"] <= rate]
    up = int((_effect(called) > 0).sum())
    lines = [
        f"{len(called):,} of {len(table):,} genes differ at a false discovery rate of {rate:.0%}: {up:,} higher in "
        f"{group}, {len(called) - up:,} higher in {reference}"
    ]
    if len(called):
        first = called.head(10)
        lines.append(f"{'gene':24}{'log2 fold change':>18}{'measured':>12}{'fdr':>12}")
        lines += [
            f"{str(name)[:23]:24}{row.log2_fold_change:>18.2f}{row.log2_fold_change_measured:>12.2f}{row.fdr:>12.1e}"
            for name, row in zip(first.index, first.itertuples(), strict=True)
        ]
    return "\n".join(lines)


def _effect(table: pd.DataFrame) -> pd.Series:
    return table["log2_fold_change"].fillna(table["log2_fold_change_measured"])


def _choose(
    obs: pd.DataFrame, groupby: str, group: str, reference: str, batch: str | None, sample: str | None
) -> _Cells:
    """Return the cells of both groups, those of batches that have too few of either left out."""
    for column in (groupby, sample):
        if column is not None and column not in obs:
            names = list(map(str, obs.columns))
            raise UnknownNameError(f"there is no obs column {column!r}{nearest(column, names)}; columns are {names}")
    known = obs[groupby].dropna().astype(str)
    values = sorted(known.unique())
    for name in (group, reference):
        if name not in values and not (name == reference == REST):
            shown = ", ".join(map(repr, values[:30])) + (" ..." if len(values) > 30 else "")
            raise InvalidInputError(
                f"obs column {groupby!r} has no value {name!r}{nearest(name, values)}; it has {shown}"
            )
    if group == reference:
        raise InvalidInputError(f"expected two groups of {groupby!r}, got {group!r} twice")
    of_group = (obs[groupby].astype(str) == group).to_numpy() & obs[groupby].notna().to_numpy()
    others = obs[groupby].notna().to_numpy() & ~of_group
    if reference != REST or REST in values:
        others &= (obs[groupby].astype(str) == reference).to_numpy()
    if sample is not None:
        has_sample = obs[sample].notna().to_numpy()
        of_group, others = of_group & has_sample, others & has_sample
    has_batch = batch is not None and batch in obs
    batches = obs[batch].astype(str).to_numpy() if has_batch else np.full(len(obs), "all cells")
    kept, told = np.zeros(len(obs), dtype=bool), []
    for name in np.unique(batches[of_group | others]):
        here = batches == name
        numbers = int((of_group & here).sum()), int((others & here).sum())
        if sample is None and min(numbers) < _FEWEST_CELLS:
            _LOGGER.info("%s: left out, %d cells of %s and %d of %s", name, numbers[0], group, numbers[1], reference)
            continue
        kept |= here & (of_group | others)
        told.append(f"{numbers[0]} and {numbers[1]} of {name}")
    if not (of_group & kept).any() or not (others & kept).any():
        where = f" in a batch (obs column {batch!r})" if has_batch else ""
        raise InvalidInputError(
            f"expected at least {_FEWEST_CELLS} cells of {group!r} and of {reference!r}{where}, got "
            f"{int(of_group.sum())} and {int(others.sum())} in all"
        )
    _LOGGER.info("comparing cells of %s and %s: %s", group, reference, "; ".join(told))
    rows = np.flatnonzero(kept)
    stratum = np.unique(batches[rows], return_inverse=True)[1]
    samples = obs[sample].to_numpy(dtype=str)[rows] if sample is not None else None
    return _Cells(rows, of_group[rows], stratum, samples)


def _measured(adata: ad.AnnData, layer: str | None) -> Matrix:
    """Return the matrix of measured cells; what was reconstructed is refused."""
    reconstructed = [name for name in _RECONSTRUCTED if name in adata.layers]
    if layer in _RECONSTRUCTED or (reconstructed and layer == raw_counts.X):
        raise InvalidInputError(
            f"{raw_counts.shown(str(layer))} is reconstructed: a test takes its lack of noise for certainty and calls "
            "nearly every gene; give the layer with the measured cells"
        )
    if layer is None and "measured" in adata.layers:
        layer = "measured"
    if layer is None and reconstructed:
        raise InvalidInputError(
            f"the cells have only reconstructed values ({', '.join(['X', *reconstructed])}), on which no test holds "
            "its level: project with --layers X,estimated_counts,estimated_dropouts,measured, or add the measured "
            "cells as layers['measured']"
        )
    if layer is not None and layer != raw_counts.X and layer in adata.layers:
        return adata.layers[layer]
    chosen = raw_counts.chosen(adata, layer)
    if list(chosen.var_names) != list(adata.var_names):
        raise InvalidInputError("raw.X has other genes than the cells: put the measured cells into a layer")
    return chosen.X


def _log_normalised(measured: Matrix, rows: npt.NDArray[np.intp]) -> sparse.csc_matrix:
    """Return some cells by genes; whole numbers are taken for raw counts."""
    blocks = []
    for part, block in iter_blocks(measured):
        inside = rows[(rows >= part.start) & (rows < part.start + block.shape[0])] - part.start
        blocks.append(block[inside])
    chosen = sparse.vstack(blocks, format="csr").astype(np.float64)
    if not np.isfinite(chosen.data).all() or (chosen.data < 0).any():
        raise InvalidInputError(
            "expected raw counts or log-normalised expression of the measured cells, some values are negative or not "
            "finite: scaled values cannot be compared"
        )
    if (chosen.data == np.floor(chosen.data)).all():
        totals = np.maximum(np.asarray(chosen.sum(axis=1)).ravel(), 1)
        chosen.data = np.log1p(chosen.data / np.repeat(totals, np.diff(chosen.indptr)) * LIBRARY_SIZE)
    return chosen.tocsc()


@dataclass(frozen=True)
class _Moments:
    """What becomes of each gene in the compared cells, mean over batches.

    Attributes:
        difference: Of the means, group less reference, in powers of two.
        variance: Within batches, of the cells of both groups together.
        detected: Share of the group's cells, and of the reference's, that show the gene.
    """

    difference: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    detected: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _moments(values: Matrix, cells: _Cells, rows: npt.NDArray[np.intp] | None = None) -> _Moments:
    """Compute them block by block.

    Args:
        values: Log-normalised; the compared cells, or all cells.
        cells: The compared cells.
        rows: Which rows of `values` they are, if it has all cells.
    """
    n_strata = int(cells.stratum.max()) + 1
    code = np.full(values.shape[0], -1)
    code[slice(None) if rows is None else rows] = 2 * cells.stratum + cells.in_group
    statistics = GroupStatistics(map(str, range(2 * n_strata)), values.shape[1])
    if sparse.issparse(values) and values.format == "csc":
        values = values.tocsr()
    for part, block in iter_blocks(values):
        statistics.add(block, code[part])
    n = statistics.cells.reshape(n_strata, 2).astype(float)
    shape = (n_strata, 2, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, variance = statistics.mean.reshape(shape), statistics.variance.reshape(shape)
        detection = statistics.detection.reshape(shape)
        both = n.all(axis=1)
        strength = np.where(both, n[:, 0] * n[:, 1] / n.sum(axis=1), 0.0)
        difference = np.nan_to_num(mean[:, 1] - mean[:, 0])
        within = np.nan_to_num(variance) * n[:, :, np.newaxis]
    between = strength[:, np.newaxis] * difference**2
    if not strength.any():  # samples of one group only in each batch
        totals = np.nan_to_num(mean) * n[:, :, np.newaxis]
        overall = totals.sum(axis=0) / n.sum(axis=0)[:, np.newaxis]
        effect = overall[1] - overall[0]
    else:
        effect = (strength[:, np.newaxis] * difference).sum(axis=0) / strength.sum()
    pooled = (within.sum(axis=(0, 1)) + between.sum(axis=0)) / n.sum()
    shown = np.nan_to_num(detection) * n[:, :, np.newaxis]
    reference, group = shown.sum(axis=0) / n.sum(axis=0)[:, np.newaxis]
    return _Moments(effect / np.log(2), pooled, (group, reference))


def _rank_sum(measured: sparse.csc_matrix, cells: _Cells) -> npt.NDArray[np.float64]:
    """Return two-sided p-values of van Elteren's test: a Wilcoxon rank sum test within each batch, combined."""
    n_genes = measured.shape[1]
    p = np.ones(n_genes)
    strata = [np.flatnonzero(cells.stratum == number) for number in np.unique(cells.stratum)]
    continuity = 0.5 / (max(map(len, strata)) + 1)
    starts = range(0, n_genes, _GENES_AT_ONCE)
    for start in progress.track(starts, "testing genes", len(starts)):
        block = measured[:, start : start + _GENES_AT_ONCE].toarray()
        score, spread = np.zeros(block.shape[1]), np.zeros(block.shape[1])
        for members in strata:
            ranks = stats.rankdata(block[members], axis=0)
            in_group, n = cells.in_group[members], len(members)
            n_group = int(in_group.sum())
            middle = (n + 1) / 2
            score += (ranks[in_group].sum(axis=0) - n_group * middle) / (n + 1)
            variance = ((ranks - middle) ** 2).sum(axis=0) * n_group * (n - n_group) / (n * (n - 1))
            spread += variance / (n + 1) ** 2
        varies = spread > 0
        z = np.maximum(np.abs(score[varies]) - continuity, 0) / np.sqrt(spread[varies])
        p[start + np.flatnonzero(varies)] = np.minimum(2 * stats.norm.sf(z), 1)
    return p


def _of_samples(measured: sparse.csc_matrix, cells: _Cells) -> npt.NDArray[np.float64]:
    """Return p-values of a t test of samples, paired if enough of them have cells of both groups."""
    assert cells.sample is not None
    names, number = np.unique(cells.sample, return_inverse=True)
    means, has = [], []
    for of_group in (True, False):
        mine = np.flatnonzero(cells.in_group == of_group)
        each = np.bincount(number[mine], minlength=len(names))
        members = sparse.csr_matrix((np.ones(len(mine)), (number[mine], mine)), (len(names), measured.shape[0]))
        amounts = measured.copy()
        amounts.data = np.expm1(amounts.data)
        sums = np.asarray((members @ amounts).todense())
        means.append(np.log1p(sums / np.maximum(each, 1)[:, np.newaxis]))
        has.append(each > 0)
    group, reference = means
    both = has[0] & has[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        if both.sum() >= _FEWEST_SAMPLES:
            _LOGGER.info("paired test of %d samples with cells of both groups", both.sum())
            p = stats.ttest_rel(group[both], reference[both]).pvalue
        elif both.any():
            raise InvalidInputError(
                f"{both.sum()} samples have cells of both groups, too few for a paired test (at least "
                f"{_FEWEST_SAMPLES}), and with them the other samples are not independent: leave either out"
            )
        else:
            _check_samples(cells, number, has)
            p = stats.ttest_ind(group[has[0]], reference[has[1]], equal_var=False).pvalue
    return np.where(np.isfinite(p), p, 1.0)


def _check_samples(cells: _Cells, number: npt.NDArray[np.intp], has: list[npt.NDArray[np.bool_]]) -> None:
    if min(each.sum() for each in has) < _FEWEST_SAMPLES:
        raise InvalidInputError(
            f"expected at least {_FEWEST_SAMPLES} samples with cells of each group, got {has[0].sum()} and "
            f"{has[1].sum()}: without replicates a difference between groups is not told from one between samples"
        )
    if len(np.unique(cells.stratum)) > 1:
        raise InvalidInputError(
            "the samples of the two groups are of several batches: compare cells of one batch, or give no batch if "
            "batches do not differ"
        )
    _LOGGER.info("test of %d samples against %d", has[0].sum(), has[1].sum())


def weights(p: npt.NDArray[np.float64], variation: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a weight for each p-value, learnt from where small ones are among genes that vary alike.

    The share of genes without difference is estimated (Storey, and two standard errors, so that chance gives no
    weights) in ten bins of `variation`, made to fall with it, from the p-values of the other folds of genes than that
    of the gene itself. Four fifths of the weight are the odds of a difference, so that no gene is given up. The genes
    without difference have weight 1 on average, which is what the false discovery rate needs; the others have more.

    Args:
        p: P-values, (n_genes,).
        variation: How far each gene is said to vary, in any unit, by what does not know the groups.

    Returns:
        (n_genes,), at least 0.2; 1 for all where p-values show no differences.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = np.concatenate([rng.random(900), rng.random(100) / 1000])
        >>> found = weights(p, np.arange(1000))
        >>> bool(found[900:].mean() > 5), bool(found[:900].mean() < 1.05)
        (True, True)
    """
    from sklearn.isotonic import IsotonicRegression

    edges = np.quantile(variation, np.arange(1, _BINS) / _BINS)
    place = np.searchsorted(edges, variation, side="right")
    fold = np.random.default_rng(0).permutation(len(p)) % _FOLDS
    found = np.ones(len(p))
    for number in range(_FOLDS):
        known, asked = fold != number, fold == number
        size = np.bincount(place[known], minlength=_BINS)
        large = np.bincount(place[known], weights=p[known] > 0.5, minlength=_BINS)
        same = np.minimum((large + 1 + 2 * np.sqrt(large)) / np.maximum(size / 2, 1), 1)
        falling = IsotonicRegression(increasing=False).fit(np.arange(_BINS), same, np.maximum(size, 1e-3))
        same = falling.predict(np.arange(_BINS))
        odds = (1 - same) / np.maximum(same, _SMALLEST_SHARE)
        if known.any() and (mean := (odds * same)[place[known]].mean()) > 0:
            found[asked] = odds[place[asked]] / mean
    return _SMALLEST_WEIGHT + (1 - _SMALLEST_WEIGHT) * found
