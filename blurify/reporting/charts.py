"""Where each mark of the page's charts goes.

The charts are SVG without a view box: across they are measured in percent of their own width and down in pixels, so
that a chart fills whatever width there is and its text keeps its size, on a wide screen and on a phone. The templates
only write down what is computed here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from blurify.metrics.pareto import ParetoPoint, ParetoTable
from blurify.metrics.results import Estimate
from blurify.reporting import words
from blurify.reporting.content import Curve, Row, TradeOff
from blurify.spec.adapted import Stage

_ROW_TEXT, _ROW_MARK, _ROW_GAP = 22, 16, 12  # pixels: the line of text over the marks, each mark, the space below
_AXIS = 24  # pixels below a chart, for the labels of its axis
_LEFT, _RIGHT = 1.5, 98.5  # percent: keeps marks at the ends whole
_FIRST, _LAST = 14.0, 97.0  # percent: of the first and last point of a curve; the values of the axis stand before them
_LAST_COST = 92.0  # percent: of the highest cost, whose text is wide
_TOP = 18  # pixels above the highest value
_MOST_TICKS = 12
_ASIDE = 1.1  # percent: by how much the marks of two measurements at one point stand aside of it

_Value = tuple[float, float | None, float | None]  # a value, and the ends of its interval where it has one


@dataclass(frozen=True)
class Tick:
    """A line of the axis: where (percent across, or pixels down), and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """One estimate: its place, and the ends of its interval along the axis of the values.

    Attributes:
        series: which measurement.
        x, y: percent across, pixels down.
        low, high: in the unit of the axis of the values; None where there is no interval.
        text: what it says in words.
        small: it is of less weight than the others.
        ringed: it is to be found at a glance.
    """

    series: int
    x: float
    y: float
    low: float | None
    high: float | None
    text: str
    small: bool = False
    ringed: bool = False


@dataclass(frozen=True)
class Line:
    """A piece of a curve between two neighbouring points."""

    series: int
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class DotRow:
    """A row of a chart of intervals: its text, where that stands, and the marks below it."""

    label: str
    text: str
    y: float
    bottom: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class DotChart:
    """Estimates with their intervals, one row a figure, values to the right."""

    height: float
    ticks: tuple[Tick, ...]
    rows: tuple[DotRow, ...]


@dataclass(frozen=True)
class CurveChart:
    """Estimates by depth or severity, values upwards.

    `guides` are lines from top to bottom: where something changes, and what.
    """

    height: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    guides: tuple[Tick, ...] = ()


def dots(rows: Sequence[Row]) -> DotChart:
    """Rows of shares as a chart of intervals on one axis from 0."""
    values = ticks_to(max((item.high for row in rows for item in row.estimates if drawable(item)), default=1.0))

    def across(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * value / values[-1]

    y, found = 0.0, []
    for row in rows:
        top, marks, texts = y, [], []
        y += _ROW_TEXT
        for series, item in enumerate(row.estimates):
            if item is not None:
                texts.append(words.percent(item.value))
            if drawable(item):
                text = f"{words.percent(item.value)} ({words.interval(item)})"
                marks.append(
                    Mark(series, across(item.value), y + _ROW_MARK / 2, across(item.low), across(item.high), text)
                )
            y += _ROW_MARK
        found.append(DotRow(row.label, " → ".join(texts), top + _ROW_TEXT - 7, y, tuple(marks)))
        y += _ROW_GAP
    axis = tuple(Tick(across(value), share(value)) for value in values)
    return DotChart(y + _AXIS, axis, tuple(found))


def curves(curve: Curve, *, height: float = 220.0, highest: float | None = None) -> CurveChart:
    """Shares with intervals at the points of a curve.

    Args:
        curve: the shares.
        height: in pixels, without the axis.
        highest: the value at the top of the axis; the largest of the curve where None. Charts that are to be compared
            share it.
    """
    top = highest if highest is not None else largest([curve])
    values: list[list[_Value | None]] = []
    texts = []
    for part in curve.series:
        values.append([(item.value, item.low, item.high) if drawable(item) else None for item in part])
        texts.append(
            [
                f"{point}: {words.percent(item.value)} ({words.interval(item)})" if drawable(item) else ""
                for item, point in zip(part, curve.points, strict=True)
            ]
        )
    return _curves(len(curve.points), values, texts, [(value, share(value)) for value in ticks_to(top)], height)


def depth(points: Sequence[str], series: Sequence[Sequence[float | None]], *, height: float = 220.0) -> CurveChart:
    """Distances without intervals, by depth.

    Args:
        points: the names of the layers.
        series: one entry a measurement, in it one entry a layer.
        height: in pixels, without the axis.
    """
    kept = [[item if item is not None and math.isfinite(item) else None for item in part] for part in series]
    top = ticks_to(max((item for part in kept for item in part if item is not None), default=1.0), most=None)
    texts = [
        ["" if item is None else f"{point}: {words.distance(item)}" for item, point in zip(part, points, strict=True)]
        for part in kept
    ]
    values: list[list[_Value | None]] = [
        [None if item is None else (item, None, None) for item in part] for part in kept
    ]
    return _curves(len(points), values, texts, [(value, f"{value:.3g}") for value in top], height)


def trade_off(points: Sequence[TradeOff], *, height: float = 220.0) -> CurveChart:
    """Answers kept, upwards, over aliasing removed, to the right; the points in their order."""
    bottom = _TOP + height
    across_ticks = ticks_to(max(point.removed for point in points))
    left = min(0.0, *(point.removed for point in points))  # a site may alias more than before
    up_ticks = ticks_to(1.0)

    def across(value: float) -> float:
        return _FIRST + (_LAST - _FIRST) * (value - left) / (across_ticks[-1] - left)

    def down(value: float) -> float:
        return bottom - height * value

    marks = [
        Mark(
            0,
            across(point.removed),
            down(point.kept),
            None if point.low is None else down(point.low),
            None if point.high is None else down(point.high),
            f"{point.label}: {words.percent(point.kept)} kept, {words.signed(words.percent(point.removed))} removed",
        )
        for point in points
    ]
    lines = [Line(0, one.x, one.y, other.x, other.y) for one, other in itertools.pairwise(marks)]
    return CurveChart(
        bottom + _AXIS,
        bottom,
        tuple(Tick(across(value), share(value)) for value in across_ticks),
        tuple(Tick(down(value), share(value)) for value in up_ticks),
        tuple(lines),
        tuple(marks),
    )


KEPT, LEFT = 1, 0
"""The series of a chart of partial conversions: answers kept, aliasing left."""


def pareto(table: ParetoTable, cost: str, *, height: float = 220.0) -> CurveChart | None:
    """Answers kept and aliasing left, upwards, over what partial conversions cost, to the right.

    The scale of the costs is that of their square roots, as most sites are cheap; what is saved lies left of 0. Marks
    are small where another point dominates.

    Args:
        table: of the conversions.
        cost: 'macs' | 'bytes'.
        height: in pixels, without the axis.

    Returns:
        the chart; None where the cost is not known.
    """
    costs = [cost_of(table, point, cost) for point in table.points]
    known = [value for value in costs if value is not None]
    if len(known) < len(costs):
        return None
    ticks = cost_ticks(min(known), max(known))
    first, last = (root(end(*known, *ticks)) for end in (min, max))
    shares = [value for point in table.points for value in (point.kept, table.left(point)) if value is not None]
    up_ticks = ticks_to(max(1.0, *shares), most=None)
    bottom = _TOP + height

    def across(value: float) -> float:
        return _FIRST + (_LAST_COST - _FIRST) * (root(value) - first) / (last - first)

    def down(value: float) -> float:
        return bottom - height * value / up_ticks[-1]

    lines, marks = [], []
    for series, words_of in ((LEFT, "of the aliasing left"), (KEPT, "of the answers kept")):
        before: Mark | None = None
        for point, value, front in zip(table.points, known, table.front, strict=True):
            share_of = point.kept if series == KEPT else table.left(point)
            if share_of is None:
                continue
            ends = point.answers if series == KEPT else None
            text = f"{'; '.join(point.what[:3])}: {words.percent(share_of)} {words_of}"
            mark = Mark(
                series, across(value), down(share_of), None if ends is None else down(ends.low),
                None if ends is None else down(ends.high), f"{text} at {words.signed(f'{value:+.2%}')}",
                small=not front, ringed=point.present,
            )  # fmt: skip
            marks.append(mark)
            if before is not None and cost == "macs" and point.steps is not None:  # of memory, the order is none
                lines.append(Line(series, before.x, before.y, mark.x, mark.y))
            before = mark if point.steps is not None else None
    return CurveChart(
        bottom + _AXIS,
        bottom,
        tuple(Tick(across(value), words.signed(share(value))) for value in ticks),
        tuple(Tick(down(value), share(value)) for value in up_ticks),
        tuple(lines),
        tuple(marks),
    )


def cost_of(table: ParetoTable, point: ParetoPoint, cost: str) -> float | None:
    """What a point costs, as a share of what the original does; None where that is not known, or the original nothing.

    Args:
        table: with the point.
        cost: 'macs' | 'bytes'.
    """
    part, whole = (point.extra_macs, table.macs) if cost == "macs" else (point.extra_bytes, table.bytes)
    return None if part is None or not whole else part / whole


def root(value: float) -> float:
    """The square root, with the value's own sign."""
    return math.copysign(math.sqrt(abs(value)), value)


def cost_ticks(low: float, high: float) -> list[float]:
    """Round costs from low to high or a little beyond, 0 among them, that stand apart on a scale of square roots."""
    sides = [(sign, _root_ticks(most)) for sign, most in ((-1, -low), (1, high if high > 0 or low < 0 else 0.01))]
    reach = math.fsum(root(values[-1]) for _, values in sides if values)
    kept = [0.0]
    for sign, values in sides:
        before = 0.0
        for value in values:
            last = value == values[-1]
            if min(root(value) - before, math.inf if last else root(values[-1]) - root(value)) > _APART * reach:
                kept.append(sign * value)
                before = root(value)
    return sorted(kept)


_APART = 0.2  # of the axis: on a phone, the room that a text needs


def _root_ticks(most: float) -> list[float]:
    """Round numbers from a thousandth of the largest value to the first at or above it."""
    if not most > 0:
        return []
    power = 10.0 ** math.floor(math.log10(most))
    end = next(step * power for step in (1, 1.5, 2, 3, 5, 7, 10) if step * power >= most * (1 - 1e-9))
    values = [step * power * scale for scale in (0.001, 0.01, 0.1, 1) for step in (1, 2, 5)]
    return [round(value, 12) for value in (*(value for value in values if value < end), end)]


def stages(found: Sequence[Stage], *, height: float = 160.0) -> CurveChart:
    """Where adapting stood after each stage: answers kept, or the distance where the outputs are no classes.

    A stage that was taken back has a mark, and no line leads to it: the next one went on from where it was before.
    """
    classes = all(stage.same is not None for stage in found)
    values = [stage.same if classes and stage.same is not None else stage.distance for stage in found]
    top = ticks_to(1.0) if classes else ticks_to(max(filter(math.isfinite, values), default=1.0), most=None)
    bottom, last = _TOP + height, max(len(found) - 1, 1)
    marks, lines, before = [], [], None
    for index, (stage, value) in enumerate(zip(found, values, strict=True)):
        if not math.isfinite(value):
            continue
        text = words.percent(value) if classes else f"{value:.3g}"
        text = f"{stage.name}: {text}{'' if stage.kept else ', taken back'}"
        x = _FIRST + (_LAST - _FIRST) * index / last
        mark = Mark(1 if stage.kept else 0, x, bottom - height * value / top[-1], None, None, text)
        if stage.kept:
            if before is not None:
                lines.append(Line(1, before.x, before.y, mark.x, mark.y))
            before = mark
        marks.append(mark)
    return CurveChart(
        bottom + _AXIS,
        bottom,
        tuple(Tick(_FIRST + (_LAST - _FIRST) * index / last, str(index + 1)) for index in range(len(found))),
        tuple(Tick(bottom - height * value / top[-1], share(value) if classes else f"{value:.3g}") for value in top),
        tuple(lines),
        tuple(marks),
    )


def largest(found: Sequence[Curve]) -> float:
    """The upper end of all intervals of some curves."""
    return max((item.high for curve in found for part in curve.series for item in part if drawable(item)), default=1.0)


def ticks_to(highest: float, *, most: float | None = 1.0) -> list[float]:
    """Round values from 0 to the first at or above the highest, three to six of them; never beyond `most`."""
    if not highest > 0:
        highest = 0.01
    if most is not None:
        highest = min(highest, most)
    unit = 10.0 ** math.floor(math.log10(highest))
    step = next(
        step for step in (unit / 5, unit / 4, unit / 2, unit, 2 * unit, 2.5 * unit) if step * 5 >= highest * (1 - 1e-9)
    )
    count = math.ceil(highest / step - 1e-9)
    values = [round(index * step, 12) for index in range(count + 1)]
    return [value for value in values if most is None or value <= most]


def share(value: float) -> str:
    """A value of an axis: 0.125 -> '12.5%'."""
    return f"{100 * value:g}%"


def drawable(item: Estimate | None) -> TypeGuard[Estimate]:
    """Whether there is an estimate with a place on an axis: a model that answers nan gives figures without one."""
    return item is not None and all(map(math.isfinite, (item.value, item.low, item.high)))


def _curves(
    count: int,
    series: Sequence[Sequence[_Value | None]],
    texts: Sequence[Sequence[str]],
    ticks: list[tuple[float, str]],
    height: float,
) -> CurveChart:
    bottom = _TOP + height
    # Side by side, so that equal values of two measurements both show.
    aside = min(_ASIDE, (_LAST - _FIRST) / max(count - 1, 1) / 6) if len(series) > 1 else 0.0
    middle = (len(series) - 1) / 2

    def across(index: int, number: float = middle) -> float:
        point = _FIRST + (_LAST - _FIRST) * (index / (count - 1) if count > 1 else 0.5)
        return point + (aside * (number - middle) / middle if middle else 0.0)

    def down(value: float | None) -> float | None:
        return None if value is None else bottom - height * value / ticks[-1][0]

    lines, marks = [], []
    for number, (part, said) in enumerate(zip(series, texts, strict=True)):
        before: Mark | None = None
        for index, (item, text) in enumerate(zip(part, said, strict=True)):
            if item is None:
                before = None
                continue
            value, low, high = item
            y = bottom - height * value / ticks[-1][0]
            mark = Mark(number, across(index, number), y, down(low), down(high), text)
            if before is not None:
                lines.append(Line(number, before.x, before.y, mark.x, mark.y))
            marks.append(mark)
            before = mark
    every = max(1, math.ceil(count / _MOST_TICKS))
    return CurveChart(
        bottom + _AXIS,
        bottom,
        tuple(Tick(across(index), str(index + 1)) for index in range(0, count, every)),
        tuple(Tick(bottom - height * value / ticks[-1][0], text) for value, text in ticks),
        tuple(lines),
        tuple(marks),
    )
