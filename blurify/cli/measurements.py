"""Measurements as tables: one column a model, and the difference where there are two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blurify.cli import console
from blurify.cli.tables import Column, fits, print_table, say_left_out
from blurify.metrics import caveats
from blurify.metrics.differences import differences
from blurify.metrics.sizes import dimensions

if TYPE_CHECKING:
    from blurify.metrics.differences import Difference
    from blurify.metrics.results import (
        Agreement,
        Consistency,
        DenseDrift,
        DetectionShifts,
        EmbeddingDrift,
        Estimate,
        Fractional,
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
        """What was estimated: a share, or any number."""
        return cls(name, estimate.value, (estimate.low, estimate.high), share, remark)

    def text(self, *, interval: bool = True) -> str:
        """'91.32% (89.70..92.61)', or '0.1320 (0.1201..0.1439)'."""
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
    """Print what was measured on one to three models: first how far the others answer as the first does.

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
    found = [differences(first, other) for other in measurements[1:]]
    strides = _strides(measurements)
    agreed = next((one.agreement for one in measurements if one.agreement is not None), None)
    sections: tuple[tuple[str, tuple[Column, ...], Callable[[Measurement], Figures]], ...] = (
        (_agreement_title(first, agreed), (Column("agreement"),), lambda one: _agreement(one, agreed)),
        ("steadiness" if agreed else "", (Column("figure"),), _figures),
        (
            "aliasing: share of energy above the new Nyquist frequency, just before the subsampling",
            (Column("site"), Column("kind", use=2), Column("stride", right=True, use=1)),
            lambda one: _sites(one, strides),
        ),
        (_equivariance_title(measurements), (Column("layer"),), _layers),
        (_lie_title(measurements), (Column("layer"),), _lie_layers),
    )
    tables = [_table(measurements, found, columns, figures_of) for _, columns, figures_of in sections]
    # In a pipe nothing is left out: who reads it there wants the intervals.
    short = console.on_terminal() and not wide and not all(table is None or fits(*table.whole()) for table in tables)
    if short or len(measurements) > 2:
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
    for one in measurements:
        if one.consistency is not None and one.consistency.always_the_same:
            what = "position the same label" if one.consistency.dense else "picture the same answer"
            text = f"{one.model} gives every {_in_words(what, _words_of(one))}: that it stays says nothing of shifts"
            console.say(text, style="yellow")
    told = [difference for of_one in found for difference in of_one.values()]
    for caveat, why in caveats.MEANINGS.items():
        if any(difference.caveat == caveat and difference.beyond_chance for difference in told):
            console.say(f"{caveat}: {why}")
    for paired, meaning in _MEANINGS.items():
        if any(difference.clear and difference.paired == paired for difference in told):
            console.say(f"{_CLEAR.strip()} {_in_words(meaning, _words_of(first))}")


def _agreement_title(first: Measurement, found: Agreement | None) -> str:
    return f"agreement with {found.original or first.model}" if found is not None else ""


def _equivariance_title(measurements: Sequence[Measurement]) -> str:
    found = next((one.equivariance for one in measurements if one.equivariance is not None), None)
    if found is None:
        return ""
    return (
        f"equivariance: mean distance over shifts up to the layer's stride (beside it), at most {found.largest_shift} "
        f"pixels; {found.images} pictures"
    )


def _lie_title(measurements: Sequence[Measurement]) -> str:
    found = next((one.lie_derivative for one in measurements if one.lie_derivative is not None), None)
    if found is None:
        return ""
    return (
        "Lie derivative: what share of the layer's map is lost for each pixel of shift, as the shift goes to 0; "
        f"{found.images} pictures"
    )


_LETTERS = "ABC"


@dataclass(frozen=True)
class _Table:
    """One table of figures: a row a key, a cell a model, and the differences of the others and the first.

    Attributes:
        columns: of the keys.
        names: the models.
        keys: what each row is about.
        figures: of each row, one a model where it has one.
        changes: of each row, the difference of each of the others, with its interval and without.
    """

    columns: tuple[Column, ...]
    names: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    figures: tuple[tuple[Figure | None, ...], ...]
    changes: tuple[tuple[tuple[str, str], ...], ...]

    def whole(self) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
        """With intervals, under the models' names."""
        return self._laid_out(self.names, interval=True)

    def short(self) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
        """Without the intervals of single figures, under letters."""
        return self._laid_out(tuple(_LETTERS[: len(self.names)]), interval=False)

    def _laid_out(self, names: Sequence[str], *, interval: bool) -> tuple[tuple[Column, ...], list[tuple[str, ...]]]:
        others = len(names) - 1
        headings = ["difference"] if others == 1 else [f"{letter} - A" for letter in _LETTERS[1 : others + 1]]
        columns = (
            *self.columns,
            *(Column(name) for name in names),
            *(Column(heading, right=True) for heading in headings),
        )
        brief = not interval and others > 1
        rows = []
        for index, key in enumerate(self.keys):
            shown = self.figures[index]
            # What the first lacks, or no other has, has no difference whose interval could stand for its own.
            alone = others == 1 and (shown[0] is None or not any(shown[1:]))
            cells = (figure.text(interval=interval or alone) if figure else "" for figure in shown)
            rows.append((*key, *cells, *(change[brief] for change in self.changes[index])))
        return columns, rows


def _table(
    measurements: Sequence[Measurement],
    found: Sequence[Mapping[str, Difference]],
    columns: tuple[Column, ...],
    figures_of: Callable[[Measurement], Figures],
) -> _Table | None:
    """One table, if there is anything in it."""
    parts = [figures_of(measurement) for measurement in measurements]
    # In the order of who has most: of an agreement the first model has but two rows.
    keys = tuple(dict.fromkeys(key for figures in sorted(parts, key=len, reverse=True) for key in figures))
    if not keys:
        return None
    figures = tuple(tuple(part.get(key) for part in parts) for key in keys)
    changes = tuple(
        tuple(_difference(row[0], other, of_one) for other, of_one in zip(row[1:], found, strict=True))
        for row in figures
    )
    return _Table(columns, tuple(one.model for one in measurements), keys, figures, changes)


def _difference(one: Figure | None, other: Figure | None, found: Mapping[str, Difference]) -> tuple[str, str]:
    """'+2.10 points (1.31..2.90) *', the star where it is beyond chance; and the same without the interval."""
    if one is None or other is None:
        return "", ""
    if not one.share and one.remark != other.remark:  # a layer of another stride has other features
        return "", ""
    difference = found.get(one.name)
    change = other.value - one.value if difference is None else difference.value
    text = f"{100 * change:+.2f} points" if one.share else _number(change, "+")
    if difference is None:
        return text, text
    low, high = difference.low, difference.high
    ends = f"{100 * low:+.2f}..{100 * high:+.2f}" if one.share else f"{_number(low, '+')}..{_number(high, '+')}"
    mark = _CLEAR * difference.clear or (f" {difference.caveat}" if difference.beyond_chance else "")
    return f"{text} ({ends}){mark}", f"{text}{mark}"


def _agreement(measurement: Measurement, agreed: Agreement | None) -> Figures:
    """How far a model answers as the first one does; of the first one, what there is to compare that with."""
    found = measurement.agreement
    rows: list[tuple[str, str, Estimate | None, bool]] = []
    if found is not None:
        of_maps = found.same_labels is not None
        rows = [
            ("same answer", "same", found.same, True),
            ("same label, share of positions", "same_labels", found.same_labels, True),
            ("same answer where the first is sure (50%)", "sure", found.sure, True),
            ("first five answers in common", "top5", found.top5, True),
            ("the first's answer is among the first five", "top1_in_top5", found.top1_in_top5, True),
            ("KL divergence of the probabilities, nats", "divergence", found.divergence, False),
            (f"cosine of the {'logits' if found.same or of_maps else 'outputs'}", "cosine", found.cosine, False),
        ]
    both = measurement.agreement or agreed
    if both is not None:
        own = found is None
        kind = " labels" if both.same_labels else "" if both.same else " outputs (cosine)"
        seen = "circular shifts" if measurement.settings.get("circular") else "random crops"
        rows += [
            (
                f"consistent and same{kind}: two {seen}",
                "consistent",
                both.consistent if own else both.consistent_and_same,
                both.same is not None or both.same_labels is not None,
            ),
            (
                "probability of the top answer",
                "confidence",
                both.confidence if own else both.confidence_other,
                True,
            ),
        ]
    figures: Figures = {}
    if found is not None and found.relative_error is not None:
        label = "relative error of the outputs (1: all is lost)"
        figures[(label,)] = Figure("agreement.relative_error", found.relative_error, share=False)
    words = _words_of(measurement)
    return figures | {
        (_in_words(label, words),): Figure.of(f"agreement.{name}", estimate, share=share)
        for label, name, estimate, share in rows
        if estimate is not None
    }


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
    if measurement.fractional is not None:
        pairs += _of_fractional(measurement.fractional)
    words = _words_of(measurement)
    return {(_in_words(name, words),): figure for name, figure in pairs}


_OF_SIGNALS = {"one pixel": "one sample", "random crops": "random windows", "picture": "signal"}


def _words_of(measurement: Measurement) -> Mapping[str, str]:
    return _OF_SIGNALS if measurement.settings.get("signal") else {}


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
    if found.confidence is not None:
        yield "the top probability itself", Figure.of("consistency.confidence", found.confidence)


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
    for what, name, estimate in (
        ("mFR: mean flip rate", "mfr", found.mfr),
        ("mCE: mean corruption error", "mce", found.mce),
    ):
        if estimate is not None:
            yield f"{what}, over that of {found.reference}", Figure.of(f"stability.{name}", estimate)


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


def _of_fractional(found: Fractional) -> Iterator[tuple[str, Figure]]:
    answer = "labels" if found.dense else "answer"
    part = {4: "quarter pixels", 8: "eighths of a pixel"}.get(found.parts, f"{found.parts}ths of a pixel")
    places = f"{found.parts**2 - 1} shifts by {part}"
    for what, name, estimate in (
        (f"shift by half a pixel: same {answer}", "half", found.half),
        ("shift by half a pixel: change of the top probability", "half_change", found.half_change),
        (f"shift by a quarter pixel: same {answer}", "quarter", found.quarter),
        ("shift by a quarter pixel: change of the top probability", "quarter_change", found.quarter_change),
        (
            f"{places}: {'same labels at the worst' if found.dense else 'same answer at all'}",
            "worst",
            found.worst,
        ),
        (f"{places}: largest change of probability", "worst_change", found.worst_change),
    ):
        yield what, Figure.of(f"fractional.{name}", estimate)


def _strides(measurements: Sequence[Measurement]) -> Mapping[str, str]:
    """The stride of each site, by its name: a global pool's is the size of its input, where a plan was made."""
    found: dict[str, str] = {}
    for one in measurements:
        for site in one.aliasing.sites if one.aliasing is not None else ():
            found.setdefault(site.site, dimensions(site.stride))
    return found


def _sites(measurement: Measurement, strides: Mapping[str, str]) -> Figures:
    sites = measurement.aliasing.sites if measurement.aliasing is not None else ()
    return {
        (site.site, site.kind, strides[site.site]): Figure.of(
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


def _lie_layers(measurement: Measurement) -> Figures:
    layers = measurement.lie_derivative.layers if measurement.lie_derivative is not None else ()
    return {
        (layer.name,): Figure.of(f"lie_derivative.{layer.name}", layer.error, dimensions(layer.stride), share=False)
        for layer in layers
    }
