"""Plan files: written, read, and followed on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.files import atomic, replanning
from blurify.proof.rehearsal import rehearsed
from blurify.spec.plan import Plan
from blurify.spec.plan_file import PlanFile, check_followed, followed
from blurify.spec.recipes import Recipe

ENDING = ".json"
_LARGEST = 64 * 2**20  # bytes


def is_plan_file(source: Any) -> bool:
    """Whether something that may be a recipe, or a model's name, is the path of a plan file."""
    return isinstance(source, str | Path) and str(source).lower().endswith(ENDING)


def write(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Write a plan for people to edit.

    Args:
        plan: of a model, converted or to be.
        path: a file that ends in .json.
        force: replace it where it exists.

    Raises:
        BlurifyError: it exists, or can't be written.
    """
    check_target(path, force=force)
    atomic.write_bytes(path.expanduser(), PlanFile.of(plan).to_text().encode(), force=force)


def check_target(path: Path, *, force: bool = False) -> None:
    """Raise BlurifyError where no plan file can be written under this name."""
    if not is_plan_file(path):
        raise BlurifyError(f"a plan file ends in {ENDING}; {str(path)!r} does not")
    atomic.check_target(path, force=force)


def read(path: str | Path) -> PlanFile:
    """Read a plan file. Raises BlurifyError where it is none."""
    where = Path(path).expanduser()
    try:
        if where.stat().st_size > _LARGEST:
            raise BlurifyError(f"{path} is larger than any plan file ({_LARGEST // 2**20} MiB)")
        text = where.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BlurifyError(f"no plan file {str(path)!r}: blurify inspect MODEL --plan {path} writes it") from error
    except UnicodeDecodeError as error:
        raise BlurifyError(f"{path} is not UTF-8 text, so it is no plan file") from error
    except (OSError, ValueError) as error:
        raise BlurifyError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    return PlanFile.from_text(text, str(path))


def follow(model: nn.Module, file: PlanFile, where: str, example_inputs: Any = None) -> tuple[Recipe, Any]:
    """The recipe, and the inputs, with which a model's plan is what a plan file says.

    Args:
        model: not converted; it is not changed.
        file: read from a file.
        where: how errors call the file.
        example_inputs: as of `blurify.inspect`. Where None, they are inferred, and if those are not of the file's
            shapes, zeros of the file's shapes are taken.

    Returns:
        the recipe, and the example inputs: as given, or zeros.

    Raises:
        BlurifyError: the file is of another model, or wants what can't be had; the message names the site.
    """
    inputs = example_inputs
    base = rehearsed(model, file.recipe, inputs).plan
    if inputs is None and file.input_shapes and base.input_shapes != file.input_shapes:
        inputs = replanning.planned_inputs(model, Plan(file.recipe, (), input_shapes=_possible(file, where)))
        base = rehearsed(model, file.recipe, inputs).plan
    recipe = followed(file, base, where)
    check_followed(file, base if recipe == file.recipe else rehearsed(model, recipe, inputs).plan, where)
    return recipe, inputs


def _possible(file: PlanFile, where: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of a file, if they can be a model's inputs."""
    try:
        Plan.from_dict(Plan(Recipe(), (), input_shapes=file.input_shapes).to_dict())
    except BlurifyError as error:
        raise BlurifyError(f"input_shapes in {where} are no inputs of a model: write the file again") from error
    return file.input_shapes
