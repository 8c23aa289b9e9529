"""Evaluate an experiment: a folder in, a report and tables out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from discern.evaluation.measurement import measure
from discern.evaluation.selection import Comparison
from discern.folder.layout import ExperimentFolder
from discern.inputs.labels import find_genes
from discern.runtime import progress
from discern.runtime.atomic import replacing
from discern.runtime.text import cell

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOGGER = logging.getLogger(__name__)


def evaluate(
    exp_folder: Path,
    reference: str | None = None,
    sources: Sequence[str] = (),
    label: str | None = None,
    genes: Sequence[str] = (),
) -> list[Path]:
    """Project cells to a reference batch and compare them with its real cells that training did not see.

    All cells of the sources are projected. They are compared with the test cells of the reference (`split == "test"`),
    or with its validation cells if there are none. Nothing dense of cells x genes is made.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME, trained.
        reference: The batch to project to; None for the one with most genes detected in its median cell.
        sources: The batches to project; none for all others.
        label: obs column of the cell types; None for the one found by `discern.inputs.labels.label_column`, if any.
        genes: Names, symbols or ids of marker genes to show: as measured, reconstructed, and in real cells.

    Returns:
        The files written, in `evaluation/`: `report.html`, `evaluation.json`, `cells.csv`, `genes.csv`, and
        `markers.csv` if there are `genes`.

    Raises:
        UserError: If there is no model, or a name does not exist; what an earlier evaluation wrote is kept then.
    """
    from discern.data.processed import DISCERNData
    from discern.evaluation.report import render
    from discern.experiment.folder import open_experiment, read_network

    exp_folder = Path(exp_folder)
    experiment = open_experiment(exp_folder)
    data = DISCERNData.from_folder(exp_folder, experiment.training.batch_size)
    comparison = Comparison.choose(data.obs, reference, sources, label)
    markers = find_genes(genes, data.var)
    if label is None:
        found = "no obs column found" if comparison.label is None else f"obs column {comparison.label!r}"
        _LOGGER.info("cell types: %s; --label names another", found)
    trained = read_network(exp_folder, experiment, data)
    evaluation = measure(trained, data, comparison, exp_folder.name, markers)
    names = ["report.html", "evaluation.json", "cells.csv", "genes.csv"]
    with progress.phase("writing the report"), replacing(ExperimentFolder(exp_folder).evaluation) as folder:
        folder.mkdir()
        _write_table(evaluation.cell_table, folder / "cells.csv")
        _write_table(evaluation.gene_table, folder / "genes.csv")
        if markers:
            _write_table(evaluation.markers.set_index("gene"), folder / "markers.csv")
            names.append("markers.csv")
        figures = evaluation.result.to_json()
        (folder / "evaluation.json").write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
        (folder / "report.html").write_text(render(evaluation), encoding="utf-8")
    return [ExperimentFolder(exp_folder).evaluation / name for name in names]


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table whose names no spreadsheet takes for formulas; see `discern.runtime.text.cell`."""
    safe = table.rename(index=cell, columns=cell)
    for position, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            safe.isetitem(position, [cell(value) for value in table.iloc[:, position]])
    safe.to_csv(path)
