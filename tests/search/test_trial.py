from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from discern.config.reading import load_parameters
from discern.data.processed import DISCERNData
from discern.errors import InvalidInputError
from discern.search.trial import CELL_METRICS, DIVERGED, RemoveModels, Trial, judge_cells

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def trial(folder: Path, config: dict[str, Any], training: dict[str, Any] | None = None) -> Trial:
    experiment = load_parameters(folder / "parameters.json").experiments[folder.name]
    changed = experiment.training.model_copy(update=training or {})
    experiment = experiment.model_copy(update={"training": changed})
    made = Trial.__new__(Trial)  # Ray's own constructor starts loggers
    made.setup(config, folder=str(folder), experiment=experiment, epochs_per_timestep=2, validation_batches=1, cpus=1)
    return made


def test_a_step_trains_and_reports(original_experiment: Path) -> None:
    tried = trial(original_experiment, {"model": {"latent_dim": 12.0}}, {"max_steps": 3})
    first = tried.step()
    assert tried.discern.parameters.latent_dim == 12
    assert (first["epochs"], first["reached_max_step"], first["early_stopped"], first["diverged"]) == (
        2,
        False,
        False,
        False,
    )
    assert first["loss"] == first["val_loss"] > 0
    assert 0 <= first["auc"] <= 1
    assert 0 <= first["auc_autoencoded"] <= 1
    assert 0 < first["mmd"] < 2
    second = tried.step()
    assert (second["epochs"], second["reached_max_step"]) == (3, True)
    assert second["loss"] <= first["loss"]
    assert tried.step() == second  # nothing is left to train


def test_a_checkpoint_goes_on_where_it_was(original_experiment: Path, tmp_path: Path) -> None:
    config = {"training": {"optimizer": {"learning_rate": 0.002}}}
    first = trial(original_experiment, config)
    reported = first.step()
    first.save_checkpoint(str(tmp_path))
    second = trial(original_experiment, {"training": {"optimizer": {"learning_rate": 0.001}}})
    second.load_checkpoint(str(tmp_path))
    assert second.discern.start_step == 2
    assert second.callback.state() == first.callback.state()
    weights = (each.discern.wae_model.get_weights() for each in (first, second))
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    assert float(second.discern.wae_model.optimizer.learning_rate) == pytest.approx(0.001)  # as a population wants it
    after = second.step()
    assert after["epochs"] == 4
    assert after["loss"] <= reported["loss"]


def test_a_checkpoint_without_its_model_starts_again(original_experiment: Path, tmp_path: Path) -> None:
    tried = trial(original_experiment, {})
    tried.load_checkpoint(str(tmp_path))
    assert tried.discern.start_step == 0


def test_early_stopping_counts_over_the_steps(original_experiment: Path) -> None:
    stopping = {"delay": 0, "min_delta": 1e9, "patience": 3, "restore_best_weights": True}
    tried = trial(original_experiment, {}, {"early_stopping": stopping})
    assert not tried.step()["early_stopped"]
    second = tried.step()
    assert second["early_stopped"]
    assert second["epochs"] == 4


def test_a_diverged_trial_reports_large_numbers(original_experiment: Path) -> None:
    tried = trial(original_experiment, {"training": {"optimizer": {"learning_rate": 1e19}}})
    result = tried.step()
    assert result["diverged"]
    assert all(result[name] == DIVERGED for name in (*CELL_METRICS, "loss", "val_loss"))


def test_other_mistakes_are_not_taken_for_divergence(
    original_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = trial(original_experiment, {})

    def fails(*args: Any, **kwargs: Any) -> None:
        raise InvalidInputError("the disk is full")

    monkeypatch.setattr(tried.discern, "training", fails)
    with pytest.raises(InvalidInputError, match="the disk is full"):
        tried.step()


class Perfect:
    """Decodes every cell to itself: its latent code is its number."""

    def __init__(self, data: DISCERNData, shift: float = 0.0) -> None:
        self.cells = data.X[data.obs["for_mmd"].to_numpy(dtype=bool)].toarray()
        self.shift = shift

    def encode(self, counts: Any, labels: np.ndarray, chunk_size: int) -> tuple[np.ndarray, np.ndarray]:
        assert np.array_equal(counts.toarray(), self.cells)
        assert (labels.sum(1) == 1).all()
        return np.arange(len(self.cells))[:, None], np.zeros((len(self.cells), 1))

    def decode(
        self, latent: np.ndarray, labels: np.ndarray, chunk_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert (labels.argmax(1) == labels[0].argmax()).all()
        cells = self.cells[latent[:, 0]] + self.shift
        yield cells, np.ones_like(cells)


@pytest.fixture
def cells(original_experiment: Path) -> DISCERNData:
    return DISCERNData.from_folder(original_experiment, 32)


def test_real_cells_are_judged_as_real(cells: DISCERNData) -> None:
    found = judge_cells(Perfect(cells), cells, n_batches=2)
    assert found["mmd_autoencoded"] < 0.01
    assert found["auc_autoencoded"] < 0.6
    assert found["mmd"] > found["mmd_autoencoded"]  # the other batch's cells are not of this one
    shifted = judge_cells(Perfect(cells, shift=3.0), cells, n_batches=2)
    assert shifted["auc"] == shifted["auc_autoencoded"] == 1
    assert shifted["mmd"] > found["mmd"]


def test_the_largest_batches_with_enough_cells_are_judged(cells: DISCERNData) -> None:
    both = judge_cells(Perfect(cells), cells, n_batches=10)
    chosen = np.flatnonzero(cells.obs["for_mmd"].to_numpy(dtype=bool))
    batch = cells.obs["batch"].iloc[chosen]
    for_mmd = np.zeros(cells.n_obs, dtype=bool)
    smallest, largest = batch.value_counts().index[[-1, 0]]
    for_mmd[chosen[(batch == largest).to_numpy()]] = True
    for_mmd[chosen[(batch == smallest).to_numpy()][:1]] = True
    cells.obs["for_mmd"] = for_mmd
    one = judge_cells(Perfect(cells), cells, n_batches=10)
    assert one != both
    assert one["mmd"] == pytest.approx(one["mmd_autoencoded"], abs=0.02)


def test_a_network_that_gives_no_numbers_is_diverged(cells: DISCERNData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = judge_cells(Perfect(cells, shift=math.nan), cells, n_batches=2)
    assert set(found.values()) == {math.inf}


def test_without_cells_to_judge_there_is_an_error(cells: DISCERNData) -> None:
    cells.obs["for_mmd"] = pd.Series(False, index=cells.obs_names)
    with pytest.raises(InvalidInputError, match="at least two cells in obs 'for_mmd'"):
        judge_cells(Perfect(cells), cells, n_batches=2)


class Ended:
    """What Ray tells about a trial."""

    def __init__(self, folder: Path, **result: Any) -> None:
        folder.mkdir()
        (folder / "last_model.h5").touch()
        (folder / "trial.json").touch()
        self.checkpoint = type("Checkpoint", (), {"path": str(folder)})
        self.last_result = {"diverged": False} | result


def test_only_the_best_trials_model_is_kept(tmp_path: Path) -> None:
    callback = RemoveModels("auc", "min")
    trials = {
        "a": Ended(tmp_path / "a", auc=0.9),
        "b": Ended(tmp_path / "b", auc=0.8),
        "c": Ended(tmp_path / "c", auc=0.7, diverged=True),
        "d": Ended(tmp_path / "d", auc=0.85),
    }
    for ended in list(trials.values())[:2]:
        callback.on_trial_complete(1, [], ended)
    resumed = RemoveModels("auc", "min")
    resumed.set_state(callback.get_state())
    for ended in list(trials.values())[2:]:
        resumed.on_trial_complete(1, [], ended)
    assert [path.parent.name for path in tmp_path.glob("*/last_model.h5")] == ["b"]
    assert len(list(tmp_path.glob("*/trial.json"))) == 4
