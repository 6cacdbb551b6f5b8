"""The layers that a converted model runs: BlurPool, and the max and average pools made anti-aliased with it.

Sizes are kept linear in the input's size: subsampling n samples as if they were n + extend gives ceil((n + extend) /
stride), and every pool is such a subsampling with a constant `extend`. So all padding amounts are constants, and
torch.export and ONNX keep every size dynamic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy, Tracer

from blurify.errors import BlurifyError
from blurify.filters import binomial_taps, compose_taps, resolve_taps

PADDINGS = ("reflect", "replicate", "zeros", "circular")

_Function = Callable[[Tensor], Tensor]

# One N-d kernel beats one 1-d convolution a dimension up to about this many taps (benchmarks/blurpool.py).
_JOINT_TAPS = 400

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _BlurPool(nn.Module):
    """Base of BlurPool1d/2d/3d."""

    ndim: ClassVar[int]

    def __init__(
        self,
        stride: int | Sequence[int] = 2,
        filter_size: int | None = 4,
        *,
        taps: Sequence[float] | None = None,
        padding: str = "reflect",
        factor: int | Sequence[int] | None = None,
        shift: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        self.stride = _per_dim(stride, self.ndim, "stride", least=1)
        self.factor = self.stride if factor is None else _per_dim(factor, self.ndim, "factor", least=1)
        self.shift = _per_dim(shift, self.ndim, "shift")
        self.taps = resolve_taps(filter_size, taps)
        if padding not in PADDINGS:
            raise BlurifyError(f"padding {padding!r}: give one of {', '.join(PADDINGS)}")
        self.padding = padding
        self._filters = tuple(compose_taps(self.taps, factor) for factor in self.factor)
        filtered = [dim for dim in range(self.ndim) if len(self._filters[dim]) > 1]
        joint = math.prod(map(len, self._filters)) <= _JOINT_TAPS
        # Each group of dimensions is filtered by one convolution.
        self._groups = [filtered] if filtered and joint else [[dim] for dim in filtered]
        for i, group in enumerate(self._groups):
            self.register_buffer(f"kernel{i}", self._kernel(group, torch.get_default_dtype()), persistent=False)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is filtered or shifted: the layer then only subsamples, `x[..., ::stride]`."""
        return not self._groups and not any(self.shift)

    def forward(
        self,
        x: Tensor,
        output_size: Sequence[int] | None = None,
        *,
        extend: Sequence[int] | None = None,
    ) -> Tensor:
        """Filter and subsample.

        Args:
            x: (N, C, *spatial) or (C, *spatial), floating point.
            output_size: the spatial size of the result, one entry a dimension; by default ceil(n / stride).
            extend: instead of `output_size`: the samples by which a dimension counts as longer (negative: shorter)
                than it is, so that the result has ceil((n + extend) / stride); constants keep exported sizes dynamic.

        Returns:
            The same layout as x, of the size asked for. It may be a view of x where nothing is filtered.
        """
        if isinstance(x, Proxy):  # a leaf of symbolic tracing, as the layers of torch.nn are
            path = cast(Tracer, x.tracer).path_of_module(self)
            return cast(Tensor, x.tracer.create_proxy("call_module", path, (x, output_size), {"extend": extend}))
        if x.dim() == self.ndim + 1:
            return self.forward(x.unsqueeze(0), output_size, extend=extend).squeeze(0)
        if x.dim() != self.ndim + 2:
            raise BlurifyError(
                f"{type(self).__name__} got a tensor of shape {tuple(x.shape)}: give (N, C, *spatial) or (C, *spatial)"
                f" with {self.ndim} spatial dimension{'s' * (self.ndim > 1)}"
            )
        if self._groups and not (x.is_floating_point() or x.is_complex()):
            raise BlurifyError(f"{type(self).__name__} got a tensor of {x.dtype}: give floating point")
        if output_size is not None:
            sizes = zip(output_size, self.stride, x.shape[2:], strict=True)
            extend = [stride * (size - 1) + 1 - n for size, stride, n in sizes]
        elif extend is None:
            extend = (0,) * self.ndim

        blur = partial(self._blur, extend=tuple(extend))
        return _lean(blur, x, linear=True) if self._groups else blur(x)

    def _blur(self, x: Tensor, extend: tuple[int, ...]) -> Tensor:
        """Filter and subsample (N, C, *spatial)."""
        channels_last = _is_channels_last(x)
        pads = []
        for taps, shift, more in zip(self._filters, self.shift, extend, strict=True):
            left = (len(taps) - 1) // 2 - shift
            pads.append((left, len(taps) - 1 - left + more))

        # Dimensions that are not filtered go first: what they drop needs no filtering.
        rest = [dim for dim in range(self.ndim) if len(self._filters[dim]) == 1]
        x = _extend(x, [pads[dim] if dim in rest else (0, 0) for dim in range(self.ndim)], self.padding)
        for dim in rest:
            if self.stride[dim] > 1:
                x = x[(slice(None),) * (dim + 2) + (slice(None, None, self.stride[dim]),)]

        for i, group in enumerate(self._groups):
            kernel = self._kernel_for(x, i)
            stride = tuple(self.stride[dim] if dim in group else 1 for dim in range(self.ndim))
            padding = [pads[dim] if dim in group else (0, 0) for dim in range(self.ndim)]
            own: tuple[int, ...] | int = 0
            if self.padding == "zeros" and all(left == right >= 0 for left, right in padding):
                own = tuple(left for left, _ in padding)  # the convolution's own padding makes no copy
            else:
                x = _extend(x, padding, self.padding)
            channels = x.shape[1]
            x = _CONV[self.ndim](x, kernel.expand(channels, *kernel.shape[1:]), None, stride, own, 1, channels)
        return x.contiguous(memory_format=_CHANNELS_LAST[self.ndim]) if channels_last else x

    def _kernel(self, group: list[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """The kernel (1, 1, *taps) of one group of dimensions, rounded once, from Python's floats."""
        kernel = torch.ones((1,) * (self.ndim + 2), dtype=torch.float64)
        for dim in group:
            shape = [1] * (self.ndim + 2)
            shape[dim + 2] = len(self._filters[dim])
            kernel = kernel * torch.tensor(self._filters[dim], dtype=torch.float64).view(shape)
        return kernel.to(dtype).to(device)

    def _kernel_for(self, x: Tensor, i: int) -> Tensor:
        kernel = cast(Tensor, getattr(self, f"kernel{i}"))
        if x.dtype == torch.float64 and kernel.dtype != torch.float64:  # only a layer that was never cast to it
            return self._kernel(self._groups[i], x.dtype, x.device)
        return kernel.to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .half().double() must not leave taps rounded to half, nor .to_empty() from the meta device leave garbage: the
        # buffers follow the module's device and dtype, and their values always come from Python's floats.
        super()._apply(fn, recurse)
        for i, group in enumerate(self._groups):
            kernel = getattr(self, f"kernel{i}")
            setattr(self, f"kernel{i}", self._kernel(group, kernel.dtype, kernel.device))
        return self

    def extra_repr(self) -> str:
        size = len(self.taps)
        binomial = size <= 7 and self.taps == binomial_taps(size)
        parts = [f"stride={_short(self.stride)}"]
        parts += [f"filter_size={size}" if binomial else f"taps={tuple(round(tap, 4) for tap in self.taps)}"]
        parts += [f"padding={self.padding!r}"] * (self.padding != "reflect")
        parts += [f"factor={_short(self.factor)}"] * (self.factor != self.stride)
        parts += [f"shift={_short(self.shift)}"] * any(self.shift)
        return ", ".join(parts)


class BlurPool2d(_BlurPool):
    """Low-pass filter a signal, then subsample it: what keeps a stride from aliasing.

    Window j of a dimension starts at sample `stride * j - ((L - 1) // 2 - shift)`, where L is the length of the
    dimension's filter; an even filter thus pads its extra sample at the end. There is nothing in the `state_dict`.

    Args:
        stride: the subsampling; an int, or one per spatial dimension.
        filter_size: taps of the binomial filter, 1 (the identity) to 7.
        taps: your own filter instead, for a subsampling by 2; normalised to sum 1.
        padding: how the signal goes on outside: 'reflect', 'replicate', 'zeros' or 'circular'. Signals shorter than
            the filter go on in the same way, periodically.
        factor: the subsampling to guard against, where it is not this layer's own stride: a blur of stride 1 and
            factor 2 goes before a convolution of stride 2. Other factors than 2 get a composed filter
            (`filters.compose_taps`); dimensions of factor 1 are not filtered.
        shift: samples by which the windows move to the right.

    Shape: (N, C, H, W) or (C, H, W) -> the same with ceil(n / stride), or the `output_size` given to `forward`.

    Raises:
        BlurifyError: for an argument outside of these.

    Example:
        >>> BlurPool2d(stride=2)(torch.rand(1, 3, 9, 9)).shape
        torch.Size([1, 3, 5, 5])

    Source: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019.
    """

    ndim = 2


class BlurPool1d(_BlurPool):
    """BlurPool2d for (N, C, L) or (C, L); the same arguments."""

    ndim = 1


class BlurPool3d(_BlurPool):
    """BlurPool2d for (N, C, D, H, W) or (C, D, H, W); the same arguments."""

    ndim = 3


def blurpool(ndim: int) -> type[_BlurPool]:
    """BlurPool1d, BlurPool2d or BlurPool3d."""
    return (BlurPool1d, BlurPool2d, BlurPool3d)[ndim - 1]


# --------------------------------------------------------------------------------------------------------------------
# Pools


def pool_output_size(
    n: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """The size that PyTorch's pooling gives n samples (n may be symbolic).

    That is the floor or ceil of the windows that fit; with `ceil_mode`, the last window must start inside the input or
    the left padding.
    """
    return -(-(n + _pool_extend(kernel, stride, padding, dilation, ceil_mode)) // stride)


def _pool_extend(kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The constant e with which a pool's output size is ceil((n + e) / stride)."""
    dense = 2 * padding - dilation * (kernel - 1)
    # The last window starts at sample stride * (size - 1) - padding < n, that is, size <= ceil((n + padding) / stride).
    return min(dense + stride - 1, padding) if ceil_mode else dense


def dense_max_pool(
    x: Tensor,
    kernel_size: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    extra: Sequence[int] | None = None,
) -> Tensor:
    """Max pool with stride 1, equal bit for bit to `F.max_poolNd(..., stride=1)`.

    Args:
        x: (N, C, *spatial) or (C, *spatial).
        kernel_size, padding, dilation: one entry a spatial dimension.
        extra: samples to append at the end of the output, whose windows reach beyond the right padding (`ceil_mode`).

    PyTorch does not vectorise this pool for contiguous CPU tensors: there, maxima of shifted copies, one dimension
    after the other, are several times faster (benchmarks/blurpool.py).
    """
    ndim = len(kernel_size)
    extra = extra or (0,) * ndim
    if all(size == 1 for size in kernel_size) and not any(extra):
        return x
    pool = partial(_max_pool, kernel=tuple(kernel_size), padding=tuple(padding), dilation=tuple(dilation), extra=extra)
    if not _is_traced(x) and x.device.type == "cpu" and x.is_floating_point() and x.is_contiguous():
        return _lean(pool, x, run=partial(_shifted_max, **pool.keywords))
    return _lean(pool, x)


def _max_pool(
    x: Tensor, kernel: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], extra: Sequence[int]
) -> Tensor:
    if any(extra):
        x = F.pad(x, _flat([(0, more) for more in extra]), value=-math.inf)
    return _MAX_POOL[len(kernel)](x, kernel, 1, padding, dilation)


def _shifted_max(
    x: Tensor, kernel: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], extra: Sequence[int]
) -> Tensor:
    pads = [(left, left + more) for left, more in zip(padding, extra, strict=True)]
    if any(map(any, pads)):
        x = F.pad(x, _flat(pads), value=-math.inf)
    for dim, (size, step) in enumerate(zip(kernel, dilation, strict=True), start=x.dim() - len(kernel)):
        width = 1  # x[i] is the maximum of `width` samples from i on; double that until it is the kernel
        while width < size:
            more = min(width, size - width)
            length = x.shape[dim] - step * more
            x = torch.maximum(x.narrow(dim, 0, length), x.narrow(dim, step * more, length))
            width += more
    return x


def max_blur_pool(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
    blurpool: nn.Module,
    dense_kernel_size: int | Sequence[int] | None = None,
) -> Tensor:
    """Max pool without aliasing: the dense max pool, then a blur that subsamples.

    Args:
        x: (N, C, *spatial) or (C, *spatial).
        kernel_size, stride, padding, dilation, ceil_mode: as of `F.max_pool2d`; they alone decide the output size.
        blurpool: a BlurPool of the same stride.
        dense_kernel_size: a kernel, without padding, for the dense max pool instead of kernel_size, as the published
            ResNets have it (2 instead of 3).

    Returns:
        The size of the original max pool at every input size; with the identity filter and no `dense_kernel_size` also
        its values, bit for bit.
    """
    layer = cast(_BlurPool, blurpool)
    kernel, step, pad, gap = _pool_arguments(layer.ndim, kernel_size, stride, padding, dilation)
    size = [_pool_extend(*dim, ceil_mode) for dim in zip(kernel, step, pad, gap, strict=True)]
    _check_pool_input(x, size, kernel)
    if dense_kernel_size is not None:
        window = _per_dim(dense_kernel_size, layer.ndim, "dense_kernel_size", least=1)
        # A map smaller than the window is its own window.
        extent = tuple(g * (k - 1) + 1 for k, g in zip(window, gap, strict=True))
        space = extent if isinstance(x, Proxy) else x.shape[-layer.ndim :]
        kernel = tuple(k if n >= e else 1 for k, n, e in zip(window, space, extent, strict=True))
        pad = (0,) * layer.ndim
    dense = [_pool_extend(k, 1, p, g, False) for k, p, g in zip(kernel, pad, gap, strict=True)]
    missing = [total - done for total, done in zip(size, dense, strict=True)]
    if dense_kernel_size is not None:
        return cast(Tensor, layer(dense_max_pool(x, kernel, pad, gap), extend=missing))
    return cast(Tensor, layer(dense_max_pool(x, kernel, pad, gap, missing)))


def avg_blur_pool(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    ceil_mode: bool,
    blurpool: nn.Module,
    *,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average pool with a proper low-pass filter: the blur takes the average's place.

    Args:
        x: (N, C, *spatial) or (C, *spatial).
        kernel_size, stride, padding, ceil_mode: as of `F.avg_pool2d`; they decide the output size.
        blurpool: a BlurPool of the same stride; the identity leaves the average pool exactly as it is.
        count_include_pad: of the original; used with the identity only.
        divisor_override: of the original; keeps the scale of a sum pool.

    Returns:
        The size of the original average pool at every input size.
    """
    layer = cast(_BlurPool, blurpool)
    kernel, step, pad, gap = _pool_arguments(layer.ndim, kernel_size, stride, padding, 1)
    if len(layer.taps) == 1:
        override = {} if layer.ndim == 1 else {"divisor_override": divisor_override}
        return _AVG_POOL[layer.ndim](x, kernel, step, pad, ceil_mode, count_include_pad, **override)
    size = [_pool_extend(*dim, ceil_mode) for dim in zip(kernel, step, pad, gap, strict=True)]
    _check_pool_input(x, size, kernel)
    out = cast(Tensor, layer(x, extend=size))
    return out * (math.prod(kernel) / divisor_override) if divisor_override else out


class _MaxBlurPool:
    """The anti-aliased part of MaxBlurPool1d/2d/3d; mixed in before nn.MaxPool1d/2d/3d."""

    dense_kernel_size: tuple[int, ...] | None = None

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        filter_size: int | None = 4,
        taps: Sequence[float] | None = None,
        padding_mode: str = "reflect",
        dense_kernel_size: int | Sequence[int] | None = None,
    ) -> None:
        if return_indices:
            raise BlurifyError("return_indices=True: an anti-aliased max pool has no indices; leave it False")
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)  # type: ignore[call-arg]
        ndim = _pool_ndim(self)
        _, step, _, _ = _pool_arguments(ndim, kernel_size, stride, padding, dilation)
        if dense_kernel_size is not None:
            self.dense_kernel_size = _per_dim(dense_kernel_size, ndim, "dense_kernel_size", least=1)
        self.blurpool = blurpool(ndim)(step, filter_size, taps=taps, padding=padding_mode)

    def forward(self, input: Tensor) -> Tensor:
        """Pool (N, C, *spatial) or (C, *spatial)."""
        pool = cast(Any, self)
        if pool.return_indices:
            raise BlurifyError("return_indices=True: an anti-aliased max pool has no indices; leave it False")
        return max_blur_pool(
            input, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.blurpool,
            self.dense_kernel_size,
        )  # fmt: skip

    def extra_repr(self) -> str:
        dense = "" if self.dense_kernel_size is None else f", dense_kernel_size={_short(self.dense_kernel_size)}"
        return cast(Any, super()).extra_repr() + dense


class _AvgBlurPool:
    """The anti-aliased part of AvgBlurPool1d/2d/3d; mixed in before nn.AvgPool1d/2d/3d."""

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        filter_size: int | None = 4,
        taps: Sequence[float] | None = None,
        padding_mode: str = "reflect",
        shift: int | Sequence[int] = 0,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad)  # type: ignore[call-arg]
        ndim = _pool_ndim(self)
        _, step, _, _ = _pool_arguments(ndim, kernel_size, stride, padding, 1)
        self.blurpool = blurpool(ndim)(step, filter_size, taps=taps, padding=padding_mode, shift=shift)

    def forward(self, input: Tensor) -> Tensor:
        """Pool (N, C, *spatial) or (C, *spatial)."""
        pool = cast(Any, self)
        return avg_blur_pool(
            input, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.blurpool,
            count_include_pad=pool.count_include_pad, divisor_override=getattr(pool, "divisor_override", None),
        )  # fmt: skip


class MaxBlurPool2d(_MaxBlurPool, nn.MaxPool2d):
    """nn.MaxPool2d without aliasing: a dense max pool, then its child `blurpool`.

    Takes what nn.MaxPool2d takes (`return_indices` must be False) and gives the same output size; the rest is
    keyword-only: `filter_size`, `taps` and `padding_mode` of the BlurPool2d, and `dense_kernel_size`
    (see `max_blur_pool`).

    Example:
        >>> MaxBlurPool2d(3, stride=2, padding=1)(torch.rand(1, 3, 9, 9)).shape
        torch.Size([1, 3, 5, 5])
    """


class MaxBlurPool1d(_MaxBlurPool, nn.MaxPool1d):
    """nn.MaxPool1d without aliasing; see MaxBlurPool2d."""


class MaxBlurPool3d(_MaxBlurPool, nn.MaxPool3d):
    """nn.MaxPool3d without aliasing; see MaxBlurPool2d."""


class AvgBlurPool2d(_AvgBlurPool, nn.AvgPool2d):
    """nn.AvgPool2d with its child `blurpool` as the filter instead of the plain average.

    Takes what nn.AvgPool2d takes (but `divisor_override`) and gives the same output size;
    the rest is keyword-only: `filter_size`, `taps`, `padding_mode` and `shift` of the BlurPool2d. A filter of one tap
    leaves the average pool as it is.

    Example:
        >>> AvgBlurPool2d(2)(torch.rand(1, 3, 9, 9)).shape
        torch.Size([1, 3, 4, 4])
    """


class AvgBlurPool1d(_AvgBlurPool, nn.AvgPool1d):
    """nn.AvgPool1d with a proper filter; see AvgBlurPool2d."""


class AvgBlurPool3d(_AvgBlurPool, nn.AvgPool3d):
    """nn.AvgPool3d with a proper filter; see AvgBlurPool2d."""


# --------------------------------------------------------------------------------------------------------------------
# Helpers


class _Lean(torch.autograd.Function):
    """Run a function of one tensor; for the backward keep x alone or, if the function is linear, nothing.

    Autograd would keep the padded copy that a convolution read, and the int64 indices of a max pool. The backward
    differentiates `function` anew instead, which costs about one more forward of it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, run: _Function, function: _Function, linear: bool) -> Tensor:
        return run(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Function, _Function, bool], output: Tensor) -> None:
        x, _, ctx.function, ctx.linear = inputs
        if ctx.linear:
            ctx.shape, ctx.channels_last = x.shape, _is_channels_last(x)
        else:
            ctx.save_for_backward(x)
            ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.linear:  # any x has the same derivative
            layout = _CHANNELS_LAST[len(ctx.shape) - 2] if ctx.channels_last else torch.contiguous_format
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


def _lean(function: _Function, x: Tensor, *, run: _Function | None = None, linear: bool = False) -> Tensor:
    """`function(x)`, computed by `run` if given, keeping as little as possible for its backward."""
    if torch.is_grad_enabled() and not _is_traced(x) and x.requires_grad:  # a compiler decides itself what to keep
        return cast(Tensor, _Lean.apply(x, run or function, function, linear))
    return (run or function)(x)


def _is_traced(x: Tensor) -> bool:
    """Whether somebody writes down what runs, for sizes other than these (a Proxy has none at all)."""
    if isinstance(x, Proxy) or torch.jit.is_tracing():
        return True
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()


def _is_channels_last(x: Tensor) -> bool:
    """Whether (N, C, *spatial) has its channels innermost; never for a traced tensor, whose layout the tracer keeps."""
    return not _is_traced(x) and x.dim() > 3 and x.stride(1) == 1 and not x.is_contiguous()


def _extend(x: Tensor, pads: Sequence[tuple[int, int]], padding: str) -> Tensor:
    """Continue x by `pads` (left, right) samples, one pair a spatial dimension; negative amounts crop instead."""
    amounts = [(max(left, 0), max(right, 0)) for left, right in pads]
    if padding in ("reflect", "circular"):
        for dim, (left, right) in enumerate(amounts):
            # F.pad goes on for less than a period. An export with dynamic sizes asks that the map is larger than that.
            if max(left, right) and x.shape[dim + 2] <= max(left, right):
                x = _extend_periodically(x, dim + 2, left, right, padding)
                amounts[dim] = (0, 0)
    if any(map(any, amounts)):
        x = F.pad(x, _flat(amounts), "constant" if padding == "zeros" else padding)
    for dim, (left, right) in enumerate(pads):
        if left < 0 or right < 0:
            x = x.narrow(dim + 2, max(-left, 0), x.shape[dim + 2] - max(-left, 0) - max(-right, 0))
    return x


def _extend_periodically(x: Tensor, dim: int, left: int, right: int, padding: str) -> Tensor:
    """Continue a dimension of size n beyond its period: n samples (circular), 2n - 2 (reflect; 1 for n = 1)."""
    n = x.shape[dim]
    index = torch.arange(-left, n + right, device=x.device)
    if padding == "circular":
        return x.index_select(dim, index % n)
    index = index % max(2 * n - 2, 1)
    return x.index_select(dim, torch.minimum(index, 2 * n - 2 - index).clamp_(min=0))


def _flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """The amounts in the order of F.pad: last dimension first."""
    return [amount for pair in reversed(pads) for amount in pair]


def _per_dim(value: int | Sequence[int], ndim: int, name: str, least: int | None = None) -> tuple[int, ...]:
    """An int, or one for each spatial dimension, as a tuple."""
    values = (value,) * ndim if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(values) == 1 < ndim:
        values *= ndim
    whole = all(isinstance(v, int) and not isinstance(v, bool) and (least is None or v >= least) for v in values)
    if isinstance(value, str) or len(values) != ndim or not whole:
        kind = "a whole number" if least is None else f"a whole number of at least {least}"
        raise BlurifyError(f"{name} {value!r}: give {kind}" + (f", or {ndim} of them" if ndim > 1 else ""))
    return values


def _pool_arguments(
    ndim: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[tuple[int, ...], ...]:
    """Kernel size, stride, padding and dilation, each one per dimension; PyTorch takes no stride as the kernel size."""
    return (
        _per_dim(kernel_size, ndim, "kernel_size", least=1),
        _per_dim(stride or kernel_size, ndim, "stride", least=1),
        _per_dim(padding, ndim, "padding", least=0),
        _per_dim(dilation, ndim, "dilation", least=1),
    )


def _check_pool_input(x: Tensor, extend: Sequence[int], kernel: tuple[int, ...]) -> None:
    """Refuse what the original pool refuses: an input in which no window fits."""
    if isinstance(x, Proxy):
        return
    if any(n + more < 1 for n, more in zip(x.shape[-len(extend) :], extend, strict=True)):
        raise BlurifyError(f"a pool of kernel size {_short(kernel)} got shape {tuple(x.shape)}: the input is too small")


def _pool_ndim(pool: object) -> int:
    classes = ((nn.MaxPool1d, nn.AvgPool1d), (nn.MaxPool2d, nn.AvgPool2d), (nn.MaxPool3d, nn.AvgPool3d))
    return next(ndim for ndim, kinds in enumerate(classes, start=1) if isinstance(pool, kinds))


def _short(values: tuple[int, ...]) -> str:
    """(2, 2) as 2, (1, 2) as (1, 2)."""
    return str(values[0] if len(set(values)) == 1 else values)
