"""Blurs and dense max pools on the CPU, outside of any compiler: in blocks, so that all between stays in the cache.

A convolution pays for a padded copy, for a layout of its own and for fresh memory for both; sums of slices of a block
that fits the cache need none of them. The result has the channels where the input has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from blurify.nn.lines import Line, Step, source, spread_of, steps, unit

BLOCK = 1 << 18
"""Numbers of a block, for each thread: about a megabyte (make bench)."""


class Max:
    """A dense max pool as maxima of two slices each, dimension after dimension.

    Args:
        kernel, padding, dilation: one entry a spatial dimension.
        extra: samples to append at the end of the output.
    """

    def __init__(
        self, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int], extra: Sequence[int]
    ) -> None:
        self.kernel, self.padding, self.dilation = tuple(kernel), tuple(padding), tuple(dilation)
        self.pads = [(left, left + more) for left, more in zip(padding, extra, strict=True)]
        self.stages: list[tuple[int, int]] = []  # (dimension of a block, offset), the last dimension first
        for dim in reversed(range(len(kernel))):
            width = 1  # slot i is the maximum of `width` samples from i on; double that until it is the kernel
            while width < kernel[dim]:
                more = min(width, kernel[dim] - width)
                self.stages.append((dim + 1, dilation[dim] * more))
                width += more

    def sizes(self, sizes: Sequence[int]) -> list[int]:
        """The size of its output."""
        out = [n + left + right for n, (left, right) in zip(sizes, self.pads, strict=True)]
        for dim, offset in self.stages:
            out[dim - 1] -= offset
        return out


def rows(x: Tensor, channels_last: bool) -> Tensor:
    """(N, C, *spatial) as (blocks, *spatial, channels), a view where x is contiguous in its layout."""
    if channels_last:
        return x.movedim(1, -1).contiguous()
    return x.contiguous().view(x.shape[0] * x.shape[1], *x.shape[2:], 1)


def like_rows(n: int, channels: int, sizes: Sequence[int], x: Tensor, channels_last: bool) -> tuple[Tensor, Tensor]:
    """A new tensor (N, C, *sizes) of the dtype of x, and the same memory as `rows` has it."""
    if channels_last:
        flat = x.new_empty(n, *sizes, channels)
        return flat.movedim(-1, 1), flat
    out = x.new_empty(n, channels, *sizes)
    return out, out.view(n * channels, *sizes, 1)


def filtered(x: Tensor, lines: Sequence[Line], pool: Max | None, channels_last: bool) -> Tensor:
    """Max pool (if any), filter and subsample (N, C, *spatial)."""
    flat = rows(x, channels_last)
    dense = pool.sizes(flat.shape[1:-1]) if pool else list(flat.shape[1:-1])
    sizes = [line.size(n) for line, n in zip(lines, dense, strict=True)] if lines else dense
    out, target = like_rows(x.shape[0], x.shape[1], sizes, x, channels_last)
    made: dict[int, _Forward] = {}
    for block, into in _blocks(flat, target):
        size = block.shape[0]
        if size not in made:
            made[size] = _Forward(block, lines, pool, dense)
        made[size].run(block, into)
    return out


def spread(
    grad: Tensor, lines: Sequence[Line], pool: Max | None, sizes: Sequence[int], x: Tensor | None, channels_last: bool
) -> Tensor:
    """The gradient of the input of `filtered`.

    Args:
        grad: (N, C, *spatial), of its output.
        lines, pool, channels_last: as given to `filtered`.
        sizes: the spatial size of its input.
        x: its input, where there is a pool.
    """
    flat = rows(grad, channels_last)
    dense = pool.sizes(sizes) if pool else list(sizes)
    out, target = like_rows(grad.shape[0], grad.shape[1], sizes, grad, channels_last)
    kept = rows(x, channels_last) if x is not None else target
    made: dict[int, _Backward] = {}
    for read, into, block in _blocks(target, flat, kept):
        size = read.shape[0]
        if size not in made:
            made[size] = _Backward(into, read, lines, pool, dense)
        made[size].run(into, read, block)
    return out


def _blocks(large: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of tensors with equal first dimensions: as many rows at a time as make a block of the first one."""
    total = large.shape[0]
    each = max(large[0].numel(), 1) if total else 1
    count = max(1, BLOCK * torch.get_num_threads() // each)
    count = -(-total // -(-total // count)) if total else 1  # equal blocks
    return zip(*(tensor.split(count) for tensor in (large, *others)), strict=True)


def _room(x: Tensor) -> torch.dtype:
    """Sums of half precision are taken in single precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _run(program: tuple[Step, ...], slots: list[Any]) -> None:
    for a, b, ratio, into in program:
        if b < 0:
            torch.mul(slots[a], ratio, out=slots[into])
        else:
            torch.add(slots[a], slots[b], alpha=ratio, out=slots[into])


class _Forward:
    """The buffers of one size of block, and what is done with them."""

    def __init__(self, block: Tensor, lines: Sequence[Line], pool: Max | None, dense: list[int]) -> None:
        dtype, like = _room(block), block.shape
        self.exact = dtype == block.dtype
        todo = [(dim, line) for dim, line in enumerate(lines, start=1) if not line.is_nothing]
        shape = [like[0], *dense, like[-1]]
        # Where each line reads: its own input, with room for what goes on beyond the borders.
        self.passes: list[tuple[list[tuple[Tensor, Tensor | None]], tuple[Step, ...], list[Any]]] = []
        inner, scale = None, 1.0
        for dim, line in todo:
            n = shape[dim]
            left, right = max(line.left, 0), max(line.right, 0)
            padded = block.new_empty([*shape[:dim], n + left + right, *shape[dim + 1 :]], dtype=dtype)
            inside = padded.narrow(dim, left, n)
            copies: list[tuple[Tensor, Tensor | None]] = []
            for place in (*range(-left, 0), *range(n, n + right)):
                at = source(place, n, line.padding)
                copies.append((padded.select(dim, left + place), None if at is None else inside.select(dim, at)))
            if inner is None:
                self.enter = inside
            else:
                self.passes[-1][2][-2] = inside
            inner = inside
            m, first = line.size(n), left - line.left
            slices = [
                padded.narrow(dim, first + k, line.stride * (m - 1) + 1)[
                    (slice(None),) * dim + (slice(None, None, line.stride),)
                ]
                for k in range(len(line.taps))
            ]
            shape[dim] = m
            room = block.new_empty(shape, dtype=dtype)
            scale *= unit(line.taps)
            self.passes.append((copies, steps(line.taps, unit(line.taps)), [*slices, None, room]))
        self.scale = scale
        self.result = None if self.exact or not todo else block.new_empty(shape, dtype=dtype)
        self.pool = _MaxForward(block, pool) if pool else None

    def run(self, block: Tensor, into: Tensor) -> None:
        enter = self.enter if self.passes else into
        if self.pool:
            self.pool.run(block, enter)
        else:
            enter.copy_(block)
        if not self.passes:
            return
        out = into if self.result is None else self.result
        self.passes[-1][2][-2] = out
        for copies, program, slots in self.passes:
            for to, what in copies:
                to.zero_() if what is None else to.copy_(what)
            _run(program, slots)
        if self.scale != 1.0:
            out.mul_(self.scale)
        if out is not into:
            into.copy_(out)


class _MaxForward:
    """Maxima of a block; the last one is written where the caller wants it."""

    def __init__(self, block: Tensor, pool: Max) -> None:
        self.padded: Tensor | None = None
        shape = list(block.shape)
        if any(map(any, pool.pads)):
            for dim, (left, right) in enumerate(pool.pads, start=1):
                shape[dim] += left + right
            self.padded = block.new_full(shape, -math.inf)
            self.inside = self.padded
            for dim, (left, _) in enumerate(pool.pads, start=1):
                self.inside = self.inside.narrow(dim, left, block.shape[dim])
        self.stages = pool.stages
        self.made: list[Tensor] = []
        for dim, offset in pool.stages:
            shape[dim] -= offset
            self.made.append(block.new_empty(shape))

    def run(self, block: Tensor, into: Tensor | None) -> None:
        """All maxima; the last one into `into`, or kept as the others are."""
        if self.padded is not None:
            self.inside.copy_(block)
            block = self.padded
        last = len(self.stages) - 1
        if last < 0 and into is not None:
            into.copy_(block)
        for i, (dim, offset) in enumerate(self.stages):
            length = block.shape[dim] - offset
            out = self.made[i] if into is None or i < last or into.dtype != block.dtype else into
            torch.maximum(block.narrow(dim, 0, length), block.narrow(dim, offset, length), out=out)
            if i == last and into is not None and out is not into:
                into.copy_(out)
            block = out


class _Backward:
    """The buffers of one size of block for its backward."""

    def __init__(self, grad: Tensor, target: Tensor, lines: Sequence[Line], pool: Max | None, dense: list[int]) -> None:
        dtype = _room(grad)
        todo = [(dim, line) for dim, line in enumerate(lines, start=1) if not line.is_nothing]
        shape = list(grad.shape)
        self.passes: list[Callable[[Tensor], None]] = []
        self.inside: list[Tensor] = []
        scale = 1.0
        for dim, line in reversed(todo):
            n, m = dense[dim - 1], shape[dim]
            way = spread_of(line, n)
            padded = grad.new_zeros([*shape[:dim], way.before + m + way.after, *shape[dim + 1 :]], dtype=dtype)
            self.inside.append(padded.narrow(dim, way.before, m))
            scale *= unit(line.taps)
            self.passes.append(_spreading(padded, dim, line.stride, way))
            shape[dim] = n
        self.scale = scale
        self.pool = _MaxBackward(target, pool, shape, dtype) if pool else None
        self.result = None if self.pool is None and dtype == grad.dtype else grad.new_empty(shape, dtype=dtype)

    def run(self, grad: Tensor, into: Tensor, block: Tensor) -> None:
        if not self.passes:  # a pool alone
            out = grad
        elif grad.dtype == self.inside[0].dtype:
            torch.mul(grad, self.scale, out=self.inside[0])
            out = into if self.result is None else self.result
        else:
            self.inside[0].copy_(grad).mul_(self.scale)
            out = into if self.result is None else self.result
        for one, to in zip(self.passes, (*self.inside[1:], out), strict=bool(self.passes)):
            one(to)
        if self.pool:
            self.pool.run(out, block, into)
        elif out is not into:
            into.copy_(out)


def _spreading(padded: Tensor, dim: int, stride: int, way: Any) -> Callable[[Tensor], None]:
    """A function that writes the transpose of one line to where it is told."""
    parts = []
    for r, (count, terms) in enumerate(way.phases):
        slices = [padded.narrow(dim, begin, count) for begin, _ in terms]
        parts.append((r, slices, steps(tuple(weight for _, weight in terms), 1.0) if terms else ()))
    folds = [(sample, padded.select(dim, at), weight) for sample, at, weight in way.folds]
    before = (slice(None),) * dim

    def run(to: Tensor) -> None:
        for r, slices, program in parts:
            phase = to[(*before, slice(r, None, stride))]
            if not program:
                phase.zero_()
            else:
                # Room for sums is only asked for by equal weights other than 1.
                needs = any(into == len(slices) + 1 for *_, into in program)
                _run(program, [*slices, phase, torch.empty_like(phase) if needs else None])
        for sample, what, weight in folds:
            to.select(dim, sample).add_(what, alpha=weight)

    return run


class _MaxBackward:
    """From the gradient of a dense max pool to that of its input: each goes to the first of its largest samples."""

    def __init__(self, block: Tensor, pool: Max, dense: list[int], dtype: torch.dtype) -> None:
        self.again = _MaxForward(block, pool)
        self.stages = pool.stages
        self.grads, self.wins = [], []
        shape = list(dense)
        for dim, offset in reversed(pool.stages):
            self.wins.append(block.new_empty(shape, dtype=dtype))
            shape = list(shape)
            shape[dim] += offset
            self.grads.append(block.new_empty(shape, dtype=dtype))
        self.pads = pool.pads
        self.direct = self.again.padded is None and bool(self.stages) and dtype == block.dtype

    def run(self, grad: Tensor, block: Tensor, into: Tensor) -> None:
        again = self.again
        if self.stages and (len(self.stages) > 1 or again.padded is not None):
            again.run(block, None)
        values = [again.padded if again.padded is not None else block, *again.made]
        for i, (dim, offset) in enumerate(reversed(self.stages)):
            value = values[len(self.stages) - 1 - i]
            length = value.shape[dim] - offset
            a, b = value.narrow(dim, 0, length), value.narrow(dim, offset, length)
            wins = self.wins[i]
            if wins.dtype == value.dtype:
                torch.ge(a, b, out=wins)
            else:
                wins.copy_(torch.ge(a, b))
            last = i == len(self.stages) - 1
            to = into if last and self.direct else self.grads[i]
            first = to.narrow(dim, 0, length)
            torch.mul(wins, grad, out=first)
            to.narrow(dim, length, offset).zero_()
            torch.sub(grad, first, out=wins)  # what goes to the second of the two
            to.narrow(dim, offset, length).add_(wins)
            grad = to
        if not (self.direct and grad is into):
            for dim, (left, _) in enumerate(self.pads, start=1):
                grad = grad.narrow(dim, left, into.shape[dim])
            into.copy_(grad)
