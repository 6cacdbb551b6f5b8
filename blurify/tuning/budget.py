"""Which sites to convert, in which form and with which filter, where only so much may be spent on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.metrics.subject import Pictures, Subject, Watch
from blurify.proof.rehearsal import rehearsed
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import Recipe
from blurify.surgery.carrying import plan_of
from blurify.tuning.costs import Budget, Meter, Spent, in_percent
from blurify.tuning.options import Limit, Option, Options, steps, worth

__all__ = ["Budget", "Chosen", "Spent", "spent_by", "within_budget"]


@dataclass(frozen=True)
class Chosen:
    """What was chosen within a budget.

    Attributes:
        recipe: converts what was chosen; its `[[site]]` tables say so.
        spent: what that costs.
    """

    recipe: Recipe
    spent: Spent


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

    def planned(wanted: Recipe) -> Plan:
        return rehearsed(model, wanted, inputs, seen=seen).plan

    plan = planned(recipe)
    if not plan.converted:
        return Chosen(recipe, Spent(seen.macs, 0))
    meter = Meter(model, seen, memory=budget.memory is not None)
    options = Options.of(recipe, plan, planned)
    if subject is not None and pictures is not None:
        options = options.with_measured_gains(subject, pictures, watch)
    if budget.memory is not None:
        options = options.with_bytes(lambda wanted: meter.spent(planned(wanted)).extra_bytes or 0)
    limits = []
    if budget.flops is not None:
        limits.append(_limit(budget.flops * seen.macs, lambda one: one.macs))
    if budget.memory is not None:
        limits.append(_limit(budget.memory * (meter.bytes or 0), lambda one: one.bytes))
    chosen: list[Option | None] = [None] * len(options.groups)
    for group, one in steps(options.ways, limits):
        chosen[group] = one

    def because(site: Site, ways: Sequence[Option]) -> str:
        return _reason(site, ways, budget, seen.macs)

    while True:
        wanted = options.chosen(chosen, because, f"{recipe.name}, within a budget")
        spent = meter.spent(planned(wanted))
        if spent.within(budget):
            return Chosen(wanted, spent)
        taken = {group: one for group, one in enumerate(chosen) if one is not None}
        if not taken:
            return Chosen(wanted, spent)
        worst = min(taken, key=lambda group: worth(taken[group], limits))
        options = options.without(worst, taken[worst])
        chosen[worst] = None


def spent_by(model: nn.Module, recipe: Recipe, example_inputs: Any = None, *, memory: bool = True) -> Spent:
    """What a conversion would cost, measured on a copy without data.

    Args:
        model: not converted; it is not changed.
        recipe: of the conversion.
        example_inputs: as of `blurify.inspect`; costs are for these sizes.
        memory: weigh the activations, too.

    Raises:
        BlurifyError: the model is converted already, or can't be traced.
    """
    if plan_of(model) is not None:
        raise BlurifyError("the model is converted already: costs are told of the original (blurify revert)")
    seen = traced(model, example_inputs)
    inputs = seen.inputs if example_inputs is None else example_inputs
    return Meter(model, seen, memory=memory).spent(rehearsed(model, recipe, inputs, seen=seen).plan)


def _limit(most: float, cost: Callable[[Option], int]) -> Limit:
    return Limit(most, max(most, 1.0), cost)


def _reason(site: Site, options: Sequence[Option], budget: Budget, macs: int) -> str:
    start = f"to keep the budget of {budget.words()}"
    if not options:
        return f"{start}: no form of it that removes aliasing is left"
    cheapest = min(options, key=lambda one: (one.macs, one.bytes))
    parts = [f"{in_percent(cheapest.macs, macs)} multiply-adds"] if budget.flops is not None else []
    parts += [f"{cheapest.bytes / 1e6:+.2f} MB"] if budget.memory is not None else []
    return f"{start}: its cheapest form adds {' and '.join(parts)}"
