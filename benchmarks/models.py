"""What a conversion costs: forward time and bytes kept for the backward, against the original and the published models.

    python benchmarks/models.py [--models resnet18,...] [--batch 8] [--threads 2] [--out benchmarks/models.json]

Times are medians of rounds in which the three models take turns, so that the ratios hold on a busy machine too; the
absolute times do not. The published package is used as a black box.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import antialiased_cnns
import torch
import torchvision
from torch import Tensor, nn

import blurify

RECIPES = {
    "resnet18": "resnet",
    "resnet50": "resnet",
    "vgg16": "vgg",
    "mobilenet_v2": "mobilenet",
    "densenet121": "densenet",
    "alexnet": "alexnet",
}


def kept_for_backward(model: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct storages that one training forward saves, parameters and the input left out."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.train()(x)
    del out
    model.eval()
    return sum(kept.values())


def forward_ms(models: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of a forward, the models taking turns."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, model in models.items():
                begin = time.perf_counter()
                model(x)
                if turn:  # the first round warms up
                    times[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def runs(model: nn.Module, x: Tensor) -> bool:
    """Whether a model takes this memory format (two of the published ones do not)."""
    try:
        with torch.no_grad():
            model(x)
    except RuntimeError:
        return False
    return True


def measure(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """All figures of one architecture, as ratios to the original."""
    torch.manual_seed(0)
    original = torchvision.models.get_model(name, weights=None).eval()
    models = {
        "original": original,
        "published": getattr(antialiased_cnns, name)(filter_size=4).eval(),
        "blurify": blurify.convert(original, f"published/{RECIPES[name]}", verify=False),
    }
    x = torch.randn(batch, 3, 224, 224)
    row: dict[str, Any] = {"model": name}
    for layout, memory_format in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
        laid = {key: model.to(memory_format=memory_format) for key, model in models.items()}
        image = x.to(memory_format=memory_format)
        times = forward_ms({key: model for key, model in laid.items() if runs(model, image)}, image, rounds)
        row[layout] = {"original_ms": round(times["original"], 1)} | {
            key: round(times[key] / times["original"], 3) if key in times else None for key in ("published", "blurify")
        }
    small = x[:2]
    kept = {
        key: kept_for_backward(model.to(memory_format=torch.contiguous_format), small) for key, model in models.items()
    }
    row["kept"] = {"original_mib": round(kept["original"] / 2**20, 1)} | {
        key: round(kept[key] / kept["original"], 3) for key in ("published", "blurify")
    }
    return row


def main() -> None:
    """Measure, print one line an architecture, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(RECIPES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'':14}  time / original: NCHW          channels_last        kept for backward / original")
    print(f"{'':14}  published  blurify  published  blurify  published  blurify")
    rows = []
    for name in options.models.split(","):
        row = measure(name, options.batch, options.rounds)
        rows.append(row)
        cells = [row[part][key] for part in ("NCHW", "channels_last", "kept") for key in ("published", "blurify")]
        print(
            f"{name:14}  " + "  ".join(f"{cell:9.2f}" if cell is not None else f"{'-':>9}" for cell in cells),
            flush=True,
        )
    if options.out:
        versions = {"python": sys.version.split()[0], "torch": torch.__version__, "threads": options.threads}
        command = f"python benchmarks/models.py --batch {options.batch} --rounds {options.rounds}"
        options.out.write_text(json.dumps({"command": command, "versions": versions, "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
