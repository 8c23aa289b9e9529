"""Names from files reach neither terminal, log, report nor tables as commands."""

from __future__ import annotations

import csv
import io
import logging
from typing import TYPE_CHECKING

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from discern.experiment.evaluate import _write_table
from discern.runtime import logs
from discern.runtime.text import LONGEST_MESSAGE, cell, from_cell, has_control, message, page, visible

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

EVIL = "\x1b[2J\x1b]0;owned\x07\u202ecod\x00\r\n\x9b31m"


@given(st.text())
def test_a_message_is_one_visible_line(text: str) -> None:
    shown = message(text)
    assert not has_control(shown)
    assert len(shown) <= LONGEST_MESSAGE


def test_what_is_harmless_stays() -> None:
    assert message("Müller: Tag 3, CD8⁺ 細胞 'x'") == "Müller: Tag 3, CD8⁺ 細胞 'x'"


def test_a_long_message_keeps_its_beginning_and_end() -> None:
    shown = message("p.json: " + "x" * 5000 + " do this")
    assert shown.startswith("p.json: ")
    assert shown.endswith(" do this")
    assert " ... " in shown


def test_a_page_keeps_its_lines() -> None:
    assert page("a\n\tb\x1b\n") == "a\n\tb\\x1b\n"


@given(st.text())
def test_a_cell_of_a_table_is_no_formula_and_comes_back(text: str) -> None:
    safe = cell(text)
    assert not safe.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not has_control(safe)
    assert from_cell(safe) == text


def test_tables_come_back_from_disk(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "@SUM(1)", "-1+1", "+1", "'quoted", EVIL, "plain", "back\\slash"]
    table = pd.DataFrame({"batch": pd.Categorical(names), "=x": range(8)}, index=names)
    _write_table(table, tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_text()
    rows = list(csv.reader(io.StringIO(text)))
    assert not any(value.startswith(("=", "+", "-", "@")) for row in rows for value in row)
    assert not has_control(text.replace("\n", ""))
    assert [from_cell(row[0]) for row in rows[1:]] == names
    assert [from_cell(row[1]) for row in rows[1:]] == names
    assert from_cell(rows[0][2]) == "=x"


def test_terminal_and_log_show_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = [*root.handlers]
    try:
        logs.configure()
        with logs.to_file(tmp_path / "discern.log"):
            try:
                raise ValueError(EVIL)
            except ValueError:
                logging.getLogger("discern").error("batch %s", EVIL, exc_info=True)
    finally:
        root.handlers[:] = before
    for text in (capsys.readouterr().err, (tmp_path / "discern.log").read_text()):
        assert not has_control(text.replace("\n", ""))
        assert visible("\x1b[2J") in text
