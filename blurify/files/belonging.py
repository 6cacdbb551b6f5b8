"""What the weights in a file belong to: the architecture that was named, or found, with what is read off them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from blurify.errors import BlurifyError
from blurify.files import sources
from blurify.files.checkpoint import Checkpoint
from blurify.files.prefixes import own_names
from blurify.files.published import FILTER, Published, recognise
from blurify.files.sources.auto import AUTO, find_architecture
from blurify.files.sources.fitting import fitted
from blurify.files.sources.shapes import shapes_of
from blurify.files.weights import Renamed, shapes_in
from blurify.spec.recipes import Recipe


@dataclass(frozen=True)
class Belonging:
    """What tensors belong to.

    Attributes:
        arch: the factory spec that builds it.
        tensors: those of the file; of published weights, under the names of the plain architecture.
        notes: what was found out, in one line each.
        recipe: what they were trained with, as far as they tell.
        renamed: the tensors have other names than in the file.
    """

    arch: str
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    recipe: Recipe | None = None
    renamed: bool = False


def find(checkpoint: Checkpoint, arch: str | None, config: Mapping[str, Any] | None = None) -> Belonging:
    """What builds the model of a file that holds only weights.

    Args:
        checkpoint: with tensors.
        arch: a factory spec, 'auto', or None where nobody says.
        config: what goes with it; then nothing else is read off the file.

    Raises:
        BlurifyError: nobody says, nothing fits, or several architectures do. Whether a named one fits is asked when its
            model is filled.
    """
    where, tensors = str(checkpoint.path), checkpoint.tensors or {}
    published = recognise(tensors)
    if arch is None:
        raise BlurifyError(_what_to_say(where, tensors, published))
    if arch == AUTO and published is not None:
        arch = _only(published, where)
    if arch == AUTO:
        prefix = checkpoint.prefix or ""
        shapes = {name.removeprefix(prefix): shape for name, shape in shapes_in(tensors).items()}
        match = find_architecture(shapes, where)
        return Belonging(match.spec, tensors, (match.note,))
    if published is not None:
        own = list(sources.build(arch, pretrained=False, config=config)[0].state_dict())
        if not any(name.endswith(FILTER) for name in own):
            return _of_published(published, arch, own, where)
    if config is not None or not arch.startswith(("timm/", "torchvision/")):
        return Belonging(arch, tensors)
    names = own_names(shapes_of(arch), tensors, where=where, prefix=checkpoint.prefix)
    return _with_options(Belonging(arch, tensors), shapes_in(Renamed(tensors, names.stored)))


def _of_published(published: Published, arch: str, own: list[str], where: str) -> Belonging:
    named = published.named_as(own)
    if named is None:
        raise BlurifyError(f"{where} holds {published.described}, which don't fit {arch}: {_instead(published)}")
    note = (
        f"{published.described}: {len(named)} tensors take the names of {arch}; they are of the recipe "
        f"{published.recipe.name} with {published.recipe.filter_size} taps"
    )
    return _with_options(Belonging(arch, named, (note,), published.recipe, renamed=True), shapes_in(named))


def _with_options(found: Belonging, shapes: Mapping[str, tuple[int, ...]]) -> Belonging:
    """The same; where the shapes differ, with those options of the architecture that give it the file's."""
    fit = fitted(found.arch, shapes)
    if fit is None or not fit[1]:
        return found
    spec, read_off = fit
    return Belonging(spec, found.tensors, (*found.notes, read_off), found.recipe, found.renamed)


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
