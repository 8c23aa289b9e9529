"""Pictures of a result, as `discern.pl`: for the cells that `reconstruct`, `project` and `discern project` return.

Each function draws with matplotlib, writes the picture with `save=`, shows it, or returns its axes with `show=False`,
as those of scanpy do. No setting of matplotlib is changed. In all of them a colour has one meaning: orange are cells as
measured, blue the same cells reconstructed, black real cells of the reference.

The cells need `layers["measured"]`: `discern project --layers X,estimated_counts,estimated_dropouts,measured` writes
it.

Example:
    >>> import anndata as ad, discern
    >>> from discern.datasets import lung_cell_lines
    >>> small = ad.concat([ad.read_h5ad(path)[:40] for path in lung_cell_lines().values()])[:, :3000].copy()
    >>> result = discern.reconstruct(
    ...     small, reference="celseq2", min_genes=20, latent_dim=4, layers=[16], batch_size=8, max_steps=1)
    >>> axes = discern.pl.gene(result, result.var_names[0], show=False)
    >>> axes.get_ylabel()
    'log-normalised expression'
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from discern.data.annotation import CheckMetaData, named_layers
from discern.data.chunks import cell_blocks, is_lazy, some_rows
from discern.data.components import PrincipalComponents
from discern.errors import InvalidInputError, UnknownNameError, nearest
from discern.experiment.training_logs import LOSSES, read_history
from discern.inputs.labels import find_genes, gene_symbols, label_column
from discern.metrics.gene_agreement import GroupStatistics, shared_groups
from discern.plots.colours import STAGES, palette
from discern.plots.figures import EACH_ITS_OWN, fill_means, fill_umaps, umap_coordinates, umaps_size
from discern.runtime import progress
from discern.runtime.atomic import replacing
from discern.runtime.text import short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anndata
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from discern.data.chunks import Matrix

__all__ = ["distance", "dotplot", "gene", "learning_curves", "means", "umap"]

_MOST_TYPES = 6  # in `means`
_SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".tiff", ".webp")
_EXPRESSION = "log-normalised expression"
_Drawn = TypeVar("_Drawn")


def umap(
    adata: anndata.AnnData,
    *,
    label: str | None = None,
    layer: str = "X",
    seed: int = 0,
    most_cells: int = 10_000,
    show: bool | None = None,
    save: str | Path | None = None,
) -> np.ndarray | None:
    """Draw all cells before and after, coloured by batch and by cell type.

    Each panel is a UMAP of its own, of the principal components of its expression: what lies together in it is alike,
    but its places say nothing about those in another panel.

    Args:
        adata: The result, with `layers["measured"]`.
        label: obs column of the cell types; None to look for it (`discern.inputs.labels.label_column`).
        layer: The reconstruction: "X", the sampled expression, or "estimated_counts".
        seed: Of the embeddings and of the choice of cells.
        most_cells: Of more cells, as many are drawn, by chance; the components are found on a fifth of as many.
        show: Whether to show the picture; None for yes, unless it is saved.
        save: File to write, as its name ends: .png, .pdf, .svg.

    Returns:
        With `show=False` (or `save`) the axes: a row for the batch and one for the type, before and after.

    Raises:
        UnknownNameError: If a layer or a column does not exist.

    Example:
        `discern.pl.umap(result, save="umap.png")`
    """
    _check_save(save)
    label = _label(adata, label)
    measured, reconstructed = _matrix(adata, "measured"), _matrix(adata, layer)
    generator = np.random.default_rng(seed)
    cells = some_rows(np.arange(adata.n_obs), most_cells, generator)
    panels = {"as measured": measured, _title(adata): reconstructed}
    places = {}
    with progress.phase("drawing UMAPs", total=len(panels)) as advance:
        for title, matrix in panels.items():
            places[title] = umap_coordinates(_components(matrix, cells, most_cells // 5, generator), seed)
            advance()
    columns = ["batch"] if label is None else list(dict.fromkeys(["batch", label]))
    note = EACH_ITS_OWN
    if len(cells) < adata.n_obs:
        note += f" {len(cells):,} of {adata.n_obs:,} cells, chosen by chance."
    figure = _new(*umaps_size(len(panels), adata.obs.iloc[cells], columns))
    axes = fill_umaps(figure, places, adata.obs.iloc[cells], columns, note)
    return _finish(figure, axes, show, save)


def gene(
    adata: anndata.AnnData,
    name: str,
    *,
    reference: str | None = None,
    label: str | None = None,
    layer: str = "estimated_counts",
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | None:
    """Draw the expression of a gene in each cell type: as measured, reconstructed, and in real cells of the reference.

    A violin for each; its dot is the mean, and below it stands the share of cells in which the gene is detected: of the
    reconstruction, which has no zeros, the mean of `layers["estimated_dropouts"]`. The real cells are those that
    training did not see, if there are any, see `means`.

    Args:
        adata: The result, with `layers["measured"]`.
        name: Name, symbol or id of the gene.
        reference: The batch of the real cells; None for the one that the cells were reconstructed as.
        label: obs column of the cell types, see `umap`.
        layer: The reconstruction: "estimated_counts", or "X", the sampled expression, which has zeros as real cells
            have them, but whose mean is too low where a gene is rarely detected.
        show: See `umap`.
        save: See `umap`.

    Returns:
        With `show=False` (or `save`) the axes.

    Raises:
        UnknownNameError: If the gene, a layer, a column or the reference does not exist.

    Example:
        `discern.pl.gene(result, "CD3E", save="cd3e.png")`
    """
    _check_save(save)
    groups = _Groups.of(adata, reference, label)
    shown, place = _genes(adata, [name])[0]
    parts = groups.stages(_matrix(adata, "measured"), _matrix(adata, layer))
    types = groups.present
    longest = max(len(short(groups.names[code])) for code in types)
    tilted = longest > 16 or (len(types) > 19 and longest > 8)
    figure = _new(min(max(4.5, 1.5 + 1.25 * len(types)), 24), 4.2 + 0.06 * longest * tilted)
    axis = figure.subplots()
    for offset, (stage, (matrix, cells)) in enumerate(parts.items()):
        values = _column(matrix, place, cells)
        detected = values > 0
        if stage == "reconstructed" and layer == "estimated_counts":
            detected = _column(_matrix(adata, "estimated_dropouts"), place, cells)
        for number, code in enumerate(types):
            chosen = groups.codes[cells] == code
            _violin(axis, values[chosen], detected[chosen], number + 0.29 * (offset - 1), STAGES[stage])
    axis.set_xticks(range(len(types)), [short(groups.names[code]) for code in types], parse_math=False)
    axis.tick_params(axis="x", length=0, pad=16)
    axis.set_xlim(-0.55, len(types) - 0.45)
    axis.set_ylim(bottom=0)
    axis.set_ylabel(_EXPRESSION)
    axis.set_title(shown, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    if tilted:
        for text in axis.get_xticklabels():
            text.set(rotation=45, ha="right", rotation_mode="anchor")
    handles = [Patch(color=STAGES[stage], alpha=0.75) for stage in parts]
    _legend(figure, handles, groups.captions(), title="dot: mean; below: cells with the gene")
    return _finish(figure, axis, show, save)


def means(
    adata: anndata.AnnData,
    *,
    reference: str | None = None,
    label: str | None = None,
    layer: str = "estimated_counts",
    show: bool | None = None,
    save: str | Path | None = None,
) -> np.ndarray | None:
    """Draw the mean expression of each gene in the cells of a type against that in real cells of the reference.

    A dot for each gene, above for the cells as measured, below for the reconstruction; the title has the Pearson
    correlation over genes. The real cells are those of the reference that training did not see (split `test`, else
    `valid`); without any, all of them, and the axis says so. The six types with most cells that both have are drawn.

    Args:
        adata: The result, with `layers["measured"]`.
        reference: The batch of the real cells; None for the one that the cells were reconstructed as.
        label: obs column of the cell types, see `umap`.
        layer: The reconstruction: "estimated_counts" or "X".
        show: See `umap`.
        save: See `umap`.

    Returns:
        With `show=False` (or `save`) the axes: measured and reconstructed, x types.

    Raises:
        UnknownNameError: If a layer, a column or the reference does not exist.
        InvalidInputError: If no type is in both.

    Example:
        `discern.pl.means(result, save="means.png")`
    """
    _check_save(save)
    groups = _Groups.of(adata, reference, label)
    parts = groups.stages(_matrix(adata, "measured"), _matrix(adata, layer))
    found = {stage: groups.statistics(matrix, cells) for stage, (matrix, cells) in parts.items()}
    real = found.pop("real")
    types = shared_groups(*found.values(), real)
    if not types:
        raise InvalidInputError(f"{groups.source} and {groups.real_cells} have no cell type in common")
    most = found["measured"].at(types).cells.argsort(kind="stable")[::-1][:_MOST_TYPES]
    shown = [types[number] for number in sorted(most)]
    truth = real.at(shown).mean
    pairs, colours = {}, {}
    for stage, statistics in found.items():
        for number, name in enumerate(shown):
            cells, real_cells = statistics.at(shown).cells[number], real.at(shown).cells[number]
            title = f"{short(name)}\n{stage}, {cells:,} cells, {real_cells:,} real"
            pairs[title], colours[title] = (statistics.at(shown).mean[number], truth[number]), STAGES[stage]
    note = f"A dot is a gene, x and y its mean {_EXPRESSION}; r: Pearson correlation over {adata.n_vars:,} genes."
    if len(types) > len(shown):
        note += f" {len(shown)} of {len(types)} types, those with most cells."
    figure = _new(max(3.2 * len(shown), 6), 7)
    axes = fill_means(figure, pairs, (groups.source, groups.real_cells), len(shown), colours, note)
    return _finish(figure, axes, show, save)


def dotplot(
    adata: anndata.AnnData,
    genes: Sequence[str],
    *,
    reference: str | None = None,
    label: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> np.ndarray | None:
    """Draw markers in each cell type: as measured, reconstructed, and in real cells of the reference.

    The size of a dot is the share of cells in which the gene is detected, its colour the mean log-normalised
    expression, on one scale for all panels. Of the reconstruction these are the means of `layers["estimated_dropouts"]`
    and `layers["estimated_counts"]`. The real cells are those that training did not see, see `means`.

    Args:
        adata: The result, with `layers["measured"]`.
        genes: Names, symbols or ids.
        reference: The batch of the real cells; None for the one that the cells were reconstructed as.
        label: obs column of the cell types, see `umap`.
        show: See `umap`.
        save: See `umap`.

    Returns:
        With `show=False` (or `save`) the axes of the three panels.

    Raises:
        UnknownNameError: If a gene, a layer, a column or the reference does not exist.
        InvalidInputError: If no gene is given.

    Example:
        `discern.pl.dotplot(result, ["CD3E", "MS4A1", "LYZ"], save="markers.png")`
    """
    _check_save(save)
    if isinstance(genes, str):
        genes = [genes]
    if not len(genes):
        raise InvalidInputError("expected at least one gene")
    groups = _Groups.of(adata, reference, label)
    chosen = _genes(adata, genes)
    types = groups.present
    tables = {}
    measured, probability = _matrix(adata, "measured"), _matrix(adata, "estimated_dropouts")

    def by_type(matrix: Matrix, cells: np.ndarray) -> GroupStatistics:
        statistics = GroupStatistics(groups.names, len(chosen))
        values = np.column_stack([_column(matrix, place, cells) for _, place in chosen])
        statistics.add(values, groups.codes[cells])
        return statistics.at([groups.names[code] for code in types])

    for stage, (matrix, cells) in groups.stages(measured, _matrix(adata, "estimated_counts")).items():
        found = by_type(matrix, cells)
        share = by_type(probability, cells).mean if stage == "reconstructed" else found.detection
        tables[stage] = (found.cells, found.mean, share)
    top = max(float(np.nanmax(mean)) for _, mean, _ in tables.values()) or 1.0
    longest = max(len(groups.names[code]) for code in types)
    width = 3 * (0.32 * len(chosen) + 0.4) + 0.09 * min(longest, 60) + 1.8
    figure = _new(max(width, 7), max(0.34 * len(types) + 0.085 * max(len(name) for name, _ in chosen) + 1.1, 2.9))
    axes = figure.subplots(1, 3, sharey=True)
    dots: Any = None
    for axis, (cells, mean, share), caption in zip(axes, tables.values(), groups.captions(), strict=True):
        y, x = np.divmod(np.arange(len(types) * len(chosen)), len(chosen))
        has_cells = np.repeat(cells > 0, len(chosen))
        dots = axis.scatter(
            *(part[has_cells] for part in (x, y)),
            s=_dot_size(share.ravel()[has_cells]),
            c=mean.ravel()[has_cells],
            cmap="Purples",
            vmin=0,
            vmax=top,
            edgecolors="0.4",
            linewidths=0.4,
        )
        axis.plot(x[~has_cells], y[~has_cells], "x", color="0.7", markersize=4)
        axis.set_title(caption.replace(", ", "\n", 1), fontsize=9, parse_math=False)
        axis.set_xticks(range(len(chosen)), [name for name, _ in chosen], rotation=90, fontsize=8, parse_math=False)
        axis.set_yticks(range(len(types)), [short(groups.names[code]) for code in types], parse_math=False)
        axis.set(xlim=(-0.6, len(chosen) - 0.4), ylim=(len(types) - 0.4, -0.6))
        axis.tick_params(length=2)
        axis.spines[:].set_color("0.8")
    figure.colorbar(dots, ax=list(axes), label="mean log-normalised\nexpression", aspect=14, pad=0.01)
    shares = [0.1, 0.5, 1.0]
    style: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "markeredgecolor": "0.4"}
    handles = [Line2D([], [], markersize=float(np.sqrt(_dot_size(share))), **style) for share in shares]
    texts = [f"{share:.0%}" for share in shares]
    if any((cells == 0).any() for cells, _, _ in tables.values()):
        handles.append(Line2D([], [], marker="x", color="0.7", linestyle="", markersize=4))
        texts.append("no such cells")
    _legend(figure, handles, texts, title="cells with the gene")
    return _finish(figure, axes, show, save)


def distance(
    adata: anndata.AnnData,
    *,
    reference: str | None = None,
    label: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | None:
    """Draw how far the cells of each type are from the reference, beside real cells of it.

    obs `discern_distance` is about 1 for cells such as the reference has many of. The line is what 95 % of the real
    cells stay below; a type that lies above it as a whole is one that the reference may lack, and its reconstruction is
    a guess. The real cells are those that training did not see, see `means`.

    Args:
        adata: The result of a projection to a batch, with obs `discern_distance`.
        reference: The batch that the distance is from; None for the one that the cells were reconstructed as.
        label: obs column of the cell types, see `umap`.
        show: See `umap`.
        save: See `umap`.

    Returns:
        With `show=False` (or `save`) the axes.

    Raises:
        UnknownNameError: If obs has no `discern_distance`, or a column or the reference does not exist.

    Example:
        `discern.pl.distance(result, save="distance.png")`
    """
    _check_save(save)
    if "discern_distance" not in adata.obs:
        raise UnknownNameError(
            "the cells have no obs['discern_distance']: project them to a batch, or use add_distance"
        )
    groups = _Groups.of(adata, reference, label)
    values = adata.obs["discern_distance"].to_numpy(dtype=float)
    limit = float(np.nanpercentile(values[groups.real], 95))
    types = groups.present
    figure = _new(7, 1.7 + 0.5 * len(types))
    axis = figure.subplots()
    rng = np.random.default_rng(0)
    parts = ((groups.of_source, STAGES["reconstructed"], -0.19), (groups.real, STAGES["real"], 0.19))
    for cells, colour, offset in parts:
        for number, code in enumerate(types):
            part = values[cells][groups.codes[cells] == code]
            part = part[np.isfinite(part)]
            if not len(part):
                continue
            dots = part if len(part) <= 500 else rng.choice(part, 500, replace=False)
            place = number + offset + rng.uniform(-0.11, 0.11, len(dots))
            axis.scatter(dots, place, s=7, color=colour, alpha=0.45, linewidths=0, rasterized=True)
            axis.plot(
                np.full(2, np.median(part)), number + offset + np.array([-0.16, 0.16]), color=colour, linewidth=2.5
            )
    axis.axvline(limit, color="0.3", linestyle="--", linewidth=1, zorder=0)
    axis.set_yticks(range(len(types)), [short(groups.names[code]) for code in types], parse_math=False)
    axis.set_ylim(len(types) - 0.5, -0.5)
    axis.set_xlabel(f"distance from {short(groups.reference)}, in units of its own cells", parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    above = float(np.mean(values[groups.of_source] > limit))
    handles = [Line2D([], [], marker="o", linestyle="", color=colour, markersize=5) for _, colour, _ in parts]
    handles.append(Line2D([], [], color="0.3", linestyle="--", linewidth=1))
    captions = [f"{groups.source} ({int(groups.of_source.sum()):,} cells)", groups.real_cells]
    captions.append(f"95% of the real cells are below {limit:.2f}, and {1 - above:.0%} of {groups.source}")
    _legend(figure, handles, captions, title="dot: cell; bar: median")
    return _finish(figure, axis, show, save)


def learning_curves(
    training: Any,
    *,
    show: bool | None = None,
    save: str | Path | None = None,
) -> np.ndarray | None:
    """Draw the losses of a training over its epochs, one panel for each part of the loss.

    Args:
        training: Folder of a trained experiment, whose `job/` holds the logs; or a `Reconstructor`; or what
            `DISCERN.training` or `keras.Model.fit` return; or `{name: [value of each epoch]}`.
        show: See `umap`.
        save: See `umap`.

    Returns:
        With `show=False` (or `save`) the axes.

    Raises:
        MissingFileError: If the folder holds no logs.
        InvalidInputError: If there are no losses.

    Example:
        >>> axes = learning_curves({"loss": [3.0, 2.0, 1.5], "val_loss": [3.2, 2.5, 2.4]}, show=False)
        >>> [line.get_label() for line in axes[0].lines]
        ['training', 'validation']
    """
    _check_save(save)
    history = _history(training)
    names = [name for name in LOSSES if name in history]
    if not names:
        known = ", ".join(history) or "none"
        raise InvalidInputError(f"expected the losses of a training, {', '.join(LOSSES)}; there are {known}")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = _new(3.3 * columns + 0.3, 2.6 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    colours = list(palette(["training", "validation"]).values())
    for axis, name in zip(grid.ravel(), names, strict=False):
        for key, caption, colour in ((name, "training", colours[0]), (f"val_{name}", "validation", colours[1])):
            if key in history:
                epochs, values = history[key]
                mark = {"marker": "o", "markersize": 3} if len(epochs) < 20 else {}
                style = "-" if caption == "training" else "--"
                axis.plot(epochs, values, style, color=colour, label=caption, **mark)
        axis.set_title(LOSSES[name], fontsize=10)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid.ravel()[len(names) :]:
        axis.set_axis_off()
    lines = grid.ravel()[0].lines
    texts = [str(line.get_label()) for line in lines]
    if len(texts) == 1:
        texts[0] += " (no cells were set aside for validation)"
    _legend(figure, list(lines), texts)
    return _finish(figure, grid.ravel()[: len(names)], show, save)


# --- the cells -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Groups:
    """The cells that are compared: those of the other batches, and real ones of the reference, by type.

    Attributes:
        reference: The batch of the real cells.
        source: The other batches, in words.
        target: What the cells were reconstructed as, in words.
        label: obs column of the types, None if there is none.
        names: The types.
        codes: The number of each cell's type, -1 for none.
        of_source: Which cells are of other batches.
        real: Which cells are the real ones.
        real_cells: The real cells, in words.
    """

    reference: str
    source: str
    target: str
    label: str | None
    names: list[str]
    codes: np.ndarray
    of_source: np.ndarray
    real: np.ndarray
    real_cells: str

    @classmethod
    def of(cls, adata: anndata.AnnData, reference: str | None, label: str | None) -> _Groups:
        """Check the names and choose those not given."""
        reference = _reference(adata, reference)
        label = _label(adata, label)
        batch = adata.obs["batch"].astype(str).to_numpy()
        of_reference = batch == reference
        if not of_reference.any():
            raise InvalidInputError(f"there are no cells of {reference!r} to compare with")
        if of_reference.all():
            raise InvalidInputError(f"all cells are of {reference!r}: there are none that were reconstructed as it")
        others = sorted(set(batch) - {reference})
        types = _types(adata, label)
        real, caption = _real(adata.obs, of_reference, reference)
        source = " and ".join(others) if len(others) < 3 else f"{len(others)} other batches"
        names = [str(name) for name in types.categories]
        codes = np.asarray(types.codes)
        return cls(reference, source, _title(adata), label, names, codes, ~of_reference, real, caption)

    @property
    def present(self) -> list[int]:
        """Numbers of the types of which there are cells to compare."""
        shown = np.unique(self.codes[self.of_source | self.real])
        return [int(code) for code in shown if code >= 0]

    def stages(self, measured: Matrix, reconstructed: Matrix) -> dict[str, tuple[Matrix, np.ndarray]]:
        """Return for each stage the matrix, and the numbers of the cells in it."""
        source, real = np.flatnonzero(self.of_source), np.flatnonzero(self.real)
        return {"measured": (measured, source), "reconstructed": (reconstructed, source), "real": (measured, real)}

    def captions(self) -> list[str]:
        """Return the stages in words."""
        cells = f"({int(self.of_source.sum()):,} cells)"
        return [f"{self.source}, as measured {cells}", f"{self.source}, {self.target} {cells}", self.real_cells]

    def statistics(self, matrix: Matrix, cells: np.ndarray) -> GroupStatistics:
        """Return means of all genes by type, block by block."""
        result = GroupStatistics(self.names, matrix.shape[1])
        for rows, block in cell_blocks(matrix, cells):
            result.add(block, self.codes[rows])
        return result


def _reference(adata: anndata.AnnData, reference: str | None) -> str:
    if "batch" not in adata.obs:
        raise UnknownNameError("the cells have no obs['batch']: expected a result of DISCERN")
    if reference is None:
        target = adata.uns.get("DISCERN", {}).get("projected_to", {})
        reference = str(target.get("value", "")) if target.get("column") == "batch" else ""
        if not reference:
            known = ", ".join(sorted(set(map(str, adata.obs["batch"]))))
            raise InvalidInputError(f"which batch are the real cells of? give reference=, one of {known}")
    CheckMetaData(adata.obs).check(("batch", reference))
    return reference


def _label(adata: anndata.AnnData, label: str | None) -> str | None:
    if label is None:
        return label_column(adata.obs.drop(columns="batch", errors="ignore"))
    if label not in adata.obs:
        columns = list(map(str, adata.obs.columns))
        raise UnknownNameError(
            f"there is no obs column {label!r}{nearest(label, columns)}; there are {', '.join(columns)}"
        )
    return label


def _types(adata: anndata.AnnData, label: str | None) -> pd.Categorical[str]:
    if label is None:
        return pd.Categorical.from_codes(np.zeros(adata.n_obs, dtype=np.int64), pd.Index(["all cells"]))
    column = adata.obs[label].astype("category").cat.remove_unused_categories()
    return pd.Categorical.from_codes(column.cat.codes, column.cat.categories.astype(str))


def _real(obs: pd.DataFrame, of_reference: np.ndarray, reference: str) -> tuple[np.ndarray, str]:
    """Return which cells of the reference training did not see, or all if there are none, and what to call them."""
    split = "discern_split" if "discern_split" in obs else "split"  # results keep the user's own column `split`
    if split in obs:
        for name in ("test", "valid"):
            held_out = of_reference & (obs[split].astype(str) == name).to_numpy()
            if held_out.any():
                return held_out, f"{reference}, real, held out ({int(held_out.sum()):,} cells)"
    return of_reference, f"{reference}, real, seen in training ({int(of_reference.sum()):,} cells)"


def _title(adata: anndata.AnnData) -> str:
    target = adata.uns.get("DISCERN", {}).get("projected_to", {})
    return f"reconstructed as {target['value']}" if target.get("value") else "reconstructed"


def _matrix(adata: anndata.AnnData, layer: str) -> Matrix:
    if layer == "X" and adata.X is not None:
        return adata.X
    if layer in adata.layers:
        return adata.layers[layer]
    if layer == "measured":
        raise UnknownNameError(
            "the cells have no layers['measured'], what was measured: add `measured` to --layers of `discern project`, "
            "or take it from the processed cells, result.layers['measured'] = processed[result.obs_names].X"
        )
    known = (*(["X"] if adata.X is not None else []), *named_layers(adata))
    raise UnknownNameError(f"there is no layer {layer!r}{nearest(layer, known)}; layers are {', '.join(known)}")


def _genes(adata: anndata.AnnData, wanted: Sequence[str]) -> list[tuple[str, int]]:
    """Return of each gene what to call it, and its number."""
    names = find_genes(wanted, adata.var)
    places = adata.var_names.get_indexer(pd.Index(names))
    symbols = gene_symbols(adata.var)
    return [(short(symbols[place]), int(place)) for place in places]


def _column(matrix: Matrix, gene: int, cells: np.ndarray) -> np.ndarray:
    """Return the values of one gene in some cells."""
    column = matrix[:, gene : gene + 1]
    column = column.compute() if is_lazy(column) else column
    values = np.asarray(column.toarray() if hasattr(column, "toarray") else column, dtype=float).ravel()
    return np.asarray(values[cells])


def _components(matrix: Matrix, cells: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    """Return principal components of expression, found on so many of the cells at the most."""
    some = some_rows(cells, most, generator)
    space = PrincipalComponents.found([block for _, block in cell_blocks(matrix, some)])
    return np.concatenate([space.project(block) for _, block in cell_blocks(matrix, cells)])


def _history(training: Any) -> Mapping[str, tuple[Sequence[float], Sequence[float]]]:
    """Return for each figure the epochs, from 1, and its values."""
    if isinstance(training, str | Path):
        return read_history(Path(training))
    history: Mapping[str, Any] = getattr(training, "history", training)
    if not hasattr(history, "items"):
        raise InvalidInputError(f"expected a folder, a Reconstructor or a history, got {type(training).__name__}")
    return {name: (range(1, len(values) + 1), list(values)) for name, values in history.items() if len(values)}


# --- the picture -----------------------------------------------------------------------------------------------------


def _new(width: float, height: float) -> Figure:
    return plt.figure(figsize=(width, height), layout="constrained")


def _check_save(save: str | Path | None) -> None:
    """Raise before anything is computed if the picture cannot be written."""
    if save is not None and Path(save).suffix.lower() not in _SUFFIXES:
        raise InvalidInputError(f"{save}: expected a name that ends in {', '.join(_SUFFIXES)}")


def _finish(figure: Figure, axes: _Drawn, show: bool | None, save: str | Path | None) -> _Drawn | None:
    """Write and show a picture as scanpy does."""
    if save is not None:
        with replacing(Path(save)) as partial:
            resolution = plt.rcParams["savefig.dpi"]
            figure.savefig(partial, dpi=150 if resolution == "figure" else resolution)
    if show or (show is None and save is None):
        plt.show()
        return None
    if save is not None:
        plt.close(figure)
    return axes


def _legend(figure: Figure, handles: Sequence[Artist], texts: list[str], title: str | None = None) -> None:
    texts = [text if len(text) < 90 else short(text) for text in texts]
    columns = int(figure.get_figwidth() / (0.062 * max(map(len, texts)) + 0.6))
    legend = figure.legend(
        handles,
        texts,
        loc="outside lower center",
        ncols=max(1, min(len(texts), columns)),
        frameon=False,
        fontsize=8,
        title=title,
        title_fontsize=8,
    )
    written: list[Text] = [legend.get_title(), *legend.get_texts()]
    for text in written:
        text.set_parse_math(False)


def _violin(axis: Axes, values: np.ndarray, detected: np.ndarray, place: float, colour: str) -> None:
    """Draw a violin, its mean, and the share of cells with the gene below it."""
    if not len(values):
        return
    if len(values) > 2 and np.ptp(values) > 0:
        bodies: Any = axis.violinplot(values, [place], widths=0.26, showextrema=False)["bodies"]
        bodies[0].set(facecolor=colour, edgecolor=colour, linewidth=0.8, alpha=0.75)
    else:
        axis.plot(np.full(len(values), place), values, ".", color=colour, alpha=0.75)
    axis.plot(place, values.mean(), "o", color="white", markeredgecolor=colour, markersize=5, zorder=3)
    axis.annotate(
        f"{detected.mean():.0%}",
        (place, 0),
        xycoords=("data", "axes fraction"),
        xytext=(0, -4),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=7,
        color="0.3",
    )


def _dot_size(share: Any) -> Any:
    return 4 + 120 * np.asarray(share)
