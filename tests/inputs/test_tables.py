"""Tables as people have them: what separates the columns, which way round, names that look like something else."""

from __future__ import annotations

import gzip
import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from discern.errors import InvalidInputError
from discern.inputs.readers import read_raw_input, read_raw_inputs

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

COUNTS = pd.DataFrame(
    np.random.default_rng(0).poisson(2, (6, 4)),
    index=[f"GENE{number}" for number in range(6)],
    columns=["AAACCTGAGAAACCAT-1", "AAACCTGAGAAACCTA-1", "AAACCTGAGAAACGAG-1", "AAACCTGAGAAAGTGG-1"],
)
"""6 genes x 4 cells."""


def _assert_is(adata: ad.AnnData, counts: pd.DataFrame = COUNTS) -> None:
    assert list(adata.obs_names) == list(counts.columns)
    assert list(adata.var_names) == list(counts.index)
    np.testing.assert_array_equal(adata.X.toarray(), counts.T.to_numpy())


@pytest.mark.parametrize(
    ("name", "separator"), [("c.txt", ","), ("c.csv", "\t"), ("c.csv", ";"), ("c.tsv", " "), ("c.txt", "|")]
)
def test_separator_is_found_whatever_the_name_says(tmp_path: Path, name: str, separator: str) -> None:
    COUNTS.to_csv(tmp_path / name, sep=separator, index_label="GENE")
    _assert_is(read_raw_input(tmp_path / name))


def test_table_that_r_writes(tmp_path: Path) -> None:
    lines = COUNTS.to_csv(sep=" ", quoting=2).splitlines()
    (tmp_path / "r.txt").write_text("\n".join([lines[0].removeprefix('"" '), *lines[1:]]) + "\n")
    _assert_is(read_raw_input(tmp_path / "r.txt"))


def test_semicolons_with_decimal_commas(tmp_path: Path) -> None:
    halves = COUNTS + 0.5
    halves.to_csv(tmp_path / "c.csv", sep=";", decimal=",")
    _assert_is(read_raw_input(tmp_path / "c.csv"), halves)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings_and_line_ends_of_windows(tmp_path: Path, encoding: str) -> None:
    counts = COUNTS.rename(index={"GENE5": "GENEµ"})
    (tmp_path / "c.csv").write_bytes(counts.to_csv(lineterminator="\r\n").encode(encoding))
    _assert_is(read_raw_input(tmp_path / "c.csv"), counts)


@pytest.mark.parametrize("with_name", [True, False])
def test_separator_at_the_end_of_each_line(tmp_path: Path, with_name: bool) -> None:
    head, *rows = COUNTS.to_csv().splitlines()
    (tmp_path / "c.csv").write_text("\n".join([head + "," * with_name, *(row + "," for row in rows)]) + "\n")
    _assert_is(read_raw_input(tmp_path / "c.csv"))


@pytest.mark.parametrize("comment", ["####\n## BD Rhapsody, version 1.9, of 2020\n####\n", "% made by hand\n\n", "#"])
def test_comment_before_the_table(tmp_path: Path, comment: str) -> None:
    (tmp_path / "c.csv").write_text(comment + COUNTS.to_csv(index_label="gene"))
    _assert_is(read_raw_input(tmp_path / "c.csv"))


@pytest.mark.parametrize(
    "names",
    ["nan NA null None N/A TRUE", "100 101 102 103 104 105", "001 002 1e5 007 1E3 100.50", "inf -1 0x1 1_0 NaN NULL"],
)
@pytest.mark.parametrize("packed", [True, False])
def test_names_stay_the_text_that_they_are(tmp_path: Path, names: str, packed: bool) -> None:
    counts = COUNTS.set_axis(names.split(), axis=0)
    path = tmp_path / ("c.tsv.gz" if packed else "c.tsv")
    counts.to_csv(path, sep="\t", index_label="gene")
    _assert_is(read_raw_input(path), counts)


def test_names_of_cells_stay_too_and_may_be_repeated(tmp_path: Path) -> None:
    text = COUNTS.to_csv(index_label="gene").splitlines()
    (tmp_path / "c.csv").write_text("\n".join(["gene,001,NA,1e5,001", *text[1:]]))
    assert list(read_raw_input(tmp_path / "c.csv").obs_names) == ["001", "NA", "1e5", "001"]


@pytest.mark.parametrize(
    "cells",
    [
        ["A1", "A2", "B1", "H12"],
        ["17", "3", "205", "9"],
        ["AAACCTGAGAAACCAT", "CAACCTGAGAAACCAT", "GAACCTGAGAAACCAT", "TAACCTGAGAAACCAT"],
        ["cell1", "cell2", "cell3", "cell4"],
    ],
)
def test_rows_that_are_cells_are_found_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cells: list[str]
) -> None:
    counts = COUNTS.set_axis(cells, axis=1)
    counts.T.to_csv(tmp_path / "c.csv")
    _assert_is(read_raw_input(tmp_path / "c.csv"), counts)
    assert "are taken as cells" in caplog.text


def test_a_few_names_that_only_genes_have_are_enough(tmp_path: Path) -> None:
    genes = [*["AAAS", "AACS", "ABAT", "ABCB7", "ACLY", "ADAR", "AGL", "AHR", "AIP"], "GAPDH"]
    counts = pd.DataFrame(np.arange(30).reshape(10, 3), index=genes, columns=["D28.1_x", "D28.1_y", "D30.5_z"])
    counts.T.to_csv(tmp_path / "c.csv")
    _assert_is(read_raw_input(tmp_path / "c.csv"), counts)


def test_names_that_tell_nothing_are_taken_as_documented_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = COUNTS.set_axis(list("uvwxyz"), axis=0).set_axis(["k", "l", "m", "n"], axis=1)
    counts.to_csv(tmp_path / "c.csv")
    _assert_is(read_raw_input(tmp_path / "c.csv"), counts)
    assert "transpose it if its rows are cells" in caplog.text


def test_genes_of_another_input_decide_which_way_round_a_table_is(tmp_path: Path) -> None:
    counts = COUNTS.set_axis(list("uvwxyz"), axis=0).set_axis(["k", "l", "m", "n"], axis=1)
    counts.T.to_csv(tmp_path / "turned.csv")
    counts.set_axis(["o", "p", "q", "r"], axis=1).rename_axis("gene").to_csv(tmp_path / "known.csv")
    for order in (["turned.csv", "known.csv"], ["known.csv", "turned.csv"]):
        read = read_raw_inputs([tmp_path / name for name in order])
        assert [path.rsplit("/")[-1] for path in read] == order
        _assert_is(read[str(tmp_path / "turned.csv")], counts)


def test_columns_and_rows_that_are_none_of_cells_and_genes_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = COUNTS.copy()
    for place, (name, values) in enumerate({"Chr": "1;1", "Start": "5;9", "Length": 700}.items()):
        table.insert(place, name, values)
    table.loc["__no_feature"] = ["", "", 0, 9, 9, 9, 9]
    table.to_csv(tmp_path / "counts.tsv", sep="\t", index_label="Geneid")
    _assert_is(read_raw_input(tmp_path / "counts.tsv"))
    assert "no cells are left out: Chr, Start, Length" in caplog.text
    assert "no genes are left out: __no_feature" in caplog.text


def test_running_numbers_before_the_names_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    COUNTS.reset_index(names="gene").to_csv(tmp_path / "c.csv")
    _assert_is(read_raw_input(tmp_path / "c.csv"))
    assert "the first column numbers the rows" in caplog.text


REFUSED = {
    "two name columns": (
        COUNTS.reset_index(names="gene_name").set_axis([f"ENSG{n:011}" for n in range(6)], axis=0).to_csv(),
        "column 'gene_name' holds 'GENE0' in row 'ENSG00000000000'",
    ),
    "no names of genes": (COUNTS.reset_index(drop=True).to_csv(), "names of the genes .* got running numbers"),
    "no line of names": (COUNTS.to_csv(header=False), "names of cells or genes in the first line, got numbers"),
    "empty": ("", "got an empty file"),
    "only a line of names": (",c1,c2\n", "there is only one line"),
    "only comment": ("# nothing\n", "only lines of comment"),
    "row too short": (COUNTS.to_csv() + "GENE9,1,2\n", "row 8 has 3, row 2 has 5"),
    "row too long": (COUNTS.to_csv() + "GENE9,1,2,3,4,5\n", "row 8 has 6, row 2 has 5"),
    "nothing in a place": (COUNTS.to_csv() + "GENE9,1,,3,4\n", "holds nothing in row 'GENE9'"),
    "missing value": (COUNTS.to_csv() + "GENE9,1,NA,3,4\n", "holds 'NA' in row 'GENE9'"),
    "no separator": ("once\nupon\na\ntime\n", "columns separated by tab, comma, semicolon or blanks"),
    "names that do not fit": ("c1,c2,c3,c4,c5\nA,1,2\nB,3,4\n", "a name for each column, the first line has 5 names"),
    "thousands": ("g\tc1\tc2\nA\t1,234\t2\nB\t3\t4\n", "'1,234' is a thousand or a fraction"),
    "kallisto": ("target_id,length,eff_length,est_counts,tpm\nA,9,9,1,2\nB,9,9,3,4\n", "est_counts, tpm .*one sample"),
    "MatrixMarket": ("%%MatrixMarket matrix coordinate integer general\n1 1 1\n1 1 1\n", "is a MatrixMarket file"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_table_of_counts_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(InvalidInputError, match=rf"c\.csv: .*{message}") as caught:
        read_raw_input(tmp_path / "c.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", ["GENEx,1,2", "GENEx,1,2,3,4,5", "GENEx,1,2,x,4"])
def test_rows_that_do_not_fit_far_below_are_refused(tmp_path: Path, row: str) -> None:
    many = pd.concat([COUNTS] * 200).set_axis([f"GENE{n}" for n in range(1200)], axis=0)
    (tmp_path / "c.csv").write_text(many.to_csv() + row + "\n")
    with pytest.raises(InvalidInputError, match=r"c\.csv: .*(GENEx|1202)"):
        read_raw_input(tmp_path / "c.csv")


def test_letters_far_below_that_are_no_utf8(tmp_path: Path) -> None:
    many = pd.concat([COUNTS] * 2000).set_axis([f"GENE{n}" for n in range(11999)] + ["GENEµ"], axis=0)
    (tmp_path / "c.csv").write_bytes(many.to_csv().encode("latin-1"))
    _assert_is(read_raw_input(tmp_path / "c.csv"), many)


def test_truncated_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(COUNTS.to_csv().encode() * 50)[:-20])
    with pytest.raises(InvalidInputError, match=r"c\.csv\.gz: "):
        read_raw_input(tmp_path / "c.csv.gz")


def test_names_that_a_spreadsheet_made_dates_of_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    COUNTS.rename(index={"GENE1": "1-Mar", "GENE2": "2-Sep"}).to_csv(tmp_path / "c.csv")
    with caplog.at_level(logging.WARNING):
        assert "1-Mar" in read_raw_input(tmp_path / "c.csv").var_names
    assert "2 names of genes look like dates" in caplog.text


def test_genes_without_name_or_of_the_same_name_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    COUNTS.set_axis(["A", "", "DUP", "DUP", "E", "F"], axis=0).to_csv(tmp_path / "c.csv", index_label="gene")
    _assert_is(read_raw_input(tmp_path / "c.csv"), COUNTS.iloc[[0, 4, 5]].set_axis(["A", "E", "F"], axis=0))
    assert "1 gene names occur more than once and no id tells them apart, e.g. DUP; these 2 genes" in caplog.text
    assert "1 genes without a name are left out" in caplog.text


def test_a_table_without_names_of_rows_is_refused(tmp_path: Path) -> None:
    """Its first cell's counts would be taken as names of genes."""
    counts = pd.DataFrame(np.arange(60).reshape(20, 3) % 4, columns=["AAACCTGAGAAACCAT-1", "AAACCTGAGAAACCGG-1", "x"])
    counts.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InvalidInputError, match=r"a\.csv: expected names .* in the first column, got numbers that rep"):
        read_raw_input(tmp_path / "a.csv")


def test_names_with_one_letter_and_a_number_are_no_wells(tmp_path: Path) -> None:
    counts = pd.DataFrame(1, index=[f"g{n}" for n in range(30)], columns=[f"s{n}" for n in range(5)])
    counts.to_csv(tmp_path / "a.csv")
    assert read_raw_input(tmp_path / "a.csv").shape == (5, 30)


def test_numbers_that_describe_genes_are_no_cells(tmp_path: Path) -> None:
    counts = pd.DataFrame({"gene_length": [500, 600], "entrez_id": [10, 11], "AAACCTGAGAAACCAT-1": [1, 2]}, ["A", "B"])
    counts.to_csv(tmp_path / "a.csv")
    assert read_raw_input(tmp_path / "a.csv").obs_names.to_list() == ["AAACCTGAGAAACCAT-1"]


def test_empty_fields_are_told_with_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("gene,c1,c2\nA,1,\nB,2,3\n")
    with pytest.raises(InvalidInputError, match="column 'c2' holds nothing in row 'A'; write 0 where nothing was coun"):
        read_raw_input(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["Total", "sum", "total counts"])
def test_sums_are_no_cells_and_no_genes(name: str, tmp_path: Path) -> None:
    plain = COUNTS.copy()
    summed = plain.assign(**{name: plain.sum(axis=1)})
    summed.loc[name] = summed.sum()
    summed.to_csv(tmp_path / "c.csv")
    plain.to_csv(tmp_path / "plain.csv")
    found, expected = read_raw_input(tmp_path / "c.csv"), read_raw_input(tmp_path / "plain.csv")
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
