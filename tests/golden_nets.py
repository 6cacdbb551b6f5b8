"""The networks in the golden files: small, plain, one of each kind of edit. They never change."""

import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A residual block with a shared activation and a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, 1, 1, bias=False)
        self.downsample = nn.Conv2d(4, 6, 1, 2)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.conv2(out) + self.downsample(x))


class Net(nn.Module):
    """A stem, a pool, a residual block, a sequence, an expression in the middle of a forward, an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = Block()
        self.down = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.patch = nn.Conv2d(8, 8, 2, 2)
        self.mean = nn.AvgPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(self.pool(self.stem(x)), 2)
        x = self.down(self.block(x))
        x = self.mean(self.patch(x))
        return self.head(x.mean((2, 3)))


def build() -> Net:
    return Net()
