"""What anti-aliasing costs, side by side in one process: original, published and converted models; and layer by layer.

    python benchmarks/speed.py [--models resnet18,...] [--parts nchw,layers] [--out benchmarks/speed.json]
    python benchmarks/speed.py --page      docs/speed.md from that file

Everything takes turns: a round runs each once, and a figure is the ratio of two medians over the rounds, with the
lowest and highest ratio of a round beside it. `again` is the original a second time: how far it is from 1 is what the
machine's noise does to a ratio. Rows are written as they come, and the same command goes on where it was stopped;
--fresh starts over. CPU seconds of the process count (other jobs disturb them least); wall-clock ratios
stand in the file too. The published package and the other libraries are used as black boxes; what is not installed is
said so.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import antialiased_cnns
import torch
import torchvision
from torch import Tensor, nn

try:
    from benchmarks.parity import MODELS, give_weights, lively
except ImportError:  # run as a file
    from parity import MODELS, give_weights, lively  # type: ignore[no-redef]

import blurify
from blurify.nn import BlurPool2d, MaxBlurPool2d

ROOT = Path(__file__).resolve().parent
PARTS = ("nchw", "channels_last", "compiled", "training", "kept", "layers")
SIX = "resnet18,resnet50,vgg16,mobilenet_v2,densenet121,alexnet"
PAIRS = (
    ("published", "original"), ("blurify", "original"), ("blurify", "published"), ("dense", "published"),
    ("again", "original"),
)  # fmt: skip

Runs = dict[str, Callable[[], Any]]


def in_turns(runs: Runs, rounds: int) -> dict[str, dict[str, list[float]]]:
    """CPU and wall-clock milliseconds of each function in each round, after one round to warm up."""
    taken: dict[str, dict[str, list[float]]] = {name: {"cpu": [], "wall": []} for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn:
                taken[name]["cpu"].append(1000 * cpu)
                taken[name]["wall"].append(1000 * wall)
    return taken


def ratios(taken: dict[str, dict[str, list[float]]], pairs: tuple[tuple[str, str], ...] = PAIRS) -> dict[str, Any]:
    """Of each pair: the ratio of the medians, the lowest and highest ratio of a round, that of the wall clock."""
    found: dict[str, Any] = {}
    for one, other in pairs:
        if one in taken and other in taken:
            a, b = taken[one], taken[other]
            each = [x / y for x, y in zip(a["cpu"], b["cpu"], strict=True)]
            found[f"{one}/{other}"] = {
                "ratio": round(statistics.median(a["cpu"]) / statistics.median(b["cpu"]), 3),
                "spread": [round(min(each), 3), round(max(each), 3)],
                "wall": round(statistics.median(a["wall"]) / statistics.median(b["wall"]), 3),
            }
    return found


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


def forward(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model(x)

    return run


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward, and a step of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    target = torch.zeros(x.shape[0], dtype=torch.long)

    def run() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    return run


def working(runs: Runs) -> tuple[Runs, dict[str, str]]:
    """What runs, and of the rest why not (the published VGG and AlexNet can't take channels_last)."""
    good, bad = {}, {}
    for name, run in runs.items():
        try:
            run()
        except RuntimeError as error:
            bad[name] = str(error).splitlines()[0][:160]
        else:
            good[name] = run
    return good, bad


def built(name: str) -> dict[str, nn.Module]:
    """The original, the published model with its weights, the converted one, and that with filters of one tap."""
    torch.manual_seed(0)
    original = lively(torchvision.models.get_model(name, weights=None))
    published = getattr(antialiased_cnns, name)(filter_size=4).eval()
    give_weights(published, original)
    converted, dense = (
        blurify.convert(original, f"published/{MODELS[name]}", filter_size=taps, verify=False) for taps in (4, 1)
    )
    return {"original": original, "published": published, "blurify": converted, "dense": dense}


def of_model(name: str, parts: list[str], batch: int, size: int, rounds: int) -> dict[str, Any]:
    """All figures of one architecture."""
    models = built(name)
    x = torch.randn(batch, 3, size, size)
    row: dict[str, Any] = {"model": name}
    with torch.no_grad():
        theirs, ours = models["published"](x), models["blurify"](x)
    row["error"] = float((ours - theirs).norm() / theirs.norm())

    def turns(runs: Runs) -> dict[str, Any]:
        good, bad = working(runs)
        if "original" in good:
            good["again"] = good["original"]
        taken = in_turns(good, rounds)
        found = {"original_ms": round(statistics.median(taken["original"]["cpu"]), 1), **ratios(taken)}
        return found | ({"fails": bad} if bad else {})

    if "nchw" in parts:
        row["nchw"] = turns({key: forward(model, x) for key, model in models.items()})
    if "kept" in parts:
        kept = {key: kept_for_backward(model, x[:2]) for key, model in models.items()}
        row["kept"] = {"original_mib": round(kept["original"] / 2**20, 1)} | {
            f"{one}/{other}": round(kept[one] / kept[other], 3) for one, other in PAIRS[:4]
        }
    if "channels_last" in parts:
        for model in models.values():
            model.to(memory_format=torch.channels_last)
        last = x.to(memory_format=torch.channels_last)
        row["channels_last"] = turns({key: forward(model, last) for key, model in models.items()})
        for model in models.values():
            model.to(memory_format=torch.contiguous_format)
    if "training" in parts:
        row["training"] = turns({key: training_step(model.train(), x) for key, model in models.items()})
    if "compiled" in parts:  # the last one: what runs in its process after it has other memory, and is slower or faster
        for model in models.values():
            model.eval()
        torch.compiler.reset()
        compiled = {key: torch.compile(model) for key, model in models.items()}
        row["compiled"] = turns({key: forward(model, x) for key, model in compiled.items()})
        del compiled  # with what the compiler holds of the models
        torch.compiler.reset()
        gc.collect()
    return row


def composer_layers() -> ModuleType:
    """composer's file of layers by itself: the package's own import asks for much that has nothing to do with them."""
    package = importlib.util.find_spec("composer")
    if package is None or package.origin is None:
        raise ImportError("No module named 'composer'")
    path = Path(package.origin).parent / "algorithms" / "blurpool" / "blurpool_layers.py"
    file = importlib.util.spec_from_file_location("composer_blurpool_layers", path)
    assert file is not None and file.loader is not None
    module = importlib.util.module_from_spec(file)
    file.loader.exec_module(module)
    return module


def other_layers(channels: int) -> dict[str, dict[str, Callable[[], nn.Module]]]:
    """The layers of other libraries that do what BlurPool2d and MaxBlurPool2d do (or the nearest thing)."""

    def timm_blur() -> nn.Module:
        from timm.layers import BlurPool2d as Theirs

        return Theirs(channels, filt_size=4, stride=2)

    def kornia_max() -> nn.Module:
        from kornia.filters import MaxBlurPool2D

        return MaxBlurPool2D(kernel_size=4, stride=2, max_pool_size=3)

    def composer_max() -> nn.Module:
        return cast(nn.Module, composer_layers().BlurMaxPool2d(3, 2, 1))

    def published() -> nn.Module:
        return antialiased_cnns.BlurPool(channels, filt_size=4, stride=2)

    return {
        "blur": {"published": published, "timm": timm_blur},
        "max and blur": {
            "published": lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), published()),
            "kornia": kornia_max,
            "composer": composer_max,
        },
    }


def of_layers(rounds: int) -> list[dict[str, Any]]:
    """BlurPool2d and MaxBlurPool2d against other libraries' layers: forward, and forward with backward."""
    rows = []
    for shape in ((8, 64, 112, 112), (8, 256, 28, 28)):
        for what, others in other_layers(shape[1]).items():
            layers: dict[str, nn.Module] = {"blurify": BlurPool2d(2, 4) if what == "blur" else MaxBlurPool2d(3, 2, 1)}
            missing = {}
            for name, make in others.items():
                try:
                    layers[name] = make()
                except ImportError as error:
                    missing[name] = f"not installed: {error}"
            for layout in ("nchw", "channels_last"):
                x = torch.randn(shape)
                x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
                leaf = x.clone().requires_grad_()

                def both(layer: nn.Module, leaf: Tensor = leaf) -> Callable[[], Any]:
                    return lambda: torch.autograd.grad(layer(leaf).sum(), leaf)

                for mode in ("inference", "training"):
                    runs = {
                        name: forward(layer, x) if mode == "inference" else both(layer)
                        for name, layer in layers.items()
                    }
                    taken = in_turns({**runs, "again": runs["blurify"]}, rounds)
                    pairs = (*(("blurify", name) for name in layers if name != "blurify"), ("again", "blurify"))
                    rows.append(
                        {"what": what, "shape": shape, "layout": layout, "mode": mode, **ratios(taken, pairs)}
                        | ({"missing": missing} if missing else {})
                    )
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean and worst of blurify over published, part by part."""
    found: dict[str, Any] = {}
    for part in PARTS[:-1]:
        cells = [row[part]["blurify/published"] for row in rows if "blurify/published" in row.get(part, {})]
        values = [cell["ratio"] if isinstance(cell, dict) else cell for cell in cells]
        if values:
            mean = math.exp(statistics.fmean(map(math.log, values)))
            found[part] = {"models": len(values), "mean": round(mean, 3), "worst": max(values)}
    return found


def versions() -> dict[str, str]:
    """Of what took part."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "antialiased-cnns", "timm", "kornia", "mosaicml"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def page(report: dict[str, Any]) -> str:
    """docs/speed.md."""
    lines = [
        "# What it costs",
        "",
        "Made by `python benchmarks/speed.py --page` from [speed.json](../benchmarks/speed.json), which the command",
        "",
        f"    {report['command']}",
        "",
        f"wrote: batch {report['batch']} at {report['size']} pixels, {report['threads']} thread(s), "
        f"{report['rounds']} rounds in which all take turns, CPU seconds. A cell is a",
        "ratio of medians and, in brackets, the lowest and highest ratio of a round. *Dense* is the conversion with",
        "filters of one tap: the same operations at stride 1 and no blur, so about what is left where blurs cost",
        "nothing. *Again* is the original against itself: the noise. The published models are those of",
        "`antialiased_cnns`; a dash is one that does not run so.",
        *(["Stopped before: " + ", ".join(report["unfinished"]) + "."] if report.get("unfinished") else []),
        f"Versions: {', '.join(f'{name} {number}' for name, number in report['versions'].items())}.",
        "",
    ]
    titles = {
        "nchw": "Inference, NCHW", "channels_last": "Inference, channels_last", "compiled": "Inference, torch.compile",
        "training": "One training step", "kept": "Bytes kept for the backward",
    }  # fmt: skip
    names = {"published/original": "published / original", "blurify/original": "blurify / original",
             "blurify/published": "blurify / published", "dense/published": "dense / published",
             "again/original": "again"}  # fmt: skip
    for part, title in titles.items():
        rows = [row for row in report["models"] if part in row]
        if not rows:
            continue
        keys = [key for key in names if part != "kept" or key != "again/original"]
        lines += [
            f"## {title}",
            "",
            "| | " + " | ".join(names[key] for key in keys) + " |",
            "|---" * (len(keys) + 1) + "|",
        ]
        for row in rows:
            cells = []
            for key in keys:
                cell = row[part].get(key)
                if isinstance(cell, dict):
                    low, high = cell["spread"]
                    cells.append(f"{cell['ratio']:.2f} ({low:.2f} to {high:.2f})")
                else:
                    cells.append("-" if cell is None else f"{cell:.2f}")
            lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
        if part in report["summary"]:
            one = report["summary"][part]
            lines += ["", f"blurify / published: geometric mean {one['mean']:.2f}, worst {one['worst']:.2f}."]
        lines.append("")
    if report.get("layers"):
        lines += ["## Layers", "", "blurify's layer over the other one's.", "",
                  "| layer | shape | layout | mode | over | ratio |", "|---|---|---|---|---|---|"]  # fmt: skip
        for row in report["layers"]:
            where = f"{row['what']} | {'x'.join(map(str, row['shape']))} | {row['layout']} | {row['mode']}"
            for key, cell in row.items():
                if isinstance(cell, dict) and key != "missing":
                    low, high = cell["spread"]
                    other = "itself (noise)" if key.startswith("again") else key.split("/")[1]
                    lines.append(f"| {where} | {other} | {cell['ratio']:.2f} ({low:.2f} to {high:.2f}) |")
            for name in row.get("missing", {}):
                lines.append(f"| {where} | {name} | not installed |")
        lines.append("")
    return "\n".join(lines)


def read(path: Path | None) -> dict[str, Any]:
    """What an earlier run wrote; nothing where there is no such file."""
    if path is None or not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    """Measure, print one line an architecture, and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=SIX, help="names, or 'all' for the 23 published ones")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--six-parts", default="", help=f"those of {SIX} alone, which take long")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--fresh", action="store_true", help="measure again what --out has already")
    parser.add_argument("--page", action="store_true", help="only write docs/speed.md from benchmarks/speed.json")
    options = parser.parse_args()
    target = ROOT.parent / "docs" / "speed.md"
    if options.page:
        target.write_text(page(json.loads((ROOT / "speed.json").read_text())))
        return
    parts = options.parts.split(",")
    long = options.six_parts.split(",") if options.six_parts else []
    if unknown := {*parts, *long} - set(PARTS):
        raise SystemExit(f"no such part: {', '.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    names = list(MODELS) if options.models == "all" else options.models.split(",") if options.models else []
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "command": "python benchmarks/speed.py " + " ".join(one for one in sys.argv[1:] if one != "--fresh"),
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "batch": options.batch, "size": options.size, "rounds": options.rounds, "threads": options.threads,
        "models": [], "layers": [], "summary": {},
    }  # fmt: skip

    known = read(options.out) if not options.fresh else {}
    if all(known.get(key) == report[key] for key in ("command", "versions", "machine")):
        report["models"], report["layers"] = known["models"], known["layers"]

    def keep() -> None:
        report["summary"] = summary(report["models"])
        done = {row["model"] for row in report["models"]}
        report["unfinished"] = [name for name in names if name not in done]
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n")

    if "layers" in parts and not report["layers"]:
        report["layers"] = of_layers(options.rounds)
        keep()
    for name in [name for name in names if name not in {row["model"] for row in report["models"]}]:
        own = parts + (long if name in SIX.split(",") else [])
        row = of_model(name, own, options.batch, options.size, options.rounds)
        report["models"].append(row)
        keep()
        gc.collect()
        cells = {part: row[part].get("blurify/published") for part in PARTS[:-1] if part in row}
        shown = {part: cell["ratio"] if isinstance(cell, dict) else cell for part, cell in cells.items()}
        print(f"{name:18} blurify/published: {shown}", flush=True)
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
