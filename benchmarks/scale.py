r"""Measure time and memory of the commands on generated cells.

    python benchmarks/scale.py 20000 --density 0.18 --steps process train project --epochs 1
    python benchmarks/scale.py 1000000 --density 0.09 --steps process train project --preset --layers X
    python benchmarks/scale.py 10000 30000 100000 --density 0.09 --steps process train project --stop-after 300 \
        --model scale/experiments/cells-20000-0.18/job --layers X --results benchmarks/results/scale.json

Generates the cells once (see `generate_cells.py`), runs each command as a user would, in a process of its own, and
prints seconds, CPU seconds and the peak of resident memory of the process and its children together. A training of
many cells is interrupted after `--stop-after` seconds; `project` then takes the model of another experiment.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from record import record

_POLL_SECONDS = 0.25
_INTERRUPTED = 130
_COMMANDS = {"process": ["--force"], "train": [], "project": ["--metadata", "batch:celseq2"]}


def children(pid: int) -> list[int]:
    """Return the process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def resident(pid: int) -> int:
    """Return the resident bytes of the process and its descendants; what they share is counted once (PSS)."""
    kilobytes = 0
    for process in children(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes * 1024


def measured(command: list[str], stop_after: float | None = None) -> tuple[float, float, int]:
    """Run a command; return its seconds, its CPU seconds and its peak of resident bytes.

    After `stop_after` seconds it is interrupted as by Ctrl-C.
    """
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(_POLL_SECONDS)
            if stop_after is not None and time.perf_counter() - begin > stop_after:
                process.send_signal(signal.SIGINT)
                process.wait()
    if process.returncode not in (0, _INTERRUPTED if stop_after is not None else 0):
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, cpu, peak


def parameters(folder: Path, cells: Path, epochs: int | None) -> Path:
    """Write a parameter file with the published defaults; without a number of epochs, with the preset."""
    experiment = {
        "input_ds": {
            "raw_input": {str(cells): "batch"},
            "filtering": {"min_genes": 400, "min_cells": 3},
            "scale": {"LSN": 20000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
            "split": {"split_seed": 0, "valid_cells": 0.1},
            "n_cpus_preprocessing": len(os.sched_getaffinity(0)),
        },
        "model": {},
        "training": {"batch_size": 192, "max_steps": epochs, "GPU": []},
    }
    if epochs is None:
        kept = ("raw_input", "filtering", "n_cpus_preprocessing")
        cells_of = {key: experiment["input_ds"][key] for key in kept}
        experiment = {"preset": "auto", "input_ds": cells_of, "training": {"seed": 0, "GPU": []}}
    file = folder / f"{cells.stem}.json"
    content = {"exp_param": {"experiments_dir": str(folder / "experiments")}, "experiments": {cells.stem: experiment}}
    file.write_text(json.dumps(content, indent=2))
    return file


def description(step: str, seconds: float, arguments: argparse.Namespace) -> str:
    """Return what a command had to do, for a table."""
    if step == "train":
        stopped = arguments.stop_after is not None and seconds > arguments.stop_after
        how = "preset, to its end" if arguments.preset else f"epochs: {arguments.epochs}"
        return f"`train`, {'interrupted' if stopped else how}"
    return f"`project`, {arguments.layers.replace(',', ', ')}" if step == "project" else f"`{step}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_cells", type=int, nargs="+")
    parser.add_argument("--density", type=float, default=0.18, help="share of non-zero entries")
    parser.add_argument("--steps", nargs="+", choices=list(_COMMANDS), default=["process"])
    parser.add_argument("--epochs", type=int, default=1, help="of training")
    parser.add_argument("--preset", action="store_true", help="train with the preset, to its end")
    parser.add_argument("--stop-after", type=float, help="seconds after which a training is interrupted")
    parser.add_argument("--model", type=Path, help="job folder of another experiment, for project")
    parser.add_argument("--layers", default="X,estimated_counts,estimated_dropouts", help="what project writes")
    parser.add_argument("--suffix", choices=["h5ad", "zarr"], default="h5ad", help="format of the cells")
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="for the cells and the experiments")
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n_cells in arguments.n_cells:
        cells = arguments.folder / f"cells-{n_cells}-{arguments.density}.{arguments.suffix}"
        if not cells.exists():
            generator = Path(__file__).with_name("generate_cells.py")
            generate = [sys.executable, str(generator), str(n_cells), str(cells), "--density", str(arguments.density)]
            subprocess.run(generate, check=True)
        file = parameters(arguments.folder, cells, None if arguments.preset else arguments.epochs)
        for step in arguments.steps:
            command = [sys.executable, "-m", "discern", step, str(file), *_COMMANDS[step]]
            if step == "project":
                command += ["--layers", arguments.layers]
                if arguments.model:
                    job = arguments.folder / "experiments" / cells.stem / "job"
                    shutil.copytree(arguments.model, job, dirs_exist_ok=True)
            seconds, cpu, peak = measured(command, arguments.stop_after if step == "train" else None)
            rows.append(f"{n_cells:>9,} {step:<8} {seconds:>8.1f} s {cpu:>8.1f} s CPU {peak / 2**30:>7.2f} GB")
            print(rows[-1], flush=True)
            if arguments.results:
                what = description(step, seconds, arguments)
                name = f"{n_cells:,} cells, {arguments.density:.0%} non-zero, {arguments.suffix}: {what}"
                gigabytes = round(peak / 2**30, 2)
                row = {"seconds": round(seconds, 1), "CPU seconds": round(cpu, 1), "peak memory, GB": gigabytes}
                record(arguments.results, {name: row})
    print("\n".join(["    cells command      time      CPU time    peak memory", *rows]))


if __name__ == "__main__":
    main()
