"""What differs between two plans: sites, what is done at them, how, and what it costs. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blurify.spec.plan_file import Line, PlanFile, same_filter

_ALWAYS = ("action", "kind", "kernel_size", "stride", "input_shape", "output_shape")
_HOW = ("filter", "placement", "stem")  # of sites that are blurred in both
_RESULT = ("where", "extra_macs")


@dataclass(frozen=True)
class SiteDifference:
    """One thing in which a site differs.

    Attributes:
        site: its name.
        field: 'action', 'filter', 'placement', 'stem', 'kind', 'kernel_size', 'stride', 'input_shape', 'output_shape',
            'where' or 'extra_macs'.
        first, second: its values in the two plans; None where a plan file does not say.
    """

    site: str
    field: str
    first: Any
    second: Any


@dataclass(frozen=True)
class PlanDifferences:
    """What differs between two plans; false where nothing does.

    Attributes:
        only_first, only_second: names of sites that only one of them has.
        sites: what differs at the others.
        totals: name -> the two values, of those that differ: macs, extra_macs, converted, sites.
    """

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    sites: tuple[SiteDifference, ...]
    totals: dict[str, tuple[int, int]]

    def __bool__(self) -> bool:
        return bool(self.only_first or self.only_second or self.sites or self.totals)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        changed: dict[str, dict[str, Any]] = {}
        for one in self.sites:
            changed.setdefault(one.site, {})[one.field] = [one.first, one.second]
        return {
            "same": not self,
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "sites": changed,
            "totals": {name: list(pair) for name, pair in self.totals.items()},
        }


def plan_differences(first: PlanFile, second: PlanFile) -> PlanDifferences:
    """Compare two plans, site by site.

    How a recipe is called, and reasons in words, make no difference; nor do costs and places that a plan file does not
    know, because it was edited since.
    """
    one, two = ({line.site: line for line in plan.lines} for plan in (first, second))
    found: list[SiteDifference] = []
    for name in one:
        if name not in two:
            continue
        lines = one[name], two[name]
        blurred = {line.action for line in lines} == {"blur"}
        stale = name in first.edited or name in second.edited
        fields = [*_ALWAYS, *(_HOW if blurred else ()), *(_RESULT if blurred and not stale else ())]
        for field in fields:
            a, b = (_value(line, field) for line in lines)
            unsaid = field in ("filter", "placement") and (a is None or b is None)  # as a recipe has it
            if a != b and not unsaid and not (field == "filter" and same_filter(a, b)):
                found.append(SiteDifference(name, field, a, b))
    done = [sum(line.action == "blur" for line in lines.values()) for lines in (one, two)]
    counts: list[tuple[str, int | None, int | None]] = [
        ("sites", len(one), len(two)),
        ("converted", done[0], done[1]),
        ("macs", first.macs, second.macs),
        ("extra_macs", first.extra_macs, second.extra_macs),
    ]
    totals = {name: (a, b) for name, a, b in counts if a is not None and b is not None and a != b}
    return PlanDifferences(
        tuple(name for name in one if name not in two), tuple(name for name in two if name not in one), tuple(found),
        totals,
    )  # fmt: skip


def _value(line: Line, field: str) -> Any:
    if hasattr(line, field):
        return getattr(line, field) or None
    value = line.facts.get(field)
    return list(value) if isinstance(value, tuple) else value
