from __future__ import annotations

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from discern.data.chunks import iter_blocks
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.evaluation import measurement, report
from discern.evaluation.measurement import measure
from discern.evaluation.results import METHODS, EvaluationResult, add_evaluation, summary
from discern.evaluation.selection import Comparison
from discern.experiment.evaluate import evaluate
from discern.metrics.alignment import find_alignment, lacking
from discern.metrics.latent_space import add_distance, reference_distance
from discern.metrics.two_sample import mmd_loss
from discern.model.trained import EncodedChunk
from tests.metrics.test_gene_agreement import plain_figures

FIGURES = ("mean_r", "mean_rmse", "detection_r", "difference_r", "t_rho", "top200")
ODD = ["<script>alert(1)</script>", 'drop "seq" & $x', "${title} $\\frac$"]


class LinearModel:
    """Stands in for DISCERN: encodes by a projection, decodes by its transpose and a shift for each batch."""

    def __init__(self, n_genes, batches, latent_dim=6):
        rng = np.random.default_rng(0)
        self.batches, self.epoch, self.align_batches = tuple(batches), 7, False
        self.matrix = np.linalg.qr(rng.normal(size=(n_genes, latent_dim)))[0].astype(np.float32)
        self.shift = rng.uniform(0, 0.5, (len(batches), n_genes)).astype(np.float32)

    def check(self, genes, batches):
        assert len(genes) == len(self.matrix)
        assert set(batches) <= set(self.batches)

    def encoded_chunks(self, counts, batch_onehot):
        assert batch_onehot.shape == (counts.shape[0], len(self.batches))
        for rows, block in iter_blocks(counts):
            latent = block @ self.matrix
            yield EncodedChunk(rows, block, latent, np.zeros_like(latent))

    def encode(self, counts, batch_onehot):
        chunks = list(self.encoded_chunks(counts, batch_onehot))
        return np.concatenate([chunk.latent for chunk in chunks]), np.concatenate([chunk.sigma for chunk in chunks])

    def decode(self, latent, batch_onehot, chunk_size):
        for begin in range(0, len(latent), chunk_size):
            rows = slice(begin, begin + chunk_size)
            counts = np.maximum(latent[rows] @ self.matrix.T + batch_onehot[rows] @ self.shift, 0)
            yield counts, np.clip(counts / 3, 0.1, 0.95)


def made_up(batches, types, n_genes=300, cells=60, splits=("train", "train", "valid")):
    """Processed cells: `cells` of each batch, with cell types and a batch effect."""
    from discern.data.processed import DISCERNData

    rng = np.random.default_rng(1)
    n_cells = cells * len(batches)
    celltype, batch = rng.integers(len(types), size=n_cells), np.repeat(np.arange(len(batches)), cells)
    profiles = rng.gamma(0.5, 1.5, (len(types), n_genes)) + 0.1
    counts = rng.poisson(profiles[celltype] * np.linspace(1, 3, len(batches))[batch, np.newaxis])
    X = np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 2000)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.array(batches)[batch]),
            "celltype": pd.Categorical(np.array(types)[celltype]),
            "split": np.array(splits)[np.arange(n_cells) % len(splits)],
            "n_genes": (counts > 0).sum(1),
        },
        index=[f"cell{number}" for number in range(n_cells)],
    )
    var = pd.DataFrame(
        {"mean_scaling": X.mean(0), "var_scaling": np.maximum(X.std(0), 1e-8)}, index=map(str, range(n_genes))
    )
    components = np.linalg.svd((X - X.mean(0)) / var["var_scaling"].to_numpy(), full_matrices=False)[2][:8].T
    uns = {"DISCERN": {"batch_key": dict(zip("0123", sorted(batches), strict=False)), "mmd_kernel": {"all": 20.0}}}
    adata = ad.AnnData(sparse.csr_matrix(X.astype(np.float32)), obs, var, uns, varm={"PCs": components})
    return DISCERNData(adata, batch_size=4)


@pytest.fixture(autouse=True)
def without_slow_parts(monkeypatch):
    monkeypatch.setattr(report, "umap_coordinates", lambda values: np.asarray(values)[:, :2])
    monkeypatch.setattr(measurement, "auc", lambda ours, real: 0.5 + 0.5 * (ours.mean() > real.mean()))


@pytest.fixture(scope="module")
def experiment(golden, tmp_path_factory):
    """An experiment that the original trained, evaluated."""
    folder = shutil.copytree(golden / "experiment", tmp_path_factory.mktemp("experiments") / "original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "umap_coordinates", lambda values: np.asarray(values)[:, :2])
        written = evaluate(folder)
    assert [path.relative_to(folder).as_posix() for path in written] == [
        f"evaluation/{name}" for name in ("report.html", "evaluation.json", "cells.csv", "genes.csv")
    ]
    return folder


@pytest.fixture
def figures(experiment):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads((experiment / "evaluation" / "evaluation.json").read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def reconstructed(experiment):
    """The Drop-seq cells of the experiment as CEL-seq2, dense, by `DISCERN.reconstruct`."""
    from discern.data.processed import DISCERNData
    from discern.experiment.folder import setup_exp

    model, _ = setup_exp(experiment)
    data = DISCERNData.from_folder(experiment, 32)
    model.restore_model(experiment / "job")
    return data, model.reconstruct(data, "batch", "celseq2")


def test_figures_are_the_plain_ones_on_cells_of_a_real_model(figures, reconstructed):
    data, result = reconstructed
    batch, split, types = (data.obs[name].astype(str).to_numpy() for name in ("batch", "split", "celltype"))
    source, held_out = batch == "dropseq", (batch == "celseq2") & (split == "valid")
    measured = data.X.toarray().astype(float)
    rest = (batch == "celseq2") & ~held_out
    counts = result.layers["estimated_counts"].astype(float)
    found = figures["sources"]["dropseq"]["methods"]

    assert list(found) == list(METHODS)
    for method, values, mask in (
        ("measured", measured, source),
        ("estimated_counts", counts, source),
        ("real", measured, rest),
    ):
        with np.errstate(invalid="ignore"):
            expected = plain_figures(values[mask], types[mask], measured[held_out], types[held_out])
        for name in FIGURES:
            if np.isnan(expected[name]):
                assert found[method][name] is None
            else:
                assert found[method][name] == pytest.approx(expected[name], abs=1e-5), (method, name)


def test_what_was_compared_is_said(figures):
    assert figures["experiment"] == "original"
    assert figures["reference"] == {"batch": "celseq2", "split": "valid", "held_out_cells": 22, "other_cells": 88}
    assert figures["label"] == "celltype"
    assert (figures["n_cells"], figures["n_genes"], figures["epoch"]) == (220, 1500, 8)
    assert figures["sources"]["dropseq"]["cells"] == 110
    assert figures["latent"]["expected"] == pytest.approx(110 / 219)


def test_mmd_and_auc_are_in_the_space_of_the_components(figures, reconstructed):
    data, result = reconstructed
    batch, split = (data.obs[name].astype(str).to_numpy() for name in ("batch", "split"))
    mean, std = data.var["mean_scaling"].to_numpy(), data.var["var_scaling"].to_numpy()
    real = (data.X[(batch == "celseq2") & (split == "valid")].toarray() - mean) / std @ data.varm["PCs"]
    ours = (result.layers["estimated_counts"][batch == "dropseq"] - mean) / std @ data.varm["PCs"]
    found = figures["sources"]["dropseq"]["methods"]

    expected = mmd_loss(ours, real, data.config["mmd_kernel"]["all"])
    assert found["estimated_counts"]["mmd"] == pytest.approx(expected, abs=1e-4)
    assert found["real"]["mmd"] < 0.1 < found["measured"]["mmd"]
    assert found["real"]["auc"] < 0.8 < found["measured"]["auc"]


def test_columns_of_genes_and_cells(experiment, reconstructed):
    data, result = reconstructed
    own = result.copy()
    del own.obs["discern_distance"]
    add_evaluation(own, experiment)
    batch, split = (data.obs[name].astype(str).to_numpy() for name in ("batch", "split"))
    rows = [np.flatnonzero((batch == name) & (split == "train")) for name in ("dropseq", "celseq2")]
    training = (batch == "celseq2") & (split == "train")
    latent = result.obsm["X_DISCERN"]
    alignment = find_alignment(data.X, latent, *rows)
    distance = reference_distance(latent, batch, training) * lacking(latent, batch, {"dropseq": alignment})

    np.testing.assert_allclose(own.obs["discern_distance"], distance, rtol=1e-3)
    detected = data.X[batch == "dropseq"].toarray() > 0
    np.testing.assert_allclose(own.var["detection_dropseq"], detected.mean(0))
    assert own.var["discern_rmse"].between(0.1, 3).all()
    assert own.var["discern_r"].dropna().between(-1, 1).all()
    assert sorted(own.obs.columns) == sorted(result.obs.columns)


def test_gene_errors_are_those_of_auto_encoded_held_out_cells():
    data = made_up(["a", "b"], ["x", "y"])
    model = LinearModel(data.n_vars, ["a", "b"])
    genes = measure(model, data, Comparison.choose(data.obs, "b", [], None)).gene_table

    held_out = (data.obs["split"] == "valid").to_numpy()
    own = pd.get_dummies(data.obs["batch"]).to_numpy(np.float32)
    ((rebuilt, _),) = model.decode(data.X.toarray() @ model.matrix, own, data.n_obs)
    difference = (rebuilt - data.X.toarray())[held_out]
    np.testing.assert_allclose(genes["discern_rmse"], np.sqrt((difference**2).mean(0)), rtol=1e-4)


def test_cells_on_disk_give_the_same_figures():
    from dask import array

    data = made_up(["a", "b", "c"], ["x", "y", "z"])
    model = LinearModel(data.n_vars, ["a", "b", "c"])
    chosen = Comparison.choose(data.obs, "c", [], None)
    in_memory = measure(model, data, chosen)

    data.X = array.from_array(data.X, chunks=(50, -1), asarray=False)
    lazy = measure(model, data, chosen)

    assert lazy.result == in_memory.result
    pd.testing.assert_frame_equal(lazy.gene_table, in_memory.gene_table)
    assert list(lazy.result.sources) == ["a", "b"]


def test_no_matrix_of_all_cells_is_made_dense(monkeypatch):
    data = made_up(["a", "b"], ["x", "y"], cells=700)
    largest = 0
    toarray = sparse.csr_matrix.toarray

    def watched(matrix, *args, **kwargs):
        nonlocal largest
        largest = max(largest, matrix.shape[0])
        return toarray(matrix, *args, **kwargs)

    monkeypatch.setattr(sparse.csr_matrix, "toarray", watched)
    measure(LinearModel(data.n_vars, ["a", "b"]), data, Comparison.choose(data.obs, "b", [], None))

    assert 0 < largest <= 512


def test_types_that_only_one_batch_has_are_left_out_but_their_distance_is_told():
    from discern.data.processed import DISCERNData

    data = made_up(["a", "b"], ["x", "y", "z"])
    labels = data.obs["celltype"].astype(str)
    data = DISCERNData(data[((data.obs["batch"] != "b") | (labels != "z")).to_numpy()].copy(), batch_size=4)
    result = measure(LinearModel(data.n_vars, ["a", "b"]), data, Comparison.choose(data.obs, "b", [], None))
    found = result.result.to_json()

    assert found["sources"]["a"]["shared_types"] == ["x", "y"]
    assert found["sources"]["a"]["other_types"] == ["z"]
    assert "Types without held-out cells of b, not compared: <b>z</b>" in report.render(result)
    assert list(found["sources"]["a"]["types"]) == ["x", "y"]
    distances = found["distance"]["sources"]["a"]["types"]
    assert distances["z"]["median"] > 1.5 * max(distances["x"]["median"], distances["y"]["median"])


def test_without_labels_all_cells_are_one_type():
    data = made_up(["a", "b"], ["x", "y"])
    data.obs = data.obs.drop(columns="celltype")
    result = measure(LinearModel(data.n_vars, ["a", "b"]), data, Comparison.choose(data.obs, "b", ["a"], None))

    found = result.result.to_json()["sources"]["a"]
    assert result.result.label is None
    assert found["methods"]["X"]["difference_r"] is None
    assert found["methods"]["X"]["mmd"] is not None
    assert 0 < found["neighbours_kept"]["expected"] < found["neighbours_kept"]["latent"] <= 1
    assert "No cell types are known" in report.render(result)
    assert "r of differences          -" in summary(result.result)
    assert found["verdict"]["grade"] in ("doubtful", "do not use")


def test_test_cells_come_before_validation_cells():
    data = made_up(["a", "b"], ["x", "y"], splits=("train", "valid", "test", "train"))
    chosen = Comparison.choose(data.obs, None, [], None)

    assert (chosen.reference, chosen.split, chosen.sources) == ("b", "test", ("a",))
    assert set(data.obs["split"][chosen.held_out]) == {"test"}
    assert set(data.obs["split"][chosen.rest]) == {"train", "valid"}


@pytest.mark.parametrize(
    ("reference", "sources", "label", "error", "message"),
    [
        ("B", [], None, InvalidInputError, "'batch' has no value 'B'.*it has 'a', 'b'"),
        ("a", ["d"], None, InvalidInputError, "'batch' has no value 'd'"),
        ("a", ["a"], None, InvalidInputError, "batch 'a' cannot be both the reference and a source"),
        ("a", [], "celltypes", UnknownNameError, "no metadata column 'celltypes' .did you mean 'celltype'"),
        ("a", [], "number", InvalidInputError, "column 'number' has 240 values, more than 200: expected cell types"),
    ],
)
def test_wrong_names_are_refused(reference, sources, label, error, message):
    obs = made_up(["a", "b"], ["x", "y"], cells=120).obs
    obs["number"] = np.arange(240)

    with pytest.raises(error, match=message):
        Comparison.choose(obs, reference, sources, label)


def test_nothing_to_compare_is_refused():
    obs = made_up(["a", "b"], ["x", "y"]).obs
    with pytest.raises(InvalidInputError, match="nothing to compare: 'a' is the only batch"):
        Comparison.choose(obs[obs["batch"] == "a"], None, [], None)
    obs["split"] = "train"
    with pytest.raises(InvalidInputError, match="batch 'b' has no cells that training did not see; set"):
        Comparison.choose(obs, None, [], None)
    with pytest.raises(InvalidInputError, match="no column 'n_genes', which would choose the reference: name a batch"):
        Comparison.choose(obs.drop(columns="n_genes"), None, [], None)


def test_a_failed_evaluation_leaves_the_earlier_one(experiment, monkeypatch):
    before = {path.name: path.read_bytes() for path in (experiment / "evaluation").iterdir()}
    monkeypatch.setattr("discern.evaluation.report.render", lambda evaluation: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        evaluate(experiment, reference="dropseq")

    assert {path.name: path.read_bytes() for path in (experiment / "evaluation").iterdir()} == before


def test_an_experiment_without_model_is_refused(original_experiment):
    shutil.rmtree(original_experiment / "job")

    with pytest.raises(MissingFileError, match="job"):
        evaluate(original_experiment)

    assert not (original_experiment / "evaluation").exists()


def test_add_distance_is_the_distance_of_projected_cells(reconstructed):
    cells = reconstructed[1].copy()
    add_distance(cells, "celseq2")

    training = ((cells.obs["batch"] == "celseq2") & (cells.obs["split"] == "train")).to_numpy()
    assert np.median(cells.obs["discern_distance"][training]) == pytest.approx(1)
    assert (cells.obs["discern_distance"] > 0).all()
    with pytest.raises(InvalidInputError, match="'batch' has no value 'celseq'"):
        add_distance(cells, "celseq")
    del cells.obsm["X_DISCERN"]
    with pytest.raises(UnknownNameError, match=r"no obsm\['X_DISCERN'\]: expected the result of `discern project`"):
        add_distance(cells, "celseq2")


def test_add_evaluation_goes_by_name(tmp_path):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "cells.csv").write_text("cell,batch,split,discern_distance\n01,a,train,1.5\nnan,a,train,2.5\n")
    (folder / "genes.csv").write_text("gene,discern_rmse,discern_r,detection_a\nNA,1,,0.5\n7,2,0.25,0.75\n")
    adata = ad.AnnData(np.zeros((3, 2)), pd.DataFrame(index=["nan", "01", "new"]), pd.DataFrame(index=["7", "NA"]))

    add_evaluation(adata, tmp_path)

    assert adata.obs["discern_distance"].tolist()[:2] == [2.5, 1.5]
    assert np.isnan(adata.obs.loc["new", "discern_distance"])
    assert adata.var["discern_r"].tolist()[0] == 0.25
    assert np.isnan(adata.var.loc["NA", "discern_r"])
    assert list(adata.obs) == ["discern_distance"]
    with pytest.raises(MissingFileError, match="run `discern evaluate` first"):
        add_evaluation(adata, tmp_path / "other")


def test_summary_opens_with_the_verdict_and_fits_a_terminal(figures):
    lines = summary(EvaluationResult.from_json(figures)).splitlines()
    cells = lines.index("110 cells of dropseq as celseq2, against 22 valid cells of celseq2")
    header, *rows = lines[cells + 1 : cells + 10]
    far = " ".join(lines[cells + 10 :])

    verdict = figures["sources"]["dropseq"]["verdict"]
    assert " ".join(lines[:cells]) == f"dropseq as celseq2: {verdict['figures']} {verdict['reason']}"
    assert header.split() == ["measured", "X", "estimated_counts", "real"]
    assert len(rows) == 8
    assert {len(row) for row in rows} == {len(header)}
    assert max(map(len, lines)) <= 80
    assert rows[-1].split()[:2] == ["AUC", "1.000"]
    assert rows[2].split() == ["r", "of", "detection", *rows[2].split()[3:5], "-", rows[2].split()[-1]]
    beyond = figures["distance"]["sources"]["dropseq"]["beyond"]
    assert far.startswith(f"{beyond} of 110 cells are farther from celseq2 than 95 % of its own")


def test_figures_survive_the_file(figures):
    assert EvaluationResult.from_json(figures).to_json() == figures


@pytest.mark.slow
def test_a_line_that_the_reference_lacks_stands_out(tmp_path):
    from sklearn.metrics import roc_auc_score

    from discern import DISCERN, WAERecipe
    from discern.config.reading import load_parameters
    from discern.data.annotation import np_one_hot
    from discern.data.processed import DISCERNData
    from discern.datasets import lung_cell_lines
    from discern.experiment.demo import write_demo_inputs

    (experiment,) = load_parameters(write_demo_inputs(tmp_path)).experiments.values()
    cells = ad.read_h5ad(lung_cell_lines()["celseq2"])
    line = "H2228"
    cells[cells.obs["celltype"] != line].copy().write_h5ad(tmp_path / "celseq2.h5ad")
    recipe = WAERecipe(experiment, input_files=[tmp_path / "celseq2.h5ad", lung_cell_lines()["dropseq"]])()
    data = DISCERNData(recipe.sc_raw, batch_size=192)
    model = DISCERN.from_experiment(experiment)
    model.training(data, max_steps=75)
    latent, _ = model.generate_latent_codes(data.X, np_one_hot(data.obs["batch"]), 512)
    training = (data.obs["batch"] == "celseq2") & (data.obs["split"] == "train")
    source = (data.obs["batch"] == "dropseq").to_numpy()
    distance = reference_distance(latent, data.obs["batch"].to_numpy(), training.to_numpy())[source]
    assert roc_auc_score(data.obs["celltype"][source] == line, distance) > 0.9


def test_the_command_hands_its_options_on_and_shows_the_figures(experiment, monkeypatch):
    from click.testing import CliRunner

    from discern.cli import commands
    from discern.experiment import evaluate as evaluation

    calls = []

    def record(folder, **kwargs):
        calls.append((folder, kwargs))
        return [experiment / "evaluation" / "report.html"]

    monkeypatch.setattr(evaluation, "evaluate", record)
    monkeypatch.setattr(commands.logs, "configure", lambda *args: None)
    options = ["--reference", "celseq2", "--source", "dropseq", "--source", "other", "--label", "celltype"]
    options += ["--genes", "EGFR, KRT18", "--genes", "VIM"]
    names = {"reference": "celseq2", "sources": ("dropseq", "other")}
    result = CliRunner().invoke(commands.cli, ["evaluate", str(experiment / "parameters.json"), *options])

    assert result.exit_code == 0, result.output
    assert calls == [(experiment, {**names, "label": "celltype", "genes": ["EGFR", "KRT18", "VIM"]})]
    assert "original:\ndropseq as celseq2: Differences" in result.stdout
    assert "estimated_counts" in result.stdout


def test_marker_genes_are_those_of_the_cells(tmp_path):
    data = made_up(["a", "b"], ["x", "y"])
    data.var["gene_symbols"] = [f"SYMBOL{name}" for name in data.var_names]
    chosen = Comparison.choose(data.obs, "b", ["a"], None)

    found = measure(LinearModel(data.n_vars, ["a", "b"]), data, chosen, markers=["7", "3"])

    table = found.markers.set_index(["gene", "batch", "matrix", "celltype"])
    assert list(found.markers["symbol"].unique()) == ["SYMBOL7", "SYMBOL3"]
    for batch, mask in (("a", data.obs["batch"] == "a"), ("b", chosen.held_out)):
        cells = data.X.toarray()[np.asarray(mask) & (data.obs["celltype"] == "x").to_numpy()][:, 3]
        row = table.loc["3", batch, "measured", "x"]
        assert row["cells"] == len(cells)
        assert row["mean"] == pytest.approx(cells.mean(), rel=1e-5)
        assert row["detected"] == pytest.approx((cells > 0).mean())
    assert table.loc["3", "a", "estimated_counts", "x"]["mean"] != table.loc["3", "a", "measured", "x"]["mean"]
    assert np.isnan(table.loc["3", "a", "estimated_counts", "x"]["detected"])
    assert found.gene_table.loc["7", "symbol"] == "SYMBOL7"
    page = report.render(found)
    assert "<h2>Your marker genes</h2>" in page
    assert "SYMBOL7 (7): mean expression" in page
    assert '<th scope="row">SYMBOL' in page.partition("<h4>Best</h4>")[2]


def test_a_marker_gene_that_is_not_there_is_told_before_anything_is_written(experiment):
    before = (experiment / "evaluation" / "report.html").read_bytes()

    with pytest.raises(UnknownNameError, match=r"there is no gene 'EGRF' among the 1,500 of the experiment"):
        evaluate(experiment, genes=["EGRF"])
    assert (experiment / "evaluation" / "report.html").read_bytes() == before


def test_cell_types_are_found_under_another_name_and_celltype_comes_first():
    data = made_up(["a", "b"], ["x", "y"])
    obs = data.obs.rename(columns={"celltype": "cell_ontology_class"})

    assert Comparison.choose(obs, "b", ["a"], None).label == "cell_ontology_class"
    assert Comparison.choose(data.obs.assign(label=obs["cell_ontology_class"]), "b", ["a"], None).label == "celltype"
