"""Measure reconstructed cells against real cells of the wanted batch that training never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from discern import progress
from discern.errors import MissingFileError, UnknownNameError
from discern.files import recover, replacing
from discern.measurement import measure
from discern.neighbours import NEIGHBOURS, reference_distance, training_cells
from discern.projection import CheckMetaData
from discern.selection import Comparison
from discern.text import cell, from_cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata


def evaluate(
    exp_folder: Path, reference: str | None = None, sources: Sequence[str] = (), label: str | None = None
) -> list[Path]:
    """Project cells to a reference batch and compare them with its real cells that training did not see.

    All cells of the sources are projected. They are compared with the test cells of the reference (`split == "test"`),
    or with its validation cells if there are none. Nothing dense of cells x genes is made.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME, trained.
        reference: The batch to project to; None for the one with most genes detected in its median cell.
        sources: The batches to project; none for all others.
        label: obs column of the cell types; None for `celltype`, if there is one.

    Returns:
        The files written, in `evaluation/`: `report.html`, `evaluation.json`, `cells.csv` and `genes.csv`.

    Raises:
        UserError: If there is no model, or a name does not exist; what an earlier evaluation wrote is kept then.
    """
    from discern.estimators.run_exp import setup_exp
    from discern.io import DISCERNData
    from discern.report import render

    exp_folder = Path(exp_folder)
    model, experiment = setup_exp(exp_folder)
    data = DISCERNData.from_folder(exp_folder, experiment.get("training", {}).get("batch_size", 192))
    comparison = Comparison.choose(data.obs, reference, sources, label)
    model.restore_model(exp_folder / "job")
    evaluation = measure(model, data, comparison, exp_folder.name)
    with progress.phase("writing the report"), replacing(exp_folder / "evaluation") as folder:
        folder.mkdir()
        _write_table(evaluation.cell_table, folder / "cells.csv")
        _write_table(evaluation.gene_table, folder / "genes.csv")
        (folder / "evaluation.json").write_text(
            json.dumps(evaluation.result.to_json(), indent=2, allow_nan=False) + "\n"
        )
        (folder / "report.html").write_text(render(evaluation), encoding="utf-8")
    names = ("report.html", "evaluation.json", "cells.csv", "genes.csv")
    return [exp_folder / "evaluation" / name for name in names]


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table whose names no spreadsheet takes for formulas; see `discern.text.cell`."""
    safe = table.rename(index=cell, columns=cell)
    for position, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            safe.isetitem(position, [cell(value) for value in table.iloc[:, position]])
    safe.to_csv(path)


def add_distance(adata: anndata.AnnData, reference: str, k: int = NEIGHBOURS) -> None:
    """Add `obs["discern_distance"]`, how far each cell is from the reference in latent space.

    See `discern.neighbours.reference_distance` for its meaning. A cell that stands out is of a type that the reference
    lacks, and its reconstruction is not to be trusted.

    Args:
        adata: Projected cells with `obsm["X_DISCERN"]` and obs `batch` and `split`, those of the reference among them.
        reference: The batch that is the reference; its training cells are used.
        k: Neighbours.

    Raises:
        UnknownNameError: If `adata` does not have these.
        InvalidInputError: If it has fewer than two training cells of the reference.
    """
    missing = [name for name in ("batch", "split") if name not in adata.obs]
    if missing or "X_DISCERN" not in adata.obsm:
        wanted = [f"obs[{name!r}]" for name in missing] or ["obsm['X_DISCERN']"]
        raise UnknownNameError(f"the cells have no {' and '.join(wanted)}: expected the result of `discern project`")
    CheckMetaData(adata.obs).check(("batch", reference))
    training = training_cells(adata.obs, reference)
    adata.obs["discern_distance"] = reference_distance(
        np.asarray(adata.obsm["X_DISCERN"]), adata.obs["batch"].astype(str).to_numpy(), training, k
    )


def add_evaluation(adata: anndata.AnnData, exp_folder: Path) -> None:
    """Add the columns that `evaluate` wrote for cells and genes.

    obs `discern_distance`; var `discern_rmse` and `discern_r`, error and correlation of each gene in auto-encoded cells
    that training did not see, and `detection_BATCH`, the share of a batch's cells in which the gene is detected. Cells
    and genes that the evaluation does not know get NaN.

    Args:
        adata: Cells of the experiment.
        exp_folder: EXPERIMENTS_DIR/NAME.

    Raises:
        MissingFileError: If the experiment was not evaluated.
    """
    recover(Path(exp_folder))
    folder = Path(exp_folder) / "evaluation"
    for file, target in (("cells.csv", adata.obs), ("genes.csv", adata.var)):
        if not (folder / file).is_file():
            raise MissingFileError(f"{folder / file}: no such file; run `discern evaluate` first")
        table = pd.read_csv(folder / file, index_col=0, dtype={0: str}, keep_default_na=False, na_values=[""])
        table = table.rename(index=from_cell, columns=from_cell)
        for column in table.columns.difference(["batch", "split"], sort=False):
            target[column] = table[column].reindex(target.index).to_numpy()
