"""What the user has in obs and var goes through everything: processing, training, results, files."""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import sparse

from discern.cli.commands import cli
from discern.data.annotation import appended, as_text, storable
from discern.data.processed import DISCERNData
from discern.data.writers import write_blocks
from discern.errors import UnsupportedError
from discern.preprocessing.appending import save_data
from discern.preprocessing.new_cells import OnlineWAERecipe
from discern.preprocessing.recipe import WAERecipe
from discern.reconstructor import Reconstructor

if TYPE_CHECKING:
    from collections.abc import Callable

N = 60
GENES = 30
SMALL: dict[str, Any] = {
    **{"min_genes": 1, "min_cells": 1, "latent_dim": 2, "layers": [8], "batch_size": 8, "max_steps": 1, "seed": 0},
    "preset": None,
}
ODD_VALUES: dict[str, Callable[[int], Any]] = {
    "text": lambda n: np.resize(["a", "b"], n),
    "text with gaps": lambda n: np.resize(np.array(["a", None], dtype=object), n),
    "string": lambda n: pd.array(np.resize(["a", "b"], n), dtype="string"),
    "string with gaps": lambda n: pd.array(np.resize(np.array(["a", pd.NA], dtype=object), n), dtype="string"),
    "Int64": lambda n: pd.array(np.resize(np.array([1, pd.NA], dtype=object), n), dtype="Int64"),
    "Float64": lambda n: pd.array(np.resize(np.array([1.5, pd.NA], dtype=object), n), dtype="Float64"),
    "boolean": lambda n: pd.array(np.resize(np.array([True, pd.NA], dtype=object), n), dtype="boolean"),
    "truth with gaps": lambda n: np.resize(np.array([True, None], dtype=object), n),
    "dates": lambda n: pd.date_range("2020-01-01", periods=n),
    "dates with zone": lambda n: pd.date_range("2020-01-01", periods=n, tz="UTC"),
    "date objects": lambda n: [datetime.date(2020, 1, 1)] * n,
    "durations": lambda n: pd.to_timedelta(np.arange(n), "D"),
    "months": lambda n: pd.period_range("2020-01", periods=n, freq="M"),
    "intervals": lambda n: pd.cut(np.arange(n), 3),
    "number categories": lambda n: pd.Categorical(np.resize([3, 1], n)),
    "float categories": lambda n: pd.Categorical(np.resize([1.0, np.nan], n)),
    "mixed": lambda n: np.resize(np.array([1, "1", None, 2.5, True], dtype=object), n),
    "lists": lambda n: [[number] for number in range(n)],
    "bytes": lambda n: [b"x"] * n,
    "nothing": lambda n: [None] * n,
    "nul": lambda n: ["a\0b"] * n,
    "surrogate": lambda n: pd.Index(["a\ud800"] * n, dtype=object),
    "half": lambda n: np.arange(n, dtype=np.float16),
    "long double": lambda n: np.arange(n, dtype=np.longdouble),
    "complex": lambda n: np.arange(n) + 1j,
    "big endian": lambda n: np.arange(n).astype(">i4"),
    "sparse": lambda n: pd.arrays.SparseArray(np.arange(n)),
    "a/b": np.arange,
    "_index": np.arange,
    "": np.arange,
    ".": np.arange,
    "ü ñ": np.arange,
}
ODD_NAMES: dict[Any, Any] = {5: np.arange, ("x", "y"): np.arange}


def _odd(index: pd.Index) -> pd.DataFrame:
    frame = pd.DataFrame({name: pd.Series(make(len(index)), index=index) for name, make in ODD_VALUES.items()})
    for name, make in ODD_NAMES.items():
        frame[name] = make(len(index))
    frame["label"] = [f"not {name}" for name in index]
    frame.index.name = "label"
    return frame


def _raw() -> ad.AnnData:
    counts = np.random.default_rng(0).poisson(3, (N, GENES)).astype(np.float32)
    cells = ad.AnnData(sparse.csr_matrix(counts))
    cells.obs_names, cells.var_names = (
        pd.Index([f"{kind}{number}" for number in range(size)]) for kind, size in (("cell", N), ("gene", GENES))
    )
    return cells


@pytest.fixture(scope="module")
def odd_cells() -> ad.AnnData:
    cells = _raw()
    cells.obs, cells.var = _odd(cells.obs_names), _odd(cells.var_names)
    cells.obs["batch/run"] = np.repeat(["x", "y"], N // 2)
    return cells


@pytest.fixture(scope="module")
def odd_model(odd_cells: ad.AnnData) -> Reconstructor:
    return Reconstructor(**SMALL).fit(odd_cells, batch_key="batch/run")


def _check_odd(frame: pd.DataFrame) -> None:
    assert frame["string with gaps"].astype(object)[:2].fillna("-").tolist() == ["a", "-"]
    assert frame["Int64"].astype("Int64")[:2].fillna(-1).tolist() == [1, -1]
    assert frame["boolean"].astype("boolean")[:2].fillna(False).tolist() == [True, False]
    assert frame["Float64"].iloc[0] == 1.5
    assert np.isnan(frame["Float64"].iloc[1])
    assert str(frame["dates"].iloc[1]) == "2020-01-02"
    assert str(frame["number categories"].iloc[0]) == "3"
    assert frame["float categories"].astype(object)[:2].fillna("-").tolist() == ["1", "-"]
    assert frame["mixed"].astype(object)[:5].fillna("-").tolist() == ["1", "1", "-", "2.5", "True"]
    assert frame["a_b"].tolist() == list(range(len(frame)))
    assert {"index", "unnamed", "5", "x_y", "ü ñ"} <= set(frame)
    assert str(frame["label"].iloc[0]) == f"not {frame.index[0]}"


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_odd_columns_pass_through_memory_and_files(
    odd_model: Reconstructor, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = odd_model.project("x")
    (result.write_h5ad if suffix == ".h5ad" else result.write_zarr)(tmp_path / f"result{suffix}")
    folder = odd_model.save(tmp_path / "experiments" / "odd")
    outcome = CliRunner().invoke(
        cli, ["project", "--metadata", "batch:x", "--format", suffix[1:], str(folder / "parameters.json")]
    )

    assert outcome.exit_code == 0, outcome.output
    for cells in (
        ad.read_h5ad(tmp_path / "result.h5ad") if suffix == ".h5ad" else ad.read_zarr(tmp_path / "result.zarr"),
        ad.read_h5ad(folder / "processed_data" / "concatenated_data.h5ad"),
        (ad.read_h5ad if suffix == ".h5ad" else ad.read_zarr)(
            folder / "projected" / f"projected_to_average_batch_x{suffix}"
        ),
    ):
        _check_odd(cells.obs)
        _check_odd(cells.var)


def test_columns_that_were_added_to_processed_cells_can_be_written(odd_model: Reconstructor, tmp_path: Path) -> None:
    _, data = odd_model._fitted()
    changed = ad.AnnData(obs=data.obs.copy(), var=data.var.copy())
    changed.obs["today"] = pd.Timestamp("2026-01-01")
    changed.var["note/1"] = pd.array(["x", pd.NA] * (GENES // 2), dtype="string")

    write_blocks(tmp_path / "cells.h5ad", changed, [{"X": np.ones((N, GENES))}])

    cells = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert set(cells.obs["today"].astype(str)) == {"2026-01-01"}
    assert cells.var["note_1"].isna().sum() == GENES // 2


# --- names that the program uses, too --------------------------------------------------------------------------------


OWN = {
    "split": np.resize(["left", "right"], N),
    "for_mmd": np.resize([1, 2], N),
    "n_genes": np.arange(N),
    "n_counts": np.arange(N) / 2,
    "dataset": np.repeat(["Smith", "Jones"], N // 2),
    "cluster": np.resize([0, 1, 2], N),
    "discern_distance": np.arange(N) * 2,
}
OWN_VAR = {
    "n_cells": np.arange(GENES),
    "highly_variable": np.resize([True, False], GENES),
    "mean_scaling": np.ones(GENES),
}


@pytest.fixture(scope="module")
def own_cells() -> ad.AnnData:
    cells = _raw()
    for name, values in OWN.items():
        cells.obs[name] = values
    for name, values in OWN_VAR.items():
        cells.var[name] = values
    cells.obs["batch"] = np.resize(["lane1", "lane2", "lane3"], N)
    return cells


def _check_own(result: ad.AnnData) -> None:
    for name in ("split", "for_mmd", "n_genes", "n_counts", "dataset", "cluster"):
        assert result.obs[name].astype(str).tolist() == pd.Series(OWN[name]).astype(str).tolist(), name
    for name, values in OWN_VAR.items():
        assert result.var[name].tolist() == values.tolist(), name
    assert result.obs["batch"].tolist() == OWN["dataset"].tolist()
    assert set(result.obs["batch_original"]) == {"lane1", "lane2", "lane3"}
    assert result.obs["celltype"].astype(str).tolist() == pd.Series(OWN["cluster"]).astype(str).tolist()
    assert result.obs["discern_distance_original"].tolist() == OWN["discern_distance"].tolist()
    assert result.obs["discern_distance"].notna().all()
    assert set(result.obs["discern_split"]) <= {"train", "valid", "test"}
    assert (result.obs["discern_n_genes"] > 0).all()


def test_columns_with_names_that_processing_uses_are_kept(
    own_cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "discern")
    before = own_cells.copy()
    model = Reconstructor(**SMALL).fit(own_cells, batch_key="dataset")
    result = model.project("Smith")
    pd.testing.assert_frame_equal(own_cells.obs, before.obs)
    pd.testing.assert_frame_equal(own_cells.var, before.var)
    own_cells.write_h5ad("atlas.h5ad")
    experiment = {
        "input_ds": {
            "raw_input": {"atlas.h5ad": "dataset"},
            "filtering": {"min_genes": 1, "min_cells": 1},
            "scale": {"LSN": 20000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
        },
        "model": {"latent_dim": 2, "layers": [8]},
        "training": {"batch_size": 8, "max_steps": 1, "seed": 0, "GPU": [], "visualisation": False},
    }
    content = {"exp_param": {"experiments_dir": "experiments"}, "experiments": {"own": experiment}}
    Path("parameters.json").write_text(json.dumps(content))
    for command in (["process"], ["train"], ["project", "--metadata", "batch:Smith"]):
        outcome = CliRunner().invoke(cli, [*command, "parameters.json"])
        assert outcome.exit_code == 0, outcome.output

    _check_own(result)
    projected = ad.read_h5ad("experiments/own/projected/projected_to_average_batch_Smith.h5ad")
    _check_own(projected)
    assert list(projected.obs) == list(result.obs)
    processed = ad.read_h5ad("experiments/own/processed_data/concatenated_data.h5ad")
    assert processed.obs["dataset"].tolist() == OWN["dataset"].tolist()
    assert set(processed.obs["discern_dataset"]) == {"atlas"}
    assert processed.obs["split_original"].tolist() == OWN["split"].tolist()
    assert processed.var["n_cells_original"].tolist() == OWN_VAR["n_cells"].tolist()
    assert "'split' is now 'split_original'" in caplog.text
    assert "the obs column 'batch' is kept as 'batch_original'" in caplog.text


def test_a_name_that_is_taken_too_gets_a_number() -> None:
    cells = _raw()
    cells.obs["batch"] = np.repeat(["x", "y"], N // 2)
    cells.obs["split"], cells.obs["split_original"] = "mine", "mine, too"

    obs = WAERecipe({"filtering": {"min_genes": 1, "min_cells": 1}}, inputs=cells)().sc_raw.obs

    assert set(obs["split_original_1"]) == {"mine"}
    assert set(obs["split_original"]) == {"mine, too"}


def test_online_training_keeps_columns_of_old_and_new_cells(tmp_path: Path) -> None:
    parameters = {"filtering": {"min_genes": 1, "min_cells": 1}, "scale": {"LSN": 1000}}
    old, new = _raw(), _raw()
    old.obs["batch"] = np.repeat(["x", "y"], N // 2)
    new.obs["batch"], new.obs["split"] = "z", "mine"
    new.obs["day"] = pd.date_range("2020-01-01", periods=N)
    reference = DISCERNData(WAERecipe(parameters, inputs=old)().sc_raw, batch_size=4)
    cells = OnlineWAERecipe(reference, parameters, inputs={"new": new})().sc_raw

    save_data(tmp_path / "both.h5ad", cells, reference)

    both = ad.read_h5ad(tmp_path / "both.h5ad")
    assert both.obs["split_original"].dropna().tolist() == ["mine"] * N
    assert both.obs["day"].dropna().iloc[0] == "2020-01-01"
    assert both.uns["DISCERN"]["user_columns"]["obs"] == {"split": "split_original"}


# --- var of several inputs -------------------------------------------------------------------------------------------


def _merged(*vars_of_inputs: pd.DataFrame) -> pd.DataFrame:
    inputs = {}
    for number, var in enumerate(vars_of_inputs):
        cells = _raw()
        cells.var = var.set_axis(cells.var_names)
        cells.obs["batch"] = f"batch {number}"
        inputs[f"{number}.h5ad"] = cells
    return WAERecipe({}, inputs=inputs).sc_raw.var


def test_symbols_that_all_inputs_share_are_kept_whatever_their_type() -> None:
    symbols = [f"S{number % 25}" for number in range(GENES)]

    var = _merged(
        pd.DataFrame({"symbol": symbols}),
        pd.DataFrame({"symbol": pd.Categorical(symbols)}),
        pd.DataFrame({"symbol": pd.array(symbols, dtype="string")}),
    )

    assert list(var["symbol"]) == symbols


def test_symbols_that_differ_in_a_few_genes_are_kept_and_told(caplog: pytest.LogCaptureFixture) -> None:
    symbols = [f"S{number}" for number in range(GENES)]

    var = _merged(pd.DataFrame({"symbol": symbols}), pd.DataFrame({"symbol": ["renamed", *symbols[1:]]}))

    assert list(var["symbol"]) == symbols
    assert "'symbol' differs in 1 of 30 genes, e.g. gene0: 'S0' in 0.h5ad, 'renamed' in 1.h5ad" in caplog.text


def test_symbols_of_a_single_input_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    named = pd.DataFrame({"gene_symbols": [f"S{number}" for number in range(GENES)]})
    bare = pd.DataFrame(index=range(GENES))

    for inputs in ([named, bare], [bare, named]):
        assert _merged(*inputs)["gene_symbols"].to_list() == named["gene_symbols"].to_list()
    assert "the symbols of the genes, var column 'gene_symbols', are those of 0.h5ad" in caplog.text


def test_numbers_of_one_input_are_not_taken_for_all() -> None:
    var = _merged(pd.DataFrame({"mean": np.arange(GENES)}), pd.DataFrame({"mean": np.arange(GENES) + 1}))

    assert list(var) == []


# --- the conversion --------------------------------------------------------------------------------------------------


def test_text_keeps_the_order_of_categories() -> None:
    stages = pd.Series(pd.Categorical(["late", "early"], categories=["early", "late"], ordered=True))

    assert as_text(stages).categories.to_list() == ["early", "late"]
    assert as_text(pd.Series(["late", "early"])).categories.to_list() == ["early", "late"]
    joined = appended([storable(pd.DataFrame({"stage": stages}), "a")] * 2)
    assert joined["stage"].cat.ordered


def test_a_name_that_files_can_hold_is_never_taken_by_another() -> None:
    frame = storable(pd.DataFrame({"a/b": [1], "a_b": [2]}), "cells")

    assert frame.to_dict("list") == {"a_b_1": [1], "a_b": [2]}


def test_a_column_that_occurs_twice_is_refused_with_the_file() -> None:
    cells = _raw()
    cells.obs["batch"] = "x"
    cells.var = pd.DataFrame([[1, 2]] * GENES, columns=["n", "n"], index=cells.var_names)

    with pytest.raises(UnsupportedError, match=r"mine.h5ad: expected every var column once.*\['n'\]"):
        WAERecipe({}, inputs={"mine.h5ad": cells})


def test_large_whole_numbers_stay_exact_beside_missing_ones() -> None:
    joined = appended([pd.DataFrame({"id": [2**60 + 1]}), pd.DataFrame({"other": [1]})])

    assert joined["id"].iloc[0] == 2**60 + 1
    assert pd.isna(joined["id"].iloc[1])
