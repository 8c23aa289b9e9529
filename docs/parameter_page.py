"""The page on all parameters, made from the JSON Schema that `discern schema` prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from discern.config.reading import schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SECTIONS = {
    "ParameterFile": "The file",
    "ExpParam": "exp_param",
    "Experiment": "EXPERIMENT",
    "InputDs": "input_ds",
    "Filtering": "input_ds.filtering",
    "Scale": "input_ds.scale",
    "FixedScaling": "input_ds.scale.fixed_scaling",
    "Split": "input_ds.split",
    "Model": "model",
    "Side": "model.encoder and model.decoder",
    "Regularizer": "model...conditional_regularization",
    "ReconstructionLoss": "model.reconstruction_loss",
    "Crossentropy": "model.crossentropy",
    "Training": "training",
    "EarlyStopping": "training.early_stopping",
    "Optimizer": "training.optimizer",
    "LearningDecay": "training.optimizer.learning_decay",
}

_INTRODUCTION = """# All parameters

Made from the schema that `discern schema` prints; an editor that is given it completes and checks parameter files.
"absent" means that the key may be left out, and that leaving it out means something (no normalisation, no seed, ...).
`parameters.json` is the place for all of them ([start](../start.md)); in Python they are keyword arguments of
[`discern.reconstruct`](../api.md) under the same names.

The shape of the file:

```json
{"exp_param": {"experiments_dir": "DIR"}, "experiments": {"NAME": {"input_ds": {}, "model": {}, "training": {}}}}
```

A file may also hold one EXPERIMENT alone; then its folder is the experiment and the folder above `experiments_dir`.
That is what `discern process` leaves in `DIR/NAME/parameters.json`.
"""


def write_parameter_page(path: Path) -> None:
    """Write the page.

    Args:
        path: The Markdown file; the pages that it links to are in the folder above.
    """
    definitions = schema()["$defs"]
    if missing := set(definitions) - set(_SECTIONS):
        raise ValueError(f"sections of the schema without a place on the page: {sorted(missing)}")
    path.write_text(
        "\n".join([_INTRODUCTION, *(line for name in _SECTIONS for line in _section(name, definitions[name]))])
    )


def _section(name: str, definition: dict[str, Any]) -> Iterator[str]:
    title = _SECTIONS[name]
    yield f"\n## {title}\n" if title == "The file" else f"\n## `{title}`\n"
    yield f"{definition['description']}\n"
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    for key, value in definition["properties"].items():
        default = _default(key, value, key in definition.get("required", ()))
        yield f"| `{key}` | {_kind(value)} | {default} | {value.get('description', '')} |"


def _default(key: str, value: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = value.get("default")
    if isinstance(default, dict):
        default = {key: entry for key, entry in default.items() if entry is not None}
        return f"`{json.dumps(default)}`" if "name" in default or "algorithm" in default else "see there"
    return "absent" if default is None and key != "output_fn" else f"`{json.dumps(default)}`"


def _kind(value: dict[str, Any]) -> str:
    """Say in words what JSON Schema says."""
    if "anyOf" in value:
        return " or ".join(_kind(option) for option in value["anyOf"] if option.get("type") != "null")
    if "$ref" in value:
        return f"`{_SECTIONS[value['$ref'].rpartition('/')[2]].rpartition('.')[2]}`"
    if "const" in value or "enum" in value:
        return ", ".join(f"`{json.dumps(option)}`" for option in value.get("enum", [value.get("const")]))
    match value.get("type"):
        case "array":
            return f"list of {_kind(value['items'])}s"
        case "object":
            return "object"
        case list() as kinds:
            return " or ".join(kinds)
        case kind:
            words = {"string": "text", "integer": "whole number", "boolean": "`true` or `false`"}
            return words.get(str(kind), str(kind)) + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    words = {"minimum": "≥", "ge": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[key]:g}" for key, sign in words.items() if key in value]
    return f" {', '.join(bounds)}" if bounds else ""
