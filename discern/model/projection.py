"""Decode cells as if they had been measured otherwise: one loop, into memory or into files."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

import anndata
import numpy as np

from discern.data.annotation import give_back, np_one_hot
from discern.data.chunks import iter_blocks
from discern.data.scaling import sample_counts
from discern.data.writers import write_blocks
from discern.errors import InvalidInputError
from discern.metrics.latent_space import add_distance, training_cells
from discern.metrics.trust import Calibration, Unseen, calibrate, gene_trust, tell_split
from discern.model.targets import INTERVALS, OutputFormat, target_labels
from discern.model.trained import CHUNK_SIZE
from discern.runtime import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    import pandas as pd

    from discern.data.processed import DISCERNData
    from discern.metrics.trust import Coding
    from discern.model.trained import TrainedNetwork


@dataclass(frozen=True)
class EncodedCells:
    """Cells with their latent codes.

    Attributes:
        obs: Their annotation; the categories of `batch` are the batches that the network knows, in its order.
        batch_onehot: Their own batches, (n_cells, n_batches).
        latent: Latent codes, (n_cells, n_latent).
        sigma: Logarithm of the standard deviation of their noise, (n_cells, n_latent).
    """

    obs: pd.DataFrame
    batch_onehot: npt.NDArray[np.float32]
    latent: npt.NDArray[np.float32]
    sigma: npt.NDArray[np.float32]

    @classmethod
    def of(cls, trained: TrainedNetwork, data: DISCERNData) -> Self:
        """Encode processed cells with their own batches.

        Raises:
            InvalidInputError: If the network was not trained on their genes or batches.
        """
        trained.check(list(data.var_names), list(data.obs["batch"].cat.categories))
        obs = data.obs
        if trained.batches is not None:
            obs = obs.assign(batch=obs["batch"].cat.set_categories(list(trained.batches)))
        batch_onehot = np_one_hot(obs["batch"].array)
        with progress.phase("encoding"):
            latent, sigma = trained.encode(data.X, batch_onehot)
        return cls(obs, batch_onehot, latent, sigma)

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
        counts: Estimated expression, log-normalised.
        detection: The probability that a gene is detected.
    """

    counts: npt.NDArray[np.float32]
    detection: npt.NDArray[np.float32]

    def sampled(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Keep each estimate with its detection probability; the draws do not depend on the size of the chunks."""
        return sample_counts(self.counts, self.detection, seed=rng)


def decoded_chunks(
    trained: TrainedNetwork, latent: npt.NDArray[np.float32], batch_onehot: npt.NDArray[np.float32]
) -> Iterator[Decoded]:
    """Decode latent codes, chunk by chunk.

    Args:
        trained: The network.
        latent: Latent codes, (n_cells, n_latent).
        batch_onehot: The batches to decode as, (n_cells, n_batches), or (n_batches,) for all cells.
    """
    targets = np.broadcast_to(batch_onehot, (len(latent), batch_onehot.shape[-1]))
    return itertools.starmap(Decoded, trained.decode(latent, targets, CHUNK_SIZE))


def reconstruct(
    trained: TrainedNetwork,
    data: DISCERNData,
    column: str | None,
    value: str | None,
    seed: int = 0,
    store_sigmas: bool = False,
    intervals: bool = False,
) -> anndata.AnnData:
    """Decode cells in memory; see `discern.DISCERN.reconstruct`."""
    cells = EncodedCells.of(trained, data)
    batch_onehot = target_labels(cells.obs, cells.batch_onehot, column, value)
    calibration = _calibration(trained, cells, data, column, value) if intervals else None
    result = _without_matrices(cells, data, column, value, store_sigmas, partial(_trust, trained, cells, data))
    rng = np.random.default_rng(seed)
    chunks = [(*chunk, chunk.sampled(rng)) for chunk in decoded_chunks(trained, cells.latent, batch_onehot)]
    counts, detection, sampled = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
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
    targets: Mapping[str, tuple[str | None, str | None]],
    folder: Path,
    output: OutputFormat,
    seed: int = 0,
    store_sigmas: bool = False,
) -> list[Path]:
    """Encode cells once and write a file for each target; see `discern.DISCERN.project_to_metadata`.

    Args:
        trained: The network.
        data: Processed cells.
        targets: Name of the file -> obs column and its value.
        folder: Where the files go.
        output: What they hold.
        seed: Of the draws of X.
        store_sigmas: Whether `obsm["X_DISCERN_sigma"]` is added.
    """
    cells = EncodedCells.of(trained, data)
    calibrations: dict[str, Calibration] = {}
    if set(INTERVALS) & set(output.layers):
        calibrations = {name: _calibration(trained, cells, data, *target) for name, target in targets.items()}
    trust = cache(partial(_trust, trained, cells, data))  # targets have references in common
    written: list[Path] = []
    for name, (column, value) in targets.items():
        path = folder / name
        batch_onehot = target_labels(cells.obs, cells.batch_onehot, column, value)
        count = -(-len(cells.latent) // CHUNK_SIZE)
        chunks = _written_chunks(
            trained, cells, data, batch_onehot, output.layers, np.random.default_rng(seed), calibrations.get(name)
        )
        empty = _without_matrices(cells, data, column, value, store_sigmas, trust)
        write_blocks(path, empty, progress.track(chunks, f"writing {path.name}", count), output.dtype)
        written.append(path)
    return written


def _written_chunks(
    trained: TrainedNetwork,
    cells: EncodedCells,
    data: DISCERNData,
    batch_onehot: npt.NDArray[np.float32],
    layers: Sequence[str],
    rng: np.random.Generator,
    calibration: Calibration | None,
) -> Iterator[dict[str, np.ndarray]]:
    measured = iter_blocks(data.X, CHUNK_SIZE) if "measured" in layers else itertools.repeat((None, None))
    for decoded, (_, own) in zip(decoded_chunks(trained, cells.latent, batch_onehot), measured, strict=False):
        chunk = {"estimated_counts": decoded.counts, "estimated_dropouts": decoded.detection, "measured": own}
        if calibration is not None:
            chunk |= zip(INTERVALS, calibration.interval(*decoded), strict=True)
        if "X" in layers:
            chunk["X"] = decoded.sampled(rng)
        yield {layer: chunk[layer] for layer in layers}


Trust: TypeAlias = "tuple[npt.NDArray[np.float32], dict[str, int | str]]"
"""The trust in each gene, (n_genes,), and which cells it was found with."""


def _without_matrices(
    cells: EncodedCells,
    data: DISCERNData,
    column: str | None,
    value: str | None,
    store_sigmas: bool,
    trust: Callable[[str | None], Trust],
) -> anndata.AnnData:
    uns = {key: value for key, value in data.uns.items() if key != "fixed_scaling"}
    if column is not None:
        uns["DISCERN"] = {**uns["DISCERN"], "projected_to": {"column": column, "value": value or ""}}
    obsm = {"X_DISCERN": cells.latent} | ({"X_DISCERN_sigma": cells.sigma} if store_sigmas else {})
    result = anndata.AnnData(obs=data.obs.copy(), var=data.var.copy(), uns=uns, obsm=obsm)
    reference = value if column == "batch" and value else None
    if reference is not None and training_cells(result.obs, reference).sum() > 1:
        add_distance(result, reference)
    result.var["discern_trust"], found_with = trust(reference)
    result.uns["discern_trust"] = dict(found_with)
    give_back(result)
    return result


def _trust(trained: TrainedNetwork, cells: EncodedCells, data: DISCERNData, reference: str | None) -> Trust:
    unseen = Unseen.of(cells.obs, reference)
    tell_split(unseen, "var discern_trust")
    if unseen is None:
        return np.full(data.n_vars, np.nan, dtype=np.float32), {"cells": 0}
    values = gene_trust(data.X, unseen, cells.batch_onehot.argmax(axis=1), _auto_encoding(trained, cells))
    return values, {"cells": len(unseen.rows), "split": unseen.split}


def _calibration(
    trained: TrainedNetwork, cells: EncodedCells, data: DISCERNData, column: str | None, value: str | None
) -> Calibration:
    """Return what gives the intervals of a projection to one batch; see `discern.metrics.trust.calibrate`."""
    if column != "batch" or not value:
        raise InvalidInputError(
            "intervals are of a new measurement of the cell by one batch's technology: project to batch:NAME"
        )
    return calibrate(data.X, Unseen.of(cells.obs, value), _auto_encoding(trained, cells))


def _auto_encoding(trained: TrainedNetwork, cells: EncodedCells) -> Coding:
    def rebuild(
        expression: npt.NDArray[np.float32], rows: npt.NDArray[np.intp]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        latent, _ = trained.encode(expression, cells.batch_onehot[rows])
        chunks = trained.decode(latent, cells.batch_onehot[rows])
        counts, detection = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        return counts, detection

    return rebuild
