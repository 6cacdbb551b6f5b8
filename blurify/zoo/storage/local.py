"""A directory of this machine, or one that several machines share."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from blurify.errors import BlurifyError, one_line
from blurify.files import atomic, unfinished
from blurify.zoo.storage.base import LOCK

_PATIENCE = 20.0  # seconds that the workers of a killed run have to end


class LocalStorage:
    """A directory. A descriptor holds its lock, which workers inherit: it is free once the last of them has gone."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.where = os.path.abspath(self.path)
        self.lock: int | None = None

    def at(self, name: str) -> str:
        """The path, as the user wrote it."""
        return str(self.path / name)

    def take(self) -> str:
        """Make the directory and lock it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BlurifyError(f"{self.path} can't be made a directory: {error.strerror}") from error
        owner = f"{this_process()} ({secrets.token_hex(4)})"
        self.lock = _locked(self.path / LOCK, owner)
        return owner

    def let_go(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def beat(self) -> None:
        """Nothing to do: the system knows whether the holder of a lock lives."""

    def lines(self, name: str) -> list[bytes]:
        """The whole lines; a torn one is cut off, so that the next does not continue it."""
        path = self.path / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            os.truncate(path, len(whole))
        return whole.splitlines()

    def append(self, name: str, line: bytes) -> None:
        """Write and sync; where that fails (a full disk), what was written of the line is cut off again."""
        opened = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if not line:
                return
            before, rest = os.fstat(opened).st_size, memoryview(line + b"\n")
            try:
                while rest:
                    rest = rest[os.write(opened, rest) :]
                os.fsync(opened)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(opened, before)
                raise
        finally:
            os.close(opened)

    def replace(self, name: str, content: bytes) -> None:
        """Write beside it, then rename."""
        atomic.replace_bytes(self.path / name, content)

    def sizes(self) -> dict[str, int]:
        """Of what is in the subdirectories."""
        found = {}
        for folder in self._folders():
            for entry in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # a link to nothing
                    seen = entry.stat()
                    found[f"{folder.name}/{entry.name}"] = seen.st_size if stat.S_ISREG(seen.st_mode) else -1
        return found

    def remove(self, name: str) -> None:
        """Unlink it."""
        (self.path / name).unlink()

    def tidy(self) -> None:
        """Remove unfinished files that no live process is writing."""
        for folder in (self.path, *self._folders()):
            unfinished.remove_left(folder)

    def check(self, token: str) -> None:
        """Compare the owner in the lock: another machine may have another directory under that path."""
        found = ""
        with contextlib.suppress(OSError):
            found = (self.path / LOCK).read_text(encoding="utf-8", errors="replace").strip()
        if found != token:
            raise BlurifyError(
                f"{self.path} is not the same directory on {socket.gethostname()}: give a directory that all machines "
                "share, or a URL such as s3://bucket/prefix"
            )

    def store(self, name: str, write: Callable[[Path], object]) -> int:
        """Let it be written in place: what we write is atomic by itself."""
        path = Path(self.where) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BlurifyError(f"{path.parent} can't be made a directory: {one_line(error.strerror)}") from error
        write(path)
        return path.stat().st_size

    def _folders(self) -> list[Path]:
        return [entry for entry in self.path.iterdir() if entry.is_dir()]


def this_process() -> str:
    """How a lock names its owner; `owner_has_gone` reads it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def owner_has_gone(owner: str) -> bool:
    """Whether a process of this machine that `this_process` named in a lock is surely no more."""
    match = re.match(r"process (\d+) on (\S+)", owner)
    if match is None or match[2] != socket.gethostname():
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _locked(path: Path, owner: str) -> int:
    import fcntl

    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BlurifyError(f"{path.parent} can't be written: {error.strerror}") from error
    begin = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.pread(lock, 200, 0).decode(errors="replace").strip()
            ending = owner_has_gone(other) or not other.startswith("process ")
            if not ending or time.monotonic() - begin > _PATIENCE:
                os.close(lock)
                raise BlurifyError(
                    f"another blurify zoo ({other or 'unknown'}) is at work in {path.parent}: wait for it, or choose "
                    "another directory (one for each shard)"
                ) from None
            time.sleep(0.05)  # its workers are on their way out
            continue
        os.truncate(lock, 0)
        os.pwrite(lock, f"{owner}\n".encode(), 0)
        return lock
