"""Go on with a trained experiment on new cells."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from discern.data.epochs import number_of_epochs
from discern.data.processed import DISCERNData
from discern.data.records import write_records
from discern.errors import InvalidInputError, MissingFileError
from discern.experiment.folder import open_experiment, read_network
from discern.experiment.runner import DISCERNRunner
from discern.experiment.train import training_callbacks
from discern.folder.layout import ExperimentFolder
from discern.folder.locks import recover
from discern.model.estimator import DISCERN
from discern.model.model_file import find_model
from discern.model.transfer import extended, update_model
from discern.networks.optimizers import innermost
from discern.preprocessing.appending import save_data
from discern.preprocessing.new_cells import OnlineWAERecipe
from discern.runtime.atomic import Scratch, publish, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from discern.config.reading import Parameters
    from discern.config.schema import Experiment
    from discern.model.trained import TrainedNetwork
    from discern.model.training import Metrics

_LOGGER = logging.getLogger(__name__)


def _take_over_state(old: keras.Model, new: keras.Model) -> None:
    """Give the optimiser of `new` the state of that of `old`; rows of new labels start at zero.

    With the moments comes the number of steps: RectifiedAdam would else begin with steps that no variance scales, too
    large for weights that are trained already. With a schedule of the learning rate all starts afresh, for at its end
    it may be zero. (Where the old weights are frozen there is nothing to take over, and large first steps are welcome.)
    """
    optimizer, trained = innermost(new.optimizer), innermost(old.optimizer)
    scheduled = isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)
    warms_up = bool(getattr(optimizer, "total_steps", False))
    if scheduled or warms_up or not trained.built:
        return
    new.optimizer.build(new.trainable_variables)
    state = {variable.path: variable.numpy() for variable in trained.variables}
    for variable in optimizer.variables:
        if variable.path in state:
            variable.assign(extended(state[variable.path], variable.numpy()))


def online_training(
    exp_folder: str | Path,
    filename: str | Path | Sequence[str | Path] | Mapping[str, str | None],
    freeze: bool,
    fill_missing_genes: bool = False,
) -> list[Path]:
    """Train the model of an experiment on the cells of new batches, and add them to the experiment.

    Afterwards `processed_data/` (and `TF_records/`, if there were any) holds old and new cells, `job/` the new model
    and `backup/` what was in `job/`. Until all is complete the folder stays as it is: after an interruption the command
    can simply be given again. The number of epochs is that of `training.max_steps` and `max_updates`, counted anew.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME, trained; one of the original program, too.
        filename: Raw counts: one file or several, or {file: obs column with the batch}.
        freeze: Whether everything but the new batches' own weights stays as it is; then reconstructions of old cells
            as old batches stay the same, too.
        fill_missing_genes: Whether genes of the experiment that a file lacks are taken as zero; else they are an error.

    Returns:
        The model and the processed cells.

    Raises:
        MissingFileError: If there is no trained model, or a file is not there.
        InvalidInputError: If the new cells cannot be used; see `OnlineWAERecipe`.
    """
    exp_folder = Path(exp_folder)
    recover(exp_folder)
    if find_model(ExperimentFolder(exp_folder).job) is None:
        raise MissingFileError(f"{exp_folder / 'job'} holds no trained model: run `discern train` first")
    files = _listed(filename)
    with writing(exp_folder), contextlib.closing(Scratch("online", exp_folder)) as work:
        _prepare_new_state(exp_folder, files, freeze, fill_missing_genes, work.path)
        publish(work.path / "new", exp_folder)
    return [ExperimentFolder(exp_folder).last_model, ExperimentFolder(exp_folder).cells]


def _listed(
    filename: str | Path | Sequence[str | Path] | Mapping[str, str | None],
) -> list[str | Path] | dict[str, str | None]:
    files = (
        dict(filename)
        if isinstance(filename, Mapping)
        else [filename]
        if isinstance(filename, str | Path)
        else list(filename)
    )
    for file in files:
        if not Path(file).exists():
            raise MissingFileError(f"{file}: no such file or folder")
    return files


def _prepare_new_state(
    exp_folder: Path,
    files: Sequence[str | Path] | Mapping[str, str | None],
    freeze: bool,
    fill_missing_genes: bool,
    work: Path,
) -> None:
    """Make all that will be in the experiment's folder in `work/new`."""
    experiment = open_experiment(exp_folder)
    reference = DISCERNData.from_folder(exp_folder, experiment.training.batch_size)
    trained = read_network(exp_folder, experiment, reference)
    cells = _add_cells(exp_folder, files, fill_missing_genes, reference, experiment, work)
    _train(trained, experiment, cells, freeze, work / "new")
    shutil.copytree(ExperimentFolder(exp_folder).job, ExperimentFolder(work / "new").backup)


def _add_cells(
    exp_folder: Path,
    files: Sequence[str | Path] | Mapping[str, str | None],
    fill_missing_genes: bool,
    reference: DISCERNData,
    experiment: Experiment,
    work: Path,
) -> DISCERNData:
    """Process new cells, write them together with the old ones to `work/new` and return them."""
    batch_size = experiment.training.batch_size
    recipe = OnlineWAERecipe(reference, experiment, input_files=files, fill_missing_genes=fill_missing_genes)()
    cells = DISCERNData(recipe.sc_raw, batch_size, cachefile=work)
    processed = ExperimentFolder(work / "new").cells
    save_data(processed, cells, reference)
    if ExperimentFolder(exp_folder).records.is_dir():
        both = DISCERNData.read_h5ad(processed, batch_size)
        write_records(both, ExperimentFolder(work / "new").records, seed=experiment.input_ds.split.split_seed)
    return cells


def _train(trained: TrainedNetwork, experiment: Experiment, cells: DISCERNData, freeze: bool, folder: Path) -> None:
    """Train a model with the labels of old and new batches on the new cells; it goes to `folder/job`."""
    callbacks = training_callbacks(experiment.training, folder, cells)
    train_further(trained, experiment, cells, freeze, callbacks, ExperimentFolder(folder).job)


def train_further(
    trained: TrainedNetwork,
    experiment: Experiment,
    cells: DISCERNData,
    freeze: bool,
    callbacks: Sequence[keras.callbacks.Callback],
    savepath: Path | None = None,
) -> tuple[DISCERN, Metrics]:
    """Train a model with the labels of old and new batches on new cells.

    Args:
        trained: The old model; not changed.
        experiment: Its parameters.
        cells: New cells, processed by `OnlineWAERecipe`.
        freeze: See `online_training`.
        callbacks: Of the training.
        savepath: Where the new model is written; None to write none.

    Returns:
        The new model and its losses.

    Raises:
        InvalidInputError: If with `freeze` nothing would be trained, or the training diverges.
    """
    training = experiment.training.model_copy(update={"precision": trained.network.precision})
    model = DISCERN.from_experiment(experiment.model_copy(update={"training": training}))
    model.prepare(cells)
    network = model.trained.network
    with network.distribute_strategy.scope():
        update_model(trained.network, network, freeze)
        if freeze and not network.encoder.trainable_variables and not network.decoder.trainable_variables:
            raise InvalidInputError(f"with --freeze nothing would be trained: {_why_frozen(trained, model.trained)}")
        model.compile(model.get_optimizer())
        if not freeze:
            _take_over_state(trained.network, network)
    _LOGGER.info(
        "training on %d cells of %s%s",
        cells.config["total_train_count"],
        ", ".join(sorted(cells.obs["batch"].unique())),
        ", the rest of the model is frozen" if freeze else "",
    )
    epochs = number_of_epochs(training, cells.obs)
    losses = model.training(cells, callbacks=callbacks, savepath=savepath, max_steps=epochs)
    return model, losses


def _why_frozen(old: TrainedNetwork, new: TrainedNetwork) -> str:
    if new.n_batches == old.n_batches:
        return "all new cells are of batches that the model knows; give new batches other names, or do not freeze"
    return "no layer depends on the batch; use a conditional norm_type, or do not freeze"


class OnlineDISCERNRunner(DISCERNRunner):
    """Run online training on every experiment of a parameter file.

    That the new files are there is seen to before the first experiment is touched.

    The arguments are those of `DISCERNRunner`.

    Example:
        >>> OnlineDISCERNRunner(debug=True, gpus=[]).gpus
        []
    """

    def __call__(
        self,
        func: str | Callable[..., list[Path]],
        parameters: Parameters | str | Path | Sequence[str | Path],
        kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, list[Path] | Exception]:
        """Run `func(folder, **kwargs)` for each experiment.

        Args:
            func: `online_training`.
            parameters: The experiments: their folders, or a parameter file that was loaded.
            kwargs: Its other arguments.

        Returns:
            For each experiment the files written, or the exception that ended it.

        Raises:
            MissingFileError: If one of the new files is not there.
        """
        _listed((kwargs or {}).get("filename", ()))
        return super().__call__(func, parameters, kwargs)
