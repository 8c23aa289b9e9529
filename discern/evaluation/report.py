"""The report of an evaluation: one HTML file with its pictures inside, which opens without a network."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from discern.evaluation.results import FIGURES, METHODS, shown_figure
from discern.evaluation.verdict import RULE, judge
from discern.plots.colours import palette
from discern.plots.figures import cells_png, histogram_png, means_png, reliability_png, umap_coordinates
from discern.runtime.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd

    from discern.evaluation.agreement import MethodMetrics, PairResult, SourceResult, TypeMetrics
    from discern.evaluation.results import Distances, Evaluation, EvaluationResult


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
_HEADS = ("as measured", "X", "estimated counts", "real cells")
_MARKERS = (
    "In each cell type: the cells as measured, reconstructed (means of estimated_counts, detection of X), and real "
    "cells of the reference that the training did not see. Expression is log-normalised. All matrices: "
    "<b>markers.csv</b>."
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
        "line": _number(result.distance.line, 2),
        "median_r": _number(result.genes.median_r, 2),
        "median_rmse": _number(result.genes.median_rmse, 2),
    }
    sections = {
        "verdicts": "\n".join(_verdict(result, source) for source in result.sources),
        "rule": _escape(RULE),
        "markers": _markers(evaluation),
        "maps": _maps(evaluation),
        "means": "\n".join(_means_pictures(evaluation, *found) for found in result.sources.items()),
        "distances": _distances_picture(evaluation),
        "reliability": _reliability_pictures(evaluation),
        "comparisons": "\n".join(_comparison(evaluation, *found) for found in result.sources.items()),
        "distance_table": _distance_table(evaluation),
        "genes_table": _genes_tables(evaluation),
    }
    template = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    return template.substitute({name: _escape(text) for name, text in texts.items()} | sections)


def _verdict(result: EvaluationResult, source: str) -> str:
    verdict = judge(result.sources[source], result.reference)
    kind = verdict.grade.replace(" ", "-")
    return (
        f'<section class="verdict {kind}"><h2>{_escape(source)} as {_escape(result.reference.batch)}: '
        f"{verdict.grade}</h2><p>{_escape(verdict.figures)} {_escape(verdict.reason)}</p></section>"
    )


def _comparison(evaluation: Evaluation, source: str, found: SourceResult) -> str:
    reference = evaluation.result.reference.batch
    parts = [
        f"<h3>{_escape(source)} as {_escape(reference)}</h3>",
        f"<p>{found.cells:,} cells, {len(found.shared_types)} types that both batches have.</p>",
        _method_table(found.methods),
    ]
    if found.other_types:
        names = _escape(", ".join(found.other_types))
        parts.append(f"<p>Types without held-out cells of {_escape(reference)}, not compared: <b>{names}</b>.</p>")
    if evaluation.result.label is not None:
        parts.append(_tables(_types_table(found.types, name) for name in ("mean_r", "mean_rmse")))
    if found.pairs:
        parts.append(_tables(_pairs_table(found.pairs, name) for name in ("difference_r", "t_rho", "top200")))
        if (more := len(found.pairs) - _PAIRS_IN_TABLE) > 0:
            parts.append(f"<p class='note'>{more} more pairs: evaluation.json.</p>")
    if kept := found.neighbours_kept:
        parts += ["<h4>Neighbours kept</h4>", f"<p class='note'>{_KEPT}</p>"]
        spaces = ["latent", *_OURS, "expected"]
        row = ("share kept", [_number(getattr(kept, space), 2) for space in spaces], False)
        parts.append(_table(["", "latent code", *_HEADS[1:3], "by chance"], [row]))
    return "\n".join(parts)


def _method_table(methods: Mapping[str, MethodMetrics]) -> str:
    """Return the figures, one row for each, the methods side by side."""
    header = [""] + [_HEADS[list(METHODS).index(method)] for method in methods]
    rows = [
        (words, [_number(shown_figure(metrics, method, name)) for method, metrics in methods.items()], False)
        for name, words in FIGURES.items()
    ]
    return _table(header, rows, ours=[2, 3])


def _types_table(types: Mapping[str, Mapping[str, TypeMetrics]], name: str) -> str:
    rows = []
    for kind, found in types.items():
        cells = f"{found['measured'].cells:,} cells, {found['measured'].real_cells:,} real"
        rows.append(((kind, cells), [shown_figure(found.get(method), method, name) for method in METHODS]))
    return _heat_map(FIGURES[name], ["cell type", *_HEADS], rows, high_is_dark="rmse" not in name)


def _pairs_table(pairs: Sequence[PairResult], name: str) -> str:
    rows = [
        ((" / ".join(pair.types), ""), [shown_figure(pair.methods.get(method), method, name) for method in METHODS])
        for pair in pairs[:_PAIRS_IN_TABLE]
    ]
    return _heat_map(FIGURES[name], ["pair", *_HEADS], rows)


def _markers(evaluation: Evaluation) -> str:
    """Return a section on the genes that were asked for; nothing if there are none."""
    table, reference = evaluation.markers, evaluation.result.reference.batch
    if table.empty:
        return ""
    parts = ["<h2>Your marker genes</h2>", f"<p>{_MARKERS}</p>"]
    for source in evaluation.result.sources:
        parts.append(f"<h3>{_escape(source)} as {_escape(reference)}</h3>")
        parts.append(_tables(_marker_tables(table[table["batch"].isin([source, reference])], source)))
    return "\n".join(parts)


def _marker_tables(table: pd.DataFrame, source: str) -> Iterator[str]:
    values = {
        figure: table[(table["batch"] == source) | (table["matrix"] == "measured")].set_index(
            ["gene", "batch", "matrix", "celltype"]
        )[figure]
        for figure in ("mean", "detected")
    }
    (reference,) = set(table["batch"]) - {source}
    columns = {
        "mean": [(source, "measured"), (source, "estimated_counts"), (reference, "measured")],
        "detected": [(source, "measured"), (source, "X"), (reference, "measured")],
    }
    types = dict.fromkeys(table["celltype"])
    heads = ["cell type", "measured", "recon\u00adstructed", "real"]
    for gene, symbol in dict(zip(table["gene"], table["symbol"], strict=True)).items():
        title = symbol if symbol == gene else f"{symbol} ({gene})"
        for figure, words in (("mean", "mean expression"), ("detected", "share of cells with it")):
            rows = [((kind, ""), [values[figure].get((gene, *at, kind)) for at in columns[figure]]) for kind in types]
            yield _heat_map(f"{title}: {words}", heads, rows, digits=2)


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
    heading = f"<h3>{_escape(source)} as {_escape(reference)}</h3>" if len(evaluation.result.sources) > 1 else ""
    if len(types) > _TYPES_IN_PICTURES:
        heading += f"<p class='note'>The {_TYPES_IN_PICTURES} types with most cells.</p>"
    return f"{heading}{_grid(pictures)}"


def _maps(evaluation: Evaluation) -> str:
    coordinates = {title: umap_coordinates(values) for title, values in evaluation.representations.items()}
    parts = []
    for column in evaluation.shown:
        names = evaluation.shown[column]
        parts.append(f"<h3>By {_escape(column)}</h3>{_legend(palette(names.cat.categories))}")
        parts.append(_grid(_figure(cells_png(place, names), title) for title, place in coordinates.items()))
    return "\n".join(parts)


def _distances_picture(evaluation: Evaluation) -> str:
    distance, reference = evaluation.result.distance, evaluation.result.reference
    held_out = f"{reference.batch}, held out"
    cells = evaluation.cell_table
    of_reference = (cells["batch"] == reference.batch) & (cells["split"] == reference.split)
    groups = {held_out: cells["discern_distance"][of_reference].to_numpy()}
    groups |= {source: cells["discern_distance"][cells["batch"] == source].to_numpy() for source in distance.sources}
    colours = palette(groups)
    picture = histogram_png(groups, colours, "distance from the reference")
    return f"{_legend(colours)}{_figure(picture, 'Distances of the cells')}"


def _distance_table(evaluation: Evaluation) -> str:
    distance, reference = evaluation.result.distance, evaluation.result.reference
    rows = [(f"{reference.batch}, held out", _quantiles(distance.held_out), False)]
    for source, found in distance.sources.items():
        rows.append((source, _quantiles(found), True))
        if evaluation.result.label is not None:
            rows += [(f"{source}: {name}", _quantiles(values), False) for name, values in found.types.items()]
    return _table(["cells", "number", "median", "95 % below", "beyond the line"], rows)


def _quantiles(distances: Distances) -> list[str]:
    beyond = "" if distances.beyond is None else f"{distances.beyond:,} ({distances.beyond / distances.cells:.0%})"
    values = (distances.median, distances.q95)
    return [f"{distances.cells:,}", *(_number(value, 2) for value in values), beyond]


def _reliability_pictures(evaluation: Evaluation) -> str:
    reference = evaluation.result.reference.batch
    genes = evaluation.gene_table
    axis = f"share of {reference} cells with the gene"
    detection = genes[f"detection_{reference}"].to_numpy()
    return _grid(
        _figure(reliability_png(detection, genes[column].to_numpy(), (axis, label)), f"{label}, gene by gene")
        for column, label in (("discern_r", "r over cells"), ("discern_rmse", "RMSE"))
    )


def _genes_tables(evaluation: Evaluation) -> str:
    genes = evaluation.gene_table
    detection = genes[f"detection_{evaluation.result.reference.batch}"]
    known = int(genes["discern_r"].notna().sum())
    rows = [
        (f"r above {limit}", [f"{number:,}", f"{number / max(known, 1):.0%}"], False)
        for limit, number in evaluation.result.genes.r_above.items()
    ]
    frequent = genes[(detection >= 0.5) & genes["discern_r"].notna()].sort_values("discern_r", ascending=False)
    tables = {"Best": frequent.head(10), "Worst": frequent.tail(10)[::-1]}
    listed = [f"<div><h4>{title}</h4>{_gene_table(table)}</div>" for title, table in tables.items()]
    return (
        _table(["genes", "number", "of those that vary"], rows)
        + "<p class='note'>Best and worst of the genes detected in at least half of the reference's cells:</p>"
        + _tables(listed)
    )


def _gene_table(genes: pd.DataFrame) -> str:
    symbols = genes.get("symbol", genes.index)
    rows = [
        ((symbol, "" if symbol == name else name), [_number(r, 2), _number(error, 2)], False)
        for name, symbol, r, error in zip(genes.index, symbols, genes["discern_r"], genes["discern_rmse"], strict=True)
    ]
    return _table(["gene", "r", "RMSE"], rows)


def _table(
    header: Sequence[str], rows: Iterable[tuple[str | tuple[str, str], Sequence[str], bool]], ours: Sequence[int] = ()
) -> str:
    """Return a table with everything escaped.

    Args:
        header: Heads of the columns.
        rows: Of each row the name (with a second, smaller one), the cells, and whether it is marked as ours.
        ours: Numbers of the columns that are marked as ours.
    """
    mark = ' class="ours"'
    head = "".join(
        f'<th scope="col"{mark if number in ours else ""}>{_escape(name)}</th>' for number, name in enumerate(header)
    )
    body = []
    for name, cells, is_ours in rows:
        values = "".join(
            f"<td{mark if number in ours else ''}>{_escape(cell)}</td>" for number, cell in enumerate(cells, start=1)
        )
        body.append(f"<tr{mark if is_ours else ''}>{_row_head(name)}{values}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _heat_map(
    title: str,
    header: Sequence[str],
    rows: Iterable[tuple[tuple[str, str], Sequence[float | None]]],
    digits: int = 3,
    high_is_dark: bool = True,
) -> str:
    """Return a table whose numbers are shaded from the lowest to the highest in it."""
    rows = list(rows)
    known = [value for _, values in rows for value in values if value is not None and np.isfinite(value)]
    low, high = min(known, default=0), max(known, default=0)
    head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in header)
    body = []
    for name, values in rows:
        cells = "".join(_shaded(value, low, high, digits, high_is_dark) for value in values)
        body.append(f"<tr>{_row_head(name)}{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div><h4>{_escape(title)}</h4><div class="wide">{table}</div></div>'


def _shaded(value: float | None, low: float, high: float, digits: int, high_is_dark: bool) -> str:
    if value is None or not np.isfinite(value):
        return "<td>-</td>"
    share = (value - low) / (high - low) if high > low else 0.0
    share = share if high_is_dark else 1 - share
    colour = ", ".join(str(round(255 + share * (dark - 255))) for dark in (142, 190, 224))
    return f'<td style="background: rgb({colour})">{_number(value, digits)}</td>'


def _row_head(name: str | tuple[str, str]) -> str:
    first, second = (name, "") if isinstance(name, str) else name
    more = f"<small>{_escape(second)}</small>" if second else ""
    return f'<th scope="row">{_escape(first)}{more}</th>'


def _tables(tables: Iterable[str]) -> str:
    return f'<div class="tables">{"".join(tables)}</div>'


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
