"""Run a model whose weights are elsewhere: each operation is handed the tensors that it reads, and keeps none.

So a model may be larger than the memory: of its weights there is one operation's at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

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


class _Supplying(TorchDispatchMode):
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
        return func(*tree_map(self._with_data, args), **tree_map(self._with_data, kwargs or {}))

    def _with_data(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "meta":  # x.to(self.weight.device)
            return torch.device("cpu")
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        name, _ = self._names.get(id(value), ("", None))
        if name not in self._tensors:
            raise RuntimeError(f"there are no data for {name or 'a tensor that the forward made on the meta device'}")
        tensor = self._tensors[name]
        if self._change is not None:
            tensor = self._change(name, tensor)
        return tensor.to(value.dtype)
