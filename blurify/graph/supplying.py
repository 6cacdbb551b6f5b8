"""Run a model whose weights are elsewhere: each operation is handed the tensors that it reads, and keeps none.

So a model may be larger than the memory: of its weights there is one operation's at a time, and of a large
convolution's a part.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from blurify.graph.modes import DispatchMode

_PART = 2**25  # bytes of a convolution's weights that are used at a time

Change = Callable[[str, Tensor], Tensor]

_SUPPLY: ContextVar[tuple[Mapping[str, Tensor], Change | None] | None] = ContextVar("supply", default=None)


@contextmanager
def supplied(tensors: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Within it, models without data are run with these tensors.

    Args:
        tensors: by name in the state_dict, each read when it is asked for; None: nothing is supplied.
    """
    token = _SUPPLY.set(None if tensors is None else (tensors, None))
    try:
        yield
    finally:
        _SUPPLY.reset(token)


@contextmanager
def changed(change: Change) -> Iterator[None]:
    """Within it, what is supplied is changed first: called with a name and its tensor, gives the one to use."""
    supply = _SUPPLY.get()
    token = _SUPPLY.set(None if supply is None else (supply[0], change))
    try:
        yield
    finally:
        _SUPPLY.reset(token)


def is_supplied(model: nn.Module) -> bool:
    """Whether a model has no data of its own, but gets it from outside."""
    return _SUPPLY.get() is not None and any(parameter.is_meta for parameter in model.parameters())


@contextmanager
def with_weights(model: nn.Module) -> Iterator[None]:
    """Run a model within it as if it had its weights.

    Raises:
        RuntimeError: an operation reads a tensor that nobody supplies.
    """
    supply = _SUPPLY.get()
    if supply is None or not is_supplied(model):
        yield
        return
    with torch.no_grad(), _Supplying(model, *supply):
        yield


def seed_of(name: str) -> int:
    """A number of its own for each name, the same in every run."""
    return zlib.crc32(name.encode())


class _Supplying(DispatchMode):
    """Puts a tensor with data in the place of one without, for one operation."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor], change: Change | None) -> None:
        super().__init__()
        self._tensors, self._change = tensors, change
        held = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        # The tensors are kept, so that no other gets their ids.
        self._names = {id(tensor): (name, tensor) for name, tensor in reversed(held) if tensor.is_meta}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default and not kwargs and self._is_large(args[1]):
            found = self._convolved(*args)
            if found is not None:
                return found
        return func(*tree_map(self._with_data, args), **tree_map(self._with_data, kwargs or {}))

    def _is_large(self, weight: Tensor) -> bool:
        return weight.is_meta and id(weight) in self._names and weight.numel() * weight.element_size() > _PART

    def _convolved(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        transposed: bool,
        output_padding: Any,
        groups: int,
    ) -> Tensor | None:
        """A convolution, some of its channels at a time; None where it can't be had so."""
        name, _ = self._names[id(weight)]
        if transposed or x.is_meta or x.dim() != weight.dim() or name not in self._tensors:
            return None
        each = weight.shape[0] // groups if groups > 1 else 1  # groups stay whole
        rows = max(_PART // max(weight[0].numel() * weight.element_size() * each, 1), 1) * each
        bias = self._with_data(bias)
        parts = []
        for begin in range(0, weight.shape[0], rows):
            # Asked for anew: what was read of the file before can be let go of.
            part = self._changed(f"{name}[{begin}]", self._tensors[name][begin : begin + rows]).to(weight.dtype)
            mine, count = x, 1
            if groups > 1:
                first, count = begin // each, part.shape[0] // each
                mine = x[:, first * weight.shape[1] : (first + count) * weight.shape[1]]
            own = None if bias is None else bias[begin : begin + rows]
            parts.append(torch.convolution(mine, part, own, stride, padding, dilation, False, output_padding, count))
            del part
        return torch.cat(parts, 1)

    def _with_data(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "meta":  # x.to(self.weight.device)
            return torch.device("cpu")
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        name, _ = self._names.get(id(value), ("", None))
        if name not in self._tensors:
            raise RuntimeError(f"there are no data for {name or 'a tensor that the forward made on the meta device'}")
        return self._changed(name, self._tensors[name]).to(value.dtype)

    def _changed(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if self._change is None else self._change(name, tensor)
