from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import anndata as ad
import dask.array as da
import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from discern.config import allowlist
from discern.data import annotation, scaling
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, UnsupportedError
from discern.runtime import devices as functions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", sorted(allowlist.KNOWN))
def test_every_allowed_name_exists(name: str) -> None:
    assert callable(allowlist.get_function_by_name(name))


@pytest.mark.parametrize("old", sorted(allowlist._RENAMED))
def test_every_renamed_name_exists(old: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert callable(allowlist.get_function_by_name(old))


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ("tensorflow.keras.optimizers.Adam", keras.optimizers.Adam),
        ("tensorflow.keras.optimizers.legacy.SGD", keras.optimizers.SGD),
        ("tensorflow.keras.optimizers.schedules.ExponentialDecay", keras.optimizers.schedules.ExponentialDecay),
        ("tensorflow.keras.experimental.CosineDecay", keras.optimizers.schedules.CosineDecay),
        ("tensorflow.keras.regularizers.L1L2", keras.regularizers.L1L2),
        ("tensorflow.keras.losses.mse", keras.losses.mean_squared_error),
        ("tensorflow_addons.activations.mish", keras.activations.mish),
        ("tensorflow_addons.activations.hardshrink", keras.activations.hard_shrink),
        ("tensorflow.nn.softplus", tf.nn.softplus),
    ],
)
def test_old_names_give_todays_equivalent(old: str, today: object) -> None:
    assert allowlist.get_function_by_name(old) is today


def test_discern_replaces_tensorflow_addons_optimisers() -> None:
    from discern.networks.optimizers import Lookahead, RectifiedAdam

    assert allowlist.get_function_by_name("tensorflow_addons.optimizers.RectifiedAdam") is RectifiedAdam
    assert allowlist.get_function_by_name("tensorflow_addons.optimizers.Lookahead") is Lookahead


def test_search_names_moved_with_ray() -> None:
    found = allowlist.look_up("ray.tune.suggest.hyperopt.HyperOptSearch", "searcher")
    assert (found.module, found.attribute) == ("ray.tune.search.hyperopt", "HyperOptSearch")


def test_an_equivalent_that_differs_says_so() -> None:
    with pytest.warns(UserWarning, match="divide it by the learning rate"):
        allowlist.get_function_by_name("tensorflow_addons.optimizers.AdamW")


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "discernible.evil",
        "tensorflow_hub.load",
        "kerasx.optimizers.Adam",
        "ray.cluster.Adam",
        "ray.init",
    ],
)
def test_other_libraries_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"'{name}' is refused: names may only come from tensorflow, keras"):
        allowlist.get_function_by_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "tensorflow.keras.utils.get_file",
        "tensorflow.io.write_file",
        "tensorflow.io.gfile.remove",
        "tensorflow.py_function",
        "tensorflow.keras.models.load_model",
        "tensorflow.keras.layers.Lambda",
        "keras.src.utils.file_utils.os.system",
        "keras.optimizers.deserialize",
        "keras.activations.__init__",
        "keras.activations.mish.__globals__",
        "keras.optimizers.keras.optimizers.Adam",
        "discern.cli.app.os.system",
        "discern.functions.importlib.import_module",
        "discern.runtime.atomic.remove",
        "ray.tune.run",
        "ray.tune.search.hyperopt.hyperopt_search.pickle.loads",
        "hyperopt.pyll.stochastic.sample",
        "hyperopt.hp.scope",
        "optuna.storages.JournalStorage",
    ],
)
def test_whatever_files_do_not_need_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="is not a name that a parameter file may use"):
        allowlist.get_function_by_name(name)


@pytest.mark.parametrize(
    "name", ["Adam", "", "keras..Adam", "keras.optimizers.Adam()", "kéras.optimizers.Adam", None, 3]
)
def test_no_dotted_name(name: object) -> None:
    with pytest.raises(InvalidInputError, match=r"expected (a dotted name such as|the name of a class or function)"):
        allowlist.get_function_by_name(name)  # type: ignore[arg-type]


def test_dead_name_without_equivalent() -> None:
    with pytest.raises(UnsupportedError, match=r"Yogi': TensorFlow Addons is dead and this has no equivalent"):
        allowlist.get_function_by_name("tensorflow_addons.optimizers.Yogi")
    with pytest.raises(UnsupportedError, match="Ray has no such searcher any more"):
        allowlist.get_function_by_name("ray.tune.suggest.sigopt.SigOptSearch")


def test_typing_mistake_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'keras\.optimizers\.Adam'"):
        allowlist.get_function_by_name("tensorflow.keras.optimizers.Addam")


@given(st.text())
def test_no_text_gets_past_the_allow_list(text: str) -> None:
    try:
        found = allowlist.look_up(text)
    except (InvalidInputError, UnknownNameError, UnsupportedError):
        return
    assert f"{found.module}.{found.attribute}" in allowlist.KNOWN


def test_getmembers_lists_own_classes_only() -> None:
    assert set(allowlist.getmembers("discern.errors")) == {
        *("UserError", "InvalidInputError", "NotBuiltError", "UnknownNameError", "MissingFileError"),
        *("UnsupportedError", "OutputError", "InUseError"),
    }
    with pytest.raises(UnknownNameError, match="expected the name of an imported module, got 'nowhere'"):
        allowlist.getmembers("nowhere")


@pytest.fixture
def genes() -> pd.DataFrame:
    return pd.DataFrame({"mean_scaling": [1.0, 0.0, 3.0], "var_scaling": [0.5, 1e-8, 2.0]}, index=list("abc"))


@pytest.mark.parametrize("scalings", [None, {}])
def test_parse_mean_var_without_scaling(genes: pd.DataFrame, scalings: dict | None) -> None:
    mean, std = scaling.parse_mean_var(genes, scalings)
    np.testing.assert_array_equal(mean, np.zeros(3))
    np.testing.assert_array_equal(std, np.ones(3))
    assert mean.dtype == std.dtype == np.float32


def test_parse_mean_var_of_genes_with_additions(genes: pd.DataFrame) -> None:
    mean, std = scaling.parse_mean_var(genes, {"mean": "genes", "var": "genes", "add_to_mean": -1, "add_to_var": 0.5})
    np.testing.assert_allclose(mean, [0, -1, 2])
    np.testing.assert_allclose(std, [1, 0.5, 2.5])


def test_parse_mean_var_of_numbers(genes: pd.DataFrame) -> None:
    mean, std = scaling.parse_mean_var(genes, {"mean": 0, "var": np.float64(2)})
    np.testing.assert_array_equal(mean, np.zeros(3))
    np.testing.assert_array_equal(std, np.full(3, 2))


@pytest.mark.parametrize(
    ("scalings", "message"),
    [
        ({"mean": "gene"}, "fixed_scaling.mean: expected 'genes' or a number, got 'gene'"),
        ({"var": True}, "fixed_scaling.var: expected 'genes' or a number, got True"),
        ({"var": float("nan")}, "fixed_scaling.var: expected 'genes' or a number, got nan"),
        ({"var": 0}, "positive standard deviation, got 0.0"),
    ],
)
def test_parse_mean_var_refuses(genes: pd.DataFrame, scalings: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        scaling.parse_mean_var(genes, scalings)


def test_parse_mean_var_needs_its_column(genes: pd.DataFrame) -> None:
    with pytest.raises(UnknownNameError, match="no var column 'var_scaling'"):
        scaling.parse_mean_var(genes[["mean_scaling"]], {"var": "genes"})


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, da.from_array])
def test_scaling_and_back(genes: pd.DataFrame, kind: object) -> None:
    values = np.array([[0, 1, 2], [3, 0, 4]], dtype=np.float32)
    scalings = {"mean": "genes", "var": "genes", "add_to_var": 1}
    adata = ad.AnnData(kind(values), var=genes)  # type: ignore[operator]

    assert scaling.scale_by_params(adata, scalings) is adata
    scaled = np.asarray(adata.X)
    np.testing.assert_allclose(scaled, (values - [1, 0, 3]) / [1.5, 1 + 1e-8, 3], rtol=1e-6)
    assert scaled.dtype == np.float32

    scaling.rescale_by_params(adata, scalings)
    np.testing.assert_allclose(np.asarray(adata.X), values, atol=1e-6)


def test_scale_with_a_dask_matrix_in_column_chunks(genes: pd.DataFrame) -> None:
    adata = ad.AnnData(da.ones((4, 3), chunks=(2, 1), dtype=np.float32), var=genes)
    scaling.scale(adata, mean=np.array([0, 1, 2]), var=1)
    np.testing.assert_array_equal(np.asarray(adata.X), np.tile([1, 0, -1], (4, 1)))


def test_sample_counts_keeps_with_the_probability() -> None:
    counts = np.full((1000, 3), 2.5, dtype=np.float32)
    sampled = scaling.sample_counts(counts, np.tile([0, 0.3, 1], (1000, 1)))
    assert sampled.dtype == np.float32
    assert set(np.unique(sampled)) == {0, 2.5}
    kept = (sampled > 0).mean(axis=0)
    assert kept[0] == 0
    assert kept[2] == 1
    assert abs(kept[1] - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)
    assert (counts == 2.5).all()


def test_sample_counts_is_seeded() -> None:
    counts, half = np.ones((50, 4)), np.full((50, 4), 0.5)
    first = scaling.sample_counts(counts, half)
    np.testing.assert_array_equal(first, scaling.sample_counts(counts, half, seed=0))
    assert (first != scaling.sample_counts(counts, half, seed=1)).any()
    generator = np.random.default_rng(0)
    blocks = [scaling.sample_counts(counts[i : i + 25], half[i : i + 25], seed=generator) for i in (0, 25)]
    np.testing.assert_array_equal(first, np.concatenate(blocks))


def test_sample_counts_of_standardised_counts(genes: pd.DataFrame) -> None:
    uns = {"fixed_scaling": {"mean": "genes", "var": 2}}
    sampled = scaling.sample_counts(np.full((1, 3), 7.0), np.zeros((1, 3)), genes, uns)
    np.testing.assert_allclose(sampled, [[-0.5, 0, -1.5]])
    with pytest.raises(InvalidInputError, match="expected var, got None"):
        scaling.sample_counts(np.zeros((1, 3)), np.zeros((1, 3)), uns=uns)


def test_sample_counts_refuses_other_shapes() -> None:
    with pytest.raises(InvalidInputError, match=r"expected probabilities of shape \(2, 3\), got \(3, 2\)"):
        scaling.sample_counts(np.zeros((2, 3)), np.zeros((3, 2)))


def test_prepare_train_valid(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"expected files training\*.tfrecords\*, found none; run `discern proc"):
        annotation.prepare_train_valid(tmp_path)
    for name in ("training.tfrecords_v2", "validate-1.tfrecords_v3", "validate-0.tfrecords_v3", "other"):
        (tmp_path / name).touch()
    train, valid = annotation.prepare_train_valid(tmp_path)
    assert [path.name for path in train] == ["training.tfrecords_v2"]
    assert [path.name for path in valid] == ["validate-0.tfrecords_v3", "validate-1.tfrecords_v3"]


def test_more_cpus_than_there_are() -> None:
    present = functions.available_cpus()
    with pytest.warns(UserWarning, match=rf"n_cpus asks for {present + 1} CPUs, this machine has {present}: using"):
        assert functions.clamp_cpus(present + 1, "n_cpus") == present
    assert functions.clamp_cpus(None, "n_cpus") == present
    assert functions.clamp_cpus(0, "n_cpus") == 1


class _Device:
    """What TensorFlow is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: int):
        self.calls: list[tuple] = []
        present = [f"gpu{number}" for number in range(gpus)]
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: present)
        monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: self.calls.append(("see", devices)))
        monkeypatch.setattr(
            tf.config.experimental, "set_memory_growth", lambda gpu, enable: self.calls.append(("grow", gpu))
        )
        for kind in ("intra", "inter"):
            monkeypatch.setattr(
                tf.config.threading,
                f"set_{kind}_op_parallelism_threads",
                lambda threads, kind=kind: self.calls.append((kind, threads)),
            )


def test_gpus_and_threads_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _Device(monkeypatch, gpus=2)
    functions.set_gpu_and_threads(1, [1])
    assert device.calls == [("see", ["gpu1"]), ("grow", "gpu1"), ("intra", 1), ("inter", 1)]
    device.calls.clear()
    functions.set_gpu_and_threads(None, None)
    assert device.calls == [("see", ["gpu0", "gpu1"]), ("grow", "gpu0"), ("grow", "gpu1")]


def test_gpus_that_are_not_there_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _Device(monkeypatch, gpus=1)
    with pytest.warns(UserWarning, match=r"GPU \[3\] asked for, this machine has 1: using \[0\]"):
        functions.set_gpu_and_threads(None, [0, 3])
    assert device.calls[0] == ("see", ["gpu0"])


def test_no_gpu_means_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _Device(monkeypatch, gpus=0)
    with pytest.warns(UserWarning, match=r"GPU \[0\] asked for, this machine has 0: using the CPU"):
        functions.set_gpu_and_threads(None, [0])
    assert device.calls == [("see", [])]


def test_threads_of_a_tensorflow_that_runs_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _Device(monkeypatch, gpus=0)

    def too_late(devices: list, kind: str) -> None:
        raise RuntimeError("cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", too_late)
    with caplog.at_level("INFO", "discern"):
        functions.set_gpu_and_threads(1, [])
    assert "TensorFlow has already started" in caplog.text


def test_the_draw_of_a_cell_does_not_depend_on_other_cells() -> None:
    random = np.random.default_rng(0)
    cells = sp.csr_matrix(random.poisson(1, (40, 90)).astype(np.float32))
    counts, likely = np.ones((40, 90), dtype=np.float32), random.random((40, 90)).astype(np.float32)
    numbers = scaling.cell_numbers(cells)
    order = random.permutation(40)[:17]

    whole = scaling.sample_counts(counts, likely, seed=3, cells=numbers)

    some = scaling.sample_counts(counts[order], likely[order], seed=3, cells=scaling.cell_numbers(cells[order]))
    np.testing.assert_array_equal(some, whole[order])
    assert len(np.unique(numbers)) == 40
    assert abs(whole.mean() - likely.mean()) < 0.02
    assert (whole != scaling.sample_counts(counts, likely, seed=4, cells=numbers)).any()


def test_the_number_of_a_cell_depends_on_which_genes_it_has() -> None:
    cells = sp.csr_matrix(np.array([[1.0, 0, 2], [0.5, 0, 7], [0, 0, 0], [0, 1, 2]], dtype=np.float32))
    one, two, nothing, other = scaling.cell_numbers(cells)
    assert one == two
    assert len({one, nothing, other}) == 3
    backwards = sp.csr_matrix((cells.data[:2], cells.indices[:2][::-1], [0, 2]), shape=(1, 3))
    assert scaling.cell_numbers(backwards)[0] == one


def test_numbers_of_cells_need_a_seed_and_fit() -> None:
    with pytest.raises(InvalidInputError, match="expected a seed and numbers of 2 cells"):
        scaling.sample_counts(np.ones((2, 3)), np.ones((2, 3)), cells=np.arange(3))
    with pytest.raises(InvalidInputError, match="expected a seed"):
        scaling.sample_counts(np.ones((2, 3)), np.ones((2, 3)), seed=np.random.default_rng(0), cells=np.arange(2))
