"""What happens beside the training: progress, early stopping, checkpoints, logs and pictures."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anndata
import keras
import numpy as np

from discern import progress
from discern.errors import InvalidInputError
from discern.files import remove_partial
from discern.io import iter_blocks, np_one_hot

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from discern.estimators.batch_integration import DISCERN
    from discern.io import DISCERNData

_LOGGER = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60

Logs = dict[str, Any] | None


class DelayedEarlyStopping(keras.callbacks.EarlyStopping):
    """Stop when a figure no longer improves, but not before epoch `delay`.

    The first `delay` epochs are neither compared nor counted; from then on it does what Keras' `EarlyStopping` does.

    Args:
        delay: Number of epochs to ignore.
        monitor: Name of the figure.
        min_delta: Least change that counts as an improvement.
        patience: Epochs without improvement after which training stops.
        verbose: 1 to say when it stops.
        mode: "min", "max" or "auto".
        baseline: Value to beat.
        restore_best_weights: Whether the weights of the best epoch are put back at the end.

    Example:
        >>> DelayedEarlyStopping(delay=5, patience=30).start_from_epoch
        5
    """

    def __init__(
        self,
        delay: int = 0,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
    ) -> None:
        super().__init__(
            monitor=monitor,
            min_delta=min_delta,
            patience=patience,
            verbose=verbose,
            mode=mode,
            baseline=baseline,
            restore_best_weights=restore_best_weights,
            start_from_epoch=delay,
        )
        self.delay = delay


class TrainingProgress(keras.callbacks.Callback):
    """Show the loss, its parts and the time left: a bar on a terminal, elsewhere a log line an epoch or a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._open = contextlib.ExitStack()

    def on_train_begin(self, logs: Logs = None) -> None:
        """Open the bar."""
        self._bar = progress.shows_bars()
        self._first = True
        self._validation = ""

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Open the bar with what is left to do, on the first epoch of this run."""
        self._name = f"epoch {epoch + 1}/{self.params['epochs']}"
        self._logged = time.monotonic()
        if not (self._bar and self._first):
            return
        self._first = False
        steps = self.params.get("steps")
        epochs = self.params["epochs"] - epoch
        self._advance = self._open.enter_context(progress.phase("training", steps * epochs if steps else None))
        self._done = 0

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Move the bar, or log how far a long epoch is."""
        if self._bar:
            self._advance(batch + 1 - self._done, detail=f"{self._name} {_parts(logs)}{self._validation}")
            self._done = batch + 1
        elif time.monotonic() - self._logged > _SECONDS_BETWEEN_LINES:
            self._logged = time.monotonic()
            _LOGGER.info("%s, step %d of %d: %s", self._name, batch + 1, self.params["steps"], _parts(logs))

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Log the epoch's figures."""
        logs = logs or {}
        self._done = 0
        self._validation = f" validation {logs['val_loss']:.5g}" if "val_loss" in logs else ""
        level = logging.DEBUG if self._bar else logging.INFO
        _LOGGER.log(level, "epoch %d of %d: %s%s", epoch + 1, self.params["epochs"], _parts(logs), self._validation)

    def on_train_end(self, logs: Logs = None) -> None:
        """Close the bar."""
        self._open.close()


def _parts(logs: Logs) -> str:
    names = {
        "loss": "loss",
        "decoder_counts_loss": "counts",
        "decoder_dropouts_loss": "dropouts",
        "mmdpp_loss": "mmd",
        "sigma_regularization_loss": "sigma",
    }
    return " ".join(f"{short} {float((logs or {})[name]):.4g}" for name, short in names.items() if name in (logs or {}))


class Checkpoint(keras.callbacks.Callback):
    """Write the model to `job/last_model.h5` after every epoch, and keep the one of lowest validation loss.

    A model whose loss is not finite is not written, so that the last good one stays.

    Args:
        discern: The estimator that is trained.
        directory: The experiment's `job` folder.
    """

    def __init__(self, discern: DISCERN, directory: Path) -> None:
        super().__init__()
        self.discern = discern
        self.directory = directory

    def on_train_begin(self, logs: Logs = None) -> None:
        """Clear what a killed training left."""
        remove_partial(self.directory)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the model."""
        logs = logs or {}
        if np.isfinite(logs.get("loss", 0.0)):
            self.discern.save(self.directory, epoch=epoch + 1, val_loss=logs.get("val_loss"))


class VisualisationCallback(keras.callbacks.Callback):
    """Draw UMAPs of validation cells: original, latent, and projected to each batch.

    The pictures are drawn by another process, so that the training does not wait for them: while one set is being
    drawn the next is left out; the last one is waited for.

    Args:
        outdir: Folder for the pictures (`epoch_N_COLUMN.png`, one for each categorical obs column).
        data: The cells; those with `split == "valid"` of the ten largest batches are drawn, 2000 at the most.
        batch_size: Number of cells put through the network at once.
        freq: Number of epochs between pictures; one more set is drawn at the end.
    """

    max_batches = 10
    max_cells = 2000

    def __init__(self, outdir: Path, data: DISCERNData, batch_size: int, freq: int = 10) -> None:
        super().__init__()
        self.outdir = outdir
        self.batch_size = batch_size
        self.freq = freq
        self.discern: DISCERN | None = None
        shown = data.obs["split"] == "valid" if "split" in data.obs else np.ones(data.n_obs, dtype=bool)
        valid = data.obs[shown] if shown.any() else data.obs[data.obs["split"] == "train"]
        self.batches = list(valid["batch"].value_counts().index[: self.max_batches])
        chosen = np.flatnonzero(data.obs_names.isin(valid.index[valid["batch"].isin(self.batches)]))
        if len(chosen) > self.max_cells:
            chosen = np.sort(np.random.default_rng(0).choice(chosen, self.max_cells, replace=False))
        self.obs: pd.DataFrame = data.obs.iloc[chosen].copy()
        self._labels = np_one_hot(self.obs["batch"])
        self._cells = [block for _, block in iter_blocks(data.X[chosen], 256)]
        self._components = np.asarray(data.varm["PCs"], dtype=np.float32)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
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
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _draw(self, epoch: int) -> None:
        if self.discern is None:
            raise InvalidInputError("VisualisationCallback draws what DISCERN.training trains: pass it there")
        self._collect()
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="discern-umap-")
        cells = Path(self._scratch.name) / "cells.h5ad"
        # h5ad files take no slash in a name; discern.draw turns the names back
        obsm = {quote(title, safe=""): values for title, values in self._representations(self.discern).items()}
        obs = self.obs.rename(columns=lambda name: quote(str(name), safe=""))
        anndata.AnnData(obs=obs, obsm=obsm).write_h5ad(cells)
        self.outdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "discern.draw", str(cells), str(self.outdir), f"epoch_{epoch + 1:04d}"]
        # A process of its own rather than multiprocessing, which would run the user's script again.
        self._drawing = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._drawn = epoch

    def _collect(self) -> None:
        """Wait for the pictures that are being drawn."""
        if self._drawing is None:
            return
        _, errors = self._drawing.communicate()
        if self._drawing.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            _LOGGER.warning("the pictures of epoch %d could not be drawn: %s", self._drawn + 1, "".join(lines[-1:]))
        self._drawing = None

    def _representations(self, discern: DISCERN) -> Mapping[str, np.ndarray]:
        """Return original, latent and projected cells, expression in PC space."""
        targets = np.eye(self._labels.shape[1], dtype=np.float32)
        categories = list(self.obs["batch"].cat.categories)
        parts: dict[str, list[np.ndarray]] = {"original": [], "latent": []}
        begin = 0
        for block in self._cells:
            labels = self._labels[begin : begin + block.shape[0]]
            begin += block.shape[0]
            latent, _ = discern.generate_latent_codes(block, labels, self.batch_size)
            parts["original"].append(block @ self._components)
            parts["latent"].append(latent)
            for batch in self.batches:
                target = np.broadcast_to(targets[categories.index(batch)], labels.shape)
                counts, _ = discern.generate_cells_from_latent(latent, target, self.batch_size)
                parts.setdefault(f"projected to {batch}", []).append(counts @ self._components)
        return {title: np.concatenate(values) for title, values in parts.items()}


def create_callbacks(
    early_stopping_limits: Mapping[str, Any] | None,
    exp_folder: Path,
    inputdata: DISCERNData | None = None,
    umap_cells_no: int | None = None,
    profile_batch: int | tuple[int, int] = 2,
    freq_of_viz: int = 30,
) -> list[keras.callbacks.Callback]:
    """Return the callbacks of a training run.

    Args:
        early_stopping_limits: Arguments of `DelayedEarlyStopping`; None or empty for none.
        exp_folder: The experiment; logs go to its `job` folder.
        inputdata: The cells for UMAP pictures; without it there are none.
        umap_cells_no: Cells put through the network at once for the pictures (default: the data's batch size).
        profile_batch: Step, or first and last step, that TensorBoard profiles; 0 for none.
        freq_of_viz: Epochs between pictures.

    Example:
        >>> from pathlib import Path
        >>> [type(c).__name__ for c in create_callbacks({"patience": 3}, Path("experiment"))]
        ['TerminateOnNaN', 'TensorBoard', 'TrainingProgress', 'DelayedEarlyStopping']
    """
    job = exp_folder / "job"
    callbacks: list[keras.callbacks.Callback] = [
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.TensorBoard(log_dir=str(job), write_graph=False, profile_batch=profile_batch),
        TrainingProgress(),
    ]
    if early_stopping_limits:
        callbacks.append(DelayedEarlyStopping(**early_stopping_limits))
    if inputdata is not None:
        batch_size = umap_cells_no or inputdata.batch_size
        callbacks.append(VisualisationCallback(job / "UMAP", inputdata, batch_size, freq_of_viz))
    return callbacks
