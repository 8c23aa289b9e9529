"""`--dry-run`: what commands would do, and that they do nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from discern.cli.commands import cli

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad
    import pytest


def _run(*args: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(map(str, args)))
    assert result.exit_code == code, result.output
    return result


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_processing(make_raw_cells: Callable[..., ad.AnnData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_raw_cells({"a": 60, "b": 40}).write_h5ad("cells.h5ad")
    experiment = {"input_ds": {"raw_input": ["cells.h5ad"]}}
    Path("p.json").write_text(
        json.dumps({"exp_param": {"experiments_dir": "runs"}, "experiments": {"one": experiment}})
    )
    before = _files(tmp_path)

    said = _run("process", "--dry-run", "p.json").stdout

    assert "one: nothing is done (--dry-run)" in said
    assert re.search(r"cells.h5ad, \d+ KB: 100 cells x 30 genes", said)
    assert "runs/one: parameters.json, processed_data/concatenated_data.h5ad, TF_records/" in said
    assert "memory     about " in said
    assert "time       about 3 s" in said
    assert "TF_records" not in _run("process", "--dry-run", "--without-tfrecords", "p.json").stdout
    assert _files(tmp_path) == before
    assert not Path("runs").exists()
    Path("cells.h5ad").unlink()
    assert "raw_input: no such file: cells.h5ad" in _run("process", "--dry-run", "p.json", code=2).stderr


def test_training(original_experiment: Path) -> None:
    file = original_experiment / "parameters.json"
    content = json.loads(file.read_text())
    content["training"]["max_steps"] = 10
    file.write_text(json.dumps(content))
    before = _files(original_experiment.parent)

    said = _run("train", "--dry-run", file).stdout

    assert "220 cells x 1,500 genes" in said
    assert "from the beginning to epoch 10: " in said
    assert "job/last_model.h5, job/history.json" in said
    assert "memory     about " in said
    assert "time       about " in said
    assert _files(original_experiment.parent) == before
    shutil.rmtree(original_experiment / "processed_data")
    assert "run `discern process` first" in _run("train", "--dry-run", file, code=2).stderr


def test_projecting(original_experiment: Path) -> None:
    file, target = original_experiment / "parameters.json", original_experiment / "projected"
    before = _files(original_experiment.parent)

    said = _run("project", "--dry-run", "--reference", "celseq2", "--all-batches", file).stdout

    for name in ("reference_celseq2", "average_batch_celseq2", "average_batch_dropseq"):
        assert f"{target / f'projected_to_{name}.h5ad'}, up to 4 MB" in said
    assert (
        f"{target / 'unprojected.zarr'}, up to 1 MB"
        in _run("project", "--dry-run", "--layers", "X", "--format", "zarr", file).stdout
    )
    assert "has no value 'celseq'" in _run("project", "--dry-run", "--reference", "celseq", file, code=2).stderr
    assert _files(original_experiment.parent) == before
    shutil.rmtree(original_experiment / "job")
    assert "run `discern train` first" in _run("project", "--dry-run", file, code=2).stderr


def test_the_files_that_are_announced_are_written(original_experiment: Path) -> None:
    file = original_experiment / "parameters.json"
    said = _run("project", "--dry-run", "--reference", "celseq2", "--metadata", "celltype:", file).stdout

    _run("project", "--reference", "celseq2", "--metadata", "celltype:", file)

    written = list((original_experiment / "projected").iterdir())
    assert len(written) == 2
    assert all(str(path) in said for path in written)
    assert "(is there, would be replaced)" in _run("project", "--dry-run", "--reference", "celseq2", file).stdout
