"""How much of its time `consistency` spends outside the model: ResNet-50, batches of 64 JPEG files.

    python benchmarks/consistency.py [--device cpu] [--threads 2] [--images 128] [--out benchmarks/consistency.json]

The time inside is that of the model's own forward, from hooks around it (on an accelerator synchronised, which takes
the overlap away and so counts against us). Decoding runs beside the forward and slows it down on a busy processor, so
the same windows are also run through the bare model, from memory, and the whole is compared with that as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from blurify.metrics.consistency import consistency
from blurify.metrics.pictures import open_folder
from blurify.metrics.preprocessing import preprocessing_of
from blurify.metrics.subject import Subject


def make_photos(folder: Path, count: int) -> None:
    """JPEG files of some 300x400 pixels with detail at every scale, in class folders."""
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        height, width = 280 + index % 41, 380 + index % 53
        picture = torch.zeros(1, 3, height, width)
        for level in range(1, 8):
            coarse = torch.randn(1, 3, 2**level, 2**level, generator=generator) / level
            picture += nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        pixels = (255 * picture.sigmoid()[0]).byte().permute(1, 2, 0).numpy()
        place = folder / str(index % 10)
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:05}.jpg", quality=90)


class Clock:
    """Seconds inside a model's forward, and how often it ran."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.seconds, self.calls, self.device = 0.0, 0, device
        self.sizes: list[int] = []
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end)

    def begin(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        synchronise(self.device)
        self.sizes.append(len(inputs[0]))
        self.started = time.perf_counter()

    def end(self, *_: Any) -> None:
        synchronise(self.device)
        self.seconds += time.perf_counter() - self.started
        self.calls += 1


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def main() -> None:
    """Measure once and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval().to(device)
    subject = Subject(model, preprocessing_of(model, "torchvision/resnet50"), "torchvision/resnet50")
    geometry = subject.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), options.images)
        files = open_folder(folder, geometry, classes=1000)
        subject(torch.zeros(options.batch, 3, *geometry.crop))  # warm up
        clock = Clock(model, device)
        begin = time.perf_counter()
        found = consistency(subject, files, batch_size=options.batch)
        synchronise(device)
        whole = time.perf_counter() - begin
    inside, sizes = clock.seconds, list(clock.sizes)
    x = torch.randn(options.batch, 3, *geometry.crop, device=device)
    begin = time.perf_counter()
    with torch.inference_mode():
        for size in sizes:
            model(x[:size])
    synchronise(device)
    bare = time.perf_counter() - begin
    report = {
        "what": f"consistency of ResNet-50 on {options.images} JPEG files of about 300x400, batches of {options.batch}",
        "command": "python benchmarks/consistency.py " + " ".join(sys.argv[1:]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": options.threads,
        "processors": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
        },
        "forwards": len(sizes),
        "labelled": found.accuracy is not None,
        "seconds": {"whole": round(whole, 3), "inside_forward": round(inside, 3), "bare_forwards": round(bare, 3)},
        "share_outside_forward": round(1 - inside / whole, 4),
        "whole_over_bare_forwards": round(whole / bare, 3),
        "target_share": 0.1,
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
