"""The file formats that models are kept in, and which of them a file is."""

from __future__ import annotations

from pathlib import Path

from blurify.errors import BlurifyError
from blurify.files import atomic
from blurify.files.checkpoint import Checkpoint, Reading
from blurify.files.formats.base import Format
from blurify.files.formats.distributed_directory import DistributedDirectory
from blurify.files.formats.gzipped import Gzipped
from blurify.files.formats.hub_directory import HubDirectory
from blurify.files.formats.onnx_file import OnnxFile
from blurify.files.formats.pt2_file import Pt2File
from blurify.files.formats.refusals import first_bytes, no_model_in, refuse_ending
from blurify.files.formats.safetensors_file import Safetensors
from blurify.files.formats.sharded import Sharded
from blurify.files.formats.torch_file import TorchFile

__all__ = ["FORMATS", "Format", "for_writing", "read_checkpoint"]

_HUB = HubDirectory()
FORMATS: tuple[Format, ...] = (
    *(Sharded(), Gzipped(), DistributedDirectory(), _HUB),
    *(Safetensors(), OnnxFile(), Pt2File(), TorchFile()),
)
"""In the order in which they are asked about a file; the last one is written where the ending means no other."""


def for_writing(path: Path) -> Format:
    """The format that a path's ending means; torch's for its own endings, none, and those that mean nothing.

    Raises:
        BlurifyError: the ending is of a format that is not written, or what writes it is not installed.
    """
    if isinstance(path, atomic.Folder):
        return _HUB
    ending = path.suffix.lower()
    found = next((known for known in FORMATS if ending in known.suffixes), None)
    if isinstance(found, OnnxFile):
        found.require()
    if found is None:
        refuse_ending(path)
    return found or FORMATS[-1]


def read_checkpoint(path: str | Path, reading: Reading | None = None) -> Checkpoint:
    """What a file holds, read on the CPU without running code that it chooses (unless trusted).

    Args:
        path: the file, or a directory in which a model is kept.
        reading: what the user allows.

    Raises:
        BlurifyError: no such file, damaged, of another kind, or it needs classes that are not allowed.
    """
    path = Path(path).expanduser()
    start = b"" if path.is_dir() else first_bytes(path)
    for known in FORMATS:
        if known.sniff(start, path):
            return known.read(path, reading or Reading())
    if path.is_dir():
        raise BlurifyError(no_model_in(path))
    names = " nor ".join(known.name for known in reversed(FORMATS))
    raise BlurifyError(f"{path} is not a checkpoint: neither {names} wrote it")
