"""Search files and search folders from somebody else: nothing in them is run, and nothing is written elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from discern.config import reading
from discern.errors import InvalidInputError, UserError
from discern.search.origin import check_own, make_own

SPACE = {"model": {"wae_lambda": {"type": "ray.tune.uniform", "name": "l", "args": [0, 1]}}}


def _load(folder: Path, **sections: Any) -> reading.SearchFile:
    path = folder / "search.json"
    path.write_text(json.dumps({"search_space": SPACE} | sections))
    return reading.load_search(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runtime_env", {"py_executable": "/tmp/evil"}),
        ("runtime_env", {"working_dir": "https://example.org/a.zip", "pip": ["evil"], "env_vars": {"LD_PRELOAD": "x"}}),
        ("job_config", {}),
        ("_temp_dir", "/tmp/elsewhere"),
        ("temp_dir", "/tmp/elsewhere"),
        ("_system_config", {}),
        ("_plasma_directory", "/etc"),
        ("logging_config", {}),
        ("cgroup_path", "/sys"),
        ("proxy_server_url", "http://example.org"),
        ("dashboard_host", "0.0.0.0"),
        ("include_dashboard", True),
        ("_node_ip_address", "0.0.0.0"),
        ("address", "unix:///tmp/x"),
        ("address", "$(id):1"),
        ("anything", 1),
    ],
)
def test_what_setup_could_do_harm_with_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"setup.*{key}"):
        _load(tmp_path, setup={key: value})


def test_setup_says_where_ray_runs(tmp_path: Path) -> None:
    setup = {
        "address": "127.0.0.1:6379",
        "_redis_password": "x",
        "num_cpus": 2,
        "logging_level": "INFO",
        "namespace": "n",
    }
    assert _load(tmp_path, setup=setup).given()["setup"] == setup


def test_what_of_setup_has_no_effect_is_said_and_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"setup\.lru_evict: left out"):
        assert _load(tmp_path, setup={"lru_evict": True, "num_cpus": 1}).given()["setup"] == {"num_cpus": 1}


@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", "..", "", ".hidden", "a\nb", "x" * 300, "~", "a\\b"])
def test_the_name_of_a_run_is_a_plain_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"train_spec\.name: expected the plain name of a folder"):
        _load(tmp_path, train_spec={"name": name})


@pytest.mark.parametrize(
    ("section", "name", "argument"),
    [
        ("scheduler", "ray.tune.schedulers.PopulationBasedTraining", "custom_explore_fn"),
        ("scheduler", "ray.tune.schedulers.PB2", "custom_explore_fn"),
        ("searcher", "ray.tune.search.optuna.OptunaSearch", "storage"),
        ("searcher", "ray.tune.search.optuna.OptunaSearch", "sampler"),
        ("searcher", "ray.tune.search.ax.AxSearch", "ax_client"),
        ("searcher", "ray.tune.search.bayesopt.BayesOptSearch", "analysis"),
        ("searcher", "ray.tune.search.nevergrad.NevergradSearch", "optimizer"),
        ("searcher", "ray.tune.search.hyperopt.HyperOptSearch", "space"),
    ],
)
def test_arguments_that_take_code_or_places_are_refused(tmp_path: Path, section: str, name: str, argument: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{section}: '{argument}' is refused"):
        _load(tmp_path, **{section: {"name": name, argument: "os.system"}})


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"train_spec": {"stop": {"acu": 1}}}, r"stop: there is no figure 'acu' \(did you mean 'auc'"),
        ({"train_spec": {"stop": {"auc": "x"}}}, r"stop: auc: expected a number"),
        ({"train_spec": {"resources_per_trial": {"cpu": 1e300}}}, r"resources_per_trial\.cpu: expected 100000 or less"),
        ({"analysis": {"metric": "__class__"}}, r"analysis\.metric: there is no figure"),
        (
            {"scheduler": {"name": "ray.tune.schedulers.ASHAScheduler", "metric": "x"}},
            "scheduler: there is no figure 'x'",
        ),
        ({"scheduler": {"name": "ray.tune.schedulers.ASHAScheduler", "max_t": -1}}, "scheduler: max_t: expected 1 or"),
        ({"search_space": {"input_ds": {"scale": {"LSN": SPACE["model"]["wae_lambda"]}}}}, "expected keys of 'model'"),
    ],
)
def test_what_cannot_work_is_found_in_the_file(tmp_path: Path, sections: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        _load(tmp_path, **sections)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_planted_pickle_is_not_run(original_experiment: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from discern.search.tuner import optimize

    parameters = reading.load_parameters(original_experiment / "parameters.json")
    run = original_experiment / "Ray_Optimization_20200101-000000"
    run.mkdir(mode=0o700)
    (run / "search.json").write_text(json.dumps({"search": {"search_space": SPACE}, "experiment": {}}))
    mark = tmp_path / "was-run"
    for name in ("tuner.pkl", "trainable.pkl", "searcher-state.pkl", "experiment_state-2020-01-01_00-00-00.json"):
        (run / name).write_bytes(pickle.dumps(_Evil(mark)))
    (result,) = optimize(parameters, resume=True).values()
    assert isinstance(result, InvalidInputError)
    assert "was not started by you on this machine" in str(result)
    assert not mark.exists()


class TestOrigin:
    def test_a_copy_or_a_folder_put_in_place_is_refused(self, tmp_path: Path) -> None:
        own = tmp_path / "run"
        make_own(own)
        check_own(own)
        shutil.copytree(own, tmp_path / "copy")
        with pytest.raises(InvalidInputError, match="not started by you"):
            check_own(tmp_path / "copy")
        own.rename(tmp_path / "aside")
        shutil.copytree(tmp_path / "aside", own)
        with pytest.raises(InvalidInputError, match="not started by you"):
            check_own(own)

    def test_links_in_it_are_refused(self, tmp_path: Path) -> None:
        make_own(tmp_path / "run")
        (tmp_path / "run" / "tuner.pkl").symlink_to("/etc/hostname")
        with pytest.raises(InvalidInputError, match=r"tuner\.pkl in it is a link"):
            check_own(tmp_path / "run")

    def test_a_folder_that_others_may_enter_is_refused(self, tmp_path: Path) -> None:
        make_own(tmp_path / "run")
        (tmp_path / "run").chmod(0o777)
        with pytest.raises(InvalidInputError, match="not started by you"):
            check_own(tmp_path / "run")

    def test_a_state_folder_open_to_others_proves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        (tmp_path / "discern").mkdir()
        os.chmod(tmp_path / "discern", 0o777)  # noqa: PTH101
        make_own(tmp_path / "run")
        assert "--resume will not know it" in caplog.text
        with pytest.raises(InvalidInputError, match="not started by you"):
            check_own(tmp_path / "run")
