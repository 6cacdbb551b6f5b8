"""How steady a classifier is when pictures are perturbed a little, or corrupted (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.corruptions import CORRUPTIONS, SEVERITIES
from blurify.metrics.effects import generators
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.perturbations import PERTURBATIONS, Scene
from blurify.metrics.results import CorruptionResult, Estimate, FlipRate, Stability
from blurify.metrics.subject import Batch, Pictures, Subject, Watch, middle, top1

FRAMES = 9


def stability(
    subject: Subject,
    pictures: Pictures,
    *,
    perturbations: Iterable[str] | None = None,
    corruptions: Iterable[str] | None = None,
    frames: int = FRAMES,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Stability:
    """Flip rates under perturbation sequences, and accuracy and agreement under corruptions.

    The flip rate is the flip probability of Hendrycks and Dietterich 2019, section 4.2: the share of comparisons in
    which the top-1 changes, where each frame is compared with the one before it, or, for the two kinds of noise, with
    the unperturbed first one; averaged over a picture's frames, then over pictures.

    With all defaults a picture is run 132 times. The published sequences have 31 frames ('translate' 41); as many are
    run with `frames=41`. The default runs the 9 around the unperturbed picture, at the published step from frame to
    frame: rates are then shares of the same kind of comparison, but of the milder part of the sequence.

    Args:
        subject: a classifier.
        pictures: what to measure on. Perturbations that move pixels take what comes in at the borders from the canvas,
            as far as it is larger than the crop; the rest is black.
        perturbations: names, see `PERTURBATIONS`; None: all.
        corruptions: names, see `CORRUPTIONS`; None: all. They work on the centre crop.
        frames: of a sequence, at least 2.
        severities: 1 (mild) to 5.
        seed: of the noise. It depends on this and the picture's index alone.
        batch_size: pictures in one forward.
        watch: told about progress; one batch is one forward.
        kept: where the answers of each forward are written down (see `kept`).

    Raises:
        BlurifyError: an unknown name or severity, fewer than 2 frames, or the model is no classifier.
    """
    kinds = _chosen("perturbation", perturbations, PERTURBATIONS)
    harms = _chosen("corruption", corruptions, CORRUPTIONS)
    if frames < 2:
        raise BlurifyError(f"{frames} frames: give at least 2, for there must be something to compare")
    if wrong := [severity for severity in severities if severity not in SEVERITIES]:
        raise BlurifyError(f"severity {wrong[0]!r}: give severities of {SEVERITIES[0]} to {SEVERITIES[-1]}")
    numbers = {name: PERTURBATIONS[name].numbers(frames) for name in kinds}
    a_batch = 1 + sum(map(len, numbers.values())) + len(harms) * len(severities)
    batches = math.ceil(len(pictures) / batch_size)
    crop = subject.preprocessing.crop
    keys = [(name, severity) for name in harms for severity in severities]
    steps = steps_for(
        kept, "stability", batches, perturbations={name: list(numbers[name]) for name in kinds}, corruptions=keys,
        seed=seed, batch_size=batch_size,
    )  # fmt: skip

    def of_batch(number: int, batch: Batch) -> dict[str, Any]:
        canvases = batch.canvases.to(subject.device)
        labels = batch.labels.cpu()
        clean = middle(canvases, crop)
        done = number * a_batch

        def answers(what: str, draw: Callable[..., Tensor], *given: Any) -> Tensor:
            nonlocal done
            found = steps.part(number, what, lambda: top1(subject, draw(*given), "stability").tolist())
            done += 1
            if watch is not None:
                watch("stability", done, batches * a_batch)
            return torch.tensor(found)

        before = answers("clean", middle, canvases, crop)
        flips: dict[str, list[float]] = {}
        for name in kinds:
            kind = PERTURBATIONS[name]
            scene = Scene(canvases, crop, generators(seed, batch.indices, f"perturbation {name}"))
            drawn = zip(numbers[name], kind.draw(scene, numbers[name]), strict=True)
            seen = torch.stack([answers(f"{name} {at}", _as_it_is, frame) for at, frame in drawn])
            changed = seen[1:] != (seen[:1] if kind.to_first else seen[:-1])
            flips[name] = changed.double().mean(0).tolist()
        right, agreed = [], []
        for name, severity in keys:
            sources = generators(seed, batch.indices, f"corruption {name} {severity}")
            after = answers(f"{name} severity {severity}", CORRUPTIONS[name], clean, severity, sources)
            agreed.append((after == before).double().tolist())
            right.append((after == labels)[labels >= 0].double().tolist())
        return {"flips": flips, "right": right, "agreed": agreed}

    for number, batch in steps.batches(pictures, batch_size):
        steps.done(number, of_batch(number, batch))
    found = steps.results
    flips = {name: [value for step in found for value in step["flips"][name]] for name in kinds}
    right, agreed = (
        {key: [value for step in found for value in step[what][place]] for place, key in enumerate(keys)}
        for what in ("right", "agreed")
    )
    return Stability(
        flip_rates=tuple(FlipRate(name, len(numbers[name]), Estimate.of(flips[name])) for name in kinds),
        corruptions=tuple(
            CorruptionResult(
                name,
                accuracy=tuple(Estimate.of(right[name, severity]) for severity in severities if right[name, severity]),
                agreement=tuple(Estimate.of(agreed[name, severity]) for severity in severities),
            )
            for name in harms
        ),
    )


def _as_it_is(frame: Tensor) -> Tensor:
    return frame


def _chosen(what: str, names: Iterable[str] | None, known: Iterable[str]) -> tuple[str, ...]:
    """The names, all of them where none are given, checked."""
    known = tuple(known)
    chosen = known if names is None else tuple(dict.fromkeys(names))
    if unknown := [name for name in chosen if name not in known]:
        raise BlurifyError(f"no {what} {unknown[0]!r}: give some of {', '.join(known)}")
    return chosen
