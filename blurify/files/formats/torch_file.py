"""What `torch.save` writes.

For an architecture that can be built by name `{"state_dict": ..., "blurify": {...}}`, which is plain data
(`torch.load(weights_only=True)` reads it, and the state_dict loads into the original class, too); for any other model
the whole module, as it came.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from blurify.errors import BlurifyError, one_line
from blurify.files import atomic, contents, pickled
from blurify.files.checkpoint import HEADER, Checkpoint, Reading, Saved
from blurify.files.formats.base import Format
from blurify.proof.proof import without_time
from blurify.proof.weights import same_bits

_ZIP, _PICKLE = b"PK", b"\x80"
_RECURSION = 10_000


class TorchFile(Format):
    """A zip archive with a pickle in it, or torch's older file: a module, a state_dict or a training checkpoint."""

    name = "torch.save"

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the first bytes: a zip archive, or a pickle."""
        return start.startswith((_ZIP, _PICKLE))

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """Without running code that the file chooses, unless trusted. See `Format.read`."""
        return contents.interpret(path, pickled.read(path, allow=reading.allow, trust=reading.trust), reading)

    def keeps_rest(self, path: Path) -> bool:
        """It has."""
        return True

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """The weights with the header, or the whole module where the header names no source. See `Format.put`."""
        model, header = saved.model, saved.header
        named = header["source"] is not None
        weights: Any = dict(model.state_dict()) if named or saved.plain else model
        content: Any = weights
        if saved.plain:
            pass
        elif saved.rest is not None:
            content = saved.rest.around(weights)
            if named:
                where = {"place": list(saved.rest.place), "prefix": saved.rest.prefix}
                content[HEADER] = {**header, "weights": where}
        elif named:
            content = {"state_dict": weights, HEADER: header}
        plain = saved.rest is None and weights is not model
        whole = contextlib.nullcontext() if weights is not model else without_time(model)
        try:
            with whole, _room_to_recurse():
                torch.save(content, file, pickle_module=pickle if plain else pickled.WRITER)
        except MemoryError as error:
            raise BlurifyError(
                f"there is not enough memory to write the {type(model).__name__}: close other programs, or save it as "
                ".safetensors"
            ) from error
        except Exception as error:  # pickling runs the model's own code; what the file refuses, `atomic` tells
            raise BlurifyError(
                f"the {type(model).__name__} can't be pickled ({one_line(error)}): save it as .safetensors instead"
            ) from error

    def check(self, path: Path, saved: Saved) -> None:
        """Every tensor, bit by bit. See `Format.check`."""
        model, rest = saved.model, saved.rest
        whole = saved.header["source"] is None and not saved.plain
        if saved.plain or (rest is None and whole):
            place: tuple[str, ...] = ()
        else:
            place = ("state_dict",) if rest is None else rest.place
        prefix = "" if rest is None or whole or saved.plain else rest.prefix
        meant: dict[str, Any] = (
            dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
            if whole
            else {prefix + name: value for name, value in model.state_dict().items()}
        )
        for name, tensor in pickled.stored_tensors(path, place):
            value = meant.pop(name, None)
            if isinstance(value, torch.Tensor) and tensor is not None and not same_bits(value, tensor):
                raise BlurifyError(atomic.not_as_meant(path, name))
            del tensor  # before the next one is read
        missing = [name for name, value in meant.items() if isinstance(value, torch.Tensor)]
        if missing and not whole:  # a module may be pickled in a way of its own
            raise BlurifyError(atomic.not_as_meant(path, missing[0]))


@contextlib.contextmanager
def _room_to_recurse() -> Iterator[None]:
    """The pickler that is written in Python takes some ten calls a level of modules."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, _RECURSION))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
