"""What the documentation says is so: notebooks, code, commands, parameters and messages in it."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import scanpy as sc
from nbclient import NotebookClient
from traitlets.config import Config

import discern
from discern.cli.commands import cli, merge_parameter
from discern.config.reading import schema
from discern.experiment.project import run_projection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import anndata as ad

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
NOTEBOOKS = [ROOT / "Tutorial.ipynb", *sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))]
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def _blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(path.read_text()) if kind == language]


def _id(path: Path) -> str:
    return path.stem


# --- notebooks -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=_id)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)

    # Sockets as files in a folder of its own (with a short name: paths of sockets must be): a TCP port that is chosen
    # as free may be taken by another test until the kernel binds it.
    with tempfile.TemporaryDirectory() as sockets, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = {"transport": "ipc", "connection_file": str(Path(sockets) / "kernel.json")}
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=600, resources=resources, config=Config(KernelManager=kernel)).execute()

    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert not re.search(r"^error: |command not found", str(output.get("text", ""))), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=_id)
def test_notebook_is_small_and_has_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert sum(bool(cell.outputs) for cell in code) >= len(code) / 2
    assert path.stat().st_size < 500_000


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what the pages show train a small network for an epoch."""
    small = {"encoder": {"layers": [8]}, "decoder": {"layers": [8]}, "XLA": False, "GPU": []}
    reconstruct, reconstructor = discern.reconstruct, discern.Reconstructor

    class Small(reconstructor):
        def __init__(self, **parameters: Any) -> None:
            super().__init__(**small | parameters | {"max_steps": 1})

    monkeypatch.setattr(discern, "reconstruct", functools.partial(reconstruct, **small, max_steps=1), raising=False)
    monkeypatch.setattr(discern, "Reconstructor", Small, raising=False)


@pytest.fixture
def projected(original_experiment: Path) -> Path:
    (path,) = run_projection(original_experiment, [("batch", "celseq2")], None, False, False)
    return path


def test_start_runs(small_training: None, projected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "experiments" / "celseq2_dropseq" / "projected"
    target.mkdir(parents=True)
    projected.rename(target / "projected_to_reference_celseq2.h5ad")

    _run(ROOT / "docs" / "start.md")

    assert (tmp_path / "experiments" / "mine" / "job" / "last_model.h5").is_file()


def test_original_runs(original_experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original_experiment.rename(original_experiment.with_name("old"))
    monkeypatch.chdir(original_experiment.parent.parent)

    assert _run(ROOT / "docs" / "original.md")["result"].n_obs == 220


def _run(page: Path) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in _blocks(page, "python"):
            exec(compile(block, page.name, "exec"), scope)
    plt.close("all")
    return scope


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_code_on_page_is_whole(page: Path) -> None:
    for block in _blocks(page, "python"):
        compile(block, page.name, "exec")
    for block in _blocks(page, "json"):
        json.loads(block)


def _commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in [*_blocks(page, "bash"), *_blocks(page, "")]:
            for line in block.splitlines():
                if found := re.search(r"(?:^|\$ |run |bin/)((?:discern|merge_parameter) [^#]*)", line.strip()):
                    yield page.stem, found[1].strip()


@pytest.mark.parametrize(("page", "line"), list(_commands()))
def test_command_on_page_exists(page: str, line: str) -> None:
    name, *arguments = shlex.split(line)
    command: click.Command = merge_parameter
    if name == "discern":
        context = click.Context(cli, token_normalize_func=lambda token: token.replace("_", "-"))
        _, command, arguments = cli.resolve_command(context, arguments)
    command.make_parser(click.Context(command)).parse_args([*arguments])


def test_pages_link_to_what_is_there() -> None:
    generated = {"generated/parameters.md", "generated/tutorial.ipynb"}
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert target in generated or (page.parent / target).exists(), f"{page.name}: {target}"


def test_messages_of_troubleshooting_are_those_of_the_program() -> None:
    source = " ".join(path.read_text() for path in (ROOT / "discern").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    for message in re.findall(r"^## `(.*)`", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE):
        assert message in source, message


def test_every_parameter_is_described() -> None:
    for section, definition in schema()["$defs"].items():
        for key, value in definition["properties"].items():
            assert value.get("description"), f"{section}.{key}"


def test_page_of_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import parameter_page

    parameter_page.write_parameter_page(tmp_path / "parameters.md")

    text = (tmp_path / "parameters.md").read_text()
    assert "| `min_genes` | whole number ≥ 0 | `400` | A cell is kept if" in text
    assert '| `precision` | `"float32"`, `"mixed_bfloat16"`, `"auto"` | absent |' in text


# --- where users go next ---------------------------------------------------------------------------------------------


def test_plain_scanpy_works_on_projected_cells(projected: Path, tmp_path: Path) -> None:
    cells = sc.read_h5ad(projected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(cells, use_rep="X_DISCERN")
        sc.tl.umap(cells)
        sc.tl.leiden(cells, flavor="igraph", n_iterations=2)
        sc.tl.rank_genes_groups(cells, "celltype", layer="estimated_counts", method="wilcoxon")
        axes = sc.pl.umap(cells, color=["batch", "leiden"], show=False)
        dots = sc.pl.dotplot(cells, list(cells.var_names[:3]), "celltype", layer="estimated_counts", show=False)

    assert len(axes) == 2
    assert dots
    plt.close("all")
    assert cells.obs["leiden"].nunique() >= 2
    markers = sc.get.rank_genes_groups_df(cells, group=None)
    assert np.isfinite(markers["scores"]).all()
    assert (markers["pvals_adj"] < 0.05).any()


def test_projected_cells_survive_zarr(projected: Path, tmp_path: Path, dense: Callable[..., np.ndarray]) -> None:
    import anndata

    cells: ad.AnnData = sc.read_h5ad(projected)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.write_zarr(tmp_path / "cells.zarr")
        again = anndata.read_zarr(tmp_path / "cells.zarr")

    for name in ("estimated_counts", "estimated_dropouts"):
        np.testing.assert_array_equal(dense(again.layers[name]), dense(cells.layers[name]))
    np.testing.assert_array_equal(dense(again.X), dense(cells.X))
    np.testing.assert_array_equal(again.obsm["X_DISCERN"], cells.obsm["X_DISCERN"])
    assert again.obs["batch"].tolist() == cells.obs["batch"].tolist()
    assert again.uns["DISCERN"]["batch_key"] == cells.uns["DISCERN"]["batch_key"]


@pytest.fixture
def dense() -> Callable[..., np.ndarray]:
    return lambda matrix: matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
