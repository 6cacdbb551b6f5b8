"""Adapting as the command line has it: told stage by stage, with a bar; for `adapt`, and for `convert --adapt`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blurify.allocation import keep_freed_memory
from blurify.cli import console

if TYPE_CHECKING:
    from torch import nn

    from blurify.spec.adapted import Adapted, Stage


def kept_at(output: Path) -> Path:
    """Where the state of the run that is to write `output` is kept, until it is done."""
    return output.expanduser().parent / f".{output.name}.adapting"


def taught(
    original: nn.Module, converted: nn.Module, data: Path, output: Path, *, quiet: bool, **options: Any
) -> Adapted:
    """Adapt `converted` itself as `blurify.adapt` does, with a line for every stage and a bar; what was done.

    Args:
        original, converted, data: as there.
        output: the file that is to be written; beside it stands the state of a run that is stopped.
        quiet: say nothing.
        options: of `blurify.adapt`.
    """
    import blurify
    from blurify.tuning.adapting import adapt as adapting

    keep_freed_memory()
    keep = kept_at(output)
    if keep.exists() and not quiet:
        console.say(f"going on with a run that was stopped (delete its state, {keep}, to begin anew)")
    with contextlib.nullcontext() if quiet else console.bar("adapting") as watch:
        adapting(
            original, converted, data, **options, keep=keep, inplace=True, watch=watch, told=None if quiet else _told
        )
    adapted = blurify.adapted_of(converted)
    assert adapted is not None
    return adapted


def say_notes(adapted: Adapted) -> None:
    """What a user may want to know of it."""
    for note in adapted.notes:
        console.say(f"note: {note}", style="yellow")


def next_command(model: str, output: Path, how: Sequence[str] = (), how_written: Sequence[str] = ()) -> str:
    """What to do with an adapted model.

    Args:
        model, output: what it was made from, and the file.
        how: the options that it takes to read the first.
        how_written: those that the file still takes.
    """
    words = [model, str(output), *how, *(word for word in how_written if word not in how)]
    return f"next: blurify measure {shlex.join(words)} --data DIR, on pictures that it was not adapted on"


def _told(stage: Stage) -> None:
    """A stage ended."""
    style = {"converted": "", "distil": "bold"}.get(stage.name, "")
    console.say(stage.line, style=style if stage.kept else "yellow")
