"""Train an experiment."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from discern.data.epochs import number_of_epochs
from discern.experiment.folder import has_model, load_experiment, open_experiment
from discern.folder.layout import ExperimentFolder

if TYPE_CHECKING:
    import keras

    from discern.config.schema import Training
    from discern.data.processed import DISCERNData

_LOGGER = logging.getLogger(__name__)


def training_callbacks(training: Training, folder: Path, data: DISCERNData) -> list[keras.callbacks.Callback]:
    """Return the callbacks that the `training` section of an experiment asks for; see `create_callbacks`."""
    from discern.model.callbacks import create_callbacks

    return create_callbacks(
        training.early_stopping.as_dict(),
        folder,
        inputdata=None if training.visualisation is False else data,
        profile_batch=0,
        freq_of_viz=training.freq or 30,
    )


def run_train(exp_folder: Path, input_path: str | Path | None = None) -> list[Path]:
    """Train the model of an experiment, or go on with it if there is one.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME, processed.
        input_path: Processed cells to train on in place of the experiment's own: `.h5ad` or `.zarr`, or the folder of
            another experiment (or `TF_records` in it).

    Returns:
        The model file; nothing if the model has been trained for so many epochs already.

    Raises:
        UserError: If the folder, the data or the model cannot be used; nothing is changed then.
    """
    exp_folder = Path(exp_folder)
    experiment = open_experiment(exp_folder)
    training = experiment.training
    data = load_experiment(exp_folder, input_path, training.batch_size)
    epochs = number_of_epochs(training, data.obs)
    job = ExperimentFolder(exp_folder).job

    from discern.model.estimator import DISCERN
    from discern.model.restoring import find_unfinished

    model = DISCERN.from_experiment(experiment)
    if has_model(exp_folder) or find_unfinished(job):
        model.resume(job)
        model.prepare(data)
        begun = model.trained.begun
        within = f", within the next one after step {begun.step}" if begun else ""
        _LOGGER.info("%s: going on with the model of epoch %d%s", exp_folder.name, model.start_step, within)
        if model.start_step >= epochs:
            _LOGGER.warning(
                "%s: the model has been trained for %d epochs, of %d that training.max_steps and max_updates ask for: "
                "nothing to do",
                exp_folder.name,
                model.start_step,
                epochs,
            )
            return []
    callbacks = training_callbacks(training, exp_folder, data)
    model.training(data, callbacks=callbacks, savepath=job, max_steps=epochs)
    return [job / "last_model.h5"]
