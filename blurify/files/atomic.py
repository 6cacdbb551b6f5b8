"""Write a file so that it appears under its name complete or not at all.

It is written beside the target under another name, brought to the disk, read back, and only then renamed. Whatever ends
that (a full disk, a signal, a kill) leaves what was there before.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from blurify.errors import BlurifyError, one_line
from blurify.files.unfinished import Unfinished, unfinished_directory, unfinished_file


def check_target(path: str | Path, *, force: bool = False) -> None:
    """Ask whether `path` can become a file: worth asking before the work is done.

    Args:
        path: where a file is to be; of a symbolic link, what it leads to.
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
    size: int | None = None,
) -> None:
    """Write beside the target, then take its name.

    A file that is replaced gives its mode and its owner to the new one; a symbolic link stays, and what it leads to is
    replaced.

    Args:
        path: the target.
        write: writes the content to the open file that it is given.
        force: replace a file that is there.
        check: reads back what was written, under the name that it is given, and raises where it is not what was meant.
        size: about how many bytes are written, to tell where there is no room for them.

    Raises:
        BlurifyError: the target exists (and not `force`), or can't be written. Whatever is raised, a KeyboardInterrupt
            too, what was at the target is still there, and nothing is left beside it.
    """
    try:
        _write_beside(path, write, force=force, check=check)
    except OSError as error:
        raise BlurifyError(f"{path} can't be written: {_reason(error, path, size)}") from error


def write_directory(
    path: Path, fill: Callable[[Path], object], *, force: bool, check: Callable[[Path], object] | None = None
) -> None:
    """Fill a directory beside the target, then give it the name.

    Args:
        path: the target.
        fill: writes the files into the empty directory that it is given.
        force: files of the same names in a directory that is there are replaced; others in it stay.
        check: as of `write_file`, of the directory.

    Raises:
        BlurifyError: something is there (and not `force`), it is no directory, or it can't be written. What was at the
            target is still there then, and nothing is left beside it.
    """
    check_directory(path, force=force)
    target = _behind_links(path)
    try:
        with unfinished_directory(target) as temporary:
            fill(temporary)
            for file in (*temporary.iterdir(), temporary):
                _sync(file)
            if check is not None:
                check(temporary)
            if target.is_dir() and any(target.iterdir()):
                _replace_files(temporary, target)
            else:
                os.replace(temporary, target)
        _sync(target)
        _sync(target.parent)
    except OSError as error:
        raise BlurifyError(f"{path} can't be written: {_reason(error, path)}") from error


def _replace_files(new: Path, target: Path) -> None:
    """Move all files of one directory into another; those that had their names come back where that fails."""
    with unfinished_directory(target) as aside:
        moved: list[str] = []
        try:
            for file in sorted(new.iterdir()):
                moved.append(file.name)
                if (target / file.name).exists():
                    os.replace(target / file.name, aside / file.name)
                os.replace(file, target / file.name)
        except BaseException:
            for name in moved:
                if (aside / name).exists():
                    os.replace(aside / name, target / name)
                elif not (new / name).exists():
                    os.unlink(target / name)
            raise


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
    path = _behind_links(path)
    place = path if path.is_dir() else path.parent
    if not place.is_dir():
        raise BlurifyError(f"{path} can't be written: {place} doesn't exist")
    if not os.access(place, os.W_OK | os.X_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise BlurifyError(f"{path} can't be written: the directory {place} is not writable")


def write_bytes(path: Path, content: bytes, *, force: bool) -> None:
    """`write_file` for content that is at hand.

    Raises:
        BlurifyError: as `write_file`.
    """
    write_file(path, lambda file: file.write(content), force=force, check=_is(path, content), size=len(content))


def replace_bytes(path: Path, content: bytes) -> None:
    """`write_bytes` that replaces what is there, for callers with a message of their own.

    Raises:
        OSError: the file can't be written; it is as it was then.
    """
    _write_beside(path, lambda file: file.write(content), force=True)


def _is(path: Path, content: bytes) -> Callable[[Path], None]:
    """A check that a file holds some bytes."""

    def check(written: Path) -> None:
        if written.read_bytes() != content:
            raise BlurifyError(not_as_meant(path, "its bytes"))

    return check


def not_as_meant(path: Path, what: str) -> str:
    """The message of a check that finds something else than what was written."""
    return (
        f"{path} was not written: read back, {what} differed from what was meant, so the disk or the memory may be "
        "faulty; try another disk"
    )


def _write_beside(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    force: bool,
    check: Callable[[Path], object] | None = None,
) -> None:
    target = _behind_links(path)
    before = _status(target)
    if before is not None and not force:
        raise BlurifyError(_exists(path))
    # What shall replace a file is nobody else's before it has that file's mode.
    with unfinished_file(target, 0o666 if before is None else 0o600) as temporary:
        assert temporary.descriptor is not None
        watched = _Watched(temporary.descriptor, "wb", closefd=False)
        try:
            with io.BufferedWriter(watched) as file:
                write(file)
        except BaseException:
            if watched.failure is not None:
                raise watched.failure from None  # and not what the code between made of it
            raise
        _bring_to_disk(temporary, check)
        if before is not None:
            _make_like(temporary.descriptor, before)
        _take_name(temporary, target, path, force=force)
    _sync(target.parent)


def _bring_to_disk(written: Unfinished, check: Callable[[Path], object] | None) -> None:
    """Wait until a file is on the disk, and check it in the meantime."""
    assert written.descriptor is not None
    if check is None:
        os.fsync(written.descriptor)
        return
    with ThreadPoolExecutor(1) as beside:
        synced = beside.submit(os.fsync, written.descriptor)
        check(written.path)
        synced.result()


def _make_like(descriptor: int, before: os.stat_result) -> None:
    """Give a file the owner and the mode of the one that it replaces, as far as the system lets us."""
    if not hasattr(os, "fchown"):  # Windows
        return
    now = os.fstat(descriptor)
    for owner, group in ((before.st_uid, before.st_gid), (-1, before.st_gid)):
        if (owner, group) in ((now.st_uid, now.st_gid), (-1, now.st_gid)):
            break
        with contextlib.suppress(OSError):
            os.fchown(descriptor, owner, group)
            break
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode) & 0o777)


def _take_name(written: Unfinished, target: Path, named: Path, *, force: bool) -> None:
    if os.name == "nt":  # there, what is open can't be renamed
        written.close()
    if not force:
        try:
            os.link(written.path, target)  # which, unlike a rename, replaces nothing
            return
        except FileExistsError:
            raise BlurifyError(_exists(named)) from None
        except OSError as error:  # a file system without links
            if target.exists():
                raise BlurifyError(_exists(named)) from error
    os.replace(written.path, target)


def _behind_links(path: Path) -> Path:
    """What a path leads to, which need not exist.

    Raises:
        BlurifyError: it leads nowhere.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise BlurifyError(f"{path} is a symbolic link that leads to itself: remove it, or choose another name")
    return target


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


_NO_ROOM = {
    errno.ENOSPC: "there is no room on the disk",
    getattr(errno, "EDQUOT", -1): "your quota is used up",
    errno.EFBIG: "so large a file is not allowed there",
}


def _reason(error: OSError, path: Path, size: int | None = None) -> str:
    """Why writing failed, and what to do."""
    what = _NO_ROOM.get(error.errno or 0)
    if what is None:
        return error.strerror or one_line(error)
    needed = f"it takes {_amount(size)}" if size else ""
    free = ""
    with contextlib.suppress(OSError):
        free = f"{_amount(shutil.disk_usage(_behind_links(path).parent).free)} are free"
    numbers = ", ".join(filter(None, (needed, free if error.errno != errno.EFBIG else "")))
    remedy = "raise the limit (ulimit -f)" if error.errno == errno.EFBIG else "make room"
    return f"{what}{f' ({numbers})' if numbers else ''}: {remedy}, or choose another place"


def _amount(size: int) -> str:
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def _sync(path: Path) -> None:
    """Have a file or a directory on the disk, where the file system lets one ask for it."""
    with contextlib.suppress(OSError):
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


class _Watched(io.FileIO):
    """A file that remembers why writing to it failed.

    Between it and us there may be code that hides the reason: torch's zip writer answers a full disk, or a
    KeyboardInterrupt during a write, with a RuntimeError of its own.
    """

    failure: BaseException | None = None

    def write(self, data: Any, /) -> int:
        try:
            if self.failure is not None:  # the rest would only be written after a gap
                raise self.failure
            return super().write(data)
        except BaseException as error:
            self.failure = error
            raise


def _exists(path: Path) -> str:
    return f"{path} exists: add --force to replace it, or choose another name"
