"""Decode cells as if they had been measured otherwise: one loop, into memory or into files."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, TypeAlias

import anndata
import numpy as np

from discern.data.annotation import give_back, np_one_hot
from discern.data.chunks import iter_blocks
from discern.data.processed import LEFT_OUT
from discern.data.scaling import cell_numbers, sample_counts
from discern.data.writers import write_blocks
from discern.errors import InvalidInputError
from discern.metrics.alignment import Alignment, aligned, find_alignment, lacking
from discern.metrics.latent_space import add_distance, training_cells
from discern.metrics.trust import Calibration, Unseen, calibrate, gene_trust, tell_split
from discern.model.targets import INTERVALS, OutputFormat, target_labels
from discern.model.trained import CHUNK_SIZE
from discern.runtime import progress
from discern.runtime.tasks import ahead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import pandas as pd

    from discern.data.chunks import Matrix
    from discern.data.processed import DISCERNData
    from discern.model.trained import TrainedNetwork


@dataclass(frozen=True)
class EncodedCells:
    """Cells with their latent codes.

    Attributes:
        obs: Their annotation; the categories of `batch` are the batches that the network knows, in its order.
        batch_onehot: Their own batches, (n_cells, n_batches).
        latent: Latent codes, (n_cells, n_latent).
        sigma: Logarithm of the standard deviation of their noise, (n_cells, n_latent).
        numbers: What the draws of a cell depend on, see `discern.data.scaling.cell_numbers`, (n_cells,).
    """

    obs: pd.DataFrame
    batch_onehot: npt.NDArray[np.float32]
    latent: npt.NDArray[np.float32]
    sigma: npt.NDArray[np.float32]
    numbers: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, trained: TrainedNetwork, data: DISCERNData) -> Self:
        """Encode processed cells with their own batches.

        Raises:
            InvalidInputError: If the network was not trained on their genes or batches, or there are no cells.
        """
        if not data.n_obs:
            raise InvalidInputError("expected cells to reconstruct, got none")
        trained.check(list(data.var_names), list(data.obs["batch"].cat.categories))
        obs = data.obs
        if trained.batches is not None:
            obs = obs.assign(batch=obs["batch"].cat.set_categories(list(trained.batches)))
        batch_onehot = np_one_hot(obs["batch"].array)
        parts = [
            (chunk.latent, chunk.sigma, cell_numbers(chunk.counts))
            for chunk in progress.track(
                trained.encoded_chunks(data.X, batch_onehot), "encoding", -(-data.n_obs // CHUNK_SIZE)
            )
        ]
        return cls(obs, batch_onehot, *(np.concatenate(part) for part in zip(*parts, strict=True)))

    @cached_property
    def batches(self) -> list[str]:
        """The batches that the network knows, in the order of the one-hot columns."""
        return [str(name) for name in self.obs["batch"].cat.categories]

    @cached_property
    def batch(self) -> npt.NDArray[np.str_]:
        """The batch of each cell, (n_cells,)."""
        return self.obs["batch"].to_numpy(dtype=str)


class Decoded(NamedTuple):
    """Some cells, decoded; (n_chunk, n_genes) each.

    Attributes:
        rows: Which of the latent codes they are of.
        counts: Estimated expression, log-normalised.
        detection: The probability that a gene is detected.
    """

    rows: slice
    counts: npt.NDArray[np.float32]
    detection: npt.NDArray[np.float32]

    def sampled(self, numbers: npt.NDArray[np.uint64], seed: int = 0) -> npt.NDArray[np.float32]:
        """Keep each estimate with its detection probability; the draws of a cell do not depend on other cells.

        Args:
            numbers: See `EncodedCells`, those of these cells.
            seed: Of the draws.
        """
        return sample_counts(self.counts, self.detection, seed=seed, cells=numbers)


def decoded_chunks(
    trained: TrainedNetwork,
    latent: npt.NDArray[np.float32],
    batch_onehot: npt.NDArray[np.float32],
    chunk_size: int = CHUNK_SIZE,
) -> Iterator[Decoded]:
    """Decode latent codes, chunk by chunk; the next one is decoded while the caller is at work on one.

    Args:
        trained: The network.
        latent: Latent codes, (n_cells, n_latent).
        batch_onehot: The batches to decode as, (n_cells, n_batches), or (n_batches,) for all cells.
        chunk_size: Cells that are decoded at once.
    """
    targets = np.broadcast_to(batch_onehot, (len(latent), batch_onehot.shape[-1]))
    begin = 0
    for counts, detection in ahead(trained.decode(latent, targets, chunk_size)):
        rows = slice(begin, begin + len(counts))
        yield Decoded(rows, counts, detection)
        begin = rows.stop


Trust: TypeAlias = "tuple[npt.NDArray[np.float32], dict[str, int | str]]"
"""The trust in each gene, (n_genes,), and which cells it was found with."""


class Judge(Protocol):
    """Says what labels cells are decoded with, and how far to believe the result."""

    @property
    def cells(self) -> EncodedCells:
        """The cells, encoded."""
        ...

    def labels(self, column: str | None, value: str | None) -> npt.NDArray[np.float32]:
        """Return the labels to decode with, (n_cells, n_batches)."""
        ...

    def alignments(self, reference: str) -> Mapping[str, Alignment]:
        """Return batch -> which of its training cells have counterparts in a reference; of all other batches."""
        ...

    def calibration(self, column: str | None, value: str | None) -> Calibration:
        """Return what gives the intervals of a projection to one batch.

        Raises:
            InvalidInputError: If it is no such projection, or there are too few cells to learn from.
        """
        ...

    def annotate(self, result: anndata.AnnData, reference: str | None) -> None:
        """Add to obs how far cells are from a batch, and to var how far to believe genes."""
        ...


@dataclass(frozen=True)
class OwnCells:
    """Judges by the cells that are projected themselves: those of an experiment.

    Attributes:
        trained: The network.
        cells: The cells, encoded.
        data: They as measured.
    """

    trained: TrainedNetwork
    cells: EncodedCells
    data: DISCERNData

    @classmethod
    def of(cls, trained: TrainedNetwork, data: DISCERNData) -> Self:
        """Encode the cells; see `EncodedCells.of`."""
        return cls(trained, EncodedCells.of(trained, data), data)

    def labels(self, column: str | None, value: str | None) -> npt.NDArray[np.float32]:
        """See `discern.model.targets.target_labels`."""
        return target_labels(self.cells.obs, self.cells.batch_onehot, column, value)

    def alignments(self, reference: str) -> dict[str, Alignment]:
        """See `discern.metrics.alignment.find_alignment`; by training cells."""
        if reference not in self._alignments:
            rows = {name: np.flatnonzero(training_cells(self.cells.obs, name)) for name in self.cells.batches}
            there = rows.pop(reference)
            others = [name for name, own in rows.items() if len(own) and len(there)]
            self._alignments[reference] = {
                name: find_alignment(self.data.X, self.cells.latent, rows[name], there)
                for name in progress.track(others, f"finding counterparts in {reference}", len(others))
            }
        return self._alignments[reference]

    @cached_property
    def _alignments(self) -> dict[str, dict[str, Alignment]]:
        return {}

    def calibration(self, column: str | None, value: str | None) -> Calibration:
        """See `discern.metrics.trust.calibrate`."""
        return calibrate(self.data.X, Unseen.of(self.cells.obs, interval_batch(column, value)), self._rebuild)

    def annotate(self, result: anndata.AnnData, reference: str | None) -> None:
        """See `discern.metrics.latent_space.add_distance` and `discern.metrics.trust.gene_trust`."""
        if reference is not None and training_cells(result.obs, reference).sum() > 1:
            alignments = self.alignments(reference)
            add_distance(result, reference, lacking=lacking(self.cells.latent, self.cells.batch, alignments))
        note_trust(result, self.trust(reference))

    def trust(self, reference: str | None) -> Trust:
        """Return how far to believe each gene, by cells of a batch, or of all."""
        if reference not in self._trust:
            self._trust[reference] = self._found_trust(reference)
        return self._trust[reference]

    @cached_property
    def _trust(self) -> dict[str | None, Trust]:
        """What was found: targets have references in common."""
        return {}

    def _found_trust(self, reference: str | None) -> Trust:
        unseen = Unseen.of(self.cells.obs, reference)
        tell_split(unseen, "var discern_trust")
        if unseen is None:
            return np.full(self.data.n_vars, np.nan, dtype=np.float32), {"cells": 0}
        values = gene_trust(self.data.X, unseen, self.cells.batch_onehot.argmax(axis=1), self._rebuild)
        return values, {"cells": len(unseen.rows), "split": unseen.split}

    def _rebuild(
        self, expression: npt.NDArray[np.float32], rows: npt.NDArray[np.intp]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        latent, _ = self.trained.encode(expression, self.cells.batch_onehot[rows])
        chunks = self.trained.decode(latent, self.cells.batch_onehot[rows])
        counts, detection = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        return counts, detection


def codes(trained: TrainedNetwork, judge: Judge, target: tuple[str | None, str | None]) -> npt.NDArray[np.float32]:
    """Return the latent codes to decode, (n_cells, n_latent): moved onto those of a batch, if the network says so."""
    reference = _reference(*target)
    if reference is None or not trained.align_batches:
        return judge.cells.latent
    return aligned(judge.cells.latent, judge.cells.batch, judge.alignments(reference))


def _reference(column: str | None, value: str | None) -> str | None:
    """Return the batch that cells are decoded as; None if it is not one."""
    return value if column == "batch" and value else None


def interval_batch(column: str | None, value: str | None) -> str:
    """Return the batch that a projection goes to; an InvalidInputError if it is not one."""
    reference = _reference(column, value)
    if reference is None:
        raise InvalidInputError(
            "intervals are of a new measurement of the cell by one batch's technology: project to batch:NAME"
        )
    return reference


def note_trust(result: anndata.AnnData, trust: Trust) -> None:
    """Write into var how far to believe each gene, and into uns by which cells."""
    result.var["discern_trust"] = trust[0]
    result.uns["discern_trust"] = dict(trust[1])


def reconstruct(
    trained: TrainedNetwork,
    data: DISCERNData,
    judge: Judge,
    target: tuple[str | None, str | None],
    seed: int = 0,
    store_sigmas: bool = False,
    intervals: bool = False,
) -> anndata.AnnData:
    """Decode cells in memory; see `discern.DISCERN.reconstruct` and, for the arguments, `project`."""
    cells, batch_onehot = judge.cells, judge.labels(*target)
    calibration = judge.calibration(*target) if intervals else None
    result = _without_matrices(trained, data, judge, target, store_sigmas)
    parts = []
    for chunk in decoded_chunks(trained, result.obsm["X_DISCERN"], batch_onehot):
        parts.append((chunk.counts, chunk.detection, chunk.sampled(cells.numbers[chunk.rows], seed)))
    counts, detection, sampled = (np.concatenate(part) for part in zip(*parts, strict=True))
    result.X = sampled
    result.layers["estimated_counts"] = counts
    result.layers["estimated_dropouts"] = detection
    result.layers["measured"] = data.X
    if calibration is not None:
        for name, ends in zip(INTERVALS, calibration.interval(counts, detection), strict=True):
            result.layers[name] = ends
    return result


def project(
    trained: TrainedNetwork,
    data: DISCERNData,
    judge: Judge,
    targets: Mapping[str, tuple[str | None, str | None]],
    folder: Path,
    output: OutputFormat,
    seed: int = 0,
    store_sigmas: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> list[Path]:
    """Write a file for each target; see `discern.DISCERN.project_to_metadata`.

    Args:
        trained: The network.
        data: Processed cells.
        judge: Holds the same, encoded, and says how far to believe the result: `OwnCells`, or `NewCells` by what is
            known of an experiment's.
        targets: Name of the file -> obs column and its value.
        folder: Where the files go.
        output: What they hold.
        seed: Of the draws of X.
        store_sigmas: Whether `obsm["X_DISCERN_sigma"]` is added.
        chunk_size: Cells that are decoded and written at once.
    """
    calibrations: dict[str, Calibration] = {}
    if set(INTERVALS) & set(output.layers):
        calibrations = {name: judge.calibration(*target) for name, target in targets.items()}
    written: list[Path] = []
    cells, count = judge.cells, -(-data.n_obs // chunk_size)
    for name, target in targets.items():
        path = folder / name
        empty = _without_matrices(trained, data, judge, target, store_sigmas)
        decoded = decoded_chunks(trained, empty.obsm["X_DISCERN"], judge.labels(*target), chunk_size)
        measured = iter_blocks(data.X, chunk_size) if "measured" in output.layers else itertools.repeat((None, None))
        chunks = _written_chunks(decoded, measured, cells.numbers, output.layers, seed, calibrations.get(name))
        write_blocks(path, empty, progress.track(chunks, f"writing {path.name}", count), output.dtype)
        written.append(path)
    return written


def _written_chunks(
    decoded: Iterable[Decoded],
    measured: Iterable[tuple[object, Matrix | None]],
    numbers: npt.NDArray[np.uint64],
    layers: Sequence[str],
    seed: int,
    calibration: Calibration | None,
) -> Iterator[dict[str, Matrix]]:
    for part, (_, own) in zip(decoded, measured, strict=False):
        chunk = {"estimated_counts": part.counts, "estimated_dropouts": part.detection, "measured": own}
        if calibration is not None:
            chunk |= zip(INTERVALS, calibration.interval(part.counts, part.detection), strict=True)
        if "X" in layers:
            chunk["X"] = part.sampled(numbers[part.rows], seed)
        yield {layer: chunk[layer] for layer in layers}


def _without_matrices(
    trained: TrainedNetwork,
    data: DISCERNData,
    judge: Judge,
    target: tuple[str | None, str | None],
    store_sigmas: bool,
) -> anndata.AnnData:
    column, value = target
    uns = {key: part for key, part in data.uns.items() if key not in ("fixed_scaling", LEFT_OUT)}
    if column is not None:
        uns["DISCERN"] = {**uns["DISCERN"], "projected_to": {"column": column, "value": value or ""}}
    obsm = {"X_DISCERN": judge.cells.latent} | ({"X_DISCERN_sigma": judge.cells.sigma} if store_sigmas else {})
    result = anndata.AnnData(obs=data.obs.copy(), var=data.var.copy(), uns=uns, obsm=obsm)
    judge.annotate(result, _reference(column, value))
    result.obsm["X_DISCERN"] = codes(trained, judge, target)
    give_back(result)
    return result
