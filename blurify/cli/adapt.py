"""`blurify adapt`: let the original teach the converted model on unlabelled pictures, and write the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blurify.cli import carried, console, options, plans, teaching
from blurify.cli.devices import find_device, memory_errors
from blurify.cli.filtering import Filters, with_filters
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from torch import nn

    from blurify.files.sources import LoadedModel

Stages = Annotated[
    str, typer.Option(metavar="LIST", help="Which: recalibrate, reconstruct, refine, distil; comma-separated.")
]


@with_filters
def adapt(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A file that blurify convert wrote (with the original's weights), or any MODEL of blurify convert, "
            "which is converted first.",
            show_default=False,
        ),
    ],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of pictures; no labels are needed.")],
    output: options.Output,
    stages: Stages = "recalibrate,reconstruct,refine,distil",
    minutes: Annotated[float, typer.Option(metavar="M", help="Time for all stages together.")] = 10.0,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Training steps, instead of --minutes.", show_default="by --minutes")
    ] = None,
    crops: Annotated[int, typer.Option(metavar="N", help="Pieces of the pictures to learn from.")] = 500,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Pictures a training step and process.")] = 16,
    accumulate: Annotated[int, typer.Option(metavar="N", help="Batches a training step.")] = 1,
    learning_rate: Annotated[
        float, typer.Option(metavar="R", help="Of distil, relative to the size of each tensor.")
    ] = 1e-4,
    precision: Annotated[str, typer.Option(metavar="no|fp16|bf16", help="Of training.")] = "no",
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Learn from class folders, too, where they fit.")
    ] = True,
    outputs: Annotated[
        str, typer.Option(metavar="auto|classes|values", help="What the model's output is taken for.")
    ] = "auto",
    size: Annotated[
        str | None, typer.Option(metavar="H,W", help="Size of the model's input.", show_default="the model's own")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="For pictures in 0..1.", show_default="the model's own")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="For pictures in 0..1.", show_default="the model's own")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a line of JSON for every stage and step.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Don't go on with a run that was stopped.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all random choices.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where it runs.")] = "auto",
    recipe: options.Recipe = None,
    arch: options.Arch = None,
    random: options.Random = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    json: options.Json = False,
    *,
    filters: Filters,
) -> None:
    """Adapt a converted model: the original teaches it, on unlabelled pictures, to answer as before.

    A trained network has never seen blurred features: converted, it loses most of its answers. Batch norms are moved,
    the layers around the blurs refitted, the parts that hold them refined, and what follows is trained a little. A run
    that is stopped goes on where it was when it is started again. For several GPUs: accelerate launch -m blurify ...
    """
    filters.check()
    with console.working("loading torch"):
        from blurify.files import checkpoints, formats
        from blurify.tuning.adapting import Options
        from blurify.tuning.training import Training, main_process

    wanted = tuple(name.strip() for name in stages.split(",") if name.strip())
    Options(wanted, Training(steps, minutes, batch_size, accumulate=accumulate), crops, outputs=outputs).check()
    formats.for_writing(output).check_target(output, force=force)
    if restart:
        teaching.kept_at(output).unlink(missing_ok=True)
    place = find_device(device)
    with console.working("reading the model"):
        how = options.How(arch, allow, trust, weights, source)
        loaded = how.open(model, pretrained=not random)
    original, converted = _pair(loaded, model, recipe, filters)
    from blurify.cli.measuring import parse_numbers, parse_size
    from blurify.metrics import preprocessing

    geometry = preprocessing.preprocessing_of(
        original, loaded.source.arch, size=parse_size("--size", size), mean=parse_numbers("--mean", mean),
        std=parse_numbers("--std", std),
    )  # fmt: skip
    if not json:
        if loaded.note:
            console.say(loaded.note)
        console.say(plans.headline(_plan(converted)), style="bold")
    with memory_errors("a smaller --batch-size or fewer --crops"):
        adapted = teaching.taught(
            original, converted, data, output, quiet=json, preprocessing=geometry, stages=wanted, steps=steps,
            minutes=minutes if steps is None else None, batch_size=batch_size, learning_rate=learning_rate,
            crops=crops, outputs=outputs, labels=labels, precision=precision, accumulate=accumulate, seed=seed,
            device=place, log=log,
        )  # fmt: skip
    if not main_process():
        return
    told: list[str] = []
    with console.working(f"writing {output}"):
        checkpoints.save(converted, output, source=loaded.source, rest=loaded.rest, force=force, notes=told)
    size_written = plans.size_of(output)
    if json:
        console.print_json({"adapted": adapted.to_dict(), "file": {"path": str(output), "bytes": size_written}})
        return
    teaching.say_notes(adapted)
    for note in told:
        console.say(note, style="yellow")
    console.say(f"wrote {output} ({plans.file_size(size_written)})", style="bold")
    carried.say_rest(loaded.rest, output, plain=False, adapted=True)
    console.say(teaching.next_command(model, output, how.words(), how.words_for_written(loaded.source)))


def _pair(loaded: LoadedModel, spec: str, recipe: str | None, filters: Filters) -> tuple[nn.Module, nn.Module]:
    """The original and the converted model, of whichever the file holds."""
    import blurify

    if blurify.plan_of(loaded.model) is None:
        with console.working("converting and verifying"):
            converted = blurify.convert(loaded.model, options.recipe_for(loaded, recipe, filters))
        if not _plan(converted).converted:
            raise BlurifyError(f"{spec} has nothing to convert, so there is nothing to adapt")
        return loaded.model, converted
    if recipe is not None or filters.given:
        options_given = ", ".join([*["--recipe"] * (recipe is not None), *filters.given])
        raise BlurifyError(f"{spec} is converted already: leave {options_given} out, or give the original")
    if blurify.adapted_of(loaded.model) is not None:
        raise BlurifyError(
            f"{spec} was adapted already, so that the original's weights are not in it: give the original, or the file "
            "that blurify convert wrote"
        )
    return blurify.revert(loaded.model), loaded.model


def _plan(model: nn.Module) -> Any:
    import blurify

    return blurify.plan_of(model) or blurify.inspect(model)
