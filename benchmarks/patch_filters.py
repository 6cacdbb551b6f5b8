"""What filter to put before a patch embedding: small vision transformers trained with several, on digits.

A patch embedding reads all s x s samples of a patch, so that the rule for a strided convolution (cut off at pi / s) may
take more detail than aliases. Here the same network (patches of 8 pixels, 25 tokens) is trained from scratch as it is
and converted by the recipe 'vit' with filters for subsamplings by 2, 4 and 8, each with the same seeds and data; then
measured on held-out digits, for which positions, contrast and noise are drawn once. What was trained is kept, so that a
run that was stopped goes on; writes benchmarks/patch_filters.json.

    python benchmarks/patch_filters.py [--seeds 2]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import blurify
from blurify import metrics
from blurify.metrics.half_patch import half_patch
from blurify.spec.filters import binomial_taps, compose_taps
from blurify.spec.recipes import load_recipe
from training import digits

HERE = Path(__file__).parent
SIDE, CANVAS, PATCH = 40, 52, 8
VARIANTS: dict[str, tuple[int, int] | None] = {
    "as it is": None,
    "3 taps, for 2": (3, 2),
    "4 taps, for 2": (4, 2),
    "4 taps, for 4": (4, 4),
    "4 taps, for 8": (4, 8),
}
TRAINING: dict[str, Any] = {
    "epochs": 30, "learning_rate": 2e-3, "batch_size": 64, "weight_decay": 5e-2, "label_smoothing": 0.1,
}  # fmt: skip
DIGIT: dict[str, Any] = {"digit": 26, "scale": (0.8, 1.2), "rotation": 0.2}


def network() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIDE, patch_size=PATCH, in_chans=1, num_classes=10, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2.0
    )


def variant(taps: tuple[int, int] | None) -> nn.Module:
    model = network()
    if taps is None:
        return model
    recipe = dataclasses.replace(load_recipe("vit"), filter_size=taps[0], patch_cutoff=PATCH // taps[1])
    return blurify.convert(
        model, recipe, example_inputs=torch.zeros(1, 1, SIDE, SIDE), inplace=True, verify=taps == (4, 8)
    )


def held_out(images: torch.Tensor, labels: torch.Tensor, draws: int = 4) -> metrics.TensorPictures:
    torch.manual_seed(1234)
    canvases = [digits.scattered(images, canvas=CANVAS, translation=3.0, **DIGIT) for _ in range(draws)]
    noisy = digits.noisy(torch.cat(canvases), contrast=(0.5, 1.0), noise=0.2)
    return metrics.TensorPictures(noisy.clamp(0, 1), labels.repeat(draws))


def one(name: str, seed: int) -> dict[str, Any]:
    images, labels = digits.load()
    training, held = digits.split(labels, 12, 0)

    def picture(chosen: torch.Tensor) -> torch.Tensor:
        drawn = digits.scattered(chosen, canvas=SIDE, translation=6.0, **DIGIT)
        return (digits.noisy(drawn, contrast=(0.5, 1.0), noise=0.2).clamp(0, 1) - 0.5) / 0.5

    model = digits.train(
        lambda: variant(VARIANTS[name]), seed, images[training], labels[training], picture=picture, **TRAINING
    )
    geometry = metrics.Preprocessing((SIDE, SIDE), (CANVAS, CANVAS), 1, (0.5,), (0.5,))
    subject = metrics.Subject(model, geometry, name)
    shown = held_out(images[held], labels[held])
    whole = metrics.measure(subject, shown, ("consistency",), batch_size=240).consistency
    parts = half_patch(subject, shown, batch_size=240)
    assert whole is not None and whole.accuracy is not None and parts.patch == (PATCH, PATCH)
    return {
        "variant": name, "seed": seed, "accuracy": whole.accuracy.value, "agreement": whole.agreement.value,
        "pixel_flips": whole.pixel_flips.value, "half": parts.half.value, "half_change": parts.half_change.value,
        "grid": parts.grid.value, "whole": parts.whole.value, "pictures": len(shown),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "patch_filters.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.out.read_text())["rows"] if options.out.is_file() else []
    rows = {(row["variant"], row["seed"]): row for row in known}
    for seed in range(options.seeds):
        for name in VARIANTS:
            if (name, seed) not in rows:
                rows[name, seed] = one(name, seed)
                print(rows[name, seed], flush=True)
                taps = {name: len(compose_taps(binomial_taps(t[0]), t[1])) if t else 1 for name, t in VARIANTS.items()}
                data = {"patch": PATCH, "side": SIDE, "taps": taps, "training": TRAINING, "rows": list(rows.values())}
                options.out.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
