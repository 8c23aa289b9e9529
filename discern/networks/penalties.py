"""What the latent codes are penalised for: MMD++, batches that differ, narrow distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from discern.errors import InvalidInputError
from discern.networks.noise import normal
from discern.networks.xla import with_gradient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_register = keras.saving.register_keras_serializable("discern")


KERNEL_SCALES = (0.1, 0.5, 1.0, 2.0, 10.0)
NOISY_COPIES = 8


def refuse_dynamic(dynamic: bool) -> None:
    """Raise an error for layers that only Keras 2 knew."""
    if dynamic:
        raise InvalidInputError("dynamic=True: Keras 3 has no such layers; leave it out")


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
        dtype: str | keras.DTypePolicy | None = None,
        dynamic: bool = False,
        **kwargs: object,
    ) -> None:
        refuse_dynamic(dynamic)
        super().__init__(trainable=trainable, name=name, dtype=dtype, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Nothing to create: the layer has no weights."""

    def call(self, inputs: tf.Tensor, **kwargs: object) -> tf.Tensor:
        """Return the penalty of each cell for its sigma (cells, latent_dim)."""
        return tf.reduce_sum(tf.abs(inputs), axis=-1)


@_register
class MMDPP(keras.layers.Layer):
    """MMD++ between the latent codes of a minibatch and the standard normal; see `mmdpp_penalty`.

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

    def __init__(self, scale: float, seed: int | None = None, **kwargs: object) -> None:
        if not scale > 0:
            raise InvalidInputError(f"MMDPP: scale: expected a positive number of cells, got {scale}")
        super().__init__(**kwargs)
        self.scale = scale
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Sequence[tuple[int | None, ...]]) -> None:
        """Check that z and sigma have one shape."""
        check_same_shape(self.name, input_shape)

    def call(self, inputs: Sequence[tf.Tensor], **kwargs: object) -> tf.Tensor:
        """Return MMD++ of z and sigma."""
        latent, sigma = inputs
        prior = normal(tf.shape(latent), self.seed_generator)
        return mmdpp_penalty(latent, prior, sigma, self.scale, latent.shape[-1], seed=self.seed_generator)

    def compute_output_shape(self, input_shape: Sequence[tuple[int | None, ...]]) -> tuple[()]:
        """Return the shape of a single number."""
        return ()

    def get_config(self) -> dict[str, object]:
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

    Raises:
        InvalidInputError: If the samples are not of one shape, or not of `latent_dim` dimensions.

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
    shapes = [tuple(sample.shape) for sample in (sample_qz, sample_pz, encoder_sigma)]
    if any(len(shape) != 2 or shape[1] != latent_dim for shape in shapes):
        raise InvalidInputError(f"mmdpp_penalty: expected samples of shape (cells, {latent_dim}), got {shapes}")
    noise = normal((tf.shape(sample_qz)[0], NOISY_COPIES, latent_dim), seed)
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

    def __init__(self, name: str | None = None, **kwargs: object) -> None:
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


def check_same_shape(layer: str, input_shape: Sequence[tuple[int | None, ...]]) -> None:
    """Raise an error unless a layer's two inputs are of one shape."""
    if len(input_shape) != 2 or tuple(input_shape[0]) != tuple(input_shape[1]):
        raise InvalidInputError(f"{layer} takes latent codes and their sigmas, of one shape; got {list(input_shape)}")
