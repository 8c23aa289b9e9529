"""The command line. Commands parse, validate and call one function each; what they work with is imported inside."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from discern import __version__
from discern.cli.app import FAILURE, INTERRUPTED, USER_MISTAKE
from discern.errors import InvalidInputError, MissingFileError, UserError
from discern.folder.locks import recover
from discern.runtime import logs
from discern.runtime.atomic import cause_in_system
from discern.runtime.processes import Terminated, ending_cleanly
from discern.runtime.text import message, page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from discern.config.reading import Parameters

_LOGGER = logging.getLogger("discern")


_AFTER_INTERRUPTION = {
    "train": "the same command goes on where it stopped",
    "optimize": "`discern optimize --resume` goes on where it stopped",
}
_STARTS_AGAIN = "what is written is complete; the same command starts again"


@dataclass
class _Settings:
    """What holds for all commands; given before or after the command's name."""

    verbose: int = 0
    quiet: bool = False
    debug: bool = False
    log: Path | None = None


class _OneLineErrors(click.Command):
    """Shows every error in one line; mistakes of the user exit with 2, faults of the program with 1."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with ending_cleanly():
                code = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see `{context.command_path} --help`)" if context else ""
            click.echo(message(f"error: {error.format_message()}{hint}"), err=True)
            code = error.exit_code
        except click.Abort:
            click.echo("error: interrupted: nothing was changed", err=True)
            code = INTERRUPTED
        sys.exit(_finish_output(code if isinstance(code, int) else 0))

    def invoke(self, ctx: click.Context) -> Any:
        settings = ctx.ensure_object(_Settings)
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt as interruption:
            told = isinstance(interruption, Terminated)
            then = _AFTER_INTERRUPTION.get(ctx.invoked_subcommand or "", _STARTS_AGAIN)
            _LOGGER.error("%s: %s", "told to end" if told else "interrupted", then)
            return 128 + interruption.signal_number if isinstance(interruption, Terminated) else INTERRUPTED
        except Exception as error:  # noqa: BLE001 (the last place where it can be told)
            return _tell(error, settings)


class _Command(click.Command):
    """Sets up the messages once all options are known, wherever they stood."""

    def invoke(self, ctx: click.Context) -> Any:
        settings = ctx.find_root().ensure_object(_Settings)
        if settings.debug:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
        logs.configure(-1 if settings.quiet else max(settings.verbose, int(settings.debug)), settings.debug)
        return super().invoke(ctx)


class _FilePath(click.Path):
    """A path that a file system can have."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        encoded = os.fsencode(value)
        if not encoded or len(encoded) > 4000 or any(len(part) > 255 for part in encoded.split(b"/")):
            self.fail(f"expected a path, got one of {len(encoded)} bytes", param, ctx)
        return super().convert(value, param, ctx)


_IN_ORDER = ("init", "process", "train", "project", "evaluate", "info", "onlinetraining", "optimize")
_OTHER_NAMES = {"preprocess": "process"}


class _Group(_OneLineErrors, click.Group):
    """Lists the commands in the order of work, each under one name."""

    command_class = _Command

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, _OTHER_NAMES.get(cmd_name, cmd_name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        first = [name for name in _IN_ORDER if name in self.commands]
        return [*first, *(name for name in self.commands if name not in first)]


class _Script(_OneLineErrors, _Command):
    pass


def _set(context: click.Context, option: click.Parameter, value: Any) -> None:
    settings = context.find_root().ensure_object(_Settings)
    before = getattr(settings, str(option.name))
    setattr(settings, str(option.name), value or before if isinstance(value, bool) else value + before)


def _everywhere(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--debug",
            is_flag=True,
            callback=_set,
            expose_value=False,
            help="Show tracebacks; in train and project, run the first experiment only.",
        ),
        click.option("--quiet", is_flag=True, callback=_set, expose_value=False, help="Show warnings and errors only."),
        click.option(
            "-v", "--verbose", count=True, callback=_set, expose_value=False, help="Show more; twice: even more."
        ),
    ):
        command = option(command)
    return command


_ray = click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Hand each experiment to the Ray cluster with this head node (HOST:PORT, or auto).",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be read and made, and do nothing.")
_parameters_file = click.argument("parameters", metavar="PARAMETERS.json", type=_FilePath())


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@_everywhere
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
@_parameters_file
@click.option("--force", is_flag=True, help="Replace experiments that have been processed before.")
@click.option("--copy-original", is_flag=True, help="Copy the raw files to original_data/.")
@click.option("--without-tfrecords", is_flag=True, help="Do not write TF_records/.")
@_dry_run
@_ray
@_everywhere
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
    _log_to(loaded.experiments_dir)
    results = experiments.process(
        loaded,
        force=force,
        copy_original=copy_original,
        with_tfrecords=not without_tfrecords,
        ask=_ask if sys.stdin.isatty() else None,
        ray_address=ray_address,
    )
    return _close(results, f"discern train {parameters}")


@cli.command(short_help="Train the model, or go on training it.")
@_parameters_file
@_dry_run
@_ray
@_everywhere
def train(parameters: Path, dry_run: bool, ray_address: str | None) -> int:
    """Train the model of each experiment, or go on training it."""
    loaded = _load(parameters)
    if dry_run:
        from discern.experiment import forecast

        return _forecast(loaded, lambda name: forecast.of_train(loaded, name))
    _log_to(loaded.experiments_dir)
    _start_tensorflow()
    from discern.experiment.edits import take_over_edits
    from discern.experiment.runner import DISCERNRunner
    from discern.experiment.train import run_train

    loaded, failed = take_over_edits(loaded)
    results = DISCERNRunner(debug=_debug(), ray_address=ray_address)(func=run_train, parameters=loaded, kwargs={})
    return _close({**results, **failed}, f"discern project --reference {_reference(loaded, results)} {parameters}")


@cli.command(short_help="Reconstruct the cells with the trained model.")
@_parameters_file
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
    type=_FilePath(),
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
@_dry_run
@_ray
@_everywhere
def project(
    parameters: Path,
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
    """Reconstruct the cells of each experiment with its trained model."""
    targets = [_target(text) for text in metadata]
    loaded = _load(parameters)
    if filename is not None:
        _check_file(filename)
    chosen, suffix = _layers(layers, intervals), f".{suffix.removeprefix('.')}"
    if dry_run:
        from discern.experiment import forecast

        options = (targets, reference, all_batches, chosen, dtype, suffix)
        return _forecast(loaded, lambda name: forecast.of_project(loaded, name, *options))
    _log_to(loaded.experiments_dir)
    _start_tensorflow()
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
    results = DISCERNRunner(debug=_debug(), ray_address=ray_address)(
        func=run_projection, parameters=loaded, kwargs=kwargs
    )
    return _close({**results, **failed}, "scanpy.read_h5ad(FILE): X and layers['estimated_counts'] are log-normalised")


@cli.command(short_help="Compare reconstructed cells with real ones held out.")
@_parameters_file
@click.option("--reference", metavar="BATCH", help="Batch to project to; by default the one with most genes per cell.")
@click.option("--source", multiple=True, metavar="BATCH", help="Batch to project; by default all others. Repeatable.")
@click.option("--label", metavar="COLUMN", help="obs column of the cell types; by default it is looked for.")
@click.option(
    "--genes",
    multiple=True,
    metavar="GENE,...",
    help="Marker genes to show, by symbol or id: measured, reconstructed, in real cells.",
)
@_everywhere
def evaluate(
    parameters: Path, reference: str | None, source: tuple[str, ...], label: str | None, genes: tuple[str, ...]
) -> int:
    """Compare reconstructed cells of each experiment with real ones that training did not see."""
    loaded = _load(parameters)
    _log_to(loaded.experiments_dir)
    _start_tensorflow()
    from discern.evaluation.results import EvaluationResult, summary
    from discern.experiment import evaluate as evaluation
    from discern.experiment.edits import take_over_edits
    from discern.experiment.runner import DISCERNRunner

    kwargs = {"reference": reference, "sources": source, "label": label, "genes": _listed(genes)}
    loaded, failed = take_over_edits(loaded)
    results = DISCERNRunner(debug=_debug())(func=evaluation.evaluate, parameters=loaded, kwargs=kwargs)
    for name, paths in results.items():
        if not isinstance(paths, Exception):
            figures = json.loads((paths[0].parent / "evaluation.json").read_text())
            click.echo(page(f"{name}:\n{summary(EvaluationResult.from_json(figures))}"))
    return _close({**results, **failed}, "open report.html in a browser")


@cli.command(short_help="Test which genes differ between groups of cells.")
@click.argument("cells", metavar="CELLS.h5ad", type=_FilePath())
@click.option("--groupby", required=True, metavar="COLUMN", help="obs column of the groups.")
@click.option("--group", required=True, metavar="NAME", help="Group to compare.")
@click.option("--reference", default="rest", metavar="NAME", help="Group to compare with; by default all other cells.")
@click.option("--sample", metavar="COLUMN", help="obs column of replicates (donors, mice); by default cells are these.")
@click.option(
    "--batch", default="batch", show_default=True, metavar="COLUMN", help="obs column of batches to compare within."
)
@click.option("--layer", metavar="NAME", help="Layer with the measured cells; by default `measured`.")
@click.option("--output", type=_FilePath(), default="compare.csv", show_default=True, help="Table to write.")
@_everywhere
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
@_parameters_file
@click.option(
    "--filename",
    multiple=True,
    required=True,
    type=_FilePath(),
    help="Raw file of the new cells. Repeatable.",
)
@click.option("--freeze", is_flag=True, help="Train only the layers whose shapes changed.")
@click.option("--fill-missing-genes", is_flag=True, help="Take genes that the new cells lack as zero.")
@_everywhere
def onlinetraining(parameters: Path, filename: tuple[Path, ...], freeze: bool, fill_missing_genes: bool) -> int:
    """Train a trained model on new cells."""
    loaded = _load(parameters)
    for file in filename:
        _check_file(file)
    _log_to(loaded.experiments_dir)
    _start_tensorflow()
    from discern.experiment.edits import take_over_edits
    from discern.experiment.online import OnlineDISCERNRunner, online_training

    kwargs = {"filename": filename, "freeze": freeze, "fill_missing_genes": fill_missing_genes}
    loaded, failed = take_over_edits(loaded)
    results = OnlineDISCERNRunner(debug=_debug(), gpus=None)(func=online_training, parameters=loaded, kwargs=kwargs)
    return _close({**results, **failed}, f"discern project --reference {_reference(loaded, results)} {parameters}")


@cli.command()
@_parameters_file
@click.option("--resume", is_flag=True, help="Go on with the newest search of each experiment.")
@_everywhere
def optimize(parameters: Path, resume: bool) -> int:
    """Search for better hyperparameters."""
    loaded = _load(parameters)
    _log_to(loaded.experiments_dir)
    _start_tensorflow()
    from discern.experiment.edits import take_over_edits
    from discern.search import tuner

    loaded, failed = take_over_edits(loaded)
    return _close({**tuner.optimize(loaded, resume=resume), **failed})


@cli.command(short_help="Do all of it with cells that ship with the program.")
@click.option(
    "--output",
    type=_FilePath(),
    default="discern-demo",
    show_default=True,
    help="Folder for all that is written.",
)
@_everywhere
def demo(output: Path) -> None:
    """Process, train and project the shipped cells, and compare the result with real ones."""
    _start_tensorflow()
    from discern.experiment.demo import run_demo

    output.mkdir(parents=True, exist_ok=True)
    _log_to(output)
    click.echo(page(run_demo(output)))


@cli.command(short_help="Look at raw files, write a parameter file that fits.")
@click.argument("files", metavar="A.h5ad B.h5ad ...", nargs=-1, required=True, type=_FilePath())
@click.option("--batch-column", metavar="COLUMN", help="obs column with the batch; by default it is looked for.")
@click.option("--reference", metavar="BATCH", help="Batch to project to; by default the one with most genes per cell.")
@click.option("--label", metavar="COLUMN", help="obs column of the cell types; by default it is looked for.")
@click.option("--output", type=_FilePath(), default="parameters.json", show_default=True, help="File to write.")
@_everywhere
def init(
    files: tuple[Path, ...], batch_column: str | None, reference: str | None, label: str | None, output: Path
) -> None:
    """Write a parameter file that fits raw files, and say what was chosen and why."""
    from discern.experiment import init as inspection

    click.echo(page(inspection.write_parameters(files, output, batch_column, reference, label)))


@cli.command(short_help="Say what was run and what can be run next.")
@click.argument("experiment", metavar="EXPERIMENT", type=_FilePath())
@_everywhere
def info(experiment: Path) -> None:
    """Say what an experiment's folder holds, what was run, and what can be run next."""
    from discern.experiment import info as inspection

    click.echo(page(inspection.describe(experiment)))


@cli.command(short_help="Write a part of a result to a smaller file.")
@click.argument("file", metavar="FILE.h5ad", type=_FilePath())
@click.option("--output", type=_FilePath(), required=True, metavar="H5AD", help="File to write, .h5ad or .zarr.")
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
@_everywhere
def subset(file: Path, output: Path, cells: tuple[str, ...], genes: tuple[str, ...], layers: str | None) -> None:
    """Write some cells, genes and layers of a result to a smaller file."""
    from discern.experiment.subset import write_subset

    names = [name.strip() for text in genes for name in (text.split(",") if not Path(text).is_file() else [text])]
    kept = None if layers is None else [layer.strip() for layer in layers.split(",") if layer.strip()]
    write_subset(file, output, cells, [name for name in names if name], kept)
    _LOGGER.info(
        "next: scanpy.read_h5ad(%r)" if output.suffix == ".h5ad" else "next: anndata.read_zarr(%r)", str(output)
    )


@cli.command(short_help="Print the JSON Schema of parameter files.")
@_everywhere
def schema() -> None:
    """Print the JSON Schema of PARAMETERS.json, for editors."""
    from discern.config import reading

    click.echo(json.dumps(reading.schema(), indent=2))


@click.command(cls=_Script)
@click.argument("files", metavar="A.json B.json ...", nargs=-1, required=True, type=_FilePath())
def merge_parameter(files: tuple[Path, ...]) -> None:
    """Print one parameter file with the experiments of all files."""
    from discern.config import reading

    click.echo(json.dumps(reading.merge_parameters(files), indent=4))


def _load(parameters: Path) -> Parameters:
    from discern.config import reading

    if not parameters.exists():  # the file in the folder of an experiment that was being replaced
        recover(parameters.parent)
    return reading.load_parameters(parameters)


def _log_to(folder: Path) -> None:
    """Append all messages to `discern.log` in a folder until the command ends."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; `discern process` makes it")
    root = click.get_current_context().find_root()
    if root.with_resource(logs.to_file(folder / "discern.log")):
        root.ensure_object(_Settings).log = folder / "discern.log"
    _LOGGER.debug("discern %s: %s", __version__, " ".join(sys.argv))
    _LOGGER.debug("versions: %s", _versions())


def _versions() -> str:
    installed = ((name, importlib.metadata.version(name)) for name in ("tensorflow", "keras", "anndata"))
    versions = [("discern", __version__), ("python", platform.python_version()), *installed]
    return ", ".join(f"{name} {version}" for name, version in versions)


def _start_tensorflow() -> None:
    with logs.without_native_messages():
        import tensorflow

        tensorflow.config.list_physical_devices()


def _debug() -> bool:
    return click.get_current_context().find_root().ensure_object(_Settings).debug


def _forecast(parameters: Parameters, lines: Callable[[str], Iterable[str]]) -> int:
    """Print what would be done with each experiment; returns the exit code."""
    results: dict[str, Exception] = {}
    for name in parameters.experiments:
        try:
            click.echo(page("\n".join([f"{name}: nothing is done (--dry-run)", *lines(name)])))
        except Exception as error:  # noqa: BLE001 (reported for each experiment at the end)
            results[name] = error
    return _close(results)


def _listed(texts: Sequence[str]) -> list[str]:
    """Return what stands between commas, in all texts."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def _reference(parameters: Parameters, results: Mapping[str, Any]) -> str:
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

    chosen = [layer.strip() for layer in text.split(",") if layer.strip()]
    return [*chosen, *(name for name in INTERVALS if name not in chosen)] if intervals else chosen


def _target(text: str) -> tuple[str | None, str | None]:
    from discern.data.annotation import parse_metadata

    try:
        return parse_metadata(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"--{error}") from None


def _check_file(path: Path) -> None:
    from discern.runtime.foreign import check_input

    if not path.exists():
        raise MissingFileError(f"--filename: {path}: no such file")
    check_input(path)


def _close(results: Mapping[str, Path | list[Path] | Exception], following: str | None = None) -> int:
    """Say what was written and what comes next, or what went wrong; returns the exit code."""
    settings = click.get_current_context().find_root().ensure_object(_Settings)
    codes = {_tell(error, settings, f"{name}: ") for name, error in results.items() if isinstance(error, Exception)}
    written = {name: result for name, result in results.items() if not isinstance(result, Exception)}
    for name, paths in written.items():
        _LOGGER.info("%s: wrote %s", name, ", ".join(map(str, paths if isinstance(paths, list) else [paths])))
    if written and following:
        _LOGGER.info("next: %s", following)
    return min(codes, default=0)


def _finish_output(code: int) -> int:
    """Write what is still to be printed; returns the exit code, another one if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python will try again at its end
        if not isinstance(error, BrokenPipeError):
            click.echo(f"error: the output cannot be written: {cause_in_system(error) or error}", err=True)
            return code or USER_MISTAKE
    return code


def _tell(error: Exception, settings: _Settings, subject: str = "") -> int:
    """Report an exception and return the exit code for it."""
    if isinstance(error, UserError):
        _LOGGER.error("%s%s", subject, error, exc_info=error if settings.debug else None)
        return USER_MISTAKE
    if isinstance(error, BrokenPipeError):  # nobody reads what is printed any more
        return FAILURE
    if reason := "not enough memory" if isinstance(error, MemoryError) else cause_in_system(error):
        _LOGGER.error("%scannot go on: %s", subject, reason, exc_info=error)
        return USER_MISTAKE
    more = f"the traceback is in {settings.log}" if settings.log else "--debug shows the traceback"
    _LOGGER.error("%s%s: %s; %s", subject, type(error).__name__, error, more, exc_info=error)
    return FAILURE
