"""What the weights in a file belong to: the architecture that was named, or found, with what is read off them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.files import sources
from blurify.files.checkpoint import Checkpoint
from blurify.files.published import FILTER, Published, recognise
from blurify.files.sources.auto import AUTO, find_architecture
from blurify.files.sources.fitting import fitted
from blurify.files.weights import shapes_in, under_own_names
from blurify.spec.recipes import Recipe


@dataclass(frozen=True)
class Belonging:
    """What tensors belong to.

    Attributes:
        model: with random weights.
        arch: the factory spec that built it, with the choices that were left open filled in.
        tensors: under its names, apart from what wrappers put before all of them.
        notes: what was found out, in one line each.
        recipe: what they were trained with, as far as they tell.
    """

    model: nn.Module
    arch: str
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    recipe: Recipe | None = None


def find(checkpoint: Checkpoint, arch: str | None) -> Belonging:
    """Build the model of a file that holds only weights.

    Args:
        checkpoint: with tensors.
        arch: a factory spec, 'auto', or None where nobody says.

    Raises:
        BlurifyError: nobody says, nothing fits, or several architectures do. Whether a named one fits is asked when it
            is filled.
    """
    where, tensors = str(checkpoint.path), checkpoint.tensors or {}
    published = recognise(tensors)
    if arch is None:
        raise BlurifyError(_what_to_say(where, tensors, published))
    if arch == AUTO and published is not None:
        arch = _only(published, where)
    if arch == AUTO:
        match = find_architecture(shapes_in(tensors), where)
        return Belonging(*sources.build(match.spec, pretrained=False), tensors, (match.note,))
    model, resolved = sources.build(arch, pretrained=False)
    own = list(model.state_dict())
    if published is None or any(name.endswith(FILTER) for name in own):
        return _with_options(Belonging(model, resolved, under_own_names(model, tensors)), arch)
    named = published.named_as(own)
    if named is None:
        raise BlurifyError(f"{where} holds {published.described}, which don't fit {arch}: {_instead(published)}")
    note = (
        f"{published.described}: {len(named)} tensors take the names of {arch}; they are of the recipe "
        f"{published.recipe.name} with {published.recipe.filter_size} taps"
    )
    return _with_options(Belonging(model, resolved, named, (note,), published.recipe), arch)


def _with_options(found: Belonging, arch: str) -> Belonging:
    """The same; where the shapes differ, with those options of the architecture that give it the file's."""
    theirs = shapes_in(found.tensors)
    if shapes_in(found.model.state_dict()) == theirs or (fit := fitted(arch, theirs)) is None:
        return found
    spec, read_off = fit
    if not read_off:
        return found
    model, resolved = sources.build(spec, pretrained=False)
    return replace(found, model=model, arch=resolved, notes=(*found.notes, read_off))


def _what_to_say(where: str, tensors: Mapping[str, Tensor], published: Published | None) -> str:
    if published is not None:
        return f"{where} holds {published.described}: {_instead(published)}"
    return (
        f"{where} holds only weights ({len(tensors)} tensors): say what they belong to, with --arch timm/NAME, "
        "--arch torchvision/NAME or --arch python:module:factory; or add --arch auto to look for it"
    )


def _instead(published: Published) -> str:
    found = published.architectures()
    specs = found or [f"torchvision/{name}" for name in published.family]
    return f"add --arch {specs[0]}" if len(specs) == 1 else f"add --arch with one of {' '.join(specs)}"


def _only(published: Published, where: str) -> str:
    found = published.architectures()
    if len(found) != 1:
        raise BlurifyError(f"{where} holds {published.described}: {_instead(published)}")
    return found[0]
