"""Differences picture by picture: against slow formulas, every resample there is, scipy, and simulated truths."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import nn

from blurify import metrics
from blurify.errors import BlurifyError
from blurify.metrics.differences import (
    PAIRED,
    RESAMPLES,
    TOO_FEW,
    UNPAIRED,
    Difference,
    compared,
    differences,
    expanded_tail,
    mcnemar,
    students_point,
)
from blurify.metrics.normalised import normalised
from blurify.metrics.packing import pack, unpack
from blurify.metrics.results import Estimate, Measurement


def difference(first: Sequence[float], second: Sequence[float], *, answers: bool = False) -> Difference:
    pair = tuple(Estimate.of(list(map(float, part)), yes_or_no=answers) for part in (first, second))
    return compared({"it": pair})["it"]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def apart(one: Estimate, other: Estimate) -> bool:
    return one.high < other.low or other.high < one.low


# --- what pairing is for


def test_intervals_that_overlap_can_hide_a_clear_difference() -> None:
    """Pictures differ widely, and the second model is a little steadier on each."""
    pictures = [0.1 + 0.8 * index / 99 for index in range(100)]
    better = [value + 0.02 + 0.01 * math.sin(index) for index, value in enumerate(pictures)]
    first, second = (Estimate.of(part, yes_or_no=False) for part in (pictures, better))
    found = difference(pictures, better)
    assert not apart(first, second) and found.clear and found.low > 0.015 and found.paired


def test_answers_whose_intervals_overlap_can_differ_clearly() -> None:
    """12 of 200 pictures gained and none lost: 80% and 86%."""
    before = [1.0] * 160 + [0.0] * 40
    after = [1.0] * 172 + [0.0] * 28
    found = difference(before, after, answers=True)
    assert not apart(Estimate.of(before), Estimate.of(after))
    assert found.clear and found.value == pytest.approx(0.06) and found.p == pytest.approx(2 / 2**12)


def test_intervals_apart_can_be_of_models_whose_difference_is_not_clear() -> None:
    """The other way: where one model is right the other is wrong, the difference is less sure than each share."""
    first = [1.0] * 38 + [0.0] * 58  # 39.6%
    second = [0.0] * 38 + [1.0] * 58  # 60.4%, on all the other pictures
    one, other = Estimate.of(first, yes_or_no=False), Estimate.of(second, yes_or_no=False)
    assert apart(one, other)
    found = difference(first, second, answers=True)
    assert found.p == pytest.approx(scipy.stats.binomtest(38, 96).pvalue) and found.p > 0.05
    assert not found.clear


def test_the_same_model_twice_does_not_differ() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    found = difference(values, values)
    assert (found.value, found.low, found.high, found.clear) == (0, 0, 0, False)


def test_what_is_no_number_is_not_clear() -> None:
    assert not Difference(math.nan, math.nan, math.nan, PAIRED, 9).clear


# --- the interval


@pytest.mark.parametrize("count", [6, 31, 200])
def test_the_interval_is_the_slow_bootstraps(count: int) -> None:
    """Resample by resample, both models at the same indices."""
    generator = random.Random(count)
    first = [generator.random() for _ in range(count)]
    second = [value + generator.gauss(0.1, 0.3) for value in first]
    found = difference(first, second)
    draws = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0)).tolist()
    means = [
        (math.fsum(second[index] for index in drawn) - math.fsum(first[index] for index in drawn)) / count
        for drawn in draws
    ]
    tail = scipy.stats.norm.cdf(-math.sqrt(count / (count - 1)) * scipy.stats.t.ppf(0.975, count - 1))
    wanted = (percentile(means, tail), percentile(means, 1 - tail))
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-3 if count == 6 else 1e-6)
    assert found.value == pytest.approx(math.fsum(second) / count - math.fsum(first) / count)
    assert (found.method, found.n) == (PAIRED, count)


def test_resamples_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many fit into memory at a time."""
    first, second = torch.rand(2, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist()
    whole = difference(first, second)
    monkeypatch.setattr("blurify.metrics.differences._AT_A_TIME", 40 * 7)
    parts = difference(first, second)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_six_pictures_against_all_resamples_there_are() -> None:
    changes = [0.3, -0.1, 0.25, 0.4, 0.05, 0.2]
    means = [math.fsum(drawn) / 6 for drawn in itertools.product(changes, repeat=6)]
    found = difference([0.0] * 6, changes)
    tail = expanded_tail(6)
    assert found.low == pytest.approx(percentile(means, tail), abs=0.02)
    assert found.high == pytest.approx(percentile(means, 1 - tail), abs=0.02)


def test_gains_alone_have_the_binomials_interval() -> None:
    """Of 400 pictures 60 gained and none lost: how many a resample holds is binomial."""
    found = difference([0.0] * 400, [1.0] * 60 + [0.0] * 340, answers=True)
    tail = expanded_tail(400)
    wanted = [scipy.stats.binom.ppf(share, 400, 0.15) / 400 for share in (tail, 1 - tail)]
    assert (found.low, found.high) == pytest.approx(wanted, abs=1 / 400)


@pytest.mark.parametrize(("kind", "count"), [("even", 8), ("even", 60), ("skewed", 60), ("answers", 60)])
def test_the_interval_holds_the_truth_often_enough(kind: str, count: int) -> None:
    """Of 400 simulated comparisons some 95% should; 91% to 98.5% leave room for the simulation and few pictures."""
    generator = torch.Generator().manual_seed(7)
    shape = 400, count
    if kind == "even":
        picture = torch.randn(shape, generator=generator, dtype=torch.float64)
        first, second, true = picture, picture + 0.2 + 0.5 * torch.randn(shape, generator=generator), 0.2
    elif kind == "skewed":
        picture = torch.rand(shape, generator=generator, dtype=torch.float64)
        first, second, true = picture, picture - torch.rand(shape, generator=generator).log(), 1.0
    else:
        draws = torch.rand(shape, generator=generator)
        first, second, true = (draws < 0.7).double(), ((draws > 0.1) & (draws < 0.85)).double(), 0.05
    pairs = {
        index: (Estimate.of(one, bounded=False, yes_or_no=False), Estimate.of(other, bounded=False, yes_or_no=False))
        for index, (one, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True))
    }
    held = [found.low <= true <= found.high for found in compared(pairs).values()]
    assert 0.91 <= statistics.fmean(held) <= 0.985


@pytest.mark.parametrize("count", [8, 60])
def test_equal_models_are_seldom_called_different(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    numbers = torch.rand(2, 400, count, generator=generator, dtype=torch.float64).tolist()
    answers = (torch.rand(2, 400, count, generator=generator) < 0.3).double().tolist()
    for values in (numbers, answers):
        pairs = {
            index: (Estimate.of(one, yes_or_no=False), Estimate.of(other, yes_or_no=False))
            for index, (one, other) in enumerate(zip(*values, strict=True))
        }
        assert sum(found.clear for found in compared(pairs).values()) <= 0.08 * 400


@pytest.mark.parametrize("freedom", [5, 7, 19, 100, 10_000])
def test_students_point_is_scipys(freedom: int) -> None:
    assert students_point(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=2e-4)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (0, 6), (3, 9), (40, 61), (700, 600), (50, 50)])
def test_mcnemars_test_is_the_binomials(gained: int, lost: int) -> None:
    wanted = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(wanted, rel=1e-9)


def test_five_gains_are_no_proof() -> None:
    """The bootstrap has not seen a loss, and thinks that there is none; the exact test knows better."""
    found = difference([0.0] * 5 + [1.0] * 95, [1.0] * 100, answers=True)
    assert found.low > 0 and found.p == pytest.approx(2 / 2**5) and not found.clear


def test_too_few_pictures_for_an_interval() -> None:
    found = difference([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.3, 0.4, 0.5, 0.6])
    assert (found.low, found.high, found.method, found.clear) == (-1, 1, TOO_FEW, False) and found.paired
    assert difference([0.0] * 3, [2.0] * 3).high == 2  # a distance


# --- when there are no pairs


def test_without_values_of_pictures_the_intervals_must_not_overlap() -> None:
    for second, clear in (((0.31, 0.4, 0.5), True), ((0.29, 0.4, 0.5), False)):
        low, value, high = second
        found = compared({0: (Estimate(0.2, 0.1, 0.3, 10), Estimate(value, low, high, 12))})[0]
        assert (found.method, found.n, found.paired, found.clear) == (UNPAIRED, 10, False, clear)
        assert (found.value, found.low, found.high) == pytest.approx((0.2, low - 0.3, high - 0.1))


@pytest.fixture(scope="module")
def pair() -> tuple[Measurement, Measurement]:
    """Two small networks by every metric, on eight pictures."""
    geometry = metrics.Preprocessing((16, 16), (20, 20), 3, (0.5,) * 3, (0.5,) * 3)
    canvases = torch.rand(8, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    pictures = metrics.TensorPictures(canvases, torch.tensor([0, 1, 2, 0, 1, 2, 0, -1]))

    def subject(seed: int) -> metrics.Subject:
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
        )
        return metrics.Subject(net, geometry)

    original, other = subject(1), subject(2)
    both = metrics.measure(original, pictures, ("all",)), metrics.measure(other, pictures, ("all",), original=original)
    unit = both[0].stability
    first, second = (replace(one, stability=normalised(one.stability, unit, "first")) for one in both)
    return first, second


def figures_in(value: object, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Where there are estimates in a measurement: field by field, parts by their names, severities as one."""
    if isinstance(value, Estimate):
        return {path}
    if isinstance(value, tuple):
        named = [
            (path if isinstance(item, Estimate) else (*path, next(iter(vars(item).values()))), item)
            for item in value
            if is_dataclass(item)
        ]
        return set().union(*(figures_in(item, where) for where, item in named))
    if not is_dataclass(value):
        return set()
    return set().union(*(figures_in(getattr(value, part.name), (*path, part.name)) for part in fields(value)))


def test_every_figure_of_a_measurement_has_a_paired_difference(pair: tuple[Measurement, Measurement]) -> None:
    found = differences(*pair)
    assert {name.split(".")[0] for name in found} == {
        "consistency", "stability", "worst_case", "aliasing", "equivariance", "half_patch", "fractional",
        "lie_derivative", "agreement",
    }  # fmt: skip
    assert all(one.method == PAIRED for one in found.values())
    first, second = pair
    # Whatever is an estimate of both has one, by whatever name; and of the agreement, what is of both models.
    of_both = figures_in(first) & figures_in(second)
    assert (
        len(of_both) > 60 and ("stability", "mce") in of_both and ("lie_derivative", "layers", "0", "error") in of_both
    )
    assert len(found) == len(of_both) + len({"agreement.confidence", "agreement.consistent"})
    assert found["consistency.accuracy"].n == 7 and found["consistency.agreement"].n == 8
    assert found["consistency.pixel_change"].p is None and found["consistency.pixel_flips"].p is not None
    for layer, other in zip(first.equivariance.layers, second.equivariance.layers, strict=True):
        assert found[f"equivariance.{layer.name}"].value == pytest.approx(other.mean - layer.mean, abs=1e-12)
        assert statistics.fmean(layer.over_pictures.values) == pytest.approx(layer.mean, abs=1e-12)
    jpegs = [next(c for c in m.stability.corruptions if c.corruption == "jpeg") for m in pair]
    means = [statistics.fmean(estimate.value for estimate in corruption.accuracy) for corruption in jpegs]
    assert found["stability.accuracy.jpeg"].value == pytest.approx(means[1] - means[0])


def test_other_pictures_or_crops_are_not_paired(pair: tuple[Measurement, Measurement]) -> None:
    first, second = pair
    assert len(first.settings["pictures"]) == 16
    for changed in (
        replace(second, settings={**second.settings, "pictures": "0" * 16}),
        replace(second, data="others", settings={**second.settings, "pictures": ""}),
        replace(second, settings={**second.settings, "seed": 1}),
        replace(second, settings={**second.settings, "crop": [8, 8]}),
    ):
        found = differences(first, changed)
        assert found and not any(one.paired for name, one in found.items() if not name.startswith("agreement."))
        assert not any(name.startswith("equivariance") for name in found)
        assert not any(name.startswith("lie_derivative") for name in found)
    with_another = replace(second, agreement=replace(second.agreement, original="another"))
    assert not any(name.startswith("agreement") for name in differences(first, with_another))
    elsewhere = replace(
        second, data="./same", settings={**second.settings, "device": "cuda", "batch_size": 3, "mean": [0.0] * 3}
    )
    assert differences(first, elsewhere) == differences(first, second)
    coarse = replace(second, equivariance=replace(second.equivariance, step=2))
    assert not any(name.startswith("equivariance") for name in differences(first, coarse))


def test_fingerprints_tell_pictures_apart(tmp_path: Path) -> None:
    def shown(*values: float) -> metrics.TensorPictures:
        return metrics.TensorPictures(torch.tensor(values).reshape(-1, 1, 1, 1))

    assert shown(0.5, 0.25).fingerprint == shown(0.5, 0.25).fingerprint
    assert len({shown(0.5, 0.25).fingerprint, shown(0.25, 0.5).fingerprint, shown(0.5).fingerprint}) == 3

    def folder(name: str, files: dict[str, int]) -> str:
        for file, size in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
        return metrics.open_folder(tmp_path / name, metrics.Preprocessing((8, 8), (8, 8))).fingerprint

    here = {"a.png": 1, "b/c.png": 2}
    assert folder("one", here) == folder("moved", here)
    others = [
        folder("x", {"a.png": 1, "b/c.png": 3}),
        folder("y", {"a.png": 1, "d/c.png": 2}),
        folder("z", {"a.png": 1}),
    ]
    assert len({folder("one", here), *others}) == 4


# --- in files


def test_a_file_holds_the_differences_and_what_they_are_made_of(
    pair: tuple[Measurement, Measurement], tmp_path: Path
) -> None:
    metrics.write_measurements(tmp_path / "both.json", pair)
    data = json.loads((tmp_path / "both.json").read_text())
    wanted = differences(*pair)
    assert data["difference"]["consistency.agreement"] == {
        name: getattr(wanted["consistency.agreement"], name)
        for name in ("value", "low", "high", "method", "n", "p", "caveat")
    }
    assert metrics.read_measurements(tmp_path / "both.json") == pair
    for name, measured in zip("ab", pair, strict=True):
        metrics.write_measurements(tmp_path / name, [measured])
        assert "difference" not in json.loads((tmp_path / name).read_text())
    (first,), (second,) = (metrics.read_measurements(tmp_path / name) for name in "ab")
    assert differences(first, second) == wanted


def test_packed_values_are_bit_for_bit_and_short() -> None:
    values = [0.1, -0.0, 1.0, 5e-324, math.pi, 1 / 3]
    again = unpack(pack(values), 6)
    assert [value.hex() for value in again] == [value.hex() for value in values]
    generator = random.Random(0)
    assert len(pack([float(generator.random() < 0.5) for _ in range(10_000)])) < 4_000
    assert unpack(pack([]), 0) == ()


@pytest.mark.parametrize("text", ["!", "QUJD", pack([1.0, 2.0])[:-8], pack([1.0, 2.0]), pack([0.0] * 10**6)])
def test_what_is_no_list_of_values(text: str) -> None:
    with pytest.raises(BlurifyError, match="no list of 3 values that blurify wrote"):
        unpack(text, 3)
