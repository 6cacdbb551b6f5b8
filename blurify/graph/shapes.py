"""What torch calls return on meta tensors; the slow meta kernels are not run where the shape is known beforehand.

A call that makes a tensor of its own from tensors without data says nothing that its arguments' shapes, strides and
dtypes don't say. Networks repeat their blocks, and every model is traced more than once: so what such a call made, and
how many multiply-adds it took, is kept by just these.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.graph.costs import LSTM, MultiplyAdds

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


# What returns one tensor (a new one, or its argument) and looks at nothing but shapes, dtypes and plain settings.
_MAKES_ONE = (
    _KEEP_SHAPE
    | _ELEMENTWISE
    | {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        *(F.linear, F.bilinear, F.scaled_dot_product_attention, F.embedding, F.interpolate, F.pad, F.normalize),
        *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d, F.rms_norm),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.unfold, F.fold, F.log_softmax),
        *(F.mish, F.elu, F.selu, F.celu, F.softplus, F.prelu, F.hardtanh, F.logsigmoid, F.glu),
        *(F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.pixel_shuffle, F.pixel_unshuffle),
        *(torch.matmul, torch.bmm, torch.mm, torch.baddbmm, torch.addmm, torch.einsum, Tensor.matmul, Tensor.bmm),
        *(Tensor.__matmul__, torch.addcmul, torch.lerp, torch.where, torch.roll, torch.cat, torch.concat, torch.stack),
        *(torch.mean, torch.sum, torch.var, torch.std, torch.norm, torch.prod, torch.amax, torch.amin),
        *(Tensor.mean, Tensor.sum, Tensor.var, Tensor.std, Tensor.norm, Tensor.prod, Tensor.amax, Tensor.amin),
        *(torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.pow, torch.abs, torch.neg, torch.clamp, torch.square),
        *(Tensor.exp, Tensor.log, Tensor.sqrt, Tensor.rsqrt, Tensor.pow, Tensor.abs, Tensor.neg, Tensor.clamp),
        *(torch.sin, torch.cos, torch.tanh, torch.erf, torch.softmax, torch.maximum, torch.minimum),
        *(Tensor.sin, Tensor.cos, Tensor.tanh, Tensor.erf, Tensor.square, Tensor.roll, Tensor.repeat, Tensor.flip),
        *(Tensor.__neg__, Tensor.__pow__, Tensor.__rsub__, Tensor.__rtruediv__, Tensor.__rpow__, Tensor.__abs__),
        *(torch.zeros_like, torch.ones_like, Tensor.reshape, torch.reshape, Tensor.contiguous),
    }
)

# What only looks at a tensor from another side, or writes to it: no products.
_COSTS_NOTHING = frozenset(
    {
        *(Tensor.view, Tensor.permute, Tensor.transpose, Tensor.flatten, Tensor.unflatten),
        *(Tensor.unsqueeze, Tensor.squeeze, Tensor.expand, Tensor.chunk, Tensor.split),
        *(Tensor.unbind, Tensor.narrow, Tensor.select, Tensor.__getitem__, Tensor.detach, Tensor.size, Tensor.dim),
        *(torch.permute, torch.transpose, torch.flatten, torch.unsqueeze, torch.squeeze),
        *(torch.chunk, torch.split, torch.unbind, torch.narrow, torch.select),
        *(Tensor.add_, Tensor.mul_, Tensor.sub_, Tensor.div_, Tensor.__iadd__, Tensor.__imul__, Tensor.shape.__get__),  # type: ignore[attr-defined]
    }
)


class _Made(NamedTuple):
    """What a call returned: a new tensor like this, or its argument number `argument`; and its multiply-adds."""

    argument: int | None
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    macs: int


_MOST = 50_000  # entries that are kept: a thousand models have half as many
_made: dict[Any, _Made] = {}


def on_meta(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], costs: MultiplyAdds) -> Any:
    """What a torch call returns on meta tensors.

    Args:
        func, args, kwargs: the call.
        costs: its multiply-adds are counted there.
    """
    if func in _MAKES_ONE:
        key = _signature((func, args, kwargs, torch.get_default_dtype()))
        if key is not None:
            made = _made.get(key)
            if made is not None:
                costs.total += made.macs
                return args[made.argument] if made.argument is not None else _like(made)
            return _kept(key, func, args, kwargs, costs)
    elif func in _COSTS_NOTHING:
        with torch._C._DisableTorchDispatch():  # the count has nothing to see there
            return func(*args, **kwargs)
    return _computed(func, args, kwargs)


def _like(made: _Made) -> Tensor:
    with torch._C._DisableTorchDispatch():
        return torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")


def _kept(
    key: Any, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], costs: MultiplyAdds
) -> Any:
    """Run a call, and keep what it made."""
    before = costs.total
    with nullcontext() if costs.is_counting else costs:
        out = _computed(func, args, kwargs)
    if type(out) is not Tensor or not out.is_meta or out.requires_grad or out.layout != torch.strided:
        return out
    argument = next((index for index, value in enumerate(args) if value is out), None)
    if argument is None and any(value is out for value in kwargs.values()):
        return out
    if len(_made) >= _MOST:
        _made.clear()
    _made[key] = _Made(argument, tuple(out.shape), out.stride(), out.dtype, costs.total - before)
    return out


def _signature(value: Any) -> Any:
    """All that a call on tensors without data can tell of its arguments, hashable; None where there may be more."""
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        if not value.is_meta or value.requires_grad or value.layout is not torch.strided:
            return None
        return value.size(), value.stride(), value.dtype
    if kind in _PLAIN:
        return kind, value  # 1, 1.0 and True are equal, and make other dtypes
    if kind is tuple or kind is list or kind is torch.Size:
        parts: list[Any] = [kind]
        for item in value:
            part = _signature(item)
            if part is None:
                return None
            parts.append(part)
        return tuple(parts)
    if kind is dict:
        return _signature(tuple(value.items())) if value else ()
    return (kind, value) if kind in _FUNCTIONS else None


_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format})
_FUNCTIONS = frozenset(type(function) for function in _MAKES_ONE)


def _computed(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call returns, computed.

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
        if func is LSTM and isinstance(args[1], tuple):  # not a packed sequence
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
