"""Several metrics on one model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from blurify.errors import BlurifyError, PictureError
from blurify.metrics.aliasing import aliasing
from blurify.metrics.consistency import consistency
from blurify.metrics.equivariance import MOST_SHIFT, UnknownLayerError, equivariance
from blurify.metrics.half_patch import half_patch
from blurify.metrics.kept import Kept
from blurify.metrics.results import Equivariance, Measurement
from blurify.metrics.stability import stability
from blurify.metrics.subject import Pictures, Subject, Watch
from blurify.metrics.worst_case import worst_case
from blurify.surgery.carrying import plan_of

METRICS = ("consistency", "aliasing", "equivariance", "stability", "worst-case", "half-patch")
DEFAULT_METRICS = METRICS[:2]
ALIASING_BATCH = 16  # it keeps what enters every site


def measure(
    subject: Subject,
    pictures: Pictures,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    seed: int = 0,
    batch_size: int = 64,
    circular: bool = False,
    layers: Sequence[str] | None = None,
    most_shift: int = MOST_SHIFT,
    watch: Watch | None = None,
    kept: Kept | None = None,
    told: Callable[[Measurement], object] | None = None,
) -> Measurement:
    """How shift-invariant a model is, by one metric or several.

    Args:
        subject: the model, and how pictures become its input.
        pictures: what to measure on; with the same pictures and seed, two models see exactly the same.
        metrics: some of 'consistency', 'aliasing', 'equivariance', 'stability', 'worst-case' and 'half-patch'; or
            'all', which leaves out those that this model can't be measured by, and says why in `skipped`.
        seed: of all random choices.
        batch_size: pictures a forward.
        circular: 'consistency' and 'half-patch' shift around instead of cropping elsewhere.
        layers: names or globs for 'equivariance', where this model has them; else the choice is its own.
        most_shift: the largest shift that 'equivariance' tries, in pixels.
        watch: told of the progress.
        kept: where results are written down as they come; what is there already is not measured again (see `kept`, and
            `keeping.keep` for one).
        told: after each metric, all that was measured so far.

    Returns:
        The figures of each metric; those not asked for are None.

    Raises:
        BlurifyError: an unknown metric, no pictures, or a model that takes none of that size or gives no classes.

    Example:
        >>> subject = Subject(model, preprocessing_of(model))
        >>> measure(subject, open_folder("photos", subject.preprocessing)).consistency.agreement
    """
    wanted = check_metrics(metrics)
    if len(pictures) < 1:
        raise BlurifyError("there are no pictures to measure on: give at least one")
    if batch_size < 1:
        raise BlurifyError(f"a batch of {batch_size} pictures is none: give at least 1")
    check_seed(seed)
    answer_shape(subject)  # before the work: a model that can't be measured says so at once
    common: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "watch": watch, "kept": kept}
    small = {**common, "batch_size": min(batch_size, ALIASING_BATCH)}
    ways: dict[str, Callable[[], Any]] = {
        "consistency": lambda: consistency(subject, pictures, circular=circular, **common),
        "aliasing": lambda: aliasing(subject, pictures, **small),
        "equivariance": lambda: _equivariance(subject, pictures, layers, {**common, "most_shift": most_shift}),
        "stability": lambda: stability(subject, pictures, **common),
        "worst-case": lambda: worst_case(subject, pictures, **common),
        "half-patch": lambda: half_patch(subject, pictures, circular=circular, **common),
    }
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}

    def so_far() -> Measurement:
        return Measurement(
            model=subject.name,
            data=pictures.name,
            images=len(pictures),
            settings=settings_of(subject, pictures, seed=seed, batch_size=batch_size, circular=circular),
            converted=plan_of(subject.model) is not None,
            skipped=dict(skipped),
            **found,
        )

    for name in wanted:
        try:
            found[name.replace("-", "_")] = ways[name]()
        except BlurifyError as error:
            if name in metrics or isinstance(error, PictureError):
                raise
            skipped[name] = str(error)
            continue
        if told is not None:
            told(so_far())
    if not found:
        raise BlurifyError(f"nothing can be measured: {'; '.join(skipped.values())}")
    return so_far()


def _equivariance(
    subject: Subject, pictures: Pictures, layers: Sequence[str] | None, common: dict[str, Any]
) -> Equivariance:
    if layers is not None:
        with contextlib.suppress(UnknownLayerError):
            return equivariance(subject, pictures, layers=layers, **common)
    return equivariance(subject, pictures, **common)


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics in their usual order, 'all' standing for each. Raises BlurifyError for one that doesn't exist."""
    for name in metrics:
        if name not in (*METRICS, "all"):
            raise BlurifyError(f"there is no metric {name!r}: choose from {', '.join(METRICS)}, or all")
    if not metrics:
        raise BlurifyError(f"no metric is chosen: choose from {', '.join(METRICS)}, or all")
    return tuple(name for name in METRICS if name in metrics or "all" in metrics)


def check_seed(seed: int) -> None:
    """Raise BlurifyError for what is no seed of torch's generators."""
    if not 0 <= seed < 2**63:
        raise BlurifyError(f"the seed {seed} is none: give a whole number from 0 to {2**63 - 1}")


def answer_shape(subject: Subject) -> tuple[int, ...]:
    """What a model gives for one picture: (K,) of a classifier, (K, h', w') of a dense model. Tried on a black one.

    Raises:
        BlurifyError: its output is not classes, or it refuses pictures of this size.
    """
    geometry = subject.preprocessing
    return tuple(subject(torch.zeros(1, geometry.channels, *geometry.crop)).shape[1:])


def settings_of(
    subject: Subject, pictures: Pictures, *, seed: int = 0, batch_size: int = 64, circular: bool = False
) -> dict[str, Any]:
    """What else is needed to measure the same again, in JSON's own types."""
    geometry = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(subject.preprocessing).items()}
    return {
        "seed": seed,
        "batch_size": batch_size,
        "circular": circular,
        **geometry,
        "device": str(subject.device.type),
        "dtype": str(subject.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "pictures": getattr(pictures, "fingerprint", ""),  # sets of the user's own may have none
    }
