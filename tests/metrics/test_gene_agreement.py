from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.stats import spearmanr

from discern.metrics.gene_agreement import (
    GeneErrors,
    GroupStatistics,
    agreement,
    compare_differences,
    compare_groups,
    shared_groups,
)


def pearsonr(x, y):
    """As scipy's, but silent where it is not defined."""
    return (np.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else stats.pearsonr(x, y)[0],)


def plain_t(x, labels, a, b):
    x, y = x[labels == a], x[labels == b]
    return (x.mean(0) - y.mean(0)) / np.sqrt(x.var(0) / len(x) + y.var(0) / len(y) + 1e-6)


def plain_figures(reconstructed, labels, reference, reference_labels):
    """The definitions, on dense matrices, cell by cell."""
    types = sorted(set(labels) & set(reference_labels))
    mean = {c: (reconstructed[labels == c].mean(0), reference[reference_labels == c].mean(0)) for c in types}
    seen = {
        c: ((reconstructed[labels == c] > 0).mean(0), (reference[reference_labels == c] > 0).mean(0)) for c in types
    }
    r, rho, top = [], [], []
    for a, b in itertools.combinations(types, 2):
        ours, real = mean[a][0] - mean[b][0], mean[a][1] - mean[b][1]
        r.append(pearsonr(ours, real)[0])
        rho.append(spearmanr(plain_t(reconstructed, labels, a, b), plain_t(reference, reference_labels, a, b))[0])
        top.append(len(set(np.argsort(-np.abs(ours))[:200]) & set(np.argsort(-np.abs(real))[:200])) / 200)
    return {
        "mean_r": np.mean([pearsonr(*mean[c])[0] for c in types]),
        "mean_rmse": np.mean([np.sqrt(((mean[c][0] - mean[c][1]) ** 2).mean()) for c in types]),
        "detection_r": np.mean([pearsonr(*seen[c])[0] for c in types]),
        "difference_r": np.mean(r),
        "t_rho": np.mean(rho),
        "top200": np.mean(top),
    }


def some_cells(seed, n_cells, types, n_genes=600):
    rng = np.random.default_rng(seed)
    profiles = np.random.default_rng(99).gamma(0.6, 2, (4, n_genes))
    labels = np.array(types)[rng.integers(len(types), size=n_cells)]
    rates = profiles[[int(label[-1]) for label in labels]]
    counts = rng.poisson(rates * rng.uniform(0.5, 2, (n_cells, 1)))
    return np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 20_000), labels


@pytest.mark.parametrize("storage", [np.asarray, sparse.csr_matrix, sparse.csr_array])
def test_the_figures_are_those_of_the_plain_definitions(storage):
    ours, labels = some_cells(0, 157, ["t0", "t1", "t2"])
    real, real_labels = some_cells(1, 120, ["t1", "t2", "t0", "t3"])
    expected = plain_figures(ours, labels, real, real_labels)

    found = agreement(GroupStatistics.of(storage(ours), labels), GroupStatistics.of(storage(real), real_labels))

    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-9)
    assert 0.2 < found["t_rho"] < 0.99, "the example should be neither trivial nor hopeless"


def test_blocks_add_up_to_the_whole():
    values, labels = some_cells(2, 200, ["t0", "t1", "t2"])
    whole = GroupStatistics.of(values, labels)
    parts = GroupStatistics(["t0", "t1", "t2", "absent"], values.shape[1])
    codes = parts.groups.get_indexer(labels)
    for rows in (slice(0, 1), slice(1, 130), slice(130, 200)):
        block = values[rows].astype(np.float32)
        parts.add(sparse.csr_matrix(block) if rows.start else block, codes[rows])

    assert parts.present == list(whole.groups)
    for name in ("cells", "mean", "variance", "detection"):
        np.testing.assert_allclose(getattr(parts, name)[:3], getattr(whole, name), rtol=1e-5, atol=1e-5)
    assert np.isnan(parts.mean[3]).all()


def test_cells_without_a_label_do_not_count():
    values, labels = some_cells(3, 60, ["t0", "t1"])
    known = np.arange(60) < 40
    with_gaps = labels.astype(object)
    with_gaps[~known] = np.nan

    found = GroupStatistics.of(values, with_gaps)

    np.testing.assert_allclose(found.mean, GroupStatistics.of(values[known], labels[known]).mean)


def test_only_shared_groups_are_compared():
    a = GroupStatistics.of(*some_cells(4, 80, ["t0", "t1", "t2"]))
    b = GroupStatistics.of(*some_cells(5, 80, ["t2", "t1", "t3"]))

    assert shared_groups(a, b) == ["t1", "t2"]
    assert list(compare_groups(a, b).index) == ["t1", "t2"]
    assert list(compare_differences(a, b).index) == [("t1", "t2")]
    np.testing.assert_array_equal(a.at(["t2", "t1"]).mean, a.mean[[2, 1]])


def test_one_group_has_no_differences_and_constant_genes_no_correlation():
    one = GroupStatistics.of(np.ones((5, 3)), ["t0"] * 5)

    found = agreement(one, one)

    assert found["mean_rmse"] == 0
    assert np.isnan([found[name] for name in ("mean_r", "detection_r", "difference_r", "t_rho", "top200")]).all()


def test_gene_errors_are_within_batches():
    rng = np.random.default_rng(6)
    batches = np.repeat([0, 1], 70)
    measured = rng.normal(size=(140, 5)) + 100.0 * batches[:, np.newaxis]
    rebuilt = measured + rng.normal(size=(140, 5)) * [0, 0.5, 1, 2, 8]
    measured[:, 0] = rebuilt[:, 0] = 7.3 + 100 * batches
    errors = GeneErrors(2, 5)
    for rows in np.array_split(np.arange(140), 3):
        errors.add(measured[rows].astype(np.float32), rebuilt[rows].astype(np.float32), batches[rows])

    centred = [np.concatenate([x[batches == b] - x[batches == b].mean(0) for b in (0, 1)]) for x in (measured, rebuilt)]
    expected = [pearsonr(centred[0][:, gene], centred[1][:, gene])[0] for gene in range(1, 5)]
    np.testing.assert_allclose(errors.correlation[1:], expected, atol=1e-4)
    assert np.isnan(errors.correlation[0])
    np.testing.assert_allclose(errors.rmse, np.sqrt(((measured - rebuilt) ** 2).mean(0)), rtol=1e-3, atol=1e-3)
