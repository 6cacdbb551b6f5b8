"""How often a shift of the picture changes the answer, on digits placed on a larger canvas.

Each image is classified at every position of a window of 7x7 neighbouring ones. The inner 3x3 are the positions
"before the shift"; each has all its neighbours at one and at two pixels inside the window. So one forward a position
and image is enough for all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CANVAS = 40
DIGIT = 28
FIRST, WINDOW, REACH = 3, 7, 2  # the window's first row and column on the canvas, its side, the longest shift


@dataclass(frozen=True)
class Steadiness:
    """What one network does on the held-out images.

    Attributes:
        accuracy: fraction right over images and unshifted positions.
        changed: for a shift of 1 and of 2 pixels (the larger of |dy|, |dx|), the fraction of (image, position, shift)
            whose answer differs from the unshifted one's.
        pairs: how many of those there are.
    """

    accuracy: float
    changed: dict[int, float]
    pairs: dict[int, int]


def place(images: Tensor, y: int, x: int) -> Tensor:
    """Digits (N, 8, 8) uint8, enlarged to 28x28, on black canvases with their corner at (y, x): (N, 1, 40, 40)."""
    digits = F.interpolate(images[:, None].float() / 16, size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)
    return F.pad(digits, (x, CANVAS - DIGIT - x, y, CANVAS - DIGIT - y))


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """The network's answers at all positions of the window: (7, 7, N) int64."""
    rows = [[model(place(images, FIRST + y, FIRST + x)).argmax(1) for x in range(WINDOW)] for y in range(WINDOW)]
    return torch.stack([torch.stack(row) for row in rows])


def steadiness(answers: Tensor, labels: Tensor) -> Steadiness:
    """Sum up `answers` (7, 7, N) against the labels (N,)."""
    inner = WINDOW - 2 * REACH
    unshifted = answers[REACH : REACH + inner, REACH : REACH + inner]
    differs: dict[int, list[Tensor]] = {1: [], 2: []}
    for dy in range(-REACH, REACH + 1):
        for dx in range(-REACH, REACH + 1):
            distance = max(abs(dy), abs(dx))
            if distance:
                y, x = REACH + dy, REACH + dx
                differs[distance].append(answers[y : y + inner, x : x + inner] != unshifted)
    stacked = {distance: torch.stack(found) for distance, found in differs.items()}
    return Steadiness(
        accuracy=(unshifted == labels).double().mean().item(),
        changed={distance: found.double().mean().item() for distance, found in stacked.items()},
        pairs={distance: found.numel() for distance, found in stacked.items()},
    )
