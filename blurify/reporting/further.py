"""Figures that have no section of their own: a table a metric, so that a new metric shows without a change here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blurify.metrics.differences import Difference
from blurify.metrics.differences import figures as figures_of
from blurify.metrics.results import Estimate
from blurify.reporting.content import Report

_SHOWN = {"consistency", "worst_case", "stability", "aliasing", "equivariance", "agreement"}
LAYERS = "Local equivariance error, by layer"
"""The title of the table whose rows are named by layers, not by us."""
_TITLES = {
    "half_patch": "Shifts by parts of a patch",
    "fractional": "Shifts by parts of a pixel",
    "lie_derivative": LAYERS,
    "embedding": "Embeddings under shifts",
    "dense": "Maps of numbers under shifts",
    "detections": "Detections under shifts",
}
_LABELS = {
    "embedding.crops": "Cosine drift, two crops",
    "embedding.pixel": "Cosine drift, one pixel",
    "embedding.crops_nearest": "Own picture is nearest, two crops",
    "embedding.pixel_nearest": "Own picture is nearest, one pixel",
    "embedding.apart": "Cosine distance to the other pictures",
    "dense.crops": "Relative error, two crops",
    "dense.pixel": "Relative error, one pixel",
    "detections.boxes": "Boxes, number",
    "detections.crops_matched": "Boxes matched, two crops",
    "detections.crops_overlap": "Overlap of matched boxes, two crops",
    "detections.crops_score_change": "Change of scores, two crops",
    "detections.crops_count_change": "Change of their number, two crops",
    "detections.pixel_matched": "Boxes matched, one pixel",
    "detections.pixel_overlap": "Overlap of matched boxes, one pixel",
    "detections.pixel_score_change": "Change of scores, one pixel",
    "detections.pixel_count_change": "Change of their number, one pixel",
}
_STEADY = ("half", "quarter", "grid", "whole", "worst")
_HIGHER = ("nearest", "matched", "overlap")


@dataclass(frozen=True)
class Further:
    """One figure.

    Attributes:
        label: what it is.
        estimates: one entry a measurement; None where it was not measured.
        differences: of the others and the first.
        better: 'higher' | 'lower', which way is good; '' where neither is.
        share: it is a share, to be shown in percent; else a number.
    """

    label: str
    estimates: tuple[Estimate | None, ...]
    differences: tuple[Difference | None, ...]
    better: str
    share: bool


def further(report: Report) -> list[tuple[str, list[Further]]]:
    """The figures of a report that no section shows, by metric: its title, and its figures in their order."""
    held = [figures_of(measured) for measured in report.measurements]
    found: dict[str, list[Further]] = {}
    for figure in dict.fromkeys(name for part in held for name in part):
        part, _, name = figure.partition(".")
        if part not in _SHOWN:
            estimates = tuple(known.get(figure) for known in held)
            row = Further(
                name if part == "lie_derivative" else _LABELS.get(figure, _words(name)),
                estimates,
                report.changes(figure),
                _better(part, name),
                _share(part, name),
            )
            found.setdefault(part, []).append(row)
    return [(_TITLES.get(part, _words(part)), rows) for part, rows in found.items()]


def _better(part: str, name: str) -> str:
    if part == "lie_derivative" or name.endswith("_change") or (part in ("embedding", "dense") and name in _MOVES):
        return "lower"
    return "higher" if name in _STEADY or _ends(name, _HIGHER) else ""


_MOVES = ("crops", "pixel")


def _share(part: str, name: str) -> bool:
    return part in ("half_patch", "fractional") or _ends(name, (*_HIGHER, "score_change"))


def _ends(name: str, endings: Sequence[str]) -> bool:
    return any(name.endswith(f"_{ending}") for ending in endings)


def _words(name: str) -> str:
    """'half_change' -> 'Half change'."""
    return name.replace("_", " ").replace("-", " ").capitalize()
