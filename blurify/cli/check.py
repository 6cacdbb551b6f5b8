"""`blurify check`: whether a converted model is still what its plan says."""

from __future__ import annotations

import typer

from blurify.cli import console, options


def check(
    model: options.ConvertedFile,
    arch: options.Arch = None,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    json: options.Json = False,
) -> None:
    """Say whether the plan of a converted model is still in force, one line a problem. Exit code 1: it is not.

    Code that works on a model after its conversion may put a layer back, or its stride: this finds it.
    """
    with console.working("reading the model"):
        loaded = options.open_converted(model, options.How(arch, allow, trust, weights, source))
        import blurify
    with console.working("checking"):
        found = blurify.check(loaded.model)
    adapted = blurify.adapted_of(loaded.model)
    if json:
        console.print_json(
            {"in_force": bool(found), "problems": list(found.problems), "lines": found.lines()}
            | ({"adapted": adapted.to_dict()} if adapted is not None else {})
        )
    else:
        for line in found.lines():
            console.say(line, style="green" if found else "red")
        if adapted is not None:
            console.say(adapted.summary())
    if not found:
        raise typer.Exit(1)
