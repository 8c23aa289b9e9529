from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parent.parent
FILES = ["pyproject.toml", "CHANGELOG.md", "CITATION.cff", "Dockerfile", "README.md", "discern/__init__.py", "recipes"]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release_check", ROOT / "tools" / "release_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    return tmp_path


def test_files_agree_on_the_release(check: ModuleType) -> None:
    assert check.mismatches(ROOT) == []


@pytest.mark.parametrize(
    ("file", "pattern", "other"),
    [
        ("CHANGELOG.md", r"(?m)^## \[\d\S*\]", "## [0.0.1]"),
        ("CITATION.cff", r"version: 2\S*", "version: 0.0.1"),
        ("CITATION.cff", r"date-released: \S*", "date-released: 1999-12-31"),
        ("Dockerfile", r'image.version="[^"]*"', 'image.version="0.0.1"'),
        ("README.md", r"pip install discern-\w+", "pip install discern"),
        ("recipes/bioconda/meta.yaml", r'set version = "[^"]*"', 'set version = "0.0.1"'),
        ("recipes/bioconda/meta.yaml", r"- anndata >=\S*", "- anndata >=0.1"),
        ("recipes/bioconda/meta.yaml", r" +- zarr .*\n", ""),
        ("recipes/nf-core/discern/train/main.nf", r"biocontainers/\S*--", "biocontainers/discern:0.0.1--"),
        ("recipes/nf-core/discern/project/environment.yml", r"discern-scrna=\S*", "discern-scrna=0.0.1"),
    ],
)
def test_a_file_that_disagrees_is_named(check: ModuleType, tree: Path, file: str, pattern: str, other: str) -> None:
    text = (tree / file).read_text()
    changed = re.sub(pattern, other, text, count=1)
    assert changed != text
    (tree / file).write_text(changed)

    lines = check.mismatches(tree)

    assert lines
    assert any(line.startswith(f"{file}: ") for line in lines)


def test_a_version_that_was_raised_in_the_code_alone_is_found_everywhere(check: ModuleType, tree: Path) -> None:
    (tree / "discern" / "__init__.py").write_text('__version__ = "9.9.9"\n')
    named = {line.split(":")[0] for line in check.mismatches(tree)}
    assert {"CHANGELOG.md", "CITATION.cff", "Dockerfile", "recipes/bioconda/meta.yaml"} <= named


def test_another_tag_is_found(check: ModuleType, tree: Path) -> None:
    assert check.mismatches(tree, "v0.0.1")[0].startswith("tag: v0.0.1 where v")


def test_changes_that_belong_to_no_version_are_listed(check: ModuleType, tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n### Fixed\n\n- A fault.\n\n## [1.0.0] - 2026-01-01\n\n- Old.\n"
    )
    assert check.unreleased(tree) == ["CHANGELOG.md: in no version: - A fault."]


def test_every_module_has_what_nf_core_asks_for() -> None:
    for name in ("process", "train", "project"):
        folder = ROOT / "recipes" / "nf-core" / "discern" / name
        assert (folder / "meta.yml").read_text().startswith("---\n")
        assert f"process DISCERN_{name.upper()} {{" in (folder / "main.nf").read_text()
        assert f'process "DISCERN_{name.upper()}"' in (folder / "tests" / "main.nf.test").read_text()


def _run_module(name: str, folder: Path, values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the commands of a Nextflow module with bash, as Nextflow would with these values."""
    text = (ROOT / "recipes" / "nf-core" / "discern" / name / "main.nf").read_text()
    match = re.search(r'script:.*?"""\n(.*?)"""', text, re.DOTALL)
    assert match is not None
    commands = re.sub(r"(?<!\\)\$\{(\w+)\}", lambda found: values[found[1]], match[1]).replace("\\$", "$")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-euo", "pipefail", "-c", commands]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_commands_of_the_nextflow_modules_reconstruct_the_shipped_cells(tmp_path: Path) -> None:
    parameters: dict[str, Any] = json.loads((ROOT / "parameters.json").read_text())
    experiment = parameters["experiments"]["celllines"]
    experiment["input_ds"]["raw_input"] = ["celseq2.h5ad", "dropseq.h5ad"]
    experiment["model"]["latent_dim"] = 4
    experiment["model"]["encoder"]["layers"] = experiment["model"]["decoder"]["layers"] = [8, 8, 8]
    experiment["training"]["max_steps"] = 1
    (tmp_path / "mine.json").write_text(json.dumps(parameters))
    folders = [tmp_path / name / "given" for name in ("process", "train", "project")]
    for folder in folders:
        folder.mkdir(parents=True)
    (folders[0] / "mine.json").symlink_to(tmp_path / "mine.json")
    for name in ("celseq2.h5ad", "dropseq.h5ad"):
        (tmp_path / "process" / name).symlink_to(ROOT / "discern" / "datasets" / name)
    values = {"prefix": "lung", "args": "", "args2": "", "parameters": "given/mine.json", "experiment": "given/lung"}

    runs = [_run_module("process", tmp_path / "process", values | {"cells": "celseq2.h5ad dropseq.h5ad"})]
    (tmp_path / "train" / "given" / "lung").symlink_to(tmp_path / "process" / "lung")
    runs.append(_run_module("train", tmp_path / "train", values))
    (tmp_path / "project" / "given" / "lung").symlink_to(tmp_path / "train" / "lung")
    runs.append(_run_module("project", tmp_path / "project", values | {"args": "--metadata batch:celseq2"}))

    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    assert not (tmp_path / "process" / "lung" / "job").exists()
    written = [path.name for path in (tmp_path / "project" / "lung" / "projected").glob("*.h5ad")]
    assert written == ["projected_to_average_batch_celseq2.h5ad"]


def test_pages_install_this_program_and_not_the_other_of_that_name() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"pip install ['\"]?discern(?!-scrna)", page.read_text()), page
