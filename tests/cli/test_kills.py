"""Real conversions, killed and on full disks: the old file or the new one, and nothing else in the folder."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

pytest.importorskip("resource")  # no such limits and signals on Windows

from benchmarks import kills
from benchmarks.heeding import heed
from blurify.cli import console, signals
from tests import warm

ARCH = "timm/test_resnet"


@pytest.fixture(scope="module", autouse=True)
def conversions_are_forked() -> Iterator[None]:
    """Of a process that has imported torch: `make kills` starts whole ones, and kills them while they import, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kills, "subprocess", warm)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    kills.make_weights(path, ARCH)
    return path


@pytest.fixture(scope="module")
def undisturbed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """What a conversion writes that nothing happens to, and how many seconds it takes."""
    output = tmp_path_factory.mktemp("whole") / "m.pt"
    warm.run([sys.executable, "-c", ""])  # imports torch
    begin = time.monotonic()
    with kills.start(weights, output, ARCH) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    return output.read_bytes(), time.monotonic() - begin


@pytest.fixture(scope="module")
def whole(undisturbed: tuple[bytes, float]) -> bytes:
    return undisturbed[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT"])
@pytest.mark.parametrize("from_writing", [True, False])
def test_a_killed_conversion_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, weights: Path, undisturbed: tuple[bytes, float], name: str, from_writing: bool
) -> None:
    whole, seconds = undisturbed
    after = random.uniform(0, 0.05 if from_writing else seconds)
    output = tmp_path / "m.pt"
    found = kills.kill(weights, output, name, whole=whole, after=after, from_writing=from_writing, arch=ARCH)
    assert kills.is_good(found), found
    # Before Python knows of the signal, and after it has forgotten it, its number alone is the code.
    assert found["code"] in (0, kills.CODES[name], -getattr(signal, name)), found


# A writer that says when it has begun, in the command line's own surroundings.
WRITING = """
import sys, time
from pathlib import Path
from blurify import cli
from blurify.cli import signals
from blurify.files import atomic
signals.GRACE = float(sys.argv[3])
def write(file):
    file.write(b"half"); file.flush()
    said = ["writing"]
    while True:
        try:
            while said:
                print(said.pop(), flush=True)
            time.sleep(0.1)  # Python looks for a signal before it sleeps, and one may come right behind that
        except KeyboardInterrupt:
            if sys.argv[2] == "raise":
                raise
            if sys.argv[2] == "disguise":
                raise RuntimeError("unexpected pos 64 vs 0")
class App:
    def main(self, *given, **named):
        atomic.write_file(Path(sys.argv[1]), write, force=True)
cli.typer.main.get_command = lambda app: App()
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("answer", ["raise", "disguise"])
def test_a_signal_while_writing_is_one_line_and_its_own_exit_code(tmp_path: Path, name: str, answer: str) -> None:
    code, errors = stopped(tmp_path / "m.pt", answer, name)
    assert code == kills.CODES[name]
    assert errors == ("" if name == "SIGINT" else f"error: stopped by {name}: no unfinished file is left\n")


def test_code_that_swallows_the_exception_is_ended_after_a_while(tmp_path: Path) -> None:
    code, errors = stopped(tmp_path / "m.pt", "swallow", "SIGTERM", grace=0.2)
    assert code == 143 and errors == "error: stopped by SIGTERM: no unfinished file is left\n"


def stopped(output: Path, answer: str, name: str, grace: float = 1000) -> tuple[int, str]:
    """The exit code and stderr of a writer that was sent a signal; its target is as it was, and alone."""
    output.write_text("before")
    command = [sys.executable, "-c", WRITING, str(output), answer, str(grace)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "writing\n"
            process.send_signal(getattr(signal, name))
            _, errors = process.communicate(timeout=900)
        finally:
            process.kill()  # of one that has ended nothing is left to kill
    assert [entry.name for entry in output.parent.iterdir()] == [output.name] and output.read_text() == "before"
    return process.returncode, errors


def test_signals_that_are_ignored_stay_ignored_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with signals.watched() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) is not terminate
        assert stop.code is None and signal.getsignal(signal.SIGTERM) is terminate
        with pytest.raises(signals.Stopped), signals.watched() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.code == 143
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_a_signal_whose_exception_was_swallowed_no_further_step_begins() -> None:
    begun = []
    with signals.watched() as stop, console.one_line_errors(stop) as outcome:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            begun.append("swallowed")
        with console.working("the next step"):
            begun.append("next step")
    assert begun == ["swallowed"] and outcome.code == 143


FORKING = """
import os, signal, time
from blurify.cli import signals
signals.GRACE = 0.1
with signals.watched() as stop:
    for wait in (*[0] * 20, 0.1):  # one of them gets it before it has run an instruction of its own
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(wait)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    time.sleep(0.5)
assert stop.code is None
"""


def test_a_forked_worker_that_is_ended_does_not_end_its_parent() -> None:
    subprocess.run([sys.executable, "-c", FORKING], check=True)


# Full disks


def test_a_limit_on_the_size_of_files_leaves_the_old_file(tmp_path: Path, weights: Path, whole: bytes) -> None:
    found = kills.limited(weights, tmp_path / "m.pt", len(whole) // 2, whole=whole, arch=ARCH)
    assert (found["target"], found["beside"], found["code"]) == ("old", [], 2), found
    assert found["stderr"].count("\n") == 1 and "MB are needed (see ulimit -f)" in found["stderr"]


def test_a_full_disk_leaves_the_old_file_and_says_what_is_needed(tmp_path: Path, weights: Path, whole: bytes) -> None:
    room = len(kills.OLD) + len(whole) // 2
    found = kills.full(weights, tmp_path / "disk", "m.pt", room, whole=whole, arch=ARCH)
    if found is None:
        pytest.skip("no disk can be mounted here")
    assert (found["target"], found["beside"], found["code"]) == ("old", [], 2), found
    needed = f"{len(whole) / 1e6:.1f} MB are needed"
    assert found["stderr"].count("\n") == 1 and "the disk is full" in found["stderr"] and needed in found["stderr"]


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_conversion_may_replace_its_own_source(tmp_path: Path, weights: Path, whole: bytes, ending: str) -> None:
    """And one that fails doesn't."""
    own, other = tmp_path / f"own.{ending}", tmp_path / f"other.{ending}"
    if ending == "pt":
        own.write_bytes(weights.read_bytes())
    else:
        safetensors.torch.save_file(torch.load(weights), own)
    before = own.read_bytes()
    with kills.start(own, own, ARCH, before=limit(len(whole) // 2)) as process:
        process.communicate()
    assert process.returncode == 2 and own.read_bytes() == before
    for output in (other, own):
        with kills.start(own, output, ARCH) as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert own.read_bytes() == other.read_bytes() != before
    assert {entry.name for entry in tmp_path.iterdir()} == {own.name, other.name}


def limit(room: int) -> Callable[[], None]:
    return functools.partial(kills.resource.setrlimit, kills.resource.RLIMIT_FSIZE, (room, room))
