"""What a converted model carries along: its plan and its proof, as plain versioned data that any pickle can hold."""

from __future__ import annotations

from typing import Any

from torch import nn

from blurify.errors import BlurifyError
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


def unwrapped_advice(model: nn.Module) -> BlurifyError | None:
    """For a wrapper around the model, the error that says what to convert instead."""
    name = type(model).__name__
    inner = "_orig_mod" if name == "OptimizedModule" else "module"
    wraps = name in ("OptimizedModule", "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
    wraps = wraps or name in ("AveragedModel", "ModelEMA", "ModelEmaV2", "ModelEmaV3")
    if not wraps or not isinstance(getattr(model, inner, None), nn.Module):
        return None
    again = "torch.compile the result" if name == "OptimizedModule" else f"wrap the result in {name} again"
    what = "compiled" if name == "OptimizedModule" else f"a {name} around the model"
    return BlurifyError(f"this is {what}: convert model.{inner}, then {again}")
