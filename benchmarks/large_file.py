"""Large files: what converting a file of safetensors takes in memory and time, against its size and against `cp`.

    python benchmarks/large_file.py [--folder /tmp/large] [--rounds 3] [--out benchmarks/large_file.json]

Published networks of 0.1, 5.1 and 3.7 GB are made with random weights and converted by the command line,
each in a process of its own: with the proof, and without (--no-verify). Peak memory is what the kernel says of the
process. Copying is timed beside it in the same round, alone and with the `sync` that writing safely needs.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import blurify
from blurify.files import sources
from blurify.files.tensors import write_tensors
from blurify.graph.copies import without_weights
from blurify.versions import version_of

# The third computes every kernel from its weight before it convolves with it (weight standardisation): where a proof
# must look into such a kernel, whole copies of the largest one are made.
MODELS = {"small": "timm/resnetv2_50", "large": "timm/regnety_2560", "standardised": "timm/resnetv2_152x4_bit"}
SHAPE = "1,3,64,64"


def make(path: Path, arch: str) -> None:
    """A file of an architecture's weights, random and of a size that a forward can compute with."""
    with without_weights():
        model, _ = sources.build(arch, pretrained=False)
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()

    class Random:
        """Makes each tensor when its turn comes: the whole is larger than what one wants in memory."""

        def __init__(self) -> None:
            self.keys = state.keys

        def __iter__(self) -> Any:
            return iter(state)

        def __getitem__(self, name: str) -> torch.Tensor:
            value = state[name]
            if not value.is_meta:
                return value
            if value.ndim > 1:
                return torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
            return torch.ones(value.shape) if name.endswith("weight") else torch.zeros(value.shape)

    with path.open("wb") as file:
        write_tensors(file, Random(), {"format": "pt"})  # type: ignore[arg-type]


def run(path: Path, arch: str, *options: str) -> dict[str, float]:
    """One conversion in a process of its own: seconds, those of writing among them, and the peak memory in MB."""
    output = path.with_name("converted.safetensors")
    output.unlink(missing_ok=True)
    program = (
        "import json, sys, time\n"
        "from blurify.cli import main\n"
        "from blurify.files import checkpoints\n"
        "save, spent = checkpoints.save, []\n"
        "def timed(*arguments, **options):\n"
        "    begin = time.perf_counter()\n"
        "    path = save(*arguments, **options)\n"
        "    spent.append(time.perf_counter() - begin)\n"
        "    return path\n"
        "checkpoints.save = timed\n"
        "code = main(sys.argv[1:])\n"
        # Of this program alone: what getrusage says begins with the size of the process that started it.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print('measured', int(peak.split()[1]), *spent, file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    arguments = ["convert", str(path), "--arch", arch, "--input-shape", SHAPE, "-o", str(output), *options]
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stderr)
    _, peak, writing = next(line.split() for line in done.stderr.splitlines() if line.startswith("measured"))
    return {"seconds": seconds, "writing_seconds": float(writing), "peak_mb": int(peak) / 1024}


def copied(path: Path, *, sync: bool) -> float:
    """The seconds of `cp`, and of having it on the disk."""
    target = path.with_name("copy.safetensors")
    target.unlink(missing_ok=True)
    begin = time.perf_counter()
    subprocess.run(["cp", str(path), str(target)], check=True)
    if sync:
        subprocess.run(["sync", str(target)], check=True)
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


def main() -> int:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="large-", dir=options.folder))
    try:
        result = measure(folder, options.rounds)
    finally:
        shutil.rmtree(folder)
    for line in lines(result):
        print(line)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """All figures: medians over interleaved rounds."""
    files = {name: folder / f"{name}.safetensors" for name in MODELS}
    for name, path in files.items():
        make(path, MODELS[name])
    found: dict[str, dict[str, list[float]]] = {name: {} for name in MODELS}
    for _ in range(rounds):
        for name, path in files.items():
            row = found[name]
            for kind, flags in (("proven", ()), ("unproven", ("--no-verify",))):
                one = run(path, MODELS[name], *flags)
                for key, value in one.items():
                    row.setdefault(f"{kind}_{key}", []).append(value)
            row.setdefault("cp_seconds", []).append(copied(path, sync=False))
            row.setdefault("cp_sync_seconds", []).append(copied(path, sync=True))
    medians = {name: {key: statistics.median(values) for key, values in row.items()} for name, row in found.items()}

    def ratios(large: dict[str, float], small: dict[str, float]) -> dict[str, float]:
        return {
            "peak_proven": large["proven_peak_mb"] / small["proven_peak_mb"],
            "peak_unproven": large["unproven_peak_mb"] / small["unproven_peak_mb"],
            "writing_over_cp": large["unproven_writing_seconds"] / large["cp_seconds"],
            "writing_over_cp_sync": large["unproven_writing_seconds"] / large["cp_sync_seconds"],
        }

    return {
        "command": "python benchmarks/large_file.py",
        "versions": {name: version_of(name) for name in ("torch", "timm", "safetensors")}
        | {"python": platform.python_version(), "blurify": blurify.__version__},
        "rounds": rounds,
        "input_shape": SHAPE,
        "files": {name: {"arch": MODELS[name], "bytes": path.stat().st_size} for name, path in files.items()},
        "medians": medians,
        "all": found,
        "ratios": {name: ratios(medians[name], medians["small"]) for name in MODELS if name != "small"},
    }


def lines(result: dict[str, Any]) -> list[str]:
    """The figures in words."""
    said = []
    for name, file in result["files"].items():
        row = result["medians"][name]
        said.append(
            f"{file['arch']:26} {file['bytes'] / 1e6:5.0f} MB: "
            f"proven {row['proven_seconds']:.1f} s at {row['proven_peak_mb']:.0f} MB, "
            f"unproven {row['unproven_seconds']:.1f} s at {row['unproven_peak_mb']:.0f} MB, "
            f"{row['unproven_writing_seconds']:.1f} s of it writing; "
            f"cp {row['cp_seconds']:.1f} s, with sync {row['cp_sync_seconds']:.1f} s"
        )
    for name, ratios in result["ratios"].items():
        peaks = f"{ratios['peak_proven']:.2f} proven, {ratios['peak_unproven']:.2f} unproven"
        writing = f"{ratios['writing_over_cp']:.2f} times cp, {ratios['writing_over_cp_sync']:.2f} times cp with sync"
        said.append(f"{name} over small, peak memory: {peaks}; writing: {writing}")
    return said


if __name__ == "__main__":
    sys.exit(main())
