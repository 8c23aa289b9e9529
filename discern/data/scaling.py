"""Standardising genes, and sampling counts.

"Standardised" means (x - mean) / std per gene, of log-normalised expression x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import sparse

from discern.errors import InvalidInputError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import anndata
    import pandas as pd

    from discern.data.chunks import Matrix

Scaling: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation of each gene, float32 (n_genes,) each."""


def parse_mean_var(features: pd.DataFrame, scalings: Mapping[str, object] | None) -> Scaling:
    """Return the mean and the standard deviation that each gene is standardised with.

    Args:
        features: One row per gene (`adata.var`), with `mean_scaling` and `var_scaling` where `scalings` says "genes".
            `var_scaling` is a standard deviation in spite of its name.
        scalings: `input_ds.scale.fixed_scaling` of the parameters: "mean" and "var" are "genes" or a number,
            "add_to_mean" and "add_to_var" are added to them. None or empty: nothing is scaled.

    Returns:
        Mean and standard deviation, float32 of shape (n_genes,); 0 and 1 where nothing is asked for.

    Raises:
        InvalidInputError: If a value is neither "genes" nor a number, or a standard deviation is not positive.
        UnknownNameError: If `features` lacks the column.

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


def _per_gene(features: pd.DataFrame, scalings: Mapping[str, object], key: str, neutral: float) -> np.ndarray:
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
        adata: Log-normalised expression, (n_cells, n_genes). X becomes dense float32 (or a dask array of that).
        mean: What to subtract, per gene or for all; None: `adata.var["mean_scaling"]`.
        var: What to divide by (a standard deviation), per gene or for all; None: `adata.var["var_scaling"]`.

    Returns:
        `adata` itself.

    Raises:
        UnknownNameError: If `adata.var` lacks the column.
        InvalidInputError: If there is not one number for each gene, or one to divide by is not positive.

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


def scale_by_params(adata: anndata.AnnData, scalings: Mapping[str, object] | None) -> anndata.AnnData:
    """Standardise `adata.X` in place as `fixed_scaling` of the parameters says (see `parse_mean_var`)."""
    mean, std = parse_mean_var(adata.var, scalings)
    return scale(adata, mean, std)


def rescale_by_params(adata: anndata.AnnData, scalings: Mapping[str, object] | None) -> anndata.AnnData:
    """Undo `scale_by_params`: `adata.X` becomes log-normalised expression again, never below 0, in place."""
    mean, std = parse_mean_var(adata.var, scalings)
    return _apply(adata, lambda block: np.maximum(_dense(block) * std + mean, 0))


def _apply(adata: anndata.AnnData, function: Callable[[Matrix], np.ndarray]) -> anndata.AnnData:
    matrix = adata.X
    if hasattr(matrix, "map_blocks"):
        genes_in_one_block = matrix.rechunk({1: -1})
        adata.X = genes_in_one_block.map_blocks(function, dtype=np.float32, meta=np.empty((0, 0), dtype=np.float32))
    else:
        adata.X = function(matrix)
    return adata


def _dense(block: Matrix) -> np.ndarray:
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
    cells: np.ndarray | None = None,
) -> np.ndarray:
    """Keep each count with its detection probability and set it to zero otherwise.

    Args:
        counts: Estimated expression, (n_cells, n_genes).
        probabilities: Probability that the gene is detected in the cell, same shape.
        var: One row per gene; needed when `counts` are standardised.
        uns: `adata.uns`; with a "fixed_scaling" in it and no "DISCERN_format" (see `is_standardised`), `counts` are
            standardised and "zero" is what a zero has become, (0 - mean) / std.
        seed: Of the draw, or a generator to draw from (for calls block by block).
        cells: A whole number of each cell, (n_cells,), see `cell_numbers`: the draw of a cell then depends on it and
            the seed, a whole number, alone, and neither on other cells nor on their order. None: row after row is drawn
            from one generator.

    Returns:
        A new array of the shape and type of `counts`.

    Raises:
        InvalidInputError: If the shapes differ, `counts` are standardised and `var` is missing, or a generator is given
            with `cells`.

    Example:
        >>> sample_counts(np.array([[1.5, 2.5]]), np.array([[1.0, 0.0]]))
        array([[1.5, 0. ]])
    """
    if counts.shape != probabilities.shape:
        raise InvalidInputError(f"expected probabilities of shape {counts.shape}, got {probabilities.shape}")
    detected = _draws(counts.shape, seed, cells) < probabilities
    if not is_standardised(uns):
        return counts * detected
    if var is None:
        raise InvalidInputError("uns holds fixed_scaling, so the counts are standardised: expected var, got None")
    mean, std = parse_mean_var(var, (uns or {})["fixed_scaling"])
    return np.where(detected, counts, (0 - mean) / std).astype(counts.dtype)


def _draws(shape: tuple[int, ...], seed: int | np.random.Generator, cells: np.ndarray | None) -> np.ndarray:
    """Return uniform float32 numbers of [0, 1)."""
    if cells is None:
        return np.random.default_rng(seed).random(shape, dtype=np.float32)
    if isinstance(seed, np.random.Generator) or np.shape(cells) != shape[:1]:
        raise InvalidInputError(f"expected a seed and numbers of {shape[0]} cells, got {seed} and {np.shape(cells)}")
    draws = np.empty(shape, dtype=np.float32)
    for row, cell in zip(draws, cells, strict=True):
        np.random.default_rng((seed, int(cell))).random(dtype=np.float32, out=row)
    return draws


def cell_numbers(cells: sparse.csr_matrix) -> np.ndarray:
    """Return a number of each cell that depends on which genes were measured in it, and on nothing else.

    Neither values, which differ in their last digits with the way they were computed, nor names, which are numbered
    where two files share them, have a part in it.

    Args:
        cells: Measured cells without stored zeros, (n_cells, n_genes), genes in the order of the model.

    Returns:
        uint64, (n_cells,).

    Example:
        >>> one, two, again = cell_numbers(sparse.csr_matrix([[1, 0, 2], [0, 0, 2], [3, 0, 4]]))
        >>> bool(one == again), bool(one == two)
        (True, False)
    """
    keys = np.random.default_rng(0).integers(0, 2**64, cells.shape[1], dtype=np.uint64)
    sums = np.zeros(cells.nnz + 1, dtype=np.uint64)
    np.cumsum(keys[cells.indices], out=sums[1:])
    numbers: np.ndarray = sums[cells.indptr[1:]] - sums[cells.indptr[:-1]]
    return numbers
