"""Converted models in files, and back: `save` and `load`.

The ending chooses the format (see `formats`). A file appears under its name complete or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.files import atomic, formats
from blurify.files.checkpoint import Reading, Rest, Saved, header_of
from blurify.files.in_force import require_in_force
from blurify.files.rebuilding import rebuild
from blurify.files.sources import ModelSource, hub
from blurify.nn.exported import Exported
from blurify.surgery.carrying import adapted_of, plan_of


def save(
    model: nn.Module,
    path: str | Path,
    *,
    source: ModelSource | None = None,
    rest: Rest | None = None,
    plain: bool = False,
    measured: Sequence[str] = (),
    tensors: Mapping[str, Tensor] | None = None,
    force: bool = False,
    notes: list[str] | None = None,
) -> Path:
    """Write a converted model.

    Args:
        model: converted by blurify (it carries its plan).
        path: `.safetensors` for tensors only, `.pt2` and `.onnx` for exported programs; a name that ends with a slash
            for a directory as the Hugging Face hub keeps models; `.pt` and its like, and endings of no other program,
            for torch's format.
        source: how to build the unconverted model, as `opening.open_model` tells; None: the model exists only in
            memory.
        rest: what else stood in the file that the model came from, as `opening.open_model` tells; `.pt` keeps it.
        plain: only the tensors by name, as other programs read them: without the plan, so that `load` can't read it.
        measured: what was measured of the model, a line each, for the card in a directory.
        tensors: the values of a model that has none of its own (see `opening.open_model`).
        force: replace a file that is there.
        notes: gets what there is to tell of the file, such as sizes that could not be left open.

    Returns:
        The path written.

    Raises:
        BlurifyError: the model carries no plan or one that is no longer in force, the target exists or can't be
            written, or the format can't hold the model. Nothing is left behind then.
    """
    path = atomic.target(path)
    plan = plan_of(model)
    if plan is None:
        raise BlurifyError(f"the model carries no plan, so it is not converted: convert it before saving it to {path}")
    written = formats.for_writing(path)
    written.check_target(path, force=force)
    require_in_force(model, plan, "convert the original model again, and save that")
    header = header_of(plan, source if source is not None and source.arch is not None else None, adapted_of(model))
    saved = Saved(model, header, rest, plain, tensors=tensors, measured=tuple(measured))
    written.write(path, saved, force=force)
    if notes is not None:
        notes += saved.notes
    return path


def save_original(
    model: nn.Module,
    path: str | Path,
    *,
    source: ModelSource | None = None,
    rest: Rest | None = None,
    force: bool = False,
) -> Path:
    """Write a model that is not converted, as other programs read it.

    Args:
        model: the original.
        path: as for `save`, but no directory: `.pt` holds the state_dict where a name builds the model, else the whole
            module; `.safetensors` its tensors.
        source, rest, force: as for `save`.

    Raises:
        BlurifyError: as for `save`; and the path is a directory.
    """
    path = atomic.target(path)
    if isinstance(path, atomic.Folder):
        raise BlurifyError(f"{path}/: an original is written to a file: name a .pt or .safetensors")
    written = formats.for_writing(path)
    written.check_target(path, force=force)
    header = {"source": source.to_dict() if source is not None and source.arch is not None else None}
    written.write(path, Saved(model, header, rest, plain=True, original=True), force=force)
    return path


def save_fused(
    model: nn.Module, converted: nn.Module, path: str | Path, *, force: bool = False, notes: list[str] | None = None
) -> Path:
    """Write a fused model as a program, with the plan of the converted model that it was made from.

    Args:
        model: what `blurify.fuse` made.
        converted: of which; its plan is in force.
        path: `.pt2` or `.onnx`.
        force, notes: as for `save`.

    Raises:
        BlurifyError: as for `save`; and the path is no program's.
    """
    path = atomic.target(path)
    if path.suffix not in PROGRAMS:
        raise BlurifyError(f"{path}: a fused model is written as a program: name a .pt2 or .onnx")
    written = formats.for_writing(path)
    written.check_target(path, force=force)
    plan = plan_of(converted)
    assert plan is not None  # or it could not be fused
    saved = Saved(model, header_of(plan, None, adapted_of(converted)))
    written.write(path, saved, force=force)
    if notes is not None:
        notes += saved.notes
    return path


PROGRAMS = (".pt2", ".onnx")
"""The endings of programs, which run without the model's code."""


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    arch: str | None = None,
    allow: Sequence[str] = (),
    trust: bool = False,
) -> nn.Module:
    """The converted model in a file that `save` wrote, in eval mode on the CPU.

    Args:
        path: the file or directory, or `hf-hub:ORG/NAME`.
        model: the unconverted model, where the file doesn't say how to build it; it is left as it is.
        arch: instead of `model`, what builds it: `timm/NAME`, `torchvision/NAME`, `python:module:factory`.
        allow, trust: as for `opening.open_model`.

    Raises:
        BlurifyError: the file is no converted model, its plan is not in force, or the model can't be built.
    """
    if hub.is_hosted(str(path)):
        path = hub.fetched(str(path), weights=True)
    checkpoint = formats.read_checkpoint(path, Reading(tuple(allow), trust))
    found = checkpoint.module
    if isinstance(found, Exported) and found.converted is not None:  # a program that can't lose its blurs
        return found.eval()
    if found is None and checkpoint.header is not None:
        found, _ = rebuild(checkpoint, model=model, arch=arch)
    plan = plan_of(found) if found is not None else None
    if found is None or plan is None:
        raise BlurifyError(f"{path} carries no plan: it is not a model that blurify converted (convert it first)")
    require_in_force(found, plan, f"convert the original model again instead of loading {path}")
    return found.eval()
