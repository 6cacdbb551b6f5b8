"""Where a run's files are: a directory, or a place that fsspec reaches (`s3://bucket/prefix`).

Both kinds do the same: one run at a time, whole files under their final names, and what a killed run left is removed.
"""

from __future__ import annotations

import re
from pathlib import Path

from blurify.zoo.storage.base import Storage
from blurify.zoo.storage.local import LocalStorage

__all__ = ["Storage", "is_url", "storage_at", "within"]


def storage_at(where: str | Path) -> Storage:
    """The storage at a path or a URL; nothing is read or written yet.

    Raises:
        BlurifyError: no package for URLs of that kind is installed.
    """
    text = str(where)
    if text.startswith("file://"):
        return LocalStorage(text.removeprefix("file://"))
    if not is_url(where):
        return LocalStorage(where)
    from blurify.zoo.storage.remote import RemoteStorage

    return RemoteStorage(text)


def is_url(where: str | Path) -> bool:
    """Whether it names something else than a path of this machine."""
    return isinstance(where, str) and re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://", where) is not None


def within(where: str | Path, name: str) -> str:
    """How a user is told of a file there."""
    return f"{where.rstrip('/')}/{name}" if isinstance(where, str) and is_url(where) else str(Path(where) / name)
