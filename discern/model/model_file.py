"""What a model file says about its model. Nothing in it is executed.

Layout of ours (attribute `format_version` 2): `weights/LAYER/VARIABLE`, `optimizer/VARIABLE`, optionally `genes`,
`batches`, `scaling/mean`, `scaling/std`; attributes `epoch`, `n_genes`, `n_labels`, `total_number_cells`, `precision`,
`val_loss`, `experiment` (JSON).
A checkpoint within an epoch (`unfinished_epoch.h5`) also has the attribute `step` and `metrics/NUMBER`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from discern.data.containers import open_hdf5
from discern.data.structure import number
from discern.errors import InvalidInputError, MissingFileError
from discern.folder import layout
from discern.folder.layout import ExperimentFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py

    from discern.data.scaling import Scaling


FORMAT_VERSION = 2


@dataclass(frozen=True)
class ModelFile:
    """What a model file says about its model.

    Attributes:
        path: The file.
        n_genes: Number of genes.
        n_labels: Number of batches.
        total_number_cells: Number of cells in the training set.
        epoch: Number of epochs trained; None in a file of the original, see `iterations`.
        iterations: Number of optimiser steps; None if the file has no optimiser.
        genes: Names of the genes, if stored.
        batches: Names of the batches, if stored.
        scaling: Mean and standard deviation with which each gene was standardised, if stored.
        precision: In which the layers compute; files that do not say it are of float32.
    """

    path: Path
    n_genes: int
    n_labels: int
    total_number_cells: float
    epoch: int | None
    iterations: int | None
    genes: list[str] | None = None
    batches: list[str] | None = None
    scaling: Scaling | None = None
    precision: str = "float32"


def is_model_file(path: str | Path) -> bool:
    """Return whether a place to save a model to is meant as one file, not as a folder."""
    return Path(path).suffix in (".h5", ".hdf5") and not Path(path).is_dir()


def find_model(directory: Path) -> Path | None:
    """Return the newest model file of an experiment, or None.

    Args:
        directory: The experiment's folder, or the `job` folder in it; or the file itself.
    """
    if directory.is_file() and is_model_file(directory):
        return directory
    for folder in (Path(directory), ExperimentFolder(Path(directory)).job):
        for name in (layout.LAST, layout.BEST, "best_model.hdf5"):
            if (folder / name).is_file():
                return folder / name
        if others := layout.models(folder):
            return max(others, key=lambda path: path.stat().st_mtime)
    return None


def parameters_file(model_file: Path) -> Path:
    """Return the parameters.json of the experiment that a model file belongs to.

    Raises:
        MissingFileError: If there is none.
    """
    for folder in (model_file.parent.parent, model_file.parent):
        if ExperimentFolder(folder).parameters.is_file():
            return ExperimentFolder(folder).parameters
    raise MissingFileError(
        f"{model_file.parent.parent / 'parameters.json'}: not found; it describes the network in {model_file.name}"
    )


@contextlib.contextmanager
def open_model(path: Path) -> Iterator[h5py.File]:
    """Open a model file; whatever is wrong with it is an InvalidInputError that names it."""
    if not Path(path).exists():
        raise MissingFileError(f"{path}: there is no such model file")
    with open_hdf5(Path(path), "not a complete model file", "restore a copy or train again") as handle:
        if "format_version" in handle.attrs:
            version = number(handle.attrs, "format_version", 1)
            if version > FORMAT_VERSION:
                raise InvalidInputError(
                    f"{path}: written in format {version:g} by a newer DISCERN; this one reads up to {FORMAT_VERSION}"
                )
            if version != FORMAT_VERSION:
                raise ValueError(f"format_version is {version:g}, expected {FORMAT_VERSION}")
        yield handle
