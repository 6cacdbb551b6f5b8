"""What `torch.save` writes.

For an architecture that can be built by name `{"state_dict": ..., "blurify": {...}}`, which is plain data
(`torch.load(weights_only=True)` reads it, and the state_dict loads into the original class, too); for any other model
the whole module, as it came.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from blurify.errors import BlurifyError, one_line
from blurify.files import contents, pickles
from blurify.files.checkpoint import HEADER, Checkpoint
from blurify.files.formats.base import Format

_ZIP, _PICKLE = b"PK", b"\x80"


class TorchFile(Format):
    """A zip archive with a pickle in it, or torch's older file: a module, a state_dict or a training checkpoint."""

    name = "torch.save"

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the first bytes: a zip archive, or a pickle."""
        return start.startswith((_ZIP, _PICKLE))

    def read(self, path: Path, *, allow: Sequence[str] = (), trust: bool = False) -> Checkpoint:
        """Without running code that the file chooses, unless trusted. See `Format.read`."""
        with path.open("rb") as file:
            zipped = file.read(len(_ZIP)) == _ZIP
        if zipped:
            _check_zip(path)
        content, refused = pickles.load(path, allow=allow, trust=trust)
        return contents.interpret(path, content, refused)

    def write(self, file: BinaryIO, model: nn.Module, header: dict[str, Any]) -> None:
        """The weights with the header, or the whole module where the header names no source. See `Format.write`."""
        content: Any = model
        if header["source"] is not None:
            content = {"state_dict": dict(model.state_dict()), HEADER: header}
        try:
            torch.save(content, file)
        except Exception as error:  # pickling runs the model's own code; what the file refuses, `atomic` tells
            raise BlurifyError(
                f"the {type(model).__name__} can't be pickled ({one_line(error)}): save it as .safetensors instead"
            ) from error


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise BlurifyError(f"{path} is damaged or cut off ({one_line(error)}): get or save it again") from error
    if "constants.pkl" in names:
        raise BlurifyError(
            f"{path} is a TorchScript model, which can't be converted: give the model it was made from (a pickled "
            "nn.Module, or its state_dict with --arch)"
        )
    if "data.pkl" not in names:
        raise BlurifyError(
            f"{path} is a zip archive, but no checkpoint (it has no data.pkl): give what torch.save wrote"
        )
