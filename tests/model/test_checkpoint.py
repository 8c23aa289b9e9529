from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import h5py
import keras
import numpy as np
import pytest

from discern.errors import InvalidInputError, MissingFileError
from discern.folder import layout
from discern.model import checkpoint, model_file
from discern.model.estimator import DISCERN
from discern.model.trained import TrainedNetwork
from discern.networks.optimizers import Lookahead, RectifiedAdam
from tests.support.keras2 import write_keras2
from tests.support.networks import compile_model, make_model, make_original_model, original_cells

if TYPE_CHECKING:
    from pathlib import Path

    from discern.networks.autoencoder import WAE


def randomised(model: WAE) -> WAE:
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.random(variable.shape))
    return model


def assert_same_weights(one: WAE, other: WAE) -> None:
    for left, right in zip(one.weights, other.weights, strict=True):
        assert left.path == right.path
        np.testing.assert_array_equal(left.numpy(), right.numpy())


def trained_model(optimizer: keras.optimizers.Optimizer) -> WAE:
    """A model with a state of the optimiser as after two steps."""
    model = compile_model(randomised(make_model()), optimizer)
    optimizer.build(model.trainable_variables)
    generator = np.random.default_rng(1)
    for variable in optimizer.variables:
        if "learning_rate" not in variable.path:
            variable.assign(2 if variable.path.endswith("iteration") else generator.random(variable.shape))
    return model


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("discern")]


OPTIMIZERS = {
    "RectifiedAdam": lambda: RectifiedAdam(1e-5),
    "amsgrad": lambda: RectifiedAdam(1e-5, amsgrad=True),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
    "Lookahead": lambda: Lookahead(RectifiedAdam(1e-5), sync_period=3),
    "SGD": lambda: keras.optimizers.SGD(1e-6, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_model_and_optimizer_come_back(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = trained_model(OPTIMIZERS[name]())
    checkpoint.save_model(TrainedNetwork(model, epoch=3), tmp_path / "model.h5")
    again, optimizer = make_model(), OPTIMIZERS[name]()
    checkpoint.load_weights(again, tmp_path / "model.h5", optimizer)
    assert_same_weights(model, again)
    assert not told(caplog)
    for old, new in zip(model.optimizer.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy(), err_msg=old.path)


def test_description(tmp_path: Path) -> None:
    genes, batches = [f"gene {i}" for i in range(20)], ["a", "ä"]
    scaling = np.arange(20, dtype="float32"), np.ones(20, "float32")
    model = trained_model(RectifiedAdam(1e-5))
    checkpoint.save_model(TrainedNetwork(model, scaling, tuple(genes), tuple(batches), 3), tmp_path / "model.h5", 0.5)
    found = checkpoint.read_model_file(tmp_path / "model.h5")
    assert (found.n_genes, found.n_labels, found.total_number_cells) == (20, 2, 100)
    assert (found.epoch, found.iterations) == (3, 2)
    assert (found.genes, found.batches) == (genes, batches)
    np.testing.assert_array_equal(found.scaling, scaling)
    checkpoint.save_model(TrainedNetwork(make_model()), tmp_path / "bare.h5")
    bare = checkpoint.read_model_file(tmp_path / "bare.h5")
    assert (bare.iterations, bare.genes, bare.batches, bare.scaling) == (None, None, None, None)


def test_learning_rate_is_that_of_the_parameters(tmp_path: Path) -> None:
    checkpoint.save_model(TrainedNetwork(trained_model(RectifiedAdam(1e-5)), epoch=1), tmp_path / "model.h5")
    optimizer = RectifiedAdam(0.25)
    checkpoint.load_weights(make_model(), tmp_path / "model.h5", optimizer)
    assert float(optimizer.learning_rate.numpy()) == 0.25


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        ("SGD", "RectifiedAdam", "has no state of the optimiser's velocity; training goes on without it"),
        ("RectifiedAdam", "SGD", "the optimiser does not use its velocity"),
        ("RectifiedAdam", "Lookahead", "has no state of the optimiser's slow"),
    ],
)
def test_change_of_optimizer_is_told(
    saved: str, loaded: str, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save_model(TrainedNetwork(trained_model(OPTIMIZERS[saved]()), epoch=1), tmp_path / "model.h5")
    checkpoint.load_weights(make_model(), tmp_path / "model.h5", OPTIMIZERS[loaded]())
    (text,) = told(caplog)
    assert text.split("model.h5: ")[1].startswith(message)


def test_slow_weights_start_from_loaded_ones(tmp_path: Path) -> None:
    model = trained_model(RectifiedAdam(1e-5))
    checkpoint.save_model(TrainedNetwork(model, epoch=1), tmp_path / "model.h5")
    again, optimizer = make_model(), Lookahead(RectifiedAdam(1e-5))
    optimizer.build(again.trainable_variables)
    checkpoint.load_weights(again, tmp_path / "model.h5", optimizer)
    for slow, weight in zip(optimizer._copies, again.trainable_variables, strict=True):
        np.testing.assert_array_equal(slow.numpy(), weight.numpy())


def test_best_model_is_that_of_the_lowest_loss(tmp_path: Path) -> None:
    model = make_model()
    for epoch, loss in enumerate([5.0, 3.0, 4.0, None, float("nan")], start=1):
        checkpoint.save_model(TrainedNetwork(model, epoch=epoch), tmp_path / layout.LAST, loss)
        checkpoint.keep_best(tmp_path)
    assert checkpoint.read_model_file(tmp_path / "last_model.h5").epoch == 5
    assert checkpoint.read_model_file(tmp_path / "best_model.h5").epoch == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_model.h5", "last_model.h5"]


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_model(TrainedNetwork(make_model(), epoch=1), tmp_path / "model.h5")
    before = (tmp_path / "model.h5").read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save_model(TrainedNetwork(make_model(), scaling=5, epoch=2), tmp_path / "model.h5")  # type: ignore[arg-type]
    assert (tmp_path / "model.h5").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


def test_newest_model_is_found(tmp_path: Path) -> None:
    assert model_file.find_model(tmp_path) is None
    (tmp_path / "job").mkdir()
    for name in ("model_5.hdf5", "best_model.hdf5", "best_model.h5", "last_model.h5"):
        (tmp_path / "job" / name).touch()
        assert model_file.find_model(tmp_path) == model_file.find_model(tmp_path / "job") == tmp_path / "job" / name


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other HDF5", "newer"])
def test_damaged_file(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    checkpoint.save_model(TrainedNetwork(make_model(), epoch=1), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("weights")
    else:
        with h5py.File(path, "a") as handle:
            if damage == "newer":
                handle.attrs["format_version"] = 3
            else:
                del handle.attrs["format_version"]
    message = "in format 3 by a newer DISCERN" if damage == "newer" else "not a complete model file"
    with pytest.raises(InvalidInputError, match=f"{path}: .*{message}"):
        checkpoint.read_model_file(path)
    with pytest.raises(InvalidInputError, match=f"{path}: .*{message}"):
        checkpoint.load_weights(make_model(), path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"model\.h5: there is no such model file"):
        checkpoint.load_weights(make_model(), tmp_path / "model.h5")
    with pytest.raises(MissingFileError, match=r"parameters\.json: not found; it describes the network in model\.h5"):
        model_file.parameters_file(tmp_path / "job" / "model.h5")
    with pytest.raises(MissingFileError, match=r"there is no trained model .* train the experiment first"):
        DISCERN().restore_model(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"n_genes": 21},
            r"encoder_dense_0/kernel have the shape \(20, 16\), .* need \(21, 16\); .* belongs to other data",
        ),
        ({"n_labels": 3}, r"encoder_offset_0/kernel have the shape \(2, 16\)"),
        ({"layers": (16,)}, "has weights that are not of the network .*: decoder_dense_1/kernel"),
        ({"layers": (16, 8, 8)}, "lacks weights of the network .*: decoder_dense_2/kernel"),
        ({"norm": "conditionalbatchnorm"}, "lacks weights of the network .*: decoder_norm_0/moving_mean"),
        ({"norm": "layernorm"}, "has weights that are not of the network .*: decoder_offset_0/kernel"),
    ],
)
@pytest.mark.parametrize("origin", ["ours", "original"])
def test_model_that_does_not_fit_changes_nothing(
    changed: dict[str, Any], message: str, origin: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.h5"
    if origin == "ours":
        checkpoint.save_model(TrainedNetwork(randomised(make_model()), epoch=1), path)
    else:
        write_keras2(path, randomised(make_model()))
        if "shape" not in message:
            message = r"the encoder has \d arrays '(kernel|moving_mean)', but the parameters describe \d"
    model = make_model(**changed)
    before = model.get_weights()
    with pytest.raises(InvalidInputError, match=message):
        checkpoint.load_weights(model, path)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_original_model(golden: Path) -> None:
    path = golden / "experiment" / "job" / "best_model.hdf5"
    found = checkpoint.read_model_file(path)
    assert (found.n_genes, found.n_labels, found.total_number_cells) == (1500, 2, 176)
    assert (found.epoch, found.iterations) == (None, 40)
    model, optimizer = make_original_model(), RectifiedAdam(1e-3, beta_1=0.85, beta_2=0.95)
    checkpoint.load_weights(model, path, optimizer)
    with h5py.File(path) as handle:
        state = handle["optimizer_weights/RectifiedAdam"]
        for slot, ours in (("m", optimizer._momentums), ("v", optimizer._velocities)):
            for name, variable in {
                "dense/kernel": ours[0],
                "sigma_enc/bias": ours[7],
                "dense_9/bias": ours[15],
            }.items():
                np.testing.assert_array_equal(state[f"{name}/{slot}:0"], variable.numpy())
    assert optimizer.iterations.numpy() == 40

    expected = np.load(golden / "expected.npz")
    expression, labels, _ = original_cells(golden / "experiment")
    latent, sigma = model.encoder([expression, labels])
    np.testing.assert_allclose(latent, expected["X_DISCERN"], atol=1e-4)
    np.testing.assert_allclose(sigma, expected["X_DISCERN_sigma"], atol=1e-4)
    rows = expected["rows_of_layers"]
    counts, dropouts = model.decoder([latent.numpy()[rows], labels[rows]])
    restored = np.maximum(counts * expected["var_scaling"] + expected["mean_scaling"], 0)
    np.testing.assert_allclose(restored, expected["unprojected/estimated_counts"], atol=1e-4)
    np.testing.assert_allclose(dropouts, expected["unprojected/estimated_dropouts"], atol=1e-4)


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"n_labels": 3},
        {"norm": "batchnorm"},
        {"norm": "conditionalbatchnorm"},
        {"norm": "layernorm"},
        {"layers": (16,)},
        {"layers": (16, 16, 8, 8)},
        {"output_fn": "softmax"},
        {"latent_dim": 2, "layers": (2, 2)},
    ],
    ids=str,
)
def test_original_network_of_any_kind(
    network: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = randomised(make_model(**network))
    state = write_keras2(tmp_path / "best_model.hdf5", model)
    found = checkpoint.read_model_file(tmp_path / "best_model.hdf5")
    assert (found.n_genes, found.n_labels) == (20, network.get("n_labels", 2))
    again, optimizer = make_model(**network), RectifiedAdam()
    checkpoint.load_weights(again, tmp_path / "best_model.hdf5", optimizer)
    assert_same_weights(model, again)
    for index, variable in enumerate(again.trainable_variables):
        np.testing.assert_array_equal(optimizer._momentums[index].numpy(), state[f"m/{variable.path}"])
        np.testing.assert_array_equal(optimizer._velocities[index].numpy(), state[f"v/{variable.path}"])
    assert not told(caplog)


@pytest.mark.parametrize(
    ("written", "optimizer"),
    [
        ({"optimizer": "Adam"}, keras.optimizers.Adam),
        ({"optimizer": "Adam", "prefix": "training/"}, keras.optimizers.Adam),
        ({"optimizer": "Adam", "slots": ("m", "v", "vhat")}, lambda: keras.optimizers.Adam(amsgrad=True)),
        ({"optimizer": "Adam", "new_names": True}, keras.optimizers.Adam),
        ({"optimizer": "RectifiedAdam", "slots": ("m", "v", "vhat")}, lambda: RectifiedAdam(amsgrad=True)),
        ({"optimizer": "Lookahead", "slots": ("m", "v", "slow")}, lambda: Lookahead(RectifiedAdam())),
        ({"as_bytes": True}, RectifiedAdam),
        ({"chunks": 12}, RectifiedAdam),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_original_optimizer_of_any_version(
    written: dict[str, Any], optimizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = write_keras2(tmp_path / "best_model.hdf5", randomised(make_model()), iterations=123, **written)
    made, model = optimizer(), make_model()
    checkpoint.load_weights(model, tmp_path / "best_model.hdf5", made)
    assert checkpoint.read_model_file(tmp_path / "best_model.hdf5").iterations == 123
    assert made.iterations.numpy() == 123
    ours = {variable.path.split("/", 1)[1]: variable for variable in made.variables}
    names = {"m": "momentum", "v": "velocity", "vhat": "velocity_hat", "slow": "slow"}
    for key, array in state.items():
        slot, path = key.split("/", 1)
        np.testing.assert_array_equal(ours[f"{path.replace('/', '_')}_{names[slot]}"].numpy(), array)
    assert not told(caplog)


def test_original_state_that_cannot_be_taken_over_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "best_model.hdf5"
    write_keras2(path, randomised(make_model()), optimizer="RMSprop", slots=("rms",))
    with caplog.at_level(logging.WARNING):
        checkpoint.load_weights(make_model(), path, RectifiedAdam())
    messages = told(caplog)
    assert any("has no state of the optimiser's momentum, velocity" in message for message in messages)
    assert any("the optimiser does not use its" in message for message in messages)


def test_original_without_optimizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "best_model.hdf5"
    write_keras2(path, randomised(make_model()))
    with h5py.File(path, "a") as handle:
        del handle["optimizer_weights"]
    assert checkpoint.read_model_file(path).iterations is None
    checkpoint.load_weights(make_model(), path, RectifiedAdam())
    assert "has no state of the optimiser's iteration, momentum, velocity" in caplog.text


def test_frozen_layers_keep_the_state_of_the_others(tmp_path: Path) -> None:
    state = write_keras2(tmp_path / "best_model.hdf5", randomised(make_model()))
    model, optimizer = make_model(), RectifiedAdam()
    model.get_layer("encoder").get_layer("encoder_dense_1").trainable = False
    checkpoint.load_weights(model, tmp_path / "best_model.hdf5", optimizer)
    for variable, momentum in zip(model.trainable_variables, optimizer._momentums, strict=True):
        np.testing.assert_array_equal(momentum.numpy(), state[f"m/{variable.path}"])


def test_restored_training_goes_on(original_experiment: Path) -> None:
    parameters = json.loads((original_experiment / "parameters.json").read_text())
    estimator = DISCERN.from_json(parameters)
    estimator.restore_model(original_experiment)
    assert estimator.start_step == 8
    assert estimator.wae_model.optimizer.iterations.numpy() == 40
    estimator.save(original_experiment / "job", epoch=9)
    estimator.restore_model(original_experiment / "job")
    assert estimator.start_step == 9
