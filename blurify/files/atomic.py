"""Write a file so that it appears under its name complete or not at all.

What is written stands beside its target until it is on the disk and was read back (see `unfinished` for what becomes of
it when its writer is killed), and then takes the name in one step. A symbolic link stays, and what it leads to is
replaced; a file that is replaced hands on its mode and, where the system allows it, its owner.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from blurify.errors import BlurifyError, one_line
from blurify.files import unfinished

_CHUNK = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Folder(type(Path())):  # type: ignore[misc]
    """A path that is to be a directory: written with a slash at its end, which a Path does not keep."""


def target(path: str | Path) -> Path:
    """Where something is to be written, as a `Folder` where that is what the user wrote."""
    if isinstance(path, Path):
        return path.expanduser()
    ends = path.endswith(("/", os.sep))
    return (Folder if ends else Path)(path).expanduser()


def check_target(path: str | Path, *, force: bool = False) -> None:
    """Ask whether `path` can become a file: worth asking before the work is done.

    Args:
        path: where a file is to be.
        force: an ordinary file that is there may be replaced.

    Raises:
        BlurifyError: it is a directory or no ordinary file, it exists (and not `force`), or its directory is missing
            or not writable.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise BlurifyError(f"{path} is a directory: name a file in it")
    if path.exists() and not path.is_file():
        raise BlurifyError(f"{path} is no ordinary file: choose another name")
    if path.exists() and not force:
        raise BlurifyError(_exists(path))
    folder = _behind_links(path).parent
    if not folder.is_dir():
        what = "is not a directory" if folder.exists() else "doesn't exist"
        raise BlurifyError(f"{path} can't be written: {folder} {what}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BlurifyError(f"{path} can't be written: the directory {folder} is not writable")


def write_file(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    force: bool,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write beside the target, read it back, then take its name.

    Args:
        path: the target.
        write: writes the content to the open file that it is given. It may be called again to count what it writes.
        force: replace a file that is there.
        check: is given the file before it takes its name, and raises where it is not what was meant.

    Raises:
        BlurifyError: the target exists (and not `force`), can't be written, or what was read back differs. Whatever is
            raised, a KeyboardInterrupt too, what was at the target is still there, and nothing is left beside it.
    """
    try:
        _write_beside(path, write, force=force, check=check)
    except OSError as error:
        raise BlurifyError(_refused(path, error, write)) from error


def write_directory(
    path: Path,
    fill: Callable[[Path], object],
    *,
    force: bool,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Fill a directory beside the target, then give it the name.

    Args:
        path: the target.
        fill: writes the files into the empty directory that it is given.
        force: files of the same names in a directory that is there are replaced; others in it stay.
        check: is given the directory before it takes its name, and raises where it is not what was meant.

    Raises:
        BlurifyError: something is there (and not `force`), it is no directory, or it can't be written. What was at the
            target is still there then, and nothing is left beside it. (Only a SIGKILL between the renames of two files
            can leave new files beside old ones, and only where files were replaced.)
    """
    check_directory(path, force=force)
    place = _behind_links(path)
    try:
        with unfinished.beside(place, _make_directory) as made:
            new, old = made.path / "new", made.path / "old"
            new.mkdir()
            old.mkdir()
            fill(new)
            for file in sorted(new.rglob("*")):
                _sync(file)
            _sync(new)
            if check is not None:
                check(new)
            with _uninterrupted():
                if place.is_dir() and any(place.iterdir()):
                    _move_into(new, place, old)
                else:
                    os.replace(new, place)
            _sync(place)
            _sync(place.parent)
    except OSError as error:
        raise BlurifyError(_refused(path, error)) from error


def check_directory(path: Path, *, force: bool = False) -> None:
    """Ask whether `path` can become a directory of a model: worth asking before the work is done.

    Raises:
        BlurifyError: it is a file, it has files in it (and not `force`), or its own directory is missing or not
            writable.
    """
    if path.exists() and not path.is_dir():
        raise BlurifyError(f"{path} is a file: give another name for the directory")
    if path.is_dir() and not force and any(path.iterdir()):
        raise BlurifyError(f"{path} has files in it: add --force to replace those of the model, or choose another name")
    place = _behind_links(path)
    folder = place if place.is_dir() else place.parent
    if not folder.is_dir():
        raise BlurifyError(f"{path} can't be written: {folder} doesn't exist")
    if not os.access(folder, os.W_OK | os.X_OK) or not os.access(place.parent, os.W_OK | os.X_OK):
        raise BlurifyError(f"{path} can't be written: the directory {folder} is not writable")


def write_bytes(path: Path, content: bytes, *, force: bool) -> None:
    """`write_file` for content that is at hand.

    Raises:
        BlurifyError: as `write_file`.
    """
    write_file(path, lambda file: file.write(content), force=force)


def replace_bytes(path: Path, content: bytes) -> None:
    """`write_bytes` that replaces what is there, for callers with a message of their own.

    Raises:
        OSError: the file can't be written; it is as it was then.
    """
    _write_beside(path, lambda file: file.write(content), force=True)


def _write_beside(
    path: Path, write: Callable[[BinaryIO], object], *, force: bool, check: Callable[[Path], object] | None = None
) -> None:
    place = _behind_links(path)
    watched: _Watched | None = None
    with unfinished.beside(place, _make_file) as made:
        if force:
            _take_over_mode(place, made.opened)
        try:
            watched = _Watched(os.dup(made.opened), "wb")
            with io.BufferedWriter(watched) as file:
                write(file)
                file.flush()
                os.fsync(made.opened)
            _compare(made, watched)
            if check is not None:
                check(made.path)
        except BaseException:
            if watched is not None and watched.failure is not None:
                raise watched.failure from None  # and not what the code between made of it
            raise
        if os.name == "nt":
            made.close()  # Windows renames no open files
        if force:
            os.replace(made.path, place)
        else:
            _take_free_name(made.path, place, path)
    _sync(place.parent)


def _make_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def _make_directory(path: Path) -> int:
    path.mkdir()
    try:
        return os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no directories
        return -1


def _behind_links(path: Path) -> Path:
    """Where a name leads to, so that a link stays one."""
    if not path.is_symlink():
        return path
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise BlurifyError(f"{path} is a link that leads back to itself: choose another name")
    return place


def _take_over_mode(place: Path, opened: int) -> None:
    """Give a new file the owner and the mode of the one that it replaces, before anything is in it."""
    with contextlib.suppress(OSError, AttributeError):
        found = os.stat(place)
        own = os.fstat(opened)
        if (found.st_uid, found.st_gid) != (own.st_uid, own.st_gid):
            try:
                os.fchown(opened, found.st_uid, found.st_gid)
            except OSError:  # not root: the group alone, where one is in it
                with contextlib.suppress(OSError):
                    os.fchown(opened, -1, found.st_gid)
        os.fchmod(opened, stat.S_IMODE(found.st_mode))


def _take_free_name(temporary: Path, place: Path, path: Path) -> None:
    """Give a file its name where nothing has that name, though somebody may just be taking it."""
    try:
        os.link(temporary, place)  # which, unlike a rename, replaces nothing
    except FileExistsError as error:
        raise BlurifyError(_exists(path)) from error
    except (OSError, AttributeError):  # a file system without hard links
        if place.exists():
            raise BlurifyError(_exists(path)) from None
        os.replace(temporary, place)


def _move_into(new: Path, place: Path, old: Path) -> None:
    """Move files into a directory; where one can't be moved, those that were there come back."""
    moved: list[Path] = []
    try:
        for file in sorted(new.iterdir()):
            target = place / file.name
            if target.exists() or target.is_symlink():
                os.replace(target, old / file.name)
            moved.append(target)
            os.replace(file, target)
    except BaseException:
        for target in moved:
            if (old / target.name).exists():
                os.replace(old / target.name, target)
            else:
                target.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let signals that can wait do so."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _compare(made: unfinished.Unfinished, watched: _Watched) -> None:
    """Read a file back, from the disk where the system lets one ask for that, and compare it with what was written."""
    if watched.sum is None or os.fstat(made.opened).st_size != watched.length:
        return  # some of it was written elsewhere or came from the kernel: the format's own check has to do
    with contextlib.suppress(OSError, AttributeError):
        os.posix_fadvise(made.opened, 0, 0, os.POSIX_FADV_DONTNEED)
    found = 0
    with made.path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    if found != watched.sum:
        raise BlurifyError(damaged(made.path))


def damaged(path: Path) -> str:
    """What to say of a file that was read back as another than was written."""
    folder = path.parent
    return f"what was written to {folder} reads back otherwise: the disk or the memory is faulty, nothing was kept"


def _refused(path: Path, error: OSError, write: Callable[[BinaryIO], object] | None = None) -> str:
    """Why a file can't be written, and what to do."""
    reason = error.strerror or one_line(error)
    if error.errno not in (*_FULL, errno.EFBIG):
        return f"{path} can't be written: {reason}"
    needed = _size_of(write) if write is not None else None
    room = f"{_megabytes(needed)} are needed" if needed is not None else ""
    if error.errno == errno.EFBIG:
        room = f", {room}" if room else ""
        return f"{path} can't be written: the system allows no file of that size{room} (see ulimit -f)"
    with contextlib.suppress(OSError, AttributeError):
        found = os.statvfs(_behind_links(path).parent)
        room += (", " if room else "") + f"{_megabytes(found.f_bavail * found.f_frsize)} free"
    what = "your quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
    return f"{path} can't be written: {what} ({room or reason}): make room, or name a file on another disk"


def _size_of(write: Callable[[BinaryIO], object]) -> int | None:
    """How much would be written; None where that can't be found out."""
    counter = _Counter()
    try:
        write(cast(BinaryIO, counter))
    except Exception:
        return None
    return counter.length


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


def _sync(path: Path) -> None:
    """Have a file or a directory on the disk, where the file system lets one ask for it."""
    with contextlib.suppress(OSError):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


class _Watched(io.FileIO):
    """A file that remembers why writing to it failed, and the sum of what was written.

    Between it and us there may be code that hides the reason: torch's zip writer answers a full disk, or a
    KeyboardInterrupt during a write, with a RuntimeError of its own.
    """

    failure: BaseException | None = None
    sum: int | None = 0
    length = 0

    def write(self, data: Any, /) -> int:
        if self.failure is not None:  # the rest would only be written after a gap
            raise self.failure
        try:
            done = self._put(data)
            if self.sum is not None:
                self.sum = zlib.crc32(memoryview(data).cast("B")[:done], self.sum)
            self.length += done
            return done
        except BaseException as error:
            self.failure = error
            raise

    def _put(self, data: Any) -> int:
        return super().write(data)

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        found = super().seek(position, whence)
        if found != self.length:  # what is written then lies elsewhere
            self.sum = None
        return found


class _Counter(io.RawIOBase):
    """A file that keeps nothing but its size."""

    length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        self.length += size
        return size

    def tell(self) -> int:
        return self.length


def _exists(path: Path) -> str:
    return f"{path} exists: add --force to replace it, or choose another name"
