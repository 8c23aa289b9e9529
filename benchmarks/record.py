"""Keep what a benchmark measured in JSON, with machine and date; the tables of the documentation are made from it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # of a processor, that multiply matrices


def record(path: Path, rows: Mapping[str, Mapping[str, float | str]], command: str | None = None) -> None:
    """Add rows to a file of results; a row that is there is replaced.

    Args:
        path: The `.json` file, a mapping from the name of a row to its figures.
        rows: Name of a row -> name of a figure -> the figure.
        command: What prints them again, from the root of the repository; that of this process, if not given: without
            `--results`, and of files and folders elsewhere their names alone.
    """
    if command is None:
        words = [word for word in sys.argv[1:] if not word.startswith("--results=")]
        if "--results" in words:
            place = words.index("--results")
            del words[place : place + 2]
        words = [Path(word).name if Path(word).is_absolute() else word for word in words]
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    there = json.loads(path.read_text()) if path.exists() else {}
    about = {"command": command, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(there | {name: {**row, **about} for name, row in rows.items()}, indent=1) + "\n")


def machine() -> str:
    """Return processor, number of cores and memory, and the versions that time and memory depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        said = dict(line.split(":") for line in info.read_text().replace("\t", "").splitlines() if line.count(":") == 1)
        units = [name for name in _UNITS if name in said.get("flags", "").split()]
        cpu = " ".join([said.get("model name", cpu).strip(), *units])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"Python {platform.python_version()}"]
    for name in ("tensorflow", "keras"):
        with contextlib.suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GB; {', '.join(versions)}"
