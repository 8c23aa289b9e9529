"""What `discern init` finds out about raw files, and what `discern info` says about experiments."""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata.io import read_elem

from discern import counts, genes
from discern.blocks import memory_budget, track_blocks
from discern.config import canonical_experiment, load_parameters
from discern.edits import describe_edits
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, nearest
from discern.files import recover, recover_all, replacing
from discern.functions import available_cpus, number_of_epochs
from discern.merging import BatchColumn, Source, batches_of, check_batches, check_names, listed, shared_batches
from discern.reading import dataset_name, read_raw_inputs
from discern.structure import check_format, open_hdf5, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import anndata
    import pandas as pd

    from discern.config import Parameters

_USUAL_COLUMNS = (
    *("batch", "sample", "sample_id", "donor", "donor_id", "patient", "library", "orig.ident", "dataset", "study"),
    *("protocol", "technology", "platform", "method", "assay"),
)
_MOST_BATCHES = 200
_MIN_GENES = 400


# --- init ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """What is known about the raw files.

    Attributes:
        sources: For each file what is taken from it.
        lines: For each file what it is, in words.
        genes_per_cell: For each batch how many of the common genes each of its cells has.
        n_genes: Number of genes that all files have.
        n_values: Number of counts that are not zero.
        notes: What the user should look at.
    """

    sources: dict[str, Source]
    lines: list[str]
    genes_per_cell: dict[str, np.ndarray]
    n_genes: int
    n_values: int
    notes: list[str]

    @property
    def n_cells(self) -> int:
        """Number of cells of all files."""
        return sum(map(len, self.genes_per_cell.values()))

    @property
    def reference(self) -> str:
        """The batch with most genes in its median cell."""
        return max(self.genes_per_cell, key=lambda batch: float(np.median(self.genes_per_cell[batch])))


def survey(files: Sequence[Path], batch_column: str | None = None) -> Survey:
    """Read raw files and see what is in them.

    Args:
        files: Raw counts in one of the formats of `discern.reading.read_raw_input`.
        batch_column: obs column with the batch, in the files that have it; None to look for one.

    Raises:
        MissingFileError: If a file is not there.
        UnknownNameError: If no file has the column.
        InvalidInputError: If a file cannot be read, holds no counts, or the files have no gene in common.
    """
    check_names(list(map(str, files)))
    layers = {str(path): counts.suggested(path) for path in files}
    inputs = read_raw_inputs(files, layers=layers)
    columns, notes = _batch_columns(inputs, batch_column)
    batches = {path: batches_of(path, adata.obs, columns[path]) for path, adata in inputs.items()}
    matched = genes.match({path: adata.var for path, adata in inputs.items()})
    lines, genes_per_cell, n_values = [], dict[str, list[np.ndarray]](), 0
    for path, adata in inputs.items():
        found, whole = _genes_per_cell(path, adata, matched.columns[path], layers[path])
        n_values += int(found.sum())
        column, layer = columns[path], layers[path]
        for code, batch in enumerate(batches[path].categories):
            genes_per_cell.setdefault(str(batch), []).append(found[batches[path].codes == code])
        kind = "raw counts" if whole else "NOT RAW COUNTS"
        said = f"batch: obs column {column!r}" if column else "batch: the file's name"
        place = f" in {counts.shown(layer)}" if layer else ""
        lines.append(f"{path}: {adata.n_obs:,} cells x {adata.n_vars:,} genes, {kind}{place}; {said}")
        if layer is not None:
            notes.append(f"{path}: X holds no raw counts, {counts.shown(layer)} does: it is taken")
        elif not whole:
            notes.append(
                f"{path}: X holds values that are not whole numbers, so no raw counts{counts.beside(Path(path))}"
            )
    notes += [*check_batches(batches), *matched.warnings]
    joined = {batch: np.concatenate(parts) for batch, parts in sorted(genes_per_cell.items())}
    sources = {path: Source(columns[path], layers[path]) for path in inputs}
    return Survey(sources, [*lines, *matched.remarks], joined, len(matched.names), n_values, notes)


def _batch_columns(
    inputs: Mapping[str, anndata.AnnData], wanted: str | None
) -> tuple[dict[str, BatchColumn], list[str]]:
    """Return the obs column with the batch for each file, and what the user should know about the choice."""
    if wanted is not None:
        if not any(wanted in adata.obs for adata in inputs.values()):
            known = list(dict.fromkeys(str(column) for adata in inputs.values() for column in adata.obs))
            raise UnknownNameError(f"no file has an obs column {wanted!r}{nearest(wanted, known)}; columns are {known}")
        return {path: wanted if wanted in adata.obs else None for path, adata in inputs.items()}, []
    if len(inputs) > 1:
        return _columns_of_several(inputs)
    ((path, adata),) = inputs.items()
    notes: list[str] = []
    for name in _USUAL_COLUMNS:
        for column in adata.obs:
            if str(column).lower() == name:
                unfit = _unfit(adata.obs, column)
                if unfit is None and adata.obs[column].nunique() > 1:
                    return {path: str(column)}, notes
                if unfit is not None:
                    notes.append(f"{path}: obs column {column!r} is not taken as the batch: {unfit}")
    more = "".join(f"; {note.removeprefix(f'{path}: ')}" for note in notes)
    raise InvalidInputError(
        f"{path}: expected two batches or more, one to reconstruct the others as: name the obs column that tells them "
        f"apart with --batch-column (columns are {list(adata.obs)}), or give a second file{more}"
    )


def _columns_of_several(inputs: Mapping[str, anndata.AnnData]) -> tuple[dict[str, BatchColumn], list[str]]:
    """Take the column `batch` where there is one, unless it is not fit, or gives cells of two files the same batch."""
    columns: dict[str, BatchColumn] = {}
    notes = []
    for path, adata in inputs.items():
        unfit = _unfit(adata.obs, "batch") if "batch" in adata.obs else None
        columns[path] = None if "batch" not in adata.obs else "batch" if unfit is None else False
        if unfit is not None:
            notes.append(f"{path}: obs column 'batch' is not taken as the batch, the file's name is: {unfit}")
    named = {path: batches_of(path, inputs[path].obs, column) for path, column in columns.items()}
    shared = shared_batches(named)
    for keys, names in shared.items():
        for path in keys:
            columns[path] = False if "batch" in inputs[path].obs else None
        notes.append(
            f"obs column 'batch' has the same name{'s' * (len(names) > 1)} {listed(names)} in {' and '.join(keys)}: "
            'the file\'s name is taken as the batch. If they are the same batches, write "batch" in place of false in '
            "raw_input; if not, name another column there, or give the batches different names in obs"
        )
    return columns, notes


def _unfit(obs: pd.DataFrame, column: str) -> str | None:
    """Say why a column cannot be the batch."""
    missing, different = int(obs[column].isna().sum()), int(obs[column].nunique())
    if missing:
        return f"{missing:,} of {len(obs):,} cells have no value in it"
    if different > _MOST_BATCHES:
        return f"it has {different:,} different values"
    return None


def _genes_per_cell(
    path: str, adata: anndata.AnnData, columns: np.ndarray, layer: str | None
) -> tuple[np.ndarray, bool]:
    """Return the number of common genes in each cell, and whether all counts are whole numbers."""
    found, whole, some = np.zeros(adata.n_obs, dtype=np.int64), True, False
    for rows, block in track_blocks(adata.X, f"looking at {path}"):
        if not np.isfinite(block.data).all() or (block.data.size and block.data.min() < 0):
            place = counts.shown(layer) if layer else "X"
            raise InvalidInputError(
                f"{path}: expected raw counts in {place}, some are negative or not finite"
                f"{counts.beside(Path(path), layer)}"
            )
        whole = whole and bool((block.data == np.floor(block.data)).all())
        some = some or bool(block.data.any())
        found[rows] = block[:, columns].getnnz(axis=1)
    if not some:
        raise InvalidInputError(f"{path}: expected raw counts, all are 0{counts.beside(Path(path), layer)}")
    return found, whole


def write_parameters(
    files: Sequence[Path], output: Path, batch_column: str | None = None, reference: str | None = None
) -> str:
    """Write a parameter file that fits raw files.

    Args:
        files: Raw counts.
        output: The file to write; must not exist.
        batch_column: obs column with the batch; None to look for one.
        reference: The batch to reconstruct the others as; None for the one with most genes in its median cell.

    Returns:
        What was found and chosen and why, and what to do next.

    Raises:
        UserError: If the files cannot be used, see `survey`, there is no such batch, or `output` exists.
    """
    if output.exists():
        raise InvalidInputError(f"{output}: exists already; name another file with --output, or remove it")
    if not output.absolute().parent.is_dir():
        raise MissingFileError(f"{output}: there is no folder {output.parent} to write it to")
    found = survey(files, batch_column)
    batches = list(found.genes_per_cell)
    if reference is not None and reference not in batches:
        raise InvalidInputError(f"there is no batch {reference!r}{nearest(reference, batches)}; batches are {batches}")
    experiment, reasons = choose(found)
    name = "_".join(dataset_name(path) for path in files[:3]) + (f"_and_{len(files) - 3}_more" if files[3:] else "")
    content = {"exp_param": {"experiments_dir": "experiments"}, "experiments": {name: experiment}}
    with replacing(output) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
        load_parameters(partial)
    chosen = reference or found.reference
    notes = [*found.notes, *([f"all cells are of one batch, {batches[0]}"] if len(batches) == 1 else [])]
    why = "as you said" if reference else "most genes in its median cell"
    return "\n".join(
        [
            *found.lines,
            f"{found.n_genes:,} genes in common",
            "",
            f"{'batch':30} {'cells':>9} {'genes of the median cell':>26}",
            *(
                f"{batch:30} {len(genes):9,} {int(np.median(genes)):26,}"
                + (f"  reference: {why}" if batch == chosen else "")
                for batch, genes in found.genes_per_cell.items()
            ),
            "",
            *(f"{key}: {value} ({reason})" for key, value, reason in reasons),
            _memory(found, canonical_experiment(experiment)),
            *(f"LOOK: {note}" for note in notes),
            "",
            f"wrote {output}; next:",
            f"  discern process {output}",
            f"  discern train {output}",
            f"  discern project --metadata 'batch:{chosen}' {output}",
            f"  discern evaluate --reference '{chosen}' {output}",
        ]
    )


def choose(found: Survey) -> tuple[dict[str, Any], list[tuple[str, Any, str]]]:
    """Choose the parameters for some files: those that depend on the files or the machine, the rest is the preset's.

    Returns:
        An EXPERIMENT of parameters.json, and for each choice its key, its value and the reason.
    """
    min_genes, why_genes = _min_genes(found.genes_per_cell)
    filled_in = canonical_experiment({"preset": "auto"})
    network, training = filled_in["model"], filled_in["training"]
    gpus = [0] if any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd")) else []
    cpus = available_cpus()
    experiment = {
        "preset": "auto",
        "input_ds": {
            "raw_input": _raw_input(found.sources),
            "filtering": {"min_genes": min_genes, "min_cells": 3},
            "split": {"split_seed": 0, "test_cells": 0.1},
            "n_cpus_preprocessing": cpus,
        },
        "training": {"GPU": gpus, "parallel_pc": cpus, "seed": 0},
    }
    recipe = f"fills in what the file lacks: layers {network['encoder']['layers']}, {training['max_steps']} epochs or "
    recipe += f"{training['max_updates']:,} updates of the weights, ..."
    reasons = [
        ("preset", "auto", f"did best on held-out cells of real data; {recipe}"),
        ("min_genes", min_genes, why_genes),
        ("test_cells", 0.1, "training never sees them; `discern evaluate` compares with them"),
        ("GPU", gpus, "found one" if gpus else "found none"),
        ("n_cpus_preprocessing, parallel_pc", cpus, "what this machine has"),
        ("seed", 0, "the same result every time"),
    ]
    return experiment, reasons


def _raw_input(sources: Mapping[str, Source]) -> list[str] | dict[str, Any]:
    """Return `input_ds.raw_input` in its shortest form."""
    if len(sources) > 1 and all(source in (Source(), Source("batch")) for source in sources.values()):
        return list(sources)
    return {path: source._asdict() if source.layer else source.batch for path, source in sources.items()}


def _min_genes(genes_per_cell: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Lower the usual threshold if a batch would lose more than a tenth of its cells."""
    tenths = {batch: int(np.quantile(genes, 0.1)) for batch, genes in genes_per_cell.items()}
    worst = min(tenths, key=lambda batch: tenths[batch])
    lost = float((genes_per_cell[worst] < _MIN_GENES).mean())
    if tenths[worst] >= _MIN_GENES:
        return _MIN_GENES, f"as published; loses {lost:.0%} of {worst} at the most"
    step = 50 if tenths[worst] >= 50 else 1
    return max(1, tenths[worst] // step * step), f"{_MIN_GENES} would lose {lost:.0%} of {worst}"


def _memory(found: Survey, experiment: Mapping[str, Any]) -> str:
    """Say what a canonical experiment needs."""
    layers, genes = experiment["model"]["encoder"]["layers"], found.n_genes
    hidden = sum(a * b for a, b in itertools.pairwise(layers)) * 2
    weights = 3 * genes * layers[0] + hidden
    cells = found.n_values * 8
    streamed = cells > memory_budget()
    training = 16 * weights + experiment["training"]["batch_size"] * genes * 4 * 12
    output = found.n_cells * genes * 8
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    held = "read block by block" if streamed else f"about {_size(3 * cells)} while they are processed"
    return (
        f"memory: cells {_size(cells)} ({held}), network about {_size(training)} while it is trained, beside 1 GB of "
        f"libraries; this machine has {_size(total)}. Disk: up to {_size(output)} for each projection"
    )


def _size(nbytes: float) -> str:
    """Return a number of bytes in words.

    Example:
        >>> _size(3_200_000), _size(51e9)
        ('3 MB', '51.0 GB')
    """
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


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
    found = [folder for folder in folders if (folder / "parameters.json").is_file()]
    if not found:
        raise MissingFileError(
            f"{path}: no experiment: expected a folder that `discern process` made, or a parameter file"
        )
    for folder in found[:1] if found[0] == path else found:
        yield folder, folder / "parameters.json"


def _described(folder: Path, file: Path) -> Iterator[str]:
    yield str(folder)
    processed = folder / "processed_data" / "concatenated_data.h5ad"
    if not processed.is_file():
        yield _line("cells", "not processed yet")
        yield _line("next", f"discern process {file}")
        return
    with open_hdf5(processed, "cannot be read as processed cells", whole=("obs", "var", "uns")) as handle:
        obs, uns = read_elem(handle["obs"]), read_elem(handle["uns"])
        check_format(uns)
        cells = list(_cells(obs, uns, len(read_elem(handle["var"]))))
    yield from cells
    if (folder / "TF_records").is_dir():
        yield _line("records", f"TF_records/, {_size(_disk(folder / 'TF_records'))}")
    models = list(_models(folder / "job"))
    for model in models or ["not trained yet"]:
        yield _line("model", model)
    for result in sorted(path for suffix in ("h5ad", "zarr") for path in (folder / "projected").glob(f"*.{suffix}")):
        yield _line("projected", f"{result.name}, {_size(_disk(result))}")
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


def _cells(obs: pd.DataFrame, uns: Mapping[str, Any], n_genes: int) -> Iterator[str]:
    yield _line("cells", f"{len(obs):,} x {n_genes:,} genes, processed by DISCERN {_maker(uns)}")
    split = obs.groupby(["batch", "split"], observed=True).size().unstack(fill_value=0)
    for batch, cells in split.iterrows():
        parts = ", ".join(f"{cells[part]:,} {part}" for part in ("train", "valid", "test") if part in cells)
        genes = f"; {int(obs.loc[obs['batch'] == batch, 'n_genes'].median()):,} genes in the median cell"
        yield _line("batch", f"{batch}: {parts}{genes if 'n_genes' in obs else ''}")
    others = [str(column) for column in obs if column not in ("batch", "split", "for_mmd", "n_genes", "n_counts")]
    if others:
        yield _line("obs", ", ".join(others))


def _maker(uns: Mapping[str, Any]) -> str:
    return "2 (sparse, log-normalised)" if "DISCERN_format" in uns else "1 (dense, standardised; is read as it is)"


def _disk(path: Path) -> int:
    return sum(entry.stat().st_size for entry in [path, *path.rglob("*")] if entry.is_file())


def _models(job: Path) -> Iterator[str]:
    for path in sorted([*job.glob("*.h5"), *job.glob("*.hdf5")]):
        with open_hdf5(path, "not a complete model file") as handle:
            if "step" in handle.attrs:
                continue  # no model to project with, but a checkpoint within an epoch
            epoch = whole_number(handle.attrs, "epoch", 0) if "epoch" in handle.attrs else None
            loss = f", validation loss {handle.attrs['val_loss']:.6g}" if "val_loss" in handle.attrs else ""
        if epoch is None:
            yield f"job/{path.name}, {_size(path.stat().st_size)}, written by the original program"
            continue
        yield f"job/{path.name}, {_size(path.stat().st_size)}: epoch {epoch}{loss}"


def _epochs(job: Path) -> int | None:
    """Return how many epochs the model has been trained for, None if there is none of this program's."""
    if not (job / "last_model.h5").is_file():
        return None
    with open_hdf5(job / "last_model.h5", "not a complete model file") as handle:
        return whole_number(handle.attrs, "epoch", 0) if "epoch" in handle.attrs else None


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
    training = parameters.experiments[_name_of(folder, parameters)]["training"]
    epochs, wanted = _epochs(folder / "job"), number_of_epochs(training, obs)
    if epochs is None or epochs < wanted:
        yield f"discern train {file}" + (f"  (goes on with epoch {epochs + 1} of {wanted})" if epochs else "")
    if trained:
        genes = obs["n_genes"] if "n_genes" in obs else obs["batch"].cat.codes
        reference = genes.groupby(obs["batch"], observed=True).median().idxmax()
        yield f"discern project --metadata 'batch:{reference}' {file}"
        yield f"discern evaluate --reference '{reference}' {file}"
        yield f"discern onlinetraining --filename NEW.h5ad {file}"
