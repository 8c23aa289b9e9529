"""A parameter is declared once: default, check, errors, schema and documentation follow."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from discern.config import reading, schema
from discern.config.fields import Positive
from discern.errors import InvalidInputError, UnknownNameError

ROOT = Path(__file__).parents[2]


class Filtering(schema.Filtering):
    """With a parameter more."""

    max_genes: Positive = Field(default=9000, description="A cell is kept if no more genes are detected in it.")


class InputDs(schema.InputDs):
    """With a parameter more."""

    filtering: Filtering = Field(default=Filtering(), description="Which cells and genes are kept.")


class Experiment(schema.Experiment):
    """With a parameter more."""

    input_ds: InputDs = Field(default=InputDs(), description="The cells.")


class ParameterFile(schema.ParameterFile):
    """With a parameter more."""

    experiments: dict[str, Experiment] = Field(description="The experiments.")


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "Experiment", Experiment)
    monkeypatch.setattr(reading, "ParameterFile", ParameterFile)


def given(value: Any, key: str = "max_genes") -> dict[str, Any]:
    return {"input_ds": {"filtering": {key: value}}}


def test_its_default_is_there_and_goes_back_to_the_file() -> None:
    experiment = reading.parse_experiment({})
    assert experiment.input_ds.filtering.max_genes == 9000
    assert experiment.as_dict()["input_ds"]["filtering"] == {"min_genes": 400, "min_cells": 3, "max_genes": 9000}
    assert reading.parse_experiment(experiment.as_dict()) == experiment


def test_a_wrong_value_and_a_wrong_name_are_told() -> None:
    with pytest.raises(InvalidInputError, match=r"^input_ds\.filtering\.max_genes: expected 1 or more, got -1$"):
        reading.parse_experiment(given(-1))
    with pytest.raises(InvalidInputError, match="max_genes: expected an integer"):
        reading.parse_experiment(given("many"))
    with pytest.raises(UnknownNameError, match=r"max_gene: unknown key .did you mean 'max_genes'"):
        reading.parse_experiment(given(1, "max_gene"))


def test_editors_and_the_documentation_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reading.schema()["$defs"]["Filtering"]["properties"]["max_genes"]
    assert (found["default"], found["type"]) == (9000, "integer")
    assert found["description"] == "A cell is kept if no more genes are detected in it."

    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import parameter_page

    parameter_page.write_parameter_page(tmp_path / "parameters.md")
    page = (tmp_path / "parameters.md").read_text()
    assert "`max_genes`" in page
    assert found["description"] in page


def test_values_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        reading.parse_experiment({}).input_ds.filtering.max_genes = 1
