"""What a hyperparameter search file says: sections with their defaults and checks."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from discern.config.arguments import REFUSED
from discern.config.fields import Column, Count, JsonObject, Positive, Refused, Weight, naming, shown
from discern.config.schema import Section, WithArguments
from discern.errors import nearest

# --- the search file -------------------------------------------------------------------------------------------------


# What a trial reports (see `discern.search.trial.Trial`), and what Ray adds.
_FIGURES = ("loss", "val_loss", "mmd", "auc", "mmd_autoencoded", "auc_autoencoded")
_STATES = ("epochs", "early_stopped", "reached_max_step", "diverged", "training_iteration", "time_total_s")

_LEVELS = ("CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET")
# Arguments of ray.init, of this or an earlier Ray, without which a search runs as well.
_WITHOUT_EFFECT = (
    *(
        "configure_logging",
        "driver_object_store_memory",
        "ignore_reinit_error",
        "include_webui",
        "labels",
        "local_mode",
    ),
    *("logging_format", "lru_evict", "memory", "_memory", "redis_max_memory", "webui_host"),
)


def _figure(name: str) -> str:
    if name not in _FIGURES:
        raise Refused(f"there is no figure {name!r}{nearest(name, _FIGURES)}; a trial has {', '.join(_FIGURES)}")
    return name


def _address(text: str) -> str:
    if text not in ("auto", "local") and not re.fullmatch(r"(ray://)?[A-Za-z0-9_.\[\]:-]{1,255}:\d{1,5}", text):
        raise Refused(f'expected HOST:PORT, "auto" or "local", got {shown(text)}')
    return text


def _level(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and value in range(51):
        return value
    if isinstance(value, str) and value.upper() in _LEVELS:
        return value
    raise Refused(f"expected one of {', '.join(_LEVELS)}, got {shown(value)}")


Figure = Annotated[str, AfterValidator(_figure)]


class Setup(Section):
    """Where Ray runs. Nothing that starts a program, opens a port or writes elsewhere is taken from a file."""

    address: Annotated[str, AfterValidator(_address)] | None = None
    num_cpus: Annotated[Positive, Field(le=100_000)] | None = None
    num_gpus: Annotated[Count, Field(le=100_000)] | None = None
    resources: dict[Column, Weight] | None = None
    namespace: Column | None = None
    logging_level: Annotated[int | str, PlainValidator(_level), WithJsonSchema({})] = "INFO"
    log_to_driver: bool | None = None
    object_store_memory: Annotated[int, Field(ge=80 * 2**20, le=2**50)] | None = None
    include_dashboard: Literal[False] | None = None
    redis_password: Column | None = None
    redis_password_: Annotated[Column | None, Field(alias="_redis_password")] = None
    redis_username_: Annotated[Column | None, Field(alias="_redis_username")] = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in data:
            if key in _WITHOUT_EFFECT:
                warnings.warn(f"setup.{key}: left out, it has no effect", stacklevel=1)
            elif key not in known:
                raise Refused(
                    f"{key!r} is refused: a search file may say where Ray runs and with what, not what it runs or "
                    f"where it writes{nearest(str(key), known)}"
                )
        return {key: value for key, value in data.items() if key not in _WITHOUT_EFFECT}


class _OfRay(WithArguments):
    """A class of Ray Tune; arguments that today's class does not take any more are left out when it is made."""

    lenient = True

    @model_validator(mode="after")
    def _check_harmless(self) -> _OfRay:
        for key, value in (self.model_extra or {}).items():
            if key in REFUSED:
                raise Refused(f"{key!r} is refused: it takes code, objects or places, which a search file cannot give")
            if key == "metric" and value is not None:
                _figure(value)
        return self


class Scheduler(_OfRay):
    """Ray Tune's scheduler and its arguments."""

    kind = "scheduler"

    name: Annotated[str, naming("scheduler")]


class Searcher(_OfRay):
    """Ray Tune's search algorithm and its arguments."""

    kind = "searcher"

    name: Annotated[str, naming("searcher")]


class TrialConfig(Section):
    """What a trial does in one step."""

    epochs_per_timestep: Positive = 20
    validation_batches: Positive = 10


def _stop(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name, limit in value.items():
        known = (*_FIGURES, *_STATES)
        if name not in known:
            raise Refused(f"there is no figure {name!r}{nearest(name, known)}; a trial has {', '.join(known)}")
        if not isinstance(limit, bool) and not (isinstance(limit, int | float) and abs(limit) <= 1e20):
            raise Refused(f"{name}: expected a number, true or false, got {shown(limit)}")
    return value


def _folder_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", text):
        raise Refused(f"expected the plain name of a folder (letters, figures, '_', '-', '.'), got {shown(text)}")
    return text


class TrainSpec(Section):
    """How trials are run."""

    name: Annotated[str, AfterValidator(_folder_name)] = "Ray_Optimization"
    resources_per_trial: dict[Column, Annotated[float, Field(ge=0, le=100_000)]] = Field(default_factory=dict)
    stop: Annotated[dict[str, JsonValue], AfterValidator(_stop)] = Field(default_factory=dict)
    config: TrialConfig = TrialConfig()
    num_samples: Positive = 500
    max_failures: Annotated[int, Field(ge=-1, le=10**6)] = 10
    checkpoint_at_end: bool = False


class Analysis(Section):
    """Which trial is the best."""

    mode: Literal["min", "max"] = "min"
    metric: Figure = "auc"


class SearchSpaceLeaf(Section):
    """What one parameter is drawn from."""

    type: Annotated[str, naming("search space")]
    name: Column | None = None
    args: list[JsonValue] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_args(self) -> SearchSpaceLeaf:
        if str(self.type).rpartition(".")[2] in ("choice", "pchoice", "grid_search", "CategoricalDistribution"):
            return self
        for value in self.args:
            if isinstance(value, bool) or not (isinstance(value, int | float) and abs(value) <= 1e20):
                raise Refused(f"args: expected numbers, got {shown(value)}")
        return self


class SearchFile(Section):
    """A hyperparameter search file. `search_space` is a tree over the keys of an experiment."""

    setup: Setup = Setup()
    scheduler: Scheduler | None = None
    searcher: Annotated[Searcher | None, BeforeValidator(lambda value: None if value == "Randomsearch" else value)] = (
        None
    )
    train_spec: TrainSpec = TrainSpec()
    search_space: Annotated[JsonObject, Field(min_length=1)]
    analysis: Analysis = Analysis()

    def given(self) -> JsonObject:
        """Return what the file says, without defaults."""
        return self.model_dump(by_alias=True, exclude_unset=True)
