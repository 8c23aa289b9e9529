"""Genes of which counts say little weigh little in the reconstruction loss, if the parameters ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np
import pytest

from discern import DISCERN, DISCERNData
from discern.metrics.trust import gene_reliability
from discern.networks.losses import WeightedGenes

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SIDE = {"layers": [8], "norm_type": ["conditionallayernorm"], "regularization": 0.0}


@pytest.fixture(scope="module")
def cells(golden: Path) -> DISCERNData:
    return DISCERNData.from_folder(golden / "experiment", batch_size=32)


def model_of(least: float | None = 0.02, **changed: object) -> DISCERN:
    optimizer = {"algorithm": "keras.optimizers.Adam", "learning_rate": 0.01}
    sides = {"encoder": SIDE, "decoder": SIDE}
    return DISCERN(latent_dim=4, **sides, optimizer=optimizer, seed=0, weighting_noisy_genes=least, **changed)


def weights_of(model: DISCERN) -> npt.NDArray[np.float32]:
    loss = model.wae_model.loss["decoder_counts"]
    assert isinstance(loss, WeightedGenes)
    return loss.weights


def test_weights_are_the_reliability_of_genes_and_a_little_for_all(cells: DISCERNData) -> None:
    model = model_of(0.5)
    model.training(cells, max_steps=1)
    rows = np.flatnonzero(cells.obs["split"] == "train")
    wanted = 0.5 + gene_reliability(cells.X, rows, cells.obs["batch"].cat.codes.to_numpy(np.intp))
    np.testing.assert_allclose(weights_of(model), wanted / wanted.mean(), rtol=1e-5)
    assert weights_of(model).mean() == pytest.approx(1)
    assert np.ptp(weights_of(model)) > 0.5


def test_the_loss_is_the_weighted_one(cells: DISCERNData) -> None:
    plain, weighted = model_of(None), model_of()
    for model in (plain, weighted):
        model.prepare(cells)
    assert not isinstance(plain.wae_model.loss["decoder_counts"], WeightedGenes)
    inputs, (expression, _) = next(iter(cells.tfdata[0]))
    difference = expression - plain.wae_model(inputs)["decoder_counts"]
    for model, weights in ((plain, 1.0), (weighted, weights_of(weighted))):
        found = model.wae_model.evaluate(inputs, (expression, expression), return_dict=True, verbose=0)
        assert found["decoder_counts_loss"] == pytest.approx(float(np.mean(weights * difference**2) / 2), rel=1e-3)


def test_genes_weigh_what_they_did_when_training_goes_on(cells: DISCERNData, tmp_path: Path) -> None:
    one, other = model_of(), model_of()
    one.training(cells, savepath=tmp_path, max_steps=1)
    other.restore_model(tmp_path)
    other.training(cells, max_steps=2)
    np.testing.assert_array_equal(weights_of(one), weights_of(other))


def test_optimiser_and_scale_of_the_caller_stay(cells: DISCERNData, tmp_path: Path) -> None:
    model_of().training(cells, savepath=tmp_path, max_steps=1)
    model = model_of()
    model.restore_model(tmp_path)
    mine = keras.optimizers.SGD(1e-6)
    model.compile(mine, scale=7.0)
    model.training(cells, max_steps=2)
    assert model.wae_model.optimizer is mine
    logs = model.wae_model.evaluate(cells.tfdata[1], return_dict=True, verbose=0)
    parts = {"decoder_counts": 7, "decoder_dropouts": model.weighting_decoder_dropout, "mmdpp": model.wae_lambda}
    total = sum(weight * logs[f"{name}_loss"] for name, weight in parts.items())
    assert logs["loss"] == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(
    "changed", [{"xla": True}, {"precision": "mixed_bfloat16"}, {"distribute": "mirrored"}], ids=str
)
def test_however_it_is_trained(cells: DISCERNData, changed: dict[str, object]) -> None:
    model = model_of(**changed)
    losses = model.training(cells, max_steps=2)
    assert np.ptp(weights_of(model)) > 0.5
    assert losses.history["decoder_counts_loss"][1] < losses.history["decoder_counts_loss"][0]


def test_a_million_cells_are_not_looked_through(cells: DISCERNData, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def count(X: object, rows: npt.NDArray[np.intp], batches: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        looked.extend(np.bincount(batches[rows]))
        return np.ones(cells.n_vars, np.float32)

    monkeypatch.setattr("discern.model.building.gene_reliability", count)
    monkeypatch.setattr("discern.model.building._MOST_CELLS", 40)
    monkeypatch.setattr("discern.model.building._FEWEST_CELLS", 10)
    model_of().prepare(cells)
    assert len(looked) == len(cells.obs["batch"].cat.categories)
    assert max(looked) == max(10, 40 // len(looked))
