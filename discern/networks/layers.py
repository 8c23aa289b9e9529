"""Layers of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from discern.errors import InvalidInputError, nearest
from discern.networks.noise import GENERATOR, draw, normal
from discern.networks.penalties import MMDPP, BatchMMD, SigmaRegularization, check_same_shape, refuse_dynamic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_register = keras.saving.register_keras_serializable("discern")


def getmembers() -> dict[str, type[keras.layers.Layer]]:
    """Return the layers of this module by name, for the `custom_objects` of Keras.

    Example:
        >>> sorted(getmembers())
        ['BatchMMD', 'Dropout', 'GaussianReparametrization', 'GeneDense', 'LibrarySizeOutput', 'MMDPP',
         'SigmaRegularization']
    """
    layers = (BatchMMD, Dropout, GaussianReparametrization, GeneDense, LibrarySizeOutput, MMDPP, SigmaRegularization)
    return {layer.__name__: layer for layer in layers}


def condlayernorm(
    input_cells: keras.KerasTensor,
    labels: keras.KerasTensor,
    size: int,
    regularization: Mapping[str, object] | keras.regularizers.Regularizer | None = None,
) -> keras.KerasTensor:
    """Add an offset that is learnt for each batch to features that have been normalised.

    Args:
        input_cells: Features, shape (cells, size).
        labels: One-hot batch labels, or mixtures of them, shape (cells, batches).
        size: Number of features.
        regularization: Regulariser of the offsets (of the activity, not of the weights): `{"name": NAME, ...}` with
            its arguments, or an object.

    Returns:
        The features, each cell's with its batch's offset added, which is 0 before training; same shape.

    Raises:
        InvalidInputError: If there is no such regulariser, it does not take the arguments, or there are not `size`
            features.

    Example:
        >>> cells, labels = keras.Input((16,)), keras.Input((2,))
        >>> condlayernorm(cells, labels, size=16).shape
        (None, 16)
    """
    if input_cells.shape[-1] != size:
        raise InvalidInputError(f"condlayernorm: size is {size}, but there are {input_cells.shape[-1]} features")
    return keras.layers.Add()([input_cells, label_offset(size, regularizer(regularization))(labels)])


def label_offset(
    size: int, regularization: keras.regularizers.Regularizer | None = None, **kwargs: object
) -> keras.layers.Dense:
    """Return the layer that maps batch labels to an offset of `size` features, initially zero."""
    return keras.layers.Dense(
        size, use_bias=False, kernel_initializer="zeros", activity_regularizer=regularization, **kwargs
    )


def regularizer(
    regularization: Mapping[str, object] | keras.regularizers.Regularizer | None,
) -> keras.regularizers.Regularizer | None:
    """Return the regulariser for `{"name": NAME, ...}`, or the regulariser itself.

    Args:
        regularization: NAME is a class of `keras.regularizers`, alone or with dots; the rest are its arguments.

    Raises:
        InvalidInputError: If there is no such regulariser, or it does not take the arguments.

    Example:
        >>> float(regularizer({"name": "tensorflow.keras.regularizers.L1L2", "l2": 0.5}).l2)
        0.5
    """
    if isinstance(regularization, keras.regularizers.Regularizer):
        return regularization
    if not regularization:
        return None
    arguments = dict(regularization)
    name = arguments.pop("name", None)
    if name is None:
        raise InvalidInputError(f"conditional_regularization needs the key 'name'; it has {sorted(arguments)}")
    from discern.config.allowlist import get_function_by_name

    made = get_function_by_name(name) if "." in name else getattr(keras.regularizers, name, None)
    if made is None:
        known = [known for known in dir(keras.regularizers) if not known.startswith("_")]
        raise InvalidInputError(f"conditional_regularization: there is no regulariser {name!r}{nearest(name, known)}")
    try:
        return made(**arguments)
    except TypeError as error:
        raise InvalidInputError(
            f"conditional_regularization: {name} cannot be made from {arguments}: {error}"
        ) from error


@_register
class GaussianReparametrization(keras.layers.Layer):
    """Draw latent codes: z + exp(sigma) * N(0, 1) in training, z itself otherwise.

    The inputs are z and sigma, the logarithm of the standard deviation, both of shape (cells, latent_dim).

    Args:
        trainable: Without effect: the layer has no weights.
        name: Name of the layer.
        dtype: Data type policy.
        dynamic: False; Keras 3 knows nothing else.
        seed: Seed of the noise.
        **kwargs: Arguments of every Keras layer.

    Example:
        >>> z, sigma = keras.ops.ones((2, 3)), keras.ops.zeros((2, 3))
        >>> bool(keras.ops.all(GaussianReparametrization()([z, sigma]) == z))
        True
    """

    def __init__(
        self,
        trainable: bool = True,
        name: str | None = None,
        dtype: str | keras.DTypePolicy | None = None,
        dynamic: bool = False,
        *,
        seed: int | None = None,
        **kwargs: object,
    ) -> None:
        refuse_dynamic(dynamic)
        super().__init__(trainable=trainable, name=name, dtype=dtype, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Sequence[tuple[int | None, ...]]) -> None:
        """Check that z and sigma have one shape."""
        check_same_shape(self.name, input_shape)

    def __call__(self, inputs: Sequence[tf.Tensor], **kwargs: object) -> tf.Tensor:
        """Draw with the layer's own generator, unless another `seed` is passed."""
        return super().__call__(inputs, **{"seed": self.seed_generator, **kwargs})

    @staticmethod
    def call(
        inputs: Sequence[tf.Tensor],
        training: bool | None = None,
        seed: int | keras.random.SeedGenerator | None = None,
        **kwargs: object,
    ) -> tf.Tensor:
        """Draw one latent code per cell.

        Args:
            inputs: Z and sigma.
            training: Whether to add the noise.
            seed: Seed of the noise.
            **kwargs: Ignored.

        Returns:
            Latent codes, shape (cells, latent_dim).
        """
        latent, sigma = inputs
        if not training:
            return latent
        return latent + normal(tf.shape(latent), seed) * tf.exp(sigma)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal layer can be made."""
        return {**super().get_config(), "seed": self.seed}


@_register
class Dropout(keras.layers.Dropout):
    """Dropout as in Keras, with random numbers that are cheap to draw under XLA too.

    Args:
        rate: Share of the inputs that is set to zero in training.
        seed: Seed of the choice.
        **kwargs: Arguments of every Keras layer.

    Example:
        >>> sorted(set(Dropout(0.5, seed=0)(keras.ops.ones((4, 9)), training=True).numpy().ravel().tolist()))
        [0.0, 2.0]
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: object) -> None:
        super().__init__(rate, seed=seed, **kwargs)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drop inputs in training, and scale up the others to the same sum on average."""
        if not training or not self.rate:
            return inputs
        seed = draw(self.seed_generator)
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed=seed, rng_alg=GENERATOR)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal layer can be made."""
        config: dict[str, object] = super().get_config()
        del config["noise_shape"]
        return config


@_register
class GeneDense(keras.layers.Dense):
    """A dense layer to many genes, whose gradient by the input is computed in the way that CPUs like.

    The gradient by the input, dY W^T, sums over thousands of genes for a few hundred cells. TensorFlow's product of
    batches of matrices, here a batch of one, takes half the time for it on CPUs that its product of two matrices takes.
    The arguments are those of Keras' `Dense`.

    Example:
        >>> GeneDense(20)(keras.ops.ones((3, 4))).shape
        TensorShape([3, 20])
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return inputs @ kernel + bias, (cells, units)."""
        outputs = tf.nn.bias_add(
            _to_genes(inputs, tf.cast(self.kernel, inputs.dtype)), tf.cast(self.bias, inputs.dtype)
        )
        return self.activation(outputs)


@tf.custom_gradient
def _to_genes(
    inputs: tf.Tensor, kernel: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        by_inputs = tf.matmul(upstream[None], kernel[None], transpose_b=True)[0]
        return by_inputs, tf.matmul(inputs, upstream, transpose_a=True)

    return tf.matmul(inputs, kernel), gradient


@_register
class LibrarySizeOutput(keras.layers.Layer):
    """Turn the decoder's last linear layer into log-normalised expression of a given library size.

    The output is log1p(library_size * share), where the shares of a cell's genes add up to 1.

    Args:
        library_size: Counts per cell to which the data were normalised (LSN).
        kind: How shares come from the input x: "softmax"; "LSN" for relu(x) / sum; "sigsoftmax" for
            sigmoid(x) * exp(x) / sum (Kanai et al., arXiv:1805.10829).
        **kwargs: Arguments of every Keras layer.

    Raises:
        InvalidInputError: If `kind` is none of the three.

    Example:
        >>> expression = LibrarySizeOutput(20000)(keras.ops.array([[0.0, 1.0, -1.0]]))
        >>> round(float(keras.ops.sum(keras.ops.expm1(expression))))
        20000
    """

    KINDS = ("softmax", "LSN", "sigsoftmax")

    def __init__(self, library_size: float, kind: str = "softmax", **kwargs: object) -> None:
        if kind not in self.KINDS:
            raise InvalidInputError(f"kind must be one of {', '.join(self.KINDS)}, not {kind!r}")
        super().__init__(**kwargs)
        self.library_size = library_size
        self.kind = kind

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return log-normalised expression for the linear output (cells, genes)."""
        if self.kind == "softmax":
            shares = tf.nn.softmax(inputs)
        elif self.kind == "LSN":
            positive = tf.nn.relu(inputs)
            shares = positive / (tf.reduce_sum(positive, axis=-1, keepdims=True) + 1e-8)
        else:
            # a common factor leaves the shares as they are, and exp in range
            weights = tf.sigmoid(inputs) * tf.exp(inputs - tf.reduce_max(inputs, axis=-1, keepdims=True))
            shares = weights / (tf.reduce_sum(weights, axis=-1, keepdims=True) + 1e-8)
        return tf.math.log1p(self.library_size * shares)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal layer can be made."""
        return {**super().get_config(), "library_size": self.library_size, "kind": self.kind}
