"""Run a function of one tensor so that little is kept for its backward, and nothing is hidden from a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Proxy

TensorFunction = Callable[[Tensor], Tensor]
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
"""The memory format with channels innermost, by the number of spatial dimensions."""


class _Lean(torch.autograd.Function):
    """Run a function of one tensor; for the backward keep x alone or, if the function is linear, nothing.

    Autograd would keep the padded copy that a convolution read, and the int64 indices of a max pool. The backward
    differentiates `function` anew instead, which costs about one more forward of it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, run: TensorFunction, function: TensorFunction, linear: bool) -> Tensor:
        return run(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, TensorFunction, TensorFunction, bool], output: Tensor) -> None:
        x, _, ctx.function, ctx.linear = inputs
        if ctx.linear:
            ctx.shape, ctx.channels_last = x.shape, is_channels_last(x)
        else:
            ctx.save_for_backward(x)
            ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.linear:  # any x has the same derivative
            layout = CHANNELS_LAST[len(ctx.shape) - 2] if ctx.channels_last else torch.contiguous_format
            x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
        else:
            (x,) = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return torch.func.vjp(ctx.function, x)[1](grad)[0], None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        if ctx.linear:
            return ctx.function(tangent)
        return torch.func.jvp(ctx.function, ctx.saved_tensors, (tangent,))[1]


def lean(function: TensorFunction, x: Tensor, *, run: TensorFunction | None = None, linear: bool = False) -> Tensor:
    """`function(x)`, computed by `run` if given, keeping as little as possible for its backward."""
    if torch.is_grad_enabled() and not is_traced(x) and x.requires_grad:  # a compiler decides itself what to keep
        return cast(Tensor, _Lean.apply(x, run or function, function, linear))
    return (run or function)(x)


def is_traced(x: Tensor) -> bool:
    """Whether somebody writes down what runs, for sizes other than these (a Proxy has none at all)."""
    if isinstance(x, Proxy) or torch.jit.is_tracing():
        return True
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def is_channels_last(x: Tensor) -> bool:
    """Whether (N, C, *spatial) has its channels innermost; never for a traced tensor, whose layout the tracer keeps."""
    return not is_traced(x) and x.dim() > 3 and x.stride(1) == 1 and not x.is_contiguous()
