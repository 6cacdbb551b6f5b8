"""Half-patch shifts: how steady the answer is when a picture moves by parts of a patch.

A network that reads a picture in patches of s pixels (a vision transformer; any network of total stride s) sees the
same patches again when the picture moves by s, but others when it moves by s / 2: it is farthest from a shift that it
could follow exactly. Random crops hide that, as they mix all shifts.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.consistency import compared, confidence, estimate, seen_at
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.results import HalfPatch
from blurify.metrics.sizes import dimensions
from blurify.metrics.subject import Batch, Pictures, Subject, Watch, no_answer, not_finite
from blurify.planning.planner import make_plan
from blurify.spec.recipes import load_recipe
from blurify.surgery.carrying import plan_of

_QUARTERS = 4


_FIGURES = ("half", "change", "grid", "whole", "sure")


def half_patch(
    subject: Subject,
    pictures: Pictures,
    *,
    patch: tuple[int, int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    circular: bool = False,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> HalfPatch:
    """Compare a model's answers for a picture with those for the same picture moved by parts of a patch.

    Each picture is seen from one random place of its canvas, and from there: moved by half a patch along y, along x and
    along both; by every other multiple of a quarter of a patch, up to three, along both axes (a grid of 4 x 4 places
    with those); and by a whole patch along y, x and both.

    Args:
        subject: the model.
        pictures: canvases larger than the model's input by a patch or more, unless `circular`.
        patch: (y, x) pixels; None: the total stride of the model, by the sites of its plan (16 of a ViT-B/16, 32 of a
            ResNet or a Swin).
        seed: of the first places.
        batch_size: pictures a forward.
        circular: shift the centre crop around, with what leaves on one side coming in on the other.
        watch: told of each batch.
        kept: where each shift of a batch is written down (see `kept`); a batch that is gone on with is seen once more
            from its first place.

    Raises:
        BlurifyError: the model has no patch of more than one pixel, the canvas leaves no room for a shift by one, or
            outputs are not finite.
    """
    geometry = subject.preprocessing
    size = fitting_patch(subject, patch, circular=circular)
    spare = torch.tensor(geometry.canvas) - torch.tensor(geometry.crop)
    room = torch.tensor(geometry.crop) if circular else spare - torch.tensor(size) + 1
    draws = torch.rand(len(pictures), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first = (draws * room).long()
    halves, quarters, wholes = _places(size)
    shifts = shifts_by(size)
    batches = math.ceil(len(pictures) / batch_size)
    steps = steps_for(
        kept, "half-patch", batches, patch=list(size), seed=seed, batch_size=batch_size, circular=circular
    )

    def of_batch(number: int, batch: Batch) -> dict[str, Any]:
        canvases = batch.canvases.to(subject.device, non_blocking=True)
        at = first[batch.indices]
        here = subject(seen_at(canvases, at, geometry, circular=circular))
        _check_finite(here)

        def moved(shift: tuple[int, int]) -> list[list[float]]:
            step = torch.tensor(shift).expand(len(at), 2)
            there = subject(seen_at(canvases, at + step, geometry, circular=circular))
            _check_finite(there)
            return [values.tolist() for values in compared(here, there, step, geometry, circular=circular)]

        found: dict[tuple[int, int], Tensor] = {}
        for done, shift in enumerate(shifts, 1):
            values = steps.part(number, dimensions(shift), functools.partial(moved, shift))
            found[shift] = torch.tensor(values, dtype=torch.float64)
            if watch is not None:
                watch("half-patch shifts", number * len(shifts) + done, batches * len(shifts))
        means = {
            name: torch.stack([found[shift][figure] for shift in chosen]).mean(0).tolist()
            for name, chosen, figure in (
                ("half", halves, 0),
                ("change", halves, 1),
                ("grid", quarters, 0),
                ("whole", wholes, 0),
            )
        }
        return {"dense": here.ndim == 4, "sure": confidence(here).tolist(), **means}

    for number, batch in steps.batches(pictures, batch_size):
        steps.done(number, of_batch(number, batch))
    results = steps.results
    dense = results[-1]["dense"]
    same = {name: [value for step in results for value in step[name]] for name in _FIGURES}
    return HalfPatch(
        patch=size,
        half=estimate(same["half"], yes_or_no=not dense),
        half_change=estimate(same["change"], yes_or_no=False),
        grid=estimate(same["grid"], yes_or_no=not dense),
        whole=estimate(same["whole"], yes_or_no=not dense),
        circular=circular,
        confidence=estimate(same["sure"], yes_or_no=False),
    )


def fitting_patch(subject: Subject, patch: tuple[int, int] | None = None, *, circular: bool = False) -> tuple[int, int]:
    """The patch that `half_patch` shifts by. Raises BlurifyError where there is none, or no room for a shift by it."""
    geometry = subject.preprocessing
    size = patch if patch is not None else patch_of(subject)
    if max(size) < 2:
        raise BlurifyError(
            f"{subject.name} does not subsample pictures, so that there is no part of a patch to shift by"
        )
    spare = torch.tensor(geometry.canvas) - torch.tensor(geometry.crop)
    if not circular and bool((spare < torch.tensor(size)).any()):
        raise BlurifyError(
            f"a shift by a patch of {dimensions(size)} does not fit between the canvas {dimensions(geometry.canvas)} "
            f"and the model's input {dimensions(geometry.crop)}: give a larger --canvas, or --circular"
        )
    return size


def shifts_by(patch: tuple[int, int]) -> list[tuple[int, int]]:
    """The shifts (y, x) that are tried for a patch of a size, in order, in pixels."""
    halves, quarters, wholes = _places(patch)
    return list(dict.fromkeys((*halves, *quarters, *wholes)))


_Shifts = list[tuple[int, int]]


def _places(patch: tuple[int, int]) -> tuple[_Shifts, _Shifts, _Shifts]:
    """Shifts by half a patch, by quarters and by a whole one."""
    quarters = {
        (round(y * patch[0] / _QUARTERS), round(x * patch[1] / _QUARTERS))
        for y in range(_QUARTERS)
        for x in range(_QUARTERS)
    }
    return _corners((round(patch[0] / 2), round(patch[1] / 2))), sorted(quarters - {(0, 0)}), _corners(patch)


def _check_finite(logits: Tensor) -> None:
    if bool(no_answer(logits)):
        raise not_finite("the model's output is")


def patch_of(subject: Subject) -> tuple[int, int]:
    """The total stride of a model, (y, x), by its plan: that which it carries, or that of the default recipe."""
    plan, geometry = plan_of(subject.model), subject.preprocessing
    if plan is None:
        like = next((p for p in subject.model.parameters() if p.is_floating_point()), torch.zeros(()))
        example = torch.zeros(1, geometry.channels, *geometry.crop, dtype=like.dtype)
        plan = make_plan(subject.model, load_recipe(None), example, training=False)
    return plan.total_stride


def _corners(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Moved along y, along x and along both; each once, and not at all where a size is 0."""
    return [shift for shift in dict.fromkeys(((size[0], 0), (0, size[1]), size)) if any(shift)]
