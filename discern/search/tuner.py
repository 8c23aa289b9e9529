"""Hyperparameter search with Ray Tune: `discern optimize PARAMETERS.json`.

A search file names Ray's scheduler and searcher, the space, and where Ray runs; a trial trains a network and judges the
cells that it generates (`discern.search.trial`). Everything that Ray writes goes to the experiment's folder, from where
an interrupted search goes on.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from discern.config.reading import load_search, parse_experiment, parse_search
from discern.errors import InvalidInputError, MissingFileError, UnsupportedError
from discern.folder.layout import ExperimentFolder
from discern.folder.locks import locked, recover
from discern.runtime.atomic import replacing
from discern.runtime.ray_cluster import connected
from discern.search import results as search_report
from discern.search.origin import check_own, make_own
from discern.search.space import examples, plan, read_space, with_values, without_unknown_loss_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray import tune

    from discern.config.reading import Parameters
    from discern.config.schema import Experiment
    from discern.config.search import SearchFile
    from discern.search.space import Plan

_LOGGER = logging.getLogger(__name__)


_INPUTS = "search.json"  # in Ray's folder: what the search was started with, for --resume


def optimize(parameters: Parameters, resume: bool = False) -> dict[str, Path | Exception]:
    """Search for good hyperparameters of each experiment of a parameter file, one experiment after the other.

    Ray runs where `setup` of the search file says, or in processes of this one where there is no address; a Ray that is
    connected already is used as it is. The results (see `search_report.write_report`) and what Ray needs to go on after
    an interruption are written into the experiment's folder.

    Args:
        parameters: The experiments, processed. `hyperparameter_search` names the search file; where there is none by
            that name (any more), its copy in the experiment's folder is taken.
        resume: Go on with the newest search of each experiment rather than starting one.

    Returns:
        For each experiment `best_parameters.json`, which `discern train` takes, or the exception that ended its search:
        a `UserError` where the data, the search file, the search to resume or Ray's head node is not there, where the
        file does not fit the experiment, or where no trial gave a model.

    Raises:
        UnsupportedError: If Ray is not installed.

    A search is resumed only if this user has started it on this machine (see `discern.search.origin`): what Ray wrote
    for that is pickled, so that a folder from elsewhere could run any code.
    """
    if importlib.util.find_spec("ray") is None:
        raise UnsupportedError("a hyperparameter search needs Ray, which is not installed: pip install 'discern[tune]'")
    results: dict[str, Path | Exception] = {}
    for name in parameters.experiments:
        try:
            results[name] = _optimize(parameters, name, resume)
        except Exception as error:  # noqa: BLE001 (the caller gets it; the other experiments go on)
            results[name] = error
    return results


def _optimize(parameters: Parameters, name: str, resume: bool) -> Path:
    folder = parameters.folder(name)
    recover(folder)
    if not ExperimentFolder(folder).cells.is_file():
        raise MissingFileError(f"{folder} holds no processed data: run `discern process` first")
    if not parameters.experiments[name].input_ds.split.valid_cells:
        raise InvalidInputError(
            f"{name}: a search judges by validation cells, and input_ds.split.valid_cells is 0: set it, to 0.1 for "
            "example, and run `discern process` again"
        )
    with locked(folder):
        return _search(parameters, name, resume)


def _search(parameters: Parameters, name: str, resume: bool) -> Path:
    folder = parameters.folder(name).absolute()
    if resume:
        run = _newest_run(folder)
        check_own(run)
        inputs = json.loads((run / _INPUTS).read_text())
        search, experiment = parse_search(inputs["search"]), parse_experiment(inputs["experiment"])
    else:
        search, experiment = load_search(_search_file(parameters, name)), parameters.experiments[name]
        run = folder / f"{search.train_spec.name}_{time.strftime('%Y%m%d-%H%M%S')}"
    leaves = without_unknown_loss_arguments(read_space(search.search_space), experiment)
    if not leaves:
        raise InvalidInputError("search_space: nothing is left to search")
    planned = plan(search, leaves)
    for values in examples(leaves):
        with_values(experiment, values)
    with connected(search.setup.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)):
        if not resume:
            make_own(run)
            with replacing(run / _INPUTS) as partial:
                partial.write_text(json.dumps({"search": search.given(), "experiment": experiment.as_dict()}, indent=4))
        results = _tuner(run, search, experiment, planned, resume).fit()
        outcomes = [search_report.outcome(results[number]) for number in range(len(results))]
    unfinished = sum(trial.status == "unfinished" for trial in outcomes)
    if unfinished:
        _LOGGER.warning("%d trials are unfinished: `discern optimize --resume` goes on with them", unfinished)
    path = search_report.write_report(
        folder, experiment, parameters.experiments_dir, outcomes, search.analysis.metric, search.analysis.mode
    )
    path = parameters.folder(name) / path.name
    _LOGGER.info("to train with the best parameters: discern train %s", path)
    return path


def _search_file(parameters: Parameters, name: str) -> Path:
    folder = parameters.folder(name)
    given = parameters.experiments[name].hyperparameter_search
    candidates = [Path(given), folder / Path(given).name] if given else []
    for path in (*candidates, folder / "hyperparameter_search.json"):
        if path.is_file():
            return path
    raise MissingFileError(
        f"{name}: there is no search file {given or folder / 'hyperparameter_search.json'}; "
        "`hyperparameter_search` of the experiment names it"
    )


def _newest_run(folder: Path) -> Path:
    from ray import tune

    runs = sorted(path.parent for path in folder.glob(f"*/{_INPUTS}"))
    started = [run for run in runs if tune.Tuner.can_restore(str(run))]
    if not started:
        raise MissingFileError(f"{folder}: there is no search to resume; start one without --resume")
    return max(started, key=lambda run: run.stat().st_mtime)


def _tuner(
    run: Path,
    search: SearchFile,
    experiment: Experiment,
    planned: Plan,
    resume: bool,
) -> tune.Tuner:
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    from discern.search.trial import RemoveModels, Trial

    spec = search.train_spec
    cpus, gpus = _resources(spec.resources_per_trial)
    trainable = tune.with_resources(
        tune.with_parameters(
            Trial,
            folder=str(run.parent),
            experiment=experiment,
            cpus=max(1, int(cpus)),
            gpu=gpus > 0,
            **spec.config.as_dict(),
        ),
        {"cpu": cpus, "gpu": gpus},
    )
    if resume:
        return tune.Tuner.restore(
            str(run), trainable, resume_unfinished=True, resume_errored=True, param_space=planned.param_space
        )
    exploits = isinstance(planned.scheduler, PopulationBasedTraining)  # others' checkpoints, late
    ends = {"reached_max_step": True, "early_stopped": True, "diverged": True}
    return tune.Tuner(
        trainable,
        param_space=planned.param_space,
        tune_config=tune.TuneConfig(
            search_alg=planned.searcher,
            scheduler=planned.scheduler,
            num_samples=spec.num_samples,
            max_concurrent_trials=planned.max_concurrent,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=run.name,
            storage_path=str(run.parent),
            stop=ends | spec.stop,
            failure_config=tune.FailureConfig(max_failures=spec.max_failures),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=4 if exploits else 1,
                checkpoint_frequency=1,
                checkpoint_at_end=spec.checkpoint_at_end,
            ),
            callbacks=[RemoveModels(search.analysis.metric, search.analysis.mode)],
            verbose=1 if _LOGGER.isEnabledFor(logging.INFO) else 0,
        ),
    )


def _resources(wanted: Mapping[str, float]) -> tuple[float, float]:
    """Return the CPUs and GPUs of a trial: what the file asks for, within what the largest node has.

    `extra_cpu` and `extra_gpu` were for processes that a trial starts itself; today they are part of the trial's.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    unknown = set(wanted) - {"cpu", "gpu", "extra_cpu", "extra_gpu"}
    if unknown:
        warnings.warn(f"resources_per_trial: {', '.join(sorted(unknown))} left out", stacklevel=2)
    found = []
    for key, default in (("cpu", 1), ("gpu", 0)):
        amount = wanted.get(key, default) + wanted.get(f"extra_{key}", 0)
        most = max((node.get(key.upper(), 0) for node in nodes), default=0)
        if amount > most:
            warnings.warn(
                f"resources_per_trial: asked for {amount:g} {key.upper()}, using {most:g}: no node has more",
                stacklevel=2,
            )
        found.append(min(amount, most))
    return found[0], found[1]
