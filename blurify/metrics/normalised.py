"""mFR and mCE: flip rates and errors as multiples of a reference model's (Hendrycks and Dietterich 2019).

The published figures divide by AlexNet's rates on ImageNet-P and ImageNet-C. Those rates belong to those pictures, at
that size, with all of their frames: of other pictures, or of other strengths, they are no unit. So the reference is a
model that was measured on the same pictures in the same way, and never a table of numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from blurify.errors import BlurifyError
from blurify.metrics.results import CorruptionResult, Estimate, Stability


def normalised(found: Stability, by: Stability, reference: str) -> Stability:
    """The same, with its mean flip rate and mean corruption error over those of a reference.

    mFR is the mean over perturbations of the flip probability over the reference's (section 4.2 of "Benchmarking Neural
    Network Robustness to Common Corruptions and Perturbations", ICLR 2019); mCE is the mean over corruptions of the
    top-1 errors' sum over severities over the reference's sum (section 4.1). Both are 1 (100%, as published) for the
    reference. Perturbations and corruptions on which the reference never fails are left out.

    The intervals are over pictures, and take the reference's rates as known, as those of AlexNet are: each picture
    counts with its own flips and errors over the reference's rates, so that two models compare picture by picture.

    Args:
        found: of the model.
        by: of the reference, on the same pictures; the same perturbations, corruptions and severities.
        reference: its name.

    Raises:
        BlurifyError: the two were measured in different ways.
    """
    if _ways(found) != _ways(by):
        raise BlurifyError(
            f"the stability of {reference} was measured in other ways or on another number of pictures: measure both "
            "on the same pictures"
        )
    left_out: list[str] = []
    flips: list[list[float]] = []
    for own, unit in zip(found.flip_rates, by.flip_rates, strict=True):
        if unit.rate.value > 0:
            flips.append([value / unit.rate.value for value in own.rate.values])
        else:
            left_out.append(own.perturbation)
    errors: list[list[float]] = []
    for mine, theirs in zip(found.corruptions, by.corruptions, strict=True):
        if not mine.accuracy:
            continue
        whole = math.fsum(1 - estimate.value for estimate in theirs.accuracy)
        if whole > 0:
            errors.append([value / whole for value in _errors(mine)])
        else:
            left_out.append(mine.corruption)
    mfr, mce = _mean(flips), _mean(errors)
    if (found.flip_rates, found.corruptions) == (by.flip_rates, by.corruptions):  # the unit itself, which is known
        mfr, mce = (one and dataclasses.replace(one, low=one.value, high=one.value) for one in (mfr, mce))
    return dataclasses.replace(found, reference=reference, mfr=mfr, mce=mce, left_out=tuple(left_out))


def _ways(found: Stability) -> tuple[object, ...]:
    return (
        [(flips.perturbation, flips.frames, flips.rate.count) for flips in found.flip_rates],
        [(item.corruption, [accuracy.count for accuracy in item.accuracy]) for item in found.corruptions],
    )


def _errors(found: CorruptionResult) -> list[float]:
    """Of each picture, at how many severities it is wrong."""
    return [
        math.fsum(1 - value for value in values) for values in zip(*(e.values for e in found.accuracy), strict=True)
    ]


def _mean(multiples: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean over kinds, of each picture; None where there is no kind, or single pictures are not known."""
    means = [math.fsum(values) / len(multiples) for values in zip(*multiples, strict=True)]
    if not means:
        return None
    found = Estimate.of(means, bounded=False, yes_or_no=False)
    return dataclasses.replace(found, low=max(found.low, 0.0))
