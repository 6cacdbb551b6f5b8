"""Filters: every blur of a converted model computes its own filter, by the slow obvious formula."""

from __future__ import annotations

import cmath
import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from blurify.nn.blurpool import BlurPool
from blurify.spec.edits import Blur
from blurify.spec.methods import Fourier
from blurify.spec.plan import Plan

_MOST = 1e-5


def wrong_filters(converted: nn.Module, plan: Plan) -> list[str]:
    """The blurs of a model that do not compute what their plan says, a line each.

    Each is run on a little noise, and compared in the middle (away from its padding) with the sum of its
    taps times the samples, written as loops.
    """
    found = []
    checked: set[str] = set()
    for edit in plan.edits:
        path = edit.blur_path
        if path is None or edit.blur is None or path in checked:
            continue
        checked.add(path)
        layer = converted.get_submodule(path)
        if not isinstance(layer, BlurPool):
            found.append(f"{path!r} is no blur")
        elif not _is_right(layer, edit.blur):
            found.append(f"the blur {path!r} does not compute its filter")
    return found


def _is_right(layer: BlurPool, blur: Blur) -> bool:
    if isinstance(blur.method, Fourier):
        sizes = [max(8, 3 * factor + 2) + stride for factor, stride in zip(blur.factor, blur.stride, strict=True)]
    else:
        filters = [blur.method.filter(factor) for factor in blur.factor]
        sizes = [4 * len(taps) + 8 * stride for taps, stride in zip(filters, blur.stride, strict=True)]
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.rand((1, 1, *sizes), generator=generator, dtype=torch.float64, device="cpu")
    own: Any = copy.deepcopy(layer)
    own._forward_hooks.clear()
    own._forward_pre_hooks.clear()
    like = next(iter(own.buffers()), x)
    if like.is_meta:  # there is nothing to compute with
        return True
    with torch.no_grad():  # as it is: moving a layer would make its taps anew
        y = own(x.to(like.device, like.dtype)).cpu().double()
    if list(y.shape[2:]) != [-(-n // stride) for n, stride in zip(sizes, blur.stride, strict=True)]:
        return False
    shifts = blur.shift or (0,) * len(blur.stride)
    middle = [n // 2 for n in y.shape[2:]]
    if isinstance(blur.method, Fourier):
        places = [stride * m + one for stride, m, one in zip(blur.stride, middle, shifts, strict=True)]
        expected = _ideal(x[0, 0], blur, places)
        return abs(y[(0, 0, *middle)].item() - expected) <= max(_MOST, 8 * torch.finfo(like.dtype).eps)
    origins = [blur.method.origin(factor) for factor in blur.factor]
    if blur.padding == "causal":
        origins[-1] = len(filters[-1]) - 1
    expected = 0.0
    for taps in itertools.product(*(range(len(one)) for one in filters)):
        weight, place = 1.0, []
        for dim, k in enumerate(taps):
            weight *= filters[dim][k]
            place.append(blur.stride[dim] * middle[dim] - origins[dim] + shifts[dim] + k)
        expected += weight * x[(0, 0, *place)].item()
    return abs(y[(0, 0, *middle)].item() - expected) <= max(_MOST, 8 * torch.finfo(like.dtype).eps)


def _ideal(x: Tensor, blur: Blur, places: list[int]) -> float:
    """The value at a place of a signal of which only the low frequencies are left: Fourier sums, one a dimension."""
    for factor, place in zip(blur.factor, places, strict=True):  # the first dimension each time
        if factor == 1:
            x = x[place]
            continue
        lines = {
            "circular": x,
            "zeros": torch.cat([x, torch.zeros_like(x)]),
            "reflect": torch.cat([x, x[1:-1].flip(0)]),
        }[blur.padding]
        period, found = len(lines), torch.zeros_like(x[0])
        for k in range(1 - period, period):
            if abs(k) * 2 * factor > period:
                continue
            turns = torch.tensor([cmath.exp(2j * math.pi * k * (place - t) / period).real for t in range(period)])
            found = found + blur.method.gain(factor, abs(k) * 2 * factor / period) / period * torch.tensordot(
                turns.to(x.dtype), lines, 1
            )
        x = found
    return x.item()
