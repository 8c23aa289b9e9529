"""The sections of `parameters.json` and of the hyperparameter search file, with their published defaults.

`discern.config.reading` reads the files; here is which keys may stand in them, in `discern.config.fields` what as
their values.
"""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from discern.config.arguments import check_arguments, taken_by
from discern.config.fields import (
    Activation,
    Cells,
    Count,
    Dropout,
    FilePath,
    GenesOrDeviation,
    GenesOrNumber,
    Layers,
    Loss,
    Norm,
    OutputFunction,
    Positive,
    RawInput,
    Refused,
    Seed,
    Share,
    TwoOrMore,
    Weight,
    at_least,
    naming,
)
from discern.config.presets import PRESETS, filled
from discern.errors import UnknownNameError

_SIDED = ("layers", "norm_type", "regularization", "conditional_regularization")


class Section(BaseModel):
    """Part of a file: strict types, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class WithArguments(Section):
    """A section that names a class; its other keys are arguments of the class."""

    model_config = ConfigDict(extra="allow")

    kind: ClassVar[str] = ""
    lenient: ClassVar[bool] = False

    def class_name(self) -> str:
        """Return the name of the class."""
        return str(getattr(self, "name"))  # noqa: B009 (each has the field, of another type)

    def known_arguments(self) -> tuple[str, ...]:
        """Return what the class takes."""
        return ("name", *taken_by(self.class_name(), self.kind))

    @model_validator(mode="after")
    def _check_arguments(self) -> WithArguments:
        checked = check_arguments(self.class_name(), self.kind, self.model_extra or {}, not self.lenient)
        (self.model_extra or {}).update(checked)
        return self


class Filtering(Section):
    """Which cells and genes are kept."""

    min_genes: Count = 400
    min_cells: Count = 3


class FixedScaling(Section):
    """What each gene is standardised with; `var` is a standard deviation."""

    mean: GenesOrNumber = 0
    var: GenesOrDeviation = 1
    add_to_mean: Annotated[float, Field(ge=-1e6, le=1e6)] = 0
    add_to_var: Annotated[float, Field(ge=-1e6, le=1e6)] = 0

    @model_validator(mode="after")
    def _check_deviation(self) -> FixedScaling:
        if (0 if self.var == "genes" else self.var) + self.add_to_var < (0 if self.var == "genes" else 1e-8):
            raise Refused(
                f"expected a positive standard deviation, got var {self.var} and add_to_var {self.add_to_var}"
            )
        return self


class Scale(Section):
    """Library-size normalisation (LSN: counts per cell) and standardisation; what is absent is not done."""

    LSN: Annotated[float, Field(gt=0, le=1e12), at_least(1e-6)] | None = None
    fixed_scaling: FixedScaling | None = None


class Split(Section):
    """Which cells validate; a share of each batch, or (integers above 1) a number of cells."""

    split_seed: Seed = 0
    valid_cells: Cells = 0.1
    mmd_cells: Share = 1.0
    balanced_split: bool = True
    test_cells: Cells = 0


class InputDs(Section):
    """The input data and how it is prepared."""

    raw_input: RawInput = None
    filtering: Filtering = Filtering()
    scale: Scale = Scale()
    split: Split = Split()
    n_cpus_preprocessing: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "clustering" not in data:
            return data
        warnings.warn("input_ds.clustering of old files has no effect: left out", stacklevel=1)
        return {key: value for key, value in data.items() if key != "clustering"}


class Regularizer(WithArguments):
    """A regulariser class and its arguments."""

    kind = "regularizer"

    name: Annotated[str, naming("regularizer")]


class Side(Section):
    """Encoder or decoder."""

    layers: Layers | None = None
    norm_type: list[Norm] | None = None
    regularization: Dropout | None = None
    conditional_regularization: Regularizer | None = None


class ReconstructionLoss(WithArguments):
    """The reconstruction loss and its arguments."""

    kind = "loss"

    name: Loss = "HuberLoss"


class Crossentropy(Section):
    """The loss of the detection probabilities."""

    label_smoothing: Share | None = None
    lower_label_smoothing: Share | None = None
    zeros_eps: Weight | None = None


class Model(Section):
    """The network. What stands here rather than in `encoder` and `decoder` holds for both."""

    latent_dim: Annotated[Positive, Field(le=100_000)] = 48
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


_Monitor = Literal[
    "val_loss",
    "val_decoder_counts_loss",
    "val_decoder_dropouts_loss",
    "val_mmdpp_loss",
    "val_sigma_regularization_loss",
    "val_batch_mmd_loss",
    "loss",
    "decoder_counts_loss",
    "decoder_dropouts_loss",
    "mmdpp_loss",
    "sigma_regularization_loss",
    "batch_mmd_loss",
]


class EarlyStopping(Section):
    """When training stops; the arguments of `DelayedEarlyStopping`."""

    delay: Count | None = None
    min_delta: Weight | None = None
    patience: Count | None = None
    monitor: _Monitor | None = None
    verbose: Count | None = None
    mode: Literal["auto", "min", "max"] | None = None
    baseline: Annotated[float, Field(ge=-1e20, le=1e20)] | None = None
    restore_best_weights: bool | None = None
    start_from_epoch: Count | None = None

    @model_validator(mode="after")
    def _translate(self) -> EarlyStopping:
        """`start_from_epoch` is Keras' name of `delay`."""
        if self.start_from_epoch is not None:
            if self.delay is not None:
                raise Refused("'delay' and 'start_from_epoch' mean the same: give one", UnknownNameError)
            self.delay, self.start_from_epoch = self.start_from_epoch, None
        if self.monitor not in (None, "loss", "val_loss") and self.mode in (None, "auto"):
            self.mode = "min"  # which Keras cannot tell from the name
        return self


class LearningDecay(WithArguments):
    """A learning-rate schedule and its arguments."""

    kind = "schedule"

    name: Annotated[str, naming("schedule")]


class Optimizer(WithArguments):
    """The optimiser and its arguments."""

    kind = "optimizer"

    algorithm: Annotated[str, naming("optimizer")]
    learning_rate: Weight | None = None
    learning_decay: LearningDecay | None = None
    Lookahead: bool | None = None

    def class_name(self) -> str:  # noqa: D102
        return str(self.algorithm)


class Training(Section):
    """How the network is trained."""

    GPU: Annotated[list[Count], Field(max_length=1000)] | None = None
    XLA: bool = True
    batch_size: TwoOrMore = 192
    max_steps: Positive = 200
    max_updates: Positive | None = None
    parallel_pc: Count | None = None
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
    seed: Seed | None = None
    thin_counts: Annotated[float, Field(gt=0, le=1), at_least(1e-6)] | None = None


class Experiment(Section):
    """One experiment."""

    input_ds: InputDs = InputDs()
    model: Model = Model()
    training: Training = Training()
    hyperparameter_search: FilePath | None = None
    preset: Literal["auto"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") not in tuple(PRESETS):
            return data
        return filled({**data, "model": _translate_old_spellings(data.get("model"))})


class ExpParam(Section):
    """What holds for all experiments of a file."""

    experiments_dir: FilePath


class ParameterFile(Section):
    """A full parameter file."""

    exp_param: ExpParam
    experiments: Annotated[dict[str, Experiment], Field(min_length=1)]
