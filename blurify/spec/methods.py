"""How a blur filters: a tagged union. Today separable taps; another kind of filter is another class in `METHODS`.

A method is plain data. What it needs elsewhere hangs on its class: the layer that runs it (`blurify.nn.build`), the
method under which a conversion must compute the original (`identity`), one that shows in every feature map (`probe`),
and its cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from blurify.errors import BlurifyError
from blurify.spec.filters import MAX_TAPS, compose_taps, is_box
from blurify.spec.reading import require


@dataclass(frozen=True)
class Taps:
    """A separable filter of a few taps, the same in every dimension that is filtered.

    Attributes:
        taps: designed for a subsampling by 2, summing to 1; for other factors they are composed (`compose_taps`).
    """

    taps: tuple[float, ...]
    kind: ClassVar[str] = "taps"

    @property
    def is_identity(self) -> bool:
        """Whether nothing is filtered."""
        return len(self.taps) == 1

    def identity(self) -> Method:
        """The method of this kind that filters nothing."""
        return Taps((1.0,))

    def probe(self) -> Method:
        """A method of this kind that changes every feature map that is not constant."""
        return Taps((0.25, 0.5, 0.25))

    def macs(self, factor: tuple[int, ...]) -> int:
        """Multiply-adds for one output value, where the filter guards against `factor` (one a dimension).

        A plain average has none, as the pools of a network have none: it runs as an average pool.
        """
        filters = [taps for one in factor if len(taps := compose_taps(self.taps, one)) > 1]
        return 0 if not filters or all(map(is_box, filters)) else math.prod(map(len, filters))

    def smoothing(self, factor: int) -> float:
        """The variance that is left of white noise in one dimension: the sum of the squared taps (1: none is lost)."""
        return sum(tap * tap for tap in compose_taps(self.taps, factor))


Method: TypeAlias = Taps
METHODS: dict[str, type[Method]] = {cls.kind: cls for cls in (Taps,)}
"""The kinds of filter, by the tag that stands in files."""


def method_to_dict(method: Method) -> dict[str, Any]:
    """The method as plain data for JSON, with its tag."""
    return {"kind": method.kind, "taps": list(method.taps)}


def method_from_dict(data: Mapping[str, Any]) -> Method:
    """Read what `method_to_dict` wrote. Raises BlurifyError for a kind that this blurify does not know."""
    if str(data.get("kind")) not in METHODS:
        raise BlurifyError(f"unknown kind of filter {data.get('kind')!r}: this blurify knows {', '.join(METHODS)}")
    return taps_from(data["taps"])


def taps_from(values: Any) -> Taps:
    """Taps that a file says. Raises ValueError where they are none."""
    taps = tuple(float(tap) for tap in values)
    require(1 <= len(taps) <= MAX_TAPS and all(map(math.isfinite, taps)), "taps that are no filter")
    return Taps(taps)
