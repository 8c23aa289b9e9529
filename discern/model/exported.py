"""A model in one file, to give away: all that is needed to project new cells, and no cell.

An HDF5 file in the layout of a model (see `discern.model.model_file`) without the optimiser, and with it: `parameters`
and `card`, JSON; `var` and `uns` of the processed cells; `seen`, see `discern.model.known`; the attribute
`exported_version`. Nothing in it is executed, and it names nothing to import but what a parameter file may name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
from anndata.io import read_elem, write_elem

from discern.config.reading import parse_experiment
from discern.data.processed import LEFT_OUT
from discern.data.scaling import parse_mean_var
from discern.data.structure import check_format, check_texts, number, uns_as_written, uns_to_write
from discern.errors import InvalidInputError, UserError
from discern.model.building import NetworkParameters
from discern.model.checkpoint import read_model_file, write_network
from discern.model.known import Known, read_seen, write_seen
from discern.model.model_file import open_model
from discern.model.restoring import restore_file
from discern.runtime.atomic import replacing
from discern.runtime.hdf5 import OutputFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from discern.config.schema import Experiment
    from discern.model.trained import TrainedNetwork


EXPORTED_VERSION = 1
SUFFIX = ".discern"

_LARGEST_TEXT = 2**24
_OF_CELLS = ("user_columns",)  # of uns["DISCERN"]: what the user's obs columns were called


@dataclass(frozen=True)
class ExportedModel:
    """What a file says; the weights are still in it.

    Attributes:
        path: The file.
        parameters: The experiment's, without the names of its raw files.
        known: What is known of the cells that the model has seen.
        card: What it was trained on, its figures and its licence.
    """

    path: Path
    parameters: Experiment
    known: Known
    card: dict[str, Any]


def write(
    path: Path, trained: TrainedNetwork, parameters: Mapping[str, Any], known: Known, card: Mapping[str, Any]
) -> None:
    """Write a model; the file appears complete or not at all.

    Args:
        path: The file.
        trained: The network, with its genes, batches and scaling.
        parameters: Those of the experiment.
        known: What is known of its cells.
        card: See `ExportedModel`; JSON.
    """
    with replacing(path) as partial, OutputFile(partial) as file:
        write_network(file, trained)
        file.attrs["exported_version"] = EXPORTED_VERSION
        for name, content in (("parameters", _to_share(parameters)), ("card", card)):
            file.create_dataset(name, data=json.dumps(content, allow_nan=False), dtype=h5py.string_dtype())
        write_elem(file, "var", known.genes)
        write_elem(file, "uns", uns_to_write(_uns_to_share(known.uns)))
        write_seen(file, known.seen)


def _to_share(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters without what is of a machine or tells of files; the column of the batch is kept."""
    section = dict(parameters["input_ds"])
    columns = section.get("raw_input") or {}
    said = list(dict.fromkeys(columns.values())) if isinstance(columns, dict) else []
    section["raw_input"] = {"cells": said[0]} if len(said) == 1 and isinstance(said[0], str) else ["cells"]
    section.pop("n_cpus_preprocessing", None)
    training = {key: value for key, value in parameters["training"].items() if key not in ("GPU", "parallel_pc")}
    kept = {key: value for key, value in parameters.items() if key != "hyperparameter_search"}
    return {**kept, "input_ds": section, "training": training}


def _uns_to_share(uns: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in uns["DISCERN"].items() if key not in _OF_CELLS}
    if renamed := uns["DISCERN"].get("user_columns", {}).get("var"):
        config["user_columns"] = {"var": renamed}
    others = {key: uns[key] for key in ("fixed_scaling", "DISCERN_format", LEFT_OUT) if key in uns}
    return {"DISCERN": config, **others}


def read(path: Path) -> ExportedModel:
    """Read what a file says, not the weights.

    Raises:
        MissingFileError: If there is no such file.
        InvalidInputError: If it is no such file, a damaged one, or of a newer format.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidInputError(f"{path}: expected a file that `discern export` wrote, this is a folder")
    found = read_model_file(path)
    with open_model(path) as file:
        if "exported_version" not in file.attrs:
            raise InvalidInputError(
                f"{path}: expected a file that `discern export` wrote, this is a model of an experiment: export that "
                "(discern export EXPERIMENT MODEL.discern)"
            )
        version = number(file.attrs, "exported_version", 1)
        if version > EXPORTED_VERSION:
            raise InvalidInputError(
                f"{path}: exported in format {version:g} by a newer DISCERN; this one reads up to {EXPORTED_VERSION}"
            )
        given, card = (_json(file, name) for name in ("parameters", "card"))
        genes, uns = read_elem(file["var"]), uns_as_written(read_elem(file["uns"]))
        check_format(uns)
        check_texts(genes, "var")
        known = Known(genes, uns, read_seen(file, len(genes)))
        parse_mean_var(genes, uns.get("fixed_scaling"))
        if found.scaling is None or found.genes != list(genes.index) or found.batches != known.batches:
            raise ValueError("its genes and batches are not those of its network")
    try:
        parameters = parse_experiment(given)
    except UserError as error:
        raise type(error)(f"{path}: parameters: {error}") from error
    return ExportedModel(path, parameters, known, card)


def _json(file: h5py.File, name: str) -> dict[str, Any]:
    part = file[name]
    if not isinstance(part, h5py.Dataset) or part.shape != () or h5py.check_string_dtype(part.dtype) is None:
        raise ValueError(f"{name}: expected a text")
    text = part.asstr()[()]
    if len(text) > _LARGEST_TEXT:
        raise ValueError(f"{name}: a text of {len(text):,} characters")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected an object of JSON")
    return content


def network(model: ExportedModel) -> TrainedNetwork:
    """Build the network that the parameters describe, and read the weights into it.

    Raises:
        InvalidInputError: If they do not fit, or are nothing to calculate with.
    """
    trained = restore_file(model.path, NetworkParameters.of(model.parameters), with_optimizer=False)
    for seen in model.known.seen.values():
        kept = [alignment.codes for alignment in seen.alignments.values()]
        for codes in kept if seen.yardstick is None else [*kept, seen.yardstick.directions]:
            if codes.shape[1] != trained.n_latent:
                raise InvalidInputError(
                    f"{model.path}: not a complete model file (latent codes of {codes.shape[1]} dimensions, the "
                    f"network has {trained.n_latent})"
                )
    return trained
