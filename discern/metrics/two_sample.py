"""Two-sample statistics: how well can generated cells be told from real ones?

Both compare two sets of cells in any space, most usefully that of the first principal components. `mmd_loss` is a
distance between the distributions (0: none), `auc` the success of a classifier (0.5: it guesses, 1: it tells all).
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from discern.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy.typing as npt
    from scipy import sparse


#: The factors of `sigma` among which `mmd_loss` takes the one that separates most.
Matrix: TypeAlias = "np.ndarray | sparse.csr_array"
Cells: TypeAlias = "npt.ArrayLike | sparse.spmatrix | sparse.sparray"

SCALES = np.linspace(0.8, 1.5, 23)

_BLOCK = 256  # cells: the distances of one pair of blocks stay in the processor's cache
_NODES = np.linspace(1 / SCALES[-1], 1 / SCALES[0], 12)  # of 1 / scale


def mmd_loss(random_cells: Cells, valid_cells: Cells, sigma: float) -> float:
    """Return the largest squared maximum mean discrepancy over 23 widths of a Gaussian kernel.

    The unbiased estimate of Gretton et al., "A kernel two-sample test", JMLR 13 (2012), equation 3, with the kernel
    exp(-d^2 / (2 * scale * sigma)) for each scale in `SCALES`; it is below zero now and then for equal distributions.
    Works block by block, in float64: memory does not grow with the number of pairs.

    Args:
        random_cells: Cells x features, dense or sparse; the generated ones, say.
        valid_cells: Cells x features, dense or sparse; the real ones.
        sigma: A typical squared distance between neighbours, `data.config["mmd_kernel"]["all"]`.

    Raises:
        InvalidInputError: If the features differ in number, a set has fewer than two cells, or sigma is not positive.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> cells, same, shifted = rng.normal(size=(3, 200, 4)) + np.reshape([0, 0, 1], (3, 1, 1))
        >>> round(mmd_loss(cells, same, sigma=4.0), 2), round(mmd_loss(cells, shifted, sigma=4.0), 2)
        (-0.0, 0.22)
    """
    first, second = _checked(random_cells, valid_cells, at_least=2)
    if not sigma > 0:
        raise InvalidInputError(f"sigma: expected a positive number, got {sigma}")
    within_first = _kernel_sums(first, first, sigma) / (first.shape[0] * (first.shape[0] - 1))
    within_second = _kernel_sums(second, second, sigma) / (second.shape[0] * (second.shape[0] - 1))
    between = _kernel_sums(first, second, sigma) / (first.shape[0] * second.shape[0])
    return float(np.max(within_first + within_second - 2 * between))


def _kernel_sums(
    rows: np.ndarray | sparse.csr_array, columns: np.ndarray | sparse.csr_array, sigma: float
) -> np.ndarray:
    """Return, for each of `SCALES`, the kernel summed over all pairs; of distinct cells where both sets are the same.

    The sum is a smooth function of 1 / scale: interpolation between 12 equidistant points is exact to 1e-9, and the
    kernel at each point is the one before times the same factor, so that two exponentials per pair do for all scales.
    """
    from threadpoolctl import threadpool_limits

    symmetric = rows is columns
    starts = itertools.product(range(0, rows.shape[0], _BLOCK), range(0, columns.shape[0], _BLOCK))

    def block_sums(start: tuple[int, int]) -> np.ndarray:
        row, column = start
        exponents = _squared_distances(_dense(rows[row : row + _BLOCK]), _dense(columns[column : column + _BLOCK]))
        exponents /= -2 * sigma
        if symmetric and row == column:
            np.fill_diagonal(exponents, -np.inf)
        kernel = np.exp(exponents * _NODES[0])
        factor = np.exp(np.multiply(exponents, _NODES[1] - _NODES[0], out=exponents), out=exponents)
        sums = [kernel.sum()]
        for _ in _NODES[1:]:
            kernel *= factor
            sums.append(kernel.sum())
        return np.array(sums) * (2 if symmetric and row < column else 1)

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        wanted = [start for start in starts if not symmetric or start[0] <= start[1]]
        sums = np.sum(list(pool.map(block_sums, wanted)), axis=0)
    return np.polynomial.Chebyshev.fit(_NODES, sums, len(_NODES) - 1)(1 / SCALES)


def _squared_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    squares: np.ndarray = np.square(rows).sum(axis=1)[:, np.newaxis] + np.square(columns).sum(axis=1)
    squares -= 2 * rows @ columns.T
    np.maximum(squares, 0, out=squares)
    return squares


def auc(random_cells: Cells, valid_cells: Cells, seed: int = 0) -> float:
    """Return how well a random forest tells two sets of cells apart, as the mean area under its ROC curves.

    100 trees of depth 3 with balanced classes, cross-validated in five stratified parts (fewer for fewer cells).

    Args:
        random_cells: Cells x features, dense or sparse.
        valid_cells: Cells x features, dense or sparse.
        seed: Of the forest and of the five parts.

    Returns:
        1 if every cell is told, about 0.5 if the two sets come from one distribution.

    Raises:
        InvalidInputError: If the features differ in number or a set has fewer than two cells.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> auc(rng.normal(size=(50, 8)), rng.normal(9, size=(50, 8)))
        1.0
    """
    from scipy import sparse
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    sets = _checked(random_cells, valid_cells, at_least=2)
    sizes = [cells.shape[0] for cells in sets]
    features = sparse.vstack(sets, format="csr") if any(map(sparse.issparse, sets)) else np.vstack(sets)
    forest = RandomForestClassifier(
        n_estimators=100,
        max_depth=3,
        min_samples_leaf=0.1,
        max_features=min(5, features.shape[1]),
        class_weight="balanced",
        random_state=seed,
    )
    parts = StratifiedKFold(min(5, *sizes), shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(forest, features, np.repeat([0, 1], sizes), cv=parts, scoring="roc_auc")))


def _checked(*sets: Cells, at_least: int) -> list[Matrix]:
    from scipy import sparse

    matrices = [sparse.csr_array(cells) if sparse.issparse(cells) else np.asarray(cells) for cells in sets]
    shapes = [matrix.shape for matrix in matrices]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise InvalidInputError(f"expected two matrices (cells x features) of the same features, got {shapes}")
    for matrix in matrices:
        values = matrix if isinstance(matrix, np.ndarray) else matrix.data
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            raise InvalidInputError("expected finite numbers, got NaN or infinity")
    if min(shape[0] for shape in shapes) < at_least:
        raise InvalidInputError(f"expected at least {at_least} cells in each set, got {[shape[0] for shape in shapes]}")
    return matrices


def _dense(block: Matrix) -> np.ndarray:
    return np.asarray(block if isinstance(block, np.ndarray) else block.toarray(), dtype=np.float64)
