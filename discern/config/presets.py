"""Recipes: what `"preset"` in an experiment fills in for the keys that the user did not give."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from discern.config.fields import JsonObject


#: Preset -> sections of an EXPERIMENT. What each of these pays is measured by benchmarks/quality.py: docs/quality.md.
PRESETS: dict[str, JsonObject] = {
    "auto": {
        "input_ds": {
            "scale": {"LSN": 20000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
            "split": {"valid_cells": 0},
        },
        "model": {
            "encoder": {"layers": [256, 256], "regularization": 0.4},
            "decoder": {"layers": [256, 256], "regularization": 0.0},
            "crossentropy": {"label_smoothing": 0.0, "lower_label_smoothing": 0.1},
            "weighting_decoder_dropout": 10000,
            "weighting_batch_mmd": 1000,
            "weighting_noisy_genes": 0.02,
            "align_batches": True,
        },
        "training": {
            "max_steps": 75,
            "max_updates": 2500,
            "early_stopping": {},
            "thin_counts": 0.15,
            "average_weights": 0.2,
        },
    }
}

TEST_CELLS = 0.1
"""Share of each batch that `discern init` and `discern.reconstruct` set aside for `discern evaluate`."""

_CONDITIONAL = "conditionallayernorm"


def filled(experiment: JsonObject) -> JsonObject:
    """Return a copy of an EXPERIMENT with the keys added that its preset sets and that it does not have.

    Who gives `max_steps` gets so many epochs: `max_updates` is not added then. What stands in `encoder` and `decoder`
    is one choice for both, which may also be given above them. The decoder's batch is an offset in its last hidden
    layer only: what the layers before it learn of the cells holds for all batches.

    Args:
        experiment: With a known `preset`, and in `model` no old spellings. Values may be wrong: they are left as they
            are.

    Example:
        >>> filled({"preset": "auto", "model": {"layers": [64, 32]}})["model"]["decoder"]
        {'regularization': 0.0, 'norm_type': ['layernorm', 'conditionallayernorm']}
    """
    result = dict(experiment)
    for name, defaults in PRESETS[experiment["preset"]].items():
        given = {} if result.get(name) is None else result[name]
        if name == "training" and isinstance(given, dict) and "max_steps" in given:
            defaults = {key: value for key, value in defaults.items() if key != "max_updates"}
        result[name] = (_filled_model if name == "model" else _filled)(given, copy.deepcopy(defaults))
    return result


def _filled(given: object, defaults: JsonObject) -> object:
    """Return `given` with those of the defaults that it does not have, at any depth."""
    if not isinstance(given, dict):
        return given
    sections = [key for key, value in defaults.items() if isinstance(value, dict) and value and key in given]
    return {**defaults, **given, **{key: _filled(given[key], defaults[key]) for key in sections}}


def _filled_model(given: object, defaults: JsonObject) -> object:
    if not isinstance(given, dict):
        return given
    sides = {side: given.get(side, {}) for side in ("encoder", "decoder")}
    if not all(isinstance(side, dict) for side in sides.values()):
        return given
    taken = set(given).union(*sides.values())
    result = defaults | given
    result["crossentropy"] = _filled(result["crossentropy"], defaults["crossentropy"])
    for name, side in sides.items():
        result[name] = {key: value for key, value in defaults[name].items() if key not in taken} | side
    layers = [result[side].get("layers", given.get("layers")) for side in sides]
    if "norm_type" not in taken and all(isinstance(sizes, list) and sizes for sizes in layers):
        result["encoder"]["norm_type"] = [_CONDITIONAL] * len(layers[0])
        result["decoder"]["norm_type"] = ["layernorm"] * (len(layers[1]) - 1) + [_CONDITIONAL]
    return result
