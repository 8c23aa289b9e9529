"""Reading of `parameters.json` and of the hyperparameter search file.

Everything that can be wrong in such a file is found here, before any work starts, and told in one line: the path of the
key, what was expected, what came. The rest of the program gets an `Experiment` or a `SearchFile`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from discern.config.arguments import names_taken
from discern.config.fields import JsonObject, Refused, check_path, expected_of, shown
from discern.config.schema import Experiment, ParameterFile, Section, WithArguments
from discern.config.search import SearchFile, SearchSpaceLeaf
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, UserError, nearest
from discern.runtime.foreign import check_file
from discern.runtime.text import has_control, visible

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence


_DEEPEST = 50
_Section = TypeVar("_Section", bound=Section)
_UNFIT = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Parameters:
    """A parameter file, validated.

    Attributes:
        path: The file.
        experiments_dir: The folder that holds a folder for each experiment.
        experiments: Each experiment, by name.
        given: The same as they stand in the file.
    """

    path: Path
    experiments_dir: Path
    experiments: dict[str, Experiment]
    given: dict[str, JsonObject] = field(repr=False)

    def folder(self, name: str) -> Path:
        """Return the folder of an experiment."""
        return self.experiments_dir / name


def load_parameters(path: Path) -> Parameters:
    """Read and validate a parameter file, full or of one experiment.

    Args:
        path: A full file, or the `parameters.json` in an experiment's folder: then the experiment has the name of that
            folder and belongs to the folder above.

    Raises:
        MissingFileError: If there is no such file.
        InvalidInputError: If it is no JSON, or a value is not what is expected.
        UnknownNameError: If a key or a name is unknown, given twice, or lacking.
        UnsupportedError: If it asks for something that exists no more.
    """
    content = read_json(path)
    with _naming(path):
        if {"search_space", "train_spec"} & content.keys():
            raise InvalidInputError(
                "expected a parameter file, got a search file: an experiment names it as `hyperparameter_search`"
            )
        if "experiments" in content or "exp_param" in content:
            parsed = _validate(ParameterFile, content)
            experiments_dir = Path(parsed.exp_param.experiments_dir)
            given, experiments = content["experiments"], parsed.experiments
        else:
            folder = path.absolute().parent
            experiments_dir, given = folder.parent, {folder.name: content}
            experiments = {folder.name: _validate(Experiment, content)}
        _check_names(experiments)
        for name, experiment in experiments.items():
            if experiment.input_ds.raw_input is None:
                raise UnknownNameError(f"{name}: 'input_ds.raw_input' is lacking: the list of the files to read")
            for file in experiment.input_ds.raw_input:
                _check_raw_path(name, file)
        _check_folder(experiments_dir)
    return Parameters(path, experiments_dir, experiments, given)


def parse_experiment(experiment: Mapping[str, object]) -> Experiment:
    """Validate one experiment.

    Args:
        experiment: EXPERIMENT as in a file, or some of its sections; tuples, paths and numpy numbers are accepted.

    Returns:
        The experiment in canonical form. Old spellings are translated; `layers`, `norm_type`, `regularization` and
        `conditional_regularization` are inside `encoder` and `decoder`, in the order in which each applies them;
        published defaults are filled in. In its `as_dict()` a key that is absent or null, and whose absence means
        something ("LSN", "fixed_scaling", "GPU", ...), is absent; "output_fn" is always there.

    Raises:
        InvalidInputError: If a value is not what is expected.
        UnknownNameError: If a key or a name is unknown, given twice, or lacking.
        UnsupportedError: If it asks for something that exists no more.

    Example:
        >>> model = parse_experiment({"model": {"layers": [64, 32], "regularization": 0}}).model
        >>> model.decoder.layers, model.decoder.regularization, model.latent_dim
        ([32, 64], 0.0, 48)
    """
    check_experiment(experiment)
    return _validate(Experiment, _jsonlike(experiment))


def check_experiment(experiment: object) -> None:
    """Raise unless something is one EXPERIMENT, rather than a whole parameter file or the path of one.

    Example:
        >>> check_experiment({"exp_param": {}, "experiments": {"mine": {}}})
        Traceback (most recent call last):
        ...
        discern.errors.UnknownNameError: expected one experiment, got a whole parameter file: give ['experiments'][...
    """
    if not isinstance(experiment, Mapping):
        raise InvalidInputError(
            f"expected one experiment as a dictionary, got {type(experiment).__name__}; of a file: "
            "json.loads(Path(FILE).read_text())['experiments'][NAME]"
        )
    if isinstance(found := experiment.get("experiments"), Mapping):
        raise UnknownNameError(
            "expected one experiment, got a whole parameter file: give ['experiments'][NAME] of it; NAME is one of "
            f"{', '.join(map(str, found))}"
        )


def load_search(path: Path) -> SearchFile:
    """Read and validate a hyperparameter search file.

    Raises:
        MissingFileError: If there is no such file.
        InvalidInputError: If it is no JSON, or a value is not what is expected.
        UnknownNameError: If a key or a name is unknown.
        UnsupportedError: If it asks for something that exists no more.
    """
    content = read_json(path)
    with _naming(path):
        return parse_search(content)


def parse_search(content: Mapping[str, object]) -> SearchFile:
    """Validate the content of a hyperparameter search file; raises what `load_search` raises."""
    if {"experiments", "input_ds"} & content.keys():
        raise InvalidInputError("expected a search file (`train_spec`, `search_space`, ...), got a parameter file")
    search = _validate(SearchFile, content)
    _check_search_space(search.search_space, Experiment, ("search_space",))
    for key in search.search_space:
        if key not in ("model", "training"):
            raise InvalidInputError(f"search_space.{key}: expected keys of 'model' or 'training': all else is fixed")
    return search


def merge_parameters(paths: Sequence[Path]) -> JsonObject:
    """Return one full parameter file with the experiments of several, relative to the folder that they share.

    Args:
        paths: Full parameter files, or those in experiments' folders.

    Raises:
        InvalidInputError: If an experiment is given twice, or as for `load_parameters`.
    """
    given: dict[Path, JsonObject] = {}
    for path in paths:
        parameters = load_parameters(path)
        for name, experiment in parameters.given.items():
            folder = parameters.folder(name).absolute()
            if folder in given:
                raise InvalidInputError(f"{path}: experiment {folder} is given twice")
            given[folder] = experiment
    common = Path(os.path.commonpath([folder.parent for folder in given]))
    shared = common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
    experiments = {folder.relative_to(common).as_posix(): experiment for folder, experiment in given.items()}
    return {"exp_param": {"experiments_dir": str(shared)}, "experiments": experiments}


def schema() -> JsonObject:
    """Return the JSON Schema of `parameters.json`, for editors.

    Example:
        >>> schema()["$defs"]["Filtering"]["properties"]["min_cells"]["description"]
        'A gene is kept if it is detected in at least so many of the kept cells.'
    """
    content = TypeAdapter[ParameterFile | Experiment](ParameterFile | Experiment).json_schema()
    described = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "DISCERN parameters"}
    return described | content


def read_json(path: Path) -> JsonObject:
    """Read a JSON file that holds one object; strict: no duplicate keys, NaN or infinity.

    Raises:
        MissingFileError: If there is no such file.
        InvalidInputError: If it cannot be read or is not such JSON.
    """
    try:
        if path.exists() and not path.is_dir():
            check_file(path)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path}: expected a JSON file, got a folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: cannot be read as text: {error}") from None
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_finite_number,
            parse_float=_finite_number,
            parse_int=_short_integer,
        )
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"{path}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise InvalidInputError(
            f"{path}: not valid JSON for this program: objects are nested more than {_DEEPEST} deep"
        ) from None
    except ValueError as error:
        raise InvalidInputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path}: expected an object {{...}}, got {shown(content)}")
    with _naming(path):
        _check_texts(content, ())
    return content


def _check_raw_path(name: str, file: str) -> None:
    try:
        check_path(file)
    except Refused as refused:
        raise InvalidInputError(f"{name}: input_ds.raw_input: {refused}") from None


def _check_folder(experiments_dir: Path) -> None:
    """Refuse a folder that is or lies in something that is none."""
    for place in (experiments_dir, *experiments_dir.parents):
        with contextlib.suppress(OSError):  # a place that cannot be looked at is told when it is used
            if place.exists():
                if not place.is_dir():
                    raise InvalidInputError(f"exp_param.experiments_dir: expected a folder, {place} is none")
                return


def _check_search_space(tree: object, section: type[Section] | None, path: tuple[str, ...]) -> None:
    if not isinstance(tree, dict) or not tree:
        raise InvalidInputError(f'{_dotted(path)}: expected {{"type", "name", "args"}}, got {shown(tree)}')
    if "type" in tree:
        _validate(SearchSpaceLeaf, tree, path)
        return
    for key, branch in tree.items():
        if section is None or (key not in section.model_fields and not _takes_argument(section, key)):
            known = section.model_fields if section else ()
            raise UnknownNameError(f"{_dotted((*path, key))}: no such parameter{nearest(key, known)}")
        _check_search_space(branch, _section_at(section, (key,)), (*path, key))


def _takes_argument(section: type[Section], key: str) -> bool:
    if not issubclass(section, WithArguments):
        return False
    return section.kind == "loss" or key in names_taken(section.kind)  # the published file varies a lost one's


def _check_texts(tree: object, place: tuple[str | int, ...]) -> None:
    """Refuse what no part of a file has a use for: deep nesting, and text that cannot be written anywhere."""
    if len(place) > _DEEPEST:
        raise InvalidInputError(
            f"{_dotted(place[:3])}...: not valid JSON for this program: objects are nested more than {_DEEPEST} deep"
        )
    entries: Iterable[tuple[str | int, object]] = ()
    if isinstance(tree, dict):
        entries = tree.items()
    elif isinstance(tree, list):
        entries = enumerate(tree)
    elif isinstance(tree, str) and (unfit := _UNFIT.search(tree)):
        raise InvalidInputError(f"{_dotted(place)}: the character U+{ord(unfit[0]):04X} cannot stand in a text")
    for key, value in entries:
        _check_texts(value, (*place, key))


def _unique_keys(pairs: list[tuple[str, object]]) -> JsonObject:
    found: JsonObject = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is given twice in one object")
        found[key] = value
    return found


def _finite_number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"expected finite numbers, got {text}")
    return number


def _short_integer(text: str) -> int:
    if len(text) > 30:
        raise ValueError(f"expected numbers of at most 30 figures, got {text[:10]}... of {len(text)}")
    return int(text)


def _check_names(names: Collection[str]) -> None:
    for name in names:
        for part in name.split("/"):
            unfit = (
                not part.strip()
                or part.startswith(".")
                or "\\" in part
                or has_control(part)
                or len(part.encode()) > 200
            )
            if unfit or name == "discern.log":
                raise InvalidInputError(
                    f"experiments: expected names of folders below experiments_dir (none starts with '.'), "
                    f"got {name[:100]!r}"
                )
        for other in names:
            if other.startswith(f"{name}/"):
                raise InvalidInputError(f"experiments: {other!r} lies in the folder of {name!r}: rename one of them")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's path before the message of an error of the user."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{path}: {error}") from None


def _validate(section: type[_Section], content: object, path: tuple[str, ...] = ()) -> _Section:
    try:
        return section.model_validate(content)
    except ValidationError as error:
        raise _in_one_line(error, section, path) from None


def _in_one_line(error: ValidationError, root: type[Section], path: tuple[str, ...]) -> UserError:
    first, *others = sorted(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    place = first["loc"]
    kind: type[UserError] = InvalidInputError
    match first["type"], first.get("ctx", {}):
        case "extra_forbidden", _:
            known = _section_at(root, place[:-1])
            kind, text = UnknownNameError, f"unknown key{nearest(str(place[-1]), known.model_fields if known else ())}"
        case "missing", _:
            kind, text = UnknownNameError, "this key is lacking"
        case "value_error", {"error": Refused() as refused}:
            kind, text = refused.kind, str(refused)
        case _:
            text = expected_of(first)
    more = f" (and {len(others)} more)" if others else ""
    where = _dotted((*path, *place))
    return kind(f"{where}: {text}{more}" if where else f"{text}{more}")


def _section_at(root: type[Section] | None, place: tuple[str | int, ...]) -> type[Section] | None:
    """Return the class of the section at a path of keys, None if it is not one."""
    section, held = root, False
    for key in place:
        if held:
            held = False  # the key of an entry of a dictionary of sections
            continue
        if section is None or key not in section.model_fields:
            return None
        section, held = _section_in(section.model_fields[key].annotation)
    return section


def _section_in(annotation: object) -> tuple[type[Section] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for part in get_args(annotation):
        section, _ = _section_in(part)
        if section is not None:
            return section, get_origin(annotation) is dict
    return None, False


def _jsonlike(value: object, depth: int = 0) -> object:
    if depth > _DEEPEST:
        raise InvalidInputError(f"parameters are nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        return {key: _jsonlike(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonlike(entry, depth + 1) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return value.item() if hasattr(value, "item") else value


def _dotted(place: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{visible(key)}" for key in place).removeprefix(".")
