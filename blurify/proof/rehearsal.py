"""Rehearse a plan on a copy without data: does every blur run where it was meant to, and do all sizes stay?"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from torch import nn
from torch.fx import Node

from blurify.graph.copies import meta_copy
from blurify.graph.inputs import traced
from blurify.graph.recorder import Trace, structure_of, trace
from blurify.planning.planner import Decided, decide
from blurify.spec.edits import BlurInput, InsertBlur, Rewrite
from blurify.spec.plan import Site
from blurify.spec.recipes import Recipe
from blurify.surgery.apply import apply_plan


def rehearsed(model: nn.Module, recipe: Recipe, example_inputs: Any = None, *, seen: Trace | None = None) -> Decided:
    """A plan that was tried on a copy without data, in eval and train mode; edits that did not hold there are replaced.

    Args:
        model, recipe, example_inputs: as of `inspect`.
        seen: the trace of the model, where there is one already.
    """
    seen = traced(model, example_inputs) if seen is None else seen
    local: frozenset[str] = frozenset()
    simple: frozenset[str] = frozenset()
    while True:
        decided = decide(model, recipe, example_inputs, seen=seen, local=local, simple=simple)
        wrong = rehearse(model, decided)
        if not wrong or wrong <= simple:  # then the proof says what is wrong
            return decided
        if wrong <= local:
            simple |= wrong
        else:
            local |= wrong


def rehearse(model: nn.Module, decided: Decided) -> frozenset[str]:
    """The sites whose edits do not do what they should; none where the plan holds, in eval and in train mode.

    What can't be seen without data (a model whose forward reads values) is left to the proof.
    """
    plan = decided.plan
    if not plan.edits or decided.traces[0].real:
        return frozenset()
    try:
        copy = meta_copy(model)
        apply_plan(copy, plan)
    except Exception:
        return _wide(plan.converted)
    first, *others = decided.traces
    for before in (first, *(other for other in others if structure_of(other) != structure_of(first))):
        try:
            after = trace(copy, before.inputs, training=before is not first)
        except Exception:
            return _wide(plan.converted)
        if after.real:
            continue
        wrong = _wrong_counts(decided, before, after)
        if wrong:
            return wrong
        if output_shapes(before) != output_shapes(after):
            return _wide(plan.converted)
    return frozenset()


def output_shapes(seen: Trace) -> list[tuple[int, ...] | None]:
    """The shapes of what a traced forward returned."""
    output = next(node for node in reversed(list(seen.graph.nodes)) if node.op == "output")
    return [node.meta["shape"] for node in output.args[0]]  # type: ignore[union-attr]


def _wrong_counts(decided: Decided, before: Trace, after: Trace) -> frozenset[str]:
    """The sites whose blurs do not run as often as there are points for them."""
    ran = Counter(call.path for call in after.calls)
    points: dict[str, set[Node]] = defaultdict(set)
    sites: dict[str, set[str]] = defaultdict(set)
    several: Counter[str] = Counter()
    for site in decided.plan.converted:
        paths = site.blur_paths
        several.update(paths if len(paths) > 1 else ())
        for path in paths:
            points[path] |= {node for node in _blurred(decided, site) if node.graph is before.graph}
            sites[path].add(site.name)
    wrong: set[str] = set()
    for path, wanted in points.items():
        # A site with several expressions has a blur at each: together they run as often as there are points.
        enough = ran[path] <= len(wanted) if several[path] else ran[path] == len(wanted)
        if not enough and path not in decided.plan.idle_blurs:
            wrong |= sites[path]
    for site in decided.plan.converted:
        if len(site.blur_paths) > 1:
            total = {node for path in site.blur_paths for node in points[path]}
            if sum(ran[path] for path in site.blur_paths) < len(total):
                wrong.add(site.name)
    return frozenset(wrong)


def _blurred(decided: Decided, site: Site) -> tuple[Node, ...]:
    """What a site's blurs read, as far as two sites may share one: else its points stand for that."""
    found = decided.found.get(site.name)
    alone = site.rule == "blurred-input" and len(site.edits) == 1 and isinstance(site.edits[0], BlurInput)
    if alone and found is not None:
        return tuple(op.source for op in found.ops)
    return decided.points.get(site.name, ())


def _wide(sites: tuple[Site, ...]) -> frozenset[str]:
    """The sites whose edits reach beyond a single module."""
    wide = {site.name for site in sites if any(isinstance(e, Rewrite | InsertBlur) for e in site.edits)}
    return frozenset(wide or {site.name for site in sites})
