"""Train a network, epoch by epoch, with what is kept of it on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from discern.errors import InvalidInputError
from discern.model.callbacks import Checkpoint, DelayedEarlyStopping, TrainingProgress
from discern.model.visualisation import VisualisationCallback

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import keras

    from discern.data.processed import DISCERNData
    from discern.model.checkpoint import Begun
    from discern.model.trained import TrainedNetwork


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


def check_enough(data: DISCERNData, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Raise InvalidInputError unless the cells fill one minibatch and early stopping has something to watch."""
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


def fit(
    trained: TrainedNetwork,
    data: DISCERNData,
    callbacks: Sequence[keras.callbacks.Callback],
    savepath: Path | None,
    epochs: int,
    thin_counts: float = 1.0,
    begun: Begun | None = None,
) -> tuple[TrainedNetwork, Metrics]:
    """Train a compiled network up to an epoch.

    Args:
        trained: The network so far.
        data: Preprocessed cells that fit it.
        callbacks: Keras callbacks.
        savepath: Folder of the model files, or one file for the model after the last epoch; None to write none.
        epochs: Number of epochs in all.
        thin_counts: Cells are encoded with a share of their counts, drawn between this and 1 anew each time.
        begun: How far it is in the next epoch already.

    Returns:
        The network with its number of epochs, and the losses; the last is not finite if the training diverged. Its
        weights are those of the network that was given.
    """
    callbacks = list(callbacks)
    pictures = [callback for callback in callbacks if isinstance(callback, VisualisationCallback)]
    for callback in pictures:
        callback.trained = trained
    if savepath is not None:
        callbacks.insert(0, Checkpoint(trained, savepath, begun))
    train, valid = data.batches(thin_counts, begun=begun.step if begun else 0)
    try:
        with data.reading_records():
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
            if isinstance(callback, TrainingProgress | VisualisationCallback):
                callback.close()
    finite = int(np.isfinite(history.get("loss", [])).sum())
    return replace(trained, epoch=trained.epoch + finite), Metrics(history)
