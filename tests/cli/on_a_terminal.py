"""A child of test_terminal.py: commands and tables as they look at each width that it is told, on a terminal or not.

python on_a_terminal.py WIDTH...    where stdout is a terminal, it is made so wide before
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios

import torch
from torch import nn

from blurify.cli import main
from blurify.cli.measurements import print_measurements
from blurify.cli.zoo import _print_table
from tests.report_data import measurement


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


if __name__ == "__main__":
    for width in sys.argv[2:]:
        if sys.stdout.isatty():
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, int(width), 0, 0))
        print(f"##### {width}", flush=True)
        show(sys.argv[1])
