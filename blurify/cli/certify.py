"""`blurify certify`: does a circular shift of the picture shift the output, and do nothing else?"""

from __future__ import annotations

from typing import Annotated

import typer

from blurify.allocation import keep_freed_memory
from blurify.cli import answers, console, devices, options
from blurify.cli.filtering import Filters, with_filters


@with_filters
def certify(
    model: options.Model,
    circular: Annotated[
        bool, typer.Option("--circular", help="Make all padding circular for this, on a copy.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Convert it first, on a copy: aps, or another recipe (blurify recipes).",
            show_default=False,
            autocompletion=options.complete_recipe,
        ),
    ] = None,
    shifts: Annotated[
        int, typer.Option(min=1, metavar="N", help="Random circular shifts, of 8 pictures of noise.")
    ] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Shifted pictures at once.")] = 32,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the pictures and the shifts.")] = 0,
    input_shape: options.InputShape = None,
    device: answers.Device = "auto",
    arch: options.Arch = None,
    random: options.Random = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    json: options.Json = False,
    *,
    filters: Filters,
) -> None:
    """Certify that circular shifts change nothing: all outputs equal to 1e-5, maps after shifting them back.

    Exit code 1: it is not so; the first operation that breaks it is named. Pictures are 64 pixels a side unless
    --input-shape says otherwise, or the model wants another size.
    """
    filters.check()
    keep_freed_memory()
    with console.working("reading the model"):
        inputs = options.example_inputs(input_shape)
        from blurify.spec.recipes import load_recipe

        chosen = recipe is not None or bool(filters.given)
        wanted = filters.on(load_recipe(recipe)) if chosen else None  # before the work, so that none is wasted
        loaded = options.How(arch, allow, trust, weights, source).open(model, pretrained=not random)
        import blurify
        from blurify.metrics.certify import certify as certified
    net = loaded.model
    if wanted is not None:
        with console.working("converting it"):
            net = blurify.convert(net, wanted, example_inputs=inputs)
    net = net.to(devices.find_device(device))
    with console.working("shifting pictures"):
        found = certified(net, example_inputs=inputs, shifts=shifts, batch=batch_size, seed=seed, circular=circular)
    if json:
        console.print_json({"model": model, "recipe": wanted.name if wanted is not None else None} | found.to_dict())
    else:
        verdict, *rest = found.lines()
        console.say(verdict, style="green" if found else "red")
        for line in rest:
            console.say(line)
    if not found:
        raise typer.Exit(1)
