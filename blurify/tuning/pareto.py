"""The Pareto table of a model: conversions from none to all of its sites, each carried out, counted and measured."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from blurify import conversion
from blurify.errors import BlurifyError
from blurify.graph.copies import sharing_copy
from blurify.graph.inputs import traced
from blurify.metrics.agreement import agreements
from blurify.metrics.aliasing import aliasing
from blurify.metrics.keeping import of_model
from blurify.metrics.kept import Kept, anew_where_damaged
from blurify.metrics.pareto import USUAL, ParetoPoint, ParetoTable, check_points
from blurify.metrics.results import Agreement
from blurify.metrics.subject import Pictures, Subject, Watch
from blurify.proof.rehearsal import rehearsed
from blurify.proof.weights import fingerprint
from blurify.spec.plan import Plan
from blurify.spec.recipes import Recipe, load_recipe, recipe_names
from blurify.surgery.carrying import plan_of
from blurify.tuning.costs import Meter, Spent
from blurify.tuning.options import ALIASING_IMAGES, Limit, Option, Options, left_by_rule, steps

__all__ = ["ParetoPoint", "ParetoTable", "base_recipe", "pareto_table"]

_NOT_TAKEN = "this point of the Pareto table leaves it alone"


@dataclass(frozen=True)
class _Candidate:
    """A conversion that becomes a point: see there."""

    steps: int | None
    what: tuple[str, ...]
    plan: Plan
    present: bool = False


def pareto_table(
    model: nn.Module,
    recipe: str | Recipe | None = None,
    example_inputs: Any = None,
    *,
    subject: Subject | None = None,
    pictures: Pictures | None = None,
    present: nn.Module | None = None,
    most: int = USUAL,
    batch_size: int = 32,
    aliasing_images: int = ALIASING_IMAGES,
    name: str = "",
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> ParetoTable:
    """Convert a model by and by, from no site to all, and tell at each point what it costs and what it buys.

    The points lie along the greedy order in which a budget of multiply-adds takes sites, forms and filters (see
    `budget.within_budget`): what costs nothing first, then what removes most aliasing for the cost. Nothing is added
    up from single sites: at each point the whole conversion is carried out, its multiply-adds and the bytes that it
    keeps for a backward are counted and, with pictures, its agreement with the original and its aliasing are measured,
    with the weights as they are. Where there are more steps than points, the points are spread evenly over the order,
    both ends among them. The last point is the recipe at all of its sites, as it is without a budget.

    Without pictures the order and the aliasing are by rule (of white noise, what each filter lets through, and a tenth
    of the rest where it stands before a convolution), and nothing is said of the answers; costs are counted as always.

    Args:
        model: the original; it is not changed. No weights are copied: conversions share them.
        recipe: the conversion of all sites.
        example_inputs: as of `blurify.inspect`; costs are for these sizes. With pictures they are of theirs.
        subject, pictures: the same model, and what it is shown.
        present: a conversion of the same model, to be found in the table: where its plan and weights are those of a
            point, that one is marked; else it is one more, measured with its own weights.
        most: points at most, 4 or more.
        batch_size: pictures a forward.
        aliasing_images: how many of the pictures the aliasing is measured on.
        name: what to call the model where there is no subject.
        watch: told of the progress.
        kept: of the subject: where agreement and aliasing are written down batch by batch (see `metrics.kept`).

    Raises:
        BlurifyError: the model is converted, or the recipe converts nothing; and all that `agreement` and `aliasing`
            refuse.
    """
    check_points(most)
    wanted = load_recipe(recipe)
    if plan_of(model) is not None:
        raise BlurifyError("the model is converted already: the Pareto table is of the original (blurify revert)")
    if subject is not None:
        example_inputs = (subject.example(),)
    seen = traced(model, example_inputs)
    inputs = seen.inputs if example_inputs is None else example_inputs

    def planned(some: Recipe) -> Plan:
        return rehearsed(model, some, inputs, seen=seen).plan

    plan = planned(wanted)
    if not plan.converted:
        raise BlurifyError(f"the recipe {wanted.name} converts no site of this model: there is nothing to choose from")
    options = Options.of(wanted, plan, planned)
    if subject is not None and pictures is not None:
        options = anew_where_damaged(
            kept, functools.partial(options.with_measured_gains, subject, pictures, watch, kept)
        )
    order = list(steps(options.ways, [Limit(math.inf, max(seen.macs, 1.0), lambda one: one.macs)]))

    def after(count: int) -> Plan:
        """The plan with the first so many steps taken."""
        taken: list[Option | None] = [None] * len(options.groups)
        for group, one in order[:count]:
            taken[group] = one
        return planned(options.chosen(taken, lambda site, ways: _NOT_TAKEN, f"{wanted.name}, in part"))

    known = plan_of(present) if present is not None else None
    unchanged = present is not None and fingerprint(present) == fingerprint(model)
    candidates = _candidates(order, after, plan, known, unchanged, most)
    if subject is None or pictures is None:
        shown = _by_rule(candidates, plan)
    else:
        models = [
            present if one.present and present is not None and not unchanged
            else _converted(subject, one.plan.recipe, example_inputs)
            for one in candidates
        ]  # fmt: skip
        few = min(aliasing_images, len(pictures))
        shown = anew_where_damaged(
            kept, functools.partial(_measured, subject, models, plan, pictures, batch_size, few, watch, kept)
        )
    meter = _meter(model, seen)
    points = []
    for one, (agreed, share) in zip(candidates, shown.figures, strict=True):
        spent: Spent = meter.spent(one.plan)
        points.append(
            ParetoPoint(
                one.steps, one.what, len(one.plan.converted), spent.extra_macs, spent.extra_bytes, agreed, share,
                one.plan.recipe, one.present,
            )
        )  # fmt: skip
    called = subject.name if subject is not None else name or type(model).__name__
    return ParetoTable(
        called, pictures.name if subject is not None and pictures is not None else "", wanted, meter.macs, meter.bytes,
        len(plan.converted), len(order), tuple(points), shown.images, shown.sites,
    )  # fmt: skip


def base_recipe(plan: Plan) -> Recipe:
    """The recipe that a conversion was a part of, where a budget or an agreement chose among its sites.

    It is known by its name where blurify ships it; else it is the conversion's own.
    """
    name, _, chosen = plan.recipe.name.partition(",")
    return load_recipe(name) if chosen and name in recipe_names() else plan.recipe


def _meter(model: nn.Module, seen: Any) -> Meter:
    try:
        return Meter(model, seen, memory=True)
    except Exception:  # a forward that gradients can't follow, such as one of whole numbers
        return Meter(model, seen, memory=False)


# --- which points


def _candidates(
    order: Sequence[tuple[int, Option]], after: Callable[[int], Plan], plan: Plan, known: Plan | None, unchanged: bool,
    most: int,
) -> list[_Candidate]:  # fmt: skip
    """The conversions that become points: along the order, then all sites, then the present one; at most so many.

    Args:
        order: the greedy steps.
        after: the plan with so many of them taken.
        plan: of all sites.
        known: of the present conversion.
        unchanged: its weights are the original's.
        most: points.
    """
    last = after(len(order))
    whole = [] if last.edits == plan.edits else [_Candidate(None, ("everything, as the recipe says",), plan)]
    ends = [after(0), last, *(one.plan for one in whole)]
    spare = most - (1 if not order else 2) - len(whole)
    spare -= known is not None and not (unchanged and any(known.edits == one.edits for one in ends))
    counts = _spread(len(order), max(spare, 0))
    found, before = [], 0
    for count in counts:
        what = tuple(one.words() for _, one in order[before:count]) or ("nothing",)
        found.append(_Candidate(count, what, last if count == len(order) else after(count)))
        before = count
    found += whole
    if known is None:
        return found
    for number, one in enumerate(found):
        if one.plan.edits == known.edits and unchanged:
            found[number] = dataclasses.replace(one, present=True)
            return found
    return [*found, _Candidate(None, ("the present conversion",), known, present=True)]


def _spread(last: int, between: int) -> list[int]:
    """0, the last, and so many whole numbers between them, evenly spread."""
    count = min(between, max(last - 1, 0)) + 1
    return sorted({round(last * number / count) for number in range(count + 1)})


# --- what they show


@dataclass(frozen=True)
class _Shown:
    """What the candidates show, one entry each: the agreement with the original, and the mean aliasing of the sites.

    Attributes:
        figures: (agreement, aliasing); None for what is not known.
        images, sites: that the aliasing is a mean over.
    """

    figures: list[tuple[Agreement | None, float | None]]
    images: int = 0
    sites: int = 0


def _by_rule(candidates: Sequence[_Candidate], plan: Plan) -> _Shown:
    names = {site.name for site in plan.converted}
    figures: list[tuple[Agreement | None, float | None]] = []
    for one in candidates:
        left = [left_by_rule(site) for site in one.plan.sites if site.name in names]
        figures.append((None, math.fsum(left) / len(left)))
    return _Shown(figures)


def _converted(subject: Subject, recipe: Recipe, example: Any) -> nn.Module:
    copy = sharing_copy(subject.model)
    return conversion.convert(copy, recipe, example_inputs=example, inplace=True, verify=False)


def _measured(
    original: Subject, models: Sequence[nn.Module], plan: Plan, pictures: Pictures, batch_size: int, images: int,
    watch: Watch | None, kept: Kept | None,
) -> _Shown:  # fmt: skip
    """Show the pictures to the original and to each conversion."""
    subjects = [Subject(model, original.preprocessing, f"{original.name} converted") for model in models]
    agreed = agreements(original, subjects, pictures, batch_size=batch_size, watch=watch, kept=kept)
    names = [site.name for site in plan.converted]
    shares = []
    for number, one in enumerate(subjects, 1):
        found = aliasing(
            one, pictures, batch_size=min(batch_size, 16), images=images, only=names, kept=of_model(kept, one.model)
        )
        shares.append({site.site: site.share.value for site in found.sites})
        if watch is not None:
            watch("aliasing of the points", number, len(subjects))
    common = [name for name in names if all(name in found for found in shares)]
    means = [math.fsum(found[name] for name in common) / len(common) if common else None for found in shares]
    return _Shown(list(zip(agreed, means, strict=True)), images, len(common))
