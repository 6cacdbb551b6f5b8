"""Recordings as .wav: whole numbers of 8, 16, 24 and 32 bits and floating point of 32 and 64, plain or *extensible*.

Python's own `wave` reads whole numbers alone, and up to Python 3.11 nothing that says it is extensible, as files of
24 bits or of more than two channels do. The head is as "Multimedia Programming Interface and Data Specifications 1.0"
(IBM and Microsoft, 1991) has it, the extensible one as "Multiple Channel Audio Data and WAVE Files" (Microsoft, 2001).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from blurify.errors import PictureError, one_line

_WHOLE, _FLOATING, _EXTENSIBLE = 1, 3, 0xFFFE
_NUMBERS = {
    (_WHOLE, 1): "u1", (_WHOLE, 2): "<i2", (_WHOLE, 3): "u1", (_WHOLE, 4): "<i4",
    (_FLOATING, 4): "<f4", (_FLOATING, 8): "<f8",
}  # fmt: skip
_LARGEST_FORM = 40  # bytes
_TO_THE_END = 0xFFFFFFFF  # of what was written to a pipe


@dataclass(frozen=True)
class WaveHead:
    """What a file says of itself.

    Attributes:
        channels: how many.
        rate: samples a second.
        width: bytes a number.
        kind: 1 for whole numbers, 3 for floating point.
        samples: of each channel.
        begin: where they begin in the file.
    """

    channels: int
    rate: int
    width: int
    kind: int
    samples: int
    begin: int


def wave_head(path: Path) -> WaveHead:
    """Read the head of a .wav. Raises PictureError where it is none, or of another kind."""
    try:
        with open(path, "rb") as file:
            return _head(file)
    except (ValueError, struct.error, OSError) as error:
        raise PictureError(
            f"{path} can't be read ({one_line(error)}): give a .wav of whole numbers or floating point (PCM), or an "
            "array as .npy"
        ) from error


def _head(file: BinaryIO) -> WaveHead:
    total = os.fstat(file.fileno()).st_size
    riff = file.read(12)
    if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
        raise ValueError("it does not begin as a .wav does")
    form: tuple[int, int, int, int] | None = None
    while True:
        name, size = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            break
        if name == b"fmt ":
            form = _form(file.read(min(size, _LARGEST_FORM)))
            size -= min(size, _LARGEST_FORM)
        file.seek(size + size % 2, os.SEEK_CUR)  # chunks begin at even places
    if form is None:
        raise ValueError("it does not say what its samples are")
    kind, channels, rate, width = form
    begin = file.tell()
    size = total - begin if size == _TO_THE_END else size
    return WaveHead(channels, rate, width, kind, size // (width * channels), begin)


def _form(data: bytes) -> tuple[int, int, int, int]:
    """(kind, channels, rate, bytes a number) of a format chunk."""
    kind, channels, rate, _, frame, _ = struct.unpack_from("<HHIIHH", data)
    if kind == _EXTENSIBLE:
        kind = struct.unpack_from("<H", data, 24)[0]
    width = frame // channels if channels else 0
    if not rate or width * channels != frame or (kind, width) not in _NUMBERS:
        raise ValueError(f"its samples are of kind {kind} in {frame} bytes for {channels} channels, which is not known")
    return kind, channels, rate, width


def read_wave(path: Path, start: int, length: int) -> Tensor:
    """Samples `start` to `start + length` as (C, length) float32; whole numbers are scaled to -1..1.

    Raises:
        PictureError: the file can't be read, or ends before.
    """
    import numpy as np

    head = wave_head(path)
    frame = head.width * head.channels
    with open(path, "rb") as file:
        file.seek(head.begin + start * frame)
        data = file.read(length * frame)
    if len(data) != length * frame:
        raise PictureError(f"{path} is shorter than it says: take it out, or mend it")
    numbers: Any = np.frombuffer(data, dtype=_NUMBERS[head.kind, head.width])
    if head.kind == _FLOATING:
        found = numbers.astype(np.float32)
    elif head.width == 1:  # unsigned, by the format
        found = (numbers.astype(np.float32) - 128) / 128
    else:
        if head.width == 3:  # the lowest byte of 32 bits is 0
            wide = np.zeros((len(numbers) // 3, 4), dtype=np.uint8)
            wide[:, 1:] = numbers.reshape(-1, 3)
            numbers = wide.view("<i4")[:, 0]
        found = (numbers / 2.0 ** (8 * numbers.dtype.itemsize - 1)).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(found.reshape(length, head.channels).T))
