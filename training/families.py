"""Four small networks, one a family of Zhang 2019: (N, 1, H, W) pictures of digits -> (N, 10) logits.

Each has its family's way of subsampling, three times in a row (to an eighth of the size, as for CIFAR), and its
family's blocks, at less than 20 thousand parameters. The first convolution has stride 1 (pictures of 32x32 are small),
so that every site lies inside the network, and all end in a global average pool, so that no position is built in.

    VGG          conv - norm - relu twice, then a max pool
    ResNet       a max pool; then residual blocks with a strided 3x3 convolution and a strided 1x1 shortcut
    DenseNet     a max pool; then dense blocks and transitions with an average pool
    MobileNetV2  inverted residuals with a strided depthwise convolution
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def conv_norm(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with "same" padding, and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Classifier(nn.Module):
    """Features, a global average pool and a linear layer.

    Args:
        features: (N, 1, H, W) -> (N, channels, H/8, W/8).
        channels: of the features.
    """

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class VGG(Classifier):
    """Simonyan and Zisserman 2014, with batch norm."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        layers: list[nn.Module] = []
        inputs = 1
        for width in widths:
            layers += [conv_norm(inputs, width, 3), nn.ReLU(), conv_norm(width, width, 3), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = width
        super().__init__(nn.Sequential(*layers), inputs)


class ResidualBlock(nn.Module):
    """The basic block of He et al. 2015; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, outputs, 3, stride=stride)
        self.act1 = nn.ReLU()
        self.conv2 = conv_norm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride=stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.conv2(self.act1(self.conv1(x))) + self.shortcut(x))


class ResNet(Classifier):
    """He et al. 2015: stem, 3x3 max pool, one basic block a stage."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        layers: list[nn.Module] = [conv_norm(1, widths[0], 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inputs = widths[0]
        for index, width in enumerate(widths):
            layers.append(ResidualBlock(inputs, width, 2 if index else 1))
            inputs = width
        super().__init__(nn.Sequential(*layers), inputs)


class DenseLayer(nn.Module):
    """norm - relu - conv, whose output is put beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


class DenseNet(Classifier):
    """Huang et al. 2016: stem, 3x3 max pool, dense blocks, transitions that halve the channels and the size."""

    def __init__(self, stem: int = 12, growth: int = 8, depth: int = 3) -> None:
        layers: list[nn.Module] = [conv_norm(1, stem, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = stem
        for block in range(3):
            if block:
                half = channels // 2
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, half, 1, bias=False)]
                layers.append(nn.AvgPool2d(2))
                channels = half
            layers += [DenseLayer(channels + index * growth, growth) for index in range(depth)]
            channels += depth * growth
        super().__init__(nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU()), channels)


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; a shortcut where the shape stays (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        inner = inputs * expansion
        self.layers = nn.Sequential(
            *conv_norm(inputs, inner, 1), nn.ReLU6(),
            *conv_norm(inner, inner, 3, stride=stride, groups=inner), nn.ReLU6(),
            *conv_norm(inner, outputs, 1),
        )  # fmt: skip
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.shortcut else y


class MobileNetV2(Classifier):
    """Sandler et al. 2018: two inverted residuals a stage, the first of them strided; a 1x1 convolution at the end."""

    def __init__(self, widths: tuple[int, ...] = (8, 8, 16, 24), last: int = 48) -> None:
        layers: list[nn.Module] = [*conv_norm(1, widths[0], 3), nn.ReLU6()]
        inputs = widths[0]
        for width in widths[1:]:
            layers += [InvertedResidual(inputs, width, 2), InvertedResidual(width, width, 1)]
            inputs = width
        super().__init__(nn.Sequential(*layers, *conv_norm(inputs, last, 1), nn.ReLU6()), last)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "VGG": VGG,
    "ResNet": ResNet,
    "DenseNet": DenseNet,
    "MobileNetV2": MobileNetV2,
}
