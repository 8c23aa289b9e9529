from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

_HEAVY = ("tensorflow", "keras", "scanpy", "anndata", "pandas", "sklearn", "matplotlib", "ray")


def _loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "discern",
        "discern.cli.commands",
        "discern.config.reading",
        "discern.errors",
        "discern.runtime.atomic",
        "discern.runtime.progress",
    ],
)
def test_import_is_light(module: str) -> None:
    assert _loaded(f"import {module}").isdisjoint(_HEAVY)


def test_command_line_does_without_numpy_and_pydantic() -> None:
    assert _loaded("import discern.__main__").isdisjoint({"numpy", "scipy", "pydantic", "rich"})


def test_a_script_shows_none_of_tensorflows_lines() -> None:
    code = """
import discern
model = discern.DISCERN(
    encoder={"layers": [4], "norm_type": ["layernorm"]}, decoder={"layers": [4], "norm_type": ["layernorm"]})
from discern.functions import start_tensorflow
start_tensorflow(None, None)
model.build_model(10, 2, 10)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert outcome.stderr == ""


def test_help_is_quick() -> None:
    def seconds() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "discern", "--help"], capture_output=True, check=True)
        return time.perf_counter() - begin

    seconds()
    assert min(seconds() for _ in range(5)) < 0.3
