"""What became of the rest of a training checkpoint: carried into the new file, or left out, in a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blurify.cli import console

if TYPE_CHECKING:
    from blurify.files.rest import Rest


def say_rest(rest: Rest | None, output: Path, *, plain: bool = False, adapted: bool = False) -> None:
    """Say what of the rest is in a file that was written, and what is not.

    Args:
        rest: of the file that was read.
        output: the file that was written.
        plain: only tensors were.
        adapted: the weights were changed, so that an optimizer's state is not theirs any more.
    """
    found = rest_as_json(rest, output, plain=plain)
    if found is None:
        return
    if found["carried"]:
        stale = " (an optimizer's state is that of the weights before they were adapted)" if adapted else ""
        console.say(f"carried over as it was: {_few(found['carried'])}{stale}")
    if found["left_out"]:
        reasons = {why for why in found["left_out"].values() if why}
        why = f" ({next(iter(reasons))})" if len(reasons) == 1 else ""
        console.say(f"left out: {_few(list(found['left_out']))}{why}", style="yellow")


def rest_as_json(rest: Rest | None, output: Path, *, plain: bool = False) -> dict[str, Any] | None:
    """The same for JSON: the names that were carried over, and why others were left out."""
    if rest is None or not rest.others:
        return None
    from blurify.files import formats

    if plain or not formats.for_writing(output).keeps_rest(output):
        why = "--plain writes only tensors" if plain else "only files of torch, such as .pt, have room for it"
        return {"carried": [], "left_out": dict.fromkeys(rest.others, why)}
    entries, left = rest.made
    return {"carried": [name for name in rest.others if name in entries], "left_out": dict(left)}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
