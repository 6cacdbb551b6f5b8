"""What `torch.save` writes.

For an architecture that can be built by name `{"state_dict": ..., "blurify": {...}}`, which is plain data
(`torch.load(weights_only=True)` reads it, and the state_dict loads into the original class, too); for any other model
the whole module, as it came.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from blurify.errors import BlurifyError, one_line
from blurify.files import contents, pickled
from blurify.files.checkpoint import HEADER, Checkpoint, Reading, Saved
from blurify.files.formats.base import Format
from blurify.files.sources.own_file import import_source
from blurify.proof.proof import without_time

_ZIP, _PICKLE = b"PK", b"\x80"


class TorchFile(Format):
    """A zip archive with a pickle in it, or torch's older file: a module, a state_dict or a training checkpoint."""

    name = "torch.save"

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the first bytes: a zip archive, or a pickle."""
        return start.startswith((_ZIP, _PICKLE))

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """Without running code that the file chooses, unless trusted. See `Format.read`."""
        source = import_source(reading.source) if reading.source is not None else None
        content = pickled.read(path, allow=reading.allow, trust=reading.trust, source=source)
        return contents.interpret(path, content, reading)

    def keeps_rest(self, path: Path) -> bool:
        """It has."""
        return True

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """The weights with the header, or the whole module where the header names no source. See `Format.put`."""
        kind = type(saved.model).__name__
        try:
            with without_time(saved.model):
                pickled.save(_content(saved), file)
        except MemoryError as error:
            raise BlurifyError(
                f"there is not enough memory to write the {kind}: close other programs, or save it as .safetensors"
            ) from error
        except Exception as error:  # pickling runs the model's own code; what the file refuses, `atomic` tells
            raise BlurifyError(
                f"the {kind} can't be pickled ({one_line(error)}): save it as .safetensors instead"
            ) from error

    def check(self, path: Path, saved: Saved) -> None:
        """Every storage, bit by bit. See `Format.check`."""
        pickled.compare(path, _content(saved))


def _content(saved: Saved) -> Any:
    """What is pickled."""
    model, header = saved.model, saved.header
    named = header["source"] is not None
    weights: Any = dict(model.state_dict()) if named or (saved.plain and not saved.original) else model
    if saved.original and saved.rest is not None:
        return saved.rest.around(weights)
    if saved.plain:
        return weights
    if saved.rest is not None:
        content = saved.rest.around(weights)
        if named:
            where = {"place": list(saved.rest.place), "prefix": saved.rest.prefix}
            content[HEADER] = {**header, "weights": where}
        return content
    return {"state_dict": weights, HEADER: header} if named else weights
