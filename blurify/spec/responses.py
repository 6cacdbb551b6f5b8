"""What a filter does to each frequency, in the figures by which filters are compared.

Frequencies are in units of the new Nyquist frequency pi / s of a subsampling by s: up to 1 they stay, above they alias.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from blurify.spec.methods import Fourier, Method, method_to_dict
from blurify.spec.plan import Plan

_STEPS = 256  # of a curve, from 0 to 1
_HALF_POWER = math.sqrt(0.5)


@dataclass(frozen=True)
class Response:
    """The frequency response of one filter against one subsampling.

    Attributes:
        method: the filter.
        factor: the subsampling that it guards against.
        taps: its taps in one dimension; None where they depend on the signal's size (an ideal filter).
        dc: gain at frequency 0.
        half: gain at half of the new Nyquist frequency, in dB (None: nothing passes).
        nyquist: gain at the new Nyquist frequency, in dB.
        droop: of the gains in dB from 0 to half of the new Nyquist frequency, the one farthest from 0 dB.
        half_power: the lowest frequency at which half of the power passes (-3 dB); None where there is none.
        aliased: of what the filter passes of white noise, the share of the power above the new Nyquist frequency.
    """

    method: Method
    factor: int
    taps: tuple[float, ...] | None
    dc: float
    half: float | None
    nyquist: float | None
    droop: float
    half_power: float | None
    aliased: float

    def gains(self, highest: float, count: int) -> list[tuple[float, float]]:
        """(frequency, gain) at `count` + 1 places from 0 to `highest`."""
        places = [highest * k / count for k in range(count + 1)]
        return [(place, self.method.gain(self.factor, place)) for place in places]

    @property
    def macs(self) -> int | None:
        """Multiply-adds of one value in two dimensions; None where they depend on the map's size."""
        return None if isinstance(self.method, Fourier) else self.method.macs((self.factor, self.factor))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**data, "method": method_to_dict(self.method), "taps": None if self.taps is None else list(self.taps),
                "macs": self.macs}  # fmt: skip


@dataclass(frozen=True)
class UsedFilter:
    """A filter of a plan.

    Attributes:
        response: what it does.
        padding: how the signal goes on.
        sites: the names of the sites whose blur has it, in some dimension.
    """

    response: Response
    padding: str
    sites: tuple[str, ...]


def response_of(method: Method, factor: int) -> Response:
    """The figures of a filter against a subsampling by `factor`, at least 2.

    Example:
        >>> response_of(Flat(7), 2).nyquist
        -6.02...
    """
    curve = [method.gain(factor, k / _STEPS) for k in range(_STEPS // 2 + 1)]
    droop = max((decibels(gain) or 0.0 for gain in curve), key=abs)
    return Response(
        method,
        factor,
        None if isinstance(method, Fourier) else method.filter(factor),
        method.gain(factor, 0.0),
        decibels(method.gain(factor, 0.5)),
        decibels(method.gain(factor, 1.0)),
        droop,
        _half_power(method, factor),
        _aliased(method, factor),
    )


def filters_of(plan: Plan) -> list[UsedFilter]:
    """The filters of the blurs of a plan, each once, in the order in which they are first used."""
    sites: dict[tuple[Method, int, str], dict[str, None]] = {}
    for site in plan.sites:
        for edit in site.edits:
            if edit.blur is None or edit.blur.method.is_identity:
                continue
            for factor in edit.blur.factor:
                if factor > 1:
                    sites.setdefault((edit.blur.method, factor, edit.blur.padding), {})[site.name] = None
    return [
        UsedFilter(response_of(method, factor), padding, tuple(names))
        for (method, factor, padding), names in sites.items()
    ]


def decibels(gain: float) -> float | None:
    """A gain in dB; None where nothing passes (less than -200 dB)."""
    return 20 * math.log10(gain) if gain > 1e-10 else None


def _half_power(method: Method, factor: int) -> float | None:
    """By bisection between the first two places of a fine grid that have it between them."""
    before = 0.0
    for k in range(1, factor * _STEPS + 1):
        place = k / _STEPS
        if method.gain(factor, place) <= _HALF_POWER:
            low, high = before, place
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (low, middle) if method.gain(factor, middle) <= _HALF_POWER else (middle, high)
            return round(high, 9)
        before = place
    return None


def _aliased(method: Method, factor: int) -> float:
    """The power above 1 by the midpoint rule, over all of it."""
    steps = max(16, 2048 // factor)  # of each unit of frequency
    power = [method.gain(factor, (k + 0.5) / steps) ** 2 for k in range(factor * steps)]
    return math.fsum(power[steps:]) / math.fsum(power)
