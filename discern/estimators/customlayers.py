"""The layers that Keras does not have: sampling of latent codes, the MMD terms and the regularisation of sigma."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from discern.errors import InvalidInputError, nearest
from discern.estimators.fused import with_gradient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_register = keras.saving.register_keras_serializable("discern")

KERNEL_SCALES = (0.1, 0.5, 1.0, 2.0, 10.0)
NOISY_COPIES = 8


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
    regularization: Mapping[str, Any] | keras.regularizers.Regularizer | None = None,
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
        InvalidInputError: If there is no such regulariser, or it does not take the arguments.

    Example:
        >>> cells, labels = keras.Input((16,)), keras.Input((2,))
        >>> condlayernorm(cells, labels, size=16).shape
        (None, 16)
    """
    return keras.layers.Add()([input_cells, label_offset(size, regularizer(regularization))(labels)])


def label_offset(
    size: int, regularization: keras.regularizers.Regularizer | None = None, **kwargs: Any
) -> keras.layers.Dense:
    """Return the layer that maps batch labels to an offset of `size` features, initially zero."""
    return keras.layers.Dense(
        size, use_bias=False, kernel_initializer="zeros", activity_regularizer=regularization, **kwargs
    )


def regularizer(
    regularization: Mapping[str, Any] | keras.regularizers.Regularizer | None,
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
    if regularization is None or isinstance(regularization, keras.regularizers.Regularizer):
        return regularization
    arguments = dict(regularization)
    name = arguments.pop("name", None)
    if name is None:
        raise InvalidInputError(f"conditional_regularization needs the key 'name'; it has {sorted(arguments)}")
    from discern.functions import get_function_by_name

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


def _refuse_dynamic(dynamic: bool) -> None:
    if dynamic:
        raise InvalidInputError("dynamic=True: Keras 3 has no such layers; leave it out")


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
        dtype: Any = None,
        dynamic: bool = False,
        *,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse_dynamic(dynamic)
        super().__init__(trainable=trainable, name=name, dtype=dtype, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Sequence[tuple[int | None, ...]]) -> None:
        """Check that z and sigma have one shape."""
        _check_same_shape(self.name, input_shape)

    def __call__(self, inputs: Sequence[tf.Tensor], **kwargs: Any) -> tf.Tensor:
        """Draw with the layer's own generator, unless another `seed` is passed."""
        return super().__call__(inputs, **{"seed": self.seed_generator, **kwargs})

    @staticmethod
    def call(
        inputs: Sequence[tf.Tensor],
        training: bool | None = None,
        seed: int | keras.random.SeedGenerator | None = None,
        **kwargs: Any,
    ) -> tf.Tensor:
        """Draw one latent code per cell.

        Args:
            inputs: z and sigma.
            training: Whether to add the noise.
            seed: Seed of the noise.
            **kwargs: Ignored.

        Returns:
            Latent codes, shape (cells, latent_dim).
        """
        latent, sigma = inputs
        if not training:
            return latent
        return latent + _normal(tf.shape(latent), seed) * tf.exp(sigma)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments from which an equal layer can be made."""
        return {**super().get_config(), "seed": self.seed}


@_register
class SigmaRegularization(keras.layers.Layer):
    """The penalty that keeps each cell's sigma small: latent_dim * mean |sigma|, shape (cells,).

    Args:
        trainable: Without effect: the layer has no weights.
        name: Name of the layer.
        dtype: Data type policy.
        dynamic: False; Keras 3 knows nothing else.
        **kwargs: Arguments of every Keras layer.

    Example:
        >>> SigmaRegularization()(keras.ops.array([[-1.0, 2.0, -3.0]])).numpy().tolist()
        [6.0]
    """

    def __init__(
        self,
        trainable: bool = True,
        name: str | None = None,
        dtype: Any = None,
        dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        _refuse_dynamic(dynamic)
        super().__init__(trainable=trainable, name=name, dtype=dtype, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Nothing to create: the layer has no weights."""

    def call(self, inputs: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        """Return the penalty of each cell for its sigma (cells, latent_dim)."""
        return tf.reduce_sum(tf.abs(inputs), axis=-1)


@_register
class MMDPP(keras.layers.Layer):
    """MMD++ between the latent codes of a batch of cells and the standard normal; see `mmdpp_penalty`.

    The inputs are z and sigma, both of shape (cells, latent_dim); the output is one number.

    Args:
        scale: Number of cells in the whole training set.
        seed: Seed of the noise.
        **kwargs: Arguments of every Keras layer.

    Example:
        >>> z, sigma = keras.random.normal((64, 4), seed=0), keras.ops.full((64, 4), -80.0)
        >>> abs(float(MMDPP(scale=1000, seed=0)([z, sigma]))) < 0.2
        True
    """

    def __init__(self, scale: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Sequence[tuple[int | None, ...]]) -> None:
        """Check that z and sigma have one shape."""
        _check_same_shape(self.name, input_shape)

    def call(self, inputs: Sequence[tf.Tensor], **kwargs: Any) -> tf.Tensor:
        """Return MMD++ of z and sigma."""
        latent, sigma = inputs
        prior = _normal(tf.shape(latent), self.seed_generator)
        return mmdpp_penalty(latent, prior, sigma, self.scale, latent.shape[-1], seed=self.seed_generator)

    def compute_output_shape(self, input_shape: Sequence[tuple[int | None, ...]]) -> tuple[()]:
        """Return the shape of a single number."""
        return ()

    def get_config(self) -> dict[str, Any]:
        """Return the arguments from which an equal layer can be made."""
        return {**super().get_config(), "scale": self.scale, "seed": self.seed}


def mmdpp_penalty(
    sample_qz: tf.Tensor,
    sample_pz: tf.Tensor,
    encoder_sigma: tf.Tensor,
    total_number_cells: float,
    latent_dim: int,
    seed: int | keras.random.SeedGenerator | None = None,
) -> tf.Tensor:
    """Return MMD++, the distance of the latent codes from the prior that also sees the noise of each code.

    Rubenstein et al., "On the Latent Space of Wasserstein Auto-Encoders", arXiv:1802.03761 (2018). With p the N samples
    of the prior and q_il = z_i + exp(sigma_i) * noise, l = 1..8, noisy copies of each cell's code, and T cells in all:

        sum_{i!=j} k(p_i, p_j) / (N^2 - N) - 2 sum_{i,j,l} k(p_i, q_jl) / (N^2 n)
        + sum_{i!=j,l,m} k(q_il, q_jm) / (N (N - 1) n^2) + [sum_{i,l!=m} k(q_il, q_im) / (N n (n - 1))] / T

    summed over the inverse multiquadratic kernels k(x, y) = C / (C + |x - y|^2), C = 2 * latent_dim * s for s in
    {0.1, 0.5, 1, 2, 10}. Pairs to leave out are not masked: their sum is taken off the sum over all pairs.

    Args:
        sample_qz: Latent codes z, shape (cells, latent_dim).
        sample_pz: Samples of the prior, same shape.
        encoder_sigma: Logarithm of the standard deviation of each code, same shape.
        total_number_cells: Number of cells in the whole training set, T.
        latent_dim: Number of latent dimensions.
        seed: Seed of the noise.

    Returns:
        One number. Gradients reach `sample_qz` and `encoder_sigma`, not `sample_pz`.

    Example:
        >>> z, p = keras.random.normal((64, 4), seed=0), keras.random.normal((64, 4), seed=1)
        >>> near = mmdpp_penalty(z, p, keras.ops.full((64, 4), -80.0), total_number_cells=1000, latent_dim=4)
        >>> far = mmdpp_penalty(z + 3, p, keras.ops.full((64, 4), -80.0), total_number_cells=1000, latent_dim=4)
        >>> bool(far > near)
        True
    """
    sample_qz, sample_pz, encoder_sigma = (
        tf.convert_to_tensor(sample, tf.float32) for sample in (sample_qz, sample_pz, encoder_sigma)
    )
    noise = _normal((tf.shape(sample_qz)[0], NOISY_COPIES, latent_dim), seed)
    return _mmdpp(sample_qz, encoder_sigma, sample_pz, noise, tf.cast(total_number_cells, tf.float32))


def _mmdpp_of_noise(
    latent: tf.Tensor, sigma: tf.Tensor, prior: tf.Tensor, noise: tf.Tensor, total: tf.Tensor
) -> tf.Tensor:
    latent_dim = latent.shape[-1]
    copies = latent[:, None] + noise * tf.exp(sigma)[:, None]
    flat = tf.reshape(copies, (-1, latent_dim))

    cells = tf.cast(tf.shape(latent)[0], tf.float32)
    n = float(NOISY_COPIES)
    at_zero = float(len(KERNEL_SCALES))  # sum of the kernels of a point with itself
    prior_pairs = _kernel_sum(prior, prior, latent_dim) - at_zero * cells
    cross_pairs = _kernel_sum(prior, flat, latent_dim)
    same_cell = _kernel_sum(copies, copies, latent_dim)
    other_cells = _kernel_sum(flat, flat, latent_dim) - same_cell
    pairs = cells * (cells - 1)
    return (
        tf.math.divide_no_nan(prior_pairs, pairs)
        - 2 * cross_pairs / (cells**2 * n)
        + tf.math.divide_no_nan(other_cells, pairs * n**2)
        + (same_cell - at_zero * cells * n) / (cells * n * (n - 1)) / total
    )


_mmdpp = with_gradient(_mmdpp_of_noise, by=2)


def _kernel_sum(left: tf.Tensor, right: tf.Tensor, latent_dim: int) -> tf.Tensor:
    """Sum the kernels of all scales over all pairs of rows: shapes (..., a, dim) and (..., b, dim).

    With w = sum_s dk_s/d|x-y|^2 the gradient by x is 2 sum_y w (x - y): a matrix product. All of it is taken from the
    one pass over the pairs that also gives the value, where autodiff would go over them again for each scale.
    """
    symmetric = left is right

    @tf.custom_gradient
    def kernel_sum(left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, tf.Tensor]]]:
        squares = tf.reduce_sum(left**2, axis=-1)[..., :, None] + tf.reduce_sum(right**2, axis=-1)[..., None, :]
        distances = tf.maximum(squares - 2 * tf.matmul(left, right, transpose_b=True), 0)
        value = slope = tf.zeros_like(distances)
        for scale in KERNEL_SCALES:
            width = 2.0 * latent_dim * scale
            kernel = width / (width + distances)
            value += kernel
            slope -= kernel**2 * (1 / width)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            by_left = tf.reduce_sum(slope, axis=-1)[..., None] * left - tf.matmul(slope, right)
            if symmetric:
                by_right = by_left
            else:
                by_right = tf.reduce_sum(slope, axis=-2)[..., None] * right - tf.matmul(slope, left, transpose_a=True)
            return 2 * upstream * by_left, 2 * upstream * by_right

        # rows first, then a product: XLA would make one long float32 sum of two sums
        rows = tf.reshape(tf.reduce_sum(value, axis=-1), (1, -1))
        return tf.matmul(rows, tf.ones_like(rows), transpose_b=True)[0, 0], gradient

    return kernel_sum(left, right)


@_register
class BatchMMD(keras.layers.Layer):
    """Maximum mean discrepancy between the latent codes of different batches; see `batch_mmd_penalty`.

    The inputs are z (cells, latent_dim) and the one-hot labels of the cells' batches (cells, batches); the output is
    one number.

    Args:
        name: Name of the layer.
        **kwargs: Arguments of every Keras layer.

    Example:
        >>> z, labels = keras.random.normal((64, 4), seed=0), keras.ops.one_hot([0, 1] * 32, 2)
        >>> bool(BatchMMD()([z + 3 * labels[:, :1], labels]) > 10 * BatchMMD()([z, labels]))
        True
    """

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def build(self, input_shape: Sequence[tuple[int | None, ...]]) -> None:
        """Nothing to create: the layer has no weights."""

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the discrepancy of the batches in z and labels."""
        latent, labels = inputs
        return batch_mmd_penalty(latent, labels)

    def compute_output_shape(self, input_shape: Sequence[tuple[int | None, ...]]) -> tuple[()]:
        """Return the shape of a single number."""
        return ()


def batch_mmd_penalty(latent: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the squared maximum mean discrepancy of latent codes between batches, averaged over pairs of batches.

    Gretton et al., "A Kernel Two-Sample Test", JMLR 13:723 (2012), the biased estimate (never below 0), with the
    kernels of `mmdpp_penalty`. For batches a and b with the cells i and j:

        mean_{i,i' in a} k(z_i, z_i') + mean_{j,j' in b} k(z_j, z_j') - 2 mean_{i in a, j in b} k(z_i, z_j)

    Batches without a cell here are left out; with fewer than two others there is nothing to compare, and it is 0.

    Args:
        latent: Latent codes z, shape (cells, latent_dim).
        labels: One-hot labels, shape (cells, batches).

    Returns:
        One number.

    Example:
        >>> round(float(batch_mmd_penalty([[0.0], [0.0], [9.0]], [[1, 0], [1, 0], [0, 1]])), 2)
        9.43
    """
    latent, labels = (tf.convert_to_tensor(tensor, tf.float32) for tensor in (latent, labels))
    squares = tf.reduce_sum(latent**2, axis=-1)
    products = tf.matmul(latent, latent, transpose_b=True)
    distances = tf.maximum(squares[:, None] + squares[None] - 2 * products, 0)
    widths = [2.0 * latent.shape[-1] * scale for scale in KERNEL_SCALES]
    kernel = tf.add_n([width / (width + distances) for width in widths])

    cells = tf.reduce_sum(labels, axis=0)
    shares = tf.math.divide_no_nan(labels, cells)
    means = tf.matmul(shares, tf.matmul(kernel, shares), transpose_a=True)
    within = tf.linalg.diag_part(means)
    present = tf.cast(tf.not_equal(cells, 0), tf.float32)
    pairs = present[:, None] * present[None]  # each twice, and each batch with itself, which adds nothing
    total = tf.reduce_sum(pairs * (within[:, None] + within[None] - 2 * means))
    n_present = tf.reduce_sum(present)
    return tf.math.divide_no_nan(total, n_present * (n_present - 1))


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

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(rate, seed=seed, **kwargs)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drop inputs in training, and scale up the others to the same sum on average."""
        if not training or not self.rate:
            return inputs
        seed = _draw(self.seed_generator)
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed=seed, rng_alg=_GENERATOR)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments from which an equal layer can be made."""
        config = super().get_config()
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

    def __init__(self, library_size: float, kind: str = "softmax", **kwargs: Any) -> None:
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

    def get_config(self) -> dict[str, Any]:
        """Return the arguments from which an equal layer can be made."""
        return {**super().get_config(), "library_size": self.library_size, "kind": self.kind}


# Keras lets TensorFlow choose the generator of random numbers; XLA's choice takes 0.3 microseconds a number on CPUs.
# Philox is fast everywhere.
_GENERATOR = "philox"


def _normal(shape: Any, seed: int | keras.random.SeedGenerator | None) -> tf.Tensor:
    return tf.random.stateless_normal(shape, seed=_draw(seed), alg=_GENERATOR)


def _draw(seed: int | keras.random.SeedGenerator | None) -> tf.Tensor:
    """Return the two numbers from which TensorFlow's stateless functions start."""
    if seed is None:
        return tf.random.uniform((2,), tf.int32.min, tf.int32.max, dtype=tf.int32)
    return tf.cast(seed.next(), tf.int32) if isinstance(seed, keras.random.SeedGenerator) else tf.constant([seed, 0])


def _check_same_shape(layer: str, input_shape: Sequence[tuple[int | None, ...]]) -> None:
    if len(input_shape) != 2 or tuple(input_shape[0]) != tuple(input_shape[1]):
        raise InvalidInputError(f"{layer} takes latent codes and their sigmas, of one shape; got {list(input_shape)}")
