"""What filters already: fixed low-pass filters in a traced graph, known by the values of their kernels.

No class is known by its name. A filter is a convolution in which every output channel is one input channel, filtered by
taps that are not trained, and which lets through little of what the subsampling behind it would fold back. It may stand
in any spelling: a depthwise kernel, a square one that is zero off its diagonal, one image a channel (as `upfirdn2d` is
written in plain torch, with views and pads around it), a buffer, a constant, a frozen parameter, two separable halves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Node

from blurify.graph.constants import constant_value, has_parameters, is_constant
from blurify.graph.recorder import Trace
from blurify.graph.sites import PARAMETERS, Found, Op, function_name, read_op, sliced
from blurify.nn import BlurPool

MOST_ALIASED = 0.25
"""What a filter may let through (`aliased_share`): a box of two taps 0.18, [1 2 1] 0.06, a delta all."""
_SAME_TAPS = 1e-3  # relative: the channels of a frozen parameter that was made as a filter have the same taps

_REARRANGES = frozenset(
    "pad contiguous clone detach to float half bfloat16 double type type_as positive identity reshape view unflatten "
    "flatten permute transpose movedim moveaxis swapaxes swapdims squeeze unsqueeze getitem narrow".split()
)
"""What moves samples, and lets none of them mix."""


def is_filtered(site: Found, traces: Sequence[Trace], model: nn.Module) -> bool:
    """Whether a site is anti-aliased already: it is a fixed low-pass filter, or reads what one has filtered."""
    if site.op.kind == "conv" and is_low_pass(site.op, site.op.stride, model):
        return True
    by_graph = {seen.graph: seen for seen in traces}
    return any(low_passed(op, by_graph[op.node.graph], model) for op in site.ops)


def is_low_pass(op: Op, stride: tuple[int, ...], model: nn.Module) -> bool:
    """Whether a convolution is a fixed filter that guards a subsampling by `stride`.

    Judged by its frequency response, where the kernel's values are at hand (a Laplace filter or a delta is no
    low-pass); where they are not, a depthwise kernel that no parameter made is taken for one.

    Args:
        op: the convolution.
        stride: the subsampling, one entry a spatial dimension.
        model: where the values are; the trace may have none.
    """
    if op.weight is None or max(op.kernel_size) == 1:
        return False
    kernel = fixed_kernel(op, model)
    if kernel is None:
        return _is_unknown_filter(op, model)
    return aliased_share(response(kernel, op.dilation), stride) < MOST_ALIASED


def low_passed(op: Op, trace: Trace, model: nn.Module) -> bool:
    """Whether what a strided op reads was just filtered: by fixed low-pass filters, or by one of our BlurPools."""
    blurs = {call.output for call in trace.calls if isinstance(call.module, BlurPool)}
    spectrum = None
    for node, filtering in _behind(op):
        if node in blurs:
            return True
        if filtering is None:
            continue
        if filtering.weight is None:  # a dense average pool is a box
            kernel = torch.ones(1, 1, *filtering.kernel_size)
        elif (found := fixed_kernel(filtering, model)) is None:
            return spectrum is None and _is_unknown_filter(filtering, model)
        else:
            kernel = found
        own = response(kernel, filtering.dilation)
        spectrum = own if spectrum is None else _both(spectrum, own)
        if spectrum is None:
            return False
        if aliased_share(spectrum, op.stride) < MOST_ALIASED:
            return True
    return False


def _behind(op: Op) -> Iterator[tuple[Node, Op | None]]:
    """The ops that made what an op reads, nearest first, as long as each but rearranges or filters densely."""
    node = op.source
    while True:
        filtering = _dense_filter(node)
        if filtering is not None and (filtering.rank != op.rank or not _same_grid(op, filtering)):
            return
        yield node, filtering
        if filtering is not None:
            node = filtering.source
        elif function_name(node) in _REARRANGES and not (function_name(node) == "getitem" and _selects(node)):
            before = node.args[0] if node.args else None
            if not isinstance(before, Node):
                return
            node = before
        else:
            return


def _dense_filter(node: Node) -> Op | None:
    """A convolution or average pool of stride 1 over more than one sample."""
    name = function_name(node)
    if name not in PARAMETERS or not name.startswith(("conv", "avg_pool")):
        return None
    op = read_op(node, name)
    return op if max(op.stride) == 1 and max(op.kernel_size) > 1 else None


def _same_grid(op: Op, filtering: Op) -> bool:
    """Whether an op reads a filter's samples as they lie: a few more or fewer at the edges, none moved to channels."""
    shape, edges = op.input_shape, max(_extent(op), _extent(filtering))
    if op.kind == "slice":
        dims = op.dims or tuple(dim for dim, _ in sliced(op.node)[0])
        sizes = [shape[dim] for dim in dims]
    else:
        sizes = list(shape[-op.rank :])
    made = list(filtering.output_shape[-filtering.rank :])
    return len(sizes) == len(made) and all(
        (a < 2 * b and b < 2 * a) or abs(a - b) <= edges for a, b in zip(sorted(sizes), sorted(made), strict=True)
    )


def _extent(op: Op) -> int:
    """Samples that a window reaches over: what is padded is less."""
    return max((k - 1) * gap + 1 for k, gap in zip(op.kernel_size, op.dilation, strict=True))


def _selects(node: Node) -> bool:
    """Whether an index does more than crop: a step, a position, a tensor."""
    index = node.args[1]
    items = index if isinstance(index, tuple) else (index,)
    return any(
        not (item is None or item is Ellipsis or (isinstance(item, slice) and item.step in (None, 1))) for item in items
    )


# --- kernels


def fixed_kernel(op: Op, model: nn.Module) -> Tensor | None:
    """The taps by which a convolution filters each channel alone, where these are not trained.

    Returns:
        (channels, 1, *taps); None where it mixes channels, where something trains it, or where its values are unknown.
        A frozen parameter counts where all its channels have the same taps: what was learned before it was frozen has
        not.
    """
    if op.weight is None or not is_constant(op.weight, model, frozen=True):
        return None
    weight = constant_value(op.weight, model)
    if weight is None or not weight.numel() or not (weight.is_floating_point() or weight.is_complex()):
        return None
    kernel = _each_channel(weight)
    if kernel is not None and has_parameters(op.weight) and not _all_alike(kernel):
        return None
    return kernel


def _each_channel(weight: Tensor) -> Tensor | None:
    """The one kernel of each output channel; None where one has several, or none at all."""
    if weight.shape[1] == 1:
        return weight
    used = weight.flatten(2).abs().amax(2) > 0
    if not bool((used.sum(1) == 1).all()):
        return None
    return weight[torch.arange(len(weight)), used.int().argmax(1)].unsqueeze(1)


def _all_alike(kernel: Tensor) -> bool:
    """Whether all channels have one kernel up to a factor; of a single channel, whether that is symmetric."""
    flat = kernel.flatten(1).double()
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
    other = flat[:1] if len(flat) > 1 else flat.flip(1)
    return bool((flat - other).abs().max() <= _SAME_TAPS * flat.abs().max())


def _is_unknown_filter(op: Op, model: nn.Module) -> bool:
    """Whether a convolution of unknown values can only be a filter: depthwise, and made of no parameter."""
    if op.weight is None or op.groups != op.input_shape[-op.rank - 1] or op.weight.meta["shape"][1] != 1:
        return False
    return is_constant(op.weight, model) and constant_value(op.weight, model) is None


# --- frequency responses


def response(kernel: Tensor, dilation: Sequence[int] = ()) -> Tensor:
    """The power response of each channel's kernel.

    Args:
        kernel: (channels, 1, *taps).
        dilation: the distance of neighbouring taps, one entry a spatial dimension.

    Returns:
        (channels, *frequencies), |H|^2, of as many frequencies in every dimension.
    """
    rank = kernel.dim() - 2
    for dim, step in enumerate(dilation):
        if step > 1:  # zeros between the taps
            taps = kernel.shape[2 + dim]
            spread = list(kernel.shape)
            spread[2 + dim] = (taps - 1) * step + 1
            wide = kernel.new_zeros(spread)
            wide.index_copy_(2 + dim, torch.arange(taps) * step, kernel)
            kernel = wide
    size = max((64, 32, 16)[rank - 1], *kernel.shape[2:])  # a longer kernel would be cut off
    dims = tuple(range(2, 2 + rank))
    values = kernel.detach().cpu()
    values = values.to(torch.complex128 if values.is_complex() else torch.float64)
    return (torch.fft.fftn(values, s=(size,) * rank, dim=dims).abs() ** 2)[:, 0]


def aliased_share(spectrum: Tensor, stride: tuple[int, ...]) -> float:
    """What a filter lets through of what a subsampling by `stride` would fold back, over its response to a constant.

    Args:
        spectrum: (channels, *frequencies), see `response`.
        stride: one entry a spatial dimension.

    Returns:
        the mean of |H|^2 over the frequencies beyond pi / stride in some dimension, over |H(0)|^2: the worst channel's.
    """
    if not spectrum.numel():
        return 1.0
    sizes = spectrum.shape[1:]
    beyond = torch.zeros(sizes, dtype=torch.bool, device="cpu")
    for dim, step in enumerate(stride):
        frequency = torch.fft.fftfreq(sizes[dim], dtype=torch.float64, device="cpu").abs()
        shape = [1] * len(stride)
        shape[dim] = sizes[dim]
        beyond = beyond | (frequency > 0.5 / step).view(shape)
    constant = spectrum.flatten(1)[:, 0]
    folded = spectrum[..., beyond].mean(-1).flatten() if bool(beyond.any()) else torch.zeros_like(constant)
    return float((folded / constant.clamp(min=1e-12)).max())


def _both(one: Tensor, other: Tensor) -> Tensor | None:
    """The response of two filters one after the other; None where they are not of the same channels."""
    if one.shape[1:] != other.shape[1:] or (len(one) != len(other) and 1 not in (len(one), len(other))):
        return None
    return one * other


# --- the stem


def reads_image(op: Op, model: nn.Module) -> bool:
    """Whether a convolution is the first learned one on the way from the input.

    What is fixed and linear on the way (a blur, an average pool, a conversion of colours, a filter bank) resamples or
    normalises the image, and hides nothing. Where the convolution itself is not learned, any other before it counts.
    """
    learned = op.weight is not None and not is_constant(op.weight, model)
    seen, todo = set(), [op.source]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if _mixes(node) and not (learned and _is_fixed(node, model)):
            return False
        todo.extend(node.all_input_nodes)
    return any(node.op == "placeholder" for node in seen)


def _mixes(node: Node) -> bool:
    name = function_name(node)
    return name in _LEARNED or name in PARAMETERS


def _is_fixed(node: Node, model: nn.Module) -> bool:
    """Whether what mixes samples or channels does it by constants: not by what was, or may be, learned."""
    name = function_name(node)
    if name.startswith("avg_pool"):
        return True
    if name in PARAMETERS:
        op = read_op(node, name)
        return op.weight is not None and (is_constant(op.weight, model) or fixed_kernel(op, model) is not None)
    if name in _PRODUCTS:
        signals = [one for one in node.all_input_nodes if not is_constant(one, model)]
        return len(signals) == 1
    return False


_PRODUCTS = frozenset("linear matmul bmm einsum".split())
_LEARNED = frozenset(
    "linear matmul bmm baddbmm addmm einsum bilinear embedding multi_head_attention_forward "
    "scaled_dot_product_attention conv_transpose1d conv_transpose2d conv_transpose3d".split()
)
