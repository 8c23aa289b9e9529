"""The sections of `parameters.json` and of the hyperparameter search file, with their published defaults.

`discern.config.reading` reads the files; here is which keys may stand in them, in `discern.config.fields` what as
their values.
"""

from __future__ import annotations

import copy
import re
import warnings
from typing import Annotated, ClassVar, Literal

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
    JsonObject,
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

LayerPrecision = Literal["float32", "mixed_bfloat16"]
Precision = Literal[LayerPrecision, "auto"]


class Section(BaseModel):
    """Part of a file: strict types, no unknown keys; values do not change.

    A field is the one declaration of a parameter: type, default, check and description.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    def as_dict(self) -> JsonObject:
        """Return a copy as it stands in a file, in the canonical form of `discern.config.reading.parse_experiment`."""
        optional = set(type(self).model_fields) - {"output_fn"}
        return {
            key: value.as_dict() if isinstance(value, Section) else copy.deepcopy(value)
            for key, value in self
            if value is not None or key not in optional
        }

    def _fill(self, **values: object) -> None:
        """Set fields while the section is being validated."""
        self.__dict__.update(values)


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
    """Thresholds below which cells and genes are left out."""

    min_genes: Count = Field(default=400, description="A cell is kept if at least so many genes are detected in it.")
    min_cells: Count = Field(
        default=3, description="A gene is kept if it is detected in at least so many of the kept cells."
    )


class FixedScaling(Section):
    """What each gene is standardised with; `var` is a standard deviation."""

    mean: GenesOrNumber = Field(
        default=0, description='What is subtracted: `"genes"` for each gene\'s own mean, or one number.'
    )
    var: GenesOrDeviation = Field(
        default=1,
        description='What is divided by, a standard deviation: `"genes"` for each gene\'s own, or one number.',
    )
    add_to_mean: Annotated[float, Field(ge=-1e6, le=1e6)] = Field(default=0, description="Added to the means.")
    add_to_var: Annotated[float, Field(ge=-1e6, le=1e6)] = Field(
        default=0, description="Added to the standard deviations."
    )

    @model_validator(mode="after")
    def _check_deviation(self) -> FixedScaling:
        if (0 if self.var == "genes" else self.var) + self.add_to_var < (0 if self.var == "genes" else 1e-8):
            raise Refused(
                f"expected a positive standard deviation, got var {self.var} and add_to_var {self.add_to_var}"
            )
        return self


class Scale(Section):
    """Library-size normalisation (LSN: counts per cell) and standardisation; what is absent is not done."""

    LSN: Annotated[float, Field(gt=0, le=1e12), at_least(1e-6)] | None = Field(
        default=None,
        description="Library-size normalisation: each cell's counts are scaled to this total. 20000 in the published "
        "file.",
    )
    fixed_scaling: FixedScaling | None = Field(
        default=None, description="Standardisation of each gene where cells enter the network."
    )


class Split(Section):
    """Which cells validate; a share of each batch, or (integers above 1) a number of cells."""

    split_seed: Seed = Field(default=0, description="Seed of the choice of cells.")
    valid_cells: Cells = Field(
        default=0.1,
        description="Share of each batch that validates (early stopping, best model); 0: all cells are trained on.",
    )
    mmd_cells: Share = Field(default=1.0, description="Share of the validation cells on which a search judges.")
    balanced_split: bool = Field(default=True, description="Without effect: shares are always of each batch.")
    test_cells: Cells = Field(
        default=0, description="Share of each batch that nothing is learned from; `discern evaluate` compares with it."
    )


class InputDs(Section):
    """The input data and how it is prepared."""

    raw_input: RawInput = Field(
        default=None,
        description="Paths of files with raw counts, relative to the current folder. The batch of a cell is in the obs "
        "column `batch`; without one it is the name of the file. Or {path: obs column with the batch}; "
        "null for `batch`, false for the name of the file. Or {path: {`batch`: column, `layer`: where the "
        "counts are}}: name of a layer, `raw` for `.raw.X`, `X` for X even if it looks normalised. "
        "Required in files.",
    )
    filtering: Filtering = Field(default=Filtering(), description="Which cells and genes are kept.")
    scale: Scale = Field(default=Scale(), description="Normalisation and standardisation.")
    split: Split = Field(default=Split(), description="Which cells train, validate and test.")
    n_cpus_preprocessing: Positive | None = Field(
        default=None, description="CPUs for preprocessing; by default all. More than there are is clamped."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: object) -> object:
        if not isinstance(data, dict) or "clustering" not in data:
            return data
        warnings.warn("input_ds.clustering of old files has no effect: left out", stacklevel=1)
        return {key: value for key, value in data.items() if key != "clustering"}


class Regularizer(WithArguments):
    """A regulariser class and its arguments."""

    kind = "regularizer"

    name: Annotated[str, naming("regularizer")] = Field(
        description="A Keras regulariser; other keys are its arguments (`l1`, `l2`)."
    )


class Side(Section):
    """Encoder or decoder."""

    layers: Layers | None = Field(
        default=None, description="Sizes of the hidden layers, in the order in which cells pass them."
    )
    norm_type: list[Norm] | None = Field(
        default=None,
        description="For each layer `layernorm`, `batchnorm`, `conditionallayernorm` or `conditionalbatchnorm`. "
        "Conditional: with an offset that each batch learns. By default `conditionallayernorm`.",
    )
    regularization: Dropout | None = Field(default=None, description="Dropout rate after each layer.")
    conditional_regularization: Regularizer | None = Field(
        default=None, description="Regulariser of the offsets that batches learn; by default none."
    )

    @property
    def sizes(self) -> list[int]:
        """`layers`, which the encoder and the decoder of a validated model have."""
        return self.layers or []


def _at_once(key: str) -> str:
    return f"For encoder and decoder at once. {Side.model_fields[key].description}"


class ReconstructionLoss(WithArguments):
    """The reconstruction loss and its arguments."""

    kind = "loss"

    name: Loss = Field(
        default="HuberLoss",
        description="`HuberLoss` (`delta`), `Lnorm` (`p`, `axis`, `epsilon`, `use_root`), or a Keras loss; other keys "
        "are its arguments.",
    )


class Crossentropy(Section):
    """The loss of the detection probabilities."""

    label_smoothing: Share | None = Field(default=None, description="As in Keras.")
    lower_label_smoothing: Share | None = Field(
        default=None, description="Probability of detection that a zero is taken to have: zeros are often missed genes."
    )
    zeros_eps: Weight | None = Field(
        default=None, description="How far a standardised value may be from that of a zero and still be one."
    )


class Model(Section):
    """The network. What stands here rather than in `encoder` and `decoder` holds for both."""

    latent_dim: Annotated[Positive, Field(le=100_000)] = Field(default=48, description="Dimensions of the latent code.")
    activation_fn: Activation = Field(
        default="tensorflow_addons.activations.mish",
        description="Activation of the hidden layers: a Keras name or a dotted one.",
    )
    output_fn: OutputFunction | None = Field(
        default=None,
        description='What the count head\'s values pass: null (nothing), `"softmax"`, `"LSN"`, `"sigsoftmax"` or a '
        "Keras activation. The three named ones make log-normalised values and suit cells that are not "
        "standardised.",
    )
    encoder: Side = Field(
        default=Side(), description="Layers from expression to latent code. By default [1024, 512, 256], dropout 0.4."
    )
    decoder: Side = Field(
        default=Side(), description="Layers from latent code to expression. By default [256, 512, 1024], no dropout."
    )
    layers: Layers | None = Field(default=None, description=_at_once("layers"))
    norm_type: list[Norm] | None = Field(default=None, description=_at_once("norm_type"))
    regularization: Dropout | None = Field(default=None, description=_at_once("regularization"))
    conditional_regularization: Regularizer | None = Field(
        default=None, description=_at_once("conditional_regularization")
    )
    reconstruction_loss: ReconstructionLoss = Field(
        default=ReconstructionLoss.model_validate({"name": "HuberLoss", "delta": 9.0}),
        description="Loss of the expression, weighted with 15000.",
    )
    crossentropy: Crossentropy = Field(default=Crossentropy(), description="Loss of the detection probabilities.")
    wae_lambda: Weight = Field(
        default=1500.0, description="Weight of MMD++, which draws the latent codes to a normal distribution."
    )
    weighting_decoder_dropout: Weight = Field(default=0.0, description="Weight of the cross entropy.")
    weighting_random_encoder: Weight = Field(
        default=1e-8, description="Weight of the regularisation of the encoder's noise."
    )
    weighting_batch_mmd: Weight | None = Field(
        default=None, description="Weight of MMD between the latent codes of different batches; 0 or absent: none."
    )
    weighting_noisy_genes: Weight | None = Field(
        default=None,
        description="Weight, in the reconstruction loss, of a gene of which half of the counts foretell nothing of the "
        "other half; if they foretell all it has 1 more. The mean is made 1. Absent: all genes count alike.",
    )
    align_batches: bool | None = Field(
        default=None,
        description="Whether the codes of cells that are decoded as a batch are moved onto those of that batch's cells "
        "first, as mutual nearest neighbours say; absent: no. Training does not depend on it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, data: object) -> object:
        return _translate_old_spellings(data)

    @model_validator(mode="after")
    def _fill_both_sides(self) -> Model:
        """Move what stands at model level into encoder and decoder, and fill in the published defaults."""
        published = {"layers": ([1024, 512, 256], [256, 512, 1024]), "regularization": (0.4, 0.0)}
        encoder, decoder = self.encoder.model_copy(), self.decoder.model_copy()
        for key in _SIDED:
            common, left, right = (getattr(section, key) for section in (self, encoder, decoder))
            if common is not None and (left is not None or right is not None):
                side = "encoder" if left is not None else "decoder"
                raise Refused(f"{key!r} is given twice, here and in {side!r}: give it once", UnknownNameError)
            if (left is None) != (right is None):
                given, lacking = ("encoder", "decoder") if right is None else ("decoder", "encoder")
                raise Refused(f"{key!r} is given in {given!r} but not in {lacking!r}", UnknownNameError)
            if left is None and common is not None:
                left, right = common, common[::-1] if isinstance(common, list) else common
            elif left is None and key == "norm_type":
                left, right = (["conditionallayernorm"] * len(side.sizes) for side in (encoder, decoder))
            elif left is None:
                left, right = published.get(key, (None, None))
            encoder._fill(**{key: left})
            decoder._fill(**{key: right})
            self._fill(**{key: None})
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            layers, norms = len(part.sizes), len(part.norm_type or [])
            if layers != norms:
                raise Refused(f"expected one 'norm_type' for each of the {layers} layers of the {name}, got {norms}")
        self._fill(encoder=encoder, decoder=decoder)
        return self


def _translate_old_spellings(model: object) -> object:
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

    delay: Count | None = Field(default=None, description="Epochs in the beginning that do not count.")
    min_delta: Weight | None = Field(default=None, description="Least change that counts as an improvement.")
    patience: Count | None = Field(default=None, description="Epochs without improvement after which training stops.")
    monitor: _Monitor | None = Field(default=None, description='Figure to watch; by default `"val_loss"`.')
    verbose: Count | None = Field(default=None, description="1 to say when it stops.")
    mode: Literal["auto", "min", "max"] | None = Field(default=None, description="Whether lower or higher is better.")
    baseline: Annotated[float, Field(ge=-1e20, le=1e20)] | None = Field(default=None, description="Value to beat.")
    restore_best_weights: bool | None = Field(
        default=None, description="Whether the best epoch's weights are put back at the end."
    )
    start_from_epoch: Count | None = Field(default=None, description="Keras' name of `delay`.")

    @model_validator(mode="after")
    def _translate(self) -> EarlyStopping:
        """`start_from_epoch` is Keras' name of `delay`."""
        if self.start_from_epoch is not None:
            if self.delay is not None:
                raise Refused("'delay' and 'start_from_epoch' mean the same: give one", UnknownNameError)
            self._fill(delay=self.start_from_epoch, start_from_epoch=None)
        if self.monitor not in (None, "loss", "val_loss") and self.mode in (None, "auto"):
            self._fill(mode="min")  # which Keras cannot tell from the name
        return self


class LearningDecay(WithArguments):
    """A learning-rate schedule and its arguments."""

    kind = "schedule"

    name: Annotated[str, naming("schedule")] = Field(
        description="A Keras learning-rate schedule; other keys are its arguments."
    )


class Optimizer(WithArguments):
    """The optimiser and its arguments."""

    kind = "optimizer"

    algorithm: Annotated[str, naming("optimizer")] = Field(
        description="A Keras optimiser or `discern.estimators.optimizers.RectifiedAdam`; names of TensorFlow Addons "
        "still work. Other keys are its arguments (`beta_1`, `weight_decay`, `clipnorm`, ...)."
    )
    learning_rate: Weight | None = Field(default=None, description="Step size.")
    learning_decay: LearningDecay | None = Field(default=None, description="Schedule of the learning rate.")
    Lookahead: bool | None = Field(default=None, description="Whether slow weights follow every 6 steps half the way.")

    def class_name(self) -> str:  # noqa: D102
        return str(self.algorithm)


class Training(Section):
    """How the network is trained."""

    GPU: Annotated[list[Count], Field(max_length=1000)] | None = Field(
        default=None,
        description="Numbers of the GPUs to use, [] for none; by default all. Those that are not there are left out.",
    )
    XLA: bool = Field(default=True, description="Whether the training step is compiled.")
    batch_size: TwoOrMore = Field(
        default=192,
        description="Cells in a step; never more than there are validation cells or, without any, than a tenth of the "
        "training cells.",
    )
    max_steps: Positive = Field(default=200, description="Epochs at the most, those before an interruption included.")
    max_updates: Positive | None = Field(
        default=None,
        description="Updates of the weights at the most: training ends with the epoch in which there have been so "
        "many; by default `max_steps` alone counts.",
    )
    parallel_pc: Count | None = Field(default=None, description="CPU threads; 0 and by default TensorFlow's choice.")
    early_stopping: EarlyStopping = Field(
        default=EarlyStopping(delay=5, min_delta=0.01, patience=30),
        description="When training stops before `max_steps`.",
    )
    optimizer: Optimizer = Field(
        default=Optimizer.model_validate(
            {
                "algorithm": "tensorflow_addons.optimizers.RectifiedAdam",
                "learning_rate": 1e-3,
                "beta_1": 0.85,
                "beta_2": 0.95,
                "amsgrad": False,
            }
        ),
        description="The optimiser.",
    )
    precision: Precision | None = Field(
        default=None,
        description='`"mixed_bfloat16"` computes layers in half precision; `"auto"` does where that is faster: it is '
        "measured when a training begins, and what was picked stays with the model.",
    )
    distribute: Literal["none", "mirrored"] | None = Field(
        default=None, description='`"mirrored"` shares each batch among all GPUs of the machine.'
    )
    visualisation: bool | None = Field(default=None, description="Whether UMAP pictures are drawn; by default true.")
    freq: Positive | None = Field(default=None, description="Epochs between pictures; by default 30.")
    seed: Seed | None = Field(
        default=None, description="Seed of weights, noise and sampling; by default a fresh one each time."
    )
    thin_counts: Annotated[float, Field(gt=0, le=1), at_least(1e-6)] | None = Field(
        default=None,
        description="Training cells are encoded with a share of their counts, drawn between this and 1 anew each time, "
        "and decoded to all of them; 1 or absent: with all counts.",
    )
    average_weights: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="The model that is kept is a mean of the weights over about this share of the training, its end; "
        "absent: the weights of the last step.",
    )


class Experiment(Section):
    """One experiment."""

    input_ds: InputDs = Field(default=InputDs(), description="The cells and how they are prepared.")
    model: Model = Field(default=Model(), description="The network and its losses.")
    training: Training = Field(default=Training(), description="How it is trained.")
    hyperparameter_search: FilePath | None = Field(
        default=None, description="Path of a search file for `discern optimize`."
    )
    preset: Literal["auto"] | None = Field(
        default=None,
        description='`"auto"` fills in what is not given with what did best on held-out cells of real data.',
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("preset") not in tuple(PRESETS):
            return data
        return filled({**data, "model": _translate_old_spellings(data.get("model"))})


class ExpParam(Section):
    """What holds for all experiments of a file."""

    experiments_dir: FilePath = Field(
        description="The folder that gets a folder for each experiment; relative to the current one."
    )


class ParameterFile(Section):
    """A full parameter file."""

    exp_param: ExpParam = Field(description="What holds for all experiments.")
    experiments: Annotated[dict[str, Experiment], Field(min_length=1)] = Field(
        description="EXPERIMENT by name. The name is that of its folder below `experiments_dir`."
    )
