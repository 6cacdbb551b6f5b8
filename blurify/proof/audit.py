"""Audit: a trace of the converted model finds none of the converted sites again."""

from __future__ import annotations

import dataclasses
from collections import Counter

from torch import nn

from blurify.graph.structure import Inputs
from blurify.planning.planner import make_plan
from blurify.spec.edits import Rewrite
from blurify.spec.plan import Plan, Site


def sites_left(converted: nn.Module, plan: Plan, inputs: Inputs) -> list[str]:
    """The names of sites that the plan converted and that a trace of the converted model still finds."""
    # Its patterns are for the original's sites, of which some may have gone.
    again = make_plan(converted, dataclasses.replace(plan.recipe, skip_names=()), inputs).sites
    # Calls in one forward are numbered, and those that stand-ins run no longer count: compare how many there are.
    now = Counter(_kind_of(site) for site in again)
    behind_blur = [site for site in plan.converted if site.rule == "blurred-input"]
    strided = {site.name for site in behind_blur if not any(_is_stand_in(edit) for edit in site.edits)}
    kept = Counter(_kind_of(site) for site in plan.sites if site.action == "skip" or site.name in strided)
    unfiltered = {site.name for site in again if site.rule != "already-filtered"}
    return [
        site.name
        for site in plan.converted
        if (site.name in unfiltered if site.name in strided else now[_kind_of(site)] > kept[_kind_of(site)])
    ]


def _is_stand_in(edit: object) -> bool:
    return isinstance(edit, Rewrite) and edit.op == "conv-blurred"


def _kind_of(site: Site) -> tuple[str, str, tuple[int, ...]]:
    return site.name.partition("#")[0], site.kind, site.stride
