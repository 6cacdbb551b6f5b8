"""Where a run's files are: a directory, an object store, a server with directories. All keep the same promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blurify import zoo
from blurify.cli import main
from blurify.errors import BlurifyError
from blurify.zoo.settings import Settings
from blurify.zoo.storage import Storage, is_url, remote, storage_at, within
from blurify.zoo.storage.local import this_process
from blurify.zoo.storage.remote import RemoteStorage
from tests.zoo.object_store import left_in, object_store

MODELS = "python:tests.zoo.models"
ROOT = Path(__file__).parents[2]
RANDOM = Settings(pretrained=False)
GONE = "process 4194305 on "  # beyond the largest process id that Linux has


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with object_store() as files:
        yield files


@pytest.fixture(params=["directory", "s3", "server"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind, of which nothing is there yet."""
    if request.param == "s3":
        request.getfixturevalue("store")
        return f"s3://bucket/{tmp_path.name}/zoo"
    # fsspec's own view of this machine's files stands for servers that have directories and rename.
    return str(tmp_path / "a" / "zoo") if request.param == "directory" else f"local://{tmp_path}/a/zoo"


def put(storage: Storage, name: str, content: bytes) -> int:
    return storage.store(name, lambda path: path.write_bytes(content))


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("s3://b/p", "gs://b", "local:///x")))
    assert not any(map(is_url, ("out", "/a/b", "./s3", "c:\\x", Path("s3:/b"))))
    assert within("s3://b/p/", "summary.csv") == "s3://b/p/summary.csv"
    assert within("out/", "summary.csv") == within(Path("out"), "summary.csv") == str(Path("out/summary.csv"))
    assert storage_at("file:///tmp/x").where == "/tmp/x"


def test_lines_stay_and_files_are_whole(where: str) -> None:
    storage = storage_at(where)
    storage.take()
    assert storage.lines("journal.jsonl") == [] and storage.sizes() == {}
    storage.append("journal.jsonl", b"")
    storage.append("journal.jsonl", b"one")
    storage_at(where).append("journal.jsonl", b"two")
    assert storage_at(where).lines("journal.jsonl") == [b"one", b"two"]
    storage.replace("summary.json", b"{}")
    assert put(storage, "timm/a.pt", b"12345") == 5 and put(storage, "timm/b.pt", b"") == 0
    assert storage_at(where).sizes() == {"timm/a.pt": 5, "timm/b.pt": 0}
    assert put(storage, "timm/a.pt", b"12") == 2
    storage.remove("timm/b.pt")
    assert storage.sizes() == {"timm/a.pt": 2}
    storage.let_go()


def test_a_file_that_is_not_finished_is_not_there(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_at(where)
    storage.take()
    put(storage, "timm/a.pt", b"old")

    def fails(path: Path) -> None:
        if isinstance(storage, RemoteStorage):
            path.write_bytes(b"half")
        raise BlurifyError("no more room")

    with pytest.raises(BlurifyError, match="no more room"):
        storage.store("timm/a.pt", fails)
    if isinstance(storage, RemoteStorage):
        upload = storage.files.put_file

        def half(source: str, target: str) -> None:  # what arrives is not what was sent
            Path(source).write_bytes(b"hal")
            upload(source, target)

        def broken(source: str, target: str) -> None:
            upload(source, target)
            raise TimeoutError("the line is dead")

        for sent, said in ((half, "3 bytes of 4 arrived"), (broken, "the line is dead")):
            monkeypatch.setattr(storage.files, "put_file", sent)
            with pytest.raises(BlurifyError, match=f"{where}/timm/a.pt can't be written: {said}"):
                put(storage, "timm/a.pt", b"new!")
        monkeypatch.undo()
    assert storage.sizes() == {"timm/a.pt": 3}
    storage.let_go()


def test_what_killed_writers_left_is_removed(where: str) -> None:
    storage = storage_at(where)
    storage.take()
    put(storage, "timm/.a.pt.0123abcd.blurify.tmp", b"half")
    put(storage, "timm/.a.pt", b"somebody's")
    storage.tidy()
    assert storage.sizes() == {"timm/.a.pt": 10}
    storage.let_go()


def test_one_run_at_a_time(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BEAT", 0.0)
    storage = storage_at(where)
    token = storage.take()
    storage_at(where).check(token)
    with pytest.raises(BlurifyError):
        storage_at(where).check("another")
    if isinstance(storage, RemoteStorage):  # nobody but time tells whether it lives
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: storage.beat())
        monkeypatch.setattr(remote, "time", clock)
    with pytest.raises(BlurifyError, match=rf"another blurify zoo \(process {os.getpid()} on .*\) is at work in"):
        storage_at(where).take()
    storage.beat()
    storage.let_go()
    again = storage_at(where)
    again.take()
    again.let_go()


def test_a_silent_run_counts_as_dead_and_learns_it(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BEAT", 0.0)
    monkeypatch.setattr(remote, "LEASE", 1.0)
    url = f"s3://bucket/{tmp_path.name}"
    first, second = RemoteStorage(url), RemoteStorage(url)
    first.take()
    second.take()
    with pytest.raises(BlurifyError, match="took this run for dead"):
        first.beat()
    first.let_go()  # which is not its lock
    second.beat()
    second.let_go()
    assert store.find(f"bucket/{tmp_path.name}") == []


def test_a_dead_process_of_this_machine_is_not_waited_for(store: Any, tmp_path: Path) -> None:
    host = this_process().partition(" on ")[2]
    store.pipe_file(f"bucket/{tmp_path.name}/.lock", f"{GONE}{host} (0123abcd), beat 7\n".encode())
    storage = RemoteStorage(f"s3://bucket/{tmp_path.name}")
    begin = time.monotonic()
    storage.take()
    assert time.monotonic() - begin < remote.LEASE / 2
    storage.let_go()


def test_what_cant_be_used_is_said_in_a_line(
    store: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_of(url: str) -> str:
        assert main(["zoo", f"{MODELS}:tiny", "-o", url, "--random"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
        return error

    assert "bucket does not exist" in error_of("s3://nobucket/zoo")
    assert store.ls("", detail=False) == ["bucket"]  # a misspelt bucket is not made
    assert "Protocol not known: nowhere" in error_of("nowhere://x/y")
    assert "names no place" in error_of("s3://")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "Unable to locate credentials" in error_of("s3://bucket/zoo")
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")  # as where s3fs was never imported
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert "pip install 'blurify[s3]'" in error_of("s3://bucket/zoo")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "gcsfs" in error_of("gs://bucket/zoo")


# --- whole runs


def test_a_run_leaves_the_same_in_a_store_as_in_a_directory(store: Any, tmp_path: Path) -> None:
    specs = [f"{MODELS}:{name}" for name in ("tiny", "siteless", "broken")]
    key = Path(f"bucket/{tmp_path.name}")
    url = f"s3://{key}"
    told: list[zoo.Progress] = []
    summary = zoo.run(specs, tmp_path, RANDOM)
    there = zoo.run(specs, url, RANDOM, watch=told.append)
    left = left_in(key, store)
    assert left == left_in(tmp_path)
    assert len(left["files"]) == 1 and len(there.failed) == len(summary.failed) == 1
    assert len([progress for progress in told if progress.finished]) == 3

    # A rerun does what failed, and what has no file any more.
    (name,) = left["files"]
    store.rm_file(f"{key}/{name}")
    told.clear()
    zoo.run(specs, url, RANDOM, watch=told.append)
    assert [progress.finished["model"] for progress in told if progress.finished] == [specs[0], specs[2]]
    assert left_in(key, store)["files"] == left["files"]
    # Another format takes the place of the first, and only with --force.
    other = Settings(pretrained=False, format="pt")
    with pytest.raises(BlurifyError, match=f"{url} holds models converted with other settings.*--force"):
        zoo.run(specs[:1], url, other)
    zoo.run(specs[:1], url, Settings(pretrained=False, format="pt", force=True))
    assert set(left_in(key, store)["files"]) == {name.replace(".safetensors", ".pt")}


def test_objects_of_others_are_not_replaced(store: Any, tmp_path: Path) -> None:
    key = f"bucket/{tmp_path.name}/python/tests.zoo.models-tiny.safetensors"
    store.pipe_file(key, b"precious")
    for _ in range(2):
        with pytest.raises(BlurifyError, match=f"s3://{key} exists and no run made it.*--force"):
            zoo.run([f"{MODELS}:tiny"], f"s3://bucket/{tmp_path.name}", RANDOM)
    assert store.cat_file(key) == b"precious"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="workers end with a killed parent on Linux only")
def test_killed_and_stopped_runs_go_on_in_a_store(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLURIFY_TEST_GATE", str(tmp_path))
    specs = [f"{MODELS}:{name}" for name in ("tiny", "waits")]
    key = f"bucket/{tmp_path.name}"
    journal = f"{key}/journal.jsonl"
    command = [sys.executable, "-m", "blurify", "zoo", *specs, "-o", f"s3://{key}", "--random", "-j", "1"]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 120
        notes = len(list(tmp_path.iterdir()))
        while len(list(tmp_path.iterdir())) == notes:
            assert time.monotonic() < end and running.poll() is None
            time.sleep(0.05)
        running.send_signal(number)
        _, error = running.communicate(timeout=60)
        assert running.returncode == code, error
        assert store.cat_file(journal).count(b"\n") == 1 and b"models:tiny" in store.cat_file(journal)
        assert store.exists(f"{key}/summary.json") == (number == signal.SIGTERM)
        assert store.exists(f"{key}/.lock") == (number == signal.SIGKILL)
        store.pipe_file(f"{key}/python/.x.safetensors.0123abcd.blurify.tmp", b"half")
    (tmp_path / "open").touch()
    told: list[zoo.Progress] = []
    assert zoo.run(specs, f"s3://{key}", RANDOM, watch=told.append).failed == ()
    assert [progress.finished["model"] for progress in told if progress.finished] == [specs[1]]
    left = left_in(Path(key), store)
    assert len(left["journal"]) == len(left["files"]) == 2
