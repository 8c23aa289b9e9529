"""Which precision is picked, and that what was picked stays with the model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import h5py
import keras
import pytest
import tensorflow as tf

from discern import DISCERN, DISCERNData
from discern.config.reading import parse_experiment
from discern.errors import InvalidInputError
from discern.experiment.online import train_further
from discern.model import building
from discern.model.restoring import load_model_from_directory
from discern.networks import precision

if TYPE_CHECKING:
    from pathlib import Path

SIDE = {"layers": [16], "norm_type": ["conditionallayernorm"], "regularization": 0.0}


def small(precision: str = "auto") -> DISCERN:
    return DISCERN(latent_dim=4, encoder=SIDE, decoder=SIDE, seed=1, precision=precision)


@pytest.fixture
def picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is faster in half precision."""
    monkeypatch.setattr(building, "faster_precision", lambda *_: "mixed_bfloat16")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that must not be asked."""

    def fail(*_: int) -> str:
        raise AssertionError("measured again")

    monkeypatch.setattr(building, "faster_precision", fail)


@pytest.mark.parametrize(("ratio", "wanted"), [(1.6, "mixed_bfloat16"), (1.1, "float32"), (0.3, "float32")])
def test_half_precision_is_picked_where_it_is_clearly_faster(
    ratio: float, wanted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "_layer", lambda name, *_: {"float32": ratio, "mixed_bfloat16": 1.0}[name])
    monkeypatch.setattr(precision, "_time", lambda layer: layer)
    monkeypatch.setattr(precision, "_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "discern"):
        assert precision.faster_precision(500, 64) == wanted
    assert caplog.messages == [f"precision: {wanted} (matrix products in bfloat16 {ratio} times as fast here)"]


def test_measuring_takes_a_moment_and_changes_no_random_numbers() -> None:
    keras.utils.set_random_seed(3)
    wanted = keras.random.normal((4,)).numpy().tolist()
    keras.utils.set_random_seed(3)
    assert precision.faster_precision(20_000, 64) in ("float32", "mixed_bfloat16")
    assert keras.random.normal((4,)).numpy().tolist() == wanted


def test_auto_trains_in_what_was_picked(picked: None) -> None:
    model = small()
    model.build_model(30, 2, 100)
    assert model.wae_model.precision == "mixed_bfloat16"
    assert model.encoder.get_layer("encoder_dense_0").compute_dtype == "bfloat16"


def test_a_given_precision_is_not_measured(elsewhere: None) -> None:
    for given in ("float32", "mixed_bfloat16"):
        model = small(given)
        model.build_model(30, 2, 100)
        assert model.wae_model.precision == given


def test_what_was_picked_holds_wherever_the_model_is_read(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = DISCERNData.from_folder(golden / "experiment", batch_size=32)
    for number, wanted in enumerate(("mixed_bfloat16", "float32")):
        monkeypatch.setattr(building, "faster_precision", lambda *_, wanted=wanted: wanted)
        small().training(cells, savepath=tmp_path / str(number), max_steps=1)
    monkeypatch.setattr(building, "faster_precision", lambda *_: pytest.fail("measured again"))
    for number, wanted in enumerate(("mixed_bfloat16", "float32")):
        model = small()
        model.restore_model(tmp_path / str(number))
        assert model.wae_model.precision == wanted
        assert model.training(cells, max_steps=2)
        described, _ = load_model_from_directory(tmp_path / str(number))
        assert described.precision == wanted


def test_a_model_from_before_was_trained_in_single_precision(golden: Path, tmp_path: Path, elsewhere: None) -> None:
    model = small("float32")
    model.build_model(30, 2, 100)
    model.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        del file.attrs["precision"]
    again = small()
    again.restore_model(tmp_path / "model.h5")
    assert again.wae_model.precision == "float32"


@pytest.mark.parametrize("said", ["float16", 3, "auto"])
def test_a_model_file_with_another_precision_is_refused(said: str | int, tmp_path: Path) -> None:
    model = small("float32")
    model.build_model(30, 2, 100)
    model.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        file.attrs["precision"] = said
    with pytest.raises(InvalidInputError, match=r"model\.h5.*precision"):
        small().restore_model(tmp_path / "model.h5")


def test_layers_of_half_precision_keep_weights_in_single_precision(picked: None) -> None:
    model = small()
    model.build_model(30, 2, 100)
    assert {variable.dtype for variable in model.wae_model.trainable_variables} == {"float32"}
    cells = {"input_data": tf.zeros((3, 30)), "batch_input_enc": tf.eye(3, 2), "batch_input_dec": tf.eye(3, 2)}
    assert model.wae_model(cells)["decoder_counts"].dtype == tf.float32


def test_training_with_new_batches_goes_on_as_it_began(
    golden: Path, picked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = parse_experiment(
        {
            "model": {"latent_dim": 4, "encoder": SIDE, "decoder": SIDE},
            "training": {"precision": "auto", "max_steps": 1, "early_stopping": {}},
            "input_ds": {"raw_input": {"cells.h5ad": "batch"}},
        }
    )
    cells = DISCERNData.from_folder(golden / "experiment", batch_size=32)
    trained = DISCERN.from_experiment(experiment)
    trained.training(cells, max_steps=1)
    monkeypatch.setattr(building, "faster_precision", lambda *_: pytest.fail("measured again"))
    further, _ = train_further(trained.trained, experiment, cells, freeze=False, callbacks=[])
    assert further.wae_model.precision == "mixed_bfloat16"
