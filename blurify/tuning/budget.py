"""Which sites to convert, in which form and with which filter, where only so much may be spent on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blurify import conversion
from blurify.errors import BlurifyError
from blurify.graph.copies import meta_copy, sharing_copy
from blurify.graph.inputs import traced
from blurify.graph.recorder import Trace
from blurify.graph.structure import Inputs, map_tensors
from blurify.metrics.aliasing import aliasing
from blurify.metrics.subject import Pictures, Subject, Watch
from blurify.proof.rehearsal import rehearsed
from blurify.spec.filters import leakage
from blurify.spec.methods import Fourier
from blurify.spec.overrides import Override
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import Recipe
from blurify.surgery.apply import apply_plan
from blurify.surgery.carrying import plan_of

ALIASING_IMAGES = 32
_DETAIL_LOST = 0.9  # a blur before a convolution also takes what it would have used (Zhang 2019, section 3)
_AFTER = ("after-activation", "split")
_AVERAGE = {"size": 2}


@dataclass(frozen=True)
class Budget:
    """What a conversion may cost at most, as shares of what the original costs: 0.1 is 10%.

    Attributes:
        flops: of its multiply-adds, as `torch.utils.flop_counter` counts them (pools count nothing). None: no limit.
        memory: of the bytes that its forward keeps for a backward (parameters and buffers left out). None: no limit.
    """

    flops: float | None = None
    memory: float | None = None

    def words(self) -> str:
        """In words, for reasons and messages."""
        parts = [f"{self.flops:.1%} extra multiply-adds"] if self.flops is not None else []
        parts += [f"{self.memory:.1%} extra activation memory"] if self.memory is not None else []
        return " and ".join(parts)


@dataclass(frozen=True)
class Spent:
    """What a conversion costs, measured on it.

    Attributes:
        macs, extra_macs: multiply-adds of the original, and how many more the conversion has.
        bytes, extra_bytes: kept for a backward; None where there is no limit on them.
    """

    macs: int
    extra_macs: int
    bytes: int | None = None
    extra_bytes: int | None = None

    def within(self, budget: Budget) -> bool:
        """Whether it keeps a budget."""
        if budget.flops is not None and self.extra_macs > budget.flops * self.macs:
            return False
        if budget.memory is None or self.bytes is None or self.extra_bytes is None:
            return True
        return self.extra_bytes <= budget.memory * self.bytes

    def line(self, budget: Budget) -> str:
        """The costs against the budget, in one line."""
        parts = []
        if budget.flops is not None:
            parts.append(f"multiply-adds {_share(self.extra_macs, self.macs)} of at most {budget.flops:+.1%}")
        if budget.memory is not None and self.bytes is not None and self.extra_bytes is not None:
            parts.append(f"activation memory {_share(self.extra_bytes, self.bytes)} of at most {budget.memory:+.1%}")
        return f"budget kept, as measured: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Chosen:
    """What was chosen within a budget.

    Attributes:
        recipe: converts what was chosen; its `[[site]]` tables say so.
        spent: what that costs.
    """

    recipe: Recipe
    spent: Spent


@dataclass(frozen=True)
class _Option:
    """One way to convert the sites of a group: those that share a blur.

    Attributes:
        settings: for a `[[site]]` table, by the site's name.
        gain: of aliasing, how much is removed.
        macs: what it adds.
        bytes: the same.
    """

    settings: dict[str, dict[str, Any]]
    gain: float
    macs: int
    bytes: int = 0


@dataclass(frozen=True)
class _Limit:
    """How much may be spent of one thing, and how much of it an option takes."""

    most: float
    cost: Callable[[_Option], int]


def within_budget(
    model: nn.Module,
    recipe: Recipe,
    budget: Budget,
    example_inputs: Any = None,
    *,
    subject: Subject | None = None,
    pictures: Pictures | None = None,
    watch: Watch | None = None,
) -> Chosen:
    """Choose sites, forms and filters of a recipe so that a budget is kept.

    For each site that the recipe converts there are up to four options: the blur after or before the convolution (a
    1x1 convolution commutes with it: its only form is before), with the recipe's filter or, where that is even too (so
    that what is added stays aligned), with the average of two samples. The average costs no multiply-adds, as the pools
    of a network cost none: it runs as an average pool. So a budget of 0% still anti-aliases: a max pool is followed by
    an average pool, a 1x1 shortcut is preceded by one (as in ResNet-D, He et al. 2019), and so are other convolutions.

    What an option removes is measured with pictures: by how much the share of energy above the new Nyquist frequency
    falls at the site (`blurify.metrics.aliasing`), with all sites in that form. Without pictures it goes by rule: what
    the filter removes of white noise, and a tenth less where it stands before a convolution and takes detail from it.
    The options are then taken one after the other, those that cost nothing first, then those that remove most for what
    they cost, each better one in place of the one before, as long as the budget holds (the greedy solution of a
    multiple-choice knapsack).

    At last the result is measured; where shared features make it dearer than the sum of its parts, the poorest choices
    are taken back.

    Args:
        model: not converted; it is not changed.
        recipe: what would be converted without a budget.
        budget: at least one limit.
        example_inputs: as of `blurify.inspect`; costs are for these sizes.
        subject, pictures: the same model, and what it is shown; None: by rule.
        watch: told of the progress.

    Raises:
        BlurifyError: the model is converted already, or the budget has no limit.
    """
    if budget.flops is None and budget.memory is None:
        raise BlurifyError("a budget needs a limit: give flops or memory")
    if plan_of(model) is not None:
        raise BlurifyError("the model is converted already: a budget is for the original (blurify revert)")
    seen = traced(model, example_inputs)
    inputs = seen.inputs if example_inputs is None else example_inputs
    plan = rehearsed(model, recipe, inputs, seen=seen).plan
    if not plan.converted:
        return Chosen(recipe, Spent(seen.macs, 0))
    groups = _groups(plan)
    scale = _Scale(model, seen) if budget.memory is not None else None

    def measured(wanted: Recipe) -> Spent:
        return _spent(model, rehearsed(model, wanted, inputs, seen=seen).plan, seen, scale)

    options = _options(plan, groups, recipe, lambda wanted: rehearsed(model, wanted, inputs, seen=seen).plan)
    if subject is not None and pictures is not None:
        options = _with_measured_gains(options, subject, recipe, pictures, watch)
    if scale is not None:
        options = [
            [
                dataclasses.replace(
                    one, bytes=measured(_only(recipe, plan, one)).extra_bytes or 0
                )
                for one in of_group
            ]
            for of_group in options
        ]  # fmt: skip
    limits = [] if budget.flops is None else [_Limit(budget.flops * seen.macs, lambda one: one.macs)]
    if budget.memory is not None and scale is not None:
        limits.append(_Limit(budget.memory * scale.before, lambda one: one.bytes))
    chosen = _choose(options, limits)
    while True:
        wanted = _recipe(recipe, groups, options, chosen, budget, seen.macs)
        spent = measured(wanted)
        if spent.within(budget):
            return Chosen(wanted, spent)
        taken = [number for number, one in enumerate(chosen) if one is not None]
        if not taken:
            return Chosen(wanted, spent)
        worst = min(taken, key=lambda number: _worth(chosen[number], limits))
        options[worst] = [one for one in options[worst] if one is not chosen[worst]]
        chosen[worst] = None


def _groups(plan: Plan) -> list[list[Site]]:
    """The sites that are converted, those that share a blur together: they are treated alike."""
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
    return sorted((sites for _, sites in groups), key=lambda sites: order[sites[0].name])


def _forms(recipe: Recipe) -> list[dict[str, Any]]:
    """The settings of the options, the recipe's own first."""
    size = 0 if isinstance(recipe.method, Fourier) else len(recipe.method.filter(2))
    even = size % 2 == 0 and size > 2
    filters: list[dict[str, Any]] = [{}, *([_AVERAGE] if even else [])]
    places: list[dict[str, Any]] = [{}, *([{"placement": "before"}] if recipe.conv == "after-activation" else [])]
    return [{**place, **one} for place in places for one in filters]


def _table(name: str, form: dict[str, Any]) -> Override:
    settings = {"conv": "cheap"} if "placement" in form else {}
    average = {"filter": None, "filter_size": 2, "taps": None} if "size" in form else {}
    return Override.exactly(name, settings=tuple(sorted({**settings, **average}.items())))


def _everywhere(recipe: Recipe, plan: Plan, form: dict[str, Any]) -> Recipe:
    """The recipe with a form at every site that it converts."""
    return recipe.with_sites(_table(site.name, form) for site in plan.converted) if form else recipe


def _options(
    plan: Plan, groups: Sequence[list[Site]], recipe: Recipe, planned: Callable[[Recipe], Plan]
) -> list[list[_Option]]:
    """The options of each group, with what they cost and, by rule, remove."""
    found: list[list[_Option]] = [[] for _ in groups]
    for form in _forms(recipe):
        there = {site.name: site for site in (plan if not form else planned(_everywhere(recipe, plan, form))).sites}
        for number, group in enumerate(groups):
            sites = [there[site.name] for site in group]
            if any(site.action == "skip" for site in sites):
                continue
            gain = sum(_by_rule(site) for site in sites)
            macs = sum(site.extra_macs for site in sites)
            known = [(one.gain, one.macs) for one in found[number]]
            if gain > 0 and (gain, macs) not in known:  # else it is the same form, by another name
                found[number].append(_Option({site.name: form for site in sites}, gain, macs))
    return found


def _by_rule(site: Site) -> float:
    """What a site's blur removes: of white noise above the new Nyquist frequency, 0 to 1."""
    method = next(edit.blur.method for edit in site.edits if edit.blur is not None)
    through = 0.0 if isinstance(method, Fourier) else leakage(method.filter(2))
    if site.kind == "avgpool":  # it was an average already
        return max(leakage((0.5, 0.5)) - through, 0.0)
    return max(1 - through, 0.0) * (_DETAIL_LOST if site.rule == "blurred-input" else 1.0)


def _with_measured_gains(
    options: list[list[_Option]], subject: Subject, recipe: Recipe, pictures: Pictures, watch: Watch | None
) -> list[list[_Option]]:
    """The options with what they were seen to remove on pictures."""
    geometry = subject.preprocessing
    example = torch.zeros(1, geometry.channels, *geometry.crop, dtype=subject.dtype)
    names = [name for group in options for name in (group[0].settings if group else ())]

    def shares(model: nn.Module) -> dict[str, float]:
        found = aliasing(
            Subject(model, geometry, subject.name), pictures, images=min(ALIASING_IMAGES, len(pictures)), only=names,
            watch=watch,
        )  # fmt: skip
        return {site.site: site.share.value for site in found.sites}

    before = shares(subject.model)
    after: list[tuple[dict[str, Any], dict[str, float]]] = []
    for form in _forms(recipe):
        tables = [
            _table(n, form) for group in options for one in group if form in one.settings.values() for n in one.settings
        ]
        if tables:
            wanted = recipe.with_sites(tables) if form else recipe
            converted = conversion.convert(
                sharing_copy(subject.model), wanted, example_inputs=example, inplace=True, verify=False
            )
            after.append((form, shares(converted)))

    def removed(one: _Option) -> float:
        form = next(iter(one.settings.values()))
        seen = next(found for known, found in after if known == form)
        return sum(before[name] - seen[name] for name in one.settings if name in before and name in seen)

    measured = [[dataclasses.replace(one, gain=removed(one)) for one in group] for group in options]
    return [[one for one in group if one.gain > 0] for group in measured]


def _choose(options: list[list[_Option]], limits: Sequence[_Limit]) -> list[_Option | None]:
    """One option a group, or none: better ones in place of poorer ones, the most gain for the cost first."""
    chosen: list[_Option | None] = [None] * len(options)
    while True:
        best: tuple[float, float] = (0.0, 0.0)
        step: tuple[int, _Option] | None = None
        for number, group in enumerate(options):
            now = chosen[number]
            for one in group:
                gain = one.gain - (now.gain if now else 0.0)
                extra = [limit.cost(one) - (limit.cost(now) if now else 0) for limit in limits]
                if gain <= 0 or any(
                    more > 0 and sum(limit.cost(other) for other in chosen if other) + more > limit.most
                    for limit, more in zip(limits, extra, strict=True)
                ):
                    continue
                price = max(more / max(limit.most, 1.0) for limit, more in zip(limits, extra, strict=True))
                rank = (math.inf, gain) if price <= 0 else (gain / price, gain)
                if rank > best:
                    best, step = rank, (number, one)
        if step is None:
            return chosen
        chosen[step[0]] = step[1]


def _worth(one: _Option | None, limits: Sequence[_Limit]) -> float:
    """What an option removes for what it costs."""
    price = 0.0 if one is None else max(limit.cost(one) / max(limit.most, 1.0) for limit in limits)
    return one.gain / price if one is not None and price > 0 else math.inf


def _recipe(
    recipe: Recipe, groups: Sequence[list[Site]], options: Sequence[list[_Option]], chosen: Sequence[_Option | None],
    budget: Budget, macs: int,
) -> Recipe:  # fmt: skip
    """The recipe that converts what was chosen, and says of the rest that the budget leaves it alone."""
    tables = []
    for group, of_group, one in zip(groups, options, chosen, strict=True):
        for site in group:
            if one is None:
                tables.append(Override.exactly(site.name, skip=True, because=_reason(site, of_group, budget, macs)))
            elif one.settings[site.name]:
                tables.append(_table(site.name, one.settings[site.name]))
    return dataclasses.replace(recipe.with_sites(tables), name=f"{recipe.name}, within a budget") if tables else recipe


def _reason(site: Site, options: Sequence[_Option], budget: Budget, macs: int) -> str:
    start = f"to keep the budget of {budget.words()}"
    if not options:
        return f"{start}: no form of it that removes aliasing is left"
    cheapest = min(options, key=lambda one: (one.macs, one.bytes))
    parts = [f"{_share(cheapest.macs, macs)} multiply-adds"] if budget.flops is not None else []
    parts += [f"{cheapest.bytes / 1e6:+.2f} MB"] if budget.memory is not None else []
    return f"{start}: its cheapest form adds {' and '.join(parts)}"


def _only(recipe: Recipe, plan: Plan, option: _Option) -> Recipe:
    """The recipe with one option and nothing else."""
    others = [site.name for site in plan.converted if site.name not in option.settings]
    tables = [_table(name, form) for name, form in option.settings.items() if form]
    return recipe.with_sites([*tables, *([Override.exactly(*others, skip=True)] if others else [])])


# --- what it costs


def _spent(model: nn.Module, plan: Plan, seen: Trace, scale: _Scale | None) -> Spent:
    """Carry a plan out on a copy without data, and count."""
    if seen.real:  # it can't be run without data: the plan's own count
        return Spent(seen.macs, plan.extra_macs, *(scale.compared(model, plan) if scale else ()))
    copy = meta_copy(model)
    apply_plan(copy, plan)
    after = traced(copy, seen.inputs)
    return Spent(seen.macs, after.macs - seen.macs, *(scale.compared(model, plan) if scale else ()))


class _Scale:
    """Weighs what a forward keeps for its backward, in train mode where the model runs like that.

    Attributes:
        before: bytes that the original keeps.
    """

    def __init__(self, model: nn.Module, seen: Trace) -> None:
        self._seen = seen
        self._training = True
        copy = self._copy(model)
        try:
            self.before = kept_bytes(copy, seen.inputs, training=True)
        except Exception:  # a batch of one, targets that are missing
            self._training = False
            self.before = kept_bytes(self._copy(model), seen.inputs, training=False)

    def compared(self, model: nn.Module, plan: Plan) -> tuple[int, int]:
        """Bytes that the original keeps, and how many more with a plan."""
        copy = self._copy(model)
        apply_plan(copy, plan)
        return self.before, kept_bytes(copy, self._seen.inputs, training=self._training) - self.before

    def _copy(self, model: nn.Module) -> nn.Module:
        return sharing_copy(model) if self._seen.real else meta_copy(model)


def kept_bytes(model: nn.Module, inputs: Inputs, *, training: bool) -> int:
    """The bytes that a forward keeps for its backward: unique storages, parameters and buffers left out.

    Args:
        model: it may be on the meta device; its parameters are made to require gradients.
        inputs: (args, kwargs), brought to the model's device.
        training: in train mode, else in eval mode.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            with suppress(RuntimeError):
                parameter.requires_grad_(True)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}  # the storages themselves, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    args, kwargs = map_tensors(inputs, lambda tensor: tensor.detach().to(device, copy=True))
    was = model.training
    model.train(training)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(*args, **kwargs)
    finally:
        model.train(was)
    del out
    return sum(storage.nbytes() for storage in kept.values())


def _share(part: int, whole: int) -> str:
    return f"{part / whole:+.2%}" if whole else f"{part:+d}"
