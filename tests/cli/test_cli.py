from __future__ import annotations

import errno
import json
import logging
import signal
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from discern import __version__
from discern.cli import commands
from discern.errors import InvalidInputError
from discern.runtime import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPERIMENT = {"input_ds": {"raw_input": ["raw.h5ad"]}}
FULL = {"exp_param": {"experiments_dir": "runs"}, "experiments": {"one": EXPERIMENT, "two": EXPERIMENT}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a parameter file, its raw file and the experiments folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "load_tensorflow", lambda: None)
    Path("p.json").write_text(json.dumps(FULL))
    Path("raw.h5ad").touch()
    Path("runs").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what commands set up for messages, and for TensorFlow's, in this process."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(warnings, "filters", [*warnings.filters])
    loggers = [logging.getLogger(name) for name in ("", "discern", "discern.runtime.progress")]
    levels, handlers = [logger.level for logger in loggers], [*loggers[0].handlers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    loggers[0].handlers[:] = handlers


class _Calls(list[dict[str, Any]]):
    """What the replaced workers were called with, and what they answer."""

    answer: Any = None

    def worker(self, name: str) -> Any:
        def record(parameters: Any = None, *args: Any, **kwargs: Any) -> Any:
            self.append({"worker": name, "parameters": parameters, "args": args, **kwargs})
            if isinstance(self.answer, BaseException):
                raise self.answer
            return {"one": Path("runs/one")} if self.answer is None else self.answer

        return record

    def runner(self, name: str) -> Any:
        calls = self

        class Runner:
            def __init__(self, debug: bool = False, gpus: Any = None, ray_address: str | None = None):
                self.debug = debug
                self.options = {} if ray_address is None else {"ray_address": ray_address}

            def __call__(self, func: Any, parameters: Any, kwargs: dict[str, Any]) -> Any:
                return calls.worker(name)(
                    parameters, func=func.__name__, kwargs=kwargs, debug=self.debug, **self.options
                )

        return Runner


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> _Calls:
    recorded = _Calls()
    monkeypatch.setattr("discern.experiment.process.process", recorded.worker("process"))
    monkeypatch.setattr("discern.experiment.runner.DISCERNRunner", recorded.runner("DISCERNRunner"))
    monkeypatch.setattr("discern.search.tuner.optimize", recorded.worker("optimize"))
    online = types.SimpleNamespace(
        OnlineDISCERNRunner=recorded.runner("OnlineDISCERNRunner"),
        online_training=types.SimpleNamespace(__name__="online_training"),
    )
    monkeypatch.setitem(sys.modules, "discern.experiment.online", online)
    return recorded


def _run(*args: str, code: int = 0, command: Any = commands.cli) -> Result:
    result = CliRunner().invoke(command, args)
    assert result.exit_code == code, result.output
    return result


def _files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


# --- forwarding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["process", "preprocess"])
def test_process_forwards_its_options(calls: _Calls, command: str) -> None:
    result = _run(command, "p.json", "--force", "--copy_original", "--without-tfrecords")
    (call,) = calls
    assert list(call["parameters"].experiments) == ["one", "two"]
    assert (call["force"], call["copy_original"], call["with_tfrecords"], call["ask"]) == (True, True, False, None)
    assert "one: wrote runs/one" in result.stderr
    assert "next: discern train p.json" in result.stderr
    assert result.stdout == ""


def test_process_defaults(calls: _Calls) -> None:
    _run("process", "p.json")
    assert (calls[0]["force"], calls[0]["copy_original"], calls[0]["with_tfrecords"]) == (False, False, True)


def test_train(calls: _Calls) -> None:
    calls.answer = {"one": [Path("runs/one/job/last_model.h5")], "two": [Path("a"), Path("b")]}
    result = _run("train", "p.json")
    assert (calls[0]["worker"], calls[0]["func"], calls[0]["kwargs"]) == ("DISCERNRunner", "run_train", {})
    assert calls[0]["debug"] is False
    assert "one: wrote runs/one/job/last_model.h5" in result.stderr
    assert "two: wrote a, b" in result.stderr
    assert "next: discern project --reference BATCH p.json" in result.stderr


def test_training_ends_with_the_name_of_the_reference(calls: _Calls, original_experiment: Path) -> None:
    calls.answer = {"original": [original_experiment / "job" / "last_model.h5"]}
    result = _run("train", str(original_experiment / "parameters.json"))
    assert "next: discern project --reference celseq2 " in result.stderr


@pytest.mark.parametrize("command", ["process", "train", "project"])
def test_the_ray_cluster_is_forwarded(calls: _Calls, command: str) -> None:
    _run(command, "p.json", "--ray", "127.0.0.1:6379")
    assert calls[0]["ray_address"] == "127.0.0.1:6379"


@pytest.mark.parametrize("dash", ["-", "_"])
def test_project_forwards_its_options(calls: _Calls, dash: str) -> None:
    Path("cells.h5ad").touch()
    options = [option.replace("-", dash) for option in ("all-batches", "store-sigmas")]
    targets = ("batch:celseq2", "celltype:", "time:12:30 a_b")
    metadata = [argument for target in targets for argument in ("--metadata", target)]
    output = ("--layers", "X, estimated_counts", "--dtype", "float16", "--format", "zarr")
    _run("project", "p.json", *metadata, *(f"--{option}" for option in options), "--filename", "cells.h5ad", *output)
    assert calls[0]["func"] == "run_projection"
    assert calls[0]["kwargs"] == {
        "metadata": [("batch", "celseq2"), ("celltype", ""), ("time", "12:30 a_b")],
        "infile": Path("cells.h5ad"),
        "all_batches": True,
        "store_sigmas": True,
        "layers": ["X", "estimated_counts"],
        "dtype": "float16",
        "suffix": ".zarr",
        "reference": None,
    }


def test_project_defaults(calls: _Calls) -> None:
    _run("project", "p.json")
    assert calls[0]["kwargs"] == {
        "metadata": [],
        "infile": None,
        "all_batches": False,
        "store_sigmas": False,
        "layers": ["X", "estimated_counts", "estimated_dropouts"],
        "dtype": "float32",
        "suffix": ".h5ad",
        "reference": None,
    }


def test_project_to_a_reference(calls: _Calls) -> None:
    _run("project", "p.json", "--reference", "celseq2")
    assert (calls[0]["kwargs"]["reference"], calls[0]["kwargs"]["metadata"]) == ("celseq2", [])


def test_onlinetraining_forwards_its_options(calls: _Calls) -> None:
    Path("a.h5ad").touch()
    Path("b").mkdir()
    _run("onlinetraining", "p.json", "--filename", "a.h5ad", "--filename", "b", "--freeze", "--fill_missing_genes")
    assert (calls[0]["worker"], calls[0]["func"]) == ("OnlineDISCERNRunner", "online_training")
    assert calls[0]["kwargs"] == {
        "filename": (Path("a.h5ad"), Path("b")),
        "freeze": True,
        "fill_missing_genes": True,
    }


def test_optimize(calls: _Calls) -> None:
    _run("optimize", "p.json", "--resume")
    assert (calls[0]["worker"], calls[0]["resume"]) == ("optimize", True)


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = types.SimpleNamespace(run_demo=lambda output: f"figures of {output}")
    monkeypatch.setitem(sys.modules, "discern.experiment.demo", demo)  # type: ignore[arg-type]
    result = _run("demo", "--output", "new/demo")
    assert result.stdout == "figures of new/demo\n"
    assert Path("new/demo").is_dir()


@pytest.mark.parametrize("args", [("--debug", "train", "p.json"), ("train", "p.json", "--debug")])
def test_debug_before_or_after_the_command(calls: _Calls, args: tuple[str, ...]) -> None:
    _run(*args)
    assert calls[0]["debug"] is True


@pytest.mark.parametrize("args", [("--quiet", "train", "p.json"), ("train", "--quiet", "p.json")])
def test_quiet_before_or_after_the_command(calls: _Calls, args: tuple[str, ...]) -> None:
    assert _run(*args).stderr == ""
    assert "one: wrote runs/one" in Path("runs/discern.log").read_text()


@pytest.mark.parametrize(
    "args", [("-v", "train", "p.json"), ("train", "p.json", "-vv"), ("-v", "train", "-v", "p.json")]
)
def test_verbose_shows_details(calls: _Calls, args: tuple[str, ...]) -> None:
    assert f"discern {__version__}: " in _run(*args).stderr


def test_options_may_stand_before_the_file(calls: _Calls) -> None:
    _run("process", "--force", "p.json")
    assert calls[0]["force"] is True


def test_the_file_of_one_experiment(calls: _Calls, original_experiment: Path) -> None:
    _run("train", str(original_experiment / "parameters.json"))
    assert calls[0]["parameters"].folder("original") == original_experiment
    assert (original_experiment.parent / "discern.log").exists()


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_version() -> None:
    assert _run("--version").stdout == f"discern, version {__version__}\n"


def test_help_names_every_command() -> None:
    text = _run("-h").stdout
    for command in ("process", "preprocess", "train", "project", "optimize", "onlinetraining", "demo", "schema"):
        assert command in text


def test_help_lists_the_commands_once_in_the_order_of_work() -> None:
    listed = [line.split()[0] for line in _run("-h").stdout.partition("Commands:\n")[2].splitlines()]
    assert listed[:5] == ["init", "process", "train", "project", "evaluate"]
    assert len(set(listed)) == len(listed)
    assert "preprocess" not in listed
    assert set(listed) == set(commands.cli.commands)


def test_the_program_alone_prints_its_help() -> None:
    assert _run().stdout == _run("--help").stdout


def test_no_line_of_the_help_is_cut() -> None:
    text = _run("-h").stdout
    assert "..." not in text.partition("Commands:")[2]
    assert max(map(len, text.splitlines())) <= 80


def test_schema_is_json() -> None:
    assert json.loads(_run("schema").stdout)["title"] == "DISCERN parameters"


def test_merge_parameter() -> None:
    Path("other/three").mkdir(parents=True)
    Path("other/three/parameters.json").write_text(json.dumps(EXPERIMENT))
    result = _run("p.json", "other/three/parameters.json", command=commands.merge_parameter)
    merged = json.loads(result.stdout)
    assert merged["exp_param"] == {"experiments_dir": "."}
    assert list(merged["experiments"]) == ["runs/one", "runs/two", "other/three"]
    result = _run("p.json", "p.json", command=commands.merge_parameter, code=2)
    assert result.stderr.startswith("error: p.json: experiment ")
    assert "is given twice" in result.stderr


# --- faults ----------------------------------------------------------------------------------------------------------


def _one_line(result: Result, message: str) -> None:
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("command", ["process", "train", "project", "optimize", "onlinetraining"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "bad.json: no such file"),
        ("{", "not valid JSON: Expecting property name"),
        ('{"a": 1, "a": 1}', "key 'a' is given twice in one object"),
        ('{"model": {"wae_lambda": NaN}}', "expected finite numbers, got NaN"),
        (json.dumps(FULL | {"experiments": {}}), "experiments: expected at least 1 entry, got {}"),
        (json.dumps(FULL | {"experiments": {"../x": EXPERIMENT}}), "got '../x'"),
        (json.dumps({"model": {"latend_dim": 3}}), "model.latend_dim: unknown key (did you mean 'latent_dim'?)"),
        (json.dumps({"model": {"latent_dim": "3"}}), 'model.latent_dim: expected an integer, got "3"'),
        (json.dumps({"model": {"activation_fn": "os.system"}}), "'os.system' is refused"),
        (json.dumps({"model": {"layers": [3], "encoder": {"layers": [3]}}}), "model: 'layers' is given twice"),
    ],
)
def test_a_bad_parameter_file(calls: _Calls, command: str, content: str | None, message: str) -> None:
    if content is not None:
        Path("bad.json").write_text(content)
    before = _files()
    more = ["--filename", "raw.h5ad"] if command == "onlinetraining" else []
    _one_line(_run(command, "bad.json", *more, code=2), message)
    assert calls == []
    assert _files() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("trian", "p.json"), "No such command 'trian'"),
        (("train",), "Missing argument 'PARAMETERS.json'. (see `discern train --help`)"),
        (("train", "p.json", "--fast"), "No such option"),
        (("project", "p.json", "--metadata", "batch"), "--metadata: expected COLUMN:VALUE or COLUMN:, got 'batch'"),
        (("project", "p.json", "--metadata", ":x"), "--metadata: expected COLUMN:VALUE or COLUMN:, got ':x'"),
        (("project", "p.json", "--filename", "x.h5ad"), "--filename: x.h5ad: no such file"),
        (("onlinetraining", "p.json", "--filename", "x.h5ad"), "--filename: x.h5ad: no such file"),
        (("onlinetraining", "p.json"), "Missing option '--filename'"),
        (("--loud", "train", "p.json"), "No such option"),
    ],
)
def test_bad_options(calls: _Calls, args: tuple[str, ...], message: str) -> None:
    before = _files()
    result = CliRunner().invoke(commands.cli, args, prog_name="discern")
    assert result.exit_code == 2
    _one_line(result, message)
    assert calls == []
    assert _files() == before


def test_missing_raw_files_change_nothing() -> None:
    Path("raw.h5ad").unlink()
    Path("runs").rmdir()
    before = _files()
    _one_line(_run("process", "p.json", code=2), "one: raw_input: no such file: raw.h5ad")
    assert _files() == before
    assert not Path("runs").exists()


def test_training_before_processing(calls: _Calls) -> None:
    Path("runs").rmdir()
    _one_line(_run("train", "p.json", code=2), "runs: no such folder; `discern process` makes it")


def test_mistakes_found_by_a_worker(calls: _Calls) -> None:
    calls.answer = InvalidInputError("no cell is left")
    _one_line(_run("train", "p.json", code=2), "error: no cell is left")
    assert "no cell is left" in Path("runs/discern.log").read_text()
    assert "Traceback" in _run("train", "p.json", "--debug", code=2).stderr


def test_faults_of_the_program(calls: _Calls) -> None:
    calls.answer = ZeroDivisionError("division\nby zero")
    result = _run("train", "p.json", code=1)
    _one_line(result, "ZeroDivisionError: division by zero; the traceback is in runs/discern.log")
    assert "Traceback" in Path("runs/discern.log").read_text()
    assert "Traceback" in _run("--debug", "train", "p.json", code=1).stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "x", "/data/a"), "cannot go on: permission denied (/data/a)"),
        (OSError(errno.ENOSPC, "x"), "cannot go on: no space left on the disk"),
        (MemoryError(), "cannot go on: not enough memory"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_the_program(calls: _Calls, error: Exception, said: str) -> None:
    calls.answer = error
    _one_line(_run("train", "p.json", code=2), said)


def test_a_log_that_cannot_be_written_fails_no_command(calls: _Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: logs._File) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logs._File, "flush", full)
    result = _run("train", "p.json")
    assert result.stderr.count("runs/discern.log: not written: no space left on the disk; going on without a log") == 1


def test_side_processes_are_told_to_end(golden_file: Path) -> None:
    content = json.loads(golden_file.read_text())
    content["experiments"]["more"] = content["experiments"]["cells"]
    golden_file.write_text(json.dumps(content))
    command = [sys.executable, "-m", "discern", "process", str(golden_file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 60
        while not list(Path("runs").glob(".*.partial-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()  # ends when the last process that could write to it does
        assert process.wait() == 143
    assert "Traceback" not in rest
    assert [path.name for path in Path("runs").iterdir() if "partial" in path.name] == []


def test_interruption(calls: _Calls) -> None:
    calls.answer = KeyboardInterrupt()
    _one_line(_run("train", "p.json", code=130), "interrupted")


@pytest.mark.parametrize(("error", "code"), [(InvalidInputError("bad"), 2), (ValueError("bug"), 1)])
def test_some_experiments_fail(calls: _Calls, error: Exception, code: int) -> None:
    calls.answer = {"one": error, "two": [Path("runs/two/job/last_model.h5")]}
    result = _run("train", "p.json", code=code)
    assert "error: one: " in result.stderr
    assert "two: wrote runs/two/job/last_model.h5" in result.stderr


def test_all_experiments_fail(calls: _Calls) -> None:
    calls.answer = {"one": InvalidInputError("bad"), "two": ValueError("bug")}
    result = _run("train", "p.json", code=1)
    assert result.stderr.count("error: ") == 2
    assert "next:" not in result.stderr


def test_messages_do_not_pile_up(calls: _Calls) -> None:
    _run("train", "p.json")
    assert _run("train", "p.json").stderr.count("one: wrote") == 1
    assert Path("runs/discern.log").read_text().count("one: wrote") == 2


# --- the real thing --------------------------------------------------------------------------------------------------


def _real(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "discern", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)


def test_a_real_mistake() -> None:
    done = _real("train", "nowhere.json")
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.json: no such file\n"


@pytest.fixture
def golden_file(golden: Path) -> Path:
    raw = [str(golden / "raw" / f"{name}.h5ad") for name in ("celseq2", "dropseq")]
    experiment = {"input_ds": {"raw_input": raw, "filtering": {"min_genes": 1}, "n_cpus_preprocessing": 1}}
    Path("real.json").write_text(json.dumps(FULL | {"experiments": {"cells": experiment}}))
    return Path("real.json")


def test_a_real_run_and_its_refused_repetition(golden_file: Path) -> None:
    done = _real("process", str(golden_file))
    assert done.returncode == 0, done.stderr
    assert "cells: wrote runs/cells" in done.stderr
    assert "next: discern train real.json" in done.stderr
    assert done.stdout == ""
    assert {path.name for path in Path("runs/cells").iterdir()} == {"parameters.json", "processed_data", "TF_records"}
    before = _files()

    again = _real("process", str(golden_file), stdin=subprocess.DEVNULL)

    assert again.returncode == 2
    assert again.stderr == "error: cells: runs/cells has been processed before; --force replaces it and its model\n"
    before.pop("runs/discern.log")
    after = _files()
    after.pop("runs/discern.log")
    assert after == before


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "told to end")]
)
def test_a_real_interruption(golden_file: Path, number: signal.Signals, code: int, said: str) -> None:
    command = [sys.executable, "-m", "discern", "process", str(golden_file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "reading" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        begin = time.monotonic()
        rest = process.stderr.read()
        assert process.wait() == code
    assert time.monotonic() - begin < 10
    assert rest.splitlines()[-1] == f"error: {said}: what is written is complete; the same command starts again"
    assert rest.count("error:") == 1
    assert "Traceback" not in rest
    assert not Path("runs/cells").exists()
    assert [path.name for path in Path("runs").iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["process", "x" * 5000],
        ["info", "x" * 300],
        ["info", ""],
        ["init", "--output", "y" * 300 + ".json", "raw.h5ad"],
        ["init", "--output", "no/such/folder.json", "raw.h5ad"],
        ["init", "--output", "p.json/below", "raw.h5ad"],
        ["demo", "--output", "z" * 300],
        ["project", "--filename", "x" * 300, "p.json"],
        ["\x1b[31mcommand"],
    ],
)
def test_a_path_that_cannot_be_is_told_in_one_short_line(arguments: list[str]) -> None:
    done = CliRunner().invoke(commands.cli, arguments)
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1
    assert len(done.output) < 2010
    assert "Errno" not in done.output
    assert "\x1b" not in done.output
