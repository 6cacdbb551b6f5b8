"""The worst of a grid of translations and rotations (Engstrom et al. 2018)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.effects import moved
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.results import Estimate, WorstCase
from blurify.metrics.subject import Batch, Pictures, Subject, Watch, top1

_WHAT = "the worst case"
FARTHEST = 24 / 224  # of the crop's shorter side: the published limit for ImageNet, 24 pixels of 224
ROTATIONS = tuple(range(-30, 31, 10))
PUBLISHED_ROTATIONS = tuple(range(-30, 31, 2))


def worst_case(
    subject: Subject,
    pictures: Pictures,
    *,
    translations: Sequence[float] | None = None,
    rotations: Sequence[float] = ROTATIONS,
    seed: int = 0,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> WorstCase:
    """Accuracy and steadiness over every translation along y, along x, and rotation of a grid.

    The grid search of Engstrom et al., "Exploring the Landscape of Spatial Robustness" (arXiv:1712.02779; ICML 2019),
    section 3. There: 5 translations along each axis within 24 pixels of 224, and 31 rotations within 30 degrees, 775
    points; a picture counts as wrong if it is wrong at any. `rotations=PUBLISHED_ROTATIONS` gives that grid; the
    default has 7 rotations, 175 points. Each point is one bilinear rotation and translation of the canvas, of which
    the centre is cut out: borders come from the canvas as far as it reaches, beyond it all is black, as published.

    Args:
        subject: a classifier.
        pictures: what to measure on.
        translations: pixels, used along both axes; None: 5 from -24/224 to 24/224 of the crop's shorter side. 0 is
            always among them.
        rotations: degrees. 0 is always among them.
        seed: without effect, there is nothing random here; all metrics take one.
        batch_size: pictures in one forward.
        watch: told about progress; one batch is one forward.
        kept: where the answers of each forward are written down (see `kept`).

    Raises:
        BlurifyError: the grid has a number that is not finite, or the model is no classifier.
    """
    crop = subject.preprocessing.crop
    if translations is None:
        translations = [FARTHEST * min(crop) * step / 2 for step in range(-2, 3)]
    if strange := [value for value in (*translations, *rotations) if not math.isfinite(value)]:
        raise BlurifyError(f"the grid cannot hold {strange[0]}: give translations in pixels and rotations in degrees")
    shifts, turns = sorted({0.0, *map(float, translations)}), sorted({0.0, *map(float, rotations)})
    # The middle comes first: the others are compared with it.
    grid = sorted(itertools.product(shifts, shifts, turns), key=any)
    batches = math.ceil(len(pictures) / batch_size)
    steps = steps_for(kept, "worst-case", batches, translations=shifts, rotations=turns, batch_size=batch_size)

    def of_batch(number: int, batch: Batch) -> dict[str, list[float]]:
        canvases = batch.canvases.to(subject.device)
        labels = batch.labels.cpu()
        known = labels >= 0
        middle = torch.zeros_like(labels)
        steady = torch.ones_like(known)
        hits = torch.zeros_like(labels)
        unmoved: list[float] = []

        def answers(some: Tensor, dy: float, dx: float, degrees: float) -> list[int]:
            shown = canvases if len(some) == len(canvases) else canvases[some.to(canvases.device)]
            found: list[int] = top1(subject, moved(shown, crop, dy=dy, dx=dx, degrees=degrees), _WHAT).tolist()
            return found

        for done, point in enumerate(grid, 1):
            # Nothing more can be learnt of a picture without a label that is known to be unsteady.
            undecided = (steady | known).nonzero()[:, 0]
            if len(undecided):
                found = torch.tensor(steps.part(number, repr(point), functools.partial(answers, undecided, *point)))
                if not any(point):
                    middle[undecided] = found
                    unmoved = (found == labels)[known].double().tolist()
                steady[undecided] &= found == middle[undecided]
                hits[undecided] += found == labels[undecided]
            if watch is not None:
                watch("worst case", number * len(grid) + done, batches * len(grid))
        return {
            "steady": steady.double().tolist(),
            "unmoved": unmoved,
            "mean": (hits[known].double() / len(grid)).tolist(),
            "worst": (hits[known] == len(grid)).double().tolist(),
        }

    for number, batch in steps.batches(pictures, batch_size):
        steps.done(number, of_batch(number, batch))
    results = steps.results
    steadiness, unmoved, mean, worst = (
        [value for step in results for value in step[name]] for name in ("steady", "unmoved", "mean", "worst")
    )
    return WorstCase(
        translations=tuple(shifts),
        rotations=tuple(turns),
        steady=Estimate.of(steadiness),
        unmoved=Estimate.of(unmoved) if unmoved else None,
        mean=Estimate.of(mean, yes_or_no=False) if mean else None,
        worst=Estimate.of(worst) if worst else None,
    )
