"""An experiment on disk: parameters, cells and whether there is a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from discern.config.reading import load_parameters
from discern.errors import MissingFileError
from discern.folder.layout import ExperimentFolder, models
from discern.folder.locks import recover

if TYPE_CHECKING:
    from discern.config.fields import JsonObject
    from discern.config.schema import Experiment
    from discern.data.processed import DISCERNData
    from discern.model.estimator import DISCERN
    from discern.model.trained import TrainedNetwork


def open_experiment(exp_folder: Path) -> Experiment:
    """Read an experiment's parameters, and set up threads and GPUs as they say.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME.

    Raises:
        MissingFileError: If the folder holds no processed experiment.
    """
    exp_folder = Path(exp_folder)
    recover(exp_folder)
    if not ExperimentFolder(exp_folder).parameters.is_file():
        raise MissingFileError(f"{exp_folder} holds no processed experiment: run `discern process` first")
    (experiment,) = load_parameters(ExperimentFolder(exp_folder).parameters).experiments.values()
    training = experiment.training

    from discern.runtime.devices import start_tensorflow

    gpus = training.GPU
    if gpus and "CUDA_VISIBLE_DEVICES" in os.environ:
        gpus = None  # the runner, Ray or the user has chosen; TensorFlow counts those from 0
    start_tensorflow(training.parallel_pc, gpus)
    return experiment


def setup_exp(exp_folder: Path) -> tuple[DISCERN, JsonObject]:
    """Read an experiment's parameters, set up threads and GPUs, and make its estimator.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME.

    Returns:
        The estimator, without a network yet, and the experiment's parameters as in a file.

    Raises:
        MissingFileError: If the folder holds no processed experiment.
    """
    experiment = open_experiment(exp_folder)

    from discern.model.estimator import DISCERN

    return DISCERN.from_experiment(experiment), experiment.as_dict()


def read_network(exp_folder: Path, experiment: Experiment, data: DISCERNData | None = None) -> TrainedNetwork:
    """Read the newest model of an experiment.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME, trained.
        experiment: Its parameters.
        data: Cells that it must fit; one of the original program gets its scaling and names from them.

    Raises:
        MissingFileError: If there is no model.
        InvalidInputError: If it is damaged, or does not fit the parameters or the cells.
    """
    from discern.model.building import NetworkParameters, fitted_to
    from discern.model.restoring import restore

    parameters = NetworkParameters.of(experiment)
    trained = restore(ExperimentFolder(exp_folder).job, parameters)
    return trained if data is None else fitted_to(parameters, trained, data)


def load_experiment(exp_folder: Path, file: str | Path | None, batch_size: int) -> DISCERNData:
    """Return the cells of an experiment, or of another file or folder; or the experiment's, from other record files.

    Raises:
        InvalidInputError: If a folder holds nothing but record files, of other cells.
    """
    from discern.data.processed import DISCERNData

    file = exp_folder if file is None else Path(file)
    if file.is_dir() and file.suffix != ".zarr":
        owner = file.parent if file.name == "TF_records" else file
        if not ExperimentFolder(owner).cells.exists() and any(file.glob("*.tfrecords*")):
            data = DISCERNData.from_folder(exp_folder, batch_size)
            data.use_records(file)
            return data
        return DISCERNData.from_folder(owner, batch_size)
    return DISCERNData.read_h5ad(file, batch_size)


def require_model(exp_folder: Path) -> None:
    """Raise MissingFileError unless the experiment has a model of a finished epoch."""
    if not has_model(exp_folder):
        raise MissingFileError(f"{ExperimentFolder(exp_folder).job} holds no trained model: run `discern train` first")


def has_model(exp_folder: Path) -> bool:
    """Return whether the experiment has a model of a finished epoch."""
    return bool(models(ExperimentFolder(exp_folder).job))
