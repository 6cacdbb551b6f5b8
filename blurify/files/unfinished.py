"""Files and directories that are being written, under names that say so and with locks that say by whom.

Whoever writes holds a lock on what is unfinished, and the system lets go of it when that process ends, however it ends.
So what can be locked was left by a kill, and the next writer to the same directory removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing that a kill left is removed
    fcntl = None

UNFINISHED = re.compile(r"\..*\.[0-9a-f]{8}\.blurify")
"""How a file or a directory is named that is being written; one without its writer was left by a kill."""

_LONGEST = 150  # bytes of the target's name: most file systems take 255 for a name
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@dataclass
class Unfinished:
    """What is being written.

    Attributes:
        path: its name for now.
        descriptor: it, open and locked; None once it is closed.
    """

    path: Path
    descriptor: int | None

    def close(self) -> None:
        """Close it, and let go of the lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@contextmanager
def unfinished_file(target: Path, mode: int = 0o666) -> Iterator[Unfinished]:
    """A new file beside the target; removed at the end, unless it was given another name.

    Args:
        target: the name that it shall have in the end.
        mode: what the file is allowed to whom, less the umask.
    """
    sweep(target.parent)
    while True:
        found = Unfinished(_name_for(target), None)
        try:
            found.descriptor = os.open(
                found.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode
            )
            if not _lock(found):
                continue
            yield found
            return
        finally:
            with contextlib.suppress(OSError):
                found.path.unlink()
            found.close()


@contextmanager
def unfinished_directory(target: Path) -> Iterator[Path]:
    """A new directory beside the target; removed at the end, unless it was given another name."""
    sweep(target.parent)
    while True:
        found = Unfinished(_name_for(target), None)
        try:
            found.path.mkdir()
            if fcntl is not None:  # a directory can't be opened without it
                found.descriptor = os.open(found.path, os.O_RDONLY)
                if not _lock(found):
                    continue
            yield found.path
            return
        finally:
            shutil.rmtree(found.path, ignore_errors=True)
            found.close()


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a directory; what a living one writes is locked, and stays."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        left = [Path(entry.path) for entry in os.scandir(folder) if UNFINISHED.fullmatch(entry.name)]
        for path in left:
            with contextlib.suppress(OSError):
                _remove(path)


def _remove(path: Path) -> None:
    found = Unfinished(path, os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    try:
        if not _lock(found, sure=True):
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        found.close()


def _lock(found: Unfinished, *, sure: bool = False) -> bool:
    """Whether the lock was taken, on what still has its name; `sure`: where nothing can be locked it was not."""
    if fcntl is None or found.descriptor is None:
        return not sure
    try:
        fcntl.flock(found.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not sure and error.errno not in _TAKEN  # some file systems have no locks
    try:
        return os.path.samestat(os.fstat(found.descriptor), os.lstat(found.path))
    except FileNotFoundError:  # between the two calls another process took it for left
        return False


def _name_for(target: Path) -> Path:
    name = target.name.encode(errors="ignore")[:_LONGEST].decode(errors="ignore")
    return target.parent / f".{name}.{secrets.token_hex(4)}.blurify"
