"""What happens beside the training: progress, early stopping, checkpoints, logs and pictures."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anndata
import keras
import numpy as np
import tensorflow as tf
from anndata.io import write_elem

from discern import progress
from discern.components import PrincipalComponents
from discern.errors import InvalidInputError, UnknownNameError
from discern.estimators.reconstruction import Coder
from discern.estimators.utilities_wae import WAE
from discern.estimators.weights import is_model_file
from discern.files import UNFINISHED, Scratch, cause_in_system, remove_partial
from discern.functions import parse_mean_var
from discern.hdf5 import OutputFile
from discern.io import iter_blocks, np_one_hot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd

    from discern.estimators.batch_integration import DISCERN
    from discern.io import DISCERNData

_LOGGER = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60
_CHUNK_SIZE = 256
_CELLS_IN_PICTURES = 2000
SECONDS_BETWEEN_CHECKPOINTS = 600.0
"""Within an epoch; a checkpoint of the published network has 570 MB."""

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


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' callback, but logs that cannot be written end with a warning, not the training."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._failed = False

    def _call(self, hook: Callable[..., None], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            hook(*arguments)
        except (OSError, tf.errors.OpError) as error:
            reason = cause_in_system(error)
            if reason is None:
                raise
            self._failed = True
            _LOGGER.warning(
                "%s: the logs for TensorBoard cannot be written: %s; going on without", self.log_dir, reason
            )

    def on_train_begin(self, logs: Logs = None) -> None:
        """Open the logs."""
        self._call(super().on_train_begin, logs)

    def on_train_end(self, logs: Logs = None) -> None:
        """Close the logs."""
        self._call(super().on_train_end, logs)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Begin an epoch."""
        self._call(super().on_epoch_begin, epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Log the epoch."""
        self._call(super().on_epoch_end, epoch, logs)

    def on_test_begin(self, logs: Logs = None) -> None:
        """Begin the validation."""
        self._call(super().on_test_begin, logs)

    def on_test_end(self, logs: Logs = None) -> None:
        """Log the validation."""
        self._call(super().on_test_end, logs)


class Checkpoint(keras.callbacks.Callback):
    """Write the model to `job/last_model.h5` after every epoch, and keep the one of lowest validation loss.

    In a long epoch, the model as it is goes to `job/unfinished_epoch.h5` every now and then. A training that goes on
    from there (`DISCERN.resume`) does the steps that are left of that epoch; they shuffle the cells anew, so some are
    seen twice in it and others not. The losses of the epoch are those of all its steps.

    A model whose loss is not finite is not written, so that the last good one stays.

    Args:
        discern: The estimator that is trained.
        directory: The experiment's `job` folder; or a model file, which is written after every epoch only.
        interval: Seconds between two checkpoints within an epoch; None for ten minutes.
    """

    def __init__(self, discern: DISCERN, directory: Path, interval: float | None = None) -> None:
        super().__init__()
        self.discern = discern
        self.directory = directory
        self.interval = SECONDS_BETWEEN_CHECKPOINTS if interval is None else interval
        self._epoch = self._before = 0
        self._is_rest = False
        self._is_file = is_model_file(directory)
        self._saved = time.monotonic()

    def on_train_begin(self, logs: Logs = None) -> None:
        """Clear what a killed training left."""
        if not self._is_file:
            remove_partial(self.directory)
        self._saved = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Go on where an interrupted training stopped."""
        begun = self.discern.begun
        self._epoch, self._is_rest = epoch, False
        self._before = begun.step if begun is not None and begun.epoch == epoch else 0

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Write the model if it is time; end an epoch of which an earlier run did a part."""
        done, steps = self._before + batch + 1, self.params.get("steps")
        if self._before and batch == 0 and self.discern.begun is not None:
            with self.discern.strategy.scope():
                self.discern.begun.add_to_metrics(self.model)
        if self._before and steps and done >= steps:
            self._is_rest = self.model.stop_training = True
        elif not self._is_file and time.monotonic() - self._saved >= self.interval:
            if np.isfinite(float((logs or {}).get("loss", 0.0))):
                self.discern.save_unfinished(self.directory, self._epoch, done)
            self._saved = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the model."""
        logs = logs or {}
        if np.isfinite(logs.get("loss", 0.0)):
            if self._is_rest:
                self.model.stop_training = False
            self.discern.save(self.directory, epoch=epoch + 1, val_loss=logs.get("val_loss"))
            if not self._is_file:
                (self.directory / UNFINISHED).unlink(missing_ok=True)
        self._saved = time.monotonic()


class VisualisationCallback(keras.callbacks.Callback):
    """Draw UMAPs of validation cells: original, latent, and projected to each batch.

    The pictures are drawn by another process, so that the training does not wait for them: while one set is being
    drawn the next is left out; the last one is waited for.

    Args:
        outdir: Folder for the pictures (`epoch_N_COLUMN.png`, one for each categorical obs column).
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
        if "batch" not in data.obs:
            raise UnknownNameError(f"expected an obs column 'batch', there are {list(data.obs)}")
        self.outdir = Path(outdir)
        self.batch_size = batch_size
        self.freq = freq
        self.discern: DISCERN | None = None
        batch = data.obs["batch"].astype("category")
        shown = np.ones(data.n_obs, dtype=bool)
        if "split" in data.obs:
            split = data.obs["split"].to_numpy(dtype=str)
            shown = split == ("valid" if (split == "valid").any() else "train")
        self.batches = list(batch[shown].value_counts().index[: self.max_batches])
        chosen = np.flatnonzero(shown & batch.isin(self.batches).to_numpy())
        if len(chosen) > batch_size:
            chosen = np.sort(np.random.default_rng(0).choice(chosen, batch_size, replace=False))
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
        # h5ad files take no slash in a name; discern.draw turns the names back
        obsm = {quote(title, safe=""): values for title, values in self._representations().items()}
        obs = self.obs.rename(columns=lambda name: quote(str(name), safe=""))
        with OutputFile(cells) as file:
            write_elem(file, "/", anndata.AnnData(obs=obs, obsm=obsm))
        command = [sys.executable, "-m", "discern.draw", str(cells), str(self.outdir), f"epoch_{epoch + 1:04d}"]
        # A process of its own rather than multiprocessing, which would run the user's script again.
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _collect(self) -> None:
        """Wait for the pictures that are being drawn."""
        if self._drawing is None:
            return
        _, errors = self._drawing.communicate()
        if self._drawing.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            _LOGGER.warning("the pictures of epoch %d could not be drawn: %s", self._drawn + 1, "".join(lines[-1:]))
        self._drawing = None

    def _coder(self) -> Coder:
        """Return the network that is trained, by `DISCERN.training` or by `fit` of its Keras model alone."""
        if self.discern is not None:
            return self.discern.coder
        if not isinstance(self.model, WAE):
            raise InvalidInputError(f"expected a model of `create_model`, got {type(self.model).__name__}")
        return Coder(self.model, self._scaling)

    def _representations(self) -> Mapping[str, np.ndarray]:
        """Return original, latent and projected cells, expression in PC space."""
        coder = self._coder()
        targets = np.eye(self._labels.shape[1], dtype=np.float32)
        categories = list(self.obs["batch"].cat.categories)
        parts: dict[str, list[np.ndarray]] = {"original": [], "latent": []}
        begin = 0
        for block in self._cells:
            labels = self._labels[begin : begin + block.shape[0]]
            begin += block.shape[0]
            latent, _ = coder.encode(block, labels, _CHUNK_SIZE)
            parts["original"].append(self._space.project(block))
            parts["latent"].append(latent)
            for batch in self.batches:
                target = np.broadcast_to(targets[categories.index(batch)], labels.shape)
                for counts, _ in coder.decode(latent, target, _CHUNK_SIZE):
                    parts.setdefault(f"projected to {batch}", []).append(self._space.project(counts))
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
        umap_cells_no: Most cells to draw; None for 2,000.
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
        TensorBoard(log_dir=str(job), write_graph=False, profile_batch=profile_batch),
        TrainingProgress(),
    ]
    if early_stopping_limits:
        callbacks.append(DelayedEarlyStopping(**early_stopping_limits))
    if inputdata is not None:
        cells = _CELLS_IN_PICTURES if umap_cells_no is None else umap_cells_no
        callbacks.append(VisualisationCallback(job / "UMAP", inputdata, cells, freq_of_viz))
    return callbacks
