"""What to do next, as command lines to copy: each stands on a line of its own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blurify.cli import console

if TYPE_CHECKING:
    from blurify.spec.plan import Plan


def after_inspect(model: str, recipe: Sequence[str], how: Sequence[str], plan: Plan) -> None:
    """A model was looked at: convert it, or look at it by another recipe.

    Args:
        model: what the user called it.
        recipe: the options that say how to convert, as they were given.
        how: those that it takes to read the model.
        plan: what would be done.
    """
    if not plan.sites:
        return
    if plan.converted:
        _say("next", ["convert", model, *recipe, *how, "-o", "OUT"], "other ways: blurify recipes")
    else:
        console.say("nothing would be converted by this recipe; others: blurify recipes", style="bold")


def after_convert(model: str, written: str, how: Sequence[str], how_written: Sequence[str], *, adapt: bool) -> None:
    """A model was converted: see what it gained, once it is adapted where it needs that.

    Args:
        model, written: the original and the file, as the user wrote them.
        how: the options that it takes to read the original.
        how_written: those that the file still takes.
        adapt: it was said already that its weights are to be adapted first.
    """
    options = [*how, *(word for word in how_written if word not in how)]
    _say("then" if adapt else "next", ["measure", model, written, *options, "--data", "DIR"], "before and after")


def _say(when: str, words: Sequence[str], remark: str) -> None:
    console.say_whole(f"{when}: {shlex.join(['blurify', *words])}   # {remark}", "bold")
