"""Some cells, genes and matrices of a result, as a smaller file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import sparse

from discern.cli.commands import cli
from discern.data.annotation import named_layers
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.experiment import subset
from discern.experiment.subset import write_subset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["a", "b", "c"], 90)),
            "type": pd.Categorical(rng.choice(["T:1", "B"], 90)),
            "n": np.arange(90),
        },
        index=[f"cell{number}" for number in range(90)],
    )
    var = pd.DataFrame({"gene_symbols": [f"SYM{number}" for number in range(40)]}, index=[f"g{n}" for n in range(40)])
    result = ad.AnnData(rng.random((90, 40)).astype(np.float32), obs=obs, var=var)
    result.layers["counts"] = sparse.random(90, 40, 0.1, "csr", np.float32, random_state=0)
    result.layers["by genes"] = sparse.random(90, 40, 0.1, "csc", np.float32, random_state=1)
    result.layers["half"] = rng.random((90, 40)).astype(np.float16)
    result.obsm["X_DISCERN"] = rng.random((90, 3))
    result.varm["PCs"] = rng.random((40, 2))
    result.uns["DISCERN"] = {"projected_to": {"column": "batch", "value": "a"}}
    result.raw = result
    return result


@pytest.fixture(params=[".h5ad", ".zarr"])
def stored(cells: ad.AnnData, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"result{request.param}"
    if request.param == ".h5ad":
        cells.write_h5ad(path)
    else:
        cells.write_zarr(path)
    return path


def _dense(matrix: object) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def _read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_subset_holds_what_anndata_would_have_cut(
    cells: ad.AnnData, stored: Path, tmp_path: Path, suffix: str, on_disk: bool, limit_memory: Callable[..., None]
) -> None:
    if on_disk:
        limit_memory(block=16 * cells.n_vars)
    small = tmp_path / f"small{suffix}"
    in_memory = 0 if on_disk else subset.IN_MEMORY

    chosen = (["batch:b", "batch:c", "type:T:1"], ["SYM7", "g3", "sym20"])
    assert write_subset(stored, small, *chosen, in_memory=in_memory) == small

    kept = cells.obs["batch"].isin(["b", "c"]) & (cells.obs["type"] == "T:1")
    wanted, found = cells[kept, ["g3", "g7", "g20"]].copy(), _read(small)
    assert 5 < found.n_obs < 90
    pd.testing.assert_frame_equal(found.obs, wanted.obs, check_categorical=False)
    pd.testing.assert_frame_equal(found.var, wanted.var)
    for name in ("X", "counts", "by genes", "half"):
        ours, theirs = ((part.X if name == "X" else part.layers[name]) for part in (found, wanted))
        np.testing.assert_array_equal(_dense(ours), _dense(theirs))
    np.testing.assert_array_equal(found.obsm["X_DISCERN"], wanted.obsm["X_DISCERN"])
    np.testing.assert_array_equal(found.varm["PCs"], wanted.varm["PCs"])
    assert found.uns["DISCERN"]["projected_to"]["value"] == "a"
    assert found.raw is None


def test_nothing_chosen_is_everything(cells: ad.AnnData, stored: Path, tmp_path: Path) -> None:
    found = _read(write_subset(stored, tmp_path / "all.h5ad"))

    assert found.shape == cells.shape
    assert set(found.layers) == set(cells.layers)
    np.testing.assert_array_equal(found.X, cells.X)


def test_names_of_cells_and_genes_may_be_in_files(cells: ad.AnnData, stored: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.txt").write_text("cell5\n\n cell3 \r\n")
    (tmp_path / "genes.txt").write_text("SYM1\ng0\n")

    paths = [str(tmp_path / "cells.txt")], [str(tmp_path / "genes.txt")]
    found = _read(write_subset(stored, tmp_path / "small.h5ad", *paths, layers=["counts"]))

    assert list(found.obs_names) == ["cell3", "cell5"]
    assert list(found.var_names) == ["g0", "g1"]
    assert found.X is None
    assert list(found.layers) == ["counts"]


def test_a_small_subset_is_a_small_file(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.raw = None
    cells.write_h5ad(tmp_path / "result.h5ad")

    small = write_subset(tmp_path / "result.h5ad", tmp_path / "small.h5ad", ["batch:a"], ["g1"])

    assert small.stat().st_size < 150_000


def test_whole_numbers_and_types_stay(tmp_path: Path) -> None:
    counts = ad.AnnData(sparse.csr_matrix(np.array([[2**24 + 1, 0], [0, 3]], dtype=np.int32)))
    counts.write_h5ad(tmp_path / "counts.h5ad")
    half = ad.AnnData(np.ones((2, 2), np.float16) / 3)
    half.write_h5ad(tmp_path / "half.h5ad")

    whole = _read(write_subset(tmp_path / "counts.h5ad", tmp_path / "a.h5ad"))
    assert whole.X[0, 0] == 2**24 + 1
    assert whole.X.dtype == np.int32
    assert _read(write_subset(tmp_path / "half.h5ad", tmp_path / "b.h5ad")).X.dtype == np.float16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cells": ["batsh:a"]}, UnknownNameError, r"no metadata column 'batsh' \(did you mean 'batch'"),
        ({"cells": ["batch:d"]}, InvalidInputError, "has no value 'd'"),
        ({"cells": ["batch:"]}, InvalidInputError, "expected COLUMN:VALUE, got 'batch:'"),
        ({"cells": ["cell3"]}, InvalidInputError, "expected COLUMN:VALUE or a file"),
        ({"cells": ["n:3", "n:4", "batch:a", "type:B", "n:5"]}, InvalidInputError, "no cell is left"),
        ({"genes": ["SIM7"]}, UnknownNameError, "no gene 'SIM7'"),
        ({"layers": ["count"]}, UnknownNameError, r"no layer 'count' \(did you mean 'counts'"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    cells: ad.AnnData, tmp_path: Path, arguments: dict, error: type, message: str
) -> None:
    cells.obs.loc[["cell3", "cell4", "cell5"], "batch"] = "b"
    cells.write_h5ad(tmp_path / "result.h5ad")

    with pytest.raises(error, match=message):
        write_subset(tmp_path / "result.h5ad", tmp_path / "small.h5ad", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["result.h5ad"]


def test_files_that_are_there_not_there_or_no_anndata(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "result.h5ad")
    (tmp_path / "text.h5ad").write_text("no")
    (tmp_path / "names.txt").write_text("cell1\nnobody\n")

    with pytest.raises(InvalidInputError, match="is there already"):
        write_subset(tmp_path / "result.h5ad", tmp_path / "text.h5ad")
    with pytest.raises(MissingFileError):
        write_subset(tmp_path / "none.h5ad", tmp_path / "small.h5ad")
    with pytest.raises(InvalidInputError, match=r"text\.h5ad: cannot be read as \.h5ad"):
        write_subset(tmp_path / "text.h5ad", tmp_path / "small.h5ad")
    with pytest.raises(InvalidInputError, match=r"ends in \.h5ad or \.zarr"):
        write_subset(tmp_path / "result.h5ad", tmp_path / "small.csv")
    with pytest.raises(UnknownNameError, match="1 of 2 names are of no cell, such as 'nobody'"):
        write_subset(tmp_path / "result.h5ad", tmp_path / "small.h5ad", [str(tmp_path / "names.txt")])


def test_the_command(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.write_h5ad(tmp_path / "result.h5ad")
    command = ["subset", str(tmp_path / "result.h5ad"), "--output", str(tmp_path / "small.h5ad"), "--cells", "batch:a"]

    done = CliRunner().invoke(cli, [*command, "--genes", "SYM1, g2", "--genes", "g3", "--layers", "X,counts"])

    assert done.exit_code == 0, done.output
    found = ad.read_h5ad(tmp_path / "small.h5ad")
    assert list(found.var_names) == ["g1", "g2", "g3"]
    assert set(found.obs["batch"]) == {"a"}
    assert list(named_layers(found)) == ["counts"]
    assert CliRunner().invoke(cli, command).exit_code == 2
