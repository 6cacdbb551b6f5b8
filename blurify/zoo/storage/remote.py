"""A place that fsspec reaches: an object store, mostly.

Object stores know whole objects only: nothing is appended to, renamed or locked there. So the journal is written anew
with each line (one PUT, which succeeds or changes nothing), a model's file is uploaded under a temporary name, checked
and then copied to its own, and the lock is an object that says whose the place is and changes while its owner lives.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from blurify.errors import BlurifyError, one_line
from blurify.files import unfinished
from blurify.zoo.storage.base import LOCK
from blurify.zoo.storage.local import owner_has_gone, this_process

BEAT = 10.0
"""Seconds between two signs of life of a run."""

LEASE = 60.0
"""Seconds of silence after which a run counts as dead."""

_EXTRAS = {"s3": "s3", "s3a": "s3"}  # what brings the package for a kind of URL; others are named by fsspec


class RemoteStorage:
    """A prefix in an object store, or a directory on another kind of server, by its URL."""

    lock: int | None = None

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        self.where = f"{scheme}://{rest.rstrip('/')}"
        self.files, self._root = _opened(self.where)
        self._written: dict[str, bytes] = {}  # what stands in files that are appended to
        self._folders: set[PurePosixPath] = set()  # that were made, or were there
        self._owner, self._beats, self._last = "", 0, 0.0

    def at(self, name: str) -> str:
        """Its URL."""
        return f"{self.where}/{name}"

    def take(self) -> str:
        """Put the lock where there is none, or one that nobody keeps alive.

        Raises:
            BlurifyError: another run is at work, or the place can't be reached, read or written.
        """
        self._owner = f"{this_process()} ({secrets.token_hex(4)})"
        try:
            if not self._create(LOCK, self._sign()):
                self._wait_for_silence()
                self._put(LOCK, self._sign())
                if self._holder() != self._owner:  # somebody waited, too, and was later
                    raise BlurifyError(self._taken(self._holder()))
        except OSError as error:
            raise BlurifyError(self._unusable(error)) from error
        self._last = time.monotonic()
        return self._owner

    def let_go(self) -> None:
        """Remove the lock, if it is still this run's."""
        owner, self._owner = self._owner, ""
        if owner:
            with contextlib.suppress(OSError):
                if self._holder() == owner:
                    self.remove(LOCK)

    def beat(self) -> None:
        """Change the lock from time to time."""
        if time.monotonic() - self._last < BEAT:
            return
        self._last = time.monotonic()
        with contextlib.suppress(OSError):  # out of reach for a moment: the journal will say if it is for longer
            holder = self._holder()
            if holder not in ("", self._owner):
                raise BlurifyError(f"{self._taken(holder)}: it took this run for dead")
            self._put(LOCK, self._sign())

    def lines(self, name: str) -> list[bytes]:
        """The lines; none of them can be torn."""
        try:
            self._written[name] = self._get(name)
        except FileNotFoundError:
            self._written[name] = b""
        return self._written[name].splitlines()

    def append(self, name: str, line: bytes) -> None:
        """Write all lines anew, in one request."""
        if name not in self._written:
            self.lines(name)
        content = self._written[name] + (line + b"\n" if line else b"")
        if line or not content:
            self._put(name, content)
        self._written[name] = content

    def replace(self, name: str, content: bytes) -> None:
        """One request."""
        self._put(name, content)

    def sizes(self) -> dict[str, int]:
        """From one listing of everything there."""
        found = {}
        for name, size in self._listing():
            if "/" in name:
                found[name] = size
        return found

    def remove(self, name: str) -> None:
        """Delete the object."""
        with _os_errors():
            self.files.rm_file(self._key(name))

    def tidy(self) -> None:
        """Remove temporary objects: whoever has the lock has no live workers but its own, which are not at work now."""
        for name, _ in self._listing():
            if unfinished.NAME.fullmatch(PurePosixPath(name).name):
                with contextlib.suppress(OSError):
                    self.remove(name)

    def check(self, token: str) -> None:
        """Read the lock."""
        try:
            holder = self._holder()
        except OSError as error:
            raise BlurifyError(self._unusable(error)) from error
        if holder != token:
            raise BlurifyError(
                f"{self.where} does not hold what the run wrote there: give a URL that all processes and machines share"
            )

    def store(self, name: str, write: Callable[[Path], object]) -> int:
        """Write it on this machine's disk, upload it under a temporary name, compare the size, and give it its name."""
        final = PurePosixPath(name)
        beside = f"{final.parent}/.{final.name[:100]}.{secrets.token_hex(4)}.blurify.tmp"
        # Whatever a killed worker left of this kind is removed by the next that writes on the same machine.
        with unfinished.beside(Path(tempfile.gettempdir()) / "blurify-zoo", _make_folder) as folder:
            file = folder.path / final.name
            write(file)
            size = file.stat().st_size
            try:
                with _os_errors():
                    self._make_folder_of(self._key(beside))
                    self.files.put_file(str(file), self._key(beside))
                    arrived = self.files.info(self._key(beside))["size"]
                    if arrived != size:
                        raise OSError(errno.EIO, f"{arrived} bytes of {size} arrived")
                    self._rename(beside, name)
            except OSError as error:
                raise BlurifyError(f"{self.at(name)} can't be written: {_reason(error)}") from error
            finally:
                with contextlib.suppress(OSError), _os_errors():
                    self.files.rm_file(self._key(beside))
        return size

    def _rename(self, old: str, new: str) -> None:
        from fsspec.spec import AbstractFileSystem

        if getattr(type(self.files), "mv", None) is AbstractFileSystem.mv:
            self.files.cp_file(self._key(old), self._key(new))  # which a store does by itself, in one step
        else:  # a server that renames
            self.files.mv(self._key(old), self._key(new))

    def _listing(self) -> list[tuple[str, int]]:
        with _os_errors():
            try:
                found = self.files.find(self._root, detail=True)
            except FileNotFoundError:
                return []
        prefix = self._root.rstrip("/") + "/"
        return [(key.removeprefix(prefix), info["size"]) for key, info in found.items() if key.startswith(prefix)]

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _get(self, name: str) -> bytes:
        with _os_errors():
            content: bytes = self.files.cat_file(self._key(name))
            return content

    def _put(self, name: str, content: bytes) -> None:
        with _os_errors():
            self.files.pipe_file(self._key(name), content)

    def _create(self, name: str, content: bytes) -> bool:
        """Write it where nothing is; whether nothing was."""
        key = self._key(name)
        with _os_errors():
            with contextlib.suppress(FileNotFoundError):
                self.files.info(key)
                return False
            self._make_folder_of(key)
            if "mode" not in inspect.signature(getattr(self.files, "_pipe_file", self.files.pipe_file)).parameters:
                self.files.pipe_file(key, content)
                return self._holder() == self._owner
            try:
                self.files.pipe_file(key, content, mode="create")
            except FileExistsError:
                return False
        return True

    def _make_folder_of(self, key: str) -> None:
        """Where there are directories, make the missing ones; never a bucket, whose name may just be misspelt."""
        folder = PurePosixPath(key).parent
        for place in [*reversed(folder.parents), folder]:
            if "/" in place.as_posix().strip("/") and place not in self._folders:
                self._folders.add(place)
                with contextlib.suppress(Exception):  # it is there, or writing into it says what is wrong
                    self.files.mkdir(place.as_posix(), create_parents=False)

    def _sign(self) -> bytes:
        self._beats += 1
        return f"{self._owner}, beat {self._beats}\n".encode()

    def _holder(self) -> str:
        """Whose lock it is; '' where there is none."""
        try:
            return self._get(LOCK).decode(errors="replace").partition(", beat ")[0]
        except FileNotFoundError:
            return ""

    def _wait_for_silence(self) -> None:
        """Until the owner of the lock is known to be gone.

        Raises:
            BlurifyError: it lives.
        """
        first = self._get_or_nothing(LOCK)
        begin = time.monotonic()
        while first and not owner_has_gone(first.decode(errors="replace")) and time.monotonic() - begin < LEASE:
            time.sleep(0.5)
            now = self._get_or_nothing(LOCK)
            if now and now != first:
                raise BlurifyError(self._taken(now.decode(errors="replace").partition(", beat ")[0]))
            first = now

    def _get_or_nothing(self, name: str) -> bytes:
        try:
            return self._get(name)
        except FileNotFoundError:
            return b""

    def _taken(self, holder: str) -> str:
        return (
            f"another blurify zoo ({holder or 'unknown'}) is at work in {self.where}: wait for it, or choose another "
            "prefix (one for each shard)"
        )

    def _unusable(self, error: OSError) -> str:
        return (
            f"{self.where} can't be read and written: {_reason(error)}: check that it exists, and the credentials and "
            "the address that this machine has for it (docs/cluster.md)"
        )


def _opened(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = url.partition("://")[0].lower()
    try:
        files, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        extra = f"pip install 'blurify[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else one_line(error)
        raise BlurifyError(f"{url} needs a package for {scheme}:// that is not installed: {extra}") from error
    except ValueError as error:
        raise BlurifyError(
            f"{url} can't be used ({one_line(error)}): give a directory, or a URL such as s3://bucket/prefix"
        ) from error
    except Exception as error:  # a backend that connects at once
        raise BlurifyError(f"{url} can't be used: {type(error).__name__}: {one_line(error)}") from error
    if not root.strip("/"):
        raise BlurifyError(f"{url} names no place: give a URL such as {scheme}://bucket/prefix")
    return files, root.rstrip("/")


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Whatever a backend raises is an OSError with a text."""
    try:
        yield
    except (OSError, BlurifyError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {one_line(error)}") from error


def _reason(error: OSError) -> str:
    return error.strerror or one_line(error)


def _make_folder(path: Path) -> int:
    path.mkdir(mode=0o700)
    return os.open(path, os.O_RDONLY)
