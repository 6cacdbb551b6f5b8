"""Sizes and counts in words, for tables, pages and messages alike."""

from __future__ import annotations

from collections.abc import Sequence


def dimensions(values: Sequence[int], sign: str = "x") -> str:
    """(3, 3) -> '3x3'."""
    return sign.join(map(str, values))


def amount(number: float) -> str:
    """A count with a unit: 1820000000 -> '1.82 G'."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
