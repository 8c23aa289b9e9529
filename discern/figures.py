"""Pictures of cells: UMAPs of several representations, and scatters of means. Loads no TensorFlow."""

from __future__ import annotations

import logging
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from discern.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import anndata
    import pandas as pd

_LOGGER = logging.getLogger(__name__)


def umap_coordinates(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the two UMAP coordinates of each row of `values` (cells x dimensions).

    Few cells (under five) are returned on a line, since a neighbour graph needs more.
    """
    cells = len(values)
    if cells < 5:
        return np.column_stack([np.arange(cells, dtype=float), np.zeros(cells)])
    with warnings.catch_warnings():
        # umap tells that a seed makes it single-threaded and, on small sets, that its graph fell apart.
        warnings.simplefilter("ignore")
        import umap

        reducer = umap.UMAP(n_neighbors=min(15, cells - 1), min_dist=0.3, random_state=seed, init="pca")
        return np.asarray(reducer.fit_transform(np.asarray(values, dtype=np.float32)))


def plot_umaps(
    representations: Mapping[str, np.ndarray], obs: pd.DataFrame, path: Path, colours: Sequence[str]
) -> None:
    """Draw a panel for each set of coordinates, and a row of panels for each obs column that colours the cells.

    Args:
        representations: Title of the panel -> UMAP coordinates (cells x 2).
        obs: The cells' annotation.
        path: The PNG to write.
        colours: Names of the categorical columns.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(representations))
    rows = -(-len(representations) // columns)
    figure = Figure(figsize=(3.6 * columns + 1.8, 3.6 * rows * len(colours)), layout="constrained")
    strips = figure.subfigures(len(colours), 1, squeeze=False).ravel()
    order = np.random.default_rng(0).permutation(len(obs))
    size = float(np.clip(6000 / max(len(obs), 1), 2, 18))
    for strip, colour in zip(strips, colours, strict=True):
        axes = strip.subplots(rows, columns, squeeze=False).ravel()
        names = obs[colour].astype("category")
        for axis, (title, coordinates) in zip(axes, representations.items(), strict=False):
            for category, shade in _palette(names.cat.categories).items():
                chosen = order[(names == category).to_numpy()[order]]
                axis.scatter(*coordinates[chosen].T, s=size, color=shade, label=str(category), linewidths=0)
            axis.set(title=title, xticks=[], yticks=[])
            axis.spines[:].set_color("0.8")
        for axis in axes[len(representations) :]:
            axis.set_axis_off()
        if len(names.cat.categories) <= 40:
            handles, labels = axes[0].get_legend_handles_labels()
            strip.legend(handles, labels, title=colour, loc="outside right upper", frameon=False, markerscale=2)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)


def _palette(categories: Iterable[Any]) -> dict[Any, Any]:
    from matplotlib import colormaps

    names = list(categories)
    if len(names) <= 10:
        return {name: colormaps["tab10"](number) for number, name in enumerate(names)}
    return {name: colormaps["turbo"](number / (len(names) - 1)) for number, name in enumerate(names)}


def draw_umaps(cells: anndata.AnnData, folder: Path, prefix: str) -> list[Path]:
    """Compute the UMAP of each representation in obsm and write one picture for each categorical obs column.

    Args:
        cells: obs, whose columns of dtype category with at most 100 values are drawn, and obsm: title -> cells x
            dimensions (a latent code, or expression in PC space).
        folder: Where the pictures `PREFIX_COLUMN.png` go.
        prefix: Beginning of the file names.

    Returns:
        The files written.
    """
    coordinates = {title: umap_coordinates(values) for title, values in cells.obsm.items()}
    written = []
    for column in cells.obs.select_dtypes("category").columns:
        if not 1 <= cells.obs[column].nunique() <= 100:
            continue
        name = re.sub(r"[^\w.+-]", "_", str(column))
        path = folder / f"{prefix}_{name}.png"
        plot_umaps(coordinates, cells.obs, path, [column])
        written.append(path)
    return written


def plot_means(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path, labels: tuple[str, str]) -> None:
    """Scatter two vectors of mean log-normalised expression over genes against each other, one panel for each pair.

    Args:
        pairs: Title -> (x, y), each of shape (genes,).
        path: The PNG to write.
        labels: Names of the x and y axis.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.5 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis, (title, (x, y)) in zip(axes, pairs.items(), strict=False):
        top = float(max(x.max(), y.max()))
        axis.plot([0, top], [0, top], color="0.7", linewidth=1, zorder=0)
        axis.scatter(x, y, s=2, alpha=0.25, linewidths=0, rasterized=True)
        axis.set(title=f"{title}\nr = {np.corrcoef(x, y)[0, 1]:.3f}", xlabel=labels[0], ylabel=labels[1])
    for axis in axes[len(pairs) :]:
        axis.set_axis_off()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)
