"""The published models, exactly: torchvision's, converted with the published recipes and given the same weights, must
compute what `antialiased_cnns` computes (its published weights and figures then carry over).

    python benchmarks/parity.py [--models resnet18,vgg11] [--taps 4] [--sizes 224] [--out benchmarks/parity.json]

All 23 models, taps 2 to 5, at 224 and 256 pixels, twice: torchvision's model converted in memory, and the published
model's own state_dict in a file, as such weights are published ({'state_dict': {'module....': ...}}), opened and
converted with the recipe that the file is recognised to be of. `make parity` runs it and keeps the result beside this
file.
The published package is used as a black box: it is built, given weights, and run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import blurify
from blurify.files.opening import open_model

TOLERANCE = 1e-5
MODELS = {
    "alexnet": "alexnet",
    **{f"vgg{depth}{norm}": "vgg" for depth in (11, 13, 16, 19) for norm in ("", "_bn")},
    **{f"resnet{depth}": "resnet" for depth in (18, 34, 50, 101, 152)},
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"), "resnet"),
    **{f"densenet{depth}": "densenet" for depth in (121, 161, 169, 201)},
    "mobilenet_v2": "mobilenet",
}
"""Every published model, and the recipe (`configs/published/`) that makes it."""


def lively(model: nn.Module) -> nn.Module:
    """Random norms and running statistics, so that fresh models do not map everything to nearly the same output."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
    return model.eval()


def give_weights(published: nn.Module, original: nn.Module) -> None:
    """Copy the weights over: the same tensors in the same order, under other names, plus the published filters."""
    theirs = {key: value for key, value in published.state_dict().items() if not key.endswith("filt")}
    ours = original.state_dict()
    if [value.shape for value in theirs.values()] != [value.shape for value in ours.values()]:
        raise SystemExit(f"{type(original).__name__}: the published model has other tensors")
    published.load_state_dict(dict(zip(theirs, ours.values(), strict=True)), strict=False)


def from_file(published: nn.Module, arch: str) -> nn.Module:
    """What blurify makes of a file with a published model's weights, left to itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth.tar"
        torch.save({"state_dict": {f"module.{key}": value for key, value in published.state_dict().items()}}, path)
        loaded = open_model(str(path), arch=arch)
    return blurify.convert(loaded.model, loaded.recipe, inplace=True, verify=False)


def compare(name: str, taps: list[int], sizes: list[int]) -> Iterator[dict[str, Any]]:
    """The relative error of one model for each number of taps and size, and how far the unconverted model is."""
    import antialiased_cnns

    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None}
    original = lively(torchvision.models.get_model(name, **options))
    images = {size: torch.randn(1, 3, size, size) for size in sizes}
    for size in taps:
        published = getattr(antialiased_cnns, name)(filter_size=size).eval()
        give_weights(published, original)
        recipe = f"published/{MODELS[name]}"
        converted = blurify.convert(original, recipe, filter_size=size, verify=size == taps[0])
        filed = from_file(published, f"torchvision/{name}")
        for pixels, image in images.items():
            with torch.no_grad():
                expected, actual, plain = published(image), converted(image), original(image)
                opened = filed(image)
            scale = expected.abs().max()
            yield {
                "model": name,
                "recipe": recipe,
                "taps": size,
                "pixels": pixels,
                "error": ((expected - actual).abs().max() / scale).item(),
                "file_error": ((expected - opened).abs().max() / scale).item(),
                "unconverted": ((expected - plain).abs().max() / scale).item(),
            }


def main() -> int:
    """Compare, print one line a case, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--taps", default="2,3,4,5")
    parser.add_argument("--sizes", default="224,256")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    for name in options.models.split(","):
        for row in compare(name, [int(t) for t in options.taps.split(",")], [int(s) for s in options.sizes.split(",")]):
            rows.append(row)
            print(
                f"{row['model']:18} taps {row['taps']}  {row['pixels']} px  relative error {row['error']:.1e}, "
                f"from a file {row['file_error']:.1e}  "
                f"(unconverted {row['unconverted']:.1e})",
                flush=True,
            )
    worst = max(max(row["error"], row["file_error"]) for row in rows)
    exact = all(max(row["error"], row["file_error"]) <= TOLERANCE < row["unconverted"] for row in rows)
    print(f"{len(rows)} cases, {len({row['model'] for row in rows})} models: worst relative error {worst:.1e}")
    if options.out:
        versions = {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        data = {"command": "python benchmarks/parity.py", "versions": versions, "worst": worst, "cases": rows}
        options.out.write_text(json.dumps(data, indent=1) + "\n")
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
