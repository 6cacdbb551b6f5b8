import io

import pytest
import torch
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.files import atomic, checkpoints
from blurify.files.unfinished import UNFINISHED


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
