"""`blurify revert`: the original of a converted model, in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from blurify.cli import console, options, plans
from blurify.errors import BlurifyError, one_line

if TYPE_CHECKING:
    from torch import nn

    from blurify.files.sources import ModelSource


def revert(
    model: options.ConvertedFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="File to write, in torch's format (.pt).")
    ],
    arch: options.Arch = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    weights: options.Weights = None,
    source: options.Source = None,
    json: options.Json = False,
) -> None:
    """Write the original of a converted model: same class, the weights that it has now, no blurs.

    A model that can be built by name (timm, torchvision) becomes a state_dict, any other is pickled whole.
    """
    if output.suffix == ".safetensors":
        raise BlurifyError(f"{output} would be no file of safetensors: name it .pt, it is written in torch's format")
    with console.working("loading torch"):
        from blurify.files import atomic, pickled

    atomic.check_target(output, force=force)  # before the work, so that none is wasted
    with console.working("reading the model"):
        loaded = options.open_converted(model, options.How(arch, allow, trust, weights, source))
        import blurify

    adapted = blurify.adapted_of(loaded.model)
    with console.working("reverting"):
        original = blurify.revert(loaded.model)
        content = _content(original, loaded.source)

    def write(file: BinaryIO) -> None:
        try:
            pickled.save(content, file)
        except OSError:
            raise
        except Exception as error:  # pickling runs the model's own code
            raise BlurifyError(
                f"the {type(original).__name__} can't be pickled ({one_line(error)}): give --arch with its name, and "
                "its weights are written alone"
            ) from error

    output = output.expanduser()
    with console.working(f"writing {output}"):
        atomic.write_file(output, write, force=force, check=lambda written: pickled.compare(written, content))
    what, size = "module" if content is original else "state_dict", output.stat().st_size
    if json:
        console.print_json(
            {"file": {"path": str(output), "bytes": size, "holds": what}, "arch": loaded.source.arch}
            | ({"adapted": adapted.to_dict()} if adapted is not None else {})
        )
        return
    whose = "the original's" if adapted is None else "without blurs, adapted"
    console.say(f"wrote {output} ({plans.file_size(size)}), {whose} {_WORDS[what]}", style="bold")
    if adapted is not None:
        console.say(
            f"careful: the weights are not the original's, they are adapted to the blurs that are gone now "
            f"({adapted.summary()}); the original is the model that was converted",
            style="bold yellow",
        )
    if loaded.source.arch and what == "state_dict":
        console.say(f"open it with --arch {loaded.source.arch}")


_WORDS = {"module": "whole module", "state_dict": "weights (a state_dict)"}


def _content(original: nn.Module, source: ModelSource) -> Any:
    """What goes into the file: plain tensors where a name tells the rest."""
    return original if source.arch is None else dict(original.state_dict())
