"""Where a model came from: enough to build the same architecture again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blurify.errors import BlurifyError
from blurify.files.rest import Rest
from blurify.spec.recipes import Recipe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelSource:
    """How to build a model's architecture again.

    Attributes:
        spec: what the user wrote; of a file only its name.
        kind: 'factory' (`arch` builds it), 'weights' (a file's tensors in what `arch` builds) or 'module' (it only
            exists as a pickled module).
        arch: the factory spec, with the choices that were left open filled in; None for 'module'.
    """

    spec: str
    kind: Literal["factory", "weights", "module"]
    arch: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Plain data for JSON."""
        return {"spec": self.spec, "kind": self.kind, "arch": self.arch}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSource:
        """Read what `to_dict` wrote. Raises BlurifyError where it is something else."""
        kind, arch = data.get("kind"), data.get("arch")
        if kind not in ("factory", "weights", "module") or not (arch is None or isinstance(arch, str)):
            raise BlurifyError(
                "the file doesn't say how its model is built in a way that this blurify knows: give --arch"
            )
        return cls(str(data.get("spec", "")), kind, arch)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, and where it came from.

    Attributes:
        model: on the CPU, in eval mode.
        source: how to build it again.
        note: what a user may want to know about how it was read ('' mostly), e.g. which of several weights were taken.
        rest: what else stood in the file; None where nothing did.
        recipe: with what to convert it where nobody says: weights of a published anti-aliased architecture were trained
            with its filters. None: they know of none.
    """

    model: nn.Module
    source: ModelSource
    note: str = ""
    rest: Rest | None = None
    recipe: Recipe | None = None
