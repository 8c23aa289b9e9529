"""DISCERN for cells in memory: one call, or fit, project, save and load. The command line does the same with files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import pandas as pd
from anndata import AnnData

from discern.config.presets import TEST_CELLS
from discern.config.reading import parse_experiment
from discern.config.schema import Experiment, Filtering, InputDs, Model, Scale, Section, Split, Training
from discern.data.annotation import CheckMetaData
from discern.data.chunks import track_blocks
from discern.data.epochs import number_of_epochs
from discern.data.processed import DISCERNData
from discern.data.writers import write_blocks
from discern.errors import InvalidInputError, UnknownNameError, nearest
from discern.experiment.folder import open_experiment, read_network
from discern.experiment.online import train_further
from discern.folder.layout import ExperimentFolder
from discern.folder.locks import locked
from discern.inputs import raw_counts
from discern.inputs.merging import Source, listed
from discern.metrics.trust import check_enough_held_out
from discern.model import exported, history
from discern.model.callbacks import DelayedEarlyStopping, TrainingProgress
from discern.model.estimator import DISCERN
from discern.model.known import Known, NewCells, SeenCells
from discern.model.projection import EncodedCells, OwnCells
from discern.model.projection import reconstruct as decode
from discern.preprocessing.appending import joined
from discern.preprocessing.new_cells import OnlineWAERecipe, ProjectionRecipe
from discern.preprocessing.recipe import WAERecipe
from discern.runtime.atomic import replacing
from discern.runtime.devices import clamp_cpus, start_tensorflow

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anndata as ad

    from discern.config.fields import JsonObject


_SECTIONS: dict[tuple[str, ...], type[Section]] = {
    ("input_ds",): InputDs,
    ("input_ds", "filtering"): Filtering,
    ("input_ds", "scale"): Scale,
    ("input_ds", "split"): Split,
    ("model",): Model,
    ("training",): Training,
}
_PLACES: dict[str, tuple[str, ...]] = {
    key: section for section, fields in _SECTIONS.items() for key in fields.model_fields if key != "raw_input"
}
_PLACES |= dict.fromkeys(Experiment.model_fields, ())
_PUBLISHED_SCALE: JsonObject = {"LSN": 20000, "fixed_scaling": {"mean": "genes", "var": "genes"}}
_PUBLISHED_DETECTION: JsonObject = {
    "crossentropy": {"label_smoothing": 0.0, "lower_label_smoothing": 0.1},
    "weighting_decoder_dropout": 10000,
}
_NAMES_HERE = {
    **dict.fromkeys(("epochs", "n_epochs", "max_epochs", "num_epochs"), "max_steps"),
    **dict.fromkeys(("n_latent", "latent", "n_dimensions"), "latent_dim"),
    **dict.fromkeys(("lr", "learning_rate"), 'optimizer={"learning_rate": ...}'),
    **dict.fromkeys(("hidden", "n_hidden", "hidden_layers", "n_layers"), "layers=[...]"),
    **dict.fromkeys(("random_state", "random_seed"), "seed"),
    **dict.fromkeys(("batch", "batch_column", "label_batch"), "batch_key"),
    **dict.fromkeys(("gpu", "gpus", "use_gpu"), "GPU=[0]"),
}
"""Names that other programs give to parameters."""
_IN_MEMORY = "cells_in_memory"


def reconstruct(
    adata: ad.AnnData,
    *,
    reference: str,
    batch_key: str = "batch",
    layer: str | None = None,
    seed: int | None = None,
    preset: str | None = "auto",
    intervals: bool = False,
    **parameters: object,
) -> ad.AnnData:
    """Reconstruct all cells as if they had been measured like those of one batch.

    The steps and the result are those of `discern process`, `train` and `project --metadata batch:REFERENCE` with the
    same parameters, the same preset and seed among them. `Reconstructor` does them one by one and keeps the model.

    Args:
        adata: Cells of two batches or more, X or a layer holding raw counts, (n_cells, n_genes). Not modified.
        reference: The batch to reconstruct as; best the one with most genes detected per cell.
        batch_key: obs column that holds the batch.
        layer: The layer with the raw counts, "raw" for `.raw.X`; None for X, or an error if X holds no raw counts and
            another matrix does ("X" takes X all the same).
        seed: Of initial weights, noise in training and sampling; by default that of the parameters, or 0.
        preset: What parameters have that are not given: "auto" for what did best on held-out cells of real data, as in
            the files of `discern init`, which also set a tenth of each batch aside for `discern evaluate`
            (`test_cells=0` trains on all cells); None for the published parameters. For those of a file that has no
            preset, `reconstruct(cells, **experiment)`, give None as well.
        intervals: Whether `layers["estimated_low"]` and `["estimated_high"]` are added: where nine in ten new
            measurements of the cell by the reference's technology lie. They are learnt from reference cells that are
            held out; give `test_cells=0.2`, say.
        **parameters: Parameters of parameters.json under the names that they have there, e.g. `max_steps=100`,
            `min_genes=200`, `encoder={"layers": [256, 128, 64]}`, or whole sections (`training={...}`). Without a
            preset, `LSN`, `fixed_scaling`, `crossentropy` and `weighting_decoder_dropout`, whose absence in a file
            means that nothing is scaled or no detection learnt, are those of the published file, unless their section
            is given.

    Returns:
        The cells and genes left by `filtering`. X holds each estimate with its detection probability, else zero;
        `layers["estimated_counts"]` the estimates, and `layers["measured"]` the cells as they were measured, all
        log-normalised, `log1p(counts / total * LSN)`. `layers["estimated_dropouts"]` is the probability that the gene
        is detected, `obsm["X_DISCERN"]` the latent code, obs `batch` the batch (a column `batch` that says something
        else becomes `batch_original`), and obs `discern_distance` how far a cell is from the reference's cells in
        latent space, `discern_beyond` whether that is farther than a line, see
        `discern.metrics.latent_space.add_distance`. var
        `discern_trust` says how far to believe a gene, see `discern.metrics.trust.gene_trust`.

    Raises:
        UnknownNameError: If a parameter, layer or obs column does not exist.
        InvalidInputError: If there is no such batch, a value cannot be used, or the training diverges.

    Source:
        Hausmann et al., Genome Biology 24:212 (2023).

    Example:
        >>> import anndata as ad
        >>> from discern.datasets import lung_cell_lines
        >>> small = ad.concat([ad.read_h5ad(path)[:40] for path in lung_cell_lines().values()])[:, :3000].copy()
        >>> result = reconstruct(
        ...     small, reference="celseq2", min_genes=20, latent_dim=4, layers=[16], batch_size=8, max_steps=1)
        >>> sorted(result.layers), result.obsm["X_DISCERN"].shape
        (['estimated_counts', 'estimated_dropouts', 'measured'], (80, 4))
    """
    model = Reconstructor(seed=seed, preset=preset, **parameters)
    data = model._process(adata, batch_key, layer)
    CheckMetaData(data.obs).check(("batch", reference))
    if intervals:
        check_enough_held_out(data.obs, reference)
    model._train(data)
    return model.project(reference, intervals=intervals)


class Reconstructor:
    """A model of the cells of several batches that decodes each cell as another batch.

    Args:
        seed: Of initial weights, noise in training and sampling; by default that of the parameters, or 0.
        preset: "auto", or None for the published parameters, see `reconstruct`.
        **parameters: Parameters of parameters.json, see `reconstruct`.

    Attributes:
        data: The processed cells, log-normalised; None before `fit`.
        estimator: The network; None before `fit`.
        history: The losses after each epoch, e.g. `history["loss"]`; `save` keeps them, and `load` reads them.

    Raises:
        UnknownNameError: If there is no such parameter.
        InvalidInputError: If a value cannot be used, or a parameter is given twice.

    Example:
        >>> model = Reconstructor(max_steps=30, encoder={"layers": [64]}, decoder={"layers": [64]}, seed=1)
        >>> model.parameters["training"]["max_steps"], model.parameters["model"]["latent_dim"]
        (30, 48)
        >>> Reconstructor(max_step=30)
        Traceback (most recent call last):
        ...
        discern.errors.UnknownNameError: unknown parameter 'max_step' (did you mean 'max_steps'?)
    """

    def __init__(self, *, seed: int | None = None, preset: str | None = "auto", **parameters: object) -> None:
        if preset is None and not {"input_ds", "scale"} & set(parameters):
            parameters = _PUBLISHED_SCALE | parameters
        if preset is None and "model" not in parameters:
            parameters = _PUBLISHED_DETECTION | parameters
        if preset is not None and not {"input_ds", "split", "test_cells"} & set(parameters):
            parameters["test_cells"] = TEST_CELLS
        parameters["preset"] = preset
        experiment = _experiment(parameters if seed is None else {**parameters, "seed": seed})
        experiment.setdefault("training", {}).setdefault("seed", 0)
        self._experiment = parse_experiment(experiment)
        self.data: DISCERNData | None = None
        self.estimator: DISCERN | None = None
        self.history: dict[str, list[float]] = {}
        self._of_file: Known | None = None
        self._seen: dict[str | None, SeenCells] = {}

    @property
    def parameters(self) -> JsonObject:
        """All parameters, as one EXPERIMENT of parameters.json, defaults and those of the preset filled in."""
        return self._experiment.as_dict()

    def __repr__(self) -> str:
        if self.estimator is None:
            return f"<Reconstructor: preset {self._experiment.preset}, not trained>"
        if self.data is None:
            return f"<Reconstructor without cells: {self.estimator!r}>"
        batches = listed(list(map(str, self.data.obs["batch"].cat.categories)))
        return (
            f"<Reconstructor: {self.data.n_obs:,} cells x {self.data.n_vars:,} genes, batches {batches}, trained for "
            f"{self.estimator.start_step} epochs>"
        )

    def fit(self, adata: ad.AnnData, batch_key: str = "batch", layer: str | None = None) -> Reconstructor:
        """Preprocess cells and train on them, from fresh weights.

        Args:
            adata: Raw counts, (n_cells, n_genes). Not modified.
            batch_key: obs column that holds the batch.
            layer: The layer with the raw counts, see `reconstruct`.

        Returns:
            The model itself.

        Raises:
            UnknownNameError: If the layer or the obs column does not exist.
            InvalidInputError: If the cells cannot be used, or the training diverges; a former fit is kept then.
        """
        self._train(self._process(adata, batch_key, layer))
        return self

    def _process(self, adata: ad.AnnData, batch_key: str, layer: str | None) -> DISCERNData:
        """Return the cells filtered, normalised and split, as `discern process` does it."""
        jobs = clamp_cpus(self._experiment.input_ds.n_cpus_preprocessing, "n_cpus_preprocessing")
        cells = {_IN_MEMORY: _raw_counts(adata, layer)}
        source = Source(batch_key, "X")
        recipe = WAERecipe(self._experiment, inputs=cells, input_files={_IN_MEMORY: source}, n_jobs=jobs)
        return DISCERNData(recipe().sc_raw, self._experiment.training.batch_size)

    def _train(self, data: DISCERNData) -> None:
        """Train as `discern train` does it, without its files and pictures."""
        training = self._experiment.training
        start_tensorflow(training.parallel_pc, training.GPU)
        estimator = DISCERN.from_experiment(self._experiment)
        callbacks = _callbacks(training)
        metrics = estimator.training(data, callbacks=callbacks, max_steps=number_of_epochs(training, data.obs))
        self._take(data, estimator, metrics.history)

    def _take(self, data: DISCERNData, estimator: DISCERN, losses: dict[str, list[float]]) -> None:
        self.data, self.estimator, self.history = data, estimator, losses
        self._of_file, self._seen = None, {}

    def _fitted(self) -> tuple[DISCERN, DISCERNData]:
        if self.estimator is None:
            raise InvalidInputError("there is no trained model yet: call fit or load first")
        if self.data is None:
            raise InvalidInputError(
                "this model was exported and has no cells: give new ones, project(REFERENCE, adata=CELLS); for all "
                "else load the experiment that it is of"
            )
        return self.estimator, self.data

    def project(
        self,
        reference: str | None = None,
        *,
        adata: ad.AnnData | None = None,
        batch_key: str | None = "batch",
        layer: str | None = None,
        as_batch: str | None = None,
        column: str = "batch",
        store_sigmas: bool = False,
        intervals: bool = False,
    ) -> ad.AnnData:
        """Decode cells as if they had been measured otherwise, in memory: those of `fit`, or new ones.

        The same as `discern project --metadata COLUMN:REFERENCE`, with new cells as `discern project --input`, and the
        layer `measured`. All matrices are dense, n_cells x n_genes: for more cells than fit use `discern project` on
        the folder that `save` writes.

        Args:
            reference: The batch, or value of `column`, whose mean label all cells are decoded with; "" for the mean
                label of each cell's own group in `column` (for `batch`, of all cells of `fit`); None for each cell's
                own batch.
            adata: New cells of batches that the model knows, raw counts, (n_cells, n_genes); not modified. They are
                filtered and scaled as those of `fit` were, and nothing is learnt from them.
            batch_key: obs column with the batch of new cells; None if there is none.
            layer: The layer with the raw counts of new cells, see `reconstruct`.
            as_batch: The batch that new cells of unknown batches are encoded as though they were of; None for an error.
            column: obs column of `reference`; `batch` for new cells.
            store_sigmas: Whether `obsm["X_DISCERN_sigma"]` is added, the log standard deviation of the latent codes.
            intervals: Whether intervals are added, see `reconstruct`; `column` must be `batch` then.

        Returns:
            See `reconstruct`.

        Raises:
            UnknownNameError: If the column or layer does not exist.
            InvalidInputError: If it has no such value, there is no trained model, or the new cells do not fit it.
        """
        if adata is None:
            estimator, data = self._fitted()
            target = None if reference is None else column
            return estimator.reconstruct(data, target, reference, store_sigmas, intervals)
        if column != "batch":
            raise InvalidInputError(f"column {column!r}: new cells are decoded as batches, column='batch'")
        return self._project_new(
            ProjectionRecipe(
                *self._genes(),
                self._experiment,
                _IN_MEMORY,
                _raw_counts(adata, layer),
                Source(batch_key if batch_key is not None else False, "X"),
                as_batch=as_batch,
            ),
            reference,
            store_sigmas,
            intervals,
        )

    def _genes(self) -> tuple[pd.DataFrame, Mapping[str, object]]:
        """Return var and uns of the cells that the model has seen."""
        if self._of_file is not None:
            return self._of_file.genes, self._of_file.uns
        _, data = self._fitted()
        return data.var, data.uns

    def _project_new(
        self, recipe: ProjectionRecipe, reference: str | None, store_sigmas: bool, intervals: bool
    ) -> ad.AnnData:
        assert self.estimator is not None
        target = (None if reference is None else "batch", reference)
        known_batches = pd.DataFrame({"batch": pd.Categorical([], categories=Known(*self._genes()).batches)})
        CheckMetaData(known_batches).check(("batch", reference))
        known = self._known(reference or None)
        data = recipe().sc_raw
        trained, seed = self.estimator.trained, self._experiment.training.seed or 0
        judge = NewCells(known, EncodedCells.of(trained, data), recipe.own_batch)
        return decode(trained, data, judge, target, seed, store_sigmas, intervals)

    def _known(self, reference: str | None) -> Known:
        """Return what is known of the cells that the model has seen, of a batch or of all."""
        if self._of_file is not None:
            return self._of_file
        estimator, data = self._fitted()
        if reference not in self._seen:
            own = OwnCells.of(estimator.trained, data)
            self._seen[reference] = SeenCells.of(own, reference)
        return Known(data.var, data.uns, self._seen)

    def update(
        self,
        adata: ad.AnnData,
        batch_key: str = "batch",
        layer: str | None = None,
        fill_missing_genes: bool = False,
    ) -> Reconstructor:
        """Learn new batches, and nothing else: reconstructions of old cells as old batches stay the same.

        The same as `discern onlinetraining --freeze`. Afterwards `data` holds old and new cells.

        Args:
            adata: Raw counts of the new batches, (n_cells, n_genes). Not modified.
            batch_key: obs column that holds the batch.
            layer: The layer with the raw counts, see `reconstruct`.
            fill_missing_genes: Whether genes that the new cells lack are taken as zero; else they are an error.

        Returns:
            The model itself.

        Raises:
            UnknownNameError: If the layer or the obs column does not exist.
            InvalidInputError: If there is no new batch, the cells cannot be used, or the training diverges; the model
                is as it was then.
        """
        estimator, reference = self._fitted()
        recipe = OnlineWAERecipe(
            reference,
            self._experiment,
            inputs={_IN_MEMORY: _raw_counts(adata, layer)},
            input_files={_IN_MEMORY: Source(batch_key, "X")},
            fill_missing_genes=fill_missing_genes,
        )()
        batch_size = self._experiment.training.batch_size
        cells = DISCERNData(recipe.sc_raw, batch_size)
        callbacks = _callbacks(self._experiment.training)
        estimator, metrics = train_further(estimator.trained, self._experiment, cells, True, callbacks)
        self._take(DISCERNData(joined(cells, reference), batch_size), estimator, metrics.history)
        return self

    def save(self, folder: str | Path) -> Path:
        """Write parameters, processed cells and model as an experiment, on which all commands work.

        Args:
            folder: EXPERIMENTS_DIR/NAME; must be new or empty.

        Returns:
            The folder; `discern project FOLDER/parameters.json` and `Reconstructor.load` take it from there.

        Raises:
            InvalidInputError: If there is something in the folder already, or no trained model.
        """
        estimator, data = self._fitted()
        folder = Path(folder)
        with locked(folder):
            self._save(folder, estimator, data)
        return folder

    def _save(self, folder: Path, estimator: DISCERN, data: DISCERNData) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInputError(f"{folder}: expected a new or an empty folder, there is something already")
        given = self.parameters
        given["input_ds"]["raw_input"] = [_IN_MEMORY]
        losses = self.history.get("val_loss", [])
        with replacing(folder) as partial:
            partial.mkdir()
            ExperimentFolder(partial).parameters.write_text(json.dumps(given, indent=4))
            blocks = ({"X": block} for _, block in track_blocks(data.X, "writing cells"))
            write_blocks(ExperimentFolder(partial).cells, data, blocks)
            estimator.save(ExperimentFolder(partial).job, val_loss=losses[-1] if losses else None)
            if self.history:
                history.write(ExperimentFolder(partial).job, self.history)

    @classmethod
    def load(cls, folder: str | Path) -> Reconstructor:
        """Read what `save` or the commands wrote, also those of the original program.

        Args:
            folder: EXPERIMENTS_DIR/NAME, trained; or a file of `discern export`, which has no cells: `data` is None
                then, and new cells can be projected.

        Raises:
            MissingFileError: If it holds no processed experiment, or no model.
            InvalidInputError: If a file is damaged or does not fit.
        """
        folder = Path(folder)
        if folder.is_file():
            return cls._of_exported(exported.read(folder))
        model = cls()
        model._experiment = open_experiment(folder)
        model.data = DISCERNData.from_folder(folder, model._experiment.training.batch_size)
        trained = read_network(folder, model._experiment, model.data)
        model.estimator = DISCERN.from_experiment(model._experiment, trained)
        model.history = history.read(ExperimentFolder(folder).job)
        return model

    @classmethod
    def _of_exported(cls, found: exported.ExportedModel) -> Reconstructor:
        model = cls()
        model._experiment, model._of_file = found.parameters, found.known
        start_tensorflow(None, None)
        model.estimator = DISCERN.from_experiment(found.parameters, exported.network(found))
        return model


def _callbacks(training: Training) -> list[keras.callbacks.Callback]:
    callbacks = [keras.callbacks.TerminateOnNaN(), TrainingProgress()]
    if limits := training.early_stopping.as_dict():
        callbacks.append(DelayedEarlyStopping(**limits))
    return callbacks


def _experiment(parameters: Mapping[str, object]) -> JsonObject:
    """Put each parameter where it stands in an EXPERIMENT of parameters.json.

    Example:
        >>> _experiment({"min_genes": 200, "latent_dim": 8, "training": {"max_steps": 5}})
        {'training': {'max_steps': 5}, 'model': {'latent_dim': 8}, 'input_ds': {'filtering': {'min_genes': 200}}}
    """
    experiment: JsonObject = {}
    for name in sorted(parameters, key=lambda name: len(_PLACES.get(name, ()))):
        if name not in _PLACES:
            hint = f"; it is called {_NAMES_HERE[name]} here" if name in _NAMES_HERE else nearest(name, _PLACES)
            raise UnknownNameError(f"unknown parameter {name!r}{hint}")
        section = experiment
        for key in _PLACES[name]:
            section = section.setdefault(key, {})
        if name in section:
            raise InvalidInputError(f"parameter {name!r} is given twice, by itself and in {_PLACES[name][-1]!r}")
        value = parameters[name]
        section[name] = dict(value) if isinstance(value, dict) else value
    return experiment


def _raw_counts(adata: ad.AnnData, layer: str | None) -> ad.AnnData:
    """Return what is needed of the cells, shared with `adata`."""
    if isinstance(adata, str | Path):
        raise InvalidInputError(
            f"expected cells as AnnData, got a path: read it first, with scanpy.read_h5ad({str(adata)!r}), or use "
            "`discern init` on the command line"
        )
    if not isinstance(adata, AnnData):
        raise InvalidInputError(f"expected cells as AnnData, got {type(adata).__name__}")
    if adata.isbacked:
        adata = adata.to_memory()
    cells = raw_counts.chosen(adata, layer)
    raw_counts.check("the cells", adata, cells.X, layer)
    return cells
