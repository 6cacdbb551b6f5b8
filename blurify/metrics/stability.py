"""How steady a classifier is when pictures are perturbed a little, or corrupted (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.corruptions import CORRUPTIONS, SEVERITIES
from blurify.metrics.effects import generators
from blurify.metrics.perturbations import PERTURBATIONS, Scene
from blurify.metrics.results import CorruptionResult, Estimate, FlipRate, Stability
from blurify.metrics.subject import Pictures, Subject, Watch, middle, top1

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
    total, done = math.ceil(len(pictures) / batch_size) * a_batch, 0

    def answers(shown: Tensor) -> Tensor:
        nonlocal done
        found = top1(subject, shown, "stability")
        done += 1
        if watch is not None:
            watch("stability", done, total)
        return found

    crop = subject.preprocessing.crop
    flips: dict[str, list[float]] = {name: [] for name in kinds}
    right: dict[tuple[str, int], list[float]] = {(name, severity): [] for name in harms for severity in severities}
    agreed: dict[tuple[str, int], list[float]] = {key: [] for key in right}
    for batch in pictures.batches(batch_size):
        canvases = batch.canvases.to(subject.device)
        labels = batch.labels.cpu()
        clean = middle(canvases, crop)
        before = answers(clean)
        for name in kinds:
            kind = PERTURBATIONS[name]
            scene = Scene(canvases, crop, generators(seed, batch.indices, f"perturbation {name}"))
            seen = torch.stack([answers(frame) for frame in kind.draw(scene, numbers[name])])
            changed = seen[1:] != (seen[:1] if kind.to_first else seen[:-1])
            flips[name] += changed.double().mean(0).tolist()
        for name, severity in right:
            sources = generators(seed, batch.indices, f"corruption {name} {severity}")
            after = answers(CORRUPTIONS[name](clean, severity, sources))
            agreed[name, severity] += (after == before).double().tolist()
            right[name, severity] += (after == labels)[labels >= 0].double().tolist()
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


def _chosen(what: str, names: Iterable[str] | None, known: Iterable[str]) -> tuple[str, ...]:
    """The names, all of them where none are given, checked."""
    known = tuple(known)
    chosen = known if names is None else tuple(dict.fromkeys(names))
    if unknown := [name for name in chosen if name not in known]:
        raise BlurifyError(f"no {what} {unknown[0]!r}: give some of {', '.join(known)}")
    return chosen
