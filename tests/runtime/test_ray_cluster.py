"""Experiments on a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from discern.config.reading import load_parameters
from discern.errors import MissingFileError
from discern.experiment.project import run_projection
from discern.experiment.runner import DISCERNRunner
from discern.runtime.ray_cluster import run_on_ray
from discern.runtime.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False, "gcs_server_port": port}
    )
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_results_errors_and_messages_come_back(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        results = run_on_ray(
            address,
            {
                "sum": Task(sum, ([1, 2],)),
                "mistake": Task(json.loads, ("{",)),
                "killed": Task(os._exit, (1,)),
                "message": Task(logging.warning, ("genes are few",)),
            },
        )
    assert list(results) == ["sum", "mistake", "killed", "message"]
    assert results["sum"] == 3
    assert isinstance(results["mistake"], json.JSONDecodeError)
    assert isinstance(results["killed"], ray.exceptions.WorkerCrashedError)
    assert "message: genes are few" in caplog.messages
    assert not ray.is_initialized()


@pytest.mark.filterwarnings("ignore")
def test_both_nodes_work_at_once(address: str) -> None:
    begin = time.monotonic()
    pauses = run_on_ray(address, {name: Task(time.sleep, (4,)) for name in ("one", "two")})
    assert pauses == {"one": None, "two": None}
    assert time.monotonic() - begin < 20  # generous: the workers start first


@pytest.mark.filterwarnings("ignore")
def test_more_cpus_than_a_node_has_are_clamped(address: str) -> None:
    with pytest.warns(UserWarning, match="published: CPUs: asked for 20, using 1: no node of the cluster has more"):
        assert run_on_ray(address, {"published": Task(sum, ([1],), cpus=20)}) == {"published": 1}


def test_a_cluster_that_is_not_there_is_the_users_mistake() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(MissingFileError, match=r"no Ray head node answers at 127\.0\.0\.1"):
        run_on_ray(nobody, {"one": Task(sum, ([1],))})


@pytest.mark.filterwarnings("ignore")
def test_experiments_are_projected_on_the_cluster(
    address: str, original_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = original_experiment.parent
    shutil.copytree(original_experiment, folder / "second")
    shutil.rmtree(folder / "second" / "job")
    experiment: dict[str, Any] = json.loads((original_experiment / "parameters.json").read_text())
    file = folder.parent / "parameters.json"
    names = dict.fromkeys(("original", "second"), experiment)
    file.write_text(json.dumps({"exp_param": {"experiments_dir": "experiments"}, "experiments": names}))
    monkeypatch.chdir(folder.parent)
    kwargs = {"metadata": [("batch", "celseq2")], "infile": None, "all_batches": False, "store_sigmas": False}
    runner = DISCERNRunner(ray_address=address)
    results = runner(func=run_projection, parameters=load_parameters(file), kwargs=kwargs)
    assert results["original"] == [folder / "original" / "projected" / "projected_to_average_batch_celseq2.h5ad"]
    assert results["original"][0].is_file()
    assert isinstance(results["second"], MissingFileError)
