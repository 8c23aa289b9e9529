"""What a hyperparameter search leaves in the experiment's folder: tables, a picture, and the best experiment."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discern.errors import InvalidInputError
from discern.folder.layout import ExperimentFolder
from discern.runtime.atomic import replacing
from discern.runtime.text import cell
from discern.search.space import with_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import ray

    from discern.config.fields import JsonObject
    from discern.config.schema import Experiment

_LOGGER = logging.getLogger(__name__)


ANALYSIS_FORMAT = 1


@dataclass(frozen=True)
class Outcome:
    """How one trial ended.

    Attributes:
        trial: Ray's name of the trial, also of its folder.
        status: "finished", "unfinished" (the search was interrupted), "diverged" or "failed".
        parameters: The drawn values by the dotted path of the parameter.
        metrics: The figures of its last step, see `discern.search.trial.Trial`; empty if there was none.
        error: The last line of the exception that ended it.
    """

    trial: str
    status: str
    parameters: JsonObject
    metrics: JsonObject
    error: str | None = None


def outcome(result: ray.tune.Result) -> Outcome:
    """Return the outcome of one `ray.tune.Result`."""
    metrics = dict(result.metrics or {})
    if result.error is not None:
        status = "failed"
    elif metrics.get("diverged"):
        status = "diverged"
    else:
        status = "finished" if metrics.get("done") else "unfinished"
    figures = {
        key: value
        for key, value in metrics.items()
        if isinstance(value, int | float) and key not in ("timestamp", "pid", "done", "timesteps_total")
    }
    error = str(result.error).strip().splitlines()[-1] if result.error is not None else None
    return Outcome(Path(result.path).name, status, _flat(result.config or {}), figures, error)


def best(outcomes: Sequence[Outcome], metric: str, mode: str) -> Outcome | None:
    """Return the trial with the lowest (or highest) last value of a figure, of those that did not fail or diverge.

    Example:
        >>> trials = [Outcome("a", "finished", {}, {"auc": 0.9}), Outcome("b", "diverged", {}, {"auc": 0.1})]
        >>> best(trials, "auc", "min").trial
        'a'
    """
    usable = [
        trial
        for trial in outcomes
        if trial.status in ("finished", "unfinished") and math.isfinite(trial.metrics.get(metric, math.nan))
    ]
    sign = -1 if mode == "max" else 1
    return min(usable, key=lambda trial: sign * trial.metrics[metric], default=None)


def write_report(
    folder: Path,
    experiment: Experiment,
    experiments_dir: Path,
    outcomes: Sequence[Outcome],
    metric: str,
    mode: str,
) -> Path:
    """Write the results of a search into the experiment's folder.

    `analysis.json` (everything), `results.csv` (a row for each trial), `hyperparameter_search.png`, and, for the best
    trial, `best_parameters.json` with the processed experiment that it names: `NAME_best` beside `NAME`.

    Args:
        folder: EXPERIMENTS_DIR/NAME.
        experiment: Its parameters.
        experiments_dir: As it stands in the parameter file.
        outcomes: The trials.
        metric: The figure that tells the best.
        mode: "min" or "max".

    Returns:
        `best_parameters.json`, a parameter file for `discern train`.

    Raises:
        InvalidInputError: If every trial failed or diverged; the tables are written then all the same.
    """
    chosen = best(outcomes, metric, mode)
    _write_json(
        folder / "analysis.json",
        {
            "format_version": ANALYSIS_FORMAT,
            "metric": metric,
            "mode": mode,
            "best_trial": chosen and chosen.trial,
            "best_parameters": chosen and chosen.parameters,
            "best_metrics": chosen and chosen.metrics,
            "trials": [asdict(trial) for trial in outcomes],
        },
    )
    _write_table(folder / "results.csv", outcomes)
    _draw(folder / "hyperparameter_search.png", outcomes, metric, mode)
    if chosen is None:
        errors = sorted({trial.error for trial in outcomes if trial.error}) or ["all diverged"]
        raise InvalidInputError(
            f"none of the {len(outcomes)} trials gave a model: {'; '.join(errors[:3])}; see {folder / 'results.csv'}"
        )
    _LOGGER.info(
        "best of %d trials: %s = %.4g with %s", len(outcomes), metric, chosen.metrics[metric], chosen.parameters
    )
    found = with_values(experiment, _nested(chosen.parameters)).model_copy(update={"hyperparameter_search": None})
    return _write_best(folder, found, experiments_dir)


def _write_best(folder: Path, experiment: Experiment, experiments_dir: Path) -> Path:
    """Put the best experiment, processed but untrained, beside the searched one, and write the file that names it.

    The cells are the same files (hard links). A former best experiment that has been trained is kept.
    """
    content = experiment.as_dict()
    name, number = f"{folder.name}_best", 1
    while (folder.parent / name / "job").exists():
        number += 1
        name = f"{folder.name}_best{number}"
    with replacing(folder.parent / name) as partial:
        partial.mkdir()
        for part in ("processed_data", "TF_records"):
            if (folder / part).is_dir():
                shutil.copytree(folder / part, partial / part, copy_function=_link)
        ExperimentFolder(partial).parameters.write_text(json.dumps(content, indent=4) + "\n")
    path = folder / "best_parameters.json"
    _write_json(
        path, {"exp_param": {"experiments_dir": str(experiments_dir)}, "experiments": {name: experiment.as_dict()}}
    )
    return path


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    parameters = list(dict.fromkeys(key for trial in outcomes for key in trial.parameters))
    metrics = list(dict.fromkeys(key for trial in outcomes for key in trial.metrics))
    with replacing(path) as partial, partial.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["trial", "status", *parameters, *metrics, "error"])
        writer.writeheader()
        for trial in outcomes:
            row = {"trial": trial.trial, "status": trial.status, "error": trial.error}
            row |= trial.parameters | trial.metrics
            writer.writerow({name: cell(value) for name, value in row.items()})


def _write_json(path: Path, content: JsonObject) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=4, default=_plain) + "\n")


def _plain(value: np.generic | object) -> object:
    return value.item() if hasattr(value, "item") else str(value)


def _flat(values: Mapping[str, object], prefix: str = "") -> JsonObject:
    """Return a tree as a dictionary over dotted paths.

    Example:
        >>> _flat({"model": {"latent_dim": 8}})
        {'model.latent_dim': 8}
    """
    flat: JsonObject = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _nested(values: Mapping[str, object]) -> JsonObject:
    tree: JsonObject = {}
    for name, value in values.items():
        *path, key = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[key] = value
    return tree


def _draw(path: Path, outcomes: Sequence[Outcome], metric: str, mode: str) -> None:
    """Draw the figure over the trials, with the best so far, and against each parameter."""
    import numpy as np
    from matplotlib.figure import Figure

    shown = [trial for trial in outcomes if best([trial], metric, mode)]
    parameters = list(dict.fromkeys(key for trial in shown for key in trial.parameters))
    columns = min(3, 1 + len(parameters))
    rows = -(-(1 + len(parameters)) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    values = np.array([trial.metrics[metric] for trial in shown], dtype=float)
    numbers = [number for number, trial in enumerate(outcomes, 1) if trial in shown]
    axes[0].plot(numbers, values, "o", markersize=4, alpha=0.7)
    so_far = np.maximum.accumulate if mode == "max" else np.minimum.accumulate
    axes[0].step(numbers, so_far(values), where="post", color="black", label="best so far")
    axes[0].set(xlabel="trial", ylabel=metric, title=f"{len(shown)} of {len(outcomes)} trials")
    axes[0].legend(frameon=False)
    for axis, name in zip(axes[1:], parameters, strict=False):
        drawn: list[Any] = [trial.parameters.get(name) for trial in shown]
        if all(isinstance(value, int | float) for value in drawn):
            axis.plot(drawn, values, "o", markersize=4, alpha=0.7)
            if min(drawn) > 0 and max(drawn) > 20 * min(drawn):
                axis.set_xscale("log")
        else:
            axis.plot([str(value) for value in drawn], values, "o", markersize=4, alpha=0.7)
            axis.margins(x=0.3)
        axis.set(xlabel=name, ylabel=metric)
        axis.tick_params(axis="x", labelrotation=30)
    for axis in axes[1 + len(parameters) :]:
        axis.set_axis_off()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120)
