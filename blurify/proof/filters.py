"""Filters: every blur of a converted model computes its own filter, by the slow obvious formula."""

from __future__ import annotations

import cmath
import copy
import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from blurify.nn.aps import ApsPool
from blurify.nn.blurpool import BlurPool
from blurify.spec.edits import Blur
from blurify.spec.methods import Fourier
from blurify.spec.plan import Plan

_MOST = 1e-5
_MOST_PHASES = 1024
_MOST_SAMPLES = 2**22


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
    if not isinstance(own, ApsPool) or (own.role, own.groups, own.back, own.__dict__.get("parts", ())) != (
        phase.role,
        phase.groups,
        phase.back,
        phase.parts,
    ):
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
    if all(_takes_its_samples(own, blur, level, x) for level in phase.levels):
        return []
    return [f"the blur {path!r} does not take the samples of its phase"]


def _takes_its_samples(own: ApsPool, blur: Blur, level: slice, x: torch.Tensor) -> bool:
    """Whether a layer does what its phase says, where it meets a map of one of its levels."""
    phase = blur.phase
    assert phase is not None
    for holder in own.shared:
        for _ in range(holder.depth):
            holder.put(torch.zeros((1, len(blur.factor)), dtype=torch.int64, device=x.device), (0,) * len(blur.factor))
    for steps, holder in zip(phase.strides[level], own.shared[level], strict=True):  # for those that follow
        for _ in range(holder.depth):
            holder.put(torch.tensor([[step - 1 for step in steps]], device=x.device), x.shape[2:])
    with torch.no_grad():
        y, filtered = own(x), own.lowpass(x)
    dims = tuple(range(2, x.dim()))
    if phase.role == "leads":  # the first of those with the largest sum of powers
        every = itertools.product(*map(range, blur.factor))
        moved = {at: torch.roll(filtered, [-one for one in at], dims) for at in every}
        taken = {at: _every(blur.factor, one) for at, one in moved.items()}
        expected = moved[max(taken, key=lambda at: taken[at].double().abs().pow(phase.norm).sum().item())]
    else:
        at = [math.prod(steps) - 1 for steps in zip(*phase.strides[level], strict=True)]
        expected = torch.roll(filtered, at if phase.role == "restores" else [-one for one in at], dims)
    expected = _every(blur.stride, expected)
    return y.shape == expected.shape and torch.equal(y, expected)


def _every(stride: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """The samples of (N, C, *spatial) at the multiples of a stride."""
    for dim, step in enumerate(stride, start=2):
        x = x.index_select(dim, torch.arange(0, x.shape[dim], step, device=x.device))
    return x


def _is_right(layer: BlurPool, blur: Blur) -> bool:
    if layer.of_tokens != blur.channels_last:
        return False
    if isinstance(blur.method, Fourier):
        sizes = [max(8, 3 * factor + 2) + stride for factor, stride in zip(blur.factor, blur.stride, strict=True)]
    else:
        filters = [blur.method.filter(factor) for factor in blur.factor]
        sizes = [4 * len(taps) + 8 * stride for taps, stride in zip(filters, blur.stride, strict=True)]
    own: Any = copy.deepcopy(layer)
    own._forward_hooks.clear()
    own._forward_pre_hooks.clear()
    if math.prod(sizes) <= _MOST_SAMPLES:
        return _agrees(own, blur, sizes, sizes)
    # Noise for so wide a filter does not fit: one dimension after the other, constant in the others.
    few = [2 * stride + 3 for stride in blur.stride]
    return all(
        _agrees(
            own, blur, [*few[:dim], sizes[dim], *few[dim + 1 :]], [1] * dim + [sizes[dim]] + [1] * (len(few) - dim - 1)
        )
        for dim in range(len(sizes))
    )


def _agrees(own: BlurPool, blur: Blur, sizes: list[int], noisy: list[int]) -> bool:
    """Whether a layer gives the slow formula's value amid noise, which is constant where `noisy` is of one sample."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.rand((1, 1, *noisy), generator=generator, dtype=torch.float64, device="cpu")
    if noisy != sizes:  # a wide filter hardly tells noise from the same a sample further, but a slope
        x = x + torch.linspace(0, 1, x.numel(), dtype=torch.float64, device="cpu").view(x.shape)
    x = x.expand(1, 1, *sizes)
    like = next(iter(own.buffers()), x)
    if like.is_meta:  # there is nothing to compute with
        return True
    with torch.no_grad():  # as it is: moving a layer would make its taps anew
        y = own(_laid_out(own, x.to(like.device, like.dtype))).cpu().double()
        y = y.movedim(-1, 1) if own.of_tokens else y
    if list(y.shape[2:]) != [-(-n // stride) for n, stride in zip(sizes, blur.stride, strict=True)]:
        return False
    shifts = blur.shift or (0,) * len(blur.stride)
    middle = [n // 2 for n in y.shape[2:]]
    actual, limit = y[(0, 0, *middle)].item(), max(_MOST, 8 * torch.finfo(like.dtype).eps)
    if isinstance(blur.method, Fourier):
        places = [stride * m + one for stride, m, one in zip(blur.stride, middle, shifts, strict=True)]
        return abs(actual - _ideal(x[0, 0], blur, places)) <= limit
    filters = [blur.method.filter(factor) for factor in blur.factor]
    origins = [blur.method.origin(factor) for factor in blur.factor]
    if blur.padding == "causal":
        origins[-1] = len(filters[-1]) - 1
    centres = blur.centre or (None,) * len(filters)
    weights = [_weights(*one) for one in zip(filters, origins, shifts, centres, strict=True)]
    expected = x[0, 0]
    for dim, chosen in enumerate(weights):  # the first dimension each time
        total = torch.zeros(expected.shape[1:], dtype=torch.float64, device="cpu")
        for at, weight in chosen.items():
            place = blur.stride[dim] * middle[dim] + at
            if noisy[dim] < sizes[dim]:  # constant, and so is what lies outside, unless that is zero
                if blur.padding == "zeros" and not 0 <= place < sizes[dim]:
                    continue
                place = 0
            total += weight * expected[place]
        expected = total
    return abs(actual - expected.item()) <= limit


def _laid_out(layer: BlurPool, x: torch.Tensor) -> torch.Tensor:
    """(N, C, *spatial) as the layer takes it."""
    return x.movedim(1, -1) if layer.of_tokens else x


def _weights(taps: tuple[float, ...], origin: int, shift: int, centre: float | None) -> dict[int, float]:
    """The weights of one dimension's filter by their places, relative to sample stride * j.

    Where a centre is wanted, the filter is interpolated so that its centre of mass is there.
    """
    found = {k - origin + shift: tap for k, tap in enumerate(taps)}
    if centre is None or len(taps) == 1:
        return found
    move = centre - sum(at * tap for at, tap in found.items())
    moved: dict[int, float] = {}
    for at, tap in found.items():
        for place in (at + math.floor(move), at + math.floor(move) + 1):
            moved[place] = moved.get(place, 0.0) + tap * max(1 - abs(at + move - place), 0.0)
    return moved


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
