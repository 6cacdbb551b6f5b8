"""Tensors in a safetensors file, written and read one at a time.

The file is eight bytes with the length of the header (little-endian), the header (JSON, padded with spaces to a
multiple of eight) and then the tensors without gaps, those of the widest types first, so that each is aligned.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from blurify.errors import BlurifyError, one_line

_CHUNK = 2**24  # bytes that are copied at a time where a tensor is not in the main memory
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
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}


def holds(value: object) -> bool:
    """Whether safetensors has a place for a value: a dense tensor with data, of a type that the format knows."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
        and value.dtype in _NAMES
    )


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write what `safetensors.torch.save` would return, without having it in memory: at most one tensor is copied.

    Args:
        file: open for writing.
        tensors: by name, each of which `holds`; on any device, of any strides.
        metadata: text by name, for the header.
    """
    names = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in names:
        for chunk in _bytes_of(tensors[name]):
            file.write(chunk)


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's elements in the order of its indices, little-endian."""
    width = tensor.element_size() // (2 if tensor.is_complex() else 1)
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    for chunk in flat.split(_CHUNK):
        part = chunk.cpu()
        if sys.byteorder == "big":
            part = part.view(-1, width).flip(1)
        yield part.numpy().data


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

    def share(self, names: Mapping[str, str]) -> None:
        """Let further names stand for tensors of the file.

        Raises:
            KeyError: there is no such tensor.
        """
        self._stored |= {name: self._stored[kept] for name, kept in names.items()}

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
