"""Kill `blurify convert` at random moments, and fill its disk: what is at the target afterwards, and what beside it.

    python benchmarks/kills.py [--kills 40] [--disks 10] [--seed 0] [--folder DIR] [--out benchmarks/kills.json]

Each run replaces (--force) a file by another of the same size, of a ResNet-18 (47 MB), as .pt and .safetensors in turn.
Of the kills (SIGTERM, SIGKILL, SIGINT, SIGHUP in turn) one half comes at any time of a run, the other half within 0.4 s
from when the temporary file is seen. Afterwards the target must be, byte for byte, the old file or the one that an
undisturbed run writes, and nothing may be beside it: after a SIGKILL, once something was written there again. Disks are
full in two ways: a limit on the size of files (RLIMIT_FSIZE), and, where one may be mounted, a tmpfs that is too small.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import blurify
from benchmarks.heeding import SIGNALS, heed
from blurify.files import atomic, unfinished
from blurify.files.sources import build
from blurify.versions import version_of

ARCH, OLD = "timm/resnet18", b"old file\n" * 1000
CODES = {"SIGTERM": 143, "SIGKILL": -9, "SIGINT": 130, "SIGHUP": 129}


def make_weights(path: Path, arch: str = ARCH) -> None:
    """A file of random weights, the same every time."""
    torch.manual_seed(0)
    torch.save(build(arch, pretrained=False)[0].state_dict(), path)


def start(
    weights: Path, output: Path, arch: str = ARCH, before: Callable[[], object] | None = None
) -> subprocess.Popen[str]:
    """A conversion in a process of its own, in which `before` is called first."""
    command = [sys.executable, "-m", "blurify", "convert", weights, "-o", output, "--arch", arch, "--force"]
    return subprocess.Popen(
        [*map(str, command), "--no-verify"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"OMP_NUM_THREADS": "1", **os.environ}, preexec_fn=functools.partial(heed, before),
    )  # fmt: skip


def temporaries(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if unfinished.NAME.fullmatch(entry.name)]


def kill(
    weights: Path, output: Path, name: str, *, whole: bytes, after: float, from_writing: bool, arch: str = ARCH
) -> dict[str, Any]:
    """Send a signal to a conversion that replaces `OLD`, and look at what it leaves.

    Args:
        whole: what an undisturbed conversion writes.
        after: seconds until then.
        from_writing: they count from when the temporary file is there, not from the start.
    """
    output.write_bytes(OLD)
    with start(weights, output, arch) as process:
        while from_writing and process.poll() is None and not temporaries(output.parent):
            time.sleep(0.001)
        time.sleep(after)
        begin = time.monotonic()
        writing = bool(temporaries(output.parent))
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate()
    found = look(output, whole)
    found |= {"signal": name, "after": round(after, 3), "from_writing": from_writing, "was_writing": writing}
    found |= {"seconds_to_end": round(time.monotonic() - begin, 2), "code": process.returncode, "stderr": errors}
    if name == "SIGKILL":
        atomic.write_bytes(output.parent / "next", b"", force=True)
        (output.parent / "next").unlink()
        found["beside_after_next"] = look(output, whole)["beside"]
    return found


def look(output: Path, whole: bytes) -> dict[str, Any]:
    """Which file is at the target, and what is beside it."""
    content = output.read_bytes() if output.exists() else None
    target = "old" if content == OLD else "new" if content == whole else "neither"
    return {"target": target, "beside": sorted(entry.name for entry in output.parent.iterdir() if entry != output)}


def is_good(found: dict[str, Any]) -> bool:
    """Whether a run left what it may."""
    beside = found.get("beside_after_next", found["beside"])
    return found["target"] in ("old", "new") and not beside and "Traceback" not in found["stderr"]


def limited(weights: Path, output: Path, room: int, *, whole: bytes, arch: str = ARCH) -> dict[str, Any]:
    """A conversion in a process that may write no file of more bytes."""
    output.write_bytes(OLD)
    with start(
        weights, output, arch, before=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, room))
    ) as process:
        _, errors = process.communicate()
    return {**look(output, whole), "disk": "limit", "room": room, "code": process.returncode, "stderr": errors}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a small disk on a folder; whether that could be done."""
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield made.returncode == 0
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


def full(weights: Path, folder: Path, name: str, room: int, *, whole: bytes, arch: str = ARCH) -> dict[str, Any] | None:
    """A conversion on a disk that is too small; None where none can be mounted."""
    with small_disk(folder, room) as mounted:
        if not mounted:
            return None
        output = folder / name
        output.write_bytes(OLD)
        with start(weights, output, arch) as process:
            _, errors = process.communicate()
        return {**look(output, whole), "disk": "tmpfs", "room": room, "code": process.returncode, "stderr": errors}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--disks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    command = f"python benchmarks/kills.py --kills {given.kills} --disks {given.disks} --seed {given.seed}"
    result: dict[str, Any] = {}

    def keep(kills: list[dict[str, Any]], disks: list[dict[str, Any]], seconds: dict[str, float]) -> None:
        """After each run, so that a benchmark that is itself killed has what it found."""
        nonlocal result
        result = {"command": command, "undisturbed_seconds": seconds, **summarized(kills, disks)}
        if given.out:
            atomic.write_bytes(given.out, (json.dumps(result, indent=1) + "\n").encode(), force=True)

    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        _all(Path(place), given.kills, given.disks, chance, keep)
    print(json.dumps(result["summary"]))
    return 1 if result["summary"]["bad"] else 0


def summarized(kills: list[dict[str, Any]], disks: list[dict[str, Any]]) -> dict[str, Any]:
    """What was found, and in short."""
    both = [*kills, *disks]
    return {
        "versions": {name: version_of(name) for name in ("torch", "timm", "safetensors")}
        | {"blurify": blurify.__version__, "python": platform.python_version(), "system": platform.platform()},
        "summary": {
            "kills": len(kills),
            "kills_while_writing": sum(found["was_writing"] for found in kills),
            "full_disks": len(disks),
            "old": sum(found["target"] == "old" for found in both),
            "new": sum(found["target"] == "new" for found in both),
            "bad": sum(not is_good(found) for found in both),
        },
        "kills": kills,
        "disks": disks,
    }


def _all(
    place: Path, kills: int, disks: int, chance: random.Random, keep: Callable[[list[Any], list[Any], Any], None]
) -> None:
    weights, folder = place / "weights.pt", place / "out"
    folder.mkdir()
    make_weights(weights)
    whole, seconds = {}, {}
    for ending in ("pt", "safetensors"):
        begin = time.monotonic()
        with start(weights, folder / f"m.{ending}") as process:
            _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(errors)
        seconds[ending] = round(time.monotonic() - begin, 2)
        whole[ending] = (folder / f"m.{ending}").read_bytes()
        (folder / f"m.{ending}").unlink()
    killed: list[dict[str, Any]] = []
    filled: list[dict[str, Any]] = []
    for number in range(kills):
        ending = ("pt", "safetensors")[number // len(SIGNALS) % 2]
        writing = number // (2 * len(SIGNALS)) % 2 == 0
        after = chance.uniform(0, 0.4) if writing else chance.uniform(0, seconds[ending])
        found = kill(
            weights, folder / f"m.{ending}", SIGNALS[number % len(SIGNALS)], whole=whole[ending], after=after,
            from_writing=writing,
        )  # fmt: skip
        _say(found)
        killed.append({**found, "format": ending, "good": is_good(found)})
        keep(killed, filled, seconds)
        (folder / f"m.{ending}").unlink()
    for number in range(disks):
        ending = ("pt", "safetensors")[number // 2 % 2]
        room = chance.randrange(len(OLD) + 2**16, len(whole[ending]))
        one = None
        if number % 2:
            one = full(weights, place / "disk", f"m.{ending}", room, whole=whole[ending])
        if one is None:
            one = limited(weights, folder / f"m.{ending}", room, whole=whole[ending])
            (folder / f"m.{ending}").unlink()
        one["stderr"] = one["stderr"].replace(str(place), "")
        _say(one)
        filled.append({**one, "format": ending, "good": is_good(one)})
        keep(killed, filled, seconds)


def _say(found: dict[str, Any]) -> None:
    print(json.dumps({key: value for key, value in found.items() if value != []}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
