"""What a user has changed in the parameter file since `discern process` copied it into the experiment's folder."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from discern.config.fields import shown
from discern.config.reading import load_parameters
from discern.errors import InvalidInputError
from discern.folder.layout import UNFINISHED, ExperimentFolder, models
from discern.folder.locks import locked
from discern.runtime.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from discern.config.reading import Parameters

_LOGGER = logging.getLogger(__name__)


_MACHINE = ("input_ds.n_cpus_preprocessing",)  # says nothing about the cells
# What of the network may change between two trainings: how it is trained, not what its weights mean.
_FREE_IN_MODEL = (
    *("reconstruction_loss", "crossentropy", "wae_lambda", "weighting_decoder_dropout", "weighting_random_encoder"),
    *("weighting_batch_mmd", "weighting_noisy_genes", "encoder.regularization", "decoder.regularization"),
    *("encoder.conditional_regularization", "decoder.conditional_regularization", "align_batches"),
)


def take_over_edits(parameters: Parameters) -> tuple[Parameters, dict[str, Exception]]:
    """Make the folders' copies of the parameters what the user's file says now.

    Args:
        parameters: The experiments of the file that a command was given.

    Returns:
        The experiments that can go on, and for each of the others the error: a key has changed that only processing, or
        a new training, can follow.
    """
    kept, failed = dict(parameters.experiments), {}
    for name in parameters.experiments:
        copy = ExperimentFolder(parameters.folder(name)).parameters
        if not copy.is_file() or (parameters.path.exists() and copy.samefile(parameters.path)):
            continue
        try:
            _take_over(parameters, name, copy)
        except Exception as error:  # noqa: BLE001 (reported for each experiment at the end)
            del kept[name]
            failed[name] = error
    return replace(parameters, experiments=kept), failed


def describe_edits(parameters: Parameters, name: str) -> str:
    """Say in one line what differs between the user's file and the folder's copy; an empty text if nothing does."""
    copy = ExperimentFolder(parameters.folder(name)).parameters
    if not copy.is_file() or copy.samefile(parameters.path):
        return ""
    try:
        changed = _changes(parameters, name, copy)
        _check(parameters, name, changed)
    except InvalidInputError as error:
        return str(error)
    return f"{_listed(changed)}: taken over by the next command" if changed else ""


def _take_over(parameters: Parameters, name: str, copy: Path) -> None:
    if not _changes(parameters, name, copy):
        return
    with locked(copy.parent):
        changed = _changes(parameters, name, copy)
        _check(parameters, name, changed)
        with replacing(copy) as partial:
            partial.write_text(json.dumps(parameters.given[name], indent=4))
    _LOGGER.info("%s: taken over from %s: %s", name, parameters.path, _listed(changed))


def _changes(parameters: Parameters, name: str, copy: Path) -> dict[str, tuple[object, object]]:
    """Return the dotted keys that differ, with the value in the folder's copy and that in the user's file."""
    (processed,) = load_parameters(copy).experiments.values()
    before, after = (dict(_flat(experiment.as_dict())) for experiment in (processed, parameters.experiments[name]))
    return {
        key: (before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and key not in _MACHINE
    }


def _check(parameters: Parameters, name: str, changed: Mapping[str, tuple[object, object]]) -> None:
    folder = parameters.folder(name)
    for key, (before, after) in changed.items():
        values = f"{key} is {shown(after)} in {parameters.path}"
        if key.startswith("input_ds."):
            raise InvalidInputError(
                f"{values}, but the cells were processed with {shown(before)}: run `discern process --force "
                f"{parameters.path}`, or put the old value back"
            )
        if key.startswith("model.") and not _is_free(key) and _has_weights(folder):
            raise InvalidInputError(
                f"{values}, but the model in {folder / 'job'} was trained with {shown(before)}: put the old value "
                "back, or move the folder away to train a new one"
            )


def _is_free(key: str) -> bool:
    place = key.removeprefix("model.")
    return any(place == free or place.startswith(f"{free}.") for free in _FREE_IN_MODEL)


def _has_weights(folder: Path) -> bool:
    job = ExperimentFolder(folder).job
    return bool(models(job)) or (job / UNFINISHED).is_file()


def _listed(changed: Mapping[str, tuple[object, object]]) -> str:
    return ", ".join(f"{key} {shown(before)} -> {shown(after)}" for key, (before, after) in changed.items())


def _flat(tree: Mapping[str, object], way: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict) and key != "raw_input":
            yield from _flat(value, f"{way}{key}.")
        else:
            yield f"{way}{key}", value
