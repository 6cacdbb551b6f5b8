"""What a report shows, as rows of figures that the page and the files share. Plain data: nothing is drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from blurify.errors import BlurifyError
from blurify.metrics.differences import Difference, compared, differences, pooled
from blurify.metrics.differences import figures as figures_of
from blurify.metrics.evidence import Evidence
from blurify.metrics.pareto import ParetoTable
from blurify.metrics.results import Agreement, Consistency, Estimate, LayerMap, Measurement, WorstCase
from blurify.metrics.trade_off import Ranking
from blurify.reporting import words
from blurify.spec.adapted import Adapted
from blurify.spec.plan import Plan

MOST = 3
"""Measurements side by side."""


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    Attributes:
        measurements: one, or two or three of the same pictures to be seen side by side; of three, the first is what the
            others are compared with.
        plan: of the conversion; None where it is not known, and then no sites are listed.
        command: the command line that measured; '' where it is not known.
        versions: of what took part, by name.
        same_weights: the second is the first, converted and not fine-tuned.
        ranking: of the sites by what converting each costs; None where they were not ranked.
        adapted: what adapting did to each model, one entry a measurement; empty where none was adapted.
        pareto: what partial conversions cost and buy; None where they were not looked at.
        evidence: pictures, curves, maps, spectra and times of the same models; None where they were not gathered.

    Raises:
        BlurifyError: there are more measurements than three, or none, or a map that is no rectangle.
    """

    measurements: tuple[Measurement, ...]
    plan: Plan | None = None
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    same_weights: bool = False
    ranking: Ranking | None = None
    adapted: tuple[Adapted | None, ...] = ()
    pareto: ParetoTable | None = None
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.measurements) <= MOST:
            raise BlurifyError(
                f"a report shows one measurement, or two or three side by side, not {len(self.measurements)}: measure "
                "one to three models"
            )
        if self.adapted and len(self.adapted) != len(self.measurements):
            raise BlurifyError(f"{len(self.adapted)} records of adapting for {len(self.measurements)} measurements")
        if self.evidence is not None and not self.evidence.models <= {len(self.measurements)}:
            raise BlurifyError(
                f"the evidence is not of {len(self.measurements)} models, as the measurements are: measure again"
            )
        for measured in self.measurements:
            for layer in measured.equivariance.layers if measured.equivariance else ():
                if not layer.distances or not layer.distances[0] or len(set(map(len, layer.distances))) > 1:
                    raise BlurifyError(f"the map of the layer {layer.name!r} is no rectangle: measure again")

    @property
    def roles(self) -> tuple[str, ...]:
        """What each measurement is here: ('before', 'after') for a model and its conversion."""
        if len(self.measurements) == 1:
            return ("measured",)
        first, *others = self.measurements
        related = not first.converted and all(other.converted and _same_network(first, other) for other in others)
        if len(others) == 1:
            return ("before", "after") if related else ("first", "second")
        stages = [record is not None for record in self.adapted]
        return ("original", "converted", "adapted") if related and stages == [0, 0, 1] else ("first", "second", "third")

    def told(self, text: str) -> str:
        """A text, or a page, in the words of what the models take: of pictures as it stands, or of signals."""
        signals = any(measured.settings.get("signal") for measured in self.measurements)
        return words.of_signals(text) if signals else text

    @property
    def in_order(self) -> Report:
        """The same, of three: original, converted, adapted, where each is one of these."""
        if len(self.measurements) != MOST or not self.adapted:
            return self
        pairs = list(zip(self.measurements, self.adapted, strict=True))
        ranks = [measured.converted + (measured.converted and record is not None) for measured, record in pairs]
        if sorted(ranks) != [0, 1, 2]:
            return self
        ordered = [pairs[ranks.index(rank)] for rank in range(MOST)]
        return replace(
            self, measurements=tuple(item for item, _ in ordered), adapted=tuple(record for _, record in ordered)
        )

    @property
    def differences(self) -> tuple[str, ...]:
        """In what they were measured differently, so that their figures don't compare."""
        first, *others = self.measurements
        return tuple(dict.fromkeys(name for other in others for name in self._differ(first, other)))

    @staticmethod
    def _differ(first: Measurement, second: Measurement) -> list[str]:
        found = [name for name in ("data", "images") if getattr(first, name) != getattr(second, name)]
        names = [*first.settings, *(name for name in second.settings if name not in first.settings)]
        found += [name for name in names if first.settings.get(name) != second.settings.get(name)]
        if first.equivariance and second.equivariance:
            one, other = first.equivariance, second.equivariance
            found += [
                f"equivariance's {name.replace('_', ' ')}"
                for name in ("images", "input_shape", "largest_shift", "step", "circular")
                if getattr(one, name) != getattr(other, name)
            ]
        return found

    @cached_property
    def compared(self) -> tuple[Mapping[str, Difference], ...]:
        """How far each of the others is above the first, by the figure's name."""
        first, *others = self.measurements
        return tuple(differences(first, other) for other in others)

    def changes(self, figure: str) -> tuple[Difference | None, ...]:
        """How far one figure of each of the others is above the first's; None where it does not compare."""
        return tuple(found.get(figure) for found in self.compared)


def _same_network(first: Measurement, second: Measurement) -> bool:
    """Whether the parts that both measurements name are called alike; so, too, where they name none."""
    for one, other in (
        ([site.site for site in m.aliasing.sites] if m.aliasing else [] for m in (first, second)),
        ([layer.name for layer in m.equivariance.layers] if m.equivariance else [] for m in (first, second)),
    ):
        if one and other and not set(one) & set(other):
            return False
    return True


@dataclass(frozen=True)
class Row:
    """One figure, in every measurement of a report.

    Attributes:
        label: what it is.
        estimates: one entry a measurement; None where it was not measured.
        better: 'higher' | 'lower', which way is good.
        name: which figure it is, for the definitions.
        differences: of the others and the first, where there are others.
    """

    label: str
    estimates: tuple[Estimate | None, ...]
    better: str
    name: str = ""
    differences: tuple[Difference | None, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether any measurement has it."""
        return any(estimate is not None for estimate in self.estimates)


def verdict(difference: Difference | None, better: str) -> str:
    """Whether a difference is for the better: 'better', 'worse' or 'not clear', or its caveat ('less sure').

    'unpaired' is added where it is.

    Args:
        difference: the second less the first; '' is said of None, and of what is no number.
        better: 'higher' | 'lower', which way is good.
    """
    if difference is None or not math.isfinite(difference.value):
        return ""
    word = (difference.beyond_chance and difference.caveat) or "not clear"
    if difference.clear:
        word = "better" if (difference.value > 0) == (better == "higher") else "worse"
    return word if difference.paired else f"{word}, unpaired"


def mean_differences(report: Report, figures: Sequence[str]) -> tuple[Difference | None, ...]:
    """The differences of the means of several figures, such as all flip rates, picture by picture.

    Args:
        report: of measurements side by side, or one.
        figures: the names, as `Report.compared` has them; all of all measurements.

    Returns:
        one entry for each of the others: how far its mean is above the first's, None where not all of the figures
        compare picture by picture.
    """

    def mean(found: Mapping[str, Estimate]) -> Estimate | None:
        return pooled([found[name] for name in figures])

    held = [figures_of(measured) for measured in report.measurements]
    result: list[Difference | None] = []
    for known, values in zip(report.compared, held[1:], strict=True):
        if not figures or not all(name in known and known[name].paired for name in figures):
            result.append(None)
            continue
        first, other = mean(held[0]), mean(values)
        if first is None or other is None:
            result.append(None)
            continue
        found = compared({"mean": (first, other)})["mean"]
        parts = (known[name] for name in figures)
        doubts = (part.caveat for part in parts if part.caveat and part.value * found.value > 0)
        result.append(replace(found, caveat=next(doubts, "")))
    return tuple(result)


def agreement_of(report: Report, index: int) -> Agreement | None:
    """How far one of the other models answers as the first does; None where that was not measured."""
    found: Agreement | None = getattr(report.measurements[index], "agreement", None)
    known = report.evidence.agreements if report.evidence is not None else ()
    return found or (known[index - 1] if len(known) >= index else None)


def less_sure(found: Agreement | None) -> bool:
    """Whether a model is clearly less sure of its answers than the original: the two intervals do not overlap."""
    before, after = (found.confidence, found.confidence_other) if found is not None else (None, None)
    return before is not None and after is not None and after.high < before.low


def consistency(report: Report) -> list[Row]:
    """The rows of the consistency section; none where it was not measured."""
    dense = any(measured.consistency and measured.consistency.dense for measured in report.measurements)
    answer = "labels" if dense else "answer"
    wanted: list[tuple[str, str, str, Callable[[Consistency], Estimate | None]]] = [
        ("agreement", f"Same {answer}, two crops", "higher", lambda found: found.agreement),
        ("pixel_flips", f"Other {answer}, one-pixel shift", "lower", lambda found: found.pixel_flips),
        ("pixel_change", "Probability change, one pixel", "lower", lambda found: found.pixel_change),
        ("accuracy", "Accuracy", "higher", lambda found: found.accuracy),
    ]
    rows = [
        Row(
            label,
            tuple(get(measured.consistency) if measured.consistency else None for measured in report.measurements),
            better,
            name,
            report.changes(f"consistency.{name}"),
        )
        for name, label, better, get in wanted
    ]
    return [row for row in rows if row.measured]


def worst_case(report: Report) -> list[Row]:
    """The rows of the worst case; none where it was not measured."""
    wanted: list[tuple[str, str, Callable[[WorstCase], Estimate | None]]] = [
        ("steady", "Same answer, whole grid", lambda found: found.steady),
        ("unmoved", "Accuracy, unmoved", lambda found: found.unmoved),
        ("mean", "Accuracy, mean of the grid", lambda found: found.mean),
        ("worst", "Right on the whole grid", lambda found: found.worst),
    ]
    rows = [
        Row(
            label,
            tuple(get(measured.worst_case) if measured.worst_case else None for measured in report.measurements),
            "higher",
            name,
            report.changes(f"worst_case.{name}"),
        )
        for name, label, get in wanted
    ]
    return [row for row in rows if row.measured]


def flip_rates(report: Report) -> list[Row]:
    """One row a perturbation, in the order of the measurements."""
    found = [
        {item.perturbation: item for item in (measured.stability.flip_rates if measured.stability else ())}
        for measured in report.measurements
    ]
    return [
        Row(
            _words(name),
            tuple(rates[name].rate if name in rates else None for rates in found),
            "lower",
            name,
            report.changes(f"stability.flip_rate.{name}"),
        )
        for name in _names(found)
    ]


@dataclass(frozen=True)
class Curve:
    """Figures at several points: severities, or sites by depth.

    Attributes:
        label: what it is.
        points: the names of the points.
        series: one entry a measurement, in it one entry a point; None where it was not measured.
    """

    label: str
    points: tuple[str, ...]
    series: tuple[tuple[Estimate | None, ...], ...]


def corruptions(report: Report, figure: str) -> list[Curve]:
    """One curve a corruption, by severity, of 'accuracy' or 'agreement'; none where there are no such figures."""
    found = [
        {
            item.corruption: getattr(item, figure)
            for item in (measured.stability.corruptions if measured.stability else ())
        }
        for measured in report.measurements
    ]
    curves = []
    for name in _names(found):
        lists: list[tuple[Estimate, ...]] = [results.get(name, ()) for results in found]
        count = max(map(len, lists))
        if count:
            points = tuple(str(severity) for severity in range(1, count + 1))
            curves.append(Curve(_words(name), points, tuple((*part, *[None] * (count - len(part))) for part in lists)))
    return curves


def aliasing(report: Report) -> Curve | None:
    """The share of energy that aliases, site by site in the order in which they run; None where it was not measured."""
    found = [
        {item.site: item for item in (measured.aliasing.sites if measured.aliasing else ())}
        for measured in report.measurements
    ]
    names = _names(found)
    if not names:
        return None
    shares = tuple(tuple(sites[name].share if name in sites else None for name in names) for sites in found)
    return Curve("Share of energy above the new Nyquist frequency", tuple(names), shares)


@dataclass(frozen=True)
class Layer:
    """One layer's maps.

    Attributes:
        name, kind: the layer's.
        maps: one entry a measurement; None where that one has no such layer.
    """

    name: str
    kind: str
    maps: tuple[LayerMap | None, ...]

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Its total strides in the measurements, each once."""
        return tuple(dict.fromkeys(found.stride for found in self.maps if found))

    @property
    def comparable(self) -> bool:
        """Whether it has the same total stride wherever it was measured.

        If not, the maps are of other features: a convolution whose blur comes later in the converted network.
        """
        return len(self.strides) == 1

    @property
    def flat(self) -> bool:
        """Whether there is nothing to see: only the shift by nothing was tried, as for a layer without subsampling."""
        return all(len(found.distances) == len(found.distances[0]) == 1 for found in self.maps if found)


_IDENTITIES = (
    "Identity",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "DropPath",
    "StochasticDepth",
)


def layers(report: Report) -> list[Layer]:
    """The layers with maps, in the order in which they run; none where they were not measured."""
    found = [
        {layer.name: layer for layer in (measured.equivariance.layers if measured.equivariance else ())}
        for measured in report.measurements
    ]
    result = []
    for name in _names(found):
        maps = tuple(maps.get(name) for maps in found)
        like = next(item for item in maps if item is not None)
        if like.kind in _IDENTITIES:  # they hand on what they get: their row is that of the layer before
            continue
        result.append(Layer(name, like.kind, maps))
    return result


def largest_distance(shown: Sequence[Layer]) -> float:
    """The largest distance of all maps, for one scale of colours."""
    values = [value for layer in shown for item in layer.maps if item for row in item.distances for value in row]
    return max((value for value in values if math.isfinite(value)), default=0.0)


@dataclass(frozen=True)
class TradeOff:
    """So many sites converted: what is left of the answers, and how much aliasing is gone.

    Attributes:
        label: which sites.
        removed: share of the aliasing; below 0 where there is more than before.
        kept: share of the answers, or 1 less the relative error of other outputs.
        low, high: its 95% interval, where it has one.
    """

    label: str
    removed: float
    kept: float
    low: float | None = None
    high: float | None = None


def trade_off(report: Report) -> list[TradeOff]:
    """The points of the curve of a ranking, from no site to all; none where the sites were not ranked."""
    if report.ranking is None:
        return []
    points = [TradeOff("no site", 0.0, 1.0)]
    for ranked, step in zip(report.ranking.sites, report.ranking.curve, strict=True):
        same = step.agreement.answers
        ends = (same.low, same.high) if same is not None else (None, None)
        label = ranked.site if step.sites == 1 else f"{step.sites} sites, {ranked.site} too"
        points.append(TradeOff(label, step.removed, step.agreement.kept, *ends))
    return points


def that_can_alias(report: Report, sites: Sequence[str]) -> list[int]:
    """The places of the sites that count in a mean: a global pool leaves nothing that could alias."""
    void = {site.name for site in report.plan.sites if site.rule == "global-pool"} if report.plan else set()
    return [index for index, name in enumerate(sites) if name not in void]


PARTS = {
    "consistency": "consistency",
    "equivariance": "equivariance maps",
    "aliasing": "aliasing by site",
    "stability": "stability to perturbations and corruptions",
    "worst_case": "worst case over translations and rotations",
}


def _by_kind(found: Measurement, part: str) -> bool:
    """Whether consistency was measured by the metric of another kind of output than classes."""
    return part == "consistency" and any(item is not None for item in (found.embedding, found.dense, found.detections))


def missing(report: Report) -> list[str]:
    """What a reader might expect and was not measured, in words."""
    reasons = {name: why for item in report.measurements for name, why in item.skipped.items()}
    found = [
        f"{words} ({reasons[name]})" if (name := part.replace("_", "-")) in reasons else words
        for part, words in PARTS.items()
        if all(getattr(item, part) is None and not _by_kind(item, part) for item in report.measurements)
    ]
    if report.plan is None:
        found.append("the table of sites (no plan was given)")
    has_accuracy = any(item.consistency and item.consistency.accuracy for item in report.measurements)
    if not has_accuracy and any(item.consistency for item in report.measurements):
        notes = [str(item.settings.get("labels", "")) for item in report.measurements]
        note = next((note.removeprefix("no labels: ") for note in notes if note.startswith("no labels: ")), "")
        dense = any(item.consistency and item.consistency.dense for item in report.measurements)
        why = "a label map has none" if dense else note or "no labels were used"
        found.append(f"accuracy ({why})")
    return found


def _names(found: Sequence[Mapping[str, object]]) -> list[str]:
    """The names of all measurements in order: what only the second has stands behind what precedes it there."""
    names: list[str] = []
    for part in found:
        place = 0
        for name in part:
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    return names


def _words(name: str) -> str:
    """'gaussian-noise' -> 'gaussian noise'."""
    return name.replace("-", " ").replace("_", " ")
