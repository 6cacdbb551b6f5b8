"""What a training checkpoint holds beside the weights that were taken of it: optimizer, epoch, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rest:
    """What stands in a training checkpoint around the weights that were taken of it.

    Attributes:
        entries: by name, as they are to be written again; the weights are in there, too, under `place`.
        place: the keys that lead to the weights or the module.
        prefix: what stands before the name of each tensor there, and in no model.
        left: entries that can't be written again, and why.
    """

    entries: Mapping[str, Any]
    place: tuple[str, ...]
    prefix: str = ""
    left: Mapping[str, str] = field(default_factory=dict)
