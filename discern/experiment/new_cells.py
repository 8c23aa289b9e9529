"""Project cells that the model has not seen, with an experiment or with a model that was given away."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from discern.errors import InvalidInputError
from discern.experiment.folder import load_experiment, open_experiment, read_network, require_model
from discern.folder.layout import ExperimentFolder
from discern.inputs import raw_counts
from discern.inputs.merging import Source
from discern.inputs.readers import read_raw_input
from discern.model import exported
from discern.model.known import NewCells, genes_of_experiment, of_experiment
from discern.model.projection import EncodedCells, project
from discern.preprocessing.new_cells import ProjectionRecipe
from discern.runtime.atomic import refuse_link
from discern.runtime.devices import start_tensorflow
from discern.runtime.memory import matrix_budget

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import anndata as ad

    from discern.config.schema import Experiment
    from discern.experiment.new_input import NewInput, Wanted
    from discern.model.known import Known
    from discern.model.trained import TrainedNetwork

_LOGGER = logging.getLogger(__name__)


_IN_MEMORY = 2**28  # bytes of counts; more are read block by block


def project_new_cells(exp_folder: Path, new: NewInput, wanted: Wanted) -> list[Path]:
    """Project new cells with the model of an experiment; nothing is trained, its own cells stay as they are.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME, trained.
        new: The cells.
        wanted: What to project them to.

    Returns:
        The files written.

    Raises:
        UserError: If there is no model, or the cells do not fit it; nothing is written then.
    """
    exp_folder = Path(exp_folder)
    experiment = open_experiment(exp_folder)
    require_model(exp_folder)
    known = genes_of_experiment(ExperimentFolder(exp_folder))
    targets = wanted.targets(known.batches)
    recipe = read_new_cells(new, known, experiment)
    trained = read_network(exp_folder, experiment)
    known = of_experiment(
        exp_folder, trained, _references(targets), lambda: load_experiment(exp_folder, None, batch_size=1)
    )
    return _write(trained, experiment, known, recipe, targets, _unlinked(new, exp_folder), wanted)


def project_with_model(file: Path, new: NewInput, wanted: Wanted) -> list[Path]:
    """Project new cells with a model that `discern export` wrote; see `project_new_cells`."""
    place = new.place(None)
    model = exported.read(file)
    start_tensorflow(None, None)
    targets = wanted.targets(model.known.batches)
    recipe = read_new_cells(new, model.known, model.parameters)
    return _write(exported.network(model), model.parameters, model.known, recipe, targets, place, wanted)


def _unlinked(new: NewInput, exp_folder: Path) -> Path:
    """Return the folder of the results; within an experiment it must not be a link."""
    place = new.place(ExperimentFolder(exp_folder))
    if new.output is None:
        refuse_link(place.parent)
        refuse_link(place)
    return place


def _references(targets: Mapping[str, tuple[str | None, str | None]]) -> list[str | None]:
    """Return the batches that cells are decoded as, None for others than one batch."""
    return list(dict.fromkeys(value or None for _, value in targets.values()))


def read_new_cells(new: NewInput, known: Known, experiment: Experiment) -> ProjectionRecipe:
    """Read raw cells, find the model's genes in them and their batches; they are not processed yet."""
    cells = _read(new.file, frozenset(known.genes.index))
    source = Source(new.batch_column)
    return ProjectionRecipe(known.genes, known.uns, experiment, str(new.file), cells, source, new.batch, new.as_batch)


def _read(path: Path, genes: Collection[str]) -> ad.AnnData:
    layer = raw_counts.suggested(path)
    if layer is not None:
        _LOGGER.info("%s: X holds no raw counts; they are taken from %s", path, raw_counts.shown(layer))
    cells = read_raw_input(path, min(_IN_MEMORY, matrix_budget()), layer, genes)
    try:
        raw_counts.check(str(path), path, cells.X, layer)
    except InvalidInputError:
        if other := raw_counts.places(path):
            raise InvalidInputError(
                f"{path}: expected raw counts in X, or in a layer of a usual name such as 'counts'; "
                f"{' and '.join(map(raw_counts.shown, other))} may hold them: put them into X"
            ) from None
        raise
    return cells


def _write(
    trained: TrainedNetwork,
    experiment: Experiment,
    known: Known,
    recipe: ProjectionRecipe,
    targets: Mapping[str, tuple[str | None, str | None]],
    folder: Path,
    wanted: Wanted,
) -> list[Path]:
    data = recipe().sc_raw
    judge = NewCells(known, EncodedCells.of(trained, data), recipe.own_batch)
    seed = experiment.training.seed or 0
    return project(trained, data, judge, targets, folder, wanted.output, seed, wanted.store_sigmas)
