"""What happens beside the training."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import anndata as ad
import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from discern import DISCERN, DISCERNData
from discern.errors import InvalidInputError
from discern.model import callbacks, visualisation
from discern.model.callbacks import Checkpoint, DelayedEarlyStopping, TrainingProgress, create_callbacks
from discern.model.trained import TrainedNetwork
from discern.model.visualisation import VisualisationCallback
from discern.runtime import progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GENES, COMPONENTS = 12, 3


def make_cells(batches: dict[str, tuple[int, int]], batch_size: int = 4) -> DISCERNData:
    """Processed cells with so many training and validation cells of each batch."""
    names = [name for name, numbers in batches.items() for _ in range(sum(numbers))]
    split = [part for train, valid in batches.values() for part in ["train"] * train + ["valid"] * valid]
    random = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"batch": pd.Categorical(names, categories=list(batches)), "split": pd.Categorical(split)},
        index=[f"cell{number}" for number in range(len(names))],
    )
    adata = ad.AnnData(
        X=sparse.random(len(names), GENES, 0.5, "csr", np.float32, random_state=random),
        obs=obs,
        uns={
            "DISCERN": {
                "batch_key": {str(code): name for code, name in enumerate(batches)},
                "total_train_count": split.count("train"),
            }
        },
        varm={"PCs": random.normal(size=(GENES, COMPONENTS))},
    )
    return DISCERNData(adata, batch_size)


def make_model(cells: DISCERNData) -> DISCERN:
    side = {"layers": [8], "norm_type": ["conditionallayernorm"], "regularization": 0.0}
    model = DISCERN(latent_dim=2, encoder=side, decoder=side, seed=1)
    model.prepare(cells)
    return model


def stopped_at(callback: keras.callbacks.Callback, losses: list[float], first: int = 0) -> int | None:
    """Return the epoch after which the callback stops a training with these validation losses."""
    model = SimpleNamespace(stop_training=False, get_weights=lambda: [], set_weights=lambda weights: None, loss="mse")
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, loss in enumerate(losses, first):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {"val_loss": loss})
        if model.stop_training:
            return epoch
    return None


class TestDelayedEarlyStopping:
    losses = st.lists(st.floats(0, 10), min_size=1, max_size=20)

    @given(losses, st.integers(0, 4), st.sampled_from([0.0, 0.5]))
    def test_without_delay_it_is_keras(self, losses: list[float], patience: int, min_delta: float) -> None:
        arguments = {"monitor": "val_loss", "patience": patience, "min_delta": min_delta, "mode": "min"}
        keras_s = keras.callbacks.EarlyStopping(**arguments)
        assert stopped_at(DelayedEarlyStopping(**arguments), losses) == stopped_at(keras_s, losses)

    @given(losses, losses, st.integers(1, 4))
    def test_the_delay_is_neither_compared_nor_counted(
        self, ignored: list[float], losses: list[float], patience: int
    ) -> None:
        delayed = stopped_at(DelayedEarlyStopping(delay=len(ignored), patience=patience, mode="min"), ignored + losses)
        plain = stopped_at(DelayedEarlyStopping(patience=patience, mode="min"), losses)
        assert delayed == (None if plain is None else plain + len(ignored))

    def test_published_values(self) -> None:
        """30 epochs without an improvement of 0.01, counted from the sixth on."""
        falling = [100.0 - epoch for epoch in range(20)]
        callback = DelayedEarlyStopping(delay=5, min_delta=0.01, patience=30)
        assert stopped_at(callback, falling + [80.999] * 100) == 19 + 30

    def test_a_training_that_goes_on_is_past_the_delay(self) -> None:
        assert stopped_at(DelayedEarlyStopping(delay=5, patience=2, mode="min"), [1.0] * 9, first=50) == 52

    def test_takes_all_arguments_of_keras(self) -> None:
        callback = DelayedEarlyStopping(
            delay=1,
            monitor="loss",
            min_delta=0.5,
            patience=2,
            verbose=1,
            mode="max",
            baseline=3.0,
            restore_best_weights=True,
        )
        assert (callback.delay, callback.monitor, callback.patience, callback.verbose) == (1, "loss", 2, 1)
        assert (callback.baseline, callback.restore_best_weights) == (3.0, True)

    def test_restores_the_best_weights(self) -> None:
        cells = make_cells({"a": (16, 8)})
        model = make_model(cells)
        seen: list[np.ndarray] = []

        class Worsens(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                seen.append(self.model.get_weights()[0])
                logs["val_loss"] = [5.0, 1.0, 2.0, 3.0, 4.0][epoch]

        model.training(
            cells, [Worsens(), DelayedEarlyStopping(delay=1, patience=2, restore_best_weights=True)], max_steps=5
        )
        assert len(seen) == 4
        np.testing.assert_array_equal(model.wae_model.get_weights()[0], seen[1])


class TestCheckpoint:
    saved: list[tuple[Any, ...]]

    @pytest.fixture
    def callback(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
        self.saved = []
        monkeypatch.setattr(
            callbacks, "save", lambda trained, folder, val_loss: self.saved.append((folder, trained.epoch, val_loss))
        )
        return Checkpoint(TrainedNetwork(None), tmp_path)

    def test_counts_epochs_done(self, callback: Checkpoint, tmp_path: Path) -> None:
        callback.on_epoch_end(0, {"loss": 3.0, "val_loss": 2.0})
        callback.on_epoch_end(1, {"loss": 3.0})
        assert self.saved == [(tmp_path, 1, 2.0), (tmp_path, 2, None)]

    @pytest.mark.parametrize("loss", [np.nan, np.inf])
    def test_a_broken_model_is_not_written(self, callback: Checkpoint, loss: float) -> None:
        callback.on_epoch_end(0, {"loss": loss, "val_loss": 2.0})
        assert self.saved == []

    def test_best_and_last(self, tmp_path: Path) -> None:
        cells = make_cells({"a": (16, 8)})
        model = make_model(cells)

        for epoch, loss in enumerate([3.0, 1.0, 2.0]):
            model.encoder.get_layer("latent").bias.assign([epoch, epoch])
            Checkpoint(model.trained, tmp_path).on_epoch_end(epoch, {"loss": 1.0, "val_loss": loss})
        again = make_model(cells)
        again.restore_model(tmp_path)
        assert again.start_step == 3
        assert again.encoder.get_layer("latent").bias.numpy().tolist() == [2, 2]
        (tmp_path / "last_model.h5").unlink()
        again.restore_model(tmp_path)
        assert again.start_step == 2
        assert again.encoder.get_layer("latent").bias.numpy().tolist() == [1, 1]


class TestTrainingProgress:
    def train(self, epochs: int, **arguments: float) -> None:
        cells = make_cells({"a": (16, 8)})
        make_model(cells).training(cells, [TrainingProgress(**arguments)], max_steps=epochs)

    def test_a_log_line_an_epoch(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self.train(epochs=2)
        lines = [record.message for record in caplog.records if record.name == callbacks.__name__]
        assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
        for part in ("loss ", "counts ", "dropouts ", "mmd ", "sigma ", "validation "):
            assert part in lines[0]

    def test_a_line_within_a_long_epoch(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self.train(epochs=1, interval=-1)
        lines = [record.message for record in caplog.records if record.name == callbacks.__name__]
        steps = [f"epoch 1/1, step {step} of 4" for step in (1, 2, 3, 4)]
        assert [line.split(":")[0] for line in lines] == [*steps, "epoch 1 of 1"]
        assert "loss " in lines[0]

    def test_a_bar_for_a_person(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        steps: list[float] = []
        bars: list[tuple[str, float | None]] = []
        details: list[str] = []

        @contextlib.contextmanager
        def phase(description: str, total: float | None = None) -> Iterator[Any]:
            bars.append((description, total))

            def advance(number: float = 1, detail: str = "") -> None:
                steps.append(number)
                details.append(detail)

            yield advance
            bars.append(("closed", None))

        monkeypatch.setattr(progress, "shows_bars", lambda: True)
        monkeypatch.setattr(progress, "phase", phase)
        self.train(epochs=2)
        # the number of steps is known from the data set: 16 cells in batches of 4
        assert bars == [("training", 8), ("closed", None)]
        assert sum(steps) == 8
        assert details[0].startswith("epoch 1/2 loss")
        assert details[-1].startswith("epoch 2/2 loss")
        assert "validation" not in details[0]
        assert "validation" in details[-1]
        assert not [record for record in caplog.records if record.name == callbacks.__name__]


class TestCreateCallbacks:
    def test_what_there_is(self, tmp_path: Path) -> None:
        cells = make_cells({"a": (16, 8)})
        made = create_callbacks({"delay": 5, "min_delta": 0.01, "patience": 30}, tmp_path, cells, None, 0, 7)
        nan, board, shown, stopping, pictures = made
        assert isinstance(nan, keras.callbacks.TerminateOnNaN)
        assert isinstance(board, keras.callbacks.TensorBoard)
        assert board.log_dir == str(tmp_path / "job")
        assert isinstance(shown, TrainingProgress)
        assert isinstance(stopping, DelayedEarlyStopping)
        assert (stopping.delay, stopping.patience) == (5, 30)
        assert isinstance(pictures, VisualisationCallback)
        assert (pictures.outdir, pictures.freq, pictures.batch_size) == (tmp_path / "job" / "UMAP", 7, 2000)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("limits", [None, {}])
    def test_nobody_stops_and_nobody_draws_unasked(self, tmp_path: Path, limits: Any) -> None:
        kinds = [type(callback) for callback in create_callbacks(limits, tmp_path)]
        assert DelayedEarlyStopping not in kinds
        assert VisualisationCallback not in kinds

    def test_logs_for_tensorboard(self, tmp_path: Path) -> None:
        cells = make_cells({"a": (16, 8)})
        make_model(cells).training(cells, create_callbacks(None, tmp_path, profile_batch=0), max_steps=1)
        for part in ("train", "validation"):
            assert list((tmp_path / "job" / part).glob("events.out.tfevents.*"))


class Drawer:
    """Stands for the process that draws: it ends when it is told to."""

    started: list[Drawer]

    def __init__(self, command: list[str], **_: Any) -> None:
        self.file, self.folder, self.prefix = command[3:]
        quoted = ad.read_h5ad(self.file)
        self.cells = ad.AnnData(obs=quoted.obs, obsm={unquote(key): values for key, values in quoted.obsm.items()})
        self.running, self.returncode, self.waited = True, None, False
        Drawer.started.append(self)

    def poll(self) -> int | None:
        return None if self.running else 0

    def communicate(self) -> tuple[None, bytes]:
        self.waited, self.returncode = True, 0
        return None, b""


class TestVisualisation:
    @pytest.fixture
    def drawers(self, monkeypatch: pytest.MonkeyPatch) -> list[Drawer]:
        Drawer.started = []
        # Not in the module itself: joblib counts cores with a process of its own.
        monkeypatch.setattr(visualisation, "subprocess", SimpleNamespace(Popen=Drawer, DEVNULL=None, PIPE=None))
        return Drawer.started

    def test_validation_cells_of_the_largest_batches(
        self, tmp_path: Path, drawers: list[Drawer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(VisualisationCallback, "max_batches", 2)
        cells = make_cells({"few": (8, 1), "many": (8, 5), "some": (8, 3)})
        callback = VisualisationCallback(tmp_path, cells, batch_size=100)
        assert callback.batches == ["many", "some"]
        chosen = cells.obs[(cells.obs["split"] == "valid") & (cells.obs["batch"] != "few")]
        assert list(callback.obs.index) == list(chosen.index)

    def test_many_cells_are_sampled(self, tmp_path: Path) -> None:
        cells = make_cells({"a": (8, 20), "b": (8, 20)})
        callback = VisualisationCallback(tmp_path, cells, batch_size=5)
        assert len(callback.obs) == 5
        assert sum(block.shape[0] for block in callback._cells) == 5
        assert set(callback.obs["split"]) == {"valid"}

    def test_every_so_often_and_at_the_end(self, tmp_path: Path, drawers: list[Drawer]) -> None:
        cells = make_cells({"a": (8, 5), "b": (8, 5)})
        model = make_model(cells)
        callback = VisualisationCallback(tmp_path / "UMAP", cells, batch_size=100, freq=2)

        class Finishes(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                for drawer in drawers:
                    drawer.running = False

        model.training(cells, [callback, Finishes()], max_steps=5)
        assert [drawer.prefix for drawer in drawers] == ["epoch_0002", "epoch_0004", "epoch_0005"]
        assert all(drawer.waited for drawer in drawers)
        assert {drawer.folder for drawer in drawers} == {str(tmp_path / "UMAP")}

    def test_the_last_epoch_is_drawn_once(self, tmp_path: Path, drawers: list[Drawer]) -> None:
        cells = make_cells({"a": (8, 5), "b": (8, 5)})
        callback = VisualisationCallback(tmp_path, cells, batch_size=100, freq=2)
        make_model(cells).training(cells, [callback], max_steps=2)
        assert [drawer.prefix for drawer in drawers] == ["epoch_0002"]

    def test_training_does_not_wait_for_pictures(
        self, tmp_path: Path, drawers: list[Drawer], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        cells = make_cells({"a": (8, 5), "b": (8, 5)})
        callback = VisualisationCallback(tmp_path, cells, batch_size=100, freq=1)
        make_model(cells).training(cells, [callback], max_steps=3)
        assert [drawer.prefix for drawer in drawers] == ["epoch_0001", "epoch_0003"]
        assert "epoch 2: pictures left out, those of epoch 1 are not ready" in caplog.text

    def test_what_is_drawn(self, tmp_path: Path, drawers: list[Drawer]) -> None:
        cells = make_cells({"a": (8, 5), "b": (8, 6)})
        X = cells.X.toarray()
        cells.var["mean_scaling"], cells.var["var_scaling"] = X.mean(0), X.std(0) + 0.1
        model = make_model(cells)
        callback = VisualisationCallback(tmp_path, cells, batch_size=100, freq=1)
        model.training(cells, [callback], max_steps=1)
        (drawer,) = drawers
        drawn = drawer.cells
        valid = (cells.obs["split"] == "valid").to_numpy()
        assert list(drawn.obs_names) == list(cells.obs_names[valid])
        assert set(drawn.obsm) == {"original", "latent", "projected to a", "projected to b"}

        def in_components(values: np.ndarray) -> np.ndarray:
            return (
                (values - cells.var["mean_scaling"].to_numpy())
                / cells.var["var_scaling"].to_numpy()
                @ cells.varm["PCs"]
            )

        np.testing.assert_allclose(drawn.obsm["original"], in_components(X[valid]), atol=1e-4)
        for batch in ("a", "b"):
            wanted = model.reconstruct(cells, "batch", batch)
            np.testing.assert_allclose(drawn.obsm["latent"], wanted.obsm["X_DISCERN"][valid], atol=1e-5)
            expression = in_components(wanted.layers["estimated_counts"][valid])
            np.testing.assert_allclose(drawn.obsm[f"projected to {batch}"], expression, atol=1e-3)

    def test_pictures_are_drawn_by_batch_and_type(self, tmp_path: Path) -> None:
        cells = make_cells({"a/1": (8, 2), "b": (8, 2)})
        cells.obs["Cell type"] = ["x", "y"] * 10
        cells.obs["donor"] = pd.Categorical(["p", "q"] * 10)
        callback = VisualisationCallback(tmp_path / "UMAP", cells, batch_size=100, freq=10)
        make_model(cells).training(cells, [callback], max_steps=1)
        names = {path.name for path in (tmp_path / "UMAP").iterdir()}
        assert names == {"epoch_0001_batch.png", "epoch_0001_Cell_type.png"}
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "UMAP").iterdir())

    def test_a_picture_is_not_worth_a_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(visualisation.sys, "executable", "/bin/false")
        cells = make_cells({"a": (8, 5), "b": (8, 5)})
        callback = VisualisationCallback(tmp_path, cells, batch_size=100, freq=1)
        history = make_model(cells).training(cells, [callback], max_steps=2)
        assert len(history.history["loss"]) == 2
        assert "the pictures of epoch 2 could not be drawn" in caplog.text

    def test_with_fit_of_the_keras_model_and_cells_that_were_not_processed(
        self, tmp_path: Path, drawers: list[Drawer]
    ) -> None:
        cells = make_cells({"a": (16, 5), "b": (16, 5)})
        model = make_model(cells)
        model.compile(keras.optimizers.Adam(1e-3))
        obs = cells.obs[["batch"]].astype(str)
        plain = ad.AnnData(cells.X.toarray(), obs=obs, var=pd.DataFrame(index=cells.var_names))
        callback = VisualisationCallback(str(tmp_path), plain, 30, 1)
        model.wae_model.fit(cells.tfdata[0], epochs=1, callbacks=[callback], verbose=0)
        (drawer,) = drawers
        assert drawer.cells.n_obs == 30
        assert set(drawer.cells.obsm) == {"original", "latent", "projected to a", "projected to b"}
        assert all(np.isfinite(values).all() for values in drawer.cells.obsm.values())

    def test_another_model_is_refused(self, tmp_path: Path) -> None:
        callback = VisualisationCallback(tmp_path, make_cells({"a": (8, 5)}), batch_size=100, freq=1)
        callback.set_model(keras.Sequential())
        with pytest.raises(InvalidInputError, match="expected a model of `create_model`, got Sequential"):
            callback.on_epoch_end(0)

    def test_nothing_was_trained(self, tmp_path: Path, drawers: list[Drawer]) -> None:
        callback = VisualisationCallback(tmp_path, make_cells({"a": (8, 5)}), batch_size=100, freq=1)
        callback.on_train_begin()
        callback.on_train_end()
        assert drawers == []
