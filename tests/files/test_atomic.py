import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import blurify
from blurify import cli
from blurify.errors import BlurifyError
from blurify.files import atomic, checkpoints, unfinished
from tests import warm


@pytest.fixture(scope="module")
def model():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 64, 3)).eval()
    return blurify.convert(network, example_inputs=torch.zeros(1, 3, 32, 32), verify=False)


def failing(error, after):
    """A FileIO whose write fails once that many bytes were written."""

    class Failing(io.FileIO):
        room = after

        def write(self, data, /):
            self.room -= len(data)
            if self.room < 0:
                raise error
            return super().write(data)

    return Failing


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@pytest.mark.parametrize("after", [0, 1000, 10_000, 20_000])
@pytest.mark.parametrize(
    ("error", "seen", "words"),
    [
        (
            OSError(28, "No space left on device"),
            BlurifyError,
            r"m\.\w+ can't be written: the disk is full \([\d.,]+ MB are needed, [\d.,]+ MB free\): make room",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (MemoryError(), MemoryError, "^$"),
    ],
    ids=["full", "interrupt", "memory"],
)
def test_failing_writes_are_told_as_such_and_leave_nothing(
    tmp_path, monkeypatch, model, name, after, error, seen, words
):
    (tmp_path / name).write_text("before")
    # Between the file that remembers and the one that writes.
    monkeypatch.setattr(atomic, "_Watched", type("Watched", (atomic._Watched, failing(error, after)), {}))
    with pytest.raises(seen, match=words):
        checkpoints.save(model, tmp_path / name, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "before"


def test_bytes_replace_or_refuse(tmp_path):
    path = tmp_path / "x"
    atomic.write_bytes(path, b"one", force=False)
    with pytest.raises(BlurifyError, match="exists: add --force"):
        atomic.write_bytes(path, b"two", force=False)
    assert path.read_bytes() == b"one"
    atomic.replace_bytes(path, b"three")
    assert path.read_bytes() == b"three" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file"):
        atomic.replace_bytes(tmp_path / "no" / "x", b"")
    with pytest.raises(BlurifyError, match="can't be written: No such file"):
        atomic.write_bytes(tmp_path / "no" / "x", b"", force=True)


def test_unfinished_files_are_known_by_their_names(tmp_path):
    seen = []

    def write(file):
        seen.extend(tmp_path.iterdir())

    atomic.write_file(tmp_path / "x.pt", write, force=False)
    assert len(seen) == 1 and unfinished.NAME.fullmatch(seen[0].name)


# What is read back


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.pt.gz", "m.safetensors.gz"])
@pytest.mark.parametrize("at", [20, 0.3, 0.7])
def test_a_byte_that_is_written_wrongly_is_found(tmp_path, monkeypatch, model, name, at):
    whole = checkpoints.save(model, tmp_path / name)
    wrong = at if isinstance(at, int) else int(at * whole.stat().st_size)
    whole.unlink()

    class Flipping(atomic._Watched):
        def _put(self, data):
            data, place = bytearray(data), wrong - self.length
            if 0 <= place < len(data):
                data[place] ^= 4
            return super()._put(bytes(data))

    monkeypatch.setattr(atomic, "_Watched", Flipping)
    with pytest.raises(BlurifyError, match="reads back otherwise"):
        checkpoints.save(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.pt.gz", "m.safetensors.gz"])
def test_the_formats_find_another_tensor_themselves(tmp_path, monkeypatch, model, name):
    """Also where the sum of what was written says nothing: the kernel copied, or the writer was wrong."""
    monkeypatch.setattr(atomic, "_compare", lambda made, watched: None)
    target = checkpoints.save(model, tmp_path / name)
    before = target.read_bytes()

    def damage(path: Path) -> None:
        packed = name.endswith(".gz")
        content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
        bits = model[2].weight.detach().numpy().tobytes()
        content[content.find(bits) + 100] ^= 1
        path.write_bytes(gzip.compress(content, mtime=0) if packed else bytes(content))

    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda opened: (sync(opened), [*map(damage, tmp_path.glob(".*.tmp"))]))
    with pytest.raises(BlurifyError, match=r"reads? back|was read back"):
        checkpoints.save(model, tmp_path / name, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name] and target.read_bytes() == before


# Equal models


SAVING = """
import sys, torch, blurify
from torch import nn
from blurify.files import checkpoints
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)).eval()
net.tags = {"one", "two", "three", "four", "five", "six"}
for name in ("ten", "eleven", "twelve", "thirteen", "fourteen"):
    net.register_buffer(name, torch.ones(3), persistent=False)
model = blurify.convert(net, example_inputs=torch.zeros(1, 3, 32, 32))  # with a proof, which takes another time
for path in sys.argv[1:]:
    checkpoints.save(model, path, plain="state" in path)
"""


def test_equal_models_are_equal_files_whatever_they_are_called(tmp_path):
    endings = (".pt", "_state.pt", ".safetensors", ".pt.gz", ".safetensors.gz")
    # Two processes in which hashes differ.
    for run, name in ((subprocess.run, "a"), (warm.run, "another name")):
        run(
            [sys.executable, "-c", SAVING, *(str(tmp_path / f"{name}{ending}") for ending in endings)],
            check=True, env={**os.environ, "PYTHONHASHSEED": "1"},
        )  # fmt: skip
    for ending in endings:
        sums = [hashlib.sha256((tmp_path / f"{n}{ending}").read_bytes()).hexdigest() for n in ("a", "another name")]
        assert sums[0] == sums[1], ending
    loaded = torch.load(tmp_path / "a.pt", weights_only=False)
    assert loaded.tags == {"one", "two", "three", "four", "five", "six"}


def test_the_proof_of_a_saved_module_still_says_how_long_it_took(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)).eval()
    converted = blurify.convert(network, example_inputs=torch.zeros(1, 3, 32, 32))
    proof = blurify.proof_of(converted)
    blurify.save(converted, tmp_path / "m.pt")
    assert blurify.proof_of(converted) == proof and proof.seconds > 0
    assert blurify.proof_of(blurify.load(tmp_path / "m.pt")) == dataclasses.replace(proof, seconds=0.0)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_the_target_may_be_the_source(tmp_path, name):
    torch.manual_seed(0)
    state = timm.create_model("test_resnet").state_dict()
    path = tmp_path / name
    save_file(state, path) if name.endswith(".safetensors") else torch.save(state, path)
    arguments = ["convert", str(path), "--arch", "timm/test_resnet", "-o", str(path)]
    before = path.read_bytes()
    assert cli.main(arguments) == 2 and path.read_bytes() == before
    assert cli.main([*arguments, "--force"]) == 0
    found = checkpoints.load(path).state_dict()
    assert all(torch.equal(value, found[key]) for key, value in state.items())
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_deeply_nested_modules_are_pickled(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2))
    for _ in range(120):
        network = nn.Sequential(network)
    deep = blurify.convert(network.eval(), example_inputs=torch.zeros(1, 3, 16, 16), verify=False)
    assert checkpoints.save(deep, tmp_path / "deep.pt").stat().st_size > 1000


# Whose file it is


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_replaced_file_keeps_its_mode_and_a_new_one_has_the_umasks(tmp_path):
    path = tmp_path / "x"
    before = os.umask(0o027)
    try:
        atomic.write_bytes(path, b"one", force=False)
        assert mode_of(path) == 0o640
        for mode in (0o600, 0o444, 0o664):
            path.chmod(mode)
            atomic.write_bytes(path, str(mode).encode(), force=True)
            assert mode_of(path) == mode and path.read_bytes() == str(mode).encode()
    finally:
        os.umask(before)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_replaced_file_keeps_its_owner(tmp_path):
    path = tmp_path / "x"
    path.write_text("one")
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    atomic.write_bytes(path, b"two", force=True)
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (1234, 2345, 0o640)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    (there / "x").write_text("before")
    (here / "second").symlink_to(there / "x")
    (here / "first").symlink_to("second")
    atomic.write_bytes(here / "first", b"after", force=True)
    assert os.readlink(here / "first") == "second" and (here / "second").is_symlink()
    assert (there / "x").read_bytes() == b"after" and not (there / "x").is_symlink()
    assert sorted(entry.name for entry in here.iterdir()) == ["first", "second"]
    assert [entry.name for entry in there.iterdir()] == ["x"]
    (here / "new").symlink_to(there / "y")
    atomic.check_target(here / "new")
    atomic.write_bytes(here / "new", b"made", force=False)
    assert (there / "y").read_bytes() == b"made" and (here / "new").is_symlink()
    (here / "nowhere").symlink_to(tmp_path / "no" / "x")
    with pytest.raises(BlurifyError, match="no doesn't exist"):
        atomic.check_target(here / "nowhere")
    (here / "loop").symlink_to("loop")
    with pytest.raises(BlurifyError, match="leads back to itself"):
        atomic.write_bytes(here / "loop", b"", force=True)


def test_a_name_that_is_taken_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(BlurifyError, match="exists: add --force"):
        atomic.write_file(path, lambda file: (file.write(b"ours"), path.write_text("theirs")), force=False)
    assert path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]


# What killed writers leave


WRITING = """
import sys, time
from pathlib import Path
from blurify.files import atomic
def write(file):
    file.write(b"half"); file.flush(); print("writing", flush=True); time.sleep(60)
def fill(folder):
    (folder / "x").write_text("half"); print("writing", flush=True); time.sleep(60)
if sys.argv[1] == "file":
    atomic.write_file(Path(sys.argv[2]), write, force=False)
else:
    atomic.write_directory(Path(sys.argv[2]), fill, force=False)
"""


@contextlib.contextmanager
def a_writer(kind, path):
    with subprocess.Popen([sys.executable, "-c", WRITING, kind, str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"writing\n"
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(unfinished.fcntl is None, reason="no locks")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_a_killed_writer_left_is_removed_by_the_next_one_and_what_a_live_one_writes_is_not(tmp_path, kind):
    with a_writer(kind, tmp_path / "theirs") as process:
        (left,) = tmp_path.iterdir()
        atomic.write_bytes(tmp_path / "ours", b"1", force=False)
        assert left.exists() and unfinished.NAME.fullmatch(left.name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert left.exists()  # nobody was there to remove it
    if kind == "file":
        atomic.write_bytes(tmp_path / "ours", b"2", force=True)
    else:
        atomic.write_directory(tmp_path / "own", lambda folder: (folder / "f").write_text("x"), force=False)
    assert not left.exists() and (tmp_path / "ours").exists()


def test_files_that_only_look_like_ours_stay(tmp_path):
    others = [".x.0123abcd.tmp", "x.0123abcd.blurify.tmp", ".x.0123.blurify.tmp", ".x.0123abcd.blurify.tmp.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".link.0123abcd.blurify.tmp").symlink_to(tmp_path / others[0])
    os.mkfifo(tmp_path / ".pipe.0123abcd.blurify.tmp")
    names = {entry.name for entry in tmp_path.iterdir()}
    atomic.write_bytes(tmp_path / "ours", b"1", force=False)
    assert {entry.name for entry in tmp_path.iterdir()} == names | {"ours"}


def test_a_temporary_file_that_was_taken_for_left_is_made_again(tmp_path, monkeypatch):
    make, made = atomic._make_file, []

    def taken(path):
        opened = make(path)
        made.append(path)
        if len(made) == 1:
            unfinished.remove_left(tmp_path)  # another process, before the lock is there
        return opened

    monkeypatch.setattr(atomic, "_make_file", taken)
    atomic.write_bytes(tmp_path / "x", b"1", force=False)
    assert len(made) == 2 and [entry.name for entry in tmp_path.iterdir()] == ["x"]


# Directories


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    def fill(folder):
        (folder / "a").write_text("new a")
        (folder / "b").write_text("new b")

    def fail(folder):
        fill(folder)
        raise RuntimeError("no")

    target = tmp_path / "d"
    with pytest.raises(RuntimeError):
        atomic.write_directory(target, fail, force=False)
    assert list(tmp_path.iterdir()) == []
    atomic.write_directory(target, fill, force=False)
    (target / "mine").write_text("kept")
    (target / "a").write_text("old a")
    with pytest.raises(BlurifyError, match="has files in it"):
        atomic.write_directory(target, fill, force=False)
    with pytest.raises(BlurifyError, match="wrong"):
        atomic.write_directory(target, fill, force=True, check=refuse)
    assert (target / "a").read_text() == "old a"
    atomic.write_directory(target, fill, force=True)
    assert {file.name: file.read_text() for file in target.iterdir()} == {"a": "new a", "b": "new b", "mine": "kept"}
    assert list(tmp_path.iterdir()) == [target]


def refuse(folder):
    assert (folder / "a").exists()
    raise BlurifyError("wrong")


def test_where_one_file_of_a_directory_cannot_be_moved_the_old_ones_come_back(tmp_path, monkeypatch):
    target = tmp_path / "d"
    target.mkdir()
    (target / "b").write_text("old b")
    replace = os.replace

    def failing(source, destination):
        if Path(destination) == target / "c":
            raise OSError(5, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(BlurifyError, match="Input/output error"):
        atomic.write_directory(target, lambda folder: [(folder / n).write_text("new") for n in "abc"], force=True)
    assert {file.name: file.read_text() for file in target.iterdir()} == {"b": "old b"}
    assert list(tmp_path.iterdir()) == [target]
