"""Tensors in a safetensors file, written and read one at a time.

The file is eight bytes with the length of the header (little-endian), the header (JSON, padded with spaces to a
multiple of eight) and then the tensors without gaps, those of the widest types first, so that each is aligned.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch
from torch import Tensor

from blurify.errors import BlurifyError, one_line

_CHUNK = 2**24  # bytes that are copied at a time where a tensor is not in the main memory
_AT_ONCE = 2**30
_MAPPED = 2**24  # bytes that were read of a file before it is mapped anew

# In the order that safetensors writes them in.
_NAMES = {
    getattr(torch, dtype): name
    for dtype, name in (
        ("uint64", "U64"),
        ("int64", "I64"),
        ("float64", "F64"),
        ("complex64", "C64"),
        ("float32", "F32"),
        ("uint32", "U32"),
        ("int32", "I32"),
        ("bfloat16", "BF16"),
        ("float16", "F16"),
        ("uint16", "U16"),
        ("int16", "I16"),
        ("float8_e5m2fnuz", "F8_E5M2FNUZ"),
        ("float8_e4m3fnuz", "F8_E4M3FNUZ"),
        ("float8_e8m0fnu", "F8_E8M0"),
        ("float8_e4m3fn", "F8_E4M3"),
        ("float8_e5m2", "F8_E5M2"),
        ("int8", "I8"),
        ("uint8", "U8"),
        ("bool", "BOOL"),
    )
    if hasattr(torch, dtype)  # float8_e8m0fnu came with torch 2.7
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


def holds(value: object) -> bool:
    """Whether safetensors has a place for a value: a dense tensor with data, of a type that the format knows."""
    return can_hold(value) and not value.is_meta


def can_hold(value: object) -> TypeGuard[Tensor]:
    """Whether it would have a place for a value, had it data."""
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized and value.dtype in _NAMES
    )


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: Any = None
) -> None:
    """Write what `safetensors.torch.save` would return, without having it in memory: at most one tensor is copied.

    Args:
        file: open for writing.
        tensors: by name, each of which `holds`; on any device, of any strides. Those without data are of `source`.
        metadata: text by name, for the header.
        source: says with `stored(name)` where in other files of safetensors the bytes of a tensor are.
    """
    names, start = _begin(tensors, metadata)
    file.write(start)
    waiting: list[Stored] = []  # ranges of a file that lie one behind the other are copied as one
    for name in names:
        if tensors[name].is_meta:
            one = source.stored(name)
            if waiting and (waiting[-1].path, waiting[-1].begin + waiting[-1].length) != (one.path, one.begin):
                _copy(waiting, file)
                waiting = []
            waiting.append(one)
            continue
        _copy(waiting, file)
        waiting = []
        for chunk in _bytes_of(tensors[name]):
            file.write(chunk)
    _copy(waiting, file)


def compare(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: Any = None) -> None:
    """Ask whether a file is what `write_tensors` was to write, reading a part at a time.

    Raises:
        BlurifyError: it can't be opened, or some bit of it is another.
    """
    StoredTensors(path)  # the library's own reader accepts it
    names, start = _begin(tensors, metadata)
    with path.open("rb") as file:
        if file.read(len(start)) != start:
            raise BlurifyError("the header of what was written reads back as another: the disk or memory is faulty")
        for name in names:
            meant = _range_of(source.stored(name)) if tensors[name].is_meta else _bytes_of(tensors[name])
            for chunk in meant:
                if file.read(len(chunk)) != bytes(chunk):
                    raise BlurifyError(f"{name} reads back as another than was written: the disk or memory is faulty")
        if file.read(1):
            raise BlurifyError("what was written reads back longer than it is: the disk or memory is faulty")


def _begin(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[list[str], bytes]:
    """The names in the order in which the tensors lie in a file, and what stands before them."""
    names = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return names, len(text).to_bytes(8, "little") + text


def _range_of(one: Stored) -> Iterator[bytes]:
    with one.path.open("rb", buffering=0) as file:
        file.seek(one.begin)
        left = one.length
        while left and (chunk := file.read(min(left, _CHUNK))):
            left -= len(chunk)
            yield chunk


def _copy(ranges: list[Stored], file: BinaryIO) -> None:
    """Copy bytes from a file, by the kernel where it can: nothing of them comes into this process."""
    if not ranges:
        return
    begin, left = ranges[0].begin, sum(one.length for one in ranges)
    with ranges[0].path.open("rb", buffering=0) as source:
        file.flush()
        try:
            if not isinstance(file, io.BufferedWriter):
                raise OSError  # a compressed file names the descriptor of the file that it is packed into
            while left:
                done = os.copy_file_range(source.fileno(), file.fileno(), min(left, _AT_ONCE), begin)
                if not done:
                    raise BlurifyError(f"{ranges[0].path} is cut off: get or save it again")
                begin, left = begin + done, left - done
            return
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
        source.seek(begin)  # another file system, a compressed file, another kernel
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise BlurifyError(f"{ranges[0].path} is cut off: get or save it again")
            file.write(chunk)
            left -= len(chunk)


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's elements in the order of its indices, little-endian."""
    width = tensor.element_size() // (2 if tensor.is_complex() else 1)
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    for chunk in flat.split(_CHUNK):
        part = chunk.cpu()
        if sys.byteorder == "big":
            part = part.view(-1, width).flip(1)
        yield part.numpy().data


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file of safetensors.

    Attributes:
        path: the file.
        begin, length: its bytes there.
        dtype, shape: what they are.
    """

    path: Path
    begin: int
    length: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file; each is mapped from the file when it is asked for.

    What a process has read of a mapped file counts as its memory for as long as the map lives. So the file is mapped
    anew from time to time, and a map goes with the last tensor from it that somebody keeps.

    Args:
        path: the file.

    Attributes:
        metadata: the text in the header.

    Raises:
        BlurifyError: it is no safetensors file, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map()
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self._stored = {name: name for name in self._file.keys()}  # noqa: SIM118 (not a mapping)
        with path.open("rb") as file:  # the library has found it right
            length = int.from_bytes(file.read(8), "little")
            self._header: dict[str, Any] = json.loads(file.read(length))
        self._begin = 8 + length

    def share(self, names: Mapping[str, str]) -> None:
        """Let further names stand for tensors of the file.

        Raises:
            KeyError: there is no such tensor.
        """
        self._stored |= {name: self._stored[kept] for name, kept in names.items()}

    def stored(self, name: str) -> Stored:
        """Where a tensor lies in the file, without reading it.

        Raises:
            BlurifyError: its type is one that this version of torch doesn't have.
        """
        entry = self._header[self._stored[name]]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise BlurifyError(f"{name} in {self.path} can't be read (its type is {entry['dtype']})")
        begin, end = entry["data_offsets"]
        return Stored(self.path, self._begin + begin, end - begin, dtype, tuple(entry["shape"]))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._header[self._stored[name]]["shape"])

    def __getitem__(self, name: str) -> Tensor:
        stored = self._stored[name]
        if self._read > _MAPPED:
            self._map()
        try:
            tensor: Tensor = self._file.get_tensor(stored)
        except Exception as error:  # a type that this version of safetensors or torch doesn't have
            raise BlurifyError(f"{stored} in {self.path} can't be read ({one_line(error)})") from error
        self._read += tensor.numel() * tensor.element_size()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def _map(self) -> None:
        from safetensors import safe_open

        try:
            self._file: Any = safe_open(self.path, framework="pt", device="cpu")
        except Exception as error:  # safetensors has its own error class, not exported everywhere
            raise BlurifyError(
                f"{self.path} is damaged, cut off or not safetensors ({one_line(error)}): get or save it again"
            ) from error
        self._read = 0
