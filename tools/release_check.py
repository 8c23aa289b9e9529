"""Is this tree ready for a release?

    python tools/release_check.py [TAG]

The version, its date, the name and the lower bounds of what is required stand in several files for people who get the
program in several ways. This prints each that does not agree, and what the changelog still calls unreleased.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_CONDA_NAMES = {"dask": "dask-core", "igraph": "python-igraph", "matplotlib": "matplotlib-base"}


def _find(root: Path, file: str, pattern: str) -> str:
    match = re.search(pattern, (root / file).read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else "nothing"


def mismatches(root: Path, tag: str = "") -> list[str]:
    """Compare all files with pyproject.toml, `discern.__version__` and the newest release of the changelog.

    Args:
        root: Folder of the repository.
        tag: Tag that the release is to have, e.g. "v2.0.0"; empty: not compared.

    Returns:
        One line for each difference.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], _find(root, "discern/__init__.py", r'^__version__ = "(.*)"')
    heading = r"^## \[\d[^\]]*\] - (.*)$"
    expected = [
        ("CHANGELOG.md", r"^## \[(\d[^\]]*)\]", version),
        ("CITATION.cff", r"^version: (.*)$", version),
        ("CITATION.cff", r"^date-released: (.*)$", _find(root, "CHANGELOG.md", heading)),
        ("Dockerfile", r'image\.version="(.*?)"', version),
        ("README.md", r"^pip install (?!\.|\")(\S+)", name),
        ("recipes/bioconda/meta.yaml", r'^{% set name = "(.*)" %}', name),
        ("recipes/bioconda/meta.yaml", r'^{% set version = "(.*)" %}', version),
        ("recipes/bioconda/meta.yaml", r"^ +- python (>=.*)$", project["requires-python"]),
    ]
    for module in ("process", "train", "project"):
        folder = f"recipes/nf-core/discern/{module}"
        expected += [
            (f"{folder}/environment.yml", r"bioconda::(.*?)\"?$", f"{name}={version}"),
            (f"{folder}/main.nf", r"biocontainers/(.*?)--", f"{name}:{version}"),
        ]
    for requirement in project["dependencies"]:
        library, bound = re.findall(r"^([\w-]+).*>=(\S+)$", requirement)[0]
        conda = _CONDA_NAMES.get(library, library)
        expected.append(("recipes/bioconda/meta.yaml", rf"^ +- {conda} >=(.*)$", bound))

    lines = []
    for file, pattern, right in expected:
        if (found := _find(root, file, pattern)) != right:
            lines.append(f"{file}: {found} where {right} is expected ({pattern})")
    if tag and tag != f"v{version}":
        lines.append(f"tag: {tag} where v{version} is expected")
    return lines


def unreleased(root: Path) -> list[str]:
    """List the entries of the changelog that belong to no version."""
    text = _find(root, "CHANGELOG.md", r"^## \[Unreleased\]\n((?:(?!^## ).*\n)*)")
    return [f"CHANGELOG.md: in no version: {line}" for line in text.splitlines() if line.startswith("- ")]


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    root = Path(__file__).resolve().parent.parent
    lines = mismatches(root, *sys.argv[1:2]) + unreleased(root)
    print("\n".join(lines) or "Ready: version, changelog, citation and recipes agree.")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
