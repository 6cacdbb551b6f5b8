"""Write a file so that it appears under its name complete or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from blurify.errors import BlurifyError, one_line

UNFINISHED = re.compile(r"\..*\.[0-9a-f]{8}\.tmp")
"""How a file is named that is being written; one that is there without its writer was left by a kill."""


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
    if not path.parent.is_dir():
        what = "is not a directory" if path.parent.exists() else "doesn't exist"
        raise BlurifyError(f"{path} can't be written: {path.parent} {what}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BlurifyError(f"{path} can't be written: the directory {path.parent} is not writable")


def write_file(path: Path, write: Callable[[BinaryIO], object], *, force: bool) -> None:
    """Write beside the target, then take its name.

    Args:
        path: the target.
        write: writes the content to the open file that it is given.
        force: replace a file that is there.

    Raises:
        BlurifyError: the target exists (and not `force`), or can't be written. Whatever is raised, a KeyboardInterrupt
            too, what was at the target is still there, and nothing is left beside it.
    """
    try:
        _write_beside(path, write, force=force)
    except OSError as error:
        raise BlurifyError(f"{path} can't be written: {error.strerror or one_line(error)}") from error


def write_directory(path: Path, fill: Callable[[Path], object], *, force: bool) -> None:
    """Fill a directory beside the target, then give it the name.

    Args:
        path: the target.
        fill: writes the files into the empty directory that it is given.
        force: files of the same names in a directory that is there are replaced; others in it stay.

    Raises:
        BlurifyError: something is there (and not `force`), it is no directory, or it can't be written. What was at the
            target is still there then, and nothing is left beside it.
    """
    check_directory(path, force=force)
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
        fill(temporary)
        for file in temporary.iterdir():
            _sync(file)
        if path.is_dir():
            for file in sorted(temporary.iterdir()):
                os.replace(file, path / file.name)
        else:
            os.replace(temporary, path)
        _sync(path)
    except OSError as error:
        raise BlurifyError(f"{path} can't be written: {error.strerror or one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    write_file(path, lambda file: file.write(content), force=force)


def replace_bytes(path: Path, content: bytes) -> None:
    """`write_bytes` that replaces what is there, for callers with a message of their own.

    Raises:
        OSError: the file can't be written; it is as it was then.
    """
    _write_beside(path, lambda file: file.write(content), force=True)


def _write_beside(path: Path, write: Callable[[BinaryIO], object], *, force: bool) -> None:
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(4)}.tmp"
    watched: _Watched | None = None
    try:
        watched = _Watched(temporary, "xb")
        with io.BufferedWriter(watched) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and not force:
            raise BlurifyError(_exists(path))
        os.replace(temporary, path)
    except BaseException:
        if watched is not None and watched.failure is not None:
            raise watched.failure from None  # and not what the code between made of it
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync(path.parent)


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
        if self.failure is not None:  # the rest would only be written after a gap
            raise self.failure
        try:
            return super().write(data)
        except BaseException as error:
            self.failure = error
            raise


def _exists(path: Path) -> str:
    return f"{path} exists: add --force to replace it, or choose another name"
