"""Run a model for what teaches: its outputs, or where those can't be compared, what layers inside it give."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.structure import Inputs
from blurify.tuning.answers import comparable, float_tensors, relative_error

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
        with _kept(self.layers, found):
            self.model(*args, **kwargs)
        return [found[index] for index in range(len(self.layers)) if index in found]


@contextlib.contextmanager
def _kept(layers: Sequence[nn.Module], found: dict[int, Tensor]) -> Iterator[None]:
    """Keep what layers give in their first call."""
    handles = []
    for index, layer in enumerate(layers):

        def keep(_: nn.Module, __: object, out: object, index: int = index) -> None:
            if isinstance(out, Tensor) and index not in found:
                found[index] = out

        handles.append(layer.register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    kept: list[dict[int, Tensor]] = [{}, {}]
    for model, found in zip((original, converted), kept, strict=True):
        modules = dict(model.named_modules())
        with _kept([modules[path] for path in paths], found):
            model(*args, **kwargs)
    fit = [
        path
        for index, path in enumerate(paths)
        if index in kept[0]
        and index in kept[1]
        and kept[0][index].shape == kept[1][index].shape
        and 0 < float(relative_error(kept[1][index], kept[0][index])) < _UNRELATED
    ]
    if not fit:
        raise BlurifyError(
            "the outputs of the original and of the converted model can't be compared, nor can layers inside them: "
            "give a model whose outputs have the same shapes for the same inputs"
        )
    count = min(_MOST, len(fit))
    return [fit[(place + 1) * len(fit) // count - 1] for place in range(count)]
