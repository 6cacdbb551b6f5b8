"""How long measuring will take, before it begins: forwards that each metric runs, times a forward that was timed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blurify.errors import BlurifyError
from blurify.metrics import lie_derivative
from blurify.metrics.aliasing import aliasing
from blurify.metrics.by_kind import check_defined
from blurify.metrics.corruptions import CORRUPTIONS, SEVERITIES
from blurify.metrics.equivariance import IMAGES, MOST_SHIFT, UnknownLayerError, equivariance, shifts_of
from blurify.metrics.fractional import PARTS
from blurify.metrics.half_patch import fitting_patch, shifts_by
from blurify.metrics.measuring import ALIASING_BATCH, check_metrics
from blurify.metrics.perturbations import PERTURBATIONS
from blurify.metrics.stability import FRAMES
from blurify.metrics.subject import Pictures, Subject, TensorPictures, Watch
from blurify.metrics.worst_case import ROTATIONS

_TRIAL = 0.2  # seconds that a timed batch may take, if it is more than one picture
_ROUGH = 20  # a metric's own work takes less than so many forwards' time


@dataclass(frozen=True)
class Expected:
    """What one metric will take.

    Attributes:
        metric: its name.
        forwards: of one picture each.
        seconds: about.
        at_most: it may take much less, by what the pictures show: the worst case leaves a picture without a label aside
            once its answer is another one.
    """

    metric: str
    forwards: int
    seconds: float
    at_most: bool = False


def expected(
    subject: Subject,
    pictures: Pictures,
    metrics: Sequence[str],
    *,
    batch_size: int = 64,
    circular: bool = False,
    layers: Sequence[str] | None = None,
    most_shift: int = MOST_SHIFT,
    others: Mapping[str, int] | None = None,
    unless_below: float = 0.0,
) -> tuple[Expected, ...]:
    """What measuring would take, metric by metric, with the same arguments as `measure`.

    A forward of noise of the model's input size is timed, after another one: of one picture, and then of as many as run
    in a fifth of a second (at most `batch_size`). Aliasing and equivariance, which do much besides forwards, are timed
    by steps of their own. Decoding is not in it: it overlaps the forwards. Metrics that this model can't be measured by
    have no entry.

    Args:
        others: what else is done with it, and how many pictures that shows to it or to its like.
        unless_below: where a rough estimate (no less than the truth) is below so many seconds in all, nothing more is
            timed, and the rough one is returned.
    """
    counts: dict[str, int] = {}
    for name in check_metrics(metrics):
        try:
            check_defined(name, subject.output, subject)
            counts[name] = _COUNTS[name](subject, pictures, layers, most_shift, circular)
        except (BlurifyError, KeyError):  # measuring says why
            continue
    counts |= others or {}

    def rough(a_picture: float) -> tuple[Expected, ...]:
        return tuple(
            Expected(name, forwards, forwards * a_picture, name == "worst-case" and not pictures.labelled)
            for name, forwards in counts.items()
        )

    def short(a_picture: float) -> bool:
        most = (one.seconds * (_ROUGH if one.metric in _TRIALS else 1) for one in rough(a_picture))
        return sum(most) < unless_below

    plain, count = _one_seconds(subject), 1
    if not short(plain):
        plain, count = _batch_seconds(subject, plain, min(batch_size, max(len(pictures), 1)))
    if short(plain):
        return rough(plain)
    return tuple(
        dataclasses.replace(one, seconds=one.forwards * max(plain, _TRIALS[one.metric](subject, count, layers)))
        if one.metric in _TRIALS
        else one
        for one in rough(plain)
    )


def _one_seconds(subject: Subject) -> float:
    """Seconds of a forward of one picture."""
    _timed(lambda: subject.run(_noise(subject, 1)), subject)  # loads kernels, and the like
    return _timed(lambda: subject.run(_noise(subject, 1)), subject)


def _batch_seconds(subject: Subject, one: float, most: int) -> tuple[float, int]:
    """Seconds of a forward a picture in a batch, and how many of them it had, by that of one picture alone."""
    count = min(most, math.floor(_TRIAL / max(one, 1e-6)))
    if count < 2:
        return one, 1
    _timed(lambda: subject.run(_noise(subject, count)), subject)
    return _timed(lambda: subject.run(_noise(subject, count)), subject) / count, count


def _timed(run: Callable[[], Any], subject: Subject) -> float:
    begin = time.perf_counter()
    run()
    _wait(subject)
    return time.perf_counter() - begin


def _wait(subject: Subject) -> None:
    if subject.device.type in ("cuda", "mps"):
        getattr(torch, subject.device.type).synchronize()


def _noise(subject: Subject, count: int) -> torch.Tensor:
    geometry = subject.preprocessing
    source = torch.Generator().manual_seed(0)
    return torch.rand(count, geometry.channels, *geometry.crop, generator=source)


def _step_seconds(subject: Subject, run: Callable[[Watch], object], count: int) -> float:
    """Seconds of a step a picture: between the first and the last time that a metric tells of its progress."""
    told: list[float] = []

    def watch(what: str, done: int, total: int) -> None:
        _wait(subject)
        told.append(time.perf_counter())

    try:
        run(watch)
    except BlurifyError:  # measuring says why
        return 0.0
    return (told[-1] - told[0]) / max(len(told) - 1, 1) / count


def _aliasing_seconds(subject: Subject, count: int, layers: Sequence[str] | None) -> float:
    count = min(count, ALIASING_BATCH)
    two = TensorPictures(_noise(subject, 2 * count))
    return _step_seconds(subject, lambda watch: aliasing(subject, two, batch_size=count, watch=watch), count)


def _equivariance_seconds(subject: Subject, count: int, layers: Sequence[str] | None) -> float:
    count = min(count, IMAGES)
    shown = TensorPictures(_noise(subject, count))

    def run(watch: Watch) -> None:
        try:
            equivariance(subject, shown, most_shift=1, layers=layers, watch=watch)
        except UnknownLayerError:  # then the choice is the model's own
            equivariance(subject, shown, most_shift=1, watch=watch)

    return _step_seconds(subject, run, count)


_TRIALS = {"aliasing": _aliasing_seconds, "equivariance": _equivariance_seconds}


def _of_equivariance(
    subject: Subject, pictures: Pictures, layers: Sequence[str] | None, most_shift: int, circular: bool
) -> int:
    return min(IMAGES, len(pictures)) * shifts_of(subject, layers=layers, most_shift=most_shift)


def _of_lie_derivative(
    subject: Subject, pictures: Pictures, layers: Sequence[str] | None, most_shift: int, circular: bool
) -> int:
    shifts_of(subject, layers=layers, most_shift=0)  # no layer with maps: it can't be measured
    return lie_derivative.FORWARDS * min(lie_derivative.IMAGES, len(pictures))


_FRAMES = 1 + sum(len(one.numbers(FRAMES)) for one in PERTURBATIONS.values()) + len(CORRUPTIONS) * len(SEVERITIES)
_GRID = 5 * 5 * len(ROTATIONS)
_COUNTS: dict[str, Callable[[Subject, Pictures, Sequence[str] | None, int, bool], int]] = {
    "consistency": lambda subject, pictures, *_: (4 if pictures.labelled else 3) * len(pictures),
    "aliasing": lambda subject, pictures, *_: len(pictures),
    "equivariance": _of_equivariance,
    "stability": lambda subject, pictures, *_: _FRAMES * len(pictures),
    "worst-case": lambda subject, pictures, *_: _GRID * len(pictures),
    "fractional": lambda subject, pictures, *_: PARTS**2 * len(pictures),
    "lie-derivative": _of_lie_derivative,
    "half-patch": lambda subject, pictures, layers, most_shift, circular: (
        (1 + len(shifts_by(fitting_patch(subject, circular=circular)))) * len(pictures)
    ),
}
"""By metric, how many pictures its forwards take together; a new metric belongs here too."""
