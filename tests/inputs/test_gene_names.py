"""Genes that are told apart, in memory as in files."""

from __future__ import annotations

from typing import Any

import anndata as ad
import dask.array
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from discern.data.chunks import iter_blocks
from discern.errors import InvalidInputError
from discern.inputs.gene_names import only_genes
from discern.inputs.merging import merge_data_sets
from discern.preprocessing.recipe import WAERecipe

pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique")

COUNTS = np.array([[1, 0, 2], [0, 3, 0]])


def _cells(names: list[str], X: Any = COUNTS, **columns: list[str]) -> ad.AnnData:
    return ad.AnnData(X, var=pd.DataFrame(columns, index=names))


@pytest.mark.parametrize("names", [["DUP", "B", "DUP"], ["DUP", "B", "DUP-1"]])
def test_repeated_symbols_are_matched_by_their_ids_whatever_their_order(names: list[str]) -> None:
    first = _cells(names, gene_ids=["E1", "E2", "E3"])
    second = _cells(names, X=COUNTS[:, ::-1], gene_ids=["E3", "E2", "E1"])
    merged, _ = merge_data_sets({"a": first, "b": second}, {})
    assert list(merged.var_names) == ["DUP", "B", "E3"]
    np.testing.assert_array_equal(merged.X.toarray(), np.vstack([COUNTS, COUNTS]))


def test_a_symbol_that_stands_for_different_genes_in_two_inputs_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    first = _cells(["DUP", "B", "C"], gene_ids=["E1", "E2", "E3"])
    second = _cells(["DUP", "B", "C"], gene_ids=["E9", "E2", "E3"])
    with caplog.at_level("INFO"):
        merged, _ = merge_data_sets({"a": first, "b": second}, {})
    assert list(merged.var_names) == ["B", "C"]
    assert "whose name stands for different genes in a and b, e.g. 'DUP': E1 and E9" in caplog.text


def test_ids_of_other_kinds_say_nothing() -> None:
    first = _cells(["A", "B", "C"], gene_ids=["ENSG1", "ENSG2", "ENSG3"])
    second = _cells(["A", "B", "C"], gene_ids=["7157", "672", "675"])
    merged, _ = merge_data_sets({"a": first, "b": second}, {})
    assert list(merged.var_names) == ["A", "B", "C"]


def test_repeated_symbols_without_ids_are_left_out_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    found = only_genes(_cells(["DUP", "B", "DUP"]), "here")
    assert list(found.var_names) == ["B"]
    assert "here: 1 gene names occur more than once and no id tells them apart, e.g. DUP" in caplog.text


def test_genes_without_symbol_are_called_by_their_id() -> None:
    assert list(only_genes(_cells(["A", "", ""], gene_ids=["E1", "E2", ""]), "here").var_names) == ["A", "E2"]


def test_names_that_look_like_numbers_stay_text() -> None:
    assert list(only_genes(_cells(["100.0", "7157.0", "2.0"]), "here").var_names) == ["100.0", "7157.0", "2.0"]
    assert list(only_genes(_cells(["100.0", "A", "2.0"]), "here").var_names) == ["100.0", "A", "2.0"]


def test_names_that_were_bytes_are_text() -> None:
    assert list(only_genes(_cells(["b'A'", "b'B'", "b'C'"]), "here").var_names) == ["A", "B", "C"]


def test_features_in_memory_are_treated_as_those_in_files(caplog: pytest.LogCaptureFixture) -> None:
    cells = _cells(["A", "CD3", "C"], feature_types=["Gene Expression", "Antibody Capture", "Gene Expression"])
    cells.obs["batch"] = ["x", "y"]
    recipe = WAERecipe({}, inputs=cells)
    assert list(recipe.sc_raw.var_names) == ["A", "C"]
    assert "1 of 3 features are left out" in caplog.text


@pytest.mark.parametrize(
    "X",
    [
        dask.array.from_array(COUNTS.astype(np.float32), chunks=(1, 2)),
        dask.array.from_array(sparse.csr_matrix(COUNTS), chunks=(1, 2), asarray=False),
        np.ma.masked_array(COUNTS, mask=False), COUNTS.astype(np.float16), COUNTS.astype(">i4"),
        sparse.csc_array(COUNTS), sparse.csr_matrix(([1, 1, 1, 3], [0, 2, 2, 1], [0, 3, 4]), shape=(2, 3)),
    ],
)  # fmt: skip
def test_every_kind_of_matrix_in_memory(X: Any) -> None:
    before = X.copy()
    found = only_genes(_cells(["A", "B", "C"], X=X), "here").X
    stacked = sparse.vstack([block for _, block in iter_blocks(found)])
    np.testing.assert_array_equal(stacked.toarray(), COUNTS)
    assert stacked.nnz == 3
    if sparse.issparse(X):
        assert X.nnz == before.nnz


def test_matrices_without_counts_are_refused() -> None:
    masked = np.ma.masked_array(COUNTS, mask=COUNTS == 3)
    with pytest.raises(InvalidInputError, match=r"here: .* 1 values are masked"):
        only_genes(_cells(["A", "B", "C"], X=masked), "here")
    with pytest.raises(InvalidInputError, match="here: expected counts in X, got complex numbers"):
        only_genes(_cells(["A", "B", "C"], X=COUNTS * 1j), "here")


def test_nothing_changes_where_nothing_has_to() -> None:
    cells = _cells(["A", "B", "C"], X=sparse.csr_matrix(COUNTS))
    assert only_genes(cells, "here") is cells
