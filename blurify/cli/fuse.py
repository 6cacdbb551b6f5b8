"""`blurify fuse`: a converted model for deployment, the same function by fewer operations."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from blurify.cli import console, options, plans
from blurify.errors import BlurifyError
from blurify.metrics.sizes import amount


def fuse(
    model: options.ConvertedFile,
    output: options.Output,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Merge blurs into depthwise convolutions, too: fewer multiply-adds, not always less time."
        ),
    ] = False,
    input_shape: options.InputShape = None,
    arch: options.Arch = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    json: options.Json = False,
) -> None:
    """Write a converted model for deployment: the same outputs by fewer operations, compared before it is written.

    Batch norms are folded, 1x1 convolutions run behind the blur that came after them. OUT is a program, .pt2 or .onnx:
    its weights have other names and shapes, it can't be trained on, reverted or checked. Keep the converted model.
    """
    if output.suffix not in (".pt2", ".onnx"):
        raise BlurifyError(f"{output}: a fused model is written as a program: name a .pt2 or .onnx")
    with console.working("loading torch"):
        from blurify.files import checkpoints, formats

    formats.for_writing(output).check_target(output, force=force)  # before the work, so that none is wasted
    with console.working("reading the model"):
        inputs = options.example_inputs(input_shape)
        loaded = options.open_converted(model, options.How(arch, allow, trust, weights, source))
    with console.working("fusing and comparing"):
        from blurify.surgery.fusing import fused

        result, done = fused(loaded.model, inputs, merge=merge)
    with console.working(f"writing {output}"):
        told: list[str] = []
        checkpoints.save_fused(result, loaded.model, output, force=force, notes=told)
    size = plans.size_of(output)
    if json:
        console.print_json(
            {
                "fused": dataclasses.asdict(done),
                "note": "; ".join(told) or None,
                "file": {"path": str(output), "bytes": size},
            }
        )
        return
    for line in done.lines() or ["nothing to fuse: the model is written as it is"]:
        console.say(line)
    before, after = done.macs
    growth = f" ({after / before - 1:+.1%})" if before else ""
    console.say(f"multiply-adds {amount(before)} -> {amount(after)}{growth}")
    console.say(f"compared: its outputs are those of {model}, off by at most {done.error:.1e} of the largest value")
    console.say(f"wrote {output} ({plans.file_size(size)}), for inference alone: keep {model}", style="bold")
    for note in told:
        console.say(note, style="yellow")
