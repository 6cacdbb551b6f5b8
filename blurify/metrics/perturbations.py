"""Sequences of ever so slightly perturbed frames of a picture, as in ImageNet-P.

All of ImageNet-P's ten sequences (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, section 4.1) but snow, which is made of layers that only
ImageMagick draws. The strengths are those of the published generator (hendrycks/robustness, make_imagenet_p.py). Unlike
there, frames stay in floating point and are not encoded as video. Lengths in pixels are for crops of 224 pixels; blurs
scale with the crop's shorter side, moves don't (CIFAR-10-P too moves 32-pixel pictures by one pixel a frame).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blurify.metrics.effects import brighten, gaussian_noise, motion_blur, moved, shot_noise, tilted
from blurify.metrics.subject import middle

REFERENCE = 224  # the crop that lengths in pixels are meant for


@dataclass(frozen=True)
class Scene:
    """What frames are made of.

    Attributes:
        canvases: (N, C, H, W) in 0..1.
        crop: (h, w) of a frame.
        sources: one source of random numbers a picture.
    """

    canvases: Tensor
    crop: tuple[int, int]
    sources: Sequence[torch.Generator]

    @property
    def unperturbed(self) -> Tensor:
        """The centre crop, (N, C, h, w)."""
        return middle(self.canvases, self.crop)


@dataclass(frozen=True)
class Perturbation:
    """One kind of sequence.

    Attributes:
        frames: how many frames the published sequence has, numbered from 0.
        middle: the unperturbed frame; where there is none, the one to stay near to.
        draw: gives the frames of the given numbers, in order.
        to_first: frames are compared with the first one, which is unperturbed; else each with the one before it.
    """

    frames: int
    middle: int
    draw: Callable[[Scene, range], Iterator[Tensor]]
    to_first: bool = False

    def numbers(self, count: int) -> range:
        """The `count` consecutive frames around the middle, or all where there are fewer."""
        count = min(count, self.frames)
        start = min(max(self.middle - count // 2, 0), self.frames - count)
        return range(start, start + count)


def _gaussian_noise(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """Independent noise of standard deviation 0.03 in each frame but the first."""
    clean = scene.unperturbed
    return (gaussian_noise(clean, 0.03, scene.sources) if i else clean for i in numbers)


def _shot_noise(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """Independent Poisson noise of 300 photons in each frame but the first."""
    clean = scene.unperturbed
    return (shot_noise(clean, 300, scene.sources) if i else clean for i in numbers)


def _motion_blur(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """A blur of radius 10 and sigma 3 that turns by 4 degrees a frame, up to the horizontal."""
    clean, unit = scene.unperturbed, min(scene.crop) / REFERENCE
    return (motion_blur(clean, 10 * unit, 3 * unit, 4 * (i - 30)) for i in numbers)


def _zoom_blur(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """Frame i is the mean of the picture enlarged by 1, 1.004, ..., 1 + 0.004 i."""
    total = torch.zeros_like(scene.unperturbed)
    for i in range(numbers.stop):
        total = total + moved(scene.canvases, scene.crop, scale=1 + 0.004 * i)
        if i in numbers:
            yield total / (i + 1)


def _brightness(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """The value of the HSV colour from -0.3 to +0.3 in steps of 0.02."""
    clean = scene.unperturbed
    return (brighten(clean, 0.02 * (i - 15)) for i in numbers)


def _translate(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """From 20 pixels to the left to 20 to the right, one a frame."""
    return (moved(scene.canvases, scene.crop, dx=i - 20) for i in numbers)


def _rotate(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """From -15 to 15 degrees, one a frame."""
    return (moved(scene.canvases, scene.crop, degrees=i - 15) for i in numbers)


def _tilt(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """From -15 to 15 degrees about both middle lines, one a frame."""
    return (tilted(scene.canvases, scene.crop, i - 15) for i in numbers)


def _scale(scene: Scene, numbers: range) -> Iterator[Tensor]:
    """From 0.4 to 1.15 in steps of 0.025."""
    return (moved(scene.canvases, scene.crop, scale=(40 + 2.5 * i) / 100) for i in numbers)


PERTURBATIONS = {
    "gaussian-noise": Perturbation(31, 0, _gaussian_noise, to_first=True),
    "shot-noise": Perturbation(31, 0, _shot_noise, to_first=True),
    "motion-blur": Perturbation(31, 30, _motion_blur),
    "zoom-blur": Perturbation(31, 0, _zoom_blur),
    "brightness": Perturbation(31, 15, _brightness),
    "translate": Perturbation(41, 20, _translate),
    "rotate": Perturbation(31, 15, _rotate),
    "tilt": Perturbation(31, 15, _tilt),
    "scale": Perturbation(31, 24, _scale),
}
"""By name, in the published order."""
