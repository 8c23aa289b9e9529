"""Give a trained network new batches, with or without changing what it knows of the old ones."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from discern.errors import InvalidInputError


def update_model(old_model: keras.Model, new_model: keras.Model, freeze_unchanged: bool = False) -> keras.Model:
    """Give a model with more batch labels the weights of a trained one.

    Rows of weights that belong to the new labels keep their initial values.

    Args:
        old_model: The trained model.
        new_model: A model of the same architecture with as many labels or more; not compiled yet.
        freeze_unchanged: Whether training shall change nothing but the rows of the new labels. Layers whose shapes are
            the same stop training (batch norm keeps its statistics), in the others the old rows are held fast. If no
            layer has grown, none is trained any more.

    Returns:
        `new_model`.

    Raises:
        InvalidInputError: If the weights do not fit; then nothing is changed.

    Example:
        >>> def network(labels):
        ...     return keras.Sequential([keras.Input((labels,)), keras.layers.Dense(2), keras.layers.Dense(1)])
        >>> old, new = network(2), network(3)
        >>> model = update_model(old, new, freeze_unchanged=True)
        >>> bool((model.layers[0].kernel.numpy()[:2] == old.layers[0].kernel.numpy()).all())
        True
        >>> [layer.trainable for layer in model.layers]
        [True, False]
    """
    trained, layers = _leaves(old_model), _leaves(new_model)
    if len(trained) != len(layers):
        raise InvalidInputError(
            f"the trained network has {len(trained)} layers with weights, the parameters describe {len(layers)}"
        )
    pairs = list(zip(trained, layers, strict=True))
    for old, new in pairs:
        shapes = [[tuple(variable.shape) for variable in layer.weights] for layer in (old, new)]
        if len(shapes[0]) != len(shapes[1]) or not all(map(_fits, *shapes)):
            raise InvalidInputError(
                f"layer {new.name}: the trained weights of shape {shapes[0]} do not fit {shapes[1]}; the parameters "
                "describe another network than the trained one"
            )
    grown = [
        new for old, new in pairs if any(a.shape != b.shape for a, b in zip(old.weights, new.weights, strict=True))
    ]
    for old, new in pairs:
        for source, target in zip(old.weights, new.weights, strict=True):
            target.assign(extended(source.numpy(), target.numpy()))
        if freeze_unchanged and new in grown:
            for source, target in zip(old.weights, new.weights, strict=True):
                target.constraint = _KeepRows(source.numpy())
        elif freeze_unchanged:
            new.trainable = False
    return new_model


def _leaves(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers that have weights of their own, in order."""
    if isinstance(layer, keras.Model):
        return [leaf for part in layer.layers for leaf in _leaves(part)]
    return [layer] if layer.weights else []


def _fits(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    return old == new or (len(old) == len(new) > 0 and old[0] < new[0] and old[1:] == new[1:])


def extended(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return `new` with its first rows replaced by `old`; `old` itself if it has no rows more."""
    return old if old.shape == new.shape else np.concatenate([old, new[len(old) :]])


class _KeepRows(keras.constraints.Constraint):
    """Sets the first rows back after each step: momentum, weight decay and the like would move them without a gradient.

    Args:
        rows: Their values.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __call__(self, w: tf.Tensor) -> tf.Tensor:
        rows = tf.constant(self.rows)
        return rows if len(self.rows) == w.shape[0] else tf.concat([rows, w[len(self.rows) :]], axis=0)
