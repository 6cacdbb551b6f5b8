"""`.safetensors`: tensors, with the plan and how to build the architecture in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn

from blurify.errors import BlurifyError, one_line
from blurify.files import tensors
from blurify.files.checkpoint import HEADER, Checkpoint, Reading, Saved
from blurify.files.formats.base import Format


class Safetensors(Format):
    """Tensors only, no code: anybody's file can be read. Tied tensors are kept once."""

    name = "safetensors"
    suffixes = (".safetensors",)

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the ending, or eight bytes of header length and then JSON."""
        if path.suffix in self.suffixes:
            return True
        return len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """The tensors, mapped from the file when they are asked for. See `Format.read`."""
        stored = tensors.StoredTensors(path)
        header = None
        if HEADER in stored.metadata:
            try:
                header = json.loads(stored.metadata[HEADER])
                stored.share(header.get("shared", {}))
            except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
                raise BlurifyError(f"{path} carries a plan that can't be read ({one_line(error)})") from error
        if not stored:
            raise BlurifyError(f"{path} holds no tensors")
        return Checkpoint(path, tensors=stored, header=header, prefix=reading.prefix)

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """The state_dict, tensor by tensor. See `Format.put`."""
        kept, metadata = _content(saved)
        tensors.write_tensors(file, kept, metadata, saved.tensors)

    def check(self, path: Path, saved: Saved) -> None:
        """The header, and every tensor bit by bit. See `Format.check`."""
        kept, metadata = _content(saved)
        tensors.compare(path, kept, metadata, saved.tensors)


def _content(saved: Saved) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What is written: the tensors by name, and the header's text."""
    kept, shared = _once(saved.model, lazily=saved.tensors is not None)
    if saved.plain:
        return kept, {"format": "pt"}
    return kept, {"format": "pt", HEADER: json.dumps({**saved.header, "shared": shared})}


def _once(model: nn.Module, *, lazily: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's tensors by name, each once, and of every further name which name it is kept under."""
    kept: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not tensors.holds(value) and not (lazily and tensors.can_hold(value)):
            what = f" ({value.dtype})" if isinstance(value, Tensor) else ""
            raise BlurifyError(f"{name} is not a plain tensor{what}, which safetensors can't hold: save as .pt")
        place = id(value) if value.is_meta else value.data_ptr()
        same = (place, value.dtype, tuple(value.shape), value.stride(), value.device)
        if value.numel() and same in first:
            shared[name] = first[same]
            continue
        first[same] = name
        kept[name] = value
    if not kept:
        raise BlurifyError("the model has no tensors to save: save it as .pt")
    return kept, shared
