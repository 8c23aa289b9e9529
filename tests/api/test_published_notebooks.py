"""The calls of the two published notebooks, in their order, on small cells: in memory, without files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from discern import DISCERN, DISCERNData, WAERecipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata as ad

    Make = Callable[..., ad.AnnData]


@pytest.fixture
def parameters() -> dict[str, Any]:
    side = {"norm_type": ["conditionallayernorm"]}
    return {
        "input_ds": {
            "filtering": {"min_genes": 5, "min_cells": 3},
            "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
            "split": {"split_seed": 0, "valid_cells": 0.2, "mmd_cells": 1.0},
        },
        "model": {
            "latent_dim": 4,
            "activation_fn": "tensorflow_addons.activations.mish",
            "encoder": {"layers": [16], "regularization": 0.4, **side},
            "decoder": {"layers": [16], "regularization": 0.0, **side},
            "reconstruction_loss": {"name": "HuberLoss", "delta": 9.0},
            "crossentropy": {"label_smoothing": 0, "lower_label_smoothing": 0.1},
            "wae_lambda": 1500,
            "weighting_decoder_dropout": 10000,
            "weighting_random_encoder": 1e-8,
        },
        "training": {
            "GPU": [0],
            "XLA": False,
            "batch_size": 8,
            "max_steps": 2,
            "parallel_pc": 1,
            "optimizer": {"algorithm": "tensorflow.keras.optimizers.Adam", "learning_rate": 1e-3},
        },
    }


@pytest.mark.parametrize("batches", [{"low": 60, "high": 60}, {"one": 40, "two": 40, "three": 40, "four": 40}])
def test_cells_in_memory_from_recipe_to_reconstruction(
    batches: dict[str, int], parameters: dict[str, Any], make_raw_cells: Make, tmp_path: Path
) -> None:
    raw = make_raw_cells(batches, n_genes=60)
    inputs = {name: raw[raw.obs["batch"] == name].copy() for name in batches}

    recipe = WAERecipe(params=parameters, inputs=inputs)
    recipe.filtering(**parameters["input_ds"]["filtering"])
    recipe = WAERecipe(params=parameters, inputs=inputs)()
    cells = recipe.sc_raw
    assert isinstance(cells, DISCERNData)
    assert cells.config["total_count"] == cells.n_obs
    cells.batch_size = parameters["training"]["batch_size"]

    model = DISCERN.from_json(parameters)
    model.build_model(cells.n_vars, len(batches), cells.config["total_train_count"])
    metrics = model.training(cells, max_steps=2, savepath=tmp_path / "job")
    assert np.isfinite(metrics["loss"])

    target = list(batches)[-1]
    reconstructed = model.reconstruct(cells, column="batch", column_value=target)
    assert reconstructed.shape == cells.shape
    assert (reconstructed.layers["estimated_counts"] >= 0).all()
    assert reconstructed.obsm["X_DISCERN"].shape == (cells.n_obs, 4)

    some = cells[cells.obs["batch"] == next(iter(batches))].copy()
    assert isinstance(some, DISCERNData)
    of_some = model.reconstruct(some, "batch", target)
    rows = cells.obs_names.get_indexer(some.obs_names)
    np.testing.assert_allclose(
        of_some.layers["estimated_counts"], reconstructed.layers["estimated_counts"][rows], atol=1e-5
    )

    onehot = np.eye(len(batches), dtype=np.float32)[cells.obs["batch"].cat.codes]
    latent, sigma = model.generate_latent_codes(cells.X.toarray(), onehot, batch_size=8)
    counts, detection = model.generate_cells_from_latent(latent, onehot, batch_size=8)
    assert latent.shape == sigma.shape == (cells.n_obs, 4)
    assert counts.shape == detection.shape == cells.shape

    model.project_to_metadata(cells, [("batch", target)], tmp_path / "projected")
    assert [path.name for path in (tmp_path / "projected").iterdir()] == [f"projected_to_average_batch_{target}.h5ad"]

    again = DISCERN.from_json(parameters)
    again.restore_model(tmp_path / "job")
    assert again.start_step == 2


def test_the_same_with_files(parameters: dict[str, Any], make_raw_cells: Make, tmp_path: Path) -> None:
    from discern.experiment.folder import setup_exp
    from discern.experiment.online import online_training
    from discern.experiment.project import run_projection
    from discern.experiment.train import run_train
    from discern.preprocessing.recipe import read_process_serialize

    raw = make_raw_cells({"low": 60, "high": 60, "later": 60}, n_genes=60)
    for name in ("low", "high", "later"):
        raw[raw.obs["batch"] == name].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    parameters["input_ds"]["raw_input"] = [str(tmp_path / "low.h5ad"), str(tmp_path / "high.h5ad")]
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    (folder / "parameters.json").write_text(json.dumps(parameters))

    read_process_serialize(folder, with_tfrecords=True)
    run_train(folder)
    run_projection(folder, ["batch:high"], None, False, False)
    assert (folder / "projected" / "projected_to_average_batch_high.h5ad").is_file()
    online_training(folder, tmp_path / "later.h5ad", freeze=True)
    model, _ = setup_exp(folder)
    model.restore_model(folder / "job")
    assert model.batches == ["high", "low", "later"]
