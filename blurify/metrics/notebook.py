"""Measurements as notebooks show them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from blurify.metrics.differences import figures
from blurify.spec.notebook import table

if TYPE_CHECKING:
    from blurify.metrics.results import Estimate, Measurement

_WIDE = 0.2  # of an interval of a share: too few pictures to go by
_FEW = "too few pictures"


def measurement_table(measured: Measurement) -> str:
    """Every figure with its interval, one a row, and what was not measured and why."""
    rows = [(_words(name), *_cells(found)) for name, found in figures(measured).items()]
    anti = ", anti-aliased by blurify" if measured.converted else ""
    images = f"{measured.images} picture{'s' * (measured.images != 1)}"
    note = "; ".join(f"{name} is not measured: {why}" for name, why in measured.skipped.items())
    wide = f"{_FEW}: the interval is wider than {100 * _WIDE:.0f} points" if any(_FEW in row for row in rows) else ""
    return table(
        f"{measured.model}{anti}", ("figure", "mean", "95% interval", "pictures", ""), rows,
        says=f"{images} from {measured.data}", note="; ".join(filter(None, (wide, note))),
    )  # fmt: skip


def _cells(found: Estimate) -> tuple[str, str, str, str]:
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        return "no number", "", str(found.count), ""
    few = _FEW if found.high - found.low > _WIDE else ""
    return f"{found.value:.4g}", f"{found.low:.4g} to {found.high:.4g}", str(found.count), few


def _words(name: str) -> str:
    """'consistency.pixel_flips' -> 'consistency: pixel flips'; what follows is a name of the model's, and kept."""
    part, _, rest = name.partition(".")
    if part in ("aliasing", "equivariance"):
        return f"{part}: {rest}"
    return f"{part}: {rest.replace('.', ', ')}".replace("_", " ").replace("-", " ")
