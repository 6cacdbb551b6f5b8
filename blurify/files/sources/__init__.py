"""Architectures by name: `timm/NAME`, `torchvision/NAME`, `python:module:factory`.

A model comes with its `ModelSource`, which says how to build the same architecture again, so that a converted
checkpoint can hold only tensors. Heavy packages are imported where they are used: the command line starts without them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blurify.errors import BlurifyError
from blurify.files.sources.from_python import build_python
from blurify.files.sources.from_timm import build_timm
from blurify.files.sources.from_torchvision import build_torchvision
from blurify.files.sources.from_transformers import build_transformers
from blurify.files.sources.options import odd_option, parse_options
from blurify.files.sources.source import LoadedModel, ModelSource

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LoadedModel", "ModelSource", "build", "is_factory", "odd_option"]


def is_factory(spec: str) -> bool:
    """Whether a spec names a factory (and not a file: one that is there, in a folder called timm, is meant)."""
    return spec.startswith(("timm/", "torchvision/", "python:")) and not Path(spec).is_file()


def build(
    spec: str, *, pretrained: bool, weightless: bool = False, config: Mapping[str, Any] | None = None
) -> tuple[nn.Module, str]:
    """Run a factory.

    Args:
        spec: a factory spec.
        pretrained: with the weights that it names, or its default ones.
        weightless: the architecture exactly as it is with those weights, but without downloading them.
        config: what a config.json said beside the name of an architecture (see `configs`).

    Returns:
        The model, and the spec with the choices that it left open filled in.

    Raises:
        BlurifyError: there is no such architecture, it can't be built, or its weights can't be had.
    """
    if spec.startswith("transformers/") and config is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build_transformers(spec, config), spec
    if not is_factory(spec):
        raise BlurifyError(f"{spec!r} is no architecture: write timm/NAME, torchvision/NAME or python:module:factory")
    plain, _, query = spec.partition("?")
    options = parse_options(spec, query)
    if plain.startswith("python:"):
        return build_python(plain, options), spec
    library, _, name = plain.partition("/")
    if not name:
        raise BlurifyError(f"{spec!r} lacks the name of the architecture, as in timm/resnet50")
    with warnings.catch_warnings():
        # About initialisation, deprecated names: nothing that a user of blurify can act on.
        warnings.simplefilter("ignore")
        if library == "timm":
            model, resolved = build_timm(plain, name, options, pretrained=pretrained, config=config)
        else:
            model, resolved = build_torchvision(plain, name, options, pretrained=pretrained, weightless=weightless)
    return model, f"{library}/{resolved}" + (f"?{query}" if query else "")
