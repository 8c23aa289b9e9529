"""The sections of `parameters.json` and of the hyperparameter search file, with their published defaults.

`discern.config` reads the files; here is which keys may stand in them, in `discern.values` what as their values.
"""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from discern.errors import UnknownNameError, nearest
from discern.presets import PRESETS, filled
from discern.values import (
    Activation,
    Cells,
    Count,
    Dropout,
    GenesOrNumber,
    Layers,
    Loss,
    Norm,
    OutputFunction,
    Positive,
    RawInput,
    Refused,
    Share,
    TwoOrMore,
    Weight,
    name_of,
)

_SIDED = ("layers", "norm_type", "regularization", "conditional_regularization")
_ARGUMENTS_OF_ALL_LOSSES = ("name", "reduction")
_ARGUMENTS_OF_LOSSES = {
    "HuberLoss": ("delta",),
    "Lnorm": ("p", "axis", "epsilon", "use_root"),
    "BinaryCrossentropy": ("from_logits", "label_smoothing", "axis"),
    "BinaryFocalCrossentropy": (
        "apply_class_balancing",
        "alpha",
        "gamma",
        "from_logits",
        "label_smoothing",
        "axis",
    ),
    "CategoricalCrossentropy": ("from_logits", "label_smoothing", "axis"),
    "CategoricalFocalCrossentropy": ("alpha", "gamma", "from_logits", "label_smoothing", "axis"),
    "CosineSimilarity": ("axis",),
    "Huber": ("delta",),
    "Tversky": ("alpha", "beta", "axis"),
}
_ARGUMENTS_OF_REGULARIZERS = ("l1", "l2", "factor", "mode")
_ARGUMENTS_OF_OPTIMIZERS = (
    *("learning_rate", "name", "weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum"),
    *("ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps"),
    *("beta_1", "beta_2", "epsilon", "amsgrad", "momentum", "nesterov", "rho", "centered"),
    *("sma_threshold", "total_steps", "warmup_proportion", "min_lr"),
    *("initial_accumulator_value", "learning_rate_power", "l1_regularization_strength", "l2_regularization_strength"),
    *("l2_shrinkage_regularization_strength", "beta", "beta_2_decay", "epsilon_1", "epsilon_2", "clip_threshold"),
    *("relative_step", "weight_decay_rate"),
)
_ARGUMENTS_OF_SCHEDULES = (
    *("initial_learning_rate", "decay_steps", "decay_rate", "staircase", "alpha", "warmup_target", "warmup_steps"),
    *("first_decay_steps", "t_mul", "m_mul", "boundaries", "values", "end_learning_rate", "power", "cycle"),
)


class Section(BaseModel):
    """Part of a file: strict types, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class WithArguments(Section):
    """A section that names a class; its other keys are arguments of the class."""

    model_config = ConfigDict(extra="allow")

    arguments: ClassVar[tuple[str, ...]] = ()

    def known_arguments(self) -> tuple[str, ...]:
        """Return what the class takes; empty: anything."""
        return self.arguments

    @model_validator(mode="after")
    def _check_arguments(self) -> WithArguments:
        known = self.known_arguments()
        for key in self.model_extra or {}:
            if known and key not in known:
                raise Refused(f"unknown argument {key!r}{nearest(key, known)}", UnknownNameError)
        return self


class Filtering(Section):
    """Which cells and genes are kept."""

    min_genes: Count = 400
    min_cells: Count = 3


class FixedScaling(Section):
    """What each gene is standardised with; `var` is a standard deviation."""

    mean: GenesOrNumber = 0
    var: GenesOrNumber = 1
    add_to_mean: float = 0
    add_to_var: float = 0


class Scale(Section):
    """Library-size normalisation (LSN: counts per cell) and standardisation; what is absent is not done."""

    LSN: Annotated[float, Field(gt=0)] | None = None
    fixed_scaling: FixedScaling | None = None


class Split(Section):
    """Which cells validate; a share of each batch, or (integers above 1) a number of cells."""

    split_seed: Count = 0
    valid_cells: Cells = 0.1
    mmd_cells: Cells = 1.0
    balanced_split: bool = True
    test_cells: Cells = 0


class InputDs(Section):
    """The input data and how it is prepared."""

    raw_input: RawInput = None
    filtering: Filtering = Filtering()
    scale: Scale = Scale()
    split: Split = Split()
    n_cpus_preprocessing: Positive | None = None


class Regularizer(WithArguments):
    """A regulariser class and its arguments."""

    arguments = _ARGUMENTS_OF_REGULARIZERS

    name: name_of("regularizer")  # type: ignore[valid-type]


class Side(Section):
    """Encoder or decoder."""

    layers: Layers | None = None
    norm_type: list[Norm] | None = None
    regularization: Dropout | None = None
    conditional_regularization: Regularizer | None = None


class ReconstructionLoss(WithArguments):
    """The reconstruction loss and its arguments."""

    name: Loss = "HuberLoss"

    def known_arguments(self) -> tuple[str, ...]:  # noqa: D102
        return (*_ARGUMENTS_OF_ALL_LOSSES, *_ARGUMENTS_OF_LOSSES.get(self.name.rpartition(".")[2], ()))


class Crossentropy(Section):
    """The loss of the detection probabilities."""

    label_smoothing: Share | None = None
    lower_label_smoothing: Share | None = None
    zeros_eps: Weight | None = None


class Model(Section):
    """The network. What stands here rather than in `encoder` and `decoder` holds for both."""

    latent_dim: Positive = 48
    activation_fn: Activation = "tensorflow_addons.activations.mish"
    output_fn: OutputFunction | None = None
    encoder: Side = Side()
    decoder: Side = Side()
    layers: Layers | None = None
    norm_type: list[Norm] | None = None
    regularization: Dropout | None = None
    conditional_regularization: Regularizer | None = None
    reconstruction_loss: ReconstructionLoss = ReconstructionLoss.model_validate({"name": "HuberLoss", "delta": 9.0})
    crossentropy: Crossentropy = Crossentropy()
    wae_lambda: Weight = 1500.0
    weighting_decoder_dropout: Weight = 0.0
    weighting_random_encoder: Weight = 1e-8
    weighting_batch_mmd: Weight | None = None

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, data: Any) -> Any:
        return _translate_old_spellings(data)

    @model_validator(mode="after")
    def _fill_both_sides(self) -> Model:
        """Move what stands at model level into encoder and decoder, and fill in the published defaults."""
        published = {"layers": ([1024, 512, 256], [256, 512, 1024]), "regularization": (0.4, 0.0)}
        encoder, decoder = self.encoder.model_copy(), self.decoder.model_copy()
        for key in _SIDED:
            common, left, right = getattr(self, key), getattr(encoder, key), getattr(decoder, key)
            if common is not None and (left is not None or right is not None):
                side = "encoder" if left is not None else "decoder"
                raise Refused(f"{key!r} is given twice, here and in {side!r}: give it once", UnknownNameError)
            if (left is None) != (right is None):
                given, lacking = ("encoder", "decoder") if right is None else ("decoder", "encoder")
                raise Refused(f"{key!r} is given in {given!r} but not in {lacking!r}", UnknownNameError)
            if left is None and common is not None:
                left, right = common, common[::-1] if isinstance(common, list) else common
            elif left is None and key == "norm_type":
                left, right = (["conditionallayernorm"] * len(side.layers or []) for side in (encoder, decoder))
            elif left is None:
                left, right = published.get(key, (None, None))
            setattr(encoder, key, left)
            setattr(decoder, key, right)
            setattr(self, key, None)
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            layers, norms = len(part.layers or []), len(part.norm_type or [])
            if layers != norms:
                raise Refused(f"expected one 'norm_type' for each of the {layers} layers of the {name}, got {norms}")
        self.encoder, self.decoder = encoder, decoder
        return self


def _translate_old_spellings(model: Any) -> Any:
    if not isinstance(model, dict):
        return model
    model = dict(model)
    for old in list(model):
        match = re.fullmatch(rf"(?:(enc|dec)(?:oder)?_)?({'|'.join(_SIDED)})(?:_(enc|dec)(?:oder)?)?", str(old))
        if not match or bool(match[1]) == bool(match[3]):
            continue
        side, key = {"enc": "encoder", "dec": "decoder"}[match[1] or match[3]], match[2]
        warnings.warn(f"model.{old} is an old spelling: write model.{side}.{key}", DeprecationWarning, stacklevel=1)
        section = dict(model.get(side) or {})
        if key in section:
            raise Refused(f"{old!r} and '{side}.{key}' mean the same: give it once", UnknownNameError)
        model[side] = section | {key: model.pop(old)}
    return model


class EarlyStopping(Section):
    """When training stops; the arguments of `DelayedEarlyStopping`."""

    delay: Count | None = None
    min_delta: Weight | None = None
    patience: Count | None = None
    monitor: str | None = None
    verbose: Count | None = None
    mode: Literal["auto", "min", "max"] | None = None
    baseline: float | None = None
    restore_best_weights: bool | None = None
    start_from_epoch: Count | None = None


class LearningDecay(WithArguments):
    """A learning-rate schedule and its arguments."""

    arguments = _ARGUMENTS_OF_SCHEDULES

    name: name_of("schedule")  # type: ignore[valid-type]


class Optimizer(WithArguments):
    """The optimiser and its arguments."""

    arguments = _ARGUMENTS_OF_OPTIMIZERS

    algorithm: name_of("optimizer")  # type: ignore[valid-type]
    learning_rate: Weight | None = None
    learning_decay: LearningDecay | None = None
    Lookahead: bool | None = None


class Training(Section):
    """How the network is trained."""

    GPU: list[Count] | None = None
    XLA: bool = True
    batch_size: TwoOrMore = 192
    max_steps: Positive = 200
    max_updates: Positive | None = None
    parallel_pc: Positive | None = None
    early_stopping: EarlyStopping = EarlyStopping(delay=5, min_delta=0.01, patience=30)
    optimizer: Optimizer = Optimizer.model_validate(
        {
            "algorithm": "tensorflow_addons.optimizers.RectifiedAdam",
            "learning_rate": 1e-3,
            "beta_1": 0.85,
            "beta_2": 0.95,
            "amsgrad": False,
        }
    )
    precision: Literal["float32", "mixed_bfloat16"] | None = None
    distribute: Literal["none", "mirrored"] | None = None
    visualisation: bool | None = None
    freq: Positive | None = None
    seed: Count | None = None
    thin_counts: Annotated[float, Field(gt=0, le=1)] | None = None


class Experiment(Section):
    """One experiment."""

    input_ds: InputDs = InputDs()
    model: Model = Model()
    training: Training = Training()
    hyperparameter_search: str | None = None
    preset: Literal["auto"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") not in tuple(PRESETS):
            return data
        return filled({**data, "model": _translate_old_spellings(data.get("model"))})


class ExpParam(Section):
    """What holds for all experiments of a file."""

    experiments_dir: Annotated[str, Field(min_length=1)]


class ParameterFile(Section):
    """A full parameter file."""

    exp_param: ExpParam
    experiments: Annotated[dict[str, Experiment], Field(min_length=1)]


# --- the search file -------------------------------------------------------------------------------------------------


class Scheduler(WithArguments):
    """Ray Tune's scheduler and its arguments."""

    name: name_of("scheduler")  # type: ignore[valid-type]


class Searcher(WithArguments):
    """Ray Tune's search algorithm and its arguments."""

    name: name_of("searcher")  # type: ignore[valid-type]


class TrialConfig(Section):
    """What a trial does in one step."""

    epochs_per_timestep: Positive = 20
    validation_batches: Positive = 10


class TrainSpec(Section):
    """How trials are run."""

    name: str = "Ray_Optimization"
    resources_per_trial: dict[str, Weight] = {}
    stop: dict[str, Any] = {}
    config: TrialConfig = TrialConfig()
    num_samples: Positive = 500
    max_failures: Annotated[int, Field(ge=-1)] = 10
    checkpoint_at_end: bool = False


class Analysis(Section):
    """Which trial is the best."""

    mode: Literal["min", "max"] = "min"
    metric: str = "auc"


class SearchSpaceLeaf(Section):
    """What one parameter is drawn from."""

    type: name_of("search space")  # type: ignore[valid-type]
    name: str | None = None
    args: list[Any] = []


class SearchFile(Section):
    """A hyperparameter search file. `search_space` is a tree over the keys of an experiment."""

    setup: dict[str, Any] = {}
    scheduler: Scheduler | None = None
    searcher: Annotated[Searcher | None, BeforeValidator(lambda value: None if value == "Randomsearch" else value)] = (
        None
    )
    train_spec: TrainSpec = TrainSpec()
    search_space: Annotated[dict[str, Any], Field(min_length=1)]
    analysis: Analysis = Analysis()
