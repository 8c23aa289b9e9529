"""What is called what in an experiment's folder."""

from __future__ import annotations

import fnmatch

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

UNFINISHED = "unfinished_epoch.h5"
"""The checkpoint within an epoch, in `job`; a training goes on with it, but it is no model to project with."""


def is_output(name: str) -> bool:
    """Whether an entry of an experiment's folder is made by commands, from data.

    Example:
        >>> is_output("job"), is_output("notes.txt")
        (True, False)
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in OUTPUTS)
