"""DigitNet: a small residual network of the usual kind, with one site of each kind in it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A basic residual block that halves the size: `relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))`.

    Args:
        inputs, outputs: channels in and out.
        pooled_shortcut: shortcut by an average pool and a dense 1x1 convolution (as in ResNet-D); else by a strided
            1x1 convolution (as in ResNet).
    """

    def __init__(self, inputs: int, outputs: int, *, pooled_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2) if pooled_shortcut else nn.Identity(),
            nn.Conv2d(inputs, outputs, 1, stride=1 if pooled_shortcut else 2, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H/2, W/2)."""
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.shortcut(x))


class DigitNet(nn.Module):
    """Ten digits from a grey canvas: (N, 1, 40, 40) -> (N, 10) logits."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2, 2)
        )
        self.block1 = Block(width, 2 * width, pooled_shortcut=True)
        self.block2 = Block(2 * width, 3 * width, pooled_shortcut=False)
        self.head = nn.Linear(3 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, 10)."""
        y = self.block2(self.block1(self.stem(x)))
        return self.head(F.avg_pool2d(y, y.shape[-2:]).flatten(1))
