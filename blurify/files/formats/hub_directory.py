"""Directories as the Hugging Face hub keeps them: `config.json`, and the weights beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import BinaryIO

from blurify.errors import BlurifyError
from blurify.files import formats
from blurify.files.checkpoint import Checkpoint, Reading, Saved
from blurify.files.formats.base import Format
from blurify.files.sources import configs

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""What the libraries call the weights; the first that is there is taken, as they do."""


class HubDirectory(Format):
    """A model of timm or transformers with its configuration, or any one file of weights that they would find."""

    name = "a directory of the Hugging Face hub"

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the file of weights."""
        return path.is_dir() and _weights(path) is not None

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """The weights, and the architecture that config.json names. See `Format.read`."""
        file = _weights(path)
        assert file is not None
        found = formats.read_checkpoint(file, reading)
        named = configs.architecture_of(configs.read_config(path), str(path / configs.CONFIG))
        note = "; ".join(part for part in (found.note, f"read {file.name}") if part)
        if named is not None and found.module is None:
            found = dataclasses.replace(found, arch=named[0], config=named[1])
        return dataclasses.replace(found, path=path, note=note)

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """See `write`."""
        raise BlurifyError("a directory is no file")


def _weights(path: Path) -> Path | None:
    known = [path / name for name in _WEIGHTS if (path / name).is_file()]
    if known:
        return known[0]
    only = [file for file in sorted(path.iterdir()) if file.suffix in (".safetensors", ".bin") and file.is_file()]
    return only[0] if len(only) == 1 else None
