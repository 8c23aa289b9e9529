"""What may stand for a value in `parameters.json` and in the hyperparameter search file: types, each with its check."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeGuard

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema

from discern.config.allowlist import KNOWN, look_up, names_of
from discern.errors import InvalidInputError, UnknownNameError, UnsupportedError, UserError, nearest
from discern.runtime.text import has_control

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_MOST = 2**31 - 1  # TensorFlow, HDF5 and pandas count with 32 bits in places
_NORMS = ("layernorm", "batchnorm", "conditionallayernorm", "conditionalbatchnorm")
_OUTPUT_FUNCTIONS = ("softmax", "LSN", "sigsoftmax")
_LOSSES = {name.rpartition(".")[2]: name for name in reversed(names_of("loss"))}
_ACTIVATIONS = {known.attribute: name for name, known in KNOWN.items() if known.module == "keras.activations"}


class Refused(ValueError):
    """Carries an error of the user through pydantic, which adds the path of the key."""

    def __init__(self, message: str, kind: type[UserError] = InvalidInputError):
        super().__init__(message)
        self.kind = kind


def shown(value: object) -> str:
    """Return a value of a file as it stands there, in short."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "an integer of more than 30 digits"
    try:
        text = json.dumps(value, default=repr)
    except (ValueError, TypeError, RecursionError):
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= _MOST  # never so for what is no number


def _cells(value: object) -> float:
    if not _is_number(value) or value < 0 or (isinstance(value, float) and value > 1):
        raise Refused(f"expected a share between 0.0 and 1.0 or a whole number of cells, got {shown(value)}")
    return value


def _genes_or_number(value: object) -> GenesOr:
    if value == "genes":
        return "genes"
    if _is_number(value) and abs(value) <= 1e6:
        return value
    bounds = " between -1e6 and 1e6" if _is_number(value) else ""
    raise Refused(f'expected "genes" or a number{bounds}, got {shown(value)}')


def _genes_or_deviation(value: object) -> GenesOr:
    if value == "genes":
        return "genes"
    if _is_number(value) and 1e-8 <= value <= 1e6:
        return value
    bounds = " between 1e-8 and 1e6" if _is_number(value) else ""
    raise Refused(f'expected "genes" or a number{bounds}, got {shown(value)}')


def _raw_input(value: object) -> Inputs:
    if not isinstance(value, list | dict) or not value or not all(isinstance(path, str) and path for path in value):
        raise Refused(f"expected a list of paths or {{path: obs column}}, not empty, got {shown(value)}")
    if len(set(value)) < len(value):
        raise Refused(f"expected each path once, got {shown(value)}")
    for path, source in value.items() if isinstance(value, dict) else ():
        _check_source(path, source)
    return value


def _check_source(path: str, source: object) -> None:
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


def _named(name: str, kind: str) -> str:
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


def check_path(text: str) -> str:
    """Return a path of a file, unless no file system can have it.

    Raises:
        Refused: If it is empty, too long, or holds control characters.
    """
    if not text.strip():
        raise Refused("expected a path, a text that is not empty")
    if has_control(text):
        raise Refused(f"expected a path without control characters, got {shown(text)}")
    if len(text.encode()) > 4000 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise Refused(f"expected a path that a file system can have, got one of {len(text)} characters: {shown(text)}")
    return text


def at_least(least: float) -> AfterValidator:
    """Return a check that a number is no smaller than what single precision can do something with."""

    def check(value: float) -> float:
        if value < least:
            raise Refused(f"expected {least:g} or more, got {shown(value)}")
        return value

    return AfterValidator(check)


def _column(text: str) -> str:
    if not text or has_control(text):
        raise Refused(f"expected a name, got {shown(text)}")
    return text


def expected_of(found: ErrorDetails) -> str:
    """Return what was expected and what came, of one of pydantic's errors."""
    if isinstance(refused := found.get("ctx", {}).get("error"), Refused):
        return str(refused)
    kind, context = found["type"], found.get("ctx", {})
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else found["msg"]
    return f"expected {expected}, got {shown(found['input'])}"


_EXPECTED = {
    "int_type": "an integer",
    "int_parsing_size": "an integer of fewer digits",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "string_pattern_mismatch": "a plain name of letters, figures, '_', '.' and '-'",
    "list_type": "a list",
    "none_required": "null",
    "too_short": "at least {min_length} entry",
    "too_long": "at most {max_length} entries",
    "dict_type": "an object {{...}}",
    "model_type": "an object {{...}}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "literal_error": "{expected}",
}


def naming(kind: str) -> AfterValidator:
    """Return a check that a text is the dotted name of something of this kind, see `discern.config.allowlist`."""
    return AfterValidator(lambda name: _named(name, kind))


JsonObject: TypeAlias = dict[str, Any]
"""An object of a JSON file."""

Norm = Annotated[str, AfterValidator(_norm)]
Loss = Annotated[str, AfterValidator(_loss)]
Activation = Annotated[str, AfterValidator(_activation)]
OutputFunction = Annotated[str, AfterValidator(_output_function)]
Count = Annotated[int, BeforeValidator(_integral), Field(ge=0, le=_MOST)]
Positive = Annotated[int, BeforeValidator(_integral), Field(ge=1, le=_MOST)]
TwoOrMore = Annotated[int, BeforeValidator(_integral), Field(ge=2, le=_MOST)]
Seed = Annotated[int, BeforeValidator(_integral), Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e20)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Layers = Annotated[list[Annotated[Positive, Field(le=10**6)]], Field(min_length=1, max_length=100)]
FilePath = Annotated[str, AfterValidator(check_path)]
Column = Annotated[str, AfterValidator(_column)]
Cells = Annotated[int | float, PlainValidator(_cells), WithJsonSchema({"type": "number", "minimum": 0})]
GenesOr: TypeAlias = float | Literal["genes"]
_GENES_OR = WithJsonSchema({"anyOf": [{"const": "genes"}, {"type": "number"}]})
GenesOrNumber = Annotated[GenesOr, PlainValidator(_genes_or_number), _GENES_OR]
GenesOrDeviation = Annotated[GenesOr, PlainValidator(_genes_or_deviation), _GENES_OR]
_BATCH_COLUMN = {"anyOf": [{"type": ["string", "null"]}, {"const": False}]}
_SOURCE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"batch": _BATCH_COLUMN, "layer": {"type": ["string", "null"]}},
}
Inputs: TypeAlias = list[str] | dict[str, str | Literal[False] | dict[str, str | None] | None]
RawInput = Annotated[
    Inputs | None,
    PlainValidator(_raw_input),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "object", "additionalProperties": {"anyOf": [_BATCH_COLUMN, _SOURCE]}, "minProperties": 1},
            ]
        }
    ),
]
