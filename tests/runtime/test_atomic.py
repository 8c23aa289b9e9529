from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from discern import errors
from discern.folder import locks
from discern.runtime import atomic, logs, progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "folder" for path in folder.rglob("*")
    }


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "data.h5ad"
    with atomic.replacing(target) as partial:
        assert partial.suffix == ".h5ad"
        partial.write_text("done")
        assert not target.exists()
    assert _tree(tmp_path) == {"new": "folder", "new/data.h5ad": "done"}


@pytest.mark.parametrize("old", ["nothing", "file", "folder"])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, old: str) -> None:
    target = tmp_path / "result"
    if old == "file":
        target.write_text("old")
    elif old == "folder":
        target.mkdir()
        (target / "a").write_text("old")
    before = _tree(tmp_path)

    def write_half() -> None:
        with atomic.replacing(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert _tree(tmp_path) == before


def test_a_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "experiment"
    target.mkdir()
    (target / "old").touch()
    with atomic.replacing(target) as partial:
        partial.mkdir()
        (partial / "new").write_text("1")
        assert (target / "old").exists()
    assert _tree(tmp_path) == {"experiment": "folder", "experiment/new": "1"}


def test_a_folder_comes_back_when_its_replacement_was_never_written(tmp_path: Path) -> None:
    target = tmp_path / "experiment"
    target.mkdir()
    (target / "old").write_text("1")

    def write_nothing() -> None:
        with atomic.replacing(target):
            pass

    with pytest.raises(FileNotFoundError):
        write_nothing()
    assert _tree(tmp_path) == {"experiment": "folder", "experiment/old": "1"}


def _stage(folder: Path) -> Path:
    (folder / "processed_data").mkdir(parents=True)
    (folder / "processed_data" / "x").write_text("old")
    (folder / "other").write_text("kept")
    staging = folder / "staging"
    (staging / "processed_data").mkdir(parents=True)
    (staging / "processed_data" / "y").write_text("new")
    (staging / "job").write_text("new")
    return staging


_PUBLISHED = {"processed_data": "folder", "processed_data/y": "new", "job": "new", "other": "kept"}


def test_publishing_replaces_entries_of_the_same_name(tmp_path: Path) -> None:
    atomic.publish(_stage(tmp_path), tmp_path)
    assert _tree(tmp_path) == _PUBLISHED


@pytest.mark.parametrize("renames", range(1, 5))
def test_publishing_that_was_cut_off_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    experiment = tmp_path / "experiment"
    staging = _stage(experiment)
    rename, done = os.rename, 0

    def dies(source: Path, target: Path) -> None:
        nonlocal done
        if done == renames:
            raise SystemExit("killed")
        done += 1
        rename(source, target)

    monkeypatch.setattr(os, "rename", dies)
    if renames < 4:
        with pytest.raises(SystemExit):
            atomic.publish(staging, experiment)
    else:
        atomic.publish(staging, experiment)
    monkeypatch.undo()
    with locks.locked(experiment):
        assert _tree(experiment) == _PUBLISHED


def test_a_second_command_is_refused(tmp_path: Path) -> None:
    experiment = tmp_path / "new" / "experiment"
    with locks.locked(experiment):
        again = locks.locked(experiment)
        with pytest.raises(errors.InUseError, match=rf"process {os.getpid()} is at work on this experiment; wait for"):
            again.__enter__()
        with locks.locked(tmp_path / "new" / "another"):
            pass
    with locks.locked(experiment):
        pass


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from discern.folder import locks; "
        "locks.locked(pathlib.Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path / "experiment")], check=False)
    assert dead.returncode == 9
    with locks.locked(tmp_path / "experiment"):
        pass


def test_remove_takes_the_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").touch()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    atomic.remove(tmp_path / "link")
    atomic.remove(tmp_path / "nothing")
    assert (tmp_path / "data" / "x").exists()
    atomic.remove(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidInputError, ValueError),
        (errors.UnknownNameError, KeyError),
        (errors.MissingFileError, FileNotFoundError),
        (errors.UnsupportedError, NotImplementedError),
        (errors.InUseError, RuntimeError),
    ],
)
def test_mistakes_keep_their_builtin_type_and_their_text(kind: type[Exception], builtin: type[Exception]) -> None:
    error = kind("expected a, got 'b'")
    assert isinstance(error, builtin)
    assert isinstance(error, errors.UserError)
    assert str(error) == "expected a, got 'b'"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_nearest() -> None:
    assert errors.nearest("latent", ["latent_dim"]) == " (did you mean 'latent_dim'?)"
    assert errors.nearest("xyz", ["latent_dim"]) == ""
    assert errors.nearest("xyz", []) == ""


def test_progress_is_logged_where_nobody_watches(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "discern"):
        assert list(progress.track("abc", "reading")) == ["a", "b", "c"]
    assert caplog.messages[0] == "reading ..."
    assert caplog.messages[-1].startswith("reading: done in 0.")


def test_progress_is_a_bar_for_a_person(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "shows_bars", lambda: True)
    with progress.phase("training", total=2) as advance:
        advance(detail="loss 3")
        advance()
    assert "training" in capsys.readouterr().err


def _interrupted(advance: Callable[..., None]) -> None:
    advance()
    raise KeyboardInterrupt


@pytest.mark.parametrize("total", [4, None])
def test_a_bar_ends_full_unless_the_work_fails(
    total: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "shows_bars", lambda: True)
    with progress.phase("training", total=total) as advance:
        advance()
    assert "100%" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), progress.phase("training", total=total) as advance:
        _interrupted(advance)
    shown = capsys.readouterr().err
    assert "100%" not in shown
    assert ("25%" in shown) == (total is not None)


def test_bars_only_on_a_terminal_of_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(logging.getLogger("discern.runtime.progress"), "level", logging.INFO)
    assert progress.shows_bars()
    monkeypatch.setattr(progress.multiprocessing, "parent_process", lambda: object())
    assert not progress.shows_bars()
    monkeypatch.undo()
    assert not progress.shows_bars()


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment with an evaluation."""
    folder = tmp_path / "runs" / "one"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "report.html").write_text("old")
    (folder / "parameters.json").write_text("old")
    return folder


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(params=["at once", "in two steps"])
def swaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folders are swapped by one call, or, where the system knows none, by two renames."""
    if request.param == "in two steps":
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    return str(request.param)


@pytest.mark.parametrize("part", ["", "evaluation"], ids=["experiment", "evaluation"])
@pytest.mark.parametrize("calls", range(8))
def test_killed_anywhere_while_a_folder_is_replaced(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, swaps: str, part: str, calls: int
) -> None:
    target = experiment / part
    left = calls

    def dying(real: Any) -> Any:
        def change(*arguments: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*arguments, **kwargs)

        return change

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        for function in ("rename", "replace", "fsync", "rmdir", "unlink", "mkdir"):
            patch.setattr(os, function, dying(getattr(os, function)))
        patch.setattr(atomic.Scratch, "close", lambda scratch: os.close(scratch._descriptor))  # as the system does
        with atomic.replacing(target) as partial:
            partial.mkdir()
            for name in ("report.html", "parameters.json"):
                (partial / name).write_text("new")
    locks.recover(experiment)
    texts = {path.read_text() for path in target.glob("*.*")}
    assert texts in ({"old"}, {"new"})
    assert [path.name for path in experiment.parent.rglob("*") if "partial" in path.name] == []


def test_a_folder_in_use_is_no_leftover(experiment: Path) -> None:
    with atomic.replacing(experiment / "evaluation") as partial:
        partial.mkdir()
        locks.recover(experiment)
        (partial / "report.html").write_text("new")
    assert (experiment / "evaluation" / "report.html").read_text() == "new"


def test_what_is_published_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: str) -> None:
    done: list[str] = []
    (tmp_path / "folder").mkdir()
    for function in ("fsync", "rename", "replace"):
        real = getattr(os, function)
        monkeypatch.setattr(os, function, lambda *a, f=function, r=real: (done.append(f), r(*a))[1])
    with atomic.replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "a").write_text("1")
    renames = ["rename", "replace"] if swaps == "in two steps" else []
    assert done == ["fsync", "fsync", *renames, "fsync"]  # file, folder; the folder around


@pytest.mark.parametrize("part", ["job", "projected", ".ready", "evaluation", "job/UMAP", "parameters.json", "backup"])
def test_a_linked_part_is_refused(tmp_path: Path, part: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("1")
    link = tmp_path / "runs" / "one" / part
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(errors.InvalidInputError, match=f"{part}: a link, to .*elsewhere: expected"):
        locks.locked(tmp_path / "runs" / "one").__enter__()
    assert _tree(elsewhere) == {"precious": "1"}


def test_a_link_within_what_was_being_published_is_refused(tmp_path: Path) -> None:
    experiment = tmp_path / "one"
    (experiment / ".ready" / "job").mkdir(parents=True)
    (experiment / "job").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (experiment / ".ready" / ".replaced").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.InvalidInputError, match=r"\.replaced: a link"):
        atomic.finish_publishing(experiment)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_experiment_that_is_a_link_to_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home" / "job").mkdir(parents=True)
    (tmp_path / "one").symlink_to(tmp_path / "home")
    with pytest.raises(errors.InvalidInputError, match="neither an experiment nor an empty folder"):
        locks.locked(tmp_path / "one").__enter__()
    (tmp_path / "two").symlink_to(tmp_path / "nowhere")
    with pytest.raises(errors.InvalidInputError, match="neither an experiment nor an empty folder"):
        locks.locked(tmp_path / "two").__enter__()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    lock = tmp_path / ".one.lock"
    (tmp_path / "precious").write_text("1")
    {"link": lambda: lock.symlink_to("precious"), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(errors.InvalidInputError, match=rf"\.one\.lock: .*{kind}"):
        locks.locked(tmp_path / "one").__enter__()
    assert (tmp_path / "precious").read_text() == "1"


def test_a_lock_with_a_second_name_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1")
    (tmp_path / ".one.lock").hardlink_to(tmp_path / "precious")
    with locks.locked(tmp_path / "one"):
        pass
    assert (tmp_path / "precious").read_text() == "1"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left on the disk"),
        (PermissionError(errno.EACCES, "x", "/data/a"), r"permission denied \(/data/a\)"),
        (OSError(errno.EFBIG, "x"), "files of this size are not allowed here"),
        (RuntimeError("(errno = 28, error message = 'No space left on device')"), "no space left on the disk"),
    ],
)
def test_what_the_system_refuses_is_told_in_a_line(tmp_path: Path, error: Exception, reason: str) -> None:
    (tmp_path / "x").write_text("old")
    outer, inner = atomic.replacing(tmp_path / "x"), atomic.replacing(tmp_path / "y")
    with (
        pytest.raises(errors.OutputError, match=f"x: not written: {reason}; what was there is as"),
        outer,
        inner,
    ):
        raise error
    assert _tree(tmp_path) == {"x": "old"}


def test_other_errors_are_not_the_system_s(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic.replacing(tmp_path / "x"):
        raise ZeroDivisionError


_TOO_LARGE = """
import resource, sys
from pathlib import Path
import anndata as ad
import numpy as np
from discern.errors import OutputError
from discern.data.writers import write_blocks

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
cells = ad.AnnData(obs={"n": np.arange(3000)}, shape=(3000, 1000))
try:
    write_blocks(Path(sys.argv[1]), cells, ({"X": np.random.default_rng(0).random((1000, 1000))} for _ in range(3)))
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("size", [0, 5_000, 100_000, 3_000_000])
def test_hdf5_survives_a_file_that_cannot_grow(tmp_path: Path, size: int) -> None:
    command = [sys.executable, "-c", _TOO_LARGE, str(tmp_path / "x.h5ad"), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "x.h5ad: not written: files of this size are not allowed here" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link"])
def test_a_log_that_is_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    log, precious = tmp_path / "discern.log", tmp_path / "precious"
    precious.write_text("1")
    make = {"link": lambda: log.symlink_to(precious), "pipe": lambda: os.mkfifo(log)}
    make.get(kind, lambda: log.hardlink_to(precious))()
    with pytest.raises(errors.InvalidInputError, match=rf"discern\.log: .*{kind}"):
        logs.to_file(log).__enter__()
    assert precious.read_text() == "1"


def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with logs.to_file(tmp_path / "discern.log") as written:
        assert written
        (handler,) = (one for one in logging.getLogger().handlers if isinstance(one, logs._File))
        handler.stream.close()
        handler.stream = Full()
        for _ in range(3):
            logging.getLogger("discern").warning("something")
    assert [m for m in caplog.messages if m != "something"] == [
        f"{tmp_path}/discern.log: not written: no space left on the disk; going on without a log"
    ]


def test_a_log_in_a_place_that_does_not_take_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with logs.to_file(tmp_path / "file" / "discern.log") as written:
        assert not written
    assert "not written: a part of the path is no folder" in caplog.text


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    program = "import os; from pathlib import Path; from discern.runtime.atomic import replacing\n"
    program += "with replacing(Path('model.h5')) as partial: partial.write_text('half'); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == 9
    assert [path.name.startswith(".model.h5.partial-") for path in tmp_path.iterdir()] == [True]
    (tmp_path / "best.h5").touch()
    atomic.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.h5"]
