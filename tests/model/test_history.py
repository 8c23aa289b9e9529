"""The losses of a training beside its model."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from discern.experiment.train import run_train
from discern.model import history

if TYPE_CHECKING:
    from pathlib import Path


def test_a_training_that_goes_on_continues_the_losses(original_experiment: Path) -> None:
    job = original_experiment / "job"
    for file in job.iterdir():
        file.unlink()
    parameters = original_experiment / "parameters.json"
    content = json.loads(parameters.read_text())
    content["training"] |= {"GPU": [], "XLA": False, "visualisation": False, "seed": 0}
    for epochs in (2, 3):
        content["training"]["max_steps"] = epochs
        parameters.write_text(json.dumps(content))
        run_train(original_experiment)
        losses = history.read(job)
        assert len(losses["loss"]) == len(losses["val_loss"]) == epochs
    first = history.read(job)["loss"][0]

    content["training"]["max_steps"] = 1
    parameters.write_text(json.dumps(content))
    for file in job.glob("*.h5"):
        file.unlink()
    run_train(original_experiment)
    assert history.read(job)["loss"] == pytest.approx([first], rel=1e-4)


def test_losses_of_epochs_that_lack_them_are_missing(tmp_path: Path) -> None:
    history.write(tmp_path, {"loss": [2.0]})
    history.write(tmp_path, {"loss": [float("inf")], "val_loss": [1.0]}, first_epoch=2)

    losses = history.read(tmp_path)

    assert losses["loss"][0] == 2
    assert math.isnan(losses["loss"][1])
    assert math.isnan(losses["val_loss"][0])
    assert losses["val_loss"][1] == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"epoch": [1], "loss": [[]]}', '{"epoch": [1], "loss": []}', "[" * 99_999]
)
def test_another_file_is_no_history(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / history.FILE).write_text(text)

    assert history.read(tmp_path) == {}
    assert "not read as the losses of a training" in caplog.text


def test_a_link_is_no_history(tmp_path: Path) -> None:
    (tmp_path / "other").write_text('{"epoch": [1], "loss": [1]}')
    (tmp_path / history.FILE).symlink_to(tmp_path / "other")

    assert history.read(tmp_path) == {}
