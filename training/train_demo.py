"""Train the network of `blurify demo` on scikit-learn's digits, and write it beside the code that shows it.

    python training/train_demo.py            # about a minute on one core

One seed, one thread: the same versions on the same machine give the same files. 120 of the 1,797 samples (12 a digit)
are set aside before anything is trained. Three trainings follow:

    trained     DigitNet from scratch
    finetuned   the same, converted by blurify (default recipe), trained for a few more epochs
    control     the same, not converted, trained for the same few more epochs: what the epochs alone do (not shipped)
"""

from __future__ import annotations

import copy
import json
import math
import platform
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from blurify import demo
from blurify.demo.network import DigitNet
from blurify.demo.shifts import CANVAS, DIGIT, answers, steadiness

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "held_out_per_digit": 12,
    "epochs": 24,
    "learning_rate": 3e-3,
    "finetune_epochs": 6,
    "finetune_learning_rate": 1e-3,
    "batch_size": 64,
    "weight_decay": 1e-2,
    "label_smoothing": 0.1,
    "schedule": "AdamW, one cycle",
    "augmentation": {"scale": [0.8, 1.2], "rotation": 0.2, "translation": 8.0, "contrast": [0.6, 1.0], "noise": 0.15},
}


def main() -> None:
    """Split, train three times, measure, write."""
    from sklearn.datasets import load_digits

    import blurify

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).to(torch.uint8), torch.from_numpy(digits.target).long()
    training, held = split(labels)

    print(f"{len(training)} samples to train on, {len(held)} held out")
    base = train(DigitNet, images[training], labels[training], SETTINGS["epochs"], SETTINGS["learning_rate"])
    more = SETTINGS["finetune_epochs"], SETTINGS["finetune_learning_rate"]
    converted = blurify.convert(copy.deepcopy(base))
    finetuned = train(lambda: copy.deepcopy(converted), images[training], labels[training], *more)
    control = train(lambda: copy.deepcopy(base), images[training], labels[training], *more)

    networks = {"trained": base, "converted": converted, "finetuned": finetuned, "control": control}
    results = {name: measure(model, images, labels, training, held) for name, model in networks.items()}
    for name, result in results.items():
        print(name, json.dumps(result))

    save_file(base.state_dict(), demo.TRAINED)
    save_file(finetuned.state_dict(), demo.FINETUNED)
    save_file({"images": images[held], "labels": labels[held], "samples": held}, demo.HELD_OUT)
    record = {
        "data": "scikit-learn load_digits (UCI optical recognition of handwritten digits, test part; CC BY 4.0)",
        "training_samples": len(training),
        "held_out_samples": len(held),
        "parameters": sum(parameter.numel() for parameter in base.parameters()),
        "settings": SETTINGS,
        "results": results,
        "seconds": round(time.perf_counter() - started),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "scikit-learn", "numpy", "safetensors")},
        },
    }
    demo.RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{record['seconds']} s; wrote {demo.FOLDER}")


def split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (training, held out), chosen by sample with a seed, as many held out of every digit."""
    generator = torch.Generator().manual_seed(SETTINGS["seed"])
    order = torch.randperm(len(labels), generator=generator)
    count = SETTINGS["held_out_per_digit"]
    held = torch.cat([order[labels[order] == digit][:count] for digit in range(10)])
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[held] = False
    return mask.nonzero().flatten(), held


def train(make: Any, images: Tensor, labels: Tensor, epochs: int, learning_rate: float) -> nn.Module:
    """Train a network on augmented digits; in eval mode afterwards."""
    torch.manual_seed(SETTINGS["seed"])
    model: nn.Module = make()
    batch = SETTINGS["batch_size"]
    steps = len(labels) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=SETTINGS["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels))
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            logits = model(augmented(images[chosen]))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=SETTINGS["label_smoothing"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def augmented(images: Tensor) -> Tensor:
    """Digits (N, 8, 8) uint8 on canvases (N, 1, 32, 32): any position, some scale, rotation, contrast and noise."""
    count = len(images)
    options = SETTINGS["augmentation"]
    scale = CANVAS / (DIGIT * torch.empty(count).uniform_(*options["scale"]))
    angle = torch.empty(count).uniform_(-options["rotation"], options["rotation"])
    shift = torch.empty(2, count).uniform_(-options["translation"], options["translation"]) * 2 / CANVAS
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [[cos, -sin, sin * shift[0] - cos * shift[1]], [sin, cos, -cos * shift[0] - sin * shift[1]]]
    affine = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(affine, [count, 1, CANVAS, CANVAS], align_corners=False)
    canvases = F.grid_sample(images[:, None].float() / 16, grid, align_corners=False)
    canvases = canvases * torch.empty(count, 1, 1, 1).uniform_(*options["contrast"])
    return canvases + torch.empty(count, 1, 1, 1).uniform_(0, options["noise"]) * torch.randn_like(canvases)


def measure(model: nn.Module, images: Tensor, labels: Tensor, training: Tensor, held: Tensor) -> dict[str, Any]:
    """Accuracy and changes by shifts, on the held-out images; accuracy on the training images too."""
    held_out = asdict(steadiness(answers(model, images[held]), labels[held]))
    on_training = steadiness(answers(model, images[training]), labels[training])
    assert all(math.isfinite(value) for value in held_out["changed"].values())
    return {"training_accuracy": on_training.accuracy, "held_out": held_out}


if __name__ == "__main__":
    main()
