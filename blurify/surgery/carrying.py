"""What a converted model carries along, as plain versioned data that any pickle can hold: plan, proof, adapting."""

from __future__ import annotations

from typing import Any

from torch import nn

from blurify.spec.adapted import Adapted
from blurify.spec.plan import Plan

_PLAN = "_blurify_plan"
_ADAPTED = "_blurify_adapted"


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a converted model carries, None for a model that was not converted.

    Raises:
        BlurifyError: it was written by a version of blurify that this one can't read.
    """
    found = carried(model)
    if isinstance(found, Plan):  # as 0.1.0 pickled it
        return found
    return Plan.from_dict(found) if isinstance(found, dict) else None


def carried(model: nn.Module) -> Any:
    """The plan that a model carries, as it carries it; None where there is none."""
    return vars(model).get(_PLAN)


def carry_plan(model: nn.Module, plan: Plan) -> None:
    """Let a model carry its plan."""
    model.__dict__[_PLAN] = plan.to_dict()


def drop_plan(model: nn.Module) -> None:
    """Let a model carry no plan any more."""
    model.__dict__.pop(_PLAN, None)


def adapted_of(model: nn.Module) -> Adapted | None:
    """What `adapt` did to a model, stage by stage; None for a model that was not adapted.

    Raises:
        BlurifyError: it was written by a version of blurify that this one can't read.
    """
    found = vars(model).get(_ADAPTED)
    return Adapted.from_dict(found) if isinstance(found, dict) else None


def carry_adapted(model: nn.Module, adapted: Adapted | None) -> None:
    """Let a model carry what `adapt` did to it; None takes that away."""
    if adapted is None:
        model.__dict__.pop(_ADAPTED, None)
    else:
        model.__dict__[_ADAPTED] = adapted.to_dict()
