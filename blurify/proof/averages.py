"""Average pools and slices: a filter that takes their place must look where they looked.

The one-tap filter leaves both as they are, so that the identity check says nothing of them. But a window, a single
sample and a filter are all of sum one (but for a divisor of the user's, which both must have) and symmetric: of a ramp
they give the place of their centre, and those must not lie apart.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from blurify.errors import VerificationError
from blurify.nn.arguments import POOL_PARAMETERS
from blurify.nn.build import build
from blurify.spec.edits import Blur, BlurPooling, Rewrite
from blurify.spec.methods import Fourier
from blurify.spec.plan import Plan, Site

_APART = 0.51  # samples: an even window and an odd filter differ by half a sample, if nothing is done about it
_MOST_SAMPLES = 2**23
_EXACT = 1e-6  # samples: what rounding leaves of a filter that is centred on purpose
_RIPPLE = 0.05  # samples, and
_RINGS = 0.2  # of one, where the borders of its average are darker; and
_CURVED = 0.003  # strides: of an ideal filter, which is shown no ramp but a wave


def check_averages(
    original: nn.Module, converted: nn.Module, plan: Plan, points: Mapping[str, Sequence[Node]] | None = None
) -> frozenset[str]:
    """The names of the sites whose average pools or slices were compared, each with the original's own.

    Args:
        original: the model before the conversion.
        converted: the model after it.
        plan: what was done.
        points: the traced calls of each site (`Decided.points`): what a pool that is a function, or a slice, was
            called with.

    Raises:
        VerificationError: the filter of one looks elsewhere, or gives another size.
    """
    shown = set()
    for site in plan.sites:  # also those that are converted for other sizes than the traced one
        if site.kind not in ("avgpool", "slice"):
            continue
        pairs: list[_Pair] = []
        for edit in site.edits:
            if isinstance(edit, BlurPooling):
                pairs.append(_modules(original, converted, edit))
            elif isinstance(edit, Rewrite) and edit.op == "avgpool":
                pairs += _calls(converted, edit, (points or {}).get(site.name, ()))
            elif isinstance(edit, Rewrite) and edit.op == "slice":
                pairs += _slices(converted, edit, (points or {}).get(site.name, ()))
        for pair in pairs:
            for dim in range(len(site.stride)):
                delay = _delay(pair.edit, site) if dim == len(site.stride) - 1 else 0.0
                limit, ideal = _EXACT if pair.blur.centre else _APART, isinstance(pair.blur.method, Fourier)
                if ideal:
                    limit += max(_RIPPLE, _CURVED * site.stride[dim])
                ramp = _ramp(site, pair.edit, dim, smooth=ideal)
                if site.action == "skip" and ramp.numel() > _MOST_SAMPLES:  # it takes longer than all of its network
                    continue
                _compare(site.name, pair, ramp.contiguous(), delay, limit)
                shown.add(site.name)
    return frozenset(shown)


@dataclass(frozen=True)
class _Pair:
    """An average pool, and what takes its place: functions of a tensor (N, C, *spatial) in float64 on the CPU.

    Attributes:
        edit: what put it there.
        before, after: the two.
    """

    edit: BlurPooling | Rewrite
    before: Callable[[Tensor], Tensor]
    after: Callable[[Tensor], Tensor]

    @property
    def blur(self) -> Blur:
        """The filter."""
        assert self.edit.blur is not None
        return self.edit.blur


def _modules(original: nn.Module, converted: nn.Module, edit: BlurPooling) -> _Pair:
    """A pool that is a module."""
    before = original.get_submodule(edit.module)
    after = _in_double(converted.get_submodule(edit.module), edit.blur)
    return _Pair(edit, _in_double(before), after)


def _calls(converted: nn.Module, edit: Rewrite, nodes: Sequence[Node]) -> list[_Pair]:
    """A pool that is a call, with all arguments but its input as they were traced."""
    assert edit.blur is not None
    stand_in = _in_double(converted.get_submodule(edit.part), edit.blur)
    pairs = []
    for node in nodes:
        given = dict(zip(POOL_PARAMETERS["avg"], node.args, strict=False)) | node.kwargs
        given.pop("input", None)
        if not callable(node.target) or any(isinstance(value, Node) for value in given.values()):
            continue
        before = functools.partial(node.target, **given)
        after = functools.partial(stand_in, node.target, **given)
        pairs.append(_Pair(edit, before, after))
    return pairs


def _slices(converted: nn.Module, edit: Rewrite, nodes: Sequence[Node]) -> list[_Pair]:
    """A slice, as it was traced; of (N, *spatial, C) the channels are moved to where the others have them."""
    assert edit.blur is not None
    stand_in = _in_double(converted.get_submodule(edit.part), edit.blur)
    last = edit.dims[0] == 1

    def before(x: Tensor, index: Any) -> Tensor:
        return x.movedim(1, -1)[index].movedim(-1, 1) if last else x[index]

    def after(x: Tensor, index: Any) -> Tensor:
        sliced: Tensor = stand_in(x.movedim(1, -1), index).movedim(-1, 1) if last else stand_in(x, index)
        return sliced

    return [
        _Pair(edit, functools.partial(before, index=node.args[1]), functools.partial(after, index=node.args[1]))
        for node in nodes
        if len(node.args) == 2 and not node.kwargs and _only_steps(node.args[1], edit.blur)
    ]


def _only_steps(index: Any, blur: Blur) -> bool:
    """Whether an index steps through the dimensions that are blurred, and leaves the others whole."""
    items = [item for item in (index if isinstance(index, tuple) else (index,)) if item is not Ellipsis]
    stepped = [item for item in items if item != slice(None)]
    return [(item.stop, item.step) if isinstance(item, slice) else item for item in stepped] == [
        (None, step) for step in blur.stride if step > 1
    ]


def _in_double(module: nn.Module, blur: Blur | None = None) -> nn.Module:
    """A copy on the CPU; of a model without data the pools and their filters need none."""
    copied = copy.deepcopy(module)
    if any(buffer.is_meta for buffer in copied.buffers()):
        copied = copied.to_empty(device="cpu")
    if blur is not None and blur.phase is not None:  # of an average it is the filter's place that counts, at one phase
        copied.blurpool = build(dataclasses.replace(blur, phase=None))
    return copied.to("cpu", torch.float64)


def _ramp(site: Site, edit: BlurPooling | Rewrite, dim: int, *, smooth: bool) -> Tensor:
    """0, 1, 2, ... along one spatial dimension, long enough that the middle is away from all borders.

    An ideal filter rings from the jumps at a ramp's ends to its middle, the more the higher they are. `smooth`: instead
    two waves that rise like a ramp in the middle and are flat and zero at both ends, whatever comes behind those.
    """
    blur = edit.blur
    assert blur is not None
    method = blur.method
    taps = [0 if isinstance(method, Fourier) else len(method.filter(factor)) for factor in blur.factor]
    # Where it is constant it only has to be long enough for a window without a part outside (pools may be wide), or for
    # those that a filter reads, where that tells the borders from the rest.
    sizes = [
        2 * kernel + stride + (2 * count if blur.padding == "zeros" or edit.kernel_size is not None else 0)
        for kernel, stride, count in zip(site.kernel_size, site.stride, taps, strict=True)
    ]
    kernel, stride = site.kernel_size[dim], site.stride[dim]
    sizes[dim] = 4 * (kernel + 8 * stride) if smooth else 2 * kernel + 4 * stride + 2 * taps[dim]
    shape = [1] * (len(sizes) + 2)
    shape[dim + 2] = sizes[dim]
    ramp = torch.arange(sizes[dim], dtype=torch.float64, device="cpu").view(shape)
    if smooth:
        turn = math.pi * (ramp + 0.5) / sizes[dim]
        ramp = -sizes[dim] / (2 * math.pi) * (2 * turn).sin() * turn.sin().square()
    return ramp.expand(1, 1, *sizes)


def _delay(edit: BlurPooling | Rewrite, site: Site) -> float:
    """By how many samples a causal filter looks earlier than a pool whose windows end where its own do."""
    assert edit.blur is not None
    method = edit.blur.method
    if edit.blur.padding != "causal" or isinstance(method, Fourier):
        return 0.0
    taps = method.filter(edit.blur.factor[-1])
    behind = len(taps) - 1 - sum(k * tap for k, tap in enumerate(taps))
    own = edit.kernel_size[-1] if edit.kernel_size is not None else 1
    return behind - (0.0 if own > 1 else (site.kernel_size[-1] - 1) / 2)


def _compare(name: str, pair: _Pair, ramp: Tensor, delay: float, limit: float) -> None:
    with torch.no_grad():
        expected, actual = pair.before(ramp), pair.after(ramp)
        if expected.shape != actual.shape:
            raise VerificationError(f"the filter at {name} gives another size than what was there")
        middle = (0, 0, *(size // 2 for size in expected.shape[2:]))
        scale = [pair.before(torch.ones_like(ramp))[middle].item(), pair.after(torch.ones_like(ramp))[middle].item()]
    if not math.isclose(*scale, rel_tol=_RINGS if isinstance(pair.blur.method, Fourier) else _EXACT):
        raise VerificationError(
            f"what was at {name} makes {scale[0]:.4g} of one, and its filter {scale[1]:.4g}: please report this model; "
            "--no-verify (verify=False) converts it all the same"
        )
    apart = (actual[middle] - expected[middle]).item() / scale[0] + delay
    if not abs(apart) <= limit:
        raise VerificationError(
            f"the filter at {name} looks {apart:+.2g} samples beside where the original looked: please report this "
            "model; --no-verify (verify=False) converts it all the same"
        )
