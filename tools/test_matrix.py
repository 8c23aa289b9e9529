"""Run the tests on several versions of Python, and on the lowest versions of the libraries that pyproject.toml allows.

    python tools/test_matrix.py --python 3.11 --python 3.12 --lowest 3.11 -- tests/data/test_processed.py

A version of Python that is neither installed nor can be downloaded by uv is skipped, and named at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _uv(*arguments: str) -> bool:
    return subprocess.run([sys.executable, "-m", "uv", *arguments], cwd=ROOT).returncode == 0


def run(python: str, resolution: str, pytest_arguments: list[str]) -> str:
    """Test in a fresh environment.

    Args:
        python: Version or path of an interpreter.
        resolution: Of uv: "highest", or "lowest-direct" for the lower bounds of what DISCERN itself asks for.
        pytest_arguments: Files to test, options; all tests if there are none.

    Returns:
        "passed", or what did not work.
    """
    folder = ROOT / "build" / "matrix" / f"{python.replace(os.sep, '-').strip('-')}-{resolution}"
    if not _uv("venv", "--quiet", "--clear", "--python", python, str(folder)):
        return "SKIPPED: there is no such Python here"
    interpreter = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    options = ["--quiet", "--python", interpreter, "--resolution", resolution]
    if not _uv("pip", "install", *options, "--editable", ".[tune,loom]", "--group", "test"):
        return "FAILED: does not install"
    tests = subprocess.run([interpreter, "-m", "pytest", "-n", "2", "--dist", "loadgroup", *pytest_arguments], cwd=ROOT)
    return "passed" if tests.returncode == 0 else "FAILED"


def main() -> int:
    """Run all combinations and print one line for each; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], help="version or path; repeatable")
    parser.add_argument("--lowest", metavar="PYTHON", action="append", default=[], help="with the lowest versions")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    arguments = parser.parse_args()

    combinations = [(python, "highest") for python in arguments.python]
    combinations += [(python, "lowest-direct") for python in arguments.lowest]
    outcomes = {combination: run(*combination, arguments.pytest) for combination in combinations}
    for (python, resolution), outcome in outcomes.items():
        print(f"Python {python}, {resolution} versions: {outcome}")
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
