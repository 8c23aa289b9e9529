"""The DISCERN estimator: a facade over a trained network and what it was built from."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from discern.config.reading import check_experiment, parse_experiment
from discern.data.processed import check_processed
from discern.errors import InvalidInputError, NotBuiltError, UnknownNameError, nearest
from discern.model import building, checkpoint, projection, restoring, training
from discern.model.building import NetworkParameters
from discern.model.targets import RESULTS, OutputFormat, projection_targets
from discern.model.trained import TrainedNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anndata
    from numpy.typing import ArrayLike

    from discern.config.schema import Experiment
    from discern.data.chunks import Matrix
    from discern.data.processed import DISCERNData
    from discern.data.scaling import Scaling
    from discern.model.training import Metrics
    from discern.networks.autoencoder import WAE


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
        weighting_noisy_genes: Weight, in the reconstruction loss, of a gene of which half of the counts foretell
            nothing of the other half, see `discern.metrics.trust.gene_reliability`. None: all genes count alike.
        align_batches: Whether codes of cells that are decoded as a batch are moved onto those of its cells first, see
            `discern.metrics.alignment`.
        thin_counts: Training cells are encoded with a share of their counts, drawn between this and 1 anew each time.
        average_weights: Share of the training, its end, over which about the weights are averaged; None for those of
            the last step.

    Raises:
        UnknownNameError: If there is no such argument, or `encoder` or `decoder` has another key.

    Attributes:
        parameters: The arguments, with the published values where none were given.

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

    __signature__: ClassVar = inspect.signature(NetworkParameters)

    def __init__(self, *positional: object, **parameters: Any) -> None:
        if positional:
            raise InvalidInputError(
                "DISCERN takes its parameters by name, e.g. DISCERN(latent_dim=48); DISCERN.from_json takes a whole "
                "experiment"
            )
        known = list(self.__signature__.parameters)
        for name in parameters:
            if name not in known:
                raise UnknownNameError(
                    f"DISCERN has no parameter {name!r}{nearest(name, known)}; DISCERN.from_json takes a whole "
                    "experiment"
                )
        self.parameters = NetworkParameters(**parameters)
        self._trained: TrainedNetwork | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Return an argument; `encoder` and `decoder` are the networks, whose errors stay as they are."""
            if name in self.__signature__.parameters and name not in ("encoder", "decoder"):
                return getattr(self.parameters, name)
            return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        encoder, decoder = self.parameters.encoder["layers"], self.parameters.decoder["layers"]
        network = f"encoder {encoder}, latent_dim {self.parameters.latent_dim}, decoder {decoder}"
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
    def from_experiment(cls, experiment: Experiment, trained: TrainedNetwork | None = None) -> DISCERN:
        """Make an estimator from an experiment that has been read, and from its network if there is one already."""
        model = cls()
        model.parameters, model._trained = NetworkParameters.of(experiment), trained
        return model

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
    def scaling(self) -> Scaling | None:
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
        self._trained = building.build(self.parameters, n_genes, n_labels, scale)

    def get_optimizer(self) -> keras.optimizers.Optimizer:
        """Make the optimiser that the parameters ask for.

        Raises:
            InvalidInputError: If the optimiser does not take one of the arguments.
        """
        return building.make_optimizer(self.parameters)

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
        building.compile_network(self.parameters, self.trained, optimizer, scale)

    def prepare(self, inputdata: DISCERNData) -> None:
        """Build and compile the network for these cells, or check that it fits them if it is there already.

        Args:
            inputdata: Preprocessed cells.

        Raises:
            InvalidInputError: If a model that was restored has other genes or batches.
        """
        if self._trained is None:
            self._trained = building.build_for(self.parameters, inputdata)
        self.prepare_projection(inputdata)
        self._trained = building.weighted(self.parameters, self.trained, inputdata)
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
        callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks or ())
        training.check(inputdata, callbacks, savepath, max_steps)
        self.prepare(inputdata)
        started, path = self.trained, None if savepath is None else Path(savepath)
        self._trained = replace(started, begun=None)
        self._trained, losses = training.fit(started, self.parameters, inputdata, callbacks, path, int(max_steps))
        training.check_converged(losses, self.start_step)
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
        self._trained = restoring.resume(Path(directory), self.parameters)

    def restore_model(self, directory: Path) -> None:
        """Read the newest model of an experiment, also one written by the original program.

        The optimiser's state is taken over and `start_step` set, so that training goes on where it stopped.

        Args:
            directory: The experiment, or its `job` folder; or a model file.

        Raises:
            MissingFileError: If there is no model.
            InvalidInputError: If the file is damaged or does not fit the parameters.
        """
        self._trained = restoring.restore(Path(directory), self.parameters)

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
        if isinstance(counts, tf.Tensor | tf.Variable | pd.DataFrame | list | tuple):
            counts = np.asarray(counts)
        return self.trained.encode(counts, np.asarray(batch_labels), batch_size)

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
        none = np.empty((0, self.trained.n_genes), np.float32)
        decoded = self.trained.decode(np.asarray(latent_codes), np.asarray(output_batch_labels), batch_size)
        counts, detection = (np.concatenate(part) for part in zip((none, none), *decoded, strict=True))
        return counts, detection

    def prepare_projection(self, input_data: DISCERNData) -> None:
        """Check that the restored model fits the cells; one of the original program gets their scaling and names.

        Raises:
            InvalidInputError: If it does not fit.
        """
        self._trained = building.fitted_to(self.parameters, self.trained, input_data)

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
                `discern.metrics.trust`; for one batch only, of which some cells must have been held out.

        Returns:
            Cells x genes: X with each estimate kept with its detection probability, `layers["estimated_counts"]`,
            `layers["estimated_dropouts"]`, `layers["measured"]`, the input, and `obsm["X_DISCERN"]`. Expression is
            log-normalised. There is no `raw`, which scanpy would take in place of X.
            Decoded as one batch, they also have `obs["discern_distance"]`, see `project_to_metadata`.

        Raises:
            UnknownNameError: If the column does not exist.
            InvalidInputError: If the value does not, the model does not fit, or there are no cells.
        """
        check_processed(input_data)
        self.prepare_projection(input_data)
        judge = projection.OwnCells.of(self.trained, input_data)
        target, seed = (column, column_value), self.parameters.seed or 0
        return projection.reconstruct(self.trained, input_data, judge, target, seed, store_sigmas, intervals)

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
        check_processed(input_data)
        metadata = [metadata] if isinstance(metadata, str) else list(metadata or ())
        targets = projection_targets(metadata, reference, suffix, input_data.obs)
        self.prepare_projection(input_data)
        judge = projection.OwnCells.of(self.trained, input_data)
        return projection.project(
            self.trained, input_data, judge, targets, Path(save_path), output, self.parameters.seed or 0, store_sigmas
        )
