"""Detections under shifts: which boxes stay, how well they lie, and what becomes of their scores and number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from blurify.errors import BlurifyError
from blurify.metrics.boxes import Boxes, matched, within
from blurify.metrics.consistency import amounts, places_of, sights
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.results import DetectionShifts, Estimate
from blurify.metrics.subject import Pictures, Subject, Watch

LEAST_SCORE = 0.5
LEAST_OVERLAP = 0.5
_NAMES = ("matched", "overlap", "score_change", "count_change")
_FIGURES = tuple(f"{where}_{name}" for where in ("pixel", "crops") for name in _NAMES)


def detection_shifts(
    subject: Subject,
    pictures: Pictures,
    *,
    least_score: float = LEAST_SCORE,
    least_overlap: float = LEAST_OVERLAP,
    seed: int = 0,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> DetectionShifts:
    """How steady a detector's boxes are when the picture shifts.

    Each picture is seen as `consistency` shows it, by the same seed: through two random crops, and through the first
    of them moved by one pixel. Boxes are shifted back, cut to the part of the picture that both crops see, and left out
    where less than half of their area lies in it. They are matched as COCO's evaluation matches them: greedily, the
    first crop's boxes by their scores, each with the free box of its own label in the other crop that it overlaps
    most, where their intersection over union is at least `least_overlap` (Lin et al., "Microsoft COCO", ECCV 2014).

    A picture's share matched is 2 m / (n1 + n2), the F1 of one crop's boxes against the other's; pictures without any
    box in both are left out of it, and pictures without a match out of the overlap and the change of scores.

    Args:
        subject: a model whose output is taken for detections.
        pictures: canvases larger than the model's input.
        least_score: boxes of a lower score don't count.
        least_overlap: of two boxes that match.
        seed: of the crops.
        batch_size: pictures a forward.
        watch: told of each batch.
        kept: where each batch is written down (see `kept`).

    Raises:
        BlurifyError: there is no room to shift, or no box in any picture.
    """
    for name, value in (("score", least_score), ("overlap", least_overlap)):
        if not 0 <= value <= 1:
            raise BlurifyError(f"a least {name} of {value:g} is none: give a number from 0 to 1")
    geometry = subject.preprocessing
    places = places_of(len(pictures), geometry, seed, circular=False)
    total = math.ceil(len(pictures) / batch_size)
    steps = steps_for(kept, "detections", total, seed=seed, batch_size=batch_size, least=[least_score, least_overlap])
    for number, batch in steps.batches(pictures, batch_size):
        found: dict[str, list[float]] = {name: [] for name in (*_FIGURES, "counts")}
        first, second, beside = (
            [boxes.some(boxes.scores >= least_score) for boxes in subject.boxes(seen)]
            for seen in sights(subject, batch, places, circular=False)
        )
        found["counts"] += [float(len(boxes)) for boxes in first]
        for where, others, place in (("crops", second, places.second), ("pixel", beside, places.beside)):
            shifts = (place - places.first)[batch.indices].tolist()
            for one, other, shift in zip(first, others, shifts, strict=True):
                for name, value in zip(_NAMES, compared(one, other, shift, geometry.crop, least_overlap), strict=True):
                    found[f"{where}_{name}"].append(value)
        steps.done(number, found)
        if watch is not None:
            watch("detections", number + 1, total)
    values = {name: [value for step in steps.results for value in step[name]] for name in (*_FIGURES, "counts")}
    estimates = {name: _estimate(values[name], bounded="count" not in name) for name in _FIGURES}
    if estimates["pixel_matched"] is None or estimates["crops_matched"] is None:
        raise BlurifyError(
            f"{subject.name} finds no box of a score of {least_score:g} or more in any picture: give a trained model, "
            "pictures of what it knows, or a lower --least-score"
        )
    return DetectionShifts(
        **estimates,  # type: ignore[arg-type]
        boxes=amounts(values["counts"]),
        least_score=least_score,
        least_overlap=least_overlap,
    )


def compared(
    one: Boxes, other: Boxes, shift: Sequence[int], crop: tuple[int, int], least_overlap: float
) -> tuple[float, float, float, float]:
    """How the boxes of two sights of a picture compare: share matched, overlap, change of score, change of number.

    Args:
        one, other: what was found, in pixels of each window.
        shift: (y, x), the other window's corner less the one's.
        crop: (height, width) of the windows.
        least_overlap: of two boxes that match.

    Returns:
        nan for the share where both have no box, and for overlap and change of score where nothing is matched.
    """
    dy, dx = shift
    (height, width) = crop
    back = Boxes(other.corners + other.corners.new_tensor([dx, dy, dx, dy]), other.scores, other.labels)
    window = (max(dx, 0.0), max(dy, 0.0), width + min(dx, 0.0), height + min(dy, 0.0))
    here, there = within(one, window), within(back, window)
    pairs = matched(here, there, least_overlap)
    total = len(here) + len(there)
    share = 2 * len(pairs) / total if total else math.nan
    overlap = math.fsum(found for _, _, found in pairs) / len(pairs) if pairs else math.nan
    apart = [abs(float(here.scores[a] - there.scores[b])) for a, b, _ in pairs]
    return share, overlap, math.fsum(apart) / len(pairs) if pairs else math.nan, float(abs(len(here) - len(there)))


def _estimate(values: Sequence[float], *, bounded: bool) -> Estimate | None:
    """The mean of what is not nan; None where nothing is left."""
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return None
    found = Estimate.of(kept, yes_or_no=False) if bounded else amounts(kept)
    # Where something was left out single values are not kept: another model's would be of other pictures.
    return found if len(kept) == len(values) else dataclasses.replace(found, packed="")
