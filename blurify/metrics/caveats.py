"""When a difference of two models is not what it looks like: smaller changes of smaller probabilities, steady nonsense.

Figures of steadiness say nothing by themselves:

- The change of a probability under a shift is at most that probability. A network that is hardly sure of anything
  changes little, whatever the shift does to it, and one that has become surer changes more.
- An answer that is always the same never changes. Steadiness counts where the answers are (still) right: by the labels
  where there are any, else by the answers of the first model, the original.

Such a difference is given with a caveat, and is called neither better nor worse. To tell a loss that matters from one
that many pictures merely make certain, it must be clear and more than a tenth of what there was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blurify.metrics.differences import Difference

LESS_SURE, MORE_SURE, OTHER_ANSWERS = "less sure", "more sure", "other answers"
MEANINGS = {
    LESS_SURE: "the other model's top probability is lower by more than a tenth: smaller probabilities change less, "
    "which is not better",
    MORE_SURE: "the other model's top probability is higher by more than a tenth: larger probabilities change more, "
    "which is not worse",
    OTHER_ANSWERS: "the other model's answers are right less often by more than a tenth (without labels: are the "
    "first model's less often under shifts, or on less than half of the pictures): to be steady in them is not better",
}

_MUCH = 0.1
_HALF = 0.5  # of the answers: below that it is another function, however unsteady the original is itself
_CHANGES = {
    "consistency.pixel_change": "consistency.confidence",
    "half_patch.half_change": "half_patch.confidence",
    "fractional.half_change": "fractional.confidence",
    "fractional.quarter_change": "fractional.confidence",
    "fractional.worst_change": "fractional.confidence",
}
"""Changes of a probability, and the figure that is that probability."""

_STEADY = {
    **dict.fromkeys(("consistency.agreement", "worst_case.steady", "half_patch.half", "half_patch.grid"), 1),
    **dict.fromkeys(("half_patch.whole", "fractional.half", "fractional.quarter", "fractional.grid"), 1),
    **dict.fromkeys(("fractional.worst", "stability.agreement"), 1),
    **dict.fromkeys(("consistency.pixel_flips", "stability.flip_rate", "stability.mfr", *_CHANGES), -1),
}
"""Figures of steadiness, or the beginnings of their names: 1 where more is better, -1 where less is."""


def caveats(found: Mapping[str, Difference], before: Mapping[str, float]) -> dict[str, str]:
    """The caveat of each difference that has one, by the figure's name.

    Args:
        found: differences of two models.
        before: the first model's figures; where the models were compared, also 'agreement.consistent', and
            'agreement.same', how often both give the same answer.
    """
    if "consistency.accuracy" in found:
        other_answers = _fell("consistency.accuracy", found, before)
    else:
        other_answers = _fell("agreement.consistent", found, before) or before.get("agreement.same", 1.0) < _HALF
    result = {}
    for name, difference in found.items():
        sign = _STEADY.get(name) or _STEADY.get(name.rpartition(".")[0])
        if sign is None:
            continue
        better = difference.value * sign > 0
        sure = _CHANGES.get(name)
        if better and other_answers:
            result[name] = OTHER_ANSWERS
        elif sure is not None and better and _fell(sure, found, before):
            result[name] = LESS_SURE
        elif sure is not None and difference.value > 0 and _rose(sure, found, before):
            result[name] = MORE_SURE
    return result


def _fell(name: str, found: Mapping[str, Difference], before: Mapping[str, float]) -> bool:
    """Whether a figure is lower, clearly and by more than a tenth of what it was."""
    difference = found.get(name)
    return difference is not None and difference.clear and difference.value < -_MUCH * before[name]


def _rose(name: str, found: Mapping[str, Difference], before: Mapping[str, float]) -> bool:
    difference = found.get(name)
    return difference is not None and difference.clear and difference.value > _MUCH * before[name]
