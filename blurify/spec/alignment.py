"""Where the feature maps of a converted model lie beside those of the original, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from blurify.spec.reading import LONGEST, read_fields, require

Drift: TypeAlias = tuple[tuple[float, float], ...]
"""How far features lie to the right of the original's, in input pixels: by spatial dimension, the least and the most
(they differ where branches that are apart have met). () where that is not known."""

_MOST_DIMENSIONS = 3


@dataclass(frozen=True)
class Meeting:
    """A place where branches meet whose features are not at the same positions, as they are in the original.

    Attributes:
        place: the module's path and the function, as in the name of a site.
        drifts: of the branches, each once.
    """

    place: str
    drifts: tuple[Drift, ...]


@dataclass(frozen=True)
class Alignment:
    """Where a conversion leaves the features of a model, relative to those of the original.

    Attributes:
        outputs: the drift of each output that has positions (masks, boxes, feature maps; not the scores of classes).
        meetings: where branches meet that drifted differently.
        largest: the largest drift of any feature map, in input pixels.
    """

    outputs: tuple[Drift, ...] = ()
    meetings: tuple[Meeting, ...] = ()
    largest: float = 0.0

    @property
    def outputs_drift(self) -> float:
        """The largest drift of an output that has positions, in input pixels."""
        return largest(self.outputs)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Alignment:
        """Read the plain data that `dataclasses.asdict` makes. Raises ValueError for anything else."""
        meetings = [
            read_fields(Meeting, {**one, "drifts": tuple(map(drift_from, one["drifts"]))}) for one in data["meetings"]
        ]
        outputs = tuple(map(drift_from, data["outputs"]))
        require(max(len(outputs), len(meetings)) <= LONGEST, "more outputs than a model has")
        return read_fields(cls, {**data, "outputs": outputs, "meetings": tuple(meetings)})


def drift_from(data: Any) -> Drift:
    """Read a drift that a file says. Raises ValueError or TypeError where it is none."""
    drift = tuple((low, high) for low, high in data)
    require(len(drift) <= _MOST_DIMENSIONS, "a drift of odd dimensions")
    return drift


def largest(drifts: Iterable[Drift]) -> float:
    """The largest distance among drifts, in input pixels; 0 for none."""
    return max((abs(one) for drift in drifts for dimension in drift for one in dimension), default=0.0)


def in_words(drift: Drift) -> str:
    """'0.5'; '0.5..1' where branches are apart; '0 x 0.5' where dimensions differ; '' where it is not known."""
    words = [_number(low) if low == high else f"{_number(low)}..{_number(high)}" for low, high in drift]
    return words[0] if len(set(words)) == 1 else " x ".join(words)


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:g}"
