from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import pytest

from discern.config.reading import load_parameters
from discern.errors import InUseError, InvalidInputError, MissingFileError
from discern.experiment import process
from discern.folder.locks import locked
from discern.runtime import devices
from discern.runtime.tasks import Share, Task, run_in_processes

EXPERIMENT = {"input_ds": {"raw_input": ["raw/a.h5ad", "raw/b.h5ad"]}, "model": {"layers": [8], "regularization": 0}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with two raw files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    for name in "ab":
        (tmp_path / "raw" / f"{name}.h5ad").write_text(f"raw {name}")
    return tmp_path


@pytest.fixture
def processed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the preprocessing by one that writes two small files; the folders that it was called with."""
    calls: list[Path] = []

    def fake(job_path: Path, with_tfrecords: bool = True) -> None:
        calls.append(job_path)
        assert "raw_input" in json.loads((job_path / "parameters.json").read_text())["input_ds"]
        (job_path / "processed_data").mkdir()
        (job_path / "processed_data" / "concatenated_data.h5ad").write_text("new")
        if with_tfrecords:
            (job_path / "TF_records").mkdir()

    monkeypatch.setattr("discern.preprocessing.recipe.read_process_serialize", fake)
    return calls


def _parameters(given: dict[str, Any] | None = None) -> Any:
    given = {"one": EXPERIMENT} if given is None else given
    Path("p.json").write_text(json.dumps({"exp_param": {"experiments_dir": "runs"}, "experiments": given}))
    return load_parameters(Path("p.json"))


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
        if not path.name.endswith(".lock")
    }


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _old_experiment() -> Path:
    folder = Path("runs/one")
    for entry in ("processed_data/x", "job/best_model.h5", "projected/y", "original_data/a.h5ad", "notes/my.txt"):
        (folder / entry).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry).write_text("old")
    (folder / "figure.png").symlink_to("notes/my.txt")
    return folder


def test_a_new_folder_holds_the_parameters_as_given(processed: list[Path]) -> None:
    results = process.process(_parameters())
    assert results == {"one": Path("runs/one")}
    assert json.loads(Path("runs/one/parameters.json").read_text()) == EXPERIMENT
    assert _names(Path("runs/one")) == {"parameters.json", "processed_data", "TF_records"}
    assert processed[0].name == "one"
    assert list(load_parameters(Path("runs/one/parameters.json")).experiments) == ["one"]


def test_without_records_and_with_originals(processed: list[Path]) -> None:
    (Path("raw2") / "folder").mkdir(parents=True)
    (Path("raw2") / "folder" / "matrix.mtx").write_text("m")
    shutil.copy("raw/a.h5ad", "raw2/a.h5ad")
    raw = ["raw/a.h5ad", "raw2/a.h5ad", "raw2/folder"]
    process.process(_parameters({"one": {"input_ds": {"raw_input": raw}}}), copy_original=True, with_tfrecords=False)
    assert _tree(Path("runs/one/original_data")) == {
        "a.h5ad": "raw a",
        "2_a.h5ad": "raw a",
        "folder": "",
        "folder/matrix.mtx": "m",
    }
    assert not Path("runs/one/TF_records").exists()


def test_the_search_file_comes_along(processed: list[Path]) -> None:
    search = Path(__file__).parents[2] / "hyperparameter_search.json"
    shutil.copy(search, "my_search.json")
    process.process(_parameters({"one": EXPERIMENT | {"hyperparameter_search": "my_search.json"}}))
    assert Path("runs/one/hyperparameter_search.json").read_bytes() == search.read_bytes()


@pytest.mark.parametrize("ask", [None, lambda question: False])
def test_a_processed_experiment_is_refused(processed: list[Path], ask: Any) -> None:
    before = _tree(_old_experiment())
    results = process.process(_parameters({"one": EXPERIMENT, "two": EXPERIMENT}), ask=ask)
    assert isinstance(results["one"], InvalidInputError)
    assert "runs/one has been processed before; --force replaces it and its model" in str(results["one"])
    assert _tree(Path("runs/one")) == before
    assert results["two"] == Path("runs/two")
    assert list(results) == ["one", "two"]


@pytest.mark.parametrize("entry", ["processed_data", "job", "projected"])
def test_whatever_took_work_is_not_replaced_unasked(processed: list[Path], entry: str) -> None:
    (Path("runs/one") / entry).mkdir(parents=True)
    asked = []
    process.process(_parameters(), ask=lambda question: bool(asked.append(question)))
    assert asked == ["runs/one has been processed before. Replace it?"]
    assert processed == []


@pytest.mark.parametrize("options", [{"force": True}, {"ask": lambda question: True}])
def test_new_data_replaces_what_came_of_the_old(processed: list[Path], options: dict[str, Any]) -> None:
    folder = _old_experiment()
    process.process(_parameters(), **options)
    assert _names(folder) == {
        *("parameters.json", "processed_data", "TF_records"),
        *("original_data", "notes", "figure.png"),
    }
    assert _tree(folder / "processed_data") == {"concatenated_data.h5ad": "new"}
    assert (folder / "notes" / "my.txt").read_text() == "old"
    assert (folder / "figure.png").is_symlink()
    assert [path.name for path in Path("runs").iterdir() if "partial" in path.name] == []


def test_raw_files_in_the_folder_itself_survive(processed: list[Path]) -> None:
    _old_experiment()
    own = {"input_ds": {"raw_input": ["runs/one/original_data/a.h5ad"]}}
    process.process(_parameters({"one": own}), force=True)
    assert Path("runs/one/original_data/a.h5ad").read_text() == "old"


def test_a_folder_that_is_a_link_stays_one(processed: list[Path]) -> None:
    _old_experiment().rename("elsewhere")
    Path("runs/one").symlink_to(Path("elsewhere").absolute())
    process.process(_parameters(), force=True)
    assert Path("runs/one").is_symlink()
    assert _tree(Path("elsewhere/processed_data")) == {"concatenated_data.h5ad": "new"}


@pytest.mark.parametrize("error", [InvalidInputError("no cell is left"), MemoryError("no"), OSError("disk full")])
def test_a_failure_leaves_the_old_experiment(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    before = _tree(_old_experiment())

    def fails(job_path: Path, with_tfrecords: bool) -> None:
        (job_path / "processed_data").mkdir()
        raise error

    monkeypatch.setattr("discern.preprocessing.recipe.read_process_serialize", fails)
    assert process.process(_parameters(), force=True) == {"one": error}
    assert _tree(Path("runs")).keys() - {"one"} == {f"one/{path}" for path in before}


def test_an_interruption_leaves_the_old_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _tree(_old_experiment())

    def interrupted(job_path: Path, with_tfrecords: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("discern.preprocessing.recipe.read_process_serialize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.process(_parameters(), force=True)
    assert _tree(Path("runs/one")) == before


def test_an_experiment_at_work_is_left_alone(processed: list[Path]) -> None:
    with locked(Path("runs/one")):
        (error,) = process.process(_parameters()).values()
    assert isinstance(error, InUseError)
    assert processed == []


def test_what_a_killed_run_left_is_cleared(processed: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    left = Path("runs/.one.partial-a1b2c3_d")
    (left / "one").mkdir(parents=True)
    other = Path("runs/.one.partial-x.partial-a1b2c3_d")
    other.mkdir()
    process.process(_parameters())
    assert not left.exists()
    assert other.exists()
    assert "which an interrupted run left" in caplog.text


def test_a_run_killed_while_swapping_gives_the_old_folder_back(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Path("runs/.one.partial-a1b2c3_d")
    left.mkdir(parents=True)
    Path("precious").mkdir()
    Path("precious/job").mkdir()
    Path("precious").rename(left / "replaced")

    def fails(job_path: Path, with_tfrecords: bool) -> None:
        raise InvalidInputError("no")

    monkeypatch.setattr("discern.preprocessing.recipe.read_process_serialize", fails)
    process.process(_parameters())
    assert Path("runs/one/job").is_dir()
    assert not left.exists()


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"input_ds": {"raw_input": ["raw/a.h5ad", "x", "y"]}},
            MissingFileError,
            r"two: raw_input: no such file: x, y",
        ),
        ({"input_ds": {"raw_input": ["runs/two/job/x"]}}, InvalidInputError, "is an output of the experiment: copy it"),
        (EXPERIMENT | {"hyperparameter_search": "nowhere.json"}, MissingFileError, "nowhere.json: no such file"),
        (EXPERIMENT | {"hyperparameter_search": "p.json"}, InvalidInputError, "p.json: expected a search file"),
    ],
)
def test_inputs_are_checked_before_any_work(
    processed: list[Path], given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    if kind is InvalidInputError:
        Path("runs/two/job").mkdir(parents=True)
        Path("runs/two/job/x").touch()
    with pytest.raises(kind, match=message):
        process.process(_parameters({"one": EXPERIMENT, "two": given}), force=True)
    assert processed == []
    assert not Path("runs/one").exists()


def test_a_file_where_the_folder_should_be(processed: list[Path]) -> None:
    Path("runs").mkdir()
    Path("runs/one").touch()
    with pytest.raises(InvalidInputError, match="runs/one: expected a folder or nothing, this is a file"):
        process.process(_parameters())


# --- several at once -------------------------------------------------------------------------------------------------


def test_one_that_is_killed_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    speaks = logging.getLogger("discern.test").warning
    tasks = {
        "killed": Task(os._exit, (9,)),
        "wrong": Task(int, ("x",)),
        "well": Task(str, ("done",)),
        "speaks": Task(speaks, ("100 %s", "cells")),
    }
    results = run_in_processes(tasks, [Share(), Share()], "tests")
    assert isinstance(results["killed"], RuntimeError)
    assert "most likely for lack of memory" in str(results["killed"])
    assert isinstance(results["wrong"], ValueError)
    assert results["well"] == "done"
    assert "speaks: 100 cells" in caplog.messages


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot bind processes to CPUs")
@pytest.mark.parametrize("budget", [1, 2])
def test_processes_share_the_cpus(budget: int) -> None:
    if budget > devices.available_cpus():
        pytest.skip("needs two CPUs")
    tasks = {name: Task(os.sched_getaffinity, (0,)) for name in "abc"}
    results = run_in_processes(tasks, process._shares(budget, len(tasks)), "tests")
    assert len({frozenset(cpus) for cpus in results.values()}) <= budget
    assert all(len(cpus) == 1 for cpus in results.values())


def test_the_cpu_budget_is_clamped() -> None:
    parameters = _parameters(
        {
            "one": {"input_ds": EXPERIMENT["input_ds"] | {"n_cpus_preprocessing": 4000}},
            "two": {"input_ds": EXPERIMENT["input_ds"] | {"n_cpus_preprocessing": 1}},
            "three": EXPERIMENT,
        }
    )
    with pytest.warns(UserWarning, match="n_cpus_preprocessing asks for 4000 CPUs"):
        assert process._cpu_budget(parameters, ["one", "two"]) == devices.available_cpus()
    assert process._cpu_budget(parameters, ["two"]) == 1
    assert process._cpu_budget(parameters, ["two", "three"]) == devices.available_cpus()


def test_real_experiments_side_by_side(golden: Path) -> None:
    raw = {"input_ds": {"raw_input": [str(golden / "raw" / f"{name}.h5ad") for name in ("celseq2", "dropseq")]}}
    raw["input_ds"] |= {"filtering": {"min_genes": 1}, "n_cpus_preprocessing": 2}
    broken = {"input_ds": {"raw_input": ["raw/a.h5ad"]}}
    results = process.process(_parameters({"well": raw, "broken": broken}))
    assert results["well"] == Path("runs/well")
    assert isinstance(results["broken"], Exception)
    assert ad.read_h5ad("runs/well/processed_data/concatenated_data.h5ad").n_obs == 220
    assert sorted(path.name for path in Path("runs").iterdir()) == [".broken.lock", ".well.lock", "well"]
