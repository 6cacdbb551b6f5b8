"""A blur and the convolution behind it in one: fewer multiply-adds where the convolution is depthwise or strided."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.nn.arguments import short
from blurify.nn.autograd import is_traced
from blurify.nn.blurpool import BlurPool
from blurify.nn.padding import extend_by, flat_pads

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class BlurredConvolution(nn.Module):
    """`conv(blur(x))` as one strided convolution: its kernel is the convolution's, convolved with the taps.

    Where the convolution pads with zeros, its outermost windows see those, and no blurred samples of what lies outside:
    there blur and convolution run one after the other, on strips of the map. So it is the same function everywhere.

    Args:
        blur: a BlurPool; it is called with a map alone.
        conv: nn.Conv1d, nn.Conv2d or nn.Conv3d that reads it, and pads with zeros.

    Shape: (N, C, *spatial) -> that of `conv(blur(x))`.
    """

    weight: Tensor
    own_weight: Tensor
    taps: Tensor
    bias: Tensor | None

    def __init__(self, blur: BlurPool, conv: nn.Module) -> None:
        super().__init__()
        given: Any = conv
        self.ndim = blur.ndim
        self.steps = tuple(blur.stride)
        self.stride, self.dilation = tuple(given.stride), tuple(given.dilation)
        self.zeros, self.groups = tuple(given.padding), int(given.groups)
        self.pads = tuple(blur._pads((0,) * blur.ndim))
        self.padding = blur.padding
        self.sizes = tuple(len(taps) for taps in blur._filters)
        weight = given.weight.detach()
        taps = torch.ones((1,) * (self.ndim + 2), dtype=torch.float64)
        for dim, one in enumerate(blur._filters):
            shape = [1] * (self.ndim + 2)
            shape[dim + 2] = len(one)
            taps = taps * torch.tensor(one, dtype=torch.float64).view(shape)
        apart = tuple(s * d for s, d in zip(self.steps, self.dilation, strict=True))
        kernels = weight.to("cpu", torch.float64).flatten(0, 1).unsqueeze(1)
        merged = _TRANSPOSED[self.ndim](kernels, taps, stride=apart)
        merged = merged.view(*weight.shape[:2], *merged.shape[2:])
        self.weight = nn.Parameter(merged.to(weight), requires_grad=False)
        self.bias = None if given.bias is None else nn.Parameter(given.bias.detach().clone(), requires_grad=False)
        if max(self.zeros):
            self.own_weight = nn.Parameter(weight.clone(), requires_grad=False)
            self.register_buffer("taps", taps.to(weight))

    @staticmethod
    def multiply_adds(blur: BlurPool, conv: nn.Module) -> tuple[int, int]:
        """Multiply-adds for one sample of one output channel, one after the other and in one, borders left out.

        The blur's are those of the channels that one output channel reads, shared by the outputs of its group.
        """
        given: Any = conv
        reads, outputs = given.in_channels // given.groups, given.out_channels // given.groups
        kernel, stride = math.prod(given.kernel_size), math.prod(given.stride)
        taps = math.prod(map(len, blur._filters))
        sizes = zip(given.kernel_size, given.dilation, blur.stride, blur._filters, strict=True)
        merged = math.prod((k - 1) * d * s + len(one) for k, d, s, one in sizes)
        return reads * kernel + reads * taps * stride // outputs, reads * merged

    def forward(self, x: Tensor) -> Tensor:
        """Blur, subsample and convolve (N, C, *spatial)."""
        x = extend_by(x, self.pads, self.padding)
        edge = [-(-p // s) for p, s in zip(self.zeros, self.stride, strict=True)]
        between = [(n - size) // step + 1 for n, size, step in zip(x.shape[2:], self.sizes, self.steps, strict=True)]
        out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(between, self.zeros, self.dilation, self._kernel, self.stride, strict=True)
        ]
        small = not is_traced(x) and any(
            e > 0 and (size <= 2 * e or s * (size - e) < p)
            for size, e, s, p in zip(out, edge, self.stride, self.zeros, strict=True)
        )
        if small:
            return self._apart(x, tuple((p, p) for p in self.zeros))
        return self._part(x, out, edge, 0, ())

    @property
    def _kernel(self) -> tuple[int, ...]:
        """The kernel size of the convolution itself."""
        apart = zip(self.weight.shape[2:], self.sizes, self.steps, self.dilation, strict=True)
        return tuple((merged - size) // (step * d) + 1 for merged, size, step, d in apart)

    def _part(self, x: Tensor, out: list[int], edge: list[int], dim: int, zeros: tuple[tuple[int, int], ...]) -> Tensor:
        """The strips at both ends of a dimension, and the rest of it between them."""
        if dim == self.ndim:
            stride = tuple(a * b for a, b in zip(self.steps, self.stride, strict=True))
            return _CONV[self.ndim](x, self.weight, self.bias, stride, 0, 1, self.groups)
        step, stride, size = self.steps[dim], self.stride[dim], self.sizes[dim]
        reach, pad, e = self.dilation[dim] * (self._kernel[dim] - 1), self.zeros[dim], edge[dim]

        def cut(begin: int, end: int | None) -> Tensor:
            """What samples `begin` to `end` of the blurred map are made of."""
            stop = None if end is None else step * end + size
            return x[(slice(None),) * (dim + 2) + (slice(step * begin, stop),)]

        last = out[dim] - e
        middle = self._part(
            cut(stride * e - pad, stride * (last - 1) + reach - pad), out, edge, dim + 1, (*zeros, (0, 0))
        )
        if not e:
            return middle
        rest = tuple((p, p) for p in self.zeros[dim + 1 :])
        low = self._apart(cut(0, stride * (e - 1) + reach - pad), (*zeros, (pad, 0), *rest))
        high = self._apart(cut(stride * last - pad, None), (*zeros, (0, pad), *rest))
        return torch.cat([low, middle, high], dim + 2)

    def _apart(self, x: Tensor, zeros: tuple[tuple[int, int], ...]) -> Tensor:
        """The blur, then the convolution, of a part of the map."""
        if not max(self.zeros):
            return self._part(x, [], [0] * self.ndim, self.ndim, ())
        channels = x.shape[1]
        x = _CONV[self.ndim](x, self.taps.expand(channels, *self.taps.shape[1:]), None, self.steps, 0, 1, channels)
        x = F.pad(x, flat_pads(zeros))
        return _CONV[self.ndim](x, self.own_weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        kernel = short(tuple(self.weight.shape[2:]))
        stride = short(tuple(a * b for a, b in zip(self.steps, self.stride, strict=True)))
        return f"kernel_size={kernel}, stride={stride}, groups={self.groups}, padding={self.padding!r}"
