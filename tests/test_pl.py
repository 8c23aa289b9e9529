"""Pictures of a result: what they show, what they are not fooled by, and what they say to mistakes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import anndata as ad
import google_crc32c
import keras
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import discern
from discern import pl
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.experiment.training_logs import read_history
from discern.model.callbacks import TensorBoard
from discern.plots.colours import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GENES = ["ENSG1", "ENSG2", "ENSG3"]
SYMBOLS = ["CD3E", "$\\frac$", "LYZ"]
TYPES = ["T cell", "B cell", "$x_1$"]


@pytest.fixture
def result() -> ad.AnnData:
    """Twenty cells of each of three types in each of two batches; gene 1 marks the first type, by a known amount."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.repeat(["good", "poor"], 60)),
            "cell_type": pd.Categorical(np.tile(np.repeat(TYPES, 20), 2)),
            "split": np.tile(["train", "train", "train", "test"], 30),
            "discern_distance": np.linspace(0.5, 2.5, 120),
        },
        index=[f"cell{number}" for number in range(120)],
    )
    true = np.full((120, 3), 0.5)
    true[(obs["cell_type"] == "T cell").to_numpy(), 0] = 2
    poor = (obs["batch"] == "poor").to_numpy()
    measured = true + rng.normal(0, 0.01, true.shape)
    measured[poor] *= rng.random((60, 3)) < 0.5
    detected = np.full((120, 3), 0.75)
    cells = ad.AnnData(true * (rng.random(true.shape) < detected), obs=obs, var=pd.DataFrame(index=GENES))
    cells.var["gene_symbols"] = SYMBOLS
    layers = {"measured": sparse.csr_matrix(measured), "estimated_counts": true, "estimated_dropouts": detected}
    cells.layers.update(layers)
    cells.uns["DISCERN"] = {"projected_to": {"column": "batch", "value": "good"}}
    return cells


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    before = mpl.rcParams.copy()
    yield
    assert mpl.rcParams == before
    plt.close("all")


def test_umap_has_a_row_for_batch_and_type_and_a_column_for_before_and_after(result: ad.AnnData) -> None:
    axes = pl.umap(result, show=False)

    assert [[axis.get_title() for axis in row] for row in axes] == [["as measured", "reconstructed as good"]] * 2
    legends = [row[-1].get_legend() for row in axes]
    assert [text.get_text() for text in legends[0].get_texts()] == ["good (60)", "poor (60)"]
    assert [text.get_text() for text in legends[1].get_texts()] == [f"{name} (40)" for name in sorted(TYPES)]
    shades = [{handle.get_color() for handle in legend.legend_handles} for legend in legends]
    assert shades[0].isdisjoint(shades[1])
    assert axes[0, 0].get_xlabel() == "UMAP 1"
    assert axes[0, 0].figure.get_supxlabel().startswith("Each panel is its own embedding")


def test_umap_says_that_not_all_cells_are_drawn(result: ad.AnnData) -> None:
    axes = pl.umap(result, most_cells=50, show=False)

    assert "50 of 120 cells" in axes[0, 0].figure.get_supxlabel()
    assert len(axes[0, 0].collections[0].get_offsets()) == 50


def _texts(axis: plt.Axes) -> list[str]:
    return [text.get_text() for text in axis.figure.legends[0].get_texts()]


def test_a_gene_is_found_by_its_symbol_and_drawn_in_three_stages(result: ad.AnnData) -> None:
    axis = pl.gene(result, "cd3e", show=False)

    assert axis.get_title() == "CD3E"
    assert [label.get_text() for label in axis.get_xticklabels()] == sorted(TYPES)
    assert _texts(axis) == [
        "poor, as measured (60 cells)",
        "poor, reconstructed as good (60 cells)",
        "good, real, held out (15 cells)",
    ]
    t_cell = sorted(TYPES).index("T cell")
    dots = {line.get_markeredgecolor(): line.get_ydata()[0] for line in axis.lines if abs(_x(line) - t_cell) < 0.4
            and line.get_marker() == "o"}  # fmt: skip
    assert dots[STAGES["reconstructed"]] == pytest.approx(2)
    assert dots[STAGES["real"]] == pytest.approx(2, abs=0.02)
    assert 0.4 < dots[STAGES["measured"]] < 1.6
    assert "75%" in [text.get_text() for text in axis.texts]  # estimated_dropouts, not the share of estimates above 0


def _x(line: plt.Line2D) -> float:
    return float(line.get_xdata()[0])


def test_means_print_the_correlation_with_held_out_cells(result: ad.AnnData) -> None:
    axes = pl.means(result, show=False)

    assert axes.shape == (2, 3)
    real = result[(result.obs["batch"] == "good") & (result.obs["split"] == "test")]
    poor = result[result.obs["batch"] == "poor"]
    for stage, row, values in (
        ("measured", axes[0], poor.layers["measured"].toarray()),
        ("reconstructed", axes[1], poor.layers["estimated_counts"]),
    ):
        for axis, name in zip(row, sorted(TYPES), strict=True):
            mean = values[(poor.obs["cell_type"] == name).to_numpy()].mean(0)
            truth = real.layers["measured"][(real.obs["cell_type"] == name).to_numpy()].toarray().mean(0)
            equal = stage == "reconstructed" and name != "T cell"  # then all genes have one estimate
            r = "not defined" if equal else f"{np.corrcoef(mean, truth)[0, 1]:.3f}"
            title = f"{name}\n{stage}, 20 cells, 5 real\nr = {r}"
            assert axis.get_title() == title
            points = axis.collections[0].get_offsets()
            np.testing.assert_allclose(points, np.column_stack([mean, truth]), atol=1e-6)
    assert axes[0, 0].get_ylabel() == "good, real, held out (15 cells)"


def test_without_held_out_cells_the_picture_says_that_training_saw_them(result: ad.AnnData) -> None:
    result.obs["split"] = "train"

    axes = pl.means(result, show=False)

    assert axes[0, 0].get_ylabel() == "good, real, seen in training (60 cells)"


def test_of_many_types_those_with_most_cells_are_drawn(result: ad.AnnData) -> None:
    result.obs["fine"] = pd.Categorical([f"type {min(number % 20, 7)}" for number in range(120)])
    del result.obs["split"]

    axes = pl.means(result, label="fine", show=False)

    assert axes.shape == (2, 6)
    assert axes[0, -1].get_title().startswith("type 7")
    assert "6 of 8 types" in axes[0, 0].figure.get_supxlabel()


def test_dots_are_as_large_as_the_gene_is_frequent_and_as_dark_as_it_is_high(result: ad.AnnData) -> None:
    axes = pl.dotplot(result, ["CD3E", "ENSG3"], show=False)

    measured, reconstructed, real = (axis.collections[0] for axis in axes)
    assert axes[0].get_title() == "poor\nas measured (60 cells)"
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["CD3E", "LYZ"]
    first = 2 * sorted(TYPES).index("T cell")
    assert reconstructed.get_array()[first] == pytest.approx(2)
    assert real.get_array()[first] == pytest.approx(2, abs=0.02)
    np.testing.assert_allclose(reconstructed.get_sizes(), pl._dot_size(0.75))
    np.testing.assert_allclose(real.get_sizes(), pl._dot_size(1.0))
    assert measured.get_sizes().max() < pl._dot_size(0.8)
    assert measured.get_clim() == reconstructed.get_clim() == real.get_clim()


def test_a_type_that_real_cells_lack_is_marked_not_drawn_as_zero(result: ad.AnnData) -> None:
    lacking = result[~((result.obs["batch"] == "good") & (result.obs["cell_type"] == "B cell"))].copy()

    axes = pl.dotplot(lacking, GENES, show=False)

    assert len(axes[2].collections[0].get_offsets()) == 6
    assert axes[2].lines[0].get_marker() == "x"
    assert len(axes[2].lines[0].get_xdata()) == 3
    assert "no such cells" in _texts(axes[2])


def test_the_line_of_distances_is_the_95th_percentile_of_held_out_cells(result: ad.AnnData) -> None:
    axis = pl.distance(result, show=False)

    held_out = (result.obs["batch"] == "good") & (result.obs["split"] == "test")
    limit = np.percentile(result.obs.loc[held_out, "discern_distance"], 95)
    (line,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert line.get_xdata()[0] == pytest.approx(limit)
    below = (result.obs.loc[result.obs["batch"] == "poor", "discern_distance"] <= limit).mean()
    assert _texts(axis)[-1] == f"95% of the real cells are below {limit:.2f}, and {below:.0%} of poor"


def test_pictures_of_the_real_thing(make_raw_cells, tmp_path: Path) -> None:
    cells = make_raw_cells({"good": 60, "poor": 60}, n_genes=60)
    small = {"layers": [8], "latent_dim": 4, "batch_size": 8, "max_steps": 2, "min_genes": 5, "min_cells": 3}
    model = discern.Reconstructor(**small, valid_cells=0.2)
    cells = model.fit(cells).project("good")

    assert cells.uns["DISCERN"]["projected_to"] == {"column": "batch", "value": "good"}
    assert pl.means(cells, show=False)[0, 0].get_ylabel().startswith("good, real, held out")
    assert pl.learning_curves(model, show=False)[0].get_title() == "loss"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert pl.gene(again, "gene3", show=False).get_title() == "gene3"
    assert pl.dotplot(again, ["gene3"], show=False)[1].get_title().startswith("poor\nreconstructed as good")
    again.file.close()


# --- learning curves -------------------------------------------------------------------------------------------------


def _train(folder: Path, first: int, last: int, validation: bool = True) -> dict[str, list[float]]:
    """Log epochs as `discern train` does."""
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    x, y = np.ones((8, 2)), np.ones((8, 1))
    log = TensorBoard(log_dir=str(folder / "job"), write_graph=False, profile_batch=0)
    data = (x, y) if validation else None
    fitted = model.fit(x, y, epochs=last, initial_epoch=first, verbose=0, callbacks=[log], validation_data=data)
    return fitted.history


def test_the_curves_of_an_experiment_are_those_of_its_training(tmp_path: Path) -> None:
    history = _train(tmp_path, 0, 3)

    read = read_history(tmp_path)
    assert read["loss"][0] == [1, 2, 3]
    np.testing.assert_allclose(read["loss"][1], history["loss"], rtol=1e-6)
    np.testing.assert_allclose(read["val_loss"][1], history["val_loss"], rtol=1e-6)
    (axis,) = pl.learning_curves(tmp_path, show=False)
    assert [line.get_label() for line in axis.lines] == ["training", "validation"]
    np.testing.assert_allclose(axis.lines[0].get_ydata(), history["loss"], rtol=1e-6)


def test_a_training_that_went_on_is_one_curve(tmp_path: Path) -> None:
    _train(tmp_path, 0, 3, validation=False)
    later = _train(tmp_path, 2, 5, validation=False)

    epochs, values = read_history(tmp_path)["loss"]
    assert epochs == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(values[2:], later["loss"], rtol=1e-6)
    (axis,) = pl.learning_curves(tmp_path, show=False)
    assert _texts(axis) == ["training (no cells were set aside for validation)"]


def test_the_end_of_a_killed_training_is_left_out_and_damage_is_told(tmp_path: Path) -> None:
    _train(tmp_path, 0, 3, validation=False)
    (path,) = (tmp_path / "job" / "train").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert read_history(tmp_path)["loss"][0] in ([1, 2], [1, 2, 3])

    path.write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    with pytest.raises(InvalidInputError, match=rf"{path.name}: a record is damaged"):
        read_history(tmp_path)
    path.write_bytes(struct.pack("<Q", 2**60) + b"\0" * 20)
    with pytest.raises(InvalidInputError, match="claims to have"):
        read_history(tmp_path)
    record = b"\xff\xff\xff\xff"
    crc = google_crc32c.value(record)
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    path.write_bytes(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", masked))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_history(tmp_path)


def test_no_logs(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="run `discern train` first"):
        pl.learning_curves(tmp_path)


# --- show, save and mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_saved_picture_is_not_shown(result: ad.AnnData, suffix: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    path = tmp_path / f"gene{suffix}"

    assert pl.gene(result, "LYZ", save=path) is not None
    assert path.stat().st_size > 1000
    assert not plt.get_fignums()


def test_by_default_a_picture_is_shown_and_nothing_returned(result: ad.AnnData, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))

    assert pl.gene(result, "LYZ") is None
    assert shown == [True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cells: pl.gene(cells, "LYX"), r"no gene 'LYX'.*did you mean 'LYZ'"),
        (lambda cells: pl.dotplot(cells, []), "at least one gene"),
        (lambda cells: pl.gene(cells, "LYZ", layer="estimated"), r"no layer 'estimated' \(did you mean"),
        (lambda cells: pl.gene(cells, "LYZ", reference="god"), r"no value 'god' \(did you mean 'good'\?\)"),
        (lambda cells: pl.umap(cells, label="cell_typ"), r"no obs column 'cell_typ' \(did you mean 'cell_type'\?\)"),
        (lambda cells: pl.umap(cells, save="umap"), "expected a name that ends in .png"),
        (lambda cells: pl.learning_curves({"acc": [1.0]}), "expected the losses of a training"),
        (lambda cells: pl.learning_curves(3), "got int"),
    ],
)
def test_mistakes_are_told_in_one_line(result: ad.AnnData, call, message: str) -> None:
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        call(result)


def test_cells_that_lack_something_are_told_how_to_get_it(result: ad.AnnData) -> None:
    del result.layers["measured"], result.obs["discern_distance"], result.uns["DISCERN"]["projected_to"]

    with pytest.raises(UnknownNameError, match="add `measured` to --layers of `discern project`"):
        pl.umap(result)
    with pytest.raises(UnknownNameError, match="project them to a batch"):
        pl.distance(result)
    with pytest.raises(InvalidInputError, match="give reference=, one of good, poor"):
        pl.means(result)


def test_a_result_of_the_reference_alone_is_refused(result: ad.AnnData) -> None:
    with pytest.raises(InvalidInputError, match="all cells are of 'good'"):
        pl.means(result[result.obs["batch"] == "good"].copy())
