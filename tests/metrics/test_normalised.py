"""mFR and mCE by a reference: against the published formulas, and networks whose rates are known."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics import Preprocessing, Subject, TensorPictures
from blurify.metrics.normalised import normalised
from blurify.metrics.results import CorruptionResult, Estimate, FlipRate, Stability
from blurify.metrics.stability import stability

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, -1])


class Brightest(nn.Module):
    """Which of three parts of a picture is brightest: along y or along x. Of noise, it changes at the least touch."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part.mean((1, 2, 3)) for part in x.split(5, self.axis)], 1)


def measured(axis: int, *, labels: Tensor | None = LABELS) -> Stability:
    geometry = Preprocessing((15, 15), (20, 20), 3, (0.0,) * 3, (1.0,) * 3)
    canvases = torch.rand(8, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    return stability(
        Subject(Brightest(axis), geometry), TensorPictures(canvases, labels),
        perturbations=("shot-noise", "rotate", "scale"), corruptions=("jpeg", "contrast", "gaussian-noise"),
    )  # fmt: skip


def rates(**flips: list[float]) -> Stability:
    return Stability(tuple(FlipRate(name, 9, Estimate.of(values)) for name, values in flips.items()), ())


def errors(**wrong: list[list[float]]) -> Stability:
    """Of each corruption, a list a severity of which pictures are wrong."""
    return Stability((), tuple(
        CorruptionResult(name, tuple(Estimate.of([1 - v for v in values]) for values in severities), ())
        for name, severities in wrong.items()
    ))  # fmt: skip


def test_the_published_formulas() -> None:
    found, by = measured(2), measured(3)
    result = normalised(found, by, "the other")
    pairs = [(a.rate.value, b.rate.value) for a, b in zip(found.flip_rates, by.flip_rates, strict=True)]
    assert all(b > 0 for _, b in pairs) and len({a / b for a, b in pairs}) > 1
    assert result.mfr and result.mfr.value == pytest.approx(statistics.fmean(a / b for a, b in pairs))
    sums = [
        tuple(sum(1 - estimate.value for estimate in one.accuracy) for one in pair)
        for pair in zip(found.corruptions, by.corruptions, strict=True)
    ]
    assert all(len(one.accuracy) == 5 for one in found.corruptions)
    assert result.mce and result.mce.value == pytest.approx(statistics.fmean(a / b for a, b in sums))
    assert (result.mfr.count, result.mce.count) == (8, 7)  # pictures; those that have a label
    assert result.reference == "the other" and result.left_out == ()
    assert replace(result, reference="", mfr=None, mce=None) == found


def test_the_reference_is_one() -> None:
    found = normalised(measured(2), measured(2), "itself")
    assert found.mfr and found.mce
    for one in (found.mfr, found.mce):
        assert (one.value, one.low, one.high) == pytest.approx((1, 1, 1))  # known, as it is the unit


def test_known_rates_whose_mean_is_of_ratios() -> None:
    """Half as many flips of one kind and twice as many of the other are 1.25, not 1."""
    by = rates(a=[0.4, 0.0, 0.4, 0.0], b=[0.1, 0.1, 0.1, 0.1])
    found = normalised(rates(a=[0.1, 0.1, 0.1, 0.1], b=[0.2, 0.2, 0.2, 0.2]), by, "x")
    assert found.mfr and found.mfr.value == pytest.approx((0.5 + 2) / 2)
    assert found.mfr.values == pytest.approx([(0.1 / 0.2 + 0.2 / 0.1) / 2] * 4) and found.mce is None
    once, twice = [[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]  # 1.5 and 1 errors in all
    assert normalised(errors(jpeg=twice), errors(jpeg=once), "x").mce.value == pytest.approx(1 / 1.5)


def test_where_the_reference_never_fails_there_is_no_multiple() -> None:
    by = rates(a=[0.0, 0.0], b=[0.5, 0.0])
    found = normalised(rates(a=[0.5, 0.5], b=[0.5, 0.5]), by, "x")
    assert found.left_out == ("a",) and found.mfr and found.mfr.value == pytest.approx(2)
    nothing = normalised(rates(a=[0.5, 0.5]), rates(a=[0.0, 0.0]), "x")
    assert nothing.mfr is None and nothing.left_out == ("a",)
    perfect = normalised(errors(jpeg=[[1.0, 0.0]]), errors(jpeg=[[0.0, 0.0]]), "x")
    assert perfect.mce is None and perfect.left_out == ("jpeg",)


def test_without_labels_there_is_no_error() -> None:
    found = normalised(measured(2, labels=None), measured(3, labels=None), "x")
    assert found.mce is None and found.mfr is not None and found.left_out == ()


@pytest.mark.parametrize("other", [rates(b=[0.1, 0.1]), rates(a=[0.1] * 3), rates(a=[0.1, 0.1], b=[0.1, 0.1])])
def test_another_way_of_measuring_is_no_unit(other: Stability) -> None:
    with pytest.raises(BlurifyError, match="in other ways or on another number of pictures"):
        normalised(rates(a=[0.1, 0.1]), other, "x")
