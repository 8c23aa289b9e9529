"""The networks: encoder, decoder, and the conditional Wasserstein auto-encoder made of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from discern.errors import InvalidInputError, UnsupportedError, nearest
from discern.networks.layers import (
    Dropout,
    GaussianReparametrization,
    GeneDense,
    LibrarySizeOutput,
    label_offset,
    regularizer,
)
from discern.networks.penalties import MMDPP, BatchMMD, SigmaRegularization
from discern.networks.xla import xla_works

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    Function: TypeAlias = Callable[[tf.Tensor], tf.Tensor]
    Activation: TypeAlias = str | Function

_register = keras.saving.register_keras_serializable("discern")


_NORMS = {
    "layernorm": keras.layers.LayerNormalization,
    "batchnorm": keras.layers.BatchNormalization,
}


def create_encoder(
    latent_dim: int,
    enc_layers: Sequence[int],
    enc_norm_type: Sequence[str],
    activation_fn: Activation,
    input_dim: int,
    n_labels: int,
    regularization: float,
    conditional_regularization: Mapping[str, object] | keras.regularizers.Regularizer | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Return the network from standardised expression to latent codes.

    Args:
        latent_dim: Dimensions of the latent code.
        enc_layers: Size of each hidden layer.
        enc_norm_type: Normalisation of each hidden layer: `layernorm` or `batchnorm`, with `conditional` in front to
            add an offset that is learnt for each batch. Batch normalisation learns its statistics.
        activation_fn: Activation of the hidden layers: a function, its name in Keras, or a dotted name.
        input_dim: Number of genes.
        n_labels: Number of batches.
        regularization: Dropout rate after each hidden layer.
        conditional_regularization: Regulariser of the offsets: an object, or `{"name": NAME, ...}` with its arguments.
        dtype: Data type policy of the hidden layers, for example "mixed_bfloat16". Outputs are float32 always.

    Returns:
        A model from [expression (cells, genes), one-hot labels (cells, batches)] to [latent, sigma], both of shape
        (cells, latent_dim); sigma is the logarithm of the standard deviation of a latent code.

    Raises:
        UnsupportedError: If there is no such normalisation (a NotImplementedError).
        InvalidInputError: If layers and normalisations differ in number.

    Example:
        >>> encoder = create_encoder(4, [16, 8], ["conditionallayernorm"] * 2, "mish", 20, 2, regularization=0.4)
        >>> latent, sigma = encoder([keras.ops.zeros((3, 20)), keras.ops.eye(3, 2)])
        >>> latent.shape
        TensorShape([3, 4])
    """
    cells = keras.Input((input_dim,), name="encoder_input")
    labels = keras.Input((n_labels,), name="encoder_labels")
    hidden = _hidden_layers(
        "encoder",
        cells,
        labels,
        enc_layers,
        enc_norm_type,
        _activation(activation_fn),
        regularization,
        regularizer(conditional_regularization),
        dtype,
    )
    latent = keras.layers.Dense(latent_dim, kernel_initializer="he_normal", dtype="float32", name="latent")
    sigma = keras.layers.Dense(
        latent_dim,
        kernel_initializer="he_normal",
        bias_initializer=keras.initializers.Constant(-10.0),
        dtype="float32",
        name="sigma_enc",
    )
    return keras.Model([cells, labels], [latent(hidden), sigma(hidden)], name="encoder")


def create_decoder(
    latent_dim: int,
    output_cells_dim: int,
    dec_layers: Sequence[int],
    dec_norm_type: Sequence[str],
    activation_fn: Activation,
    output_fn: Activation | None,
    n_labels: int,
    regularization: float,
    output_lsn: float | None = None,
    conditional_regularization: Mapping[str, object] | keras.regularizers.Regularizer | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """Return the network from latent codes to standardised expression.

    Args:
        latent_dim: Dimensions of the latent code.
        output_cells_dim: Number of genes.
        dec_layers: Size of each hidden layer.
        dec_norm_type: Normalisation of each hidden layer, as in `create_encoder`.
        activation_fn: Activation of the hidden layers: a function, its name in Keras, or a dotted name.
        output_fn: Activation of the expression: None, one of "softmax", "LSN" and "sigsoftmax" (see
            `LibrarySizeOutput`), or an activation like `activation_fn`.
        n_labels: Number of batches.
        regularization: Dropout rate after each hidden layer.
        output_lsn: Counts per cell to which the data were normalised; needed by the three functions above.
        conditional_regularization: Regulariser of the offsets: an object, or `{"name": NAME, ...}` with its arguments.
        dtype: Data type policy of the network, for example "mixed_bfloat16". Outputs are float32 always.

    Returns:
        A model from [latent code (cells, latent_dim), labels (cells, batches)] to [expression, probability that the
        gene is detected], both of shape (cells, genes).

    Raises:
        UnsupportedError: If there is no such normalisation (a NotImplementedError).
        InvalidInputError: If layers and normalisations differ in number, or `output_lsn` is missing.

    Example:
        >>> decoder = create_decoder(4, 20, [8, 16], ["layernorm"] * 2, "mish", None, 2, regularization=0.0)
        >>> counts, dropouts = decoder([keras.ops.zeros((3, 4)), keras.ops.eye(3, 2)])
        >>> counts.shape
        TensorShape([3, 20])
    """
    codes = keras.Input((latent_dim,), name="decoder_input")
    labels = keras.Input((n_labels,), name="decoder_labels")
    hidden = _hidden_layers(
        "decoder",
        codes,
        labels,
        dec_layers,
        dec_norm_type,
        _activation(activation_fn),
        regularization,
        regularizer(conditional_regularization),
        dtype,
    )
    heads = {
        name: GeneDense(output_cells_dim, kernel_initializer="he_normal", dtype=dtype, name=name)(hidden)
        for name in ("counts", "dropouts")
    }
    counts = _output_layer(output_fn, output_lsn)(heads["counts"])
    dropouts = keras.layers.Activation("sigmoid", dtype="float32", name="dropouts_probability")(heads["dropouts"])
    return keras.Model([codes, labels], [counts, dropouts], name="decoder")


def create_model(
    encoder: keras.Model,
    decoder: keras.Model,
    total_number_cells: float,
    name: str = "WAE",
    compare_batches: bool = False,
) -> WAE:
    """Return the auto-encoder made of `encoder` and `decoder`; the arguments are those of `WAE`.

    Raises:
        InvalidInputError: If the two do not fit each other.
    """
    (_, batches), codes = (tensor.shape[-1] for tensor in encoder.inputs), encoder.outputs[0].shape[-1]
    taken = tuple(tensor.shape[-1] for tensor in decoder.inputs)
    if taken != (codes, batches):
        raise InvalidInputError(
            f"the encoder gives codes of {codes} dimensions for {batches} batches, the decoder takes {taken[0]} and "
            f"{taken[1]}"
        )
    return WAE(encoder, decoder, total_number_cells, name=name, compare_batches=compare_batches)


@_register
class WAE(keras.Model):
    """Conditional Wasserstein auto-encoder (Hausmann et al., Genome Biology 24:212, 2023).

    Inputs, by name: `input_data`, standardised expression (cells, genes); `batch_input_enc` and `batch_input_dec`, the
    labels to encode and to decode with (cells, batches). In training, the latent codes are drawn with the encoder's
    sigma.

    Outputs, by name: `decoder_counts` and `decoder_dropouts`, both (cells, genes); `mmdpp`, one number;
    `sigma_regularization`, (cells,); with `compare_batches` also `batch_mmd`, one number. `compile` takes a loss and a
    weight for each name, `fit` and `evaluate` the targets `(expression, expression)` of the first two. The total is the
    weighted sum of the losses, and the activity regularisers.

    Args:
        encoder: From `create_encoder`.
        decoder: From `create_decoder`.
        total_number_cells: Number of cells in the training set, for MMD++.
        name: Name of the model.
        compare_batches: Whether the latent codes of different batches are compared; see `batch_mmd_penalty`.

    Example:
        >>> encoder = create_encoder(4, [16], ["layernorm"], "mish", 20, 2, regularization=0.4)
        >>> decoder = create_decoder(4, 20, [16], ["layernorm"], "mish", None, 2, regularization=0.0)
        >>> sorted(WAE(encoder, decoder, total_number_cells=1000).output)
        ['decoder_counts', 'decoder_dropouts', 'mmdpp', 'sigma_regularization']
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        total_number_cells: float,
        name: str = "WAE",
        compare_batches: bool = False,
    ) -> None:
        names = ("input_data", "batch_input_enc", "batch_input_dec")
        alike = (*encoder.inputs, decoder.inputs[1])
        inputs = {key: keras.Input(tensor.shape[1:], name=key) for key, tensor in zip(names, alike, strict=True)}
        latent, sigma = encoder([inputs["input_data"], inputs["batch_input_enc"]])
        codes = GaussianReparametrization(name="gaussian_reparametrization", dtype="float32")([latent, sigma])
        counts, dropouts = decoder([codes, inputs["batch_input_dec"]])
        mmdpp = MMDPP(total_number_cells, name="mmdpp", dtype="float32")([latent, sigma])
        outputs = {
            "decoder_counts": counts,
            "decoder_dropouts": dropouts,
            "mmdpp": keras.ops.reshape(mmdpp, (1,)),  # Keras joins the outputs of batches along their first axis
            "sigma_regularization": SigmaRegularization(name="sigma_regularization", dtype="float32")(sigma),
        }
        if compare_batches:
            batch_mmd = BatchMMD(name="batch_mmd", dtype="float32")([latent, inputs["batch_input_enc"]])
            outputs["batch_mmd"] = keras.ops.reshape(batch_mmd, (1,))
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.encoder = encoder
        self.decoder = decoder
        self.total_number_cells = total_number_cells
        self.compare_batches = compare_batches
        self.reconstruction_weight = 15000.0

    @property
    def precision(self) -> str:
        """Data type policy of the layers, "float32" or "mixed_bfloat16"."""
        name: str = self.decoder.get_layer("counts").dtype_policy.name
        return name

    def compile(self, *args: object, jit_compile: bool | str = "auto", **kwargs: object) -> None:
        """Configure training, as in Keras; the arguments are the same.

        With `jit_compile="auto"`, the step is compiled with XLA as a whole on GPUs. On CPUs it is not: XLA's matrix
        products are slower there, and have no bfloat16. MMD++ and the losses are compiled anyway (see `fused`).
        """
        if jit_compile == "auto":
            jit_compile = bool(tf.config.list_logical_devices("GPU")) and xla_works()
        super().compile(*args, jit_compile=jit_compile, **kwargs)

    def compute_loss(
        self,
        x: tf.Tensor = None,
        y: tf.Tensor = None,
        y_pred: tf.Tensor = None,
        sample_weight: tf.Tensor = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Return the total loss; Keras logs its parts.

        Args:
            x: Inputs, by name.
            y: Standardised expression, twice: the target of the counts and that of the dropouts.
            y_pred: Outputs, by name.
            sample_weight: Weights of the cells.
            training: Whether this is a training step.
        """
        counts, dropouts = y
        targets = {**y_pred, "decoder_counts": counts, "decoder_dropouts": dropouts}
        return super().compute_loss(x, targets, y_pred, sample_weight, training=training)

    def get_config(self) -> dict[str, object]:
        """Return the arguments from which an equal model (with other weights) can be made."""
        return {
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "decoder": keras.saving.serialize_keras_object(self.decoder),
            "total_number_cells": self.total_number_cells,
            "name": self.name,
            "compare_batches": self.compare_batches,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, object] | None = None) -> WAE:
        """Make a model from its `get_config`."""
        parts = {
            part: keras.saving.deserialize_keras_object(config[part], custom_objects=custom_objects)
            for part in ("encoder", "decoder")
        }
        return cls(**{**config, **parts})


def _hidden_layers(
    prefix: str,
    tensor: keras.KerasTensor,
    labels: keras.KerasTensor,
    sizes: Sequence[int],
    norms: Sequence[str],
    activation: Function,
    dropout: float,
    of_offsets: keras.regularizers.Regularizer | None,
    dtype: str | None,
) -> keras.KerasTensor:
    if len(sizes) != len(norms):
        raise InvalidInputError(
            f"{prefix}: {len(sizes)} layers {list(sizes)} need as many norm_type, not {len(norms)}: {list(norms)}"
        )
    for index, (size, norm) in enumerate(zip(sizes, norms, strict=True)):
        kind = str(norm).removeprefix("conditional")
        if kind not in _NORMS:
            known = [f"{condition}{name}" for condition in ("", "conditional") for name in _NORMS]
            raise UnsupportedError(f"norm_type {norm!r} is not one of {', '.join(known)}{nearest(str(norm), known)}")

        def named(part: str, index: int = index) -> dict[str, Any]:
            return {"name": f"{prefix}_{part}_{index}", "dtype": dtype}

        tensor = keras.layers.Dense(size, use_bias=False, kernel_initializer="he_normal", **named("dense"))(tensor)
        tensor = _NORMS[kind](epsilon=1e-3, center=False, scale=False, **named("norm"))(tensor)
        if kind != norm:
            offset = label_offset(size, of_offsets, **named("offset") | {"dtype": "float32"})(labels)
            tensor = keras.layers.Add(**named("add"))([tensor, offset])
        tensor = keras.layers.Activation(activation, **named("activation"))(tensor)
        tensor = Dropout(dropout, **named("dropout"))(tensor)
    return tensor


def _activation(activation: Activation | None) -> Function:
    """Return the function for a dotted name, a name in Keras, or the function itself."""
    if isinstance(activation, str) and "." in activation:
        from discern.config.allowlist import get_function_by_name

        named: Function = get_function_by_name(activation)
        return named
    try:
        found: Function = keras.activations.get(activation)
    except ValueError:
        known = [name for name in dir(keras.activations) if not name.startswith("_")]
        raise InvalidInputError(f"there is no activation {activation!r}{nearest(str(activation), known)}") from None
    return found


def _output_layer(output_fn: Activation | None, library_size: float | None) -> keras.layers.Layer:
    if output_fn in LibrarySizeOutput.KINDS:
        if library_size is None:
            raise InvalidInputError(f"output_fn {output_fn!r} needs the library size, input_ds.scale.LSN")
        return LibrarySizeOutput(library_size, output_fn, dtype="float32", name="counts_output")
    return keras.layers.Activation(_activation(output_fn), dtype="float32", name="counts_output")
