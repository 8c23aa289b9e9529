from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import tensorflow as tf
from scipy import sparse

from discern.data.minibatches import thinned
from discern.data.processed import DISCERNData
from discern.data.records import write_records
from discern.model.estimator import DISCERN
from discern.preprocessing.recipe import WAERecipe

CELLS, GENES = 60, 40


@pytest.fixture(scope="module")
def data() -> DISCERNData:
    counts = np.random.default_rng(0).poisson(3, size=(CELLS, GENES)).astype("float32")
    counts[:, 0] = 1
    adata = ad.AnnData(sparse.csr_matrix(counts))
    adata.obs["batch"] = np.resize(["one", "two"], CELLS)
    adata.obs_names = [f"cell{number}" for number in range(CELLS)]
    section = {
        "filtering": {"min_genes": 0, "min_cells": 0},
        "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
    }
    recipe = WAERecipe({"input_ds": section}, inputs={"cells": adata}, input_files={"cells": "batch"}, n_jobs=1)
    return DISCERNData(recipe().sc_raw, batch_size=6)


def log_normalised(data: DISCERNData, standardised: np.ndarray) -> np.ndarray:
    mean, std = data.scaling
    return standardised * std + mean


def elements(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = zip(*((given["input_data"], counts) for given, (counts, _) in dataset), strict=True)
    return np.concatenate(inputs), np.concatenate(targets)


def test_counts_are_kept_with_the_probability_and_scaled_to_the_same_total() -> None:
    counts = np.random.default_rng(1).poisson(2, size=(4000,)).astype("float32") + 1
    counts[0] = 1
    scaled = counts / counts.sum() * 20000
    shares = []
    for draw in range(200):
        values = thinned(tf.constant([len(counts)]), tf.math.log1p(scaled), 0.3, tf.constant(draw, tf.int64)).numpy()
        amounts = np.expm1(values.astype("float64"))
        np.testing.assert_allclose(amounts.sum(), 20000, rtol=1e-4)
        single = amounts[amounts > 1e-6].min()
        kept = np.round(amounts / single)
        np.testing.assert_allclose(amounts, kept * single, rtol=1e-3, atol=1e-6)
        assert (kept <= counts).all()
        shares.append(kept.sum() / counts.sum())
    assert 0.28 < min(shares) < 0.35
    assert 0.95 < max(shares) < 1.01
    assert abs(np.mean(shares) - 0.65) < 0.05


def test_cells_without_genes_and_fractions_pass() -> None:
    values = np.log1p(np.array([0.5, 0.0, 7.25], dtype="float32"))
    result = thinned(tf.constant([0, 3, 0]), tf.constant(values), 0.5, tf.constant(3, tf.int64))
    assert np.isfinite(result).all()
    assert result[1] == 0


def test_input_is_thinned_and_target_is_not(data: DISCERNData) -> None:
    train, valid = data.batches(thin_counts=0.3)
    inputs, targets = (log_normalised(data, values) for values in elements(train))
    assert (inputs > 1e-4).sum() < 0.95 * (targets > 1e-4).sum()
    assert not ((inputs > 1e-4) & (targets < 1e-5)).any()
    np.testing.assert_allclose(np.expm1(inputs).sum(axis=1), 1000, rtol=1e-3)
    np.testing.assert_array_equal(*elements(valid))
    np.testing.assert_array_equal(*elements(data.tfdata[0]))


def test_every_epoch_draws_anew_and_a_seed_draws_the_same(data: DISCERNData) -> None:
    (first, _), (again, _) = data.batches(0.3), data.batches(0.3)
    epochs = [elements(first)[0].sum(axis=0) for _ in range(2)]
    assert not np.allclose(*epochs)
    np.testing.assert_array_equal(epochs, [elements(again)[0].sum(axis=0) for _ in range(2)])


def test_streamed_cells_are_thinned_too(data: DISCERNData, tmp_path: object) -> None:
    from discern.data.minibatches import Batches, stream

    folder = tmp_path / "TF_records"  # type: ignore[operator]
    write_records(data, folder, seed=0)
    files = sorted(folder.glob("training*"))
    maker = Batches(*data.scaling, 2, thin_counts=0.3)
    n_train = int((data.obs["split"] == "train").sum())
    inputs, targets = elements(stream(files, n_train, 6, maker, seed=0))
    assert (log_normalised(data, inputs) > 1e-4).sum() < 0.95 * (log_normalised(data, targets) > 1e-4).sum()


def test_training_takes_the_parameter(data: DISCERNData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    batches = DISCERNData.batches

    def batches_asked(self: DISCERNData, thin_counts: float, begun: int) -> object:
        asked.append(thin_counts)
        return batches(self, begun=begun)

    monkeypatch.setattr(DISCERNData, "batches", batches_asked)
    model = {"latent_dim": 2, "layers": [4], "norm_type": ["layernorm"]}
    for training in ({"thin_counts": 0.4}, {}):
        DISCERN.from_json({"model": model, "training": {"XLA": False, **training}}).training(data, max_steps=1)
    assert asked == [0.4, 1.0]
