"""The shipped index of architectures: from what a state_dict consists of to those that may have it.

An architecture is looked up by its trunk: names and shapes of all tensors but those of the head, which `num_classes`
decides about, with the input channels left out of the shapes of the stem. `make architectures` writes the index. It
only suggests: whoever asks builds what it names and compares, so that an index of other versions of the libraries finds
less, but nothing wrong.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

from blurify.files.sources.shapes import Shapes

FILE = "known_architectures.json"


@dataclass(frozen=True)
class Kind:
    """What of an architecture's tensors its options decide about.

    Attributes:
        head: names of tensors that depend on `num_classes`: their shapes, or whether they exist.
        stem: names of tensors whose second dimension depends on `in_chans`.
    """

    head: tuple[str, ...]
    stem: tuple[str, ...]

    def trunk(self, shapes: Shapes) -> str:
        """A digest of what those options leave alone; it does not depend on the order of the names."""
        lines = []
        for name in sorted(set(shapes).difference(self.head)):
            shape = shapes[name]
            lines.append(f"{name} {(shape[:1] + shape[2:]) if name in self.stem else shape}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Index:
    """Every architecture of timm and torchvision by its trunk.

    Attributes:
        kinds: those that occur.
        trunks: by digest, the factory specs.
        same: sets of architectures with the same tensors that compute the same function; those of the same tensors
            that are in no common set compute different ones, or were too large to be compared.
    """

    kinds: tuple[Kind, ...]
    trunks: Mapping[str, tuple[str, ...]]
    same: tuple[frozenset[str], ...]

    def candidates(self, shapes: Shapes) -> list[str]:
        """The architectures that may have tensors of these shapes, with other options perhaps."""
        found: dict[str, None] = {}
        for kind in self.kinds:
            if kind.stem and not set(kind.stem) <= set(shapes):
                continue
            found |= dict.fromkeys(self.trunks.get(kind.trunk(shapes), ()))
        return list(found)

    def by_function(self, specs: Iterable[str]) -> list[list[str]]:
        """Architectures in groups that compute the same, the plainest name first in each and of all."""
        groups: list[list[str]] = []
        for spec in sorted(specs, key=plainness):
            for group in groups:
                if any({spec, group[0]} <= alike for alike in self.same):
                    group.append(spec)
                    break
            else:
                groups.append([spec])
        return groups


def plainness(spec: str) -> tuple[int, int, str]:
    """By what to sort names so that the plainest comes first: short ones, timm's before torchvision's."""
    library, _, name = spec.partition("/")
    return len(name), library != "timm", spec


def names() -> list[str]:
    """Every architecture of timm and torchvision, as a factory spec, the plainest first; neither is imported."""
    return sorted({spec for specs in index().trunks.values() for spec in specs}, key=plainness)


@functools.cache
def index() -> Index:
    """The index that is shipped."""
    data = json.loads(resources.files("blurify.files.sources").joinpath(FILE).read_text())
    kinds = tuple(Kind(tuple(kind["head"]), tuple(kind["stem"])) for kind in data["kinds"])
    trunks = {digest: tuple(specs) for digest, specs in data["trunks"].items()}
    return Index(kinds, trunks, tuple(map(frozenset, data["same"])))
