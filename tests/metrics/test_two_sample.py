from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from discern.errors import InvalidInputError
from discern.metrics.two_sample import SCALES, auc, mmd_loss

if TYPE_CHECKING:
    from pathlib import Path


def plain(first: np.ndarray, second: np.ndarray, sigma: float) -> float:
    def kernel(rows: np.ndarray, columns: np.ndarray, scale: float) -> np.ndarray:
        squares = ((rows[:, None, :] - columns[None, :, :]) ** 2).sum(-1)
        return np.exp(-squares / (2 * scale * sigma))

    n, m = len(first), len(second)
    return max(
        (kernel(first, first, scale).sum() - n) / (n * (n - 1))
        + (kernel(second, second, scale).sum() - m) / (m * (m - 1))
        - 2 * kernel(first, second, scale).mean()
        for scale in SCALES
    )


def test_the_number_of_the_original(golden: Path, golden_json: dict) -> None:
    arrays = np.load(golden / "arrays.npz")
    value = mmd_loss(arrays["mmd_a"], arrays["mmd_b"], golden_json["mmd_loss"]["sigma"])
    assert value == pytest.approx(golden_json["mmd_loss"]["value"], abs=1e-7)


@settings(max_examples=30)
@given(
    sizes=st.tuples(st.integers(2, 600), st.integers(2, 40)),
    sigma=st.sampled_from([1e-3, 0.5, 20.0, 1e6]),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition_for_any_sizes_and_widths(
    sizes: tuple[int, int], sigma: float, shift: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(sizes[0], 3)), rng.normal(shift, 1, size=(sizes[1], 3))
    assert mmd_loss(first, second, sigma) == pytest.approx(plain(first, second, sigma), abs=1e-8)


def test_a_distant_origin_costs_no_precision() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 300, 5))
    assert mmd_loss(first + 1000, second + 1000, 5.0) == pytest.approx(mmd_loss(first, second, 5.0), abs=1e-7)


@pytest.mark.parametrize(
    "convert", [sparse.csr_matrix, sparse.csc_array, lambda x: x.astype(np.float32), np.ndarray.tolist]
)
def test_sparse_and_other_types_give_the_same(convert) -> None:
    first, second = np.random.default_rng(0).poisson(0.3, size=(2, 300, 20)).astype(float)
    assert mmd_loss(convert(first), convert(second), 3.0) == pytest.approx(mmd_loss(first, second, 3.0), abs=1e-9)
    assert auc(convert(first), convert(second)) == auc(first, second)


def test_memory_does_not_grow_with_the_pairs() -> None:
    cells = np.random.default_rng(0).normal(size=(6000, 4))
    mmd_loss(cells[:10], cells[10:20], 4.0)
    tracemalloc.start()
    mmd_loss(cells[:3000], cells[3000:], 4.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 8 / 2  # half of one matrix of distances


def test_auc_tells_what_differs_and_guesses_what_does_not() -> None:
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(300, 8))
    assert auc(cells[:200], cells[200:]) == pytest.approx(0.5, abs=0.12)
    assert 0.7 < auc(cells[:200], cells[200:] + 0.5) < 1
    assert auc(cells[:3], cells[200:] + 9) == 1
    assert auc(cells[:200, :2], cells[200:, :2] + 9) == 1


@pytest.mark.parametrize("statistic", [auc, lambda first, second: mmd_loss(first, second, 1.0)])
def test_refuses_what_cannot_be_compared(statistic) -> None:
    with pytest.raises(InvalidInputError, match=r"of the same features, got \[\(5, 3\), \(5, 4\)\]"):
        statistic(np.ones((5, 3)), np.ones((5, 4)))
    with pytest.raises(InvalidInputError, match=r"at least 2 cells in each set, got \[5, 1\]"):
        statistic(np.ones((5, 3)), np.ones((1, 3)))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_refuses_a_width_that_is_none(sigma: float) -> None:
    with pytest.raises(InvalidInputError, match=f"sigma: expected a positive number, got {sigma}"):
        mmd_loss(np.ones((5, 3)), np.ones((5, 3)), sigma)
