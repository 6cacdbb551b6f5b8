"""What is being written stands under a temporary name beside its target; what a killed writer left there is removed.

A writer holds a lock on what it writes (`flock`, which ends with its process however that ends). So whatever has such
a name and can be locked has no writer any more. Where the system or the file system has no such locks, nothing of
others is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = re.compile(r"\..*\.[0-9a-f]{8}\.blurify\.tmp", re.DOTALL)
"""How a file or directory is named that is being written."""

_LONGEST = 100  # of the target's name, of which 255 bytes may be all that a file system takes
_ATTEMPTS = 20

_mine: set[Path] = set()


class Unfinished:
    """What is being written.

    Attributes:
        path: its temporary name.
        opened: its descriptor, which holds the lock.
    """

    def __init__(self, path: Path, opened: int) -> None:
        self.path, self.opened = path, opened

    def close(self) -> None:
        """Let go of it."""
        opened, self.opened = self.opened, -1
        if opened >= 0:
            with contextlib.suppress(OSError):
                os.close(opened)


@contextlib.contextmanager
def beside(path: Path, make: Callable[[Path], int]) -> Iterator[Unfinished]:
    """A new file or directory beside a target, locked; removed at the end, unless it has another name by then.

    Args:
        path: the target.
        make: makes it under a name at which nothing is, and opens it (-1: it can't be opened).

    Yields:
        it; it is closed at the end.

    Raises:
        OSError: it can't be made.
    """
    remove_left(path.parent)
    start = path.name.encode(errors="surrogateescape")[:_LONGEST].decode(errors="ignore")
    for _ in range(_ATTEMPTS):
        found = Unfinished(path.parent / f".{start}.{secrets.token_hex(4)}.blurify.tmp", -1)
        _mine.add(found.path)
        try:
            found.opened = make(found.path)
            if _lock(found):
                yield found
                return
        finally:
            _remove(found.path)
            found.close()
            _mine.discard(found.path)
    raise OSError(f"what is made beside {path.name} is removed by another process at once")


def remove_left(folder: Path) -> None:
    """Remove what killed writers left in a directory, never what a live process is writing."""
    if fcntl is None:
        return
    try:
        with os.scandir(folder) as entries:
            found = [folder / entry.name for entry in entries if NAME.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        with contextlib.suppress(OSError):
            _remove_if_left(path)


def remove_mine() -> None:
    """Remove what this process is writing, before it ends at once."""
    for path in tuple(_mine):
        _remove(path)


def _remove_if_left(path: Path) -> None:
    assert fcntl is not None
    # A pipe or a link that somebody gave such a name is neither waited for nor followed.
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        kind = os.fstat(opened).st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(opened, path):  # and didn't get its final name meanwhile
                _remove(path)
    finally:
        os.close(opened)


def _lock(made: Unfinished) -> bool:
    """Lock what was made just now; whether it is still there: between the two somebody may have taken it for left."""
    if fcntl is None or made.opened < 0:
        return True
    with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for left then
        fcntl.flock(made.opened, fcntl.LOCK_EX)
    return _is_at(made.opened, made.path)


def _is_at(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), os.lstat(path))
    except OSError:
        return False


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except (IsADirectoryError, PermissionError):  # what a directory answers depends on the system
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass
