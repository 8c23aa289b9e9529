"""Pictures of cells: UMAPs of several representations, and scatters of means. Loads no TensorFlow."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from discern.plots.colours import STAGES, markers, palette
from discern.runtime.atomic import replacing
from discern.runtime.text import file_part, short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import anndata
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


EACH_ITS_OWN = "Each panel is its own embedding: positions cannot be compared between panels."

_ENTRIES = 18  # of a legend, beside one panel
_MOST_ENTRIES = 72


def plot_umaps(
    representations: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    path: Path,
    colours: Sequence[str],
    note: str = EACH_ITS_OWN,
) -> None:
    """Draw a panel for each set of coordinates, and a row of panels for each obs column that colours the cells.

    Args:
        representations: Title of the panel -> UMAP coordinates (cells x 2).
        obs: The cells' annotation.
        path: The PNG to write.
        colours: Names of the categorical columns.
        note: What is written below the panels.
    """
    figure = _figure(*umaps_size(len(representations), obs, colours))
    fill_umaps(figure, representations, obs, colours, note)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)


def umaps_size(panels: int, obs: pd.DataFrame, colours: Sequence[str]) -> tuple[float, float]:
    """Return width and height, in inches, of a figure for `fill_umaps`."""
    columns = min(4, panels)
    rows = -(-panels // columns)
    legend = 1.8
    for colour in colours:
        names = obs[colour].dropna().unique()[:_MOST_ENTRIES]
        longest = max((len(short(name)) for name in names), default=0)
        legend = max(legend, -(-len(names) // (_ENTRIES * rows)) * (0.065 * (longest + 8) + 0.35))
    return 3.6 * columns + legend, 3.7 * rows * len(colours) + 0.3


def fill_umaps(
    figure: Figure,
    representations: Mapping[str, np.ndarray],
    obs: pd.DataFrame,
    colours: Sequence[str],
    note: str = EACH_ITS_OWN,
) -> np.ndarray:
    """Draw into a figure what `plot_umaps` writes; no colour stands for values of two columns.

    Returns:
        The axes, rows x panels.
    """
    columns = min(4, len(representations))
    rows = -(-len(representations) // columns)
    grid = figure.subplots(rows * len(colours), columns, squeeze=False)
    strips = grid.reshape(len(colours), rows * columns)
    given = 0
    for axes, colour in zip(strips, colours, strict=True):
        names = obs[colour].astype("category").cat.remove_unused_categories()
        for axis, (title, coordinates) in zip(axes, representations.items(), strict=False):
            _scatter_cells(axis, coordinates, names, given)
            axis.set_title(short(title), parse_math=False)
            axis.set_xlabel("UMAP 1", fontsize=8, color="0.3")
            axis.set_ylabel("UMAP 2", fontsize=8, color="0.3")
        for axis in axes[len(representations) :]:
            axis.set_axis_off()
        _add_legend(axes[columns - 1], colour, names, given, rows)
        given += len(names.cat.categories)
    figure.supxlabel(note, fontsize=8, color="0.3", parse_math=False)
    return strips[:, : len(representations)]


def _add_legend(axis: Axes, column: str, names: pd.Series, given: int, rows: int) -> None:
    """Tell colours and numbers of cells beside a panel."""
    from matplotlib.lines import Line2D

    counts = names.value_counts(sort=False)
    shown = counts.index[:_MOST_ENTRIES]
    shades, signs = palette(counts.index, given), markers(counts.index, given)
    handles = [Line2D([], [], color=shades[name], marker=signs[name], linestyle="", markersize=5) for name in shown]
    texts = [f"{short(name)} ({counts[name]:,})" for name in shown]
    if len(counts) > len(shown):
        handles.append(Line2D([], [], linestyle=""))
        texts.append(f"and {len(counts) - len(shown)} more")
    legend = axis.legend(
        handles,
        texts,
        title=f"{short(column)} (cells)",
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        frameon=False,
        fontsize=8,
        ncols=-(-len(texts) // (_ENTRIES * rows)),
        alignment="left",
        handletextpad=0.2,
    )
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)


def _scatter_cells(axis: Axes, coordinates: np.ndarray, names: pd.Series, given: int = 0) -> None:
    """Draw cells in the colours of their categories, in an order that hides no category behind the others.

    Args:
        axis: Where.
        coordinates: Of the cells, cells x 2.
        names: The category of each cell; cells without one are not drawn.
        given: How many colours have another meaning in the figure.
    """
    order = np.random.default_rng(0).permutation(len(names))
    order = order[names.notna().to_numpy()[order]]
    categories, codes = names.cat.categories, names.cat.codes.to_numpy()[order]
    shades = np.array(list(palette(categories, given).values()))
    signs = np.array(list(markers(categories, given).values()))
    size = float(np.clip(6000 / max(len(names), 1), 2, 18))
    for sign in dict.fromkeys(signs):
        cells = order[signs[codes] == sign]
        colour = shades[names.cat.codes.to_numpy()[cells]]
        place = coordinates[cells]
        axis.scatter(place[:, 0], place[:, 1], s=size, c=colour, marker=sign, linewidths=0, rasterized=True)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("0.8")


def cells_png(coordinates: np.ndarray, names: pd.Series) -> bytes:
    """Return a picture of cells in the colours of `palette`, as PNG.

    Args:
        coordinates: UMAP coordinates, cells x 2.
        names: The category of each cell; cells without one are not drawn.
    """
    figure = _figure(3.6, 3.3)
    _scatter_cells(figure.subplots(), coordinates, names.astype("category"))
    return _png(figure)


def means_png(x: np.ndarray, y: np.ndarray, labels: tuple[str, str]) -> bytes:
    """Return a scatter of two vectors of mean log-normalised expression, (genes,), with the diagonal, as PNG."""
    figure = _figure(3.6, 3.5)
    axis = figure.subplots()
    _scatter_means(axis, x, y)
    axis.set_xlabel(short(labels[0]), parse_math=False)
    axis.set_ylabel(short(labels[1]), parse_math=False)
    return _png(figure)


def _scatter_means(axis: Axes, x: np.ndarray, y: np.ndarray, colour: str = STAGES["reconstructed"]) -> None:
    top = float(max(x.max(), y.max()))
    axis.plot([0, top], [0, top], color="0.7", linewidth=1, zorder=0)
    axis.scatter(x, y, s=3, alpha=0.3, color=colour, linewidths=0, rasterized=True)


def reliability_png(detection: np.ndarray, values: np.ndarray, labels: tuple[str, str]) -> bytes:
    """Return how a figure of genes depends on how often they are detected, as PNG: density, median and quartiles.

    Args:
        detection: Share of cells in which each gene is detected, (genes,).
        values: The figure, (genes,); genes without one are not drawn.
        labels: Names of the x and y axis.
    """
    known = np.isfinite(values) & np.isfinite(detection)
    detection, values = detection[known], values[known]
    figure = _figure(5.2, 3.6)
    axis = figure.subplots()
    if len(values):
        axis.hexbin(detection, values, gridsize=45, bins="log", cmap="Blues", mincnt=1, linewidths=0.1)
        edges = np.linspace(0, 1, 11)
        inside = np.clip(np.digitize(detection, edges) - 1, 0, 9)
        middle = [number for number in range(10) if (inside == number).sum() >= 5]
        quartiles = np.array([np.percentile(values[inside == number], [25, 50, 75]) for number in middle]).reshape(
            -1, 3
        )
        centres = (edges[:-1] + edges[1:])[middle] / 2
        axis.plot(centres, quartiles[:, 1], color="#d55e00", marker="o", markersize=4, label="median of genes")
        axis.fill_between(
            centres, quartiles[:, 0], quartiles[:, 2], color="#d55e00", alpha=0.25, label="half of the genes"
        )
        axis.legend(frameon=False, fontsize=8)
    axis.set_xlabel(short(labels[0]), parse_math=False)
    axis.set_ylabel(short(labels[1]), parse_math=False)
    return _png(figure)


def histogram_png(groups: Mapping[str, np.ndarray], colours: Mapping[str, str], label: str) -> bytes:
    """Return the distributions of a positive figure in groups of cells, one outline each, as PNG.

    Args:
        groups: Name -> values; groups without values are left out.
        colours: Name -> colour.
        label: Name of the x axis, which is logarithmic.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    groups = {name: values[values > 0] for name, values in groups.items() if (values > 0).any()}
    figure = _figure(5.2, 3.2)
    axis = figure.subplots()
    if groups:
        values = np.concatenate(list(groups.values()))
        low, high = values.min(), max(values.max(), values.min() * 1.01)
        bins = list(np.geomspace(low, high, 40))
        for name, part in groups.items():
            share = np.full(len(part), 1 / len(part))
            axis.hist(part, bins, weights=share, histtype="step", color=colours[name], linewidth=1.5)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(label, parse_math=False)
    axis.set_ylabel("share of the cells")
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def draw_umaps(cells: anndata.AnnData, folder: Path, prefix: str) -> list[Path]:
    """Compute the UMAP of each representation in obsm and write one picture for each categorical obs column.

    Args:
        cells: obs, whose columns of dtype category with at most 100 values are drawn (of those that group the cells
            alike only the first), and obsm: title -> cells x dimensions (a latent code, or expression in PC space).
        folder: Where the pictures `PREFIX_COLUMN.png` go.
        prefix: Beginning of the file names.

    Returns:
        The files written.
    """
    titles = sorted(cells.obsm, key=lambda title: (title != "original", title != "latent", title))
    coordinates = {title: umap_coordinates(cells.obsm[title]) for title in titles}
    written: list[Path] = []
    drawn: list[np.ndarray] = []
    for column in cells.obs.select_dtypes("category").columns:
        groups, _ = pd.factorize(cells.obs[column])
        if not 1 <= cells.obs[column].nunique() <= 100 or any(np.array_equal(groups, other) for other in drawn):
            continue
        drawn.append(groups)
        path = folder / f"{prefix}_{file_part(str(column))}.png"
        if path in written:  # names that differ only in characters unfit for a file name
            path = folder / f"{prefix}_{file_part(str(column), unique=True)}.png"
        plot_umaps(coordinates, cells.obs, path, [column])
        written.append(path)
    return written


def plot_means(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: Path,
    labels: tuple[str, str],
    colours: Mapping[str, str] | None = None,
    note: str = "",
) -> None:
    """Scatter two vectors of mean log-normalised expression over genes against each other, one panel for each pair.

    Args:
        pairs: Title -> (x, y), each of shape (genes,).
        path: The PNG to write.
        labels: Names of the x and y axis.
        colours: Title -> colour of the panel's points.
        note: What is written below the panels.
    """
    columns = min(3, len(pairs))
    figure = _figure(3.4 * columns, 3.5 * -(-len(pairs) // columns))
    fill_means(figure, pairs, labels, columns, colours, note)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110)


def fill_means(
    figure: Figure,
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    labels: tuple[str, str],
    columns: int,
    colours: Mapping[str, str] | None = None,
    note: str = "",
) -> np.ndarray:
    """Draw into a figure what `plot_means` writes, with so many panels in a row.

    Returns:
        The axes, rows x columns.
    """
    grid = figure.subplots(-(-len(pairs) // columns), columns, squeeze=False)
    for axis, (title, (x, y)) in zip(grid.ravel(), pairs.items(), strict=False):
        _scatter_means(axis, x, y, (colours or {}).get(title, STAGES["reconstructed"]))
        lines = "\n".join(map(short, title.split("\n")))
        r = f"{np.corrcoef(x, y)[0, 1]:.3f}" if np.ptp(x) > 0 < np.ptp(y) else "not defined"
        axis.set_title(f"{lines}\nr = {r}", parse_math=False, fontsize=9)
        axis.set_xlabel(short(labels[0]), parse_math=False, fontsize=9)
        axis.set_ylabel(short(labels[1]), parse_math=False, fontsize=9)
    for axis in grid.ravel()[len(pairs) :]:
        axis.set_axis_off()
    if note:
        figure.supxlabel(note, fontsize=8, color="0.3", parse_math=False)
    return grid
