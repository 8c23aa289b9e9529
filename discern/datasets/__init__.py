"""The real cells that ship with DISCERN: three human cell lines, each sequenced with CEL-seq2 and Drop-seq."""

from __future__ import annotations

from pathlib import Path


def lung_cell_lines() -> dict[str, Path]:
    """Return the paths of the two shipped files, raw counts as h5ad: `celseq2` (274 cells) and `dropseq` (225 cells).

    Source: Tian et al., Nature Methods 16, 479-487 (2019); see NOTICE.md beside the files.

    Example:
        >>> sorted(lung_cell_lines())
        ['celseq2', 'dropseq']
    """
    folder = Path(__file__).parent
    return {name: folder / f"{name}.h5ad" for name in ("celseq2", "dropseq")}
