"""Which new cells are to be projected, and to what. Loads no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from discern.data.annotation import parse_metadata
from discern.errors import InvalidInputError
from discern.inputs.readers import dataset_name
from discern.model.targets import OutputFormat, projection_targets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from discern.folder.layout import ExperimentFolder


@dataclass(frozen=True)
class NewInput:
    """Raw cells to project.

    Attributes:
        file: They, in any format that `discern process` reads.
        batch_column: obs column with their batch; None for `batch` if there is one, else the name of the file.
        batch: The batch of all of them, one that the model knows; None to look into the file.
        as_batch: The batch that cells of unknown batches are encoded as; None for an error.
        output: Folder for the results; None for `projected/NAME` in the experiment, NAME that of the file.
    """

    file: Path
    batch_column: str | None = None
    batch: str | None = None
    as_batch: str | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch_column is not None:
            raise InvalidInputError("--batch and --batch-column: expected one of them")

    def place(self, experiment: ExperimentFolder | None) -> Path:
        """Return the folder of the results.

        Args:
            experiment: That whose model is used; None for a model that was given away.

        Raises:
            InvalidInputError: If there is neither `output` nor an experiment.
        """
        if self.output is not None:
            return self.output
        if experiment is None:
            raise InvalidInputError("--model: expected --output as well, the folder for the results")
        return experiment.projected / dataset_name(self.file)


@dataclass(frozen=True)
class Wanted:
    """What new cells are projected to, and how it is written; see `discern.experiment.project.run_projection`."""

    metadata: Sequence[tuple[str | None, str | None]] = ()
    reference: str | None = None
    all_batches: bool = False
    output: OutputFormat = field(default_factory=OutputFormat)
    store_sigmas: bool = False

    def targets(self, batches: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
        """Return the obs column and its value by name of the file.

        Args:
            batches: Those that the model knows.

        Raises:
            InvalidInputError: If a target is no batch, or none that the model knows.
        """
        targets = [parse_metadata(target) for target in self.metadata]
        for column, value in targets:
            if column != "batch":
                raise InvalidInputError(
                    f"--metadata {column}:{value}: new cells are decoded as batches: expected batch:NAME, or batch: "
                    "for the average cell of the experiment"
                )
        if self.all_batches:
            targets += [("batch", name) for name in batches]
        none = pd.DataFrame({"batch": pd.Categorical([], categories=list(batches))})
        return projection_targets(list(dict.fromkeys(targets)), self.reference, self.output.suffix, none)
