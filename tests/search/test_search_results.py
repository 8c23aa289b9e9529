from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import pytest

from discern.config.reading import load_parameters
from discern.errors import InvalidInputError
from discern.search.results import Outcome, best, write_report

if TYPE_CHECKING:
    from pathlib import Path


def outcomes() -> list[Outcome]:
    drawn = [
        {"model.latent_dim": 40.0, "model.output_fn": "softmax", "training.optimizer.learning_rate": 1e-5},
        {"model.latent_dim": 60.0, "model.output_fn": "softplus", "training.optimizer.learning_rate": 1e-3},
        {"model.latent_dim": 64.0, "model.output_fn": "softmax", "training.optimizer.learning_rate": 1e-2},
        {"model.latent_dim": 68.0, "model.output_fn": "softmax", "training.optimizer.learning_rate": 1e9},
    ]
    return [
        Outcome("a", "finished", drawn[0], {"auc": 0.9, "mmd": 0.1}),
        Outcome("b", "unfinished", drawn[1], {"auc": 0.7, "mmd": 0.05}),
        Outcome("c", "failed", drawn[2], {}, "MemoryError: no room"),
        Outcome("d", "diverged", drawn[3], {"auc": 1e10, "mmd": 1e10}),
    ]


def report(folder: Path, trials: list[Outcome]) -> Path:
    parameters = load_parameters(folder / "parameters.json")
    return write_report(folder, parameters.experiments[folder.name], folder.parent, trials, "auc", "min")


@pytest.mark.parametrize(
    ("metric", "mode", "expected"), [("auc", "min", "b"), ("auc", "max", "a"), ("mmd", "min", "b")]
)
def test_failed_and_diverged_trials_are_never_the_best(metric: str, mode: str, expected: str) -> None:
    chosen = best(outcomes(), metric, mode)
    assert chosen is not None
    assert chosen.trial == expected


def test_the_tables_hold_every_trial(original_experiment: Path) -> None:
    report(original_experiment, outcomes())
    analysis = json.loads((original_experiment / "analysis.json").read_text())
    assert analysis["format_version"] == 1
    assert (analysis["metric"], analysis["mode"], analysis["best_trial"]) == ("auc", "min", "b")
    assert analysis["best_parameters"]["model.latent_dim"] == 60
    assert [trial["status"] for trial in analysis["trials"]] == ["finished", "unfinished", "failed", "diverged"]
    with (original_experiment / "results.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["auc"] for row in rows] == ["0.9", "0.7", "", "10000000000.0"]
    assert rows[2]["error"] == "MemoryError: no room"
    assert rows[1]["training.optimizer.learning_rate"] == "0.001"
    assert (original_experiment / "hyperparameter_search.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_experiment_can_be_trained_at_once(original_experiment: Path) -> None:
    path = report(original_experiment, outcomes())
    parameters = load_parameters(path)
    assert list(parameters.experiments) == ["original_best"]
    best_experiment = parameters.experiments["original_best"]
    assert best_experiment.model.latent_dim == 60
    assert best_experiment.model.output_fn == "softplus"
    assert best_experiment.training.optimizer.learning_rate == 1e-3
    folder = parameters.folder("original_best")
    assert load_parameters(folder / "parameters.json").experiments["original_best"] == best_experiment
    cells = "processed_data/concatenated_data.h5ad"
    assert (folder / cells).samefile(original_experiment / cells)
    assert not (folder / "job").exists()


def test_a_trained_best_experiment_is_kept(original_experiment: Path) -> None:
    first = report(original_experiment, outcomes())
    untrained = load_parameters(report(original_experiment, outcomes()))
    assert list(untrained.experiments) == ["original_best"]
    (original_experiment.parent / "original_best" / "job").mkdir()
    second = load_parameters(report(original_experiment, outcomes()))
    assert list(second.experiments) == ["original_best2"]
    assert (original_experiment.parent / "original_best" / "job").is_dir()
    assert first.exists()


def test_without_a_usable_trial_the_tables_tell_why(original_experiment: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"none of the 2 trials gave a model: MemoryError: no room; see .*results.csv"
    ):
        report(original_experiment, outcomes()[2:])
    assert len(json.loads((original_experiment / "analysis.json").read_text())["trials"]) == 2
    assert not (original_experiment / "best_parameters.json").exists()
    assert not (original_experiment.parent / "original_best").exists()
