from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np
import pytest
import tensorflow as tf

from discern.errors import InvalidInputError
from discern.networks.optimizers import Averaging, Lookahead, RectifiedAdam, getmembers
from tests.support.conformance import check_optimizer

if TYPE_CHECKING:
    from pathlib import Path

ORIGINAL = {
    "radam_default": lambda: RectifiedAdam(learning_rate=0.01),
    "radam_discern": lambda: RectifiedAdam(learning_rate=0.001, beta_1=0.85, beta_2=0.95),
    "radam_amsgrad_wd": lambda: RectifiedAdam(learning_rate=0.01, amsgrad=True, weight_decay=0.01),
    "radam_warmup": lambda: RectifiedAdam(learning_rate=0.01, total_steps=30, warmup_proportion=0.2, min_lr=1e-4),
    "lookahead_radam": lambda: Lookahead(RectifiedAdam(learning_rate=0.01)),
}


@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "XLA"])
@pytest.mark.parametrize("name", ORIGINAL)
def test_trajectory_of_the_original(name: str, jit_compile: bool | None, golden: Path) -> None:
    arrays = np.load(golden / "arrays.npz")
    optimizer, weight = ORIGINAL[name](), keras.Variable(arrays["w0"])
    optimizer.build([weight])

    def step(gradient: tf.Tensor) -> None:
        optimizer.apply([gradient], [weight])

    taken = step if jit_compile is None else tf.function(step, jit_compile=jit_compile)
    for gradient, wanted in zip(arrays["grads"], arrays[name], strict=True):
        taken(tf.constant(gradient))
        np.testing.assert_allclose(weight.numpy(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ORIGINAL)
def test_conformance(name: str, tmp_path: Path) -> None:
    check_optimizer(ORIGINAL[name](), tmp_path)


def test_conformance_of_averaging(tmp_path: Path) -> None:
    check_optimizer(Averaging(Lookahead(RectifiedAdam(learning_rate=0.01)), share=0.5, period=2), tmp_path)


def test_schedule_is_followed() -> None:
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.0])
    optimizer, weight = RectifiedAdam(learning_rate=schedule), keras.Variable([1.0])
    for _ in range(2):
        optimizer.apply([tf.constant([1.0])], [weight])
    assert weight.numpy() == pytest.approx(0.5)
    again = RectifiedAdam.from_config(optimizer.get_config())
    assert isinstance(again.get_config()["learning_rate"], dict)


def test_clipping_happens_once_inside_lookahead() -> None:
    weight = keras.Variable([0.0])
    optimizer = Lookahead(keras.optimizers.SGD(learning_rate=1.0, clipvalue=0.25), sync_period=4)
    optimizer.apply([tf.constant([-1.0])], [weight])
    assert weight.numpy().tolist() == [0.25]


def test_lookahead_keeps_half_of_the_way() -> None:
    weight = keras.Variable([0.0])
    optimizer = Lookahead(keras.optimizers.SGD(learning_rate=1.0), sync_period=3, slow_step_size=0.5)
    seen = []
    for _ in range(6):
        optimizer.apply([tf.constant([-1.0])], [weight])
        seen.append(float(weight.numpy()[0]))
    assert seen == [1.0, 2.0, 1.5, 2.5, 3.5, 3.0]


def test_lookahead_restarts_from_weights_set_from_outside() -> None:
    weight = keras.Variable([0.0])
    optimizer = Lookahead(keras.optimizers.SGD(learning_rate=1.0), sync_period=1, slow_step_size=0.5)
    optimizer.build([weight])
    weight.assign([10.0])
    optimizer.restart()
    optimizer.apply([tf.constant([-2.0])], [weight])
    assert weight.numpy().tolist() == [11.0]


def test_lookahead_built_inside_a_graph_starts_from_the_weights() -> None:
    weight = keras.Variable([4.0])
    optimizer = Lookahead(keras.optimizers.SGD(learning_rate=1.0), sync_period=1)
    tf.function(lambda: optimizer.apply([tf.constant([-2.0])], [weight]))()
    assert weight.numpy().tolist() == [5.0]


def test_lookahead_learning_rate_is_that_of_the_other() -> None:
    optimizer = Lookahead(RectifiedAdam(learning_rate=0.5))
    optimizer.learning_rate = 0.25
    assert float(optimizer.optimizer.learning_rate) == float(optimizer.learning_rate) == 0.25


def test_weight_without_gradient_stays() -> None:
    weights = [keras.Variable([1.0]), keras.Variable([1.0])]
    optimizer = RectifiedAdam(learning_rate=0.1)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.constant([1.0]), None], weights)
    assert weights[0].numpy() < 1
    assert weights[1].numpy() == 1


def test_sync_period_must_be_positive() -> None:
    with pytest.raises(InvalidInputError, match="sync_period must be a positive number of steps, not 0"):
        Lookahead(RectifiedAdam(), sync_period=0)


def test_members() -> None:
    assert getmembers() == {"RectifiedAdam": RectifiedAdam, "Lookahead": Lookahead}


def _weights_of(steps: int, optimizer: keras.optimizers.Optimizer, weight: keras.Variable) -> list[float]:
    seen = []
    for _ in range(steps):
        optimizer.apply([tf.constant([-1.0])], [weight])
        seen.append(float(weight.numpy()[0]))
    return seen


def test_averaging_lets_the_steps_be_those_of_the_other() -> None:
    plain, averaged = keras.Variable([0.0]), keras.Variable([0.0])
    wanted = _weights_of(25, RectifiedAdam(learning_rate=0.1), plain)
    assert _weights_of(25, Averaging(RectifiedAdam(learning_rate=0.1)), averaged) == wanted


@pytest.mark.parametrize(("share", "oldest"), [(1.0, 0.5), (0.4, 0.2)])
def test_mean_is_as_old_as_a_plain_one_over_the_share(share: float, oldest: float) -> None:
    weight = keras.Variable([0.0])
    optimizer = Averaging(keras.optimizers.SGD(learning_rate=1.0), share=share, period=1)
    _weights_of(1000, optimizer, weight)  # the weight is the number of the step
    optimizer.use_average()
    assert 1 - weight.numpy()[0] / 1000 == pytest.approx(oldest, abs=0.002)


def test_mean_counts_every_few_steps_alike() -> None:
    ages = []
    for period in (1, 10):
        weight = keras.Variable([0.0])
        optimizer = Averaging(keras.optimizers.SGD(learning_rate=1.0), share=0.4, period=period)
        _weights_of(500, optimizer, weight)
        optimizer.use_average()
        ages.append(float(weight.numpy()[0]))
    assert ages[0] == pytest.approx(ages[1], abs=5)


def test_mean_of_few_steps_is_the_last_weight() -> None:
    weight = keras.Variable([0.0])
    optimizer = Averaging(keras.optimizers.SGD(learning_rate=1.0), period=10)
    _weights_of(7, optimizer, weight)
    optimizer.use_average()
    assert weight.numpy().tolist() == [7.0]


def test_training_goes_on_from_the_last_weight() -> None:
    weight = keras.Variable([0.0])
    optimizer = Averaging(keras.optimizers.SGD(learning_rate=1.0), share=1, period=1)
    _weights_of(3, optimizer, weight)
    optimizer.use_average()
    optimizer.use_average()
    assert weight.numpy().tolist() == [2.0]
    optimizer.use_last()
    assert weight.numpy().tolist() == [3.0]
    assert _weights_of(1, optimizer, weight) == [4.0]
    optimizer.use_average()
    assert weight.numpy().tolist() == [2.5]


@pytest.mark.parametrize(("arguments", "message"), [({"share": 0}, "share"), ({"period": 0}, "period")])
def test_averaging_checks_its_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Averaging(RectifiedAdam(), **arguments)
