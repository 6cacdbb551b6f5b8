"""Whether a model still does what its plan says."""

from __future__ import annotations

from torch import nn

from blurify.errors import BlurifyError
from blurify.spec.plan import Plan
from blurify.surgery import force


def require_in_force(model: nn.Module, plan: Plan, what: str) -> None:
    """Ask whether the blurs that a plan put into a model are still there and still run.

    Args:
        model: converted by that plan.
        plan: the plan that it carries.
        what: what to do where the plan is no longer in force, for the end of the message.

    Raises:
        BlurifyError: they are not.
    """
    if problems := force.problems(model, plan):
        raise BlurifyError(f"the plan is no longer in force: {problems[0]}; {what}")
