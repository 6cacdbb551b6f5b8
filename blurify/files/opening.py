"""Open whatever a user may name as MODEL: an architecture, or a file of any kind."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from blurify.errors import BlurifyError
from blurify.files import formats, sources
from blurify.files.belonging import find
from blurify.files.checkpoint import Checkpoint, Reading
from blurify.files.in_force import require_in_force
from blurify.files.rebuilding import rebuild
from blurify.files.replanning import carry_out
from blurify.files.sources import LoadedModel, ModelSource, configs, hub
from blurify.files.sources.auto import AUTO
from blurify.files.sources.own_file import import_source
from blurify.files.weights import fill, fill_lazily
from blurify.graph.copies import without_weights
from blurify.surgery.carrying import plan_of
from blurify.surgery.marking import mark_configuration


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
    lazily: bool = False,
) -> LoadedModel:
    """The model that the user means, with its plan where it was converted.

    Args:
        spec: `timm/NAME[.TAG]`, `torchvision/NAME[:WEIGHTS]`, `python:package.module:factory`, `hf-hub:ORG/NAME`, or
            a file or directory (also one that `checkpoints.save` wrote). The first three take options of the factory,
            as in `timm/resnet18?num_classes=10`.
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
        lazily: leave the weights of a file of safetensors in it, as far as that can be done: the model has shapes then,
            and `LoadedModel.tensors` has the values.

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
    reading = Reading(tuple(allow), trust, weights, source)
    if hub.is_hosted(spec):
        folder = hub.fetched(spec, weights=pretrained)
        if not pretrained:
            return _random(spec, folder, arch)
        checkpoint = dataclasses.replace(formats.read_checkpoint(folder, reading), path=Path(spec))
    else:
        checkpoint = formats.read_checkpoint(spec, reading)
    loaded = _from_checkpoint(checkpoint, arch, lazily=lazily)
    if in_force and (plan := plan_of(loaded.model)) is not None:
        require_in_force(loaded.model, plan, f"convert the original model again instead of opening {spec}")
    return loaded


def _random(spec: str, folder: Path, arch: str | None) -> LoadedModel:
    """The architecture that a config.json names, with random weights."""
    named = configs.architecture_of(configs.read_config(folder), f"the config.json of {spec}")
    if arch is not None:
        named = arch, {}
    if named is None:
        raise BlurifyError(f"the config.json of {spec} doesn't name an architecture: give --arch")
    model, resolved = sources.build(named[0], pretrained=False, config=named[1] or None)
    return LoadedModel(model.eval(), ModelSource(spec, "factory", resolved, named[1] or None))


def _from_checkpoint(checkpoint: Checkpoint, arch: str | None, *, lazily: bool = False) -> LoadedModel:
    name, note, rest = checkpoint.path.name, checkpoint.note, checkpoint.rest
    if checkpoint.module is not None:
        return LoadedModel(checkpoint.module.eval(), ModelSource(name, "module"), note, rest)
    if checkpoint.header is not None:
        model, source = rebuild(checkpoint, arch=None if arch == AUTO else arch)
        return LoadedModel(model.eval(), source, note, rest)
    auto = arch == AUTO  # where the file says it, that is as good
    arch, config = (checkpoint.arch, checkpoint.config) if arch is None or auto else (arch, None)
    if arch is None and (named := configs.beside(checkpoint.path)) is not None:
        arch, config = named
        checkpoint = dataclasses.replace(checkpoint, arch=arch)
    said = (
        f"it is {arch}, as {'it' if config is None else configs.CONFIG} says"
        if arch and arch == checkpoint.arch
        else ""
    )
    found = find(checkpoint, AUTO if arch is None and auto else arch, config)
    arch, tensors = found.arch, found.tensors
    # Another program's code may do anything with its parameters while it builds the model.
    lazily = lazily and hasattr(tensors, "stored") and not found.renamed and not arch.startswith("python:")
    with without_weights() if lazily else contextlib.nullcontext():
        model, resolved = sources.build(arch, pretrained=False, config=config)
    names = (fill_lazily if lazily else fill)(
        model, tensors, where=str(checkpoint.path), arch=arch, prefix=None if found.renamed else checkpoint.prefix
    )
    if rest is not None:
        rest = dataclasses.replace(rest, prefix=names.prefix)
    put_back = ""
    if (mark := checkpoint.mark) is not None:
        carry_out(model, mark.plan, checkpoint.path)
        mark_configuration(model, mark.plan)
        sites = f"{len(mark.plan.converted)} of {len(mark.plan.sites)} sites, recipe {mark.plan.recipe.name}"
        put_back = f"these are weights of a converted model ({sites}): its blurs are put back"
    note = "; ".join(part for part in (note, said, *found.notes, names.note, put_back) if part)
    return LoadedModel(
        model.eval(),
        ModelSource(name, "weights", resolved, config),
        note,
        rest,
        names.tensors if lazily else None,
        found.recipe,
    )
