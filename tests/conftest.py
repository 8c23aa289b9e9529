from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")

DATA = Path(__file__).parent / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runslow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: needs --runslow"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers that the original program produced."""
    return DATA / "golden"


@pytest.fixture(scope="session")
def golden_json(golden: Path) -> dict:
    return json.loads((golden / "golden.json").read_text())


@pytest.fixture
def original_experiment(golden: Path, tmp_path: Path) -> Path:
    """A private copy of an experiment folder that the original wrote."""
    return Path(shutil.copytree(golden / "experiment", tmp_path / "experiments" / "original"))
