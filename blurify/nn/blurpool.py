"""BlurPool1d, 2d, 3d: low-pass filter a signal, then subsample it.

Sizes are kept linear in the input's size: subsampling n samples as if they were n + extend gives ceil((n + extend) /
stride), and every pool is such a subsampling with a constant `extend`. So all padding amounts are constants, and
torch.export and ONNX keep every size dynamic.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy, Tracer
from torch.utils.weak import WeakIdKeyDictionary

from blurify.errors import BlurifyError
from blurify.nn.arguments import numbers_per_dim, per_dim, short
from blurify.nn.autograd import (
    CHANNELS_LAST,
    Input,
    TensorFunction,
    coded,
    is_channels_last,
    is_exported,
    is_plain_on,
    is_traced,
    is_watched,
    lean,
    may_be_coded,
    on_the_cpu,
)
from blurify.nn.blocks import Clamp, Max, code_for, coded_maxima, filtered, selected, spread, unselected
from blurify.nn.lines import Line, lines_of, source
from blurify.nn.padding import PADDINGS, extend_by, flat_pads, fold_by
from blurify.spec.filters import binomial_taps, centred_taps, compose_taps, is_box, resolve_taps
from blurify.spec.methods import Fourier, Method, Taps, method_from_dict, method_to_dict

# One N-d kernel beats one 1-d convolution a dimension up to about this many taps (make bench).
_JOINT_TAPS = 400

# Maps of fewer numbers take less time than it takes to set up a sum of slices.
_LARGE = 1 << 20
# Maps with the channels innermost of more numbers are not copied to be padded.
_WIDE = 1 << 22
# Outputs at the borders that are done apart, at most.
_FEW = 4
# A compiler is given filters of at most so many taps as sums.
_MOST_SUMMED = 16
# Longer filters are left to convolutions.
_LONGEST = 64

_RELU = Clamp(0.0, math.inf)
_CLAMPS: dict[type, Any] = {cls: cls.forward for cls in (nn.ReLU, nn.ReLU6, nn.Hardtanh)}
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_AVG_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}

# Kernels that were found to be what their layer made: (version, filters).
_checked: Any = WeakIdKeyDictionary()


class DenseMax(Protocol):
    """A dense max pool that may run together with a blur."""

    @property
    def stages(self) -> Max:
        """It as maxima of slices."""

    def __call__(self, x: Tensor) -> Tensor:
        """Pool (N, C, *spatial)."""

    def fits(self, x: Tensor) -> bool:
        """Whether maxima of slices do for x."""

    def plain(self, x: Tensor) -> Tensor:
        """The same by one of torch's operators."""


MARK = "blurify"
"""The entry of a state_dict's metadata, at a blur, that says more of the model: text, which `nn` does not read."""


class BlurPool(nn.Module):
    """Base of BlurPool1d/2d/3d."""

    ndim: ClassVar[int]
    # In the instance alone, and only where there is one: files may hold nothing that hides something of a class.
    centre: tuple[float, ...] | None
    filter: Mapping[str, Any] | None  # plain data, as plans have it, of a filter that is more than taps
    _origins: tuple[int, ...] | None  # its tap that weighs sample stride * j, where that is not the middle one

    def __init__(
        self,
        stride: int | Sequence[int] = 2,
        filter_size: int | None = 4,
        *,
        taps: Sequence[float] | None = None,
        padding: str = "reflect",
        factor: int | Sequence[int] | None = None,
        shift: int | Sequence[int] = 0,
        centre: float | Sequence[float] | None = None,
        filter: Method | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.stride = per_dim(stride, self.ndim, "stride", least=1)
        self.factor = self.stride if factor is None else per_dim(factor, self.ndim, "factor", least=1)
        self.shift = per_dim(shift, self.ndim, "shift")
        if padding not in PADDINGS:
            raise BlurifyError(f"padding {padding!r}: give one of {', '.join(PADDINGS)}")
        self.padding = padding
        method = method_from_dict(filter) if isinstance(filter, Mapping) else filter
        if method is None or isinstance(method, Taps):
            self.taps = resolve_taps(filter_size, taps if method is None else method.taps)
            self._filters = tuple(compose_taps(self.taps, factor) for factor in self.factor)
        elif isinstance(method, Fourier):
            raise BlurifyError("a Fourier filter is no convolution: use blurify.nn.FourierPool1d, 2d or 3d")
        else:
            self.filter, self.taps = method_to_dict(method), method.filter(2)
            self._filters = tuple(method.filter(factor) for factor in self.factor)
            self._origins = tuple(method.origin(factor) for factor in self.factor)
        if padding == "causal":  # windows end at sample stride * j
            before = self._said("_origins") or tuple((len(one) - 1) // 2 for one in self._filters)
            self._origins = (*before[:-1], len(self._filters[-1]) - 1)
        if centre is not None:
            if any(self.shift):
                raise BlurifyError("shift and centre are two ways to say where a filter looks: give one of them")
            if padding == "causal":
                raise BlurifyError("a causal filter looks back, it can't be centred: leave out centre")
            self.centre = numbers_per_dim(centre, self.ndim, "centre")
            before = self._said("_origins") or tuple((len(one) - 1) // 2 for one in self._filters)
            moved = [centred_taps(*one) for one in zip(self._filters, self.centre, before, strict=True)]
            self._origins = tuple(left - move for left, (_, move) in zip(before, moved, strict=True))
            self._filters = tuple(taps for taps, _ in moved)
        filtered = [dim for dim in range(self.ndim) if len(self._filters[dim]) > 1]
        joint = math.prod(map(len, self._filters)) <= _JOINT_TAPS
        # A plain average is an average pool, which needs no multiplication.
        self._average = bool(filtered) and all(is_box(self._filters[dim]) for dim in filtered)
        # Each group of dimensions is filtered by one convolution.
        self._groups = [filtered] if filtered and joint else [[dim] for dim in filtered]
        for i, group in enumerate(self._groups):
            self.register_buffer(
                f"kernel{i}", self._kernel(group, torch.get_default_dtype(), _default_device()), persistent=False
            )

    def _said(self, name: str) -> Any:
        """A setting that not every layer has, None where this one has none."""
        return self.__dict__.get(name)

    @property
    def of_tokens(self) -> bool:
        """Whether it blurs (N, *spatial, C), not (N, C, *spatial): an attribute that `nn.build` sets, and only there.

        No attribute of the class has its name: a file's module may not hide one of those.
        """
        return bool(self.__dict__.get("channels_last", False))

    @property
    def filters_nothing(self) -> bool:
        """Whether the filter has one tap in every dimension."""
        return not self._groups

    @property
    def wraps(self) -> bool:
        """Whether a pool in front of it must give the whole period of its map: of layers that look at all of it."""
        return False

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
            x: (N, C, *spatial) or (C, *spatial), floating point (or quantised by tensor, and then so is the result).
            output_size: the spatial size of the result, one entry a dimension; by default ceil(n / stride).
            extend: instead of `output_size`: the samples by which a dimension counts as longer (negative: shorter)
                than it is, so that the result has ceil((n + extend) / stride); constants keep exported sizes dynamic.

        Returns:
            The same layout as x, of the size asked for, contiguous as a convolution's or pool's output is (`.view()` of
            it works). It is x itself where there is nothing to do.
        """
        if isinstance(x, Proxy):  # a leaf of symbolic tracing, as the layers of torch.nn are
            path = cast(Tracer, x.tracer).path_of_module(self)
            return cast(Tensor, x.tracer.create_proxy("call_module", path, (x, output_size), {"extend": extend}))
        if x.is_quantized and x.qscheme() == torch.per_tensor_affine:  # as eager quantisation hands features on
            y = self.forward(x.dequantize(), output_size, extend=extend)
            return torch.quantize_per_tensor(y, x.q_scale(), x.q_zero_point(), x.dtype)
        if self.of_tokens and x.dim() == self.ndim + 2:
            if self.is_identity and max(self.stride) == 1:
                return x
            return self._channels_first(x.movedim(-1, 1), output_size, extend).movedim(1, -1).contiguous()
        return self._channels_first(x, output_size, extend)

    def _channels_first(self, x: Tensor, output_size: Sequence[int] | None, extend: Sequence[int] | None) -> Tensor:
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

        return self._run(x, tuple(extend))

    def _run(self, x: Tensor, extend: tuple[int, ...], pool: DenseMax | None = None) -> Tensor:
        """Max pool densely (if asked to), filter and subsample (N, C, *spatial), in the way that is fastest for x."""
        blur = partial(self._blur, extend=extend)
        if not self._groups or is_traced(x):
            return blur(x if pool is None else pool(x))
        last = is_channels_last(x)
        # Small maps, and those with the channels innermost, are as fast by a convolution; not in half precision.
        sums = x.dtype == torch.float16 or (not last and x.numel() >= _LARGE)
        needs_back = torch.is_grad_enabled() and x.requires_grad
        if pool is None and not sums and not needs_back and not x.is_cuda and x.numel() < _WIDE:
            return blur(x)
        lines = self._lines(x, extend)
        if lines is None:
            return lean(blur, x if pool is None else pool(x), linear=True)
        stages, triton = None if pool is None else pool.stages, _kernels(x)
        back = partial(self._back, lines=lines, pool=stages)
        if triton is not None and triton.fits(lines, stages, x):
            x = x.contiguous(memory_format=CHANNELS_LAST[self.ndim] if last else torch.contiguous_format)
            run = partial(triton.filtered, lines=lines, pool=stages, channels_last=last)
            return lean(self._whole(blur, pool), x, run=run, back=back, linear=pool is None)
        if on_the_cpu(x) and (sums if pool is None else pool.fits(x)):
            run = partial(filtered, lines=lines, pool=stages, channels_last=last)
            return lean(self._whole(blur, pool), x, run=run, back=back, linear=pool is None)
        x = x if pool is None else pool(x)
        uncopied = partial(self._uncopied, lines=lines, blur=blur)
        apart = last and len(self._groups) == 1 and self._is_wide(x)
        back = partial(self._back, lines=lines, pool=None)
        return lean(blur, x, linear=True, run=uncopied if apart else None, back=back)

    def after(self, function: Callable[[Any], Any], x: Any) -> Any:
        """`self(function(x))`, in one pass where that is faster or keeps less for the backward.

        An activation that writes in place then leaves x as it is: of what a blur subsamples nobody else has the tensor.
        """
        y = self._joined(function, x, (0,) * self.ndim, None) if max(self.stride) > 1 else None
        return self(function(x)) if y is None else y

    def _joined(self, function: Any, x: Any, extend: tuple[int, ...], pool: DenseMax | None) -> Tensor | None:
        """Cut off, max pool densely (if asked to), filter and subsample; None where one after the other must run."""
        if type(self) not in (BlurPool1d, BlurPool2d, BlurPool3d) or not self._groups or self.of_tokens:
            return None
        if not may_be_coded(x) or x.dim() != self.ndim + 2 or is_watched(self):
            return None
        stages, clamp = None if pool is None else pool.stages, clamp_of(function)
        if clamp is None or (stages and (not stages.stages or min(stages.sizes(x.shape[2:])) < 1)):
            return None
        last, cpu = is_channels_last(x), on_the_cpu(x)
        needs_back = torch.is_grad_enabled() and x.requires_grad
        large = x.dtype == torch.float16 or (not last and x.numel() >= _LARGE)
        in_blocks = cpu and (large if pool is None else pool.fits(x))
        lines = self._lines(x, extend) if in_blocks or needs_back else None
        if lines is None:
            return None
        if not needs_back:
            return filtered(x, lines, stages, last, clamp)

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            if in_blocks:
                code = code_for(x, stages, last)
                return filtered(x, lines, stages, last, clamp, code), code
            if stages is None:
                code = code_for(x, stages, last)
                code.copy_(clamp.open(x, x.new_empty((2, *x.shape))))
            else:
                x, code = coded_maxima(x, stages, clamp)
            return self._run(clamp.plain(x), extend), code

        def select(code: Tensor) -> TensorFunction:
            return lambda x: self._blur(selected(x, stages, code), extend)

        def back(grad: Tensor, of: Input, code: Tensor) -> Tensor:
            if cpu:
                return spread(grad, lines, stages, of.shape[2:], None, of.channels_last, code)
            sizes = of.shape[2:] if stages is None else stages.sizes(of.shape[2:])
            dense = Input(torch.Size([*of.shape[:2], *sizes]), of.channels_last, None)
            grad = unselected(self._spread(grad, dense, lines), stages, code)
            return grad.contiguous(memory_format=CHANNELS_LAST[self.ndim]) if last else grad

        return coded(x, run, select, back)

    def _is_wide(self, x: Tensor) -> bool:
        """Whether a padded copy of x would cost more than to do the borders apart."""
        return on_the_cpu(x) and x.numel() >= _WIDE and not self._said("_average")

    def _uncopied(self, x: Tensor, lines: tuple[Line, ...], blur: TensorFunction) -> Tensor:
        """`_blur` without a padded copy: a convolution with its own zeros, and then the outputs at the borders anew."""
        own, todo = [], []
        for dim, line in enumerate(lines):
            n, left = x.shape[dim + 2], line.left
            length, step, m = len(line.taps), line.stride, line.size(n)
            if left < 0 or (n + 2 * left - length) // step + 1 != m:
                return blur(x)
            own.append(left)
            outside = [j for j in range(m) if step * j < left or step * j - left + length > n]
            if len(outside) > _FEW:
                return blur(x)
            todo += [(dim, j) for j in outside] if line.padding != "zeros" else []
        kernel = self._kernel_for(x, 0)
        channels = x.shape[1]
        kernel = kernel.expand(channels, *kernel.shape[1:]).contiguous()
        y = _CONV[self.ndim](x, kernel, None, self.stride, tuple(own), 1, channels)
        for dim, j in todo:
            line, n = lines[dim], x.shape[dim + 2]
            begin = line.stride * j - line.left
            at = [source(i, n, line.padding) for i in range(begin, begin + len(line.taps))]
            strip = torch.cat([x.narrow(dim + 2, cast(int, i), 1) for i in at], dim + 2)
            pads = [(0, 0) if d == dim else (other.left, other.right) for d, other in enumerate(lines)]
            strip = _CONV[self.ndim](extend_by(strip, pads, self.padding), kernel, None, self.stride, 0, 1, channels)
            y.narrow(dim + 2, j, 1).copy_(strip)
        return y

    def pools(self, x: Tensor, pool: DenseMax) -> bool:
        """Whether `_run` does a dense max pool of x in the same pass."""
        if pool.fits(x):
            return True
        triton = _kernels(x)
        return triton is not None and min(pool.stages.sizes(x.shape[2:])) > 0

    @staticmethod
    def _whole(blur: TensorFunction, pool: DenseMax | None) -> TensorFunction:
        return blur if pool is None else lambda x: blur(pool.plain(x))

    def _back(self, grad: Tensor, of: Input, *, lines: tuple[Line, ...], pool: Max | None) -> Tensor | None:
        """The gradient of the input of `_run`."""
        if on_the_cpu(grad):
            return spread(grad, lines, pool, of.shape[2:], of.x, of.channels_last)
        triton = _kernels(grad)
        if triton is not None and triton.fits(lines, pool, grad):
            return cast(Tensor, triton.spread(grad, lines, pool, of.shape[2:], of.x, of.channels_last))
        return self._spread(grad, of, lines) if pool is None else None

    def _lines(self, x: Tensor, extend: tuple[int, ...]) -> tuple[Line, ...] | None:
        """What is done to each dimension, where the layer does just what its numbers say and sizes are numbers."""
        if type(self)._blur is not BlurPool._blur or type(self)._filtered is not BlurPool._filtered:
            return None
        if x.is_complex() or max(map(len, self._filters)) > _LONGEST or not self._has_its_own_taps():
            return None
        lines = lines_of(self._filters, self.stride, self._pads(extend), self.padding)
        if not isinstance(x, Proxy) and any(one.size(n) < 1 for one, n in zip(lines, x.shape[2:], strict=True)):
            return None
        return lines

    def _has_its_own_taps(self) -> bool:
        """Whether the buffers hold what the layer made them with; who writes other taps there means it."""
        filtered = [dim for dim in range(self.ndim) if len(self._filters[dim]) > 1]
        if [dim for group in self._groups for dim in group] != filtered:
            return False
        for i, group in enumerate(self._groups):
            kernel = cast(Tensor, getattr(self, f"kernel{i}"))
            if kernel.is_meta:
                continue
            version = None if kernel.is_inference() else kernel._version
            known = _checked.get(kernel)
            if known is None or version is None or known != (version, self._filters):
                own = self._kernel(group, kernel.dtype, kernel.device)
                if kernel.shape != own.shape or not torch.equal(kernel, own):
                    return False
                _checked[kernel] = (version, self._filters)
        return True

    def _blur(self, x: Tensor, extend: tuple[int, ...]) -> Tensor:
        """Filter and subsample (N, C, *spatial)."""
        channels_last = is_channels_last(x)
        pads = self._pads(extend)

        # Dimensions that are not filtered go first: what they drop needs no filtering.
        rest = [dim for dim in range(self.ndim) if len(self._filters[dim]) == 1]
        x = extend_by(x, [pads[dim] if dim in rest else (0, 0) for dim in range(self.ndim)], self.padding)
        for dim in rest:
            if self.stride[dim] > 1:
                x = x[(slice(None),) * (dim + 2) + (slice(None, None, self.stride[dim]),)]
        if not self._groups and not channels_last:
            x = x.contiguous()

        if is_traced(x) and self._may_be_summed(x):
            return self._summed(x, [pads[dim] if dim not in rest else (0, 0) for dim in range(self.ndim)])
        x = self._filtered(x, pads)
        return x.contiguous(memory_format=CHANNELS_LAST[self.ndim]) if channels_last else x

    def _pads(self, extend: tuple[int, ...]) -> list[tuple[int, int]]:
        """By how many samples each dimension goes on to the left and right, for its windows to have what they read."""
        pads, origins = [], self._said("_origins")
        for dim, (taps, shift, more) in enumerate(zip(self._filters, self.shift, extend, strict=True)):
            left = ((len(taps) - 1) // 2 if origins is None else origins[dim]) - shift
            pads.append((left, len(taps) - 1 - left + more))
        return pads

    def _may_be_summed(self, x: Tensor) -> bool:
        """Whether sums of slices are for a compiler to see, and not a convolution, which others read."""
        if is_exported(x) or x.is_complex() or type(self)._filtered is not BlurPool._filtered:
            return False
        return max(map(len, self._filters)) <= _MOST_SUMMED and _constantly_its_own_taps(self)

    def _summed(self, x: Tensor, pads: list[tuple[int, int]]) -> Tensor:
        """Filter and subsample as sums of slices, which a compiler makes one loop with what comes before and after."""
        for dim in (dim for group in self._groups for dim in group):
            taps, step = self._filters[dim], self.stride[dim]
            x = extend_by(x, [pads[dim] if d == dim else (0, 0) for d in range(self.ndim)], self.padding)
            count = (x.shape[dim + 2] - len(taps)) // step + 1
            starts = [k for k, tap in enumerate(taps) if tap]
            parts = [(slice(None),) * (dim + 2) + (slice(k, k + step * (count - 1) + 1, step),) for k in starts]
            x = sum(
                (taps[k] * x[part] for k, part in zip(starts[1:], parts[1:], strict=True)),
                taps[starts[0]] * x[parts[0]],
            )
        return x

    def _filtered(self, x: Tensor, pads: list[tuple[int, int]]) -> Tensor:
        """Filter and subsample the dimensions that have a filter."""
        if self._said("_average") and not x.is_complex():
            filtered = [dim for group in self._groups for dim in group]
            x = extend_by(x, [pads[dim] if dim in filtered else (0, 0) for dim in range(self.ndim)], self.padding)
            window = [len(taps) if dim in filtered else 1 for dim, taps in enumerate(self._filters)]
            step = [stride if dim in filtered else 1 for dim, stride in enumerate(self.stride)]
            return _AVG_POOL[self.ndim](x, window, step)
        for i, group in enumerate(self._groups):
            kernel = self._kernel_for(x, i)
            stride = tuple(self.stride[dim] if dim in group else 1 for dim in range(self.ndim))
            padding = [pads[dim] if dim in group else (0, 0) for dim in range(self.ndim)]
            own: tuple[int, ...] | int = 0
            if self.padding == "zeros" and all(left == right >= 0 for left, right in padding):
                own = tuple(left for left, _ in padding)  # the convolution's own padding makes no copy
            else:
                x = extend_by(x, padding, self.padding)
            # The tracing ONNX exporter needs to know the kernel's shape.
            channels = int(x.shape[1]) if torch.jit.is_tracing() else x.shape[1]
            kernel = kernel.expand(channels, *kernel.shape[1:])
            if is_channels_last(x):  # else the result is not laid out as x is
                kernel = kernel.contiguous()
            x = _CONV[self.ndim](x, kernel, None, stride, own, 1, channels)
        return x

    def _spread(self, grad: Tensor, of: Input, lines: tuple[Line, ...]) -> Tensor:
        """The transpose of `_blur`, by the operators with which autograd would go back, and without its forward."""
        layout = CHANNELS_LAST[self.ndim] if of.channels_last else torch.contiguous_format
        grad = grad.contiguous(memory_format=layout)
        sizes, m = list(of.shape[2:]), [one.size(n) for one, n in zip(lines, of.shape[2:], strict=True)]
        reads = [one.stride * (count - 1) + len(one.taps) for one, count in zip(lines, m, strict=True)]
        channels = of.shape[1]
        for i in reversed(range(len(self._groups))):
            group = self._groups[i]
            shape = [*grad.shape[:2], *(reads[dim] if dim in group else n for dim, n in enumerate(grad.shape[2:]))]
            step = [self.stride[dim] if dim in group else 1 for dim in range(self.ndim)]
            like = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
            kernel = self._kernel_for(grad, i)
            grad = torch.ops.aten.convolution_backward(
                grad, like, kernel.expand(channels, *kernel.shape[1:]), None, step, [0] * self.ndim, [1] * self.ndim,
                False, [0] * self.ndim, channels, [True, False, False],
            )[0]  # fmt: skip
        for dim, line in enumerate(lines):
            if len(line.taps) == 1 and line.stride > 1:
                apart = grad.new_zeros([*grad.shape[: dim + 2], reads[dim], *grad.shape[dim + 3 :]])
                apart[(slice(None),) * (dim + 2) + (slice(None, None, line.stride),)] = grad
                grad = apart
        # Samples that no window reads.
        pads = [(one.left, one.right) for one in lines]
        rest = [n + left + right - read for n, (left, right), read in zip(sizes, pads, reads, strict=True)]
        grad = F.pad(grad, flat_pads([(0, more) for more in rest])) if any(rest) else grad
        return fold_by(grad, pads, self.padding).contiguous(memory_format=layout)

    def unstrided(self) -> BlurPool:
        """The same filter at stride 1, on the CPU: what there is before this layer subsamples."""
        return type(self)(
            1, None, taps=self.taps, padding=self.padding, factor=self.factor, shift=self.shift,
            filter=self._said("filter"), centre=self._said("centre"),
        )  # fmt: skip

    def _kernel(self, group: list[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """The kernel (1, 1, *taps) of one group of dimensions, rounded once, from Python's floats."""
        # On the CPU, whatever torch.set_default_device says: there the values are made, and then moved.
        kernel = torch.ones((1,) * (self.ndim + 2), dtype=torch.float64, device="cpu")
        for dim in group:
            shape = [1] * (self.ndim + 2)
            shape[dim + 2] = len(self._filters[dim])
            kernel = kernel * torch.tensor(self._filters[dim], dtype=torch.float64, device="cpu").view(shape)
        return kernel.to(dtype).to(device)

    def _kernel_for(self, x: Tensor, i: int) -> Tensor:
        kernel = cast(Tensor, getattr(self, f"kernel{i}"))
        # A layer that was never cast to float64, or never moved to where x is (made on the meta device, and then
        # filled by load_state_dict(assign=True), which knows nothing of what is not in the state_dict).
        if (x.dtype == torch.float64 and kernel.dtype != torch.float64) or kernel.device != x.device:
            return self._kernel(self._groups[i], x.dtype, x.device)
        return kernel.to(x.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        # transformers builds models on the meta device and fills buffers that no checkpoint has with empty memory.
        if isinstance(value, Tensor) and name.startswith("kernel") and not value.is_meta:
            before = self.__dict__.get("_buffers", {}).get(name)
            if before is not None and before.is_meta:
                value = self._kernel(self._groups[int(name.removeprefix("kernel"))], value.dtype, value.device)
        super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .half().double() must not leave taps rounded to half, nor .to_empty() from the meta device leave garbage: the
        # buffers follow the module's device and dtype, and their values always come from Python's floats.
        super()._apply(fn, recurse)
        for i, group in enumerate(self._groups):
            kernel = getattr(self, f"kernel{i}")
            setattr(self, f"kernel{i}", self._kernel(group, kernel.dtype, kernel.device))
        return self

    def __prepare_scriptable__(self) -> Any:
        """Called by torch.jit.script on every module of a model."""
        raise BlurifyError(
            "torch.jit.script can't compile a blurred model (its forwards are compiled from changed source): use "
            "torch.jit.trace, torch.export or torch.compile"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        mark, metadata = self._said("_mark"), getattr(destination, "_metadata", None)
        if mark is not None and metadata is not None:
            metadata.setdefault(prefix[:-1], {})[MARK] = mark

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        size = len(self.taps)
        binomial = size <= 7 and self.taps == binomial_taps(size)
        parts = [f"stride={short(self.stride)}"]
        if (own := self._said("filter")) is not None:
            parts += [f"filter={method_from_dict(own)!r}"]
        else:
            parts += [f"filter_size={size}" if binomial else f"taps={tuple(round(tap, 4) for tap in self.taps)}"]
        parts += [f"padding={self.padding!r}"] * (self.padding != "reflect")
        parts += [f"factor={short(self.factor)}"] * (self.factor != self.stride)
        parts += [f"shift={short(self.shift)}"] * any(self.shift)
        parts += ["channels_last=True"] * self.of_tokens
        parts += [f"centre={short(centre)}" for centre in (self._said("centre"),) if centre is not None]
        return ", ".join(parts)


def clamp_of(function: Any) -> Clamp | None:
    """What an activation of torch cuts off; None for another function, and for a module that somebody watches."""
    if isinstance(function, nn.Module):
        cls = type(function)
        if cls not in _CLAMPS or cls.forward is not _CLAMPS[cls] or is_watched(function):
            return None
        if type(function) is nn.ReLU:
            return _RELU
        return Clamp(float(function.min_val), float(function.max_val))  # type: ignore[arg-type]
    return _RELU if any(function is one for one in _RELUS) else None


def _kernels(x: Tensor) -> Any:
    """The Triton kernels, where the environment asks for them (BLURIFY_TRITON=1) and x is on CUDA; else None."""
    if not x.is_cuda or os.environ.get("BLURIFY_TRITON") != "1" or not is_plain_on(x, "cuda"):
        return None
    try:
        from blurify.nn import kernels
    except ImportError:
        raise BlurifyError("BLURIFY_TRITON=1 needs the package triton: install it, or unset the variable") from None
    return kernels


def _constantly_its_own_taps(layer: BlurPool) -> bool:
    """Asked while a compiler traces, of the layer as it is then."""
    return layer._has_its_own_taps()


# What torch.compiler.assume_constant_result does, which imports the whole compiler for it (two seconds).
_constantly_its_own_taps._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _default_device() -> torch.device:
    """Where torch makes tensors at this moment: `torch.device("meta")` as a context, torch.set_default_device."""
    return torch.empty(0).device


class BlurPool2d(BlurPool):
    """Low-pass filter a signal, then subsample it: what keeps a stride from aliasing.

    Window j of a dimension starts at sample `stride * j - ((L - 1) // 2 - shift)`, where L is the length of the
    dimension's filter; an even filter thus pads its extra sample at the end. There is nothing in the `state_dict`.

    Args:
        stride: the subsampling; an int, or one per spatial dimension.
        filter_size: taps of the binomial filter, 1 (the identity) to 7.
        taps: your own filter instead, for a subsampling by 2; normalised to sum 1.
        padding: how the signal goes on outside: 'reflect', 'replicate', 'zeros' or 'circular'. Signals shorter than
            the filter go on in the same way, periodically. 'causal' is for streams, whose time is the last dimension:
            there a window j ends at sample `stride * j` (+ `shift`), so that it reads nothing that comes later, and
            what was before the first sample is that sample; other dimensions are reflected.
        factor: the subsampling to guard against, where it is not this layer's own stride: a blur of stride 1 and
            factor 2 goes before a convolution of stride 2. Other factors than 2 get a composed filter
            (`filters.compose_taps`); dimensions of factor 1 are not filtered.
        shift: samples by which the windows move to the right.
        centre: in place of `shift`, where the filter's centre of mass is to be, in samples to the right of sample
            `stride * j`: 0 keeps features where a plain subsampling has them. An even filter gets a tap more for that
            (`filters.centred_taps`), one tap alone stays where it is. By default an even filter looks at 0.5.
        filter: a filter of another kind instead of `filter_size` and `taps`: one of `blurify.spec.methods` (`Flat`,
            `Sinc`, `Wavelet`, `Area`) or its plain data, as {"kind": "flat", "size": 7}. It is designed anew for each
            factor; a window has the tap nearest to the filter's delay at sample `stride * j`.

    Shape: (N, C, H, W) or (C, H, W) -> the same with ceil(n / stride), or the `output_size` given to `forward`.

    Raises:
        BlurifyError: for an argument outside of these.

    Example:
        >>> BlurPool2d(stride=2)(torch.rand(1, 3, 9, 9)).shape
        torch.Size([1, 3, 5, 5])

    Source: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019.
    """

    ndim = 2


class BlurPool1d(BlurPool):
    """BlurPool2d for (N, C, L) or (C, L); the same arguments."""

    ndim = 1


class BlurPool3d(BlurPool):
    """BlurPool2d for (N, C, D, H, W) or (C, D, H, W); the same arguments."""

    ndim = 3


def blurpool(ndim: int) -> type[BlurPool]:
    """BlurPool1d, BlurPool2d or BlurPool3d."""
    return (BlurPool1d, BlurPool2d, BlurPool3d)[ndim - 1]
