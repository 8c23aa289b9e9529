"""What is called what in an experiment's folder."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

OUTPUTS = (
    "processed_data",
    "TF_records",
    "job",
    "projected",
    "backup",
    "evaluation",
    "analysis.json",
    "results.csv",
    "best_parameters.json",
    "hyperparameter_search.png",
    "Ray_Optimization*",
)
"""What the commands write into an experiment's folder and new data makes invalid, as patterns of names."""

LAST = "last_model.h5"
"""The model of the last epoch, in `job`."""

BEST = "best_model.h5"
"""The model of the lowest validation loss, in `job`."""

UNFINISHED = "unfinished_epoch.h5"
"""The checkpoint within an epoch, in `job`; a training goes on with it, but it is no model to project with."""


@dataclass(frozen=True)
class ExperimentFolder:
    """The folder of an experiment, EXPERIMENTS_DIR/NAME, and what is called what in it.

    Attributes:
        path: The folder; it need not exist.

    Example:
        >>> from pathlib import Path
        >>> ExperimentFolder(Path("experiments/lung")).cells.as_posix()
        'experiments/lung/processed_data/concatenated_data.h5ad'
    """

    path: Path

    @property
    def parameters(self) -> Path:
        """The parameters of this experiment alone."""
        return self.path / "parameters.json"

    @property
    def cells(self) -> Path:
        """The processed cells."""
        return self.path / "processed_data" / "concatenated_data.h5ad"

    @property
    def records(self) -> Path:
        """The folder of the cells for training, shuffled."""
        return self.path / "TF_records"

    @property
    def job(self) -> Path:
        """The folder of models, logs and pictures of the training."""
        return self.path / "job"

    @property
    def last_model(self) -> Path:
        """The model of the last epoch."""
        return self.job / LAST

    @property
    def seen_cells(self) -> Path:
        """What is known of the cells that the model has seen, for the projection of new ones."""
        return self.job / "seen_cells.hdf"

    @property
    def projected(self) -> Path:
        """The folder of the projections."""
        return self.path / "projected"

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation's report and tables."""
        return self.path / "evaluation"

    @property
    def backup(self) -> Path:
        """The folder of the models before online training."""
        return self.path / "backup"

    @property
    def original_data(self) -> Path:
        """The folder of copies of, or links to, the raw files."""
        return self.path / "original_data"


def models(job: Path) -> list[Path]:
    """Return the model files in a folder, by name; a checkpoint within an epoch is none."""
    files = (path for path in job.glob("*") if path.suffix in (".h5", ".hdf5"))
    return sorted(path for path in files if path.name != UNFINISHED and not path.name.startswith("."))


def is_output(name: str) -> bool:
    """Whether an entry of an experiment's folder is made by commands, from data.

    Example:
        >>> is_output("job"), is_output("notes.txt")
        (True, False)
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in OUTPUTS)
