"""The options that several commands share, and what they mean to the library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blurify.cli import console
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from torch import Tensor

    from blurify.files.sources import LoadedModel

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm/NAME, torchvision/NAME, a checkpoint file, or python:package.module:factory.",
        show_default=False,
    ),
]
ConvertedFile = Annotated[
    str, typer.Argument(metavar="FILE", help="A file that blurify convert or blurify.save wrote.", show_default=False)
]


def _target(text: str) -> Path:
    """A path that remembers a slash at its end, which means a directory."""
    from blurify.files.atomic import target

    return target(text)


Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="OUT", parser=_target,
        help="File to write: .safetensors, or .pt (torch's format); DIR/ for a directory as the Hugging Face hub has.",
    ),
]  # fmt: skip
Recipe = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="A shipped recipe or a TOML file.", show_default="zhang2019")
]
FilterSize = Annotated[
    int | None, typer.Option(metavar="1..7", help="Taps of the binomial filter; wins over the recipe's filter.")
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(metavar="N,C,H,W", help="Input shape; once for each input. Inferred where left out."),
]
Arch = Annotated[str | None, typer.Option(metavar="timm/NAME", help="The model of a file that holds only weights.")]
Random = Annotated[bool, typer.Option("--random", help="Random weights: download nothing.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="pkg.Class", help="Allow one more class in a pickled model; repeatable."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Run the code in a pickled file. Only for files of your own.")]
Json = Annotated[bool, typer.Option("--json", help="Report as JSON.")]


def parse_shape(text: str) -> tuple[int, ...]:
    """'1,3,224,224' or '1x3x224x224' -> (1, 3, 224, 224). Raises BlurifyError for anything else."""
    try:
        shape = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise BlurifyError(f"--input-shape {text!r} is not a shape: give positive numbers, such as 1,3,224,224")
    return shape


def example_inputs(shapes: list[str] | None) -> tuple[Tensor, ...] | None:
    """One random tensor a shape, or None where the shape is to be inferred."""
    if not shapes:
        return None
    parsed = [parse_shape(shape) for shape in shapes]
    import torch

    try:
        return tuple(torch.randn(shape) for shape in parsed)
    except (RuntimeError, TypeError) as error:
        raise BlurifyError(f"--input-shape {' '.join(shapes)} takes more memory than there is: give less") from error


def check_filter_size(size: int | None) -> None:
    """Raise BlurifyError for a filter size that does not exist, before anything is loaded."""
    if size is not None and not 1 <= size <= 7:
        raise BlurifyError(f"--filter-size {size} does not exist: choose 1 (the identity) to 7, 4 is the default")


def open_model(
    spec: str, *, arch: str | None, pretrained: bool, allow: list[str] | None, trust: bool, lazily: bool = False
) -> LoadedModel:
    """Load the MODEL argument."""
    from blurify.files import opening

    return _noted(
        opening.open_model(spec, arch=arch, pretrained=pretrained, allow=tuple(allow or ()), trust=trust, lazily=lazily)
    )


def _noted(loaded: LoadedModel) -> LoadedModel:
    """Remember where a model was pickled, for the message of what its state may break."""
    if loaded.source.kind == "module":
        console.came_from_a_file(loaded.source.spec)
    return loaded


def open_converted(spec: str, *, arch: str | None, allow: list[str] | None, trust: bool) -> LoadedModel:
    """Load the FILE argument, a converted model, in whatever state it is. Raises BlurifyError where it is none."""
    import blurify
    from blurify.files import opening

    loaded = _noted(
        opening.open_model(spec, arch=arch, pretrained=False, allow=tuple(allow or ()), trust=trust, in_force=False)
    )
    if blurify.plan_of(loaded.model) is None:
        raise BlurifyError(f"{spec} carries no plan: it is not a model that blurify converted (convert it first)")
    return loaded
