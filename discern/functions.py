"""What several parts share: names in JSON to objects, scaling of genes, sampling of counts, devices.

"Standardised" means (x - mean) / std per gene, of log-normalised expression x.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from discern.errors import InvalidInputError, MissingFileError, UnknownNameError
from discern.names import look_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anndata
    import pandas as pd

_LOGGER = logging.getLogger(__name__)


class _RefusedNameError(InvalidInputError, UnknownNameError):
    """A name of a library from which none may come."""


def get_function_by_name(func_str: str) -> Any:
    """Return the class or function that a JSON file names.

    Args:
        func_str: a dotted name, e.g. "tensorflow.keras.optimizers.Adam". Names that are dead today, such as
            "tensorflow_addons.activations.mish", give their equivalent.

    Returns:
        The class or function.

    Raises:
        UnknownNameError: if there is nothing of this name that a file may use; InvalidInputError as well if it is not
            of one of the libraries that such files are for.
        UnsupportedError: if the name is dead and has no equivalent.

    Example:
        >>> get_function_by_name("tensorflow_addons.activations.mish").__name__
        'mish'
    """
    try:
        known = look_up(func_str)
    except InvalidInputError as error:
        raise _RefusedNameError(*error.args) from None
    if known.caveat:
        warnings.warn(f"{func_str} is {known.module}.{known.attribute} now: {known.caveat}", UserWarning, stacklevel=2)
    try:
        return getattr(importlib.import_module(known.module), known.attribute)
    except ImportError as error:
        error.add_note(f"needed for {func_str!r}; `pip install 'discern[tune]'` brings the search libraries")
        raise
    except AttributeError:
        raise UnknownNameError(f"{func_str!r}: the installed {known.module} has no {known.attribute!r}") from None


def getmembers(name: str) -> dict[str, type]:
    """Return the classes that an imported module defines itself, by name.

    Args:
        name: name of the module, usually its `__name__`.

    Raises:
        UnknownNameError: if no such module has been imported.

    Example:
        >>> sorted(getmembers("discern.errors"))[:2]
        ['InUseError', 'InvalidInputError']
    """
    if name not in sys.modules:
        raise UnknownNameError(f"expected the name of an imported module, got {name!r}")
    return {
        label: member
        for label, member in inspect.getmembers(sys.modules[name], inspect.isclass)
        if member.__module__ == name
    }


def parse_mean_var(features: pd.DataFrame, scalings: Mapping[str, Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation that each gene is standardised with.

    Args:
        features: one row per gene (`adata.var`), with `mean_scaling` and `var_scaling` where `scalings` says "genes".
            `var_scaling` is a standard deviation in spite of its name.
        scalings: `input_ds.scale.fixed_scaling` of the parameters: "mean" and "var" are "genes" or a number,
            "add_to_mean" and "add_to_var" are added to them. None or empty: nothing is scaled.

    Returns:
        Mean and standard deviation, float32 of shape (n_genes,); 0 and 1 where nothing is asked for.

    Raises:
        InvalidInputError: if a value is neither "genes" nor a number, or a standard deviation is not positive.
        UnknownNameError: if `features` lacks the column.

    Example:
        >>> import pandas as pd
        >>> genes = pd.DataFrame({"mean_scaling": [1.0, 2.0], "var_scaling": [0.5, 0.25]})
        >>> parse_mean_var(genes, {"mean": "genes", "var": "genes", "add_to_var": 0.5})
        (array([1., 2.], dtype=float32), array([1.  , 0.75], dtype=float32))
    """
    scalings = scalings or {}
    mean = _per_gene(features, scalings, "mean", 0.0)
    std = _per_gene(features, scalings, "var", 1.0)
    if not np.isfinite(mean).all() or not np.isfinite(std).all():
        raise InvalidInputError("fixed_scaling: expected finite means and standard deviations, some are not")
    if not (std > 0).all():
        raise InvalidInputError(f"fixed_scaling.var must give a positive standard deviation, got {float(std.min())}")
    return mean, std


def _per_gene(features: pd.DataFrame, scalings: Mapping[str, Any], key: str, neutral: float) -> np.ndarray:
    value = scalings.get(key, neutral)
    column = f"{key}_scaling"
    if isinstance(value, str):
        if value != "genes":
            raise InvalidInputError(f"fixed_scaling.{key}: expected 'genes' or a number, got {value!r}")
        if column not in features:
            raise UnknownNameError(f"fixed_scaling.{key} is 'genes' but the data has no var column {column!r}")
        if features[column].dtype.kind not in "iuf":
            raise InvalidInputError(f"var column {column!r}: expected numbers, got {features[column].dtype}")
        value = features[column].to_numpy(dtype=np.float64)
    elif isinstance(value, bool) or not np.isscalar(value) or not np.isfinite(value):
        raise InvalidInputError(f"fixed_scaling.{key}: expected 'genes' or a number, got {value!r}")
    added = scalings.get(f"add_to_{key}", 0.0)
    if isinstance(added, bool | str) or not np.isscalar(added) or not np.isfinite(added):
        raise InvalidInputError(f"fixed_scaling.add_to_{key}: expected a number, got {added!r}")
    return (np.broadcast_to(value, len(features)) + added).astype(np.float32)


def scale(
    adata: anndata.AnnData, mean: np.ndarray | float | None = None, var: np.ndarray | float | None = None
) -> anndata.AnnData:
    """Standardise `adata.X` in place: subtract `mean`, then divide by `var`.

    Args:
        adata: log-normalised expression, (n_cells, n_genes). X becomes dense float32 (or a dask array of that).
        mean: what to subtract, per gene or for all; None: `adata.var["mean_scaling"]`.
        var: what to divide by (a standard deviation), per gene or for all; None: `adata.var["var_scaling"]`.

    Returns:
        `adata` itself.

    Raises:
        UnknownNameError: if `adata.var` lacks the column.
        InvalidInputError: if there is not one number for each gene, or one to divide by is not positive.

    Example:
        >>> import anndata
        >>> adata = anndata.AnnData(np.array([[1, 2], [3, 4]], dtype=np.float32))
        >>> scale(adata, mean=1.0, var=2.0).X
        array([[0. , 0.5], [1. , 1.5]], dtype=float32)
    """
    shift, width = (
        _per_gene(adata.var, {key: "genes"}, key, 0.0) if given is None else _one_for_each(adata.n_vars, given, key)
        for key, given in (("mean", mean), ("var", var))
    )
    if not (width > 0).all():
        raise InvalidInputError(f"var: expected positive standard deviations, got {float(width.min())}")
    return _apply(adata, lambda block: (_dense(block) - shift) / width)


def _one_for_each(n_genes: int, given: np.ndarray | float, key: str) -> np.ndarray:
    values = np.asarray(given, dtype=np.float32)
    if values.size not in (1, n_genes):
        raise InvalidInputError(
            f"{key}: expected one number, or one for each of the {n_genes} genes, got {values.size}"
        )
    return np.broadcast_to(values.ravel(), n_genes)


def scale_by_params(adata: anndata.AnnData, scalings: Mapping[str, Any] | None) -> anndata.AnnData:
    """Standardise `adata.X` in place as `fixed_scaling` of the parameters says (see `parse_mean_var`)."""
    mean, std = parse_mean_var(adata.var, scalings)
    return scale(adata, mean, std)


def rescale_by_params(adata: anndata.AnnData, scalings: Mapping[str, Any] | None) -> anndata.AnnData:
    """Undo `scale_by_params`: `adata.X` becomes log-normalised expression again, never below 0, in place."""
    mean, std = parse_mean_var(adata.var, scalings)
    return _apply(adata, lambda block: np.maximum(_dense(block) * std + mean, 0))


def _apply(adata: anndata.AnnData, function: Any) -> anndata.AnnData:
    matrix = adata.X
    if hasattr(matrix, "map_blocks"):
        genes_in_one_block = matrix.rechunk({1: -1})
        adata.X = genes_in_one_block.map_blocks(function, dtype=np.float32, meta=np.empty((0, 0), dtype=np.float32))
    else:
        adata.X = function(matrix)
    return adata


def _dense(block: Any) -> np.ndarray:
    return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float32)


def is_standardised(uns: Mapping[str, Any] | None) -> bool:
    """Whether values are standardised that come with this `uns`: those of the original are, ours are not.

    Example:
        >>> scaling = {"fixed_scaling": {"mean": "genes", "var": "genes"}}
        >>> is_standardised(scaling), is_standardised({**scaling, "DISCERN_format": {"version": 2}})
        (True, False)
    """
    return uns is not None and "fixed_scaling" in uns and "DISCERN_format" not in uns


def sample_counts(
    counts: np.ndarray,
    probabilities: np.ndarray,
    var: pd.DataFrame | None = None,
    uns: Mapping[str, Any] | None = None,
    seed: int | np.random.Generator = 0,
) -> np.ndarray:
    """Keep each count with its detection probability and set it to zero otherwise.

    Args:
        counts: estimated expression, (n_cells, n_genes).
        probabilities: probability that the gene is detected in the cell, same shape.
        var: one row per gene; needed when `counts` are standardised.
        uns: `adata.uns`; with a "fixed_scaling" in it and no "DISCERN_format" (see `is_standardised`), `counts` are
            standardised and "zero" is what a zero has become, (0 - mean) / std.
        seed: of the draw, or a generator to draw from (for calls block by block).

    Returns:
        A new array of the shape and type of `counts`.

    Raises:
        InvalidInputError: if the shapes differ, or `counts` are standardised and `var` is missing.

    Example:
        >>> sample_counts(np.array([[1.5, 2.5]]), np.array([[1.0, 0.0]]))
        array([[1.5, 0. ]])
    """
    if counts.shape != probabilities.shape:
        raise InvalidInputError(f"expected probabilities of shape {counts.shape}, got {probabilities.shape}")
    zero: np.ndarray | float = 0.0
    if is_standardised(uns):
        if var is None:
            raise InvalidInputError("uns holds fixed_scaling, so the counts are standardised: expected var, got None")
        mean, std = parse_mean_var(var, (uns or {})["fixed_scaling"])
        zero = (0 - mean) / std
    detected = np.random.default_rng(seed).random(counts.shape, dtype=np.float32) < probabilities
    return np.where(detected, counts, zero).astype(counts.dtype)


def prepare_train_valid(input_tfr: str | Path) -> tuple[list[Path], list[Path]]:
    """Find the record files of the training and of the validation cells.

    Args:
        input_tfr: folder `TF_records` of an experiment.

    Returns:
        The sorted files of each split.

    Raises:
        MissingFileError: if a split has no file.
    """
    input_tfr = Path(input_tfr)
    found = []
    for split in ("training", "validate"):
        files = sorted(input_tfr.glob(f"{split}*.tfrecords*"))
        if not files:
            raise MissingFileError(
                f"{input_tfr}: expected files {split}*.tfrecords*, found none; run `discern process`"
            )
        found.append(files)
    return found[0], found[1]


def cells_of_step(obs: pd.DataFrame, batch_size: int) -> int:
    """Return how many cells a training step has: never more than there are validation cells.

    Without any validation cells, which make small data sets smaller, never more than a tenth of the training cells.
    """
    if "split" not in obs:
        return batch_size
    training, validation = (int((obs["split"] == name).sum()) for name in ("train", "valid"))
    if validation:
        return min(batch_size, validation)
    return min(batch_size, max(2, training // 10)) if training else batch_size


def number_of_epochs(training: Mapping[str, Any], obs: pd.DataFrame) -> int:
    """Return after how many epochs a training ends: `max_steps`, or fewer if `max_updates` says so.

    Args:
        training: `training` of an EXPERIMENT.
        obs: of the cells, with `split`.

    Example:
        >>> import pandas as pd
        >>> obs = pd.DataFrame({"split": ["train"] * 1000})
        >>> number_of_epochs({"batch_size": 50, "max_steps": 75, "max_updates": 110}, obs)
        6
        >>> number_of_epochs({"batch_size": 50, "max_steps": 75}, obs)
        75
    """
    if training.get("max_updates") is None:
        return training["max_steps"]
    steps = max(1, int((obs["split"] == "train").sum()) // cells_of_step(obs, training["batch_size"]))
    return min(training["max_steps"], -(-training["max_updates"] // steps))


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def clamp_cpus(wanted: int | None, what: str) -> int:
    """Return `wanted`, but never more than there are CPUs (with a warning); None: all of them.

    Args:
        wanted: number of CPUs asked for.
        what: the parameter that asks, for the message.

    Example:
        >>> clamp_cpus(1, "n_cpus_preprocessing")
        1
    """
    present = available_cpus()
    if wanted is None:
        return present
    if wanted > present:
        warnings.warn(f"{what} asks for {wanted} CPUs, this machine has {present}: using {present}", stacklevel=2)
    return max(1, min(wanted, present))


def set_gpu_and_threads(n_threads: int | None, gpus: Sequence[int] | None) -> None:
    """Limit the GPUs and the CPU threads of TensorFlow, which has two pools of threads that share them.

    One in five threads, and at least one, starts operations side by side; the others work within operations.

    Args:
        n_threads: threads of both pools together; 0 or None: TensorFlow's choice. With 1 each has one. More than there
            are CPUs is clamped with a warning.
        gpus: see `start_tensorflow`.

    Raises:
        InvalidInputError: if the number is negative.
    """
    if not n_threads:
        _start_tensorflow(None, gpus)
        return
    if n_threads < 0:
        raise InvalidInputError(
            f"n_threads: expected a number of threads, or 0 for TensorFlow's choice, got {n_threads}"
        )
    threads = clamp_cpus(n_threads, "n_threads")
    between = max(1, threads // 5)
    _start_tensorflow((max(1, threads - between), between), gpus)


def start_tensorflow(threads: int | None, gpus: Sequence[int] | None) -> None:
    """Choose the GPUs and the number of CPU threads that TensorFlow uses.

    Works only before TensorFlow has run its first operation; later, what cannot be changed any more stays as it is.

    Args:
        threads: threads of one operation, and operations side by side; 0 or None: TensorFlow's choice. The two are
            rarely at work at once, so that both may have all CPUs. More than there are CPUs is clamped with a warning.
        gpus: numbers of the GPUs to use, an empty list for none, None for all. Those that this machine does not have
            are left out with a warning. Their memory is taken as needed, not as a whole.
    """
    each = clamp_cpus(threads, "parallel_pc") if threads else None
    _start_tensorflow(None if each is None else (each, each), gpus)


def _start_tensorflow(threads: tuple[int, int] | None, gpus: Sequence[int] | None) -> None:
    import tensorflow as tf

    present = tf.config.list_physical_devices("GPU")
    wanted = list(range(len(present))) if gpus is None else list(gpus)
    missing = [gpu for gpu in wanted if not 0 <= gpu < len(present)]
    if missing:
        rest = [gpu for gpu in wanted if gpu not in missing]
        warnings.warn(
            f"GPU {missing} asked for, this machine has {len(present)}: using {rest or 'the CPU'}", stacklevel=3
        )
        wanted = rest
    try:
        tf.config.set_visible_devices([present[gpu] for gpu in wanted], "GPU")
        for gpu in wanted:
            tf.config.experimental.set_memory_growth(present[gpu], enable=True)
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads[0])
            tf.config.threading.set_inter_op_parallelism_threads(threads[1])
    except RuntimeError as error:
        _LOGGER.info("TensorFlow has already started; its devices and threads stay as they are (%s)", error)
