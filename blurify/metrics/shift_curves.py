"""Answers while a picture shifts, pixel by pixel: curves of the probability (Azulay and Weiss 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.evidence import Answer, ShiftCurve
from blurify.metrics.subject import Preprocessing, Subject, Watch, no_answer
from blurify.metrics.thumbnails import address

MOST_SHIFT = 8
"""Pixels to either side, where the canvas leaves as much room."""
CURVES = 3


@dataclass(frozen=True)
class Path:
    """Where the window goes: along one axis, one pixel a step, through the middle of the canvas.

    Attributes:
        axis: 'y' | 'x'.
        shifts: of the window from the middle, in order.
        circular: the picture is shifted around instead, the other way.
    """

    axis: str
    shifts: tuple[int, ...]
    circular: bool = False

    def place(self, shift: int) -> tuple[int, int]:
        """A shift as (y, x)."""
        return (shift, 0) if self.axis == "y" else (0, shift)

    def seen(self, canvases: Tensor, geometry: Preprocessing, shift: int) -> Tensor:
        """What a model sees at a shift: (N, C, H, W) canvases -> (N, C, h, w)."""
        moved = self.place(shift)
        corner = [(there - h) // 2 for there, h in zip(canvases.shape[2:], geometry.crop, strict=True)]
        if not self.circular:
            corner = [at + by for at, by in zip(corner, moved, strict=True)]
        window = canvases[..., corner[0] : corner[0] + geometry.crop[0], corner[1] : corner[1] + geometry.crop[1]]
        return torch.roll(window, (-moved[0], -moved[1]), (2, 3)) if self.circular else window


def path_for(geometry: Preprocessing, *, circular: bool = False, most: int = MOST_SHIFT) -> Path:
    """The longest way of up to `most` pixels to either side: along x, or along y where there is more room.

    Raises:
        BlurifyError: the canvas leaves no room to shift.
    """
    if circular:
        return Path("x", tuple(range(-most, most + 1)), circular=True)
    room = [
        (-((there - h) // 2), there - h - (there - h) // 2)
        for there, h in zip(geometry.canvas, geometry.crop, strict=True)
    ]
    (up, down), (left, right) = ((max(low, -most), min(high, most)) for low, high in room)
    axis, low, high = ("x", left, right) if right - left >= down - up else ("y", up, down)
    if high - low < 1:
        raise BlurifyError(
            "the canvas is no larger than the model's input, so there is no room to shift: give a larger --canvas, or "
            "--circular"
        )
    return Path(axis, tuple(range(low, high + 1)))


@dataclass(frozen=True)
class Walk:
    """What one model answers on the way, for N pictures and S shifts.

    Attributes:
        tops: (N, S) int64, its top-1.
        sure: (N, S) float64, the probability of that.
        steady: (N, S) float64, the probability of the answer that it gives in the middle.
    """

    tops: Tensor
    sure: Tensor
    steady: Tensor


def walk(subject: Subject, canvases: Tensor, path: Path, *, batch_size: int = 64, watch: Watch | None = None) -> Walk:
    """Run a classifier at each place of a path.

    Args:
        subject: the model.
        canvases: (N, C, H, W) in 0..1.
        path: of the window.
        batch_size: pictures a forward.
        watch: told of each batch.

    Raises:
        BlurifyError: it is no classifier, or gives no numbers.
    """
    parts: list[Walk] = []
    batches = canvases.split(batch_size)
    at_middle = path.shifts.index(0)
    for number, batch in enumerate(batches):
        found = []
        for shift in path.shifts:
            logits = subject(path.seen(batch, subject.preprocessing, shift))
            if logits.ndim != 2:
                raise BlurifyError(f"{subject.name} gives a label map, and no single answer")
            if bool(no_answer(logits)):
                raise BlurifyError(f"the output of {subject.name} is not finite (nan)")
            found.append(logits.cpu().double().softmax(1))
        shares = torch.stack(found, 1)  # (N, S, K)
        sure, tops = shares.max(2)
        middle = tops[:, at_middle, None, None].expand(-1, len(path.shifts), 1)
        parts.append(Walk(tops, sure, shares.gather(2, middle).squeeze(2)))
        if watch is not None:
            watch("answers under shifts", number + 1, len(batches))
    return Walk(*(torch.cat([getattr(part, name) for part in parts]) for name in ("tops", "sure", "steady")))


def shift_curves(
    walks: Sequence[Walk],
    canvases: Tensor,
    path: Path,
    geometry: Preprocessing,
    names: Sequence[str],
    classes: Sequence[str] = (),
    *,
    most: int = CURVES,
    pictures: bool = True,
) -> tuple[ShiftCurve, ...]:
    """The probability of each model's answer against the shift, for some pictures.

    Azulay and Weiss ("Why do deep convolutional networks generalize so poorly to small image transformations?", 2018,
    figures 1 and 2) show it for pictures by hand; here those are taken that the first model is least steady on, on
    which it is as steady as on one in four, and as on one in two (the difference of the largest and the smallest
    probability on the way): one picture alone could be an exception.

    Args:
        walks: one a model, of the same pictures and path.
        canvases: (N, C, H, W), the pictures.
        path: of the window.
        geometry: the models'.
        names: of the pictures.
        classes: names of the classes; () where they have none.
        most: curves.
        pictures: show them.
    """
    swing = walks[0].steady.amax(1) - walks[0].steady.amin(1)
    order = swing.argsort(descending=True, stable=True).tolist()
    wanted = dict.fromkeys(order[math.floor(share * len(order))] for share in (0, 0.25, 0.5)[:most])
    middle = path.shifts.index(0)
    return tuple(
        ShiftCurve(
            names[index],
            path.axis,
            path.shifts,
            tuple(answer(found, index, middle, classes) for found in walks),
            tuple(tuple(round(value, 6) for value in found.steady[index].tolist()) for found in walks),
            address(path.seen(canvases[index : index + 1], geometry, 0)[0]) if pictures else "",
        )
        for index in wanted
    )


def answer(walked: Walk, picture: int, place: int, classes: Sequence[str]) -> Answer:
    """A model's answer at one place."""
    label = int(walked.tops[picture, place])
    name = classes[label] if label < len(classes) else ""
    return Answer(label, round(float(walked.sure[picture, place]), 6), name)
