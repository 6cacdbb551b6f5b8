"""`measure` and `report`, stopped and killed at random: what was measured is shown, and is not measured again."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("resource")  # no such signals on Windows

from benchmarks.heeding import heed
from blurify import allocation, cli
from blurify.cli import answers, certify, console, expecting, measuring, teaching
from blurify.metrics import keeping
from tests import warm

KILLS = int(os.environ.get("BLURIFY_KILLS", "2"))
"""Of each command; for ten of them: BLURIFY_KILLS=10."""

# A network that writes down what it is shown, a line a picture.
COUNTED = """
import hashlib, os, time
import torch
from torch import nn

class Counted(nn.Sequential):
    def forward(self, x):
        if not x.is_meta:
            time.sleep(float(os.environ.get("COUNTED_WAIT", "0")))
            with open(os.environ["COUNTED"], "a") as file:
                file.write("".join(hashlib.md5(one.numpy().tobytes()).hexdigest() + "\\n" for one in x))
        return super().forward(x)

def net():
    torch.manual_seed(0)
    return Counted(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10),
    ).eval()
"""
GEOMETRY = ["--size", "24", "--canvas", "32", "--mean", "0", "--std", "1"]
MODEL = ["python:counted:net", *GEOMETRY, "--device", "cpu", "--images", "6", "--batch-size", "2"]
METRICS = {
    "measure": "consistency,aliasing,equivariance,half-patch,worst-case",
    "report": "consistency,aliasing,equivariance,stability",
}
# Pictures: a batch that consistency sees four times, or one forward; two unshifted ones; the proof of a conversion.
LOST = 2 * 4 + 2 + 2 + 3


class Runs:
    """Command lines in processes of their own, with a folder, a cache and the network's notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "counted.py").write_text(COUNTED)
        self.notes = folder / "notes"

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "blurify", *map(str, arguments)]

    def around(self, wait: float = 0) -> dict[str, Any]:
        paths = [str(self.folder), os.environ.get("PYTHONPATH", ""), str(Path(cli.__file__).parents[2])]
        more = {
            "COUNTED": str(self.notes), "COUNTED_WAIT": str(wait), "BLURIFY_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }  # fmt: skip
        return {"env": {**os.environ, **more}, "cwd": self.folder}

    def start(self, *arguments: object, wait: float = 0) -> subprocess.Popen[str]:
        return warm.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed,
            **self.around(wait),
        )  # fmt: skip

    def run(self, *arguments: object) -> str:
        with self.start(*arguments) as process:
            out, errors = process.communicate()
        assert process.returncode == 0, errors
        self.errors = errors
        return out

    def stop_after(self, count: int, number: int, *arguments: object, wait: float = 0) -> tuple[int, str, str]:
        """Send a signal once the network has noted that many pictures more; exit code, stdout and stderr."""
        target = self.noted() + count
        with self.start(*arguments, wait=wait) as process:
            while process.poll() is None and self.noted() < target:
                time.sleep(0.002)
            process.send_signal(number)
            out, errors = process.communicate()
        return process.returncode, out, errors

    def seen(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def noted(self) -> int:
        """How many lines the notes have, without reading them: each is a digest."""
        return self.notes.stat().st_size // 33 if self.notes.exists() else 0

    @property
    def journals(self) -> list[Path]:
        return sorted((self.folder / "cache" / "measured").glob("*"))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def result_of(command: str, runs: Runs, out: str) -> Any:
    """What there is to compare: all numbers of the JSON; the page's shares in percent."""
    if command == "measure":
        return json.loads(out)
    page = (runs.folder / "page.html").read_text()
    return re.findall(r"\d+\.\d+%", page)


def digest(picture: torch.Tensor) -> str:
    return hashlib.md5(picture.numpy().tobytes()).hexdigest()


def seen_before() -> set[str]:
    """What is shown before any work begins, as often as the machine's pace has it: noise, and a black picture."""
    noise = torch.rand(64, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    rolled = [torch.roll(noise, (y, x), (2, 3)) for y in (0, 1) for x in (0, 1)]
    return {digest(one) for one in (torch.zeros(1, 24, 24), *torch.cat(rolled))}


@pytest.mark.parametrize("command", ["measure", "report"])
def test_killed_at_random_nothing_measured_is_measured_again(tmp_path: Path, command: str) -> None:
    asked = [command, *MODEL, "--metrics", METRICS[command], "--most-shift", "3", "--convert"]
    asked += ["--json"] if command == "measure" else ["-o", "page.html", "--force"]
    undisturbed = Runs(tmp_path / "undisturbed")
    wanted = result_of(command, undisturbed, undisturbed.run(*asked))
    needed = Counter(undisturbed.seen())
    # What is seen before any work begins: noise, shifted too, that is timed and answered; and a black picture.
    before = seen_before()
    assert before & set(needed)
    work = sum(count for picture, count in needed.items() if picture not in before)

    runs, choice = Runs(tmp_path / "killed"), random.Random(command)
    for _ in range(KILLS):
        code, _, errors = runs.stop_after(choice.randrange(1, 2 * work // KILLS), signal.SIGKILL, *asked, wait=0.001)
        assert code in (0, -signal.SIGKILL), errors
        if code == 0:
            runs.notes.unlink()  # it was done before: the next one begins anew
    code, out, errors = runs.stop_after(10**9, signal.SIGKILL, *asked)
    assert code == 0, errors
    assert result_of(command, runs, out) == wanted
    assert not runs.journals
    found = Counter(picture for picture in runs.seen() if picture not in before)
    assert found.total() <= work + KILLS * LOST
    assert all(found[picture] >= count for picture, count in needed.items() if picture not in before)


def test_what_is_finished_is_shown_where_it_is_interrupted_and_the_same_command_goes_on(runs: Runs) -> None:
    asked = ["measure", *MODEL, "--metrics", "consistency,worst-case"]
    code, out, errors = runs.stop_after(100, signal.SIGINT, *asked, wait=0.005)
    assert code == 130, errors
    assert "consistency: same answer in two random crops" in out and "worst" not in out
    assert (
        errors
        == "stopped: what was measured is kept; run the same command again to go on (--fresh measures all anew)\n"
    )
    before = len(runs.seen())
    whole = runs.run(*asked)
    assert runs.errors.startswith("going on with a run that was stopped: some results of python:counted:net are there")
    assert all(line in whole for line in out.splitlines() if line.startswith(("accuracy", "shift by")))
    assert not runs.journals
    after = len(runs.seen()) - before
    assert whole == runs.run(*asked) and runs.errors == ""
    assert after + before - 60 < len(runs.seen()) - before - after  # which measured all anew, as nothing was left


def test_json_that_is_stopped_is_none_and_fresh_measures_all_anew(runs: Runs) -> None:
    asked = ["measure", *MODEL, "--json", "--metrics", "consistency,half-patch"]
    code, out, errors = runs.stop_after(100, signal.SIGTERM, *asked, wait=0.005)
    assert (code, out) == (143, "") and "to go on" in errors and len(runs.journals) == 1
    before = len(runs.seen())
    runs.run(*asked, "--fresh")
    assert runs.errors == "" and not runs.journals
    assert len(runs.seen()) - before >= 6 * (4 + 19)


# In this process


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLURIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(console.TRACEBACK, raising=False)
    return tmp_path / "cache" / "measured"


DEMO = ["measure", "python:blurify.demo:trained_network", "--images", "8", "--device", "cpu"]


def test_what_was_measured_is_kept_until_it_is_where_it_is_to_be(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from blurify.metrics import files

    def refuse(*given: object, **named: object) -> None:
        raise console.BlurifyError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_measurements", refuse)
        assert cli.main([*DEMO, "-o", str(tmp_path / "found.json")]) == 2
    assert len(list(cache.iterdir())) == 1
    capsys.readouterr()
    assert cli.main([*DEMO, "-o", str(tmp_path / "found.json")]) == 0
    assert "going on" in capsys.readouterr().err and not list(cache.iterdir())


def test_what_is_printed_onto_a_full_disk_is_kept(runs: Runs) -> None:
    asked = ["measure", *MODEL, "--metrics", "consistency", "--json"]
    wanted = runs.run(*asked)
    assert not runs.journals
    with open("/dev/full", "w") as disk:
        found = subprocess.run(runs.command(*asked), stdout=disk, stderr=subprocess.PIPE, text=True, **runs.around())
    assert found.returncode == 1 and "No space left on device" in found.stderr and found.stderr.count("\n") == 1
    assert len(runs.journals) == 1
    runs.notes.unlink()
    # As before, not forked of a process that has loaded the tests' own code.
    again = subprocess.run(runs.command(*asked), capture_output=True, text=True, **runs.around())
    assert again.stdout == wanted and "going on" in again.stderr
    assert set(runs.seen()) <= seen_before()  # nothing was measured again
    assert not runs.journals


def test_what_is_there_is_no_part_of_the_time_that_is_said_to_be_left(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from blurify.metrics import files

    said: list[float] = []
    monkeypatch.setattr(expecting, "warn", lambda found, most_shift: said.append(expecting.total(found)))
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_measurements", None)
        assert cli.main([*DEMO, "-o", str(tmp_path / "found.json")]) == 1
    capsys.readouterr()
    # Another command knows nothing of it, and leaves it there.
    assert cli.main([*DEMO, "--metrics", "worst-case"]) == 0
    assert "going on" not in capsys.readouterr().err and len(list(cache.iterdir())) == 1
    assert cli.main([*DEMO, "-o", str(tmp_path / "found.json")]) == 0
    assert "going on" in capsys.readouterr().err and not list(cache.iterdir())
    assert said[0] > 0 and said[1] > 0 and said[2] == 0


@pytest.mark.parametrize("what", ["a file in its place", "no space", "no home"])
def test_where_nothing_can_be_kept_it_is_measured_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    assert cli.main([*DEMO, "--json"]) == 0
    wanted = capsys.readouterr().out
    if what == "no home":
        for name in ("BLURIFY_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        reason = "there is no home folder"
    elif what == "no space":
        monkeypatch.setattr(keeping, "open_journal", full)
        reason = "No space left on device"
    else:
        cache.rmdir()
        cache.touch()
        reason = "File exists"
    assert cli.main([*DEMO, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == wanted
    assert captured.err.count("\n") == 1 and reason in captured.err
    assert captured.err.startswith("note: results are not kept (") and "begins anew" in captured.err


def full(path: Path) -> Any:
    """A journal on a disk that is full once its head is written."""
    from blurify.metrics.journal import open_journal

    found = open_journal(path)
    opened, found._opened = found._opened, os.open("/dev/full", os.O_WRONLY)
    os.close(opened)
    return found


def test_an_estimate_says_what_it_would_take_and_measures_nothing(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*DEMO, "--metrics", "all", "--convert", "--estimate"]
    assert cli.main(asked) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "shorter: --images N, --most-shift 15" in captured.out
    rows = [re.split(r"  +", line) for line in captured.out.splitlines()]
    forwards = {row[0]: row[1] for row in rows if len(row) == 3}
    assert forwards["consistency"] == str(2 * 4 * 8) and forwards["worst-case"] == f"{2 * 175 * 8:,}"
    assert cli.main([*asked, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["estimate"]
    assert [model["model"] for model in data["models"]] == [DEMO[1], f"{DEMO[1]} converted"]
    parts = [metric["seconds"] for model in data["models"] for metric in model["metrics"]]
    assert data["seconds"] == pytest.approx(sum(parts)) and min(parts) > 0
    assert not cache.exists()
    asked = [*DEMO, "--metrics", "consistency,worst-case", "--estimate"]
    for option, at_most in (("--labels", False), ("--no-labels", True)):
        assert cli.main([*asked, option]) == 0
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("worst-case"))
        assert re.split(r"  +", row)[-1].startswith("up to ") == at_most


def test_one_is_told_before_what_takes_long(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(expecting, "LONG", 0.0)
    assert cli.main([*DEMO, "--metrics", "aliasing,equivariance", "--most-shift", "3"]) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"this takes about \d+ s: (aliasing|equivariance) \d+ s, (aliasing|equivariance) \d+ s", first)
    assert second.startswith("shorter: --images N, --most-shift 1 (a quarter of the shifts), --metrics LIST")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (40.4, "40 s"), (91, "2 min"), (1500, "25 min"), (3 * 3600, "3.0 h")]
)
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert expecting.in_words(seconds) == words


# Memory that was freed

FAULTS = """
import resource, sys, torch
from blurify.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(30):
    if step == 20:  # the heap has grown to what it takes
        before = faults()
    torch.ones(20_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(not allocation._is_glibc(), reason="only glibc knows how")
def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    usual, kept = (
        int(warm.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("plain", "keep")
    )
    assert kept < 100 and kept < usual / 10


@pytest.mark.parametrize("answer", [None, ValueError("unrecognized configuration name"), AttributeError("confstr")])
def test_where_the_c_library_is_another_one_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | None
) -> None:
    """musl and macOS know no such name, and Windows no such function."""

    def confstr(name: str) -> None:
        if answer is not None:
            raise answer

    monkeypatch.setattr(os, "confstr", confstr, raising=False)
    assert not allocation.keep_freed_memory()


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not allocation.keep_freed_memory()


@pytest.mark.parametrize("command", ["measure", "report", "inspect", "convert", "certify", "adapt"])
def test_every_command_that_runs_a_model_again_and_again_keeps_its_memory(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    class Asked(Exception):
        pass

    def asked() -> None:
        raise Asked

    for module in (answers, certify, measuring, teaching):
        monkeypatch.setattr(
            sys.modules[f"blurify.cli.{module.__name__.rpartition('.')[2]}"], "keep_freed_memory", asked
        )
    model, output = DEMO[1], str(tmp_path / "out.pt")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.ppm").write_bytes(b"P6 44 40 255\n" + bytes(44 * 40 * 3))
    data = ["--data", str(tmp_path / "photos")]
    line = {
        "measure": [model], "report": [model, "-o", output], "inspect": [model, *data],
        "convert": [model, *data, "-o", output], "certify": [model],
        "adapt": [model, *data, "-o", output],
    }[command]  # fmt: skip
    if command == "adapt":
        with pytest.raises(Asked):
            teaching.taught(torch.nn.Identity(), torch.nn.Identity(), tmp_path, tmp_path / "out.pt", quiet=True)
        return
    assert cli.main([command, *line]) == 1
    assert "Asked" in capsys.readouterr().err
