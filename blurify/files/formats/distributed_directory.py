"""Directories of `torch.distributed.checkpoint`: read only."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from blurify.errors import BlurifyError
from blurify.files import contents
from blurify.files.checkpoint import Checkpoint, Reading, Saved
from blurify.files.distributed import INDEX, Distributed
from blurify.files.formats.base import Format


class DistributedDirectory(Format):
    """What many processes saved together, each its part."""

    name = "torch.distributed.checkpoint"

    def sniff(self, start: bytes, path: Path) -> bool:
        """By its index."""
        return path.is_dir() and (path / INDEX).is_file()

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """The tensors, put together from their parts when they are asked for. See `Format.read`."""
        return contents.interpret(path, Distributed(path), reading)

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """It is not written: the weights are the same, so the original's directory stays good for training."""
        raise BlurifyError("a converted model is written into a file: give -o model.pt or -o model.safetensors")
