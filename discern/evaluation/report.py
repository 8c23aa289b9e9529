"""The report of an evaluation: one HTML file with its pictures inside, which opens without a network."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from discern.evaluation.results import FIGURES, METHODS, SHORT, PairMetrics
from discern.plots.figures import cells_png, histogram_png, means_png, palette, reliability_png, umap_coordinates
from discern.runtime.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from discern.evaluation.results import Distances, Evaluation, MethodMetrics, PairResult, SourceResult, TypeMetrics


_TYPES_IN_PICTURES = 6
_PAIRS_IN_TABLE = 30
_OURS = ("X", "estimated_counts")

_UNSEEN = {
    "test": "its test cells",
    "valid": "its validation cells, the experiment having no test cells",
}
_FEW = (
    "These are few, and their means noisy, as the ceiling shows; input_ds.split.test_cells holds out more when the "
    "experiment is processed and trained again."
)
_NO_LABEL = "No cell types are known: all cells count as one type, and another composition as an error."
_KEPT = (
    "Of a cell's nearest neighbours within its batch, as measured, this share is among them afterwards. Neighbours "
    "within a type are mostly ordered by noise: 1 is not the aim."
)


def render(evaluation: Evaluation) -> str:
    """Return the report as a complete HTML page.

    Names of batches, cell types and genes come from files: all are escaped, and the page forbids scripts and requests.

    Args:
        evaluation: What `discern.evaluation.measurement.measure` found.
    """
    result = evaluation.result
    reference, latent = result.reference, result.latent
    perfect = _number(latent.expected, 2)
    if latent.expected_within_label is not None:
        perfect += f" (or {_number(latent.expected_within_label, 2)}, all neighbours being of the cell's type)"
    texts = {
        "title": f"Evaluation of {result.experiment}",
        "sources": ", ".join(result.sources),
        "reference": reference.batch,
        "held_out": reference.held_out_cells,
        "unseen": _UNSEEN[reference.split],
        "few": _FEW if reference.held_out_cells < 100 else "",
        "label": _NO_LABEL if result.label is None else f"Cell types: column {result.label}.",
        "cells": f"{result.n_cells:,}",
        "genes": f"{result.n_genes:,}",
        "epoch": result.epoch,
        "shown": f"{len(evaluation.shown):,}",
        "mixed": _number(latent.share, 2),
        "perfect": perfect,
        "neighbours": result.distance.neighbours,
        "median_r": _number(result.genes.median_r, 2),
        "median_rmse": _number(result.genes.median_rmse, 2),
    }
    sections = {
        "comparisons": "\n".join(_comparison(evaluation, *found) for found in result.sources.items()),
        "maps": _maps(evaluation),
        "distances": _distances(evaluation),
        "reliability": _reliability(evaluation),
    }
    template = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    return template.substitute({name: _escape(text) for name, text in texts.items()} | sections)


def _comparison(evaluation: Evaluation, source: str, found: SourceResult) -> str:
    reference = evaluation.result.reference.batch
    parts = [
        f"<h2>{_escape(source)} as {_escape(reference)}</h2>",
        f"<p>{found.cells:,} cells, {len(found.shared_types)} types that both batches have.</p>",
        _method_table(found.methods),
    ]
    if found.other_types:
        names = _escape(", ".join(found.other_types))
        parts.append(f"<p>Types without held-out cells of {_escape(reference)}, not compared: <b>{names}</b>.</p>")
    if evaluation.result.label is not None:
        parts += ["<h3>By cell type</h3>", _types_table(found.types)]
    if found.pairs:
        parts += ["<h3>By pair of cell types</h3>", _pairs_table(found.pairs)]
    parts += ["<h3>Means of genes</h3>", _means_pictures(evaluation, source, found)]
    if kept := found.neighbours_kept:
        parts += ["<h3>Neighbours kept</h3>", f"<p class='note'>{_KEPT}</p>"]
        spaces = ["latent", *_OURS, "expected"]
        row = ("share kept", [_number(getattr(kept, space), 2) for space in spaces], False)
        parts.append(_table(["", "latent code", *_OURS, "by chance"], [row]))
    return "\n".join(parts)


def _method_table(methods: Mapping[str, MethodMetrics]) -> str:
    rows = [
        (METHODS[method], [_number(getattr(metrics, name)) for name in FIGURES], method in _OURS)
        for method, metrics in methods.items()
    ]
    return _table(["", *FIGURES.values()], rows)


def _types_table(types: Mapping[str, Mapping[str, TypeMetrics]]) -> str:
    methods = list(METHODS)
    header = ["cell type", "cells", "real cells"]
    header += [f"{FIGURES[name]}: {SHORT[method]}" for name in ("mean_r", "mean_rmse") for method in methods]
    rows = []
    for name, found in types.items():
        counts = [f"{found['measured'].cells:,}", f"{found['measured'].real_cells:,}"]
        values = [_number(getattr(found.get(m), key, None)) for key in ("mean_r", "mean_rmse") for m in methods]
        rows.append((name, counts + values, False))
    return _table(header, rows)


def _pairs_table(pairs: Sequence[PairResult]) -> str:
    methods = list(METHODS)
    names = ("difference_r", "t_rho", "top200")
    header = ["pair", *(f"{FIGURES[name]}: {SHORT[method]}" for name in names for method in methods)]
    rows = [
        (
            " / ".join(pair.types),
            [_number(getattr(pair.methods.get(method, PairMetrics()), name)) for name in names for method in methods],
            False,
        )
        for pair in pairs[:_PAIRS_IN_TABLE]
    ]
    more = len(pairs) - len(rows)
    return _table(header, rows) + (f"<p class='note'>{more} more pairs: evaluation.json.</p>" if more > 0 else "")


def _means_pictures(evaluation: Evaluation, source: str, found: SourceResult) -> str:
    reference = evaluation.result.reference.batch
    real, means = evaluation.real_means, evaluation.means[source]
    types = sorted(found.types, key=lambda name: -found.types[name]["measured"].cells)
    pictures = []
    for name in types[:_TYPES_IN_PICTURES]:
        for method, word in (("measured", "as measured"), ("estimated_counts", "reconstructed")):
            axes = (f"{source}, {word}", f"{reference}, real")
            picture = means_png(means[method].loc[name].to_numpy(), real.loc[name].to_numpy(), axes)
            r = _number(found.types[name][method].mean_r)
            pictures.append(_figure(picture, f"{name}, {word}: r = {r}"))
    text = "Each dot is a gene: its mean expression in the cells of a type, against that in the held-out real cells."
    if len(types) > _TYPES_IN_PICTURES:
        text += f" The {_TYPES_IN_PICTURES} types with most cells."
    return f"<p class='note'>{text}</p>{_grid(pictures)}"


def _maps(evaluation: Evaluation) -> str:
    coordinates = {title: umap_coordinates(values) for title, values in evaluation.representations.items()}
    parts = []
    for column in evaluation.shown:
        names = evaluation.shown[column]
        parts.append(f"<h3>By {_escape(column)}</h3>{_legend(palette(names.cat.categories))}")
        parts.append(_grid(_figure(cells_png(place, names), title) for title, place in coordinates.items()))
    return "\n".join(parts)


def _distances(evaluation: Evaluation) -> str:
    distance, reference = evaluation.result.distance, evaluation.result.reference
    held_out = f"{reference.batch}, held out"
    rows = [(held_out, _quantiles(distance.held_out), False)]
    for source, found in distance.sources.items():
        rows.append((source, _quantiles(found), True))
        if evaluation.result.label is not None:
            rows += [(f"{source}: {name}", _quantiles(values), False) for name, values in found.types.items()]
    cells = evaluation.cell_table
    of_reference = (cells["batch"] == reference.batch) & (cells["split"] == reference.split)
    groups = {held_out: cells["discern_distance"][of_reference].to_numpy()}
    groups |= {source: cells["discern_distance"][cells["batch"] == source].to_numpy() for source in distance.sources}
    colours = palette(groups)
    picture = histogram_png(groups, colours, "distance from the reference")
    table = _table(["cells", "number", "5 % below", "median", "95 % below"], rows)
    return f"{table}{_legend(colours)}{_figure(picture, 'Distances of the cells')}"


def _quantiles(distances: Distances) -> list[str]:
    return [f"{distances.cells:,}", *(_number(value, 2) for value in (distances.q05, distances.median, distances.q95))]


def _reliability(evaluation: Evaluation) -> str:
    reference = evaluation.result.reference.batch
    genes = evaluation.gene_table
    detection = genes[f"detection_{reference}"]
    axis = f"share of {reference} cells with the gene"
    pictures = [
        _figure(
            reliability_png(detection.to_numpy(), genes[column].to_numpy(), (axis, label)), f"{label}, gene by gene"
        )
        for column, label in (("discern_r", "r over cells"), ("discern_rmse", "RMSE"))
    ]
    known = int(genes["discern_r"].notna().sum())
    rows = [
        (f"r above {limit}", [f"{number:,}", f"{number / max(known, 1):.0%}"], False)
        for limit, number in evaluation.result.genes.r_above.items()
    ]
    frequent = genes[(detection >= 0.5) & genes["discern_r"].notna()].sort_values("discern_r", ascending=False)
    tables = {"Best": frequent.head(10), "Worst": frequent.tail(10)[::-1]}
    listed = [f"<div><h3>{title}</h3>{_gene_table(table)}</div>" for title, table in tables.items()]
    return (
        _table(["genes", "number", "of those that vary"], rows)
        + _grid(pictures)
        + "<p class='note'>Best and worst of the genes detected in at least half of the reference's cells:</p>"
        + _grid(listed)
    )


def _gene_table(genes: pd.DataFrame) -> str:
    rows = [
        (str(name), [_number(r, 2), _number(error, 2)], False)
        for name, r, error in zip(genes.index, genes["discern_r"], genes["discern_rmse"], strict=True)
    ]
    return _table(["gene", "r", "RMSE"], rows)


def _table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[str], bool]]) -> str:
    """Return a table; of each row the name, the cells, and whether it is marked as ours. Everything is escaped."""
    head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in header)
    body = []
    for name, cells, ours in rows:
        mark = ' class="ours"' if ours else ""
        values = "".join(f"<td>{_escape(cell)}</td>" for cell in cells)
        body.append(f'<tr{mark}><th scope="row">{_escape(name)}</th>{values}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _figure(picture: bytes, caption: str) -> str:
    data = base64.b64encode(picture).decode("ascii")
    text = _escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>'


def _legend(colours: Mapping[str, str]) -> str:
    items = "".join(
        f'<span><i style="background:{colour}"></i>{_escape(name)}</span> ' for name, colour in colours.items()
    )
    return f'<p class="legend">{items}</p>'


def _escape(value: object) -> str:
    return html.escape(visible(str(value)))


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
