"""What a plan says of positions: how far features drift, where branches are apart, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blurify.cli import console

if TYPE_CHECKING:
    from blurify.spec.plan import Plan

_DENSE = "its outputs have positions (masks, boxes, keypoints, maps)"


def drifts(plan: Plan) -> bool:
    """Whether any feature map ends up elsewhere than in the original."""
    return plan.alignment is not None and plan.alignment.largest > 0


def print_drift(plan: Plan) -> None:
    """How far features drift, and where branches meet that are apart; nothing where no site is converted."""
    for line in drift_lines(plan):
        console.say(line)


def drift_lines(plan: Plan) -> list[str]:
    """The same, a line each."""
    from blurify.spec.alignment import in_words

    alignment = plan.alignment
    if not plan.converted:
        return []
    if alignment is None:
        return ["drift: not known: positions could not be followed through this model"]
    if not alignment.largest:
        return ["drift: none, every feature map is where the original has it"]
    lines = [f"drift: features end up to {alignment.largest:g} input pixels from where the original has them"]
    meetings = alignment.meetings
    if meetings:
        first = meetings[0]
        apart = " and ".join(in_words(drift) for drift in first.drifts)
        places = f"{len(meetings)} places, first" if len(meetings) > 1 else "one place,"
        lines.append(f"drift: branches that meet are apart at {places} {first.place} ({apart} input pixels)")
    return lines


def suggestion(plan: Plan) -> str:
    """What to say of a model whose outputs have positions that would move; '' of any other."""
    alignment = plan.alignment
    if alignment is None or plan.recipe.aligned or not alignment.outputs or not drifts(plan):
        return ""
    moved = alignment.outputs_drift
    what = f"move by up to {moved:g} input pixels" if moved else "stay, but features on the way do not"
    return f"{_DENSE}, which {what}: --recipe aligned keeps everything in place"
