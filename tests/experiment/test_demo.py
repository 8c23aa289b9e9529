from __future__ import annotations

from typing import TYPE_CHECKING

from discern.config.reading import load_parameters
from discern.experiment.demo import write_demo_inputs
from discern.experiment.process import check_inputs

if TYPE_CHECKING:
    from pathlib import Path


def test_the_demo_starts_from_parameters_and_cells_that_ship_with_the_program(tmp_path: Path) -> None:
    file = write_demo_inputs(tmp_path)

    parameters = load_parameters(file)
    assert parameters.experiments_dir == tmp_path / "experiments"
    (name,) = parameters.experiments
    check_inputs(parameters, name)
    raw = parameters.experiments[name].input_ds.raw_input
    assert [path.removeprefix(str(tmp_path)) for path in raw] == ["/data/celseq2.h5ad", "/data/dropseq.h5ad"]
