from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from discern.errors import InvalidInputError
from discern.metrics import latent_space
from discern.metrics.latent_space import kept_neighbours, other_batch_share, reference_distance


def test_distance_is_the_mean_over_mutual_neighbours():
    rng = np.random.default_rng(0)
    latent, batches = rng.normal(size=(60, 5)), np.arange(60) % 2
    is_reference = np.arange(60) % 4 == 0
    directions = latent / np.linalg.norm(latent, axis=1)[:, np.newaxis]
    all_distances = np.linalg.norm(directions[:, np.newaxis] - directions, axis=2)
    own = np.empty(60)
    near = []
    for cell in range(60):
        others = [other for other in range(60) if is_reference[other] and other != cell]
        own[cell] = np.sort(all_distances[cell, others])[:4].mean()
        batch = [other for other in range(60) if batches[other] == batches[cell] and other != cell]
        near.append(sorted(batch, key=lambda other, cell=cell: all_distances[cell, other])[:15])
    mutual = [[cell, *(other for other in near[cell] if cell in near[other])] for cell in range(60)]
    expected = np.array([own[cells].mean() for cells in mutual])
    expected /= np.median(expected[is_reference])

    np.testing.assert_allclose(reference_distance(latent, batches, is_reference, k=4), expected, rtol=1e-5)


@pytest.mark.parametrize("share", [0.33, 0.03])
def test_a_type_that_the_reference_lacks_stands_out(share):
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(3, 16)) * 1.5
    types = rng.choice(3, 400, p=[(1 - share) / 2, (1 - share) / 2, share])
    latent = centres[types] + rng.normal(size=(400, 16)) * 0.6
    source = np.arange(400) < 200

    distance = reference_distance(latent, source, ~source & (types != 2))

    assert roc_auc_score(types[source] == 2, distance[source]) > 0.95


def test_the_depth_of_a_cell_does_not_count():
    rng = np.random.default_rng(2)
    latent, batches = rng.normal(size=(50, 5)), np.arange(50) < 25
    shallow = latent * rng.uniform(0.2, 1, (50, 1))

    distance = reference_distance(latent, batches, batches)

    np.testing.assert_allclose(reference_distance(shallow, batches, batches), distance, rtol=1e-4)
    assert np.isfinite(
        reference_distance(np.vstack([latent, np.zeros(5)]), np.append(batches, False), np.append(batches, False))
    ).all()


def test_many_cells_are_taken_in_parts():
    rng = np.random.default_rng(2)
    latent, is_reference = rng.normal(size=(3000, 4)), np.arange(3000) < 2500
    latent[:, 0] += 2
    latent[2900:] += [0, 5, 0, 0]
    exact = reference_distance(latent, is_reference, is_reference)

    sampled, again = (reference_distance(latent, is_reference, is_reference, most_cells=1000) for _ in range(2))

    assert not np.array_equal(sampled, exact)
    assert np.corrcoef(sampled, exact)[0, 1] > 0.8
    np.testing.assert_array_equal(sampled, again)


def test_identical_reference_cells_give_finite_distances():
    latent, is_reference = np.vstack([np.zeros((5, 2)), np.ones((1, 2))]), np.arange(6) < 5
    distance = reference_distance(latent, is_reference, is_reference)

    assert distance[:5].tolist() == [0] * 5
    assert np.isfinite(distance).all()


def test_a_reference_of_one_cell_is_refused():
    with pytest.raises(InvalidInputError, match="expected at least two reference cells, got 1"):
        reference_distance(np.zeros((3, 2)), np.zeros(3), np.array([True, False, False]))


def test_share_of_other_batches_and_its_expectation():
    rng = np.random.default_rng(3)
    batches = np.repeat(["a", "b", "c"], [225, 137, 60])
    mixed = other_batch_share(rng.normal(size=(422, 6)), batches)

    pairs = batches[:, np.newaxis] != batches
    assert mixed["expected"] == pytest.approx(pairs.sum() / (422 * 421))
    assert mixed["share"] == pytest.approx(mixed["expected"], abs=0.03)


def test_expected_share_within_types_of_unequal_composition():
    rng = np.random.default_rng(4)
    batches = np.repeat(["a", "b"], 200)
    labels = np.where(batches == "a", "x", rng.choice(["x", "y"], 400))
    latent = rng.normal(size=(400, 6)) + 50.0 * (labels == "y")[:, np.newaxis]

    found = other_batch_share(latent, batches, labels)

    assert found["share"] == pytest.approx(found["expected_within_label"], abs=0.03)
    assert found["expected"] > found["share"] + 0.1


def test_kept_neighbours_between_all_and_none():
    rng = np.random.default_rng(5)
    before = rng.normal(size=(300, 4))
    noisy = kept_neighbours(before, before + rng.normal(size=(300, 4)) * 0.3)
    other = kept_neighbours(before, rng.normal(size=(300, 4)))

    assert other["expected"] == pytest.approx(15 / 299)
    assert other["share"] == pytest.approx(other["expected"], abs=0.02)
    assert other["share"] + 0.2 < noisy["share"] < 1


def test_new_cells_have_the_distance_that_they_would_have_among_the_others():
    rng = np.random.default_rng(3)
    latent = rng.normal(size=(90, 6))
    obs = pd.DataFrame({"batch": ["a"] * 50 + ["b"] * 40, "split": ["train"] * 35 + ["test"] * 15 + ["train"] * 40})
    whole = reference_distance(latent, obs["batch"].to_numpy(), (obs["split"] == "train") & (obs["batch"] == "a"))

    yardstick = latent_space.Yardstick.of(latent, obs, "a")

    np.testing.assert_allclose(yardstick.distance(latent[50:], obs["batch"].to_numpy()[50:]), whole[50:], rtol=1e-5)
    assert yardstick.line == pytest.approx(np.quantile(whole[35:50], 0.95))
    assert yardstick.split == "test"
    assert yardstick.directions.shape == (35, 6)
    np.testing.assert_allclose(np.linalg.norm(yardstick.directions, axis=1), 1, rtol=1e-5)


def test_there_is_no_distance_from_a_single_cell():
    obs = pd.DataFrame({"batch": ["a", "b"], "split": ["train", "train"]})
    assert latent_space.Yardstick.of(np.ones((2, 3)), obs, "a") is None
