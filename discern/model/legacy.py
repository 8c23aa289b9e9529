"""Model files of the original program: a whole Keras 2 model, weights in the order of the layers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from discern.model.model_file import open_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


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
