"""What a training checkpoint holds beside the weights that were taken of it: optimizer, epoch, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from blurify.errors import BlurifyError, one_line


@dataclass(frozen=True)
class Rest:
    """What stands in a training checkpoint around the weights that were taken of it.

    Attributes:
        entries: of the file, by name, as they are to be written again; the weights are in there, too.
        place: the keys that lead to the weights or the module.
        prefix: what stands before the name of each tensor there, and in no model.
    """

    entries: Mapping[str, Any]
    place: tuple[str, ...]
    prefix: str = ""

    @property
    def others(self) -> list[str]:
        """The names of what is not the weights that were taken."""
        return [name for name in self.entries if name != self.place[0]]

    @cached_property
    def made(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The entries that can be written again; and of each that can't, why."""
        entries: dict[str, Any] = {}
        left: dict[str, str] = {}
        for name in self.entries:
            try:
                entries[name] = self.entries[name]
            except BlurifyError as error:
                left[name] = one_line(error)
        return entries, left

    def around(self, weights: Any) -> dict[str, Any]:
        """The whole file with other weights in their place.

        Args:
            weights: the module, or tensors by name without the prefix.
        """
        whole = dict(self.made[0])
        holder = whole
        for key in self.place[:-1]:
            inner = holder.get(key)
            holder[key] = dict(inner) if isinstance(inner, Mapping) else {}
            holder = holder[key]
        if isinstance(weights, Mapping):
            there = holder.get(self.place[-1])
            # Tensors that stand beside those of the model, as a loss with weights of its own.
            beside = dict(there) if self.prefix and isinstance(there, Mapping) else {}
            weights = {**beside, **{self.prefix + name: value for name, value in weights.items()}}
        holder[self.place[-1]] = weights
        return whole
