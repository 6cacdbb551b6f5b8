"""Run a model for what teaches: its outputs, or where those can't be compared, what layers inside it give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.structure import Inputs
from blurify.tuning.answers import comparable, float_tensors, relative_error
from blurify.tuning.hooks import told_once

_MOST = 8
_TRIED = 4
_UNRELATED = 1.0
"""Relative error from which on two layers' outputs have nothing in common: they stand for other things."""


class Answering:
    """Calls a model and gives a list of tensors: its floating-point outputs, or the outputs of some layers.

    Args:
        model: the module that is called (it may be wrapped for several processes).
        layers: modules in it whose outputs count instead; none: the model's own.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module] = ()) -> None:
        self.model, self.layers = model, tuple(layers)

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """One forward."""
        args, kwargs = inputs
        if not self.layers:
            return float_tensors(self.model(*args, **kwargs))
        found: dict[int, Tensor] = {}
        with told_once(dict(enumerate(self.layers)), found.__setitem__):
            self.model(*args, **kwargs)
        return [found[index] for index in range(len(self.layers)) if index in found]


@torch.no_grad()
def layers_to_compare(original: nn.Module, converted: nn.Module, batches: Sequence[Inputs]) -> list[str]:
    """Where to compare two models: nowhere but at their outputs where those have the same shapes.

    Else up to eight convolutions and linear layers, spread over the depth, whose outputs have the same shape in both
    and something to do with each other (a detector's boxes do not: they are other boxes in each).

    Raises:
        BlurifyError: there are none.
    """
    if all(comparable(original(*args, **kwargs), converted(*args, **kwargs)) for args, kwargs in batches[:_TRIED]):
        return []
    args, kwargs = batches[0]
    paths = [
        path
        for path, module in converted.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.ConvTranspose2d)
    ]
    kept: list[dict[str, Tensor]] = [{}, {}]
    for model, found in zip((original, converted), kept, strict=True):
        with told_once({path: model.get_submodule(path) for path in paths}, found.__setitem__):
            model(*args, **kwargs)
    fit = [
        path
        for path in paths
        if path in kept[0]
        and path in kept[1]
        and kept[0][path].shape == kept[1][path].shape
        and 0 < float(relative_error(kept[1][path], kept[0][path])) < _UNRELATED
    ]
    if not fit:
        raise BlurifyError(
            "the outputs of the original and of the converted model can't be compared, nor can layers inside them: "
            "give a model whose outputs have the same shapes for the same inputs"
        )
    count = min(_MOST, len(fit))
    return [fit[(place + 1) * len(fit) // count - 1] for place in range(count)]
