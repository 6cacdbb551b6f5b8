"""Fractional shifts: how steady the answer is when a picture moves by less than a pixel.

A camera does not move by whole pixels. A network may have learnt to follow one-pixel shifts of its training pictures
and still alias in between, and a network that is exact for whole pixels (adaptive polyphase sampling) need not be so
here (Michaeli et al., "Alias-Free Convnets: Fractional Shift Invariance via Polynomial Activations", CVPR 2023).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.consistency import confidence, estimate, same_and_moved
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.resampling import seen_shifted, shifted
from blurify.metrics.results import Fractional
from blurify.metrics.sizes import dimensions
from blurify.metrics.subject import Batch, Pictures, Subject, Watch, middle, no_answer, not_finite

PARTS = 4
"""Of a pixel along each axis: shifts by quarters, 15 of them."""

Shift = tuple[float, float]


def fractional(
    subject: Subject,
    pictures: Pictures,
    *,
    parts: int = PARTS,
    seed: int = 0,
    batch_size: int = 64,
    circular: bool = False,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Fractional:
    """Compare a model's answers for a picture with those for the same picture moved by parts of a pixel.

    The picture is moved by an ideal (Fourier) resampler, see `resampling`: half a pixel and a quarter along y, along x
    and along both, and to every place of a grid of `parts` x `parts` within one pixel. By default the canvas is moved,
    continued as in a mirror, and the middle cut out of it. The resampled picture is not clipped to 0..1.

    Label maps of dense models, brought to the crop's size, are moved back by the same resampler. Unless `circular`,
    what lies beyond their border is not known (it is taken as in a mirror), and an ideal resampler reaches far: an
    eighth of the side is left out at each border.

    Args:
        subject: the model.
        pictures: canvases larger than the model's input, unless `circular`.
        parts: of a pixel; a multiple of 4, so that halves and quarters are among them.
        seed: without effect, there is nothing random here; all metrics take one.
        batch_size: pictures a forward.
        circular: move the centre crop around, with what leaves on one side coming in on the other: then shifts are
            exact for every picture without energy at the Nyquist frequency itself.
        watch: told of each forward.
        kept: where each shift of a batch is written down (see `kept`); a batch that is gone on with is seen once more
            unshifted.

    Raises:
        BlurifyError: `parts` is no multiple of 4, the canvas leaves no margin, or outputs are not finite.
    """
    if parts < 4 or parts % 4:
        raise BlurifyError(
            f"{parts} parts of a pixel: give a multiple of 4, so that halves and quarters are among them"
        )
    geometry = subject.preprocessing
    if not circular and any(there <= wanted for there, wanted in zip(geometry.canvas, geometry.crop, strict=True)):
        raise BlurifyError(
            f"the canvas ({dimensions(geometry.canvas)}) is no larger than the model's input "
            f"({dimensions(geometry.crop)}), so there is no room to shift: give a larger --canvas, or --circular"
        )
    grid = [(y / parts, x / parts) for y in range(parts) for x in range(parts) if y or x]
    halves, quarters = (_corners(by) for by in (0.5, 0.25))
    batches = math.ceil(len(pictures) / batch_size)
    steps = steps_for(kept, "fractional", batches, parts=parts, batch_size=batch_size, circular=circular)

    def of_batch(number: int, batch: Batch) -> dict[str, Any]:
        canvases = batch.canvases.to(subject.device, non_blocking=True)

        def answers(shift: Shift) -> Tensor:
            crop = middle(canvases, geometry.crop)
            # At (0, 0) too, though it changes nothing: the same arithmetic rounds alike.
            seen = shifted(crop, *shift) if circular else seen_shifted(canvases, geometry.crop, *shift)
            logits = subject(seen)
            if bool(no_answer(logits)):
                raise not_finite("the model's output is")
            return logits

        def moved(shift: Shift) -> list[list[float]]:
            found = _compared(here, answers(shift), shift, geometry.crop, circular=circular)
            return [values.tolist() for values in found]

        def tell(done: int) -> None:
            if watch is not None:
                watch("fractional shifts", number * (1 + len(grid)) + done, batches * (1 + len(grid)))

        here = answers((0.0, 0.0))
        tell(1)
        same: dict[Shift, Tensor] = {}
        change: dict[Shift, Tensor] = {}
        for done, shift in enumerate(grid, 2):
            pair = steps.part(number, f"{shift[0]} {shift[1]}", functools.partial(moved, shift))
            same[shift], change[shift] = (torch.tensor(values, dtype=torch.float64) for values in pair)
            tell(done)
        figures = {
            f"{name}{ending}": torch.stack([pairs[shift] for shift in shifts]).mean(0)
            for name, shifts in (("half", halves), ("quarter", quarters))
            for ending, pairs in (("", same), ("_change", change))
        }
        figures["grid"] = torch.stack(list(same.values())).mean(0)
        figures["worst"] = torch.stack(list(same.values())).amin(0)
        figures["worst_change"] = torch.stack(list(change.values())).amax(0)
        figures["sure"] = confidence(here)
        return {"dense": here.ndim == 4, **{name: values.tolist() for name, values in figures.items()}}

    for number, batch in steps.batches(pictures, batch_size):
        steps.done(number, of_batch(number, batch))
    results = steps.results
    dense = results[-1]["dense"]
    values = {name: [value for step in results for value in step[name]] for name in results[-1] if name != "dense"}
    sure = values.pop("sure")
    answered = {"half", "quarter", "grid", "worst"}
    estimates = {name: estimate(found, yes_or_no=name in answered and not dense) for name, found in values.items()}
    return Fractional(
        parts=parts, confidence=estimate(sure, yes_or_no=False), circular=circular, dense=dense, **estimates
    )


def _corners(by: float) -> tuple[Shift, Shift, Shift]:
    """Moved along y, along x and along both."""
    return (by, 0.0), (0.0, by), (by, by)


def _compared(
    here: Tensor, there: Tensor, shift: Shift, crop: tuple[int, int], *, circular: bool
) -> tuple[Tensor, Tensor]:
    """(N,) each: the share of equal top-1, and the change of the probability of the first; label maps moved back."""
    if here.ndim == 2:
        return same_and_moved(here, there)
    if here.shape[2:] != crop:
        here, there = (F.interpolate(logits, crop, mode="bilinear", align_corners=False) for logits in (here, there))
    back = (-shift[0], -shift[1])
    there = shifted(there, *back) if circular else seen_shifted(there, crop, *back)
    if not circular:
        inside = crop[0] - crop[0] // 8 * 2, crop[1] - crop[1] // 8 * 2
        here, there = middle(here, inside), middle(there, inside)
    return same_and_moved(here, there)
