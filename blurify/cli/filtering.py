"""The options of every command that converts which change a recipe's filter, and what the shell completes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from blurify.cli.spreading import with_options
from blurify.errors import BlurifyError
from blurify.spec.filters import PADDINGS

if TYPE_CHECKING:
    from blurify.spec.recipes import Recipe


def complete_padding(incomplete: str) -> list[str]:
    """The paddings that begin so, for the shell."""
    return [name for name in PADDINGS if name.startswith(incomplete)]


@dataclass(frozen=True)
class Filters:
    """The options that change a recipe's filter."""

    filter_size: Annotated[
        int | None, typer.Option(metavar="1..7", help="Taps of the binomial filter; wins over the recipe's filter.")
    ] = None
    taps: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Your own filter, such as 1,2,1; it is normalised.")
    ] = None
    padding: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PADDINGS), help="What a filter reads beyond the border; wins over the recipe's.",
            autocompletion=complete_padding,
        ),
    ] = None  # fmt: skip

    @property
    def given(self) -> list[str]:
        """The names of the options that were used."""
        return self.words()[::2]

    def words(self) -> list[str]:
        """The options again, for a command line that converts the same way."""
        named = (("--filter-size", self.filter_size), ("--taps", self.taps), ("--padding", self.padding))
        return [word for name, value in named if value is not None for word in (name, str(value))]

    def check(self) -> None:
        """Raise BlurifyError for a filter or padding that does not exist, before anything is loaded."""
        if self.filter_size is not None and not 1 <= self.filter_size <= 7:
            raise BlurifyError(
                f"--filter-size {self.filter_size} does not exist: choose 1 (the identity) to 7, 4 is the default"
            )
        if self.filter_size is not None and self.taps is not None:
            raise BlurifyError("--filter-size and --taps are two ways to say the same thing: give one of them")
        parse_taps(self.taps)
        if self.padding is not None and self.padding not in PADDINGS:
            from blurify.spec.words import did_you_mean, nearest

            hint = did_you_mean(nearest(self.padding, PADDINGS)) or f": choose one of {', '.join(PADDINGS)}"
            raise BlurifyError(f"--padding {self.padding!r} does not exist{hint}")

    def on(self, recipe: Recipe) -> Recipe:
        """The recipe with these in place of its own."""
        return recipe.with_filter(self.filter_size, parse_taps(self.taps), self.padding)


def parse_taps(text: str | None) -> tuple[float, ...] | None:
    """'1,2,1' -> (1.0, 2.0, 1.0). Raises BlurifyError for what is no list of numbers, or no low-pass filter."""
    if text is None:
        return None
    try:
        taps = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        taps = ()
    if not taps or not all(map(math.isfinite, taps)):
        raise BlurifyError(f"--taps {text!r} is no filter: give numbers with commas between, such as 1,2,1")
    from blurify.spec.filters import MAX_TAPS, resolve_taps

    if len(taps) > MAX_TAPS:
        raise BlurifyError(f"--taps has {len(taps)} numbers: give at most {MAX_TAPS}")
    resolve_taps(None, taps)
    return taps


with_filters = with_options("filters", Filters, behind="recipe")
"""Give a command, whose parameter `filters` is keyword-only, the options of `Filters`, behind --recipe."""
