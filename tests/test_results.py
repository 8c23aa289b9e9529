"""Figures that benchmarks measure, on their way to the tables of the documentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]

from record import record  # noqa: E402
from result_tables import table, write_result_tables  # noqa: E402


def test_the_command_is_recorded_without_the_file_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scale.json"
    for words in (["--results", str(file)], [f"--results={file}"]):
        monkeypatch.setattr(sys, "argv", ["/somewhere/scale.py", "10", *words, "--folder", "a b"])
        record(file, {"one": {"seconds": 1.0}})
        assert json.loads(file.read_text())["one"]["command"] == "python benchmarks/scale.py 10 --folder 'a b'"


def test_of_places_on_this_machine_the_names_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/scale.py", "--data", "/home/me/cells", "results/x"])
    record(tmp_path / "scale.json", {"one": {"seconds": 1.0}})
    kept = json.loads((tmp_path / "scale.json").read_text())
    assert kept["one"]["command"] == "python benchmarks/scale.py --data cells results/x"


def test_a_row_measured_again_replaces_the_old_one_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "new" / "scale.json"
    record(file, {"one": {"seconds": 1.0}, "two": {"seconds": 2.0}}, "old")
    record(file, {"one": {"seconds": 3.0}}, "new")
    rows = json.loads(file.read_text())
    assert {name: (row["seconds"], row["command"]) for name, row in rows.items()} == {
        "one": (3.0, "new"),
        "two": (2.0, "old"),
    }


def test_the_table_shows_every_figure_and_says_how_to_measure_it_again(tmp_path: Path) -> None:
    row = {"cells": 100_000, "seconds": 1234.56, "difference": 4.2e-9, "share": 0.12345}
    record(tmp_path / "scale.json", {"all": row, "few": {"outcome": "passed"}}, "make it")
    write_result_tables(tmp_path, tmp_path)
    lines = (tmp_path / "scale.md").read_text().splitlines()
    assert lines[0] == "| | cells | seconds | difference | share | outcome |"
    assert lines[2] == "| all | 100,000 | 1,235 | 4.2e-09 | 0.123 |  |"
    assert "- `make it`" in lines


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_table_that_was_measured_is_in_the_documentation(path: Path) -> None:
    assert table(json.loads(path.read_text()))
    assert any(f"{{include}} generated/{path.name[:-5]}.md" in page.read_text() for page in ROOT.glob("docs/*.md"))
