"""The real cells that ship with DISCERN: three human cell lines, each sequenced with CEL-seq2 and Drop-seq."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def lung_cell_lines() -> dict[str, Path]:
    """Return the paths of the two shipped files, raw counts as h5ad: `celseq2` (274 cells) and `dropseq` (225 cells).

    Source: Tian et al., Nature Methods 16, 479-487 (2019); see NOTICE.md beside the files.

    Example:
        >>> sorted(lung_cell_lines())
        ['celseq2', 'dropseq']
    """
    return {name: _FOLDER / f"{name}.h5ad" for name in ("celseq2", "dropseq")}


def demo_parameters() -> Path:
    """Return the path of the parameter file of `discern demo`.

    Example:
        >>> demo_parameters().name
        'demo.json'
    """
    return _FOLDER / "demo.json"
