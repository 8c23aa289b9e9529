"""Project the cells of an experiment into files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from discern.data.annotation import parse_metadata
from discern.experiment.folder import load_experiment, open_experiment, read_network, require_model
from discern.folder.layout import ExperimentFolder
from discern.model.targets import RESULTS, OutputFormat, projection_targets

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_projection(
    exp_folder: Path,
    metadata: Sequence[str | tuple[str | None, str | None]] | None,
    infile: str | Path | None,
    all_batches: bool,
    store_sigmas: bool,
    layers: Sequence[str] = RESULTS,
    dtype: str = "float32",
    suffix: str = ".h5ad",
    reference: str | None = None,
) -> list[Path]:
    """Reconstruct the cells of an experiment; `discern.model.targets.target_labels` says what the metadata mean.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME, trained.
        metadata: "column:value" or (column, value) pairs; the value may be empty.
        infile: Processed cells to project in place of the experiment's own, as `input_path` of `run_train`.
        all_batches: Whether to add one projection to each batch.
        store_sigmas: Whether to write `obsm["X_DISCERN_sigma"]`.
        layers: Which of "X", "estimated_counts", "estimated_dropouts" and "measured" to write.
        dtype: "float32" or "float16", of matrices stored dense.
        suffix: ".h5ad" or ".zarr".
        reference: A batch to decode all cells as.

    Returns:
        The files written, in `projected/`.

    Raises:
        UserError: If there is no model, or the data or the metadata do not fit it; nothing is written then.
    """
    output = OutputFormat(layers, dtype, suffix)
    wanted = [parse_metadata(target) for target in ([metadata] if isinstance(metadata, str) else metadata or ())]
    exp_folder = Path(exp_folder)
    experiment = open_experiment(exp_folder)
    require_model(exp_folder)
    data = load_experiment(exp_folder, infile, batch_size=1)  # which only the training would use
    if all_batches:
        wanted += [("batch", str(batch)) for batch in data.obs["batch"].cat.categories]
    targets = projection_targets(list(dict.fromkeys(wanted)), reference, suffix, data.obs)
    trained = read_network(exp_folder, experiment, data)

    from discern.model.projection import OwnCells, project

    judge, seed = OwnCells.of(trained, data), experiment.training.seed or 0
    return project(trained, data, judge, targets, ExperimentFolder(exp_folder).projected, output, seed, store_sigmas)
