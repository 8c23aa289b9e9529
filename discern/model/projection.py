"""Cells through a trained network: those that fit it encoded once, decoded with any labels, block by block."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np

from discern.data.annotation import give_back, np_one_hot
from discern.data.chunks import iter_blocks
from discern.data.scaling import sample_counts
from discern.data.writers import write_blocks
from discern.metrics.latent_space import add_distance, training_cells
from discern.model.targets import target_labels
from discern.runtime import progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from discern.data.processed import DISCERNData
    from discern.model.estimator import DISCERN


_CELLS_AT_ONCE = 512


class EncodedCells:
    """Cells with their latent codes, to be decoded as if they had been measured otherwise.

    Args:
        model: A trained model.
        data: Processed cells that fit it; their expression is log-normalised.
        store_sigmas: Whether results get `obsm["X_DISCERN_sigma"]`.

    Raises:
        InvalidInputError: If the model does not fit.
    """

    def __init__(self, model: DISCERN, data: DISCERNData, store_sigmas: bool) -> None:
        model.prepare_projection(data)
        self._model, self._data = model, data
        self._obs = data.obs
        if model.batches is not None:
            self._obs = data.obs.assign(batch=data.obs["batch"].cat.set_categories(model.batches))
        self._own = np_one_hot(self._obs["batch"].array)
        self._latent, sigma = model.generate_latent_codes(data.X, self._own, _CELLS_AT_ONCE)
        self._obsm = {"X_DISCERN": self._latent} | ({"X_DISCERN_sigma": sigma} if store_sigmas else {})

    def _without_matrices(self, column: str | None, value: str | None) -> anndata.AnnData:
        data = self._data
        uns = {key: value for key, value in data.uns.items() if key != "fixed_scaling"}
        cells = anndata.AnnData(obs=data.obs.copy(), var=data.var.copy(), uns=uns, obsm=dict(self._obsm))
        if column == "batch" and value and training_cells(cells.obs, value).sum() > 1:
            add_distance(cells, value)
        give_back(cells)
        return cells

    def decoded(self, column: str | None, value: str | None) -> anndata.AnnData:
        """Return the cells decoded in memory; see `DISCERN.reconstruct`."""
        labels = target_labels(self._obs, self._own, column, value)
        result = self._without_matrices(column, value)
        counts, dropouts = self._model.generate_cells_from_latent(self._latent, labels, _CELLS_AT_ONCE)
        result.X = sample_counts(counts, dropouts, seed=self._model.seed or 0)
        result.layers["estimated_counts"] = counts
        result.layers["estimated_dropouts"] = dropouts
        result.layers["measured"] = self._data.X
        return result

    def write(self, path: Path, column: str | None, value: str | None, layers: Sequence[str], dtype: str) -> None:
        """Decode the cells into a file; see `DISCERN.project_to_metadata`."""
        labels = target_labels(self._obs, self._own, column, value)
        cells = self._without_matrices(column, value)
        count = -(-len(self._latent) // _CELLS_AT_ONCE)
        write_blocks(path, cells, progress.track(self._blocks(labels, layers), f"writing {path.name}", count), dtype)

    def _blocks(self, labels: np.ndarray, layers: Sequence[str]) -> Iterator[dict[str, Any]]:
        generator = np.random.default_rng(self._model.seed or 0)
        decoded = self._model.coder.decode(self._latent, labels, _CELLS_AT_ONCE)
        measured = iter_blocks(self._data.X, _CELLS_AT_ONCE) if "measured" in layers else itertools.repeat((None, None))
        for (counts, dropouts), (_, cells) in zip(decoded, measured, strict=False):
            block = {"estimated_counts": counts, "estimated_dropouts": dropouts, "measured": cells}
            if "X" in layers:
                block["X"] = sample_counts(counts, dropouts, seed=generator)
            yield {layer: block[layer] for layer in layers}
