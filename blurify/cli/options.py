"""The options that several commands share, and what they mean to the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blurify.cli import console
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from torch import Tensor

    from blurify.cli.filtering import Filters
    from blurify.files.sources import LoadedModel, ModelSource
    from blurify.spec.recipes import Recipe as Recipe_

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
        help="File to write: .pt (torch's format), .safetensors, .pt2, .onnx, or one of these with .gz; DIR/ for a "
        "directory as the Hugging Face hub has.",
    ),
]  # fmt: skip
RECIPES = "zhang2019, gentle, light, aligned, aps, ...; blurify recipes lists all"
"""The shipped recipes, for help texts."""


def complete_recipe(incomplete: str) -> list[str]:
    """The shipped recipes that begin so, for the shell."""
    from blurify.spec.recipes import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE", help=f"A shipped recipe ({RECIPES}) or a TOML file.", show_default="zhang2019",
        autocompletion=complete_recipe,
    ),
]  # fmt: skip
PlanToWrite = Annotated[
    Path | None,
    typer.Option("--plan", metavar="PLAN.json", help="Write the plan here, to edit; convert --plan follows it."),
]
PlanToFollow = Annotated[
    Path | None,
    typer.Option("--plan", metavar="PLAN.json", help="Follow this plan (of inspect --plan), not a recipe."),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(metavar="N,C,H,W", help="Input shape; once for each input. Inferred where left out."),
]
Arch = Annotated[
    str | None,
    typer.Option(metavar="timm/NAME|auto", help="The model of a file that holds only weights; auto looks for it."),
]
Random = Annotated[bool, typer.Option("--random", help="Random weights: download nothing.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="pkg.Class", help="Allow one more class in a pickled model; repeatable."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Run the code in a pickled file. Only for files of your own.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="ema|model|KEY", help="Which of several weights in a file.", show_default="averaged ones, if any"
    ),
]
Source = Annotated[
    Path | None,
    typer.Option(metavar="FILE.py", help="Your own file that defines the model's classes; its code is run."),
]
Wide = Annotated[bool, typer.Option("--wide", help="All columns of tables, however long the lines become.")]
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


@dataclass(frozen=True)
class How:
    """How a file is to be read: the options of every command that reads one."""

    arch: str | None = None
    allow: Sequence[str] | None = None
    trust: bool = False
    weights: str | None = None
    source: Path | None = None

    def words(self) -> list[str]:
        """The options again, for a command line that reads the same file."""
        named = (("--arch", self.arch), ("--weights", self.weights))
        return [*(word for pair in named if pair[1] for word in pair if word), *self.words_for_classes()]

    def words_for_written(self, source: ModelSource) -> list[str]:
        """Those that a file still needs which was made from that one, of a model from there."""
        return [*(["--arch", str(source.arch)] if source.fetched_or_run else []), *self.words_for_classes()]

    def words_for_classes(self) -> list[str]:
        """Those that say where a pickled model's classes are."""
        words = [word for name in self.allow or () for word in ("--allow", name)]
        words += ["--source", str(self.source)] if self.source is not None else []
        return [*words, *(["--trust"] if self.trust else [])]

    def open(self, spec: str, *, pretrained: bool, in_force: bool = True, lazily: bool = False) -> LoadedModel:
        """What `opening.open_model` makes of it."""
        from blurify.files import opening

        loaded = opening.open_model(
            spec, arch=self.arch, pretrained=pretrained, allow=tuple(self.allow or ()), trust=self.trust,
            weights=self.weights, source=self.source, in_force=in_force, lazily=lazily,
        )  # fmt: skip
        if loaded.source.kind == "module":
            # For the message of what the state of a pickled model may break.
            console.came_from_a_file(loaded.source.spec)
        return loaded


def recipe_for(loaded: LoadedModel, recipe: str | None, filters: Filters) -> Recipe_:
    """The recipe that the user named; where none, the one that the model's weights were trained with; else the default.

    Args:
        loaded: the model.
        recipe: --recipe.
        filters: what wins over the recipe's filter.
    """
    from blurify.spec.recipes import load_recipe

    return filters.on(load_recipe(recipe) if recipe is not None or loaded.recipe is None else loaded.recipe)


def other_recipe(loaded: LoadedModel, wanted: Recipe_) -> str:
    """What to say where the weights were trained with filters, and the user wants others; '' where not."""
    theirs = loaded.recipe
    if theirs is None or wanted == theirs:
        return ""
    used = f" and {len(wanted.resolved_taps)}" if wanted.filter is None else f" ({wanted.filter.words()})"
    return (
        f"the weights were trained with {theirs.name} and {theirs.filter_size} taps, not with {wanted.name}"
        f"{used}: leave --recipe and --filter-size out to get what they were trained for"
    )


def open_converted(spec: str, how: How) -> LoadedModel:
    """Load the FILE argument, a converted model, in whatever state it is. Raises BlurifyError where it is none."""
    import blurify

    loaded = how.open(spec, pretrained=False, in_force=False)
    if blurify.plan_of(loaded.model) is None:
        raise BlurifyError(f"{spec} carries no plan: it is not a model that blurify converted (convert it first)")
    return loaded
