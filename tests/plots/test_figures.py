from __future__ import annotations

import warnings

import anndata as ad
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from discern.plots import figures

PNG = b"\x89PNG"
ODD = ["$\\frac$", "_hidden", "<b>"]


@pytest.fixture
def obs():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"batch": pd.Categorical(rng.choice(ODD, 60)), "type/of cell": pd.Categorical(["x"] * 60)})


def test_umap_keeps_clusters_apart_and_is_reproducible():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(30, 5)), rng.normal(size=(30, 5)) + 50])
    coordinates = figures.umap_coordinates(values)

    assert coordinates.shape == (60, 2)
    np.testing.assert_array_equal(coordinates, figures.umap_coordinates(values))
    distances = np.linalg.norm(coordinates[:, np.newaxis] - coordinates, axis=2) + 1e9 * np.eye(60)
    assert (distances.argmin(1) // 30 == np.arange(60) // 30).mean() > 0.95


def test_umap_of_few_cells_is_a_line():
    np.testing.assert_array_equal(figures.umap_coordinates(np.ones((3, 4))), [[0, 0], [1, 0], [2, 0]])


def test_one_picture_for_each_categorical_column_even_with_odd_names(obs, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "umap_coordinates", lambda values: values[:, :2])
    cells = ad.AnnData(
        obs=obs.set_index(obs.index.astype(str)), obsm={"latent $_$": np.random.default_rng(0).random((60, 3))}
    )
    written = figures.draw_umaps(cells, tmp_path, "epoch_0001")

    assert [path.name for path in written] == ["epoch_0001_batch.png", "epoch_0001_type_of_cell.png"]
    assert all(path.read_bytes().startswith(PNG) for path in written)


def test_columns_that_group_the_cells_alike_are_drawn_once(obs, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "umap_coordinates", lambda values: values[:, :2])
    obs["dataset"] = obs["batch"].cat.rename_categories(["x", "y", "z"])
    obs["split"] = pd.Categorical(["train"] * 60)
    cells = ad.AnnData(obs=obs.set_index(obs.index.astype(str)), obsm={"latent": np.zeros((60, 3))})

    written = figures.draw_umaps(cells, tmp_path, "epoch_0001")

    assert [path.name for path in written] == ["epoch_0001_batch.png", "epoch_0001_type_of_cell.png"]


def test_a_category_has_its_colour_in_the_picture(tmp_path):
    place = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    path = tmp_path / "cells.png"
    path.write_bytes(figures.cells_png(place, pd.Series(["a", "b", None])))
    picture = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)

    shades = figures.palette(["a", "b"])
    seen = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(picture.reshape(-1, 3), axis=0)}
    assert set(shades.values()) <= seen


def test_no_colour_stands_for_values_of_two_columns_and_the_legend_counts_the_cells(obs):
    figure = Figure()
    places = {"before": np.zeros((60, 2)), "after": np.ones((60, 2))}
    axes = figures.fill_umaps(figure, places, obs, ["batch", "type/of cell"])

    legends = [row[-1].get_legend() for row in axes]
    colours = [{handle.get_color() for handle in legend.legend_handles} for legend in legends]
    assert axes.shape == (2, 2)
    assert len(colours[0]) == 3
    assert colours[0].isdisjoint(colours[1])
    counts = obs["batch"].value_counts(sort=False)
    assert [text.get_text() for text in legends[0].get_texts()] == [f"{name} ({n})" for name, n in counts.items()]
    assert "its own embedding" in figure.get_supxlabel()


def test_many_categories_have_colours_and_markers_of_their_own():
    names = pd.DataFrame({"type": pd.Categorical([f"type {number:02}" for number in range(45)] * 2)})
    figure = Figure()
    ((axis,),) = figures.fill_umaps(figure, {"all": np.random.default_rng(0).random((90, 2))}, names, ["type"])

    handles = axis.get_legend().legend_handles
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 45
    assert len(axis.collections) == 3


def test_no_picture_fails_on_little_or_odd_data():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = [
            figures.cells_png(np.zeros((0, 2)), pd.Series([], dtype=object)),
            figures.cells_png(np.zeros((2, 2)), pd.Series([None, None])),
            figures.means_png(np.zeros(3), np.zeros(3), ("$a", "$\\frac$")),
            figures.reliability_png(np.array([0.1, np.nan]), np.array([np.nan, 1.0]), ("$x$", "y")),
            figures.reliability_png(np.linspace(0, 1, 50), np.linspace(-1, 1, 50), ("$x$", "y")),
            figures.histogram_png({"a": np.ones(3), "b": np.zeros(2)}, {"a": "#000000", "b": "#ffffff"}, "$"),
            figures.histogram_png({"a": np.zeros(2)}, {"a": "#000000"}, "x"),
        ]

    assert all(picture.startswith(PNG) for picture in pictures)


def test_means_are_drawn_side_by_side(tmp_path):
    path = tmp_path / "means.png"
    figures.plot_means(
        {"$1": (np.arange(4.0), np.arange(4.0)), "b": (np.arange(4.0), np.arange(4.0))}, path, ("x", "y")
    )

    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 1.5 * height
