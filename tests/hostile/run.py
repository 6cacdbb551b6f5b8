"""Read every hostile file with the command line, each in a process of its own: `python tests/hostile/run.py`.

A parent that has imported everything forks a child a file, with 4 GB of memory and 60 seconds. However the file is,
the child must end with exit code 2 and one line on stderr; a file that a mutation left good may be converted. In no
case may code of the file's run (it would leave a file in the marker folder, or open a connection), a traceback be
seen, the file be changed, or anything be left where the output was to be.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import timm  # noqa: F401 (every child has it)
import torch
import torchvision  # noqa: F401

from blurify.cli import main as blurify_main
from blurify.files import opening
from hostile import kinds, templates

SEEDS = 2600
MEMORY = 4 * 2**30
SECONDS = 60


class Result(NamedTuple):
    """How reading one file ended.

    Attributes:
        seed, kind: which file it was.
        code: the exit code; negative for a signal.
        problem: what must not be, '' where all is well.
        seconds: how long it took.
        line: what was said.
    """

    seed: int
    kind: str
    code: int
    problem: str
    seconds: float
    line: str


def import_everything() -> None:
    """Have the command line import what it needs when it is first used, so that no child has to."""
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):
        blurify_main(["inspect", os.devnull])
    gc.collect()
    gc.freeze()  # no child looks through all of it for what can be freed


def prepare() -> None:
    """Import and make what all children share."""
    templates.files()
    templates.models()
    import_everything()


def run(seeds: Iterable[int], jobs: int = 1) -> Iterator[Result]:
    """Read the files of some numbers, several at a time, and say how each ended."""
    prepare()
    running: dict[int, tuple[int, str, Path, float]] = {}
    waiting = iter(seeds)
    more = True
    while more or running:
        while more and len(running) < jobs:
            seed = next(waiting, None)
            if seed is None:
                more = False
                break
            folder = Path(tempfile.mkdtemp(prefix="hostile-"))
            kind = kinds.ORDER[seed % len(kinds.ORDER)]
            running[start(functools.partial(_child, seed, folder))] = (seed, kind, folder, time.monotonic())
        for pid, (seed, kind, folder, begin) in list(running.items()):
            seconds = time.monotonic() - begin
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and seconds > SECONDS:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                done = pid
            if done:
                del running[pid]
                code = os.waitstatus_to_exitcode(status)
                hung = seconds > SECONDS
                yield _judge(seed, kind, folder, code, seconds, hung=hung)
                shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.005)


def start(work: Callable[[], int]) -> int:
    """Fork a child, in a process group of its own, that ends with the exit code which `work` returns: its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    code = 99
    try:
        os.setpgid(0, 0)
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _child(seed: int, folder: Path) -> int:
    marker, made_in, out, here = (folder / name for name in ("marker", "in", "out", "here"))
    for one in (marker, made_in, out, here):
        one.mkdir()
    try:
        _, made = kinds.make(seed, marker)
    except Exception as error:  # the generator's own fault
        (folder / "generator").write_text(repr(error))
        return 98
    path = made_in / made.name
    path.write_bytes(made.content)
    (folder / "before").write_bytes(made.content)
    confine(folder, here, marker / "connected")
    arch = ["--arch", made.arch] if made.arch else []
    output = out / ("y.safetensors" if seed % 5 == 0 else "y.pt")
    verb = ("convert", "convert", "inspect", "check", "revert")[seed // len(kinds.ORDER) % 5]
    if verb in ("inspect", "check"):
        return blurify_main([verb, str(path), *arch])
    return blurify_main([verb, str(path), *arch, "-o", str(output)])


def confine(folder: Path, here: Path, connected: Path) -> None:
    """Let this process print into the folder, work in `here`, have `MEMORY` and no network.

    Args:
        folder: gets the files stdout and stderr.
        here: where it is from now on.
        connected: made where anything tries to open a connection.
    """
    os.chdir(here)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), number)

    def connect(*args: Any) -> None:
        connected.touch()
        raise OSError("no network here")

    socket.socket.connect = connect  # type: ignore[assignment, method-assign]
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def _judge(seed: int, kind: str, folder: Path, code: int, seconds: float, *, hung: bool) -> Result:
    said = (folder / "stderr").read_text(errors="replace") if (folder / "stderr").exists() else ""
    printed = (folder / "stdout").read_text(errors="replace") if (folder / "stdout").exists() else ""
    lines = said.strip().splitlines()
    left = sorted(one.name for one in (folder / "out").iterdir()) if (folder / "out").exists() else []
    problem = ""
    if (folder / "generator").exists():
        problem = f"the generator failed: {(folder / 'generator').read_text()}"
    elif any((folder / "marker").iterdir()):
        problem = "code of the file ran"
    elif hung:
        problem = f"hung for more than {SECONDS} s"
    elif "Traceback" in said + printed:
        problem = "a traceback"
    elif any(one.read_bytes() != (folder / "before").read_bytes() for one in (folder / "in").iterdir()):
        problem = "the file was changed"
    elif len(list((folder / "in").iterdir())) != 1 or list((folder / "here").iterdir()):
        problem = "stray files"
    elif code not in (0, 2):
        problem = f"exit code {code}"
    elif code == 2 and (len(lines) != 1 or left):
        problem = f"{len(lines)} lines, {len(left)} files left"
    elif code == 0 and any(name not in ("y.pt", "y.safetensors") for name in left):
        problem = f"left {left}"
    elif code == 0 and left:
        try:
            opening.open_model(str(folder / "out" / left[0]), arch=None)
        except Exception as error:
            # Tensors alone can't say what they belong to; anything else that was written must load.
            if "--arch" not in str(error) and "how to build" not in str(error):
                problem = f"what was written doesn't load: {error}"
    return Result(seed, kind, code, problem, round(seconds, 1), (lines[-1] if lines else "")[:200])


def parse_seeds(text: str) -> range:
    """`0:2000` as a range."""
    begin, _, end = text.partition(":")
    return range(int(begin), int(end)) if end else range(int(begin), int(begin) + 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=parse_seeds, default=range(SEEDS), help=f"as in 0:100 (default 0:{SEEDS})")
    parser.add_argument("--kind", choices=kinds.ORDER, help="only files of this kind")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every file")
    options = parser.parse_args()
    seeds = [seed for seed in options.seeds if options.kind in (None, kinds.ORDER[seed % len(kinds.ORDER)])]
    count: Counter[str] = Counter()
    good: Counter[str] = Counter()
    failed: list[Result] = []
    begin = time.monotonic()
    for result in run(seeds, options.jobs):
        count[result.kind] += 1
        good[result.kind] += result.code == 0
        if result.problem:
            failed.append(result)
        if result.problem or options.verbose:
            print(
                f"{result.seed} {result.kind}: {result.problem or result.code} ({result.seconds} s) {result.line}",
                flush=True,
            )
    for kind in count:
        wrong = sum(result.kind == kind for result in failed)
        print(f"{kind:12} {count[kind]:5} files, {good[kind]:4} that stayed good, {wrong:4} failures")
    print(f"{len(seeds)} files, {len(failed)} failures, {time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
