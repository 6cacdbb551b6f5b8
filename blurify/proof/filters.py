"""Filters: every blur of a converted model computes its own filter, by the slow obvious formula."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import nn

from blurify.nn.aps import ApsPool
from blurify.nn.blurpool import BlurPool
from blurify.spec.edits import Blur
from blurify.spec.filters import compose_taps
from blurify.spec.plan import Plan

_MOST = 1e-5
_MOST_PHASES = 1024


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
        elif edit.blur.phase is not None:
            found += _wrong_phase(path, layer, edit.blur)
        elif not _is_right(layer, edit.blur):
            found.append(f"the blur {path!r} does not compute its filter")
    return found


def _wrong_phase(path: str, layer: BlurPool, blur: Blur) -> list[str]:
    """What of a blur with adaptive polyphase sampling is not as planned: its filter, or the samples that it takes."""
    phase = blur.phase
    assert phase is not None
    own: Any = copy.deepcopy(layer)
    dense = dataclasses.replace(blur, stride=(1,) * len(blur.stride), phase=None)
    if not isinstance(own, ApsPool) or (own.role, own.groups, own.back) != (phase.role, phase.groups, phase.back):
        return [f"{path!r} does not sample adaptively, as planned"]
    if not _is_right(own.lowpass, dense):
        return [f"the blur {path!r} does not compute its filter"]
    own._forward_hooks.clear()
    own._forward_pre_hooks.clear()
    like = next(iter(own.buffers()), torch.zeros((), dtype=torch.float64, device="cpu"))
    if like.is_meta or math.prod(blur.factor) > _MOST_PHASES:  # of what a file says, which may ask for any number
        return []
    generator = torch.Generator(device="cpu").manual_seed(0)
    sizes = [4 * step for step in blur.factor]
    x = torch.rand((1, 2, *sizes), generator=generator, dtype=torch.float64, device="cpu").to(like.device, like.dtype)
    chosen = [[step - 1 for step in steps] for steps in phase.strides]  # for those that follow
    for one, holder in zip(chosen, own.shared, strict=True):
        for _ in range(holder.depth):
            holder.put(torch.tensor([one], device=like.device))
    with torch.no_grad():
        y, filtered = own(x), own.lowpass(x)
    dims = tuple(range(2, x.dim()))
    moved = {at: torch.roll(filtered, [-one for one in at], dims) for at in itertools.product(*map(range, blur.factor))}
    if phase.role == "leads":  # the first of those with the largest sum of powers
        taken = {at: _every(blur.factor, one) for at, one in moved.items()}
        at = max(taken, key=lambda at: taken[at].double().abs().pow(phase.norm).sum().item())
    else:
        at = tuple(step - 1 for step in blur.factor)
    expected = torch.roll(filtered, at, dims) if phase.role == "restores" else moved[at]
    expected = _every(blur.stride, expected)
    if y.shape != expected.shape or not torch.equal(y, expected):
        return [f"the blur {path!r} does not take the samples of its phase"]
    return []


def _every(stride: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """The samples of (N, C, *spatial) at the multiples of a stride."""
    for dim, step in enumerate(stride, start=2):
        x = x.index_select(dim, torch.arange(0, x.shape[dim], step, device=x.device))
    return x


def _is_right(layer: BlurPool, blur: Blur) -> bool:
    filters = [compose_taps(blur.method.taps, factor) for factor in blur.factor]
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
    expected = 0.0
    for taps in itertools.product(*(range(len(one)) for one in filters)):
        weight, place = 1.0, []
        for dim, k in enumerate(taps):
            weight *= filters[dim][k]
            place.append(blur.stride[dim] * middle[dim] - (len(filters[dim]) - 1) // 2 + shifts[dim] + k)
        expected += weight * x[(0, 0, *place)].item()
    return abs(y[(0, 0, *middle)].item() - expected) <= max(_MOST, 8 * torch.finfo(like.dtype).eps)
