"""Small networks with sites, trained for a second."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import blurify


class Small(nn.Module):
    """Convolutions with norms, a strided convolution and a max pool, then a classifier."""

    def __init__(self, classes: int = 5, norms: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=not norms)
        self.norm1 = nn.BatchNorm2d(8) if norms else nn.Identity()
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=not norms)
        self.norm2 = nn.BatchNorm2d(12) if norms else nn.Identity()
        self.mix = nn.Conv2d(12, 12, 1, bias=not norms)
        self.norm3 = nn.BatchNorm2d(12) if norms else nn.Identity()
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = self.norm2(self.down(x)).relu()
        x = self.norm3(self.mix(x)).relu()
        return self.head(self.pool(x).mean((2, 3)))


def pictures(count: int, seed: int = 0, size: int = 16) -> Tensor:
    """Random pictures with structure at several scales, coarse ones above all, (N, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(count, 3, size, size)
    for side in (2, 4, 8):
        coarse = torch.randn(count, 3, side, side, generator=generator)
        found += nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return found


def trained(model: nn.Module, seed: int = 0, steps: int = 60) -> nn.Module:
    """The model, taught a little: what its outputs are is to tell at which of nine places a picture is brightest."""
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        shown = pictures(32, 10_000 + step)
        place = nn.functional.adaptive_avg_pool2d(shown.mean(1), 3).flatten(1)
        wanted = torch.cat([place, place.square()], 1)
        output = Small.forward(model, shown) if isinstance(model, Small) else model(shown)
        loss = _told(output, 4 * wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def _told(output: Tensor, wanted: Tensor) -> Tensor:
    """How far an output (N, K, ...) or (K,) is from the first K of what is wanted."""
    if output.ndim > 2:
        output = output.mean(tuple(range(2, output.ndim)))
    count = min(output.shape[1], wanted.shape[1])
    return (output[:, :count] - wanted[:, :count]).square().mean()


def pair(model: nn.Module | None = None, **options: object) -> tuple[nn.Module, nn.Module]:
    """An original and what `convert` makes of it."""
    original = trained(Small() if model is None else model)
    return original, blurify.convert(original, example_inputs=pictures(1), **options)  # type: ignore[arg-type]
