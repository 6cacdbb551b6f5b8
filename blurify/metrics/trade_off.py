"""The trade-off of converting a trained network site by site: answers kept against aliasing removed. Plain data."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blurify.errors import BlurifyError
from blurify.metrics.results import Agreement, Estimate, read_as
from blurify.spec.overrides import Override
from blurify.spec.recipes import Recipe

FORMAT = 1


@dataclass(frozen=True)
class RankedSite:
    """What converting one site alone costs and buys.

    Attributes:
        site, kind: its name and kind in the plan.
        agreement: of the original and the model with this site converted and no other.
        before, after: the share of energy above the new Nyquist frequency that the site subsamples in each of the two.
    """

    site: str
    kind: str
    agreement: Agreement
    before: Estimate
    after: Estimate

    @property
    def removed(self) -> float:
        """How much smaller that share is; negative where it grew."""
        return self.before.value - self.after.value

    @property
    def price(self) -> float:
        """What is lost of the agreement for each unit of aliasing removed; infinite where none is."""
        return self.agreement.lost / self.removed if self.removed > 0 else float("inf")


@dataclass(frozen=True)
class Step:
    """The first so many sites of a ranking converted together.

    Attributes:
        sites: how many.
        agreement: of the original and the model with these sites converted.
        removed: of the aliasing of all ranked sites, the share that is removed at these.
    """

    sites: int
    agreement: Agreement
    removed: float


@dataclass(frozen=True)
class Ranking:
    """The sites that a recipe converts, the one that costs least for what it buys first.

    Attributes:
        model: what the user called it.
        data: which pictures.
        recipe: converts all of the sites.
        sites: ranked by `price`.
        curve: one entry a site: those up to it converted together.
        aliasing_images: on how many pictures the shares were measured; the agreement says on how many itself was.
    """

    model: str
    data: str
    recipe: Recipe
    sites: tuple[RankedSite, ...]
    curve: tuple[Step, ...]
    aliasing_images: int

    def choose(self, keep: float, fits: Callable[[Recipe], bool] | None = None) -> Recipe:
        """A recipe that converts as many sites, in this order, as leave that much of the agreement.

        Args:
            keep: of the original's answers (`Agreement.kept`), 0.9 for 90%.
            fits: what else a recipe must fulfil, such as a budget.

        Returns:
            The recipe, with patterns that leave exactly the other sites alone.

        Raises:
            BlurifyError: converting anything changes more, or does not fit.
        """
        if not 0 < keep <= 1:
            raise BlurifyError(f"the agreement to keep is a share above 0 and up to 1, not {keep:g}: give 0.9 for 90%")
        fitting = [step.sites for step in self.curve if step.agreement.kept >= keep]
        if not fitting:
            best = max(self.curve, key=lambda step: step.agreement.kept)
            count = "one site" if best.sites == 1 else f"{best.sites} sites"
            raise BlurifyError(
                f"no conversion keeps {keep:.0%} of the agreement on {self.data}: {count} converted keep "
                f"{best.agreement.kept:.1%}, and that is the most; keep less, take the recipe 'gentle', or adapt the "
                "weights (blurify adapt)"
            )
        chosen = (self.first(count) for count in sorted(fitting, reverse=True))
        found = next((recipe for recipe in chosen if fits is None or fits(recipe)), None)
        if found is None:
            raise BlurifyError(
                f"what keeps {keep:.0%} of the agreement on {self.data} does not keep the budget: give a larger one, "
                "or keep less"
            )
        return found

    def first(self, count: int) -> Recipe:
        """A recipe that converts the first `count` sites of the ranking and no other."""
        left = [ranked.site for ranked in self.sites[count:]]
        if not left:
            return self.recipe
        return without(self.recipe, left, name=f"{self.recipe.name}, {count} of {len(self.sites)} sites")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        data = dataclasses.asdict(dataclasses.replace(self, recipe=Recipe()))
        return {"format": FORMAT, **data, "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranking:
        """Read what `to_dict` wrote. Raises BlurifyError where it is something else."""
        if data.get("format") != FORMAT:
            raise BlurifyError(
                f"this ranking has format {data.get('format')!r}, this blurify reads format {FORMAT}: rank again"
            )
        fields = {name: value for name, value in data.items() if name not in ("format", "recipe")}
        try:
            kinds = {"sites": tuple[RankedSite, ...], "curve": tuple[Step, ...], "aliasing_images": int}
            read = {name: read_as(kinds.get(name, str), value) for name, value in fields.items()}
            return cls(**read, recipe=Recipe.from_dict(data["recipe"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BlurifyError(f"this is not a ranking that blurify wrote ({error}): rank again") from error


def without(recipe: Recipe, sites: list[str], *, name: str = "") -> Recipe:
    """The recipe, but leaving these sites alone as well; `name` in place of its own."""
    if recipe.sites:  # which win over [skip], and might take these sites in
        return dataclasses.replace(
            recipe.with_sites([Override.exactly(*sites, skip=True, because="what it costs in answers")]),
            name=name or recipe.name,
        )
    exact = tuple(glob.escape(site) for site in sites)  # names may hold brackets
    return dataclasses.replace(recipe, name=name or recipe.name, skip_names=(*recipe.skip_names, *exact))
