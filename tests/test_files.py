from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from discern import errors, files, progress

if TYPE_CHECKING:
    from pathlib import Path


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else "folder" for path in folder.rglob("*")
    }


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "data.h5ad"
    with files.replacing(target) as partial:
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
        with files.replacing(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert _tree(tmp_path) == before


def test_a_folder_replaces_a_folder_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "experiment"
    target.mkdir()
    (target / "old").touch()
    with files.replacing(target) as partial:
        partial.mkdir()
        (partial / "new").write_text("1")
        assert (target / "old").exists()
    assert _tree(tmp_path) == {"experiment": "folder", "experiment/new": "1"}


def test_a_folder_comes_back_when_its_replacement_was_never_written(tmp_path: Path) -> None:
    target = tmp_path / "experiment"
    target.mkdir()
    (target / "old").write_text("1")

    def write_nothing() -> None:
        with files.replacing(target):
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
    files.publish(_stage(tmp_path), tmp_path)
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
            files.publish(staging, experiment)
    else:
        files.publish(staging, experiment)
    monkeypatch.undo()
    with files.locked(experiment):
        assert _tree(experiment) == _PUBLISHED


def test_a_second_command_is_refused(tmp_path: Path) -> None:
    experiment = tmp_path / "new" / "experiment"
    with files.locked(experiment):
        again = files.locked(experiment)
        with pytest.raises(errors.InUseError, match=rf"process {os.getpid()} is at work on this experiment; wait for"):
            again.__enter__()
        with files.locked(tmp_path / "new" / "another"):
            pass
    with files.locked(experiment):
        pass


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from discern import files; "
        "files.locked(pathlib.Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path / "experiment")], check=False)
    assert dead.returncode == 9
    with files.locked(tmp_path / "experiment"):
        pass


def test_remove_takes_the_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").touch()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "nothing")
    assert (tmp_path / "data" / "x").exists()
    files.remove(tmp_path / "data")
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


def test_bars_only_on_a_terminal_of_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(logging.getLogger("discern.progress"), "level", logging.INFO)
    assert progress.shows_bars()
    monkeypatch.setattr(progress.multiprocessing, "parent_process", lambda: object())
    assert not progress.shows_bars()
    monkeypatch.undo()
    assert not progress.shows_bars()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    program = "import os; from pathlib import Path; from discern.files import replacing\n"
    program += "with replacing(Path('model.h5')) as partial: partial.write_text('half'); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == 9
    assert [path.name.startswith(".model.h5.partial-") for path in tmp_path.iterdir()] == [True]
    (tmp_path / "best.h5").touch()
    files.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.h5"]
