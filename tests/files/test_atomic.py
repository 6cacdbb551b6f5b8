import gzip
import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
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
from blurify.files.sources import ModelSource
from blurify.files.unfinished import UNFINISHED, unfinished_directory, unfinished_file

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other modes and no such locks")


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


FULL = r"m\.\w+ can't be written: there is no room on the disk \(it takes \d+.\d kB, \d.* free\): make room, or choose"


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@pytest.mark.parametrize("after", [0, 1000, 10_000, 20_000])
@pytest.mark.parametrize(
    ("error", "seen", "words"),
    [
        (
            OSError(28, "No space left on device"),
            BlurifyError,
            FULL,
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
    assert len(seen) == 1 and UNFINISHED.fullmatch(seen[0].name)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_text("before")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "x")
    with pytest.raises(BlurifyError, match="exists: add --force"):
        atomic.write_bytes(link, b"no", force=False)
    atomic.write_bytes(link, b"after", force=True)
    assert link.is_symlink() and (tmp_path / "real" / "x").read_text() == "after"
    assert names(tmp_path / "real") == ["x"] and names(tmp_path) == ["link", "real"]
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "real" / "new")
    atomic.check_target(dangling)
    atomic.write_bytes(dangling, b"new", force=False)
    assert dangling.is_symlink() and (tmp_path / "real" / "new").read_text() == "new"
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to(tmp_path / "no" / "x")
    with pytest.raises(BlurifyError, match="no doesn't exist"):
        atomic.check_target(nowhere)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(BlurifyError, match="leads to itself"):
        atomic.check_target(loop)


@posix
def test_a_file_keeps_its_mode_and_owner_and_a_new_one_gets_the_umasks(tmp_path):
    path, seen = tmp_path / "x", []

    def write(file):
        (temporary,) = [entry for entry in tmp_path.iterdir() if UNFINISHED.fullmatch(entry.name)]
        seen.append(stat.S_IMODE(temporary.stat().st_mode))

    before = os.umask(0o027)
    try:
        atomic.write_file(path, write, force=False)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o444, 0o775):
            path.chmod(mode)
            atomic.write_file(path, write, force=True)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)
    assert seen == [0o640, 0o600, 0o600, 0o600]  # a file that is to replace a secret is one, too
    if os.getuid() == 0:
        os.chown(path, 12, 34)
        atomic.write_bytes(path, b"x", force=True)
        assert (path.stat().st_uid, path.stat().st_gid) == (12, 34)


def test_a_file_that_came_in_the_meantime_is_not_replaced(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(BlurifyError, match="exists: add --force"):
        atomic.write_file(path, lambda file: path.write_text("theirs"), force=False)
    assert path.read_text() == "theirs" and names(tmp_path) == ["x"]


def test_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def link(*paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    atomic.write_bytes(tmp_path / "x", b"one", force=False)
    with pytest.raises(BlurifyError, match="exists: add --force"):
        atomic.write_file(tmp_path / "y", lambda file: (tmp_path / "y").write_text("theirs"), force=False)
    assert names(tmp_path) == ["x", "y"] and (tmp_path / "y").read_text() == "theirs"


@posix
def test_what_kills_left_is_removed_and_what_lives_stays(tmp_path):
    left, directory = tmp_path / ".m.pt.01234567.blurify", tmp_path / ".m.89abcdef.blurify"
    left.write_bytes(b"half")
    directory.mkdir()
    (directory / "x").write_bytes(b"half")
    others = [".m.pt.01234567.tmp", ".m.pt.0123456.blurify", "m.pt.01234567.blurify"]
    for name in others:
        (tmp_path / name).write_bytes(b"somebody's")
    with unfinished_file(tmp_path / "living") as living, unfinished_directory(tmp_path / "alive") as alive:
        assert not left.exists() and not directory.exists()
        atomic.write_bytes(tmp_path / "x", b"done", force=False)
        assert names(tmp_path) == sorted([*others, living.path.name, alive.name, "x"])
    assert names(tmp_path) == sorted([*others, "x"])


@posix
def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(unfinished.fcntl, "flock", flock)
    (tmp_path / ".m.pt.01234567.blurify").write_bytes(b"another machine may be writing it")
    atomic.write_bytes(tmp_path / "x", b"done", force=False)
    assert names(tmp_path) == [".m.pt.01234567.blurify", "x"]


@pytest.mark.parametrize("name", ["m.pt", "module.pt", "m.safetensors", "m.safetensors.gz"])
def test_what_the_disk_changes_is_not_done(tmp_path, monkeypatch, model, name):
    """One bit of a weight, changed between writing and reading back."""
    (tmp_path / name).write_text("before")
    weight = model.state_dict()["2.weight"].numpy().tobytes()[:64]
    bring = atomic._bring_to_disk

    def changed(written, check):
        content = written.path.read_bytes()
        if name.endswith(".gz"):
            content = gzip.compress(flipped(gzip.decompress(content), weight))
        else:
            content = flipped(content, weight)
        written.path.write_bytes(content)
        bring(written, check)

    monkeypatch.setattr(atomic, "_bring_to_disk", changed)
    source = None if name == "module.pt" else ModelSource("x", "factory", "python:x:y")
    with pytest.raises(BlurifyError, match=r"was not written: read back, .* differed|damaged"):
        checkpoints.save(model, tmp_path / name, source=source, force=True)
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == "before"


def flipped(content, part):
    place = content.index(part) + 5
    changed = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    if content[:2] != b"PK":
        return changed
    # As if it had been wrong before the checksum was taken: only a comparison finds that.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            if archive.read(info).find(part) >= 0:
                before = struct.pack("<L", info.CRC)
                after = struct.pack(
                    "<L", zlib.crc32(changed[place - 5 - archive.read(info).index(part) :][: info.file_size])
                )
                return changed.replace(before, after)
    raise AssertionError("no such part")


def test_the_target_may_be_the_source(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet").eval()
    for name in ("m.pt", "m.safetensors"):
        path = tmp_path / name
        if name.endswith(".pt"):
            torch.save(network.state_dict(), path)
        else:
            save_file(network.state_dict(), path)
        assert cli.main(["convert", str(path), "--arch", "timm/test_resnet", "-o", str(path), "--force"]) == 0
        state = checkpoints.load(path).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert names(tmp_path) == ["m.pt", "m.safetensors"]


EQUAL = """
import sys, torch, blurify
from pathlib import Path
from tests.files.test_atomic import Several
from blurify.files.sources import ModelSource
torch.manual_seed(0)
model = blurify.convert(Several().eval(), example_inputs=torch.zeros(1, 3, 32, 32))
blurify.save(model, sys.argv[1] + "-module.pt")
from blurify.files import checkpoints
for ending in (".pt", ".safetensors", ".pt.gz"):
    checkpoints.save(model, sys.argv[1] + ending, source=ModelSource("x", "factory", "python:x:y"))
"""


class Several(nn.Module):
    """Whose sets have orders: of the buffers that are not kept, and one of its own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
        self.words = {"one", "two", "three", "four", "five"}
        for word in sorted(self.words):
            self.register_buffer(word, torch.ones(2), persistent=False)

    def forward(self, x):
        return self.net(x)


def test_equal_conversions_are_equal_files(tmp_path):
    root = str(Path(blurify.__file__).parents[1])
    for seed, name in (("1", "one"), ("2", "another-name")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        subprocess.run([sys.executable, "-c", EQUAL, str(tmp_path / name)], check=True, env=environment)
    for ending in ("-module.pt", ".pt", ".safetensors", ".pt.gz"):
        one, other = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("one", "another-name"))
        assert one == other, ending
    again = checkpoints.load(tmp_path / "one-module.pt", allow=["tests.files.test_atomic.Several"])
    assert again.words == Several().words and blurify.proof_of(again) is not None


def test_the_proof_of_a_saved_module_still_says_how_long_it_took(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 64, 3)).eval()
    converted = blurify.convert(network, example_inputs=torch.zeros(1, 3, 32, 32))
    proof = blurify.proof_of(converted)
    blurify.save(converted, tmp_path / "m.pt")
    assert blurify.proof_of(converted) == proof and proof.seconds > 0
    assert blurify.proof_of(blurify.load(tmp_path / "m.pt")).seconds == 0


def test_deep_modules_can_be_saved(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))
    for _ in range(50):
        network = nn.Sequential(network)
    blurify.save(
        blurify.convert(network.eval(), example_inputs=torch.zeros(1, 3, 32, 32), verify=False), tmp_path / "m"
    )
    assert blurify.plan_of(blurify.load(tmp_path / "m")) is not None


def test_directories_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "model"

    def fill(text):
        def inner(folder):
            for name in ("a", "b", "c"):
                (folder / name).write_text(text)

        return inner

    atomic.write_directory(target, fill("old"), force=False)
    (target / "b").unlink()
    (target / "mine").write_text("mine")
    with pytest.raises(BlurifyError, match="has files in it: add --force"):
        atomic.write_directory(target, fill("new"), force=False)
    replace, left = os.replace, 5

    def failing(*paths):
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(5, "Input/output error")
        replace(*paths)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(BlurifyError, match="model can't be written: Input/output error"):
        atomic.write_directory(target, fill("new"), force=True)
    monkeypatch.setattr(os, "replace", replace)
    assert {file.name: file.read_text() for file in target.iterdir()} == {"a": "old", "c": "old", "mine": "mine"}

    def refuse(folder):
        raise BlurifyError("wrong")

    with pytest.raises(BlurifyError, match="wrong"):
        atomic.write_directory(target, fill("new"), force=True, check=refuse)
    assert names(target) == ["a", "c", "mine"] and names(tmp_path) == ["model"]
    atomic.write_directory(target, fill("new"), force=True)
    found = {file.name: file.read_text() for file in target.iterdir()}
    assert found == {"a": "new", "b": "new", "c": "new", "mine": "mine"} and names(tmp_path) == ["model"]
