"""Open whatever a user may name as MODEL: an architecture, or a file of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blurify.errors import BlurifyError
from blurify.files import formats, sources
from blurify.files.belonging import find
from blurify.files.checkpoint import Checkpoint, Reading
from blurify.files.in_force import require_in_force
from blurify.files.rebuilding import rebuild
from blurify.files.sources import LoadedModel, ModelSource
from blurify.files.sources.auto import AUTO
from blurify.files.sources.own_file import import_source
from blurify.files.weights import fill
from blurify.surgery.carrying import plan_of


def open_model(
    spec: str,
    *,
    arch: str | None = None,
    pretrained: bool = True,
    allow: Sequence[str] = (),
    trust: bool = False,
    weights: str | None = None,
    source: Path | None = None,
    in_force: bool = True,
) -> LoadedModel:
    """The model that the user means, with its plan where it was converted.

    Args:
        spec: `timm/NAME[.TAG]`, `torchvision/NAME[:WEIGHTS]`, `python:package.module:factory`, or a file (also one
            that `checkpoints.save` wrote). The first three take options of the factory, as in
            `timm/resnet18?num_classes=10`.
        arch: for a file that holds only weights: one of the factory specs, or 'auto' to look for the architecture of
            timm or torchvision that has these tensors. The number of classes and of input channels is read off the
            file where nothing is said about it.
        pretrained: False gives random weights (nothing is downloaded).
        allow: classes (`mypkg.nets.Net`) that a pickled module may consist of besides those of torch, torchvision and
            timm.
        trust: run whatever a pickled file contains.
        weights: which of several sets of weights in a file: 'ema', 'model', or the key that they stand under.
        source: the user's Python file that defines the classes of a pickled model, or what `python:` names; it is run.
        in_force: refuse a converted model whose plan is no longer in force.

    Raises:
        BlurifyError: there is no such model or file, its weights can't be had, or the file is not safe or not a model.
    """
    if source is not None:
        import_source(source)
    if sources.is_factory(spec):
        if arch is not None:
            raise BlurifyError(f"--arch goes with a file of weights; {spec} is an architecture itself")
        model, resolved = sources.build(spec, pretrained=pretrained)
        return LoadedModel(model.eval(), ModelSource(spec, "factory", resolved))
    loaded = _from_checkpoint(formats.read_checkpoint(spec, Reading(tuple(allow), trust, weights, source)), arch)
    if in_force and (plan := plan_of(loaded.model)) is not None:
        require_in_force(loaded.model, plan, f"convert the original model again instead of opening {spec}")
    return loaded


def _from_checkpoint(checkpoint: Checkpoint, arch: str | None) -> LoadedModel:
    name, note, rest = checkpoint.path.name, checkpoint.note, checkpoint.rest
    if checkpoint.module is not None:
        return LoadedModel(checkpoint.module.eval(), ModelSource(name, "module"), note, rest)
    if arch == AUTO and (checkpoint.arch is not None or checkpoint.header is not None):
        arch = None  # the file says it
    if checkpoint.header is not None:
        model, source = rebuild(checkpoint, arch=arch)
        return LoadedModel(model.eval(), source, note, rest)
    found = find(checkpoint, arch or checkpoint.arch)
    fill(found.model, found.tensors, where=str(checkpoint.path), arch=arch or found.arch)
    notes = "; ".join(filter(None, (note, *found.notes)))
    return LoadedModel(found.model.eval(), ModelSource(name, "weights", found.arch), notes, rest, found.recipe)
