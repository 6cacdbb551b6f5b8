"""Dense maps of real numbers under shifts: depth, flow, heat maps, features, and the frames of a signal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.consistency import NO_OVERLAP, amounts, places_of, sights, step_of
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.results import DenseDrift, Estimate
from blurify.metrics.subject import Pictures, Subject, Watch, not_finite


def dense_drift(
    subject: Subject,
    pictures: Pictures,
    *,
    seed: int = 0,
    batch_size: int = 64,
    circular: bool = False,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> DenseDrift:
    """How far a model's map (N, C, h, w) of real numbers is from moving with the picture.

    Each picture is seen as `consistency` shows it, by the same seed: through two random crops, and through the first
    of them moved by one pixel. The second map is read at the places of the first by bilinear interpolation, where both
    see the same part of the picture; a step on a map is a whole number of pixels (see `consistency.step_of`), or a
    pixel a whole number of steps. A picture's error is the mean square of the difference over places and
    channels, over the variance of the maps: of each channel over all places of the first and second crops of all
    pictures, averaged over channels. So 0 is exact, and 1 what the mean of each channel everywhere would do: the
    relative squared error of regression, as `agreement` has it. Outputs without places, (N, C), are compared as they
    are.

    Args:
        subject: a model whose output is taken for a dense map.
        pictures: canvases larger than the model's input, unless `circular`.
        seed: of the crops.
        batch_size: pictures a forward.
        circular: shift the centre crop around instead, as in `consistency`.
        watch: told of each batch.
        kept: where each batch is written down (see `kept`).

    Raises:
        BlurifyError: there is no room to shift, no two crops overlap, or outputs are not finite.
    """
    geometry = subject.preprocessing
    places = places_of(len(pictures), geometry, seed, circular=circular)
    total = math.ceil(len(pictures) / batch_size)
    steps = steps_for(kept, "dense", total, seed=seed, batch_size=batch_size, circular=circular)
    for number, batch in steps.batches(pictures, batch_size):
        first, second, beside = (
            _finite(subject.values(seen)) for seen in sights(subject, batch, places, circular=circular)
        )
        errors: dict[str, list[float]] = {}
        for name, other, place in (("crops", second, places.second), ("pixel", beside, places.beside)):
            shifts = (place - places.first)[batch.indices].tolist()
            errors[name] = [
                square_error(one, there, (dy, dx), geometry.crop, circular=circular)
                for one, there, (dy, dx) in zip(first, other, shifts, strict=True)
            ]
        steps.done(number, {"shape": list(first.shape[1:]), "spread": [_spread(first), _spread(second)], **errors})
        if watch is not None:
            watch("dense maps", number + 1, total)
    found = steps.results
    variance = _variance([part for step in found for part in step["spread"]])
    crops, pixel = (_relative([one for step in found for one in step[name]], variance) for name in ("crops", "pixel"))
    return DenseDrift(crops=crops, pixel=pixel, shape=tuple(found[-1]["shape"]), circular=circular)


def _finite(maps: Tensor) -> Tensor:
    """On the CPU in float32 or better. Raises BlurifyError where they are not finite."""
    found = maps.detach().cpu()
    found = found if found.dtype == torch.float64 else found.float()
    if not bool(found.isfinite().all()):
        raise not_finite("the model's output is")
    return found


def square_error(
    one: Tensor, other: Tensor, shift: tuple[int, int], crop: tuple[int, int], *, circular: bool = False
) -> float:
    """Mean square of the difference of two maps, the other shifted back onto the one; nan where nothing is common.

    Args:
        one, other: (C, h, w), or (C,) without places.
        shift: (y, x) in pixels, the other window's corner less the one's.
        crop: (height, width) of the window.
        circular: the window was shifted around.
    """
    for axis, (pixels, size) in enumerate(zip(shift, crop, strict=True), 1):
        if one.ndim == 3 and pixels:
            one, other = _back(one, other, axis, pixels * _steps(one.shape[axis], size), circular=circular)
    difference = (one - other).double()
    return float(difference.square().mean()) if difference.numel() else math.nan


def _steps(steps: int, pixels: int) -> float:
    """Steps of the map for each pixel: one for a whole number of pixels, or a whole number for one."""
    return float(round(steps / pixels)) if steps >= pixels else 1 / step_of(pixels, steps)


def _back(one: Tensor, other: Tensor, axis: int, offset: float, *, circular: bool) -> tuple[Tensor, Tensor]:
    """Both maps where they show the same: the one's value at p, and the other's at p - offset along an axis."""
    low, size = math.floor(-offset), one.shape[axis]
    share = -offset - low  # of the neighbour above
    if circular:
        there = torch.roll(other, -low, axis)
        return one, there if share == 0 else torch.lerp(there, torch.roll(other, -low - 1, axis), share)
    start, end = max(0, -low), min(size, size - low - (share > 0))  # places whose neighbours are on the other map
    count = max(end - start, 0)
    if count == 0:
        return one.narrow(axis, 0, 0), other.narrow(axis, 0, 0)
    there = other.narrow(axis, start + low, count)
    if share > 0:
        there = torch.lerp(there, other.narrow(axis, start + low + 1, count), share)
    return one.narrow(axis, start, count), there


def _spread(maps: Tensor) -> list[Any]:
    """Of maps (N, C, h, w) or (N, C): [places, each channel's mean, its sum of squares about that]."""
    rows = maps.transpose(0, 1).flatten(1).double()
    mean = rows.mean(1, keepdim=True)
    return [rows.shape[1], mean[:, 0].tolist(), (rows - mean).square().sum(1).tolist()]


def _variance(parts: Sequence[list[Any]]) -> float:
    """The variance of all maps together, channel by channel, averaged over channels (Chan et al. 1979).

    Args:
        parts: what `_spread` gives of each.
    """
    counts = torch.tensor([count for count, _, _ in parts], dtype=torch.float64)
    means, squares = (torch.tensor([part[index] for part in parts], dtype=torch.float64) for index in (1, 2))
    middle = (counts[:, None] * means).sum(0) / counts.sum()
    each = (squares.sum(0) + (counts[:, None] * (means - middle).square()).sum(0)) / counts.sum()
    return float(each.mean())


def _relative(errors: list[float], variance: float) -> Estimate:
    """Errors over the variance; maps that are the same everywhere have errors of 0."""
    kept = [error for error in errors if not math.isnan(error)]
    if not kept:
        raise BlurifyError(NO_OVERLAP)
    return amounts([error / variance if error else 0.0 for error in kept])
