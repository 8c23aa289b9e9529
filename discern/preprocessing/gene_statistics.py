"""Figures of genes and cells that preprocessing needs, gathered block by block in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pandas as pd
from scipy import linalg
from sklearn.neighbors import NearestNeighbors

from discern.data.chunks import Matrix, iter_blocks, track_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import anndata as ad
    from scipy import sparse

_PCA_GENES = 1000
_SMALLEST_STD = 1e-8

_NORMAL_MAD = 0.6744897501960817
"""Median absolute deviation of the standard normal distribution."""


@dataclass(frozen=True)
class GeneStatistics:
    """What is known of an experiment's genes: learnt from its cells, or taken from one that is there.

    Attributes:
        var: A row for each gene, with `mean_scaling` and `var_scaling`, mean and *standard deviation* of its
            log-normalised values, and `pca_genes`, whether it is one of the most variable; more if they were taken.
        components: Principal components of the standardised values, (n_genes, n_components); zero for other genes.
        mmd_kernel: Width of the kernel with which the search compares cells; empty if that is not known yet.
    """

    var: pd.DataFrame
    components: np.ndarray
    mmd_kernel: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def learn(cls, adata: ad.AnnData, chosen: np.ndarray, is_logged: bool, components: int) -> Self:
        """Find them out.

        Args:
            adata: Cells normalised to equal library size, or the logarithms of these.
            chosen: Which cells count, bool of shape (n_cells,).
            is_logged: Whether the values are logarithms.
            components: Number of principal components; fewer if there are not enough cells or genes.
        """
        views = (np.expm1, np.positive) if is_logged else (np.positive, np.log1p)
        counts, logged = gene_moments(adata.X, chosen, *views)
        mean, std = logged.mean, np.maximum(np.sqrt(logged.variance(ddof=0)), _SMALLEST_STD)
        variable = variable_genes(counts.mean, counts.variance(ddof=1), min(_PCA_GENES, adata.n_vars))
        columns = np.flatnonzero(variable)
        covariance = np.zeros((len(columns), len(columns)))
        for rows, block in track_blocks(adata.X, "principal components"):
            values = standardised(block[chosen[rows]][:, columns], mean[columns], std[columns], is_logged)
            covariance += values.T @ values
        components = min(components, len(columns), max(1, logged.cells - 1))
        axes = np.zeros((adata.n_vars, components))
        axes[columns] = principal_axes(covariance / max(1, logged.cells - 1), components)
        var = pd.DataFrame({"mean_scaling": mean, "var_scaling": std, "pca_genes": variable}, adata.var_names)
        return cls(var, axes)

    @classmethod
    def of(cls, reference: ad.AnnData) -> Self:
        """Take them from processed cells."""
        components = reference.varm["PCs"] if "PCs" in reference.varm else np.zeros((reference.n_vars, 0))
        return cls(reference.var, np.asarray(components), dict(reference.uns["DISCERN"].get("mmd_kernel", {})))


def standardised(block: sparse.csr_matrix, mean: np.ndarray, std: np.ndarray, is_logged: bool) -> np.ndarray:
    """Return (log-normalised - mean) / std, dense float64, of cells whose values are logarithms already or not yet."""
    values: np.ndarray = block.toarray().astype(np.float64)
    if not is_logged:
        np.log1p(values, out=values)
    values -= mean
    values /= std
    return values


class Moments(NamedTuple):
    """Mean and sum of squared deviations of each gene over `cells` cells."""

    cells: int
    mean: np.ndarray
    squares: np.ndarray

    def variance(self, ddof: int) -> np.ndarray:
        """Return the variance of each gene; `ddof` as in numpy."""
        return self.squares / max(1, self.cells - ddof)


def gene_moments(X: Matrix, chosen: np.ndarray, *views: Callable[[np.ndarray], np.ndarray]) -> list[Moments]:
    """Return the moments of each gene, once for each view of the values, in one pass.

    Args:
        X: (n_cells, n_genes).
        chosen: Which cells count, bool of shape (n_cells,).
        views: Functions of the values that keep zero at zero, e.g. `np.log1p`.

    Example:
        >>> moments, = gene_moments(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([True, True]), np.positive)
        >>> moments.mean, moments.variance(ddof=1)
        (array([2., 0.]), array([2., 0.]))
    """
    n_genes, n = X.shape[1], int(chosen.sum())
    sums = np.zeros((len(views), 2, n_genes))
    for rows, block in iter_blocks(X):
        if not chosen[rows].all():
            block = block[chosen[rows]]
        for view, (total, squares) in zip(views, sums, strict=True):
            values = view(block.data.astype(np.float64))
            total += np.bincount(block.indices, weights=values, minlength=n_genes)
            squares += np.bincount(block.indices, weights=np.square(values, out=values), minlength=n_genes)
    means = sums[:, 0] / max(1, n)
    deviations = np.maximum(sums[:, 1] - n * means**2, 0)
    return [Moments(n, mean, squares) for mean, squares in zip(means, deviations, strict=True)]


def dispersion(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variance / mean and the mean, which is 1e-12 where it was zero."""
    mean = np.where(mean == 0, 1e-12, mean)
    return variance / mean, mean


def variable_genes(mean: np.ndarray, variance: np.ndarray, number: int) -> np.ndarray:
    """Choose the genes of largest normalised dispersion, the way of Cell Ranger.

    Genes are binned by the 10th, 15th, ..., 100th percentile of the means. Normalised dispersion is the *absolute*
    difference between a gene's dispersion (variance / mean) and the median of its bin, over the bin's median absolute
    deviation. Zheng et al., Nature Communications 8, 14049 (2017); the same as scanpy's
    `filter_genes_dispersion(flavor="cell_ranger", log=False)`.

    Args:
        mean: Of the normalised counts, not logged, (n_genes,).
        variance: The same with ddof 1.
        number: Genes wanted; all are chosen if there are not more, and the wanted number may be missed by the few whose
            normalised dispersions are equal or undefined.

    Returns:
        bool of shape (n_genes,).
    """
    if len(mean) <= number:
        return np.ones(len(mean), dtype=bool)
    value, mean = dispersion(mean, variance)
    edges = np.unique(np.r_[-np.inf, np.percentile(mean, np.arange(10, 105, 5)), np.inf])
    table = pd.DataFrame({"value": value, "bin": pd.cut(pd.Series(mean), list(edges))})
    away = (table["value"] - table.groupby("bin", observed=True)["value"].transform("median")).abs()
    spread = away.groupby(table["bin"], observed=True).transform("median") / _NORMAL_MAD
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = away.to_numpy() / spread.to_numpy()
    ranked = np.sort(normalised[~np.isnan(normalised)])[::-1].astype(np.float32)
    return np.asarray(normalised >= ranked[min(number, len(ranked)) - 1])


def dispersion_record(mean: np.ndarray, variance: np.ndarray) -> pd.DataFrame:
    """Return means, dispersions, normalised dispersions and highly variable genes of logged data, the way of Seurat.

    Genes are put into 20 bins of equal width by their mean; normalised is the dispersion's z-score in its bin (1 for a
    gene alone in its bin). Satija et al., Nature Biotechnology 33, 495 (2015); the same as scanpy's
    `filter_genes_dispersion(flavor="seurat", log=False)`.

    Args:
        mean: Of log-normalised expression, (n_genes,).
        variance: The same with ddof 1.

    Returns:
        float32 columns `means`, `dispersions`, `dispersions_norm` and bool `highly_variable`.
    """
    value, mean = dispersion(mean, variance)
    table = pd.DataFrame({"value": value, "bin": pd.cut(mean, 20)})
    bins = table.groupby("bin", observed=True)["value"]
    centre, width = bins.transform("mean"), bins.transform("std")
    alone = width.isna()
    normalised = (value - centre.mask(alone, 0)) / width.mask(alone, centre)
    high = (mean > 0.0125) & (mean < 3) & (normalised.astype(np.float32).fillna(0) > 0.5)
    return pd.DataFrame(
        {
            "means": mean.astype(np.float32),
            "dispersions": value.astype(np.float32),
            "dispersions_norm": normalised.to_numpy(dtype=np.float32),
            "highly_variable": high.to_numpy(),
        }
    )


def principal_axes(covariance: np.ndarray, number: int) -> np.ndarray:
    """Return the eigenvectors of the largest eigenvalues, one per column, each with its largest entry positive.

    Example:
        >>> principal_axes(np.diag([1.0, 3.0, 2.0]), 2)
        array([[0., 0.],
               [1., 0.],
               [0., 1.]])
    """
    n = len(covariance)
    _, axes = linalg.eigh(covariance, subset_by_index=[max(0, n - number), n - 1])
    axes = axes[:, ::-1]
    return np.asarray(axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]))


def neighbour_distance(points: np.ndarray, neighbours: int, n_jobs: int) -> float:
    """Return the median over points of the mean distance to the nearest others.

    Args:
        points: (n_points, dimension).
        neighbours: How many points are near, the point itself among them.
        n_jobs: Processes, -1 for all CPUs.
    """
    others = max(1, neighbours - 1)
    distances, _ = NearestNeighbors(n_neighbors=others, n_jobs=n_jobs).fit(points).kneighbors()
    return float(np.median(distances.mean(axis=1)))
