"""Figures in words, the same on the page, in its charts and in the files."""

from __future__ import annotations

import math
from collections.abc import Sequence

from blurify.metrics import sizes
from blurify.metrics.results import Estimate


def percent(value: float) -> str:
    """0.853 -> '85.3%'; more digits near the ends: 0.0042 -> '0.42%', 0.9996 -> '99.96%'."""
    if not math.isfinite(value):
        return "no number"
    rest = min(abs(value), abs(1 - value))
    digits = 3 if 0 < rest < 0.0005 else 2 if 0 < rest < 0.01 else 1
    return f"{100 * value:.{digits}f}%"


def interval(estimate: Estimate) -> str:
    """The 95% interval: '84.1 to 86.2%'."""
    return f"{percent(estimate.low).removesuffix('%')} to {percent(estimate.high)}"


def distance(value: float) -> str:
    """A distance between feature maps: 0.3142 -> '0.314'."""
    return f"{value:.3f}" if math.isfinite(value) else "no number"


def seconds(value: float) -> str:
    """A time: 4.24 -> '4.2 s', 312.0 -> '5 min 12 s'."""
    if not math.isfinite(value):
        return "no number"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def points(value: float) -> str:
    """A difference of two shares in percentage points: 0.071 -> '+7.1', with a true minus sign."""
    if not math.isfinite(value):
        return "no number"
    digits = 2 if 0 < abs(value) < 0.01 else 1
    return signed(f"{100 * value:+.{digits}f}")


def signed(text: str) -> str:
    """A number's text with a true minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def arrows(text: str) -> str:
    """'20 MB -> 25 MB (-3%)' with a true arrow and minus sign."""
    return text.replace("->", "→").replace("(-", "(−")


def dimensions(values: Sequence[int]) -> str:
    """(3, 3) -> '3×3'."""
    return sizes.dimensions(values, "×")


def plain(text: str) -> str:
    """A name of somebody else's as one line of printable characters, which every file format can hold."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


FLOOR = -80.0


def decibels(power: float) -> float:
    """A power over that of reference in decibels: 10 log10, never below the floor."""
    return max(10 * math.log10(power), FLOOR) if power > 0 else FLOOR


def milliseconds(value: float) -> str:
    """A short time, given in seconds: 0.0203 -> '20.3 ms', 2.04 -> '2.04 s'."""
    if not math.isfinite(value):
        return "no number"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
