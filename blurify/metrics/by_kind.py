"""What is measured of each kind of output: the metric of small shifts, and which metrics are not defined for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blurify.errors import BlurifyError
from blurify.metrics.consistency import consistency
from blurify.metrics.dense import dense_drift
from blurify.metrics.detections import LEAST_SCORE, detection_shifts
from blurify.metrics.embeddings import embedding_drift
from blurify.metrics.results import KIND_WORDS, Consistency, DenseDrift, DetectionShifts, EmbeddingDrift, Output
from blurify.metrics.subject import Pictures, Subject

FIELDS = {
    "classes": "consistency",
    "label-map": "consistency",
    "embedding": "embedding",
    "dense": "dense",
    "detections": "detections",
}
"""Where a measurement has what 'consistency' is of each kind of output."""

_KINDS = {
    "stability": ("classes",),
    "worst-case": ("classes",),
    "half-patch": ("classes", "label-map"),
    "fractional": ("classes", "label-map"),
}  # all others take any
_OF_PICTURES = ("equivariance", "stability", "worst-case", "half-patch", "fractional", "lie-derivative")
_BOXES_BATCH = 8  # detectors see large pictures


def check_defined(metric: str, taken: Output, subject: Subject) -> None:
    """Raise BlurifyError where a metric is not defined for a kind of output, or for signals."""
    kinds = _KINDS.get(metric)
    if kinds is not None and taken.kind not in kinds:
        takes = "classifiers" if kinds == ("classes",) else "classifiers and label maps"
        raise BlurifyError(
            f"{metric} is measured on {takes} only, {subject.name} gives {KIND_WORDS[taken.kind]}: leave {metric} out"
        )
    if metric in _OF_PICTURES and subject.preprocessing.signal is not None:
        raise BlurifyError(f"{metric} is measured on models of pictures only: leave {metric} out for signals")


def under_shifts(
    subject: Subject,
    pictures: Pictures,
    *,
    circular: bool = False,
    least_score: float = LEAST_SCORE,
    **common: Any,
) -> Consistency | EmbeddingDrift | DenseDrift | DetectionShifts:
    """What random crops and a shift by one pixel do to a model's output, by the metric of its kind.

    Args:
        subject: the model.
        pictures: what to measure on.
        circular: shift pictures around instead of cropping elsewhere.
        least_score: of detections that count.
        common: `seed`, `batch_size` and `watch` of every metric.

    Raises:
        BlurifyError: as the metric does; detections are not measured under circular shifts.
    """
    kind = subject.output.kind
    if kind == "detections":
        if circular:
            raise BlurifyError("detections are not measured under circular shifts, which cut boxes: leave them out")
        batch = min(common.pop("batch_size", _BOXES_BATCH), _BOXES_BATCH)
        return detection_shifts(subject, pictures, least_score=least_score, batch_size=batch, **common)
    ways: dict[str, Callable[..., Consistency | EmbeddingDrift | DenseDrift]] = {
        "embedding": embedding_drift,
        "dense": dense_drift,
    }
    return ways.get(kind, consistency)(subject, pictures, circular=circular, **common)
