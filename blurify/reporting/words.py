"""Figures in words, the same on the page, in its charts and in the files."""

from __future__ import annotations

import math
import re
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


_OF_SIGNALS = (
    (r"\b1 px right\b", "1 sample later"),
    (r"\b1 px left\b", "1 sample earlier"),
    (r"\bpx right\b", "samples later"),
    (r"\bpx left\b", "samples earlier"),
    (r"\bmoved right\b", "moved later"),
    (r"(?<!models of )\bpictures\b", "signals"),
    (r"\bPictures\b", "Signals"),
    (r"\bpicture\b", "signal"),
    (r"\bpixels\b", "samples"),
    (r"\bpixel\b", "sample"),
    (r"\bcrops\b", "windows"),
    (r"\bcrop\b", "window"),
)
_NOT_OURS = frozenset("head bdi code pre".split())


def of_signals(page: str) -> str:
    """A page in the words of signals: all text but what is somebody's name, or code."""
    inside = 0
    parts = re.split(r"(<[^>]*>)", page)
    for index, part in enumerate(parts):
        tag = re.match(r"<(/?)([a-z0-9]+)", part)
        if tag is not None and tag[2] in _NOT_OURS:
            inside += -1 if tag[1] else 1
        elif not part.startswith("<") and not inside:
            for pattern, word in _OF_SIGNALS:
                part = re.sub(pattern, word, part)
            parts[index] = part
    return "".join(parts)
