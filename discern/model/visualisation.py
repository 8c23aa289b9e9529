"""Pictures of the latent space while a network trains."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import anndata
import keras
import numpy as np
from anndata.io import write_elem

from discern.data.annotation import np_one_hot
from discern.data.chunks import iter_blocks, some_rows
from discern.data.components import PrincipalComponents
from discern.data.scaling import parse_mean_var
from discern.errors import InvalidInputError, UnknownNameError
from discern.inputs.labels import label_column
from discern.model.projection import decoded_chunks
from discern.model.trained import TrainedNetwork
from discern.networks.autoencoder import WAE
from discern.runtime import progress
from discern.runtime.atomic import Scratch, cause_in_system
from discern.runtime.hdf5 import OutputFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd


_LOGGER = logging.getLogger(__name__)

Logs = dict[str, float] | None


_CHUNK_SIZE = 256


class VisualisationCallback(keras.callbacks.Callback):
    """Draw UMAPs of validation cells: original, latent, and projected to each batch.

    The pictures are drawn by another process, so that the training does not wait for them: while one set is being
    drawn the next is left out; the last one is waited for.

    Args:
        outdir: Folder for the pictures: `epoch_N_batch.png`, and `epoch_N_COLUMN.png` by the obs column of cell types
            (see `discern.inputs.labels.label_column`), if there is one that says something else.
        data: Log-normalised cells with obs `batch`. Those with `split == "valid"`, or all if there is no `split`, of
            the ten largest batches are drawn. Without principal components in them, some are found.
        batch_size: Most cells to draw; more are sampled.
        freq: Number of epochs between pictures; one more set is drawn at the end.

    Raises:
        UnknownNameError: If the cells have no obs `batch`.
    """

    max_batches = 10

    def __init__(self, outdir: str | Path, data: anndata.AnnData, batch_size: int, freq: int = 10) -> None:
        super().__init__()
        if not isinstance(data, anndata.AnnData):
            raise InvalidInputError(f"expected cells as AnnData, got {type(data).__name__}")
        if "batch" not in data.obs:
            raise UnknownNameError(f"expected an obs column 'batch', there are {list(data.obs)}")
        if freq < 1 or batch_size < 1:
            raise InvalidInputError(f"expected freq and batch_size of 1 or more, got {freq} and {batch_size}")
        self.outdir = Path(outdir)
        self.batch_size = batch_size
        self.freq = freq
        self.trained: TrainedNetwork | None = None
        batch = data.obs["batch"].astype("category")
        shown = np.ones(data.n_obs, dtype=bool)
        if "split" in data.obs:
            split = data.obs["split"].to_numpy(dtype=str)
            shown = split == ("valid" if (split == "valid").any() else "train")
        self.batches = list(batch[shown].value_counts().index[: self.max_batches])
        chosen = np.flatnonzero(shown & batch.isin(self.batches).to_numpy())
        chosen = some_rows(chosen, batch_size, np.random.default_rng(0))
        self.obs: pd.DataFrame = data.obs.assign(batch=batch).iloc[chosen].copy()
        self._labels = np_one_hot(self.obs["batch"].array)
        self._cells = [block for _, block in iter_blocks(data.X[chosen], _CHUNK_SIZE)]
        self._scaling = parse_mean_var(data.var, data.uns.get("fixed_scaling"))
        described = "PCs" in data.varm and {"mean_scaling", "var_scaling"} <= set(data.var)
        self._space = PrincipalComponents.of(data) if described else PrincipalComponents.found(self._cells)
        self._scratch: Scratch | None = None
        self._drawing: subprocess.Popen[bytes] | None = None
        self._epoch = self._drawn = -1

    def on_train_begin(self, logs: Logs = None) -> None:
        """Do nothing."""

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Do nothing."""

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Draw every `freq` epochs."""
        self._epoch = epoch
        if (epoch + 1) % self.freq == 0:
            if self._drawing is not None and self._drawing.poll() is None:
                _LOGGER.info("epoch %d: pictures left out, those of epoch %d are not ready", epoch + 1, self._drawn + 1)
                return
            self._draw(epoch)

    def on_train_end(self, logs: Logs = None) -> None:
        """Draw the last epoch and wait for it."""
        with progress.phase("drawing UMAPs"):
            if self._epoch > self._drawn:
                self._collect()
                self._draw(self._epoch)
            self._collect()
        self.close()

    def close(self) -> None:
        """End what is being drawn, when the training does not end well."""
        if self._drawing is not None:
            self._drawing.terminate()
            self._drawing.communicate()
            self._drawing = None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def _draw(self, epoch: int) -> None:
        self._collect()
        try:
            self._drawing = self._start_drawing(epoch)
        except OSError as error:  # pictures are worth a warning, not a training
            _LOGGER.warning("the pictures of epoch %d cannot be drawn: %s", epoch + 1, cause_in_system(error) or error)
        self._drawn = epoch

    def _start_drawing(self, epoch: int) -> subprocess.Popen[bytes]:
        self.outdir.mkdir(parents=True, exist_ok=True)
        if self._scratch is None:
            self._scratch = Scratch("drawing", self.outdir)
        cells = self._scratch.path / "cells.h5ad"
        # h5ad files take no slash in a name; the worker turns the names back
        obsm = {quote(title, safe=""): values for title, values in self._representations().items()}
        obs = self._shown().rename(columns=lambda name: quote(str(name), safe=""))
        with OutputFile(cells) as file:
            write_elem(file, "/", anndata.AnnData(obs=obs, obsm=obsm))
        command = [
            sys.executable,
            "-m",
            "discern.plots._worker",
            str(cells),
            str(self.outdir),
            f"epoch_{epoch + 1:04d}",
        ]
        # A process of its own rather than multiprocessing, which would run the user's script again.
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _shown(self) -> pd.DataFrame:
        """Return what the cells are coloured by: batch and type."""
        label = label_column(self.obs.drop(columns="batch"))
        types = {} if label is None else {label: self.obs[label].astype("category")}
        return self.obs[["batch"]].assign(**types)

    def _collect(self) -> None:
        """Wait for the pictures that are being drawn."""
        if self._drawing is None:
            return
        _, errors = self._drawing.communicate()
        if self._drawing.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            _LOGGER.warning("the pictures of epoch %d could not be drawn: %s", self._drawn + 1, "".join(lines[-1:]))
        self._drawing = None

    def _network(self) -> TrainedNetwork:
        """Return the network that is trained, by `DISCERN.training` or by `fit` of its Keras model alone."""
        if self.trained is not None:
            return self.trained
        if not isinstance(self.model, WAE):
            raise InvalidInputError(f"expected a model of `create_model`, got {type(self.model).__name__}")
        return TrainedNetwork(self.model, self._scaling)

    def _representations(self) -> Mapping[str, np.ndarray]:
        """Return original, latent and projected cells, expression in PC space."""
        trained = self._network()
        targets = np.eye(self._labels.shape[1], dtype=np.float32)
        categories = list(self.obs["batch"].cat.categories)
        parts: dict[str, list[np.ndarray]] = {"original": [], "latent": []}
        begin = 0
        for block in self._cells:
            labels = self._labels[begin : begin + block.shape[0]]
            begin += block.shape[0]
            latent, _ = trained.encode(block, labels, _CHUNK_SIZE)
            parts["original"].append(self._space.project(block))
            parts["latent"].append(latent)
            for batch in self.batches:
                target = targets[categories.index(batch)]
                for decoded in decoded_chunks(trained, latent, target):
                    parts.setdefault(f"projected to {batch}", []).append(self._space.project(decoded.counts))
        return {title: np.concatenate(values) for title, values in parts.items()}
