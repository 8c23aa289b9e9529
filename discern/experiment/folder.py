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


def open_experiment(exp_folder: Path) -> tuple[DISCERN, Experiment]:
    """Read an experiment's parameters, set up threads and GPUs, and make its estimator.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME.

    Returns:
        The estimator, without a network yet, and the experiment's parameters.

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

    from discern.model.estimator import DISCERN

    return DISCERN.from_experiment(experiment), experiment


def setup_exp(exp_folder: Path) -> tuple[DISCERN, JsonObject]:
    """Do what `open_experiment` does; the parameters are a dictionary, as in a file."""
    model, experiment = open_experiment(exp_folder)
    return model, experiment.as_dict()


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
