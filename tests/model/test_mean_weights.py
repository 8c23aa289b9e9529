"""What is kept of a training with `average_weights`: the mean; what a training goes on with: the last weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import keras
import numpy as np
import pytest

from discern import DISCERN, DISCERNData
from discern.networks.optimizers import Averaging

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SIDE = {"layers": [8], "norm_type": ["conditionallayernorm"], "regularization": 0.0}


@pytest.fixture(scope="module")
def cells(golden: Path) -> DISCERNData:
    return DISCERNData.from_folder(golden / "experiment", batch_size=32)


def model_of(learning_rate: float = 0.01, share: float | None = 0.5) -> DISCERN:
    optimizer = {"algorithm": "keras.optimizers.Adam", "learning_rate": learning_rate}
    return DISCERN(latent_dim=4, encoder=SIDE, decoder=SIDE, optimizer=optimizer, seed=0, average_weights=share)


def weights(model: DISCERN) -> list[npt.NDArray[np.float32]]:
    return [variable.numpy() for variable in model.wae_model.trainable_variables]


def same(one: list[npt.NDArray[np.float32]], other: list[npt.NDArray[np.float32]]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


class Watch(keras.callbacks.Callback):
    """What the weights are after each step and each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.after_steps: list[list[npt.NDArray[np.float32]]] = []
        self.after_epochs: list[list[npt.NDArray[np.float32]]] = []

    def _now(self) -> list[npt.NDArray[np.float32]]:
        return [variable.numpy() for variable in self.model.trainable_variables]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.after_steps.append(self._now())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.after_epochs.append(self._now())


def test_steps_are_those_of_a_training_without(cells: DISCERNData) -> None:
    watches = []
    for share in (None, 0.5):
        watches.append(Watch())
        model_of(share=share).training(cells, callbacks=[watches[-1]], max_steps=2)
    for one, other in zip(*(watch.after_steps for watch in watches), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_mean_of_the_steps_is_kept(cells: DISCERNData, tmp_path: Path) -> None:
    model, watch = model_of(share=1), Watch()
    model.training(cells, callbacks=[watch], savepath=tmp_path, max_steps=8)
    counted = watch.after_steps[9::10]
    assert len(counted) > 2
    for kept, *seen in zip(weights(model), *counted, strict=True):
        np.testing.assert_allclose(kept, np.mean(seen, axis=0), rtol=1e-4, atol=1e-5)
    assert not same(weights(model), watch.after_steps[-1])
    assert same(weights(model), watch.after_epochs[-1])
    again = model_of(share=1)
    again.restore_model(tmp_path)
    assert same(weights(model), weights(again))


def test_goes_on_with_the_last_weights(cells: DISCERNData, tmp_path: Path) -> None:
    model, watch = model_of(), Watch()
    model.training(cells, callbacks=[watch], savepath=tmp_path, max_steps=3)
    again, stands_still = model_of(learning_rate=0.0), Watch()
    again.restore_model(tmp_path)
    assert same(weights(model), weights(again))
    again.training(cells, callbacks=[stands_still], savepath=tmp_path, max_steps=4)
    for seen in stands_still.after_steps:
        assert same(seen, watch.after_steps[-1])
    between = [np.abs(a - b).max() for a, b in zip(weights(again), watch.after_steps[-1], strict=True)]
    before = [np.abs(a - b).max() for a, b in zip(weights(model), watch.after_steps[-1], strict=True)]
    assert max(between) < max(before)


def test_in_the_middle_of_an_epoch(cells: DISCERNData, tmp_path: Path) -> None:
    class Stop(Watch):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            super().on_train_batch_end(batch, logs)
            if len(self.after_steps) == 12:
                raise KeyboardInterrupt

    model, watch = model_of(), Stop()
    with pytest.raises(KeyboardInterrupt):
        model.training(cells, callbacks=[watch], savepath=tmp_path, max_steps=9)
    assert not same(weights(model), watch.after_steps[-1])
    assert isinstance(model.wae_model.optimizer, Averaging)
    model.wae_model.optimizer.use_last()
    assert same(weights(model), watch.after_steps[-1])


def test_validation_is_of_the_mean(cells: DISCERNData) -> None:
    class Validated(keras.callbacks.Callback):
        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen = [variable.numpy() for variable in self.model.trainable_variables]

    model, validated = model_of(), Validated()
    model.training(cells, callbacks=[validated], max_steps=2)
    assert same(validated.seen, weights(model))


def test_a_model_of_before_has_no_mean_yet(
    cells: DISCERNData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(share=None)
    model.training(cells, savepath=tmp_path, max_steps=2)
    again, watch = model_of(), Watch()
    again.restore_model(tmp_path)
    assert "average" not in caplog.text
    assert same(weights(model), weights(again))
    again.training(cells, callbacks=[watch], savepath=tmp_path, max_steps=3)
    assert np.isfinite(np.concatenate([w.ravel() for w in weights(again)])).all()
    with h5py.File(tmp_path / "last_model.h5") as file:
        assert int(file["optimizer/exchanged"][()]) == 1
