"""At which phase a blur subsamples: at the first sample, or at the one that adaptive polyphase sampling chooses.

Of the s^d ways to take every s-th sample of a map, adaptive polyphase sampling takes the one with the largest norm. A
shift of the map permutes these ways, so that the same samples are taken, whatever the shift. Where branches meet, they
must have taken the same phase: one blur chooses (it leads), the others follow; an upsampling puts the samples back to
where they were taken from (it restores).

Source: Chaman and Dokmanic, "Truly shift-invariant convolutional neural networks", CVPR 2021, and "Truly
shift-equivariant convolutional neural networks with adaptive polyphase upsampling", 2021.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from blurify.spec.reading import read_fields, require

NORMS = (1, 2)
_MOST_GROUPS = 16
_MOST_BACK = 64
_LARGEST_STRIDE = 4096


@dataclass(frozen=True)
class Phase:
    """The part that one blur has in adaptive polyphase sampling.

    Attributes:
        role: 'leads' (chooses the phase by the norm), 'follows' (takes that of others), 'restores' (behind an
            upsampling: moves the samples back by the phases that were taken on the way down).
        groups: whose phases it takes, from the first subsampling to the last: the path of the blur that leads there.
            A blur that leads has one, its own.
        strides: the subsampling of each of them, one entry a spatial dimension.
        back: how many times each of them has chosen again before this blur runs (a module that runs several times in a
            forward); 0 for most.
        norm: 1 or 2: by which norm the phase is chosen.
        parts: of a blur that restores at several levels (one expression in a loop over them): how many groups belong to
            each level; it takes those whose map had the size that it has. Empty: all groups belong together.
    """

    role: Literal["leads", "follows", "restores"]
    groups: tuple[str, ...]
    strides: tuple[tuple[int, ...], ...]
    back: tuple[int, ...]
    norm: int = 2
    parts: tuple[int, ...] = ()

    @property
    def levels(self) -> tuple[slice, ...]:
        """Which groups belong together: all of them, or each part."""
        ends = list(itertools.accumulate(self.parts or (len(self.groups),)))
        return tuple(slice(begin, end) for begin, end in itertools.pairwise((0, *ends)))

    @property
    def span(self) -> tuple[int, ...]:
        """The whole subsampling, one entry a spatial dimension; with parts, that of the first."""
        return tuple(math.prod(steps) for steps in zip(*self.strides[self.levels[0]], strict=True))


def phase_to_dict(phase: Phase) -> dict[str, Any]:
    """The phase as plain data for JSON."""
    data = dataclasses.asdict(phase)
    if not phase.parts:
        del data["parts"]
    return data


def phase_from_dict(data: Mapping[str, Any], factor: tuple[int, ...], stride: tuple[int, ...]) -> Phase:
    """Read what `phase_to_dict` wrote, of a blur with this factor and stride. Raises ValueError for anything else."""
    fields = {key: _tuples(value) for key, value in data.items()}
    phase = read_fields(Phase, fields)
    count = len(phase.groups)
    require(1 <= count <= _MOST_GROUPS and len(phase.strides) == len(phase.back) == count, "a phase of odd parts")
    require(not phase.parts or (phase.role == "restores" and min(phase.parts) > 0), "a phase of parts that can't be")
    require(sum(phase.parts) in (0, count), "a phase of odd parts")
    begins = [(phase.groups[level.start], phase.back[level.start]) for level in phase.levels]
    require(len(set(begins)) == len(begins), "a phase of parts that can't be told apart")
    require(phase.role != "leads" or (count == 1 and not any(phase.back)), "a phase that leads and follows")
    require(all(0 <= one <= _MOST_BACK for one in phase.back) and phase.norm in NORMS, "a phase that can't be")
    rank = len(factor)
    steps = [one for strides in phase.strides for one in strides]
    require(all(len(one) == rank for one in phase.strides), "a phase of odd dimensions")
    require(all(1 <= one <= _LARGEST_STRIDE for one in steps) and phase.span == factor, "a phase of another stride")
    require(stride in (factor, (1,) * rank), "a phase of a blur that subsamples by less")
    require(phase.role != "restores" or max(stride) == 1, "a phase that restores and subsamples")
    return phase


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
