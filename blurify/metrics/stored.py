"""What a metric has summed up so far, where that is too large for lines: a file of tensors beside the journal.

It is written whole after each step, in place of the one before, so that there is always a good one. A safetensors file:
nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from blurify.files.atomic import replace_bytes

Stored: TypeAlias = tuple[int, dict[str, Tensor], Any]
"""After how many steps, the tensors, plain data."""

_ENDING = ".safetensors"


class Store:
    """The file of one metric with its settings.

    Args:
        journal: the journal's path.
        key: of the metric's lines in it, without the step.
    """

    def __init__(self, journal: Path, key: str) -> None:
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.path = journal.with_name(f"{journal.stem}-{digest}{_ENDING}")
        self._key = key

    def write(self, steps: int, tensors: Mapping[str, Tensor], data: Any) -> None:
        """Replace what is there. Raises OSError where that can't be."""
        head = {"steps": str(steps), "key": self._key, "data": json.dumps(data)}
        content = safetensors.torch.save({name: one.contiguous() for name, one in tensors.items()}, head)
        replace_bytes(self.path, content)

    def read(self) -> Stored | None:
        """What is there; None where that is nothing of ours."""
        if not self.path.is_file():
            return None
        with contextlib.suppress(OSError, SafetensorError, ValueError, TypeError, KeyError, RecursionError):
            with safetensors.safe_open(self.path, "pt") as file:
                head = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if head["key"] == self._key and int(head["steps"]) > 0:
                return int(head["steps"]), tensors, json.loads(head["data"])
        return None


def stores_of(journal: Path, keys: set[str] | None = None) -> Iterator[Path]:
    """The files beside a journal: those of some keys, or all."""
    if keys is not None:
        yield from (path for key in keys if (path := Store(journal, key).path).is_file())
        return
    with contextlib.suppress(OSError):
        yield from sorted(journal.parent.glob(f"{journal.stem}-{'[0-9a-f]' * 16}{_ENDING}"))
