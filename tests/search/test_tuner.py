"""Searches on real Ray processes; the trial is a stand-in, except in the slow tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from discern.config.reading import Parameters, load_parameters
from discern.errors import InvalidInputError, MissingFileError, UnsupportedError
from discern.search import tuner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ray = pytest.importorskip("ray")

ROOT = Path(__file__).parents[2]
SMALL = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False, "log_to_driver": False}

# The stand-in: its val_loss is the distance of the learning rate from 1e-3 in powers of ten. It notes each step in
# NAME/steps/, and does what the files there say: kill:N: kill the worker once in step N; raise: fail in every step.
STAND_IN = """
import json, math, os, signal, time
from pathlib import Path
from ray import tune

class Trial(tune.Trainable):
    def setup(self, config, folder, cpus, **others):
        self.notes = Path(folder) / "steps"
        self.notes.mkdir(exist_ok=True)
        self.rate, self.steps, self.cpus = config["training"]["optimizer"]["learning_rate"], 0, cpus

    def step(self):
        self.steps += 1
        with (self.notes / self.trial_id).open("a") as handle:
            handle.write(f"{self.steps} {os.getpid()}\\n")
        pause = self.notes / "pause"
        time.sleep(float(pause.read_text()) if pause.exists() else 0)
        if (self.notes / "raise").exists() and self.rate > 1e-3:
            raise RuntimeError("this rate is too large")
        if (self.notes / f"kill:{self.steps}").exists():
            (self.notes / f"kill:{self.steps}").rename(self.notes / "killed")
            os.kill(os.getpid(), signal.SIGKILL)
        loss = abs(math.log10(self.rate) + 3) + 1 / self.steps
        return {"loss": loss, "val_loss": loss, "auc": loss / 10, "mmd": loss, "mmd_autoencoded": loss,
                "auc_autoencoded": loss, "early_stopped": False, "diverged": False, "epochs": self.steps,
                "reached_max_step": self.steps >= 4, "cpus": self.cpus}

    def save_checkpoint(self, checkpoint_dir):
        (Path(checkpoint_dir) / "steps.json").write_text(json.dumps(self.steps))

    def load_checkpoint(self, checkpoint):
        self.steps = json.loads((Path(checkpoint) / "steps.json").read_text())
"""

RATE = {"training": {"optimizer": {"learning_rate": {"type": "ray.tune.loguniform", "args": [1e-5, 1e-1]}}}}


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with mock.patch.dict(os.environ, RAY_USAGE_STATS_ENABLED="0"):
        ray.init("local", **SMALL)
        yield
        ray.shutdown()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "stand_in"}  # a module that workers cannot import: sent as a whole
    exec(STAND_IN, names)
    monkeypatch.setattr("discern.search.trial.Trial", names["Trial"])


@pytest.fixture
def experiment(original_experiment: Path) -> Path:
    return original_experiment


def parameters_of(folder: Path, **changes: Any) -> Parameters:
    """Write a search file into the experiment and return its parameters."""
    search = {
        "setup": {},
        "train_spec": {"num_samples": 3, "resources_per_trial": {"cpu": 1}, "max_failures": 2},
        "searcher": "Randomsearch",
        "search_space": RATE,
        "analysis": {"metric": "auc", "mode": "min"},
    }
    for section, content in changes.items():
        search[section] = search[section] | content if section == "train_spec" else content
    (folder / "hyperparameter_search.json").write_text(json.dumps(search))
    return load_parameters(folder / "parameters.json")


def search(parameters: Parameters, resume: bool = False) -> dict[str, Any]:
    """Search, and return what analysis.json says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Consider boosting PBT")  # by keeping processes, with their memory
        (result,) = tuner.optimize(parameters, resume).values()
    if isinstance(result, Exception):
        raise result
    (name,) = parameters.experiments
    assert result == parameters.folder(name) / "best_parameters.json"
    return json.loads((parameters.folder(name) / "analysis.json").read_text())


@pytest.mark.usefixtures("local_ray", "stand_in")
class TestSearches:
    def test_results(self, experiment: Path) -> None:
        analysis = search(parameters_of(experiment))
        assert [trial["status"] for trial in analysis["trials"]] == ["finished"] * 3
        assert analysis["best_metrics"]["auc"] == min(trial["metrics"]["auc"] for trial in analysis["trials"])
        (name,) = load_parameters(experiment / "best_parameters.json").experiments
        assert name == "original_best"

    def test_resources_are_clamped_to_the_machine(self, experiment: Path) -> None:
        wanted = {"cpu": 10, "gpu": 1, "extra_cpu": 1, "extra_gpu": 0}
        parameters = parameters_of(experiment, train_spec={"num_samples": 1, "resources_per_trial": wanted})
        with (
            pytest.warns(UserWarning, match="asked for 11 CPU, using 2: no node has more"),
            pytest.warns(UserWarning, match="asked for 1 GPU, using 0: no node has more"),
        ):
            analysis = search(parameters)
        assert analysis["best_metrics"]["cpus"] == 2

    @pytest.mark.parametrize(
        ("searcher", "scheduler"),
        [
            ("hyperopt.HyperOptSearch", {"name": "ray.tune.schedulers.AsyncHyperBandScheduler", "max_t": 4}),
            ("optuna.OptunaSearch", {"name": "ray.tune.schedulers.MedianStoppingRule", "grace_period": 0}),
            pytest.param(
                "hyperopt.HyperOptSearch",
                {"name": "ray.tune.schedulers.HyperBandScheduler", "max_t": 4},
                marks=pytest.mark.slow,
            ),
            pytest.param(
                None,
                {
                    "name": "ray.tune.schedulers.PopulationBasedTraining",
                    "perturbation_interval": 1,
                    "time_attr": "epochs",
                },
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_searchers_and_schedulers(self, experiment: Path, searcher: str | None, scheduler: dict[str, Any]) -> None:
        chosen = {"name": f"ray.tune.suggest.{searcher}", "max_concurrent": 2} if searcher else "Randomsearch"
        analysis = search(parameters_of(experiment, searcher=chosen, scheduler=scheduler))
        assert all(trial["status"] == "finished" for trial in analysis["trials"])
        rates = {trial["parameters"]["training.optimizer.learning_rate"] for trial in analysis["trials"]}
        assert len(rates) == 3 or "Population" in scheduler["name"]  # which clones

    def test_a_grid_is_walked_through(self, experiment: Path) -> None:
        grid = {"training": {"optimizer": {"learning_rate": {"type": "ray.tune.grid_search", "args": [[1e-4, 1e-3]]}}}}
        analysis = search(parameters_of(experiment, search_space=grid, train_spec={"num_samples": 1}))
        rates = [trial["parameters"]["training.optimizer.learning_rate"] for trial in analysis["trials"]]
        assert rates == [1e-4, 1e-3]
        assert analysis["best_parameters"]["training.optimizer.learning_rate"] == 1e-3

    def test_a_trial_that_raises_is_told_and_the_others_finish(self, experiment: Path) -> None:
        (experiment / "steps").mkdir()
        (experiment / "steps" / "raise").touch()
        grid = {"training": {"optimizer": {"learning_rate": {"type": "ray.tune.grid_search", "args": [[1e-4, 1e-1]]}}}}
        spec = {"num_samples": 1, "max_failures": 1}
        analysis = search(parameters_of(experiment, search_space=grid, train_spec=spec))
        assert [trial["status"] for trial in analysis["trials"]] == ["finished", "failed"]
        assert "this rate is too large" in analysis["trials"][1]["error"]
        attempts = (experiment / "steps" / analysis["trials"][1]["trial"]).read_text().splitlines()
        assert len(attempts) == 2

    def test_a_trial_whose_worker_is_killed_goes_on_from_its_checkpoint(self, experiment: Path) -> None:
        (experiment / "steps").mkdir()
        (experiment / "steps" / "kill:3").touch()
        analysis = search(parameters_of(experiment, train_spec={"num_samples": 1}))
        assert (experiment / "steps" / "killed").exists()
        assert [trial["status"] for trial in analysis["trials"]] == ["finished"]
        steps, pids = zip(*(line.split() for line in self.notes(experiment)), strict=True)
        assert steps == ("1", "2", "3", "3", "4")
        assert len(set(pids)) == 2

    def test_when_every_trial_fails_the_message_says_why(self, experiment: Path) -> None:
        (experiment / "steps").mkdir()
        (experiment / "steps" / "raise").touch()
        grid = {"training": {"optimizer": {"learning_rate": {"type": "ray.tune.grid_search", "args": [[1e-1]]}}}}
        parameters = parameters_of(experiment, search_space=grid, train_spec={"num_samples": 1, "max_failures": 0})
        with pytest.raises(InvalidInputError, match=r"none of the 1 trials gave a model: .*this rate is too large"):
            search(parameters)

    @staticmethod
    def notes(experiment: Path) -> list[str]:
        (trial,) = (path for path in (experiment / "steps").iterdir() if path.suffix == "" and path.stat().st_size)
        return trial.read_text().splitlines()


DRIVER = """
import logging, sys, warnings
sys.path.insert(0, {root!r})
from pathlib import Path
import discern.search.trial
from discern.config.reading import load_parameters
from discern.search.tuner import optimize
{patch}
(result,) = optimize(load_parameters(Path(sys.argv[1])), resume="--resume" in sys.argv).values()
if isinstance(result, Exception):
    raise result
"""


@contextlib.contextmanager
def driver(
    folder: Path, tmp_path: Path, *arguments: str, real: bool = False, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """Run a search in a process of its own; it and all that it started is gone at the end."""
    patch = (
        ""
        if real
        else f"exec({STAND_IN!r}, names := {{'__name__': 'stand_in'}}); discern.search.trial.Trial = names['Trial']"
    )
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(root=str(ROOT), patch=patch))
    environment = (environment or dict(os.environ)) | {"TF_CPP_MIN_LOG_LEVEL": "2", "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "driver.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder / "parameters.json"), *arguments],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], bool], seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


def steps_of(experiment: Path) -> dict[str, int]:
    return {
        path.name: len(path.read_text().splitlines())
        for path in (experiment / "steps").glob("*")
        if path.name not in ("pause", "raise", "killed")
    }


@pytest.mark.parametrize(
    "searcher",
    [
        pytest.param("Randomsearch", marks=pytest.mark.slow),
        {"name": "ray.tune.suggest.hyperopt.HyperOptSearch", "max_concurrent": 1},
    ],
)
def test_a_killed_search_goes_on_from_the_finished_trials(experiment: Path, tmp_path: Path, searcher: Any) -> None:
    (experiment / "steps").mkdir()
    (experiment / "steps" / "pause").write_text("0.3")
    setup = {**SMALL, "num_cpus": 1}
    parameters_of(experiment, setup=setup, searcher=searcher, train_spec={"num_samples": 4})
    log = tmp_path / "driver.log"
    with driver(experiment, tmp_path) as process:
        wait_for(lambda: len(steps_of(experiment)) >= 3 or process.poll() is not None, 150, log)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = steps_of(experiment)
    assert not (experiment / "analysis.json").exists()
    finished = [trial for trial, steps in before.items() if steps == 4]
    assert len(finished) >= 1
    (experiment / "steps" / "pause").write_text("0")
    with driver(experiment, tmp_path, "--resume") as process:
        assert process.wait(timeout=200) == 0, log.read_text()[-3000:]
    assert steps_of(experiment)[finished[0]] == 4  # not trained again
    analysis = json.loads((experiment / "analysis.json").read_text())
    assert [trial["status"] for trial in analysis["trials"]] == ["finished"] * 4
    assert finished[0] in {trial["trial"] for trial in analysis["trials"]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster(local_ray_is_gone: None) -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={**node, "gcs_server_port": free_port()})
    made.add_node(**{key: value for key, value in node.items() if key != "include_dashboard"})
    yield made
    made.shutdown()


@pytest.fixture
def local_ray_is_gone() -> None:
    ray.shutdown()


@pytest.mark.usefixtures("stand_in")
def test_two_nodes_share_the_trials(experiment: Path, cluster: Any) -> None:
    (experiment / "steps").mkdir()
    (experiment / "steps" / "pause").write_text("1")
    setup = {"address": cluster.address, "_redis_password": "password", "logging_level": "INFO"}
    analysis = search(
        parameters_of(experiment, setup=setup, train_spec={"num_samples": 2, "resources_per_trial": {"cpu": 1}})
    )
    assert [trial["status"] for trial in analysis["trials"]] == ["finished"] * 2
    begun = [(path.stat().st_mtime, path) for path in (experiment / "steps").glob("*") if path.name != "pause"]
    assert abs(begun[0][0] - begun[1][0]) < 4  # side by side, though a node has one CPU
    assert not ray.is_initialized()


def test_a_head_node_that_is_not_there_is_told_at_once(experiment: Path, local_ray_is_gone: None) -> None:
    port = free_port()
    parameters = parameters_of(experiment, setup={"address": f"127.0.0.1:{port}"})
    begin = time.monotonic()
    with pytest.raises(MissingFileError, match=rf"no Ray head node .* start one with `ray start --head --port {port}`"):
        search(parameters)
    assert time.monotonic() - begin < 20
    assert not list(experiment.glob("Ray_Optimization*"))


def test_what_is_missing_is_told(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = load_parameters(experiment / "parameters.json")
    with pytest.raises(MissingFileError, match=r"original: there is no search file .*hyperparameter_search.json"):
        search(parameters)
    with pytest.raises(MissingFileError, match="there is no search to resume"):
        search(parameters, resume=True)
    content = json.loads((experiment / "parameters.json").read_text())
    content["input_ds"]["split"]["valid_cells"] = 0
    (experiment / "parameters.json").write_text(json.dumps(content))
    unsplit = parameters_of(experiment)
    with pytest.raises(InvalidInputError, match=r"judges by validation cells, .*valid_cells is 0: set it"):
        search(unsplit)
    (experiment / "processed_data" / "concatenated_data.h5ad").unlink()
    with pytest.raises(MissingFileError, match="holds no processed data: run `discern process` first"):
        search(parameters)
    monkeypatch.setattr(tuner.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"needs Ray, which is not installed: pip install 'discern\[tune\]'"):
        search(parameters)


def test_a_search_that_does_not_fit_the_experiment_is_told_before_ray_starts(experiment: Path) -> None:
    space = {"model": {"latent_dim": {"type": "ray.tune.choice", "args": [[-1]]}}}
    with pytest.raises(InvalidInputError, match=r"model\.latent_dim: expected 1 or more, got -1"):
        search(parameters_of(experiment, search_space=space))
    space = {"model": {"reconstruction_loss": {"weight_clipping": {"type": "ray.tune.uniform", "args": [1, 2]}}}}
    with (
        pytest.warns(UserWarning, match="it is no argument of HuberLoss"),
        pytest.raises(InvalidInputError, match="nothing is left to search"),
    ):
        search(parameters_of(experiment, search_space=space))
    assert not list(experiment.glob("Ray_Optimization*"))


@contextlib.contextmanager
def head_node(port: int, environment: dict[str, str]) -> Iterator[None]:
    """Run `ray start --head`, as a user would, and end what it started."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--block"]
    options = ["--num-cpus=1", "--object-store-memory=80000000", "--include-dashboard=false"]
    process = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "Ray runtime started" in line:
                break
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("token", [True, False])
def test_a_head_node_at_a_local_address(experiment: Path, tmp_path: Path, token: bool) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    if token:
        (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}
    environment |= {"HOME": str(home)}
    port = free_port()
    parameters_of(experiment, setup={"address": f"127.0.0.1:{port}", "_redis_password": "password"})
    log = tmp_path / "driver.log"
    with head_node(port, environment), driver(experiment, tmp_path, environment=environment) as process:
        assert process.wait(timeout=150) == 0, log.read_text()[-3000:]
    assert (experiment / "best_parameters.json").exists()


@pytest.mark.slow
def test_the_real_thing_survives_kills(experiment: Path, tmp_path: Path) -> None:
    spec = {"num_samples": 2, "config": {"epochs_per_timestep": 1, "validation_batches": 1}}
    (experiment / "parameters.json").write_text(
        (experiment / "parameters.json").read_text().replace('"max_steps": 8', '"max_steps": 3')
    )
    parameters_of(experiment, setup={**SMALL, "num_cpus": 1}, train_spec=spec)
    log = tmp_path / "driver.log"
    with driver(experiment, tmp_path, real=True) as process:
        wait_for(lambda: bool(list(experiment.glob("*/*/checkpoint*/last_model.h5"))), 200, log)
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with driver(experiment, tmp_path, "--resume", real=True) as process:
        assert process.wait(timeout=250) == 0, log.read_text()[-3000:]
    analysis = json.loads((experiment / "analysis.json").read_text())
    assert {trial["status"] for trial in analysis["trials"]} <= {"finished", "diverged"}
    assert load_parameters(experiment / "best_parameters.json").experiments
