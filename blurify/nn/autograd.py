"""Run a function of one tensor so that little is kept for its backward, and nothing is hidden from a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.fx import Proxy

TensorFunction = Callable[[Tensor], Tensor]


class Input(NamedTuple):
    """What a backward knows of the input."""

    shape: torch.Size
    channels_last: bool
    x: Tensor | None
    """The input itself; None where the function is linear."""


Back = Callable[[Tensor, Input], Tensor | None]
CodedBack = Callable[[Tensor, Input, Tensor], Tensor]
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
"""The memory format with channels innermost, by the number of spatial dimensions."""


class _Lean(torch.autograd.Function):
    """Run a function of one tensor; for the backward keep x alone or, if the function is linear, nothing.

    Autograd would keep the padded copy that a convolution read, and the int64 indices of a max pool. The backward is
    `back` where there is one; where that can't be (a second derivative, a transform of torch.func), it differentiates
    `function` anew, which costs about one more forward of it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, run: TensorFunction, function: TensorFunction, back: Back | None, linear: bool) -> Tensor:
        return run(x)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, TensorFunction, TensorFunction, Back | None, bool], output: Tensor
    ) -> None:
        x, _, ctx.function, ctx.back, ctx.linear = inputs
        ctx.shape, ctx.channels_last, ctx.dtype = x.shape, is_channels_last(x), x.dtype
        if not ctx.linear:
            ctx.save_for_backward(x)
            ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x = None if ctx.linear else ctx.saved_tensors[0]
        if ctx.back is not None and not torch.is_grad_enabled() and is_plain(grad) and grad.dtype == ctx.dtype:
            with torch.autocast(grad.device.type, enabled=False):
                found = ctx.back(grad, Input(ctx.shape, ctx.channels_last, x))
            if found is not None:
                return found, None, None, None, None
        x = _any_input(ctx, grad) if x is None else x
        with torch.autocast(grad.device.type, enabled=False):
            return torch.func.vjp(ctx.function, x)[1](grad)[0], None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        if ctx.linear:
            return ctx.function(tangent)
        return torch.func.jvp(ctx.function, ctx.saved_tensors, (tangent,))[1]


class _Coded(torch.autograd.Function):
    """Run a function of one tensor, of plain memory; for the backward keep a code of it and not the tensor.

    Given the code, the function is linear: `select(code)` is that function.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        run: Callable[[Tensor], tuple[Tensor, Tensor]],
        select: Callable[[Tensor], TensorFunction],
        back: CodedBack,
    ) -> Tensor:
        y, code = run(x)
        ctx.select, ctx.back = select, back
        ctx.shape, ctx.channels_last, ctx.dtype = x.shape, is_channels_last(x), x.dtype
        ctx.save_for_backward(code)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            if not torch.is_grad_enabled() and is_plain(grad) and grad.dtype == ctx.dtype:
                return ctx.back(grad, Input(ctx.shape, ctx.channels_last, None), code), None, None, None
            x = _any_input(ctx, grad)
            return torch.func.vjp(ctx.select(code), x)[1](grad)[0], None, None, None


def _any_input(ctx: Any, grad: Tensor) -> Tensor:
    """A tensor like the input of a linear function, which has the same derivative everywhere."""
    layout = CHANNELS_LAST[len(ctx.shape) - 2] if ctx.channels_last else torch.contiguous_format
    return torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


def coded(
    x: Tensor,
    run: Callable[[Tensor], tuple[Tensor, Tensor]],
    select: Callable[[Tensor], TensorFunction],
    back: CodedBack,
) -> Tensor:
    """`run(x)`'s first result, where its second one is all that the gradient depends on.

    Args:
        x: plain memory (see `is_plain`).
        run: gives the result and its code.
        select: gives the linear function that `run` is, given the code, out of operators that autograd knows.
        back: the gradient of x from that of the result and the code, of plain tensors.
    """
    return cast(Tensor, _Coded.apply(x, run, select, back))


def lean(
    function: TensorFunction,
    x: Tensor,
    *,
    run: TensorFunction | None = None,
    back: Back | None = None,
    linear: bool = False,
) -> Tensor:
    """`function(x)`, computed by `run` if given, keeping as little as possible for its backward.

    Args:
        function: what is computed, out of operators that autograd knows.
        x: its input.
        run: another way to compute it.
        back: the gradient of x from that of the result, of plain tensors (see `is_plain`); None where it does not know.
        linear: the gradient does not depend on x.
    """
    if torch.is_grad_enabled() and not is_traced(x) and x.requires_grad:  # a compiler decides itself what to keep
        return cast(Tensor, _Lean.apply(x, run or function, function, back, linear))
    return (run or function)(x)


def is_plain(x: Tensor) -> bool:
    """Whether x is memory and nothing more, and nobody looks on: no tracer, no mode, no transform, no subclass."""
    return is_unseen(x) and not x.is_meta


def is_unseen(x: Any) -> bool:
    """Whether x is a tensor and nobody looks on, be it memory or on the meta device."""
    if type(x) not in (Tensor, torch.nn.Parameter) or is_traced(x):
        return False
    if (
        forward_ad._current_level >= 0
        or x.layout != torch.strided
        or x.is_quantized
        or is_functorch_wrapped_tensor(x)
        or is_legacy_batchedtensor(x)  # torch.autograd.grad(is_grads_batched=True)
    ):
        return False
    return not torch._C._len_torch_function_stack() and not _len_torch_dispatch_stack()


def is_plain_on(x: Tensor, device: str) -> bool:
    """Whether x is plain, real and on a device of this type, and autocast would leave it as it is."""
    if not is_plain(x) or x.device.type != device or not x.is_floating_point() or not x.numel():
        return False
    if torch.is_autocast_enabled(device):
        return x.dtype in (torch.get_autocast_dtype(device), torch.float64)
    return True


def may_be_coded(x: Tensor) -> bool:
    """Whether a code may be kept of x, and not x: it is plain, or on the meta device, where bytes are only counted."""
    if torch._C._are_functorch_transforms_active():  # of something else than x, perhaps
        return False
    if isinstance(x, Tensor) and x.is_meta:
        return is_unseen(x) and x.is_floating_point() and x.numel() > 0
    return isinstance(x, Tensor) and x.device.type in ("cpu", "cuda") and is_plain_on(x, x.device.type)


def on_the_cpu(x: Tensor) -> bool:
    """`is_plain_on` the CPU."""
    return is_plain_on(x, "cpu")


def is_traced(x: Tensor) -> bool:
    """Whether somebody writes down what runs, for sizes other than these (a Proxy has none at all)."""
    if isinstance(x, Proxy) or torch.jit.is_tracing():
        return True
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def is_exported(x: Tensor) -> bool:
    """Whether what is written down is read by other programs: there a convolution is the clean form."""
    return isinstance(x, Proxy) or torch.jit.is_tracing() or torch.compiler.is_exporting()


def is_watched(module: torch.nn.Module) -> bool:
    """Whether somebody is told when a module runs, and what it was given, or has it run in another way."""
    every = torch.nn.modules.module
    return bool(
        "forward" in vars(module) or module._compiled_call_impl is not None or
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or every._global_forward_hooks or every._global_forward_pre_hooks or every._global_backward_hooks
        or every._global_backward_pre_hooks
    )  # fmt: skip


def is_channels_last(x: Tensor) -> bool:
    """Whether (N, C, *spatial) has its channels innermost; never for a traced tensor, whose layout the tracer keeps."""
    return not is_traced(x) and x.dim() > 3 and x.stride(1) == 1 and not x.is_contiguous()
