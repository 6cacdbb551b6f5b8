"""`blurify revert`: the original of a converted model, in a file of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from blurify.cli import carried, console, options, plans
from blurify.errors import BlurifyError


def revert(
    model: options.ConvertedFile,
    output: options.Output,
    arch: options.Arch = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    json: options.Json = False,
) -> None:
    """Write the original of a converted model: same class, the weights that it has now, no blurs.

    A model that can be built by name (timm, torchvision) becomes a state_dict, any other is pickled whole; what else
    stood in a training checkpoint is carried over. A .safetensors holds its tensors.
    """
    with console.working("loading torch"):
        from blurify.files import atomic, checkpoints, formats

    if isinstance(output, atomic.Folder):
        raise BlurifyError(f"{output}/: an original is written to a file: name a .pt or .safetensors")
    formats.for_writing(output).check_target(output, force=force)  # before the work, so that none is wasted
    with console.working("reading the model"):
        loaded = options.open_converted(model, options.How(arch, allow, trust, weights, source))
        import blurify

    adapted = blurify.adapted_of(loaded.model)
    with console.working("reverting"):
        original = blurify.revert(loaded.model)

    with console.working(f"writing {output}"):
        output = checkpoints.save_original(original, output, source=loaded.source, rest=loaded.rest, force=force)
    tensors = output.suffix == ".safetensors"
    what, size = "state_dict" if loaded.source.arch or tensors else "module", plans.size_of(output)
    if output.suffix in (".pt2", ".onnx"):
        what = "program"
    if json:
        console.print_json(
            {
                "file": {"path": str(output), "bytes": size, "holds": what},
                "arch": loaded.source.arch,
                "rest": carried.rest_as_json(loaded.rest, output),
            }
            | ({"adapted": adapted.to_dict()} if adapted is not None else {})
        )
        return
    whose = "the original's" if adapted is None else "without blurs, adapted"
    console.say(f"wrote {output} ({plans.file_size(size)}), {whose} {_WORDS[what]}", style="bold")
    carried.say_rest(loaded.rest, output, adapted=adapted is not None)
    if adapted is not None:
        console.say(
            f"careful: the weights are not the original's, they are adapted to the blurs that are gone now "
            f"({adapted.summary()}); the original is the model that was converted",
            style="bold yellow",
        )
    if loaded.source.arch and what == "state_dict":
        console.say(f"open it with --arch {loaded.source.arch}")


_WORDS = {"module": "whole module", "state_dict": "weights (a state_dict)", "program": "exported program"}
