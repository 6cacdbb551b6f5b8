"""What adapting did to a model, as plain versioned data that the model and its files carry along."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blurify.errors import BlurifyError
from blurify.spec.reading import read_fields, require

FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """One stage, and how far the model was after it.

    Attributes:
        name: 'converted' (before anything was done), 'recalibrate', 'reconstruct', 'refine' or 'distil'.
        line: what it did, in words.
        seconds: how long it took.
        distance: KL(original || model) in nats for classes, relative error for other outputs, on examples held back.
        same: share of equal top-1 answers; None where the outputs are no classes.
        kept: whether its result was; a stage that made things worse is taken back.
    """

    name: str
    line: str
    seconds: float
    distance: float
    same: float | None = None
    kept: bool = True


@dataclass(frozen=True)
class Adapted:
    """What adapting did.

    Attributes:
        data: what it was adapted on, in words.
        examples: how many examples.
        checked: on how many held-back ones `distance` and `same` are measured.
        outputs: 'classes' or 'values'.
        stages: in order; the first is the converted model as it came.
        notes: what a user may want to know.
    """

    data: str
    examples: int
    checked: int
    outputs: str
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @property
    def reached(self) -> Stage | None:
        """The last stage whose result was kept: what the model is now. None where there is none."""
        return next((stage for stage in reversed(self.stages) if stage.kept), None)

    def summary(self) -> str:
        """In one line: on what, and how far the model answers as the original does."""
        stage = self.reached
        if stage is None:
            return f"adapted on {self.data}"
        error = f"relative error {stage.distance:.3g}"
        if stage.same is not None:
            error = f"{stage.same:.1%} of the answers are the original's, KL {stage.distance:.2g} nats"
        return f"adapted on {self.data}: {error} (after {stage.name}, {self.checked} examples held back)"

    def lines(self) -> list[str]:
        """The same in words, a line a stage."""
        return [stage.line for stage in self.stages]

    def to_dict(self) -> dict[str, Any]:
        """Plain versioned data for JSON; `from_dict` reads it back."""
        data = dataclasses.asdict(self)
        data["stages"] = [dataclasses.asdict(stage) for stage in self.stages]
        return {"format": FORMAT, **data, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Adapted:
        """Read what `to_dict` wrote. Raises BlurifyError for anything else."""
        try:
            require(data.get("format") == FORMAT, f"format {data.get('format')!r}")
            stages = tuple(read_fields(Stage, stage) for stage in data["stages"])
            fields = {key: value for key, value in data.items() if key != "format"}
            return read_fields(cls, {**fields, "stages": stages, "notes": tuple(data["notes"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BlurifyError(f"this is no record of adapting that blurify wrote ({error})") from error
