"""Max and average pools made anti-aliased with a BlurPool, as functions and as subclasses of torch's modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from blurify.errors import BlurifyError
from blurify.nn.arguments import per_dim, short
from blurify.nn.autograd import Input, is_channels_last, is_traced, is_watched, lean, on_the_cpu
from blurify.nn.blocks import Max, filtered, spread
from blurify.nn.blurpool import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d, blurpool
from blurify.nn.padding import extend_by, flat_pads

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


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


# Maps of fewer numbers (with the channels innermost, of eight times as many) are pooled sooner than slices are set up.
_TINY = 1 << 13


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

    PyTorch does not vectorise this pool on the CPU: there, maxima of slices, one dimension after the other, are several
    times faster (see `blurify.nn.blocks`).
    """
    ndim = len(kernel_size)
    extra = extra or (0,) * ndim
    if all(size == 1 for size in kernel_size) and not any(extra):
        return x
    pool = _DenseMax(kernel_size, padding, dilation, extra)
    # A tracer sees no number of dimensions, and PyTorch's own pool, which it is given, takes (C, *spatial) too.
    return pool(x) if is_traced(x) or x.dim() == ndim + 2 else pool(x.unsqueeze(0)).squeeze(0)


class _DenseMax:
    """A dense max pool of (N, C, *spatial); the arguments are those of `dense_max_pool`."""

    def __init__(
        self, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int], extra: Sequence[int]
    ) -> None:
        self.kernel, self.padding, self.dilation = tuple(kernel), tuple(padding), tuple(dilation)
        self.extra = tuple(extra)

    @cached_property
    def stages(self) -> Max:
        """It as maxima of slices."""
        return Max(self.kernel, self.padding, self.dilation, self.extra)

    def plain(self, x: Tensor) -> Tensor:
        """It by PyTorch's own pool."""
        if any(self.extra):
            x = F.pad(x, flat_pads([(0, more) for more in self.extra]), value=-math.inf)
        return _MAX_POOL[len(self.kernel)](x, self.kernel, 1, self.padding, self.dilation)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.fits(x):
            return lean(self.plain, x)
        run = partial(filtered, lines=(), pool=self.stages, channels_last=is_channels_last(x))
        return lean(self.plain, x, run=run, back=self._back)

    def fits(self, x: Tensor) -> bool:
        """Whether maxima of slices do for x: on the CPU, where PyTorch's own pool is slow, and where a window fits."""
        if not on_the_cpu(x) or not self.stages.stages:
            return False
        needs_back = torch.is_grad_enabled() and x.requires_grad
        if not needs_back and x.numel() < _TINY * (8 if is_channels_last(x) else 1):
            return False
        return min(self.stages.sizes(x.shape[2:])) > 0

    def _back(self, grad: Tensor, of: Input) -> Tensor | None:
        return spread(grad, (), self.stages, of.shape[2:], of.x, of.channels_last) if on_the_cpu(grad) else None


def _blurred_max(
    x: Tensor,
    pool: _DenseMax,
    layer: BlurPool,
    extend: Sequence[int] | None = None,
    activation: nn.Module | None = None,
) -> Tensor:
    """An activation (if there is one), a dense max pool and a blur, in one pass where that can be."""
    extent = tuple(extend or (0,) * layer.ndim)
    if activation is not None:
        y = layer._joined(activation, x, extent, pool)
        if y is not None:
            return y
        x = activation(x)
    whole = type(layer) in (BlurPool1d, BlurPool2d, BlurPool3d) and layer._groups and not layer.of_tokens
    seen = not whole or is_traced(x) or is_watched(layer)  # by somebody who wants what is between the two
    if not seen and x.dim() == layer.ndim + 2 and layer.pools(x, pool):
        return layer._run(x, extent, pool)
    x = dense_max_pool(x, pool.kernel, pool.padding, pool.dilation, pool.extra)
    return cast(Tensor, layer(x) if extend is None else layer(x, extend=extend))


def max_blur_pool(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
    blurpool: nn.Module,
    dense_kernel_size: int | Sequence[int] | None = None,
    activation: nn.Module | None = None,
) -> Tensor:
    """Max pool without aliasing: the dense max pool, then a blur that subsamples.

    Args:
        x: (N, C, *spatial) or (C, *spatial).
        kernel_size, stride, padding, dilation, ceil_mode: as of `F.max_pool2d`; they alone decide the output size.
        blurpool: a BlurPool of the same stride.
        dense_kernel_size: a kernel, without padding, for the dense max pool instead of kernel_size, as the published
            ResNets have it (2 instead of 3).
        activation: pool what it makes of x.

    Returns:
        The size of the original max pool at every input size; with the identity filter and no `dense_kernel_size` also
        its values, bit for bit.
    """
    layer = cast(BlurPool, blurpool)
    kernel, step, pad, gap = _pool_arguments(layer.ndim, kernel_size, stride, padding, dilation)
    size = [_pool_extend(*dim, ceil_mode) for dim in zip(kernel, step, pad, gap, strict=True)]
    _check_pool_input(x, size, kernel)
    if dense_kernel_size is not None:
        window = per_dim(dense_kernel_size, layer.ndim, "dense_kernel_size", least=1)
        # A map smaller than the window is its own window.
        extent = tuple(g * (k - 1) + 1 for k, g in zip(window, gap, strict=True))
        space = extent if isinstance(x, Proxy) else x.shape[-layer.ndim :]
        kernel = tuple(k if n >= e else 1 for k, n, e in zip(window, space, extent, strict=True))
        pad = (0,) * layer.ndim
    if layer.wraps:
        x = x if activation is None else activation(x)
        x = _in_batches(x, layer, lambda x: _periodic(x, size, kernel, step, pad, gap))
        return cast(Tensor, layer(dense_max_pool(x, kernel, (0,) * layer.ndim, gap)))
    dense = [_pool_extend(k, 1, p, g, False) for k, p, g in zip(kernel, pad, gap, strict=True)]
    missing = [total - done for total, done in zip(size, dense, strict=True)]
    if dense_kernel_size is not None:
        return _blurred_max(x, _DenseMax(kernel, pad, gap, (0,) * layer.ndim), layer, missing, activation)
    return _blurred_max(x, _DenseMax(kernel, pad, gap, missing), layer, None, activation)


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
    dense_kernel_size: Sequence[int] | None = None,
    unless_global: bool = False,
) -> Tensor:
    """Average pool with a proper low-pass filter: the blur takes the average's place, or comes behind a wide one.

    Args:
        x: (N, C, *spatial) or (C, *spatial).
        kernel_size, stride, padding, ceil_mode: as of `F.avg_pool2d`; they decide the output size.
        blurpool: a BlurPool of the same stride; the identity leaves the average pool exactly as it is.
        count_include_pad: of the original; used where its own average is taken.
        divisor_override: of the original; keeps the scale of a sum pool.
        dense_kernel_size: by dimension, the pool's own kernel where its average is kept (at stride 1) and then blurred,
            because it smooths more than the filter would; 1 where the filter takes its place. None is 1 everywhere.
        unless_global: leave the pool as it is for inputs that its kernel covers, where there is nothing to alias.

    Returns:
        The size of the original average pool at every input size.
    """
    layer = cast(BlurPool, blurpool)
    kernel, step, pad, gap = _pool_arguments(layer.ndim, kernel_size, stride, padding, 1)
    covered = unless_global and all(k >= n for k, n in zip(kernel, x.shape[-layer.ndim :], strict=True))
    if layer.filters_nothing or covered:
        override = {} if layer.ndim == 1 else {"divisor_override": divisor_override}
        return _AVG_POOL[layer.ndim](x, kernel, step, pad, ceil_mode, count_include_pad, **override)
    size = [_pool_extend(*dim, ceil_mode) for dim in zip(kernel, step, pad, gap, strict=True)]
    _check_pool_input(x, size, kernel)
    kept = tuple(dense_kernel_size or (1,) * layer.ndim)
    missing = size
    own = tuple(p if k > 1 else 0 for p, k in zip(pad, kept, strict=True))
    if layer.wraps:
        x, missing = _in_batches(x, layer, lambda x: _periodic(x, size, kept, step, own, gap)), [0] * layer.ndim
        x = _AVG_POOL[layer.ndim](x, kept, 1) if max(kept) > 1 else x
    elif max(kept) > 1:
        x = _AVG_POOL[layer.ndim](x, kept, 1, own, False, count_include_pad)
        missing = [more - (2 * p - (k - 1)) for more, p, k in zip(size, own, kept, strict=True)]
    out = cast(Tensor, layer(x, extend=missing))
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
            self.dense_kernel_size = per_dim(dense_kernel_size, ndim, "dense_kernel_size", least=1)
        self.blurpool = blurpool(ndim)(step, filter_size, taps=taps, padding=padding_mode)

    def forward(self, input: Tensor) -> Tensor:
        """Pool (N, C, *spatial) or (C, *spatial)."""
        if isinstance(input, Proxy) and self.blurpool.wraps:  # symbolic tracing knows no sizes: a leaf, then
            path = cast(Any, input.tracer).path_of_module(self)
            return cast(Tensor, input.tracer.create_proxy("call_module", path, (input,), {}))
        return self.after(None, input)

    def after(self, activation: nn.Module | None, input: Tensor) -> Tensor:
        """`self(activation(input))`, in one pass where that is faster or keeps less for the backward."""
        pool = cast(Any, self)
        if pool.return_indices:
            raise BlurifyError("return_indices=True: an anti-aliased max pool has no indices; leave it False")
        return max_blur_pool(
            input, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.blurpool,
            self.dense_kernel_size, activation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        dense = "" if self.dense_kernel_size is None else f", dense_kernel_size={short(self.dense_kernel_size)}"
        return cast(Any, super()).extra_repr() + dense


class _AvgBlurPool:
    """The anti-aliased part of AvgBlurPool1d/2d/3d; mixed in before nn.AvgPool1d/2d/3d."""

    dense_kernel_size: tuple[int, ...] | None = None  # see `avg_blur_pool`
    unless_global: bool = False

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
        if isinstance(input, Proxy) and (
            self.unless_global or self.blurpool.wraps
        ):  # symbolic tracing knows no sizes: a leaf, then
            path = cast(Any, input.tracer).path_of_module(self)
            return cast(Tensor, input.tracer.create_proxy("call_module", path, (input,), {}))
        return avg_blur_pool(
            input, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.blurpool,
            count_include_pad=pool.count_include_pad, divisor_override=getattr(pool, "divisor_override", None),
            dense_kernel_size=self.dense_kernel_size, unless_global=self.unless_global,
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


def _pool_arguments(
    ndim: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[tuple[int, ...], ...]:
    """Kernel size, stride, padding and dilation, each one per dimension; PyTorch takes no stride as the kernel size."""
    return (
        per_dim(kernel_size, ndim, "kernel_size", least=1),
        per_dim(stride or kernel_size, ndim, "stride", least=1),
        per_dim(padding, ndim, "padding", least=0),
        per_dim(dilation, ndim, "dilation", least=1),
    )


def _periodic(
    x: Tensor,
    extend: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A periodic map, continued so far that a dense pool without padding gives `stride` samples for each of the pool's.

    Args:
        x: (N, C, *spatial).
        extend: the constants of `_pool_extend`.
        kernel, stride, padding, dilation: of the pool.
    """
    pads = []
    for n, more, k, step, left, gap in zip(x.shape[2:], extend, kernel, stride, padding, dilation, strict=True):
        whole = step * -(-(n + more) // step)
        pads.append((left, whole + gap * (k - 1) - n - left))
    return extend_by(x, pads, "circular")


def _in_batches(x: Tensor, layer: BlurPool, run: Any) -> Tensor:
    """`run(x)`, also of one map without a batch."""
    single = x.dim() == layer.ndim + 1
    out: Tensor = run(x.unsqueeze(0) if single else x)
    return out.squeeze(0) if single else out


def _check_pool_input(x: Tensor, extend: Sequence[int], kernel: tuple[int, ...]) -> None:
    """Refuse what the original pool refuses: an input in which no window fits."""
    if isinstance(x, Proxy):
        return
    if any(n + more < 1 for n, more in zip(x.shape[-len(extend) :], extend, strict=True)):
        raise BlurifyError(f"a pool of kernel size {short(kernel)} got shape {tuple(x.shape)}: the input is too small")


def _pool_ndim(pool: object) -> int:
    classes = ((nn.MaxPool1d, nn.AvgPool1d), (nn.MaxPool2d, nn.AvgPool2d), (nn.MaxPool3d, nn.AvgPool3d))
    return next(ndim for ndim, kinds in enumerate(classes, start=1) if isinstance(pool, kinds))
