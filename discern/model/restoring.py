"""Find the model of an experiment, build its network and read the weights into it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from discern.config.reading import load_parameters, parse_experiment
from discern.data.scaling import parse_mean_var
from discern.data.structure import whole_number
from discern.errors import InvalidInputError, MissingFileError
from discern.folder import layout
from discern.folder.layout import ExperimentFolder
from discern.model import building
from discern.model.building import NetworkParameters
from discern.model.checkpoint import keep_best, load_weights, read_model_file
from discern.model.known import genes_of_experiment
from discern.model.legacy import stored_experiment
from discern.model.model_file import find_model, open_model, parameters_file
from discern.model.trained import Begun
from discern.runtime.foreign import visible

if TYPE_CHECKING:
    from discern.config.fields import JsonObject
    from discern.data.scaling import Scaling
    from discern.model.model_file import ModelFile
    from discern.model.trained import TrainedNetwork
    from discern.networks.autoencoder import WAE

_LOGGER = logging.getLogger(__name__)


def restore(directory: Path, parameters: NetworkParameters) -> TrainedNetwork:
    """Read the newest model of an experiment; see `discern.DISCERN.restore_model`.

    Args:
        directory: The experiment, or its `job` folder; or a model file.
        parameters: What the network is built from.

    Raises:
        MissingFileError: If there is no model.
        InvalidInputError: If the file is damaged or does not fit the parameters.
    """
    path = find_model(directory)
    if path is None:
        raise MissingFileError(f"{directory}: there is no trained model ({layout.LAST}); train the experiment first")
    trained = restore_file(path, parameters)
    folder = path.parent if path == directory else directory
    if trained.scaling is None and (found := _beside_model(folder)):
        return building.named(parameters, trained, *found)
    return trained


def restore_file(path: Path, parameters: NetworkParameters, with_optimizer: bool = True) -> TrainedNetwork:
    """Read a model from one file.

    Args:
        path: The file.
        parameters: What the network is built from.
        with_optimizer: Whether the state of its optimiser is read, to train on with.

    Raises:
        MissingFileError: If there is no such file.
        InvalidInputError: If it is damaged or does not fit the parameters.
    """
    found = read_model_file(path)
    trained = building.build(
        parameters,
        found.n_genes,
        found.n_labels,
        found.total_number_cells,
        found.scaling,
        found.genes,
        found.batches,
        _epochs(found),
        found.precision,
    )
    network = trained.network
    with parameters.strategy.scope():
        load_weights(network, path, network.optimizer if with_optimizer else None)
    return trained


def resume(job: Path, parameters: NetworkParameters) -> TrainedNetwork:
    """Read the model with which an interrupted training goes on.

    It is that of the last checkpoint within an epoch, if any, otherwise the newest, as with `restore`.

    Args:
        job: The folder of an experiment's models.
        parameters: What the network is built from.

    Raises:
        MissingFileError: If there is no model.
        InvalidInputError: If a file is damaged or does not fit the parameters.
    """
    if (job / layout.LAST).is_file():
        keep_best(job)  # what an interruption after an epoch may have left undone
    begun = find_unfinished(job)
    if begun is None:
        return restore(job, parameters)
    return replace(restore_file(job / layout.UNFINISHED, parameters), begun=begun)


def load_model_from_directory(directory: Path) -> tuple[WAE | None, int]:
    """Read the newest model of an experiment, ready to train on.

    Args:
        directory: The experiment's folder, or the `job` folder in it; or a folder that holds nothing but a model file,
            which describes the network itself.

    Returns:
        The model, and the number of epochs that it was trained for (0 if that is not known); (None, 0) if there is no
        model.

    Raises:
        InvalidInputError: If the model file is damaged or does not fit the parameters.
        MissingFileError: If there is no parameters.json, and the model file does not describe the network: activation
            or output was a function without a name.
    """
    path = find_model(Path(directory))
    if path is None:
        return None, 0
    try:
        (experiment,) = load_parameters(parameters_file(path)).experiments.values()
    except MissingFileError:
        stored = _described_experiment(path) or stored_experiment(path)
        if stored is None:
            raise
        experiment = parse_experiment(stored)
    trained = restore(Path(directory), NetworkParameters.of(experiment))
    return trained.network, trained.epoch


def _described_experiment(path: Path) -> JsonObject | None:
    """Return the EXPERIMENT that a model file of this program describes, None if it does not.

    Raises:
        InvalidInputError: If the file is damaged.
    """
    with open_model(path) as handle:
        found = json.loads(handle.attrs["experiment"]) if "experiment" in handle.attrs else None
        if not isinstance(found, dict | None):
            raise ValueError(f"experiment is {visible(str(found), 60)}, expected a dictionary")
        return found


def find_unfinished(directory: Path) -> Begun | None:
    """Return how far the training of a `job` folder was in the epoch after its newest model, if that was written.

    A damaged checkpoint is left aside, with a warning.

    Raises:
        InvalidInputError: If the newest model is damaged.
    """
    path = Path(directory) / layout.UNFINISHED
    if not path.is_file():
        return None
    try:
        with open_model(path) as handle:
            metrics = handle.get("metrics", {})
            values = tuple(metrics[str(number)][()] for number in range(len(metrics)))
            begun = Begun(whole_number(handle.attrs, "epoch", 0), whole_number(handle.attrs, "step", 0), values)
    except InvalidInputError as error:
        _LOGGER.warning("%s; the epoch begins anew", error)
        return None
    model = find_model(directory)
    found = read_model_file(model) if model is not None else None
    done = 0 if found is None else _epochs(found)
    return begun if begun.epoch == done else None


def _epochs(found: ModelFile) -> int:
    """Return the epochs that a model was trained for.

    A file of the original has only the optimiser's steps: an epoch leaves out an incomplete minibatch.

    Without parameters, which say how many cells a step has, they are not known: 0, with a warning.
    """
    if found.epoch is not None:
        return found.epoch
    try:
        (experiment,) = load_parameters(parameters_file(found.path)).experiments.values()
    except MissingFileError:
        _LOGGER.warning("%s: without parameters.json it is not known for how many epochs it was trained", found.path)
        return 0
    steps = int(found.total_number_cells) // experiment.training.batch_size
    return round((found.iterations or 0) / max(steps, 1))


def _beside_model(directory: Path) -> tuple[Scaling, list[str], list[str]] | None:
    """Return scaling, genes and batches of the processed cells of an experiment whose model file does not hold them.

    Args:
        directory: The experiment's folder, or the `job` folder in it.

    Returns:
        None, with a warning, if there are no processed cells.
    """
    for folder in (directory, directory.parent):
        place = ExperimentFolder(folder)
        if place.cells.is_file():
            break
    else:
        _LOGGER.warning("%s: neither the model nor processed data beside it says how genes were scaled", directory)
        return None
    known = genes_of_experiment(place)
    return parse_mean_var(known.genes, known.uns.get("fixed_scaling")), list(known.genes.index), known.batches
