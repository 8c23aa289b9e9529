from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from discern.data import records
from discern.data.minibatches import Batches, stream
from discern.data.processed import make_dataset_from_anndata
from discern.data.records import (
    TFRecordsWriter,
    current_records,
    fingerprint,
    parse_tfrecords,
    serialise,
    write_records,
)
from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def cells(make_raw_cells: Callable[..., ad.AnnData]) -> ad.AnnData:
    adata = make_raw_cells({"a": 60, "b": 40})
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    adata.obs["split"] = np.where(np.arange(100) % 5 == 0, "valid", np.where(np.arange(100) % 7 == 0, "test", "train"))
    adata.var["mean_scaling"] = adata.X.mean(axis=0).A1
    return adata


@settings(max_examples=25)
@given(
    n_cells=st.integers(1, 20),
    n_genes=st.sampled_from([1, 30, 2**16, 2**16 + 1]),
    density=st.sampled_from([0.0, 0.001, 0.5]),
    n_labels=st.integers(1, 4),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, n_cells: int, n_genes: int, density: float, n_labels: int
) -> None:
    X = sparse.random(n_cells, n_genes, density=density, format="csr", dtype=np.float32, random_state=0)
    codes = np.random.default_rng(0).integers(n_labels, size=n_cells)
    file = tmp_path_factory.mktemp("records") / "training.tfrecords"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in serialise(X, codes):
            writer.write(record)
    found = list(parse_tfrecords(file, n_genes, n_labels).as_numpy_iterator())
    assert len(found) == n_cells
    for cell, (inputs, (counts, dropouts)) in enumerate(found):
        np.testing.assert_array_equal(inputs["input_data"], X[cell].toarray()[0])
        np.testing.assert_array_equal(counts, inputs["input_data"])
        np.testing.assert_array_equal(dropouts, inputs["input_data"])
        np.testing.assert_array_equal(inputs["batch_input_enc"], np.eye(n_labels)[codes[cell]])
        np.testing.assert_array_equal(inputs["batch_input_dec"], inputs["batch_input_enc"])


def test_batches_are_standardised_and_zeros_exact() -> None:
    random = np.random.default_rng(0)
    X = sparse.random(8, 50, density=0.3, format="csr", dtype=np.float32, random_state=0)
    mean, std = random.random(50, dtype=np.float32), random.random(50, dtype=np.float32) + np.float32(0.1)
    inputs, _ = Batches(mean, std, 1).parse(tf.constant(list(serialise(X, np.zeros(8)))))
    found = inputs["input_data"].numpy()
    np.testing.assert_allclose(found, (X.toarray() - mean) / std, rtol=1e-6)
    np.testing.assert_array_equal(found[X.toarray() == 0], np.broadcast_to((0 - mean) / std, (8, 50))[X.toarray() == 0])


def test_original_records_are_read(golden: Path) -> None:
    original = ad.read_h5ad(golden / "experiment" / "processed_data" / "concatenated_data.h5ad")
    for file, split in (("training", "train"), ("validate", "valid")):
        dataset = parse_tfrecords(golden / "experiment" / "TF_records" / f"{file}.tfrecords_v2", 1500, 2)
        found = np.stack([inputs["input_data"] for inputs, _ in dataset.as_numpy_iterator()])
        wanted = original[original.obs["split"] == split].X
        np.testing.assert_array_equal(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])


def test_shards_hold_each_cell_once_and_are_shuffled(cells: ad.AnnData, tmp_path: Path) -> None:
    write_records(cells, tmp_path / "TF_records", seed=3, cells_per_shard=10)
    files = current_records(tmp_path / "TF_records", cells)
    assert files is not None
    assert [file.name for file in files["validate"]] == [
        f"validate-{number:05d}-of-00002.tfrecords" for number in range(2)
    ]
    train = cells[cells.obs["split"] == "train"]
    batches = Batches(np.zeros(30, dtype=np.float32), np.ones(30, dtype=np.float32), 2)
    dataset = stream(files["training"], train.n_obs, 1, batches, seed=0)
    assert dataset.cardinality() == train.n_obs

    def epoch() -> np.ndarray:
        return np.concatenate([inputs["input_data"] for inputs, _ in dataset.as_numpy_iterator()])

    first, second, wanted = epoch(), epoch(), train.X.toarray()
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, wanted)
    for found in (first, second):
        np.testing.assert_array_equal(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])


def test_records_of_other_cells_are_not_used(
    cells: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "TF_records"
    assert current_records(folder, cells) is None
    write_records(cells, folder)
    assert current_records(folder, cells) is not None
    other = cells.copy()
    other.obs["split"] = other.obs["split"].to_numpy()[::-1]
    assert fingerprint(other) != fingerprint(cells)
    assert current_records(folder, other) is None
    assert "not of these cells and not used; run `discern process` again" in caplog.text


@pytest.mark.parametrize("content", ["", "{", '{"format_version": 99}'])
def test_records_without_sound_meta_are_not_used(
    cells: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    write_records(cells, tmp_path / "TF_records")
    meta = tmp_path / "TF_records" / "meta.json"
    meta.unlink() if not content else meta.write_text(content)
    assert current_records(tmp_path / "TF_records", cells) is None
    assert "not used" in caplog.text


def test_original_records_are_recognised(golden: Path, cells: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert current_records(golden / "experiment" / "TF_records", cells) is None
    assert "records of DISCERN 1, not used" in caplog.text


def test_write_dataset(cells: ad.AnnData, tmp_path: Path) -> None:
    writer = TFRecordsWriter(tmp_path / "TF_records")
    train, valid = make_dataset_from_anndata(cells, for_tfrecord=True)
    writer.write_dataset(train, "train")
    writer.write_dataset(valid, "valid")
    meta = json.loads((tmp_path / "TF_records" / "meta.json").read_text())
    assert meta["counts"] == {"training": 68, "validate": 20}
    (file,) = (tmp_path / "TF_records").glob("validate*")
    found = [inputs["input_data"] for inputs, _ in parse_tfrecords([file], 30, 2).as_numpy_iterator()]
    np.testing.assert_array_equal(np.stack(found), cells[cells.obs["split"] == "valid"].X.toarray())


def test_write_dataset_of_another_split(cells: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="expected the split 'train' or 'valid', got 'test'"):
        TFRecordsWriter(tmp_path).write_dataset([b""], "test")


@pytest.mark.parametrize(("count", "message"), [(1, "expected 1 cells, got more"), (3, "expected 3 cells, got 2")])
def test_wrong_number_of_records(tmp_path: Path, count: int, message: str) -> None:
    def write_two() -> None:
        with TFRecordsWriter(tmp_path).shards("train", count) as write:
            write(b"one")
            write(b"two")

    with pytest.raises(InvalidInputError, match=message):
        write_two()
    assert not (tmp_path / "meta.json").exists()


def test_failure_leaves_the_old_records(cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(cells, tmp_path / "TF_records")
    old = shutil.copytree(tmp_path / "TF_records", tmp_path / "copy")
    monkeypatch.setattr(records, "serialise", lambda *_: (_ for _ in ()).throw(RuntimeError("disk full")))
    with pytest.raises(RuntimeError, match="disk full"):
        write_records(cells, tmp_path / "TF_records")
    assert {file.name: file.read_bytes() for file in (tmp_path / "TF_records").iterdir()} == {
        file.name: file.read_bytes() for file in old.iterdir()
    }
