"""Many models at once: what they do to each other (nothing), and what a kill at any moment leaves (nothing)."""

from __future__ import annotations

import csv
import errno
import fcntl
import functools
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import blurify
from blurify import zoo
from blurify.cli import main
from blurify.errors import BlurifyError
from blurify.graph.inputs import given_inputs
from blurify.proof.positions import drift_between
from blurify.zoo import names as zoo_names
from blurify.zoo import task as zoo_task
from blurify.zoo.engines import child
from blurify.zoo.journal import Directory, Entry
from blurify.zoo.settings import Settings
from tests import warm

HERE = "python:tests.zoo.test_zoo"
ROOT = Path(__file__).parents[2]
RANDOM = Settings(pretrained=False)


@pytest.fixture(autouse=True)
def workers_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that has imported torch."""
    monkeypatch.setattr(child, "subprocess", warm)


# --- models that worker processes make


def tiny(width: int = 4, seconds: float = 0.0) -> nn.Module:
    """Two sites to convert."""
    time.sleep(seconds)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.MaxPool2d(2), nn.Conv2d(width, 4, 3, stride=2), nn.ReLU())


def siteless() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def chatty() -> nn.Module:
    print('{"record": {}}')
    os.write(1, b"not from python\n")
    return tiny()


def crash() -> nn.Module:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def leave() -> nn.Module:
    print("so long", file=sys.stderr, flush=True)
    os._exit(7)


def hang() -> nn.Module:
    time.sleep(1000)
    raise AssertionError


def greedy() -> nn.Module:
    """Asks for more memory than it gets, and is refused."""
    return nn.Sequential(nn.Conv2d(len(bytearray(6 << 30)), 4, 3))


def gluttonous() -> nn.Module:
    """Takes more memory than it may, in a way that no limit on allocations sees."""
    shared = mmap.mmap(-1, 6 << 30)
    for start in range(0, 6 << 30, 1 << 24):
        shared[start : start + (1 << 24)] = bytes(1 << 24)
    raise AssertionError


def broken() -> nn.Module:
    raise ValueError("first line\nsecond line")


def forks_and_hangs() -> nn.Module:
    """Its child has the worker's pipes and the lock, and outlives it unless it is ended too."""
    os.fork()
    time.sleep(1000)
    raise AssertionError


def forks_and_crashes() -> nn.Module:
    if os.fork() == 0:
        time.sleep(1000)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def real_time_signal() -> nn.Module:
    os.kill(os.getpid(), signal.SIGRTMIN + 6)
    raise AssertionError


def exits() -> nn.Module:
    sys.exit(3)


def interrupts() -> nn.Module:
    raise KeyboardInterrupt


def half_a_character() -> nn.Module:
    raise ValueError("bad \ud800 name")


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def speechless() -> nn.Module:
    raise Speechless


def elsewhere() -> nn.Module:
    os.chdir("/")
    return tiny()


kept: list[Any] = []


def keeps() -> nn.Module:
    """Leaves more behind in the worker than the next model should have to live with."""
    kept.append(torch.ones(700_000_000))
    return tiny()


# --- choosing


def test_patterns_name_architectures_of_both_libraries() -> None:
    chosen = zoo.select(["resnet18", "timm/test_res*"], pretrained=False)
    assert chosen == ["timm/resnet18", "timm/test_resnet", "torchvision/resnet18"]
    assert len(zoo.select(["timm/*"], pretrained=False)) > 1000
    assert not any("quantized" in name for name in zoo.select(["torchvision/*"], pretrained=False))


def test_tags_and_options() -> None:
    assert "timm/resnet18.a1_in1k" in zoo.select(["timm/resnet18.*"])
    assert zoo.select(["torchvision/vgg16:*1K_V1"]) == ["torchvision/vgg16:IMAGENET1K_V1"]
    assert zoo.select(["timm/test_resnet?num_classes=10"]) == ["timm/test_resnet?num_classes=10"]
    assert zoo.select(["timm/test_vit?"], pretrained=False) == ["timm/test_vit2", "timm/test_vit3", "timm/test_vit4"]
    assert zoo.select([f"{HERE}:tiny?width=4"]) == [f"{HERE}:tiny?width=4"]


def test_what_has_no_pretrained_weights_is_left_out_unless_named() -> None:
    every, with_weights = zoo.select(["timm/*"], pretrained=False), zoo.select(["timm/*"])
    without = sorted(set(every) - set(with_weights))
    assert without
    assert zoo.select([without[0]]) == [without[0]]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("timm/resnet181", "timm/resnet18"),
        ("vgg1999", "did you mean"),
        ("keras/resnet18", "timm/ or torchvision/"),
        ("zzzzzzzz*", "no architecture matches"),
    ],
)
def test_a_pattern_that_matches_nothing_says_so(pattern: str, said: str) -> None:
    with pytest.raises(BlurifyError, match=said):
        zoo.select(["timm/resnet18", pattern], pretrained=False)


def test_shards_are_all_models_each_once() -> None:
    whole = zoo.select(["timm/resnet*"], pretrained=False)
    shards = [zoo.select(["timm/resnet*"], pretrained=False, shard=(index, 3)) for index in (1, 2, 3)]
    assert sorted(name for part in shards for name in part) == whole
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for bad in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(BlurifyError, match="no shard"):
            zoo.select(["timm/resnet18"], pretrained=False, shard=bad)


def test_each_spec_has_a_file_of_its_own() -> None:
    specs = zoo.select(["*", "timm/*.*", "torchvision/*:*"], pretrained=False)
    specs += [f"{HERE}:tiny", f"{HERE}:tiny?width=5", f"{HERE}.tiny", "timm/resnet18?num_classes=10"]
    stems = [zoo_names.file_stem(spec).lower() for spec in specs]
    assert len(set(stems)) == len(stems)
    assert all(stem.count("/") == 1 and ".." not in stem for stem in stems)


# --- running


def test_one_run(tmp_path: Path) -> None:
    specs = ["timm/test_resnet", "timm/test_vit", f"{HERE}:siteless", f"{HERE}:chatty"]
    told: list[zoo.Progress] = []
    summary = zoo.run(specs, tmp_path, RANDOM, watch=told.append)
    by_name = {record["model"]: record for record in summary.models}
    assert [by_name[spec]["status"] for spec in specs] == ["converted", "inspected", "inspected", "converted"]
    record = by_name["timm/test_resnet"]
    assert record["identity_error"] <= 1e-4 and record["sites_left"] == 0
    assert sum(record["kinds"].values()) == record["sites"] == record["converted"] + record["skipped"]
    assert record["skipped_by_rule"] == {"stem": 1} and record["extra_macs"] > 0
    model = blurify.load(tmp_path / record["file"])
    plan = blurify.plan_of(model)
    assert plan is not None and len(plan.converted) == record["converted"]
    assert "file" not in by_name["timm/test_vit"]
    assert [p.finished["model"] for p in told if p.finished] and told[-1].done == told[-1].total == 4

    data = json.loads((tmp_path / "summary.json").read_text())
    assert data["models"] == list(summary.models) == sorted(data["models"], key=lambda r: r["model"])
    assert data["totals"]["converted"] == 2
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(specs)
    assert int(rows["timm/test_resnet"]["converted"]) == record["converted"]
    assert int(rows["timm/test_resnet"]["skipped_stem"]) == 1

    again: list[zoo.Progress] = []
    assert zoo.run(specs, tmp_path, RANDOM, watch=again.append) == summary
    assert not [p for p in again if p.finished]
    (tmp_path / record["file"]).unlink()  # a file that is gone is missing, whatever the journal says
    assert zoo.run(specs, tmp_path, RANDOM, watch=again.append).failed == ()
    assert [p.finished["model"] for p in again if p.finished] == ["timm/test_resnet"]


def test_inspecting_first_and_converting_then(tmp_path: Path) -> None:
    specs = [f"{HERE}:siteless", f"{HERE}:tiny"]
    inspected = zoo.run(specs, tmp_path, Settings(inspect_only=True))
    assert [record["status"] for record in inspected.models] == ["inspected", "inspected"]
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == []
    done: list[zoo.Progress] = []
    converted = zoo.run(specs, tmp_path, RANDOM, watch=done.append)
    assert [record["status"] for record in converted.models] == ["inspected", "converted"]
    assert [p.finished["model"] for p in done if p.finished] == [f"{HERE}:tiny"]
    assert zoo.run(specs, tmp_path, Settings(inspect_only=True)) == converted  # nothing is lost by looking again
    with pytest.raises(BlurifyError, match="other settings"):
        zoo.run(specs, tmp_path, Settings(pretrained=False, recipe=blurify.Recipe(filter_size=3)))


def test_what_a_model_does_is_its_own_result(tmp_path: Path) -> None:
    causes = {
        "crash": "SIGSEGV",
        "leave": "code 7: so long",
        "greedy": "--memory",
        "gluttonous": "--memory",
        "broken": "ValueError: first line second line",
        "absent": "no 'absent'",
    }
    specs = [f"{HERE}:{name}" for name in (*causes, "tiny")]
    summary = zoo.run(specs, tmp_path, Settings(pretrained=False, jobs=2, memory=2))
    by_name = {record["model"].rpartition(":")[2]: record for record in summary.models}
    assert by_name.pop("tiny")["status"] == "converted"
    for name, said in causes.items():
        assert by_name[name]["status"] == "failed" and said in by_name[name]["error"], by_name[name]
        assert "\n" not in by_name[name]["error"]
    assert len(summary.failed) == len(causes)
    # What failed is tried again, what did not is left.
    again: list[zoo.Progress] = []
    zoo.run([f"{HERE}:broken", f"{HERE}:tiny"], tmp_path, RANDOM, watch=again.append)
    assert [p.finished["model"] for p in again if p.finished] == [f"{HERE}:broken"]


def test_a_model_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    specs = [f"{HERE}:{name}" for name in ("forks_and_hangs", "hang")]
    summary = zoo.run(specs, tmp_path, Settings(pretrained=False, jobs=2, timeout=3))
    assert ["longer than" in record["error"] for record in summary.models] == [True, True], summary
    Directory(tmp_path).close()  # no child of a model holds the lock


def test_odd_ends_of_workers_are_told_as_they_were(tmp_path: Path) -> None:
    causes = {
        "forks_and_crashes": "killed",
        "real_time_signal": "crashed",
        "exits": "SystemExit: 3",
        "interrupts": "KeyboardInterrupt",
        "half_a_character": "bad \\ud800 name",
        "speechless": "Speechless",
    }
    specs = [f"{HERE}:{name}" for name in (*causes, "tiny")]
    summary = zoo.run(specs, tmp_path, Settings(pretrained=False, jobs=2))
    by_name = {record["model"].rpartition(":")[2]: record for record in summary.models}
    assert by_name.pop("tiny")["status"] == "converted"
    found = {name: record["error"] for name, record in by_name.items()}
    assert set(found) == set(causes) and all(causes[name] in said for name, said in found.items()), found
    Directory(tmp_path).close()  # no child of a model holds the lock
    assert json.loads((tmp_path / "summary.json").read_text())["totals"]["failed"] == len(causes)
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + len(specs)


def test_what_a_model_leaves_behind_is_not_the_next_ones_burden(tmp_path: Path) -> None:
    specs = [f"{HERE}:keeps", *(f"{HERE}:tiny?width={width}" for width in (3, 4, 5))]
    summary = zoo.run(specs, tmp_path, Settings(pretrained=False, memory=5))
    assert [record.get("error") for record in summary.models] == [None] * 4


def test_a_relative_directory_and_a_model_that_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    (record,) = zoo.run([f"{HERE}:elsewhere"], "out", RANDOM).models
    assert record["status"] == "converted" and (tmp_path / "out" / record["file"]).stat().st_size == record["bytes"]


def test_looking_does_not_forget_what_was_converted(tmp_path: Path) -> None:
    specs, other = [f"{HERE}:tiny"], blurify.Recipe(filter_size=5)
    before = zoo.run(specs, tmp_path, RANDOM)
    for settings in (Settings(inspect_only=True, recipe=other), Settings(inspect_only=True, force=True)):
        with pytest.raises(BlurifyError, match="which an inspection would forget"):
            zoo.run(specs, tmp_path, settings)
    assert zoo.run(specs, tmp_path, RANDOM) == before


def test_another_format_takes_the_place_of_the_first(tmp_path: Path) -> None:
    (first,) = zoo.run([f"{HERE}:tiny"], tmp_path, RANDOM).models
    (second,) = zoo.run([f"{HERE}:tiny"], tmp_path, Settings(pretrained=False, force=True, format="pt")).models
    assert not (tmp_path / first["file"]).exists() and (tmp_path / second["file"]).is_file()
    assert second["file"].endswith(".pt")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["zoo", f"{HERE}:tiny", f"{HERE}:broken", "-o", str(tmp_path / "out"), "--random", "-j", "2"]
    assert main(arguments) == 1
    out = capsys.readouterr().out.splitlines()
    assert any(line.startswith("[") and "tiny: converted: 2 of 2 sites" in line for line in out)
    assert any("failed" in line and "ValueError" in line for line in out)
    assert "2 models: 1 converted, 0 inspected, 1 failed" in out[-2]
    assert main([*arguments, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert {record["status"] for record in data["models"]} == {"converted", "failed"}
    inspect = ["zoo", f"{HERE}:tiny", "-o", str(tmp_path / "inspected"), "--inspect-only", "-j", "1", "--json"]
    assert main(inspect) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["status"] == "inspected"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["timm/resnet181"], "did you mean timm/resnet18"),
        (["timm/test_vit", "--shard", "3/2"], "shard"),
        (["timm/test_vit", "--shard", "half"], "--shard"),
        (["timm/test_vit", "-j", "0"], "-j 0"),
        (["timm/test_vit", "--format", "onnx"], "onnx"),
        (["timm/test_vit", "--timeout", "-1"], "--timeout"),
        (["timm/test_vit", "--memory", "0"], "--memory"),
        (["timm/test_vit", "--memory", "inf"], "--memory"),
        (["timm/test_vit", "--memory", "1e30"], "--memory"),
        (["timm/test_vit", "--recipe", "nothing"], "nothing"),
        (["timm/test_vit", "--engine", "dask"], "local or ray"),
        (["timm/test_vit", "--engine-address", "head:6379"], "add --engine ray"),
        (["timm/test_vit", "--engine", "ray", "--retries", "-1"], "--retries"),
        (["timm/test_vit", "--filter-size", "9"], "9"),
        ([], "PATTERN"),
    ],
)
def test_bad_usage(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", *arguments, "-o", str(tmp_path / "out"), "--random"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- the directory


def test_one_run_at_a_time(tmp_path: Path) -> None:
    held = Directory(tmp_path)
    with pytest.raises(BlurifyError, match="another blurify zoo"):
        Directory(tmp_path)
    held.close()
    Directory(tmp_path).close()


def test_a_torn_line_is_mended(tmp_path: Path) -> None:
    zoo.run([f"{HERE}:siteless"], tmp_path, RANDOM)
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    odd = b'garbage\n{"record": {"model": "x"}, "looked": "x", "made": "y"}\n'
    journal.write_bytes(whole + odd + b'{"record": {"model": "timm/resn')
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / ".x.safetensors.0123abcd.blurify.tmp").write_bytes(b"half")
    summary = zoo.run([f"{HERE}:siteless"], tmp_path, RANDOM)
    assert [record["status"] for record in summary.models] == ["inspected"]
    assert journal.read_bytes() == whole + odd
    assert list((tmp_path / "timm").iterdir()) == []


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / f"{zoo_names.file_stem(f'{HERE}:tiny')}.safetensors"
    target.parent.mkdir()
    target.write_bytes(b"precious")
    for _ in range(2):
        with pytest.raises(BlurifyError, match="--force"):
            zoo.run([f"{HERE}:tiny"], tmp_path, RANDOM)
        assert target.read_bytes() == b"precious"
        zoo.run([f"{HERE}:tiny"], tmp_path, Settings(inspect_only=True))  # makes a journal, and no file
    assert zoo.run([f"{HERE}:tiny"], tmp_path, Settings(pretrained=False, force=True)).failed == ()


# --- kills

linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")


def start(directory: Path, specs: list[str], sigint: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen[bytes]:
    """A run of its own, with SIGINT as it is for what a user starts by hand.

    A child inherits that a signal is ignored, and Python then leaves it so: these tests would wait in vain for a run to
    stop where they are run in the background of a script, by nohup or by some services.
    """
    code = "import sys; from blurify.cli import main; sys.exit(main(sys.argv[1:]))"
    return warm.Popen(
        [sys.executable, "-c", code, "zoo", *specs, "-o", str(directory), "--random", "-j", "2"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, sigint),
    )


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def lockable(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_until(true: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def result(directory: Path) -> dict[str, Any]:
    """All that a run leaves, without its times: the summary, and what is in the files."""
    models = json.loads((directory / "summary.json").read_text())["models"]
    for record in models:
        record.pop("seconds")
    return {"models": models, "files": files(directory)}


def files(directory: Path) -> dict[str, Any]:
    """The contents of all files with models; fails for one that is not whole."""
    found = {}
    for path in sorted(directory.glob("*/*")):
        if path.name.endswith(".tmp"):
            continue
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found[str(path.relative_to(directory))] = (file.metadata(), {k: v.tolist() for k, v in tensors.items()})
    return found


@linux
def test_ctrl_c_and_sigterm_stop_cleanly(tmp_path: Path) -> None:
    specs = [f"{HERE}:tiny", f"{HERE}:hang"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        running = start(tmp_path, specs)
        wait_until(
            lambda: (tmp_path / "journal.jsonl").exists() and b'"status"' in (tmp_path / "journal.jsonl").read_bytes()
        )
        wait_until(lambda running=running: children(running.pid) != [])
        workers = children(running.pid)
        running.send_signal(number)
        assert running.wait(300) == code
        wait_until(lambda workers=workers: not any(map(alive, workers)))
        assert [record["status"] for record in result(tmp_path)["models"]] == ["converted"]


def test_a_signal_right_after_a_model_was_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Directory(tmp_path)
    place.open()
    append = place.storage.append

    def interrupted(name: str, line: bytes) -> None:
        append(name, line)
        raise KeyboardInterrupt

    monkeypatch.setattr(place.storage, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.append(Entry({"model": "a", "status": "failed", "seconds": {}}, "looked", "made"))
    assert [record["model"] for record in place.summarize(["a"]).models] == ["a"]
    place.close()


def test_a_model_that_could_not_be_written_down_is_not_in_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Directory(tmp_path)
    place.open()

    def full(name: str, line: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place.storage, "append", full)
        with pytest.raises(BlurifyError, match="make room"):
            place.append(Entry({"model": "a", "status": "failed", "seconds": {}}, "looked", "made"))
    assert not place.summarize(["a"]).models
    place.close()


@linux
def test_ctrl_c_is_not_for_a_job_in_the_background(tmp_path: Path) -> None:
    """Which inherits that SIGINT is ignored: it goes on, and ends as if nothing had been."""
    running = start(tmp_path, [f"{HERE}:tiny?seconds=1"], signal.SIG_IGN)
    wait_until(lambda: children(running.pid) != [])
    running.send_signal(signal.SIGINT)
    assert running.wait(300) == 0
    assert [record["status"] for record in result(tmp_path)["models"]] == ["converted"]


@linux
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    running = start(tmp_path, [f"{HERE}:hang", f"{HERE}:tiny?seconds=1000"])
    wait_until(lambda: len(children(running.pid)) == 2)
    workers = children(running.pid)
    running.kill()
    running.wait()
    wait_until(lambda: not any(map(alive, workers)))
    with open(tmp_path / ".lock") as lock:
        # A process counts as a zombie once its first thread has ended; its files close with its last, a little later.
        wait_until(lambda: lockable(lock))


KILLS = int(os.environ.get("BLURIFY_TEST_KILLS", "9"))  # a sample: each costs some seconds


@linux
@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """kill -9 of a worker, or of the parent, several times: the end is that of an undisturbed run."""
    specs = [f"{HERE}:tiny?width={width}&seconds=0.1" for width in range(2, 12)]
    begin = time.monotonic()
    assert start(tmp_path / "undisturbed", specs).wait() == 0
    duration = time.monotonic() - begin
    expected = result(tmp_path / "undisturbed")
    assert len(expected["models"]) == len(expected["files"]) == len(specs)

    rng, directory, kills = random.Random(0), tmp_path / "disturbed", {"parent": 0, "worker": 0}
    while sum(kills.values()) < KILLS:
        running = start(directory, specs)
        begin = time.monotonic()
        # Workers are replaced, so a run may lose some before its parent goes.
        for moment in sorted(rng.uniform(0, duration) for _ in range(3)):
            while time.monotonic() < begin + moment and running.poll() is None:
                time.sleep(0.005)
            workers = children(running.pid)
            if running.poll() is None and workers and kills["worker"] < KILLS - 2:  # two are the parent's
                os.kill(rng.choice(workers), signal.SIGKILL)
                kills["worker"] += 1
        time.sleep(rng.uniform(0, 0.3) * duration)
        if running.poll() is None and sum(kills.values()) < KILLS:
            running.kill()
            kills["parent"] += 1
        running.wait()
        if directory.exists():
            files(directory)  # every file that is there is whole
        if running.returncode == 0:
            assert result(directory) == expected
            shutil.rmtree(directory)
    assert start(directory, specs).wait() == 0
    assert result(directory) == expected
    assert not list(directory.rglob("*.tmp"))
    journal = [json.loads(line)["record"] for line in (directory / "journal.jsonl").read_text().splitlines()]
    good = [record["model"] for record in journal if record["status"] == "converted"]
    assert set(good) == set(specs)
    assert min(kills.values()) > 0


class BringsToASize(nn.Module):
    """As a detector: whatever it is given, it works on one size."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[2:]))
        return self.net(F.interpolate(x, (64, 64)))


def test_no_smaller_input_is_looked_for_where_it_would_save_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int | None] = []
    real = zoo_task.resized
    monkeypatch.setattr(zoo_task, "resized", lambda inputs, side: tried.append(side) or real(inputs, side))
    inputs = given_inputs(torch.zeros(1, 3, 224, 224))
    for model, wanted in ((BringsToASize(), 224), (tiny(), 32)):
        tried.clear()
        plan = blurify.inspect(model, inputs)
        (found,), _ = zoo_task._smallest(model, plan.recipe, plan, inputs)
        assert tuple(found.shape) == (1, 3, wanted, wanted) and tried == [32]


@pytest.mark.parametrize("side", [32, 48, 96, 160, 192, 224, 240, 256, 300])
def test_positions_are_measured_at_a_size_whose_maps_are_odd_where_the_plan_s_are(side: int) -> None:
    """Of TensorFlow's padding a plan knows what it is for such sizes."""
    found = zoo_task._positions_side(((torch.zeros(1, 3, side, side),), {}))
    assert 128 <= found < 192

    def odd(n: int) -> list[bool]:
        sizes = [n]
        for _ in range(5):
            sizes.append(-(-sizes[-1] // 2))
        return [size % 2 == 1 for size in sizes]

    assert odd(found)[:5] == odd(side)[:5]
    planned, taken = (torch.zeros(1, 3, one, one) for one in (side, found))
    import timm

    net = timm.create_model("tf_mobilenetv3_small_minimal_100").eval()
    converted = blurify.convert(net, "aligned", example_inputs=planned, verify=False)
    assert drift_between(net, converted, ((taken,), {})).largest < 1e-4
