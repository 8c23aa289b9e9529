"""Model files of the original program: a whole Keras 2 model, weights in the order of the layers."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

from discern.data.structure import number, whole_number
from discern.errors import InvalidInputError
from discern.model.model_file import ModelFile, open_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import h5py
    import keras

    from discern.networks.autoencoder import WAE

_LOGGER = logging.getLogger(__name__)

_WEIGHTS = ("kernel", "bias", "moving_mean", "moving_variance")
_SLOTS = {"m": "momentum", "v": "velocity", "vhat": "velocity_hat", "slow": "slow"}
_ITERATIONS = ("iter", "iteration")


def stored_experiment(model_file: Path) -> dict[str, Any] | None:
    """Return the EXPERIMENT that a model file of the original program describes, None if it is not of that kind.

    Its Keras configuration names the layers, losses and optimiser; nothing of it is run.

    Raises:
        InvalidInputError: If it is damaged, or describes another network than DISCERN's.
    """
    with open_model(model_file) as handle:
        if "model_config" not in handle.attrs:
            return None
        config = json.loads(handle.attrs["model_config"])
        parts = {layer["config"]["name"]: layer["config"] for layer in config["config"]["layers"]}
        encoder, decoder = (_stored_side(parts[side]["layers"]) for side in ("encoder", "decoder"))
        latent = next(layer for layer in parts["encoder"]["layers"] if layer["config"]["name"] == "latent")
        experiment: dict[str, Any] = {
            "model": {
                "latent_dim": latent["config"]["units"],
                "activation_fn": _stored_activation(parts["encoder"]["layers"]),
                "encoder": encoder,
                "decoder": decoder,
            },
            "training": {},
        }
        if "training_config" in handle.attrs:
            _add_stored_training(experiment, json.loads(handle.attrs["training_config"]))
    return experiment


def _stored_side(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `encoder` or `decoder` of the parameters; a block ends with a dropout, and may add the batch's offset."""
    hidden, norms, rates = [], [], []
    units, conditional, norm = 0, False, ""
    regularizer: dict[str, Any] | None = None
    for layer in layers:
        kind, config = layer["class_name"], layer["config"]
        if kind == "Dense" and not norm:
            units = config["units"]
        elif kind == "Dense" and config.get("activity_regularizer") is not None:
            stored = config["activity_regularizer"]
            regularizer = {"name": f"tensorflow.keras.regularizers.{stored['class_name']}", **stored["config"]}
        elif kind in ("LayerNormalization", "BatchNormalization"):
            norm = {"LayerNormalization": "layernorm", "BatchNormalization": "batchnorm"}[kind]
        elif kind == "Add":
            conditional = True
        elif kind == "Dropout":
            hidden.append(units)
            norms.append(("conditional" if conditional else "") + norm)
            rates.append(config["rate"])
            conditional, norm = False, ""
    if not hidden or len(set(rates)) > 1:
        raise ValueError("its layers are not those of DISCERN")
    side = {"layers": hidden, "norm_type": norms, "regularization": rates[0]}
    return side if regularizer is None else side | {"conditional_regularization": regularizer}


def _stored_activation(layers: Sequence[Mapping[str, Any]]) -> str:
    names = [layer["config"]["name"] for layer in layers]
    for layer in layers:
        if layer["class_name"] == "Activation":
            return str(layer["config"]["activation"])
    if any("softplus" in name for name in names) and any("tanh" in name for name in names):
        return "tensorflow_addons.activations.mish"
    raise ValueError("its activation function cannot be told; put parameters.json beside it")


def _add_stored_training(experiment: dict[str, Any], config: Mapping[str, Any]) -> None:
    losses, factors = config["loss"], config["loss_weights"]
    counts, dropouts = losses["decoder_counts"], losses["decoder_dropouts"]["config"]
    arguments = {key: counts["config"][key] for key in ("delta", "p", "use_root", "epsilon") if key in counts["config"]}
    experiment["model"] |= {
        "reconstruction_loss": {"name": counts["class_name"], **arguments},
        "crossentropy": {key: dropouts[key] for key in ("label_smoothing", "lower_label_smoothing")},
        "weighting_decoder_dropout": factors["decoder_dropouts"],
        "weighting_random_encoder": factors["sigma_regularization"],
        "wae_lambda": factors["mmdpp"],
    }
    optimizer = config["optimizer_config"]
    known = ("learning_rate", "beta_1", "beta_2", "amsgrad")
    experiment["training"]["optimizer"] = {
        "algorithm": f"tensorflow_addons.optimizers.{optimizer['class_name'].rpartition('>')[2]}"
        if optimizer["class_name"].startswith("Addons>")
        else f"tensorflow.keras.optimizers.{optimizer['class_name']}",
        **{key: optimizer["config"][key] for key in known if key in optimizer["config"]},
    }


def read_original(path: Path, handle: h5py.File) -> ModelFile:
    """Return what a file of the original says about its model."""
    layers = {
        layer["config"]["name"]: layer["config"]
        for layer in json.loads(handle.attrs["model_config"])["config"]["layers"]
    }
    optimizer = _listed(handle.get("optimizer_weights"))
    said = {
        "n_genes": layers["input_data"]["batch_input_shape"][1],
        "n_labels": layers["batch_input_enc"]["batch_input_shape"][1],
        "total_number_cells": layers["mmdpp"]["scale"],
    }
    steps = next((array[()] for name, array in optimizer if name[-1] in _ITERATIONS), None)
    return ModelFile(
        path=path,
        n_genes=whole_number(said, "n_genes", 1),
        n_labels=whole_number(said, "n_labels", 1),
        total_number_cells=number(said, "total_number_cells", 1),
        epoch=None,
        iterations=None if steps is None else whole_number({"iteration": steps}, "iteration", 0),
    )


def original_arrays(handle: h5py.File, model: WAE) -> tuple[dict[str, h5py.Dataset], dict[str, h5py.Dataset]]:
    """Pair the arrays with our variables: in the order of the layers, each kind of variable for itself."""
    weights: dict[str, h5py.Dataset] = {}
    trained: list[str] = []
    for part in (model.encoder, model.decoder):
        listed = _listed(handle["model_weights"][part.name])
        owners: dict[tuple[str, ...], keras.Variable] = {}
        for kind in _WEIGHTS:
            names = [name for name, _ in listed if name[-1] == kind]
            ours = [variable for layer in part.layers for variable in layer.weights if variable.name == kind]
            if len(names) != len(ours):
                raise InvalidInputError(
                    f"{handle.filename}: the {part.name} has {len(names)} arrays {kind!r}, but the parameters describe "
                    f"{len(ours)}; the model belongs to other parameters"
                )
            owners |= dict(zip(names, ours, strict=True))
        weights |= {owners[name].path: array for name, array in listed}
        trained += [owners[name].path for name, _ in listed if not name[-1].startswith("moving")]

    state: dict[str, h5py.Dataset] = {}
    slots: dict[str, list[h5py.Dataset]] = {}
    for name, array in _listed(handle.get("optimizer_weights")):
        slot = next((_SLOTS[part] for part in (name[-1], *name[:-2]) if part in _SLOTS), None)
        if name[-1] in _ITERATIONS:
            state["iteration"] = array
        elif slot is not None:
            slots.setdefault(slot, []).append(array)
        elif name[-1] != "learning_rate":
            state["/".join(name)] = array
    for kind, arrays in slots.items():
        if len(arrays) != len(trained):
            _LOGGER.warning("%s: has the %s of only some weights; it is not taken over", handle.filename, kind)
            continue
        state |= {f"{path.replace('/', '_')}_{kind}": array for path, array in zip(trained, arrays, strict=True)}
    return weights, state


def _listed(group: h5py.Group | None) -> list[tuple[tuple[str, ...], h5py.Dataset]]:
    """Return the arrays of a Keras 2 group in the order in which they were listed, with the parts of their names."""
    if group is None:
        return []
    # a long list is cut into the attributes weight_names0, weight_names1, ...
    keys = sorted(
        (key for key in group.attrs if re.fullmatch(r"weight_names\d*", key)), key=lambda key: (len(key), key)
    )
    names = [name.decode() if isinstance(name, bytes) else name for key in keys for name in group.attrs[key]]
    return [(tuple(re.sub(r":\d+$", "", name).split("/")), group[name]) for name in names]
