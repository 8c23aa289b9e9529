"""Train a network, epoch by epoch, with what is kept of it on the way."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from discern.data.processed import check_processed
from discern.errors import InvalidInputError, UnknownNameError
from discern.model.callbacks import Checkpoint, DelayedEarlyStopping, TrainingProgress
from discern.model.visualisation import VisualisationCallback
from discern.networks.optimizers import Averaging
from discern.runtime.memory import keeping_large_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from discern.data.processed import DISCERNData
    from discern.model.building import NetworkParameters
    from discern.model.trained import TrainedNetwork
    from discern.networks.autoencoder import WAE

_LOGGER = logging.getLogger(__name__)


class Metrics(dict[str, float]):
    """The losses of the last epoch of a training, by name.

    Args:
        history: Name -> its value after each epoch.

    Attributes:
        history: The same.

    Example:
        >>> metrics = Metrics({"loss": [2.0, 1.0]})
        >>> metrics["loss"], metrics.history["loss"]
        (1.0, [2.0, 1.0])
    """

    def __init__(self, history: Mapping[str, Sequence[float]]) -> None:
        super().__init__({name: float(values[-1]) for name, values in history.items()})
        self.history = {name: list(map(float, values)) for name, values in history.items()}


def check(
    data: DISCERNData, callbacks: Sequence[keras.callbacks.Callback], savepath: str | Path | None, epochs: float
) -> None:
    """Raise an error unless these cells can be trained on in this way; see `discern.DISCERN.training`."""
    check_processed(data)
    if savepath is not None and Path(savepath).suffix in (".keras", ".tf", ".pb", ".json"):
        raise InvalidInputError(f"savepath {savepath}: expected a folder, or a file that ends in .h5 or .hdf5")
    if "split" not in data.obs:
        raise UnknownNameError("expected an obs column 'split', which says what to train on: call recipe.split")
    if epochs < 1 or epochs != int(epochs):
        raise InvalidInputError(f"max_steps: expected 1 epoch or more, got {epochs}")
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise InvalidInputError(f"callbacks: expected a list of callbacks of Keras, got {callback!r} in it")
    cells = data.obs["split"].value_counts()
    watched = [callback.monitor for callback in callbacks if isinstance(callback, DelayedEarlyStopping)]
    if not cells.get("valid", 0) and any(monitor.startswith("val_") for monitor in watched):
        raise InvalidInputError(
            "training.early_stopping needs validation cells, and there are none: raise input_ds.split.valid_cells and "
            "process again, or give an empty early_stopping"
        )
    if cells.get("train", 0) < data.batch_size:
        raise InvalidInputError(
            f"the {cells.get('train', 0)} training cells do not fill one batch of batch_size {data.batch_size}: "
            "lower training.batch_size"
        )


class _MeanWeights(keras.callbacks.Callback):
    """Train with the weights of the last step; validate, keep and draw with their mean.

    Args:
        network: The network.
        optimizer: Its optimiser.
    """

    def __init__(self, network: WAE, optimizer: Averaging) -> None:
        super().__init__()
        self._scope = network.distribute_strategy.scope
        self._optimizer = optimizer

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Go on from where the last step was."""
        with self._scope():
            self._optimizer.use_last()

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Validate the mean."""
        self.close()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Let other callbacks see the mean."""
        self.close()

    def close(self) -> None:
        """Put the mean in the place of the weights, as it stays after training."""
        with self._scope():
            self._optimizer.use_average()


def fit(
    trained: TrainedNetwork,
    parameters: NetworkParameters,
    data: DISCERNData,
    callbacks: Sequence[keras.callbacks.Callback],
    savepath: Path | None,
    epochs: int,
) -> tuple[TrainedNetwork, Metrics]:
    """Train a compiled network up to an epoch.

    Args:
        trained: The network so far.
        parameters: Those that it was built from.
        data: Preprocessed cells that fit it.
        callbacks: Keras callbacks.
        savepath: Folder of the model files, or one file for the model after the last epoch; None to write none.
        epochs: Number of epochs in all.

    Returns:
        The network with its number of epochs, and the losses; the last is not finite if the training diverged. Its
        weights are those of the network that was given.
    """
    if not parameters.weighting_decoder_dropout:
        _LOGGER.warning(
            "model.weighting_decoder_dropout is 0: the detection probability is not learnt, and X of projections, "
            "which is drawn with it, is of no use; the published value is 10000. estimated_counts are not affected"
        )
    callbacks = list(callbacks)
    for callback in callbacks:
        if isinstance(callback, VisualisationCallback):
            callback.trained = trained
    if savepath is not None:
        callbacks.insert(0, Checkpoint(trained, savepath))
    if isinstance(trained.network.optimizer, Averaging):
        callbacks.insert(0, _MeanWeights(trained.network, trained.network.optimizer))
    train, valid = data.batches(parameters.thin_counts, begun=trained.begun.step if trained.begun else 0)
    try:
        with data.reading_records(), keeping_large_arrays():
            history = trained.network.fit(
                train,
                validation_data=valid if (data.obs["split"] == "valid").any() else None,
                epochs=epochs,
                initial_epoch=trained.epoch,
                callbacks=callbacks,
                shuffle=False,  # the data set does it
                verbose=0,
            ).history
    finally:
        for callback in callbacks:
            if isinstance(callback, TrainingProgress | VisualisationCallback | _MeanWeights):
                callback.close()
    finite = int(np.isfinite(history.get("loss", [])).sum())
    return replace(trained, epoch=trained.epoch + finite, begun=None), Metrics(history)


def check_converged(metrics: Metrics, epoch: int) -> None:
    """Raise InvalidInputError if the last loss is not a number.

    Args:
        metrics: Those of the training.
        epoch: The last that was finished.
    """
    if not np.isfinite(metrics.get("loss", 0.0)):
        raise InvalidInputError(
            f"the training diverged (a loss that is not a number) in epoch {epoch + 1}: lower "
            "training.optimizer.learning_rate; the model of the epoch before is kept"
        )
