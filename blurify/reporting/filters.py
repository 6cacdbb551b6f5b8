"""The filters of a plan for the page: a frequency response each, as a curve and in figures."""

from __future__ import annotations

import itertools
from typing import Any

from blurify.metrics.sizes import amount
from blurify.reporting import words
from blurify.reporting.charts import CurveChart, Line, Mark, Tick, ticks_to
from blurify.spec.plan import Plan
from blurify.spec.responses import Response, UsedFilter, filters_of

_HEIGHT, _TOP, _AXIS = 180.0, 18.0, 24.0  # pixels
_FIRST, _LAST = 14.0, 97.0  # percent, as of the other charts
_HIGHEST = 4  # new Nyquist frequencies: beyond, nothing is to be seen
_POINTS = 96
_MOST_TAPS = 40
_SERIES = 1  # the colour of what is converted


def section(plan: Plan) -> list[dict[str, Any]]:
    """One entry a filter; none for a plan that blurs nothing."""
    return [_entry(used) for used in filters_of(plan)]


def _entry(used: UsedFilter) -> dict[str, Any]:
    found, count = used.response, len(used.sites)
    half_power = "never" if found.half_power is None else f"{found.half_power:.3f}"
    return {
        "name": found.method.words(),
        "factor": found.factor,
        "padding": used.padding,
        "sites": f"{amount(count)} site{'s' * (count != 1)}",
        "dc": f"{found.dc:.4f}",
        "half": _db(found.half),
        "nyquist": _db(found.nyquist),
        "droop": _db(found.droop),
        "half_power": half_power,
        "aliased": words.percent(found.aliased),
        "taps": _taps(found),
        "chart": chart(found),
        "says": f"gain in dB {_db(found.half)} at 1/2, {_db(found.nyquist)} at 1; -3 dB at {half_power}",
    }


def chart(found: Response) -> CurveChart:
    """Gain, upwards, by frequency; marked at 0, 1/2 and 1."""
    right = min(found.factor, _HIGHEST)
    gains = found.gains(right, _POINTS)
    values = ticks_to(max(1.0, *(gain for _, gain in gains)), most=None)
    bottom = _TOP + _HEIGHT

    def across(frequency: float) -> float:
        return _FIRST + (_LAST - _FIRST) * frequency / right

    def down(gain: float) -> float:
        return bottom - _HEIGHT * gain / values[-1]

    lines = [
        Line(_SERIES, across(one), down(gain), across(other), down(next_gain))
        for (one, gain), (other, next_gain) in itertools.pairwise(gains)
    ]
    marked = [(place, found.method.gain(found.factor, place)) for place in (0.0, 0.5, 1.0)]
    return CurveChart(
        bottom + _AXIS,
        bottom,
        tuple(Tick(across(k / 2), f"{k / 2:g}") for k in range(2 * right + 1)),
        tuple(Tick(down(value), f"{value:g}") for value in values),
        tuple(lines),
        tuple(Mark(_SERIES, across(f), down(g), None, None, f"gain {g:.3f} at {f:g}") for f, g in marked),
    )


def _db(value: float | None) -> str:
    return "nothing passes" if value is None else words.signed(f"{value + 0.0:.2f}")


def _taps(found: Response) -> str:
    if found.taps is None:
        return "as many as the map has samples"
    shown = " ".join(words.signed(f"{tap:.4g}") for tap in found.taps[:_MOST_TAPS])
    return shown if len(found.taps) <= _MOST_TAPS else f"{shown} ... ({len(found.taps)} in all)"
