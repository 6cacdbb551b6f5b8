"""scikit-learn's digits as training data: the split by sample, pictures at random places, and the training loop.

Shared by `train_demo.py` and by `benchmarks/evidence.py`. All random choices come from torch's global generator, which
`train` seeds, or from a seed that is given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def load() -> tuple[Tensor, Tensor]:
    """All 1,797 samples: (N, 8, 8) uint8 from 0 to 16, and labels (N,) int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.images).to(torch.uint8), torch.from_numpy(digits.target).long()


def split(labels: Tensor, per_digit: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (training, held out), chosen by sample with a seed of its own, as many held out of every digit."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    held = torch.cat([order[labels[order] == digit][:per_digit] for digit in range(10)])
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[held] = False
    return mask.nonzero().flatten(), held


def train(
    make: Callable[[], nn.Module],
    seed: int,
    images: Tensor,
    labels: Tensor,
    *,
    picture: Callable[[Tensor], Tensor],
    epochs: int,
    learning_rate: float,
    batch_size: int,
    weight_decay: float,
    label_smoothing: float,
) -> nn.Module:
    """Train what `make` gives with AdamW and one cycle; in eval mode afterwards.

    Args:
        make: called once, with torch's global generator seeded; what it leaves of that decides the order of the data.
        seed: of the initialisation, the order and the augmentation.
        images: (N, 8, 8) uint8.
        labels: (N,) int64.
        picture: makes a batch of input pictures out of some of the images.
    """
    torch.manual_seed(seed)
    model = make()
    steps = len(labels) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels))
        for step in range(steps):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            loss = F.cross_entropy(model(picture(images[chosen])), labels[chosen], label_smoothing=label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def scattered(
    images: Tensor,
    *,
    canvas: int,
    digit: int,
    scale: tuple[float, float],
    rotation: float,
    translation: float,
) -> Tensor:
    """Digits (N, 8, 8) uint8, each enlarged and put somewhere on a black canvas of its own: (N, 1, canvas, canvas).

    Args:
        canvas: its side, in pixels.
        digit: the side of a digit on it, times something within `scale`.
        rotation: up to so many radians either way.
        translation: up to so many pixels from the middle, along each axis; not in whole pixels.
    """
    count = len(images)
    size = canvas / (digit * torch.empty(count).uniform_(*scale))
    angle = torch.empty(count).uniform_(-rotation, rotation)
    shift = torch.empty(2, count).uniform_(-translation, translation) * 2 / canvas
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = [[cos, -sin, sin * shift[0] - cos * shift[1]], [sin, cos, -cos * shift[0] - sin * shift[1]]]
    affine = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(affine, [count, 1, canvas, canvas], align_corners=False)
    return F.grid_sample(images[:, None].float() / 16, grid, align_corners=False)


def noisy(canvases: Tensor, *, contrast: tuple[float, float], noise: float) -> Tensor:
    """The canvases (N, 1, H, W) with some contrast each, and with white noise of some strength up to `noise`."""
    count = len(canvases)
    canvases = canvases * torch.empty(count, 1, 1, 1).uniform_(*contrast)
    return canvases + torch.empty(count, 1, 1, 1).uniform_(0, noise) * torch.randn_like(canvases)
