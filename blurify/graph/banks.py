"""Fixed filter banks that subsample and keep everything: wavelet transforms, space to depth by a convolution.

They alias by design, and their bands together undo it: blurred, they would lose what they were chosen to keep.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from blurify.graph.constants import constant_value, is_constant
from blurify.graph.sites import Op

_LEAST = 0.1  # the weakest direction over the strongest: 1 for orthogonal wavelets, next to 0 for learned layers
_LARGEST = 2**20  # values of a kernel that is looked at
_GRID = 8  # frequencies of the subsampled signal in each dimension


def keeps_everything(op: Op, model: nn.Module) -> bool:
    """Whether a strided convolution is a fixed bank from whose bands its input can be told again.

    Args:
        op: the convolution.
        model: where its values are. A frozen parameter is no fixed bank: layers may be invertible by chance.

    Only banks of as many bands as there are samples to tell apart are looked at.
    """
    if op.kind != "conv" or op.weight is None or not is_constant(op.weight, model):
        return False
    weight = constant_value(op.weight, model)
    if (
        weight is None
        or not 0 < weight.numel() <= _LARGEST
        or len(weight) != op.groups * weight.shape[1] * math.prod(op.stride)
    ):
        return False
    groups = weight.double().unflatten(0, (op.groups, -1))
    return all(_is_invertible(group, op.stride, op.dilation) for group in torch.unique(groups, dim=0))


def _is_invertible(weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> bool:
    """Whether, at every frequency, the bands tell apart all that a subsampling folds onto it.

    Args:
        weight: (bands, channels, *taps) of one group.
        stride, dilation: one entry a spatial dimension.
    """
    bands, channels, *taps = weight.shape
    sizes = [step * max(_GRID, math.ceil(d * k / step)) for step, d, k in zip(stride, dilation, taps, strict=True)]
    spread = weight.new_zeros((bands, channels, *sizes))
    spread[tuple([slice(None)] * 2 + [slice(0, d * k, d) for d, k in zip(dilation, taps, strict=True)])] = weight
    rank = len(stride)
    response = torch.fft.fftn(spread, dim=tuple(range(2, 2 + rank)))
    # A frequency and its images lie a size / stride apart: (bands, channels, image, frequency, image, frequency, ...).
    split = [part for size, step in zip(sizes, stride, strict=True) for part in (step, size // step)]
    response = response.reshape(bands, channels, *split)
    images, frequencies = [2 + 2 * dim for dim in range(rank)], [3 + 2 * dim for dim in range(rank)]
    folded = response.permute(*frequencies, 0, 1, *images).reshape(-1, bands, channels * math.prod(stride))
    values = torch.linalg.svdvals(folded)
    return bool(values[:, -1].min() > _LEAST * values.max())
