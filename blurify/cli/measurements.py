"""Measurements as tables: one column a model, and the difference where there are two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blurify.cli import console
from blurify.cli.tables import Column, fits, print_table, say_left_out
from blurify.metrics.differences import differences
from blurify.metrics.sizes import dimensions

if TYPE_CHECKING:
    from blurify.metrics.differences import Difference
    from blurify.metrics.results import (
        Consistency,
        DenseDrift,
        DetectionShifts,
        EmbeddingDrift,
        Estimate,
        HalfPatch,
        Measurement,
        Stability,
        WorstCase,
    )

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
    def of(cls, name: str, estimate: Estimate, remark: str = "", *, share: bool = True) -> Figure:
        """A share that was estimated, or another number."""
        return cls(name, estimate.value, (estimate.low, estimate.high), share=share, remark=remark)

    def text(self, *, interval: bool = True) -> str:
        """'91.32% (89.70..92.61)', or '0.132'."""
        if not self.share:
            shown = _number(self.value)
            if self.interval is not None and interval:
                shown += f" ({_number(self.interval[0])}..{_number(self.interval[1])})"
        elif self.interval is None or not interval:
            shown = f"{self.value:.2%}"
        else:
            shown = f"{self.value:.2%} ({100 * self.interval[0]:.2f}..{100 * self.interval[1]:.2f})"
        return f"{shown} {self.remark}".rstrip()


def _number(value: float, sign: str = "") -> str:
    """'0.1320', or '4.2e-05' of what four digits would round away."""
    return f"{value:{sign}.4f}" if value == 0 or abs(value) >= 5e-4 else f"{value:{sign}.1e}"


Figures = dict[tuple[str, ...], Figure]


def print_measurements(measurements: Sequence[Measurement], *, wide: bool = False) -> None:
    """Print what was measured on one model or two.

    Args:
        wide: all columns, with intervals, however long the lines become.
    """
    first = measurements[0]
    settings = first.settings
    crop, canvas = (dimensions(settings[name]) for name in ("crop", "canvas"))
    what = "pictures"
    if settings.get("signal"):
        what, crop, canvas = "signals", f"{settings['crop'][1]} samples", str(settings["canvas"][1])
    console.say(
        f"{first.images} {what} ({first.data}), {crop} from {canvas}, seed {settings['seed']}; "
        "95% intervals in brackets",
        style="bold",
    )
    taken = {one.model: str(one.output) for one in measurements if one.output is not None}
    for model, text in taken.items() if len(set(taken.values())) > 1 else dict.fromkeys(taken.values(), "").items():
        console.say(f"{model}: {text}" if text else model)
    found = differences(*measurements) if len(measurements) == 2 else {}
    sections: tuple[tuple[str, tuple[Column, ...], Callable[[Measurement], Figures]], ...] = (
        ("", (Column("figure"),), _figures),
        (
            "aliasing: share of energy above the new Nyquist frequency, just before the subsampling",
            (Column("site"), Column("kind", use=2), Column("stride", right=True, use=1)),
            _sites,
        ),
        (_equivariance_title(measurements), (Column("layer"),), _layers),
    )
    tables = [_table(measurements, found, columns, figures_of) for _, columns, figures_of in sections]
    # In a pipe nothing is left out: who reads it there wants the intervals.
    short = console.on_terminal() and not wide and not all(table is None or fits(*table.whole()) for table in tables)
    if short:
        for letter, one in zip(_LETTERS, measurements, strict=False):
            console.say(f"{letter}: {one.model}")
    for (title, _, _), table in zip(sections, tables, strict=True):
        if table is None:
            continue
        if title:
            console.say()
            console.say(title, style="bold")
        say_left_out(print_table(*(table.short() if short else table.whole()), wide=wide or not console.on_terminal()))
    if short:
        console.say("intervals of the single figures: --wide or --json", style="dim")
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


_LETTERS = "AB"


@dataclass(frozen=True)
class _Table:
    """One table of figures: a row a key, a cell a model, and the difference of two.

    Attributes:
        columns: of the keys.
        names: the models.
        keys: what each row is about.
        figures: of each row, one a model where it has one.
        changes: of each row, the difference; empty for a single model.
    """

    columns: tuple[Column, ...]
    names: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    figures: tuple[tuple[Figure | None, ...], ...]
    changes: tuple[str, ...]

    def whole(self) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
        """With intervals, under the models' names."""
        return self._laid_out(self.names, interval=True)

    def short(self) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
        """Without the intervals of single figures, under letters."""
        return self._laid_out(tuple(_LETTERS[: len(self.names)]), interval=False)

    def _laid_out(self, names: Sequence[str], *, interval: bool) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
        columns = (
            *self.columns,
            *(Column(name) for name in names),
            *[Column("difference", right=True)] * bool(self.changes),
        )
        rows = []
        for index, key in enumerate(self.keys):
            cells = (figure.text(interval=interval) if figure else "" for figure in self.figures[index])
            rows.append((*key, *cells, *self.changes[index : index + 1]))
        return columns, rows


def _table(
    measurements: Sequence[Measurement],
    found: Mapping[str, Difference],
    columns: tuple[Column, ...],
    figures_of: Callable[[Measurement], Figures],
) -> _Table | None:
    """One table, if there is anything in it."""
    parts = [figures_of(measurement) for measurement in measurements]
    keys = tuple(dict.fromkeys(key for figures in parts for key in figures))
    if not keys:
        return None
    figures = tuple(tuple(part.get(key) for part in parts) for key in keys)
    changes = tuple(_difference(row[0], row[1], found) for row in figures) if len(parts) == 2 else ()
    return _Table(columns, tuple(one.model for one in measurements), keys, figures, changes)


def _difference(one: Figure | None, other: Figure | None, found: Mapping[str, Difference]) -> str:
    """'+2.10 points (1.31..2.90) *', the star where it is beyond chance."""
    if one is None or other is None:
        return ""
    if not one.share and one.remark != other.remark:  # a layer of another stride has other features
        return ""
    difference = found.get(one.name)
    change = other.value - one.value if difference is None else difference.value
    text = f"{100 * change:+.2f} points" if one.share else _number(change, "+")
    if difference is None:
        return text
    low, high = difference.low, difference.high
    ends = f"{100 * low:+.2f}..{100 * high:+.2f}" if one.share else f"{_number(low, '+')}..{_number(high, '+')}"
    return f"{text} ({ends}){_CLEAR * difference.clear}"


def _figures(measurement: Measurement) -> Figures:
    pairs: list[tuple[str, Figure]] = []
    if measurement.consistency is not None:
        pairs += _of_consistency(measurement.consistency)
    if measurement.embedding is not None:
        pairs += _of_embedding(measurement.embedding)
    if measurement.dense is not None:
        pairs += _of_dense(measurement.dense)
    if measurement.detections is not None:
        pairs += _of_detections(measurement.detections)
    if measurement.stability is not None:
        pairs += _of_stability(measurement.stability)
    if measurement.worst_case is not None:
        pairs += _of_worst_case(measurement.worst_case)
    if measurement.half_patch is not None:
        pairs += _of_half_patch(measurement.half_patch)
    words = _OF_SIGNALS if measurement.settings.get("signal") else {}
    return {(_in_words(name, words),): figure for name, figure in pairs}


_OF_SIGNALS = {"one pixel": "one sample", "random crops": "random windows", "picture": "signal"}


def _in_words(name: str, words: Mapping[str, str]) -> str:
    for one, other in words.items():
        name = name.replace(one, other)
    return name


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


def _of_embedding(found: EmbeddingDrift) -> Iterator[tuple[str, Figure]]:
    where = "two circular shifts" if found.circular else "two random crops"
    for what, name, share in (
        (f"embedding: cosine drift between {where}", "crops", False),
        ("embedding: cosine drift, shift by one pixel", "pixel", False),
        ("embedding: cosine distance to the other pictures", "apart", False),
        (f"embedding: own picture is nearest, {where}", "crops_nearest", True),
        ("embedding: own picture is nearest, shift by one pixel", "pixel_nearest", True),
    ):
        estimate = getattr(found, name)
        if estimate is not None:
            yield what, Figure.of(f"embedding.{name}", estimate, share=share)


def _of_dense(found: DenseDrift) -> Iterator[tuple[str, Figure]]:
    where = "two circular shifts" if found.circular else "two random crops"
    yield f"map: relative error between {where}", Figure.of("dense.crops", found.crops, share=False)
    yield "map: relative error, shift by one pixel", Figure.of("dense.pixel", found.pixel, share=False)


def _of_detections(found: DetectionShifts) -> Iterator[tuple[str, Figure]]:
    yield f"boxes of a score of {found.least_score:g} or more", Figure.of("detections.boxes", found.boxes, share=False)
    for where, prefix in (("two random crops", "crops"), ("shift by one pixel", "pixel")):
        for what, name, share in (
            ("boxes matched", "matched", True),
            ("overlap of matched boxes (IoU)", "overlap", True),
            ("change of their scores", "score_change", True),
            ("change of the number of boxes", "count_change", False),
        ):
            estimate = getattr(found, f"{prefix}_{name}")
            if estimate is not None:
                yield f"{where}: {what}", Figure.of(f"detections.{prefix}_{name}", estimate, share=share)


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
