"""The DISCERN estimator: its parameters, its network, and how that is trained and restored."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from discern.config.reading import canonical_experiment
from discern.data.annotation import CheckMetaData, parse_metadata
from discern.data.processed import DISCERNData
from discern.errors import InvalidInputError, MissingFileError, NotBuiltError, UnknownNameError, nearest
from discern.folder import layout
from discern.model import checkpoint, model_file
from discern.model.callbacks import Checkpoint, DelayedEarlyStopping
from discern.model.projection import EncodedCells
from discern.model.targets import RESULTS, check_output, file_name
from discern.model.trained import Coder, check_fits
from discern.model.visualisation import VisualisationCallback
from discern.networks import autoencoder, losses, optimizers
from discern.networks.capacity import check_network_fits
from discern.runtime import progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anndata
    from numpy.typing import ArrayLike

    from discern.data.chunks import Matrix
    from discern.networks.autoencoder import WAE

_LOGGER = logging.getLogger(__name__)


class Metrics(dict[str, float]):
    """The losses of the last epoch of a training, by name.

    Args:
        history: Name -> its value after each epoch.

    Attributes:
        history: The same.

    Example:
        >>> metrics = Metrics({"loss": [2.0, 1.0]})
        >>> metrics["loss"], metrics.history["loss"]
        (1.0, [2.0, 1.0])
    """

    def __init__(self, history: Mapping[str, Sequence[float]]) -> None:
        super().__init__({name: float(values[-1]) for name, values in history.items()})
        self.history = {name: list(map(float, values)) for name, values in history.items()}


class DISCERN:
    """A conditional Wasserstein auto-encoder over the cells of several batches.

    The arguments are the `model` section of parameters.json and the parts of `training` and `input_ds` that the network
    needs; `from_json` reads them from a whole experiment. Expression goes in and comes out log-normalised,
    log1p(counts / total * LSN); it is standardised just before the encoder and put back just after the decoder.

    Args:
        latent_dim: Dimensions of the latent code.
        encoder: `layers`, `norm_type`, `regularization` (dropout rate) and `conditional_regularization` of the encoder.
        decoder: The same for the decoder, in the order of its layers.
        activation_fn: Activation of the hidden layers, a name or a function.
        output_fn: None, "softmax", "LSN", "sigsoftmax", or a Keras activation.
        reconstruction_loss: `name` and arguments of the loss of the counts.
        crossentropy: `label_smoothing` and `lower_label_smoothing` of the loss of the detection probability; without
            them, 0.
        wae_lambda: Weight of MMD++.
        weighting_decoder_dropout: Weight of the cross entropy of the detection probability; with 0 it is not learnt.
        weighting_random_encoder: Weight of the regularisation of the encoder's noise.
        optimizer: `algorithm` and its arguments, optionally `learning_decay` and `Lookahead`.
        output_lsn: Counts per cell to which the data was normalised; for the output functions that need it.
        xla: Whether the training step is compiled with XLA.
        precision: "float32" or "mixed_bfloat16".
        seed: Seed of initial weights and of the noise in training; None for a fresh one each time.
        distribute: "none", or "mirrored" to share each batch among all GPUs of this machine.
        weighting_batch_mmd: Weight of MMD between the latent codes of different batches; 0 leaves it out.
        thin_counts: Training cells are encoded with a share of their counts, drawn between this and 1 anew each time.

    Raises:
        UnknownNameError: If there is no such argument.

    Attributes:
        wae_model: The Keras model, None before it is built.
        start_step: Epochs that the model has been trained for.
        begun: How far it is in the next epoch, after `resume`; None at the end of an epoch.

    Source:
        Hausmann et al., Genome Biology 24:212 (2023).

    Example:
        >>> model = DISCERN(latent_dim=4, encoder={"layers": [8], "norm_type": ["layernorm"]},
        ...                 decoder={"layers": [8], "norm_type": ["layernorm"]})
        >>> model.build_model(n_genes=10, n_labels=2, scale=100)
        >>> latent, sigma = model.generate_latent_codes(np.zeros((3, 10)), np.eye(2)[[0, 0, 1]], batch_size=2)
        >>> latent.shape
        (3, 4)
    """

    def __init__(
        self,
        *,
        latent_dim: int = 48,
        encoder: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        activation_fn: Any = "tensorflow_addons.activations.mish",
        output_fn: Any = None,
        reconstruction_loss: Mapping[str, Any] | None = None,
        crossentropy: Mapping[str, Any] | None = None,
        wae_lambda: float = 1500.0,
        weighting_decoder_dropout: float = 0.0,
        weighting_random_encoder: float = 1e-8,
        optimizer: Mapping[str, Any] | None = None,
        output_lsn: float | None = None,
        xla: bool = False,
        precision: str = "float32",
        seed: int | None = None,
        distribute: str = "none",
        weighting_batch_mmd: float = 0.0,
        thin_counts: float = 1.0,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            known = [name for name in inspect.signature(DISCERN).parameters if name != "unknown"]
            raise UnknownNameError(
                f"DISCERN has no parameter {name!r}{nearest(name, known)}; DISCERN.from_json takes a whole experiment"
            )
        norms = ["conditionallayernorm"] * 3
        self.latent_dim = latent_dim
        block = {"layers": [1024, 512, 256], "norm_type": norms, "regularization": 0.4}
        self.encoder_config: dict[str, Any] = block | dict(encoder or {})
        block = {"layers": [256, 512, 1024], "norm_type": norms, "regularization": 0.0}
        self.decoder_config: dict[str, Any] = block | dict(decoder or {})
        self.activation_fn = activation_fn
        self.output_fn = output_fn
        self.reconstruction_loss = dict(reconstruction_loss or {"name": "HuberLoss", "delta": 9.0})
        self.crossentropy = dict(crossentropy or {})
        self.wae_lambda = wae_lambda
        self.weighting_decoder_dropout = weighting_decoder_dropout
        self.weighting_random_encoder = weighting_random_encoder
        self.weighting_batch_mmd = weighting_batch_mmd
        self.thin_counts = thin_counts
        self.optimizer_config = dict(
            optimizer
            or {
                "algorithm": "tensorflow_addons.optimizers.RectifiedAdam",
                "learning_rate": 1e-3,
                "beta_1": 0.85,
                "beta_2": 0.95,
                "amsgrad": False,
            }
        )
        self.output_lsn = output_lsn
        self.xla = xla
        self.precision = precision
        self.seed = seed
        self.strategy = tf.distribute.MirroredStrategy() if distribute == "mirrored" else tf.distribute.get_strategy()
        self.wae_model: keras.Model | None = None
        self.start_step = 0
        self.begun: checkpoint.Begun | None = None
        self.scaling: tuple[np.ndarray, np.ndarray] | None = None
        self.genes: list[str] | None = None
        self.batches: list[str] | None = None

    @classmethod
    def from_json(cls, jsondata: Mapping[str, Any]) -> DISCERN:
        """Make an estimator from one EXPERIMENT of parameters.json.

        Args:
            jsondata: The experiment with its sections `model`, `training` and `input_ds`. The first two are needed,
                unless there is a `preset`; they may be empty.

        Raises:
            UnknownNameError: If a key is lacking or unknown (a KeyError).
            InvalidInputError: If a value is not valid.
        """
        for section in () if jsondata.get("preset") else ("model", "training"):
            if section not in jsondata:
                raise UnknownNameError(f"the experiment lacks the section {section!r}; it has {', '.join(jsondata)}")
        experiment = canonical_experiment(dict(jsondata))
        training = experiment.get("training", {})
        scale = experiment.get("input_ds", {}).get("scale") or {}
        return cls(
            **experiment.get("model", {}),
            optimizer=training.get("optimizer"),
            output_lsn=scale.get("LSN"),
            xla=training.get("XLA", False),
            precision=training.get("precision", "float32"),
            seed=training.get("seed"),
            distribute=training.get("distribute", "none"),
            thin_counts=training.get("thin_counts", 1.0),
        )

    @property
    def encoder(self) -> keras.Model:
        """The encoder: standardised expression and one-hot batch labels -> latent code and log standard deviation.

        Raises:
            NotBuiltError: If there is no model yet (an AttributeError and a ValueError).
            ValueError: If the model has no such part.
        """
        return self._built().get_layer("encoder")

    @property
    def decoder(self) -> keras.Model:
        """The decoder: latent code and one-hot batch labels -> standardised expression and detection probability.

        Raises:
            NotBuiltError: If there is no model yet (an AttributeError and a ValueError).
            ValueError: If the model has no such part.
        """
        return self._built().get_layer("decoder")

    def _built(self) -> keras.Model:
        if self.wae_model is None:
            raise NotBuiltError("there is no model yet: call build_model, restore_model or training first")
        return self.wae_model

    def build_model(self, n_genes: int, n_labels: int, scale: float) -> None:
        """Make the network with fresh weights, and give it its losses and optimiser.

        Args:
            n_genes: Number of genes.
            n_labels: Number of batches.
            scale: Number of training cells in all, the T of MMD++.
        """
        check_network_fits(self.encoder_config, self.decoder_config, self.latent_dim, n_genes, n_labels)
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed)
        common = {"activation_fn": self.activation_fn, "n_labels": n_labels, "dtype": self.precision}
        with self.strategy.scope():
            encoder = autoencoder.create_encoder(
                latent_dim=self.latent_dim,
                enc_layers=self.encoder_config["layers"],
                enc_norm_type=self.encoder_config["norm_type"],
                input_dim=n_genes,
                regularization=self.encoder_config["regularization"],
                conditional_regularization=self.encoder_config.get("conditional_regularization"),
                **common,
            )
            decoder = autoencoder.create_decoder(
                latent_dim=self.latent_dim,
                output_cells_dim=n_genes,
                dec_layers=self.decoder_config["layers"],
                dec_norm_type=self.decoder_config["norm_type"],
                output_fn=self.output_fn,
                regularization=self.decoder_config["regularization"],
                output_lsn=self.output_lsn,
                conditional_regularization=self.decoder_config.get("conditional_regularization"),
                **common,
            )
            self.wae_model = autoencoder.create_model(
                encoder, decoder, total_number_cells=scale, compare_batches=self.weighting_batch_mmd > 0
            )
        self.start_step = 0
        self._make_coder()
        self.compile(self.get_optimizer())

    @property
    def coder(self) -> Coder:
        """Encoding and decoding of log-normalised expression with the network as it is, compiled."""
        self._built()
        return self._coder

    def _make_coder(self) -> None:
        self._coder = Coder(self._built(), self.scaling)

    def get_optimizer(self) -> keras.optimizers.Optimizer:
        """Make the optimiser that the parameters ask for.

        Raises:
            InvalidInputError: If the optimiser does not take one of the arguments.
        """
        with self.strategy.scope():
            return optimizers.from_parameters(self.optimizer_config)

    def compile(self, optimizer: keras.optimizers.Optimizer, scale: float = 15000.0) -> None:
        """Give the model its losses and optimiser.

        total = scale * reconstruction + weighting_decoder_dropout * cross entropy + wae_lambda * MMD++
        + weighting_random_encoder * sigma + weighting_batch_mmd * MMD between batches + activity regularisers

        Args:
            optimizer: A Keras optimiser.
            scale: Weight of the reconstruction.
        """
        model = self._built()
        mean, std = self.scaling or (np.float32(0), np.float32(1))
        parts = {
            "decoder_counts": (losses.reconstruction_loss(self.reconstruction_loss), scale),
            "decoder_dropouts": (
                losses.MaskedCrossEntropy(**{"zeros": -mean / std, **self.crossentropy}),
                self.weighting_decoder_dropout,
            ),
            "mmdpp": (losses.DummyLoss(), self.wae_lambda),
            "sigma_regularization": (losses.DummyLoss(), self.weighting_random_encoder),
        }
        if self.weighting_batch_mmd > 0:
            parts["batch_mmd"] = (losses.DummyLoss(), self.weighting_batch_mmd)
        with self.strategy.scope():
            model.compile(
                optimizer=optimizer,
                loss={name: loss for name, (loss, _) in parts.items()},
                loss_weights={name: weight for name, (_, weight) in parts.items()},
                jit_compile="auto" if self.xla and self.strategy.num_replicas_in_sync == 1 else False,
            )

    def prepare(self, inputdata: DISCERNData) -> None:
        """Build and compile the network for these cells, or check that it fits them if it is there already.

        Args:
            inputdata: Preprocessed cells.

        Raises:
            InvalidInputError: If a model that was restored has other genes or batches.
        """
        genes, batches = list(inputdata.var_names), list(inputdata.obs["batch"].cat.categories)
        if self.wae_model is None:
            self.scaling, self.genes, self.batches = inputdata.scaling, genes, batches
            self.build_model(len(genes), len(batches), inputdata.config["total_train_count"])
        else:
            self.prepare_projection(inputdata)
        if not self._built().compiled:
            self.compile(self.get_optimizer())

    def training(
        self,
        inputdata: DISCERNData,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        savepath: str | Path | None = None,
        max_steps: int = 25,
    ) -> Metrics:
        """Train up to epoch `max_steps`, from `start_step` on.

        Args:
            inputdata: Preprocessed cells, log-normalised.
            callbacks: Keras callbacks, see `create_callbacks`.
            savepath: Folder of the model files (an experiment's `job`), or one file, `.h5` or `.hdf5`, for the model
                after the last epoch; None to write none.
            max_steps: Number of epochs in all.

        Returns:
            The losses of the last epoch by name; `history` of it holds those of all epochs.

        Raises:
            InvalidInputError: If there are too few cells, the model does not fit them, the training diverges, or the
                file has another suffix.
        """
        _check_processed(inputdata)
        _check_savepath(savepath)
        if not self.weighting_decoder_dropout:
            _LOGGER.warning(
                "model.weighting_decoder_dropout is 0: the detection probability is not learnt, and X of projections, "
                "which is drawn with it, is of no use; the published value is 10000. estimated_counts are not affected"
            )
        callbacks = list(callbacks or [])
        _check_enough(inputdata, callbacks)
        self.prepare(inputdata)
        for callback in callbacks:
            if isinstance(callback, VisualisationCallback):
                callback.discern = self
        if savepath is not None:
            callbacks.insert(0, Checkpoint(self, Path(savepath)))
        train, valid = inputdata.batches(self.thin_counts, begun=self.begun.step if self.begun else 0)
        try:
            with inputdata.reading_records():
                history = self._built().fit(
                    train,
                    validation_data=valid if (inputdata.obs["split"] == "valid").any() else None,
                    epochs=max_steps,
                    initial_epoch=self.start_step,
                    callbacks=callbacks,
                    shuffle=False,  # the data set does it
                    verbose=0,
                )
        finally:
            self.begun = None
            for callback in callbacks:
                if isinstance(callback, VisualisationCallback):
                    callback.close()
        finite = int(np.isfinite(history.history.get("loss", [])).sum())
        self.start_step += finite
        if finite < len(history.history.get("loss", [])):
            raise InvalidInputError(
                f"the training diverged (a loss that is not a number) in epoch {self.start_step + 1}: lower "
                "training.optimizer.learning_rate; the model of the epoch before is kept"
            )
        return Metrics(history.history)

    def save(self, directory: Path, epoch: int, val_loss: float | None = None) -> None:
        """Write the model with its optimiser to `directory` (an experiment's `job`).

        Args:
            directory: The folder, or a file `.h5` or `.hdf5`.
            epoch: Epochs that the model has been trained for.
            val_loss: Its validation loss; the lowest so far is kept as best_model.h5.
        """
        single = model_file.is_model_file(directory)
        path = Path(directory) if single else Path(directory) / model_file.LAST
        checkpoint.save_model(self._built(), path, epoch, val_loss, self.scaling, self.genes, self.batches)
        if not single:
            checkpoint.keep_best(directory)

    def save_unfinished(self, directory: Path, epoch: int, step: int) -> None:
        """Write the model in the middle of an epoch, to go on from there with `resume` after an interruption.

        Args:
            directory: The folder, an experiment's `job`.
            epoch: Epochs that were finished.
            step: Steps of the next one that are done.
        """
        model = self._built()
        begun = checkpoint.Begun(epoch, step, tuple(variable.numpy() for variable in model.metrics_variables))
        path = Path(directory) / layout.UNFINISHED
        checkpoint.save_model(model, path, epoch, None, self.scaling, self.genes, self.batches, begun)

    def resume(self, directory: Path) -> None:
        """Read the model with which an interrupted training goes on.

        It is that of the last checkpoint within an epoch, if any, otherwise the newest, as with `restore_model`.

        Args:
            directory: The `job` folder of an experiment.

        Raises:
            MissingFileError: If there is no model.
            InvalidInputError: If a file is damaged or does not fit the parameters.
        """
        if (Path(directory) / model_file.LAST).is_file():
            checkpoint.keep_best(directory)  # what an interruption after an epoch may have left undone
        begun = checkpoint.find_unfinished(directory)
        if begun is None:
            self.restore_model(directory)
        else:
            checkpoint.restore(self, Path(directory), Path(directory) / layout.UNFINISHED)
            self.begun = begun

    def restore_model(self, directory: Path) -> None:
        """Read the newest model of an experiment, also one written by the original program.

        The optimiser's state is taken over and `start_step` set, so that training goes on where it stopped.

        Args:
            directory: The experiment, or its `job` folder.

        Raises:
            MissingFileError: If there is no model.
            InvalidInputError: If the file is damaged or does not fit the parameters.
        """
        checkpoint.restore(self, Path(directory))
        if self.scaling is None and (found := checkpoint.beside_model(Path(directory))):
            self._adopt(*found)

    def _adopt(self, scaling: tuple[np.ndarray, np.ndarray], genes: list[str], batches: list[str]) -> None:
        """Give a model its scaling and names; the losses depend on the scaling, the optimiser keeps its state."""
        check_fits(self, genes, batches)
        self.scaling, self.genes, self.batches = scaling, genes, batches
        self._make_coder()
        model = self._built()
        if model.compiled:
            self.compile(model.optimizer)

    def generate_latent_codes(
        self, counts: Matrix, batch_labels: ArrayLike, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode cells.

        Args:
            counts: Log-normalised expression, cells x genes; dense, sparse or a dask array.
            batch_labels: One-hot labels of the cells' own batches, cells x batches.
            batch_size: Number of cells put through the network at once.

        Returns:
            The latent codes and the logarithm of the standard deviation of their noise, each cells x latent_dim.
        """
        return self.coder.encode(counts, np.asarray(batch_labels), batch_size)

    def generate_cells_from_latent(
        self, latent_codes: ArrayLike, output_batch_labels: ArrayLike, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode latent codes.

        Args:
            latent_codes: cells x latent_dim.
            output_batch_labels: Labels to decode with, cells x batches: one-hot, or a mixture that sums to 1.
            batch_size: Number of cells put through the network at once.

        Returns:
            Estimated expression (log-normalised, >= 0) and the probability that a gene is detected, each cells x genes,
            dense: for many cells use `project_to_metadata`, which writes block by block.
        """
        blocks = list(self.coder.decode(np.asarray(latent_codes), np.asarray(output_batch_labels), batch_size))
        return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))  # type: ignore[return-value]

    def prepare_projection(self, input_data: DISCERNData) -> None:
        """Check that the restored model fits the cells; one of the original program gets their scaling and names.

        Raises:
            InvalidInputError: If it does not fit.
        """
        genes, batches = list(input_data.var_names), list(input_data.obs["batch"].cat.categories)
        check_fits(self, genes, batches)
        if self.scaling is None:
            self._adopt(input_data.scaling, genes, batches)

    def reconstruct(
        self, input_data: DISCERNData, column: str | None, column_value: str | None, store_sigmas: bool = False
    ) -> anndata.AnnData:
        """Decode cells as if they had been measured otherwise, in memory.

        Args:
            input_data: Preprocessed cells, log-normalised.
            column: obs column that chooses the labels to decode with; None for each cell's own batch.
            column_value: Value of that column; "" or None for each cell's own group.
            store_sigmas: Whether `obsm["X_DISCERN_sigma"]` is added.

        Returns:
            Cells x genes: X with each estimate kept with its detection probability, `layers["estimated_counts"]`,
            `layers["estimated_dropouts"]`, `layers["measured"]`, the input, and `obsm["X_DISCERN"]`. Expression is
            log-normalised. There is no `raw`, which scanpy would take in place of X.
            Decoded as one batch, they also have `obs["discern_distance"]`, see `project_to_metadata`.

        Raises:
            UnknownNameError: If the column does not exist.
            InvalidInputError: If the value does not, or the model does not fit.
        """
        _check_processed(input_data)
        return EncodedCells(self, input_data, store_sigmas).decoded(column, column_value)

    def project_to_metadata(
        self,
        input_data: DISCERNData,
        metadata: Sequence[str | tuple[str | None, str | None]],
        save_path: Path,
        store_sigmas: bool = False,
        layers: Sequence[str] = RESULTS,
        dtype: str = "float32",
        suffix: str = ".h5ad",
    ) -> list[Path]:
        """Encode the cells once and write one file for each set of labels to decode them with.

        A projection to one batch also gets `obs["discern_distance"]`, how far each cell is from that batch's training
        cells in latent space, if these are among the cells (`split` in obs says which they are, and may be missing);
        see `discern.metrics.latent_space.add_distance`.

        Args:
            input_data: Preprocessed cells, log-normalised.
            metadata: (column, value) pairs, or "column:value", see `reconstruct`; empty to decode each cell with its
                own batch.
            save_path: Folder for `unprojected.h5ad`, `projected_to_average_COLUMN[_VALUE].h5ad`.
            store_sigmas: Whether `obsm["X_DISCERN_sigma"]` is added.
            layers: Which of "X", "estimated_counts", "estimated_dropouts" and "measured" to write.
            dtype: "float32" or "float16", of matrices stored dense.
            suffix: ".h5ad" or ".zarr".

        Returns:
            The files written, each complete or not there.

        Raises:
            UnknownNameError, InvalidInputError: As `reconstruct`, before anything is written.
        """
        check_output(layers, dtype, suffix)
        _check_processed(input_data)
        targets = [parse_metadata(target) for target in metadata] or [(None, None)]
        check = CheckMetaData(input_data.obs)
        for column, value in targets:
            if column is not None:
                check.check((column, value))
        with progress.phase("encoding"):
            cells = EncodedCells(self, input_data, store_sigmas)
        written: list[Path] = []
        for column, value in targets:
            path = Path(save_path) / file_name(column, value, suffix, input_data.obs)
            cells.write(path, column, value, layers, dtype)
            written.append(path)
        return written


def _check_savepath(path: str | Path | None) -> None:
    if path is not None and Path(path).suffix in (".keras", ".tf", ".pb", ".json"):
        raise InvalidInputError(f"savepath {path}: expected a folder, or a file that ends in .h5 or .hdf5")


def _check_processed(data: Any) -> None:
    if not isinstance(data, DISCERNData):
        raise InvalidInputError(
            f"expected processed cells as DISCERNData, got {type(data).__name__}: write DISCERNData(cells, batch_size) "
            "with the result of WAERecipe, or use discern.reconstruct for raw counts"
        )


def _check_enough(inputdata: DISCERNData, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Raise unless the cells fill one batch of the training and early stopping has something to watch."""
    cells = inputdata.obs["split"].value_counts()
    watched = [callback.monitor for callback in callbacks if isinstance(callback, DelayedEarlyStopping)]
    if not cells.get("valid", 0) and any(monitor.startswith("val_") for monitor in watched):
        raise InvalidInputError(
            "training.early_stopping needs validation cells, and there are none: raise input_ds.split.valid_cells and "
            "process again, or give an empty early_stopping"
        )
    if cells.get("train", 0) < inputdata.batch_size:
        raise InvalidInputError(
            f"the {cells.get('train', 0)} training cells do not fill one batch of batch_size {inputdata.batch_size}: "
            "lower training.batch_size"
        )


def load_model_from_directory(directory: Path) -> tuple[WAE | None, int]:
    """Read the newest model of an experiment, ready to train on.

    Args:
        directory: The experiment's folder, or the `job` folder in it; or a folder that holds nothing but a model file
            of the original program, which describes the network itself.

    Returns:
        The model, and the number of epochs that it was trained for (0 if that is not known); (None, 0) if there is no
        model.

    Raises:
        InvalidInputError: If the model file is damaged or does not fit the parameters.
        MissingFileError: If there is a model of this program but no parameters.json.
    """
    from discern.config.reading import canonical_experiment, load_parameters
    from discern.model.legacy import stored_experiment
    from discern.model.model_file import find_model, parameters_file

    model_file = find_model(directory)
    if model_file is None:
        return None, 0
    try:
        (experiment,) = load_parameters(parameters_file(model_file)).experiments.values()
    except MissingFileError:
        stored = stored_experiment(model_file)
        if stored is None:
            raise
        experiment = canonical_experiment(stored)
    estimator = DISCERN.from_json(experiment)
    estimator.restore_model(directory)
    return estimator.wae_model, estimator.start_step
