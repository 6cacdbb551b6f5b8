"""Where the marks of the charts of evidence go: probability against shift, spectra, agreement against aliasing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from blurify.metrics.evidence import ShiftCurve, SiteSpectra
from blurify.metrics.results import Estimate
from blurify.reporting import words
from blurify.reporting.charts import CurveChart, Line, Mark, Tick, share, ticks_to
from blurify.reporting.words import FLOOR, decibels

_FIRST, _LAST = 14.0, 97.0  # percent, as of the other charts
_LAST_WIDE = 92.0  # where the last text of the axis is wide
_TOP, _AXIS = 18.0, 24.0  # pixels


def shifts(curve: ShiftCurve, *, height: float = 170.0) -> CurveChart:
    """Probabilities, upwards, by shift; all such charts have the same axis, from 0 to 1."""
    bottom = _TOP + height
    low, high = curve.shifts[0], curve.shifts[-1]

    def across(shift: float) -> float:
        return _FIRST + (_LAST - _FIRST) * (shift - low) / max(high - low, 1)

    lines, marks = [], []
    for series, values in enumerate(curve.probabilities):
        drawn = [
            Mark(
                series, across(shift), bottom - height * value, None, None,
                f"{words.signed(f'{shift:+d}')} pixels: {words.percent(value)}", small=True,
            )
            for shift, value in zip(curve.shifts, values, strict=True)
        ]  # fmt: skip
        lines += [Line(series, one.x, one.y, other.x, other.y) for one, other in itertools.pairwise(drawn)]
        marks += drawn
    shown = dict.fromkeys((low, 0 if low < 0 < high else low, high))
    return CurveChart(
        bottom + _AXIS,
        bottom,
        tuple(Tick(across(shift), words.signed(f"{shift:+d}") if shift else "0") for shift in shown),
        tuple(Tick(bottom - height * value, share(value)) for value in ticks_to(1.0)),
        tuple(lines),
        tuple(marks),
    )


def spectra(found: SiteSpectra, *, height: float = 220.0) -> CurveChart:
    """Power in decibels, upwards, by frequency in units of the new Nyquist frequency, which is marked."""
    bottom, right = _TOP + height, found.edges[-1]
    known = [part for part in found.models if part is not None]
    values = [decibels(power) for part in known for power in part.power if power > 0]
    top = 10.0 * -(-max(values, default=0.0) // 10)
    base = max(10.0 * (min(values, default=FLOOR) // 10), FLOOR)
    base = min(base, top - 10.0)

    def across(frequency: float) -> float:
        return _FIRST + (_LAST - _FIRST) * frequency / right

    def down(level: float) -> float:
        return bottom - height * (max(level, base) - base) / (top - base)

    lines = []
    for series, part in enumerate(found.models):
        if part is None:
            continue
        places = [
            (across((low + high) / 2), down(decibels(power)))
            for (low, high), power in zip(itertools.pairwise(found.edges), part.power, strict=True)
            if power > 0
        ]
        lines += [Line(series, *one, *other) for one, other in itertools.pairwise(places)]
    step = next((step for step in (10.0, 20.0, 40.0) if (top - base) / step <= 6), 80.0)
    levels = [base + step * index for index in range(int((top - base) / step) + 1)]
    return CurveChart(
        bottom + _AXIS,
        bottom,
        tuple(Tick(across(index / 2), f"{index / 2:g}") for index in range(round(2 * right) + 1))
        if right <= 2
        else tuple(Tick(across(index), f"{index:g}") for index in range(round(right) + 1)),
        tuple(Tick(down(level), words.signed(f"{level:g} dB")) for level in levels),
        tuple(lines),
        (),
        (Tick(across(1.0), "new Nyquist"),),
    )


@dataclass(frozen=True)
class Standing:
    """One model: how far it answers as the original, and how much it aliases.

    Attributes:
        series: which measurement.
        name: its role.
        aliasing: the mean share of energy above the new Nyquist frequency over the sites.
        kept: of the answers; None of the original itself, which has all of them.
    """

    series: int
    name: str
    aliasing: float
    kept: Estimate | None


def standings(found: Sequence[Standing], *, height: float = 200.0) -> CurveChart:
    """Answers kept, upwards, over aliasing, to the right: the top left corner is where one wants to be."""
    bottom = _TOP + height
    right = ticks_to(max(item.aliasing for item in found))

    def across(value: float) -> float:
        return _FIRST + (_LAST_WIDE - _FIRST) * value / right[-1]

    def down(value: float) -> float:
        return bottom - height * value

    marks = tuple(
        Mark(
            item.series,
            across(item.aliasing),
            down(1.0 if item.kept is None else item.kept.value),
            None if item.kept is None else down(item.kept.low),
            None if item.kept is None else down(item.kept.high),
            f"{item.name}: {words.percent(1.0 if item.kept is None else item.kept.value)} of the answers, "
            f"{words.percent(item.aliasing)} aliasing",
        )
        for item in found
    )
    return CurveChart(
        bottom + _AXIS,
        bottom,
        tuple(Tick(across(value), share(value)) for value in right),
        tuple(Tick(down(value), share(value)) for value in ticks_to(1.0)),
        (),
        marks,
    )
