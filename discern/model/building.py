"""Build networks from parameters, and give them their losses and their optimiser."""

from __future__ import annotations

import json
import numbers
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, get_args

import keras
import numpy as np
import tensorflow as tf

from discern.config.schema import Model, Precision, Side, Training
from discern.data.chunks import block_bounds
from discern.errors import InvalidInputError, UnknownNameError, nearest
from discern.metrics.trust import gene_reliability
from discern.model.trained import TrainedNetwork
from discern.networks import losses, optimizers
from discern.networks.autoencoder import create_decoder, create_encoder, create_model
from discern.networks.capacity import check_network_fits
from discern.networks.precision import faster_precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from discern.config.fields import JsonObject
    from discern.config.schema import Experiment
    from discern.data.processed import DISCERNData
    from discern.data.scaling import Scaling
    from discern.networks.autoencoder import WAE, Activation

# From how many cells, and blocks on disk, it is learnt how reliable genes are; at least so many cells of a batch.
_MOST_CELLS, _MOST_BLOCKS, _FEWEST_CELLS = 4000, 64, 50
_MODEL = Model()
_PRECISIONS = get_args(Precision)
_OF_SIDE = tuple(Side.model_fields)
_OF_TRAINING = ("optimizer", "precision", "seed", "distribute", "thin_counts", "average_weights")
_PUBLISHED: Any = None  # filled in when the parameters are made


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkParameters:
    """What a network is built from and trained with: the arguments of `discern.DISCERN`, which says what they mean.

    Attributes:
        strategy: Where the network lives, by `distribute`.

    Raises:
        UnknownNameError: If `encoder` or `decoder` has another key.

    Example:
        >>> NetworkParameters(encoder={"layers": [8]}).encoder["layers"], NetworkParameters(optimizer=None).latent_dim
        ([8], 48)
    """

    latent_dim: int = _MODEL.latent_dim
    encoder: Mapping[str, Any] = _PUBLISHED
    decoder: Mapping[str, Any] = _PUBLISHED
    activation_fn: Activation = _MODEL.activation_fn
    output_fn: Activation | None = None
    reconstruction_loss: Mapping[str, Any] = _PUBLISHED
    crossentropy: Mapping[str, Any] = _PUBLISHED
    wae_lambda: float = _MODEL.wae_lambda
    weighting_decoder_dropout: float = _MODEL.weighting_decoder_dropout
    weighting_random_encoder: float = _MODEL.weighting_random_encoder
    optimizer: Mapping[str, Any] = _PUBLISHED
    output_lsn: float | None = None
    xla: bool = False
    precision: str = "float32"
    seed: int | None = None
    distribute: str = "none"
    weighting_batch_mmd: float = 0.0
    weighting_noisy_genes: float | None = None
    align_batches: bool | None = None
    thin_counts: float = 1.0
    average_weights: float | None = None
    strategy: tf.distribute.Strategy = field(init=False)

    def __post_init__(self) -> None:
        for side in ("encoder", "decoder"):
            given = getattr(self, side) or {}
            for key in given:
                if key not in _OF_SIDE:
                    raise UnknownNameError(
                        f"{side} has no key {key!r}{nearest(str(key), _OF_SIDE)}; it may have {', '.join(_OF_SIDE)}"
                    )
            self._fill(side, getattr(_MODEL, side).as_dict() | dict(given))
        self._fill("reconstruction_loss", dict(self.reconstruction_loss or _MODEL.reconstruction_loss.as_dict()))
        self._fill("crossentropy", dict(self.crossentropy or {}))
        self._fill("optimizer", dict(self.optimizer or Training().optimizer.as_dict()))
        mirrored = self.distribute == "mirrored"
        self._fill("strategy", tf.distribute.MirroredStrategy() if mirrored else tf.distribute.get_strategy())

    def _fill(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def of(cls, experiment: Experiment) -> NetworkParameters:
        """Return those of an experiment."""
        training = experiment.training.as_dict()
        return cls(
            **experiment.model.as_dict(),
            **{key: training[key] for key in _OF_TRAINING if key in training},
            output_lsn=experiment.input_ds.scale.LSN,
            xla=experiment.training.XLA,
        )

    def as_experiment(self) -> JsonObject | None:
        """Return the EXPERIMENT of which `of` makes equal ones; None if it has no names for a part."""
        given = {"XLA" if part.name == "xla" else part.name: getattr(self, part.name) for part in fields(self)}
        given["latent_dim"] = int(self.latent_dim)
        del given["distribute"]  # which is of the machine
        experiment = {
            "input_ds": {"scale": {"LSN": self.output_lsn}},
            "model": {name: value for name, value in given.items() if name in Model.model_fields},
            "training": {name: value for name, value in given.items() if name in Training.model_fields},
        }
        try:
            return dict(json.loads(json.dumps(experiment)))
        except TypeError:
            return None


def build(
    parameters: NetworkParameters,
    n_genes: int,
    n_batches: int,
    n_training_cells: float,
    scaling: Scaling | None = None,
    genes: Sequence[str] | None = None,
    batches: Sequence[str] | None = None,
    epoch: int = 0,
    precision: str | None = None,
) -> TrainedNetwork:
    """Make a network with fresh weights, its losses and its optimiser.

    Args:
        parameters: What to build.
        n_genes: Number of genes.
        n_batches: Number of batches.
        n_training_cells: Number of training cells in all, the T of MMD++.
        scaling: See `TrainedNetwork`, as what follows.
        genes: Their names.
        batches: Their names.
        epoch: Epochs for which the weights that it will get were trained.
        precision: In which they were trained, where the parameters say "auto"; None for what is faster here.

    Raises:
        InvalidInputError: If it cannot be built, or does not fit into memory.
    """
    sizes = {"n_genes": n_genes, "n_labels": n_batches, "scale": n_training_cells, "latent_dim": parameters.latent_dim}
    for name, number in sizes.items():
        _check_positive(name, number, whole=name != "scale")
    if parameters.precision not in _PRECISIONS:
        raise InvalidInputError(f"precision: expected {' or '.join(_PRECISIONS)}, got {parameters.precision!r}")
    n_genes, n_batches = int(n_genes), int(n_batches)
    network = _network(parameters, n_genes, n_batches, n_training_cells, precision)
    known_genes, known_batches = (None if names is None else tuple(names) for names in (genes, batches))
    trained = TrainedNetwork(
        network,
        scaling,
        known_genes,
        known_batches,
        epoch,
        parameters.as_experiment(),
        align_batches=bool(parameters.align_batches),
    )
    compile_network(parameters, trained, make_optimizer(parameters))
    return trained


def _network(
    parameters: NetworkParameters, n_genes: int, n_batches: int, n_training_cells: float, trained_in: str | None
) -> WAE:
    encoder, decoder, latent_dim = parameters.encoder, parameters.decoder, parameters.latent_dim
    check_network_fits(encoder["layers"], decoder["layers"], latent_dim, n_genes, n_batches)
    precision = parameters.precision
    if precision == "auto":
        widths = encoder["layers"][:1] + decoder["layers"][-1:]
        precision = trained_in or faster_precision(n_genes, max(widths, default=1))
    if parameters.seed is not None:
        keras.utils.set_random_seed(parameters.seed)
    with parameters.strategy.scope():
        return create_model(
            create_encoder(
                latent_dim,
                encoder["layers"],
                encoder["norm_type"],
                parameters.activation_fn,
                n_genes,
                n_batches,
                regularization=encoder["regularization"],
                conditional_regularization=encoder.get("conditional_regularization"),
                dtype=precision,
            ),
            create_decoder(
                latent_dim,
                n_genes,
                decoder["layers"],
                decoder["norm_type"],
                parameters.activation_fn,
                parameters.output_fn,
                n_batches,
                regularization=decoder["regularization"],
                output_lsn=parameters.output_lsn,
                conditional_regularization=decoder.get("conditional_regularization"),
                dtype=precision,
            ),
            n_training_cells,
            compare_batches=parameters.weighting_batch_mmd > 0,
        )


def build_for(parameters: NetworkParameters, data: DISCERNData) -> TrainedNetwork:
    """Make a network with fresh weights for the genes, batches, scaling and number of cells of some data."""
    genes, batches = list(data.var_names), list(data.obs["batch"].cat.categories)
    cells = data.config["total_train_count"]
    return build(parameters, len(genes), len(batches), cells, data.scaling, genes, batches)


def weighted(parameters: NetworkParameters, trained: TrainedNetwork, data: DISCERNData) -> TrainedNetwork:
    """Return a network whose reconstruction loss weighs genes as the parameters say, by the cells it is to train on.

    Its optimiser, and the weight of the reconstruction, are those it had. Without a word in the parameters, or if it
    has its weights already, it is returned as it is.
    """
    least = parameters.weighting_noisy_genes
    if least is None or trained.gene_weights is not None:
        return trained
    weights = least + gene_reliability(data.X, _looked_at(data), data.obs["batch"].cat.codes.to_numpy(dtype=np.intp))
    if not weights.any():
        return trained
    return _with(parameters, trained, gene_weights=(weights / weights.mean()).astype(np.float32))


def _looked_at(data: DISCERNData) -> npt.NDArray[np.intp]:
    """Return the numbers of some training cells of each batch, from few of the blocks on disk."""
    generator = np.random.default_rng(0)
    codes = data.obs["batch"].cat.codes.to_numpy()
    train = (data.obs["split"] == "train").to_numpy()
    bounds = block_bounds(data.X)
    n_batches = len(data.obs["batch"].cat.categories)
    chosen = []
    for batch in range(n_batches):
        rows = np.flatnonzero(train & (codes == batch))
        block = np.searchsorted(bounds, rows, side="right")
        blocks = generator.permutation(np.unique(block))[: max(1, _MOST_BLOCKS // n_batches)]
        rows = rows[np.isin(block, blocks)]
        chosen.append(generator.permutation(rows)[: max(_FEWEST_CELLS, _MOST_CELLS // n_batches)])
    return np.sort(np.concatenate(chosen))


def fitted_to(parameters: NetworkParameters, trained: TrainedNetwork, data: DISCERNData) -> TrainedNetwork:
    """Return a network that fits some data; one that does not know its scaling and names has them of the data.

    Raises:
        InvalidInputError: If it does not fit.
    """
    genes, batches = list(data.var_names), list(data.obs["batch"].cat.categories)
    if trained.scaling is None:
        return named(parameters, trained, data.scaling, genes, batches)
    trained.check(genes, batches)
    return trained


def named(
    parameters: NetworkParameters,
    trained: TrainedNetwork,
    scaling: Scaling,
    genes: Sequence[str],
    batches: Sequence[str],
) -> TrainedNetwork:
    """Return a network with the scaling and the names of cells that fit it.

    Its losses depend on the scaling; its optimiser keeps its state.

    Raises:
        InvalidInputError: If they do not fit.
    """
    trained.check(genes, batches)
    return _with(parameters, trained, scaling=scaling, genes=tuple(genes), batches=tuple(batches))


def _with(parameters: NetworkParameters, trained: TrainedNetwork, **known: Any) -> TrainedNetwork:
    """Return a network of which more is known, with the losses that depend on it and the optimiser that it had."""
    result = replace(trained, **known)
    if result.network.compiled:
        compile_network(parameters, result, result.network.optimizer)
    return result


def make_optimizer(parameters: NetworkParameters) -> keras.optimizers.Optimizer:
    """Make the optimiser that the parameters ask for.

    Raises:
        InvalidInputError: If the optimiser does not take one of the arguments.
    """
    with parameters.strategy.scope():
        optimizer = optimizers.from_parameters(parameters.optimizer)
        share = parameters.average_weights
        return optimizer if share is None else optimizers.Averaging(optimizer, share)


def compile_network(
    parameters: NetworkParameters,
    trained: TrainedNetwork,
    optimizer: keras.optimizers.Optimizer | str,
    scale: float | None = None,
) -> None:
    """Give a network its losses and an optimiser; see `discern.DISCERN.compile`.

    Without `scale`, the weight of the reconstruction stays what it was.
    """
    try:
        optimizer = keras.optimizers.get(optimizer)
    except (ValueError, TypeError):
        optimizer = None
    if optimizer is None:
        raise InvalidInputError("optimizer: expected an optimiser of Keras; get_optimizer() makes the usual one")
    network = trained.network
    if scale is not None:
        network.reconstruction_weight = scale
    reconstruction = losses.reconstruction_loss(parameters.reconstruction_loss)
    if trained.gene_weights is not None:
        reconstruction = losses.WeightedGenes(reconstruction, trained.gene_weights)
    mean, std = trained.scaling or (np.float32(0), np.float32(1))
    parts = {
        "decoder_counts": (reconstruction, network.reconstruction_weight),
        "decoder_dropouts": (
            losses.MaskedCrossEntropy(**{"zeros": -mean / std, **parameters.crossentropy}),
            parameters.weighting_decoder_dropout,
        ),
        "mmdpp": (losses.DummyLoss(), parameters.wae_lambda),
        "sigma_regularization": (losses.DummyLoss(), parameters.weighting_random_encoder),
    }
    if parameters.weighting_batch_mmd > 0:
        parts["batch_mmd"] = (losses.DummyLoss(), parameters.weighting_batch_mmd)
    strategy = parameters.strategy
    with strategy.scope():
        network.compile(
            optimizer=optimizer,
            loss={name: loss for name, (loss, _) in parts.items()},
            loss_weights={name: weight for name, (_, weight) in parts.items()},
            jit_compile="auto" if parameters.xla and strategy.num_replicas_in_sync == 1 else False,
        )


def _check_positive(name: str, number: Any, whole: bool) -> None:
    kinds = numbers.Integral if whole else numbers.Real
    whole_float = isinstance(number, float | np.floating) and number == np.floor(number)
    if not (isinstance(number, kinds) or (whole and whole_float)) or not number > 0:
        kind = "" if isinstance(number, numbers.Real) and not float(number) > 0 else "whole " * whole
        raise InvalidInputError(f"{name}: expected a positive {kind}number, got {number!r}")
