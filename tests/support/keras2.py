"""Model files as Keras 2 wrote them, for networks of any kind: written with h5py alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import keras

    from discern.networks.autoencoder import WAE


def write_keras2(
    path: Path,
    model: WAE,
    optimizer: str = "RectifiedAdam",
    slots: Sequence[str] = ("m", "v"),
    prefix: str = "",
    new_names: bool = False,
    iterations: int = 40,
    as_bytes: bool = False,
    chunks: int = 1,
) -> dict[str, np.ndarray]:
    """Write the weights of `model` with a random optimiser state; returns the state as `SLOT/our path`.

    Args:
        path: The file.
        model: Whose weights to write.
        optimizer: Name of the optimiser.
        slots: Names of its slots.
        prefix: Before each of its names, as Keras 2 in graph mode had it.
        new_names: `Adam/m/dense/kernel:0` of Keras 2.11 and newer in place of `Adam/dense/kernel/m:0`.
        iterations: Number of steps taken.
        as_bytes: Whether names and config are bytes.
        chunks: Into how many attributes the lists of names are cut.
    """
    trained, state = [], {}
    dense = norm = 0
    with h5py.File(path, "w") as handle:
        handle.attrs["keras_version"] = "2.15.0"
        config = json.dumps(_config(model))
        handle.attrs["model_config"] = np.bytes_(config) if as_bytes else config
        weights = handle.create_group("model_weights")
        for empty in ("input_data", "mmdpp"):
            weights.create_group(empty).attrs["weight_names"] = np.array([], dtype="S1")
        for part in (model.encoder, model.decoder):
            trainable, frozen = [], []
            for layer in _in_keras2_order(part):
                kind, number = ("batch_normalization", norm) if "norm" in layer.name else ("dense", dense)
                if "norm" in layer.name:
                    norm += 1
                elif layer.name not in ("latent", "sigma_enc"):
                    dense += 1
                name = layer.name if layer.name in ("latent", "sigma_enc") else f"{kind}_{number}" if number else kind
                for variable in layer.weights:
                    listed = frozen if variable.name.startswith("moving") else trainable
                    listed.append((f"{name}/{variable.name}", variable))
            group = weights.create_group(part.name)
            _list(group, [f"{name}:0" for name, _ in trainable + frozen], as_bytes, chunks)
            for name, variable in trainable + frozen:
                group[f"{name}:0"] = variable.numpy()
            trained += trainable

        generator = np.random.default_rng(0)
        arrays: dict[str, Any] = {f"{prefix}{optimizer}/{'iteration' if new_names else 'iter'}:0": np.int64(iterations)}
        if new_names:
            arrays[f"{prefix}{optimizer}/learning_rate:0"] = np.float32(0.001)
            order = [(slot, *entry) for entry in trained for slot in slots]
        else:
            order = [(slot, *entry) for slot in slots for entry in trained]
        for slot, name, variable in order:
            array = generator.random(variable.shape).astype("float32")
            middle = f"{slot}/{name}" if new_names else f"{name}/{slot}"
            arrays[f"{prefix}{optimizer}/{middle}:0"] = array
            state[f"{slot}/{variable.path}"] = array
        group = handle.create_group("optimizer_weights")
        _list(group, list(arrays), as_bytes, chunks)
        for name, array in arrays.items():
            group[name] = array
    return state


def _in_keras2_order(part: keras.Model) -> list[keras.layers.Layer]:
    """Block by block: the dense layer, its batch norm, the offset; then the heads."""
    layers = {layer.name: layer for layer in part.layers if layer.weights}
    heads = [layers.pop(name) for name in ("latent", "sigma_enc", "counts", "dropouts") if name in layers]
    depth = sum("dense" in name for name in layers)
    blocks = [f"{part.name}_{kind}_{index}" for index in range(depth) for kind in ("dense", "norm", "offset")]
    return [layers[name] for name in blocks if name in layers] + heads


def _config(model: WAE) -> dict[str, Any]:
    inputs = [{"name": name, "batch_input_shape": [None, tensor.shape[1]]} for name, tensor in model.input.items()]
    others = [{"name": "encoder"}, {"name": "decoder"}, {"name": "mmdpp", "scale": model.total_number_cells}]
    return {"class_name": "Functional", "config": {"layers": [{"config": config} for config in inputs + others]}}


def _list(group: h5py.Group, names: list[str], as_bytes: bool, chunks: int) -> None:
    for index, part in enumerate(np.array_split(np.array(names), chunks)):
        key = f"weight_names{index}" if chunks > 1 else "weight_names"
        group.attrs[key] = part.astype("S") if as_bytes else part.astype(h5py.string_dtype())
