"""Models of earlier versions, as this one would have made them."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.nn import legacy
from blurify.proof.proof import carry_proof, proof_of
from blurify.spec.edits import Blur
from blurify.spec.methods import Taps
from blurify.spec.plan import Plan
from blurify.spec.recipes import Recipe
from blurify.surgery.carrying import carried, carry_plan


def upgrade(model: nn.Module) -> nn.Module:
    """Bring what 0.1.0 pickled (hooks, plans and proofs as objects) into today's form, in place."""
    legacy.without_hooks(model)
    plan, proof = carried(model), proof_of(model)
    if isinstance(plan, Plan):
        carry_plan(model, _upgraded(plan))
    if proof is not None:
        carry_proof(model, proof)
    return model


def plan_data(data: Any) -> dict[str, Any]:
    """A plan as a dictionary, also where 0.1.0 pickled objects, which were read as dictionaries with their class.

    Raises:
        BlurifyError: it is none.
    """
    if not isinstance(data, dict):
        raise BlurifyError("the plan in this file can't be read: convert the original model again")
    if data.get("__kind__") != "Plan":
        return data
    plan = _fields(data)
    try:
        recipe = Recipe(**_fields(plan["recipe"])).to_dict()
        sites = [{**_fields(site), "edits": [_edit_data(edit) for edit in site["edits"]]} for site in plan["sites"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BlurifyError(f"the plan in this file can't be read ({error}): convert the original again") from error
    return {**plan, "format": 1, "recipe": recipe, "sites": sites}


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "__kind__"}


def _edit_data(data: dict[str, Any]) -> dict[str, Any]:
    blur = data.get("blur")
    return {**_fields(data), "edit": data["__kind__"], "blur": None if blur is None else _fields(blur)}


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
