"""Shifts by parts of a pixel with an ideal resampler: what a band-limited picture looks like from a little further.

A picture of n samples a side stands for the one periodic function that passes through them and has no frequency above
n / 2: to shift it by d is to multiply the frequency k of its Fourier transform by exp(-2 pi i k d / n). At an even n,
the frequency n / 2 itself is left open (its phase can't be told from samples): it counts half as n / 2 and half as
-n / 2, as trigonometric interpolation has it, so that it is multiplied by cos(pi d). It follows that

- shifts by whole pixels are exact (samples are rolled), and so are all shifts of what lies below n / 2;
- shifts add up, but for the frequency n / 2 of an even n, which half a pixel makes vanish.

Everything is linear and works on rows and columns separately: a shift is a matrix from left and from right.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=64)
def shift_matrix(count: int, shift: float) -> Tensor:
    """(count, count) float64: moves `count` periodic samples by `shift` towards larger indices."""
    identity = torch.eye(count, dtype=torch.float64)
    if shift == round(shift):
        return identity.roll(round(shift), 0)
    frequencies = torch.arange(count // 2 + 1, dtype=torch.float64) / count
    angles = 2 * torch.pi * frequencies * shift
    factors = torch.polar(torch.ones_like(angles), -angles)
    if count % 2 == 0:
        factors[-1] = torch.cos(angles[-1])
    return torch.fft.irfft(torch.fft.rfft(identity, dim=0) * factors[:, None], n=count, dim=0)


@functools.lru_cache(maxsize=64)
def window_matrix(canvas: int, crop: int, shift: float) -> Tensor:
    """(crop, canvas) float64: moves what `canvas` samples show by `shift`, and takes the middle `crop` of it.

    Beyond both ends the canvas goes on as in a mirror (d c b a | a b c d | d c b a), so that there is no jump at the
    border, which an ideal resampler would smear over the whole picture. What this makes up stays in the margin between
    canvas and crop, but for the tails of the resampler.
    """
    whole = shift_matrix(2 * canvas, shift)
    mirrored = torch.cat([torch.arange(canvas), torch.arange(canvas).flip(0)])
    start = (canvas - crop) // 2
    # Each column of the mirrored signal counts for the sample of the canvas that it repeats.
    rows = whole[start : start + crop]
    return torch.zeros(crop, canvas, dtype=torch.float64).index_add_(1, mirrored, rows)


def shifted(maps: Tensor, down: float, right: float) -> Tensor:
    """(..., H, W), periodic, moved by parts of a sample; of the same type and device."""
    height, width = maps.shape[-2:]
    return _applied(maps, shift_matrix(height, down), shift_matrix(width, right))


def seen_shifted(canvases: Tensor, crop: tuple[int, int], down: float, right: float) -> Tensor:
    """(N, C, H, W) canvases, what they show moved by parts of a pixel -> their middle (N, C, h, w).

    Values are not clipped to 0..1: where a sharp edge lies between two pixels, the ideal resampler overshoots.
    """
    rows, columns = (
        window_matrix(there, wanted, shift)
        for there, wanted, shift in zip(canvases.shape[-2:], crop, (down, right), strict=True)
    )
    return _applied(canvases, rows, columns)


def _applied(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    kind = maps.dtype if maps.dtype in (torch.float32, torch.float64) else torch.float32
    left, right = (matrix.to(kind).to(maps.device) for matrix in (rows, columns))
    return (left @ maps.to(kind) @ right.T).to(maps.dtype)
