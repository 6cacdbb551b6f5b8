"""Where a model came from: enough to build the same architecture again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blurify.errors import BlurifyError
from blurify.files.rest import Rest
from blurify.spec.recipes import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ModelSource:
    """How to build a model's architecture again.

    Attributes:
        spec: what the user wrote; of a file only its name.
        kind: 'factory' (`arch` builds it), 'weights' (a file's tensors in what `arch` builds) or 'module' (it only
            exists as a pickled module).
        arch: the factory spec, with the choices that were left open filled in; None for 'module'.
        config: what a config.json said beside it (see `configs`); None mostly.
    """

    spec: str
    kind: Literal["factory", "weights", "module"]
    arch: str | None = None
    config: Mapping[str, Any] | None = None

    @property
    def fetched_or_run(self) -> bool:
        """Whether code of the user's builds it, or it is fetched or read from elsewhere: a file can't say so alone."""
        return self.arch is not None and not self.arch.startswith("torchvision/") and ":" in self.arch

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = {"spec": self.spec, "kind": self.kind, "arch": self.arch}
        return data if self.config is None else {**data, "config": dict(self.config)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSource:
        """Read what `to_dict` wrote. Raises BlurifyError where it is something else."""
        kind, arch, config = data.get("kind"), data.get("arch"), data.get("config")
        plain = isinstance(arch, str | None) and isinstance(config, dict | None)
        if kind not in ("factory", "weights", "module") or not plain:
            raise BlurifyError(
                "the file doesn't say how its model is built in a way that this blurify knows: give --arch"
            )
        return cls(str(data.get("spec", "")), kind, arch, config)


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
        tensors: the values of the parameters, by name, where the model has none of its own (see `opening.open_model`).
    """

    model: nn.Module
    source: ModelSource
    note: str = ""
    rest: Rest | None = None
    tensors: Mapping[str, Tensor] | None = None
    recipe: Recipe | None = None
