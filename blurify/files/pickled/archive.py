"""The two files that torch.save writes, read by one reader each: the bytes that are checked are those that are used.

The zip archive holds `NAME/data.pkl`, a pickle that refers to `NAME/data/0`, ... by number, each the bytes of one
storage, uncompressed and with a checksum. The older file is five pickles one after another and then the storages,
without sums.
"""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import UntypedStorage

from blurify.errors import BlurifyError, one_line
from blurify.files.pickled.tree import (
    MAX_BYTES,
    DictNode,
    ListNode,
    Name,
    Stored,
    Tree,
    UnreadableError,
    entry,
    read_tree,
)

_CHUNK = 2**24
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_RECORDS = 1_000_000
_ENCRYPTED = 0x1
_END, _LOCATOR, _END_64 = 22, 20, 56  # bytes of the records behind a zip directory
_UNSAID = 0xFFFFFFFF
_PARTS = frozenset(
    ("data.pkl", "byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
)
_STORAGE = re.compile(r"data/[0-9]{1,20}", re.ASCII)

_STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
"""What `torch.FloatStorage` means; an UntypedStorage counts bytes."""


class StorageRef:
    """A storage that a pickle refers to.

    Attributes:
        key: its name in the file.
        dtype: of its elements; None where it is bytes.
        count: how many elements it has.
        part: in old files, (key, offset, count) of a view of it, else None.
    """

    __slots__ = ("count", "dtype", "key", "part")

    def __init__(self, key: str, dtype: torch.dtype | None, count: int, part: tuple[str, int, int] | None) -> None:
        self.key, self.dtype, self.count, self.part = key, dtype, count, part

    @property
    def width(self) -> int:
        """Bytes an element."""
        return 1 if self.dtype is None else self.dtype.itemsize


def storage_ref(node: Stored) -> StorageRef:
    """What a persistent id means.

    Raises:
        UnreadableError: it is none of a storage.
    """
    pid = node.pid
    kind = pid[0].decode("ascii", "replace") if isinstance(pid[0], bytes) else pid[0]
    if kind != "storage" or len(pid) not in (5, 6) or not isinstance(pid[1], Name):
        raise UnreadableError("the pickle refers to what is no storage of a tensor")
    stored, key, _, count = pid[1], pid[2], pid[3], pid[4]
    if stored.full == "torch.storage.UntypedStorage":
        dtype = None
    elif stored.module == "torch" and stored.name in _STORAGES:
        dtype = _STORAGES[stored.name]
    else:
        raise UnreadableError(f"the pickle has tensors of a kind that is not read ({stored.full})")
    if not isinstance(key, str) or not _is_count(count):
        raise UnreadableError("the pickle refers to a storage by what is no name and size")
    part = pid[5] if len(pid) == 6 else None
    if part is not None and not (
        isinstance(part, tuple) and len(part) == 3 and isinstance(part[0], str) and all(map(_is_count, part[1:]))
    ):
        raise UnreadableError("the pickle refers to a part of a storage that can't be")
    return StorageRef(key, dtype, count, part)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


class Archive(ABC):
    """An open file of torch's: its pickle as an inert tree, and its storages.

    Attributes:
        tree: what the pickle says.
        size: the bytes of the file, and so a bound for what it holds.
    """

    tree: Tree
    size: int

    @abstractmethod
    def storage(self, ref: StorageRef) -> UntypedStorage:
        """The bytes of a storage, on the CPU; the same object for the same key.

        Raises:
            UnreadableError: the file has no such storage, of that size, with that checksum.
        """

    def forget(self) -> None:  # noqa: B027 (what has read everything already has nothing to do)
        """Keep no storages but the last ones: several tensors of a state_dict may lie in one."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


def open_archive(path: Path, content: bytes | None = None) -> Archive:
    """Open a file that torch.save wrote and read its pickle.

    Args:
        path: the file.
        content: the bytes of what torch.save wrote, where they are only a part of that file.

    Raises:
        UnreadableError: it is damaged, or no such file.
        BlurifyError: it is another kind of file, which the message names.
        OSError: it can't be read.
    """
    file: BinaryIO = path.open("rb") if content is None else io.BytesIO(content)
    try:
        zipped = file.read(2) == b"PK"
        file.seek(0)
        return _Zip(path, file) if zipped else _Legacy(file)
    except BaseException:
        file.close()
        raise


class _Zip(Archive):
    """The zip archive. Only what torch writes is taken: nothing compressed, overlapping, twice or between the parts."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # zipfile meets hostile bytes with many kinds
            raise UnreadableError(one_line(error)) from error
        self._records = self._checked(path)
        # `torch.serialization.set_crc32_options(False)` writes no sums: all of them are 0.
        self._summed = any(info.CRC for info in self._records.values())
        self._prefix, self._swap = self._layout(path)
        self._made: dict[str, UntypedStorage] = {}
        self.tree = read_tree(io.BytesIO(self._bytes(self._prefix + "data.pkl", MAX_BYTES)))

    def _checked(self, path: Path) -> dict[str, zipfile.ZipInfo]:
        infos = self._zip.infolist()
        if len(infos) > _MAX_RECORDS:
            raise UnreadableError(f"the archive has more than {_MAX_RECORDS:,} parts")
        records = {info.filename: info for info in infos}
        if "constants.pkl" in {name.partition("/")[2] for name in records}:
            raise BlurifyError(
                f"{path} is a TorchScript model, which can't be converted: give the model it was made from (a pickled "
                "nn.Module, or its state_dict with --arch)"
            )
        if len(records) != len(infos):
            raise UnreadableError("the archive has two parts of one name")
        end = 0
        for info in sorted(infos, key=lambda one: one.header_offset):
            if info.compress_type != zipfile.ZIP_STORED:
                raise BlurifyError(
                    f"{path} was compressed, which torch.save never does: unpack it and save the model again with torch"
                )
            if info.flag_bits & _ENCRYPTED or info.file_size != info.compress_size:
                raise UnreadableError(f"{_short(info.filename)} is stored as torch.save never does")
            if info.header_offset < end:
                raise UnreadableError(f"{_short(info.filename)} overlaps another part of the archive")
            end = self._begin(info) + info.file_size
        if infos and min(info.header_offset for info in infos) != 0:
            raise UnreadableError("something stands before the archive")
        if end > self._zip.start_dir or not self._ends_with_its_directory():  # type: ignore[attr-defined]
            raise UnreadableError("the archive has more than its parts")
        return records

    def _ends_with_its_directory(self) -> bool:
        """Whether the directory that zipfile found is the only one: up to the end of the file, without a comment."""
        if self.size < _END:
            return False
        self._file.seek(self.size - _END)
        mark, *_, length, offset, comment = struct.unpack("<4s4H2LH", self._file.read(_END))
        place = self.size - _END
        if mark != b"PK\x05\x06" or comment:
            return False
        if place >= _END_64 + _LOCATOR:
            self._file.seek(place - _LOCATOR)
            locator, _, found, _ = struct.unpack("<4sLQL", self._file.read(_LOCATOR))
            if locator == b"PK\x06\x07":  # torch writes both records, always
                place -= _LOCATOR + _END_64
                self._file.seek(place)
                mark, *_, long_length, long_offset = struct.unpack("<4sQ2H2L4Q", self._file.read(_END_64))
                same = length in (long_length, _UNSAID) and offset in (long_offset, _UNSAID)
                if mark != b"PK\x06\x06" or found != place or not same:
                    return False
                length, offset = long_length, long_offset
        start: int = self._zip.start_dir  # type: ignore[attr-defined]
        return start == int(offset) and start + int(length) == place

    def _begin(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a part begin, by its local header."""
        self._file.seek(info.header_offset)
        header = self._file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise UnreadableError(f"{_short(info.filename)} is not where the archive says")
        name, extra = struct.unpack("<HH", header[26:])
        return info.header_offset + 30 + int(name) + int(extra)

    def _layout(self, path: Path) -> tuple[str, bool]:
        """What stands before every name, and whether the bytes are the other way round than this machine's."""
        found = [name for name in self._records if name.partition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise BlurifyError(
                f"{path} is a zip archive, but no checkpoint (it has no data.pkl): give what torch.save wrote"
            )
        prefix = found[0].removesuffix("data.pkl")
        # torch's own reader tells no upper case from lower: no part may be there that it could take for another.
        for name in self._records:
            part = name.removeprefix(prefix)
            if not name.startswith(prefix) or not (part in _PARTS or _STORAGE.fullmatch(part)):
                raise UnreadableError(f"the archive has a part that torch.save never writes ({_short(name)})")
        order = sys.byteorder.encode()
        if prefix + "byteorder" in self._records:
            order = self._bytes(prefix + "byteorder", 16)
            if order not in (b"little", b"big"):
                raise UnreadableError("the archive doesn't say the order of its bytes")
        return prefix, order != sys.byteorder.encode()

    def _bytes(self, name: str, most: int) -> bytes:
        info = self._records[name]
        if info.file_size > most:
            raise UnreadableError(f"{_short(name)} has {info.file_size:,} bytes, which is more than any model needs")
        content = bytearray(info.file_size)
        self._read(info, memoryview(content))
        return bytes(content)

    def _read(self, info: zipfile.ZipInfo, into: memoryview) -> None:
        """Read one part whole, and compare its checksum."""
        wanted = info.CRC
        if not self._summed:
            info.CRC = None  # type: ignore[assignment]  # then zipfile asks for none
        try:
            with self._zip.open(info) as part:
                place = 0
                while chunk := part.read(_CHUNK):
                    if place + len(chunk) > len(into):
                        raise UnreadableError(f"{_short(info.filename)} is longer than it says")
                    into[place : place + len(chunk)] = chunk
                    place += len(chunk)
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
                raise UnreadableError(one_line(error)) from error
            raise UnreadableError(f"the checksum of {_short(info.filename)} is wrong") from error
        except ValueError as error:
            raise UnreadableError(one_line(error)) from error
        finally:
            info.CRC = wanted
        if place != len(into):
            raise UnreadableError(f"{_short(info.filename)} is cut off")

    def storage(self, ref: StorageRef) -> UntypedStorage:
        """See `Archive.storage`."""
        if ref.part is not None:
            raise UnreadableError("the pickle refers to a part of a storage, as only older files do")
        if ref.key not in self._made:
            info = self._records.get(f"{self._prefix}data/{ref.key}")
            if info is None:
                raise UnreadableError(f"the tensor data/{_short(ref.key)} is missing")
            made = UntypedStorage(info.file_size)
            if info.file_size:
                self._read(info, _view(made))
            if self._swap and ref.width > 1:
                made.byteswap(ref.dtype)
            self._made[ref.key] = made
        made = self._made[ref.key]
        if made.nbytes() != ref.count * ref.width:
            raise UnreadableError(f"data/{_short(ref.key)} has {made.nbytes()} bytes, not {ref.count * ref.width}")
        return made

    def forget(self) -> None:
        """See `Archive.forget`."""
        for key in list(self._made)[:-2]:
            del self._made[key]

    def close(self) -> None:
        """See `Archive.close`."""
        self._zip.close()
        self._file.close()


class _Legacy(Archive):
    """The file of torch before 1.6, and of `_use_new_zipfile_serialization=False`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        source: Any = _Clamped(file, self.size)
        if read_tree(source).root != _MAGIC or read_tree(source).root != _PROTOCOL:
            raise UnreadableError("it doesn't begin as what torch.save writes")
        system = read_tree(source).root
        little = entry(system.items, "little_endian", True) if isinstance(system, DictNode) else True
        if little is not (sys.byteorder == "little"):
            raise UnreadableError("it was written on a machine with another order of bytes")
        self.tree = read_tree(source)
        keys = read_tree(source).root
        if not isinstance(keys, ListNode) or not all(isinstance(key, str) for key in keys.appended):
            raise UnreadableError("it doesn't say which tensors follow")
        self._made = self._storages(source, keys.appended)
        self._parts: dict[str, tuple[str, int, int, UntypedStorage]] = {}

    def _storages(self, source: _Clamped, keys: list[str]) -> dict[str, UntypedStorage]:
        refs: dict[str, StorageRef] = {}
        for node in self.tree.stored:
            if node.pid[0] not in ("module", b"module"):
                ref = storage_ref(node)
                known = refs.setdefault(ref.key, ref)
                if (known.dtype, known.count) != (ref.dtype, ref.count):
                    raise UnreadableError(f"the tensor {_short(ref.key)} has two kinds or sizes")
        made: dict[str, UntypedStorage] = {}
        for key in keys:
            if key not in refs or key in made:
                raise UnreadableError("it holds tensors that nothing refers to")
            count = int.from_bytes(source.read(8), "little")
            length = count * refs[key].width
            if count != refs[key].count or length > source.left():
                raise UnreadableError(f"the tensor {_short(key)} is cut off, or of another size")
            made[key] = UntypedStorage(length)
            view, place = _view(made[key]) if length else memoryview(b""), 0
            while place < length:
                chunk = source.read(min(_CHUNK, length - place))
                if not chunk:
                    raise UnreadableError(f"the tensor {_short(key)} is cut off")
                view[place : place + len(chunk)] = chunk
                place += len(chunk)
        return made

    def storage(self, ref: StorageRef) -> UntypedStorage:
        """See `Archive.storage`."""
        if ref.key not in self._made:
            raise UnreadableError(f"the tensor {_short(ref.key)} is missing")
        whole = self._made[ref.key]
        if ref.part is None:
            return whole
        name, offset, count = ref.part
        begin, end = offset * ref.width, (offset + count) * ref.width
        if end > whole.nbytes():
            raise UnreadableError(f"the part {_short(name)} lies outside its tensor")
        known = self._parts.get(name)
        if known is None:
            known = self._parts[name] = (ref.key, begin, end, whole[begin:end])
        if known[:3] != (ref.key, begin, end):
            raise UnreadableError(f"the part {_short(name)} is of two tensors")
        return known[3]

    def close(self) -> None:
        """See `Archive.close`."""
        self._file.close()


class _Clamped:
    """A file whose `read` takes no memory for more than there is."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.tell = file.tell

    def left(self) -> int:
        """How many bytes follow."""
        return self._size - self._file.tell()

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes."""
        left = self.left()
        return self._file.read(left if count < 0 else min(count, left))

    def readline(self) -> bytes:
        """One line, of no more than a name can have."""
        return self._file.readline(2**16)


def _view(storage: UntypedStorage) -> memoryview:
    return memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())  # type: ignore[arg-type]


def _short(name: str) -> str:
    """A name for a message, whatever it consists of."""
    text = ascii(name)[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."
