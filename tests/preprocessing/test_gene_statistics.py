from __future__ import annotations

import warnings

import numpy as np
import pytest
import scanpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.decomposition import PCA

from discern.preprocessing.gene_statistics import (
    dispersion_record,
    gene_moments,
    neighbour_distance,
    principal_axes,
    variable_genes,
)


@pytest.fixture(scope="module")
def counts() -> sparse.csr_matrix:
    random = np.random.default_rng(0)
    return sparse.csr_matrix(
        random.negative_binomial(2, 1 / (1 + random.gamma(1, 2, 400)), (300, 400)).astype(np.float32)
    )


def _by_scanpy(X: sparse.csr_matrix, **kwargs: object) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated there, and the definition here
        return scanpy.pp.filter_genes_dispersion(X, log=False, **kwargs)


@settings(max_examples=30)
@given(n_cells=st.integers(2, 50), share=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_moments_are_numpys(n_cells: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    X = sparse.random(n_cells, 6, density=0.5, format="csr", random_state=seed)
    chosen = random.random(n_cells) < share
    chosen[:2] = True
    plain, logged = gene_moments(X, chosen, np.positive, np.log1p)
    values = X.toarray().astype(np.float32).astype(np.float64)[chosen]
    for moments, wanted in ((plain, values), (logged, np.log1p(values))):
        assert moments.cells == chosen.sum()
        np.testing.assert_allclose(moments.mean, wanted.mean(axis=0), atol=1e-12)
        for ddof in (0, 1):
            np.testing.assert_allclose(moments.variance(ddof), wanted.var(axis=0, ddof=ddof), atol=1e-12)


@pytest.mark.parametrize("number", [10, 100, 350])
def test_variable_genes_are_scanpys(counts: sparse.csr_matrix, number: int) -> None:
    (moments,) = gene_moments(counts, np.ones(300, dtype=bool), np.positive)
    found = variable_genes(moments.mean, moments.variance(ddof=1), number)
    wanted = _by_scanpy(counts, flavor="cell_ranger", n_top_genes=number)["gene_subset"]
    np.testing.assert_array_equal(found, wanted)


def test_variable_genes_of_hardly_any_genes() -> None:
    assert variable_genes(np.array([0.0, 2.0, 3.0]), np.array([0.0, 5.0, 2.0]), 3).all()


def test_dispersion_record_is_scanpys(counts: sparse.csr_matrix) -> None:
    logged = counts.log1p()
    (moments,) = gene_moments(counts, np.ones(300, dtype=bool), np.log1p)
    found = dispersion_record(moments.mean, moments.variance(ddof=1))
    wanted = _by_scanpy(logged, flavor="seurat")
    for column in ("means", "dispersions", "dispersions_norm"):
        np.testing.assert_allclose(found[column], wanted[column], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["highly_variable"], wanted["gene_subset"])


def test_principal_axes_are_those_of_arpack(counts: sparse.csr_matrix) -> None:
    values = counts.toarray().astype(np.float64)
    found = principal_axes(np.cov(values.T), 5)
    wanted = PCA(5, svd_solver="arpack", random_state=0).fit(values).components_.T
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-6)
    assert (found.max(axis=0) == np.abs(found).max(axis=0)).all()


def test_neighbours_do_not_count_the_point_itself() -> None:
    points = np.array([[0.0], [1.0], [3.0]])
    assert neighbour_distance(points, neighbours=2, n_jobs=1) == 1.0
    assert neighbour_distance(points, neighbours=3, n_jobs=1) == 2.0
    assert neighbour_distance(points, neighbours=1, n_jobs=1) == 1.0
