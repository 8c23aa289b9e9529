from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import tensorflow as tf

from discern.model.estimator import DISCERN
from discern.networks.autoencoder import WAE
from discern.networks.penalties import KERNEL_SCALES, BatchMMD, batch_mmd_penalty
from tests.support.conformance import check_config, check_layer, check_modes
from tests.support.networks import MISH, random_cells

if TYPE_CHECKING:
    from pathlib import Path

Z = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")


def one_hot(batches: list[int], n_batches: int = 3) -> np.ndarray:
    return np.eye(n_batches, dtype="float32")[batches]


def by_pairs(latent: np.ndarray, batches: list[int]) -> float:
    latent = latent.astype("float64")
    of = {batch: latent[np.array(batches) == batch] for batch in sorted(set(batches))}

    def mean_kernel(one: np.ndarray, other: np.ndarray) -> float:
        distances = ((one[:, None] - other[None]) ** 2).sum(-1)
        widths = [2 * latent.shape[1] * scale for scale in KERNEL_SCALES]
        return sum((width / (width + distances)).mean() for width in widths)

    pairs = [
        mean_kernel(of[a], of[a]) + mean_kernel(of[b], of[b]) - 2 * mean_kernel(of[a], of[b])
        for a in of
        for b in of
        if a < b
    ]
    return float(np.mean(pairs)) if pairs else 0.0


@pytest.mark.parametrize(
    "batches",
    [[0, 1] * 6, [0, 1, 2] * 4, [0] * 11 + [2], [1] * 12],
    ids=["two of three batches", "three batches", "one cell", "one batch"],
)
def test_value_is_that_of_the_formula_and_gradients_are_finite(batches: list[int]) -> None:
    def value_and_gradient(latent: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(latent)
            value = batch_mmd_penalty(latent, labels)
        return value, tape.gradient(value, latent)

    value, gradient = check_modes(value_and_gradient, tf.constant(Z), tf.constant(one_hot(batches)))
    np.testing.assert_allclose(value, by_pairs(Z, batches), rtol=1e-5, atol=1e-6)
    assert np.isfinite(gradient).all()
    assert gradient.any() == (len(set(batches)) > 1)


def test_descent_brings_batches_together() -> None:
    labels = one_hot([0, 1] * 6, 2)
    latent = tf.Variable(Z + 4 * labels[:, :1])
    before = latent.numpy()
    for _ in range(100):
        with tf.GradientTape() as tape:
            value = batch_mmd_penalty(latent, labels)
        latent.assign_sub(5 * tape.gradient(value, latent))

    def gap(codes: np.ndarray) -> float:
        return float(np.linalg.norm(codes[::2].mean(axis=0) - codes[1::2].mean(axis=0)))

    assert gap(latent.numpy()) < 0.1 * gap(before)


def test_layer_is_a_keras_layer(tmp_path: Path) -> None:
    check_layer(BatchMMD(name="between"), [Z, one_hot([0, 1, 2] * 4)], tmp_path)


def estimator(**changed: object) -> DISCERN:
    side = {"layers": [16], "norm_type": ["conditionallayernorm"]}
    given = {"latent_dim": 4, "encoder": side, "decoder": side, "weighting_decoder_dropout": 10000.0, "seed": 1}
    model = DISCERN(activation_fn=MISH, **given, **changed)  # type: ignore[arg-type]
    model.build_model(20, 2, 64)
    model.compile(model.get_optimizer())
    return model


def fit(model: DISCERN) -> dict[str, list[float]]:
    assert model.wae_model is not None
    cells = random_cells().batch(16, drop_remainder=True)
    return model.wae_model.fit(cells, validation_data=cells, epochs=2, verbose=0).history


def test_without_weight_the_network_is_as_published() -> None:
    logs = fit(estimator(weighting_batch_mmd=0.0))
    assert not [name for name in logs if "batch_mmd" in name]


@pytest.mark.parametrize(
    "changed", [{}, {"xla": True}, {"precision": "mixed_bfloat16"}, {"distribute": "mirrored"}], ids=str
)
def test_the_term_is_trained_and_logged(changed: dict[str, object]) -> None:
    logs = fit(estimator(weighting_batch_mmd=1500.0, **changed))
    assert np.isfinite(logs["batch_mmd_loss"]).all()
    assert np.isfinite(logs["val_batch_mmd_loss"]).all()
    total = sum(
        weight * logs[f"val_{part}_loss"][-1]
        for part, weight in {
            "decoder_counts": 15000.0,
            "decoder_dropouts": 10000.0,
            "mmdpp": 1500.0,
            "sigma_regularization": 1e-8,
            "batch_mmd": 1500.0,
        }.items()
    )
    np.testing.assert_allclose(logs["val_loss"][-1], total, rtol=1e-3)


def test_model_with_the_term_is_made_again_from_its_config() -> None:
    model = estimator(weighting_batch_mmd=1.0).wae_model
    assert isinstance(check_config(model), WAE)
    assert "batch_mmd" in WAE.from_config(model.get_config()).output
