from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import anndata as ad

# A busy machine is slow without anything being wrong; what hangs is ended by the timeout in pyproject.toml.
settings.register_profile("busy machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="discern-state-")  # what commands remember of their user

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow as well")


# test_ray_cluster before the searches: after many sessions of Ray in one process, its actors no longer start.
_FIRST = (
    "test_docs.py",
    "test_ray_cluster.py",
    "test_tuner.py",
    "test_trial.py",
    "test_online.py",
    "test_estimator.py",
)
_WITH_RAY = ("test_ray_cluster.py", "test_tuner.py", "test_trial.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))
    for item in items:
        # With several processes (-n), a file is run by one of them, and so are all files that start a Ray.
        item.add_marker(pytest.mark.xdist_group("ray" if item.path.name in _WITH_RAY else str(item.path)))
        if "slow" in item.keywords and not config.getoption("--runslow"):
            item.add_marker(pytest.mark.skip(reason="slow: needs --runslow"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers that the original program produced."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_json(golden: Path) -> dict:
    return json.loads((golden / "golden.json").read_text())


@pytest.fixture
def original_experiment(golden: Path, tmp_path: Path) -> Path:
    """A private copy of an experiment folder that the original wrote."""
    return Path(shutil.copytree(golden / "experiment", tmp_path / "experiments" / "original"))


@pytest.fixture
def limit_memory() -> Iterator[Callable[..., None]]:
    """A function that lets the rest of a test take other amounts of memory; see `discern.runtime.memory.limited`."""
    from discern.runtime.memory import limited

    with contextlib.ExitStack() as stack:
        yield lambda **limits: stack.enter_context(limited(**limits))


@pytest.fixture(scope="session")
def make_raw_cells() -> Callable[..., ad.AnnData]:
    """A function that makes up raw counts with obs `batch` and `celltype`; `sizes` are the cells of each batch."""
    import anndata as ad
    import numpy as np
    import pandas as pd
    from scipy import sparse

    def make(sizes: dict[str, int], n_genes: int = 30, seed: int = 0, density: float = 0.5) -> ad.AnnData:
        random = np.random.default_rng(seed)
        n_cells = sum(sizes.values())
        counts = random.poisson(3, (n_cells, n_genes)) * (random.random((n_cells, n_genes)) < density)
        obs = pd.DataFrame(
            {
                "batch": np.repeat(list(sizes), list(sizes.values())),
                "celltype": random.choice(["T cell", "B cell"], n_cells),
            },
            index=[f"cell{number}" for number in range(n_cells)],
        )
        var = pd.DataFrame(index=[f"gene{number}" for number in range(n_genes)])
        return ad.AnnData(X=sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)

    return make
