"""Which dotted names a JSON file may hold, what they are called today, and which of their arguments are left.

A parameter file may come from anywhere, so a name in it never reaches `import` unchecked: it is looked up in the tables
below, which list the optimisers, losses, activations and search algorithms that such files are for. Looking a name up
imports nothing.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from dataclasses import dataclass
from typing import Any

from discern.errors import InvalidInputError, UnknownNameError, UnsupportedError, nearest


@dataclass(frozen=True)
class Known:
    """A name that may be used.

    Attributes:
        kind: What it is, e.g. "optimizer".
        module: The module that it is imported from today.
        attribute: Its name there.
        caveat: How today's equivalent of a dead name differs; empty where it does not.
    """

    kind: str
    module: str
    attribute: str
    caveat: str = ""


_TABLES: dict[str, tuple[str, str]] = {
    "keras.activations": (
        "activation",
        """celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear
        log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus
        sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold""",
    ),
    "tensorflow": ("activation", "identity sigmoid tanh"),
    "tensorflow.math": ("activation", "sigmoid softplus tanh"),
    "tensorflow.nn": (
        "activation",
        """elu gelu leaky_relu log_softmax relu relu6 selu sigmoid silu softmax softplus softsign swish tanh""",
    ),
    "keras.losses": (
        "loss",
        """BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy CategoricalFocalCrossentropy
        CategoricalHinge CosineSimilarity Hinge Huber KLDivergence LogCosh MeanAbsoluteError
        MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson SquaredHinge Tversky
        binary_crossentropy binary_focal_crossentropy categorical_crossentropy categorical_focal_crossentropy
        categorical_hinge cosine_similarity hinge huber kl_divergence log_cosh mean_absolute_error
        mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error poisson squared_hinge
        tversky""",
    ),
    "keras.optimizers": (
        "optimizer",
        "Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lamb Lion Nadam RMSprop SGD",
    ),
    "keras.optimizers.schedules": (
        "schedule",
        """CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay
        PolynomialDecay""",
    ),
    "keras.regularizers": ("regularizer", "L1 L1L2 L2 OrthogonalRegularizer l1 l1_l2 l2 orthogonal_regularizer"),
    "discern.estimators.losses": ("loss", "HuberLoss Lnorm"),
    "discern.estimators.optimizers": ("optimizer", "Lookahead RectifiedAdam"),
    "ray.tune": (
        "search space",
        """choice grid_search lograndint loguniform qlograndint qloguniform qrandint qrandn quniform randint randn
        uniform""",
    ),
    "ray.tune.schedulers": (
        "scheduler",
        """ASHAScheduler AsyncHyperBandScheduler FIFOScheduler HyperBandForBOHB HyperBandScheduler
        MedianStoppingRule PopulationBasedTraining""",
    ),
    "ray.tune.schedulers.pb2": ("scheduler", "PB2"),
    "ray.tune.search.ax": ("searcher", "AxSearch"),
    "ray.tune.search.basic_variant": ("searcher", "BasicVariantGenerator"),
    "ray.tune.search.bayesopt": ("searcher", "BayesOptSearch"),
    "ray.tune.search.bohb": ("searcher", "TuneBOHB"),
    "ray.tune.search.hebo": ("searcher", "HEBOSearch"),
    "ray.tune.search.hyperopt": ("searcher", "HyperOptSearch"),
    "ray.tune.search.nevergrad": ("searcher", "NevergradSearch"),
    "ray.tune.search.optuna": ("searcher", "OptunaSearch"),
    "ray.tune.search.zoopt": ("searcher", "ZOOptSearch"),
    "hyperopt.hp": (
        "search space",
        """choice lognormal loguniform normal pchoice qlognormal qloguniform qnormal quniform randint uniform
        uniformint""",
    ),
    "optuna.distributions": ("search space", "CategoricalDistribution FloatDistribution IntDistribution"),
    "optuna.samplers": (
        "sampler",
        "BruteForceSampler CmaEsSampler GPSampler NSGAIISampler NSGAIIISampler QMCSampler RandomSampler TPESampler",
    ),
    "optuna.pruners": (
        "pruner",
        "HyperbandPruner MedianPruner NopPruner PercentilePruner SuccessiveHalvingPruner ThresholdPruner",
    ),
}

KNOWN: dict[str, Known] = {
    f"{module}.{attribute}": Known(kind, module, attribute)
    for module, (kind, attributes) in _TABLES.items()
    for attribute in attributes.split()
}

# Beginnings of names that moved as a whole; the first that fits is replaced, repeatedly.
_MOVED = {
    "tensorflow.python.keras.": "keras.",
    "tensorflow.keras.": "keras.",
    "tensorflow.optimizers.": "keras.optimizers.",
    "tensorflow.losses.": "keras.losses.",
    "keras.experimental.": "keras.optimizers.schedules.",
    "keras.optimizers.experimental.": "keras.optimizers.",
    "keras.optimizers.legacy.": "keras.optimizers.",
    "ray.tune.suggest.": "ray.tune.search.",
    "ray.tune.schedulers.async_hyperband.": "ray.tune.schedulers.",
    "ray.tune.schedulers.hyperband.": "ray.tune.schedulers.",
    "ray.tune.schedulers.pbt.": "ray.tune.schedulers.",
}

_DECAY = "Keras multiplies weight_decay by the learning rate, TensorFlow Addons did not: divide it by the learning rate"

# Single names that died or moved, and how today's equivalent differs.
_RENAMED = {
    "tensorflow_addons.activations.gelu": ("keras.activations.gelu", "exact now, TensorFlow Addons approximated"),
    "tensorflow_addons.activations.hardshrink": ("keras.activations.hard_shrink", ""),
    "tensorflow_addons.activations.mish": ("keras.activations.mish", ""),
    "tensorflow_addons.activations.softshrink": ("keras.activations.soft_shrink", ""),
    "tensorflow_addons.activations.sparsemax": ("keras.activations.sparsemax", ""),
    "tensorflow_addons.activations.tanhshrink": ("keras.activations.tanh_shrink", ""),
    "tensorflow_addons.losses.SigmoidFocalCrossEntropy": (
        "keras.losses.BinaryFocalCrossentropy",
        "alpha counts only with apply_class_balancing=true",
    ),
    "tensorflow_addons.optimizers.AdamW": ("keras.optimizers.AdamW", _DECAY),
    "tensorflow_addons.optimizers.LAMB": ("keras.optimizers.Lamb", f"weight_decay_rate is weight_decay now; {_DECAY}"),
    "tensorflow_addons.optimizers.LazyAdam": ("keras.optimizers.Adam", ""),
    "tensorflow_addons.optimizers.Lookahead": ("discern.estimators.optimizers.Lookahead", ""),
    "tensorflow_addons.optimizers.RectifiedAdam": ("discern.estimators.optimizers.RectifiedAdam", ""),
    "tensorflow_addons.optimizers.SGDW": ("keras.optimizers.SGD", _DECAY),
    "ray.tune.search.BasicVariantGenerator": ("ray.tune.search.basic_variant.BasicVariantGenerator", ""),
    "ray.tune.schedulers.PB2": ("ray.tune.schedulers.pb2.PB2", ""),
    "keras.losses.KLD": ("keras.losses.kl_divergence", ""),
    "keras.losses.MAE": ("keras.losses.mean_absolute_error", ""),
    "keras.losses.MAPE": ("keras.losses.mean_absolute_percentage_error", ""),
    "keras.losses.MSE": ("keras.losses.mean_squared_error", ""),
    "keras.losses.MSLE": ("keras.losses.mean_squared_logarithmic_error", ""),
    "keras.losses.kld": ("keras.losses.kl_divergence", ""),
    "keras.losses.kullback_leibler_divergence": ("keras.losses.kl_divergence", ""),
    "keras.losses.logcosh": ("keras.losses.log_cosh", ""),
    "keras.losses.mae": ("keras.losses.mean_absolute_error", ""),
    "keras.losses.mape": ("keras.losses.mean_absolute_percentage_error", ""),
    "keras.losses.mse": ("keras.losses.mean_squared_error", ""),
    "keras.losses.msle": ("keras.losses.mean_squared_logarithmic_error", ""),
}

_LIBRARIES = ("tensorflow", "keras", "discern", "ray.tune", "hyperopt", "optuna")


def look_up(name: str, kind: str = "") -> Known:
    """Find a dotted name of a JSON file in the allow-list, under the name that it has today.

    Args:
        name: The dotted name, old or new.
        kind: What it has to be, e.g. "optimizer"; anything when empty.

    Returns:
        Where the object is today. Nothing is imported.

    Raises:
        InvalidInputError: If the name is not a dotted name, comes from a library that such files are not for, or is
            something else than `kind`.
        UnsupportedError: If the name died and there is no equivalent.
        UnknownNameError: If the library is one of ours but it has no such name, or not one that files may use.

    Example:
        >>> look_up("tensorflow_addons.activations.mish")
        Known(kind='activation', module='keras.activations', attribute='mish', caveat='')
        >>> look_up("os.system")
        Traceback (most recent call last):
        discern.errors.InvalidInputError: 'os.system' is refused: names may only come from tensorflow, keras, ...
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name, re.ASCII):
        raise InvalidInputError(f"expected a dotted name such as 'tensorflow.keras.optimizers.Adam', got {name!r}")
    today, caveat = _today(name)
    known = KNOWN.get(today)
    if known is None:
        raise _refusal(name, today)
    if kind and known.kind != kind:
        raise InvalidInputError(f"expected a name of kind {kind!r}, got {name!r} of kind {known.kind!r}")
    return Known(known.kind, known.module, known.attribute, caveat)


def names_of(kind: str) -> list[str]:
    """Return all current dotted names of one kind, e.g. "loss"."""
    return sorted(name for name, known in KNOWN.items() if known.kind == kind)


def _today(name: str) -> tuple[str, str]:
    while moved := next((old for old in _MOVED if name.startswith(old)), None):
        name = _MOVED[moved] + name.removeprefix(moved)
    return _RENAMED.get(name, (name, ""))


def _refusal(name: str, today: str) -> Exception:
    if name.startswith("tensorflow_addons."):
        hint = nearest(name, _RENAMED)
        return UnsupportedError(f"{name!r}: TensorFlow Addons is dead and this has no equivalent today{hint}")
    if not any(name.startswith(f"{library}.") for library in _LIBRARIES):
        return InvalidInputError(f"{name!r} is refused: names may only come from {', '.join(_LIBRARIES)}")
    if name.startswith("ray.tune.suggest."):
        return UnsupportedError(f"{name!r}: Ray has no such searcher any more{nearest(today, names_of('searcher'))}")
    return UnknownNameError(f"{name!r} is not a name that a parameter file may use{nearest(today, KNOWN)}")


class _RefusedNameError(InvalidInputError, UnknownNameError):
    """A name of a library from which none may come."""


def get_function_by_name(func_str: str) -> Any:
    """Return the class or function that a JSON file names.

    Args:
        func_str: A dotted name, e.g. "tensorflow.keras.optimizers.Adam". Names that are dead today, such as
            "tensorflow_addons.activations.mish", give their equivalent.

    Returns:
        The class or function.

    Raises:
        UnknownNameError: If there is nothing of this name that a file may use; InvalidInputError as well if it is not
            of one of the libraries that such files are for.
        UnsupportedError: If the name is dead and has no equivalent.

    Example:
        >>> get_function_by_name("tensorflow_addons.activations.mish").__name__
        'mish'
    """
    if not isinstance(func_str, str):
        raise _RefusedNameError(f"expected the name of a class or function, got {func_str!r}")
    try:
        known = look_up(func_str)
    except InvalidInputError as error:
        raise _RefusedNameError(*error.args) from None
    if known.caveat:
        warnings.warn(f"{func_str} is {known.module}.{known.attribute} now: {known.caveat}", UserWarning, stacklevel=2)
    try:
        return getattr(importlib.import_module(known.module), known.attribute)
    except ImportError as error:
        error.add_note(f"needed for {func_str!r}; `pip install 'discern[tune]'` brings the search libraries")
        raise
    except AttributeError:
        raise UnknownNameError(f"{func_str!r}: the installed {known.module} has no {known.attribute!r}") from None


def getmembers(name: str) -> dict[str, type]:
    """Return the classes that an imported module defines or publishes, by name.

    Args:
        name: Name of the module, usually its `__name__`.

    Raises:
        UnknownNameError: If no such module has been imported.

    Example:
        >>> sorted(getmembers("discern.errors"))[:2]
        ['InUseError', 'InvalidInputError']
    """
    if name not in sys.modules:
        raise UnknownNameError(f"expected the name of an imported module, got {name!r}")
    published = getattr(sys.modules[name], "__all__", ())
    return {
        label: member
        for label, member in inspect.getmembers(sys.modules[name], inspect.isclass)
        if member.__module__ == name or label in published
    }
