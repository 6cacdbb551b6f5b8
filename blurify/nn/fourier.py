"""FourierPool1d, 2d, 3d: the ideal low-pass, then subsampling.

Of a signal of period P with the discrete Fourier transform X, the filter keeps the frequencies |k| < P / (2 s), half of
the one at |k| = P / (2 s) where there is one, and nothing above:

    y(t) = sum over k of w(k) X(k) exp(2 pi i k t / P) / P,    at t = 0, s, 2 s, ...

That is a circular convolution with h(t) = (w(0) + 2 sum over k >= 1 of w(k) cos(2 pi k t / P)) / P.

Cutting the middle out of the spectrum, as the papers do, gives the same wherever s divides P; where it doesn't, it
gives samples at other places (P / ceil(P / s) apart). So the filter and the subsampling are kept apart here.

A dimension of up to LONGEST_MATRIX samples is multiplied by the matrix h(s j - i), longer ones are transformed. So
small maps, of which a network has many, take one matrix product a dimension, in any precision, and exporters need no
complex numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.nn.arguments import per_dim, short
from blurify.nn.blurpool import BlurPool
from blurify.spec.methods import FOURIER_PADDINGS, LONGEST_MATRIX, Fourier, check_goes_with


class FourierPool(BlurPool):
    """Base of FourierPool1d/2d/3d."""

    def __init__(
        self,
        stride: int | Sequence[int] = 2,
        *,
        window: str = "none",
        padding: str = "reflect",
        factor: int | Sequence[int] | None = None,
        shift: int | Sequence[int] = 0,
    ) -> None:
        nn.Module.__init__(self)
        method = Fourier(cast(Any, window))
        if padding not in FOURIER_PADDINGS:
            check_goes_with(method, padding)
        self.stride = per_dim(stride, self.ndim, "stride", least=1)
        self.factor = self.stride if factor is None else per_dim(factor, self.ndim, "factor", least=1)
        self.shift = per_dim(shift, self.ndim, "shift")
        self.window = window
        self.padding = padding
        self.taps = ()  # they depend on the signal's size
        # A dimension of factor 1 has the one tap of the identity; the others have none of their own.
        self._filters = tuple((1.0,) if factor == 1 else () for factor in self.factor)
        filtered = [dim for dim, factor in enumerate(self.factor) if factor > 1]
        self._groups = [filtered] if filtered else []

    def _pads(self, extend: tuple[int, ...]) -> list[tuple[int, int]]:
        return [(-shift, shift + more) for shift, more in zip(self.shift, extend, strict=True)]

    def _filtered(self, x: Tensor, pads: list[tuple[int, int]]) -> Tensor:
        """Filter and subsample the dimensions of a factor above 1, one after the other."""
        for dim in self._groups[0] if self._groups else ():
            (left, right), n = pads[dim], x.shape[dim + 2]
            step = self.stride[dim]
            count = (n + left + right + step - 1) // step
            if isinstance(n, int) and n > LONGEST_MATRIX:
                x = self._transformed(x, dim, -left, count)
            else:
                matrix = self._matrix(n, -left, count, dim, x).to(x.dtype)
                # `linear` is the product that exporters take with all sizes open.
                x = F.linear(x.transpose(dim + 2, -1), matrix).transpose(dim + 2, -1)
        return x.contiguous() if self._groups and x.dim() < 6 and x.is_floating_point() else x

    def _period(self, n: Any) -> Any:
        """The period of a signal of n samples that goes on as `padding` says."""
        if self.padding == "circular":
            return n
        if self.padding == "zeros":  # as many zeros as samples, so that what wraps around comes from far
            return 2 * n
        return (2 * n - 2).clamp(min=1) if isinstance(n, Tensor) else torch.sym_max(2 * n - 2, 1)

    def _weights(self, k: Tensor, period: Any, factor: int, dtype: torch.dtype) -> Tensor:
        """What frequency k >= 0 of a period is multiplied by."""
        place = k * (2 * factor)
        weights = torch.where(place < period, 1.0, torch.where(place == period, 0.5, 0.0)).to(dtype)
        if self.window == "hamming":
            weights = weights * (0.54 + 0.46 * torch.cos(place.to(dtype) * (math.pi / period)))
        return weights

    def _matrix(self, n: Any, begin: int, count: Any, dim: int, x: Tensor) -> Tensor:
        """The matrix (count, n) that takes a signal to its filtered samples begin, begin + stride, ..."""
        factor, device = self.factor[dim], x.device
        dtype = torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32
        period = self._period(n)
        length = torch.full((1,), period, dtype=torch.int64, device=device)  # exporters divide by a tensor
        t = torch.arange(period, device=device)
        k = torch.arange(period // (2 * factor) + 2, device=device)  # one more: exporters take 1 for no size at all
        # k t modulo the period is exact; the angle then is as exact as its cosine.
        angle = (k.unsqueeze(1) * t.unsqueeze(0) % length).to(dtype) * (2 * math.pi / period)
        weights = self._weights(k, period, factor, dtype) * torch.where(k == 0, 1.0, 2.0).to(dtype)
        h = (weights.unsqueeze(1) * torch.cos(angle)).sum(0) / period
        places = (begin + self.stride[dim] * torch.arange(count, device=device)).unsqueeze(1)
        i = torch.arange(n, device=device).unsqueeze(0)
        matrix = h[(places - i) % length]
        if self.padding == "reflect":  # every sample but the first and last is there twice in a period
            twice = ((i > 0) & (i < n - 1)).to(dtype)
            matrix = matrix + twice * h[(places + i) % length]
        return matrix

    def _transformed(self, x: Tensor, dim: int, begin: int, count: int) -> Tensor:
        """The same by the fast Fourier transform, in float32 or float64."""
        if x.is_complex():
            parts = [self._transformed(part, dim, begin, count) for part in (x.real, x.imag)]
            return torch.complex(*parts)
        n, axis = x.shape[dim + 2], dim + 2
        period = self._period(n)
        signal = x if x.dtype == torch.float64 else x.float()
        if self.padding == "reflect":
            signal = torch.cat([signal, signal.narrow(axis, min(1, n - 1), max(n - 2, 0)).flip(axis)], axis)
        spectrum = torch.fft.rfft(signal, n=period, dim=axis)
        k = torch.arange(period // (2 * self.factor[dim]) + 1, device=x.device)
        shape = [1] * x.dim()
        shape[axis] = -1
        weights = self._weights(k, period, self.factor[dim], signal.dtype).view(shape)
        low = spectrum.narrow(axis, 0, k.shape[0]) * weights
        filtered = torch.fft.irfft(low, n=period, dim=axis)
        places = (begin + self.stride[dim] * torch.arange(count, device=x.device)) % period
        return filtered.index_select(axis, places).to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return nn.Module._apply(self, fn, recurse)  # there are no taps to be made anew

    def unstrided(self) -> BlurPool:
        """The same filter at stride 1, on the CPU: what there is before this layer subsamples."""
        return type(self)(1, window=self.window, padding=self.padding, factor=self.factor, shift=self.shift)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        parts = [f"stride={short(self.stride)}"]
        parts += [f"window={self.window!r}"] * (self.window != "none")
        parts += [f"padding={self.padding!r}"] * (self.padding != "reflect")
        parts += [f"factor={short(self.factor)}"] * (self.factor != self.stride)
        parts += [f"shift={short(self.shift)}"] * any(self.shift)
        return ", ".join(parts)


class FourierPool2d(FourierPool):
    """Keep the frequencies below the new Nyquist frequency and nothing above, then subsample: nothing can alias.

    Sample j of a dimension is the filtered signal at `stride * j + shift`: the filter delays nothing. Each dimension is
    filtered by itself. There is nothing in the `state_dict`.

    An ideal filter rings beside edges, and every output depends on all of a line of its input. A dimension of up to
    1024 samples costs that many multiply-adds an output; longer ones are transformed (FFT), but in an export with a
    size that stays open, where the memory for the matrix grows with its square.

    Args:
        stride: the subsampling; an int, or one per spatial dimension.
        window: 'none', or 'hamming' over the frequencies that are kept, 0.54 + 0.46 cos(pi f), f = 1 at the new Nyquist
            frequency: no ringing, for a loss of detail.
        padding: how the signal goes on outside: 'reflect' (its period is then 2 n - 2, and borders do not see each
            other), 'circular' (as in the papers), or 'zeros' (as many as there are samples).
        factor: the subsampling to guard against, where it is not this layer's own stride; dimensions of factor 1 are
            not filtered.
        shift: samples by which the places move to the right.

    Shape: (N, C, H, W) or (C, H, W) -> the same with ceil(n / stride), or the `output_size` given to `forward`.

    Raises:
        BlurifyError: for an argument outside of these.

    Example:
        >>> FourierPool2d(stride=2)(torch.rand(1, 3, 9, 9)).shape
        torch.Size([1, 3, 5, 5])

    Sources: Grabinski, Jung, Keuper and Keuper, "FrequencyLowCut Pooling - Plug & Play against Catastrophic
    Overfitting", ECCV 2022 (FLC); Grabinski, Keuper and Keuper, "Fix your downsampling ASAP! Be natively more robust
    via Aliasing and Spectral Artifact free Pooling", 2023 (with a Hamming window; that it spans the frequencies that
    are kept is how it is read here).
    """

    ndim = 2


class FourierPool1d(FourierPool):
    """FourierPool2d for (N, C, L) or (C, L); the same arguments."""

    ndim = 1


class FourierPool3d(FourierPool):
    """FourierPool2d for (N, C, D, H, W) or (C, D, H, W); the same arguments."""

    ndim = 3


def fourierpool(ndim: int) -> type[FourierPool]:
    """FourierPool1d, FourierPool2d or FourierPool3d."""
    return (FourierPool1d, FourierPool2d, FourierPool3d)[ndim - 1]
