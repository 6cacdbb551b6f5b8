"""Half-patch shifts: how steady the answer is when a picture moves by parts of a patch.

A network that reads a picture in patches of s pixels (a vision transformer; any network of total stride s) sees the
same patches again when the picture moves by s, but others when it moves by s / 2: it is farthest from a shift that it
could follow exactly. Random crops hide that, as they mix all shifts.
"""

from __future__ import annotations

import math

import torch

from blurify.errors import BlurifyError
from blurify.metrics.consistency import compared, confidence, estimate, seen_at
from blurify.metrics.results import HalfPatch
from blurify.metrics.sizes import dimensions
from blurify.metrics.subject import Pictures, Subject, Watch, no_answer
from blurify.planning.planner import make_plan
from blurify.spec.recipes import load_recipe
from blurify.surgery.carrying import plan_of

_QUARTERS = 4


def half_patch(
    subject: Subject,
    pictures: Pictures,
    *,
    patch: tuple[int, int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    circular: bool = False,
    watch: Watch | None = None,
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

    Raises:
        BlurifyError: the model has no patch of more than one pixel, the canvas leaves no room for a shift by one, or
            outputs are not finite.
    """
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
    room = torch.tensor(geometry.crop) if circular else spare - torch.tensor(size) + 1
    draws = torch.rand(len(pictures), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first = (draws * room).long()
    quarters = sorted(
        {
            (round(y * size[0] / _QUARTERS), round(x * size[1] / _QUARTERS))
            for y in range(_QUARTERS)
            for x in range(_QUARTERS)
        }
        - {(0, 0)}
    )
    halves = _corners((round(size[0] / 2), round(size[1] / 2)))
    wholes = _corners(size)
    same: dict[str, list[torch.Tensor]] = {"half": [], "change": [], "grid": [], "whole": [], "sure": []}
    dense = False
    total, done = math.ceil(len(pictures) / batch_size) * len({*quarters, *halves, *wholes}), 0
    for batch in pictures.batches(batch_size):
        canvases = batch.canvases.to(subject.device, non_blocking=True)
        at = first[batch.indices]
        here = subject(seen_at(canvases, at, geometry, circular=circular))
        dense = here.ndim == 4
        broken = [no_answer(here)]
        same["sure"].append(confidence(here))
        moved: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        for shift in dict.fromkeys((*halves, *quarters, *wholes)):
            step = torch.tensor(shift).expand(len(at), 2)
            there = subject(seen_at(canvases, at + step, geometry, circular=circular))
            broken.append(no_answer(there))
            moved[shift] = compared(here, there, step, geometry, circular=circular)
            done += 1
            if watch is not None:
                watch("half-patch shifts", done, total)
        if bool(torch.stack(broken).any()):
            raise BlurifyError(
                "the model's output is not finite (nan or infinite): give pictures and --mean and --std that suit it, "
                "or measure it in float32"
            )
        for name, shifts, part in (
            ("half", halves, 0),
            ("change", halves, 1),
            ("grid", quarters, 0),
            ("whole", wholes, 0),
        ):
            same[name].append(torch.stack([moved[shift][part] for shift in shifts]).mean(0))
    return HalfPatch(
        patch=size,
        half=estimate(same["half"], yes_or_no=not dense),
        half_change=estimate(same["change"], yes_or_no=False),
        grid=estimate(same["grid"], yes_or_no=not dense),
        whole=estimate(same["whole"], yes_or_no=not dense),
        circular=circular,
        confidence=estimate(same["sure"], yes_or_no=False),
    )


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
