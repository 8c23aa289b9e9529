"""Several inputs made one: batches, genes and counts."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from discern.errors import InvalidInputError, UnknownNameError, UnsupportedError
from discern.inputs.merging import Source, merge_data_sets, sources
from discern.inputs.readers import read_raw_input
from discern.preprocessing.new_cells import OnlineWAERecipe
from discern.preprocessing.recipe import WAERecipe
from discern.reconstructor import Reconstructor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARAMETERS = {"filtering": {"min_genes": 1, "min_cells": 1}, "scale": {"LSN": 1000}}


def _cells(batch: Any = None, n_cells: int = 4, genes: list[str] | None = None, seed: int = 0) -> ad.AnnData:
    genes = genes or [f"gene{number}" for number in range(30)]
    counts = np.random.default_rng(seed).poisson(3, (n_cells, len(genes)))
    cells = ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(index=[f"cell{seed}{number}" for number in range(n_cells)]),
        var=pd.DataFrame(index=genes),
    )
    if batch is not None:
        cells.obs["batch"] = batch
    return cells


def _logged(cells: ad.AnnData) -> ad.AnnData:
    cells = cells.copy()
    cells.X = cells.X.log1p()
    return cells


def test_merge_takes_common_genes_in_the_first_ones_order(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    first, second = make_raw_cells({"x": 5}), make_raw_cells({"y": 4}, seed=1)
    first.var["symbol"] = second.var["symbol"] = [f"S{i}" for i in range(30)]
    second.var["own"] = 1
    second.obs["celltype"] = "T cell"
    second = second[:, ::-1][:, :20].copy()
    untouched = first.copy(), second.copy()
    merged, batches = merge_data_sets(
        {"raw/first.h5ad": first, "raw/second.h5ad": second}, {"raw/second.h5ad": "celltype"}
    )
    common = [gene for gene in first.var_names if gene in set(second.var_names)]
    assert list(merged.var_names) == common
    np.testing.assert_array_equal(merged.X[:5].toarray(), first[:, common].X.toarray())
    np.testing.assert_array_equal(merged.X[5:].toarray(), second[:, common].X.toarray())
    assert list(merged.obs["dataset"]) == ["first"] * 5 + ["second"] * 4
    assert list(merged.obs["batch"]) == ["x"] * 5 + ["T cell"] * 4
    assert merged.uns["DISCERN"]["batch_key"] == dict(zip("01", ["T cell", "x"], strict=True))
    assert batches == {0: "T cell", 1: "x"}
    assert list(merged.var.columns) == ["symbol"]
    assert merged.obs_names.is_unique
    for before, after in zip(untouched, (first, second), strict=True):
        assert (before.X != after.X).nnz == 0
        pd.testing.assert_frame_equal(before.obs, after.obs)


def test_merge_of_different_columns_can_be_written(make_raw_cells: Callable[..., ad.AnnData], tmp_path: Path) -> None:
    first, second = make_raw_cells({"x": 5}), make_raw_cells({"y": 4})
    first.obs["doublet"] = [True, False, True, True, False]
    second.obs["age"] = 3
    second.obs["celltype"] = pd.Categorical(["NK cell"] * 4)
    merged, _ = merge_data_sets({"first": first, "second": second}, {})
    merged.write_h5ad(tmp_path / "merged.h5ad")
    obs = ad.read_h5ad(tmp_path / "merged.h5ad").obs
    assert obs["doublet"].dropna().tolist() == [True, False, True, True, False]
    assert obs["doublet"].isna().sum() == 4
    assert obs["age"].isna().sum() == 5
    assert set(obs["celltype"].cat.categories) == {"B cell", "T cell", "NK cell"}


def test_merge_without_common_genes_shows_names_of_both(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    first, second = make_raw_cells({"x": 5}), make_raw_cells({"y": 4})
    second.var_names = [f"ENSG{number}" for number in range(30)]
    with pytest.raises(InvalidInputError, match=r"b: expected genes in common with a, .*'gene0'.*'ENSG0'"):
        merge_data_sets({"a": first, "b": second}, {})


def test_merge_without_the_batch_column_lists_the_columns(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    with pytest.raises(UnknownNameError, match=r"'bacth'.*did you mean 'batch'.*\['batch', 'celltype'\]"):
        merge_data_sets({"a": make_raw_cells({"x": 5})}, {"a": "bacth"})


def test_merge_refuses_cells_without_batch(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    cells = make_raw_cells({"x": 5})
    cells.obs["donor"] = [None, "d1", "d1", "d2", None]
    with pytest.raises(
        InvalidInputError, match="a: expected the batch of every cell, 2 of 5 cells have none in obs column 'donor'"
    ):
        merge_data_sets({"a": cells}, {"a": "donor"})


def test_merge_refuses_two_files_of_one_name(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    cells = make_raw_cells({"x": 5})
    with pytest.raises(InvalidInputError, match=r"\['a/c\.h5ad', 'b/c\.h5ad'\] are 'c'; rename them"):
        merge_data_sets({"a/c.h5ad": cells, "b/c.h5ad": cells}, {})


def test_merge_refuses_columns_that_occur_twice(make_raw_cells: Callable[..., ad.AnnData]) -> None:
    cells = make_raw_cells({"x": 5})
    cells.obs = pd.concat([cells.obs, cells.obs[["celltype"]]], axis=1)
    with pytest.raises(UnsupportedError, match=r"more than once: \['celltype'\]"):
        merge_data_sets({"a": cells}, {})


@pytest.mark.parametrize("said", ["list", "nulls", "inputs", "parameters"])
def test_an_obs_column_batch_is_the_batch(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with_column, without = _cells(["x", "x", "y", "y"]), _cells(seed=1)
    with_column.write_h5ad("a.h5ad")
    without.write_h5ad("b.h5ad")

    recipe = {
        "list": lambda: WAERecipe(PARAMETERS, input_files=["a.h5ad", "b.h5ad"]),
        "nulls": lambda: WAERecipe(PARAMETERS, input_files={"a.h5ad": None, "b.h5ad": None}),
        "inputs": lambda: WAERecipe(PARAMETERS, inputs={"a": with_column, "b": without}),
        "parameters": lambda: WAERecipe({**PARAMETERS, "raw_input": ["a.h5ad", "b.h5ad"]}),
    }[said]()

    assert list(recipe.sc_raw.obs["batch"]) == ["x", "x", "y", "y", "b", "b", "b", "b"]
    assert list(recipe.sc_raw.obs["dataset"]) == ["a"] * 4 + ["b"] * 4
    assert recipe.config["batch_key"] == {"0": "b", "1": "x", "2": "y"}


def test_files_and_cells_in_memory_are_both_read(tmp_path: Path) -> None:
    _cells().write_h5ad(tmp_path / "file.h5ad")

    recipe = WAERecipe(PARAMETERS, inputs={"memory": _cells(seed=1)}, input_files=[tmp_path / "file.h5ad"])

    assert recipe.config["batch_key"] == {"0": "file", "1": "memory"}


def test_false_takes_the_name_of_the_file_and_keeps_the_column() -> None:
    merged, batches = merge_data_sets(
        {"a.h5ad": _cells("x"), "b.h5ad": _cells("x", seed=1)}, dict.fromkeys(["a.h5ad", "b.h5ad"], False)
    )

    assert batches == {0: "a", 1: "b"}
    assert list(merged.obs["batch_original"]) == ["x"] * 8


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 1, 2, 10], ["1", "10", "2"]),
        ([1.0, 1.0, 2.0, 2.0], ["1", "2"]),
        (pd.Categorical([1.0, 1.0, 2.0, 2.0]), ["1", "2"]),
        ([0.5, 0.5, 1.0, 1.0], ["0.5", "1.0"]),
        ([True, True, False, False], ["False", "True"]),
        (pd.array(["x", "x", "y", "y"], dtype="string"), ["x", "y"]),
        (pd.array([1, 1, 2, 2], dtype="Int64"), ["1", "2"]),
        (pd.Categorical(["x"] * 4, categories=["unused", "x"]), ["x"]),
        (pd.to_datetime(["2020-01-01", "2020-01-01", "2021-01-01", "2021-01-01"]), ["2020-01-01", "2021-01-01"]),
        ([b"x", b"x", b"y", b"y"], ["x", "y"]),
        ([1, "1", True, "True"], ["1", "True"]),
    ],
)
def test_batches_are_named_as_a_reader_would_write_them(values: Any, names: list[str]) -> None:
    merged, _ = merge_data_sets({"a": _cells(values)}, {})

    assert list(merged.obs["batch"].cat.categories) == names


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, "", " "])
def test_cells_without_batch_are_counted_and_refused(missing: object) -> None:
    cells = _cells(pd.Series(["x", missing, missing, "y"], dtype=object).to_numpy())

    with pytest.raises(
        InvalidInputError, match=r"a.h5ad: expected the batch .* 2 of 4 cells have none .*'batch'.*false"
    ):
        merge_data_sets({"a.h5ad": cells}, {})


def test_a_column_batch_without_any_value_is_none() -> None:
    _, batches = merge_data_sets({"a.h5ad": _cells([None] * 4)}, {})

    assert batches == {0: "a"}


def test_batches_that_two_inputs_name_alike_are_told() -> None:
    inputs = {"studyA.h5ad": _cells(["0", "0", "1", "1"]), "studyB.h5ad": _cells(["1", "1", "0", "0"], seed=1)}

    with pytest.warns(
        UserWarning, match="batches '0', '1' have the same name in 'studyA.h5ad' and 'studyB.h5ad'.*false"
    ):
        _, batches = merge_data_sets(inputs, {})

    assert batches == {0: "0", 1: "1"}


def test_a_batch_with_the_name_of_another_file_is_told() -> None:
    with pytest.warns(UserWarning, match="batch 'b' has the same name in 'a.h5ad' and 'b.h5ad'"):
        merge_data_sets({"a.h5ad": _cells("b"), "b.h5ad": _cells(seed=1)}, {})


@pytest.mark.parametrize("other", ["Batch1", "batch 1", "batch1 "])
def test_batches_that_differ_in_case_or_blanks_only_are_told(other: str) -> None:
    with pytest.warns(UserWarning, match=rf"batches 'batch1', '{other}' differ in case or blanks only"):
        merge_data_sets({"a": _cells("batch1"), "b": _cells(other, seed=1)}, {})


def test_names_of_cells_that_two_inputs_share_can_be_traced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "discern")

    merged, _ = merge_data_sets({"a": _cells("x"), "b": _cells("y")}, {})

    assert merged.obs_names.is_unique
    assert list(merged.obs["name_original"]) == [f"cell0{number}" for number in range(4)] * 2
    assert list(merged.obs["dataset"]) == ["a"] * 4 + ["b"] * 4
    assert "4 cells have a name that came before" in caplog.text
    assert "'cell00' is now 'cell00-1'" in caplog.text


# --- genes -----------------------------------------------------------------------------------------------------------


def test_symbols_and_ids_are_matched_by_the_column_that_has_the_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "discern")
    ids = [f"ENSG{number:011d}" for number in range(30)]
    symbols, by_id = _cells("x"), _cells("y", genes=ids[::-1], seed=1)
    symbols.var["gene_ids"] = ids

    merged, _ = merge_data_sets({"a.h5ad": symbols, "b.h5ad": by_id}, {})

    assert list(merged.var_names) == list(symbols.var_names)
    assert list(merged.var["gene_ids"]) == ids
    np.testing.assert_array_equal(merged.X[4:].toarray(), by_id.X.toarray()[:, ::-1])
    assert "genes are matched by var 'gene_ids' of a.h5ad, names of b.h5ad: 30 in common" in caplog.text


def test_the_other_way_round_the_ids_of_the_first_stay_the_names() -> None:
    ids = [f"ENSG{number:011d}" for number in range(30)]
    symbols, by_id = _cells("x"), _cells("y", genes=ids, seed=1)
    symbols.var["gene_ids"] = pd.Categorical(ids)

    merged, _ = merge_data_sets({"b.h5ad": by_id, "a.h5ad": symbols}, {})

    assert list(merged.var_names) == ids
    assert merged.shape == (8, 30)


def test_ids_that_two_genes_share_match_none() -> None:
    ids = [f"ENSG{number:011d}" for number in range(30)]
    symbols, by_id = _cells("x"), _cells("y", genes=ids, seed=1)
    symbols.var["gene_ids"] = [ids[1], *ids[1:]]

    merged, _ = merge_data_sets({"a": symbols, "b": by_id}, {})

    assert list(merged.var_names) == [f"gene{number}" for number in range(2, 30)]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("HLA-A", "HLA.A"),
        ("MT-CO1", "MT_CO1"),
        ("Actb", "ACTB"),
        ("ENSG00000146648", "ENSG00000146648.18"),
    ],
)
def test_genes_of_nearly_the_same_name_are_told(here: str, there: str) -> None:
    shared = [f"gene{number}" for number in range(29)]

    with pytest.warns(UserWarning, match=rf"1 genes have nearly the same name in a and b, e.g. '{here}' and '{there}'"):
        merged, _ = merge_data_sets(
            {"a": _cells("x", genes=[*shared, here]), "b": _cells("y", genes=[*shared, there])}, {}
        )

    assert list(merged.var_names) == shared


def test_few_genes_in_common_are_told_with_names_of_both() -> None:
    first = [f"gene{number}" for number in range(30)]
    second = [*first[:5], *(f"other{number}" for number in range(25))]

    with pytest.warns(UserWarning, match=r"only 5 of 30 genes .*a has names like \['gene5'.*b has .*'other0'"):
        merge_data_sets({"a": _cells("x", genes=first), "b": _cells("y", genes=second)}, {})


def test_no_gene_in_common_says_what_would_help() -> None:
    upper = [f"GENE{number}" for number in range(30)]

    with pytest.raises(
        InvalidInputError, match=r"there are none.*30 genes have nearly the same name.*'gene0' and 'GENE0'"
    ):
        merge_data_sets({"a": _cells(), "b": _cells(genes=upper)}, {})


def test_genes_without_doubts_are_matched_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        merge_data_sets({"a": _cells("x"), "b": _cells("y", seed=1)}, {})


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["counts", "raw"])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_counts_beside_a_logged_matrix_are_named_and_can_be_chosen(place: str, suffix: str, tmp_path: Path) -> None:
    cells = _cells("x")
    file, logged = tmp_path / f"cells{suffix}", _logged(cells)
    if place == "raw":
        logged.raw = cells
        logged = logged[:, :20].copy()
    else:
        logged.layers["counts"] = cells.X
    (logged.write_h5ad if suffix == ".h5ad" else logged.write_zarr)(file)

    shown = {"counts": r"layers\['counts'\]", "raw": "raw.X"}[place]
    with pytest.raises(
        InvalidInputError, match=rf'cells{suffix}: X holds no raw counts .*; {shown} does: .*"layer": "{place}"'
    ):
        WAERecipe(PARAMETERS, input_files=[file])
    recipe = WAERecipe({**PARAMETERS, "raw_input": {str(file): {"layer": place}}})

    np.testing.assert_array_equal(recipe.sc_raw.X.toarray(), cells.X.toarray())
    assert recipe.sc_raw.n_vars == 30
    assert list(recipe.config["batch_key"].values()) == ["x"]


def test_counts_of_a_layer_can_be_read_later(tmp_path: Path) -> None:
    cells = _logged(_cells())
    cells.layers["counts"] = _cells().X
    cells.write_h5ad(tmp_path / "cells.h5ad")

    lazy = read_raw_input(tmp_path / "cells.h5ad", budget=1, layer="counts")

    np.testing.assert_array_equal(lazy.X.compute().toarray(), _cells().X.toarray())


def test_a_logged_matrix_can_be_taken_all_the_same() -> None:
    cells = _logged(_cells())
    cells.layers["counts"] = _cells().X

    recipe = WAERecipe(PARAMETERS, inputs={"a": cells}, input_files={"a": {"layer": "X"}})

    with pytest.warns(UserWarning, match="a: the counts are not whole numbers"):
        recipe.filtering(1, 1)


def test_a_scaled_matrix_names_file_and_counts(tmp_path: Path) -> None:
    cells = _cells()
    cells.layers["counts"] = cells.X
    cells.X = cells.X.toarray() - 3
    cells.write_h5ad(tmp_path / "scaled.h5ad")

    with pytest.raises(
        InvalidInputError,
        match=r"scaled.h5ad: expected raw counts in X, some are negative, the smallest is -3; layers\['counts'",
    ):
        WAERecipe(PARAMETERS, input_files=[tmp_path / "scaled.h5ad"])


def test_a_layer_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    cells = _cells()
    cells.layers["counts"] = cells.X
    cells.write_h5ad(tmp_path / "cells.h5ad")

    with pytest.raises(UnknownNameError, match=r"cells.h5ad: there is no layer 'count' .*'counts'.*\['counts'\]"):
        read_raw_input(tmp_path / "cells.h5ad", layer="count")


def test_values_that_are_no_counts_name_the_file() -> None:
    good, bad, zero = _cells("x"), _cells("y", seed=1), _cells("z", seed=2)
    bad.X.data[-1] = np.nan
    zero.X.data[:] = 0

    with pytest.raises(InvalidInputError, match=r"^bad.h5ad: expected raw counts in X, some are not finite"):
        WAERecipe(PARAMETERS, inputs={"good.h5ad": good, "bad.h5ad": bad})
    with pytest.raises(InvalidInputError, match=r"^zero.h5ad: expected raw counts, all are 0"):
        WAERecipe(PARAMETERS, inputs={"good.h5ad": good, "zero.h5ad": zero}).filtering(1, 1)


def test_what_may_be_said_of_an_input() -> None:
    said = sources({"a": None, "b": False, "c": "donor", "d": {"batch": "donor", "layer": "counts"}})

    assert list(said.values()) == [Source(), Source(False), Source("donor"), Source("donor", "counts")]
    for wrong in (5, {"column": "donor"}, {"layer": 3}, True):
        with pytest.raises(InvalidInputError, match="a: expected an obs column, None, False or"):
            sources({"a": wrong})


# --- online ----------------------------------------------------------------------------------------------------------


def test_new_cells_have_their_batch_column_and_ids_matched_too() -> None:
    ids = [f"ENSG{number:011d}" for number in range(30)]
    old = _cells(["x"] * 10 + ["y"] * 10, n_cells=20)
    old.var["gene_ids"] = ids
    reference = WAERecipe(PARAMETERS, inputs={"old": old})().sc_raw

    new = OnlineWAERecipe(reference, PARAMETERS, inputs={"new": _cells("z", n_cells=12, genes=ids[::-1], seed=1)})()

    assert list(new.sc_raw.var_names) == list(reference.var_names)
    assert set(new.sc_raw.obs["batch"]) == {"z"}


@pytest.mark.parametrize("name", ["nan", "NA", "None"])
def test_batches_that_look_like_missing_values_are_told(name: str) -> None:
    cells = ad.AnnData(np.ones((3, 2)), obs={"batch": ["x", name, "x"]})
    with pytest.warns(UserWarning, match=f"a: 1 cells have the batch '{name}', which looks like a missing value"):
        merge_data_sets({"a": cells}, {})


@pytest.mark.parametrize("letter", ["V", "X", ""])
def test_running_numbers_never_match_by_place(letter: str) -> None:
    cells = ad.AnnData(np.ones((3, 2)), var=pd.DataFrame(index=[f"{letter}1", f"{letter}2"]))
    with pytest.raises(InvalidInputError, match=rf"a: expected names of genes, got running numbers \({letter}1, "):
        merge_data_sets({"a": cells, "b": cells}, {})
    merged, _ = merge_data_sets({"a": cells}, {})
    assert merged.n_vars == 2


def test_running_numbers_in_files_are_no_names_of_genes(tmp_path: Path) -> None:
    for name in "ab":
        cells = ad.AnnData(np.ones((3, 2)), var=pd.DataFrame(index=["V1", "V2"]))
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    with pytest.raises(InvalidInputError, match=r"expected names of genes, got running numbers \(V1"):
        WAERecipe({}, input_files=[tmp_path / "a.h5ad", tmp_path / "b.h5ad"])


def test_an_input_without_cells_is_named() -> None:
    with pytest.raises(InvalidInputError, match="b: expected cells, there are none"):
        merge_data_sets({"a": ad.AnnData(np.ones((3, 2))), "b": ad.AnnData(np.ones((0, 2)))}, {})


def test_an_input_whose_cells_are_the_genes_of_another_is_refused() -> None:
    cells = ad.AnnData(np.ones((3, 2)), obs=pd.DataFrame(index=list("xyz")), var=pd.DataFrame(index=["A", "B"]))
    with pytest.raises(
        InvalidInputError, match=r"cells have the names of the genes of b .like 'x'.* exchanged in one of the two"
    ):
        merge_data_sets({"a": cells, "b": cells.T.copy()}, {})


@pytest.mark.parametrize("prefix", ["GRCh38_", "hg19_", "GRCh38______", "mm10___"])
def test_the_genome_in_front_of_names_of_genes_is_told(prefix: str) -> None:
    names = [f"G{number}" for number in range(10)]
    plain = ad.AnnData(np.ones((3, 10)), var=pd.DataFrame(index=names))
    of_genome = ad.AnnData(
        np.ones((3, 10)), var=pd.DataFrame(index=[f"{prefix}{name}" for name in names[:4]] + names[4:])
    )
    with pytest.warns(UserWarning, match=rf"nearly the same name in a and b, e\.g\. 'G0' and '{prefix}G0'"):
        merge_data_sets({"a": plain, "b": of_genome}, {})
    with pytest.raises(InvalidInputError, match=rf"nearly the same name in a and b, e\.g\. 'G0' and '{prefix}G0'"):
        merge_data_sets({"a": plain[:, :4].copy(), "b": of_genome[:, :4].copy()}, {})


def test_whole_numbers_with_and_without_fraction_are_nearly_the_same() -> None:
    first, second = (
        ad.AnnData(np.ones((3, 2)), var=pd.DataFrame(index=names)) for names in (["12", "7"], ["12.0", "7.0"])
    )
    with pytest.raises(InvalidInputError, match=r"nearly the same name in a and b, e\.g\. '12' and '12.0'"):
        merge_data_sets({"a": first, "b": second}, {})


def test_barcodes_are_no_batches() -> None:
    cells = ad.AnnData(np.ones((30, 2)), obs={"batch": [f"AAAC{number}" for number in range(30)]})
    with pytest.raises(
        InvalidInputError, match=r"obs column 'batch' has 30 different values for 30 cells, like 'AAAC0'"
    ):
        merge_data_sets({"a": cells}, {})
    merged, batches = merge_data_sets({"a": cells}, {"a": False})
    assert (batches, merged.obs["batch_original"].iloc[0]) == ({0: "a"}, "AAAC0")


def test_hundreds_of_batches_are_told() -> None:
    cells = ad.AnnData(np.ones((603, 2)), obs={"batch": [f"b{number // 3}" for number in range(603)]})
    with pytest.warns(UserWarning, match="a: 201 batches, of 3 cells on average: 'b0', 'b1' ...; is that the column"):
        merge_data_sets({"a": cells}, {})


@pytest.mark.parametrize(
    ("changed", "told"), [(lambda X: (X > 0) * 1.0, "nothing but 0 and 1"), (lambda X: 0 * X, "all are 0")]
)
@pytest.mark.parametrize("where", ["file", "memory"])
def test_counts_beside_a_matrix_of_zeros_and_ones_are_named(
    changed: Callable[[np.ndarray], np.ndarray], told: str, where: str, tmp_path: Path
) -> None:
    counts = np.random.default_rng(0).poisson(2, (30, 40)).astype(np.float32)
    cells = ad.AnnData(changed(counts).astype(np.float32), obs={"batch": ["x", "y"] * 15}, layers={"counts": counts})
    cells.write_h5ad(tmp_path / "cells.h5ad")
    given = {"inputs": cells} if where == "memory" else {"input_files": [tmp_path / "cells.h5ad"]}
    with pytest.raises(InvalidInputError, match=rf"X holds no raw counts .{told}.; layers.'counts'. does: choose with"):
        WAERecipe({}, **given)


def test_counts_of_nothing_but_zeros_and_ones_are_told() -> None:
    cells = ad.AnnData(np.tile([[0.0, 1.0]], (60, 40)).astype(np.float32), obs={"batch": ["x", "y"] * 30})
    with pytest.warns(UserWarning, match="the counts are nothing but 0 and 1: raw counts are expected"):
        WAERecipe({}, inputs=cells)


def test_cells_of_a_file_that_is_open_are_read(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(2, (30, 40)).astype(np.float32)
    for values in (counts, sparse.csr_matrix(counts)):
        ad.AnnData(values, obs={"batch": ["x", "y"] * 15}).write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        np.testing.assert_array_equal(WAERecipe({}, inputs=backed).sc_raw.X.toarray(), counts)
        backed.file.close()


def test_running_numbers_of_some_genes_never_match_by_place() -> None:
    cells = ad.AnnData(np.ones((3, 90)), var=pd.DataFrame(index=list(map(str, range(90)))))
    with pytest.raises(InvalidInputError, match=r"a: expected names of genes, got running numbers \(0, 2, 4, "):
        merge_data_sets({"a": cells[:, ::2].copy(), "b": cells[:, ::3].copy()}, {})


def test_numbered_genes_in_memory_are_called_as_in_files() -> None:
    names = [f"G{number}" for number in range(5)]
    numbered = ad.AnnData(np.ones((3, 5)), var=pd.DataFrame({"gene_name": names}, index=list("01234")))
    named = ad.AnnData(np.ones((3, 5)), var=pd.DataFrame(index=names[::-1]))
    merged, _ = merge_data_sets({"a": numbered, "b": named}, {})
    assert list(merged.var_names) == names


@pytest.mark.parametrize(("dtype", "kind"), [(complex, "complex numbers"), (object, "objects"), (str, "text")])
def test_values_that_are_no_numbers_are_told(dtype: Any, kind: str) -> None:
    cells = ad.AnnData(np.ones((4, 3), dtype=dtype), obs={"batch": ["x", "y"] * 2})
    for call in (lambda: WAERecipe({}, inputs=cells), lambda: Reconstructor().fit(cells)):
        with pytest.raises(InvalidInputError, match=f"expected counts in X, got {kind}"):
            call()
