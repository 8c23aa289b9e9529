"""Look at raw files and write the parameters for them."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np
from anndata.io import read_elem

from discern.config.presets import TEST_CELLS
from discern.config.reading import load_parameters, parse_experiment
from discern.data.chunks import track_blocks
from discern.data.containers import open_hdf5
from discern.data.structure import whole_number
from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, nearest
from discern.evaluation.selection import best_measured
from discern.folder.layout import LAST, ExperimentFolder
from discern.inputs import gene_matching, raw_counts
from discern.inputs.labels import label_column
from discern.inputs.merging import (
    MOST_BATCHES,
    BatchColumn,
    Source,
    batches_of,
    check_batches,
    check_names,
    listed,
    shared_batches,
)
from discern.inputs.readers import dataset_name, read_raw_inputs
from discern.runtime.atomic import replacing
from discern.runtime.devices import available_cpus
from discern.runtime.memory import matrix_budget
from discern.runtime.text import short

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import anndata
    import pandas as pd

    from discern.config.fields import Inputs, JsonObject
    from discern.config.schema import Experiment


_USUAL_COLUMNS = (
    *("batch", "sample", "sample_id", "donor", "donor_id", "patient", "library", "orig.ident", "dataset", "study"),
    *("protocol", "technology", "platform", "method", "assay"),
)
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
        labels: For each file the obs column with the cell types, if any.
    """

    sources: dict[str, Source]
    lines: list[str]
    genes_per_cell: dict[str, np.ndarray]
    n_genes: int
    n_values: int
    notes: list[str]
    labels: dict[str, str | None] = field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        """Number of cells of all files."""
        return sum(map(len, self.genes_per_cell.values()))

    @property
    def reference(self) -> str:
        """The batch with most genes in its median cell."""
        return max(self.genes_per_cell, key=lambda batch: float(np.median(self.genes_per_cell[batch])))


def survey(files: Sequence[Path], batch_column: str | None = None, label: str | None = None) -> Survey:
    """Read raw files and see what is in them.

    Args:
        files: Raw counts in one of the formats of `discern.inputs.readers.read_raw_input`.
        batch_column: obs column with the batch, in the files that have it; None to look for one.
        label: obs column with the cell types, in the files that have it; None to look for one.

    Raises:
        MissingFileError: If a file is not there.
        UnknownNameError: If no file has a column.
        InvalidInputError: If a file cannot be read, holds no counts, or the files have no gene in common.
    """
    check_names(list(map(str, files)))
    layers = {str(path): raw_counts.suggested(path) for path in files}
    inputs = read_raw_inputs(files, layers=layers)
    columns, notes = _batch_columns(inputs, batch_column)
    labels, said_of_labels = _label_columns(inputs, label)
    notes += said_of_labels
    batches = {path: batches_of(path, adata.obs, columns[path]) for path, adata in inputs.items()}
    matched = gene_matching.match({path: adata.var for path, adata in inputs.items()})
    lines, genes_per_cell, n_values = [], dict[str, list[np.ndarray]](), 0
    for path, adata in inputs.items():
        found, whole = _genes_per_cell(path, adata, matched.columns[path], layers[path])
        n_values += int(found.sum())
        column, layer = columns[path], layers[path]
        for code, batch in enumerate(batches[path].categories):
            genes_per_cell.setdefault(str(batch), []).append(found[batches[path].codes == code])
        kind = "raw counts" if whole else "NOT RAW COUNTS"
        said = f"batch: obs column {column!r}" if column else "batch: the file's name"
        place = f" in {raw_counts.shown(layer)}" if layer else ""
        lines.append(f"{path}: {adata.n_obs:,} cells x {adata.n_vars:,} genes, {kind}{place}; {said}")
        if layer is not None:
            notes.append(f"{path}: X holds no raw counts, {raw_counts.shown(layer)} does: it is taken")
        elif not whole:
            notes.append(
                f"{path}: X holds values that are not whole numbers, so no raw counts{raw_counts.beside(Path(path))}"
            )
    notes += [*check_batches(batches), *matched.warnings]
    joined = {batch: np.concatenate(parts) for batch, parts in sorted(genes_per_cell.items())}
    sources = {path: Source(columns[path], layers[path]) for path in inputs}
    return Survey(sources, [*lines, *matched.remarks], joined, len(matched.names), n_values, notes, labels)


def _label_columns(
    inputs: Mapping[str, anndata.AnnData], wanted: str | None
) -> tuple[dict[str, str | None], list[str]]:
    """Return the obs column with the cell types of each file, and what the user should know about them."""
    if wanted is not None:
        if not any(wanted in adata.obs for adata in inputs.values()):
            known = list(dict.fromkeys(str(column) for adata in inputs.values() for column in adata.obs))
            raise UnknownNameError(f"no file has an obs column {wanted!r}{nearest(wanted, known)}; columns are {known}")
        return {path: wanted if wanted in adata.obs else None for path, adata in inputs.items()}, []
    labels = {path: label_column(adata.obs) for path, adata in inputs.items()}
    named = {path: column for path, column in labels.items() if column is not None}
    if len(set(named.values())) > 1:
        listing = ", ".join(f"{column!r} in {path}" for path, column in named.items())
        return labels, [f"the cell types are in different obs columns, {listing}: give them the same name"]
    return labels, []


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
    if different > MOST_BATCHES:
        return f"it has {different:,} different values"
    return None


def _genes_per_cell(
    path: str, adata: anndata.AnnData, columns: np.ndarray, layer: str | None
) -> tuple[np.ndarray, bool]:
    """Return the number of common genes in each cell, and whether all counts are whole numbers."""
    found, whole, some = np.zeros(adata.n_obs, dtype=np.int64), True, False
    for rows, block in track_blocks(adata.X, f"looking at {path}"):
        if not np.isfinite(block.data).all() or (block.data.size and block.data.min() < 0):
            place = raw_counts.shown(layer) if layer else "X"
            raise InvalidInputError(
                f"{path}: expected raw counts in {place}, some are negative or not finite"
                f"{raw_counts.beside(Path(path), layer)}"
            )
        whole = whole and bool((block.data == np.floor(block.data)).all())
        some = some or bool(block.data.any())
        found[rows] = block[:, columns].getnnz(axis=1)
    if not some:
        raise InvalidInputError(f"{path}: expected raw counts, all are 0{raw_counts.beside(Path(path), layer)}")
    return found, whole


def write_parameters(
    files: Sequence[Path],
    output: Path,
    batch_column: str | None = None,
    reference: str | None = None,
    label: str | None = None,
) -> str:
    """Write a parameter file that fits raw files.

    Args:
        files: Raw counts.
        output: The file to write; must not exist.
        batch_column: obs column with the batch; None to look for one.
        reference: The batch to reconstruct the others as; None for the one with most genes in its median cell.
        label: obs column with the cell types; None to look for one.

    Returns:
        What was found and chosen and why, and what to do next.

    Raises:
        UserError: If the files cannot be used, see `survey`, there is no such batch, or `output` exists.
    """
    if output.exists():
        raise InvalidInputError(f"{output}: exists already; name another file with --output, or remove it")
    if not output.absolute().parent.is_dir():
        raise MissingFileError(f"{output}: there is no folder {output.parent} to write it to")
    found = survey(files, batch_column, label)
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
    types = list(dict.fromkeys(column for column in found.labels.values() if column is not None))
    label = f" --label {quote(label)}" if label is not None else ""
    return "\n".join(
        [
            *found.lines,
            f"{found.n_genes:,} genes in common",
            "",
            f"{'batch':36} {'cells':>10} {'genes of the median cell':>26}",
            *(
                f"{short(batch, 36):36} {len(genes):10,} {int(np.median(genes)):26,}"
                for batch, genes in found.genes_per_cell.items()
            ),
            "",
            f"reference: {chosen} ({why}; --reference names another)",
            f"cell types: obs column {' or '.join(map(repr, types))}"
            if types
            else "cell types: no obs column found; --label names it, if there is one",
            *(f"{key}: {value} ({reason})" for key, value, reason in reasons),
            _memory(found, parse_experiment(experiment)),
            *(f"LOOK: {note}" for note in notes),
            "",
            f"wrote {output}; next:",
            f"  discern process {output}",
            f"  discern train {output}",
            f"  discern project --reference {quote(chosen)} {output}",
            f"  discern evaluate --reference {quote(chosen)}{label} {output}",
        ]
    )


def choose(found: Survey) -> tuple[JsonObject, list[tuple[str, object, str]]]:
    """Choose the parameters for some files: those that depend on the files or the machine, the rest is the preset's.

    Returns:
        An EXPERIMENT of parameters.json, and for each choice its key, its value and the reason.
    """
    min_genes, why_genes = _min_genes(found.genes_per_cell)
    filled_in = parse_experiment({"preset": "auto"})
    network, training = filled_in.model, filled_in.training
    gpus = [0] if any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd")) else []
    cpus = available_cpus()
    experiment = {
        "preset": "auto",
        "input_ds": {
            "raw_input": _raw_input(found.sources),
            "filtering": {"min_genes": min_genes, "min_cells": 3},
            "split": {"split_seed": 0, "test_cells": TEST_CELLS},
            "n_cpus_preprocessing": cpus,
        },
        "training": {"GPU": gpus, "parallel_pc": cpus, "seed": 0},
    }
    recipe = f"fills in what the file lacks: layers {network.encoder.layers}, {training.max_steps} epochs or "
    recipe += f"{training.max_updates:,} updates of the weights, ..."
    reasons = [
        ("preset", "auto", f"did best on held-out cells of real data; {recipe}"),
        ("min_genes", min_genes, why_genes),
        ("test_cells", TEST_CELLS, "training never sees them; `discern evaluate` compares with them"),
        ("GPU", gpus, "found one" if gpus else "found none"),
        ("n_cpus_preprocessing, parallel_pc", cpus, "what this machine has"),
        ("seed", 0, "the same result every time"),
    ]
    return experiment, reasons


def _raw_input(sources: Mapping[str, Source]) -> Inputs:
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


def _memory(found: Survey, experiment: Experiment) -> str:
    """Say what an experiment needs."""
    layers, genes = experiment.model.encoder.sizes, found.n_genes
    hidden = sum(a * b for a, b in itertools.pairwise(layers)) * 2
    weights = 3 * genes * layers[0] + hidden
    cells = found.n_values * 8
    streamed = cells > matrix_budget()
    training = 16 * weights + experiment.training.batch_size * genes * 4 * 12
    output = found.n_cells * genes * 8
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    held = "read block by block" if streamed else f"about {size_text(3 * cells)} while they are processed"
    return (
        f"memory: cells {size_text(cells)} ({held}), network about {size_text(training)} while it is trained, beside "
        f"1 GB of libraries; this machine has {size_text(total)}. Disk: up to {size_text(output)} for each projection"
    )


def size_text(nbytes: float) -> str:
    """Return a number of bytes in words.

    Example:
        >>> size_text(40_000), size_text(3_200_000), size_text(51e9)
        ('40 KB', '3 MB', '51.0 GB')
    """
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.1f} GB"
    return f"{nbytes / 1e6:.0f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.0f} KB"


def reference_of(folder: Path) -> str | None:
    """Return the usual reference of a processed experiment, see `best_measured`; None if that cannot be told.

    Args:
        folder: EXPERIMENTS_DIR/NAME.
    """
    processed = ExperimentFolder(folder).cells
    if not processed.is_file():
        return None
    with open_hdf5(processed, "cannot be read as processed cells", whole=("obs",)) as handle:
        obs = read_elem(handle["obs"])
    return best_measured(obs) if "batch" in obs else None


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(entry.stat().st_size for entry in [path, *path.rglob("*")] if entry.is_file())


def epochs_trained(job: Path) -> int | None:
    """Return how many epochs the model has been trained for, None if there is none of this program's."""
    if not (job / LAST).is_file():
        return None
    with open_hdf5(job / LAST, "not a complete model file") as handle:
        return whole_number(handle.attrs, "epoch", 0) if "epoch" in handle.attrs else None
