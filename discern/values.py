"""What may stand for a value in `parameters.json` and in the hyperparameter search file: types, each with its check."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from discern.errors import InvalidInputError, UnknownNameError, UnsupportedError, UserError, nearest
from discern.names import KNOWN, look_up, names_of

_NORMS = ("layernorm", "batchnorm", "conditionallayernorm", "conditionalbatchnorm")
_OUTPUT_FUNCTIONS = ("softmax", "LSN", "sigsoftmax")
_LOSSES = {name.rpartition(".")[2]: name for name in reversed(names_of("loss"))}
_ACTIVATIONS = {known.attribute: name for name, known in KNOWN.items() if known.module == "keras.activations"}


class Refused(ValueError):
    """Carries an error of the user through pydantic, which adds the path of the key."""

    def __init__(self, message: str, kind: type[UserError] = InvalidInputError):
        super().__init__(message)
        self.kind = kind


def shown(value: Any) -> str:
    """Return a value of a file as it stands there, in short."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cells(value: Any) -> int | float:
    if not _is_number(value) or value < 0 or (isinstance(value, float) and value > 1):
        raise Refused(f"expected a share between 0.0 and 1.0 or a whole number of cells, got {shown(value)}")
    return value


def _genes_or_number(value: Any) -> str | float:
    if value == "genes" or _is_number(value):
        return value
    raise Refused(f'expected "genes" or a number, got {shown(value)}')


def _raw_input(value: Any) -> list[str] | dict[str, Any]:
    paths = list(value) if isinstance(value, list | dict) else []
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise Refused(f"expected a list of paths or {{path: obs column}}, not empty, got {shown(value)}")
    if len(set(paths)) < len(paths):
        raise Refused(f"expected each path once, got {shown(value)}")
    for path, source in value.items() if isinstance(value, dict) else ():
        _check_source(path, source)
    return value


def _check_source(path: str, source: Any) -> None:
    """Check what is said of one input: its batch column, or an object with that and the layer."""
    options = source if isinstance(source, dict) else {"batch": source}
    for key in options:
        if key not in ("batch", "layer"):
            raise Refused(f"{path}: unknown key {key!r}{nearest(key, ('batch', 'layer'))}", UnknownNameError)
    batch, layer = options.get("batch"), options.get("layer")
    if not (batch is None or batch is False or (isinstance(batch, str) and batch)):
        raise Refused(
            f"{path}: expected the name of an obs column, null (column batch, if there is one) or false (name of the "
            f"file), got {shown(batch)}"
        )
    if not (layer is None or (isinstance(layer, str) and layer)):
        raise Refused(f"{path}: expected the name of a layer or null, got {shown(layer)}")


def _named(name: Any, kind: str) -> str:
    try:
        look_up(name, kind)
    except UserError as error:
        raise Refused(str(error), type(error)) from None
    return name


def _activation(name: str) -> str:
    if "." in name:
        return _named(name, "activation")
    if name not in _ACTIVATIONS:
        raise Refused(f"unknown activation {name!r}{nearest(name, _ACTIVATIONS)}", UnknownNameError)
    return _ACTIVATIONS[name]


def _output_function(name: str) -> str:
    if name not in _OUTPUT_FUNCTIONS:
        _activation(name)
    return name


def _loss(name: str) -> str:
    if "." in name:
        return _named(name, "loss")
    if name not in _LOSSES:
        raise Refused(f"unknown loss {name!r}{nearest(name, _LOSSES)}", UnknownNameError)
    return name


def _norm(name: str) -> str:
    if name not in _NORMS:
        raise Refused(f"norm_type {name!r} is not one of {', '.join(_NORMS)}{nearest(name, _NORMS)}", UnsupportedError)
    return name


def name_of(kind: str) -> Any:
    """Return the type of a dotted name of something of this kind, see `discern.names`."""
    return Annotated[str, AfterValidator(lambda name: _named(name, kind))]


Norm = Annotated[str, AfterValidator(_norm)]
Loss = Annotated[str, AfterValidator(_loss)]
Activation = Annotated[str, AfterValidator(_activation)]
OutputFunction = Annotated[str, AfterValidator(_output_function)]
Count = Annotated[int, BeforeValidator(_integral), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_integral), Field(ge=1)]
TwoOrMore = Annotated[int, BeforeValidator(_integral), Field(ge=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Layers = Annotated[list[Positive], Field(min_length=1)]
Cells = Annotated[Any, AfterValidator(_cells), WithJsonSchema({"type": "number", "minimum": 0})]
GenesOrNumber = Annotated[
    Any, AfterValidator(_genes_or_number), WithJsonSchema({"anyOf": [{"const": "genes"}, {"type": "number"}]})
]
_BATCH_COLUMN = {"anyOf": [{"type": ["string", "null"]}, {"const": False}]}
_SOURCE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"batch": _BATCH_COLUMN, "layer": {"type": ["string", "null"]}},
}
RawInput = Annotated[
    Any,
    AfterValidator(_raw_input),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "object", "additionalProperties": {"anyOf": [_BATCH_COLUMN, _SOURCE]}, "minProperties": 1},
            ]
        }
    ),
]
