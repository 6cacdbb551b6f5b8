"""`torchvision/NAME[:WEIGHTS]`."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from blurify.errors import BlurifyError
from blurify.files.sources.hub import factory_errors, own_file
from blurify.spec.words import did_you_mean, nearest

if TYPE_CHECKING:
    from torch import nn


def build_torchvision(
    spec: str, name: str, options: dict[str, Any], *, pretrained: bool, weightless: bool
) -> tuple[nn.Module, str]:
    """The model of torchvision, and its name with the weights that were taken.

    Args:
        spec: what the user wrote, for messages.
        name: the name, with the weights after a colon or without.
        options: of the builder.
        pretrained: with the weights.
        weightless: as with the weights, which decide about transforms and norms, but without fetching them.

    Raises:
        BlurifyError: there is no such model, it has no such weights, or they can't be downloaded.
    """
    import torchvision
    from torchvision.models import get_model_builder, get_model_weights, list_models

    name, colon, tag = name.partition(":")
    if name.startswith("quantized_"):
        raise BlurifyError(f"{spec} is a quantized model, which can't be converted: use torchvision/{name[10:]}")
    known = list_models()
    if name not in known:
        plain = [other for other in known if not other.startswith("quantized_")]
        raise BlurifyError(
            f"torchvision {torchvision.__version__} has no {name!r}"
            + did_you_mean(f"torchvision/{match}" for match in nearest(name, plain))
        )
    builder = get_model_builder(name)
    weights: Any = None
    if tag.upper() == "NONE":
        pretrained = weightless = False
    offered = list(get_model_weights(name))
    if colon and tag.upper() not in ("NONE", "DEFAULT"):
        found = [entry for entry in offered if entry.name == tag]
        if not found:
            raise BlurifyError(
                f"torchvision's {name} has no weights {tag!r}: {', '.join(w.name for w in offered) or 'none'}"
            )
        weights = found[0]
    elif (pretrained or weightless) and offered:
        weights = get_model_weights(name).DEFAULT
    if pretrained and weights is None:
        raise BlurifyError(f"torchvision has no pretrained weights for {name}: use --random, or {own_file(spec)}")
    parameters = inspect.signature(builder).parameters
    arguments = dict(options)
    if not (pretrained or weightless):
        weights = None
        if "weights_backbone" in parameters:
            arguments["weights_backbone"] = None
        if _asks_for_init(builder):
            arguments.setdefault("init_weights", False)
    with factory_errors(spec, pretrained), _no_download(weightless):
        model: nn.Module = builder(
            weights=weights, **({"progress": False} if "progress" in parameters else {}), **arguments
        )
    return model, f"{name}:{weights.name if weights is not None else 'NONE'}"


def _asks_for_init(builder: Any) -> bool:
    """Whether a class wants to be told to initialise itself: left open, it warns and takes its slow way."""
    try:
        cls = typing.get_type_hints(builder).get("return")
        parameter = inspect.signature(cls).parameters.get("init_weights") if isinstance(cls, type) else None
    except (NameError, TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is None


class _NoWeights(dict[str, Any]):
    """Stands for weights that come later."""


@contextmanager
def _no_download(active: bool) -> Iterator[None]:
    """Build a torchvision model as with its weights, which decide about transforms and norms, but without them."""
    if not active:
        yield
        return
    import torch
    from torchvision.models import WeightsEnum

    fetch, load = WeightsEnum.get_state_dict, torch.nn.Module.load_state_dict

    @functools.wraps(load)
    def load_later(self: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(state_dict, _NoWeights) else load(self, state_dict, *args, **kwargs)

    WeightsEnum.get_state_dict = lambda self, *args, **kwargs: _NoWeights()
    torch.nn.Module.load_state_dict = load_later  # type: ignore[method-assign]
    try:
        yield
    finally:
        WeightsEnum.get_state_dict = fetch
        torch.nn.Module.load_state_dict = load  # type: ignore[method-assign]
