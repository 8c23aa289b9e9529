"""What `process`, `train` and `project` would do, without doing it: read, made, memory and time. Loads no TensorFlow.

Times are rough: they come from rates measured on two cores (docs/performance.md), shared out over the cores here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
from anndata.io import read_elem

from discern.data.containers import open_hdf5
from discern.data.epochs import cells_of_step, number_of_epochs
from discern.data.structure import check_format
from discern.errors import MissingFileError
from discern.experiment.folder import require_model
from discern.experiment.init import epochs_trained, size_on_disk, size_text
from discern.experiment.process import check_inputs
from discern.folder.layout import ExperimentFolder
from discern.model.targets import OutputFormat, projection_targets
from discern.networks.capacity import count_weights
from discern.runtime.devices import available_cpus
from discern.runtime.memory import matrix_budget

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import pandas as pd

    from discern.config.reading import Parameters
    from discern.config.schema import Model
    from discern.experiment.new_input import NewInput, Wanted


_LIBRARIES = {"process": 0.4e9, "train": 1.0e9, "project": 1.0e9}
_ENTRIES_A_SECOND = 2e6  # of each core, while cells are processed
_FLOP_A_SECOND = 75e9  # of each core, in training
_VALUES_A_SECOND = 5e6  # of each core, decoded and written
_PIECE_OF_NEW = 2**28  # bytes of counts of new cells that are in memory at once
_STARTS_AFTER = 20.0  # seconds until the first step of a training is done
_STEP_OF_A_WEIGHT = 6  # floating-point operations for each cell: forward, backward to the input and to the weights


@dataclass(frozen=True)
class _Cells:
    """Processed cells of an experiment: their annotation, number of genes and number of values that are not zero."""

    obs: pd.DataFrame
    n_genes: int
    entries: int

    @property
    def nbytes(self) -> float:
        """What X takes in memory; larger matrices stay on disk."""
        nbytes = 8.0 * self.entries
        return nbytes if nbytes <= matrix_budget() else 0.2e9


def of_process(parameters: Parameters, name: str, with_tfrecords: bool = True) -> Iterator[str]:
    """Say what `discern process` would do with an experiment.

    Args:
        parameters: The experiments.
        name: One of them.
        with_tfrecords: Whether record files are written.

    Raises:
        UserError: What processing would refuse before it reads anything.
    """
    check_inputs(parameters, name)
    folder, entries = parameters.folder(name), 0
    for file in parameters.experiments[name].input_ds.raw_input or ():
        path = Path(file)
        found = _stored_entries(path)
        entries += found[2] if found else 0
        size = size_text(size_on_disk(path))
        yield _line("reads", f"{path}, {size}" + (f": {found[0]:,} cells x {found[1]:,} genes" if found else ""))
    made = ["parameters.json", "processed_data/concatenated_data.h5ad", *["TF_records/"] * with_tfrecords]
    yield _line("makes", f"{folder}: {', '.join(made)}")
    if (folder / "processed_data").exists():
        yield _line("replaces", f"{folder}, with its model and projections, if it is told to (--force)")
    if entries:
        held = 24.0 * entries if 8 * entries <= matrix_budget() else 3.0 * matrix_budget()
        yield from _cost("process", held, 3 + entries / (_ENTRIES_A_SECOND * available_cpus()))
    else:
        yield _line("memory", "depends on what is in the files, which only reading tells")


def of_train(parameters: Parameters, name: str) -> Iterator[str]:
    """Say what `discern train` would do with an experiment.

    Args:
        parameters: The experiments.
        name: One of them, processed.

    Raises:
        MissingFileError: If it is not processed yet.
    """
    folder, experiment = ExperimentFolder(parameters.folder(name)), parameters.experiments[name]
    cells, training = _processed(folder), experiment.training
    epochs, done = number_of_epochs(training, cells.obs), epochs_trained(folder.job) or 0
    at_once = cells_of_step(cells.obs, training.batch_size)
    steps = max(1, int((cells.obs["split"] == "train").sum()) // at_once)
    left = max(0, epochs - done)
    yield _line("reads", f"{folder.cells}: {_shape(cells)}")
    if left:
        begin = f"goes on after epoch {done} of" if done else "from the beginning to epoch"
        yield _line("trains", f"{begin} {epochs}: {left * steps:,} steps of {at_once} cells")
        pictures = "" if training.visualisation is False else ", job/UMAP/"
        yield _line("makes", f"{folder.path}: job/last_model.h5, job/history.json, logs for TensorBoard{pictures}")
    else:
        yield _line("trains", f"nothing: the model has been trained for {done} of {epochs} epochs")
        return
    weights = _weights(experiment.model, cells)
    held = 16.0 * weights + at_once * cells.n_genes * 48.0 + cells.nbytes
    step = _STEP_OF_A_WEIGHT * weights * at_once / (_FLOP_A_SECOND * available_cpus())
    yield from _cost("train", held, _STARTS_AFTER + left * steps * step)
    if training.GPU:
        yield _line("GPU", f"{training.GPU}: faster than that, if this machine has it")


def of_project(
    parameters: Parameters,
    name: str,
    metadata: Sequence[tuple[str | None, str | None]],
    reference: str | None,
    all_batches: bool,
    layers: Sequence[str],
    dtype: str,
    suffix: str,
) -> Iterator[str]:
    """Say what `discern project` would do with an experiment.

    Args:
        parameters: The experiments.
        name: One of them, trained.
        metadata: See `discern.estimators.run_exp.run_projection`; likewise the others.
        reference: A batch.
        all_batches: Whether to decode as each batch.
        layers: What to write.
        dtype: Of matrices stored dense.
        suffix: ".h5ad" or ".zarr".

    Raises:
        UserError: What projecting would refuse before it writes anything.
    """
    OutputFormat(layers, dtype, suffix)
    folder = ExperimentFolder(parameters.folder(name))
    cells = _processed(folder)
    require_model(folder.path)
    targets = list(metadata)
    if all_batches:
        targets += [("batch", str(batch)) for batch in cells.obs["batch"].cat.categories]
    files = projection_targets(targets, reference, suffix, cells.obs)
    yield _line("reads", f"{folder.cells}: {_shape(cells)}")
    yield _line("reads", f"{folder.job}: the model")
    weights = _weights(parameters.experiments[name].model, cells)
    held = 4.0 * weights + cells.nbytes
    output = OutputFormat(layers, dtype, suffix)
    yield from _projecting(files, folder.projected, output, len(cells.obs), cells.n_genes, held)


def of_new_cells(parameters: Parameters, name: str, new: NewInput, wanted: Wanted) -> Iterator[str]:
    """Say what `discern project --input` would do with an experiment.

    Args:
        parameters: The experiments.
        name: One of them, trained.
        new: The new cells.
        wanted: What to project them to.

    Raises:
        UserError: What projecting would refuse before it reads the cells.
    """
    folder = ExperimentFolder(parameters.folder(name))
    cells = _processed(folder)
    require_model(folder.path)
    files = wanted.targets([str(batch) for batch in cells.obs["batch"].cat.categories])
    yield _line("reads", f"{folder.job}: the model")
    if not folder.seen_cells.is_file():
        yield _line(
            "makes", f"{folder.seen_cells}, for which the experiment's own {len(cells.obs):,} cells are encoded"
        )
    weights = _weights(parameters.experiments[name].model, cells)
    yield from _new_cells(new, files, new.place(folder), wanted, cells.n_genes, 4.0 * weights)


def of_model(file: Path, new: NewInput, wanted: Wanted) -> Iterator[str]:
    """Say what `discern project --model` would do; loads TensorFlow. See `of_new_cells`."""
    from discern.model import exported

    place = new.place(None)
    model = exported.read(file)
    files = wanted.targets(model.known.batches)
    yield _line("reads", f"{file}, {size_text(size_on_disk(file))}: the model")
    yield from _new_cells(new, files, place, wanted, len(model.known.genes), size_on_disk(file))


def _new_cells(
    new: NewInput, files: Collection[str], place: Path, wanted: Wanted, n_genes: int, held: float
) -> Iterator[str]:
    found = _stored_entries(new.file)
    size = size_text(size_on_disk(new.file))
    yield _line("reads", f"{new.file}, {size}" + (f": {found[0]:,} cells x {found[1]:,} genes" if found else ""))
    if found:
        yield from _projecting(files, place, wanted.output, found[0], n_genes, held + 3 * _PIECE_OF_NEW)
        return
    for file in files:
        yield _line("makes", str(place / file))
    yield _line("memory", "depends on what is in the file, which only reading tells")


def _projecting(
    files: Collection[str], place: Path, output: OutputFormat, n_cells: int, n_genes: int, held: float
) -> Iterator[str]:
    values = n_cells * n_genes
    dense = 2 if output.dtype == "float16" else 4
    size = sum(values * (4 if layer in ("X", "measured") else dense) for layer in output.layers)
    for file in files:
        exists = " (is there, would be replaced)" if (place / file).exists() else ""
        yield _line("makes", f"{place / file}, up to {size_text(size)}{exists}")
    seconds = 10 + len(files) * len(output.layers) * values / (_VALUES_A_SECOND * 3 * available_cpus())
    yield from _cost("project", held + 512 * n_genes * 40.0, seconds)


def _line(head: str, text: str) -> str:
    return f"  {head:10} {text}"


def _cost(command: str, nbytes: float, seconds: float) -> Iterator[str]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield _line("memory", f"about {size_text(_LIBRARIES[command] + nbytes)}; this machine has {size_text(total)}")
    yield _line("time", f"about {_duration(seconds)} on {available_cpus()} cores, roughly")


def _duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> _duration(12), _duration(400), _duration(9000)
        ('12 s', '7 minutes', '2.5 hours')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _shape(cells: _Cells) -> str:
    return f"{len(cells.obs):,} cells x {cells.n_genes:,} genes"


def _weights(model: Model, cells: _Cells) -> int:
    n_labels = len(cells.obs["batch"].cat.categories)
    return count_weights(model.encoder.sizes, model.decoder.sizes, model.latent_dim, cells.n_genes, n_labels)


def _processed(folder: ExperimentFolder) -> _Cells:
    if not folder.cells.is_file():
        raise MissingFileError(f"{folder.path} holds no processed experiment: run `discern process` first")
    with open_hdf5(folder.cells, "cannot be read as processed cells", whole=("obs", "var", "uns")) as handle:
        check_format(read_elem(handle["uns"]))
        obs, n_genes = read_elem(handle["obs"]), len(read_elem(handle["var"]))
        entries = _entries(handle["X"])
    return _Cells(obs, n_genes, entries)


def _entries(matrix: h5py.Dataset | h5py.Group) -> int:
    return int(matrix["data"].shape[0] if isinstance(matrix, h5py.Group) else matrix.size)


def _stored_entries(path: Path) -> tuple[int, int, int] | None:
    """Return cells, genes and stored counts of an h5ad file; None of what tells them only when it is read."""
    if path.suffix != ".h5ad" or not h5py.is_hdf5(path):
        return None
    with open_hdf5(path, "cannot be read") as handle:
        if "X" not in handle:
            return None
        X = handle["X"]
        shape = X.shape if isinstance(X, h5py.Dataset) else X.attrs.get("shape", X.attrs.get("h5sparse_shape"))
        return None if shape is None else (int(shape[0]), int(shape[1]), _entries(X))
