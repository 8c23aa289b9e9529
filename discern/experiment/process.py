"""From raw files to the experiment folders that `discern process` makes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from discern.config.reading import load_search
from discern.errors import InvalidInputError, MissingFileError
from discern.folder.layout import ExperimentFolder, is_output
from discern.folder.locks import locked, recover
from discern.runtime import logs
from discern.runtime.atomic import replacing
from discern.runtime.devices import available_cpus, clamp_cpus
from discern.runtime.foreign import check_input, check_tree
from discern.runtime.ray_cluster import run_on_ray
from discern.runtime.tasks import Share, Task, run_here, run_in_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from discern.config.fields import JsonObject
    from discern.config.reading import Parameters
    from discern.config.schema import Experiment


def process(
    parameters: Parameters,
    force: bool = False,
    copy_original: bool = False,
    with_tfrecords: bool = True,
    ask: Callable[[str], bool] | None = None,
    ray_address: str | None = None,
) -> dict[str, Path | Exception]:
    """Preprocess the raw data of each experiment into its folder.

    Several experiments run side by side in processes that share the CPUs. Each folder is made aside and put in place
    when it is complete; only then a former one, with its model and projections, is removed. An experiment that fails
    leaves its folder as it was and does not stop the others.

    Args:
        parameters: The experiments.
        force: Replace experiments that have been processed before.
        copy_original: Copy the raw files to `original_data/`.
        with_tfrecords: Write `TF_records/`.
        ask: Asks whether to replace a processed experiment; without it and without `force` that is an error.
        ray_address: Head node of a Ray cluster that does the work, see `discern.runtime.ray_cluster`; None: this
        machine.

    Returns:
        For each experiment its folder, or the exception that ended it.

    Raises:
        MissingFileError: If a raw or search file does not exist; nothing has been done then.
        InvalidInputError: If a raw file lies in what would be replaced, or a search file is wrong; likewise.
    """
    for name in parameters.experiments:
        check_inputs(parameters, name)
    results: dict[str, Path | Exception] = {}
    tasks: dict[str, Task[Path]] = {}
    for name, experiment in parameters.experiments.items():
        folder = parameters.folder(name)
        recover(folder)
        if force or not _holds_results(folder) or (ask and ask(f"{folder} has been processed before. Replace it?")):
            place = folder if ray_address is None else folder.absolute()
            arguments = (place, parameters.given[name], experiment, copy_original, with_tfrecords)
            tasks[name] = Task(make_experiment, arguments, experiment.input_ds.n_cpus_preprocessing or 1)
        else:
            results[name] = InvalidInputError(f"{folder} has been processed before; --force replaces it and its model")
    if ray_address is not None:
        done = run_on_ray(ray_address, tasks)
    elif len(tasks) > 1:
        shares = _shares(_cpu_budget(parameters, list(tasks)), len(tasks))
        done = run_in_processes(tasks, shares, "processing experiments")
    else:
        done = run_here(tasks)
    results |= done
    return {name: results[name] for name in parameters.experiments}


def check_inputs(parameters: Parameters, name: str) -> None:
    """Refuse an experiment whose inputs are not there, or would be removed by processing it.

    Raises:
        MissingFileError: If a raw or search file does not exist.
        InvalidInputError: If a raw file lies in what would be replaced, or a search file is wrong.
    """
    experiment, folder = parameters.experiments[name], parameters.folder(name)
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"{folder}: expected a folder or nothing, this is a file")
    raw = [Path(path) for path in experiment.input_ds.raw_input or ()]
    missing = [str(path) for path in raw if not path.exists()]
    if missing:
        raise MissingFileError(f"{name}: raw_input: no such file: {', '.join(missing)} (paths start at {Path.cwd()})")
    for path in raw:
        check_input(path)
        if path.resolve().is_relative_to(folder.resolve()):
            inside = path.resolve().relative_to(folder.resolve())
            if inside.parts and is_output(inside.parts[0]):
                raise InvalidInputError(f"{name}: raw_input: {path} is an output of the experiment: copy it elsewhere")
    if experiment.hyperparameter_search is not None:
        load_search(Path(experiment.hyperparameter_search))


def make_experiment(
    folder: Path, given: JsonObject, experiment: Experiment, copy_original: bool, with_tfrecords: bool
) -> Path:
    """Make the folder of one experiment and put it in place of a former one.

    Args:
        folder: EXPERIMENTS_DIR/NAME.
        given: The experiment as the user wrote it; becomes `parameters.json`.
        experiment: The same, validated.
        copy_original: Copy the raw files to `original_data/`.
        with_tfrecords: Write `TF_records/`.

    Returns:
        `folder`.

    Raises:
        UserError: If the data cannot be used, or another command is at work on the experiment.
    """
    with logs.without_native_messages():
        from discern.preprocessing.recipe import read_process_serialize

    with locked(folder):
        place = folder.resolve()
        with replacing(place) as partial:
            partial.mkdir()
            ExperimentFolder(partial).parameters.write_text(json.dumps(given, indent=4))
            if experiment.hyperparameter_search is not None:
                shutil.copyfile(experiment.hyperparameter_search, partial / "hyperparameter_search.json")
            if copy_original:
                _copy_all(
                    [Path(path) for path in experiment.input_ds.raw_input or ()],
                    ExperimentFolder(partial).original_data,
                )
            read_process_serialize(partial, with_tfrecords=with_tfrecords)
            _keep_other_files(place, partial)
    return folder


def _holds_results(folder: Path) -> bool:
    return folder.is_dir() and any(is_output(entry.name) for entry in folder.iterdir())


def _copy_all(files: Sequence[Path], target: Path) -> None:
    target.mkdir()
    for file in files:
        copy, number = target / file.name, 1
        while copy.exists():
            number += 1
            copy = target / f"{number}_{file.name}"
        if file.is_dir():
            check_tree(file)
            shutil.copytree(file, copy)
        else:
            shutil.copy2(file, copy)


def _keep_other_files(old: Path, new: Path) -> None:
    for entry in old.iterdir() if old.is_dir() else ():
        target = new / entry.name
        if is_output(entry.name) or target.exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, symlinks=True, copy_function=_link)
        else:
            _link(entry, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _cpu_budget(parameters: Parameters, names: Sequence[str]) -> int:
    wanted = [parameters.experiments[name].input_ds.n_cpus_preprocessing for name in names]
    if None in wanted:
        return available_cpus()
    return clamp_cpus(max(count for count in wanted if count is not None), "input_ds.n_cpus_preprocessing")


def _shares(budget: int, jobs: int) -> list[Share]:
    cpus = sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(budget))[:budget]
    workers = min(budget, jobs)
    return [Share(frozenset(cpus[worker::workers])) for worker in range(workers)]
