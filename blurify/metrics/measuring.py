"""Several metrics on one model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from blurify.errors import BlurifyError, PictureError
from blurify.metrics.agreement import agreement
from blurify.metrics.aliasing import aliasing
from blurify.metrics.by_kind import FIELDS, check_defined, under_shifts
from blurify.metrics.detections import LEAST_SCORE
from blurify.metrics.equivariance import MOST_SHIFT, UnknownLayerError, equivariance
from blurify.metrics.fractional import fractional
from blurify.metrics.half_patch import half_patch
from blurify.metrics.keeping import of_output
from blurify.metrics.kept import Kept, anew_where_damaged
from blurify.metrics.lie_derivative import lie_derivative
from blurify.metrics.results import Measurement
from blurify.metrics.stability import stability
from blurify.metrics.subject import Pictures, Subject, Watch
from blurify.metrics.worst_case import worst_case
from blurify.surgery.carrying import plan_of

METRICS = (
    "consistency", "aliasing", "equivariance", "stability", "worst-case", "half-patch", "fractional", "lie-derivative"
)  # fmt: skip
DEFAULT_METRICS = METRICS[:2]
OF_TWO = "agreement"
"""The metric of a model beside another, which comes without being asked for."""
NOT_SHIFTED = f"{OF_TWO} under shifts"
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
    least_score: float = LEAST_SCORE,
    original: Subject | None = None,
    watch: Watch | None = None,
    kept: Kept | None = None,
    told: Callable[[Measurement], object] | None = None,
) -> Measurement:
    """How shift-invariant a model is, by one metric or several.

    Args:
        subject: the model, and how pictures become its input.
        pictures: what to measure on; with the same pictures and seed, two models see exactly the same.
        metrics: some of 'consistency', 'aliasing', 'equivariance', 'stability', 'worst-case', 'half-patch',
            'fractional' and 'lie-derivative'; or 'all', which leaves out those that this model can't be measured by,
            and says why in `skipped`. 'agreement' alone: nothing but that with the original, of which it gives nothing.
        seed: of all random choices.
        batch_size: pictures a forward.
        circular: 'consistency', 'half-patch' and 'fractional' shift around instead of cropping elsewhere.
        layers: names or globs for 'equivariance' and 'lie-derivative', where this model has them; else the choice is
            its own.
        most_shift: the largest shift that 'equivariance' tries, in pixels.
        least_score: detections of a lower score don't count.
        original: the model that this one is compared with, such as the one that it was converted from: how far it
            answers as that one does comes first, whatever is asked for.
        watch: told of the progress.
        kept: where results are written down as they come; what is there already is not measured again (see `kept`, and
            `keeping.keep` for one).
        told: after each metric, all that was measured so far.

    Returns:
        The figures of each metric; those not asked for are None. What 'consistency' is depends on the model's output
        (`output` says what that was taken for): of embeddings it stands in `embedding`, of maps of real numbers in
        `dense`, of detectors in `detections`.

    Raises:
        BlurifyError: an unknown metric, no pictures, a model that takes none of that size, a metric that is not defined
            for its output, or an output of which it can't be told what it is.

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
    # Before the work: a model that can't be measured says so at once.
    taken = subject.decide(labelled=getattr(pictures, "labelled", False))
    for name in metrics:
        check_defined(name, taken, subject)
    # Nobody asked for it by name, and many a detector runs otherwise for every picture.
    optional = {"aliasing"} if tuple(metrics) == DEFAULT_METRICS and taken.kind == "detections" else set()
    if kept is not None:
        kept = of_output(kept, subject)
    common: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "watch": watch, "kept": kept}
    small = {**common, "batch_size": min(batch_size, ALIASING_BATCH)}
    room = circular or any(
        there > wanted for there, wanted in zip(subject.preprocessing.canvas, subject.preprocessing.crop, strict=True)
    )
    ways: dict[str, Callable[[], Any]] = {
        OF_TWO: lambda: agreement(original or subject, subject, pictures, shifted=room, circular=circular, **common),
        "consistency": lambda: under_shifts(subject, pictures, circular=circular, least_score=least_score, **common),
        "aliasing": lambda: aliasing(subject, pictures, **small),
        "equivariance": lambda: _at_layers(equivariance, subject, pictures, layers, most_shift=most_shift, **common),
        "stability": lambda: stability(subject, pictures, **common),
        "worst-case": lambda: worst_case(subject, pictures, **common),
        "half-patch": lambda: half_patch(subject, pictures, circular=circular, **common),
        "fractional": lambda: fractional(subject, pictures, circular=circular, **common),
        "lie-derivative": lambda: _at_layers(lie_derivative, subject, pictures, layers, **common),
    }
    found: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    if original is not None and not room:
        skipped[NOT_SHIFTED] = "the canvas is no larger than the model's input; give a larger --canvas, or --circular"

    def so_far() -> Measurement:
        return Measurement(
            model=subject.name,
            data=pictures.name,
            images=len(pictures),
            settings=settings_of(subject, pictures, seed=seed, batch_size=batch_size, circular=circular),
            converted=plan_of(subject.model) is not None,
            skipped=dict(skipped),
            output=taken,
            **found,
        )

    for name in wanted if original is None else (OF_TWO, *wanted):
        try:
            check_defined(name, taken, subject)
            field = FIELDS[taken.kind] if name == "consistency" else name.replace("-", "_")
            found[field] = anew_where_damaged(kept, ways[name])
        except BlurifyError as error:
            if (name in metrics and name not in optional) or isinstance(error, PictureError):
                raise
            skipped[name] = str(error)
            continue
        if told is not None:
            told(so_far())
    if wanted and not found:
        raise BlurifyError(f"nothing can be measured: {'; '.join(skipped.values())}")
    return so_far()


def _at_layers(
    metric: Callable[..., Any], subject: Subject, pictures: Pictures, layers: Sequence[str] | None, **common: Any
) -> Any:
    """A metric of layers, at those named where this model has them."""
    if layers is not None:
        with contextlib.suppress(UnknownLayerError):
            return metric(subject, pictures, layers=layers, **common)
    return metric(subject, pictures, **common)


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics of one model in their usual order, 'all' standing for each.

    Raises:
        BlurifyError: one doesn't exist, or none is chosen.
    """
    for name in metrics:
        if name not in (*METRICS, OF_TWO, "all"):
            raise BlurifyError(f"there is no metric {name!r}: choose from {', '.join(METRICS)}, or all")
    if not metrics:
        raise BlurifyError(f"no metric is chosen: choose from {', '.join(METRICS)}, or all")
    return tuple(name for name in METRICS if name in metrics or "all" in metrics)


def check_seed(seed: int) -> None:
    """Raise BlurifyError for what is no seed of torch's generators."""
    if not 0 <= seed < 2**63:
        raise BlurifyError(f"the seed {seed} is none: give a whole number from 0 to {2**63 - 1}")


def settings_of(
    subject: Subject, pictures: Pictures, *, seed: int = 0, batch_size: int = 64, circular: bool = False
) -> dict[str, Any]:
    """What else is needed to measure the same again, in JSON's own types."""
    geometry = {
        name: list(v) if isinstance(v, tuple) else v
        for name, v in asdict(subject.preprocessing).items()
        if v is not None  # of pictures, that they are no signals
    }
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
