"""The command line: commands that parse, check and call one function."""

from discern.cli.commands import cli, merge_parameter

__all__ = ["cli", "merge_parameter"]
