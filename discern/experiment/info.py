"""What is in an experiment's folder, and what to do next."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from anndata.io import read_elem

from discern.config.reading import load_parameters
from discern.data.containers import open_hdf5
from discern.data.epochs import number_of_epochs
from discern.data.structure import check_format, whole_number
from discern.errors import MissingFileError
from discern.evaluation.selection import best_measured
from discern.experiment.edits import describe_edits
from discern.experiment.init import epochs_trained, size_on_disk, size_text
from discern.folder.layout import ExperimentFolder, models
from discern.folder.locks import recover, recover_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd

    from discern.config.reading import Parameters


# --- info ------------------------------------------------------------------------------------------------------------


def describe(path: Path) -> str:
    """Say what experiments hold, what was run on them, with which versions, and what can be run next.

    Args:
        path: The folder of an experiment, or of several, or a parameter file.

    Raises:
        MissingFileError: If there is no experiment.
    """
    return "\n\n".join("\n".join(_described(folder, file)) for folder, file in _experiments(path))


def _experiments(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder and the parameter file of each experiment."""
    if not path.exists():
        recover(path.parent)
    if path.is_file():
        parameters = load_parameters(path)
        for name in parameters.experiments:
            recover(parameters.folder(name))
        yield from ((parameters.folder(name), path) for name in parameters.experiments)
        return
    recover_all(path)
    folders = [path, *sorted(path.iterdir())] if path.is_dir() else []
    found = [folder for folder in folders if ExperimentFolder(folder).parameters.is_file()]
    if not found:
        raise MissingFileError(
            f"{path}: no experiment: expected a folder that `discern process` made, or a parameter file"
        )
    for folder in found[:1] if found[0] == path else found:
        yield folder, ExperimentFolder(folder).parameters


def _described(folder: Path, file: Path) -> Iterator[str]:
    yield str(folder)
    processed = ExperimentFolder(folder).cells
    if not processed.is_file():
        yield _line("cells", "not processed yet")
        yield _line("next", f"discern process {file}")
        return
    with open_hdf5(processed, "cannot be read as processed cells", whole=("obs", "var", "uns")) as handle:
        obs, uns = read_elem(handle["obs"]), read_elem(handle["uns"])
        check_format(uns)
        cells = list(_cells(obs, uns, len(read_elem(handle["var"]))))
    yield from cells
    place = ExperimentFolder(folder)
    if place.records.is_dir():
        yield _line("records", f"TF_records/, {size_text(size_on_disk(place.records))}")
    models = list(_models(place.job))
    for model in models or ["not trained yet"]:
        yield _line("model", model)
    patterns = ("*.h5ad", "*.zarr", "*/*.h5ad", "*/*.zarr")  # those in folders are of new cells
    for result in sorted(path for pattern in patterns for path in place.projected.glob(pattern)):
        yield _line("projected", f"{result.relative_to(place.projected)}, {size_text(size_on_disk(result))}")
    for name, words in {
        "evaluation/report.html": "evaluation",
        "analysis.json": "search",
        "backup": "model before online training",
    }.items():
        if (folder / name).exists():
            yield _line("also", f"{name}: {words}")
    if edited := _edits(folder, load_parameters(file)):
        yield _line("edited", edited)
    yield from (_line("run", run) for run in _runs(folder))
    yield from (_line("next", command) for command in _next(folder, file, obs, bool(models)))


def _line(head: str, text: str) -> str:
    return f"  {head:10} {text}"


def _cells(obs: pd.DataFrame, uns: Mapping[str, object], n_genes: int) -> Iterator[str]:
    yield _line("cells", f"{len(obs):,} x {n_genes:,} genes, processed by DISCERN {_maker(uns)}")
    split = obs.groupby(["batch", "split"], observed=True).size().unstack(fill_value=0)
    for batch, cells in split.iterrows():
        parts = ", ".join(f"{cells[part]:,} {part}" for part in ("train", "valid", "test") if part in cells)
        genes = f"; {int(obs.loc[obs['batch'] == batch, 'n_genes'].median()):,} genes in the median cell"
        yield _line("batch", f"{batch}: {parts}{genes if 'n_genes' in obs else ''}")
    others = [str(column) for column in obs if column not in ("batch", "split", "for_mmd", "n_genes", "n_counts")]
    if others:
        yield _line("obs", ", ".join(others))


def _maker(uns: Mapping[str, object]) -> str:
    return "2 (sparse, log-normalised)" if "DISCERN_format" in uns else "1 (dense, standardised; is read as it is)"


def _models(job: Path) -> Iterator[str]:
    for path in models(job):
        with open_hdf5(path, "not a complete model file") as handle:
            epoch = whole_number(handle.attrs, "epoch", 0) if "epoch" in handle.attrs else None
            loss = f", validation loss {handle.attrs['val_loss']:.6g}" if "val_loss" in handle.attrs else ""
        if epoch is None:
            yield f"job/{path.name}, {size_text(path.stat().st_size)}, written by the original program"
            continue
        yield f"job/{path.name}, {size_text(path.stat().st_size)}: epoch {epoch}{loss}"


_LOG_LINE = re.compile(r"(?P<time>[\d-]+ [\d:]+),\d+ (?P<process>\d+) (?P<level>[A-Z]+) discern[\w.]*: (?P<text>.*)")


def _runs(folder: Path) -> Iterator[str]:
    """Read from `discern.log` which commands wrote into the experiment, or failed to, and with which versions."""
    log = next((path for path in (folder.parent / "discern.log", folder / "discern.log") if path.is_file()), None)
    if log is None:
        return
    started: dict[str, tuple[str, str]] = {}
    versions: dict[str, str] = {}
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not (found := _LOG_LINE.match(line)):
                continue
            process, text = found["process"], found["text"]
            if begin := re.match(r"discern [\w.+-]+: (.*)", text):
                arguments = begin[1].split()
                started[process] = found["time"], " ".join([Path(arguments[0]).name, *arguments[1:]])
                versions[process] = text.split(":")[0]
            elif text.startswith("versions: "):
                versions[process] = text.removeprefix("versions: ")
            elif process in started and text.startswith(f"{folder.name}: ") and _ends(found["level"], text):
                time, command = started[process]
                outcome = "failed: " + text.partition(": ")[2] if found["level"] == "ERROR" else "done"
                yield f"{time} {command}: {outcome} ({versions[process]})"


def _name_of(folder: Path, parameters: Parameters) -> str:
    return next(name for name in parameters.experiments if parameters.folder(name).absolute() == folder.absolute())


def _edits(folder: Path, parameters: Parameters) -> str:
    return describe_edits(parameters, _name_of(folder, parameters))


def _ends(level: str, text: str) -> bool:
    return level == "ERROR" or ": wrote " in text


def _next(folder: Path, file: Path, obs: pd.DataFrame, trained: bool) -> Iterator[str]:
    parameters = load_parameters(file)
    training = parameters.experiments[_name_of(folder, parameters)].training
    epochs, wanted = epochs_trained(ExperimentFolder(folder).job), number_of_epochs(training, obs)
    if epochs is None or epochs < wanted:
        yield f"discern train {file}" + (f"  (goes on with epoch {epochs + 1} of {wanted})" if epochs else "")
    if trained:
        reference = quote(best_measured(obs))
        yield f"discern project --reference {reference} {file}"
        if (obs["split"] != "train").any():
            yield f"discern evaluate --reference {reference} {file}"
        yield f"discern onlinetraining --filename NEW.h5ad {file}"
