"""The arguments of the classes that a file may name: which class takes which, and what may stand there.

Keras, TensorFlow and Ray find out about a wrong argument when the class is called, or in the middle of a training, or
not at all. Here it is found when the file is read, and none of these libraries is loaded for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from discern.config.allowlist import look_up
from discern.config.fields import Count, Positive, Refused, Seed, Share, TwoOrMore, Weight, expected_of
from discern.errors import UnknownNameError, nearest
from discern.runtime.text import has_control

if TYPE_CHECKING:
    from collections.abc import Mapping


Types: TypeAlias = dict[str, Any]
"""Argument -> its type, as pydantic takes it."""

_Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z_][\w.-]*$")]
_Number = Annotated[float, Field(ge=-1e20, le=1e20)]
_Decay = Annotated[float, Field(ge=0, lt=1)]
_Tiny = Annotated[float, Field(ge=1e-37, le=1e6)]
_Above = Annotated[float, Field(ge=1e-30, le=1e20)]
_Below = Annotated[float, Field(le=0, ge=-1e6)]
_Axis = Annotated[int, Field(ge=-1, le=1)]
_Strength = Annotated[float, Field(ge=0, le=1e6)]
_Metric = Annotated[str, Field(min_length=1, max_length=100)]
_Mode = Literal["min", "max"]
_Object = dict[str, Any]
_Points = list[_Object]

# --- optimisers ------------------------------------------------------------------------------------------------------

_ALL_OPTIMIZERS: Types = {
    "name": _Name | None,
    "weight_decay": Annotated[float, Field(ge=0, le=100)] | None,
    "clipnorm": _Above | None,
    "clipvalue": _Above | None,
    "global_clipnorm": _Above | None,
    "use_ema": bool,
    "ema_momentum": Share,
    "ema_overwrite_frequency": Positive | None,
    "loss_scale_factor": Annotated[float, Field(ge=1e-6, le=1e6)] | None,
    "gradient_accumulation_steps": TwoOrMore | None,
}
_MOMENTS: Types = {"beta_1": _Decay, "beta_2": _Decay, "epsilon": _Tiny}
_OPTIMIZERS: dict[str, Types] = {
    "Adadelta": {"rho": _Decay, "epsilon": _Tiny},
    "Adafactor": {
        "beta_2_decay": _Below,
        "epsilon_1": _Tiny,
        "epsilon_2": _Tiny,
        "clip_threshold": _Above,
        "relative_step": bool,
    },
    "Adagrad": {"initial_accumulator_value": _Strength, "epsilon": _Tiny},
    "Adam": _MOMENTS | {"amsgrad": bool},
    "AdamW": _MOMENTS | {"amsgrad": bool, "weight_decay": _Strength},
    "Adamax": _MOMENTS,
    "Ftrl": {
        "learning_rate_power": _Below,
        "initial_accumulator_value": _Strength,
        "l1_regularization_strength": _Strength,
        "l2_regularization_strength": _Strength,
        "l2_shrinkage_regularization_strength": _Strength,
        "beta": _Strength,
    },
    "Lamb": _MOMENTS,
    "Lion": {"beta_1": Annotated[float, Field(gt=0, lt=1)], "beta_2": _Decay},
    "Nadam": _MOMENTS,
    "RMSprop": {"rho": _Decay, "momentum": Share, "epsilon": _Tiny, "centered": bool},
    "SGD": {"momentum": Share, "nesterov": bool},
    "RectifiedAdam": _MOMENTS
    | {
        "amsgrad": bool,
        "sma_threshold": Annotated[float, Field(ge=0, le=1e6)],
        "total_steps": Count,
        "warmup_proportion": Share,
        "min_lr": Weight,
    },
}

# --- schedules, with what they cannot do without ---------------------------------------------------------------------

_RATES = {"initial_learning_rate": Weight, "name": _Name}
_SCHEDULES: dict[str, Types] = {
    "CosineDecay": _RATES
    | {"decay_steps": Positive, "alpha": Share, "warmup_target": Weight | None, "warmup_steps": Count},
    "CosineDecayRestarts": _RATES
    | {
        "first_decay_steps": Positive,
        "t_mul": Annotated[float, Field(ge=1, le=1e6)],
        "m_mul": Annotated[float, Field(ge=0, le=1e6)],
        "alpha": Share,
    },
    "ExponentialDecay": _RATES | {"decay_steps": Positive, "decay_rate": Weight, "staircase": bool},
    "InverseTimeDecay": _RATES | {"decay_steps": Positive, "decay_rate": Weight, "staircase": bool},
    "PiecewiseConstantDecay": {"boundaries": list[Positive], "values": list[Weight], "name": _Name},
    "PolynomialDecay": _RATES
    | {
        "decay_steps": Positive,
        "end_learning_rate": Weight,
        "power": Annotated[float, Field(gt=0, le=1e3)],
        "cycle": bool,
    },
}

# --- losses and regularisers -----------------------------------------------------------------------------------------

_ALL_LOSSES: Types = {
    "name": _Name,
    "reduction": Literal["sum", "sum_over_batch_size", "mean", "mean_with_sample_weight"],
}
_PROBABILITIES: Types = {"from_logits": bool, "label_smoothing": Share, "axis": _Axis}
_LOSSES: dict[str, Types] = {
    "HuberLoss": {"delta": Weight},
    "Lnorm": {"p": Annotated[float, Field(gt=0, le=100)], "axis": _Axis, "epsilon": _Tiny, "use_root": bool},
    "BinaryCrossentropy": _PROBABILITIES,
    "BinaryFocalCrossentropy": _PROBABILITIES
    | {"apply_class_balancing": bool, "alpha": Share, "gamma": Annotated[float, Field(ge=0, le=100)]},
    "CategoricalCrossentropy": _PROBABILITIES,
    "CategoricalFocalCrossentropy": _PROBABILITIES | {"alpha": Share, "gamma": Annotated[float, Field(ge=0, le=100)]},
    "CosineSimilarity": {"axis": _Axis},
    "Huber": {"delta": Weight},
    "Tversky": {"alpha": Weight, "beta": _Strength, "axis": _Axis | None},
}
_REGULARIZERS: dict[str, Types] = {
    "L1": {"l1": Weight},
    "L2": {"l2": Weight},
    "L1L2": {"l1": Weight | None, "l2": Weight | None},
    "OrthogonalRegularizer": {"factor": Weight, "mode": Literal["rows", "columns"]},
}
_REGULARIZERS |= {
    "l1": _REGULARIZERS["L1"],
    "l2": _REGULARIZERS["L2"],
    "l1_l2": _REGULARIZERS["L1L2"],
    "orthogonal_regularizer": _REGULARIZERS["OrthogonalRegularizer"],
}

# --- schedulers and searchers of Ray Tune ----------------------------------------------------------------------------

_Time = Literal["training_iteration", "epochs", "time_total_s"]
_WATCHED: Types = {"metric": _Metric | None, "mode": _Mode | None}
_TIMED: Types = _WATCHED | {"time_attr": _Time}
_Factor = Annotated[float, Field(gt=1, le=1e6)]
_Seconds = Annotated[float, Field(ge=0, le=1e9)]
_HALVING: Types = _TIMED | {
    "max_t": Positive,
    "grace_period": Positive,
    "reduction_factor": _Factor,
    "brackets": Annotated[Positive, Field(le=20)],
    "stop_last_trials": bool,
}
_HYPERBAND: Types = _TIMED | {"max_t": Positive, "reduction_factor": _Factor, "stop_last_trials": bool}
_POPULATION: Types = _TIMED | {
    "perturbation_interval": Annotated[float, Field(gt=0, le=1e9)],
    "quantile_fraction": Annotated[float, Field(ge=0, le=0.5)],
    "log_config": bool,
    "require_attrs": bool,
    "synch": bool,
}
_SCHEDULERS: dict[str, Types] = {
    "ASHAScheduler": _HALVING,
    "AsyncHyperBandScheduler": _HALVING,
    "FIFOScheduler": {},
    "HyperBandForBOHB": _HYPERBAND,
    "HyperBandScheduler": _HYPERBAND,
    "MedianStoppingRule": _TIMED
    | {"grace_period": _Seconds, "min_samples_required": Positive, "min_time_slice": _Seconds, "hard_stop": bool},
    "PopulationBasedTraining": _POPULATION
    | {
        "burn_in_period": _Seconds,
        "hyperparam_mutations": _Object,
        "resample_probability": Share,
        "perturbation_factors": Annotated[list[_Above], Field(min_length=2, max_length=2)],
    },
    "PB2": _POPULATION | {"hyperparam_bounds": dict[str, Annotated[list[_Number], Field(min_length=2, max_length=2)]]},
}
_SEARCHING: Types = _WATCHED | {"points_to_evaluate": _Points | None, "max_concurrent": Count}
_SEARCHERS: dict[str, Types] = {
    "AxSearch": {"parameter_constraints": list[str], "outcome_constraints": list[str]},
    "BasicVariantGenerator": {"constant_grid_search": bool, "random_state": Seed},
    "BayesOptSearch": {
        "utility_kwargs": _Object,
        "random_state": Seed,
        "random_search_steps": Positive,
        "verbose": Count,
        "patience": Positive,
        "skip_duplicate": bool,
        "repeat_float_precision": Positive,
    },
    "TuneBOHB": {"bohb_config": _Object, "seed": Seed},
    "HEBOSearch": {"random_state_seed": Seed},
    "HyperOptSearch": {
        "n_initial_points": Positive,
        "random_state_seed": Seed,
        "gamma": Annotated[float, Field(gt=0, lt=1)],
    },
    "NevergradSearch": {},
    "OptunaSearch": {"study_name": _Name, "seed": Seed},
    "ZOOptSearch": {"algo": Literal["asracos", "sracos"], "budget": Positive, "parallel_num": Positive},
}

_TABLES = {
    "optimizer": (_OPTIMIZERS, _ALL_OPTIMIZERS),
    "schedule": (_SCHEDULES, {}),
    "loss": (_LOSSES, _ALL_LOSSES),
    "regularizer": (_REGULARIZERS, {}),
    "scheduler": (_SCHEDULERS, {}),
    "searcher": (_SEARCHERS, _SEARCHING),
}
_NEEDED = {
    "Lnorm": ("p",),
    "CosineDecay": ("decay_steps",),
    "CosineDecayRestarts": ("first_decay_steps",),
    "ExponentialDecay": ("decay_steps", "decay_rate"),
    "InverseTimeDecay": ("decay_steps", "decay_rate"),
    "PiecewiseConstantDecay": ("boundaries", "values"),
    "PolynomialDecay": ("decay_steps",),
}

REFUSED = (
    *("custom_explore_fn", "storage", "sampler", "ax_client", "analysis", "evaluated_rewards", "space", "dim_dict"),
    *("optimizer", "optimizer_kwargs", "points", "function", "callback", "callbacks", "stop_fn"),
)
"""Arguments of schedulers and searchers that take code, objects or places to write to: a file has no business there."""


def taken_by(name: str, kind: str) -> Types:
    """Return the types of the arguments of a class that a file names, by argument.

    Args:
        name: Its name, dotted or not, old or new.
        kind: What it is, e.g. "optimizer".

    Example:
        >>> sorted(taken_by("tensorflow.keras.regularizers.L1L2", "regularizer"))
        ['l1', 'l2']
    """
    attribute = look_up(name, kind).attribute if "." in name else name
    own, common = _TABLES[kind]
    if kind == "loss" and attribute not in own:  # the short name of a function: the arguments of its class
        plain = attribute.replace("_", "").lower()
        attribute = next((known for known in own if known.lower() == plain), attribute)
    return common | own.get(attribute, {})


def names_taken(kind: str) -> set[str]:
    """Return the names of the arguments that any class of a kind takes."""
    own, common = _TABLES[kind]
    return {*common, *(key for types in own.values() for key in types)}


def check_arguments(name: str, kind: str, given: Mapping[str, Any], unknown_is_error: bool = True) -> dict[str, Any]:
    """Return the arguments of a class as it takes them (whole numbers as such).

    Args:
        name: As for `taken_by`.
        kind: As for `taken_by`.
        given: The arguments in the file.
        unknown_is_error: Whether an argument that the class does not take is refused, or left as it is.

    Raises:
        Refused: If one is unknown, lacking, or not what the class takes.
    """
    types = taken_by(name, kind)
    attribute = name.rpartition(".")[2]
    if kind == "optimizer" and attribute == "Lookahead":
        raise Refused(f'{name} goes around another optimiser: name that one, and write "Lookahead": true beside it')
    checked = dict(given)
    for key, value in given.items():
        if key not in types:
            if unknown_is_error:
                known = (*types, "learning_rate", "learning_decay", "name")
                raise Refused(
                    f"unknown argument {key!r}{nearest(key, known)}; {attribute} takes {', '.join(types) or 'none'}",
                    UnknownNameError,
                )
            continue
        try:
            checked[key] = _adapter(types[key]).validate_python(value)
        except ValidationError as error:
            raise Refused(f"{key}: {expected_of(error.errors(include_url=False)[0])}") from None
        if isinstance(value, str) and has_control(value):
            raise Refused(f"{key}: expected a text without control characters")
    for key in _NEEDED.get(look_up(name, kind).attribute if "." in name else name, ()):
        if key not in given:
            raise Refused(f"{key!r} is lacking: {attribute} needs it", UnknownNameError)
    clips = [key for key in ("clipnorm", "clipvalue", "global_clipnorm") if checked.get(key) is not None]
    if kind == "optimizer" and len(clips) > 1:
        raise Refused(f"{' and '.join(clips)} exclude each other: give one")
    if "boundaries" in checked:
        _check_pieces(checked["boundaries"], checked["values"])
    return checked


def _check_pieces(boundaries: list[int], values: list[float]) -> None:
    if len(values) != len(boundaries) + 1:
        raise Refused(f"expected one more of 'values' than of 'boundaries', got {len(values)} and {len(boundaries)}")
    if sorted(set(boundaries)) != boundaries:
        raise Refused("expected 'boundaries' that grow")


_ADAPTERS: dict[int, TypeAdapter[Any]] = {}  # by the identity of a type in the tables above, made when first needed


def _adapter(type_: Any) -> TypeAdapter[Any]:
    if id(type_) not in _ADAPTERS:
        _ADAPTERS[id(type_)] = TypeAdapter(type_, config=ConfigDict(strict=True, allow_inf_nan=False))
    return _ADAPTERS[id(type_)]
