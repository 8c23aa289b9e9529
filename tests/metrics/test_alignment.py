"""Codes of a batch are moved onto those of another, type by type, whatever the shares of the types."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from discern import DISCERN, DISCERNData
from discern.metrics import alignment as alignments
from discern.metrics.alignment import Alignment, aligned, find_alignment, lacking, mutual_neighbours
from discern.metrics.latent_space import reference_distance, training_cells
from discern.model.projection import OwnCells, codes

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from discern.data.chunks import Matrix

SIDE = {"layers": [8], "norm_type": ["conditionallayernorm"], "regularization": 0.0}
SHARES = {"source": (60, 30, 10), "reference": (10, 30, 60)}


def three_types(seed: int = 0) -> tuple[sparse.csr_matrix, npt.NDArray[np.str_], npt.NDArray[np.intp]]:
    """Return log-normalised cells of two batches of three types in unequal shares, their batches and their types."""
    generator = np.random.default_rng(seed)
    profiles = generator.gamma(0.5, 1, (3, 80))
    technology = {"source": generator.gamma(20, 1 / 20, 80), "reference": np.ones(80)}
    batches = np.repeat(list(SHARES), 100)
    types = np.concatenate([np.repeat(range(3), shares) for shares in SHARES.values()])
    rates = profiles[types] * np.array([technology[name] for name in batches])
    counts = generator.poisson(rates / rates.sum(axis=1, keepdims=True) * 800)
    return sparse.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1000).astype("f4")), batches, types


def codes_of(batches: npt.NDArray[np.str_], types: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """Return codes as networks make them: types of the source nearer to each other, and away from the reference's."""
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(3, 6)) * 3
    of_source = (batches == "source")[:, np.newaxis]
    noise = 0.3 * generator.normal(size=(len(types), 6))
    return (np.where(of_source, 0.5 * centres[types] + 1, centres[types]) + noise).astype(np.float32)


def moved_to_reference(
    X: Matrix, latent: npt.NDArray[np.float32], batches: npt.NDArray[np.str_]
) -> npt.NDArray[np.float32]:
    alignment = find_alignment(X, latent, *(np.flatnonzero(batches == name) for name in SHARES))
    return aligned(latent, batches, {"source": alignment})


def test_a_move_is_the_mean_over_cells_with_counterparts() -> None:
    generator = np.random.default_rng(0)
    codes, others = (generator.normal(size=(n, 3)).astype(np.float32) for n in (40, 30))
    counterparts = sparse.csr_matrix((generator.random((40, 30)) < 0.03).astype(float))
    pairs = [(cell, np.flatnonzero(row)) for cell, row in enumerate(counterparts.toarray()) if row.any()]
    assert 10 < len(pairs) < 40, "the cells of this test show nothing"

    alignment = Alignment.of(codes, others, counterparts, generator)

    np.testing.assert_allclose(alignment.shares, counterparts.toarray().sum(axis=1) / 6, rtol=1e-6)
    anchors = np.array([codes[cell] for cell, _ in pairs])
    moves = np.array([others[those].mean(axis=0) - codes[cell] for cell, those in pairs])
    np.testing.assert_array_equal(alignment.codes, codes)
    np.testing.assert_allclose(alignment.moves[alignment.shares > 0], moves, atol=1e-6)
    assert not alignment.moves[alignment.shares == 0].any()
    for code, moved in zip(codes, alignment.moved(codes), strict=True):
        squares = ((anchors - code) ** 2).sum(axis=1)
        weights = np.exp(-squares / np.sort(squares)[:20].mean())
        np.testing.assert_allclose(moved, code + weights @ moves / weights.sum(), atol=1e-4)


def test_types_meet_whatever_their_shares() -> None:
    X, batches, types = three_types()
    latent = codes_of(batches, types)

    moved = moved_to_reference(X, latent, batches)

    of_source = batches == "source"
    np.testing.assert_array_equal(moved[~of_source], latent[~of_source])
    for kind in range(3):
        own, there = of_source & (types == kind), ~of_source & (types == kind)
        before, after = (np.linalg.norm(z[own].mean(axis=0) - latent[there].mean(axis=0)) for z in (latent, moved))
        assert after < 0.6 * before


def test_what_varies_within_a_type_stays() -> None:
    X, batches, types = three_types()
    latent = codes_of(batches, types)
    moved = moved_to_reference(X, latent, batches)
    for kind in range(2):
        own = (batches == "source") & (types == kind)
        before, after = (z[own] - z[own].mean(axis=0) for z in (latent, moved))
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.8


def test_a_type_that_the_reference_lacks_is_not_put_onto_another() -> None:
    X, batches, types = three_types()
    there = (batches == "source") | (types != 1)
    X, batches, types = X[there], batches[there], types[there]
    latent = codes_of(batches, types)

    moved = moved_to_reference(X, latent, batches)

    of_source = batches == "source"
    lacking = moved[of_source & (types == 1)].mean(axis=0)
    for kind in (0, 2):
        distances = [
            np.linalg.norm(z[of_source & (types == 1)].mean(axis=0) - z[of_source & (types == kind)].mean(axis=0))
            for z in (latent, moved)
        ]
        assert distances[1] > 0.8 * distances[0]
        assert np.linalg.norm(lacking - latent[~of_source & (types == kind)].mean(axis=0)) > 1


def test_blocks_and_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    dask = pytest.importorskip("dask.array")
    X, batches, types = three_types()
    latent = codes_of(batches, types)
    whole = moved_to_reference(X, latent, batches)
    monkeypatch.setattr(alignments, "_CELLS_AT_ONCE", 7)
    lazy = dask.from_array(X.toarray(), chunks=(30, -1)).map_blocks(sparse.csr_matrix)
    np.testing.assert_allclose(moved_to_reference(lazy, latent, batches), whole, atol=1e-4)


def test_many_cells_are_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignments, "MOST_CELLS", 60)
    monkeypatch.setattr(alignments, "MOST_KEPT", 20)
    X, batches, types = three_types()
    found = find_alignment(X, codes_of(batches, types), np.arange(100), np.arange(100, 200))
    assert len(found.codes) == len(found.shares) == len(found.moves) == 20


def test_a_third_batch_changes_nothing() -> None:
    X, batches, types = three_types()
    latent = codes_of(batches, types)
    other = three_types(1)[0]
    with_third = moved_to_reference(
        sparse.vstack([X, other]).tocsr(),
        np.concatenate([latent, latent[::-1]]),
        np.concatenate([batches, np.full(200, "third")]),
    )
    np.testing.assert_array_equal(with_third[:200], moved_to_reference(X, latent, batches))
    np.testing.assert_array_equal(with_third[200:], latent[::-1])


def test_without_counterparts_nothing_moves() -> None:
    latent = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    nothing = Alignment.of(latent, latent, sparse.csr_matrix((8, 8)), np.random.default_rng(0))
    np.testing.assert_array_equal(nothing.moved(latent), latent)
    np.testing.assert_array_equal(nothing.lacking(latent), np.ones(8))
    assert aligned(latent, np.array(list("aaaabbbb")), {}) is latent


def test_cells_at_one_point_move_as_one() -> None:
    same = sparse.eye_array(9, format="csr")
    alignment = Alignment.of(np.zeros((9, 2), "f4"), np.ones((9, 2), "f4"), same, np.random.default_rng(0))
    np.testing.assert_array_equal(alignment.moved(np.full((2, 2), 5, "f4")), np.full((2, 2), 6))


@pytest.mark.parametrize("kind", range(3))
def test_a_type_without_counterparts_stands_out(kind: int) -> None:
    X, batches, types = three_types()
    there = (batches == "source") | (types != kind)
    X, batches, types = X[there], batches[there], types[there]
    latent = codes_of(batches, types)
    latent[types == kind] = codes_of(batches, np.full(len(types), (kind + 1) % 3))[types == kind]  # codes do not tell
    source = np.flatnonzero(batches == "source")
    alone = latent + np.where(types == kind, 9, 0)[:, np.newaxis].astype(np.float32)

    found = find_alignment(X, alone, source, np.flatnonzero(batches == "reference"))

    factor = lacking(alone, batches, {"source": found})
    np.testing.assert_array_equal(factor[batches == "reference"], 1)
    of_kind = types[source] == kind
    assert factor[source][of_kind].min() > factor[source][~of_kind].mean()
    assert factor[source][of_kind].mean() > 1.2 * factor[source][~of_kind].mean()


def test_how_much_like_cells_lack() -> None:
    generator = np.random.default_rng(1)
    codes = generator.normal(size=(60, 3)).astype(np.float32)
    counterparts = sparse.csr_matrix((generator.random((60, 50)) < 0.1).astype(float))
    alignment = Alignment.of(codes, codes[:50], counterparts, generator)
    asked = generator.normal(size=(7, 3)).astype(np.float32)
    directions, kept = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (asked, codes))
    near = np.linalg.norm(directions[:, np.newaxis] - kept, axis=2).argsort(axis=1)[:, :15]
    shares = counterparts.toarray().sum(axis=1) / 10
    around = np.linalg.norm(kept[:, np.newaxis] - kept, axis=2).argsort(axis=1)[:, :15]
    usual = np.quantile(shares[around].mean(axis=1)[shares > 0], 0.25)
    wanted = (1 - shares[near].mean(axis=1)) / (1 - usual)
    np.testing.assert_allclose(alignment.lacking(asked), wanted, rtol=1e-5)


@pytest.mark.parametrize(("n_left", "n_right", "back", "near"), [(60, 55, 10, 10), (30, 20, 6, 4), (4, 60, 1, 10)])
def test_neighbours_are_mutual(n_left: int, n_right: int, back: int, near: int) -> None:
    generator = np.random.default_rng(3)
    left, right = generator.normal(size=(n_left, 2)), generator.normal(size=(n_right, 2))
    distance = np.linalg.norm(left[:, np.newaxis] - right, axis=2)
    there, here = distance.argsort(axis=1)[:, :near], distance.argsort(axis=0)[:back].T
    wanted = [[float(j in there[i] and i in here[j]) for j in range(n_right)] for i in range(n_left)]
    np.testing.assert_array_equal(mutual_neighbours(left, right).toarray(), wanted)


@pytest.fixture(scope="module")
def data(golden: Path) -> DISCERNData:
    return DISCERNData.from_folder(golden / "experiment", batch_size=32)


@pytest.fixture(scope="module")
def model(data: DISCERNData) -> DISCERN:
    optimizer = {"algorithm": "keras.optimizers.Adam", "learning_rate": 0.01}
    model = DISCERN(
        latent_dim=4, encoder=SIDE, decoder=SIDE, optimizer=optimizer, seed=0, align_batches=True, output_lsn=1000
    )
    model.training(data, max_steps=2)
    return model


@pytest.fixture(scope="module")
def reference(data: DISCERNData) -> str:
    return str(data.obs["batch"].cat.categories[0])


def test_moved_codes_are_decoded_and_kept(data: DISCERNData, model: DISCERN, reference: str) -> None:
    result = model.reconstruct(data, "batch", reference)
    own = OwnCells.of(model.trained, data)
    moved = codes(model.trained, own, ("batch", reference))
    of_reference = own.cells.batch == reference
    np.testing.assert_array_equal(moved[of_reference], own.cells.latent[of_reference])
    assert np.abs(moved - own.cells.latent)[~of_reference].max() > 0.01
    np.testing.assert_array_equal(result.obsm["X_DISCERN"], moved)
    labels = np.repeat(np.eye(own.cells.batch_onehot.shape[1])[:1], len(moved), axis=0)
    counts, _ = model.generate_cells_from_latent(moved, labels, 64)
    np.testing.assert_allclose(result.layers["estimated_counts"], counts, atol=1e-5)


def test_distances_are_of_codes_as_they_were(data: DISCERNData, model: DISCERN, reference: str) -> None:
    plain = DISCERN(latent_dim=4, encoder=SIDE, decoder=SIDE, output_lsn=1000)
    plain._trained = replace(model.trained, align_batches=False)
    found = [one.reconstruct(data, "batch", reference) for one in (model, plain)]
    np.testing.assert_array_equal(found[0].obs["discern_distance"], found[1].obs["discern_distance"])
    np.testing.assert_array_equal(found[0].var["discern_trust"], found[1].var["discern_trust"])


def test_distances_say_what_lacks_counterparts(data: DISCERNData, model: DISCERN, reference: str) -> None:
    result = model.reconstruct(data, "batch", reference)
    own = OwnCells.of(model.trained, data)
    training = training_cells(data.obs, reference)
    wanted = reference_distance(own.cells.latent, own.cells.batch, training)
    factor = lacking(own.cells.latent, own.cells.batch, own.alignments(reference))
    np.testing.assert_allclose(result.obs["discern_distance"], wanted * factor, rtol=1e-6)
    assert np.ptp(factor[own.cells.batch != reference]) > 0.1


@pytest.mark.parametrize("target", [(None, None), ("batch", ""), ("batch", None)])
def test_other_targets_keep_the_codes(data: DISCERNData, model: DISCERN, target: tuple[str | None, str | None]) -> None:
    own = OwnCells.of(model.trained, data)
    assert codes(model.trained, own, target) is own.cells.latent


def test_it_has_to_be_asked_for(data: DISCERNData, model: DISCERN, reference: str) -> None:
    plain = replace(model.trained, align_batches=False)
    own = OwnCells.of(plain, data)
    assert codes(plain, own, ("batch", reference)) is own.cells.latent


def test_only_training_cells_say_where_to(data: DISCERNData, model: DISCERN, reference: str) -> None:
    own = OwnCells.of(model.trained, data)
    training = {name: np.flatnonzero(training_cells(data.obs, name)) for name in own.cells.batches}
    there = training.pop(reference)
    found = {name: find_alignment(data.X, own.cells.latent, rows, there) for name, rows in training.items()}
    wanted = aligned(own.cells.latent, own.cells.batch, found)
    np.testing.assert_array_equal(codes(model.trained, own, ("batch", reference)), wanted)


def test_without_splits_codes_stay(data: DISCERNData, model: DISCERN, reference: str) -> None:
    cells = ad.AnnData(data.X, data.obs.drop(columns="split"), data.var, dict(data.uns), varm=dict(data.varm))
    own = OwnCells.of(model.trained, DISCERNData(cells, 32))
    np.testing.assert_array_equal(codes(model.trained, own, ("batch", reference)), own.cells.latent)
