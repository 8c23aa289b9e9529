from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np
import pytest
import tensorflow as tf

from discern.errors import InvalidInputError, UnknownNameError
from discern.networks.losses import (
    DummyLoss,
    HuberLoss,
    Lnorm,
    MaskedCrossEntropy,
    WeightedGenes,
    getmembers,
    reconstruction_loss,
)
from tests.support.conformance import check_config, check_loss

if TYPE_CHECKING:
    from pathlib import Path

LOSSES = {
    "HuberLoss_delta9": HuberLoss(delta=9.0),
    "HuberLoss_delta1": HuberLoss(delta=1.0),
    **{
        f"Lnorm_p{p}_axis{axis}_root{int(root)}": Lnorm(p=p, axis=axis, use_root=root)
        for p in (1, 2, 3)
        for axis in (0, 1)
        for root in (False, True)
    },
    "MaskedCrossEntropy_zeros0": MaskedCrossEntropy(zeros=0.0),
    "MaskedCrossEntropy_zeros0_lower0.1_smooth0": MaskedCrossEntropy(zeros=0.0, lower_label_smoothing=0.1),
    "MaskedCrossEntropy_zeros0_smooth0.2": MaskedCrossEntropy(zeros=0.0, label_smoothing=0.2),
}


def test_every_loss_of_the_original_is_tested(golden_json: dict) -> None:
    assert LOSSES.keys() == golden_json["losses"].keys()


@pytest.mark.parametrize("name", LOSSES)
def test_conformance_and_value_of_the_original(name: str, golden: Path, golden_json: dict) -> None:
    arrays = np.load(golden / "arrays.npz")
    predicted = arrays["prob" if name.startswith("Masked") else "y_pred"]
    value = check_loss(LOSSES[name], arrays["y_true"], predicted)
    assert value == pytest.approx(golden_json["losses"][name], rel=1e-5)


def test_dummy_loss_passes_on_what_a_layer_computed() -> None:
    check_config(DummyLoss())
    assert isinstance(vars(DummyLoss)["call"], staticmethod)
    assert float(DummyLoss()(tf.constant([9.0, 9.0]), tf.constant([1.0, 3.0]))) == 2
    assert float(DummyLoss(reduction="sum")(tf.constant([9.0, 9.0]), tf.constant([1.0, 3.0]))) == 4


def test_huber_gradient_is_clipped() -> None:
    difference = tf.constant([[-4.0, -0.5, 0.0, 0.5, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(difference)
        value = HuberLoss(delta=2.0)(tf.zeros_like(difference), difference)
    np.testing.assert_allclose(tape.gradient(value, difference) * 5, [[-2, -0.5, 0, 0.5, 2]], rtol=1e-6)


@pytest.mark.parametrize(
    "loss", [HuberLoss(delta=9.0), keras.losses.MeanSquaredError(), Lnorm(p=2, axis=1)], ids=lambda loss: loss.name
)
def test_weights_of_genes_are_those_of_their_squared_errors(loss: keras.losses.Loss) -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(2, 6, 5)).astype(np.float32)
    weights = np.array([0.1, 0, 2.9, 1, 1], np.float32)
    each = [float(loss(true[:, [gene]], predicted[:, [gene]])) for gene in range(5)]
    whole = np.sum if isinstance(loss, Lnorm) else np.mean
    weighted = WeightedGenes(loss, weights)
    assert check_loss(weighted, true, predicted) == pytest.approx(float(whole(weights * each)), rel=1e-5)
    assert check_loss(WeightedGenes(loss, np.ones(5)), true, predicted) == pytest.approx(float(loss(true, predicted)))


def test_lnorm_root_has_a_gradient_at_zero() -> None:
    prediction = tf.zeros((2, 3))
    with tf.GradientTape() as tape:
        tape.watch(prediction)
        value = Lnorm(p=2, use_root=True)(tf.zeros((2, 3)), prediction)
    assert np.isfinite(tape.gradient(value, prediction)).all()


def test_masked_cross_entropy_knows_the_zero_of_each_gene() -> None:
    zeros = np.float32([-1.0, -2.0, 0.5])
    y_true = np.float32([[-1.0, -2.0, 0.5], [0.0, -2.0 + 1e-3, 0.5 + 5e-7]])
    probability = np.float32([[0.2, 0.3, 0.4], [0.2, 0.3, 0.4]])
    labels = np.float32([[0.1, 0.1, 0.1], [1, 1, 0.1]])
    wanted = -(labels * np.log(probability) + (1 - labels) * np.log(1 - probability)).mean()
    loss = MaskedCrossEntropy(zeros=zeros, lower_label_smoothing=0.1)
    assert float(loss(y_true, probability)) == pytest.approx(wanted, rel=1e-5)
    wide = MaskedCrossEntropy(zeros=zeros, lower_label_smoothing=0.1, zeros_eps=0.1)
    assert float(wide(y_true, probability)) != pytest.approx(wanted, rel=1e-3)


def test_masked_cross_entropy_uses_the_logits_of_a_sigmoid() -> None:
    logits = tf.constant([[60.0, -60.0]])
    loss = MaskedCrossEntropy(zeros=0.0)
    exact = float(loss(tf.constant([[0.0, 1.0]]), keras.activations.sigmoid(logits)))
    assert exact == pytest.approx(60)
    rounded = float(loss(tf.constant([[0.0, 1.0]]), tf.constant([[1.0, 0.0]])))
    assert rounded == pytest.approx(-np.log(1e-7), rel=0.02)


@pytest.mark.parametrize(
    ("loss_type", "wanted"),
    [
        ("HuberLoss", HuberLoss),
        ({"name": "Lnorm", "p": 2}, Lnorm),
        ("mse", keras.losses.MeanSquaredError),
        ("mean_squared_error", keras.losses.MeanSquaredError),
        ({"name": "MeanAbsoluteError"}, keras.losses.MeanAbsoluteError),
        ({"name": "Huber", "delta": 2.0}, keras.losses.Huber),
        ("logcosh" if hasattr(keras.losses, "logcosh") else "log_cosh", keras.losses.LogCosh),
    ],
)
def test_reconstruction_loss_by_name(loss_type: str | dict, wanted: type) -> None:
    assert type(reconstruction_loss(loss_type)) is wanted


def test_reconstruction_loss_leaves_its_argument_alone() -> None:
    loss_type = {"name": "HuberLoss", "delta": 9.0}
    assert reconstruction_loss(loss_type).delta == 9
    assert loss_type == {"name": "HuberLoss", "delta": 9.0}


@pytest.mark.parametrize("name", ["HuberLos", "Loss", "get", "__name__", "deserialize"])
def test_unknown_reconstruction_loss(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"there is no loss '{name}'"):
        reconstruction_loss(name)


def test_reconstruction_loss_of_a_library_that_files_may_not_name() -> None:
    with pytest.raises(InvalidInputError, match=r"'os\.system' is refused"):
        reconstruction_loss("os.system")


def test_unknown_reconstruction_loss_is_a_key_error_that_helps() -> None:
    with pytest.raises(KeyError, match="did you mean 'HuberLoss'"):
        reconstruction_loss({"name": "HuberLos"})
    with pytest.raises(KeyError, match="needs the key 'name'"):
        reconstruction_loss({"delta": 9.0})


def test_argument_that_the_loss_does_not_take() -> None:
    with pytest.raises(InvalidInputError, match=r"HuberLoss cannot be made from .*weight_clipping"):
        reconstruction_loss({"name": "HuberLoss", "weight_clipping": 3})


def test_members() -> None:
    assert getmembers().keys() == {"DummyLoss", "HuberLoss", "Lnorm", "MaskedCrossEntropy", "WeightedGenes"}
