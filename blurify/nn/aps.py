"""Adaptive polyphase sampling: subsample at the phase that holds the most, so that a shift takes the same samples.

Source: Chaman and Dokmanic, "Truly shift-invariant convolutional neural networks", CVPR 2021, and "Truly
shift-equivariant convolutional neural networks with adaptive polyphase upsampling", 2021.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.nn.arguments import per_dim, short
from blurify.nn.autograd import CHANNELS_LAST, is_channels_last
from blurify.nn.blurpool import BlurPool

_MOST_THREADS = 64
_HISTORY = "_chosen"

_Choice = tuple[Tensor, tuple[int, ...]]
"""A phase (N, dims), and the spatial sizes of the map that it was chosen on."""


class SharedPhase(nn.Module):
    """The phases that a leading layer chose last, for those that follow it: a child of all of them.

    A child, and no global: copies of a model, and the replicas of DataParallel, have their own. Threads that run one
    model at the same time each see what they chose themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.depth = 1
        self._chosen: dict[int, tuple[_Choice, ...]] = {}
        self._compiled: tuple[_Choice, ...] = ()

    def put(self, phase: Tensor, sizes: Sequence[int] = ()) -> None:
        """Keep a phase (N, dims) and the sizes of the map that it was chosen on, and the `depth` - 1 before it."""
        if torch.compiler.is_compiling():  # a compiler follows attributes, and not threads
            self._compiled = (*self._compiled, (phase, tuple(sizes)))[-self.depth :]
            return
        chosen, thread = self._chosen, threading.get_ident()
        before = chosen.pop(thread, ())
        while len(chosen) >= _MOST_THREADS:
            chosen.pop(next(iter(chosen)), None)
        chosen[thread] = (*before, (phase.detach(), tuple(sizes)))[-self.depth :]

    def get(self, back: int = 0) -> Tensor:
        """The last phase that was kept (N, dims), or the one `back` times before it."""
        return self._kept(back)[0]

    def sizes(self, back: int = 0) -> tuple[int, ...]:
        """The sizes of the map that it was chosen on."""
        return self._kept(back)[1]

    def _kept(self, back: int) -> _Choice:
        kept = self._compiled if torch.compiler.is_compiling() else self._chosen.get(threading.get_ident(), ())
        if len(kept) <= back:
            raise BlurifyError(
                "a layer that follows the phase of another one ran before that one did: run the whole model, or "
                "convert with a recipe without [sampling] method = 'aps'"
            )
        return kept[-1 - back]

    def forward(self) -> None:
        """Nothing: its layers ask it."""

    def __getstate__(self) -> dict[str, Any]:
        # What was chosen belongs to one run.
        return {**self.__dict__, _HISTORY: {}, "_compiled": ()}

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return "" if self.depth == 1 else f"depth={self.depth}"


class ApsPool(BlurPool):
    """Base of ApsPool1d/2d/3d."""

    ndim: ClassVar[int]
    parts: tuple[int, ...]

    def __init__(
        self,
        stride: int | Sequence[int],
        lowpass: BlurPool,
        *,
        norm: int = 2,
        role: str = "leads",
        groups: Sequence[str] = ("",),
        strides: Sequence[tuple[int, ...]] | None = None,
        back: Sequence[int] | None = None,
        parts: Sequence[int] = (),
    ) -> None:
        nn.Module.__init__(self)
        self.stride = per_dim(stride, self.ndim, "stride", least=1)
        if not isinstance(lowpass, BlurPool) or lowpass.ndim != self.ndim or max(lowpass.stride) > 1:
            raise BlurifyError(f"the low-pass of {type(self).__name__} must be a BlurPool{self.ndim}d of stride 1")
        if role not in ("leads", "follows", "restores") or norm not in (1, 2):
            raise BlurifyError(f"role {role!r}, norm {norm!r}: give leads, follows or restores; 1 or 2")
        self.factor = lowpass.factor
        self.strides = tuple(strides or (self.factor,))
        self.groups, self.back = tuple(groups), tuple(back or (0,) * len(groups))
        if parts:  # in the instance alone, and only where there are some: older files know nothing of them
            self.parts = tuple(parts)
        self.norm, self.role = norm, role
        self.shift, self.taps, self.padding = lowpass.shift, lowpass.taps, lowpass.padding
        self._filters, self._groups = lowpass._filters, []
        self.lowpass = lowpass
        for i in range(len(self.groups)):
            self.add_module(f"phase{i}", SharedPhase())

    @property
    def shared(self) -> list[SharedPhase]:
        """Where the phases stand, one for each of its groups."""
        return [self.get_submodule(f"phase{i}") for i in range(len(self.groups))]  # type: ignore[misc]

    @property
    def filters_nothing(self) -> bool:
        """Never: an average pool in its place would subsample at the first sample."""
        return False

    @property
    def is_identity(self) -> bool:
        """Never, for the same reason."""
        return False

    @property
    def wraps(self) -> bool:
        """Whether a pool in front of it must give the whole period of a map that goes on periodically."""
        return self.padding == "circular"

    def _blur(self, x: Tensor, extend: tuple[int, ...]) -> Tensor:
        """Filter (N, C, *spatial) densely, then take the samples of one phase, or move the map by it."""
        sizes = x.shape[2:]
        out = [-(-(n + more) // step) for n, more, step in zip(sizes, extend, self.stride, strict=True)]
        x = self.lowpass(x, extend=[step * size - n for size, step, n in zip(out, self.stride, sizes, strict=True)])
        if self.role == "leads":
            phase = strongest_phase(x, self.factor, self.norm)
            self.shared[0].put(phase, sizes)
        else:
            phase = self._taken(x)
        layout = CHANNELS_LAST[self.ndim] if is_channels_last(x) else torch.contiguous_format
        if max(self.stride) > 1:
            y = polyphase(x, self.stride)[(_each(x), *phase.unbind(1))]
        else:
            y = rolled(x, phase if self.role == "restores" else -phase)
        return y.contiguous(memory_format=layout)

    def preset(self, batch: int = 1) -> None:
        """Let it follow first phases: so that it runs alone, on a batch of this size."""
        for shared, back in zip(self.shared, self.back, strict=True):
            shared.depth = back + 1
            for _ in range(back + 1):
                shared.put(torch.zeros(batch, self.ndim, dtype=torch.int64))

    def _taken(self, x: Tensor) -> Tensor:
        """The sum of the phases that were chosen on the way, in samples of the first map: (N, dims)."""
        total: Any = 0
        scale = torch.ones(self.ndim, dtype=torch.int64, device=x.device)
        every = list(zip(self.shared, self.back, self.strides, strict=True))
        for shared, back, steps in every[self._level(x)]:
            phase = shared.get(back).to(x.device)
            if phase.shape[0] != x.shape[0]:
                raise BlurifyError(
                    f"{phase.shape[0]} phases were chosen for a batch of {x.shape[0]}: adaptive polyphase sampling "
                    "needs the same batch all the way; skip the sites where it changes ([skip] names)"
                )
            total = total + scale * phase
            scale = scale * torch.tensor(steps, dtype=torch.int64, device=x.device)
        return total

    def _level(self, x: Tensor) -> slice:
        """Which of the groups are meant: all, or those of the level whose map had the size of this one, or nearly."""
        parts: tuple[int, ...] | None = self._said("parts")
        if parts is None:
            return slice(None)
        shared, ends = self.shared, itertools.accumulate(parts)

        def apart(level: slice) -> int:
            was = shared[level.start].sizes(self.back[level.start])
            return sum(abs(n - before) for n, before in zip(x.shape[2:], was, strict=True))

        return min((slice(begin, end) for begin, end in itertools.pairwise((0, *ends))), key=apart)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        parts = [f"stride={short(self.stride)}"]
        parts += [f"factor={short(self.factor)}"] * (self.factor != self.stride)
        parts += [f"norm={self.norm}"] * (self.norm != 2) + [self.role]
        parts += [f"of={', '.join(self.groups)!r}"] if any(self.groups) and self.role != "leads" else []
        parts += [f"back={self.back}"] * any(self.back)
        parts += [f"parts={self._said('parts')}"] * (self._said("parts") is not None)
        return ", ".join(parts)


class ApsPool2d(ApsPool):
    """Adaptive polyphase sampling: low-pass filter a signal, then subsample it at the phase with the largest norm.

    Each sample of a batch has a phase of its own. Of phases with equal norms the first is taken. At sizes that are a
    multiple of the stride, and with circular padding, a circular shift of the input shifts the output circularly, and
    does nothing else. A layer that follows subsamples at the phase that another one chose; one that restores moves an
    upsampled map to where the samples were taken.

    Args:
        stride: the subsampling; an int, or one per spatial dimension. With stride 1 and a factor above 1 the map is
            moved so that the phase comes first: in front of a convolution with that stride.
        lowpass: a BlurPool2d of stride 1 that runs first; its `factor` is the subsampling, its `padding` how the signal
            goes on outside. One tap filters nothing.
        norm: 1 or 2.
        role: 'leads', 'follows' or 'restores'.
        groups, strides, back, parts: what it follows (see `blurify.spec.phases.Phase`).

    Shape: (N, C, H, W) or (C, H, W) -> the same with ceil(n / stride), or the `output_size` given to `forward`.

    Raises:
        BlurifyError: for an argument outside of these; in `forward`, where there is nothing to follow.

    Example:
        >>> pool = ApsPool2d(2, BlurPool2d(1, 3, factor=2, padding="circular"))
        >>> pool(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 4, 4])
    """

    ndim = 2


class ApsPool1d(ApsPool):
    """ApsPool2d for (N, C, L) or (C, L)."""

    ndim = 1


class ApsPool3d(ApsPool):
    """ApsPool2d for (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3


def apspool(ndim: int) -> type[ApsPool]:
    """ApsPool1d, ApsPool2d or ApsPool3d."""
    return (ApsPool1d, ApsPool2d, ApsPool3d)[ndim - 1]


def polyphase(x: Tensor, stride: Sequence[int]) -> Tensor:
    """All phases of a map (N, C, *spatial), whose sizes `stride` divides: (N, *stride, C, *spatial/stride)."""
    rank = len(stride)
    parts = list(itertools.chain(*((n // step, step) for n, step in zip(x.shape[2:], stride, strict=True))))
    split = x.reshape(*x.shape[:2], *parts)
    return split.permute(0, *range(3, 3 + 2 * rank, 2), 1, *range(2, 2 + 2 * rank, 2))


def strongest_phase(x: Tensor, stride: Sequence[int], norm: int = 2) -> Tensor:
    """The phase with the largest norm, of each sample: (N, dims), the first of equal ones.

    What a map has beyond a multiple of the stride does not count. The powers are summed in float64 where there is such
    a thing: two phases of a trained network may differ by little more than the rounding of float32.
    """
    x = x.detach()
    for dim, step in enumerate(stride, start=2):
        x = x.narrow(dim, 0, x.shape[dim] // step * step) if x.shape[dim] >= step else x
    if any(n < step for n, step in zip(x.shape[2:], stride, strict=True)):
        return torch.zeros(x.shape[0], len(stride), dtype=torch.int64, device=x.device)
    x = x.abs() if x.is_complex() else x
    rank = len(stride)
    # Over the channels first, where no copy in another layout or precision is needed.
    at_each = torch.linalg.vector_norm(x, norm, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    sums = (at_each if x.device.type == "mps" else at_each.double()) ** norm
    best = polyphase(sums, stride).sum(dim=tuple(range(1 + rank, 2 + 2 * rank))).flatten(1).argmax(1)
    found = []
    for position in range(rank):
        after = math.prod(stride[position + 1 :])
        found.append(best // after % stride[position])
    return torch.stack(found, 1)


def rolled(x: Tensor, amounts: Tensor) -> Tensor:
    """Each sample of (N, C, *spatial) moved circularly to the right by its amounts (N, dims)."""
    rank = x.dim() - 2
    index: list[Tensor] = [_each(x).view(-1, *[1] * rank)]
    for dim in range(rank):
        n = x.shape[dim + 2]
        shape = [-1, *[1] * rank]
        shape[dim + 1] = n
        places = torch.arange(n, device=x.device) - amounts[:, dim : dim + 1]
        index.append((places % n).view(shape))
    return x.movedim(1, -1)[tuple(index)].movedim(-1, 1)


def _each(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0], device=x.device)
