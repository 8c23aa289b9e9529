"""Attack DISCERN: kill it, fill its disk, take its permissions, interrupt it, put links in its way.

`python benchmarks/attacks.py kill` (or disk, permissions, limit, interrupt, links, or several of them) makes a small
experiment, runs each command on copies of it, lets one change of the file system after the other be the last (Linux
with a C compiler: `faults.c` is preloaded), and looks at what is left. One line a command: how many attacks, how many
were badly answered; then each of those. `--points` limits the attacks on a command, `--commands` names some.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
from record import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
RAW = HERE.parent / "tests" / "golden" / "raw"
LEFT = re.compile(r"\.partial-|^\.ready$|^\.online$")


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    text: str
    seconds: float = 0.0


@dataclass
class Lab:
    """A folder with an experiment in several states, and a way to run commands on copies of it.

    Attributes:
        root: The folder.
        library: `faults.c`, preloaded.
    """

    root: Path
    library: ctypes.CDLL
    states: dict[str, Path] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        """experiments_dir."""
        return self.root / "runs"

    @property
    def experiment(self) -> Path:
        """The experiment's folder."""
        return self.runs / "cells"

    def parameters(self, epochs: int = 1) -> str:
        """Write the parameter file; returns its path."""
        path = self.root / f"parameters{epochs}.json"
        network = {"layers": [16], "latent_dim": 4}
        experiment = {
            "input_ds": {
                "raw_input": [str(RAW / f"{name}.h5ad") for name in ("celseq2", "dropseq")],
                "filtering": {"min_genes": 1, "min_cells": 1},
                "split": {"test_cells": 0.1},
                "n_cpus_preprocessing": 1,
            },
            "model": network,
            "training": {"max_steps": epochs, "batch_size": 32, "visualisation": False, "parallel_pc": 1},
        }
        content = {"exp_param": {"experiments_dir": str(self.runs)}, "experiments": {"cells": experiment}}
        path.write_text(json.dumps(content))
        return str(path)

    def restore(self, state: str) -> None:
        """Put a copy of a state in place."""
        shutil.rmtree(self.runs, ignore_errors=True)
        shutil.copytree(self.states[state], self.runs)

    def keep(self, state: str) -> None:
        """Remember what is there as a state."""
        self.states[state] = self.root / "states" / state
        shutil.copytree(self.runs, self.states[state])

    def run(
        self,
        arguments: list[str],
        at: int = -1,
        error: int = 0,
        prepare: Callable[[], None] | None = None,
        send: tuple[int, float] | None = None,
    ) -> Outcome:
        """Run a command in a fork of this process, which has imported all but started nothing.

        Args:
            arguments: Of `discern`.
            at: The change of the file system that is the last, from 1; 0 to count them, -1 to let all be.
            error: 0 to die there, else the error that it and all after it have.
            prepare: Called in the fork first.
            send: A signal and after how many seconds to send it.
        """
        log, count, begin = self.root / "stderr", self.root / "count", time.monotonic()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.chdir(self.root)
            if prepare is not None:
                prepare()
            from discern.cli import commands as cli

            code = 0
            self.library.faults_arm(os.fsencode(self.runs), at, error)
            try:
                cli.cli(arguments, prog_name="discern")
            except SystemExit as end:
                code = end.code or 0
            for late in (signal.SIGINT, signal.SIGTERM):  # the command is over: what follows is this program's own
                signal.signal(late, signal.SIG_IGN)
            seen = self.library.faults_seen()
            self.library.faults_arm(b"", -1, 0)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            count.write_text(str(seen))
            raise SystemExit(code)
        code = self._wait(child, send)
        return Outcome(code, log.read_text(errors="replace"), time.monotonic() - begin)

    def _wait(self, child: int, send: tuple[int, float] | None) -> int:
        deadline, sent = time.monotonic() + 240, send is None
        begin = time.monotonic()
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if send is not None and not sent and time.monotonic() - begin > send[1]:
                sent = True
                os.kill(child, send[0])
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)

    def changes(self) -> int:
        """How many changes of the file system the last command made."""
        return int((self.root / "count").read_text())

    def left(self) -> list[str]:
        """What killed commands left."""
        return [str(path.relative_to(self.runs)) for path in self.runs.rglob("*") if LEFT.search(path.name)]

    def hashes(self) -> dict[str, str]:
        """Return digests of all files but logs and locks."""
        return {
            str(path.relative_to(self.runs)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.runs.rglob("*"))
            if path.is_file() and not path.name.endswith((".lock", ".log")) and "events.out" not in path.name
        }

    def changed(self, before: dict[str, str], arguments: list[str]) -> list[str]:
        """Return the files that a failed command changed, but for those that `train` keeps for the next one."""
        now = self.hashes()
        its_own = ("cells/job", "cells/parameters.json") if arguments[0] == "train" else ()
        return [name for name, digest in before.items() if now.get(name) != digest and not name.startswith(its_own)]

    def damaged(self) -> list[str]:
        """Return the outputs that are there and cannot be read, and sets of which a part is missing."""
        import anndata
        import h5py

        bad = []
        for path in (
            *self.experiment.rglob("*.h5ad"),
            *self.experiment.rglob("*.h5"),
            *self.experiment.rglob("*.zarr"),
        ):
            if LEFT.search(str(path.relative_to(self.runs))):  # not put in place; the next command removes it
                continue
            try:
                if path.suffix == ".zarr":
                    anndata.read_zarr(path)
                elif path.suffix == ".h5ad":
                    anndata.read_h5ad(path)
                else:
                    h5py.File(path).close()
            except Exception as error:  # noqa: BLE001 (whatever it is, the file is damaged)
                bad.append(f"{path.name}: {error}"[:200])
        folder = self.experiment / "evaluation"
        if folder.is_dir() and len(list(folder.iterdir())) < 4:
            bad.append("evaluation is incomplete")
        return bad


def commands(lab: Lab) -> dict[str, tuple[str, list[str]]]:
    """Return each command with the state that it starts from."""
    one, two, new = lab.parameters(), lab.parameters(2), str(lab.root / "new.h5ad")
    other = str(lab.root / "other.h5ad")
    return {
        "process": ("nothing", ["process", one]),
        "process --force": ("all", ["process", "--force", one]),
        "train": ("processed", ["train", one]),
        "train on": ("trained", ["train", two]),
        "project": ("all", ["project", "--metadata", "batch:celseq2", one]),
        "project zarr": ("all", ["project", "--metadata", "batch:celseq2", "--format", "zarr", one]),
        "project --input": ("all", ["project", "--input", new, "--batch", "dropseq", "--reference", "celseq2", one]),
        "export": ("all", ["export", str(lab.experiment), str(lab.runs / "model.discern")]),
        "evaluate": ("all", ["evaluate", one]),
        "onlinetraining": ("trained", ["onlinetraining", "--freeze", "--filename", other, one]),
    }


def build(lab: Lab) -> None:
    """Make the states."""
    one = lab.parameters()
    lab.runs.mkdir()
    lab.keep("nothing")
    steps = {
        "processed": [["process", one]],
        "trained": [["train", one]],
        "all": [
            ["project", "--metadata", "batch:celseq2", one],
            ["project", "--metadata", "batch:celseq2", "--format", "zarr", one],
            ["evaluate", one],
        ],
    }
    shutil.copyfile(RAW / "dropseq.h5ad", lab.root / "new.h5ad")
    other = ad.read_h5ad(RAW / "dropseq.h5ad")
    other.obs["batch"] = "another"
    other.write_h5ad(lab.root / "other.h5ad")
    for state, todo in steps.items():
        for arguments in todo:
            outcome = lab.run(arguments)
            if outcome.code:
                raise SystemExit(f"{arguments}: {outcome.text}")
        lab.keep(state)


def points(changes: int, limit: int) -> list[int]:
    """Choose which changes to attack: all, or the last ones (where things are put in place) and some of the others."""
    if changes <= limit:
        return list(range(1, changes + 1))
    last = range(changes - limit // 2 + 1, changes + 1)
    step = max(1, (changes - len(last)) // (limit - len(last)))
    return [*range(1, last[0], step), *last]


def one_line(outcome: Outcome) -> str | None:
    """Say what is wrong with how a failure was told."""
    errors = [line for line in outcome.text.splitlines() if line.startswith("error:")]
    if outcome.code < 0:
        return f"died of signal {-outcome.code}"
    if "Traceback" in outcome.text or "Exception ignored" in outcome.text or "HDF5-DIAG" in outcome.text:
        return "traceback: " + outcome.text[-300:]
    if outcome.code == 0:
        return None
    if outcome.code != 2:
        return f"exit {outcome.code}: {outcome.text[-300:]}"
    return None if len(errors) == 1 else f"{len(errors)} lines of errors: {errors}"


def kill(lab: Lab, state: str, arguments: list[str], limit: int) -> Iterator[str | None]:
    """Kill at each change of the file system; then look with `info`, then give the command again."""
    lab.restore(state)
    lab.run(arguments, at=0)
    complete = set(lab.hashes())
    for point in points(lab.changes(), limit):
        lab.restore(state)
        before = lab.hashes()
        if lab.run(arguments, at=point).code != -signal.SIGKILL:
            continue
        info = lab.run(["info", str(lab.experiment)])
        wrong = one_line(info) if state == "nothing" else info.code and info.text
        wrong = wrong or [*lab.left(), *lab.damaged()]
        if not wrong and "--force" not in arguments and before.keys() - lab.hashes().keys():
            wrong = f"lost {before.keys() - lab.hashes().keys()}"
        if not wrong and point % 3 == 0 and arguments[0] != "onlinetraining":
            again = lab.run(arguments)
            done = "has been processed before" in again.text or "is there already" in again.text
            wrong = (again.code and not done and again.text) or lab.left() or lab.damaged()
            if not wrong and set(lab.hashes()) != complete:
                wrong = f"files differ: {complete ^ set(lab.hashes())}"
        yield f"killed at {point}: {wrong}" if wrong else None


def failing(with_error: int) -> Callable[[Lab, str, list[str], int], Iterator[str | None]]:
    """Let each change of the file system, and those after it, fail."""

    def attack(lab: Lab, state: str, arguments: list[str], limit: int) -> Iterator[str | None]:
        lab.restore(state)
        lab.run(arguments, at=10**9, error=with_error)
        for point in points(lab.changes(), limit):
            lab.restore(state)
            before = lab.hashes()
            outcome = lab.run(arguments, at=point, error=with_error)
            wrong = one_line(outcome) or lab.damaged()
            if not wrong and with_error == errno.ENOSPC:
                wrong = lab.left()
            if not wrong and outcome.code:
                wrong = lab.changed(before, arguments)
            yield f"{errno.errorcode[with_error]} from {point}: {wrong}" if wrong else None

    return attack


def limited(lab: Lab, state: str, arguments: list[str], limit: int) -> Iterator[str | None]:
    """Forbid files above a size."""
    for size in (0, 100, 3_000, 20_000, 60_000, 150_000, 400_000)[:limit]:
        lab.restore(state)
        before = lab.hashes()
        outcome = lab.run(arguments, prepare=lambda size=size: _limit(size))
        wrong = one_line(outcome) or lab.left() or lab.damaged()
        if not wrong and outcome.code:
            wrong = lab.changed(before, arguments)
        yield f"files of {size} bytes: {wrong}" if wrong else None


def _limit(size: int) -> None:
    # stderr is a file here; what it may not take is not what is tried
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        with open(reading, "rb", buffering=0) as source:  # noqa: PTH123
            while data := source.read(65536):
                os.write(2, data)
        os._exit(0)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def interrupt(lab: Lab, state: str, arguments: list[str], limit: int) -> Iterator[str | None]:
    """Send Ctrl-C or SIGTERM at some moments."""
    lab.restore(state)
    seconds = lab.run(arguments).seconds
    for number in range(min(limit, 10)):
        signal_number, code = ((signal.SIGINT, 130), (signal.SIGTERM, 143))[number % 2]
        lab.restore(state)
        outcome = lab.run(arguments, send=(signal_number, seconds * (number + 0.5) / min(limit, 10)))
        errors = [line for line in outcome.text.splitlines() if line.startswith("error:")]
        wrong = "Traceback" in outcome.text and outcome.text[-300:]
        if not wrong and outcome.code != 0:
            wrong = outcome.code != code and f"exit {outcome.code}: {outcome.text[-300:]}"
            wrong = wrong or ((len(errors) != 1 or "the same command" not in errors[0]) and errors)
        wrong = wrong or lab.left() or lab.damaged()
        yield f"{signal_number.name} after {number + 0.5} tenths: {wrong}" if wrong else None


PARTS = (
    *("processed_data", "TF_records", "job", "projected", "evaluation", "backup", "parameters.json", ".ready"),
    *("job/train", "job/validation", "job/UMAP", "../.cells.lock", "../discern.log"),
)


def links(lab: Lab, state: str, arguments: list[str], limit: int) -> Iterator[str | None]:
    """Put a link to somewhere else in the place of each part, and a pipe in that of lock and log."""
    outside = lab.root / "outside"
    for part in PARTS[:limit]:
        for kind in ("link", "hard link", "pipe") if part.startswith("..") else ("link",):
            if state == "nothing" and not part.startswith(".."):
                continue
            lab.restore(state)
            shutil.rmtree(outside, ignore_errors=True)
            outside.mkdir()
            target, place = outside / "x", lab.experiment / part
            is_file = place.suffix in (".json", ".log", ".lock")
            if place.exists():
                shutil.copytree(place, target) if place.is_dir() else shutil.copyfile(place, target)
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            elif is_file:
                target.write_text("precious")
            else:
                target.mkdir()
                (target / "precious").write_text("precious")
            place.parent.mkdir(exist_ok=True, parents=True)
            if kind == "link":
                place.symlink_to(target)
            elif kind == "hard link":
                place.hardlink_to(target)
            else:
                os.mkfifo(place)
            before = _tree(outside)
            outcome = lab.run(arguments)
            wrong = one_line(outcome) or (_tree(outside) != before and "the target was changed")
            if not wrong and kind == "link":
                wrong = (outcome.code != 2 or place.name not in outcome.text) and f"not refused: {outcome.text[-200:]}"
            yield f"{kind} as {part}: {wrong}" if wrong else None


def _tree(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text(errors="replace") if path.is_file() else "" for path in folder.rglob("*")}


ATTACKS: dict[str, Callable[[Lab, str, list[str], int], Iterator[str | None]]] = {
    "kill": kill,
    "disk": failing(errno.ENOSPC),
    "permissions": failing(errno.EACCES),
    "limit": limited,
    "interrupt": interrupt,
    "links": links,
}

WHAT = {
    "kill": "kill -9 at a change of the file system",
    "disk": "full disk",
    "permissions": "permission denied",
    "limit": "limit of the size of files",
    "interrupt": "Ctrl-C and SIGTERM",
    "links": "links and pipes in place of parts",
}


def main() -> None:
    """Run the attacks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="+", choices=ATTACKS)
    parser.add_argument("--commands", default="", help="separated by commas")
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    arguments = parser.parse_args()
    if "LD_PRELOAD" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "faults.so"
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True)
            environment = os.environ | {"LD_PRELOAD": str(library), "TF_CPP_MIN_LOG_LEVEL": "3"}
            raise SystemExit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)
    import_all()
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    root = Path(tempfile.mkdtemp(prefix="attacks-")).resolve()
    lab = Lab(root, library)
    build(lab)
    bad = 0
    for name in arguments.attacks:
        for command, (state, words) in commands(lab).items():
            if arguments.commands and command not in arguments.commands.split(","):
                continue
            answers = list(ATTACKS[name](lab, state, words, arguments.points))
            wrong = [answer for answer in answers if answer]
            bad += len(wrong)
            print(f"{name} {command}: {len(answers)} tried, {len(wrong)} badly answered", flush=True)
            for answer in wrong:
                print("   ", answer, flush=True)
            if arguments.results:
                row = {"tried": len(answers), "badly answered": len(wrong)}
                record(arguments.results, {f"{WHAT[name]}, `{command}`": row}, f"python benchmarks/attacks.py {name}")
    shutil.rmtree(root, ignore_errors=True)
    sys.exit(bool(bad))


def import_all() -> None:
    """Import what the commands would, so that forks of this process start at once."""
    import tensorflow  # noqa: F401

    with contextlib.suppress(ImportError):
        import discern.evaluation.report  # noqa: F401


if __name__ == "__main__":
    main()
