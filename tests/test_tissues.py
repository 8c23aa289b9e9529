"""The figures of `benchmarks/tissues.py`, how it chooses a recipe, and what `benchmarks/stopping.py` makes of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DEFINITIONS = BENCHMARKS.parents[1] / "shared" / "quality" / "metrics.py"


def _benchmark(name):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tissues():
    return _benchmark("tissues")


@pytest.fixture
def cells():
    """Two batches with three types of 20 cells each and 60 genes; the source is shallow."""
    generator = np.random.default_rng(0)
    programme = generator.gamma(1, 4, (3, 60))
    types, batches = np.repeat([0, 1, 2] * 2, 20), np.repeat(["shallow", "deep"], 60)
    X = generator.poisson(programme[types] * np.where(batches == "shallow", 0.3, 1)[:, None])
    obs = pd.DataFrame({"batch": batches, "celltype": np.array(["a", "b", "c"])[types]}, index=map(str, range(120)))
    return ad.AnnData(sparse.csr_matrix(X, dtype=np.float32), obs=obs)


def test_figures_are_perfect_for_the_truth_and_worse_for_other_types(tissues, cells):
    pair = tissues.pair_of(cells, "shallow", "deep", seed=0)
    real = tissues.log_normalise(pair.truth.X)
    labels = pair.truth.obs["celltype"].to_numpy()
    assert tissues.of_own_type(real, labels, real, labels)[0].all()
    assert tissues.transfer(real, labels, real, labels) == 1
    assert tissues.clustering(real, labels) == 1
    wrong = np.roll(labels, 10)
    assert not tissues.of_own_type(real, wrong, real, labels)[0].any()
    assert tissues.transfer(real, wrong, real, labels) == 0
    assert tissues.clustering(real, np.arange(len(labels)) % 3) < 0.2


def test_half_of_the_reference_cells_of_each_type_is_kept_out(tissues, cells):
    pair = tissues.pair_of(cells, "shallow", "deep", seed=0)
    assert pair.truth.obs["celltype"].value_counts().to_dict() == {"a": 10, "b": 10, "c": 10}
    assert set(pair.truth.obs["batch"]) == {"deep"}
    assert not set(pair.truth.obs_names) & set(pair.cells.obs_names)
    assert pair.is_source.sum() == 60


def test_measured_cells_get_a_figure_for_everything_there_is_a_truth_for(tissues, cells):
    pair = tissues.pair_of(cells, "shallow", "deep", seed=0)
    measured = tissues.log_normalise(pair.cells.X)
    found = tissues.figures(pair, tissues.Estimate(measured[pair.is_source], measured, measured))
    assert {*tissues.EXPRESSION, *tissues.IDENTITY, "PC1", "PC2", "PC3", "spread"} <= set(found)
    assert found["PC1"] == pytest.approx(1)
    assert found["ari"] == found["ari_latent"]


def test_proteins_correlate_with_their_gene_and_isotypes_do_not(tissues):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(200, 2))
    antibodies = pd.DataFrame({"CD4": values[:, 0], "CD19": -values[:, 1], "IgG1": generator.normal(size=200)})
    antibodies[[name for name in tissues.PROTEINS if name not in antibodies]] = 0.0
    antibodies["IgG2a"] = 0.0
    found = tissues.against_proteins(values, pd.Index(["CD4", "CD19"]), antibodies)
    assert found["protein_rho"] == pytest.approx(0)  # 1 and -1
    assert found["isotype_rho"] < 0.15


def test_the_error_of_the_counts_themselves_is_none(tissues, cells):
    assert tissues.squared_error(tissues.log_normalise(cells.X), cells.X) == pytest.approx(0, abs=1e-9)
    assert tissues.squared_error(np.zeros(cells.shape), cells.X) > 1


def test_a_recipe_is_chosen_by_the_other_pairs_only(tissues):
    columns = [*tissues.EXPRESSION, *tissues.IDENTITY]
    rows = {
        (pair, method): [0.9 - (method == "lossy") * 0.1] * 4 + [identity] * 6
        for pair, values in {"p": (0.5, 0.6, 0.9), "q": (0.5, 0.6, 0.9), "r": (0.5, 0.1, 0.9)}.items()
        for method, identity in zip(("first", "better", "lossy"), values, strict=True)
    }
    means = pd.DataFrame(rows, index=columns).T.rename_axis(["pair", "method"])
    chosen = tissues.choose(means, ["first", "better", "lossy"])["choice"].to_dict()
    assert chosen == {"p": "first", "q": "first", "r": "better", "all": "first"}


def test_the_page_gets_its_tables_between_the_marks_and_keeps_the_rest(tissues, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmarks/tissues.py: begin -->\nold\n<!-- benchmarks/tissues.py: end -->\nafter\n")
    index = pd.MultiIndex.from_tuples([("p", "preset"), ("p", "measured")], names=["pair", "method"])
    means = pd.DataFrame({"mean_r": [0.9, 0.8], "protein_rho": [np.nan, 0.25], "seeds": [3, 1]}, index=index)
    tissues.write_docs(page, means)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| p | measured | 1 | .800 |\n|  | preset | 3 | .900 |" in text
    assert "| p | measured | 1 | .250 |\n\n" in text
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="expected the lines"):
        tissues.write_docs(page, means)
    assert page.read_text() == "no marks"


@pytest.mark.skipif(not DEFINITIONS.exists(), reason="the definitions that the figures are compared with are not here")
def test_figures_are_those_of_the_definitions(tissues, cells):
    specification = importlib.util.spec_from_file_location("metrics", DEFINITIONS)
    metrics = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(metrics)
    pair = tissues.pair_of(cells, "shallow", "deep", seed=3)
    deep = cells[(cells.obs["batch"] == "deep").to_numpy()]
    assert list(deep[metrics.held_out(deep.obs["celltype"].to_numpy(), 3)].obs_names) == list(pair.truth.obs_names)
    measured, real = tissues.log_normalise(pair.cells.X), tissues.log_normalise(pair.truth.X)
    np.testing.assert_allclose(real, metrics.log_normalise(pair.truth.X.toarray()), rtol=1e-6)
    source = pair.is_source
    all_labels, real_labels = (one.obs["celltype"].to_numpy(dtype=str) for one in (pair.cells, pair.truth))
    values, labels = measured[source], all_labels[source]
    found = tissues.figures(pair, tissues.Estimate(values, measured, measured))
    wanted = metrics.figures(values, labels, real, real_labels) | {
        "own_type": metrics.own_type(values, labels, real, real_labels),
        "transfer": metrics.transfer(values, labels, real, real_labels),
        "ari": metrics.clustering(values, labels),
        "ari_joint": metrics.joint_clustering(measured, all_labels),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_figure_that_orders_epochs_as_the_truth_does_chooses_the_best(tmp_path):
    stopping = _benchmark("stopping")
    for pair in ("one", "other"):
        for shift, recipe in enumerate(("preset", "dropout 0.3")):
            found = {
                epoch: {
                    "projection": -abs(epoch - 30.0) - shift,
                    "mixing": float(epoch - shift),
                    "both": float(epoch - shift),
                    "expression": 1 - abs(epoch - 30) / 100 - shift,
                    "identity": epoch / 100 + shift,
                }
                for epoch in stopping.EPOCHS
            }
            path = tmp_path / pair / f"{recipe}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"pair": pair, "recipe": recipe, "seed": 0, "figures": found}))
    rows = stopping.table(tmp_path)
    by_projection = rows["epochs: projection"]
    assert by_projection["trainings"] == 2
    assert by_projection["rank correlation, expression"] == 1
    assert by_projection["chosen by it, expression"] == pytest.approx(0.45)
    assert by_projection["chosen by it, identity"] == pytest.approx(-0.45)
    assert rows["epochs: mixing"]["rank correlation, identity"] == 1
    assert rows["recipes: projection"]["rank correlation, expression"] == 1
    assert rows["recipes: projection"]["rank correlation, identity"] == -1


def test_mixtures_have_all_lines_in_their_shares_and_a_truth_of_other_cells(tissues):
    pair = tissues.mixtures(seed=0)
    assert pair.cells.obs.groupby(["batch", "celltype"]).size().unstack().loc["celseq2"].eq(16).all()
    assert pair.is_source.sum() == 7 * 32
    assert pair.truth.n_obs == 7 * 16
    assert pair.cells.obs_names.is_unique
    assert pair.cells.n_vars == pair.truth.n_vars
    means = {name: np.log1p(pair.truth[pair.truth.obs["celltype"] == name].X.mean(axis=0)) for name in tissues.MIXTURES}
    far, near = (np.abs(means[name] - means["one"]).mean() for name in ("two", "most of one"))
    assert near < far
    again = tissues.mixtures(seed=0)
    assert (again.cells.X != pair.cells.X).nnz == 0
