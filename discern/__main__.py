"""Entry points of the scripts `discern` and `merge_parameter`; `python -m discern` is the former."""

from __future__ import annotations

try:
    from discern.cli import commands as cli
except KeyboardInterrupt:
    raise SystemExit(130) from None


def main() -> None:
    """Run `discern`."""
    cli.cli(prog_name="discern")


def merge_parameter() -> None:
    """Run `merge_parameter`."""
    cli.merge_parameter(prog_name="merge_parameter")


if __name__ == "__main__":
    main()
