"""`blurify inspect`: list the sites of a model, what would be done, what it costs, and how much each aliases."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blurify.cli import answers, console, drifting, next_steps, options, plans, responses
from blurify.cli.filtering import Filters, with_filters
from blurify.cli.measuring import command_line
from blurify.cli.pareto import print_pareto
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from blurify.files.sources import LoadedModel
    from blurify.metrics.pareto import ParetoTable
    from blurify.metrics.results import Agreement, Aliasing
    from blurify.metrics.trade_off import Ranking
    from blurify.spec.plan import Plan
    from blurify.spec.recipes import Recipe


@with_filters
def inspect(
    context: typer.Context,
    model: options.Model,
    recipe: options.Recipe = None,
    input_shape: options.InputShape = None,
    plan_file: options.PlanToWrite = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of images: how much each site aliases, how many answers would change."
        ),
    ] = None,
    images: answers.Images = answers.IMAGES,
    rank: Annotated[
        bool, typer.Option("--rank", help="With --data: what each site costs in answers for the aliasing it removes.")
    ] = False,
    points: Annotated[
        int | None,
        typer.Option(
            "--pareto",
            metavar="N",
            show_default=False,
            help="What partial conversions cost and buy, N at most, such as 12: with --data measured, else by rule.",
        ),
    ] = None,
    show_filters: Annotated[
        bool, typer.Option("--filters", help="The taps and the frequency response of each filter that is used.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="With --rank or --pareto: for blurify report."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.json or PLAN.json where it exists.")] = False,
    device: answers.Device = "auto",
    arch: options.Arch = None,
    random: options.Random = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    wide: options.Wide = False,
    json: options.Json = False,
    *,
    filters: Filters,
) -> None:
    """List where a model subsamples, what would be done there, and what it costs.

    The model is not changed. Sites do not depend on weights, so that no pretrained ones are downloaded; how much each
    aliases, and what its conversion does to the answers, does: --data uses them unless there is --random.
    """
    filters.check()
    answers.check_images(images)
    if points is not None:
        from blurify.metrics.pareto import check_points

        check_points(points)
    if rank and data is None:
        raise BlurifyError("--rank asks on which pictures: add --data DIR, a folder of images without labels")
    if output is not None:
        if not rank and points is None:
            raise BlurifyError(
                "--output is for the ranking of the sites and the Pareto table: add --rank or --pareto 12"
            )
        if data is None:
            raise BlurifyError("--output is for what is measured: add --data DIR, a folder of images without labels")
        from blurify.files import atomic

        atomic.check_target(output, force=force)  # before the work, so that none is wasted
    if plan_file is not None:
        from blurify.files import plan_files

        plan_files.check_target(plan_file, force=force)
    with console.working("reading and tracing the model"):
        inputs = options.example_inputs(input_shape)
        from blurify.spec.recipes import load_recipe

        filters.on(load_recipe(recipe))  # before the work, so that none is wasted
        # Without --data, `--random` changes no site; it is taken so that a command line of `convert` can be tried here.
        pretrained = data is not None and not random
        how = options.How(arch, allow, trust, weights, source)
        loaded = how.open(model, pretrained=pretrained)
        wanted = options.recipe_for(loaded, recipe, filters)
        import blurify

        already, adapted = blurify.plan_of(loaded.model) is not None, blurify.adapted_of(loaded.model)
        asked = [*(["--recipe", recipe] if recipe is not None else []), *filters.words()]
        if data is None:
            carried = None if asked else blurify.plan_of(loaded.model)
            plan = carried or blurify.inspect(loaded.model, example_inputs=inputs, recipe=wanted, memory=True)
            shown = None
        else:
            shown = answers.Shown.of(model, loaded, inputs, data, images, device)
            plan = _plan(shown, wanted)
    aliasing = shown.aliasing() if shown is not None else None
    agreed = _agreement(shown, plan) if shown is not None and not already else None
    ranking = shown.ranked(wanted) if shown is not None and rank else None
    table = None if points is None else _pareto(model, loaded, shown, inputs, wanted, points)
    if output is not None and shown is not None:
        _write(output, shown, plan, aliasing, ranking, table, command_line(context), force=force)
    if plan_file is not None:
        plan_files.write(blurify.plan_of(loaded.model) or plan, plan_file, force=force)
    remedy = ""
    if not (random or already or wanted == loaded.recipe) and answers.changes_answers(plan):
        remedy = answers.adapt_command(model, "OUT", how.words())
    if json:
        console.print_json(
            _as_json(plan, aliasing, data)
            | {"answers": answers.as_json(agreed, data), "adapt": remedy or None, "note": loaded.note or None}
            | {"suggestion": drifting.suggestion(plan) or None}
            | ({"ranking": ranking.to_dict()} if ranking is not None else {})
            | ({"pareto": table.to_dict()} if table is not None else {})
            | ({"adapted": adapted.to_dict()} if adapted is not None else {})
            | ({"filters": responses.as_json(plan)} if show_filters else {})
        )
        return
    if loaded.note:
        console.say(loaded.note)
    if already:
        console.say(_already(model, blurify.plan_of(loaded.model) or plan, plan), style="bold")
    if other := options.other_recipe(loaded, wanted):
        console.say(other, style="yellow")
    plans.print_plan(plan, None if aliasing is None else _shares(aliasing), wide=wide)
    if show_filters:
        responses.print_filters(plan)
    if suggested := drifting.suggestion(plan):
        console.say(suggested, style="yellow")
    if aliasing is not None and plan.sites:
        console.say(
            "aliasing: share of energy above the new Nyquist frequency just before the subsampling, most first; "
            f"{aliasing.images} images ({data}), 95% intervals in brackets"
        )
    if adapted is not None:
        console.say(adapted.summary(), style="bold")
    if agreed is not None and data is not None:
        console.say(answers.line(agreed, data, done=False), style="bold")
    if remedy:
        console.say(answers.warning(remedy, done=False), style="yellow")
    if ranking is not None:
        answers.print_ranking(ranking, wide=wide)
    if table is not None:
        print_pareto(table, wide=wide)
    if plan_file is not None:
        again = " ".join(["blurify convert", model, *how.words()])
        console.say(f"wrote {plan_file}; edit it, then: {again} --plan {plan_file} -o OUT", style="bold")
    elif not already:
        next_steps.after_inspect(model, asked, how.words(), plan)
    if output is not None:
        console.say(f"wrote {output}; blurify report {output} -o report.html shows it", style="bold")


def _already(model: str, done: Plan, shown: Plan) -> str:
    """That a model is converted, and what the table is about."""
    what = f"converted already by recipe {done.recipe.name}: {len(done.converted)} of {len(done.sites)} sites blurred"
    if shown.recipe == done.recipe:
        return f"{what} (does it still hold? blurify check {shlex.quote(model)})"
    return f"{what}; recipe {shown.recipe.name} would do this besides:"


def _write(
    output: Path, shown: answers.Shown, plan: Plan, aliasing: Aliasing | None, ranking: Ranking | None,
    pareto: ParetoTable | None, command: str, *, force: bool,
) -> None:  # fmt: skip
    """A file of measurements with the ranking and the Pareto table in it."""
    from blurify.metrics import files
    from blurify.metrics.measuring import settings_of
    from blurify.metrics.results import Measurement
    from blurify.metrics.subject import Subject
    from blurify.versions import versions

    settings = settings_of(Subject(shown.model, shown.preprocessing), shown.pictures)
    measured = Measurement(
        shown.spec, shown.pictures.name, len(shown.pictures), {**settings, "labels": ""}, aliasing=aliasing
    )
    known = {name: version for name, version in versions().items() if version is not None}
    context = files.Context(plan, command, known, ranking=ranking, pareto=pareto)
    files.write_measurements(output, [measured], context=context, force=force)


def _pareto(
    spec: str, loaded: LoadedModel, shown: answers.Shown | None, inputs: Any, recipe: Recipe, points: int
) -> ParetoTable:
    """What partial conversions cost and buy: measured on pictures, or by rule."""
    if shown is not None:
        return shown.pareto(recipe, points)
    from blurify.tuning.pareto import pareto_table

    with console.working("counting costs"):
        return pareto_table(loaded.model, recipe, inputs, most=points, name=spec)


def _plan(shown: answers.Shown, recipe: Recipe) -> Plan:
    """What would be done with pictures of this size; for a converted model, what was done."""
    import blurify

    carried = blurify.plan_of(shown.model)
    return carried or blurify.inspect(shown.model, example_inputs=shown.example, recipe=recipe, memory=True)


def _agreement(shown: answers.Shown, plan: Plan) -> Agreement | None:
    """How far the conversion would answer as the model does; None where there is nothing to convert."""
    import blurify
    from blurify.graph.copies import sharing_copy

    if not plan.converted:
        return None
    converted = blurify.convert(
        sharing_copy(shown.model), plan.recipe, example_inputs=shown.example, inplace=True, verify=False
    )
    return shown.compared(converted)


def _shares(aliasing: Aliasing) -> plans.Shares:
    return {site.site: site.share for site in aliasing.sites}


def _as_json(plan: Plan, aliasing: Aliasing | None, data: Path | None) -> dict[str, object]:
    found = {**plan.to_dict(), "totals": plans.totals(plan)}
    if aliasing is not None:
        shares = _shares(aliasing)
        for site in found["sites"]:
            share = shares.get(site["name"])
            site["aliasing"] = share and {name: getattr(share, name) for name in ("value", "low", "high", "count")}
        found["data"] = {"name": str(data), "images": aliasing.images}
    return found
