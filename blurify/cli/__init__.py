"""The command line: parses, calls the library, prints. Commands import torch inside, so that `--help` is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from blurify.cli import console, signals
from blurify.cli.commands import Commands
from blurify.versions import version_of


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"blurify {version_of('blurify') or 'unknown (not installed)'}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Anti-alias any PyTorch model: a low-pass filter before every subsampling step, the same weights, and a proof."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def build_app() -> typer.Typer:
    """The typer application; its help is boxed on a terminal and plain in a pipe."""
    app = typer.Typer(
        name="blurify",
        cls=Commands,
        rich_markup_mode="rich" if console.on_terminal() else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(
        invoke_without_command=True,
        epilog="Start with: blurify demo, then: blurify inspect timm/resnet18",
    )(_root)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: what follows the program's name; `sys.argv[1:]` where None.

    Returns:
        The exit code: 0 done, 1 something failed, 2 bad usage or input, 130 interrupted, 143 or 129 asked to end by
        SIGTERM or SIGHUP, 141 the reader of a pipe left.
    """
    with signals.watched() as stop, console.one_line_errors(stop) as outcome:
        command = typer.main.get_command(build_app())
        given = list(sys.argv[1:] if arguments is None else arguments)
        code = command.main(given, prog_name="blurify", standalone_mode=False, obj=tuple(given))
        sys.stdout.flush()  # so that a closed pipe shows here and not at exit
        outcome.code = code if isinstance(code, int) else 0
    return outcome.code
