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
sys.path.insert(0, str(ROOT / "benchmarks"))

from record import record  # noqa: E402

_VERSIONS = "from importlib.metadata import version; print(*(f'{one} {version(one)}' for one in %r), sep=', ')"
_SHOWN = ("tensorflow", "keras", "anndata", "numpy", "pandas")


def _uv(*arguments: str) -> bool:
    return subprocess.run([sys.executable, "-m", "uv", *arguments], cwd=ROOT).returncode == 0


def run(python: str, resolution: str, pytest_arguments: list[str]) -> dict[str, str]:
    """Test in a fresh environment.

    Args:
        python: Version or path of an interpreter.
        resolution: Of uv: "highest", or "lowest-direct" for the lower bounds of what DISCERN itself asks for.
        pytest_arguments: Files to test, options; all tests if there are none.

    Returns:
        "outcome": "passed", or what did not work; and, if tests were run, their numbers and the main libraries.
    """
    folder = ROOT / "build" / "matrix" / f"{python.replace(os.sep, '-').strip('-')}-{resolution}"
    if not _uv("venv", "--quiet", "--clear", "--python", python, str(folder)):
        return {"outcome": "SKIPPED: there is no such Python here"}
    interpreter = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    options = ["--quiet", "--python", interpreter, "--resolution", resolution]
    if not _uv("pip", "install", *options, "--editable", ".[tune,loom]", "--group", "test"):
        return {"outcome": "FAILED: does not install"}
    versions = subprocess.run([interpreter, "-c", _VERSIONS % (_SHOWN,)], capture_output=True, text=True, check=True)
    # Other versions warn of other things than those that CI has.
    command = [interpreter, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-W", "default", *pytest_arguments]
    last = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        for line in tests.stdout or ():
            print(line, end="", flush=True)
            last = line.strip(" =\n") or last
    outcome = "passed" if tests.returncode == 0 else "FAILED"
    return {"outcome": outcome, "tests": last.split(" in ")[0], "libraries": versions.stdout.strip()}


def main() -> int:
    """Run all combinations and print one line for each; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], help="version or path; repeatable")
    parser.add_argument("--lowest", metavar="PYTHON", action="append", default=[], help="with the lowest versions")
    parser.add_argument("--results", type=Path, help="JSON file to add the outcomes to")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    arguments = parser.parse_args()

    combinations = [(python, "highest") for python in arguments.python]
    combinations += [(python, "lowest-direct") for python in arguments.lowest]
    outcomes = {combination: run(*combination, arguments.pytest) for combination in combinations}
    rows = {f"Python {python}, {resolution} versions": found for (python, resolution), found in outcomes.items()}
    for name, found in rows.items():
        print(f"{name}: {', '.join(found.values())}")
    if arguments.results:
        what = " ".join(arguments.pytest)
        record(arguments.results, rows, f'make test-matrix TESTS="{what}"' if what else "make test-matrix")
    return int(any(found["outcome"].startswith("FAILED") for found in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
