"""One trial of a hyperparameter search: a network trained a few epochs at a time and judged by the cells it makes."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray import tune

from discern.data.components import PrincipalComponents
from discern.data.epochs import number_of_epochs
from discern.errors import InvalidInputError, UserError
from discern.metrics.two_sample import auc, mmd_loss
from discern.search.space import with_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.tune.experiment import Trial as RayTrial

    from discern.config.fields import JsonObject
    from discern.config.schema import EarlyStopping, Experiment
    from discern.data.processed import DISCERNData
    from discern.model.trained import TrainedNetwork

_LOGGER = logging.getLogger(__name__)


#: What a diverged trial reports for each of its figures: worse than any real one, and finite, for the searchers' sake.
DIVERGED = 1e30

#: The figures of the generated cells that a trial reports.
CELL_METRICS = ("mmd", "auc", "mmd_autoencoded", "auc_autoencoded")

_CELLS = 512  # generated at once


class Trial(tune.Trainable):
    """Ray's view of a trial; `config` holds the drawn values as a tree over the keys of an experiment.

    A step trains `epochs_per_timestep` epochs and returns `loss` and `val_loss` (both the best validation loss so far),
    `epochs`, `early_stopped`, `reached_max_step`, `diverged`, and the figures of `judge_cells`.
    """

    def setup(  # type: ignore[override]
        self,
        config: JsonObject,
        folder: str,
        experiment: Experiment,
        epochs_per_timestep: int,
        validation_batches: int,
        cpus: int | None = None,
        gpu: bool = False,
    ) -> None:
        """Read the cells and build the network.

        Args:
            config: The drawn values.
            folder: The processed experiment.
            experiment: Its parameters.
            epochs_per_timestep: Epochs of one step.
            validation_batches: How many batches the cells are judged on.
            cpus: Threads to use; None for TensorFlow's choice.
            gpu: Whether Ray has given this trial a GPU.
        """
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from discern.runtime.devices import start_tensorflow

        start_tensorflow(cpus, None if gpu else [])

        from discern.data.processed import DISCERNData
        from discern.model.estimator import DISCERN

        self.experiment = with_values(experiment, config)
        self.epochs_per_timestep, self.validation_batches = epochs_per_timestep, validation_batches
        self.data = DISCERNData.from_folder(Path(folder), self.experiment.training.batch_size)
        self.discern = DISCERN.from_experiment(self.experiment)
        self.discern.prepare(self.data)
        self.callback = _training_callback(self.experiment.training.early_stopping)

    def step(self) -> JsonObject:
        """Train on and report."""
        max_steps = number_of_epochs(self.experiment.training, self.data.obs)
        epochs = min(self.discern.start_step + self.epochs_per_timestep, max_steps)
        try:
            if epochs > self.discern.start_step:
                self.discern.training(self.data, callbacks=[self.callback], max_steps=epochs)
        except UserError:
            if not self.callback.diverged:
                raise
        metrics = dict.fromkeys(CELL_METRICS, DIVERGED)
        if not self.callback.diverged:
            metrics = judge_cells(self.discern.trained, self.data, self.validation_batches)
        figures = metrics | {"loss": self.callback.best_loss, "val_loss": self.callback.best_loss}
        diverged = not all(math.isfinite(value) and value < DIVERGED for value in figures.values())
        return (dict.fromkeys(figures, DIVERGED) if diverged else figures) | {
            "epochs": self.discern.start_step,
            "early_stopped": self.callback.early_stopped,
            "reached_max_step": self.discern.start_step >= max_steps,
            "diverged": diverged,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the model, with its optimiser, and the state of early stopping."""
        folder = Path(checkpoint_dir)
        self.discern.save(folder)
        (folder / "trial.json").write_text(json.dumps(self.callback.state()))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a checkpoint; from the beginning where its model has been removed (see `RemoveModels`)."""
        folder = Path(checkpoint)
        if not (folder / "last_model.h5").exists():
            _LOGGER.warning("%s: the model of this trial is gone; it is trained again", folder)
            return
        self.discern.restore_model(folder)
        self.discern.prepare(self.data)
        self.callback.restore(json.loads((folder / "trial.json").read_text()))


class RemoveModels(tune.Callback):
    """Removes the model of a trial that has ended, unless it is the best so far: hundreds of them fill any disk.

    Args:
        metric: The figure that tells the best.
        mode: "min" or "max".
    """

    def __init__(self, metric: str, mode: str) -> None:
        self.metric, self.sign = metric, -1 if mode == "max" else 1
        self.best: tuple[float, Path | None] = (math.inf, None)

    def get_state(self) -> JsonObject:
        """Return what a resumed search needs."""
        return {"best": self.best}

    def set_state(self, state: JsonObject) -> None:
        """Take over the state of the search that is resumed."""
        self.best = state["best"]

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: object) -> None:
        """Compare the trial with the best one and remove the model of the worse."""
        folder = Path(trial.checkpoint.path) if trial.checkpoint else None
        result = trial.last_result or {}
        value = math.inf if result.get("diverged", True) else self.sign * result.get(self.metric, math.inf)
        worse = folder
        if value < self.best[0]:
            worse, self.best = self.best[1], (value, folder)
        if worse is not None:
            for model in worse.glob("*.h5"):
                model.unlink(missing_ok=True)


def judge_cells(trained: TrainedNetwork, data: DISCERNData, n_batches: int) -> dict[str, float]:
    """Compare generated cells with real ones, in the space of the principal components.

    The cells with obs `for_mmd` are encoded and decoded to each of the `n_batches` batches with most of them; each gene
    is then kept with its detection probability, as `discern project` does. Codes are decoded where they are.

    Args:
        trained: A trained network.
        data: The cells it was trained on, log-normalised.
        n_batches: Number of batches.

    Returns:
        `mmd` and `auc` (see `discern.mmd`) of all cells decoded to a batch against the batch's real ones, and
        `mmd_autoencoded` and `auc_autoencoded` of the batch's own cells decoded again; means over the batches. Infinity
        where a value is not finite.

    Raises:
        InvalidInputError: If no batch has two cells with `for_mmd`.
    """
    import pandas as pd
    from scipy import sparse

    from discern.data.annotation import np_one_hot
    from discern.data.chunks import iter_blocks
    from discern.data.scaling import cell_numbers
    from discern.model.projection import decoded_chunks

    chosen = np.flatnonzero(data.obs["for_mmd"].to_numpy(dtype=bool)) if "for_mmd" in data.obs else np.empty(0, int)
    batch = data.obs["batch"].iloc[chosen]
    sizes = batch.value_counts()
    targets = list(sizes.index[sizes >= 2][:n_batches])
    if not targets:
        raise InvalidInputError(
            "expected a batch with at least two cells in obs 'for_mmd': raise input_ds.split.valid_cells or mmd_cells"
        )
    space = PrincipalComponents.of(data)
    cells = sparse.vstack([block for _, block in iter_blocks(data.X[chosen], _CELLS)], format="csr")
    real = np.concatenate([space.project(block) for _, block in iter_blocks(cells, _CELLS)])
    latent, _ = trained.encode(cells, np_one_hot(batch.array), _CELLS)
    numbers = cell_numbers(cells)
    sigma = float(data.config["mmd_kernel"]["all"])
    found: dict[str, list[float]] = {name: [] for name in CELL_METRICS}
    for target in targets:
        label = np_one_hot(pd.Categorical([target], categories=batch.cat.categories))
        chunks = [space.project(chunk.sampled(numbers[chunk.rows])) for chunk in decoded_chunks(trained, latent, label)]
        projected, own = np.concatenate(chunks), (batch == target).to_numpy()
        if not np.isfinite(projected).all():
            return dict.fromkeys(CELL_METRICS, math.inf)
        found["mmd"].append(mmd_loss(projected, real[own], sigma))
        found["auc"].append(auc(projected, real[own]))
        found["mmd_autoencoded"].append(mmd_loss(projected[own], real[own], sigma))
        found["auc_autoencoded"].append(auc(projected[own], real[own]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _training_callback(limits: EarlyStopping) -> Any:
    """Return the callback of a trial: early stopping that goes on counting from one `fit` to the next."""
    from discern.model.callbacks import DelayedEarlyStopping

    class AcrossSteps(DelayedEarlyStopping):
        best_loss = math.inf
        diverged = False
        begun = False

        @property
        def early_stopped(self) -> bool:
            return bool(self.stopped_epoch)

        def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
            if not self.begun:
                super().on_train_begin(logs)
            self.begun = True

        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            if not math.isfinite((logs or {}).get("loss", 0.0)):
                self.diverged = self.model.stop_training = True

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            if not self.diverged:
                super().on_epoch_end(epoch, logs)
                self.best_loss = min(self.best_loss, (logs or {}).get("val_loss", math.inf))

        def state(self) -> JsonObject:
            best = None if self.best is None else float(self.best)
            return {
                "best": best,
                "best_loss": self.best_loss,
                "wait": self.wait,
                "best_epoch": self.best_epoch,
                "stopped_epoch": self.stopped_epoch,
            }

        def restore(self, state: Mapping[str, object]) -> None:
            self.begun = True
            for name, value in state.items():
                setattr(self, name, value)

    return AcrossSteps(**(limits.as_dict() | {"restore_best_weights": False}))
