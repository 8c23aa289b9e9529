"""Steps of experiments, one or several."""

from __future__ import annotations

import functools
import json
import os
import queue
import shutil
import threading
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pytest

from discern.config.reading import load_parameters
from discern.data.annotation import CheckMetaData
from discern.errors import InUseError, InvalidInputError, MissingFileError, UnknownNameError
from discern.experiment import runner, train
from discern.experiment.folder import setup_exp
from discern.experiment.project import run_projection
from discern.experiment.runner import DISCERNRunner, run_exp_multiprocess
from discern.experiment.train import run_train
from discern.folder.locks import locked
from discern.model import training
from discern.model.callbacks import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from discern.config.reading import Parameters


def change_training(experiment: Path, **values: Any) -> None:
    file = experiment / "parameters.json"
    parameters = json.loads(file.read_text())
    parameters["training"] |= values
    file.write_text(json.dumps(parameters))


@pytest.fixture
def experiment(original_experiment: Path) -> Path:
    """An experiment of the original program: processed, trained for 8 epochs; no pictures."""
    change_training(original_experiment, visualisation=False)
    return original_experiment


@pytest.fixture
def untrained(experiment: Path) -> Path:
    shutil.rmtree(experiment / "job")
    return experiment


class TestSetup:
    def test_estimator_and_parameters(self, experiment: Path) -> None:
        model, parameters = setup_exp(experiment)
        assert model.parameters.latent_dim == 8
        assert model.wae_model is None
        assert parameters["training"]["max_steps"] == 8

    def test_nothing_processed(self, tmp_path: Path) -> None:
        with pytest.raises(MissingFileError, match=r"holds no processed experiment: run `discern process` first"):
            setup_exp(tmp_path)

    def test_threads_and_gpus_are_those_of_the_parameters(
        self, experiment: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []
        monkeypatch.setattr("discern.runtime.devices.start_tensorflow", lambda *arguments: asked.append(arguments))
        change_training(experiment, parallel_pc=1, GPU=[3])
        setup_exp(experiment)
        assert asked == [(1, [3])]


class Killed(BaseException):
    """Stands for the end of the process."""


class TestTrainingThatWasKilledWithinAnEpoch:
    """A checkpoint is written after each step."""

    @pytest.fixture
    def killed(self, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
        """A function that trains until a step (from 0) of an epoch (from 0) and is killed then."""
        monkeypatch.setattr(training, "Checkpoint", functools.partial(Checkpoint, interval=0.0))
        self.steps: list[tuple[int, int]] = []
        self.averaged: list[float] = []

        def kill(epoch: int, step: int, **training: Any) -> Path:
            change_training(untrained, max_steps=2, **training)
            with monkeypatch.context() as patch:
                patch.setattr(train, "training_callbacks", lambda *_: [self.watch((epoch, step))])
                with pytest.raises(Killed):
                    run_train(untrained)
            monkeypatch.setattr(train, "training_callbacks", lambda *_: [self.watch(None)])
            return untrained

        return kill

    def watch(self, last: tuple[int, int] | None) -> Any:
        import keras

        steps, averaged = self.steps, self.averaged

        class Watch(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                self.epoch = epoch

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                steps.append((self.epoch, batch))
                # how many values the loss is the mean of
                averaged.append(float(self.model.metrics_variables[1].numpy()))
                if (self.epoch, batch) == last:
                    raise Killed

        return Watch()

    def iterations(self, experiment: Path, name: str = "last_model.h5") -> int:
        with h5py.File(experiment / "job" / name) as file:
            return int(file["optimizer/iteration"][()])

    def epoch(self, experiment: Path) -> int:
        with h5py.File(experiment / "job" / "last_model.h5") as file:
            return int(file.attrs["epoch"])

    @pytest.mark.parametrize("epoch", [0, 1])
    def test_goes_on_from_there(
        self, killed: Callable[..., Path], epoch: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        experiment = killed(epoch, 1)
        assert self.iterations(experiment, "unfinished_epoch.h5") == len(self.steps)
        before = len(self.steps)
        run_train(experiment)
        assert f"going on with the model of epoch {epoch}, within the next one after step 2" in caplog.text
        assert self.steps[before:][0] == (epoch, 0)
        per_epoch = self.iterations(experiment) // 2
        assert len(self.steps) == 2 * per_epoch == self.iterations(experiment)
        assert self.epoch(experiment) == 2
        assert not (experiment / "job" / "unfinished_epoch.h5").exists()

    def test_losses_are_those_of_the_whole_epoch(self, killed: Callable[..., Path]) -> None:
        experiment = killed(0, 1)
        first = self.averaged[-1]
        run_train(experiment)
        assert self.averaged[2] == first / 2 * 3
        assert self.averaged[len(self.averaged) // 2 - 1] == self.averaged[-1] == first / 2 * len(self.averaged) / 2

    def test_it_is_no_model_to_project_with(self, killed: Callable[..., Path]) -> None:
        experiment = killed(0, 0)
        with pytest.raises(MissingFileError, match="holds no trained model: run `discern train` first"):
            run_projection(experiment, [("batch", "celseq2")], None, False, False)

    def test_one_of_an_earlier_epoch_is_not_used(self, killed: Callable[..., Path]) -> None:
        experiment = killed(0, 1)
        old = (experiment / "job" / "unfinished_epoch.h5").read_bytes()
        change_training(experiment, max_steps=1)
        run_train(experiment)
        (experiment / "job" / "unfinished_epoch.h5").write_bytes(old)
        change_training(experiment, max_steps=2)
        run_train(experiment)
        assert self.steps.count((1, 0)) == 1
        assert self.epoch(experiment) == 2
        assert not (experiment / "job" / "unfinished_epoch.h5").exists()

    @pytest.mark.parametrize(
        "options",
        [
            {"distribute": "mirrored"},
            {"optimizer": {"algorithm": "keras.optimizers.Adam", "learning_rate": 0.001, "Lookahead": True}},
        ],
    )
    def test_with_other_ways_to_train(self, killed: Callable[..., Path], options: dict[str, Any]) -> None:
        experiment = killed(0, 1, **options)
        run_train(experiment)
        assert self.epoch(experiment) == 2
        assert self.iterations(experiment) == len(self.steps)


class TestTrain:
    def test_a_new_model(self, untrained: Path) -> None:
        change_training(untrained, max_steps=1)
        assert run_train(untrained) == [untrained / "job" / "last_model.h5"]
        assert (untrained / "job" / "last_model.h5").is_file()
        assert list((untrained / "job" / "train").glob("events*"))

    def test_goes_on_with_the_model(self, experiment: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")
        change_training(experiment, max_steps=9)
        run_train(experiment)
        assert "original: going on with the model of epoch 8" in caplog.text
        assert "epoch 9 of 9" in caplog.text
        model, _ = setup_exp(experiment)
        model.restore_model(experiment / "job")
        assert model.start_step == 9

    def test_nothing_to_do(self, experiment: Path, caplog: pytest.LogCaptureFixture) -> None:
        before = sorted(path.name for path in (experiment / "job").iterdir())
        assert run_train(experiment) == []
        assert (
            "trained for 8 epochs, of 8 that training.max_steps and max_updates ask for: nothing to do" in caplog.text
        )
        assert sorted(path.name for path in (experiment / "job").iterdir()) == before

    def test_on_other_cells(self, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        change_training(untrained, max_steps=1)
        cells = ad.read_h5ad(untrained / "processed_data" / "concatenated_data.h5ad")
        cells[: len(cells) - 20].write_h5ad(tmp_path / "other.h5ad")
        trained_on: list[int] = []
        from discern.model.estimator import DISCERN

        monkeypatch.setattr(DISCERN, "training", lambda self, data, **_: trained_on.append(data.n_obs))
        run_train(untrained, tmp_path / "other.h5ad")
        assert trained_on == [200]

    @pytest.mark.parametrize("wanted", [True, False])
    def test_pictures(self, untrained: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
        change_training(untrained, visualisation=wanted, freq=3)
        from discern import DISCERN
        from discern.model.visualisation import VisualisationCallback

        given: list[Any] = []
        monkeypatch.setattr(DISCERN, "training", lambda self, data, callbacks, **_: given.extend(callbacks))
        run_train(untrained)
        assert [c.freq for c in given if isinstance(c, VisualisationCallback)] == ([3] if wanted else [])

    def test_damaged_model(self, experiment: Path) -> None:
        file = experiment / "job" / "best_model.hdf5"
        damaged = file.read_bytes()[:1000]
        file.write_bytes(damaged)
        with pytest.raises(InvalidInputError, match=r"best_model\.hdf5"):
            run_train(experiment)
        assert [path.name for path in (experiment / "job").iterdir()] == ["best_model.hdf5"]
        assert file.read_bytes() == damaged

    def test_no_data(self, untrained: Path) -> None:
        shutil.rmtree(untrained / "processed_data")
        with pytest.raises(MissingFileError, match=r"concatenated_data\.h5ad: no such file; run `discern process`"):
            run_train(untrained)


def project(experiment: Path, *metadata: tuple[str, str | None], **arguments: Any) -> list[Path]:
    defaults = {"infile": None, "all_batches": False, "store_sigmas": False}
    return run_projection(experiment, list(metadata), **(defaults | arguments))


class TestProjection:
    def test_unprojected(self, experiment: Path) -> None:
        assert project(experiment) == [experiment / "projected" / "unprojected.h5ad"]

    def test_all_batches_after_the_others(self, experiment: Path) -> None:
        written = project(experiment, ("celltype", ""), ("batch", "dropseq"), all_batches=True)
        assert [path.stem.removeprefix("projected_to_average_") for path in written] == [
            "celltype",
            "batch_dropseq",
            "batch_celseq2",
        ]
        assert all(path.is_file() for path in written)

    def test_a_reference_is_its_batch_under_a_name_that_says_so(self, experiment: Path) -> None:
        (path,) = project(experiment, reference="celseq2")
        (by_metadata,) = project(experiment, ("batch", "celseq2"))
        assert path.name == "projected_to_reference_celseq2.h5ad"
        ours, same = ad.read_h5ad(path), ad.read_h5ad(by_metadata)
        np.testing.assert_array_equal(ours.layers["estimated_counts"], same.layers["estimated_counts"])
        np.testing.assert_array_equal(ours.obs["discern_distance"], same.obs["discern_distance"])
        with pytest.raises(InvalidInputError, match=r"no value 'celseq' \(did you mean 'celseq2'\?\)"):
            project(experiment, reference="celseq")

    def test_sigmas(self, experiment: Path) -> None:
        (path,) = project(experiment, store_sigmas=True)
        assert ad.read_h5ad(path).obsm["X_DISCERN_sigma"].shape == (220, 8)

    def test_other_cells(self, experiment: Path, tmp_path: Path, golden: Path) -> None:
        cells = ad.read_h5ad(experiment / "processed_data" / "concatenated_data.h5ad")
        chosen = (cells.obs["batch"] == "dropseq").to_numpy()
        cells[chosen].write_h5ad(tmp_path / "dropseq.h5ad")
        (path,) = project(experiment, ("batch", ""), infile=tmp_path / "dropseq.h5ad")
        latent = np.load(golden / "expected.npz")["X_DISCERN"][chosen]
        np.testing.assert_allclose(ad.read_h5ad(path).obsm["X_DISCERN"], latent, atol=1e-5)

    def test_all_batches_of_other_cells_are_the_model_s(self, experiment: Path, tmp_path: Path) -> None:
        """Cells of one batch can be reconstructed as any batch that the model knows."""
        cells = ad.read_h5ad(experiment / "processed_data" / "concatenated_data.h5ad")
        cells[cells.obs["batch"] == "dropseq"].write_h5ad(tmp_path / "dropseq.h5ad")
        written = project(experiment, all_batches=True, infile=tmp_path / "dropseq.h5ad")
        ours = {path.name: ad.read_h5ad(path).layers["estimated_counts"] for path in written}
        everything = project(experiment, all_batches=True)
        assert list(ours) == [path.name for path in everything]
        for path in everything:
            wanted = ad.read_h5ad(path)
            wanted = wanted[wanted.obs["batch"] == "dropseq"].layers["estimated_counts"]
            np.testing.assert_allclose(ours[path.name], wanted, atol=1e-5)

    @pytest.mark.parametrize(
        ("target", "error", "message"),
        [
            (("bach", ""), UnknownNameError, r"no metadata column 'bach' \(did you mean 'batch'\?\)"),
            (("batch", "celseq"), InvalidInputError, "'batch' has no value 'celseq'"),
        ],
    )
    def test_bad_metadata_writes_nothing(
        self, experiment: Path, target: tuple[str, str], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            project(experiment, ("batch", "celseq2"), target)
        assert not (experiment / "projected").exists()

    def test_no_model(self, untrained: Path) -> None:
        with pytest.raises(MissingFileError, match=r"holds no trained model: run `discern train` first"):
            project(untrained)
        assert not (untrained / "projected").exists()

    def test_cells_of_another_experiment(self, experiment: Path, tmp_path: Path) -> None:
        cells = ad.read_h5ad(experiment / "processed_data" / "concatenated_data.h5ad")
        cells[:, :50].write_h5ad(tmp_path / "other.h5ad")
        with pytest.raises(InvalidInputError, match="trained on 1500 genes, the data has 50"):
            project(experiment, infile=tmp_path / "other.h5ad")
        assert not (experiment / "projected").exists()

    def test_raw_cells(self, experiment: Path, golden: Path) -> None:
        with pytest.raises(UnknownNameError, match=r"expected processed cells, .* run `discern process`"):
            project(experiment, infile=golden / "raw" / "dropseq.h5ad")


def several(root: Path, *names: str, gpu: list[int] | None = None) -> Parameters:
    """Parameters of experiments with these names, whose folders are there but empty."""
    experiments = {name: {"input_ds": {"raw_input": ["x.h5ad"]}, "training": {"GPU": gpu or []}} for name in names}
    for name in names:
        (root / "experiments" / name).mkdir(parents=True)
    file = root / "parameters.json"
    file.write_text(
        json.dumps({"exp_param": {"experiments_dir": str(root / "experiments")}, "experiments": experiments})
    )
    return load_parameters(file)


class TestRunner:
    def test_one_after_the_other_with_arguments(self, tmp_path: Path) -> None:
        seen: list[tuple[str, int]] = []

        def step(folder: Path, number: int) -> list[Path]:
            seen.append((folder.name, number))
            return [folder / "done"]

        results = DISCERNRunner()(step, several(tmp_path, "b", "a"), {"number": 3})
        assert seen == [("b", 3), ("a", 3)]
        assert list(results.items()) == [
            ("b", [tmp_path / "experiments" / "b" / "done"]),
            ("a", [tmp_path / "experiments" / "a" / "done"]),
        ]

    def test_a_failing_experiment_does_not_stop_the_others(self, tmp_path: Path) -> None:
        def step(folder: Path) -> list[Path]:
            if folder.name == "a":
                raise InvalidInputError("broken")
            return []

        results = DISCERNRunner()(step, several(tmp_path, "a", "b"))
        assert isinstance(results["a"], InvalidInputError)
        assert results["b"] == []

    def test_a_person_s_interruption_stops_all(self, tmp_path: Path) -> None:
        def step(folder: Path) -> list[Path]:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            DISCERNRunner()(step, several(tmp_path, "a", "b"))

    def test_debug_runs_the_first_only_and_lets_it_fail(self, tmp_path: Path) -> None:
        def step(folder: Path) -> list[Path]:
            raise ZeroDivisionError(folder.name)

        with pytest.raises(ZeroDivisionError, match=r"^b$"):
            DISCERNRunner(debug=True)(step, several(tmp_path, "b", "a"))

    def test_an_experiment_that_is_not_there(self, tmp_path: Path) -> None:
        parameters = several(tmp_path, "a")
        (tmp_path / "experiments" / "a").rmdir()
        error = DISCERNRunner()(lambda folder: [], parameters)["a"]
        assert isinstance(error, MissingFileError)
        assert "a does not exist: run `discern process` first" in str(error)

    def test_an_experiment_at_which_another_command_works(self, tmp_path: Path) -> None:
        parameters = several(tmp_path, "a", "b")
        with locked(tmp_path / "experiments" / "a"):
            results = DISCERNRunner()(lambda folder: [], parameters)
        assert isinstance(results["a"], InUseError)
        assert results["b"] == []
        assert DISCERNRunner()(lambda folder: [], parameters)["a"] == []

    def test_processes_on_gpus(self, tmp_path: Path) -> None:
        """One process for each experiment; what fails there comes back. (rmdir fails on the folder that has a file.)"""
        parameters = several(tmp_path, "a", "b", "c")
        (tmp_path / "experiments" / "b" / "file").touch()
        results = DISCERNRunner(gpus=[0, 1])(os.rmdir, parameters)  # type: ignore[arg-type]
        assert list(results) == ["a", "b", "c"]
        assert results["a"] is None
        assert isinstance(results["b"], OSError)
        assert not (tmp_path / "experiments" / "c").exists()

    @pytest.mark.parametrize(
        ("names", "gpu", "present", "wanted"),
        [
            (["a", "b"], [0], 2, True),
            (["a"], [0], 2, False),
            (["a", "b"], [], 2, False),
            (["a", "b"], [0], 1, False),
            (["a", "b"], [0], 0, False),
        ],
        ids=["two", "one experiment", "none asks for a GPU", "one GPU", "no GPU"],
    )
    def test_when_they_run_at_once(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        names: list[str],
        gpu: list[int],
        present: int,
        wanted: bool,
    ) -> None:
        at_once: list[Any] = []
        monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [None] * present)
        monkeypatch.setattr(
            runner, "run_in_processes", lambda tasks, shares, what: at_once.append([one.gpu for one in shares]) or {}
        )
        DISCERNRunner()(lambda folder: [], several(tmp_path, *names, gpu=gpu))
        assert at_once == ([[0, 1]] if wanted else [])


class TestMultiprocess:
    def test_takes_a_gpu_and_gives_it_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        free: queue.Queue[int] = queue.Queue()
        free.put(3)

        seen: list[tuple[Path, int, str, bool]] = []

        def step(folder: Path, number: int) -> None:
            seen.append((folder, number, os.environ["CUDA_VISIBLE_DEVICES"], free.empty()))

        assert run_exp_multiprocess(tmp_path, free, step, {"number": 1}) == 0
        assert seen == [(tmp_path, 1, "3", True)]
        assert free.get_nowait() == 3

    def test_gives_it_back_after_a_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        free: queue.Queue[int] = queue.Queue()
        free.put(3)
        assert run_exp_multiprocess(tmp_path / "nowhere", free, os.listdir) == 1
        assert free.get_nowait() == 3

    def test_waits_for_a_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        free: queue.Queue[int] = queue.Queue()
        timer = threading.Timer(0.2, free.put, [1])
        timer.start()
        seen: list[str] = []
        step = lambda folder: seen.append(os.environ["CUDA_VISIBLE_DEVICES"])  # noqa: E731
        assert run_exp_multiprocess(tmp_path, free, step) == 0
        assert seen == ["1"]
        timer.join()


def test_checks_metadata_under_its_documented_name() -> None:
    assert CheckMetaData.__module__ == "discern.data.annotation"
