"""Measurements as tables: one column a model, and the difference where there are two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blurify.cli import console
from blurify.metrics.differences import differences
from blurify.metrics.sizes import dimensions

if TYPE_CHECKING:
    from blurify.metrics.differences import Difference
    from blurify.metrics.results import Consistency, Estimate, HalfPatch, Measurement, Stability, WorstCase

_CLEAR = " *"  # marks a difference that is beyond chance
_MEANINGS = {
    True: "the 95% interval of the difference, picture by picture, leaves out 0; where every picture has an answer of "
    "yes or no, McNemar's exact test says so too (p < 0.05)",
    False: "the two intervals do not overlap (unpaired: not of the same pictures, or single ones are not known)",
}


@dataclass(frozen=True)
class Figure:
    """One figure of one model.

    Attributes:
        name: by which `differences` has it.
        value: a share in 0..1, or any number where not `share`.
        interval: its 95% interval, where it has one.
        remark: a word to go with it.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    share: bool = True
    remark: str = ""

    @classmethod
    def of(cls, name: str, estimate: Estimate, remark: str = "") -> Figure:
        """A share that was estimated."""
        return cls(name, estimate.value, (estimate.low, estimate.high), remark=remark)

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
    crop, canvas = (dimensions(settings[name]) for name in ("crop", "canvas"))
    console.say(
        f"{first.images} pictures ({first.data}), {crop} from {canvas}, seed {settings['seed']}; "
        "95% intervals in brackets",
        style="bold",
    )
    found = differences(*measurements) if len(measurements) == 2 else {}
    _print_section(measurements, found, "", ("figure",), _figures)
    _print_section(
        measurements,
        found,
        "aliasing: share of energy above the new Nyquist frequency, just before the subsampling",
        ("site", "kind", "stride"),
        _sites,
    )
    _print_section(measurements, found, _equivariance_title(measurements), ("layer",), _layers)
    for one in measurements:
        if one.aliasing is not None and not one.aliasing.sites:
            console.say(f"aliasing: {one.model} has no sites, it never subsamples with a stride")
    for paired, meaning in _MEANINGS.items():
        if any(difference.clear and difference.paired == paired for difference in found.values()):
            console.say(f"{_CLEAR.strip()} {meaning}")


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
    found: Mapping[str, Difference],
    title: str,
    columns: tuple[str, ...],
    figures_of: Callable[[Measurement], Figures],
) -> None:
    """Print one table, if there is anything in it."""
    parts = [figures_of(measurement) for measurement in measurements]
    keys = list(dict.fromkeys(key for figures in parts for key in figures))
    if not keys:
        return
    names = [measurement.model for measurement in measurements]
    rows = []
    for key in keys:
        figures = [part.get(key) for part in parts]
        cells = [figure.text() if figure else "" for figure in figures]
        if len(figures) == 2:
            cells.append(_difference(figures[0], figures[1], found))
        rows.append((*key, *cells))
    if title:
        console.say()
        console.say(title, style="bold")
    difference = ("difference",) if len(names) == 2 else ()
    console.print_table((*columns, *names, *difference), rows, right=("stride", *difference))


def _difference(one: Figure | None, other: Figure | None, found: Mapping[str, Difference]) -> str:
    """'+2.10 points (1.31..2.90) *', the star where it is beyond chance."""
    if one is None or other is None:
        return ""
    if not one.share and one.remark != other.remark:  # a layer of another stride has other features
        return ""
    difference = found.get(one.name)
    change = other.value - one.value if difference is None else difference.value
    text = f"{100 * change:+.2f} points" if one.share else f"{change:+.4f}"
    if difference is None:
        return text
    low, high = difference.low, difference.high
    ends = f"{100 * low:+.2f}..{100 * high:+.2f}" if one.share else f"{low:+.4f}..{high:+.4f}"
    return f"{text} ({ends}){_CLEAR * difference.clear}"


def _figures(measurement: Measurement) -> Figures:
    pairs: list[tuple[str, Figure]] = []
    if measurement.consistency is not None:
        pairs += _of_consistency(measurement.consistency)
    if measurement.stability is not None:
        pairs += _of_stability(measurement.stability)
    if measurement.worst_case is not None:
        pairs += _of_worst_case(measurement.worst_case)
    if measurement.half_patch is not None:
        pairs += _of_half_patch(measurement.half_patch)
    return {(name,): figure for name, figure in pairs}


def _of_consistency(found: Consistency) -> Iterator[tuple[str, Figure]]:
    if found.accuracy is not None:
        yield "accuracy, centre crop", Figure.of("consistency.accuracy", found.accuracy)
    where = "two circular shifts" if found.circular else "two random crops"
    what = "same labels" if found.dense else "same answer"
    yield f"consistency: {what} in {where}", Figure.of("consistency.agreement", found.agreement)
    yield (
        f"shift by one pixel: other {'labels' if found.dense else 'answer'}",
        Figure.of("consistency.pixel_flips", found.pixel_flips),
    )
    yield "shift by one pixel: change of the top probability", Figure.of("consistency.pixel_change", found.pixel_change)


def _of_stability(found: Stability) -> Iterator[tuple[str, Figure]]:
    for flips in found.flip_rates:
        yield f"flip rate: {flips.perturbation}", Figure.of(f"stability.flip_rate.{flips.perturbation}", flips.rate)
    for corruption in found.corruptions:
        for what, name, estimates in (
            ("accuracy", "accuracy", corruption.accuracy),
            ("same answer", "agreement", corruption.agreement),
        ):
            if estimates:
                mean = sum(estimate.value for estimate in estimates) / len(estimates)
                figure = Figure(f"stability.{name}.{corruption.corruption}", mean)
                yield f"{what} under {corruption.corruption}, mean of {len(estimates)} severities", figure


def _of_worst_case(found: WorstCase) -> Iterator[tuple[str, Figure]]:
    points = len(found.translations) ** 2 * len(found.rotations)
    for what, name, estimate in (
        ("accuracy, unmoved", "unmoved", found.unmoved),
        (f"accuracy, mean of {points} translations and rotations", "mean", found.mean),
        (f"accuracy, worst of {points} translations and rotations", "worst", found.worst),
        (f"same answer at all {points} translations and rotations", "steady", found.steady),
    ):
        if estimate is not None:
            yield what, Figure.of(f"worst_case.{name}", estimate)


def _of_half_patch(found: HalfPatch) -> Iterator[tuple[str, Figure]]:
    patch = dimensions(found.patch)
    for what, name, estimate in (
        (f"shift by half a patch of {patch}: same answer", "half", found.half),
        (f"shift by half a patch of {patch}: change of the top probability", "half_change", found.half_change),
        (f"shift by quarters of a patch of {patch}: same answer", "grid", found.grid),
        (f"shift by a whole patch of {patch}: same answer", "whole", found.whole),
    ):
        yield what, Figure.of(f"half_patch.{name}", estimate)


def _sites(measurement: Measurement) -> Figures:
    sites = measurement.aliasing.sites if measurement.aliasing is not None else ()
    return {
        (site.site, site.kind, dimensions(site.stride)): Figure.of(
            f"aliasing.{site.site}", site.share, "blurred" if site.blurred else ""
        )
        for site in sites
    }


def _layers(measurement: Measurement) -> Figures:
    layers = measurement.equivariance.layers if measurement.equivariance is not None else ()
    # The stride may differ between two models: it is no part of the key.
    return {
        (layer.name,): Figure(f"equivariance.{layer.name}", layer.mean, share=False, remark=dimensions(layer.stride))
        for layer in layers
    }
