"""What wrappers and training programs put before the names of a model's tensors, found and taken off."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from blurify.errors import BlurifyError

_COMPILED = "_orig_mod."  # torch.compile puts it wherever a compiled part stands
_COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel


@dataclass(frozen=True)
class OwnNames:
    """Under which name a file has each of a model's tensors.

    Attributes:
        stored: of every name in the model, or in the file alone, the name in the file.
        prefix: what was taken off.
        left: names in the file that are not of the model, since they lack the prefix.
        tensors: the tensors of the file by the names of the model, where they stay in it.
    """

    stored: dict[str, str]
    prefix: str = ""
    left: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] | None = None

    @property
    def note(self) -> str:
        """What a user may want to know about it, '' where nothing was taken off or left out."""
        parts = []
        if self.prefix:
            parts.append(f"took {self.prefix!r} off the names of its tensors")
        if self.left:
            more = ", ..." if len(self.left) > 3 else ""
            parts.append(f"left out {len(self.left)} that do not begin with it ({', '.join(self.left[:3])}{more})")
        return " and ".join(parts)


def own_names(own: Collection[str], stored: Iterable[str], *, where: str, prefix: str | None = None) -> OwnNames:
    """Find the names of a model among those of a file.

    Args:
        own: the names of the model's tensors.
        stored: the names in the file.
        where: what the file is called in messages.
        prefix: what the model's names begin with there, where the user says it; it ends with a dot.

    Raises:
        BlurifyError: the file has several whole models, under prefixes of their own, or none under the one given.
    """
    own = set(own)
    names = {name: name for name in stored if name != _COUNTER or _COUNTER in own}
    if not any(_COMPILED in name for name in own):
        plain = {name.replace(_COMPILED, ""): kept for name, kept in names.items()}
        if len(plain) == len(names):
            names = plain
    found = prefix or ""
    if prefix is not None and not any(name.startswith(found) for name in names):
        raise BlurifyError(f"{where} has no tensors whose names begin with {found!r}")
    if prefix is None:
        found = _prefix(own, names, where)
    left = tuple(name for name in names if not name.startswith(found))
    names = {name.removeprefix(found): kept for name, kept in names.items() if name.startswith(found)}
    # What the file's names begin with: that may have had a compiled model's mark in it.
    shown = next((kept.removesuffix(name) for name, kept in names.items() if kept.endswith(name)), found)
    return OwnNames(names, shown, left)


def _prefix(own: set[str], names: dict[str, str], where: str) -> str:
    """The prefix under which most of a model's names stand in a file, '' where none do."""
    counts = {"": len(own.intersection(names))}
    # A name may end another of the model's ('weight', 'fc.weight'): every name has its say, not one.
    for name in names:
        for place, letter in enumerate(name):
            if letter == "." and name[place + 1 :] in own:
                counts[name[: place + 1]] = counts.get(name[: place + 1], 0) + 1
    most = max(counts.values())
    if 2 * most <= len(own):
        return ""  # it is no file of this model: what is said of it should have its own names
    best = sorted(prefix for prefix, count in counts.items() if count == most)
    if len(best) > 1 and best[0]:
        listed = ", ".join(repr(prefix) for prefix in best)
        raise BlurifyError(
            f"{where} has several models, whose names begin with {listed}: choose one with --weights {best[0]}"
        )
    return best[0]
