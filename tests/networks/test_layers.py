from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np
import pytest
import tensorflow as tf

from discern.errors import InvalidInputError
from discern.networks.layers import (
    Dropout,
    GaussianReparametrization,
    GeneDense,
    LibrarySizeOutput,
    condlayernorm,
    getmembers,
)
from discern.networks.penalties import KERNEL_SCALES, MMDPP, SigmaRegularization, mmdpp_penalty
from tests.support.conformance import check_config, check_layer

if TYPE_CHECKING:
    from pathlib import Path

Z, P, SIGMA = (np.random.default_rng(i).normal(size=(12, 5)).astype("float32") for i in range(3))


def mmdpp_by_pairs(z: tf.Tensor, p: tf.Tensor, sigma: tf.Tensor, total: float, noise: tf.Tensor) -> tf.Tensor:
    """The formula as it stands in the paper, pair by pair with masks, for autodiff."""
    cells, dim = z.shape
    copies = noise.shape[1]
    q = tf.reshape(z[:, None] + noise * tf.exp(sigma)[:, None], (-1, dim))
    cell = np.repeat(np.arange(cells), copies)
    other_cell = (cell[:, None] != cell[None]).astype(z.dtype.as_numpy_dtype)
    other_copy = 1 - other_cell - np.eye(cells * copies, dtype=other_cell.dtype)
    other = 1 - np.eye(cells, dtype=other_cell.dtype)
    total_penalty = 0.0
    for scale in KERNEL_SCALES:

        def kernel(a: tf.Tensor, b: tf.Tensor, width: float = 2 * dim * scale) -> tf.Tensor:
            return width / (width + tf.reduce_sum((a[:, None] - b[None]) ** 2, axis=-1))

        qq = kernel(q, q)
        total_penalty += (
            tf.reduce_sum(kernel(p, p) * other) / (cells**2 - cells)
            - 2 * tf.reduce_sum(kernel(p, q)) / (cells**2 * copies)
            + tf.reduce_sum(qq * other_cell) / (cells * (cells - 1) * copies**2)
            + tf.reduce_sum(qq * other_copy) / (cells * copies * (copies - 1)) / total
        )
    return total_penalty


@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "XLA"])
def test_mmdpp_and_its_gradients_are_those_of_the_formula(jit_compile: bool | None) -> None:
    inputs = [tf.constant(array) for array in (Z, P, SIGMA)]

    def ours(z: tf.Tensor, p: tf.Tensor, sigma: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            tape.watch([z, sigma])
            value = mmdpp_penalty(z, p, sigma, 30.0, 5, seed=7)
        return value, tape.gradient(value, [z, sigma])

    def draw() -> tf.Tensor:
        return tf.random.stateless_normal((12, 8, 5), seed=[7, 0], alg="philox")

    if jit_compile is not None:  # XLA makes other normal numbers of the same bits
        ours, draw = (tf.function(function, jit_compile=jit_compile) for function in (ours, draw))
    value, gradients = ours(*inputs)
    noise = draw()
    exact = [tf.cast(tensor, tf.float64) for tensor in (*inputs, noise)]
    by = [exact[0], exact[2]]
    with tf.GradientTape() as tape:
        tape.watch(by)
        wanted = mmdpp_by_pairs(*exact[:3], 30.0, exact[3])
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    for gradient, correct in zip(gradients, tape.gradient(wanted, by), strict=True):
        np.testing.assert_allclose(gradient, correct, rtol=1e-4, atol=1e-7)


def test_mmdpp_without_noise_is_that_of_the_original(golden: Path, golden_json: dict) -> None:
    arrays = np.load(golden / "arrays.npz")
    value = mmdpp_penalty(arrays["mmdpp_z"], arrays["mmdpp_pz"], np.full((16, 6), -80.0, "float32"), 1234, 6)
    assert float(value) == pytest.approx(golden_json["mmdpp_zero_noise"], abs=1e-5)


def test_mmdpp_over_noise_is_that_of_the_original(golden: Path, golden_json: dict) -> None:
    arrays = np.load(golden / "arrays.npz")
    z, p, sigma = (tf.constant(arrays[f"mmdpp_{name}"]) for name in ("z", "pz", "sigma"))
    generator = keras.random.SeedGenerator(3)

    @tf.function
    def draw() -> tf.Tensor:
        return mmdpp_penalty(z, p, sigma, 1234, 6, seed=generator)

    draws = np.array([draw().numpy() for _ in range(2000)])
    mean, spread = golden_json["mmdpp_noise_mean_of_4000"]
    assert abs(draws.mean() - mean) < 4 * spread * np.sqrt(1 / 2000 + 1 / 4000)
    assert draws.std() == pytest.approx(spread, rel=0.1)


def test_mmdpp_is_near_zero_on_the_prior_and_large_off_it() -> None:
    z, p = np.random.default_rng(0).normal(size=(2, 500, 5)).astype("float32")
    quiet = np.full_like(z, -80.0)
    assert abs(float(mmdpp_penalty(z, p, quiet, 500, 5))) < 0.02
    assert float(mmdpp_penalty(z + 2, p, quiet, 500, 5)) > 0.5


def test_mmdpp_of_a_single_cell_is_finite() -> None:
    assert np.isfinite(mmdpp_penalty(Z[:1], P[:1], SIGMA[:1], 30, 5))


def test_mmdpp_layer_is_seeded() -> None:
    inputs = [tf.constant(Z), tf.constant(SIGMA)]
    first, again, other = (float(MMDPP(scale=30, seed=seed)(inputs)) for seed in (5, 5, 6))
    assert first == again != other
    layer = MMDPP(scale=30, seed=5)
    assert float(layer(inputs)) != float(layer(inputs))
    check_config(layer)


def test_mmdpp_layer_trains_latent_and_sigma(tmp_path: Path) -> None:
    cells = keras.Input((5,))
    latent, sigma = keras.layers.Dense(5, name="latent")(cells), keras.layers.Dense(5, name="sigma")(cells)
    model = keras.Model(cells, MMDPP(scale=30, seed=5)([latent, sigma]))
    with tf.GradientTape() as tape:
        value = model(Z)
    assert value.shape == ()
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(value, model.trainable_variables))
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").layers[-1].scale == 30


def test_gaussian_reparametrization_adds_noise_in_training_only(tmp_path: Path) -> None:
    layer = GaussianReparametrization(seed=1)
    np.testing.assert_array_equal(check_layer(layer, [Z, SIGMA], tmp_path), Z)
    z, sigma = np.zeros((20000, 2), "float32"), np.tile(np.float32([0.0, -1.0]), (20000, 1))
    drawn = layer([z, sigma], training=True).numpy()
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(drawn.std(axis=0), np.exp([0.0, -1.0]), rtol=0.03)
    again = [GaussianReparametrization(seed=1)([z, sigma], training=True).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert (layer([z, sigma], training=True).numpy() != drawn).all()


def test_gaussian_reparametrization_call_needs_no_layer() -> None:
    assert isinstance(vars(GaussianReparametrization)["call"], staticmethod)
    np.testing.assert_array_equal(GaussianReparametrization.call([Z, SIGMA]), Z)
    drawn = [GaussianReparametrization.call([Z, SIGMA], training=True, seed=3) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)
    assert (drawn[0] != Z).numpy().all()


@pytest.mark.parametrize("layer", [GaussianReparametrization(), MMDPP(scale=10)])
def test_latent_and_sigma_must_have_one_shape(layer: keras.layers.Layer) -> None:
    with pytest.raises(InvalidInputError, match="takes latent codes and their sigmas, of one shape"):
        layer([keras.Input((3,)), keras.Input((4,))])


def test_dropout(tmp_path: Path) -> None:
    ones = np.ones((300, 300), "float32")
    np.testing.assert_array_equal(check_layer(Dropout(0.4, seed=1), ones, tmp_path), ones)
    dropped = Dropout(0.4, seed=1)(ones, training=True).numpy()
    assert (dropped == 0).mean() == pytest.approx(0.4, abs=0.01)
    np.testing.assert_allclose(dropped[dropped > 0], 1 / 0.6, rtol=1e-6)
    np.testing.assert_array_equal(dropped, Dropout(0.4, seed=1)(ones, training=True))
    layer = Dropout(0.4, seed=1)
    assert (layer(ones, training=True) != layer(ones, training=True)).numpy().any()


def test_gene_dense_is_dense(tmp_path: Path) -> None:
    ours, keras_own = GeneDense(9, activation="tanh"), keras.layers.Dense(9, activation="tanh")
    check_layer(ours, Z, tmp_path)
    keras_own.build((None, 5))
    keras_own.set_weights(ours.get_weights())
    found = []
    for layer in (ours, keras_own):
        inputs = tf.constant(Z)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
        found.append([outputs, *tape.gradient(outputs, [inputs, layer.kernel.value, layer.bias.value])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_sigma_regularization(tmp_path: Path) -> None:
    output = check_layer(SigmaRegularization(), SIGMA, tmp_path)
    np.testing.assert_allclose(output, 5 * np.abs(SIGMA).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("kind", LibrarySizeOutput.KINDS)
def test_library_size_output(kind: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 9)).astype("float32")
    weight = {
        "softmax": np.exp(x),
        "LSN": np.maximum(x, 0),
        "sigsoftmax": np.exp(x) / (1 + np.exp(-x)),
    }[kind]
    output = check_layer(LibrarySizeOutput(20000, kind), x, tmp_path)
    np.testing.assert_allclose(output, np.log1p(20000 * weight / weight.sum(axis=1, keepdims=True)), rtol=1e-5)
    huge = LibrarySizeOutput(20000, kind)(np.float32([[1e4, 0.0, -1e4]]))
    np.testing.assert_allclose(huge, [[np.log1p(20000), 0, 0]], rtol=1e-5)


def test_library_size_output_without_anything_positive_is_zero() -> None:
    assert LibrarySizeOutput(20000, "LSN")(np.float32([[-1.0, -2.0]])).numpy().tolist() == [[0, 0]]


def test_library_size_output_of_unknown_kind() -> None:
    with pytest.raises(InvalidInputError, match="kind must be one of softmax, LSN, sigsoftmax, not 'softplus'"):
        LibrarySizeOutput(20000, "softplus")


def test_condlayernorm_shifts_each_batch() -> None:
    cells, labels = keras.Input((5,)), keras.Input((2,))
    regularizer = keras.regularizers.L2(0.5)
    model = keras.Model([cells, labels], condlayernorm(cells, labels, 5, regularizer))
    (offsets,) = model.trainable_variables
    inputs = [10 * Z + 3, np.eye(2, dtype="float32")[np.arange(12) % 2]]
    assert offsets.numpy().tolist() == np.zeros((2, 5)).tolist()
    np.testing.assert_array_equal(model(inputs), inputs[0])
    offsets.assign([[1.0] * 5, [3.0] * 5])
    np.testing.assert_allclose(model(inputs) - inputs[0], np.tile([[1.0] * 5, [3.0] * 5], (6, 1)), rtol=1e-5)
    # an activity regulariser: the mean over cells of what their offsets cost
    assert float(sum(model.losses)) == pytest.approx(0.5 * 5 * (1 + 9) / 2)


def test_members() -> None:
    assert getmembers()["MMDPP"] is MMDPP
    assert all(issubclass(layer, keras.layers.Layer) for layer in getmembers().values())
