"""The DISCERN estimator: its parameters, its network, and how that is trained and restored."""

from __future__ import annotations

import inspect
import json
import logging
import numbers
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from discern.config.reading import check_experiment, load_parameters, parse_experiment
from discern.config.schema import Model, Precision, Side, Training
from discern.data.processed import DISCERNData
from discern.errors import InvalidInputError, MissingFileError, NotBuiltError, UnknownNameError, nearest
from discern.folder import layout
from discern.model import checkpoint, model_file, projection
from discern.model.legacy import stored_experiment
from discern.model.targets import RESULTS, OutputFormat, projection_targets
from discern.model.trained import TrainedNetwork
from discern.model.training import Metrics, check_enough, fit
from discern.networks import autoencoder, losses, optimizers
from discern.networks.capacity import check_network_fits
from discern.networks.precision import faster_precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anndata
    from numpy.typing import ArrayLike

    from discern.config.schema import Experiment
    from discern.data.chunks import Matrix
    from discern.networks.autoencoder import WAE, Activation

_LOGGER = logging.getLogger(__name__)

_PRECISIONS = get_args(Precision)
_OF_SIDE = tuple(Side.model_fields)
_MODEL = Model()  # the published defaults
_OF_TRAINING = ("optimizer", "precision", "seed", "distribute", "thin_counts")


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
        precision: "float32", "mixed_bfloat16", or "auto" for what is faster here; a restored model keeps its own then.
        seed: Seed of initial weights and of the noise in training; None for a fresh one each time.
        distribute: "none", or "mirrored" to share each batch among all GPUs of this machine.
        weighting_batch_mmd: Weight of MMD between the latent codes of different batches; 0 leaves it out.
        thin_counts: Training cells are encoded with a share of their counts, drawn between this and 1 anew each time.

    Raises:
        UnknownNameError: If there is no such argument, or `encoder` or `decoder` has another key.

    Attributes:
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
        >>> model
        <DISCERN: encoder [8], latent_dim 4, decoder [8]; 10 genes, 2 batches, trained for 0 epochs>
    """

    def __init__(
        self,
        *positional: object,
        latent_dim: int = _MODEL.latent_dim,
        encoder: Mapping[str, object] | None = None,
        decoder: Mapping[str, object] | None = None,
        activation_fn: Activation = _MODEL.activation_fn,
        output_fn: Activation | None = None,
        reconstruction_loss: Mapping[str, object] | None = None,
        crossentropy: Mapping[str, Any] | None = None,
        wae_lambda: float = _MODEL.wae_lambda,
        weighting_decoder_dropout: float = _MODEL.weighting_decoder_dropout,
        weighting_random_encoder: float = _MODEL.weighting_random_encoder,
        optimizer: Mapping[str, object] | None = None,
        output_lsn: float | None = None,
        xla: bool = False,
        precision: str = "float32",
        seed: int | None = None,
        distribute: str = "none",
        weighting_batch_mmd: float = 0.0,
        thin_counts: float = 1.0,
        **unknown: object,
    ) -> None:
        if positional:
            raise InvalidInputError(
                "DISCERN takes its parameters by name, e.g. DISCERN(latent_dim=48); DISCERN.from_json takes a whole "
                "experiment"
            )
        for name in unknown:
            known = [name for name in inspect.signature(DISCERN).parameters if name not in ("unknown", "positional")]
            raise UnknownNameError(
                f"DISCERN has no parameter {name!r}{nearest(name, known)}; DISCERN.from_json takes a whole experiment"
            )
        for side, given in (("encoder", encoder), ("decoder", decoder)):
            for key in given or {}:
                if key not in _OF_SIDE:
                    raise UnknownNameError(
                        f"{side} has no key {key!r}{nearest(str(key), _OF_SIDE)}; it may have {', '.join(_OF_SIDE)}"
                    )
        self.latent_dim = latent_dim
        self.encoder_config: dict[str, Any] = _MODEL.encoder.as_dict() | dict(encoder or {})
        self.decoder_config: dict[str, Any] = _MODEL.decoder.as_dict() | dict(decoder or {})
        self.activation_fn = activation_fn
        self.output_fn = output_fn
        self.reconstruction_loss = dict(reconstruction_loss or _MODEL.reconstruction_loss.as_dict())
        self.crossentropy = dict(crossentropy or {})
        self.wae_lambda = wae_lambda
        self.weighting_decoder_dropout = weighting_decoder_dropout
        self.weighting_random_encoder = weighting_random_encoder
        self.weighting_batch_mmd = weighting_batch_mmd
        self.thin_counts = thin_counts
        self.optimizer_config = dict(optimizer or Training().optimizer.as_dict())
        self.output_lsn = output_lsn
        self.xla = xla
        self.precision = precision
        self.seed = seed
        self.strategy = tf.distribute.MirroredStrategy() if distribute == "mirrored" else tf.distribute.get_strategy()
        self.begun: checkpoint.Begun | None = None
        self._trained: TrainedNetwork | None = None

    def __repr__(self) -> str:
        layers = f"encoder {self.encoder_config['layers']}, latent_dim {self.latent_dim}"
        network = f"{layers}, decoder {self.decoder_config['layers']}"
        if self.wae_model is None:
            return f"<DISCERN: {network}; not built>"
        genes, labels = (given.shape[-1] for given in self.encoder.inputs)
        return f"<DISCERN: {network}; {genes:,} genes, {labels} batches, trained for {self.start_step} epochs>"

    @classmethod
    def from_json(cls, jsondata: Mapping[str, object]) -> DISCERN:
        """Make an estimator from one EXPERIMENT of parameters.json.

        Args:
            jsondata: The experiment with its sections `model`, `training` and `input_ds`. The first two are needed,
                unless there is a `preset`; they may be empty.

        Raises:
            UnknownNameError: If a key is lacking or unknown (a KeyError).
            InvalidInputError: If a value is not valid.
        """
        check_experiment(jsondata)
        for section in () if jsondata.get("preset") else ("model", "training"):
            if section not in jsondata:
                raise UnknownNameError(f"the experiment lacks the section {section!r}; it has {', '.join(jsondata)}")
        return cls.from_experiment(parse_experiment(jsondata))

    @classmethod
    def from_experiment(cls, experiment: Experiment) -> DISCERN:
        """Make an estimator from an experiment that has been read."""
        training = experiment.training.as_dict()
        return cls(
            **experiment.model.as_dict(),
            **{key: training[key] for key in _OF_TRAINING if key in training},
            output_lsn=experiment.input_ds.scale.LSN,
            xla=experiment.training.XLA,
        )

    @property
    def trained(self) -> TrainedNetwork:
        """The network with what it was trained on.

        Raises:
            NotBuiltError: If there is no model yet (an AttributeError and a ValueError).
        """
        if self._trained is None:
            raise NotBuiltError("there is no model yet: call build_model, restore_model or training first")
        return self._trained

    @property
    def wae_model(self) -> WAE | None:
        """The Keras model, None before it is built. One of `create_model` may be set, with the epochs of this one."""
        return None if self._trained is None else self._trained.network

    @wae_model.setter
    def wae_model(self, model: WAE | None) -> None:
        self._trained = None if model is None else TrainedNetwork(model, epoch=self.start_step)

    @property
    def start_step(self) -> int:
        """Epochs that the model has been trained for; training goes on after them. It may be set."""
        return 0 if self._trained is None else self._trained.epoch

    @start_step.setter
    def start_step(self, epochs: int) -> None:
        self._trained = replace(self.trained, epoch=epochs)

    @property
    def batches(self) -> list[str] | None:
        """Names of the batches that the model knows, in the order of the labels; None if that is not known."""
        known = None if self._trained is None else self._trained.batches
        return None if known is None else list(known)

    @property
    def genes(self) -> list[str] | None:
        """Names of the genes; None if that is not known."""
        known = None if self._trained is None else self._trained.genes
        return None if known is None else list(known)

    @property
    def scaling(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and standard deviation of each gene, (n_genes,) each; None if that is not known."""
        return None if self._trained is None else self._trained.scaling

    @property
    def encoder(self) -> keras.Model:
        """The encoder: standardised expression and one-hot batch labels -> latent code and log standard deviation.

        Raises:
            NotBuiltError: If there is no model yet (an AttributeError and a ValueError).
            ValueError: If the model has no such part.
        """
        return self.trained.network.get_layer("encoder")

    @property
    def decoder(self) -> keras.Model:
        """The decoder: latent code and one-hot batch labels -> standardised expression and detection probability.

        Raises:
            NotBuiltError: If there is no model yet (an AttributeError and a ValueError).
            ValueError: If the model has no such part.
        """
        return self.trained.network.get_layer("decoder")

    def build_model(self, n_genes: int, n_labels: int, scale: float) -> None:
        """Make the network with fresh weights, and give it its losses and optimiser.

        Args:
            n_genes: Number of genes.
            n_labels: Number of batches.
            scale: Number of training cells in all, the T of MMD++.

        Raises:
            InvalidInputError: If a number is not positive, a size not whole, or the network does not fit into memory.
        """
        for name, number in (("n_genes", n_genes), ("n_labels", n_labels), ("scale", scale)):
            _check_positive(name, number, whole=name != "scale")
        self._begin(TrainedNetwork(self._network(int(n_genes), int(n_labels), scale)))

    def begin(self, data: DISCERNData) -> None:
        """Make the network with fresh weights for the genes, batches, scaling and number of cells of some data."""
        genes, batches = tuple(data.var_names), tuple(data.obs["batch"].cat.categories)
        network = self._network(len(genes), len(batches), data.config["total_train_count"])
        self._begin(TrainedNetwork(network, data.scaling, genes, batches))

    def _begin(self, trained: TrainedNetwork) -> None:
        self._trained = replace(trained, experiment=self._experiment())
        self.compile(self.get_optimizer())

    def _experiment(self) -> dict[str, Any] | None:
        """Return the EXPERIMENT from which `from_json` makes an equal estimator; None if it has no names for a part."""
        experiment = {
            "input_ds": {"scale": {"LSN": self.output_lsn}},
            "model": {
                "latent_dim": int(self.latent_dim),
                "encoder": self.encoder_config,
                "decoder": self.decoder_config,
                "activation_fn": self.activation_fn,
                "output_fn": self.output_fn,
                "reconstruction_loss": self.reconstruction_loss,
                "crossentropy": self.crossentropy,
                "wae_lambda": self.wae_lambda,
                "weighting_decoder_dropout": self.weighting_decoder_dropout,
                "weighting_random_encoder": self.weighting_random_encoder,
                "weighting_batch_mmd": self.weighting_batch_mmd,
            },
            "training": {
                "optimizer": self.optimizer_config,
                "XLA": self.xla,
                "precision": self.precision,
                "seed": self.seed,
                "thin_counts": self.thin_counts,
            },
        }
        try:
            return dict(json.loads(json.dumps(experiment)))
        except TypeError:
            return None

    def _network(self, n_genes: int, n_labels: int, n_training_cells: float, trained_in: str | None = None) -> WAE:
        _check_positive("latent_dim", self.latent_dim, whole=True)
        if self.precision not in _PRECISIONS:
            raise InvalidInputError(f"precision: expected {' or '.join(_PRECISIONS)}, got {self.precision!r}")
        encoder, decoder = self.encoder_config["layers"], self.decoder_config["layers"]
        check_network_fits(encoder, decoder, self.latent_dim, n_genes, n_labels)
        precision = self.precision
        if precision == "auto":
            precision = trained_in or faster_precision(n_genes, max(encoder[:1] + decoder[-1:], default=1))
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed)
        with self.strategy.scope():
            return autoencoder.build(
                self.encoder_config,
                self.decoder_config,
                latent_dim=self.latent_dim,
                n_genes=n_genes,
                n_batches=n_labels,
                n_training_cells=n_training_cells,
                activation_fn=self.activation_fn,
                output_fn=self.output_fn,
                output_lsn=self.output_lsn,
                compare_batches=self.weighting_batch_mmd > 0,
                dtype=precision,
            )

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
            optimizer: A Keras optimiser, or its name in Keras.
            scale: Weight of the reconstruction.

        Raises:
            InvalidInputError: If there is no such optimiser.
        """
        model = self.trained.network
        try:
            optimizer = keras.optimizers.get(optimizer)
        except (ValueError, TypeError):
            optimizer = None
        if optimizer is None:
            raise InvalidInputError("optimizer: expected an optimiser of Keras; get_optimizer() makes the usual one")
        mean, std = self.trained.scaling or (np.float32(0), np.float32(1))
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
        if self._trained is None:
            self.begin(inputdata)
            return
        self.prepare_projection(inputdata)
        if not self.trained.network.compiled:
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
            InvalidInputError: If there are too few cells, the model does not fit them, the training diverges, the file
                has another suffix, or there are callbacks that are none of Keras.
        """
        _check_processed(inputdata)
        _check_savepath(savepath)
        if "split" not in inputdata.obs:
            raise UnknownNameError("expected an obs column 'split', which says what to train on: call recipe.split")
        if max_steps < 1 or max_steps != int(max_steps):
            raise InvalidInputError(f"max_steps: expected 1 epoch or more, got {max_steps}")
        callbacks = _listed(callbacks)
        if not self.weighting_decoder_dropout:
            _LOGGER.warning(
                "model.weighting_decoder_dropout is 0: the detection probability is not learnt, and X of projections, "
                "which is drawn with it, is of no use; the published value is 10000. estimated_counts are not affected"
            )
        check_enough(inputdata, callbacks)
        self.prepare(inputdata)
        begun, self.begun = self.begun, None
        path = None if savepath is None else Path(savepath)
        self._trained, losses = fit(
            self.trained, inputdata, callbacks, path, int(max_steps), self.thin_counts, begun=begun
        )
        if not np.isfinite(losses.get("loss", 0.0)):
            raise InvalidInputError(
                f"the training diverged (a loss that is not a number) in epoch {self.start_step + 1}: lower "
                "training.optimizer.learning_rate; the model of the epoch before is kept"
            )
        return losses

    def save(self, directory: Path, epoch: int | None = None, val_loss: float | None = None) -> None:
        """Write the model with its optimiser to `directory` (an experiment's `job`).

        Args:
            directory: The folder, or a file `.h5` or `.hdf5`.
            epoch: Epochs that the model has been trained for; None for `start_step`.
            val_loss: Its validation loss; the lowest so far is kept as best_model.h5.
        """
        trained = self.trained if epoch is None else replace(self.trained, epoch=epoch)
        checkpoint.save(trained, Path(directory), val_loss)

    def resume(self, directory: Path) -> None:
        """Read the model with which an interrupted training goes on.

        It is that of the last checkpoint within an epoch, if any, otherwise the newest, as with `restore_model`.

        Args:
            directory: The `job` folder of an experiment.

        Raises:
            MissingFileError: If there is no model.
            InvalidInputError: If a file is damaged or does not fit the parameters.
        """
        if (Path(directory) / layout.LAST).is_file():
            checkpoint.keep_best(directory)  # what an interruption after an epoch may have left undone
        begun = checkpoint.find_unfinished(directory)
        if begun is None:
            self.restore_model(directory)
        else:
            self._restore(Path(directory) / layout.UNFINISHED)
            self.begun = begun

    def restore_model(self, directory: Path) -> None:
        """Read the newest model of an experiment, also one written by the original program.

        The optimiser's state is taken over and `start_step` set, so that training goes on where it stopped.

        Args:
            directory: The experiment, or its `job` folder; or a model file.

        Raises:
            MissingFileError: If there is no model.
            InvalidInputError: If the file is damaged or does not fit the parameters.
        """
        path = model_file.find_model(Path(directory))
        if path is None:
            raise MissingFileError(
                f"{directory}: there is no trained model ({layout.LAST}); train the experiment first"
            )
        self._restore(path)
        folder = path.parent if path == Path(directory) else Path(directory)
        if self.trained.scaling is None and (found := checkpoint.beside_model(folder)):
            self._adopt(*found)

    def restore_file(self, path: Path) -> None:
        """Read a model from one file, without the state of its optimiser: to project with.

        Raises:
            MissingFileError: If there is no such file.
            InvalidInputError: If it is damaged or does not fit the parameters.
        """
        self._restore(Path(path), with_optimizer=False)

    def _restore(self, path: Path, with_optimizer: bool = True) -> None:
        found = checkpoint.read_model_file(path)
        network = self._network(found.n_genes, found.n_labels, found.total_number_cells, found.precision)
        genes, batches = (None if names is None else tuple(names) for names in (found.genes, found.batches))
        self._begin(TrainedNetwork(network, found.scaling, genes, batches, checkpoint.epochs(found)))
        with self.strategy.scope():
            checkpoint.load_weights(network, path, network.optimizer if with_optimizer else None)

    def _adopt(self, scaling: tuple[np.ndarray, np.ndarray], genes: Sequence[str], batches: Sequence[str]) -> None:
        """Give a model its scaling and names; the losses depend on the scaling, the optimiser keeps its state."""
        self._trained = self.trained.named(scaling, genes, batches)
        if self.trained.network.compiled:
            self.compile(self.trained.network.optimizer)

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

        Raises:
            InvalidInputError: If cells, genes or batches differ in number from what the model knows or each other.
        """
        trained = self.trained
        if isinstance(counts, tf.Tensor | tf.Variable | pd.DataFrame | list | tuple):
            counts = np.asarray(counts)
        labels = _checked_labels(batch_labels, counts.shape[0], trained.n_batches, batch_size)
        if counts.shape[1:] != (trained.n_genes,):
            raise InvalidInputError(f"counts: expected cells x {trained.n_genes} genes, got the shape {counts.shape}")
        return trained.encode(counts, labels, batch_size)

    def generate_cells_from_latent(
        self, latent_codes: ArrayLike, output_batch_labels: ArrayLike, batch_size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Decode latent codes.

        Args:
            latent_codes: Cells x latent_dim.
            output_batch_labels: Labels to decode with, cells x batches: one-hot, or a mixture that sums to 1.
            batch_size: Number of cells put through the network at once.

        Returns:
            Estimated expression (log-normalised, >= 0) and the probability that a gene is detected, each cells x genes,
            dense: for many cells use `project_to_metadata`, which writes block by block.

        Raises:
            InvalidInputError: If cells, dimensions or batches differ in number from what the model knows or each other.
        """
        trained, codes = self.trained, np.asarray(latent_codes)
        labels = _checked_labels(output_batch_labels, len(codes), trained.n_batches, batch_size)
        if codes.shape[1:] != (trained.n_latent,):
            raise InvalidInputError(
                f"latent_codes: expected cells x {trained.n_latent} dimensions, got the shape {codes.shape}"
            )
        none = np.empty((0, trained.n_genes), np.float32)
        parts = [(none, none), *trained.decode(codes, labels, batch_size)]
        counts, detection = (np.concatenate(part) for part in zip(*parts, strict=True))
        return counts, detection

    def prepare_projection(self, input_data: DISCERNData) -> None:
        """Check that the restored model fits the cells; one of the original program gets their scaling and names.

        Raises:
            InvalidInputError: If it does not fit.
        """
        genes, batches = list(input_data.var_names), list(input_data.obs["batch"].cat.categories)
        self.trained.check(genes, batches)
        if self.trained.scaling is None:
            self._adopt(input_data.scaling, genes, batches)

    def reconstruct(
        self,
        input_data: DISCERNData,
        column: str | None,
        column_value: str | None,
        store_sigmas: bool = False,
        intervals: bool = False,
    ) -> anndata.AnnData:
        """Decode cells as if they had been measured otherwise, in memory.

        Args:
            input_data: Preprocessed cells, log-normalised.
            column: obs column that chooses the labels to decode with; None for each cell's own batch.
            column_value: Value of that column; "" or None for each cell's own group.
            store_sigmas: Whether `obsm["X_DISCERN_sigma"]` is added.
            intervals: Whether `layers["estimated_low"]` and `["estimated_high"]` are added, see
            `discern.metrics.trust`; for
                one batch only, of which some cells must have been held out.

        Returns:
            Cells x genes: X with each estimate kept with its detection probability, `layers["estimated_counts"]`,
            `layers["estimated_dropouts"]`, `layers["measured"]`, the input, and `obsm["X_DISCERN"]`. Expression is
            log-normalised. There is no `raw`, which scanpy would take in place of X.
            Decoded as one batch, they also have `obs["discern_distance"]`, see `project_to_metadata`.

        Raises:
            UnknownNameError: If the column does not exist.
            InvalidInputError: If the value does not, the model does not fit, or there are no cells.
        """
        _check_processed(input_data)
        if not input_data.n_obs:
            raise InvalidInputError("expected cells to reconstruct, got none")
        self.prepare_projection(input_data)
        cells = projection.EncodedCells.of(self.trained, input_data)
        judge = projection.OwnCells(self.trained, cells, input_data)
        target = (column, column_value)
        return projection.reconstruct(
            self.trained, input_data, cells, judge, target, self.seed or 0, store_sigmas, intervals
        )

    def project_to_metadata(
        self,
        input_data: DISCERNData,
        metadata: str | Sequence[str | tuple[str | None, str | None]] | None,
        save_path: str | Path,
        store_sigmas: bool = False,
        layers: Sequence[str] = RESULTS,
        dtype: str = "float32",
        suffix: str = ".h5ad",
        reference: str | None = None,
    ) -> list[Path]:
        """Encode the cells once and write one file for each set of labels to decode them with.

        A projection to one batch also gets `obs["discern_distance"]`, how far each cell is from that batch's training
        cells in latent space, if these are among the cells (`split` in obs says which they are, and may be missing);
        see `discern.metrics.latent_space.add_distance`.

        Args:
            input_data: Preprocessed cells, log-normalised.
            metadata: (column, value) pairs, or "column:value", see `reconstruct`; None or empty to decode each cell
                with its own batch, unless there is a `reference`.
            save_path: Folder for `unprojected.h5ad`, `projected_to_average_COLUMN[_VALUE].h5ad` and
                `projected_to_reference_BATCH.h5ad`.
            store_sigmas: Whether `obsm["X_DISCERN_sigma"]` is added.
            layers: Which of "X", "estimated_counts", "estimated_dropouts", "measured", "estimated_low" and
                "estimated_high" to write; the last two for projections to one batch only.
            dtype: "float32" or "float16", of matrices stored dense.
            suffix: ".h5ad" or ".zarr".
            reference: A batch to decode all cells as.

        Returns:
            The files written, each complete or not there.

        Raises:
            UnknownNameError, InvalidInputError: As `reconstruct`, before anything is written.
        """
        output = OutputFormat(layers, dtype, suffix)
        _check_processed(input_data)
        metadata = [metadata] if isinstance(metadata, str) else list(metadata or ())
        targets = projection_targets(metadata, reference, suffix, input_data.obs)
        self.prepare_projection(input_data)
        cells = projection.EncodedCells.of(self.trained, input_data)
        judge = projection.OwnCells(self.trained, cells, input_data)
        return projection.project(
            self.trained, input_data, cells, judge, targets, Path(save_path), output, self.seed or 0, store_sigmas
        )


def _check_positive(name: str, number: Any, whole: bool) -> None:
    kinds = numbers.Integral if whole else numbers.Real
    whole_float = isinstance(number, float | np.floating) and number == np.floor(number)
    if not (isinstance(number, kinds) or (whole and whole_float)) or not number > 0:
        kind = "" if isinstance(number, numbers.Real) and not float(number) > 0 else "whole " * whole
        raise InvalidInputError(f"{name}: expected a positive {kind}number, got {number!r}")


def _checked_labels(labels: ArrayLike, cells: int, batches: int, batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise InvalidInputError(f"batch_size: expected 1 or more cells, got {batch_size}")
    found = np.asarray(labels)
    if found.shape != (cells, batches):
        raise InvalidInputError(
            f"batch labels: expected one row for each of {cells} cells and {batches} columns, one for each batch, got "
            f"the shape {found.shape}"
        )
    return found


def _listed(callbacks: Any) -> list[keras.callbacks.Callback]:
    if isinstance(callbacks, keras.callbacks.Callback):
        return [callbacks]
    for callback in callbacks or ():
        if not isinstance(callback, keras.callbacks.Callback):
            raise InvalidInputError(f"callbacks: expected a list of callbacks of Keras, got {callback!r} in it")
    return list(callbacks or ())


def _check_savepath(path: str | Path | None) -> None:
    if path is not None and Path(path).suffix in (".keras", ".tf", ".pb", ".json"):
        raise InvalidInputError(f"savepath {path}: expected a folder, or a file that ends in .h5 or .hdf5")


def _check_processed(data: object) -> None:
    if not isinstance(data, DISCERNData):
        raise InvalidInputError(
            f"expected processed cells as DISCERNData, got {type(data).__name__}: write DISCERNData(cells, batch_size) "
            "with the result of WAERecipe, or use discern.reconstruct for raw counts"
        )
    if not data.is_logged:
        raise InvalidInputError(
            "these cells are not log-normalised: call the recipe, or after its scaling scanpy.pp.log1p(recipe.sc_raw)"
        )


def load_model_from_directory(directory: Path) -> tuple[WAE | None, int]:
    """Read the newest model of an experiment, ready to train on.

    Args:
        directory: The experiment's folder, or the `job` folder in it; or a folder that holds nothing but a model file,
            which describes the network itself.

    Returns:
        The model, and the number of epochs that it was trained for (0 if that is not known); (None, 0) if there is no
        model.

    Raises:
        InvalidInputError: If the model file is damaged or does not fit the parameters.
        MissingFileError: If there is no parameters.json, and the model file does not describe the network: activation
            or output was a function without a name.
    """
    path = model_file.find_model(Path(directory))
    if path is None:
        return None, 0
    try:
        (experiment,) = load_parameters(model_file.parameters_file(path)).experiments.values()
    except MissingFileError:
        stored = checkpoint.described_experiment(path) or stored_experiment(path)
        if stored is None:
            raise
        experiment = parse_experiment(stored)
    estimator = DISCERN.from_experiment(experiment)
    estimator.restore_model(directory)
    return estimator.wae_model, estimator.start_step
