"""`discern init` and `discern info`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from discern.cli.commands import cli
from discern.config.presets import PRESETS
from discern.config.reading import load_parameters
from discern.datasets import lung_cell_lines
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.experiment.info import describe
from discern.experiment.init import choose, survey, write_parameters
from discern.inputs.merging import Source

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def one_file(make_raw_cells: Callable[..., ad.AnnData]) -> Path:
    cells = make_raw_cells({"good": 60, "poor": 40}, density=0.9)
    poor = (cells.obs["batch"] == "poor").to_numpy()
    cells.X = cells.X.multiply(np.where(poor[:, None], np.arange(30) < 10, True)).tocsr()
    cells.obs = cells.obs.rename(columns={"batch": "Donor"})
    cells.write_h5ad("both.h5ad")
    return Path("both.h5ad")


def test_parameters_fit_the_shipped_files(here: Path) -> None:
    files = list(lung_cell_lines().values())

    said = write_parameters(files, Path("p.json"))

    parameters = load_parameters(Path("p.json"))
    experiment = parameters.experiments["celseq2_dropseq"].as_dict()
    assert experiment["input_ds"]["raw_input"] == list(map(str, files))
    assert experiment["preset"] == "auto"
    assert experiment["input_ds"]["filtering"] == {"min_genes": 400, "min_cells": 3}
    assert parameters.experiments_dir == Path("experiments")
    assert f"{files[0]}: 274 cells x 28,073 genes, raw counts; batch: obs column 'batch'" in said
    assert "15,073 genes in common" in said
    layers = experiment["model"]["encoder"]["layers"]
    epochs = experiment["training"]["max_steps"]
    assert f"lacks: layers {layers}, {epochs} epochs or 2,500 updates of the weights, ...)\nmin_genes: 400" in said
    assert "reference: celseq2 (most genes in its median cell" in said
    assert "cell types: obs column 'celltype'" in said
    table = said[said.index("batch   ") : said.index("\n\nreference")].splitlines()
    assert len(table) == 3
    assert max(map(len, table)) <= 80
    assert "discern project --reference celseq2 p.json" in said


def test_one_file_with_a_batch_column(one_file: Path) -> None:
    found = survey([one_file])

    experiment, reasons = choose(found)

    assert found.sources == {"both.h5ad": Source("Donor")}
    assert {batch: len(genes) for batch, genes in found.genes_per_cell.items()} == {"good": 60, "poor": 40}
    assert found.reference == "good"
    assert experiment["input_ds"]["raw_input"] == {"both.h5ad": "Donor"}
    least = experiment["input_ds"]["filtering"]["min_genes"]
    assert (found.genes_per_cell["poor"] >= least).mean() >= 0.9
    assert ("min_genes", least, "400 would lose 100% of poor") in reasons


def test_what_the_preset_fills_is_not_written(one_file: Path) -> None:
    experiment, _ = choose(survey([one_file]))

    assert "model" not in experiment
    assert _paths(experiment).isdisjoint(_paths(PRESETS["auto"]))


def _paths(tree: dict[str, Any]) -> set[tuple[str, ...]]:
    """Return the path of each value that is not a section."""
    inner = {(key, *path) for key, value in tree.items() if isinstance(value, dict) for path in _paths(value)}
    return inner | {(key,) for key, value in tree.items() if not isinstance(value, dict) or not value}


def test_what_the_user_says_counts(one_file: Path) -> None:
    said = write_parameters([one_file], Path("p.json"), batch_column="celltype", reference="B cell")

    assert load_parameters(Path("p.json")).experiments["both"].input_ds.raw_input == {"both.h5ad": "celltype"}
    assert "reference: B cell (as you said" in said


@pytest.mark.parametrize("column", ["cell_type", "CellType", "cell_ontology_class", "label"])
def test_cell_types_are_found_under_their_usual_names(one_file: Path, column: str) -> None:
    cells = ad.read_h5ad(one_file)
    cells.obs = cells.obs.rename(columns={"celltype": column})
    cells.write_h5ad(one_file)

    said = write_parameters([one_file], Path("p.json"))

    assert f"cell types: obs column {column!r}" in said
    assert "discern evaluate --reference good p.json" in said


def test_cell_types_under_another_name_are_told_to_evaluate(one_file: Path) -> None:
    cells = ad.read_h5ad(one_file)
    cells.obs = cells.obs.rename(columns={"celltype": "my kind"})
    cells.write_h5ad(one_file)

    assert "cell types: no obs column found; --label names it" in write_parameters([one_file], Path("p.json"))
    said = write_parameters([one_file], Path("q.json"), label="my kind")
    assert "cell types: obs column 'my kind'" in said
    assert "discern evaluate --reference good --label 'my kind' q.json" in said
    with pytest.raises(UnknownNameError, match=r"no file has an obs column 'mykind' \(did you mean 'my kind'\?\)"):
        write_parameters([one_file], Path("r.json"), label="mykind")
    assert not Path("r.json").exists()


def test_files_that_name_the_cell_types_differently_are_told(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    for name, column in (("a", "cell_type"), ("b", "label")):
        cells = make_raw_cells({name: 40})
        cells.obs = cells.obs.rename(columns={"celltype": column})
        cells.write_h5ad(f"{name}.h5ad")

    said = write_parameters([Path("a.h5ad"), Path("b.h5ad")], Path("p.json"))

    assert "LOOK: the cell types are in different obs columns, 'cell_type' in a.h5ad, 'label' in b.h5ad" in said


def test_parameters_can_be_processed(one_file: Path) -> None:
    write_parameters([one_file], Path("parameters.json"))

    outcome = CliRunner().invoke(cli, ["process", "parameters.json"])

    assert outcome.exit_code == 0, outcome.output
    said = describe(Path("experiments/both"))
    assert re.search(r"batch +good: \d+ train,( \d valid,)? \d test; 2\d genes in the median cell\n", said)
    assert re.search(r"batch +poor: \d+ train,( \d valid,)? \d test; \d genes in the median cell\n", said)
    assert "not trained yet" in said


def test_parameters_can_be_trained(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    make_raw_cells({"good": 60, "poor": 40}, n_genes=1500).write_h5ad("cells.h5ad")
    write_parameters([Path("cells.h5ad")], Path("parameters.json"))
    content = json.loads(Path("parameters.json").read_text())
    content["experiments"]["cells"]["training"] |= {"max_steps": 2, "visualisation": False}
    Path("parameters.json").write_text(json.dumps(content))

    for command in (["process"], ["train"], ["project", "--metadata", "batch:good"]):
        outcome = CliRunner().invoke(cli, [*command, "parameters.json"])
        assert outcome.exit_code == 0, outcome.output

    folder = Path("experiments/cells")
    assert json.loads((folder / "parameters.json").read_text())["preset"] == "auto"
    assert "discern train" not in describe(folder)
    content["experiments"]["cells"]["training"]["max_steps"] = 3
    Path("parameters.json").write_text(json.dumps(content))
    assert "discern train parameters.json  (goes on with epoch 3 of 3)" in describe(Path("parameters.json"))
    with h5py.File(folder / "job" / "last_model.h5") as model:
        assert model.attrs["epoch"] == 2
        shapes: list[tuple[int, ...]] = []
        model.visititems(lambda _, item: shapes.append(getattr(item, "shape", ())))
    assert (1500, PRESETS["auto"]["model"]["encoder"]["layers"][0]) in shapes
    assert ad.read_h5ad(folder / "projected" / "projected_to_average_batch_good.h5ad").n_obs == 100


def test_counts_in_a_layer_are_taken(one_file: Path) -> None:
    cells = ad.read_h5ad(one_file)
    cells.layers["counts"], cells.X = cells.X, np.log1p(cells.X.toarray())
    cells.write_h5ad("logged.h5ad")

    said = write_parameters([Path("logged.h5ad")], Path("p.json"))

    assert "logged.h5ad: 100 cells x 30 genes, raw counts in layers['counts']; batch: obs column 'Donor'" in said
    assert "LOOK: logged.h5ad: X holds no raw counts, layers['counts'] does: it is taken" in said
    raw_input = load_parameters(Path("p.json")).experiments["logged"].input_ds.raw_input
    assert raw_input == {"logged.h5ad": {"batch": "Donor", "layer": "counts"}}
    outcome = CliRunner().invoke(cli, ["process", "p.json"])
    assert outcome.exit_code == 0, outcome.output


def test_counts_of_raw_have_its_genes(one_file: Path) -> None:
    cells = ad.read_h5ad(one_file)
    logged = cells.copy()
    logged.X = logged.X.log1p()
    logged.raw = cells
    logged[:, :12].write_h5ad("logged.h5ad")

    found = survey([Path("logged.h5ad")])

    assert found.n_genes == 30
    assert found.sources == {"logged.h5ad": Source("Donor", "raw")}


def test_values_that_are_no_counts(one_file: Path) -> None:
    cells = ad.read_h5ad(one_file)
    cells.layers["spliced"], cells.X = cells.X, np.log1p(cells.X.toarray())
    cells.write_h5ad("logged.h5ad")

    said = write_parameters([Path("logged.h5ad")], Path("p.json"))

    assert "logged.h5ad: 100 cells x 30 genes, NOT RAW COUNTS" in said
    assert (
        'no raw counts; layers[\'spliced\'] does: choose with "raw_input": {"logged.h5ad": {"layer": "spliced"}}'
        in said
    )
    cells.X = cells.X - 1
    cells.write_h5ad("scaled.h5ad")
    with pytest.raises(InvalidInputError, match=r"scaled.h5ad: expected raw counts in X, some are negative.*'spliced'"):
        survey([Path("scaled.h5ad")])
    cells.X[:] = 0
    del cells.layers["spliced"]
    cells.write_h5ad("empty.h5ad")
    with pytest.raises(InvalidInputError, match=r"empty.h5ad: expected raw counts, all are 0"):
        survey([Path("empty.h5ad")])


def _study(make_raw_cells: Callable[..., ad.AnnData], file: str, batch: list[str | None] | None, seed: int) -> Path:
    cells = make_raw_cells({"x": 40}, seed=seed)
    del cells.obs["batch"]
    if batch is not None:
        cells.obs["batch"] = pd.Categorical(batch)
    cells.write_h5ad(file)
    return Path(file)


def test_batches_of_one_name_in_two_files_are_told_apart(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    files = [_study(make_raw_cells, f"study{name}.h5ad", ["0", "1"] * 20, seed) for seed, name in enumerate("AB")]

    said = write_parameters(files, Path("p.json"))

    assert (
        "LOOK: obs column 'batch' has the same names '0', '1' in studyA.h5ad and studyB.h5ad: the file's name" in said
    )
    raw_input = load_parameters(Path("p.json")).experiments["studyA_studyB"].input_ds.raw_input
    assert raw_input == {"studyA.h5ad": False, "studyB.h5ad": False}
    outcome = CliRunner().invoke(cli, ["process", "p.json"])
    assert outcome.exit_code == 0, outcome.output
    obs = ad.read_h5ad("experiments/studyA_studyB/processed_data/concatenated_data.h5ad").obs
    assert set(obs["batch"]) == {"studyA", "studyB"}
    assert set(obs["batch_original"]) == {"0", "1"}


def test_batches_of_different_names_are_taken(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    files = [
        _study(make_raw_cells, "a.h5ad", ["a1", "a2"] * 20, 0),
        _study(make_raw_cells, "b.h5ad", ["b1"] * 40, 1),
        _study(make_raw_cells, "c.h5ad", None, 2),
    ]

    found = survey(files)

    assert list(found.genes_per_cell) == ["a1", "a2", "b1", "c"]
    assert choose(found)[0]["input_ds"]["raw_input"] == ["a.h5ad", "b.h5ad", "c.h5ad"]
    assert found.notes == []


def test_a_batch_column_with_missing_values_is_left_aside_and_told(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    files = [
        _study(make_raw_cells, "a.h5ad", [None, *["a1", "a2"] * 19, "a1"], 0),
        _study(make_raw_cells, "b.h5ad", ["b1", "b2"] * 20, 1),
    ]

    said = write_parameters(files, Path("p.json"))

    assert (
        "LOOK: a.h5ad: obs column 'batch' is not taken as the batch, the file's name is: 1 of 40 cells have no" in said
    )
    raw_input = load_parameters(Path("p.json")).experiments["a_b"].input_ds.raw_input
    assert raw_input == {"a.h5ad": False, "b.h5ad": "batch"}


def test_names_of_genes_are_told_as_process_tells_them(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    files = [_study(make_raw_cells, f"{name}.h5ad", None, seed) for seed, name in enumerate("ab")]
    cells = ad.read_h5ad("b.h5ad")
    cells.var_names = cells.var_names.str.upper()
    cells.var["symbol"] = ad.read_h5ad("a.h5ad").var_names
    cells.write_h5ad("b.h5ad")

    said = write_parameters(files, Path("p.json"))

    assert "genes are matched by names of a.h5ad, var 'symbol' of b.h5ad: 30 in common" in said


def test_mistakes_write_nothing(one_file: Path, make_raw_cells: Callable[..., ad.AnnData]) -> None:
    other = make_raw_cells({"x": 10})
    other.var_names = [f"ENSG{number}" for number in range(30)]
    other.write_h5ad("other.h5ad")
    output = Path("p.json")

    for files, options, error, message in (
        ([one_file, Path("other.h5ad")], {}, InvalidInputError, r"other.h5ad: expected genes in common with both.h5ad"),
        ([Path("other.h5ad")], {}, InvalidInputError, r"expected two batches or more.*--batch-column"),
        ([one_file], {"batch_column": "donor"}, UnknownNameError, r"no file has an obs column 'donor'.*mean 'Donor'"),
        ([one_file], {"reference": "god"}, InvalidInputError, r"there is no batch 'god' .did you mean 'good'"),
        ([Path("absent.h5ad")], {}, MissingFileError, r"absent.h5ad: no such file"),
        ([one_file, one_file], {}, InvalidInputError, r"expected inputs of different names"),
    ):
        with pytest.raises(error, match=message):
            write_parameters(files, output, **options)
    assert not output.exists()
    output.write_text("mine")
    with pytest.raises(InvalidInputError, match=r"p.json: exists already; name another file with --output"):
        write_parameters([one_file], output)
    assert output.read_text() == "mine"


def test_command_init(one_file: Path) -> None:
    outcome = CliRunner().invoke(cli, ["init", "both.h5ad", "--batch_column", "Donor", "--output", "mine.json"])

    assert outcome.exit_code == 0, outcome.output
    assert "wrote mine.json; next:" in outcome.output
    assert CliRunner().invoke(cli, ["init", "absent.h5ad"]).exit_code == 2


def test_info_of_a_folder_of_the_original(original_experiment: Path) -> None:
    said = describe(original_experiment)

    assert "220 x 1,500 genes, processed by DISCERN 1 (dense, standardised; is read as it is)" in said
    assert "batch      celseq2: 88 train, 22 valid; 1,465 genes in the median cell" in said
    assert "job/best_model.hdf5" in said
    assert "written by the original program" in said
    assert "discern project --reference celseq2" in said
    assert describe(original_experiment.parent) == said


def test_info_of_what_was_run(original_experiment: Path) -> None:
    (original_experiment.parent / "discern.log").write_text(
        "2026-11-23 10:00:00,123 7 DEBUG discern: discern 2.0.0: /usr/bin/discern train p.json\n"
        "2026-11-23 10:00:00,124 7 DEBUG discern: versions: discern 2.0.0, keras 3.15.1\n"
        "2026-11-23 10:00:01,000 8 DEBUG discern: discern 2.0.0: /usr/bin/discern project p.json\n"
        "2026-11-23 10:00:02,000 8 ERROR discern: original: no trained model\n"
        "2026-11-23 10:00:03,000 8 INFO discern: another: wrote x.h5ad\n"
        "Traceback (most recent call last):\n"
        "2026-11-23 10:01:00,000 7 INFO discern: original: wrote job/last_model.h5\n"
    )

    runs = [line.strip() for line in describe(original_experiment).splitlines() if line.startswith("  run ")]

    assert runs == [
        "run        2026-11-23 10:00:01 discern project p.json: failed: no trained model (discern 2.0.0)",
        "run        2026-11-23 10:00:00 discern train p.json: done (discern 2.0.0, keras 3.15.1)",
    ]


def test_command_info(one_file: Path) -> None:
    write_parameters([one_file], Path("parameters.json"))

    outcome = CliRunner().invoke(cli, ["info", "parameters.json"])

    assert outcome.exit_code == 0, outcome.output
    assert "not processed yet" in outcome.output
    assert "discern process parameters.json" in outcome.output
    Path("empty").mkdir()
    with pytest.raises(MissingFileError, match="empty: no experiment"):
        describe(Path("empty"))


def test_versions_are_logged(one_file: Path) -> None:
    write_parameters([one_file], Path("parameters.json"))
    content = json.loads(Path("parameters.json").read_text())
    Path("experiments").mkdir()
    Path("parameters.json").write_text(json.dumps(content))

    CliRunner().invoke(cli, ["process", "parameters.json"])

    assert ", tensorflow " in Path("experiments/discern.log").read_text()
