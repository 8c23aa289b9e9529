"""What happens beside a training: progress, early stopping, checkpoints and logs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from discern.errors import InvalidInputError, UnknownNameError, nearest
from discern.folder.layout import UNFINISHED, ExperimentFolder
from discern.model import history
from discern.model.checkpoint import save, save_unfinished
from discern.model.model_file import is_model_file
from discern.model.visualisation import VisualisationCallback
from discern.runtime import progress
from discern.runtime.atomic import cause_in_system, remove_partial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from discern.data.processed import DISCERNData
    from discern.model.trained import TrainedNetwork

_LOGGER = logging.getLogger(__name__)

Logs = dict[str, float] | None


_CELLS_IN_PICTURES = 2000
SECONDS_BETWEEN_CHECKPOINTS = 600.0
"""Within an epoch; a checkpoint of the published network has 570 MB."""


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

    Raises:
        InvalidInputError: If `mode` is another one, or `delay` or `patience` is negative.

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
        if mode not in ("auto", "min", "max"):
            raise InvalidInputError(f"early stopping: expected the mode auto, min or max, got {mode!r}")
        for name, epochs in (("delay", delay), ("patience", patience)):
            if epochs < 0:
                raise InvalidInputError(f"early stopping: {name}: expected 0 or more epochs, got {epochs}")
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

    @classmethod
    def of(cls, limits: Mapping[str, Any]) -> DelayedEarlyStopping:
        """Make it from a dictionary of its arguments; Keras' name of `delay`, `start_from_epoch`, is one too.

        Raises:
            UnknownNameError: If there is no such argument, or both names of `delay`.
        """
        limits = dict(limits)
        if "start_from_epoch" in limits:
            if "delay" in limits:
                raise UnknownNameError("early stopping: 'delay' and 'start_from_epoch' mean the same: give one")
            limits["delay"] = limits.pop("start_from_epoch")
        known = list(inspect.signature(cls).parameters)
        for name in limits:
            if name not in known:
                raise UnknownNameError(f"early stopping has no argument {name!r}{nearest(name, known)}")
        return cls(**limits)


class TrainingProgress(keras.callbacks.Callback):
    """Show the loss, its parts and the time left: a bar on a terminal, elsewhere a log line an epoch or a minute.

    Args:
        interval: Seconds between two lines.
    """

    def __init__(self, interval: float = 60.0) -> None:
        super().__init__()
        self.interval = interval
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
        elif time.monotonic() - self._logged > self.interval:
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

    def close(self) -> None:
        """Leave the bar as it is, when the training does not end well."""
        self._open.__exit__(*sys.exc_info())


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

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._failed = False

    def _call(self, hook: Callable[..., None], *arguments: object) -> None:
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
    from there (`restoring.resume`) does the steps that are left of that epoch; they shuffle the cells anew, so some are
    seen twice in it and others not. The losses of the epoch are those of all its steps.

    The losses of all epochs are written to `job/history.json`.

    A model whose loss is not finite is not written, so that the last good one stays.

    Args:
        trained: The network that is trained; `begun` says what an earlier run did of its next epoch.
        directory: The experiment's `job` folder; or a model file, which is written after every epoch only.
        interval: Seconds between two checkpoints within an epoch.
    """

    def __init__(self, trained: TrainedNetwork, directory: Path, interval: float = SECONDS_BETWEEN_CHECKPOINTS) -> None:
        super().__init__()
        self.trained = trained
        self.directory = directory
        self.interval = interval
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
        self._epoch, self._is_rest = epoch, False
        begun = self.trained.begun
        self._before = begun.step if begun is not None and begun.epoch == epoch else 0

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Write the model if it is time; end an epoch of which an earlier run did a part."""
        done, steps = self._before + batch + 1, self.params.get("steps")
        if self._before and batch == 0 and self.trained.begun is not None:
            with self.model.distribute_strategy.scope():
                self.trained.begun.add_to_metrics(self.model)
        if self._before and steps and done >= steps:
            self._is_rest = self.model.stop_training = True
        elif not self._is_file and time.monotonic() - self._saved >= self.interval:
            if np.isfinite(float((logs or {}).get("loss", 0.0))):
                save_unfinished(self.trained, self.directory, self._epoch, done)
            self._saved = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Write the model."""
        logs = logs or {}
        if np.isfinite(logs.get("loss", 0.0)):
            if self._is_rest:
                self.model.stop_training = False
            save(replace(self.trained, epoch=epoch + 1), self.directory, logs.get("val_loss"))
            if not self._is_file:
                losses = {name: [float(value)] for name, value in logs.items()}
                history.write(self.directory, losses, first_epoch=epoch + 1)
                (self.directory / UNFINISHED).unlink(missing_ok=True)
        self._saved = time.monotonic()


def create_callbacks(
    early_stopping_limits: Mapping[str, Any] | None,
    exp_folder: str | Path,
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

    Raises:
        UnknownNameError: If early stopping has no such argument.

    Example:
        >>> from pathlib import Path
        >>> [type(c).__name__ for c in create_callbacks({"patience": 3}, Path("experiment"))]
        ['TerminateOnNaN', 'TensorBoard', 'TrainingProgress', 'DelayedEarlyStopping']
    """
    job = ExperimentFolder(Path(exp_folder)).job
    callbacks: list[keras.callbacks.Callback] = [
        keras.callbacks.TerminateOnNaN(),
        TensorBoard(log_dir=str(job), write_graph=False, profile_batch=profile_batch),
        TrainingProgress(),
    ]
    if early_stopping_limits:
        callbacks.append(DelayedEarlyStopping.of(early_stopping_limits))
    if inputdata is not None:
        cells = _CELLS_IN_PICTURES if umap_cells_no is None else umap_cells_no
        callbacks.append(VisualisationCallback(job / "UMAP", inputdata, cells, freq_of_viz))
    return callbacks
