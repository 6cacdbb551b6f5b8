"""A child of test_terminal.py: commands and tables as they look at each width that it is told, on a terminal or not.

python on_a_terminal.py WIDTH...    where stdout is a terminal, it is made so wide before
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
from dataclasses import replace

import torch
from torch import nn

from blurify.cli import main
from blurify.cli.measurements import print_measurements
from blurify.cli.zoo import _print_table
from blurify.metrics.results import (
    Agreement,
    Consistency,
    Estimate,
    Fractional,
    LayerError,
    LieDerivative,
    Measurement,
)
from tests.report_data import estimate, measurement


class Stage(nn.Module):
    """A strided depthwise convolution with names as long as real networks have them."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)
        self.activation = nn.ReLU6()
        self.pointwise_projection = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise_projection(self.activation(self.conv_depthwise(x)))


class Net(nn.Module):
    """A stem, a pool and two stages, one of them deep inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Stage(8, 2), Stage(8, 1))
        self.backbone = nn.ModuleDict({"a_feature_extractor_with_a_long_name": nn.ModuleList([Stage(8, 2)])})
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.pool(self.stem(x)))
        for stage in self.backbone["a_feature_extractor_with_a_long_name"]:
            x = stage(x)
        return self.head(x.mean((2, 3)))


def net() -> nn.Module:
    """The network, always with the same weights."""
    torch.manual_seed(0)
    return Net().eval()


RECORDS = [
    {
        "model": "timm/vit_base_patch16_siglip_gap_512", "status": "inspected", "sites": 1, "converted": 0,
        "macs": 107 * 10**9, "extra_macs": 0, "seconds": {"total": 1.25}, "skipped_by_rule": {"patchify-stem": 1},
    },
    {
        "model": "timm/tf_mobilenetv3_large_minimal_100", "status": "converted", "sites": 5, "converted": 4,
        "macs": 209 * 10**6, "extra_macs": 18 * 10**6, "identity_error": 1.1e-7, "identity_dtype": "float32",
        "seconds": {"total": 3.5}, "skipped_by_rule": {"stem": 1},
    },
    {
        "model": "python:my.nets:broken", "status": "failed", "seconds": {"total": 0.5},
        "error": "python:my.nets:broken can't be built: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    },
]  # fmt: skip


def beside(converted: bool) -> Measurement:
    """Few pictures, by the metrics that tell most of two models; the second is less sure."""

    def about(mean: float, width: float = 0.04) -> Estimate:
        return estimate(mean, width, 48)

    kept = Agreement(
        48, about(0.875), about(0.6123, 0.1), about(0.96), about(0.71), about(0.42), top5=about(0.8208),
        top1_in_top5=about(0.9792), cosine=about(0.9107), consistent=about(0.8542), consistent_and_same=about(0.8333),
    ) if converted else None  # fmt: skip
    small = 0.5 if converted else 1.0
    change = [about(part * small) for part in (0.08, 0.05, 0.13)]
    return measurement(
        converted=converted, images=48, agreement=kept,
        aliasing=None, equivariance=None, stability=None, worst_case=None,
        consistency=Consistency(about(0.85), change[0], about(0.1), confidence=about(0.71 if not converted else 0.42)),
        fractional=Fractional(
            4, about(0.93), change[0], about(0.97), change[1], about(0.95), about(0.8125), change[2],
            about(0.71 if not converted else 0.42),
        ),
        lie_derivative=LieDerivative(
            tuple(
                LayerError(name, "Sequential", (stride, stride), (64, 224 // stride, 224 // stride), about(0.5 * small))
                for name, stride in (("layer1", 4), ("backbone.layer2.downsample", 8))
            ),
            32, (3, 224, 224), 1 / 32,
        ),
    )  # fmt: skip


def show(folder: str) -> None:
    """All that is looked at, each under a line that says what it is."""
    spec, shape = "python:on_a_terminal:net", "1,3,64,64"
    out = os.path.join(folder, "aa.pt")
    for words in (
        ["recipes"],
        ["inspect", spec, "--input-shape", shape],
        ["inspect", spec, "--input-shape", shape, "--recipe", "light", "--wide"],
        ["convert", spec, "--input-shape", shape, "--random", "--force", "-o", out],
        ["inspect", out, "--arch", spec],
        ["diff", spec, spec, "--input-shape", shape, "--recipe", "zhang2019", "--recipe", "light"],
    ):
        print(f"=== {words[0]}{' --wide' * ('--wide' in words)}", flush=True)
        main(words)
    print("=== zoo", flush=True)
    _print_table(RECORDS, wide=False)
    for count in (1, 2):
        print(f"=== measure {count}", flush=True)
        print_measurements([measurement(), measurement(converted=True)][:count])
    print("=== measure beside", flush=True)
    print_measurements([beside(False), beside(True)])
    print("=== measure three", flush=True)
    adapted = replace(beside(True), model="adapted.pt", lie_derivative=None)
    print_measurements([beside(False), beside(True), adapted])


if __name__ == "__main__":
    for width in sys.argv[2:]:
        if sys.stdout.isatty():
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, int(width), 0, 0))
        print(f"##### {width}", flush=True)
        show(sys.argv[1])
