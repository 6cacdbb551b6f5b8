"""Two models compared on the very same pictures: differences picture by picture, with 95% intervals.

Most of what makes one picture's figures differ from another's is the picture: it makes both models steady, or neither.
The difference of two models on one picture is free of that, so that its mean is known far better than each model's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, TypeVar

from blurify.metrics.caveats import caveats
from blurify.metrics.results import Agreement, CorruptionResult, Estimate, Measurement

if TYPE_CHECKING:
    from torch import Tensor

PAIRED, TOO_FEW, UNPAIRED = (
    "paired bootstrap over pictures, expanded percentile interval",
    "paired, too few pictures for an interval",
    "unpaired, one interval less the other",
)
RESAMPLES = 10_000
FEWEST = 6  # pictures: two equal models differ the same way on all of fewer in more than 5 cases of 100
_AT_A_TIME = 1 << 22  # draws
_ESTIMATES = {
    "consistency": ("accuracy", "agreement", "pixel_flips", "pixel_change", "confidence"),
    "worst_case": ("unmoved", "mean", "worst", "steady"),
    "half_patch": ("half", "half_change", "grid", "whole", "confidence"),
    "fractional": (
        "half", "half_change", "quarter", "quarter_change", "grid", "worst", "worst_change", "confidence",
    ),
    "stability": ("mfr", "mce"),
    "embedding": ("crops", "pixel", "crops_nearest", "pixel_nearest", "apart"),
    "dense": ("crops", "pixel"),
    "detections": tuple(
        f"{where}_{what}"
        for where in ("crops", "pixel")
        for what in ("matched", "overlap", "score_change", "count_change")
    ),
}  # fmt: skip
_SHOWN_ALIKE = ("seed", "crop", "canvas", "channels", "interpolation", "circular", "labels")

Key = TypeVar("Key")


@dataclass(frozen=True)
class Difference:
    """By how much the second model's mean is above the first's.

    Attributes:
        value: the difference.
        low, high: its 95% interval.
        method: where that is from: PAIRED, TOO_FEW (it holds every difference there can be) or UNPAIRED (no values of
            single pictures are known, or not of the same pictures: wider than need be).
        n: how many pictures; the fewer of the two where they are not the same.
        p: of McNemar's exact test, where each picture's value is an answer, yes or no, and they are paired.
        caveat: why it is neither better nor worse, whatever its interval; '' where nothing speaks against it. One of
            `caveats.MEANINGS`.
    """

    value: float
    low: float
    high: float
    method: str
    n: int
    p: float | None = None
    caveat: str = ""

    @property
    def paired(self) -> bool:
        """Whether it is of differences picture by picture."""
        return self.method != UNPAIRED

    @property
    def clear(self) -> bool:
        """Whether the difference is beyond chance, and nothing speaks against calling it better or worse."""
        return self.beyond_chance and not self.caveat

    @property
    def beyond_chance(self) -> bool:
        """Whether 0 lies outside the interval, and no exact test says otherwise.

        The bootstrap knows only pictures that were seen: where one model is right on five that the other gets wrong,
        and never the other way round, its interval leaves 0 out, though a fair coin does the same in 6 of 100 cases.
        """
        return (self.low > 0 or self.high < 0) and (self.p is None or self.p < 0.05)


def differences(first: Measurement, second: Measurement) -> dict[str, Difference]:
    """By how much each figure of the second is above the first's, by the figure's name ('consistency.agreement').

    Paired where both measured the same pictures in the same way; figures that only one of them has are left out.
    Where the second was compared with the first: 'agreement.confidence' of the two, and 'agreement.consistent', by how
    much its answers across a shift are the first's more often than the first's own. Differences that are not what they
    look like have a caveat (see `caveats`).
    """
    one, other = figures(first), figures(second)
    paired = same_pictures(first, second)
    maps, others = _maps(first), _maps(second)
    # Maps compare where they are of the same pictures and shifts, and of features of the same stride.
    pairs = {
        name: (one[name], other[name])
        for name in one
        if name in other and (name not in maps or (paired and maps[name] == others.get(name)))
    }
    agreement = agreement_with(first, second)
    agreed = _of_both(agreement)
    # The pictures of an agreement are those of both, whatever the other figures are of.
    found = compared(agreed | pairs) if paired else compared(agreed) | compared(pairs, paired=False)
    before = {name: pair[0].value for name, pair in (pairs | agreed).items()}
    if agreement is not None and agreement.same is not None:
        before["agreement.same"] = agreement.same.value
    doubts = caveats(found, before)
    return {
        name: dataclasses.replace(difference, caveat=doubts[name]) if name in doubts else difference
        for name, difference in found.items()
    }


def figures(measurement: Measurement) -> dict[str, Estimate]:
    """Every figure of a measurement by its name; of corruptions, the mean over severities."""
    found: dict[str, Estimate | None] = {}
    for part, names in _ESTIMATES.items():
        measured = getattr(measurement, part)
        if measured is not None:
            found |= {f"{part}.{name}": getattr(measured, name) for name in names}
    if (stability := measurement.stability) is not None:
        for flips in stability.flip_rates:
            found[f"stability.flip_rate.{flips.perturbation}"] = flips.rate
        for corruption in stability.corruptions:
            for figure in ("accuracy", "agreement"):
                found[f"stability.{figure}.{corruption.corruption}"] = over_severities(corruption, figure)
    if (aliasing := measurement.aliasing) is not None:
        for site in aliasing.sites:
            found[f"aliasing.{site.site}"] = site.share
    if (equivariance := measurement.equivariance) is not None:
        for layer in equivariance.layers:
            found[f"equivariance.{layer.name}"] = layer.over_pictures
    if (local := measurement.lie_derivative) is not None:
        for one in local.layers:
            found[f"lie_derivative.{one.name}"] = one.error
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def agreement_with(first: Measurement, second: Measurement) -> Agreement | None:
    """The second's agreement, where it is with the first: files may hold one with another model."""
    found = second.agreement
    return found if found is not None and found.original in ("", first.model) else None


def _of_both(agreement: Agreement | None) -> dict[str, tuple[Estimate, Estimate]]:
    """What an agreement knows of both models, the original first."""
    if agreement is None:
        return {}
    pairs = {
        "agreement.confidence": (agreement.confidence, agreement.confidence_other),
        "agreement.consistent": (agreement.consistent, agreement.consistent_and_same),
    }
    return {name: (one, other) for name, (one, other) in pairs.items() if one is not None and other is not None}


def over_severities(corruption: CorruptionResult, figure: str) -> Estimate | None:
    """The mean over a corruption's severities of 'accuracy' or 'agreement', picture by picture."""
    return pooled(getattr(corruption, figure))


def pooled(parts: Sequence[Estimate | None]) -> Estimate | None:
    """The mean of several figures of the same pictures; None where one of them, or its values, is not known."""
    known = [part for part in parts if part is not None and part.values]
    if not known or len(known) < len(parts) or len({part.count for part in known}) > 1:
        return None
    means = [math.fsum(values) / len(known) for values in zip(*(part.values for part in known), strict=True)]
    return Estimate.of(means, bounded=False, yes_or_no=False)


def same_pictures(first: Measurement, second: Measurement) -> bool:
    """Whether two measurements showed their models the same pictures, in the same crops.

    By their fingerprints, so that it matters neither what the folder is called nor that it is still called so; by the
    name alone where there are none.
    """
    prints = [measurement.settings.get("pictures") for measurement in (first, second)]
    same = prints[0] == prints[1] if all(prints) else first.data == second.data
    return (
        same
        and first.images == second.images
        and all(first.settings.get(name) == second.settings.get(name) for name in _SHOWN_ALIKE)
    )


def _maps(measurement: Measurement) -> dict[str, tuple[Any, ...]]:
    """By the name of each layer's figure, what its maps are of: pictures, shifts and features."""
    maps: dict[str, tuple[Any, ...]] = {}
    if (found := measurement.equivariance) is not None:
        how = found.images, found.input_shape, found.step, found.circular
        for layer in found.layers:
            shifts = len(layer.distances), len(layer.distances[0])
            maps[f"equivariance.{layer.name}"] = (*how, layer.stride, *shifts)
    if (local := measurement.lie_derivative) is not None:
        ways = local.images, local.input_shape, local.step, local.circular
        maps |= {f"lie_derivative.{one.name}": (*ways, one.stride) for one in local.layers}
    return maps


def compared(
    pairs: Mapping[Key, tuple[Estimate, Estimate]], *, paired: bool = True, seed: int = 0
) -> dict[Key, Difference]:
    """Differences of several figures of two models.

    The interval of paired differences is a percentile bootstrap: pictures are drawn with replacement, as many as there
    are, the same for both models and for all figures of as many pictures; the interval lies between percentiles of the
    mean difference over `RESAMPLES` draws. Not the 2.5th and 97.5th, which make intervals of few pictures too narrow,
    but those that Hesterberg's "expanded percentile interval" takes: Phi(-t sqrt(n / (n - 1))) and its mirror, t
    Student's 97.5% point of n - 1 degrees of freedom ("What Teachers Should Know About the Bootstrap", The American
    Statistician 69, 2015). The bootstrap: Efron and Tibshirani 1993. Of answers, yes or no, about fewer than some 30
    pictures the interval is too narrow all the same, as no resample has a disagreement that was not seen: what is
    `clear` then rests on McNemar's exact test.

    Args:
        pairs: (the first model's, the second's) figure, by any name.
        paired: both are of the same pictures in the same order; without that, or without values of single pictures,
            the interval is one's less the other's: 0 lies outside exactly where the two don't overlap.
        seed: of the resampling.
    """
    found: dict[Key, Difference] = {}
    resampled: dict[int, list[Key]] = defaultdict(list)  # by the number of pictures
    for key, (first, second) in pairs.items():
        value, n = second.value - first.value, min(first.count, second.count)
        if not (paired and first.count == second.count and first.values and second.values):
            found[key] = Difference(value, second.low - first.high, second.high - first.low, UNPAIRED, n)
        elif n < FEWEST:
            largest = max(map(abs, (*first.values, *second.values)))
            most = 1.0 if largest <= 1 else 2.0 if largest <= 2 else 2 * largest  # shares; cosine distances; any
            found[key] = Difference(value, -most, most, TOO_FEW, n, _mcnemar_where_apt(first, second))
        else:
            resampled[n].append(key)
    for n, keys in resampled.items():
        bounds = _bootstrap([_paired(*pairs[key]) for key in keys], seed)
        for key, (low, high) in zip(keys, bounds, strict=True):
            first, second = pairs[key]
            found[key] = Difference(second.value - first.value, low, high, PAIRED, n, _mcnemar_where_apt(first, second))
    return {key: found[key] for key in pairs}


def _paired(first: Estimate, second: Estimate) -> list[float]:
    return [after - before for before, after in zip(first.values, second.values, strict=True)]


def _bootstrap(columns: Sequence[Sequence[float]], seed: int) -> list[tuple[float, float]]:
    """The interval of the mean of each column, all of one length."""
    import torch

    values = torch.tensor(columns, dtype=torch.float64).T
    count = len(values)
    means = torch.cat([drawn @ values / count for drawn in _times_drawn(count, seed)]).sort(0).values
    tail = expanded_tail(count)
    low, high = _percentile(means, tail), _percentile(means, 1 - tail)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _times_drawn(count: int, seed: int) -> Iterator[Tensor]:
    """How often each of `count` pictures is drawn in each resample: (some resamples, count) at a time."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows = min(max(_AT_A_TIME // count, 1), RESAMPLES)
    for start in range(0, RESAMPLES, rows):
        drawn = torch.randint(count, (min(rows, RESAMPLES - start), count), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        yield times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))


def expanded_tail(count: int) -> float:
    """The share of resamples beyond each end of the expanded percentile interval of `count` pictures."""
    return NormalDist().cdf(-students_point(count - 1) * math.sqrt(count / (count - 1)))


def students_point(freedom: int) -> float:
    """The 97.5% point of Student's t, by its expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5); 5 or more."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _percentile(ordered: Tensor, share: float) -> Tensor:
    """The value below which that share of the rows lies, linear between two of them."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _mcnemar_where_apt(first: Estimate, second: Estimate) -> float | None:
    """The p of McNemar's exact test where every picture has an answer, yes or no, of both models; else None."""
    if not {*first.values, *second.values} <= {0.0, 1.0}:
        return None
    changes = _paired(first, second)
    return mcnemar(changes.count(1.0), changes.count(-1.0))


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided: how probable at least so uneven a split is if either way is equally likely.

    Args:
        gained, lost: on how many pictures only the second, and only the first, answers yes.
    """
    count, fewer = gained + lost, min(gained, lost)

    def log_ways(k: int) -> float:
        return math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)

    return min(2 * math.fsum(math.exp(log_ways(k) - count * math.log(2)) for k in range(fewer + 1)), 1.0)
