"""The commands by name: what the help lists of each, and the command itself, imported when it is asked for.

Importing all of them takes twice as long as everything else that `blurify --help` does.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandInfo

COMMANDS = {
    "inspect": (
        "List where a model subsamples, what would be done there, and what it costs.",
        "blurify inspect torchvision/vgg16 --recipe light --json",
    ),
    "recipes": (
        "List the recipes that --recipe takes by name; with a NAME print it, as TOML.",
        "blurify recipes light > mine.toml",
    ),
    "convert": (
        "Convert a model, prove that nothing else changed, and write it: same class, same weights, less aliasing.",
        "blurify convert model.pt -o model_aa.pt --arch timm/resnet18",
    ),
    "adapt": (
        "Adapt a converted model: the original teaches it, on unlabelled pictures, to answer as before.",
        "blurify adapt model_aa.pt --data photos -o model_adapted.pt --minutes 10",
    ),
    "check": (
        "Say whether the plan of a converted model is still in force, one line a problem. Exit code 1: it is not.",
        "blurify check model_aa.pt --json",
    ),
    "diff": (
        "Say what differs between two plans: sites, what is done at them, filters, placement, costs.",
        "blurify diff plan.json model_aa.pt --json",
    ),
    "revert": (
        "Write the original of a converted model: same class, the weights that it has now, no blurs.",
        "blurify revert model_aa.pt -o model.pt",
    ),
    "fuse": (
        "Write a converted model for deployment: the same outputs by fewer operations, compared before it is written.",
        "blurify fuse model_aa.pt -o model_aa.onnx",
    ),
    "measure": (
        "Measure how shift-invariant a model is; with MODEL2 or --convert side by side, on the same pictures and "
        "crops.",
        "blurify measure timm/resnet18 --convert --data photos --images 500",
    ),
    "certify": (
        "Certify that circular shifts change nothing: all outputs equal to 1e-5, maps after shifting them back.",
        "blurify certify torchvision/resnet18 --recipe aps --circular --random",
    ),
    "report": (
        "Show how shift-invariant a model is, before and after: one page to read in a browser, without any network.",
        "blurify report timm/resnet18 --convert --data photos -o report.html",
    ),
    "demo": (
        "The whole story in a minute: sites, proof, and how often a shift changes the answer, on embedded digits.",
        "blurify demo --json",
    ),
    "zoo": (
        "Convert every architecture that matches, in parallel, each with its proof; a rerun does only what is missing.",
        "blurify zoo 'timm/resnet*' -o converted -j 2 --random",
    ),
}
"""(first paragraph of its docstring, example) of each; it is the function of its name in the module of its name."""

_listing: contextvars.ContextVar[bool] = contextvars.ContextVar("listing", default=False)


class Commands(TyperGroup):
    """A group whose members are imported when they are run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment]  # their names, for "did you mean"

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them; None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        if _listing.get():
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name][0], rich_markup_mode=self.rich_markup_mode)
        return command(cmd_name, self.rich_markup_mode)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help of all, which needs no more of each than its line."""
        with _only_lines():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Completion of their names, likewise."""
        with _only_lines():
            return super().shell_complete(ctx, incomplete)


def command(name: str, rich_markup_mode: Any) -> TyperCommand:
    """One command, imported."""
    function = getattr(importlib.import_module(f"blurify.cli.{name}"), name)
    info = CommandInfo(name=name, callback=function, epilog=f"Example: {COMMANDS[name][1]}")
    made = typer.main.get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=rich_markup_mode)
    assert isinstance(made, TyperCommand)
    return made


@contextlib.contextmanager
def _only_lines() -> Iterator[None]:
    token = _listing.set(True)
    try:
        yield
    finally:
        _listing.reset(token)
