"""Measurements as tables: one column a model, and the difference where there are two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blurify.cli import console

if TYPE_CHECKING:
    from blurify.metrics.results import Consistency, Estimate, Measurement, Stability, WorstCase

_APART = " *"  # marks a difference whose intervals do not overlap


@dataclass(frozen=True)
class Figure:
    """One figure of one model.

    Attributes:
        value: a share in 0..1, or any number where not `share`.
        interval: its 95% interval, where it has one.
        remark: a word to go with it.
    """

    value: float
    interval: tuple[float, float] | None = None
    share: bool = True
    remark: str = ""

    @classmethod
    def of(cls, estimate: Estimate, remark: str = "") -> Figure:
        """A share that was estimated."""
        return cls(estimate.value, (estimate.low, estimate.high), remark=remark)

    def text(self) -> str:
        """'91.32% (89.70..92.61)', or '0.132'."""
        if not self.share:
            shown = f"{self.value:.4f}"
        elif self.interval is None:
            shown = f"{self.value:.2%}"
        else:
            shown = f"{self.value:.2%} ({100 * self.interval[0]:.2f}..{100 * self.interval[1]:.2f})"
        return f"{shown} {self.remark}".rstrip()


Figures = dict[tuple[str, ...], Figure]


def print_measurements(measurements: Sequence[Measurement]) -> None:
    """Print what was measured on one model or two."""
    first = measurements[0]
    settings = first.settings
    console.say(
        f"{first.images} pictures ({first.data}), {_by(settings['crop'])} from {_by(settings['canvas'])}, "
        f"seed {settings['seed']}; 95% intervals in brackets",
        style="bold",
    )
    marked = [
        _print_section(measurements, "", ("figure",), _figures),
        _print_section(
            measurements,
            "aliasing: share of energy above the new Nyquist frequency, just before the subsampling",
            ("site", "kind", "stride"),
            _sites,
        ),
        _print_section(
            measurements,
            _equivariance_title(measurements),
            ("layer",),
            _layers,
        ),
    ]
    for one in measurements:
        if one.aliasing is not None and not one.aliasing.sites:
            console.say(f"aliasing: {one.model} has no sites, it never subsamples with a stride")
    if any(marked):
        console.say(f"{_APART.strip()} the two intervals do not overlap")


def _equivariance_title(measurements: Sequence[Measurement]) -> str:
    found = next((one.equivariance for one in measurements if one.equivariance is not None), None)
    if found is None:
        return ""
    return (
        f"equivariance: mean distance over shifts up to the layer's stride (beside it), at most {found.largest_shift} "
        f"pixels; {found.images} pictures"
    )


def _print_section(
    measurements: Sequence[Measurement],
    title: str,
    columns: tuple[str, ...],
    figures_of: Callable[[Measurement], Figures],
) -> bool:
    """Print one table, if there is anything in it; whether a difference was marked."""
    found = [figures_of(measurement) for measurement in measurements]
    keys = list(dict.fromkeys(key for figures in found for key in figures))
    if not keys:
        return False
    names = [measurement.model for measurement in measurements]
    rows = []
    for key in keys:
        figures = [part.get(key) for part in found]
        cells = [figure.text() if figure else "" for figure in figures]
        if len(figures) == 2:
            cells.append(_difference(figures[0], figures[1]))
        rows.append((*key, *cells))
    if title:
        console.say()
        console.say(title, style="bold")
    difference = ("difference",) if len(names) == 2 else ()
    console.print_table((*columns, *names, *difference), rows, right=("stride", *difference))
    return any(row[-1].endswith(_APART) for row in rows)


def _difference(one: Figure | None, other: Figure | None) -> str:
    """'+2.10 points', marked where the intervals don't overlap."""
    if one is None or other is None:
        return ""
    if not one.share and one.remark != other.remark:  # a layer of another stride has other features
        return ""
    change = other.value - one.value
    text = f"{100 * change:+.2f} points" if one.share else f"{change:+.4f}"
    if one.interval and other.interval:
        apart = one.interval[1] < other.interval[0] or other.interval[1] < one.interval[0]
        return text + _APART * apart
    return text


def _figures(measurement: Measurement) -> Figures:
    pairs: list[tuple[str, Figure]] = []
    if measurement.consistency is not None:
        pairs += _of_consistency(measurement.consistency)
    if measurement.stability is not None:
        pairs += _of_stability(measurement.stability)
    if measurement.worst_case is not None:
        pairs += _of_worst_case(measurement.worst_case)
    return {(name,): figure for name, figure in pairs}


def _of_consistency(found: Consistency) -> Iterator[tuple[str, Figure]]:
    if found.accuracy is not None:
        yield "accuracy, centre crop", Figure.of(found.accuracy)
    where = "two circular shifts" if found.circular else "two random crops"
    what = "same labels" if found.dense else "same answer"
    yield f"consistency: {what} in {where}", Figure.of(found.agreement)
    yield f"shift by one pixel: other {'labels' if found.dense else 'answer'}", Figure.of(found.pixel_flips)
    yield "shift by one pixel: change of the top probability", Figure.of(found.pixel_change)


def _of_stability(found: Stability) -> Iterator[tuple[str, Figure]]:
    for flips in found.flip_rates:
        yield f"flip rate: {flips.perturbation}", Figure.of(flips.rate)
    for corruption in found.corruptions:
        for what, estimates in (("accuracy", corruption.accuracy), ("same answer", corruption.agreement)):
            if estimates:
                mean = sum(estimate.value for estimate in estimates) / len(estimates)
                yield f"{what} under {corruption.corruption}, mean of {len(estimates)} severities", Figure(mean)


def _of_worst_case(found: WorstCase) -> Iterator[tuple[str, Figure]]:
    points = len(found.translations) ** 2 * len(found.rotations)
    for what, estimate in (
        ("accuracy, unmoved", found.unmoved),
        (f"accuracy, mean of {points} translations and rotations", found.mean),
        (f"accuracy, worst of {points} translations and rotations", found.worst),
        (f"same answer at all {points} translations and rotations", found.steady),
    ):
        if estimate is not None:
            yield what, Figure.of(estimate)


def _sites(measurement: Measurement) -> Figures:
    sites = measurement.aliasing.sites if measurement.aliasing is not None else ()
    return {
        (site.site, site.kind, _by(site.stride)): Figure.of(site.share, "blurred" if site.blurred else "")
        for site in sites
    }


def _layers(measurement: Measurement) -> Figures:
    layers = measurement.equivariance.layers if measurement.equivariance is not None else ()
    # The stride may differ between two models: it is no part of the key.
    return {(layer.name,): Figure(layer.mean, share=False, remark=_by(layer.stride)) for layer in layers}


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
