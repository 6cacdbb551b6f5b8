"""A plan that came in a file: carried out by this blurify on the original model, never taken over.

Files say what was edited, as data. The model is built as its authors wrote it; the plan is made again from its recipe,
and where this version would decide otherwise, the file's is checked on the model before it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blurify.errors import BlurifyError, one_line
from blurify.files import upgrading
from blurify.graph.inputs import traced
from blurify.graph.recorder import Trace, trace
from blurify.nn import calls
from blurify.planning.planner import Decided
from blurify.proof.filters import wrong_filters
from blurify.proof.rehearsal import output_shapes, rehearsed
from blurify.spec.plan import Plan
from blurify.surgery.apply import apply_plan
from blurify.surgery.carrying import carried, carry_plan, drop_plan
from blurify.surgery.force import problems
from blurify.surgery.undo import take_out

_MOST_PLANS = 16  # of a model, and of parts of it that were converted before they became parts


def carry_out(model: nn.Module, plan: Plan, path: Path) -> None:
    """Convert an original model, in place, by a plan that a file holds.

    Args:
        model: as its authors wrote it.
        plan: from the file.
        path: the file, for messages.

    Raises:
        BlurifyError: the plan does not belong to the model, or does not do there what it says.
    """
    try:
        again = _planned_again(model, plan)
        apply_plan(model, plan)
        if again is not None and again.plan.edits != plan.edits:
            _check(model, plan, again)
    except BlurifyError as error:
        raise BlurifyError(f"the plan in {path} can't be carried out: {error}") from error
    except Exception as error:  # a plan that somebody else wrote
        raise BlurifyError(
            f"{path} carries a plan that can't be carried out ({one_line(error)}): convert the original model again"
        ) from error


def edit_again(model: nn.Module, edited: Sequence[nn.Module], path: Path) -> None:
    """Make the edits of a pickled model again, as the plans that it and its parts carry say.

    Edits of which the pickle has lost parts stay out, so that `check` can name them.

    Args:
        model: every class in it is its author's, but the blurs are there.
        edited: the modules whose class was edited when it was pickled.
        path: the file, for messages.

    Raises:
        BlurifyError: a plan can't be read or carried out, or there are edits that no plan says.
    """
    planned: list[tuple[nn.Module, Plan, Plan]] = []
    unsaid = {id(module): module for module in edited}
    for _, module in model.named_modules():  # from the outside in: what was converted last comes out first
        data = carried(module)
        if data is None:
            continue
        if len(planned) >= _MOST_PLANS:
            raise BlurifyError(f"{path} holds more than {_MOST_PLANS} plans: convert the original model again")
        plan = Plan.from_dict(upgrading.plan_data(data))
        drop_plan(module)
        lost = take_out(module, plan, frozenset(map(id, edited)))
        parts = dict(module.named_modules())
        for edit in plan.edits:
            unsaid.pop(id(parts.get(edit.module)), None)
        sites = tuple(
            dataclasses.replace(site, edits=tuple(edit for edit in site.edits if edit not in lost))
            for site in plan.sites
        )
        planned.append((module, plan, dataclasses.replace(plan, sites=sites)))
    if unsaid:
        one = next(iter(unsaid.values()))
        raise BlurifyError(
            f"{path} holds a {type(one).__name__} that blurify edited, but not the plan: save the whole converted model"
        )
    if any(type(module).__module__ == calls.__name__ for module in model.modules()):
        raise BlurifyError(f"{path} holds parts of a conversion that no plan says: convert the original model again")
    for module, plan, left in reversed(planned):
        if left == plan:
            carry_out(module, plan, path)
        else:
            apply_plan(module, left)
            carry_plan(module, plan)


def _planned_again(model: nn.Module, plan: Plan) -> Decided | None:
    """What this version decides for the same recipe and inputs; None where the model can't be run by shapes alone."""
    for inputs in (planned_inputs(model, plan), None):
        try:
            return rehearsed(model, plan.recipe, inputs)
        except BlurifyError:  # planned with whole numbers, by keywords; or names that match no site of this version
            continue
    return None


def planned_inputs(model: nn.Module, plan: Plan) -> tuple[torch.Tensor, ...]:
    """Zeros of the shapes that a plan was made for."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return tuple(torch.zeros(shape, dtype=dtype, device="cpu") for shape in plan.input_shapes)


def _check(model: nn.Module, plan: Plan, again: Decided) -> None:
    """Ask whether a plan that this version would not make does what it says: at sites, with the same sizes, running."""
    known: dict[tuple[Any, ...], Any] = {(site.name, site.kind, site.stride): site for site in again.plan.sites}
    for site in plan.converted:
        if (site.name, site.kind, site.stride) not in known:
            raise BlurifyError(f"{site.name!r} is no {site.kind} of stride {site.stride} in this model")
    wrong = [*problems(model, plan), *wrong_filters(model, plan)]
    if wrong:
        raise BlurifyError(wrong[0])
    before: Trace = again.traces[0]
    after = traced(model, before.inputs)
    if output_shapes(before) != output_shapes(after):
        raise BlurifyError("the outputs would have other sizes than the original's")
    wanted = {path for site in plan.converted for path in site.blur_paths} - plan.idle_blurs
    idle = wanted - {call.path for call in after.calls}
    if idle and not before.real:
        training = trace(model, before.inputs, training=True)
        idle -= {call.path for call in training.calls}
    if idle:
        raise BlurifyError(f"the blur {min(idle)!r} would never run")
