"""A file of results that grows while a metric is measured: one line a result, of use whenever its writer was killed.

A line is a checksum and JSON. What is torn (a kill, a full disk, a power cut) is not read; nothing in the file is ever
executed. Several runs may use one file at a time: each line is appended by one call of the system, and runs that share
a file measure the same. Whoever uses it holds a shared lock (`flock`, which ends with its process however that ends),
so that only the last one removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from blurify.errors import BlurifyError, one_line
from blurify.files.atomic import write_bytes
from blurify.metrics.stored import stores_of

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None

ENDING = ".jsonl"
_OURS = re.compile(r"[0-9a-f]{32}\.jsonl")  # as `keeping.name_of` names them
OLD = 30 * 24 * 3600.0
"""Seconds after which what nobody went on with is removed."""

_HOW = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
_SYNC = 5.0  # seconds: a kill loses nothing that was written, a power cut what was written since then
_ATTEMPTS = 20


class Journal:
    """The results in one file. Use `open_journal`.

    Attributes:
        entries: what was read and written, by key and name. The name '' is the whole of what the others of its key are
            parts of: they are left out from then on.
        used: what keys that were asked for or written begin with, up to their last '/'; when all is done, these alone
            are of no more use.
        before: how many keys were there when it was opened.
        trouble: why nothing is written any more; '' while all is well.
    """

    def __init__(self, path: Path, opened: int) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self.used: set[str] = set()
        self.trouble = ""
        self._opened = opened
        self._torn = self._read()
        self.before = len(self.entries)
        self._synced = time.monotonic()

    def _read(self) -> bool:
        """Read all lines; whether the last one is torn."""
        with open(self.path, "rb") as file:
            content = file.read()
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # not a line of ours, or half of one
                if zlib.crc32(line[9:]) == int(line[:8], 16):
                    key, name, data = json.loads(line[9:])
                    if isinstance(key, str) and isinstance(name, str):
                        self._take(key, name, data)
        return not content.endswith(b"\n") and bool(content)

    def _take(self, key: str, name: str, data: Any) -> None:
        known = self.entries.setdefault(key, {})
        if not name:
            known.clear()
        if "" not in known:
            known[name] = data

    def append(self, key: str, name: str, data: Any) -> None:
        """Write down a result: plain data, whose floats come back bit for bit. Where that fails, `trouble` says so."""
        self._take(key, name, data)
        if self._opened < 0:
            return
        line = b"\n" * self._torn + _line(key, name, data)
        try:
            written = os.write(self._opened, line)
            if written != len(line):
                raise OSError("the disk is full")
            self._torn = False
            if time.monotonic() - self._synced > _SYNC:
                os.fsync(self._opened)
                self._synced = time.monotonic()
        except OSError as error:
            self.trouble = error.strerror or one_line(error)
            self._let_go()

    def forget(self) -> bool:
        """Remove what is in it, unless another run uses it; whether that could be done."""
        alone = self._opened >= 0 and _locked(self._opened, alone=True)
        if alone:
            with contextlib.suppress(OSError):
                os.ftruncate(self._opened, 0)
            _remove(stores_of(self.path))
            self.entries, self.before, self._torn = {}, 0, False
        if self._opened >= 0:
            _locked(self._opened, alone=False)
        return alone

    def distrust(self) -> bool:
        """Believe nothing of what was read, and measure it anew; whether there was any such."""
        head = {key: known for key, known in self.entries.items() if "/" not in key}
        if self.before <= len(head):
            return False
        if not self.forget():  # another run uses it too
            self.entries, self.before = {}, 0
        for key, known in head.items():
            for name, data in known.items():
                self.append(key, name, data)
        return True

    def close(self, *, done: bool) -> None:
        """Let go of the file; where all is done and nobody else uses it, remove what was used: all of it, mostly."""
        remove = done and self._opened >= 0 and _locked(self._opened, alone=True)
        rest = self._unused() if remove else b""
        if fcntl is None:  # Windows removes no open files
            self._let_go()
        if remove:
            with contextlib.suppress(OSError, BlurifyError):
                if rest:
                    write_bytes(self.path, rest, force=True)
                else:
                    self.path.unlink()
                _remove(stores_of(self.path, self.used if rest else None))
        self._let_go()

    def _unused(self) -> bytes:
        """The lines of other metrics or settings, which were stopped and can be gone on with; with the head."""
        with contextlib.suppress(OSError):
            self._read()  # what others have written since
        found = {key: known for key, known in self.entries.items() if key.rpartition("/")[0] not in self.used}
        if not any("/" in key for key in found):
            return b""
        return b"".join(_line(key, name, data) for key, known in found.items() for name, data in known.items())

    def _let_go(self) -> None:
        opened, self._opened = self._opened, -1
        if opened >= 0:
            with contextlib.suppress(OSError):
                os.close(opened)


def _line(key: str, name: str, data: Any) -> bytes:
    text = json.dumps([key, name, data], separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def open_journal(path: Path) -> Journal:
    """The journal at a path, which is made where there is none, with its folder.

    Raises:
        OSError: it can't be made, read or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for _ in range(_ATTEMPTS):
        opened = os.open(path, _HOW, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise OSError(f"{path} is no file")
            if _locked(opened, alone=False) and _is_at(opened, path):
                found = Journal(path, opened)
                opened = -1
                return found
        finally:
            if opened >= 0:
                os.close(opened)
        time.sleep(0.01)  # another run is just removing it
    raise OSError(f"{path} is removed again and again")


def remove_old(folder: Path) -> None:
    """Remove the journals that nobody went on with for a long time, and nobody uses; no other files."""
    now = time.time()
    for path in _journals(folder):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > OLD:
                opened = os.open(path, os.O_RDWR)
                try:
                    if _locked(opened, alone=True):
                        path.unlink()
                        _remove(stores_of(path))
                finally:
                    os.close(opened)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _journals(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from (Path(entry.path) for entry in entries if _OURS.fullmatch(entry.name))


def _locked(opened: int, *, alone: bool) -> bool:
    """Lock an open file, for oneself or with others; whether that could be done. Without such locks it always can."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(opened, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that has none
        return True
    return True


def _is_at(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), os.stat(path))
    except OSError:
        return False
