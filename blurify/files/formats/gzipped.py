"""`.gz`: a file of any other format, compressed."""

from __future__ import annotations

import atexit
import dataclasses
import gzip
import io
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from blurify.errors import BlurifyError, one_line
from blurify.files import atomic, formats
from blurify.files.checkpoint import Checkpoint, Reading, Saved
from blurify.files.formats.base import Format

_CHUNK = 2**20
_SPARE = 2**28
_MOST = 100  # times: weights hardly shrink, but a file of zeros shrinks to a thousandth


class Gzipped(Format):
    """Unpacked into a temporary file, and read from there."""

    name = "gzip"
    suffixes = (".gz",)

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the first bytes."""
        return start.startswith(b"\x1f\x8b")

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """What the file in it holds. See `Format.read`."""
        folder = Path(tempfile.mkdtemp(prefix="blurify-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # its tensors are read when they are asked for
        inner = folder / (path.stem or "unpacked")
        try:
            _unpack(path, inner)
            found = formats.read_checkpoint(inner, reading)
        except BlurifyError as error:
            raise BlurifyError(str(error).replace(str(inner), str(path))) from error
        return dataclasses.replace(found, path=path)

    def keeps_rest(self, path: Path) -> bool:
        """Where the format in it has."""
        return formats.for_writing(path.with_suffix("")).keeps_rest(path)

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """Without the time and the name, so that equal models are equal files. See `Format.put`."""
        raise BlurifyError("a compressed file is written by its whole name, as in model.pt.gz")

    def write(self, path: Path, saved: Saved, *, force: bool) -> None:
        """See `Format.write`."""
        inner = formats.for_writing(path.with_suffix(""))
        _Packed(inner).write(path, saved, force=force)


class _Packed(Gzipped):
    """A format, and gzip around it."""

    def __init__(self, inner: Format) -> None:
        self._inner = inner

    def write(self, path: Path, saved: Saved, *, force: bool) -> None:
        Format.write(self, path, saved, force=force)

    def put(self, file: BinaryIO, saved: Saved) -> None:
        with gzip.GzipFile(filename="", mode="wb", fileobj=cast(Any, file), mtime=0) as packed:
            self._inner.put(cast(BinaryIO, packed), saved)

    def check(self, path: Path, saved: Saved) -> None:
        """What the format in it would write again, beside what comes out; nothing is unpacked into a file for it."""
        try:
            with gzip.open(path, "rb") as packed:
                comparing = _Comparing(packed)
                self._inner.put(cast(BinaryIO, comparing), saved)
                if not comparing.same or packed.read(1):
                    raise BlurifyError(atomic.damaged(path))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise BlurifyError(atomic.damaged(path)) from error


class _Comparing(io.RawIOBase):
    """A file that compares what is written with what another has."""

    def __init__(self, other: Any) -> None:
        self._other = other
        self.same = True

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        meant = bytes(data)
        self.same = self.same and self._other.read(len(meant)) == meant
        return len(meant)


def _unpack(path: Path, into: Path) -> None:
    """Decompress a file that may have been made to fill the disk."""
    room = _SPARE + _MOST * path.stat().st_size
    try:
        with gzip.open(path, "rb") as packed, into.open("wb") as file:
            while chunk := packed.read(_CHUNK):
                room -= len(chunk)
                if room < 0:
                    raise BlurifyError(f"{path} unpacks to over {_MOST} times its size, as no weights do")
                file.write(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BlurifyError(f"{path} is damaged or cut off ({one_line(error)}): get or save it again") from error
    except OSError as error:
        raise BlurifyError(f"{path} can't be unpacked: {error.strerror or one_line(error)}") from error
