"""The ways to convert each site, what each removes and costs, and the greedy order in which to take them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from blurify import conversion
from blurify.graph.copies import sharing_copy
from blurify.metrics.aliasing import aliasing
from blurify.metrics.keeping import of_model
from blurify.metrics.kept import Kept
from blurify.metrics.subject import Pictures, Subject, Watch
from blurify.spec.filters import leakage
from blurify.spec.methods import Fourier
from blurify.spec.overrides import Override
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import Recipe

ALIASING_IMAGES = 32
_DETAIL_LOST = 0.9  # a blur before a convolution also takes what it would have used (Zhang 2019, section 3)
_AVERAGE = {"size": 2}
_WORDS = {"placement": "before the convolution", "size": "average of two samples"}

Form = dict[str, Any]
"""How a site is converted, otherwise than the recipe says: {"placement": "before"}, {"size": 2}, both, or neither."""


@dataclass(frozen=True)
class Option:
    """One way to convert the sites of a group: those that share a blur.

    Attributes:
        settings: the form of each site, by its name.
        gain: of aliasing, how much is removed.
        macs: what it adds.
        bytes: the same.
    """

    settings: dict[str, Form]
    gain: float
    macs: int
    bytes: int = 0

    def words(self) -> str:
        """'layer2.0.conv1: before the convolution', 'maxpool: as the recipe says'."""
        form = next(iter(self.settings.values()))
        how = ", ".join(words for key, words in _WORDS.items() if key in form)
        return f"{' and '.join(self.settings)}: {how or 'as the recipe says'}"


@dataclass(frozen=True)
class Limit:
    """How much may be spent of one thing, and how much of it an option takes.

    Attributes:
        most: the limit; infinite for none.
        unit: what prices are in.
        cost: of an option.
    """

    most: float
    unit: float
    cost: Callable[[Option], int]


Chosen = Sequence[Option | None]
"""One option a group, or none."""


@dataclass(frozen=True)
class Options:
    """What may be chosen for a recipe.

    Attributes:
        recipe: it converts all that may be chosen.
        plan: of it.
        groups: the sites that are converted, those that share a blur together: they are treated alike.
        ways: the options of each group.
    """

    recipe: Recipe
    plan: Plan
    groups: tuple[tuple[Site, ...], ...]
    ways: tuple[tuple[Option, ...], ...]

    @classmethod
    def of(cls, recipe: Recipe, plan: Plan, planned: Callable[[Recipe], Plan]) -> Options:
        """The options of each group, with what they cost and, by rule, remove.

        Args:
            recipe, plan: what would be converted if all were taken.
            planned: makes the plan of another recipe.
        """
        groups = _groups(plan)
        found: list[list[Option]] = [[] for _ in groups]
        for form in _forms(recipe):
            there = {site.name: site for site in (plan if not form else planned(_everywhere(recipe, plan, form))).sites}
            for group, known in zip(groups, found, strict=True):
                sites = [there[site.name] for site in group]
                if any(site.action == "skip" for site in sites):
                    continue
                gain = sum(_by_rule(site) for site in sites)
                # A blur that others share in this form is counted where it stands first: here it may stand alone.
                paths = {path for site in sites for path in site.blur_paths}
                macs = sum(site.extra_macs for site in there.values() if paths & set(site.blur_paths))
                # Else it is the same form, by another name.
                if gain > 0 and (gain, macs) not in [(one.gain, one.macs) for one in known]:
                    known.append(Option({site.name: form for site in sites}, gain, macs))
        return cls(recipe, plan, groups, tuple(map(tuple, found)))

    def with_measured_gains(
        self, subject: Subject, pictures: Pictures, watch: Watch | None = None, kept: Kept | None = None
    ) -> Options:
        """The same with what the options were seen to remove on pictures; those that removed nothing are left out."""
        geometry = subject.preprocessing
        example = (subject.example(),)
        names = [name for group in self.ways for name in (group[0].settings if group else ())]

        def shares(model: nn.Module) -> dict[str, float]:
            found = aliasing(
                Subject(model, geometry, subject.name), pictures, images=min(ALIASING_IMAGES, len(pictures)),
                only=names, watch=watch, kept=of_model(kept, model),
            )  # fmt: skip
            return {site.site: site.share.value for site in found.sites}

        before = shares(subject.model)
        after: list[tuple[Form, dict[str, float]]] = []
        for form in _forms(self.recipe):
            tables = [
                _table(name, form)
                for group in self.ways
                for one in group
                if form in one.settings.values()
                for name in one.settings
            ]
            if tables:
                wanted = self.recipe.with_sites(tables) if form else self.recipe
                converted = conversion.convert(
                    sharing_copy(subject.model), wanted, example_inputs=example, inplace=True, verify=False
                )
                after.append((form, shares(converted)))

        def removed(one: Option) -> float:
            form = next(iter(one.settings.values()))
            seen = next(found for known, found in after if known == form)
            return sum(before[name] - seen[name] for name in one.settings if name in before and name in seen)

        measured = [[dataclasses.replace(one, gain=removed(one)) for one in group] for group in self.ways]
        return self._with(tuple(tuple(one for one in group if one.gain > 0) for group in measured))

    def with_bytes(self, extra: Callable[[Recipe], int]) -> Options:
        """The same with the bytes that each option adds, which a function finds for the recipe of that one alone."""
        return self._with(
            tuple(tuple(dataclasses.replace(one, bytes=extra(self._only(one))) for one in group) for group in self.ways)
        )

    def without(self, group: int, option: Option) -> Options:
        """The same without an option of a group."""
        return self._with(
            tuple(
                tuple(one for one in of_group if number != group or one is not option)
                for number, of_group in enumerate(self.ways)
            )
        )

    def chosen(self, chosen: Chosen, because: Callable[[Site, Sequence[Option]], str], name: str) -> Recipe:
        """The recipe that converts what was chosen.

        Args:
            chosen: one entry a group.
            because: why a site is left alone, from the site and its options.
            name: of the recipe, where it leaves something alone or changes it.
        """
        tables = []
        for group, ways, one in zip(self.groups, self.ways, chosen, strict=True):
            for site in group:
                if one is None:
                    tables.append(Override.exactly(site.name, skip=True, because=because(site, ways)))
                elif one.settings[site.name]:
                    tables.append(_table(site.name, one.settings[site.name]))
        return dataclasses.replace(self.recipe.with_sites(tables), name=name) if tables else self.recipe

    def _only(self, option: Option) -> Recipe:
        """The recipe with one option and nothing else."""
        others = [site.name for site in self.plan.converted if site.name not in option.settings]
        tables = [_table(name, form) for name, form in option.settings.items() if form]
        return self.recipe.with_sites([*tables, *([Override.exactly(*others, skip=True)] if others else [])])

    def _with(self, ways: tuple[tuple[Option, ...], ...]) -> Options:
        return dataclasses.replace(self, ways=ways)


def steps(ways: Sequence[Sequence[Option]], limits: Sequence[Limit]) -> Iterator[tuple[int, Option]]:
    """The greedy order: better options in place of poorer ones, the most gain for the cost first.

    Those that cost nothing come before all others. Of several limits the one counts that an option takes most of.

    Args:
        ways: the options of each group.
        limits: at least one; a step that would go beyond is passed over.

    Yields:
        the group and the option that it has from then on.
    """
    chosen: list[Option | None] = [None] * len(ways)
    while True:
        best: tuple[float, float] = (0.0, 0.0)
        step: tuple[int, Option] | None = None
        for number, group in enumerate(ways):
            now = chosen[number]
            for one in group:
                gain = one.gain - (now.gain if now else 0.0)
                extra = [limit.cost(one) - (limit.cost(now) if now else 0) for limit in limits]
                if gain <= 0 or any(
                    more > 0 and sum(limit.cost(other) for other in chosen if other) + more > limit.most
                    for limit, more in zip(limits, extra, strict=True)
                ):
                    continue
                price = max(more / limit.unit for limit, more in zip(limits, extra, strict=True))
                rank = (math.inf, gain) if price <= 0 else (gain / price, gain)
                if rank > best:
                    best, step = rank, (number, one)
        if step is None:
            return
        chosen[step[0]] = step[1]
        yield step


def worth(one: Option, limits: Sequence[Limit]) -> float:
    """What an option removes for what it costs."""
    price = max(limit.cost(one) / limit.unit for limit in limits)
    return one.gain / price if price > 0 else math.inf


def left_by_rule(site: Site) -> float:
    """What a plan leaves of a site's aliasing, by rule: of white noise above the new Nyquist frequency, 0 to 1 or so.

    A tenth of what a blur removes counts as left where it stands before a convolution: it takes detail, too.
    """
    before = leakage((0.5, 0.5)) if site.kind == "avgpool" else 1.0  # which is an average already
    return before - (_by_rule(site) if site.action == "blur" else 0.0)


def _by_rule(site: Site) -> float:
    """What a converted site's blur removes: of white noise above the new Nyquist frequency, 0 to 1."""
    method = next(edit.blur.method for edit in site.edits if edit.blur is not None)
    through = 0.0 if isinstance(method, Fourier) else leakage(method.filter(2))
    if site.kind == "avgpool":
        return max(leakage((0.5, 0.5)) - through, 0.0)
    return max(1 - through, 0.0) * (_DETAIL_LOST if site.rule == "blurred-input" else 1.0)


def _groups(plan: Plan) -> tuple[tuple[Site, ...], ...]:
    groups: list[tuple[set[str], list[Site]]] = []
    for site in plan.converted:
        paths = set(site.blur_paths)
        sites = [site]
        apart = []
        for known, others in groups:
            if known & paths:
                paths |= known
                sites = others + sites
            else:
                apart.append((known, others))
        groups = [*apart, (paths, sites)]
    order = {site.name: number for number, site in enumerate(plan.sites)}
    return tuple(sorted((tuple(sites) for _, sites in groups), key=lambda sites: order[sites[0].name]))


def _forms(recipe: Recipe) -> list[Form]:
    """The settings of the options, the recipe's own first."""
    size = 0 if isinstance(recipe.method, Fourier) else len(recipe.method.filter(2))
    even = size % 2 == 0 and size > 2
    filters: list[Form] = [{}, *([_AVERAGE] if even else [])]
    places: list[Form] = [{}, *([{"placement": "before"}] if recipe.conv == "after-activation" else [])]
    return [{**place, **one} for place in places for one in filters]


def _table(name: str, form: Form) -> Override:
    settings = {"conv": "cheap"} if "placement" in form else {}
    average = {"filter": None, "filter_size": 2, "taps": None} if "size" in form else {}
    return Override.exactly(name, settings=tuple(sorted({**settings, **average}.items())))


def _everywhere(recipe: Recipe, plan: Plan, form: Form) -> Recipe:
    """The recipe with a form at every site that it converts."""
    return recipe.with_sites(_table(site.name, form) for site in plan.converted) if form else recipe
