"""What a converted model carries along: its plan and its proof, as plain versioned data that any pickle can hold."""

from __future__ import annotations

from typing import Any

from torch import nn

from blurify.spec.plan import Plan

_PLAN = "_blurify_plan"


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a converted model carries, None for a model that was not converted.

    Raises:
        BlurifyError: it was written by a version of blurify that this one can't read.
    """
    carried: Any = vars(model).get(_PLAN)
    if isinstance(carried, Plan):  # as 0.1.0 pickled it
        return carried
    return Plan.from_dict(carried) if isinstance(carried, dict) else None


def carry_plan(model: nn.Module, plan: Plan) -> None:
    """Let a model carry its plan."""
    model.__dict__[_PLAN] = plan.to_dict()


def drop_plan(model: nn.Module) -> None:
    """Let a model carry no plan any more."""
    model.__dict__.pop(_PLAN, None)
