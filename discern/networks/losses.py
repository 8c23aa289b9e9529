"""The losses: reconstruction of standardised expression, detection of genes, and penalties computed in layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from discern.config.allowlist import look_up
from discern.errors import InvalidInputError, UnknownNameError, nearest
from discern.networks.xla import with_gradient

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_register = keras.saving.register_keras_serializable("discern")


_AUTO = "auto"
_OF_ENTROPY = ("label_smoothing", "from_logits", "name", "reduction", "dtype")


def _reduction(reduction: str | None) -> str | None:
    """Return what Keras 3 calls a reduction: "auto", the name of Keras 2 for its choice, is the mean in `fit`."""
    return "sum_over_batch_size" if reduction == _AUTO else reduction


def _floats(y_pred: tf.Tensor, y_true: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return both as tensors of the type of the prediction, float32 if that is no floating-point number."""
    y_pred = tf.convert_to_tensor(y_pred)
    if not y_pred.dtype.is_floating:
        y_pred = tf.cast(y_pred, tf.float32)
    return y_pred, tf.cast(y_true, y_pred.dtype)


def getmembers() -> dict[str, type[keras.losses.Loss]]:
    """Return the losses of this module by name, for the `custom_objects` of Keras.

    Example:
        >>> sorted(getmembers())
        ['DummyLoss', 'HuberLoss', 'Lnorm', 'MaskedCrossEntropy', 'WeightedGenes']
    """
    return {loss.__name__: loss for loss in (DummyLoss, HuberLoss, Lnorm, MaskedCrossEntropy, WeightedGenes)}


@_register
class DummyLoss(keras.losses.Loss):
    """Pass on a penalty that a layer has computed already; the true values are ignored.

    Args:
        reduction: How Keras reduces the values to one number; "auto" is their mean.
        name: Name of the loss.

    Example:
        >>> float(DummyLoss()(keras.ops.zeros(2), keras.ops.array([1.0, 3.0])))
        2.0
    """

    def __init__(self, reduction: str | None = _AUTO, name: str = "Dummy") -> None:
        super().__init__(name=name, reduction=_reduction(reduction))

    @staticmethod
    def call(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return `y_pred`."""
        return y_pred


@_register
class HuberLoss(keras.losses.Loss):
    """Squared error up to a distance of `delta`, linear beyond, averaged over the genes of a cell.

    With d = y_true - y_pred: `d^2 / 2` where `|d| <= delta`, else `delta * |d| - delta^2 / 2`.

    Args:
        delta: Where the loss becomes linear, in units of the (standardised) expression.
        reduction: How Keras reduces the values of the cells to one number.
        name: Name of the loss.

    Example:
        >>> float(HuberLoss(delta=1.0)(keras.ops.array([[0.0, 0.0]]), keras.ops.array([[1.0, 3.0]])))
        1.5
    """

    def __init__(self, delta: float = 1.0, reduction: str | None = _AUTO, name: str = "huber_loss") -> None:
        super().__init__(name=name, reduction=_reduction(reduction))
        self.delta = delta
        self._of_cells = with_gradient(self._each_cell)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each cell: shapes (cells, genes) to (cells,)."""
        y_pred, y_true = _floats(y_pred, y_true)
        return self._of_cells(y_pred, y_true)

    def _each_cell(self, y_pred: tf.Tensor, y_true: tf.Tensor) -> tf.Tensor:
        difference = y_pred - y_true
        clipped = tf.clip_by_value(difference, -self.delta, self.delta)
        return tf.reduce_mean(clipped * (difference - 0.5 * clipped), axis=-1)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal loss can be made."""
        return {**super().get_config(), "delta": self.delta}


@_register
class WeightedGenes(keras.losses.Loss):
    """A loss in which genes count more or less: both true and predicted values are scaled gene by gene.

    With `weights` of w a squared error counts w times; what a loss has in the units of the expression, as `delta` of
    `HuberLoss`, is in those of the scaled one.

    Args:
        loss: The loss.
        weights: Of each gene, (n_genes,); 1 leaves it as it is.
        name: Name of the loss.

    Example:
        >>> loss = WeightedGenes(HuberLoss(delta=9.0), [4.0, 0.0])
        >>> float(loss(keras.ops.array([[0.0, 0.0]]), keras.ops.array([[1.0, 3.0]])))
        1.0
    """

    def __init__(self, loss: keras.losses.Loss, weights: ArrayLike, name: str = "weighted_genes") -> None:
        super().__init__(name=name, reduction=loss.reduction)
        self.loss = loss
        self.weights = np.asarray(weights, dtype=np.float32)
        self._scaled = with_gradient(self._of_scaled)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return what the loss returns for scaled expression, (cells, genes)."""
        y_pred, y_true = _floats(y_pred, y_true)
        return self._scaled(y_pred, y_true)

    def _of_scaled(self, y_pred: tf.Tensor, y_true: tf.Tensor) -> tf.Tensor:
        factors = tf.cast(np.sqrt(self.weights), y_pred.dtype)
        return self.loss.call(y_true * factors, y_pred * factors)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal loss can be made."""
        return {"loss": keras.losses.serialize(self.loss), "weights": self.weights.tolist(), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WeightedGenes:
        """Make a loss from its `get_config`."""
        return cls(**{**config, "loss": keras.losses.deserialize(config["loss"])})


@_register
class Lnorm(keras.losses.Loss):
    """`|y_true - y_pred|^p`, summed over cells or genes.

    Args:
        p: Power of the difference.
        name: Name of the loss.
        reduction: How Keras reduces the sums to one number.
        axis: Axis to sum over: 0 gives one value per gene, 1 one per cell.
        epsilon: Added under the root, whose gradient at 0 has no end.
        use_root: Whether to take the p-th root of the sums; for p < 2 none is taken.

    Attributes:
        pnorm: Power of the difference; the others have the names of the arguments.

    Example:
        >>> float(Lnorm(p=2, axis=1, use_root=True)(keras.ops.array([[0.0, 0.0]]), keras.ops.array([[3.0, 4.0]])))
        5.0
    """

    def __init__(
        self,
        p: float,
        name: str = "LNorm",
        reduction: str | None = _AUTO,
        axis: int = 0,
        epsilon: float = 1e-20,
        use_root: bool = False,
    ) -> None:
        super().__init__(name=name, reduction=_reduction(reduction))
        self.p = self.pnorm = p
        self.axis = axis
        self.epsilon = epsilon
        self.use_root = use_root

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the sums: shape (cells, genes) to (genes,) or (cells,)."""
        y_pred, y_true = _floats(y_pred, y_true)
        sums = tf.reduce_sum(tf.abs(y_true - y_pred) ** self.p, axis=self.axis)
        if self.use_root and self.p >= 2:
            return (sums + self.epsilon) ** (1 / self.p)
        return sums

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal loss can be made."""
        return {
            **super().get_config(),
            "p": self.p,
            "axis": self.axis,
            "epsilon": self.epsilon,
            "use_root": self.use_root,
        }


@_register
class MaskedCrossEntropy(keras.losses.Loss):
    """Binary cross entropy of the predicted probability that a gene is detected.

    The label of an entry is `lower_label_smoothing` where its expression is that of a zero count and 1 elsewhere, then
    smoothed towards 1/2 by `label_smoothing`.

    Args:
        zeros: The value that a count of zero has on the scale of `y_true`: one number, or one per gene.
        zeros_eps: Largest distance from `zeros` that still counts as zero.
        lower_label_smoothing: Label of undetected genes; more than 0 since a zero count may be a gene that was missed.
        **kwargs: `label_smoothing`, `from_logits` (whether logits are predicted, not probabilities), and the `name` and
            `reduction` of every Keras loss.

    Raises:
        UnknownNameError: If there is no such argument.

    Example:
        >>> loss = MaskedCrossEntropy(zeros=0.0)
        >>> round(float(loss(keras.ops.array([[0.0, 5.0]]), keras.ops.array([[0.5, 0.5]]))), 4)
        0.6931
    """

    def __init__(
        self, zeros: ArrayLike, zeros_eps: float = 1e-6, lower_label_smoothing: float = 0.0, **kwargs: Any
    ) -> None:
        self.label_smoothing = kwargs.pop("label_smoothing", 0.0)
        self.from_logits = bool(kwargs.pop("from_logits", False))
        if kwargs.pop("axis", -1) != -1:
            raise InvalidInputError("MaskedCrossEntropy: axis: expected -1, the genes; leave it out")
        known = ("zeros", "zeros_eps", "lower_label_smoothing", *_OF_ENTROPY)
        for unknown in set(kwargs) - set(_OF_ENTROPY):
            raise UnknownNameError(f"MaskedCrossEntropy has no argument {unknown!r}{nearest(unknown, known)}")
        super().__init__(
            **{"name": "masked_crossentropy", **kwargs, "reduction": _reduction(kwargs.get("reduction", _AUTO))}
        )
        self.zeros = np.asarray(zeros, dtype=np.float32)
        self.zeros_eps = zeros_eps
        self.lower_label_smoothing = lower_label_smoothing
        self._of_logits = with_gradient(self._each_cell)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each cell for expression and probabilities, both (cells, genes).

        Where the probabilities come straight from a sigmoid, Keras takes the exact and faster way over its logits.
        """
        logits = y_pred if self.from_logits else getattr(y_pred, "_keras_logits", None)
        if logits is None:
            y_pred, y_true = _floats(y_pred, y_true)
            labels = tf.cast(self._labels(y_true), y_pred.dtype)
            return tf.reduce_mean(keras.ops.binary_crossentropy(labels, y_pred), axis=-1)
        return self._of_logits(*_floats(logits, y_true))

    def _each_cell(self, logits: tf.Tensor, y_true: tf.Tensor) -> tf.Tensor:
        labels = self._labels(y_true)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits), axis=-1)

    def _labels(self, y_true: tf.Tensor) -> tf.Tensor:
        smoothing = self.label_smoothing
        undetected, detected = (
            label * (1 - smoothing) + 0.5 * smoothing for label in (min(1.0, self.lower_label_smoothing), 1.0)
        )
        return tf.where(tf.abs(y_true - self.zeros) <= self.zeros_eps, undetected, detected)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal loss can be made."""
        return {
            **super().get_config(),
            "zeros": self.zeros.tolist(),
            "zeros_eps": self.zeros_eps,
            "lower_label_smoothing": self.lower_label_smoothing,
            "label_smoothing": self.label_smoothing,
            "from_logits": self.from_logits,
        }


def reconstruction_loss(loss_type: str | Mapping[str, object]) -> keras.losses.Loss:
    """Return the loss for the reconstructed expression.

    Args:
        loss_type: `{"name": NAME, ...}` with the arguments of the loss, or just its name: `HuberLoss`, `Lnorm`, or a
            loss of Keras by class or function name ("MeanSquaredError", "mse").

    Raises:
        UnknownNameError: If there is no such loss (a KeyError).
        InvalidInputError: If the loss does not take the arguments.

    Example:
        >>> reconstruction_loss({"name": "HuberLoss", "delta": 9.0}).delta
        9.0
        >>> reconstruction_loss("mse").name
        'mean_squared_error'
    """
    if not isinstance(loss_type, str | Mapping):
        raise InvalidInputError(f"reconstruction_loss: expected {{'name': NAME, ...}}, got {loss_type!r}")
    arguments: dict[str, Any] = {"name": loss_type} if isinstance(loss_type, str) else dict(loss_type)
    if "reduction" in arguments:
        arguments["reduction"] = _reduction(arguments["reduction"])
    if "name" not in arguments:
        raise UnknownNameError(f"reconstruction_loss needs the key 'name', for example 'HuberLoss'; it has {loss_type}")
    name = arguments.pop("name")
    known = _loss_classes()
    if not isinstance(name, str):
        raise UnknownNameError(
            f"reconstruction_loss: expected the name of a loss, for example 'HuberLoss', got {name!r}"
        )
    if "." in name:
        name = look_up(name, "loss").attribute
    try:  # a short or function name: "mse" and "mean_squared_error" are MeanSquaredError
        canonical = keras.losses.get(name).__name__.replace("_", "")
    except (AttributeError, ValueError):
        canonical = name
    loss_class = known.get(canonical.lower())
    if loss_class is None:
        names = [found.__name__ for found in known.values()]
        raise UnknownNameError(f"reconstruction_loss: there is no loss {name!r}{nearest(name, names)}")
    try:
        return loss_class(**arguments)
    except Exception as error:
        raise InvalidInputError(f"reconstruction_loss: {name} cannot be made from {arguments}: {error}") from error


def _loss_classes() -> dict[str, type[keras.losses.Loss]]:
    losses = [value for value in vars(keras.losses).values() if isinstance(value, type)]
    losses = [value for value in losses if issubclass(value, keras.losses.Loss) and value is not keras.losses.Loss]
    return {loss.__name__.lower(): loss for loss in (*losses, HuberLoss, Lnorm)}
