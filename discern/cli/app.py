"""What all commands share: options, one-line errors, exit codes, the log in the experiment's folder."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from discern import __version__
from discern.errors import MissingFileError, UserError
from discern.runtime import logs
from discern.runtime.atomic import cause_in_system
from discern.runtime.processes import Terminated, ending_cleanly
from discern.runtime.text import message

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FAILURE, _USER_MISTAKE, _INTERRUPTED = 1, 2, 130

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


_P = ParamSpec("_P")
_R = TypeVar("_R")


class _OneLineErrors(click.Command):
    """Shows every error in one line; mistakes of the user exit with 2, faults of the program with 1."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = super().main(*args, **(kwargs | {"standalone_mode": False}))
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see `{context.command_path} --help`)" if context else ""
            click.echo(message(f"error: {error.format_message()}{hint}"), err=True)
            code = error.exit_code
        except click.Abort:
            click.echo("error: interrupted: nothing was changed", err=True)
            code = _INTERRUPTED
        sys.exit(_finish_output(code if isinstance(code, int) else 0))

    def invoke(self, ctx: click.Context) -> object:
        settings = ctx.ensure_object(_Settings)
        try:
            with ending_cleanly():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt as interruption:
            told = isinstance(interruption, Terminated)
            then = _AFTER_INTERRUPTION.get(ctx.invoked_subcommand or "", _STARTS_AGAIN)
            _LOGGER.error("%s: %s", "told to end" if told else "interrupted", then)
            return 128 + interruption.signal_number if isinstance(interruption, Terminated) else _INTERRUPTED
        except Exception as error:  # noqa: BLE001 (the last place where it can be told)
            return _tell(error, settings)


class _Command(click.Command):
    """Sets up the messages once all options are known, wherever they stood."""

    def invoke(self, ctx: click.Context) -> object:
        settings = ctx.find_root().ensure_object(_Settings)
        if settings.debug:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
        logs.configure(-1 if settings.quiet else max(settings.verbose, int(settings.debug)), settings.debug)
        return super().invoke(ctx)


class FilePath(click.Path):
    """A path that a file system can have."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what is too long for a file system."""
        encoded = os.fsencode(value)
        if not encoded or len(encoded) > 4000 or any(len(part) > 255 for part in encoded.split(b"/")):
            self.fail(f"expected a path, got one of {len(encoded)} bytes", param, ctx)
        return super().convert(value, param, ctx)


_IN_ORDER = ("init", "process", "train", "project", "evaluate", "info", "export", "onlinetraining", "optimize")


_OTHER_NAMES = {"preprocess": "process"}


class Group(_OneLineErrors, click.Group):
    """Lists the commands in the order of work, each under one name."""

    command_class = _Command

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name, or by one that it also has."""
        return super().get_command(ctx, _OTHER_NAMES.get(cmd_name, cmd_name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of work."""
        first = [name for name in _IN_ORDER if name in self.commands]
        return [*first, *(name for name in self.commands if name not in first)]


class Script(_OneLineErrors, _Command):
    """A command that is a program of its own."""


def _set(context: click.Context, option: click.Parameter, value: bool | int | Path) -> None:
    settings = context.find_root().ensure_object(_Settings)
    before = getattr(settings, str(option.name))
    setattr(settings, str(option.name), value or before if isinstance(value, bool) else value + before)


def everywhere(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Add the options that may stand before and after a command's name."""
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


ray_option = click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Hand each experiment to the Ray cluster with this head node (HOST:PORT, or auto).",
)


dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be read and made, and do nothing.")


parameters_argument = click.argument("parameters", metavar="PARAMETERS.json", type=FilePath())


def log_to(folder: Path) -> None:
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


def load_tensorflow() -> None:
    """Import TensorFlow, without the messages of its libraries."""
    with logs.without_native_messages():
        import tensorflow

        tensorflow.config.list_physical_devices()


def is_debug() -> bool:
    """Return whether the command was given `--debug`."""
    return click.get_current_context().find_root().ensure_object(_Settings).debug


def close(results: Mapping[str, Path | list[Path] | Exception], following: str | None = None) -> int:
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
            return code or _USER_MISTAKE
    return code


def _tell(error: Exception, settings: _Settings, subject: str = "") -> int:
    """Report an exception and return the exit code for it."""
    if isinstance(error, UserError):
        _LOGGER.error("%s%s", subject, error, exc_info=error if settings.debug else None)
        return _USER_MISTAKE
    if isinstance(error, BrokenPipeError):  # nobody reads what is printed any more
        return _FAILURE
    if reason := "not enough memory" if isinstance(error, MemoryError) else cause_in_system(error):
        _LOGGER.error("%scannot go on: %s", subject, reason, exc_info=error)
        return _USER_MISTAKE
    more = f"the traceback is in {settings.log}" if settings.log else "--debug shows the traceback"
    _LOGGER.error("%s%s: %s; %s", subject, type(error).__name__, error, more, exc_info=error)
    return _FAILURE
