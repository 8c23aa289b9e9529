"""Write a model's weights, optimiser and progress to a file, and read them into a network.

The network is built from the parameters; only numbers are read into it, and nothing changes unless all fit.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import h5py
import numpy as np

from discern.config.schema import LayerPrecision
from discern.data.structure import check_finite, number, whole_number
from discern.errors import InvalidInputError
from discern.folder import layout
from discern.model.legacy import original_arrays, read_original
from discern.model.model_file import FORMAT_VERSION, ModelFile, is_model_file, open_model
from discern.model.trained import Begun
from discern.networks.optimizers import Around
from discern.runtime import atomic
from discern.runtime.foreign import visible
from discern.runtime.hdf5 import OutputFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    import keras

    from discern.data.scaling import Scaling
    from discern.model.trained import TrainedNetwork
    from discern.networks.autoencoder import WAE

_LOGGER = logging.getLogger(__name__)

_MOST_EPOCHS = 10_000_000
_NOT_NEGATIVE = ("moving_variance", "velocity", "velocity_hat", "iteration")


def save_model(trained: TrainedNetwork, path: Path, val_loss: float | None = None, begun: Begun | None = None) -> None:
    """Write a network with the state of its optimiser; the file appears complete or not at all.

    Args:
        trained: The network, with what it was trained on.
        path: The file; an experiment's is `LAST` in its folder `job`.
        val_loss: Its validation loss, by which `keep_best` judges.
        begun: How far it is in the next epoch, if it is in the middle of one.

    Example:
        >>> import tempfile
        >>> from discern.model.trained import TrainedNetwork
        >>> from discern.networks.autoencoder import create_decoder, create_encoder, create_model
        >>> encoder = create_encoder(4, [16], ["layernorm"], "mish", 20, 2, regularization=0.4)
        >>> decoder = create_decoder(4, 20, [16], ["layernorm"], "mish", None, 2, regularization=0.0)
        >>> path = Path(tempfile.mkdtemp()) / "model.h5"
        >>> save_model(TrainedNetwork(create_model(encoder, decoder, 1000), epoch=7), path)
        >>> read_model_file(path).epoch
        7
    """
    with atomic.replacing(Path(path)) as partial, OutputFile(partial) as handle:
        write_network(handle, trained)
        if trained.experiment is not None:
            handle.attrs["experiment"] = json.dumps(trained.experiment)
        if val_loss is not None:
            handle.attrs["val_loss"] = val_loss
        optimizer = getattr(trained.network, "optimizer", None)
        if optimizer is not None and optimizer.built:
            for name, variable in _optimizer_variables(optimizer).items():
                handle[f"optimizer/{name}"] = variable.numpy()
        if begun is not None:
            handle.attrs["step"] = begun.step
            for number, values in enumerate(begun.metrics):
                handle[f"metrics/{number}"] = values


def write_network(handle: h5py.File, trained: TrainedNetwork) -> None:
    """Write a network and what it was trained on into a file, without its optimiser."""
    handle.attrs["format_version"] = FORMAT_VERSION
    handle.attrs["epoch"] = trained.epoch
    handle.attrs["n_genes"] = trained.n_genes
    handle.attrs["n_labels"] = trained.n_batches
    handle.attrs["total_number_cells"] = trained.network.total_number_cells
    handle.attrs["precision"] = trained.network.precision
    for variable in trained.network.weights:
        handle[f"weights/{variable.path}"] = variable.numpy()
    if trained.scaling is not None:
        handle["scaling/mean"], handle["scaling/std"] = trained.scaling
    for key, names in (("genes", trained.genes), ("batches", trained.batches)):
        if names is not None:
            handle[key] = np.asarray(names, dtype=h5py.string_dtype())


def save(trained: TrainedNetwork, directory: Path, val_loss: float | None = None) -> None:
    """Write a network at the end of an epoch; the one of the lowest validation loss is kept as `BEST`.

    Args:
        trained: The network.
        directory: An experiment's `job`; or a file `.h5` or `.hdf5`, of which there is no best one.
        val_loss: Its validation loss.
    """
    single = is_model_file(directory)
    save_model(trained, directory if single else directory / layout.LAST, val_loss)
    if not single:
        keep_best(directory)


def save_unfinished(trained: TrainedNetwork, directory: Path, epoch: int, step: int) -> None:
    """Write a network in the middle of an epoch, for a training to go on from there after an interruption.

    Args:
        trained: The network.
        directory: An experiment's `job`.
        epoch: Epochs that were finished.
        step: Steps of the next one that are done.
    """
    metrics = tuple(variable.numpy() for variable in trained.network.metrics_variables)
    save_model(replace(trained, epoch=epoch), directory / layout.UNFINISHED, begun=Begun(epoch, step, metrics))


def keep_best(directory: Path) -> None:
    """Make the last model of a `job` folder its best one too, if it has a validation loss and none was lower."""
    last, best = Path(directory) / layout.LAST, Path(directory) / layout.BEST
    if _val_loss(last) < _val_loss(best):
        with atomic.replacing(best) as partial:
            try:  # the file of the last model is never written to again, only replaced
                partial.hardlink_to(last)
            except OSError:
                shutil.copyfile(last, partial)


def _val_loss(path: Path) -> float:
    if not path.is_file():
        return np.inf
    try:
        with open_model(path) as handle:
            return number(handle.attrs, "val_loss", -np.inf) if "val_loss" in handle.attrs else np.inf
    except InvalidInputError as error:
        _LOGGER.warning("%s", error)
        return np.inf


def read_model_file(path: Path) -> ModelFile:
    """Return what a model file says about its model, without reading the weights.

    Raises:
        InvalidInputError: If the file cannot be read or is no model file.
    """
    with open_model(path) as handle:
        if "format_version" not in handle.attrs:
            found = read_original(Path(path), handle)
            _check_description(found, handle)
            return found
        iterations = handle.get("optimizer/iteration")
        found = ModelFile(
            path=Path(path),
            n_genes=whole_number(handle.attrs, "n_genes", 1),
            n_labels=whole_number(handle.attrs, "n_labels", 1),
            total_number_cells=number(handle.attrs, "total_number_cells", 1),
            epoch=whole_number(handle.attrs, "epoch", 0, _MOST_EPOCHS),
            iterations=None if iterations is None else whole_number({"iteration": iterations[()]}, "iteration", 0),
            genes=_names(handle, "genes"),
            batches=_names(handle, "batches"),
            scaling=_scaling(handle),
            precision=handle.attrs.get("precision", ModelFile.precision),
        )
        _check_description(found, handle)
        return found


def _check_description(found: ModelFile, handle: h5py.File) -> None:
    """Raise ValueError if a description contradicts itself or what the file can hold."""
    values = 0

    def count(_: str, part: object) -> None:
        nonlocal values
        values += part.size if isinstance(part, h5py.Dataset) and part.size else 0

    handle.visititems(count)
    if found.precision not in get_args(LayerPrecision):
        known = " or ".join(get_args(LayerPrecision))
        raise ValueError(f"precision is {visible(str(found.precision), 60)}, expected {known}")
    for name, size in {"n_genes": found.n_genes, "n_labels": found.n_labels}.items():
        if size > values:
            raise ValueError(f"{name} is {size}, but the file holds {values} numbers only")
    for name, parts, size in (
        ("genes", found.genes, found.n_genes),
        ("batches", found.batches, found.n_labels),
        ("scaling/mean", found.scaling and found.scaling[0], found.n_genes),
        ("scaling/std", found.scaling and found.scaling[1], found.n_genes),
    ):
        if parts is not None and np.shape(parts) != (size,):
            raise ValueError(f"{name} has the shape {np.shape(parts)}, expected ({size},)")
    for name, names in (("genes", found.genes), ("batches", found.batches)):
        if names is not None and len(set(names)) < len(names):
            raise ValueError(f"{name} has a name twice")


def _names(handle: h5py.File, key: str) -> list[str] | None:
    return None if key not in handle else list(handle[key].asstr()[()])


def _scaling(handle: h5py.File) -> Scaling | None:
    if "scaling" not in handle:
        return None
    mean, std = (handle[f"scaling/{part}"][()] for part in ("mean", "std"))
    check_finite(np.asarray(mean), "scaling/mean")
    check_finite(np.asarray(std), "scaling/std", positive=True)
    return mean, std


def load_weights(model: WAE, path: Path, optimizer: keras.optimizers.Optimizer | None = None) -> None:
    """Read the weights of a model file into a model, and the optimiser's state where one is passed.

    Nothing is changed unless all weights fit. What the optimiser has no use for, or misses, is said in a warning.

    Args:
        model: A model that was built for the file's number of genes and batches.
        path: The model file, ours or the original's.
        optimizer: An optimiser for the model; its state is created if it is not there yet.

    Raises:
        InvalidInputError: If the file cannot be read or the weights do not fit the model.
    """
    with open_model(path) as handle:
        read = _own_arrays if "format_version" in handle.attrs else original_arrays
        stored, stored_state = read(handle, model)
        _check_weights(Path(path), stored, model)
        weights = {name: _values(array, name) for name, array in stored.items()}
        state = {name: _values(array, f"optimizer {name}") for name, array in stored_state.items()} if optimizer else {}
    for variable in model.weights:
        variable.assign(weights[variable.path])
    if optimizer is not None:
        _load_optimizer(Path(path), state, optimizer, model)


def _values(array: h5py.Dataset, name: str) -> np.ndarray:
    """Return weights or a state of the optimiser; ValueError if they are nothing to calculate with."""
    values = np.asarray(array[()])
    is_count = name.rpartition(" ")[2] == "iteration" or values.ndim == 0
    if values.dtype.kind not in ("fiu" if is_count else "f"):
        raise ValueError(f"{visible(name)}: expected floating-point numbers, got {visible(str(values.dtype), 60)}")
    check_finite(values, name)
    if name.endswith(_NOT_NEGATIVE) and values.size and values.min() < 0:
        raise ValueError(f"{visible(name)}: expected no negative numbers, the smallest is {values.min():g}")
    return values


def _check_weights(path: Path, weights: Mapping[str, h5py.Dataset], model: WAE) -> None:
    shapes = {variable.path: tuple(variable.shape) for variable in model.weights}
    for names, message in (
        (shapes.keys() - weights.keys(), "lacks weights of the network that the parameters describe"),
        (weights.keys() - shapes.keys(), "has weights that are not of the network that the parameters describe"),
    ):
        if names:
            raise InvalidInputError(f"{path}: {message}: {', '.join(sorted(names))}")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise InvalidInputError(
                f"{path}: weights {name} have the shape {weights[name].shape}, but parameters and data need {shape}; "
                "the model belongs to other data or other parameters"
            )


def _own_arrays(handle: h5py.File, model: WAE) -> tuple[dict[str, h5py.Dataset], dict[str, h5py.Dataset]]:
    weights = {f"{layer}/{name}": array for layer, group in handle["weights"].items() for name, array in group.items()}
    return weights, dict(handle.get("optimizer", {}))


def _optimizer_variables(optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
    """Return the state by name. The learning rate is not part of it: the parameters say what it is."""
    variables = {variable.path.split("/", 1)[1]: variable for variable in optimizer.variables}
    variables.pop("learning_rate", None)
    return variables


def _load_optimizer(
    path: Path, state: Mapping[str, np.ndarray], optimizer: keras.optimizers.Optimizer, model: WAE
) -> None:
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    if isinstance(optimizer, Around):
        optimizer.restart()
    variables = _optimizer_variables(optimizer)
    fitting = {
        name for name, array in state.items() if name in variables and array.shape == tuple(variables[name].shape)
    }
    for name in fitting:
        variables[name].assign(state[name])
    known = {_kind(name, model) for name in fitting}
    for names, message in (
        (variables.keys() - fitting, "%s: has no state of the optimiser's %s; training goes on without it"),
        (state.keys() - fitting, "%s: the optimiser does not use its %s"),
    ):
        # weights that were frozen have no state of their own; a mean begins with the weights that are there
        kinds = {_kind(name, model) for name in names} - known - {"average", "exchanged"}
        if kinds:
            _LOGGER.warning(message, path, ", ".join(sorted(kinds)))


def _kind(name: str, model: WAE) -> str:
    """Return "momentum" for "latent_kernel_momentum"."""
    owners = [variable.path.replace("/", "_") + "_" for variable in model.weights]
    return name.removeprefix(max((owner for owner in owners if name.startswith(owner)), key=len, default=""))
