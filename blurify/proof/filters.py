"""Filters: every blur of a converted model computes its own filter, by the slow obvious formula."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import nn

from blurify.nn.blurpool import BlurPool
from blurify.spec.edits import Blur
from blurify.spec.filters import compose_taps
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
    filters = [compose_taps(blur.method.taps, factor) for factor in blur.factor]
    if layer.of_tokens != blur.channels_last:
        return False
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
        y = own(_laid_out(layer, x.to(like.device, like.dtype))).cpu().double()
        y = y.movedim(-1, 1) if layer.of_tokens else y
    if list(y.shape[2:]) != [-(-n // stride) for n, stride in zip(sizes, blur.stride, strict=True)]:
        return False
    shifts = blur.shift or (0,) * len(blur.stride)
    middle = [n // 2 for n in y.shape[2:]]
    expected = 0.0
    for taps in itertools.product(*(range(len(one)) for one in filters)):
        weight, place = 1.0, []
        for dim, k in enumerate(taps):
            weight *= filters[dim][k]
            place.append(blur.stride[dim] * middle[dim] - (len(filters[dim]) - 1) // 2 + shifts[dim] + k)
        expected += weight * x[(0, 0, *place)].item()
    return abs(y[(0, 0, *middle)].item() - expected) <= max(_MOST, 8 * torch.finfo(like.dtype).eps)


def _laid_out(layer: BlurPool, x: torch.Tensor) -> torch.Tensor:
    """(N, C, *spatial) as the layer takes it."""
    return x.movedim(1, -1) if layer.of_tokens else x
