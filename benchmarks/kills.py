"""Kill `blurify convert` at random times, and let it run out of room: what is in the folder afterwards?

    python benchmarks/kills.py [--kills 40] [--full 10] [--arch timm/resnet50] [--out benchmarks/kills.json]

Each run is the command line in a process of its own, which is to replace a file. Half of the kills come at any time,
half while the file is being written; half of them are SIGTERM, half SIGKILL. Afterwards there must be the old file or
the new one, bit by bit, and nothing else; after SIGKILL, nothing else after the next run. A full disk is a small tmpfs
where this process may mount one, and every other time, or where it may not, a limit on the size of files
(RLIMIT_FSIZE).
"""

from __future__ import annotations

import argparse
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
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import blurify
from blurify.files import sources
from blurify.files.unfinished import UNFINISHED
from blurify.versions import version_of

OLD = b"the old file " * 1000
SUFFIXES = (".safetensors", ".pt")


@dataclass(frozen=True)
class Case:
    """What one run left.

    Attributes:
        what: the signal, or the way in which there was no room.
        when: 'anywhere' | 'writing' | ''.
        target: the name of the file to be written.
        code: how the process ended.
        content: 'old' | 'new' | 'other'.
        stray: how many other files were in the folder.
        stray_later: the same after the next run.
        said: the last line on stderr.
    """

    what: str
    when: str
    target: str
    code: int
    content: str
    stray: int
    stray_later: int = 0
    said: str = ""

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        if self.what == "SIGKILL":
            return self.content in ("old", "new") and not self.stray_later
        if self.what == "SIGTERM":
            # -15: before a line of ours ran
            return self.content in ("old", "new") and not self.stray and self.code in (0, 143, -15)
        return self.content == "old" and not self.stray and self.code == 2 and "can't be written" in self.said


class Runs:
    """Conversions of one file of weights, and what they are to give.

    Args:
        folder: gets everything.
        arch: a factory spec.
        seed: of when to kill.
    """

    def __init__(self, folder: Path, arch: str, seed: int = 0) -> None:
        self.folder, self.arch, self.random = folder, arch, random.Random(seed)
        self.place = folder / "place"
        self.place.mkdir()
        self.source = folder / "in.safetensors"
        torch.manual_seed(0)
        model, _ = sources.build(arch, pretrained=False)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, self.source)
        self.new: dict[str, bytes] = {}
        self.seconds: dict[str, tuple[float, float]] = {}  # until it is being written, and from there on
        for suffix in SUFFIXES:
            target = self._old(self.place, suffix)
            begin = time.perf_counter()
            running = self._start(target)
            self._wait_for_writing(running, self.place)
            writing = time.perf_counter()
            while any(UNFINISHED.fullmatch(name) for name in os.listdir(self.place)):
                time.sleep(0.0005)
            self.seconds[suffix] = writing - begin, time.perf_counter() - writing
            if running.wait():
                raise SystemExit(running.stderr.read().decode() if running.stderr else "")
            self.new[suffix] = target.read_bytes()
            target.unlink()

    def _old(self, place: Path, suffix: str) -> Path:
        target = place / f"model{suffix}"
        target.write_bytes(OLD)
        return target

    def _start(self, target: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        arguments = [str(self.source), "--arch", self.arch, "--input-shape", "1,3,64,64", "--no-verify", "--force"]
        return subprocess.Popen(
            [sys.executable, "-m", "blurify", "convert", *arguments, "-o", str(target)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=before,
            env={**os.environ, "PYTHONPATH": str(Path(blurify.__file__).parents[1])},
        )

    @staticmethod
    def _wait_for_writing(running: subprocess.Popen[bytes], place: Path) -> None:
        while running.poll() is None and not any(UNFINISHED.fullmatch(name) for name in os.listdir(place)):
            time.sleep(0.0005)

    def _content(self, target: Path) -> str:
        found = target.read_bytes() if target.exists() else b""
        return "old" if found == OLD else "new" if found == self.new[target.suffix] else "other"

    def killed(self, number: signal.Signals, when: str, suffix: str, *, next_run: bool = True) -> Case:
        """One run that is killed, and after SIGKILL the next one."""
        target = self._old(self.place, suffix)
        until, writing = self.seconds[suffix]
        running = self._start(target)
        if when == "writing":
            self._wait_for_writing(running, self.place)
            time.sleep(self.random.uniform(0, writing))
        else:
            time.sleep(self.random.uniform(0, until + writing))
        running.send_signal(number)
        code = running.wait()
        content = self._content(target)
        stray = len(os.listdir(self.place)) - 1
        later = 0
        if number == signal.SIGKILL and next_run:
            again = self._start(target)
            if again.wait() or self._content(target) != "new":
                content = "other"
            later = len(os.listdir(self.place)) - 1
        target.unlink(missing_ok=True)
        return Case(number.name, when, target.name, code, content, stray, later, _last_line(running))

    def limited(self, suffix: str) -> Case:
        """One run in which files may not become as large as the new one."""
        most = self.random.randrange(len(OLD), len(self.new[suffix]) - 1)
        target = self._old(self.place, suffix)
        running = self._start(target, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
        return self._full("a limit", target, running)

    def on_small_disk(self, suffix: str) -> Case:
        """One run on a tmpfs that is smaller than the new file; a limit where none can be mounted."""
        place = self.folder / "small"
        place.mkdir(exist_ok=True)
        size = self.random.randrange(4 * len(OLD), len(self.new[suffix]) - 1)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size // 1024}k", "blurify-kills", str(place)]
        try:
            done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:
            done = False
        if not done:
            return self.limited(suffix)
        try:
            target = self._old(place, suffix)
            return self._full("a small disk", target, self._start(target))
        finally:
            subprocess.run(["umount", str(place)], check=True)

    def _full(self, what: str, target: Path, running: subprocess.Popen[bytes]) -> Case:
        code = running.wait()
        stray = len(os.listdir(target.parent)) - 1
        case = Case(what, "", target.name, code, self._content(target), stray, 0, _last_line(running))
        target.unlink(missing_ok=True)
        return case


def _last_line(running: subprocess.Popen[bytes]) -> str:
    said = running.stderr.read().decode(errors="replace").splitlines() if running.stderr is not None else []
    return said[-1] if said else ""


def main() -> int:
    """Run, print, and keep the result; 1 where a run left something else."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--full", type=int, default=10)
    parser.add_argument("--arch", default="timm/resnet50")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        runs = Runs(Path(folder), options.arch)
        for index in range(options.kills):
            number = (signal.SIGTERM, signal.SIGKILL)[index % 2]
            when, suffix = ("writing", "anywhere")[index // 2 % 2], SUFFIXES[index // 4 % 2]
            cases.append(runs.killed(number, when, suffix))
            print(cases[-1], flush=True)
        for index in range(options.full):
            suffix = SUFFIXES[index // 2 % 2]
            cases.append(runs.on_small_disk(suffix) if index % 2 == 0 else runs.limited(suffix))
            print(cases[-1], flush=True)
    bad = [case for case in cases if not case.good]
    result: dict[str, Any] = {
        "command": f"python benchmarks/kills.py --kills {options.kills} --full {options.full} --arch {options.arch}",
        "versions": {name: version_of(name) for name in ("torch", "timm", "safetensors")}
        | {"python": platform.python_version(), "blurify": blurify.__version__, "system": platform.platform()},
        "bytes": {suffix: len(new) for suffix, new in runs.new.items()},
        "seconds": runs.seconds,
        "ended": Counter(f"{case.what}, {case.content} file, code {case.code}" for case in cases),
        "left_by_sigkill": sum(case.stray for case in cases if case.what == "SIGKILL"),
        "bad": [asdict(case) for case in bad],
        "cases": [asdict(case) for case in cases],
    }
    print(f"{len(cases)} runs, {len(bad)} of them not as they should be")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
