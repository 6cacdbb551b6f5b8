"""Write what `torch.save` writes, so that equal content is equal files, and compare such a file with what was meant.

`torch.save` names the archive's root after the file, unless it is given an open one, as here: the root is `archive`
then. Its serialization id is a sum of the content. What remains is the order of sets, which changes from process to
process: they are written in order here.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from blurify.errors import BlurifyError, one_line
from blurify.files.pickled.carrying import WRITER

_CHUNK = 2**24
_DEEP = 20_000  # frames of Python, of which a level of modules in modules takes about ten


class Damaged(BlurifyError):
    """A file that doesn't hold what was meant."""


def save(content: Any, file: BinaryIO) -> None:
    """Write content: modules, tensors, plain data, and what `carrying` made ready.

    Raises:
        Exception: whatever the content's own code raises when it is pickled.
    """
    with _deep():
        torch.save(content, file, pickle_module=WRITER)


def compare(path: Path, content: Any) -> None:
    """Ask whether a file of `save` opens, and each storage in it is bitwise that of the content.

    Raises:
        BlurifyError: it is not.
    """
    meant = _storages(content)
    try:
        archive: Any = torch._C.PyTorchFileReader(str(path))
        records = [name for name in archive.get_all_records() if name.startswith("data/")]
        if len(records) != len(meant):
            raise Damaged(f"{len(records)} storages were read back, {len(meant)} were written")
        with path.open("rb") as file:
            for number, storage in enumerate(meant):
                file.seek(archive.get_record_offset(f"data/{number}"))
                for part in _parts(storage):
                    if file.read(len(part)) != part:
                        raise Damaged(f"storage {number} was read back as another than was written")
    except RuntimeError as error:  # of torch's reader
        raise Damaged(f"what was written can't be read back ({one_line(error)})") from error


def _storages(content: Any) -> list[torch.UntypedStorage]:
    """The storages in the order in which `torch.save` numbers them."""
    found: dict[int, torch.UntypedStorage] = {}

    class Collecting(WRITER.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            storage = value._untyped_storage if isinstance(value, torch.storage.TypedStorage) else value
            if not isinstance(storage, torch.UntypedStorage):
                return None
            found.setdefault(storage._cdata, storage)
            return "storage"

    with _deep():
        Collecting(io.BytesIO(), protocol=2).dump(content)
    return list(found.values())


def _parts(storage: torch.UntypedStorage) -> Iterator[bytes]:
    flat = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    for part in flat.split(_CHUNK) if flat.numel() else ():
        yield part.cpu().numpy().tobytes()


@contextlib.contextmanager
def _deep() -> Iterator[None]:
    """Python's own pickler takes more frames for a level than the one in C."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
