"""Audit: a trace of the converted model finds none of the converted sites again."""

from __future__ import annotations

from collections import Counter

from torch import nn

from blurify.errors import BlurifyError, named_line
from blurify.graph.filters import is_filtered
from blurify.graph.recorder import trace
from blurify.graph.resampling import find_resampling, is_smoothed
from blurify.graph.sites import Found, find_sites
from blurify.graph.structure import Inputs
from blurify.spec.edits import Rewrite
from blurify.spec.kinds import RULES
from blurify.spec.plan import Plan, Site


def sites_left(converted: nn.Module, plan: Plan, inputs: Inputs) -> list[str]:
    """The names of sites that the plan converted and that a trace of the converted model still finds.

    Raises:
        BlurifyError: the converted model does not run.
    """
    try:
        seen = trace(converted, inputs)
    except BlurifyError:
        raise
    except Exception as error:
        raise BlurifyError(named_line(error)) from error
    again = find_sites(seen)
    # Calls in one forward are numbered, and those that stand-ins run no longer count: compare how many there are.
    now = Counter(_kind_of(site) for site in again)
    behind_blur = [site for site in plan.converted if site.rule == "blurred-input"]
    strided = {site.name for site in behind_blur if not any(_is_stand_in(edit) for edit in site.edits)}
    kept = Counter(_kind_of(site) for site in plan.sites if site.action == "skip" or site.name in strided)
    unfiltered = {site.name for site in again if site.name in strided and not is_filtered(site, [seen], converted)}
    # Their ops stay: they must stand beside a filter now.
    resampled = {site.name for site in plan.converted if site.rule in RULES}
    unfiltered |= {
        site.name
        for site in (find_resampling(seen) if resampled else ())
        if site.name in resampled and not is_smoothed(site, [seen], converted)
    }
    strided |= resampled
    return [
        site.name
        for site in plan.converted
        if (site.name in unfiltered if site.name in strided else now[_kind_of(site)] > kept[_kind_of(site)])
    ]


def _is_stand_in(edit: object) -> bool:
    return isinstance(edit, Rewrite) and edit.op == "conv-blurred"


def _kind_of(site: Site | Found) -> tuple[str, str, tuple[int, ...]]:
    kind, stride = (site.op.kind, site.op.stride) if isinstance(site, Found) else (site.kind, site.stride)
    return site.name.partition("#")[0], kind, stride
