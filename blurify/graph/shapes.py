"""What torch calls return on meta tensors; the slow meta kernels are not run where the shape is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_KEEP_SHAPE = frozenset(
    {
        *(F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.gelu, F.silu, F.relu, F.relu6, F.leaky_relu),
        *(F.hardswish, F.hardsigmoid, F.softmax, F.dropout, torch.batch_norm, torch.layer_norm),
        *(torch.relu, torch.sigmoid, Tensor.relu, Tensor.sigmoid, Tensor.softmax),
    }
)


_ELEMENTWISE = frozenset(
    {
        *(torch.add, torch.sub, torch.mul, torch.div, Tensor.add, Tensor.sub, Tensor.mul, Tensor.div),
        *(Tensor.__add__, Tensor.__sub__, Tensor.__mul__, Tensor.__truediv__, Tensor.__radd__, Tensor.__rmul__),
    }
)


def on_meta(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a torch call returns on meta tensors.

    The meta kernels of norms, activations and LSTMs are decompositions in Python, which take most of a meta forward
    (half of a ResNet's, nearly all of an LSTM's), only to find the shape that is known beforehand.
    """
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.is_meta:
        known = func in _KEEP_SHAPE and not writes(func, args, kwargs) and kwargs.get("dtype") is None
        if known and _fits(first, (*args[1:], *kwargs.values())):
            return torch.empty_like(first)
        if func in _ELEMENTWISE and len(args) == 2 and _keeps_shape(first, args[1], kwargs):
            return torch.empty_like(first)
        if func is torch._VF.lstm and isinstance(args[1], tuple):  # type: ignore[attr-defined]  # not a packed sequence
            hidden, cell = args[1]
            directions = 2 if args[7] else 1
            out = first.new_empty((*first.shape[:-1], directions * hidden.shape[-1]))
            return out, torch.empty_like(hidden), torch.empty_like(cell)
    return func(*args, **kwargs)


def _keeps_shape(x: Tensor, other: Any, kwargs: dict[str, Any]) -> bool:
    """Whether arithmetic with `other` gives a tensor just like x: it is a number, or it broadcasts to x."""
    if kwargs or not x.is_floating_point():
        return False
    if isinstance(other, Tensor):
        sizes = zip(reversed(other.shape), reversed(x.shape), strict=False)
        return x.dtype == other.dtype and other.ndim <= x.ndim and all(size in (1, full) for size, full in sizes)
    return type(other) in (int, float)


def _fits(x: Tensor, others: tuple[Any, ...]) -> bool:
    """Whether a norm takes an input of this shape: an entry a channel, or its own shape at the end."""
    shape = next((value for value in others if isinstance(value, tuple | list)), None)
    if shape is not None:
        return x.shape[-len(shape) :] == torch.Size(shape)
    return all(value.numel() == x.shape[1] for value in others if isinstance(value, Tensor))


def writes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call that returns its first argument has written to it."""
    name: str = getattr(func, "__name__", "")
    if name.endswith("__"):
        return name.startswith("__i")
    return name.endswith("_") or kwargs.get("inplace") is True or any(arg is True for arg in args[1:])
