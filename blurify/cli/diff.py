"""`blurify diff`: what differs between two plans."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blurify.cli import console, options
from blurify.cli.filtering import Filters, with_filters
from blurify.cli.tables import Column, print_table
from blurify.metrics.sizes import amount

if TYPE_CHECKING:
    from blurify.spec.plan_differences import PlanDifferences
    from blurify.spec.plan_file import PlanFile

_WHAT = "A plan file, a converted model's file, or any MODEL (what --recipe would do to it)."


@with_filters
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=_WHAT, show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="The same.", show_default=False)],
    recipe: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help="For a MODEL; twice: for A, then for B.", show_default="zhang2019"),
    ] = None,
    input_shape: options.InputShape = None,
    arch: options.Arch = None,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    json: options.Json = False,
    *,
    filters: Filters,
) -> None:
    """Say what differs between two plans: sites, what is done at them, filters, placement, costs.

    Exit code 0: nothing, 1: something, 2: an error.
    """
    filters.check()
    chosen = list(recipe or [])
    if len(chosen) > 2:
        from blurify.errors import BlurifyError

        raise BlurifyError("--recipe is given once for both, or twice, for A and for B")
    recipes: list[str | None] = [chosen[0], chosen[-1]] if chosen else [None, None]
    how = options.How(arch, allow, trust, weights, source)
    with console.working("reading"):
        from blurify.spec.plan_differences import plan_differences

        plans = [
            _plan(spec, how, wanted, filters, input_shape)
            for spec, wanted in zip((first, second), recipes, strict=True)
        ]
    found = plan_differences(*plans)
    if json:
        console.print_json({"first": first, "second": second} | found.to_dict())
    else:
        _say(first, second, found, plans)
    if found:
        raise typer.Exit(1)


def _plan(spec: str, how: options.How, recipe: str | None, filters: Filters, input_shape: list[str] | None) -> PlanFile:
    """What is, or would be, done to a model."""
    from blurify.files import plan_files
    from blurify.spec.plan_file import PlanFile

    if plan_files.is_plan_file(spec):
        return plan_files.read(spec)
    from blurify.spec.recipes import load_recipe

    filters.on(load_recipe(recipe))  # before the work, so that none is wasted
    inputs = options.example_inputs(input_shape)
    loaded = how.open(spec, pretrained=False)
    import blurify

    plan = blurify.plan_of(loaded.model)
    if plan is None:
        wanted = options.recipe_for(loaded, recipe, filters)
        plan = blurify.inspect(loaded.model, example_inputs=inputs, recipe=wanted)
    return PlanFile.of(plan)


def _say(first: str, second: str, found: PlanDifferences, plans: list[PlanFile]) -> None:
    if not found:
        console.say(f"the same: {len(plans[0].lines)} sites, each with the same blur or none", style="green")
        return
    console.say(f"A: {shlex.quote(first)}  B: {shlex.quote(second)}", style="bold")
    for which, names in (("A", found.only_first), ("B", found.only_second)):
        for name in names:
            console.say(f"only in {which}: {name}")
    if found.sites:
        rows = [(one.site, one.field, _shown(one.first), _shown(one.second)) for one in found.sites]
        print_table((Column("site"), Column("what"), Column("A", prose=True), Column("B", prose=True)), rows)
    for name, (a, b) in found.totals.items():
        shown = amount if name.endswith("macs") else str
        console.say(f"{name.replace('_', ' ')}: {shown(a)} -> {shown(b)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {_shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return f"[{' '.join(f'{one:.4g}' if isinstance(one, float) else str(one) for one in value)}]"
    return "-" if value is None else " ".join(str(value).split())
