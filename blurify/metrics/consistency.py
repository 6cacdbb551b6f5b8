"""Consistency: how often the answer stays when the picture shifts (Zhang 2019; Azulay and Weiss 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.results import Consistency, Estimate
from blurify.metrics.sizes import dimensions
from blurify.metrics.subject import Batch, Pictures, Preprocessing, Subject, Watch, no_answer, not_finite

NO_OVERLAP = "no two crops of a picture overlap: give a smaller --canvas"


def consistency(
    subject: Subject,
    pictures: Pictures,
    *,
    seed: int = 0,
    batch_size: int = 64,
    circular: bool = False,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Consistency:
    """How steady a model's answers are.

    Each picture is seen three times: through two crops at random places of its canvas, and through the first of them
    moved by one pixel up, down, left or right, at random. Where pictures have labels, the centre crop is a fourth.

    - `agreement`: both random crops have the same top-1. Zhang (2019) evaluates ImageNet so, with crops of 224 pixels
      from 256.
    - `pixel_change`, `pixel_flips`: by how much the shift by one pixel moves the probability of the crop's top-1, and
      how often it changes the top-1 (Azulay and Weiss 2018).

    Label maps of dense models are compared where both crops show the same part of the picture, shifted back onto each
    other; each picture counts with its share of pixels. Logits of another size than the crop are first brought to it
    by bilinear interpolation, as segmentation models do themselves; to a whole multiple of their own size, see
    `step_of`, where convolutions without padding have cut them. A dense model has no accuracy here.

    Args:
        subject: the model.
        pictures: canvases larger than the model's input, unless `circular`.
        seed: of the crops, which depend on it and on the picture's place in the set, and on nothing else.
        batch_size: pictures a forward.
        circular: instead of other crops, take the centre crop, with what leaves on one side coming in on the other
            (by any shift, as Zhang evaluates CIFAR-10). No crop shows other things then than another; what the model
            pads itself still shows at the borders.
        watch: told of each batch.
        kept: where each batch is written down (see `kept`).

    Raises:
        BlurifyError: the canvas leaves no room to shift, a label is none of the model's classes, or outputs are not
            finite.
    """
    geometry = subject.preprocessing
    places = places_of(len(pictures), geometry, seed, circular=circular)
    total = math.ceil(len(pictures) / batch_size)
    steps = steps_for(kept, "consistency", total, seed=seed, batch_size=batch_size, circular=circular)
    for number, batch in steps.batches(pictures, batch_size):
        first, second, beside = map(subject, sights(subject, batch, places, circular=circular))
        dense = first.ndim == 4
        broken = [bool(no_answer(logits)) for logits in (first, second, beside)]
        there = (places.second - places.first)[batch.indices]
        step = (places.beside - places.first)[batch.indices]
        same, moved = compared(first, beside, step, geometry, circular=circular)
        right: list[float] = []
        known = batch.labels >= 0
        if not dense and bool(known.any()):
            labels = batch.labels[known]
            if int(labels.max()) >= first.shape[1]:
                raise BlurifyError(
                    f"a picture has the label {int(labels.max())}, the model only {first.shape[1]} classes: give the "
                    "pictures that it was trained for, or none of their labels"
                )
            centre = _centre(batch.canvases[known].to(subject.device), geometry)
            right = (subject(centre).argmax(1).cpu() == labels).double().tolist()
        steps.done(
            number,
            {
                "dense": dense,
                "broken": any(broken),
                "agree": compared(first, second, there, geometry, circular=circular)[0].tolist(),
                "change": moved.tolist(),
                "flips": (1 - same).tolist(),
                "sure": confidence(first).tolist(),
                "right": right,
                "answers": first.argmax(1).unique().tolist(),
            },
        )
        if watch is not None:
            watch("consistency", number + 1, total)
    found = steps.results
    if any(step["broken"] for step in found):
        raise not_finite("the model's output is")
    dense = found[-1]["dense"]
    agree, change, flips, sure, right = (
        [value for step in found for value in step[name]] for name in ("agree", "change", "flips", "sure", "right")
    )
    return Consistency(
        agreement=estimate(agree, yes_or_no=not dense),
        pixel_change=estimate(change, yes_or_no=False),
        pixel_flips=estimate(flips, yes_or_no=not dense),
        accuracy=estimate(right) if right else None,
        circular=circular,
        dense=dense,
        confidence=estimate(sure, yes_or_no=False),
        answers=len({answer for step in found for answer in step["answers"]}),
    )


def on_canvas(batch: Batch, geometry: Preprocessing) -> Tensor:
    """The canvases of a batch, (N, C, H, W). Raises BlurifyError where they are of another size."""
    if batch.canvases.shape[2:] != geometry.canvas:
        raise BlurifyError(
            f"the pictures are {dimensions(batch.canvases.shape[2:])}, the canvas {dimensions(geometry.canvas)}: "
            "bring the pictures to the canvas, or give --canvas"
        )
    return batch.canvases


@dataclass(frozen=True)
class Places:
    """Where each picture is seen: (N, 2) int64 each, (y, x) of the window's corner; `beside` is next to `first`."""

    first: Tensor
    second: Tensor
    beside: Tensor


def sights(subject: Subject, batch: Batch, places: Places, *, circular: bool) -> Iterator[Tensor]:
    """What is seen of a batch at the first places, at the second ones and beside the first: (N, C, h, w) each.

    On the model's device. Raises BlurifyError where the canvases are of another size.
    """
    geometry = subject.preprocessing
    canvases = on_canvas(batch, geometry).to(subject.device, non_blocking=True)
    for place in (places.first, places.second, places.beside):
        yield seen_at(canvases, place[batch.indices], geometry, circular=circular)


def places_of(count: int, geometry: Preprocessing, seed: int, *, circular: bool) -> Places:
    """Random places: any corner that keeps the window on the canvas; any shift at all where it is circular.

    Raises:
        BlurifyError: the canvas leaves no room.
    """
    spare = torch.tensor(geometry.canvas) - torch.tensor(geometry.crop)
    if circular:
        corners = torch.tensor(geometry.crop)
    elif bool((spare >= 1).any()):
        corners = spare + 1
    else:
        raise BlurifyError(
            f"the canvas is no larger than the model's input ({dimensions(geometry.crop)}), so there is no room to "
            "shift: give a larger --canvas, or --circular"
        )
    # A row a picture: what one gets does not depend on how many there are.
    draws = torch.rand(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first, second = ((draws[:, part] * corners).long() for part in (slice(0, 2), slice(2, 4)))
    axis = (draws[:, 4] < 0.5).long()
    if not circular:
        axis = torch.where((spare >= 1)[axis], axis, 1 - axis)
    sign = torch.where(draws[:, 5] < 0.5, -1, 1)
    rows = torch.arange(count)
    if not circular:  # at the canvas' edge there is a neighbour on one side only
        at = first[rows, axis]
        sign = torch.where(at == 0, 1, torch.where(at == spare[axis], -1, sign))
    beside = first.clone()
    beside[rows, axis] += sign
    return Places(first, second, beside)


def seen_at(canvases: Tensor, corners: Tensor, geometry: Preprocessing, *, circular: bool) -> Tensor:
    """(N, C, H, W) canvases and (N, 2) corners -> (N, C, h, w), what the model sees."""
    if circular:
        centre = _centre(canvases, geometry)
        moves = (-corners).tolist()
        return torch.stack([torch.roll(one, move, (1, 2)) for one, move in zip(centre, moves, strict=True)])
    height, width = geometry.crop
    windows = canvases.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, rows, columns, h, w), without a copy
    y, x = corners.to(canvases.device).unbind(1)
    return windows[torch.arange(len(canvases), device=canvases.device), :, y, x]


def _centre(canvases: Tensor, geometry: Preprocessing) -> Tensor:
    """The middle of canvases."""
    (height, width), (tall, wide) = geometry.crop, geometry.canvas
    top, left = (tall - height) // 2, (wide - width) // 2
    return canvases[:, :, top : top + height, left : left + width]


def compared(
    one: Tensor, other: Tensor, shifts: Tensor, geometry: Preprocessing, *, circular: bool
) -> tuple[Tensor, Tensor]:
    """How the answers of two sights of the same pictures compare.

    Args:
        one, other: logits (N, K), or (N, K, h', w').
        shifts: (N, 2), the other window's corner less the one's.

    Returns:
        (N,) each: the share of equal top-1, and the mean absolute change of the probability of the one's top-1; nan for
        label maps that have nothing in common.
    """
    if one.ndim == 2:
        return same_and_moved(one, other)
    found = []
    size = geometry.crop if circular else _full_size(one, geometry.crop)
    for index, (dy, dx) in enumerate(shifts.tolist()):  # one at a time: full-size logits of a whole batch are large
        here, there = (
            F.interpolate(logits[index : index + 1], size, mode="bilinear", align_corners=False)
            if logits.shape[2:] != size
            else logits[index : index + 1]
            for logits in (one, other)
        )
        if circular:
            there = torch.roll(there, (dy, dx), (2, 3))
        else:
            here, there = _overlap(here, dy, dx), _overlap(there, -dy, -dx)
        found.append(torch.stack(same_and_moved(here, there)))
    same, moved = torch.cat(found, 1)
    return same, moved


def _full_size(maps: Tensor, crop: tuple[int, int]) -> tuple[int, int]:
    """The size of a map at the crop's resolution: other than the crop's where convolutions without padding cut it."""
    height, width = (
        step_of(pixels, steps) * steps if steps < pixels else pixels
        for pixels, steps in zip(crop, maps.shape[2:], strict=True)
    )
    return height, width


def step_of(pixels: int, steps: int) -> int:
    """How many pixels a step of a map is that has fewer steps than the picture has pixels.

    The stride whose padded convolutions give so many, ceil(pixels / stride), a power of 2 if there are several; else
    that of floor(pixels / stride). Where there is none, convolutions without padding have cut the map: then the largest
    stride that so many fit into.
    """
    if pixels % steps == 0:
        return pixels // steps
    least = pixels // steps
    strides = range(least, 2 * least + 2)
    padded = [stride for stride in strides if -(-pixels // stride) == steps]
    padded.sort(key=lambda stride: stride & (stride - 1) > 0)  # the sort is stable: the smallest of either comes first
    floored = [stride for stride in strides if pixels // stride == steps]
    return (padded + floored + [least])[0]


def _overlap(image: Tensor, dy: int, dx: int) -> Tensor:
    """The part of an image (..., h, w) that a window of its size, moved by (dy, dx), shows as well."""
    height, width = image.shape[-2:]
    return image[..., max(dy, 0) : max(height + min(dy, 0), 0), max(dx, 0) : max(width + min(dx, 0), 0)]


def same_and_moved(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K, ...) logits -> (N,) share of equal top-1, (N,) mean absolute change of the one's top-1 probability."""
    top = one.argmax(1, keepdim=True)
    # On the CPU from here on: not every device has double precision.
    same = (top == other.argmax(1, keepdim=True)).cpu().double()
    moved = (one.softmax(1).gather(1, top) - other.softmax(1).gather(1, top)).abs().cpu().double()
    return same.flatten(1).mean(1), moved.flatten(1).mean(1)


def confidence(logits: Tensor) -> Tensor:
    """(N, K, ...) logits -> (N,) probability of the top-1, the mean over positions."""
    sure = logits.softmax(1).amax(1).cpu().double()
    return sure.reshape(len(sure), -1).mean(1)


def amounts(values: Sequence[float]) -> Estimate:
    """The mean of values that are never below 0, as no end of its interval is."""
    found = Estimate.of(values, bounded=False, yes_or_no=False)
    return replace(found, low=max(found.low, 0.0))


def estimate(values: Sequence[float], *, yes_or_no: bool = True) -> Estimate:
    """Sum up per-picture values; nan where two crops had nothing in common."""
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        raise BlurifyError(NO_OVERLAP)
    return Estimate.of(kept, yes_or_no=yes_or_no)
