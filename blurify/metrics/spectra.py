"""The spectrum of a signal just before it is subsampled, ring by ring."""

from __future__ import annotations

import torch
from torch import Tensor

from blurify.metrics.aliasing import energy_above
from blurify.metrics.evidence import Spectrum

RINGS = 48


def edges_for(sizes: tuple[int, ...], stride: tuple[int, ...]) -> tuple[float, ...]:
    """The edges of the rings, in units of the new Nyquist frequency: from 0 to the old one, which is the stride.

    No more rings than there are frequencies along the longest side, and one edge exactly at the new Nyquist frequency.
    """
    highest = max(stride)
    known = max(n for n, s in zip(sizes, stride, strict=True) if s == highest) // 2
    a_unit = max(min(RINGS, known) // highest, 1)
    return tuple(index / a_unit for index in range(highest * a_unit + 1))


def spectrum(signal: Tensor, stride: tuple[int, ...], edges: tuple[float, ...]) -> Spectrum:
    """The mean power of the frequencies of each ring.

    With |Y(k)|^2 the energy of the discrete Fourier transform over the spatial dimensions, summed over channels and
    pictures, a frequency k lies at r(k) = max_d |k_d| 2 s_d / N_d, in units of the new Nyquist frequency: rings are
    the squares that the sampling theorem has for subsampling by s along each dimension, not circles, so that all that
    lies beyond 1 folds back. A ring's power is the mean of |Y(k)|^2 over its frequencies, over the mean over all
    frequencies (the mean of the signal, k = 0, is left out of both): white noise has 1 everywhere.

    Args:
        signal: (N, C, *spatial).
        stride: of the subsampling, one entry a spatial dimension; dimensions that are not subsampled don't count.
        edges: of the rings, from 0 up; the last ring holds what lies at its upper edge too.
    """
    dims = tuple(range(2, 2 + len(stride)))
    place = torch.zeros(())
    for dim, (n, s) in enumerate(zip(signal.shape[2:], stride, strict=True)):
        k = torch.arange(n)
        # In doubles: an edge must not hang on rounding.
        r = torch.minimum(k, n - k).double() * (2 * s / n) if s > 1 else torch.zeros(n, dtype=torch.float64)
        place = torch.maximum(place, r.reshape([-1 if d == dim else 1 for d in range(len(stride))]))
    place = place.expand(signal.shape[2:]).flatten()
    total = torch.zeros(len(place), dtype=torch.float64)
    for picture in signal:  # one at a time: spectra take as much memory again as the signal
        found = torch.fft.fftn(picture.float(), dim=[dim - 1 for dim in dims], norm="ortho")
        total += (found.real.square() + found.imag.square()).sum(0).flatten().cpu().double()
    above, whole = energy_above(signal, stride).sum(1).tolist()
    total[0] = 0
    ring = torch.bucketize(place, torch.tensor(edges[1:-1], dtype=torch.float64), right=True)
    counts = torch.zeros(len(edges) - 1, dtype=torch.float64).index_add_(
        0, ring[1:], torch.ones(len(ring) - 1).double()
    )
    sums = torch.zeros(len(edges) - 1, dtype=torch.float64).index_add_(0, ring, total)
    level = float(total.sum()) / max(len(total) - 1, 1)
    power = sums / counts.clamp(min=1) / (level if level > 0 else 1.0)
    return Spectrum(tuple(power.tolist()), above / whole if whole > 0 else 0.0)
