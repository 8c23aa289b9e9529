"""A parameter file that is changed after `discern process`: taken over and said, or refused by name."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from discern.cli import commands
from discern.config.reading import load_parameters
from discern.errors import InvalidInputError
from discern.experiment.edits import take_over_edits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata as ad


def _parameters(raw: Path) -> dict[str, Any]:
    return {
        "input_ds": {
            "raw_input": {str(raw): "batch"},
            "filtering": {"min_genes": 1, "min_cells": 1},
            "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
            "split": {"valid_cells": 0.2},
            "n_cpus_preprocessing": 1,
        },
        "model": {"latent_dim": 3, "layers": [8], "norm_type": ["conditionallayernorm"]},
        "training": {"batch_size": 8, "max_steps": 1, "parallel_pc": 1, "visualisation": False, "seed": 0},
    }


def _discern(*arguments: str) -> Result:
    return CliRunner().invoke(commands.cli, list(arguments))


@pytest.fixture(scope="module")
def trained(make_raw_cells: Callable[..., ad.AnnData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a parameter file and its experiment, processed and trained."""
    folder = tmp_path_factory.mktemp("trained")
    make_raw_cells({"a": 30, "b": 30}).write_h5ad(folder / "raw.h5ad")
    content = {
        "exp_param": {"experiments_dir": str(folder / "runs")},
        "experiments": {"one": _parameters(folder / "raw.h5ad")},
    }
    (folder / "p.json").write_text(json.dumps(content))
    for command in ("process", "train"):
        done = _discern(command, str(folder / "p.json"))
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` whose files may be changed."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    content = json.loads((trained / "p.json").read_text())
    content["exp_param"]["experiments_dir"] = str(tmp_path / "runs")
    (tmp_path / "p.json").write_text(json.dumps(content))
    return tmp_path


def _edit(folder: Path, path: str, value: Any) -> None:
    content = json.loads((folder / "p.json").read_text())
    *way, last = path.split(".")
    node = content["experiments"]["one"]
    for key in way:
        node = node.setdefault(key, {})
    node[last] = value
    (folder / "p.json").write_text(json.dumps(content))


def test_a_training_key_is_taken_over_and_said(here: Path) -> None:
    _edit(here, "training.max_steps", 2)
    done = _discern("train", str(here / "p.json"))
    assert done.exit_code == 0
    assert "training.max_steps 1 -> 2" in done.output
    (kept,) = load_parameters(here / "runs" / "one" / "parameters.json").experiments.values()
    assert kept.training.max_steps == 2
    assert "epoch 2" in _discern("info", str(here / "runs" / "one")).output


@pytest.mark.parametrize("command", ["train", "project", "evaluate"])
def test_a_key_that_needs_process_is_refused_by_name(here: Path, command: str) -> None:
    before = (here / "runs" / "one" / "parameters.json").read_bytes()
    _edit(here, "input_ds.scale.LSN", 2000)
    done = _discern(command, str(here / "p.json"))
    assert done.exit_code == 2
    assert "input_ds.scale.LSN is 2000" in done.output
    assert "discern process --force" in done.output
    assert (here / "runs" / "one" / "parameters.json").read_bytes() == before


def test_a_key_that_the_trained_weights_do_not_fit_is_refused_by_name(here: Path) -> None:
    _edit(here, "model.latent_dim", 5)
    done = _discern("project", str(here / "p.json"))
    assert done.exit_code == 2
    assert "model.latent_dim is 5" in done.output
    assert "was trained with 3" in done.output


def test_the_network_may_change_before_the_first_training(here: Path) -> None:
    shutil.rmtree(here / "runs" / "one" / "job")
    _edit(here, "model.latent_dim", 5)
    kept, failed = take_over_edits(load_parameters(here / "p.json"))
    assert not failed
    assert list(kept.experiments) == ["one"]
    (copied,) = load_parameters(here / "runs" / "one" / "parameters.json").experiments.values()
    assert copied.model.latent_dim == 5


def test_the_weight_of_a_loss_and_the_number_of_cpus_may_change(here: Path) -> None:
    _edit(here, "model.wae_lambda", 7)
    _edit(here, "input_ds.n_cpus_preprocessing", 3)
    assert not take_over_edits(load_parameters(here / "p.json"))[1]


def test_another_optimiser_goes_on_with_the_weights(here: Path) -> None:
    _edit(here, "training.optimizer", {"algorithm": "keras.optimizers.SGD", "learning_rate": 0.001})
    _edit(here, "training.max_steps", 2)
    done = _discern("train", str(here / "p.json"))
    assert done.exit_code == 0, done.output


def test_one_experiment_that_is_refused_does_not_stop_the_others(here: Path) -> None:
    content = json.loads((here / "p.json").read_text())
    content["experiments"]["two"] = copy.deepcopy(content["experiments"]["one"])
    shutil.copytree(here / "runs" / "one", here / "runs" / "two")
    content["experiments"]["one"]["input_ds"]["filtering"]["min_genes"] = 2
    (here / "p.json").write_text(json.dumps(content))
    kept, failed = take_over_edits(load_parameters(here / "p.json"))
    assert list(kept.experiments) == ["two"]
    assert isinstance(failed["one"], InvalidInputError)


def test_info_says_what_differs_and_changes_nothing(here: Path) -> None:
    before = (here / "runs" / "one" / "parameters.json").read_bytes()
    _edit(here, "training.max_steps", 9)
    assert "training.max_steps 1 -> 9: taken over by the next command" in _discern("info", str(here / "p.json")).output
    _edit(here, "input_ds.split.split_seed", 4)
    assert "input_ds.split.split_seed is 4" in _discern("info", str(here / "p.json")).output
    assert (here / "runs" / "one" / "parameters.json").read_bytes() == before
