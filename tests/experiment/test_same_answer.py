"""The command line and a notebook give the same object, and refuse the same names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
from click.testing import CliRunner

import discern
from discern.cli import commands
from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LONG = "n" * 300
SMALL: dict[str, Any] = {
    "min_genes": 1,
    "min_cells": 1,
    "latent_dim": 3,
    "layers": [8],
    "norm_type": ["conditionallayernorm"],
    "batch_size": 8,
    "max_steps": 2,
    "early_stopping": {"start_from_epoch": 1, "patience": 1},
    "n_cpus_preprocessing": 1,
    "parallel_pc": 1,
    "seed": 0,
}


def _discern(*arguments: str) -> str:
    done = CliRunner().invoke(commands.cli, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def raw(make_raw_cells: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_raw_cells({"donor/1": 40, LONG: 40})


@pytest.fixture(scope="module")
def projected(raw: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> ad.AnnData:
    """What the command line gives."""
    folder = tmp_path_factory.mktemp("files")
    raw.write_h5ad(folder / "raw.h5ad")
    parameters = discern.Reconstructor(preset=None, **SMALL).parameters
    experiment = {key: dict(parameters[key]) for key in ("input_ds", "model", "training")}
    experiment["input_ds"]["raw_input"] = {str(folder / "raw.h5ad"): "batch"}
    experiment["training"]["visualisation"] = False
    content = {"exp_param": {"experiments_dir": str(folder / "runs")}, "experiments": {"one": experiment}}
    file = folder / "p.json"
    file.write_text(json.dumps(content))
    for command in ("process", "train"):
        _discern(command, str(file))
    layers = "X,estimated_counts,estimated_dropouts,measured"
    _discern("project", "--metadata", "batch:donor/1", "--metadata", f"batch:{LONG}", "--layers", layers, str(file))
    written = sorted((folder / "runs" / "one" / "projected").iterdir())
    assert len(written) == 2
    assert max(len(path.name) for path in written) < 200
    return ad.read_h5ad(written[0])


def test_files_and_notebook_give_the_same_object(raw: ad.AnnData, projected: ad.AnnData) -> None:
    found = discern.reconstruct(raw, reference="donor/1", preset=None, **SMALL)

    assert projected.raw is None
    assert found.raw is None
    assert set(found.layers) == set(projected.layers)
    assert set(found.obsm) == set(projected.obsm)
    assert list(found.obs) == list(projected.obs)
    assert list(found.var) == list(projected.var)
    assert set(found.uns) == set(projected.uns)
    assert found.obs_names.equals(projected.obs_names)
    np.testing.assert_allclose(found.layers["measured"].toarray(), projected.layers["measured"].toarray(), rtol=1e-6)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_batch_is_refused_in_files_and_notebook(raw: ad.AnnData, name: str, tmp_path: Path) -> None:
    cells = raw.copy()
    cells.obs["batch"] = ["a", name] * 40
    cells.write_h5ad(tmp_path / "raw.h5ad")

    with pytest.raises(InvalidInputError, match="expected the batch of every cell, 40 of 80 cells have none"):
        discern.reconstruct(cells, reference="a", preset=None, **SMALL)
    with pytest.raises(InvalidInputError, match="expected the batch of every cell, 40 of 80 cells have none"):
        discern.WAERecipe({}, input_files=[tmp_path / "raw.h5ad"])
