"""How fast and how small the layers are, as ratios measured in one run: `python benchmarks/blurpool.py`.

Writes benchmarks/blurpool.json: milliseconds (median, one thread) and MiB kept for the backward. Times depend on the
machine; the ratios are what to compare.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import antialiased_cnns
import torch
from torch import Tensor, nn

from blurify import nn as layers
from blurify.nn import BlurPool2d, BlurPool3d, MaxBlurPool2d, dense_max_pool

SHAPE = (8, 64, 112, 112)


def milliseconds(*functions: Callable[[], Any], repeat: int = 9) -> list[float]:
    """The median of each function, run in turns so that all see the same machine."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeat + 1):
        for function, record in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if turn:  # the first is the warm-up
                record.append((time.perf_counter() - start) * 1e3)
    return [round(statistics.median(record), 2) for record in times]


def kept_mib(layer: nn.Module, x: Tensor) -> float:
    """MiB that autograd keeps for the layer's backward besides its input, which the layer before keeps anyway."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    storages.pop(x.untyped_storage().data_ptr(), None)
    return round(sum(storages.values()) / 2**20, 1)


def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], repeat: int = 9) -> dict[str, Any]:
    mine, other = milliseconds(ours, theirs, repeat=repeat)
    return {"what": name, "ours_ms": mine, "theirs_ms": other, "ratio": round(mine / other, 3)}


def train(layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    grad = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), x, grad)


def grouping(layer: type[nn.Module], shape: tuple[int, ...], stride: int, size: int) -> dict[str, Any]:
    """One joint kernel against one convolution a dimension."""
    rule = layers._JOINT_TAPS
    made = []
    for layers._JOINT_TAPS in (10**6, 0):
        made.append(layer(stride, size))
    layers._JOINT_TAPS = rule
    x = torch.randn(shape)
    result = compare("", partial(made[0], x), partial(made[1], x), repeat=3)
    taps = made[0].kernel0.numel()
    return {"joint_taps": taps, "shape": shape, "stride": stride, "joint_over_separable": result["ratio"]}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {"forward": [], "training": [], "kept_mib": {}, "joint": []}
    published_blur = antialiased_cnns.BlurPool(SHAPE[1], filt_size=4, stride=2)
    published_max = nn.Sequential(nn.MaxPool2d(3, 1, 1), published_blur)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(SHAPE).to(memory_format=layout)
        name = "NCHW" if layout == torch.contiguous_format else "channels_last"
        ours_max = partial(dense_max_pool, kernel_size=(3, 3), padding=(1, 1), dilation=(1, 1))
        torch_max = partial(nn.functional.max_pool2d, kernel_size=3, stride=1, padding=1)
        with torch.no_grad():
            for what, ours, theirs in (
                ("BlurPool2d / published BlurPool", BlurPool2d(), published_blur),
                ("BlurPool2d / AvgPool2d", BlurPool2d(), nn.AvgPool2d(2)),
                ("dense_max_pool / F.max_pool2d", ours_max, torch_max),
                ("MaxBlurPool2d / published", MaxBlurPool2d(3, 2, 1), published_max),
                ("MaxBlurPool2d / MaxPool2d", MaxBlurPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)),
            ):
                row = compare(what, partial(ours, x), partial(theirs, x), repeat=5)
                results["forward"].append({"layout": name, **row})
        leaf = x.requires_grad_()
        for what, layer, other in (
            ("BlurPool2d / published BlurPool", BlurPool2d(), published_blur),
            ("MaxBlurPool2d / published", MaxBlurPool2d(3, 2, 1), published_max),
        ):
            row = compare(what, train(layer, leaf), train(other, leaf), repeat=3)
            results["training"].append({"layout": name, **row})
            results["kept_mib"][what] = [kept_mib(layer, leaf), kept_mib(other, leaf)]
    results["kept_mib"]["MaxPool2d(3, 2, 1)"] = kept_mib(nn.MaxPool2d(3, 2, 1), leaf)
    with torch.no_grad():
        for stride, size in ((2, 4), (2, 7), (4, 4), (8, 4)):
            results["joint"].append(grouping(BlurPool2d, (4, 64, 56, 56), stride, size))
        for stride, size in ((2, 4), (2, 7), (4, 4)):
            results["joint"].append(grouping(BlurPool3d, (2, 32, 16, 28, 28), stride, size))

    report = {
        "command": "python benchmarks/blurpool.py",
        "shape": SHAPE,
        "threads": 1,
        "machine": f"{platform.machine()}, CPU",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "antialiased-cnns")},
        **results,
    }
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(report, indent=1) + "\n")
    json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
