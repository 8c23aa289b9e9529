"""Corrupted and malicious files: refused in one line that names them. `benchmarks/attacks_files.py` has the attacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import attacks_files as attacks
from discern.cli import commands
from discern.config.reading import load_parameters
from discern.data.chunks import iter_blocks, read_cells
from discern.data.processed import DISCERNData
from discern.data.records import current_records, write_records
from discern.errors import InvalidInputError, MissingFileError
from discern.inputs.merging import merge_data_sets
from discern.inputs.readers import read_raw_input
from discern.model import checkpoint
from discern.model.trained import TrainedNetwork
from discern.preprocessing.recipe import WAERecipe
from discern.runtime import foreign
from tests.model.test_checkpoint import trained_model
from tests.support.networks import make_model

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*zarr v[23]"),
    pytest.mark.filterwarnings("ignore:.*(encoding metadata|old|legacy)"),
]

SPARSE = {"csr": "X", "csc": "X", "zarr2": "X", "zarr3": "X", "10x": "matrix", "old": "X"}
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return attacks.write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture
def copied(raw: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: attacks._copied(raw[name], tmp_path)


def told(path: Path, read: Callable[[], Any]) -> str:
    """The one line in which a file is refused."""
    with pytest.raises((InvalidInputError, MissingFileError)) as error:
        read()
    message = str(error.value)
    assert path.name in message
    assert len(message) <= 2000
    assert message.isprintable()
    assert not attacks._EXCEPTION.search(message)
    return message


@pytest.mark.parametrize(
    "source", ["csr", "csc", "dense", "zarr2", "zarr3", "10x", "old", "mtx", "mtxgz", "csv", "tsvgz"]
)
def test_sound_files_are_read(raw: dict[str, Path], source: str) -> None:
    read = read_raw_input(raw[source])
    cells = attacks.make_cells()
    np.testing.assert_array_equal(read.X.toarray(), cells.X.toarray())
    assert list(read.var_names) == list(cells.var_names)


@pytest.mark.parametrize("source", SPARSE)
@pytest.mark.parametrize("change", [*attacks.BROKEN_SPARSE, *attacks.BROKEN_SHAPES])
def test_sparse_matrix_that_does_not_hold_together(copied: Callable[[str], Path], source: str, change: str) -> None:
    if (source == "zarr3" and "text" in change) or (source, change) == ("10x", "shape of text"):
        pytest.skip("cannot be written")
    path = copied(source)
    broken = attacks.break_sparse if change in attacks.BROKEN_SPARSE else attacks.break_shape
    broken(path, SPARSE[source], change)
    told(path, lambda: read_raw_input(path))


@pytest.mark.parametrize("source", ["csr", "zarr2"])
@pytest.mark.parametrize("change", attacks.BROKEN_SPARSE)
def test_sparse_matrix_that_is_read_block_by_block(
    copied: Callable[[str], Path], source: str, change: str, limit_memory: Callable[..., None]
) -> None:
    limit_memory(block=attacks.GENES * 16)
    path = copied(source)
    attacks.break_sparse(path, "X", change)
    told(path, lambda: list(iter_blocks(read_cells(path, budget=0).X)))


def test_messages_say_what_is_wrong(copied: Callable[[str], Path]) -> None:
    path = copied("csr")
    attacks.break_sparse(path, "X", "index too high")
    assert "indices go from 0 to 90, expected 0 to 29" in told(path, lambda: read_raw_input(path))
    with h5py.File(path, "a") as file:
        file["X"].attrs["encoding-type"] = "csc_matrix"
    assert "indptr has 61 numbers for 30 columns" in told(path, lambda: read_raw_input(path))


@pytest.mark.parametrize("source", ["csr", "dense", "10x", "old"])
@pytest.mark.parametrize("change", attacks.MALICIOUS)
def test_hdf5_that_leads_elsewhere_or_has_no_end(copied: Callable[[str], Path], source: str, change: str) -> None:
    if (source, change) == ("10x", "2^40 paths"):
        pytest.skip("group of another format")
    name = {"csr": "X/data", "dense": "X", "10x": "matrix/barcodes", "old": "obs"}[source]
    path = copied(source)
    attacks._malicious(path, name, change, path.parent)
    told(path, lambda: read_raw_input(path))


@pytest.mark.parametrize("source", ["zarr2", "zarr3"])
@pytest.mark.parametrize("change", attacks.BROKEN_ZARR)
def test_zarr_that_leads_elsewhere_or_runs_code(copied: Callable[[str], Path], source: str, change: str) -> None:
    path = copied(source)
    attacks.BROKEN_ZARR[change](path, path.parent)
    told(path, lambda: read_raw_input(path))


def test_zarr_summary_is_not_believed(copied: Callable[[str], Path]) -> None:
    path = copied("zarr2")
    summary = path / ".zmetadata"
    content = json.loads(summary.read_text()) if summary.exists() else {"metadata": {}, "zarr_consolidated_format": 1}
    for key, value in content["metadata"].items():
        if key == "X/.zattrs":
            value["shape"] = [attacks.CELLS * 2, attacks.GENES]
    summary.write_text(json.dumps(content))
    np.testing.assert_array_equal(read_raw_input(path).X.toarray(), attacks.make_cells().X.toarray())


@pytest.mark.parametrize("change", attacks.BROKEN_MTX)
def test_matrix_market_that_lies(copied: Callable[[str], Path], change: str) -> None:
    path = copied("mtx")
    (path / "matrix.mtx").write_text(attacks.BROKEN_MTX[change])
    told(path, lambda: read_raw_input(path))


@pytest.mark.parametrize("kind", attacks.NOT_FILES)
@pytest.mark.parametrize("name", ["cells.h5ad", "cells.h5", "cells.loom", "cells.csv", "cells.zarr", "cells"])
def test_what_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    attacks.NOT_FILES[kind](path)
    told(path, lambda: read_raw_input(path))


def test_parameters_from_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "parameters.json")
    with pytest.raises(InvalidInputError, match=r"parameters\.json: expected a file, this is a named pipe"):
        load_parameters(tmp_path / "parameters.json")
    result = CliRunner().invoke(commands.cli, ["info", str(tmp_path / "parameters.json")])
    assert result.exit_code == 2


def test_table_without_line_ends_takes_no_memory(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "bomb.tsv.gz"
    path.write_bytes(gzip.compress(b"0\t" * 2**21))

    def read() -> None:
        with foreign.reading(path, "cannot be read"), foreign.open_text(path, longest_line=2**21) as file:
            file.readline()

    assert "a line of more than 2 MB" in told(path, read)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_broken_matrix_in_memory(form: str) -> None:
    cells = attacks.make_cells()
    cells.X = cells.X.asformat(form)
    cells.X.indices[3] = 10_000
    with pytest.raises(InvalidInputError, match=r"mine: cannot be used .*expected 0 to"):
        merge_data_sets({"mine": cells}, {})
    with pytest.raises(InvalidInputError, match="expected 0 to"):
        WAERecipe({}, cells)


def test_names_that_no_file_can_hold() -> None:
    cells = attacks.make_cells()
    cells.obs_names = ["a\0b", *cells.obs_names[1:]]
    with pytest.raises(InvalidInputError, match=r"mine: .*obs: the name 'a\\x00b' holds a character that no file"):
        merge_data_sets({"mine": cells}, {})


def test_faults_of_the_program_are_not_told_as_faults_of_the_file() -> None:
    with pytest.raises(NameError), foreign.reading(Path("cells.h5ad"), "cannot be read"):
        undefined  # type: ignore[name-defined] # noqa: B018, F821
    with pytest.raises(KeyboardInterrupt), foreign.reading(Path("cells.h5ad"), "cannot be read"):
        raise KeyboardInterrupt


# --- processed cells -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment's folder with processed cells and records."""
    folder = tmp_path_factory.mktemp("experiment")
    cells = attacks.make_cells()
    scale = {"LSN": 100, "fixed_scaling": {"mean": "genes", "var": "genes"}}
    parameters = {"filtering": {"min_genes": 1, "min_cells": 1}, "split": {"valid_cells": 0.2}, "scale": scale}
    recipe = WAERecipe(parameters, cells)()
    recipe.dump(folder)
    recipe.dump_tf_records(folder / "TF_records")
    return folder


@pytest.fixture
def processed(experiment: Path, tmp_path: Path) -> Path:
    path = tmp_path / "concatenated_data.h5ad"
    shutil.copyfile(experiment / "processed_data" / "concatenated_data.h5ad", path)
    return path


def test_sound_processed_cells_are_read(processed: Path) -> None:
    assert DISCERNData.read_h5ad(processed, 4).n_obs == attacks.CELLS


@pytest.mark.parametrize("change", attacks.BROKEN_PROCESSED)
def test_broken_processed_cells(processed: Path, change: str) -> None:
    with h5py.File(processed, "a") as file:
        attacks.BROKEN_PROCESSED[change](file)
    with pytest.raises(Exception, match=r"concatenated_data\.h5ad: ") as error:
        DISCERNData.read_h5ad(processed, 4)
    assert not attacks._EXCEPTION.search(str(error.value))
    assert type(error.value).__module__ == "discern.errors"


def test_value_that_is_no_number_is_found_block_by_block(processed: Path, limit_memory: Callable[..., None]) -> None:
    limit_memory(matrix=0)
    with h5py.File(processed, "a") as file:
        file["X/data"][-1] = np.nan
    data = DISCERNData.read_h5ad(processed, 4)
    with pytest.raises(InvalidInputError, match=r"concatenated_data\.h5ad: .*X: 1 of \d+ values is not a number"):
        list(iter_blocks(data.X))


def test_future_format_of_processed_cells(processed: Path) -> None:
    with h5py.File(processed, "a") as file:
        attacks.replace(file["uns/DISCERN_format"], "version", 3)
    with pytest.raises(InvalidInputError, match="is 3, written by a newer DISCERN; this one reads up to 2"):
        DISCERNData.read_h5ad(processed, 4)


def _record(genes: list[int], label: int = 0, more: bytes = b"") -> bytes:
    values = np.ones(len(genes), "<f4").tobytes()
    return np.array([label], "<i4").tobytes() + np.array(genes, "<u2").tobytes() + values + more


@pytest.mark.parametrize(
    "record",
    [_record([0, attacks.GENES]), _record([0], label=2), _record([0], label=-1), _record([0], more=b"x"), None],
    ids=["gene too high", "batch too high", "batch negative", "length", "bytes"],
)
def test_damaged_records_are_told(
    experiment: Path, tmp_path: Path, limit_memory: Callable[..., None], record: bytes | None
) -> None:
    import tensorflow as tf

    limit_memory(matrix=0)
    folder = Path(shutil.copytree(experiment, tmp_path / "cells"))
    data = DISCERNData.from_folder(folder, 4)
    (shard,) = (folder / "TF_records").glob("training*")
    if record is None:
        content = bytearray(shard.read_bytes())
        content[40] ^= 1
        shard.write_bytes(content)
    else:
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for _ in range(int((data.obs["split"] == "train").sum())):
                writer.write(record)
    train, _ = data.batches()
    with pytest.raises(InvalidInputError, match="TF_records: the records are damaged"), data.reading_records():
        list(train)


def test_lost_shards_are_not_used(experiment: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DISCERNData.from_folder(experiment, 4)
    monkey = tmp_path / "records"
    write_records(data, monkey)
    assert current_records(monkey, data)
    (shard,) = monkey.glob("training*")
    shard.rename(monkey / "training-00000-of-00002.tfrecords")
    assert current_records(monkey, data) is None
    (monkey / "meta.json").write_text("[1]")
    assert current_records(monkey, data) is None
    assert "some records are missing" in caplog.text


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from discern.networks.optimizers import RectifiedAdam

    path = tmp_path_factory.mktemp("model") / "last_model.h5"
    scaling = np.zeros(20, "f4"), np.ones(20, "f4")
    names = [f"gene{number}" for number in range(20)]
    trained = TrainedNetwork(trained_model(RectifiedAdam(1e-5)), scaling, tuple(names), ("a", "b"), 3)
    checkpoint.save_model(trained, path, 0.5)
    return path


# refused by what the network or the cells are, not by what the file says
_ELSEWHERE = (f"n_genes {attacks.GENES + 1}", "n_labels 5", "genes other")


@pytest.mark.parametrize("change", [name for name in attacks.BROKEN_MODELS if name not in _ELSEWHERE])
def test_broken_models(model_file: Path, tmp_path: Path, change: str) -> None:
    from discern.networks.optimizers import RectifiedAdam

    path = Path(shutil.copyfile(model_file, tmp_path / "last_model.h5"))
    with h5py.File(path, "a") as file:
        attacks.BROKEN_MODELS[change](file)

    def read() -> None:
        checkpoint.read_model_file(path)
        checkpoint.load_weights(make_model(), path, RectifiedAdam(1e-5))

    told(path, read)


def test_weight_that_is_no_number_is_named(model_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(model_file, tmp_path / "last_model.h5"))
    with h5py.File(path, "a") as file:
        file["weights/encoder_dense_0/kernel"][0, 0] = 1e38
    model = make_model()
    before = model.get_weights()
    with pytest.raises(InvalidInputError, match="encoder_dense_0/kernel: 1 of 320 values is not a number, infinite or"):
        checkpoint.load_weights(model, path)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weight_of_the_original_that_is_no_number(original_experiment: Path) -> None:
    from tests.support.networks import make_original_model

    path = original_experiment / "job" / "best_model.hdf5"
    with h5py.File(path, "a") as file:
        file["model_weights/encoder/latent/bias:0"][0] = np.inf
    told(path, lambda: checkpoint.load_weights(make_original_model(), path))


@pytest.mark.parametrize("change", attacks.MALICIOUS)
def test_models_that_lead_elsewhere(model_file: Path, tmp_path: Path, change: str) -> None:
    path = Path(shutil.copyfile(model_file, tmp_path / "last_model.h5"))
    attacks._malicious(path, "weights/encoder_dense_0/kernel", change, tmp_path)
    told(path, lambda: checkpoint.read_model_file(path))


# --- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("only", ["raw", "experiment"])
def test_all_attacks_are_answered_well(only: str) -> None:
    script = ROOT / "benchmarks" / "attacks_files.py"
    command = [sys.executable, str(script), "--only", only, "--random", "100", "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
