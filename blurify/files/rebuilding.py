"""The converted model of a file that holds its tensors and its plan."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.files import sources, weights
from blurify.files.checkpoint import HEADER_FORMAT, Checkpoint
from blurify.files.replanning import carry_out
from blurify.files.sources import ModelSource
from blurify.graph.copies import without_data
from blurify.spec.adapted import Adapted
from blurify.spec.plan import Plan
from blurify.surgery.carrying import carry_adapted, plan_of
from blurify.surgery.marking import mark_configuration


def rebuild(
    checkpoint: Checkpoint, *, model: nn.Module | None = None, arch: str | None = None
) -> tuple[nn.Module, ModelSource]:
    """The converted model of a file in which blurify wrote tensors and a plan.

    Args:
        checkpoint: with a header.
        model: the unconverted model; it is left as it is.
        arch: what builds the unconverted model, instead of what the file says.

    Raises:
        BlurifyError: the file doesn't say how to build the model, or the parts don't fit.
    """
    header, path = checkpoint.header or {}, checkpoint.path
    if header.get("format") != HEADER_FORMAT or not isinstance(header.get("plan"), dict):
        raise BlurifyError(
            f"{path} was written by another version of blurify (format {header.get('format')!r}): convert the model "
            f"again"
        )
    plan = Plan.from_dict(header["plan"])
    recorded = header.get("source")
    source = ModelSource.from_dict(recorded) if isinstance(recorded, dict) else ModelSource(path.name, "module")
    if model is not None:
        model = copy.deepcopy(model)
    elif arch is not None:
        model, resolved = sources.build(arch, pretrained=False)
        source = ModelSource(path.name, "weights", resolved)
    elif source.arch is not None:
        if source.fetched_or_run:
            # Code of the user's; or hf-hub:NAME, local-dir:PATH, which fetch or read what they name.
            what = "run that code" if source.arch.startswith("python:") else "fetch it from there"
            raise BlurifyError(
                f"{path} was made from {source.arch}: add --arch {source.arch} to {what} (in Python: arch=..., or "
                "model=the original model)"
            )
        if odd := sources.odd_option(source.arch):
            raise BlurifyError(
                f"{path} was made from {source.arch[:200]}, with an option {odd} that a file may not set: add "
                "--arch with that to build it so"
            )
        model = _built_if_it_fits(source.arch, checkpoint, source.config)
    else:
        raise BlurifyError(
            f"{path} holds tensors and a plan, but not how to build the model: give load(path, model=the original "
            "model), or --arch timm/NAME, torchvision/NAME or python:module:factory"
        )
    where = arch or source.arch or f"the {type(model).__name__} that was given"
    applied = plan_of(model)
    if applied is None:
        weights.check_fit(model, checkpoint.tensors or {}, str(path), where)
        carry_out(model, plan, path)
    elif applied != plan:
        raise BlurifyError(f"the model given for {path} was converted by another plan: give the original model")
    weights.fill(model, checkpoint.tensors or {}, where=str(path), arch=where)
    adapted = header.get("adapted")
    carry_adapted(model, Adapted.from_dict(adapted) if isinstance(adapted, dict) else None)
    mark_configuration(model, plan)
    return model, source


def _built_if_it_fits(arch: str, checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> nn.Module:
    """The architecture that a file names, once its tensors are known to be of it: a small file may name a huge one."""
    weightless = arch.startswith("torchvision/")
    empty: nn.Module | None = None
    # Some constructors need values: those are built with them, or refused.
    with contextlib.suppress(Exception), without_data():
        empty, _ = sources.build(arch, pretrained=False, weightless=weightless, config=config)
    if empty is not None:
        weights.check_fit(empty, checkpoint.tensors or {}, str(checkpoint.path), arch)
    model, _ = sources.build(arch, pretrained=False, weightless=weightless, config=config)
    return model
