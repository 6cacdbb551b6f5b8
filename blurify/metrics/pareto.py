"""What partial conversions of a model cost and buy, side by side: the points among which a budget chooses. Plain data.

A point is dominated where another is at least as good in every figure and better in one; the others are the Pareto
front (Pareto, Manuale di economia politica, 1906): each is the best that there is for some wish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blurify.errors import BlurifyError
from blurify.metrics.results import Agreement, Estimate, read_as
from blurify.spec.recipes import Recipe

FORMAT = 1
USUAL, FEWEST = 12, 4
"""Points of a table."""


@dataclass(frozen=True)
class ParetoPoint:
    """One conversion.

    Attributes:
        steps: so many steps of the greedy order are taken; None for a conversion that is not on the way.
        what: what these steps are since the point before, in words; or what else it is.
        sites: how many are converted.
        extra_macs: multiply-adds that it adds to a forward, counted on it.
        extra_bytes: that it keeps for a backward beyond the original's, weighed on it; None where that can't be had.
        agreement: of the original and this conversion with the weights as they are; None where no pictures were shown.
        aliasing: share of energy above the new Nyquist frequency, the mean over the sites; without pictures by rule
            (docs/budgets.md), of white noise. None where it was measured at no site.
        recipe: converts the model so.
        present: it is the conversion that the user has.
    """

    steps: int | None
    what: tuple[str, ...]
    sites: int
    extra_macs: int
    extra_bytes: int | None
    agreement: Agreement | None
    aliasing: float | None
    recipe: Recipe
    present: bool = False

    @property
    def answers(self) -> Estimate | None:
        """The share of equal answers: top-1 of a classifier, labels by position of a label map; None of others."""
        return None if self.agreement is None else self.agreement.answers

    @property
    def kept(self) -> float | None:
        """What is kept of the answers, in 0..1: that share, else 1 less the relative error; None without pictures."""
        return None if self.agreement is None else self.agreement.kept

    def dominates(self, other: ParetoPoint) -> bool:
        """Whether this one is at least as good as another in every figure that both have, and better in one."""
        lost, others_lost = (None if point.kept is None else 1 - point.kept for point in (self, other))
        pairs: list[tuple[float | None, float | None]] = [
            (self.extra_macs, other.extra_macs),
            (self.extra_bytes, other.extra_bytes),
            (self.aliasing, other.aliasing),
            (lost, others_lost),
        ]
        known = [(one, two) for one, two in pairs if one is not None and two is not None]
        return all(one <= two for one, two in known) and any(one < two for one, two in known)


@dataclass(frozen=True)
class ParetoTable:
    """Conversions of one model from none to all of its sites, along the greedy order of a budget of multiply-adds.

    Attributes:
        model: what the user called it.
        data: which pictures; '' where none were shown: then costs are counted, and the rest is by rule.
        recipe: converts all of the sites.
        macs: multiply-adds of the original.
        bytes: that its forward keeps for a backward; None where that can't be had.
        sites: that the recipe converts.
        steps: of the whole greedy order, of which some are points.
        points: from none to all; one that is not on the way stands last.
        aliasing_images: on how many pictures the aliasing was measured; 0 for none.
        aliasing_sites: at how many sites.
    """

    model: str
    data: str
    recipe: Recipe
    macs: int
    bytes: int | None
    sites: int
    steps: int
    points: tuple[ParetoPoint, ...]
    aliasing_images: int = 0
    aliasing_sites: int = 0

    @property
    def measured(self) -> bool:
        """Whether pictures were shown."""
        return self.points[0].agreement is not None

    @property
    def front(self) -> tuple[bool, ...]:
        """Of each point, whether no other one dominates it."""
        return tuple(not any(other.dominates(point) for other in self.points) for point in self.points)

    def left(self, point: ParetoPoint) -> float | None:
        """The aliasing of a point, as a share of the original's; None where it was not measured."""
        before = self.points[0].aliasing
        if before is None or point.aliasing is None:
            return None
        return point.aliasing / before if before > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back. Each point has `kept`, `left` and `dominated` besides."""
        bare = dataclasses.replace(self, recipe=Recipe(), points=())
        points = [
            {
                **dataclasses.asdict(dataclasses.replace(point, recipe=Recipe())),
                "recipe": point.recipe.to_dict(),
                "kept": point.kept,
                "left": self.left(point),
                "dominated": not front,
            }
            for point, front in zip(self.points, self.front, strict=True)
        ]
        return {"format": FORMAT, **dataclasses.asdict(bare), "recipe": self.recipe.to_dict(), "points": points}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ParetoTable:
        """Read what `to_dict` wrote. Raises BlurifyError where it is something else."""
        if data.get("format") != FORMAT:
            raise BlurifyError(
                f"this Pareto table has format {data.get('format')!r}, this blurify reads format {FORMAT}: make another"
            )
        try:
            fields = {name: value for name, value in data.items() if name not in ("format", "recipe", "points")}
            kinds = {"model": str, "data": str, "bytes": int | None}
            read = {name: read_as(kinds.get(name, int), value) for name, value in fields.items()}
            points = tuple(map(_read_point, data["points"]))
            if not points:
                raise ValueError("it has no points")
            return cls(**read, recipe=Recipe.from_dict(data["recipe"]), points=points)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BlurifyError(f"this is not a Pareto table that blurify wrote ({error}): make another") from error


def check_points(count: int) -> None:
    """Raise BlurifyError for fewer points than a table has."""
    if count < FEWEST:
        raise BlurifyError(f"a Pareto table of {count} points is none: give at least {FEWEST}, {USUAL} are usual")


_KINDS = {
    "steps": int | None, "what": tuple[str, ...], "sites": int, "extra_macs": int, "extra_bytes": int | None,
    "agreement": Agreement | None, "aliasing": float | None, "present": bool,
}  # fmt: skip


def _read_point(data: Mapping[str, Any]) -> ParetoPoint:
    fields = {name: read_as(kind, data[name]) for name, kind in _KINDS.items()}
    return ParetoPoint(**fields, recipe=Recipe.from_dict(data["recipe"]))
