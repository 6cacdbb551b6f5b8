"""The model of an exported program: what `torch.export` wrote down, as modules again.

A program is a list of calls. Here each call is of a module: torch's own layer where it had one (`layer1.0.conv1`, with
its weights), else an `Op`, which runs one function out of a fixed table. So a blur can be put behind or in front of any
of them, and what a file says is data: names of this table and numbers, never code.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.errors import BlurifyError


class Part(nn.Module):
    """What stands between the model and its layers in their names; it runs nothing itself."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the whole program is the model's."""
        raise BlurifyError("this part of an exported program can't be run alone: run the whole model")


class Op(nn.Module):
    """One call of a function.

    Args:
        op: its name in the table.
    """

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, with the arguments in the order of ATen's operator."""
        function = _FUNCTIONS[self.op]
        return function(*args, **kwargs)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return self.op


class Slice(nn.Module):
    """A slice `x[:, :, ::2, ::2]`.

    Args:
        slices: (start, stop, step) of each of the first dimensions.
    """

    def __init__(self, slices: Sequence[tuple[int | None, int | None, int | None]]) -> None:
        super().__init__()
        self.slices = tuple(tuple(part) for part in slices)

    def forward(self, x: Tensor) -> Tensor:
        """Slice x."""
        index = tuple(slice(*part) for part in self.slices)
        return x[index]

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return str(self.slices)


Step = tuple[str, tuple[Any, ...], tuple[tuple[str, Any], ...], tuple[str, ...], tuple[str, ...]]
"""One call of a program; see `Exported.steps`."""


class Exported(nn.Module):
    """A program's calls, one after the other.

    Attributes:
        inputs: of each input its name, shape and dtype; with `keywords` as many of the last are given by name.
        steps: (path of the module, arguments, keywords, names of what it returns, names of values that nothing reads
            after it). An argument is a number, text or None, or a pair: ('value', name) what a step returned,
            ('tensor', path) a parameter or buffer, ('list', [...]), ('dtype', name), ('layout', name), ('device', '')
            where the model is.
        output: what the model returns, in the same form, with ('tuple', [...]) and ('dict', [[key, ...], ...]).
        converted: how many sites blurify had blurred in it, and how many there were, before it was exported; None for
            a model that blurify did not convert.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[str, tuple[int, ...], str]] = []
        self.keywords = 0
        self.steps: list[Step] = []
        self.output: Any = None
        self.converted: tuple[int, int] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, on the inputs that it was exported with or others of sizes that it allows."""
        names = [name for name, _, _ in self.inputs]
        positional = names[: len(names) - self.keywords]
        if len(args) > len(positional):
            if not kwargs and len(args) == len(names):
                positional = names
            else:
                raise BlurifyError(f"this exported program takes {len(names)} inputs: {', '.join(names)}")
        values: dict[str, Any] = dict(zip(positional, args, strict=False)) | kwargs
        if set(values) != set(names):
            raise BlurifyError(f"this exported program takes the inputs {', '.join(names)}: give those")
        for path, given, named, returned, done in self.steps:
            module = self.get_submodule(path)
            out = module(*(self._made(one, values) for one in given), **{k: self._made(v, values) for k, v in named})
            if len(returned) == 1:
                values[returned[0]] = out
            else:
                values.update(zip(returned, out, strict=False))
            for name in done:
                values.pop(name, None)
        return self._made(self.output, values)

    def _made(self, one: Any, values: dict[str, Any]) -> Any:
        if not isinstance(one, tuple | list):
            return one
        kind, what = one
        match kind:
            case "value":
                return values[what]
            case "tensor":
                owner, _, name = what.rpartition(".")
                return getattr(self.get_submodule(owner), name)
            case "list":
                return [self._made(item, values) for item in what]
            case "tuple":
                return tuple(self._made(item, values) for item in what)
            case "dict":
                return {key: self._made(item, values) for key, item in what}
            case "dtype" | "layout":
                return _SETTINGS[what]
            case "device":
                return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        raise BlurifyError(f"this exported program has an argument of a kind {kind!r} that blurify does not know")

    def example(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Zeros like the inputs that the program was exported with, as (args, kwargs)."""
        made = [torch.zeros(shape, dtype=_SETTINGS[dtype], device="cpu") for _, shape, dtype in self.inputs]
        cut = len(made) - self.keywords
        return tuple(made[:cut]), {name: one for (name, _, _), one in zip(self.inputs[cut:], made[cut:], strict=True)}


def read_by(one: Any) -> set[str]:
    """The names of values in an argument."""
    if not isinstance(one, tuple | list):
        return set()
    if len(one) == 2 and one[0] == "value" and isinstance(one[1], str):
        return {one[1]}
    return set().union(*map(read_by, one))


_SETTINGS: dict[str, Any] = {
    str(value).removeprefix("torch."): value
    for value in (
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.complex32, torch.complex64, torch.complex128),
        *(torch.contiguous_format, torch.channels_last, torch.channels_last_3d, torch.preserve_format, torch.strided),
    )
}


# --- ATen's operators as torch's functions, with ATen's arguments


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)


def _instance_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, use: bool, momentum: float, eps: float, *_: Any
) -> Tensor:
    return F.instance_norm(x, mean, variance, weight, bias, use, momentum, eps)


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    return F.layer_norm(x, shape, weight, bias, eps)


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Tensor:
    return F.group_norm(x, groups, weight, bias, eps)


def _slice(x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Tensor:
    index: list[Any] = [slice(None)] * (dim % x.dim())
    return x[(*index, slice(start, None if end is not None and end >= 2**62 else end, step))]


def _index(x: Tensor, indices: Any) -> Tensor:
    return x[tuple(slice(None) if one is None else one for one in indices)]


def _elu(x: Tensor, alpha: float = 1.0, *_: Any) -> Tensor:
    return F.elu(x, alpha)


def _pad(x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
    return F.pad(x, pad, mode, value)


def _constant_pad(x: Tensor, pad: Any, value: Any = 0) -> Tensor:
    return F.pad(x, pad, "constant", value)


def _padded(mode: str) -> Callable[..., Tensor]:
    def pad(x: Tensor, amounts: Any) -> Tensor:
        return F.pad(x, amounts, mode)

    return pad


def _nearest(x: Tensor, size: Any = None, scales: Any = None) -> Tensor:
    return F.interpolate(x, size, None if size is not None else scales, "nearest")


def _linearly(mode: str) -> Callable[..., Tensor]:
    def interpolate(x: Tensor, size: Any, align: bool, scales: Any = None) -> Tensor:
        return F.interpolate(x, size, None if size is not None else scales, mode, align)

    return interpolate


def _softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return F.softmax(x, dim, dtype=dtype if isinstance(dtype, torch.dtype) else None)


def _to_dtype(x: Tensor, dtype: Any, *_: Any, **__: Any) -> Tensor:
    return x.to(dtype)


def _to_copy(x: Tensor, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    return x if memory_format is None else x.contiguous(memory_format=memory_format)


def _like(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(x: Tensor, *args: Any, dtype: Any = None, **_: Any) -> Tensor:
        return function(x, *args, dtype=dtype)

    return made


def _made_of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
        return function(*args, dtype=dtype, device=device)

    return made


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Any = None, dropout: float = 0.0, causal: bool = False, **more: Any
) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, **more)


def _embedding(weight: Tensor, indices: Tensor, padding: int = -1, *_: Any) -> Tensor:
    return F.embedding(indices, weight, None if padding < 0 else padding)


def _size(x: Tensor, dim: int) -> int:
    return x.size(dim)


def _methods(names: str) -> dict[str, Callable[..., Any]]:
    return {name: getattr(Tensor, name) for name in names.split()}


def _functions(names: str) -> dict[str, Callable[..., Any]]:
    return {name: getattr(torch, name) for name in names.split()}


def _of_layers(names: str) -> dict[str, Callable[..., Any]]:
    return {name: getattr(F, name) for name in names.split()}


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_of_layers(
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear relu relu_ relu6 silu mish "
        "gelu hardtanh hardtanh_ hardswish hardsigmoid leaky_relu leaky_relu_ selu celu softplus logsigmoid hardshrink "
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool2d dropout prelu glu pixel_shuffle pixel_unshuffle threshold"
    ),
    **_functions(
        "sigmoid tanh exp log sqrt rsqrt reciprocal abs neg erf sin cos add sub mul div pow maximum minimum clamp "
        "clamp_min clamp_max rsub matmul mm bmm addmm baddbmm einsum cat stack split chunk unbind flatten permute "
        "transpose squeeze unsqueeze mean sum amax amin var std cumsum argmax where eq ne lt le gt ge select narrow "
        "roll flip movedim clone square outer floor round sign addcmul lerp log_softmax topk meshgrid channel_shuffle "
        "logical_not logical_and logical_or isnan index_select gather tril triu floor_divide remainder expm1 log1p "
        "repeat_interleave unflatten"
    ),
    **_methods(
        "view reshape expand repeat contiguous detach add_ sub_ mul_ div_ sigmoid_ tanh_ clamp_ clamp_min_ exp_ copy_ "
        "fill_ zero_ masked_fill masked_fill_ bernoulli_ type_as expand_as view_as max min any all t item "
        "unfold split_with_sizes"
    ),
    **{
        f"number_{name}": getattr(operator, name)
        for name in "add sub mul floordiv truediv mod pow neg eq ne lt le gt ge and_ or_ not_ getitem".split()
    },
    "number_max": max,
    "number_min": min,
    "size": _size,
    "silu_": lambda x: F.silu(x, inplace=True),
    "mish_": lambda x: F.mish(x, inplace=True),
    "hardswish_": lambda x: F.hardswish(x, inplace=True),
    "hardsigmoid_": lambda x: F.hardsigmoid(x, inplace=True),
    "relu6_": lambda x: F.relu6(x, inplace=True),
    "elu": _elu,
    "elu_": lambda x, alpha=1.0, *_: F.elu(x, alpha, inplace=True),
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "feature_dropout": F.dropout2d,
    "slice": _slice,
    "index": _index,
    "pad": _pad,
    "constant_pad_nd": _constant_pad,
    **{f"reflection_pad{rank}d": _padded("reflect") for rank in (1, 2, 3)},
    **{f"replication_pad{rank}d": _padded("replicate") for rank in (1, 2, 3)},
    **{f"upsample_nearest{rank}d": _nearest for rank in (1, 2, 3)},
    "upsample_linear1d": _linearly("linear"),
    "upsample_bilinear2d": _linearly("bilinear"),
    "upsample_bicubic2d": _linearly("bicubic"),
    "upsample_trilinear3d": _linearly("trilinear"),
    "softmax": _softmax,
    "to": _to_dtype,
    "to_copy": _to_copy,
    "zeros_like": _like(torch.zeros_like),
    "ones_like": _like(torch.ones_like),
    "full_like": _like(torch.full_like),
    "empty_like": _like(torch.empty_like),
    "rand_like": _like(torch.rand_like),
    "new_empty": lambda x, size, **_: x.new_empty(size),
    "new_zeros": lambda x, size, **_: x.new_zeros(size),
    "new_ones": lambda x, size, **_: x.new_ones(size),
    "new_full": lambda x, size, value, **_: x.new_full(size, value),
    "zeros": _made_of(torch.zeros),
    "ones": _made_of(torch.ones),
    "full": _made_of(torch.full),
    "arange": _made_of(torch.arange),
    "linspace": _made_of(torch.linspace),
    "scalar_tensor": _made_of(torch.scalar_tensor),
    "rand": _made_of(torch.rand),
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
    "alias": lambda x: x.view_as(x),
}
"""What an `Op` can run: functions that compute with tensors and numbers, and nothing else."""

OPS = frozenset(_FUNCTIONS)
"""Their names."""
