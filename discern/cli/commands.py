"""The command line. Commands parse, validate and call one function each; what they work with is imported inside."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from discern import __version__
from discern.cli.app import (
    FilePath,
    Group,
    Script,
    close,
    dry_run_option,
    everywhere,
    is_debug,
    load_tensorflow,
    log_to,
    parameters_argument,
    ray_option,
)
from discern.errors import InvalidInputError, MissingFileError
from discern.runtime import logs
from discern.runtime.text import message, page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from discern.config.reading import Parameters
    from discern.experiment.new_input import NewInput, Wanted

_LOGGER = logging.getLogger("discern")

_THEN_READ = "scanpy.read_h5ad(FILE): X and layers['estimated_counts'] are log-normalised"


@click.group(
    cls=Group,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@everywhere
@click.version_option(__version__, prog_name="discern")
@click.pass_context
def cli(context: click.Context) -> None:
    """Reconstruct single-cell gene expression of low-quality batches.

    `discern init` looks at raw files and writes a parameter file; `discern process`, `discern train`, `discern project`
    and `discern evaluate` follow, all with that file. `discern demo` does all of it with cells that ship with the
    program.
    """
    logs.configure()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(short_help="Filter, normalise and split the raw cells (preprocess).")
@parameters_argument
@click.option("--force", is_flag=True, help="Replace experiments that have been processed before.")
@click.option("--copy-original", is_flag=True, help="Copy the raw files to original_data/.")
@click.option("--without-tfrecords", is_flag=True, help="Do not write TF_records/.")
@dry_run_option
@ray_option
@everywhere
def process(
    parameters: Path,
    force: bool,
    copy_original: bool,
    without_tfrecords: bool,
    dry_run: bool,
    ray_address: str | None,
) -> int:
    """Filter, normalise and split the raw cells of each experiment.

    `discern preprocess` is the same.
    """
    loaded = _load(parameters)
    if dry_run:
        from discern.experiment import forecast

        return _forecast(loaded, lambda name: forecast.of_process(loaded, name, not without_tfrecords))
    from discern.experiment import process as experiments

    for name in loaded.experiments:
        experiments.check_inputs(loaded, name)
    loaded.experiments_dir.mkdir(parents=True, exist_ok=True)
    log_to(loaded.experiments_dir)
    results = experiments.process(
        loaded,
        force=force,
        copy_original=copy_original,
        with_tfrecords=not without_tfrecords,
        ask=_ask if sys.stdin.isatty() else None,
        ray_address=ray_address,
    )
    return close(results, f"discern train {parameters}")


@cli.command(short_help="Train the model, or go on training it.")
@parameters_argument
@dry_run_option
@ray_option
@everywhere
def train(parameters: Path, dry_run: bool, ray_address: str | None) -> int:
    """Train the model of each experiment, or go on training it."""
    loaded = _load(parameters)
    if dry_run:
        from discern.experiment import forecast

        return _forecast(loaded, lambda name: forecast.of_train(loaded, name))
    log_to(loaded.experiments_dir)
    load_tensorflow()
    from discern.experiment.edits import take_over_edits
    from discern.experiment.runner import DISCERNRunner
    from discern.experiment.train import run_train

    loaded, failed = take_over_edits(loaded)
    results = DISCERNRunner(debug=is_debug(), ray_address=ray_address)(func=run_train, parameters=loaded, kwargs={})
    return close({**results, **failed}, f"discern project --reference {_reference(loaded, results)} {parameters}")


@cli.command(short_help="Reconstruct the cells with the trained model.")
@click.argument("parameters", metavar="[PARAMETERS.json]", type=FilePath(), required=False)
@click.option(
    "--input",
    "new_cells",
    type=FilePath(),
    metavar="RAW",
    help="Raw cells to project in place of the experiment's own: they are filtered and scaled as these were; nothing "
    "is trained.",
)
@click.option(
    "--batch-column",
    metavar="COLUMN",
    help="With --input: obs column with their batch; by default `batch`, else the name of the file.",
)
@click.option("--batch", metavar="BATCH", help="With --input: the batch of all of them, one that the model knows.")
@click.option(
    "--as-batch",
    metavar="BATCH",
    help="With --input: encode cells of unknown batches as though they were of this known one.",
)
@click.option(
    "--model",
    type=FilePath(),
    metavar="MODEL.discern",
    help="With --input: a model that `discern export` wrote, in place of PARAMETERS.json.",
)
@click.option(
    "--output",
    type=FilePath(),
    metavar="FOLDER",
    help="With --input: where the results go; by default projected/NAME in the experiment, NAME that of the file.",
)
@click.option("--reference", metavar="BATCH", help="Decode all cells as if they had been measured like this batch.")
@click.option(
    "--metadata",
    multiple=True,
    metavar="COLUMN:VALUE",
    help="Decode as the mean cell with this value in an obs column; COLUMN: as the mean of the own group. Repeatable.",
)
@click.option("--all-batches", is_flag=True, help="Decode as each of the batches: --metadata batch:B.")
@click.option(
    "--filename",
    type=FilePath(),
    metavar="H5AD",
    help="Processed cells to project in place of the experiment's own.",
)
@click.option(
    "--intervals", is_flag=True, help="Add layers estimated_low and estimated_high: where 90 % would be seen."
)
@click.option("--store-sigmas", is_flag=True, help="Store the standard deviations of the latent codes as well.")
@click.option(
    "--layers",
    default="X,estimated_counts,estimated_dropouts",
    metavar="X,estimated_counts,...",
    help="What to write: the sampled expression X and the layers; by default these three. `measured` adds the input.",
)
@click.option("--dtype", default="float32", help="float32 or float16: type of what is stored dense.")
@click.option("--format", "suffix", default="h5ad", help="h5ad or zarr.")
@dry_run_option
@ray_option
@everywhere
def project(
    parameters: Path | None,
    new_cells: Path | None,
    batch_column: str | None,
    batch: str | None,
    as_batch: str | None,
    model: Path | None,
    output: Path | None,
    reference: str | None,
    metadata: tuple[str, ...],
    all_batches: bool,
    filename: Path | None,
    intervals: bool,
    store_sigmas: bool,
    layers: str,
    dtype: str,
    suffix: str,
    dry_run: bool,
    ray_address: str | None,
) -> int:
    """Reconstruct the cells of each experiment with its trained model, or with --input other cells."""
    targets = [_target(text) for text in metadata]
    chosen, suffix = _layers(layers, intervals), f".{suffix.removeprefix('.')}"
    if new_cells is None:
        of_new = {"batch_column": batch_column, "batch": batch, "as_batch": as_batch, "model": model, "output": output}
        for name, value in of_new.items():
            if value is not None:
                raise InvalidInputError(f"--{name.replace('_', '-')} is for new cells: give --input as well")
    if (parameters is None) == (model is None):
        raise InvalidInputError(
            "expected PARAMETERS.json" + (" or --model MODEL.discern" if new_cells is not None else "")
            if parameters is None
            else "PARAMETERS.json and --model: expected one of them"
        )
    if new_cells is not None:
        _check_file(new_cells, "--input")
        if filename is not None:
            raise InvalidInputError("--filename is for processed cells, --input for raw ones: expected one of them")
        from discern.experiment.new_input import NewInput, Wanted
        from discern.model.targets import OutputFormat

        new = NewInput(new_cells, batch_column, batch, as_batch, output)
        wanted = Wanted(targets, reference, all_batches, OutputFormat(chosen, dtype, suffix), store_sigmas)
        return _project_new(parameters, model, new, wanted, dry_run, ray_address)
    assert parameters is not None
    loaded = _load(parameters)
    if filename is not None:
        _check_file(filename)
    if dry_run:
        from discern.experiment import forecast

        options = (targets, reference, all_batches, chosen, dtype, suffix)
        return _forecast(loaded, lambda name: forecast.of_project(loaded, name, *options))
    log_to(loaded.experiments_dir)
    load_tensorflow()
    from discern.experiment.edits import take_over_edits
    from discern.experiment.project import run_projection
    from discern.experiment.runner import DISCERNRunner

    kwargs = {
        "metadata": targets,
        "infile": filename,
        "all_batches": all_batches,
        "store_sigmas": store_sigmas,
        "layers": chosen,
        "dtype": dtype,
        "suffix": suffix,
        "reference": reference,
    }
    loaded, failed = take_over_edits(loaded)
    results = DISCERNRunner(debug=is_debug(), ray_address=ray_address)(
        func=run_projection, parameters=loaded, kwargs=kwargs
    )
    return close({**results, **failed}, _THEN_READ)


def _project_new(
    parameters: Path | None, model: Path | None, new: NewInput, wanted: Wanted, dry_run: bool, ray_address: str | None
) -> int:
    """Project new cells with the model of each experiment, or with one that was given away."""
    from discern.experiment import forecast

    if parameters is None:
        assert model is not None
        load_tensorflow()
        from discern.experiment.new_cells import project_with_model

        if dry_run:
            lines = [f"{model}: nothing is done (--dry-run)", *forecast.of_model(model, new, wanted)]
            click.echo(page("\n".join(lines)))
            return 0
        return close({model.name: project_with_model(model, new, wanted)}, _THEN_READ)
    loaded = _load(parameters)
    if new.output is not None and len(loaded.experiments) > 1:
        raise InvalidInputError(f"--output: {parameters} has {len(loaded.experiments)} experiments, expected one")
    if dry_run:
        return _forecast(loaded, lambda name: forecast.of_new_cells(loaded, name, new, wanted))
    log_to(loaded.experiments_dir)
    load_tensorflow()
    from discern.experiment.edits import take_over_edits
    from discern.experiment.new_cells import project_new_cells
    from discern.experiment.runner import DISCERNRunner

    loaded, failed = take_over_edits(loaded)
    results = DISCERNRunner(debug=is_debug(), ray_address=ray_address)(
        func=project_new_cells, parameters=loaded, kwargs={"new": new, "wanted": wanted}
    )
    return close({**results, **failed}, _THEN_READ)


@cli.command(short_help="Write the trained model into one file to give away.")
@click.argument("experiment", metavar="EXPERIMENT", type=FilePath())
@click.argument("file", metavar="MODEL.discern", type=FilePath())
@click.option("--licence", metavar="TEXT", help="Under which it is given away; goes into the model card.")
@everywhere
def export(experiment: Path, file: Path, licence: str | None) -> None:
    """Write the model of an experiment, without its cells, into one file that `project --model` and Python read."""
    load_tensorflow()
    from discern.experiment import export as sharing

    sharing.export(experiment, file, f"discern {__version__}", licence)
    _LOGGER.info("wrote %s", file)
    _LOGGER.info("next: discern project --model %s --input RAW --reference BATCH --output FOLDER", file)


@cli.command(short_help="Compare reconstructed cells with real ones held out.")
@parameters_argument
@click.option("--reference", metavar="BATCH", help="Batch to project to; by default the one with most genes per cell.")
@click.option("--source", multiple=True, metavar="BATCH", help="Batch to project; by default all others. Repeatable.")
@click.option("--label", metavar="COLUMN", help="obs column of the cell types; by default it is looked for.")
@click.option(
    "--genes",
    multiple=True,
    metavar="GENE,...",
    help="Marker genes to show, by symbol or id: measured, reconstructed, in real cells.",
)
@everywhere
def evaluate(
    parameters: Path, reference: str | None, source: tuple[str, ...], label: str | None, genes: tuple[str, ...]
) -> int:
    """Compare reconstructed cells of each experiment with real ones that training did not see."""
    loaded = _load(parameters)
    log_to(loaded.experiments_dir)
    load_tensorflow()
    from discern.evaluation.results import EvaluationResult, summary
    from discern.experiment import evaluate as evaluation
    from discern.experiment.edits import take_over_edits
    from discern.experiment.runner import DISCERNRunner

    kwargs = {"reference": reference, "sources": source, "label": label, "genes": _listed(genes)}
    loaded, failed = take_over_edits(loaded)
    results = DISCERNRunner(debug=is_debug())(func=evaluation.evaluate, parameters=loaded, kwargs=kwargs)
    for name, paths in results.items():
        if not isinstance(paths, Exception):
            figures = json.loads((paths[0].parent / "evaluation.json").read_text())
            click.echo(page(f"{name}:\n{summary(EvaluationResult.from_json(figures))}"))
    return close({**results, **failed}, "open report.html in a browser")


@cli.command(short_help="Test which genes differ between groups of cells.")
@click.argument("cells", metavar="CELLS.h5ad", type=FilePath())
@click.option("--groupby", required=True, metavar="COLUMN", help="obs column of the groups.")
@click.option("--group", required=True, metavar="NAME", help="Group to compare.")
@click.option("--reference", default="rest", metavar="NAME", help="Group to compare with; by default all other cells.")
@click.option("--sample", metavar="COLUMN", help="obs column of replicates (donors, mice); by default cells are these.")
@click.option(
    "--batch", default="batch", show_default=True, metavar="COLUMN", help="obs column of batches to compare within."
)
@click.option("--layer", metavar="NAME", help="Layer with the measured cells; by default `measured`.")
@click.option("--output", type=FilePath(), default="compare.csv", show_default=True, help="Table to write.")
@everywhere
def compare(
    cells: Path,
    groupby: str,
    group: str,
    reference: str,
    sample: str | None,
    batch: str,
    layer: str | None,
    output: Path,
) -> None:
    """Test which genes differ between groups of cells, by measured counts, with reconstructed fold changes."""
    from discern.evaluation import differential

    table = differential.compare_file(cells, output, groupby, group, reference, layer=layer, batch=batch, sample=sample)
    click.echo(page(differential.summary(table, group, reference)))
    _LOGGER.info("wrote %s", output)


@cli.command()
@parameters_argument
@click.option(
    "--filename",
    multiple=True,
    required=True,
    type=FilePath(),
    help="Raw file of the new cells. Repeatable.",
)
@click.option("--freeze", is_flag=True, help="Train only the layers whose shapes changed.")
@click.option("--fill-missing-genes", is_flag=True, help="Take genes that the new cells lack as zero.")
@everywhere
def onlinetraining(parameters: Path, filename: tuple[Path, ...], freeze: bool, fill_missing_genes: bool) -> int:
    """Train a trained model on new cells."""
    loaded = _load(parameters)
    for file in filename:
        _check_file(file)
    log_to(loaded.experiments_dir)
    load_tensorflow()
    from discern.experiment.edits import take_over_edits
    from discern.experiment.online import OnlineDISCERNRunner, online_training

    kwargs = {"filename": filename, "freeze": freeze, "fill_missing_genes": fill_missing_genes}
    loaded, failed = take_over_edits(loaded)
    results = OnlineDISCERNRunner(debug=is_debug(), gpus=None)(func=online_training, parameters=loaded, kwargs=kwargs)
    return close({**results, **failed}, f"discern project --reference {_reference(loaded, results)} {parameters}")


@cli.command()
@parameters_argument
@click.option("--resume", is_flag=True, help="Go on with the newest search of each experiment.")
@everywhere
def optimize(parameters: Path, resume: bool) -> int:
    """Search for better hyperparameters."""
    loaded = _load(parameters)
    log_to(loaded.experiments_dir)
    load_tensorflow()
    from discern.experiment.edits import take_over_edits
    from discern.search import tuner

    loaded, failed = take_over_edits(loaded)
    return close({**tuner.optimize(loaded, resume=resume), **failed})


@cli.command(short_help="Do all of it with cells that ship with the program.")
@click.option(
    "--output",
    type=FilePath(),
    default="discern-demo",
    show_default=True,
    help="Folder for all that is written.",
)
@everywhere
def demo(output: Path) -> None:
    """Process, train and project the shipped cells, and compare the result with real ones."""
    load_tensorflow()
    from discern.experiment.demo import run_demo

    output.mkdir(parents=True, exist_ok=True)
    log_to(output)
    click.echo(page(run_demo(output)))


@cli.command(short_help="Look at raw files, write a parameter file that fits.")
@click.argument("files", metavar="A.h5ad B.h5ad ...", nargs=-1, required=True, type=FilePath())
@click.option("--batch-column", metavar="COLUMN", help="obs column with the batch; by default it is looked for.")
@click.option("--reference", metavar="BATCH", help="Batch to project to; by default the one with most genes per cell.")
@click.option("--label", metavar="COLUMN", help="obs column of the cell types; by default it is looked for.")
@click.option("--output", type=FilePath(), default="parameters.json", show_default=True, help="File to write.")
@everywhere
def init(
    files: tuple[Path, ...], batch_column: str | None, reference: str | None, label: str | None, output: Path
) -> None:
    """Write a parameter file that fits raw files, and say what was chosen and why."""
    from discern.experiment import init as inspection

    click.echo(page(inspection.write_parameters(files, output, batch_column, reference, label)))


@cli.command(short_help="Say what was run and what can be run next.")
@click.argument("experiment", metavar="EXPERIMENT", type=FilePath())
@everywhere
def info(experiment: Path) -> None:
    """Say what an experiment's folder holds, what was run, and what can be run next; or what an exported model is."""
    if experiment.suffix == ".discern" and experiment.is_file():
        load_tensorflow()
        from discern.experiment.export import describe

        click.echo(page(describe(experiment)))
        return
    from discern.experiment import info as inspection

    click.echo(page(inspection.describe(experiment)))


@cli.command(short_help="Write a part of a result to a smaller file.")
@click.argument("file", metavar="FILE.h5ad", type=FilePath())
@click.option("--output", type=FilePath(), required=True, metavar="H5AD", help="File to write, .h5ad or .zarr.")
@click.option(
    "--cells",
    multiple=True,
    metavar="COLUMN:VALUE",
    help="Cells with this value in an obs column, or named in a text file. Repeatable: values of one column add up.",
)
@click.option(
    "--genes", multiple=True, metavar="A,B,...", help="Names, symbols or ids, or a text file with one in each line."
)
@click.option("--layers", metavar="X,estimated_counts,...", help="Which matrices to keep; by default all.")
@everywhere
def subset(file: Path, output: Path, cells: tuple[str, ...], genes: tuple[str, ...], layers: str | None) -> None:
    """Write some cells, genes and layers of a result to a smaller file."""
    from discern.experiment.subset import write_subset

    names = [name.strip() for text in genes for name in (text.split(",") if not Path(text).is_file() else [text])]
    kept = None if layers is None else _listed([layers])
    write_subset(file, output, cells, [name for name in names if name], kept)
    _LOGGER.info(
        "next: scanpy.read_h5ad(%r)" if output.suffix == ".h5ad" else "next: anndata.read_zarr(%r)", str(output)
    )


@cli.command(short_help="Print the JSON Schema of parameter files.")
@everywhere
def schema() -> None:
    """Print the JSON Schema of PARAMETERS.json, for editors."""
    from discern.config import reading

    click.echo(json.dumps(reading.schema(), indent=2))


@click.command(cls=Script)
@click.argument("files", metavar="A.json B.json ...", nargs=-1, required=True, type=FilePath())
def merge_parameter(files: tuple[Path, ...]) -> None:
    """Print one parameter file with the experiments of all files."""
    from discern.config import reading

    click.echo(json.dumps(reading.merge_parameters(files), indent=4))


def _load(parameters: Path) -> Parameters:
    from discern.config import reading
    from discern.folder.locks import recover

    if not parameters.exists():  # the file in the folder of an experiment that was being replaced
        recover(parameters.parent)
    return reading.load_parameters(parameters)


def _forecast(parameters: Parameters, lines: Callable[[str], Iterable[str]]) -> int:
    """Print what would be done with each experiment; returns the exit code."""
    results: dict[str, Exception] = {}
    for name in parameters.experiments:
        try:
            click.echo(page("\n".join([f"{name}: nothing is done (--dry-run)", *lines(name)])))
        except Exception as error:  # noqa: BLE001 (reported for each experiment at the end)
            results[name] = error
    return close(results)


def _listed(texts: Sequence[str]) -> list[str]:
    """Return what stands between commas, in all texts."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _reference(parameters: Parameters, results: Mapping[str, object]) -> str:
    """Return the usual reference of the experiments that went well, for a command line; BATCH if they differ."""
    from discern.experiment.init import reference_of

    done = [name for name, result in results.items() if not isinstance(result, Exception)]
    found = {reference_of(parameters.folder(name)) for name in done}
    (reference,) = found if len(found) == 1 else (None,)
    return "BATCH" if reference is None else quote(reference)


def _ask(question: str) -> bool:
    return click.confirm(message(question), err=True)


def _layers(text: str, intervals: bool) -> list[str]:
    from discern.model.targets import INTERVALS

    chosen = _listed([text])
    return [*chosen, *(name for name in INTERVALS if name not in chosen)] if intervals else chosen


def _target(text: str) -> tuple[str | None, str | None]:
    from discern.data.annotation import parse_metadata

    try:
        return parse_metadata(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"--{error}") from None


def _check_file(path: Path, option: str = "--filename") -> None:
    from discern.runtime.foreign import check_input

    if not path.exists():
        raise MissingFileError(f"{option}: {path}: no such file")
    check_input(path)
