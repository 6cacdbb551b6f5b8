"""What a file of a model holds, in whatever format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blurify.files.rest import Rest
from blurify.files.sources import ModelSource
from blurify.spec.adapted import Adapted
from blurify.spec.plan import Plan
from blurify.surgery.marking import Mark

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADER = "blurify"
"""The entry of a file, or of its metadata, that carries the plan."""

HEADER_FORMAT = 1


@dataclass(frozen=True)
class Reading:
    """What the user allows, and chooses, when a file is read.

    Attributes:
        allow: qualified names of classes that a file may consist of besides those of torch, torchvision and timm.
        trust: run whatever code it contains.
        weights: which of several sets of weights in it: 'ema', 'model', the key that they stand under, or, with a dot
            at its end, what the names of its tensors begin with; None: the averaged ones where there are some.
        source: the user's own Python file that defines the classes of a pickled model; None: no such file.
    """

    allow: tuple[str, ...] = ()
    trust: bool = False
    weights: str | None = None
    source: Path | None = None

    @property
    def prefix(self) -> str | None:
        """What stands before the names of the tensors, where the user chose the weights by it."""
        return self.weights if self.weights is not None and self.weights.endswith(".") else None


@dataclass(frozen=True)
class Saved:
    """What a format is given to write.

    Attributes:
        model: converted.
        header: what `header_of` made.
        rest: what else stood in the file that the model came from; formats that can't hold it leave it out.
        plain: only what other programs read, without the header.
        original: the model is not converted: it is written without the header, whole where no name builds it.
        tensors: the values of the model's parameters, where it has none of its own.
        measured: what was measured of the model, a line each, for formats that tell people.
        notes: what a format has to tell of what it wrote; it adds to them.
    """

    model: nn.Module
    header: dict[str, Any]
    rest: Rest | None = None
    plain: bool = False
    original: bool = False
    tensors: Mapping[str, Tensor] | None = None
    measured: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: a module, or tensors by name; and blurify's header where blurify wrote it.

    Attributes:
        path: the file.
        module: as it was pickled; None where the file holds tensors.
        tensors: by name; each may be read from the file only when it is asked for.
        header: what `header_of` made, as far as the file is one of ours.
        note: what a user may want to know about how it was read ('' mostly).
        arch: the factory spec of the architecture that the file itself names, as far as it does.
        config: what goes with that name, for `sources.build`.
        rest: what else stands in it; None where nothing does.
        prefix: what stands before the names of the tensors, where the user said it.
        mark: the plan that another program kept beside the weights of a converted model.
    """

    path: Path
    module: nn.Module | None = None
    tensors: Mapping[str, Tensor] | None = None
    header: dict[str, Any] | None = None
    note: str = ""
    arch: str | None = None
    config: Mapping[str, Any] | None = None
    rest: Rest | None = None
    prefix: str | None = None
    mark: Mark | None = None

    def plan(self) -> Plan | None:
        """The plan in the header, where there is one."""
        data = (self.header or {}).get("plan")
        return Plan.from_dict(data) if isinstance(data, dict) else None


def header_of(plan: Plan, source: ModelSource | None, adapted: Adapted | None = None) -> dict[str, Any]:
    """What goes into a file beside the tensors, as JSON's own data: the plan, and how to build the unconverted model.

    Args:
        plan: of the converted model.
        source: None where the model exists only in memory.
        adapted: what was done to its weights; None where they are the original's.
    """
    header = {"format": HEADER_FORMAT, "plan": plan.to_dict(), "source": source and source.to_dict()}
    if adapted is not None:
        header["adapted"] = adapted.to_dict()
    plain: dict[str, Any] = json.loads(json.dumps(header))  # both formats hold the same: lists, no tuples
    return plain
