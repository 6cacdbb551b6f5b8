"""`blurify measure`: how shift-invariant a model is, alone or beside another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from blurify.cli import console, options
from blurify.cli.gathering import More, gathered
from blurify.cli.measuring import Choices, command_line, entry_and_file, measured, with_choices
from blurify.cli.pareto import print_pareto
from blurify.errors import BlurifyError

_MOST = 3  # models side by side


@with_choices
def measure(
    context: typer.Context,
    model: options.Model,
    model2: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL2]", help="A second model, for the same pictures.", show_default=False),
    ] = None,
    model3: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL3]", help="A third, such as the adapted one.", show_default=False),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="consistency, aliasing, equivariance, stability, worst-case, half-patch, fractional, lie-derivative; "
            "or all. Agreement of two models comes first; agreement: nothing else.",
        ),
    ] = "consistency,aliasing",
    output: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the measurements as JSON.")
    ] = None,
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence", help="Also into FILE: what a report shows besides figures, such as pictures that flip."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
    wide: options.Wide = False,
    json: options.Json = False,
    *,
    choices: Choices,
) -> None:
    """Measure how shift-invariant a model is; with MODEL2 or --convert side by side, on the same pictures and crops.

    Of two or three models it first says how far the others answer as the first does. Figures are means over the
    pictures with 95% intervals; differences are taken picture by picture. Class folders give labels where they are
    named by the numbers of the model's classes, ImageNet's identifiers or the classes' names, or are as many as the
    classes.
    """
    choices, output = entry_and_file(choices, output, (".json",))
    choices.check()
    with console.working("loading torch"):
        from blurify.cli import measurements
        from blurify.files import atomic
        from blurify.metrics import files

    if evidence and output is None:
        raise BlurifyError("--evidence goes into a file: give -o found.json, and blurify report shows it")
    if output is not None:
        atomic.check_target(output, force=force)  # before the work, so that none is wasted
    specs = [spec for spec in (model, model2, model3) if spec is not None]
    if len(specs) == _MOST and choices.convert:
        raise BlurifyError("--convert makes the second model of one: leave it out where three are given")
    found = measured(specs, metrics, choices, command=command_line(context), in_context=output is not None, json=json)
    with found.keeping:
        if output is not None:
            about = found.context
            if evidence and about is not None:
                about = dataclasses.replace(about, evidence=gathered(found, choices, More()))
            files.write_measurements(output, found.results, context=about, force=force)
        if json:
            table = {"pareto": found.pareto.to_dict()} if found.pareto is not None else {}
            console.print_json(files.as_json(found.results) | table)
            return
        for note in found.notes:
            console.say(note)
        measurements.print_measurements(found.results, wide=wide)
        if found.pareto is not None:
            print_pareto(found.pareto, wide=wide)
        if output is not None:
            console.say(f"wrote {output}", style="bold")
