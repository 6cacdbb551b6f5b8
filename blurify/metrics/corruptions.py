"""Corruptions of a picture at five severities, as in ImageNet-C.

Ten of the fifteen of Hendrycks and Dietterich ("Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, section 4.1), with the strengths of the published generator
(hendrycks/robustness, make_imagenet_c.py). Left out: glass blur (pixels swapped one after the other, minutes a
batch), snow (layers that only ImageMagick draws), frost (photographs that are not ours to ship), fog (a random fractal)
and the elastic transform. Unlike there, the result is not encoded as a JPEG of quality 85 on top. Lengths in pixels
are for crops of 224 pixels and scale with the crop's shorter side: a disc of radius 10 would swamp a crop of 28.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from blurify.metrics.effects import (
    brighten,
    contrast,
    defocus,
    gaussian_noise,
    impulse_noise,
    jpeg,
    motion_blur,
    moved,
    pixelate,
    shot_noise,
)

REFERENCE = 224  # the crop that lengths in pixels are meant for
SEVERITIES = (1, 2, 3, 4, 5)

Corruption = Callable[[Tensor, int, Sequence[torch.Generator]], Tensor]
"""(pictures (N, C, h, w) in 0..1, severity 1..5, one source of random numbers a picture) -> the same, corrupted."""


def _gaussian_noise(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """The noise's standard deviation."""
    return gaussian_noise(pictures, (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1], sources)


def _shot_noise(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """Photons for a value of 1."""
    return shot_noise(pictures, (60, 25, 12, 5, 3)[severity - 1], sources)


def _impulse_noise(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """The share of values that become 0 or 1."""
    return impulse_noise(pictures, (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1], sources)


def _defocus_blur(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """The disc's radius, and the softness of its edge (of the pixel grid, so that it does not scale)."""
    radius, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    return defocus(pictures, radius * _unit(pictures), softness)


def _motion_blur(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """Radius and sigma; the angle is uniform in -45..45 degrees."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    unit = _unit(pictures)
    blurred = []
    for picture, source in zip(pictures.split(1), sources, strict=True):
        degrees = 90 * torch.rand((), generator=source).item() - 45
        blurred.append(motion_blur(picture, radius * unit, sigma * unit, degrees))
    return torch.cat(blurred)


def _zoom_blur(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """How many enlargements, and the step from 1 on; the mean of them and of the picture once more."""
    count, step = ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))[severity - 1]
    height, width = pictures.shape[-2:]
    total = pictures.clone()
    for i in range(count):
        total += moved(pictures, (height, width), scale=1 + i * step)
    return total / (count + 1)


def _brightness(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """What is added to the value of the HSV colour."""
    return brighten(pictures, (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1])


def _contrast(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """The share of the contrast that stays."""
    return contrast(pictures, (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1])


def _pixelate(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """The share of the side's pixels that stays."""
    return pixelate(pictures, (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1])


def _jpeg(pictures: Tensor, severity: int, sources: Sequence[torch.Generator]) -> Tensor:
    """JPEG's quality."""
    return jpeg(pictures, (25, 18, 15, 10, 7)[severity - 1])


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": _gaussian_noise,
    "shot-noise": _shot_noise,
    "impulse-noise": _impulse_noise,
    "defocus-blur": _defocus_blur,
    "motion-blur": _motion_blur,
    "zoom-blur": _zoom_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
"""By name, in the published order."""


def _unit(pictures: Tensor) -> float:
    """What a pixel of the published crop is, in pixels of these pictures."""
    return min(pictures.shape[-2:]) / REFERENCE
