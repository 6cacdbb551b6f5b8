"""Differences that are not what they look like: lost confidence, and steady nonsense."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from blurify.metrics import Preprocessing, Subject, TensorPictures, measure
from blurify.metrics.caveats import LESS_SURE, MEANINGS, MORE_SURE, OTHER_ANSWERS
from blurify.metrics.differences import agreement_with, differences
from blurify.metrics.results import Agreement, Consistency, Estimate, Fractional, HalfPatch, Measurement, WorstCase

COUNT = 40
GEOMETRY = Preprocessing((12, 12), (16, 16), 3, (0.0,) * 3, (1.0,) * 3)


def answers(share: float) -> Estimate:
    yes = round(share * COUNT)
    return Estimate.of([1.0] * yes + [0.0] * (COUNT - yes))


def numbers(mean: float) -> Estimate:
    """About that mean, by up to a twentieth of it."""
    return Estimate.of([mean * (1 + 0.05 * (-1) ** n * n / COUNT) for n in range(COUNT)], yes_or_no=False)


def measured(
    name: str = "a",
    *,
    steady: float = 0.5,
    change: float = 0.1,
    confidence: float = 0.8,
    accuracy: float | None = None,
    agreed: tuple[float, float] | None = None,
) -> Measurement:
    same, moved, sure = answers(steady), numbers(change), numbers(confidence)
    return Measurement(
        name, "d", COUNT, {"pictures": "x"},
        consistency=Consistency(
            same, moved, answers(1 - steady), None if accuracy is None else answers(accuracy), confidence=sure
        ),
        worst_case=WorstCase((0.0,), (0.0,), same),
        half_patch=HalfPatch((8, 8), same, moved, same, same, confidence=sure),
        fractional=Fractional(4, same, moved, same, moved, same, same, moved, sure),
        agreement=None if agreed is None else Agreement(
            COUNT, same, consistent=answers(agreed[0]), consistent_and_same=answers(agreed[1]), original="a"
        ),
    )  # fmt: skip


CHANGES = {
    "consistency.pixel_change", "half_patch.half_change", "fractional.half_change", "fractional.quarter_change",
    "fractional.worst_change",
}  # fmt: skip
STEADY = {
    "consistency.agreement", "consistency.pixel_flips", "worst_case.steady", "half_patch.half", "half_patch.grid",
    "half_patch.whole", "fractional.half", "fractional.quarter", "fractional.grid", "fractional.worst",
}  # fmt: skip


def doubts(first: Measurement, second: Measurement) -> dict[str, str]:
    found = differences(first, second)
    assert not any(one.clear for one in found.values() if one.caveat)
    return {name: one.caveat for name, one in found.items() if one.caveat}


def test_a_smaller_change_of_a_smaller_probability_is_not_better() -> None:
    assert doubts(measured(), measured(change=0.05, confidence=0.4)) == dict.fromkeys(CHANGES, LESS_SURE)
    assert doubts(measured(), measured(change=0.2, confidence=0.99)) == dict.fromkeys(CHANGES, MORE_SURE)
    # The other way round there is nothing to excuse.
    assert doubts(measured(), measured(change=0.2, confidence=0.4)) == {}
    assert doubts(measured(), measured(change=0.05, confidence=0.99)) == {}


def test_a_little_less_sure_does_not_count_however_certain_it_is() -> None:
    """By 5% of what it was, on each picture: the change is halved."""
    first, second = measured(), measured(change=0.05, confidence=0.76)
    found = differences(first, second)
    assert found["consistency.confidence"].clear and found["consistency.pixel_change"].clear
    assert doubts(first, second) == {}


def test_steady_in_wrong_answers_is_not_better() -> None:
    steadier = {"steady": 0.9, "change": 0.05}
    wanted = dict.fromkeys(CHANGES | STEADY, OTHER_ANSWERS)
    assert doubts(measured(accuracy=0.9), measured(accuracy=0.3, **steadier)) == wanted
    assert doubts(measured(), measured(agreed=(0.9, 0.2), **steadier)) == wanted
    # Labels know better than the original; and a loss within a tenth is for the user to weigh.
    assert doubts(measured(accuracy=0.5), measured(accuracy=0.9, agreed=(0.9, 0.2), **steadier)) == {}
    assert doubts(measured(), measured(agreed=(0.9, 0.85), **steadier)) == {}
    assert doubts(measured(), measured(**steadier)) == {}
    # An original that is hardly steady itself is no measure; to agree with it on less than half of the pictures is.
    found = doubts(measured(), replace(second := measured(agreed=(0.5, 0.45), **steadier), agreement=replace(
        second.agreement, same=answers(0.4)
    )))  # fmt: skip
    assert found == wanted
    # What got worse got worse.
    assert doubts(measured(steady=0.9, accuracy=0.9), measured(steady=0.5, change=0.2, accuracy=0.3)) == {}


def test_the_agreement_must_be_with_the_first_model() -> None:
    second = measured(agreed=(0.9, 0.2), steady=0.9)
    other = measured("another")
    assert agreement_with(measured(), second) is second.agreement and agreement_with(other, second) is None
    assert doubts(other, second) == {}
    unnamed = replace(second, agreement=replace(second.agreement, original=""))
    assert agreement_with(other, unnamed) is not None


class Bright(nn.Module):
    """Which colour a few pixels have most of, as sure of it as its `gain`; or always the first."""

    def __init__(self, gain: float, blind: bool = False) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.blind = blind

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gain * x[:, :, 5:8, 5:8].mean((2, 3))
        return torch.eye(3)[0].expand_as(logits) * self.gain if self.blind else logits


@pytest.mark.parametrize(
    ("other", "figure", "caveat"),
    [
        (Bright(1.0), "consistency.pixel_change", LESS_SURE),
        (Bright(15.0), "consistency.pixel_change", MORE_SURE),
        (Bright(60.0, blind=True), "consistency.agreement", OTHER_ANSWERS),
        (Bright(60.0, blind=True), "fractional.worst_change", OTHER_ANSWERS),
    ],
)
def test_of_networks_that_are_known(other: nn.Module, figure: str, caveat: str) -> None:
    """The same network less sure or surer, and one that says the same of every picture."""
    canvases = 0.8 * torch.rand(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for n, canvas in enumerate(canvases):
        canvas[n % 3] += 0.2
    pictures = TensorPictures(canvases)
    original = Subject(Bright(5.0), GEOMETRY, "original", output="0:classes")
    metrics = ("consistency", "fractional")
    first = measure(original, pictures, metrics)
    second = measure(Subject(other, GEOMETRY, "other", output="0:classes"), pictures, metrics, original=original)
    found = differences(first, second)[figure]
    assert found.caveat == caveat and caveat in MEANINGS and not found.clear
    assert found.beyond_chance  # by the interval alone it would be
