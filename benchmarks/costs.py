"""Whether the costs that a plan predicts are those that are measured: multiply-adds, bytes written, bytes kept.

    python benchmarks/costs.py [--models resnet18,...] [--out benchmarks/costs.json] [--page docs/costs.md]

Twelve models, before and after conversion, each with the default recipe. The prediction is `blurify.inspect(...,
memory=True)`, which runs nothing but a copy without data. The measurement runs the real models on real numbers and
shares no code with it: `torch.utils.flop_counter.FlopCounterMode` for multiply-adds, a `TorchDispatchMode` that sums
the bytes of newly allocated outputs, `torch.autograd.graph.saved_tensors_hooks` for what a training step keeps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import blurify

LIMITS = {"macs": 0.05, "written": 0.05, "kept": 0.10}
"""How far a prediction may be off."""
_WORDS = {"macs": "multiply-adds", "written": "bytes written", "kept": "bytes kept"}


class UNet(nn.Module):
    """A small U-Net: two max pools down, nearest upsampling and concatenation up, an answer for each pixel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = _stage(3, width), _stage(width, 2 * width)
        self.middle = _stage(2 * width, 4 * width)
        self.up2, self.up1 = _stage(6 * width, 2 * width), _stage(3 * width, width)
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 5, H, W), with H and W multiples of 4."""
        first = self.down1(x)
        second = self.down2(self.pool(first))
        y = self.upsample(self.middle(self.pool(second)))
        y = self.upsample(self.up2(torch.cat([y, second], 1)))
        return self.head(self.up1(torch.cat([y, first], 1)))  # type: ignore[no-any-return]


def _stage(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
    )  # fmt: skip


def audio_net() -> nn.Module:
    """A network of a signal: strided 1-d convolutions and a max pool."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (channels, width, stride) in enumerate([(1, 32, 1), (32, 64, 4), (64, 64, 2), (64, 128, 2)]):
        layers[f"conv{number}"] = nn.Conv1d(channels, width, 9, stride, 4, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm1d(width)
        layers[f"act{number}"] = nn.GELU()
    layers["pool"] = nn.MaxPool1d(4)
    layers["mean"] = nn.AdaptiveAvgPool1d(1)
    layers["flat"] = nn.Flatten()
    layers["head"] = nn.Linear(128, 10)
    return nn.Sequential(layers)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None)  # type: ignore[no-any-return]


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False)  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{
        name: (_torchvision(name), (2, 3, 224, 224))
        for name in ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "densenet121", "alexnet")
    },
    **{name: (_timm(name), (2, 3, 224, 224)) for name in ("efficientnet_lite0", "convnext_tiny", "regnety_004")},
    "unet": (UNet, (2, 3, 128, 128)),
    "audio net (1-d)": (audio_net, (2, 1, 16_000)),
    "r3d_18 (3-d)": (lambda: torchvision.models.video.r3d_18(weights=None), (2, 3, 8, 64, 64)),
}
"""How each is built, and what it is run on."""


@dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
        macs: multiply-adds of one forward in eval mode.
        written: bytes that it allocates for what its calls return.
        kept: bytes that a training step keeps for its backward.
    """

    macs: int
    written: int
    kept: int


class _Written(TorchDispatchMode):
    """Sums the bytes of outputs whose storage is none of the inputs'."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in before:
                before.add(one.untyped_storage().data_ptr())
                self.total += one.untyped_storage().nbytes()
        return out


def measure(model: nn.Module, x: Tensor) -> Costs:
    """Run a model on real numbers and count.

    Args:
        model: it is left in eval mode.
        x: its input.
    """
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(x)
    with torch.no_grad(), _Written() as written:
        model(x)
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.train()(x)
    model.eval()
    del out
    saved = sum(one.untyped_storage().nbytes() for one in kept.values())
    return Costs(flops.get_total_flops() // 2, written.total, saved)


def compared(name: str, model: nn.Module, x: Tensor) -> dict[str, Any]:
    """One model, before and after: predicted, measured, and how far apart."""
    plan = blurify.inspect(model, example_inputs=x, memory=True)
    assert plan.written is not None and plan.kept is not None
    assert plan.extra_written is not None and plan.extra_kept is not None
    predicted = {
        "before": Costs(plan.macs, plan.written, plan.kept),
        "after": Costs(plan.macs + plan.extra_macs, plan.written + plan.extra_written, plan.kept + plan.extra_kept),
    }
    converted = blurify.convert(model, example_inputs=x, verify=False)
    measured = {"before": measure(model, x), "after": measure(converted, x)}
    off = {
        when: {what: getattr(predicted[when], what) / max(getattr(measured[when], what), 1) - 1 for what in LIMITS}
        for when in predicted
    }
    return {
        "model": name,
        "input": "x".join(map(str, x.shape)),
        "sites": len(plan.converted),
        "predicted": {when: asdict(costs) for when, costs in predicted.items()},
        "measured": {when: asdict(costs) for when, costs in measured.items()},
        "off": {when: {what: round(value, 6) for what, value in one.items()} for when, one in off.items()},
    }


def within_limits(row: dict[str, Any]) -> bool:
    """Whether every prediction of a model is as near as it must be."""
    return all(abs(row["off"][when][what]) <= limit for when in row["off"] for what, limit in LIMITS.items())


_PAGE = """\
# What a conversion costs, predicted and measured

`blurify inspect` says what a conversion costs before it is done: multiply-adds, what one forward writes, and what a
training step keeps for its backward, for the model and for each site (`--json`: `totals`, and `extra_macs`,
`extra_written`, `extra_kept` of each site; in Python `blurify.inspect(model, memory=True)`).

- **multiply-adds**: of convolutions and matrix products of one forward in eval mode, by torch's own formulas.
- **bytes written**: the storages that one forward in eval mode, without gradients, allocates for what its calls
  return, each once, when it is allocated. That is the traffic of a forward, not how much is alive at once. Results
  written in place and views count nothing, nor does what a kernel uses inside and lets go of again.
- **bytes kept**: the storages that autograd saves in one forward of a training step, each once; parameters and
  buffers are left out, the input is not.

All are for the traced input in NCHW, as on the CPU. A site's figures are what it adds to the sites before it: what
two sites share counts at the first. Nothing is assumed of the layers that blur: each is run by itself on a map of few
channels, and counted. That is their plain form, as tracers and other devices have it, with padded copies of their
inputs; where nobody looks on, large maps on the CPU are blurred block by block and write less than is said here.

The table is what `{command}` found (torch {torch}): the original and the default conversion, measured on real
numbers with `FlopCounterMode`, with a `TorchDispatchMode` that sums the bytes of newly allocated outputs, and with
`saved_tensors_hooks`; and by how much the prediction is off, before and after.

| model | input | blurred | multiply-adds | off | bytes written | off | bytes kept | off |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def page(found: dict[str, Any]) -> str:
    """docs/costs.md, from the figures alone."""
    text = _PAGE.format(command=found["command"], torch=found["versions"]["torch"])
    lines = text.splitlines()
    for row in found["models"]:
        cells = []
        for what, unit in (("macs", 1e9), ("written", 1e6), ("kept", 1e6)):
            before, after = (row["measured"][when][what] / unit for when in ("before", "after"))
            sign = "G" if what == "macs" else "MB"
            cells.append(f"{before:.3g} → {after:.3g} {sign} ({after / before - 1:+.0%})")
            cells.append(", ".join(f"{row['off'][when][what]:+.2%}" for when in ("before", "after")))
        lines.append(f"| {row['model']} | {row['input']} | {row['sites']} | {' | '.join(cells)} |")
    worst = {
        what: max(abs(row["off"][when][what]) for row in found["models"] for when in row["off"]) for what in LIMITS
    }
    lines += [
        "",
        "The furthest off: " + ", ".join(f"{_WORDS[what]} {value:.2%}" for what, value in worst.items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compare, print one line a model, and write the result; 1 where a prediction is too far off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--page", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    for name in options.models.split(","):
        build, shape = MODELS[name]
        torch.manual_seed(0)
        row = compared(name, build().eval(), torch.randn(shape))
        rows.append(row)
        off = "  ".join(
            f"{_WORDS[what]} " + ", ".join(f"{row['off'][when][what]:+.2%}" for when in ("before", "after"))
            for what in LIMITS
        )
        print(f"{name:18}  off by: {off}{'' if within_limits(row) else '  TOO FAR'}", flush=True)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__}
    found = {"command": "python benchmarks/costs.py", "versions": versions, "models": rows}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if options.page:
        options.page.write_text(page(found))
    return 0 if all(map(within_limits, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
