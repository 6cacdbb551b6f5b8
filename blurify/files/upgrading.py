"""Models of earlier versions, as this one would have made them."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from blurify.nn import legacy
from blurify.proof.proof import carry_proof, proof_of
from blurify.spec.edits import Blur
from blurify.spec.methods import Taps
from blurify.spec.plan import Plan
from blurify.surgery.carrying import carry_plan, plan_of


def upgrade(model: nn.Module) -> nn.Module:
    """Bring what 0.1.0 pickled (hooks, plans and proofs as objects) into today's form, in place."""
    legacy.without_hooks(model)
    plan, proof = plan_of(model), proof_of(model)
    if isinstance(vars(model).get("_blurify_plan"), Plan) and plan is not None:
        carry_plan(model, _upgraded(plan))
    if proof is not None:
        carry_proof(model, proof)
    return model


def _upgraded(plan: Plan) -> Plan:
    sites = tuple(
        dataclasses.replace(site, edits=tuple(_edit(edit, site.stride) for edit in site.edits)) for site in plan.sites
    )
    return dataclasses.replace(plan, sites=sites)


def _edit(edit: Any, stride: tuple[int, ...]) -> Any:
    changes: dict[str, Any] = {}
    blur = vars(edit).get("blur")
    if blur is not None and "method" not in vars(blur):
        known = {field.name for field in dataclasses.fields(Blur)} - {"method"}
        given = {name: value for name, value in vars(blur).items() if name in known}
        changes["blur"] = Blur(method=Taps(vars(blur)["taps"]), **given)
    if "stride" in vars(edit) and "before" not in vars(edit) and hasattr(type(edit), "before"):
        changes["before"] = stride
    return dataclasses.replace(edit, **changes)
