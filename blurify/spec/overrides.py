"""What a recipe wants at some sites and not at others: a `[[site]]` table, as immutable data.

A table has matchers, all of which must hold at a site, and settings, which then win over the recipe's own there. Which
settings there are is the recipe's affair (`blurify.spec.recipes`): here is whom they are for.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from blurify.errors import BlurifyError
from blurify.spec.words import nearest

Range: TypeAlias = "tuple[int | None, int | None]"
"""From and to, both included; None is open."""

MOST = 10_000
"""Tables in a recipe: more are somebody's attempt to keep the machine busy."""
LONGEST = 1000
"""Characters of a pattern."""
_MOST_NAMES = 100_000


@dataclass(frozen=True)
class Facts:
    """What matchers ask of a site.

    Attributes:
        name, kind, stride: as of `blurify.spec.plan.Site`.
        channels: of what it reads; None where that is not known (it did not run).
        depth: its number in running order, from 1; None where it did not run.
        of: how many sites run.
    """

    name: str
    kind: str
    stride: tuple[int, ...]
    channels: int | None = None
    depth: int | None = None
    of: int = 0


def facts_of(sites: Iterable[tuple[str, str, tuple[int, ...], tuple[int, ...]]]) -> tuple[Facts, ...]:
    """The facts of a model's sites, given as (name, kind, stride, input shape) in running order; () did not run."""
    given = list(sites)
    of, depth, found = sum(1 for *_, shape in given if shape), 0, []
    for name, kind, stride, shape in given:
        depth += bool(shape)
        channels = shape[-len(stride) - 1] if len(shape) > len(stride) else None
        found.append(Facts(name, kind, stride, channels, depth if shape else None, of))
    return tuple(found)


@dataclass(frozen=True)
class Override:
    """One `[[site]]` table of a recipe.

    Attributes:
        match: globs on the site's name, such as 'layer4.*'; one of them must match. None given: any name.
        regex: a regular expression that must match the whole name; '' for any. It is replaced by the names that it
            matches (`pinned`) before a plan is made, so that no file that is read holds one: an expression may take for
            ever.
        kind: kinds of site, one of which it must be; none given: any.
        stride: in every strided dimension, or one entry a spatial dimension; () for any.
        depth: its number in running order, from 1; negative ones count from the last site.
        channels: of what it reads.
        skip: True leaves the site alone, False converts it whatever the recipe says (the stem too), None says nothing.
        because: why, for the plan's reason; '' where the user says nothing.
        settings: (field of `Recipe`, its value at these sites), in the order of the fields.
    """

    match: tuple[str, ...] = ()
    regex: str = ""
    kind: tuple[str, ...] = ()
    stride: tuple[int, ...] = ()
    depth: Range | None = None
    channels: Range | None = None
    skip: bool | None = None
    because: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def exactly(cls, *names: str, **fields: Any) -> Override:
        """A table for the sites of these names alone (which may hold brackets)."""
        return cls(match=tuple(glob.escape(name) for name in names), **fields)

    def fits(self, site: Facts) -> bool:
        """Whether all matchers hold at a site."""
        return (
            (not self.match or any(fnmatch.fnmatchcase(site.name, one) for one in self.match))
            and (not self.regex or re.fullmatch(self.regex, site.name) is not None)
            and (not self.kind or site.kind in self.kind)
            and self._fits_stride(site.stride)
            and _within(self.channels, site.channels)
            and (self.depth is None or _within(_from_the_front(self.depth, site.of), site.depth))
        )

    def _fits_stride(self, stride: tuple[int, ...]) -> bool:
        if len(self.stride) == 1:
            return {step for step in stride if step > 1} == set(self.stride)
        return not self.stride or self.stride == stride

    def pinned(self, names: Iterable[str]) -> Override:
        """The same for these sites without a regular expression: with the names that it matches instead."""
        if not self.regex:
            return self
        matching = [name for name in names if re.fullmatch(self.regex, name)]
        both = [n for n in matching if not self.match or any(fnmatch.fnmatchcase(n, one) for one in self.match)]
        if not both:  # no pattern at all would match every site
            return self
        fields = {field: getattr(self, field) for field in self.__dataclass_fields__ if field not in ("match", "regex")}
        return Override.exactly(*both, **fields)

    def words(self) -> str:
        """The matchers, for a message."""
        parts = [f"match {one!r}" for one in self.match[:3]] + ["..."] * (len(self.match) > 3)
        parts += [f"regex {self.regex!r}"] * bool(self.regex) + [f"kind {' or '.join(self.kind)!r}"] * bool(self.kind)
        parts += [f"stride {list(self.stride)}"] * bool(self.stride)
        for name in ("depth", "channels"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {range_to_plain(getattr(self, name))}")
        return ", ".join(parts) or "every site"


def check_patterns(overrides: Sequence[Override], sites: Sequence[Facts]) -> None:
    """Refuse a table whose patterns match nothing: what it was to change would be converted otherwise.

    Tables without a pattern on names may match nothing: they are for many models.

    Raises:
        BlurifyError: names the pattern and the nearest site.
    """
    names = [site.name for site in sites]
    for number, override in enumerate(overrides, 1):
        where = f"[[site]] table {number} of the recipe"
        for pattern in override.match:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise BlurifyError(f"{where} has match {pattern!r}, which matches no site of this model: "
                                   f"{nearest_site(pattern, names)}")  # fmt: skip
        if override.regex and not any(re.fullmatch(override.regex, name) for name in names):
            raise BlurifyError(
                f"{where} has regex {override.regex!r}, which matches no site of this model: "
                f"{nearest_site(re.sub(r'[^A-Za-z0-9_.:]+', '', override.regex.replace(chr(92), '')), names)}"
            )
        if (override.match or override.regex) and not any(map(override.fits, sites)):
            named = next(s for s in sites if Override(match=override.match, regex=override.regex).fits(s))
            raise BlurifyError(
                f"{where} ({override.words()}) matches no site of this model: the nearest site is {named.name!r}, "
                f"a {named.kind} of stride {'x'.join(map(str, named.stride))}"
                + (f" with {named.channels} channels" if named.channels is not None else "")
                + (f", number {named.depth} of {named.of}" if named.depth is not None else "")
            )


def nearest_site(pattern: str, names: Sequence[str]) -> str:
    """'the nearest site is ...', for the end of a message."""
    if not names:
        return "it has no sites at all"
    close = nearest(pattern.strip("*."), names, count=1, cutoff=0.3)
    return f"the nearest site is {close[0]!r}" if close else "blurify inspect lists the sites"


# --- matchers as a file has them


def pattern(value: Any, where: str) -> str:
    """A glob or regular expression. Raises BlurifyError."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST:
        raise BlurifyError(f"{where} must be a pattern such as 'layer4.*' (at most {LONGEST} characters); got "
                           f"{str(value)[:80]!r}")  # fmt: skip
    return value


def patterns(value: Any, where: str) -> tuple[str, ...]:
    """One glob, or a list of them. Raises BlurifyError."""
    if not isinstance(value, list | tuple):
        return (pattern(value, where),)
    if len(value) > _MOST_NAMES:
        raise BlurifyError(f"{where} has {len(value)} patterns: give at most {_MOST_NAMES}")
    return tuple(pattern(one, f"an entry of {where}") for one in value)


def regular_expression(value: Any, where: str) -> str:
    """A regular expression that Python can read. Raises BlurifyError."""
    text = pattern(value, where)
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise BlurifyError(f"{where} is no regular expression ({error}): {text[:80]!r}") from error
    return text


def strides(value: Any, where: str) -> tuple[int, ...]:
    """A stride, or one entry a dimension. Raises BlurifyError."""
    given = value if isinstance(value, list | tuple) else (value,)
    if not 1 <= len(given) <= 3 or not all(type(one) is int and 1 <= one <= 2**20 for one in given):
        raise BlurifyError(f"{where} must be a stride such as 2 or [1, 2]; got {str(value)[:80]!r}")
    return tuple(given)


def span(value: Any, where: str) -> Range:
    """A number, [from, to], or 'from..to' with either end left out. Raises BlurifyError."""
    ends: list[Any] = [value, value]
    if isinstance(value, list | tuple) and len(value) == 2:
        ends = list(value)
    elif isinstance(value, str) and (found := re.fullmatch(r"\s*(-?\d{1,9})?\s*\.\.\s*(-?\d{1,9})?\s*", value)):
        ends = [int(end) if end else None for end in found.groups()]
    wrong = ends == [None, None] or not all(end is None or (type(end) is int and abs(end) < 2**31) for end in ends)
    if wrong or (None not in ends and ends[0] > ends[1] and (ends[0] < 0) == (ends[1] < 0)):
        raise BlurifyError(
            f"{where} must be a number, a range such as [2, 5], or '64..' for 64 and more; got {str(value)[:80]!r}"
        )
    return ends[0], ends[1]


def range_to_plain(value: Range) -> Any:
    """A range in the form that `span` reads."""
    low, high = value
    if low is None or high is None:
        return f"{'' if low is None else low}..{'' if high is None else high}"
    return low if low == high else [low, high]


def _within(wanted: Range | None, value: int | None) -> bool:
    if wanted is None:
        return True
    low, high = wanted
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def _from_the_front(wanted: Range, of: int) -> Range:
    """Negative numbers count from the last: -1 is the last site."""
    low, high = (end if end is None or end >= 0 else end + of + 1 for end in wanted)
    return low, high
