"""Several experiments: one after another, on the GPUs of a machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discern.config.reading import Parameters, load_parameters
from discern.errors import MissingFileError, UnknownNameError, UserError, nearest
from discern.experiment.project import run_projection
from discern.experiment.train import run_train
from discern.folder.layout import ExperimentFolder
from discern.folder.locks import locked, recover
from discern.runtime.ray_cluster import run_on_ray
from discern.runtime.tasks import Share, Task, run_here, run_in_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from discern.config.schema import Experiment, Training

_LOGGER = logging.getLogger(__name__)


def run_exp_multiprocess(
    exp_folder: Path,
    available_gpus: Any,
    func: str | Callable[..., list[Path]],
    kwargs: Mapping[str, object] | None = None,
) -> int:
    """Run `func(exp_folder, **kwargs)` in this process with a GPU taken from a list and given back at the end.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME.
        available_gpus: Numbers of the GPUs that are free, a list (of a `multiprocessing.Manager`, if processes share
            it) or a queue, which is waited for; nothing is changed with an empty list.
        func: `run_train` or `run_projection`, or its name, see `DISCERNRunner`.
        kwargs: Its other arguments.

    Returns:
        0, or 1 if `func` failed; why stands in the log.
    """
    try:
        if isinstance(func, str):
            func, defaults = _step(func)
            kwargs = defaults | dict(kwargs or {})
        _with_gpu(exp_folder, [] if available_gpus is None else available_gpus, func, kwargs)
    except UserError as error:
        _LOGGER.error("%s: %s", Path(exp_folder).name, error)
        return 1
    except Exception:
        _LOGGER.exception("%s failed", Path(exp_folder).name)
        return 1
    return 0


def _with_gpu(
    exp_folder: Path, available: Any, func: Callable[..., list[Path]], kwargs: Mapping[str, object] | None
) -> list[Path]:
    waits = hasattr(available, "get")
    if not waits and not len(available):
        return func(Path(exp_folder), **dict(kwargs or {}))
    gpu = available.get() if waits else available.pop(0)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
        return func(Path(exp_folder), **dict(kwargs or {}))
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        (available.put if waits else available.append)(gpu)


class DISCERNRunner:
    """Run a step on several experiments.

    With several experiments and several GPUs one experiment runs on each GPU at once, in a process of its own;
    otherwise one runs after the other. An experiment that fails does not stop the others.

    Args:
        debug: Run the first experiment only, and let its exception pass.
        gpus: Numbers of the GPUs to use; None for those that the machine has, if any experiment asks for one.
        ray_address: Head node of a Ray cluster that runs the experiments, see `discern.runtime.ray_cluster`; None:
        this machine.

    Example:
        >>> DISCERNRunner(debug=True).debug
        True
    """

    def __init__(self, debug: bool = False, gpus: Sequence[int] | None = None, ray_address: str | None = None) -> None:
        self.debug = debug
        self.gpus = gpus
        self.ray_address = ray_address

    def __call__(
        self,
        func: str | Callable[..., list[Path]],
        parameters: Parameters | str | Path | Sequence[str | Path],
        kwargs: Mapping[str, object] | None = None,
    ) -> dict[str, list[Path] | Exception]:
        """Run `func(folder, **kwargs)` for each experiment.

        Args:
            func: "train", "project", or the function: `run_train`, `run_projection` or another step; top-level, since
                it may run in another process.
            parameters: The experiments: their folders, or a parameter file, loaded or not.
            kwargs: Other arguments of `func`.

        Returns:
            For each experiment (its name; folders as they were given) the files written, or the exception that ended
            it. For folders, what went wrong is logged as well.

        Raises:
            UnknownNameError: If there is no such step.
            MissingFileError: If a folder holds no processed experiment; none has been run then.
        """
        kwargs = dict(kwargs or {})
        if isinstance(func, str):
            func, defaults = _step(func)
            kwargs = defaults | kwargs
        if isinstance(parameters, str | Path) and Path(parameters).is_file():
            parameters = load_parameters(Path(parameters))
        if isinstance(parameters, Parameters):
            folders = {name: parameters.folder(name) for name in parameters.experiments}
            return self._run(func, folders, parameters.experiments, kwargs)
        given = [parameters] if isinstance(parameters, str | Path) else list(parameters)
        folders = {str(folder): Path(folder) for folder in given}
        results = self._run(func, folders, _experiments(folders), kwargs)
        for name, result in results.items():
            if isinstance(result, Exception):
                _LOGGER.error("%s: %s", name, result)
        return results

    def _run(
        self,
        func: Callable[..., list[Path]],
        folders: Mapping[str, Path],
        experiments: Mapping[str, Experiment],
        kwargs: Mapping[str, object],
    ) -> dict[str, list[Path] | Exception]:
        if not folders:
            return {}
        if self.debug:
            name = next(iter(folders))
            return {name: _locked_run(folders[name], func, kwargs)}
        tasks = {name: _task(folder, func, kwargs, experiments[name].training) for name, folder in folders.items()}
        if self.ray_address is not None:
            return run_on_ray(self.ray_address, tasks)
        gpus = self._usable_gpus(experiments) if len(tasks) > 1 else []
        if len(gpus) > 1:
            return run_in_processes(tasks, [Share(gpu=gpu) for gpu in gpus], "experiments")
        return run_here(tasks)

    def _usable_gpus(self, experiments: Mapping[str, Experiment]) -> list[int]:
        if self.gpus is not None:
            return list(self.gpus)
        if not any(experiment.training.GPU for experiment in experiments.values()):
            return []
        import tensorflow as tf

        return list(range(len(tf.config.list_physical_devices("GPU"))))


def _step(name: str) -> tuple[Callable[..., list[Path]], dict[str, object]]:
    """Return a step by name, and what its arguments are unless they are given."""
    projection: dict[str, object] = {"metadata": (), "infile": None, "all_batches": False, "store_sigmas": False}
    steps: dict[str, tuple[Callable[..., list[Path]], dict[str, object]]] = {
        "train": (run_train, {}),
        "project": (run_projection, projection),
    }
    if name not in steps:
        raise UnknownNameError(f"there is no step {name!r}{nearest(name, steps)}; steps are {', '.join(steps)}")
    return steps[name]


def _experiments(folders: Mapping[str, Path]) -> dict[str, Experiment]:
    """Return the parameters of processed experiments."""
    found = {}
    for name, folder in folders.items():
        file = ExperimentFolder(folder).parameters
        if not file.is_file():
            raise MissingFileError(f"{folder} holds no processed experiment: run `discern process` first")
        (found[name],) = load_parameters(file).experiments.values()
    return found


def _task(
    folder: Path, func: Callable[..., list[Path]], kwargs: Mapping[str, object] | None, training: Training
) -> Task[list[Path]]:
    arguments = (folder.absolute(), func, kwargs)
    return Task(_locked_run, arguments, cpus=training.parallel_pc or 1, gpus=len(training.GPU or ()))


def _locked_run(exp_folder: Path, func: Callable[..., list[Path]], kwargs: Mapping[str, object] | None) -> list[Path]:
    recover(exp_folder)
    if not exp_folder.is_dir():
        raise MissingFileError(f"{exp_folder} does not exist: run `discern process` first")
    with locked(exp_folder):
        return func(exp_folder, **dict(kwargs or {}))
