"""`blurify convert`: convert a model, verify it, write it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blurify.cli import answers, carried, console, drifting, next_steps, options, plans, teaching
from blurify.cli.devices import find_device, memory_errors
from blurify.cli.filtering import Filters, with_filters
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from torch import Tensor

    from blurify.files.sources import LoadedModel
    from blurify.metrics.results import Agreement
    from blurify.metrics.subject import Preprocessing
    from blurify.proof.proof import Proof
    from blurify.spec.plan import Plan
    from blurify.spec.recipes import Recipe
    from blurify.tuning.budget import Budget, Spent

MINUTES = 10.0


@with_filters
def convert(
    model: options.Model,
    output: options.Output,
    recipe: options.Recipe = None,
    input_shape: options.InputShape = None,
    plan_file: options.PlanToFollow = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of images: count the answers that change on them.")
    ] = None,
    images: answers.Images = answers.IMAGES,
    keep_agreement: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="With --data: convert only sites that leave so much, such as 90%."),
    ] = None,
    max_extra_flops: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="A budget: at most so many more multiply-adds, such as 10%, or 0%."),
    ] = None,
    max_extra_memory: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="A budget: at most so much more activation memory in training."),
    ] = None,
    adapt: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of pictures: adapt the weights to the blurs on them, as blurify adapt."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="With --adapt: time for it.", show_default=f"{MINUTES:g}")
    ] = None,
    device: answers.Device = "auto",
    arch: options.Arch = None,
    random: options.Random = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove the conversion before writing.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
    write_unchanged: Annotated[
        bool, typer.Option("--write-unchanged", help="Write OUT even where there is nothing to convert.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write only the tensors (a state_dict), for other programs.")
    ] = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    json: options.Json = False,
    *,
    filters: Filters,
) -> None:
    """Convert a model, prove that nothing else changed, and write it: same class, same weights, less aliasing.

    Trained weights do not fit the blur: adapt them (--adapt DIR, or blurify adapt, which has all its options), or try
    --recipe gentle --keep-agreement 90%.
    """
    filters.check()
    answers.check_images(images)
    if plan_file is not None and (recipe is not None or filters.given):
        raise BlurifyError(
            f"--plan says what happens at every site: leave {', '.join(['--recipe', *filters.given])} out"
        )
    keep = answers.parse_share("--keep-agreement", keep_agreement)
    flops = answers.parse_extra("--max-extra-flops", max_extra_flops)
    memory = answers.parse_extra("--max-extra-memory", max_extra_memory)
    if keep is not None and data is None:
        raise BlurifyError("--keep-agreement asks on which pictures: add --data DIR, a folder of images without labels")
    if minutes is not None and adapt is None:
        raise BlurifyError("--minutes is the time for adapting: add --adapt DIR, a folder of pictures without labels")
    if minutes is not None and not minutes > 0:
        raise BlurifyError(f"--minutes {minutes:g} is no time: give more")
    with console.working("loading torch"):
        from blurify.files import checkpoints, formats, plan_files

    formats.for_writing(output).check_target(output, force=force)  # before the work, so that none is wasted
    with console.working("reading the model"):
        inputs = options.example_inputs(input_shape)
        from blurify.files.atomic import Folder
        from blurify.graph.supplying import supplied
        from blurify.spec.recipes import load_recipe

        filters.on(load_recipe(recipe))  # before the work, so that none is wasted
        given = None if plan_file is None else plan_files.read(plan_file)
        how = options.How(arch, allow, trust, weights, source)
        # What a conversion leaves as it is need not be read: the weights of safetensors stay in their file.
        stays = isinstance(output, Folder) or output.suffix == ".safetensors"
        stays = stays and data is None and adapt is None
        loaded = how.open(model, pretrained=not random, lazily=stays)
        asked = wanted = options.recipe_for(loaded, recipe, filters)
    import blurify

    budget = _budget(flops, memory)
    if given is not None and blurify.plan_of(loaded.model) is not None:
        raise BlurifyError(f"{model} is converted already: --plan is for the original (blurify revert gives it)")
    if given is not None:
        with console.working("planning"), supplied(loaded.tensors):
            wanted, inputs = plan_files.follow(loaded.model, given, str(plan_file), inputs)
            asked = wanted

    plan, proof, adapted = blurify.plan_of(loaded.model), None, None
    already = plan is not None
    converted = loaded.model
    agreed: Agreement | None = None
    spent: Spent | None = None
    if plan is None:
        used = None if adapt is None else _pictures(loaded, inputs, adapt, device)
        shown = None if data is None else answers.Shown.of(model, loaded, inputs, data, images, device)
        if budget is not None:
            wanted, spent = _within(loaded, wanted, budget, inputs, shown)
        if keep is not None and shown is not None:
            wanted, spent = _keeping(loaded, wanted, keep, shown, budget, spent)
        with console.working("converting" + (" and verifying" if verify else "")):
            settings: dict[str, Any] = {
                "example_inputs": inputs,
                "verify": verify,
                "memory": True,
                "inplace": not verify and shown is None and adapt is None,
            }
            try:
                with supplied(loaded.tensors):
                    converted = blurify.convert(loaded.model, wanted, **settings)
            except BlurifyError:
                if loaded.tensors is None:
                    raise
                loaded = how.open(model, pretrained=not random)  # a forward that needs all weights at once
                converted = blurify.convert(loaded.model, wanted, **settings)
        plan = blurify.plan_of(converted)
        proof = blurify.proof_of(converted)
        if plan is None:  # a model without a single site may come back as it was
            plan = blurify.inspect(converted, example_inputs=inputs, recipe=wanted, memory=True)
        if adapt is not None and answers.changes_answers(plan):
            if not json:
                _say(loaded, plan, proof)
            with memory_errors("blurify adapt with a smaller --batch-size"):
                adapted = teaching.taught(
                    loaded.model, converted, adapt, output, quiet=json, preprocessing=used, device=find_device(device),
                    minutes=MINUTES if minutes is None else minutes,
                )  # fmt: skip
            from blurify.tuning.training import main_process

            if not main_process():
                return
        if shown is not None and plan.converted:
            agreed = shown.compared(converted)
    elif keep is not None or adapt is not None or budget is not None:
        remedy = "blurify adapt takes it as it is, and blurify revert gives the original"
        raise BlurifyError(f"{model} is converted already: {remedy}")
    changed = bool(plan.converted) and not already
    written = changed or write_unchanged
    told: list[str] = []
    if written:
        with console.working(f"writing {output}"):
            checkpoints.save(
                converted,
                output,
                source=loaded.source,
                rest=loaded.rest,
                plain=plain,
                measured=() if agreed is None or data is None else (answers.line(agreed, data.name, done=True),),
                tensors=loaded.tensors,
                force=force,
                notes=told,
            )
    size = plans.size_of(output) if written else 0
    remedy = ""
    trained_so = loaded.recipe is not None and wanted == loaded.recipe
    if changed and not (random or trained_so) and adapted is None and answers.changes_answers(plan):
        again = plain or not formats.for_writing(output).opens_again
        adapted_to = answers.adapted_name(output)
        remedy = (
            answers.adapt_command(model, adapted_to, how.words()) if again  # what was written has no plan to go on with
            else answers.adapt_command(answers.shown(output), adapted_to, how.words_for_written(loaded.source))
        )  # fmt: skip

    if json:
        console.print_json(
            {
                "plan": plan.to_dict(),
                "totals": plans.totals(plan),
                "already_converted": already,
                "proof": _proof_data(proof),
                "answers": answers.as_json(agreed, data),
                "budget": spent.to_dict() if spent is not None else None,
                "adapt": remedy or None,
                "adapted": adapted.to_dict() if adapted is not None else None,
                "note": "; ".join(filter(None, (loaded.note, *told))) or None,
                "suggestion": (drifting.suggestion(plan) or None) if changed else None,
                "rest": carried.rest_as_json(loaded.rest, output, plain=plain),
                "file": {"path": str(output), "bytes": size} if written else None,
            }
        )
        return
    if adapted is None:
        _say(loaded, plan, proof, already=already)
    else:
        teaching.say_notes(adapted)
    if spent is not None and budget is not None:
        console.say(spent.line(budget), style="bold")
    if adapt is not None and adapted is None and changed:
        console.say("not adapted: the one-tap filter changes no answers", style="yellow")
    if agreed is not None and data is not None:
        console.say(answers.line(agreed, data, done=True), style="bold")
    if changed and (suggested := drifting.suggestion(plan)):
        console.say(suggested, style="yellow")
    if changed and trained_so and adapted is None:
        console.say(f"its weights were trained with these filters ({asked.name}): it is ready for use", style="bold")
    if changed and (other := options.other_recipe(loaded, asked)):
        console.say(other, style="yellow")
    if remedy:
        console.say(answers.warning(remedy, done=True), style="bold yellow")
    if written:
        console.say(f"wrote {output} ({plans.file_size(size)})", style="bold")
        for note in told:
            console.say(note, style="yellow")
        carried.say_rest(loaded.rest, output, plain=plain, adapted=adapted is not None)
        if loaded.source.kind == "module" and output.suffix == ".safetensors":
            console.say(
                "safetensors hold weights and plan but no code: open the file with --arch, or with "
                "blurify.load(path, model=original); a .pt file holds the module itself"
            )
        if adapted is not None:
            console.say(teaching.next_command(model, output, how.words(), how.words_for_written(loaded.source)))
        elif changed and not plain and formats.for_writing(output).opens_again:
            next_steps.after_convert(
                model,
                answers.shown(output),
                [*how.words(), *["--random"] * random],
                how.words_for_written(loaded.source),
                adapt=bool(remedy),
            )
    else:
        console.say(f"nothing to convert, {output} was not written (--write-unchanged writes it all the same)")


def _say(loaded: LoadedModel, plan: Plan, proof: Proof | None, *, already: bool = False) -> None:
    """What was converted, and the proof of it."""
    if loaded.note:
        console.say(loaded.note)
    console.say(plans.headline(plan), style="bold")
    if already:
        console.say(f"already converted ({len(plan.converted)} of {len(plan.sites)} sites blurred): nothing to do")
        return
    plans.print_site_lines(plan)
    plans.print_totals(plan)
    if not plan.converted:
        return  # nothing was done, so there is nothing to prove
    if proof is not None:
        for line in proof.lines():
            console.say(line, style="green")
    else:
        console.say("not verified (--no-verify)", style="yellow")


def _budget(flops: float | None, memory: float | None) -> Budget | None:
    """What --max-extra-flops and --max-extra-memory ask, None where neither is given."""
    if flops is None and memory is None:
        return None
    from blurify.tuning.budget import Budget

    return Budget(flops, memory)


def _within(
    loaded: LoadedModel, recipe: Recipe, budget: Budget, inputs: Any, shown: answers.Shown | None
) -> tuple[Recipe, Spent]:
    """The recipe within a budget, and what it costs: by aliasing measured on pictures, or by rule."""
    from blurify.tuning.budget import within_budget

    if shown is not None:
        chosen = shown.within(recipe, budget, shown.example)
    else:
        with console.working("choosing within the budget"):
            chosen = within_budget(loaded.model, recipe, budget, inputs)
    return chosen.recipe, chosen.spent


def _keeping(
    loaded: LoadedModel, recipe: Recipe, keep: float, shown: answers.Shown, budget: Budget | None, spent: Spent | None
) -> tuple[Recipe, Spent | None]:
    """Of a recipe, as many sites as leave so much of the answers; and what that costs, where there is a budget."""
    if budget is None:
        return shown.ranked(recipe).choose(keep), spent
    import blurify
    from blurify.tuning.budget import spent_by

    if not blurify.inspect(loaded.model, shown.example, recipe).converted:
        return recipe, spent  # the budget has no room for any site
    measured: dict[Recipe, Spent] = {}

    def fits(fewer: Recipe) -> bool:
        measured[fewer] = spent_by(loaded.model, fewer, shown.example, memory=budget.memory is not None)
        return measured[fewer].within(budget)

    chosen = shown.ranked(recipe).choose(keep, fits)
    return chosen, measured[chosen]


def _pictures(loaded: LoadedModel, inputs: tuple[Tensor, ...] | None, data: Path, device: str) -> Preprocessing:
    """How the pictures of --adapt become inputs. Raises BlurifyError where there are none, or no such device."""
    from blurify.metrics.pictures import open_folder

    used = answers.preprocessing_for(loaded, inputs)
    open_folder(data, used)
    find_device(device)
    return used


def _proof_data(proof: Any) -> dict[str, Any] | None:
    if proof is None:
        return None
    return {**dataclasses.asdict(proof), "lines": proof.lines()}
