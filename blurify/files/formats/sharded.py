"""`*.index.json`: tensors in several files, and which is in which."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from blurify.errors import BlurifyError, one_line
from blurify.files import formats
from blurify.files.checkpoint import Checkpoint, Reading, Saved
from blurify.files.formats.base import Format

ENDING = ".index.json"


class Sharded(Format):
    """What the Hugging Face libraries write of large models: an index beside safetensors (or torch's files)."""

    name = "a sharded checkpoint"

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the ending."""
        return path.name.endswith(ENDING) and path.is_file()

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """The tensors, read from the file beside it that has them when they are asked for. See `Format.read`."""
        try:
            places = json.loads(path.read_bytes())["weight_map"]
            files = {str(name): str(file) for name, file in places.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            raise BlurifyError(f"{path} is no index of a sharded checkpoint ({one_line(error)})") from error
        for file in files.values():
            if Path(file).name != file or file in ("", ".", ".."):
                raise BlurifyError(f"{path} names a file in another directory ({file[:80]!r}): nothing there is read")
        shards: dict[str, Mapping[str, Tensor]] = {}
        for file in dict.fromkeys(files.values()):
            if not (path.parent / file).is_file():
                raise BlurifyError(f"{path} names {file}, which is not there: get all files of the checkpoint")
            found = formats.read_checkpoint(path.parent / file, reading)
            if found.tensors is None:
                raise BlurifyError(f"{path.parent / file} holds no tensors")
            shards[file] = found.tensors
        for name, file in files.items():
            if name not in shards[file]:
                raise BlurifyError(f"{path} says that {file} has {name}, but it has not: get all files again")
        return Checkpoint(path, tensors=_InShards(files, shards), prefix=reading.prefix)

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """It is not written: one file of safetensors may be of any size."""
        raise BlurifyError("a model is written into one file: give -o model.safetensors")


class _InShards(Mapping[str, Tensor]):
    """Tensors by name, each looked up in its file."""

    def __init__(self, files: Mapping[str, str], shards: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._files, self._shards = files, shards

    def __getitem__(self, name: str) -> Tensor:
        return self._shards[self._files[name]][name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it where its file says it."""
        shard: Any = self._shards[self._files[name]]
        return shard.shape(name) if hasattr(shard, "shape") else tuple(shard[name].shape)

    def __getattr__(self, name: str) -> Any:
        """`stored`, where all files are of safetensors."""
        if name == "stored" and all(hasattr(shard, "stored") for shard in self._shards.values()):
            shards: Any = self._shards
            return lambda key: shards[self._files[key]].stored(key)
        raise AttributeError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
