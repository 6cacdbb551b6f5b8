"""Average pools: a filter that takes an average's place must look where the average looked.

The one-tap filter leaves an average pool as it is, so that the identity check says nothing of it. But a window and a
filter are both of sum one and symmetric: of a ramp they give the place of their centre, and those must not lie apart.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import VerificationError
from blurify.nn.build import build
from blurify.spec.edits import BlurPooling
from blurify.spec.methods import Fourier
from blurify.spec.plan import Plan, Site

_APART = 0.51  # samples: an even window and an odd filter differ by half a sample, if nothing is done about it
_EXACT = 1e-6  # samples: what rounding leaves of a filter that is centred on purpose
_RIPPLE = 0.05  # samples, and
_CURVED = 0.003  # strides: of an ideal filter, which is shown no ramp but a wave


def check_averages(original: nn.Module, converted: nn.Module, plan: Plan) -> frozenset[str]:
    """The names of the sites whose average pools were compared, each with the original's own module.

    Raises:
        VerificationError: the filter of one looks elsewhere, or gives another size.
    """
    shown = set()
    for site in plan.converted:
        for edit in site.edits:
            if site.kind != "avgpool" or not isinstance(edit, BlurPooling):
                continue
            before, after = (model.get_submodule(edit.module) for model in (original, converted))
            if getattr(before, "divisor_override", None):  # another scale
                continue
            pools: list[Any] = [_in_double(module) for module in (before, after)]
            if edit.blur.phase is not None:  # of an average it is the place of the filter that counts, at one phase
                pools[1].blurpool = build(dataclasses.replace(edit.blur, phase=None)).double()
            for dim in range(len(site.stride)):
                delay = _delay(edit, site) if dim == len(site.stride) - 1 else 0.0
                limit, ideal = _EXACT if edit.blur.centre else _APART, isinstance(edit.blur.method, Fourier)
                if ideal:
                    limit += max(_RIPPLE, _CURVED * site.stride[dim])
                _compare(site.name, pools, _ramp(site.kernel_size, site.stride, dim, smooth=ideal), delay, limit)
            shown.add(site.name)
    return frozenset(shown)


def _in_double(module: nn.Module) -> nn.Module:
    """A copy on the CPU; of a model without data the pools and their filters need none."""
    copied = copy.deepcopy(module)
    if any(buffer.is_meta for buffer in copied.buffers()):
        copied = copied.to_empty(device="cpu")
    return copied.to("cpu", torch.float64)


def _ramp(kernel: tuple[int, ...], stride: tuple[int, ...], dim: int, *, smooth: bool) -> Tensor:
    """0, 1, 2, ... along one spatial dimension, long enough that the middle is away from all borders.

    An ideal filter rings from the jumps at a ramp's ends to its middle, the more the higher they are. `smooth`: instead
    two waves that rise like a ramp in the middle and are flat and zero at both ends, whatever comes behind those.
    """
    sizes = [4 * (k + 8 * s) for k, s in zip(kernel, stride, strict=True)]
    shape = [1] * (len(sizes) + 2)
    shape[dim + 2] = sizes[dim]
    ramp = torch.arange(sizes[dim], dtype=torch.float64, device="cpu").view(shape)
    if smooth:
        turn = math.pi * (ramp + 0.5) / sizes[dim]
        ramp = -sizes[dim] / (2 * math.pi) * (2 * turn).sin() * turn.sin().square()
    return ramp.expand(1, 1, *sizes).contiguous()


def _delay(edit: BlurPooling, site: Site) -> float:
    """By how many samples a causal filter looks earlier than a pool whose windows end where its own do."""
    method = edit.blur.method
    if edit.blur.padding != "causal" or isinstance(method, Fourier):
        return 0.0
    taps = method.filter(edit.blur.factor[-1])
    behind = len(taps) - 1 - sum(k * tap for k, tap in enumerate(taps))
    own = edit.kernel_size[-1] if edit.kernel_size is not None else 1
    return behind - (0.0 if own > 1 else (site.kernel_size[-1] - 1) / 2)


def _compare(name: str, pools: list[Any], ramp: Tensor, delay: float, limit: float) -> None:
    with torch.no_grad():
        expected, actual = (pool(ramp) for pool in pools)
    if expected.shape != actual.shape:
        raise VerificationError(f"the filter at {name} gives another size than the average pool that was there")
    middle = (0, 0, *(size // 2 for size in expected.shape[2:]))
    apart = (actual[middle] - expected[middle]).item() + delay
    if not abs(apart) <= limit:
        raise VerificationError(
            f"the filter at {name} looks {apart:+.2g} samples beside where the average pool looked: please report this "
            "model; --no-verify (verify=False) converts it all the same"
        )
