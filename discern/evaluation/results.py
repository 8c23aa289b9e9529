"""What an evaluation finds: its figures, typed, as they stand in `evaluation.json`, and how they are called."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from discern.errors import MissingFileError
from discern.evaluation.agreement import ReferenceCells, SourceResult, finite
from discern.evaluation.verdict import judge
from discern.folder.layout import ExperimentFolder
from discern.folder.locks import recover
from discern.runtime.text import from_cell

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anndata
    import numpy.typing as npt


FORMAT_VERSION = 1

#: What is compared with the held-out cells of the reference batch, as keys of the figures -> in words.
METHODS = {
    "measured": "as measured",
    "X": "reconstructed, X (sampled)",
    "estimated_counts": "reconstructed, estimated_counts",
    "real": "other real reference cells",
}

#: The same in a word, for the heads of tables.
SHORT = {"measured": "measured", "X": "X", "estimated_counts": "estimated_counts", "real": "real"}

#: Figures that say nothing of a method: estimated_counts are hardly ever zero. Shown as "-".
NOT_MADE_FOR = {"estimated_counts": frozenset({"detection_r"})}

#: The figures of each method -> in words.
FIGURES = {
    "mean_r": "r of means",
    "mean_rmse": "RMSE of means",
    "detection_r": "r of detection",
    "difference_r": "r of differences",
    "t_rho": "rho of t",
    "top200": "top 200 shared",
    "mmd": "MMD",
    "auc": "AUC",
}


@dataclass(frozen=True)
class Mixing:
    """How far batches are mixed in latent space, see `discern.metrics.latent_space.other_batch_share`."""

    share: float
    expected: float
    expected_within_label: float | None = None


@dataclass(frozen=True)
class Distances:
    """Quantiles of the distance from the reference of some cells, and how many are beyond the line.

    The line is the distance that 95 % of the reference's held-out cells stay below. None: an older evaluation.
    """

    cells: int
    q05: float
    median: float
    q95: float
    beyond: int | None = None

    @classmethod
    def of(cls, distance: npt.NDArray[np.floating], line: float = math.inf) -> Self:
        """Describe the distances of some cells."""
        low, middle, high = map(float, np.quantile(distance, [0.05, 0.5, 0.95]))
        return cls(len(distance), low, middle, high, int((distance > line).sum()))


@dataclass(frozen=True)
class SourceDistances(Distances):
    """The same of a source and of each of its cell types."""

    types: dict[str, Distances] = field(default_factory=dict)


@dataclass(frozen=True)
class DistanceSummary:
    """Distances from the reference in latent space: of its own held-out cells, and of the sources.

    `line` is the distance that 95 % of the held-out cells stay below.
    """

    neighbours: int
    held_out: Distances
    sources: dict[str, SourceDistances]
    line: float | None = None


@dataclass(frozen=True)
class GeneSummary:
    """How well genes of held-out cells are auto-encoded.

    Attributes:
        median_rmse: Median over genes of the error.
        median_r: Median over genes of the correlation over cells.
        r_above: How many genes have a correlation above a limit.
        r_undefined: How many have none.
    """

    median_rmse: float | None
    median_r: float | None
    r_above: dict[str, int]
    r_undefined: int

    @classmethod
    def of(cls, genes: pd.DataFrame) -> Self:
        """Summarise a table of genes with `discern_rmse` and `discern_r`."""
        r = genes["discern_r"]
        return cls(
            finite(genes["discern_rmse"].median()),
            finite(r.median()),
            {str(limit): int((r > limit).sum()) for limit in (0.3, 0.5, 0.7, 0.9)},
            int(r.isna().sum()),
        )


@dataclass(frozen=True)
class EvaluationResult:
    """All figures of an evaluation."""

    experiment: str
    epoch: int
    n_cells: int
    n_genes: int
    batches: dict[str, int]
    reference: ReferenceCells
    label: str | None
    sources: dict[str, SourceResult]
    latent: Mixing
    distance: DistanceSummary
    genes: GeneSummary
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, object]:
        """Return what `evaluation.json` holds."""
        content = asdict(self)
        for source, found in self.sources.items():
            content["sources"][source]["pairs"] = [
                {"types": list(pair.types)} | {method: asdict(metrics) for method, metrics in pair.methods.items()}
                for pair in found.pairs
            ]
            content["sources"][source]["neighbours_kept"] = asdict(kept) if (kept := found.neighbours_kept) else {}
            content["sources"][source]["verdict"] = asdict(judge(found, self.reference))
        if self.latent.expected_within_label is None:
            del content["latent"]["expected_within_label"]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Self:
        """Read what `to_json` returned.

        Raises:
            pydantic.ValidationError: If it is something else.
        """
        sources = cast("Mapping[str, Mapping[str, object]]", content["sources"])
        parsed = {
            name: {
                **found,
                "pairs": [
                    {"types": pair["types"], "methods": {key: value for key, value in pair.items() if key != "types"}}
                    for pair in cast("list[dict[str, object]]", found["pairs"])
                ],
                "neighbours_kept": found["neighbours_kept"] or None,
            }
            for name, found in sources.items()
        }
        return TypeAdapter(cls).validate_python({**content, "sources": parsed})


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, and what its pictures and tables are made of.

    Attributes:
        result: All figures, as in `evaluation.json`.
        cell_table: A row per cell: `batch`, `split`, `discern_distance`.
        gene_table: A row per gene: `discern_rmse`, `discern_r`, `detection_BATCH`; `symbol`, if it is not the name.
        means: For each source and method, mean expression in each cell type, types x genes.
        real_means: The same of the held-out reference cells.
        shown: Annotation of the cells in pictures: `batch` and the label.
        representations: Title -> those cells in some space, cells x dimensions.
        markers: The genes that were asked for, see `discern.evaluation.measurement.marker_table`.
    """

    result: EvaluationResult
    cell_table: pd.DataFrame
    gene_table: pd.DataFrame
    means: dict[str, dict[str, pd.DataFrame]] = field(default_factory=dict)
    real_means: pd.DataFrame = field(default_factory=pd.DataFrame)
    shown: pd.DataFrame = field(default_factory=pd.DataFrame)
    representations: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    markers: pd.DataFrame = field(default_factory=pd.DataFrame)


def shown_figure(metrics: object, method: str, name: str) -> float | None:
    """Return a figure of a method as reports show it: None where the method is not made for it.

    Example:
        >>> from discern.evaluation.agreement import MethodMetrics
        >>> shown_figure(MethodMetrics(detection_r=0.5), "estimated_counts", "detection_r") is None
        True
    """
    value: float | None = getattr(metrics, name, None)
    return None if name in NOT_MADE_FOR.get(method, ()) else value


_WIDTHS = {"measured": 10, "X": 8, "estimated_counts": 18, "real": 8}


def summary(result: EvaluationResult) -> str:
    """Return verdict and figures for a terminal of 80 columns.

    Example:
        >>> from discern.evaluation.agreement import MethodMetrics, ReferenceCells, SourceResult
        >>> source = SourceResult(5, ["x"], [], {"measured": MethodMetrics(mean_r=0.5), "X": MethodMetrics()}, {}, [])
        >>> distances = Distances(9, 0.5, 1.0, 2.0)
        >>> print(summary(EvaluationResult(
        ...     "lines", 7, 14, 3, {"a": 5, "b": 9}, ReferenceCells("b", "test", 9, 0), None, {"a": source},
        ...     Mixing(0.5, 0.5), DistanceSummary(15, distances, {}), GeneSummary(0.1, 0.2, {}, 0))).split("r of d")[0])
        a as b: Mean expression agrees with real b cells by r .500 measured, -
        reconstructed, - other real cells. Doubtful: there are no cells to compare.
        5 cells of a as b, against 9 test cells of b
                           measured       X
        r of means            0.500       -
        RMSE of means             -       -
    """
    reference = result.reference
    lines = []
    for source, found in result.sources.items():
        verdict = judge(found, reference)
        cells = (
            f"{found.cells} cells of {source} as {reference.batch}, against {reference.held_out_cells} "
            f"{reference.split} cells of {reference.batch}"
        )
        for text in (f"{source} as {reference.batch}: {verdict.figures} {verdict.reason}", cells):
            lines += textwrap.wrap(text, 80)
        lines.append(" " * 17 + "".join(f"{SHORT[method]:>{_WIDTHS[method]}}" for method in found.methods))
        for name, words in FIGURES.items():
            values = {method: shown_figure(metrics, method, name) for method, metrics in found.methods.items()}
            texts = ("-" if value is None else f"{value:.3f}" for value in values.values())
            lines.append(
                f"{words:17}" + "".join(f"{text:>{_WIDTHS[m]}}" for m, text in zip(values, texts, strict=True))
            )
        far = result.distance.sources.get(source)
        if far is not None and far.beyond is not None:
            lines += textwrap.wrap(
                f"{far.beyond} of {far.cells} cells are farther from {reference.batch} than 95 % of its own "
                f"held-out cells ({far.beyond / far.cells:.0%})",
                80,
            )
    return "\n".join(lines)


def add_evaluation(adata: anndata.AnnData, exp_folder: Path) -> None:
    """Add the columns that `evaluate` wrote for cells and genes.

    obs `discern_distance`; var `discern_rmse` and `discern_r`, error and correlation of each gene in auto-encoded cells
    that training did not see, and `detection_BATCH`, the share of a batch's cells in which the gene is detected. Cells
    and genes that the evaluation does not know get NaN.

    Args:
        adata: Cells of the experiment.
        exp_folder: EXPERIMENTS_DIR/NAME.

    Raises:
        MissingFileError: If the experiment was not evaluated.
    """
    recover(Path(exp_folder))
    folder = ExperimentFolder(Path(exp_folder)).evaluation
    for file, target in (("cells.csv", adata.obs), ("genes.csv", adata.var)):
        if not (folder / file).is_file():
            raise MissingFileError(f"{folder / file}: no such file; run `discern evaluate` first")
        table = pd.read_csv(folder / file, index_col=0, dtype={0: str}, keep_default_na=False, na_values=[""])
        table = table.rename(index=from_cell, columns=from_cell)
        for column in table.columns.difference(["batch", "split", "symbol"], sort=False):
            target[column] = table[column].reindex(target.index).to_numpy()
