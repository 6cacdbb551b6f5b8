"""Blurs and dense max pools on the CPU, outside of any compiler: in blocks, so that all between stays in the cache.

A convolution pays for a padded copy, for a layout of its own and for fresh memory for both; sums of slices of a block
that fits the cache need none of them. The result has the channels where the input has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from blurify.nn.autograd import CHANNELS_LAST, is_channels_last
from blurify.nn.lines import Line, Step, source, spread_of, steps, unit
from blurify.nn.padding import flat_pads

BLOCK = 1 << 18
"""Numbers of a block, for each thread: about a megabyte (make bench)."""


class Clamp(NamedTuple):
    """An activation that cuts values off, and below and above lets no gradient through: ReLU, ReLU6, Hardtanh."""

    low: float
    high: float

    def plain(self, x: Tensor) -> Tensor:
        """It of a tensor."""
        return x.clamp_min(self.low) if math.isinf(self.high) else x.clamp(self.low, self.high)

    def into(self, x: Tensor, out: Tensor) -> None:
        """The same, written where the caller wants it."""
        if x.dtype != out.dtype:
            x = out.copy_(x)
        if math.isinf(self.high):
            torch.clamp_min(x, self.low, out=out)
        else:
            torch.clamp(x, self.low, self.high, out=out)

    def open(self, x: Tensor, room: Tensor) -> Tensor:
        """1 where a gradient passes, else 0, in numbers of the dtype of x: comparisons of bytes are slow (make bench).

        Args:
            x: what it is given; what it returns does as well, of a value cut off at `low` or `high`.
            room: two more tensors like x, at the first place of a new dimension; the first one is the result.
        """
        torch.gt(x, self.low, out=room[0])
        if not math.isinf(self.high):
            torch.lt(x, self.high, out=room[1])
            room[0].mul_(room[1])
        return room[0]


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


def like_rows(
    n: int, channels: int, sizes: Sequence[int], x: Tensor, channels_last: bool, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """A new tensor (N, C, *sizes) of the dtype of x, if no other is given, and the same memory as `rows` has it."""
    if channels_last:  # no view of another tensor: that could not be written in place outside of an autograd function
        layout = CHANNELS_LAST[len(sizes)]
        out = torch.empty((n, channels, *sizes), dtype=dtype or x.dtype, device=x.device, memory_format=layout)
        return out, out.movedim(1, -1)
    out = x.new_empty((n, channels, *sizes), dtype=dtype)
    return out, out.view(n * channels, *sizes, 1)


def filtered(
    x: Tensor,
    lines: Sequence[Line],
    pool: Max | None,
    channels_last: bool,
    clamp: Clamp | None = None,
    code: Tensor | None = None,
) -> Tensor:
    """Cut off (if asked to), max pool (if asked to), filter and subsample (N, C, *spatial).

    Args:
        x: (N, C, *spatial).
        lines, pool, clamp: what is done.
        channels_last: whether x has its channels innermost.
        code: a tensor of `code_for`, to be filled.
    """
    flat = rows(x, channels_last)
    dense = pool.sizes(flat.shape[1:-1]) if pool else list(flat.shape[1:-1])
    sizes = [line.size(n) for line, n in zip(lines, dense, strict=True)] if lines else dense
    out, target = like_rows(x.shape[0], x.shape[1], sizes, x, channels_last)
    codes = () if code is None else (rows(code, channels_last),)
    made: dict[int, _Forward] = {}
    for block, into, *codings in _blocks(flat, target, *codes):
        size = block.shape[0]
        if size not in made:
            made[size] = _Forward(block, lines, pool, dense, clamp, None if code is None else code.dtype)
        made[size].run(block, into, *codings)
    return out


def code_for(x: Tensor, pool: Max | None, channels_last: bool) -> Tensor:
    """Room for what the gradient of a cut-off x depends on, in place of x: (N, C, *spatial) of whole numbers.

    Without a pool it is 1 where a gradient passes, else 0. With a pool, bit i says where the first of the two slices of
    stage i has the larger sample, and one bit more where what the pool gives lets a gradient pass: one byte a sample.
    """
    if pool is None:
        return like_rows(x.shape[0], x.shape[1], x.shape[2:], x, channels_last, torch.uint8)[0]
    sizes = [n + left + right for n, (left, right) in zip(x.shape[2:], pool.pads, strict=True)]
    dim, offset = pool.stages[0]
    sizes[dim - 1] -= offset
    bits = len(pool.stages) + 1
    dtype = torch.uint8 if bits <= 8 else torch.int16 if bits <= 15 else torch.int32
    return like_rows(x.shape[0], x.shape[1], sizes, x, channels_last, dtype)[0]


def coded_maxima(x: Tensor, pool: Max, clamp: Clamp) -> tuple[Tensor, Tensor]:
    """The maxima of (N, C, *spatial), not yet cut off, and their code, by torch's operators: on any device."""
    code = code_for(x, pool, is_channels_last(x))
    x = F.pad(x, flat_pads(pool.pads), value=-math.inf) if any(map(any, pool.pads)) else x
    for i, (dim, offset) in enumerate(pool.stages):
        length = x.shape[dim + 1] - offset
        a, b = x.narrow(dim + 1, 0, length), x.narrow(dim + 1, offset, length)
        wins = a.ge(b).to(code.dtype)
        _part(code, a.shape, 2).add_(wins, alpha=1 << i) if i else code.copy_(wins)
        x = torch.maximum(a, b)
    opened = clamp.open(x, x.new_empty((2, *x.shape))).to(code.dtype)
    _part(code, x.shape, 2).add_(opened, alpha=1 << len(pool.stages))
    return x, code


def unselected(grad: Tensor, pool: Max | None, code: Tensor) -> Tensor:
    """The transpose of `selected`, by torch's operators: on any device."""
    if pool is None:
        return grad * code
    grad = grad * _part(code, grad.shape, 2).bitwise_right_shift(len(pool.stages)).bitwise_and(1)
    for i, (dim, offset) in reversed(list(enumerate(pool.stages))):
        length = grad.shape[dim + 1]
        first = grad * _part(code, grad.shape, 2).bitwise_right_shift(i).bitwise_and(1)
        wide = list(grad.shape)
        wide[dim + 1] += offset
        out = grad.new_zeros(wide)
        out.narrow(dim + 1, 0, length).copy_(first)
        out.narrow(dim + 1, offset, length).add_(grad - first)
        grad = out
    for dim, (left, right) in enumerate(pool.pads, start=2):
        grad = grad.narrow(dim, left, grad.shape[dim] - left - right)
    return grad


def selected(x: Tensor, pool: Max | None, code: Tensor) -> Tensor:
    """The samples of (N, C, *spatial) that a code has chosen, 0 where no gradient passes: linear, and for autograd."""
    if pool is None:
        return x * code.to(x.dtype)
    x = F.pad(x, flat_pads(pool.pads))
    for i, (dim, offset) in enumerate(pool.stages):
        length = x.shape[dim + 1] - offset
        a, b = x.narrow(dim + 1, 0, length), x.narrow(dim + 1, offset, length)
        x = torch.where(_part(code, a.shape, 2).bitwise_right_shift(i).bitwise_and(1).bool(), a, b)
    return x * _part(code, x.shape, 2).bitwise_right_shift(len(pool.stages)).bitwise_and(1).to(x.dtype)


def _part(code: Tensor, shape: Sequence[int], first: int = 1) -> Tensor:
    """The beginning of a code, in each dimension from `first` on, of this shape."""
    for dim in range(first, len(shape)):
        code = code.narrow(dim, 0, shape[dim]) if code.shape[dim] != shape[dim] else code
    return code


def spread(
    grad: Tensor,
    lines: Sequence[Line],
    pool: Max | None,
    sizes: Sequence[int],
    x: Tensor | None,
    channels_last: bool,
    code: Tensor | None = None,
) -> Tensor:
    """The gradient of the input of `filtered`.

    Args:
        grad: (N, C, *spatial), of its output.
        lines, pool, channels_last: as given to `filtered`.
        sizes: the spatial size of its input.
        x: its input, where there is a pool and no code.
        code: what it filled in, of a cut-off input.
    """
    flat = rows(grad, channels_last)
    dense = pool.sizes(sizes) if pool else list(sizes)
    out, target = like_rows(grad.shape[0], grad.shape[1], sizes, grad, channels_last)
    given = x if code is None else code
    kept = target if given is None else rows(given, channels_last)
    made: dict[int, _Backward] = {}
    for read, into, block in _blocks(target, flat, kept):
        size = read.shape[0]
        if size not in made:
            made[size] = _Backward(into, read, lines, pool, dense, None if code is None else code.dtype)
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

    def __init__(
        self,
        block: Tensor,
        lines: Sequence[Line],
        pool: Max | None,
        dense: list[int],
        clamp: Clamp | None,
        coded: torch.dtype | None,
    ) -> None:
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
        self.pool = _MaxForward(block, pool, coded) if pool else None
        self.clamp = clamp
        if coded is not None:
            self.open = block.new_empty([2, like[0], *dense, like[-1]], dtype=dtype)
            self.bits = block.new_empty(self.open.shape[1:], dtype=coded)

    def run(self, block: Tensor, into: Tensor, code: Tensor | None = None) -> None:
        enter = self.enter if self.passes else into
        if self.pool:  # the largest sample cut off is the largest of those cut off
            self.pool.run(block, enter, code)
            if self.clamp is not None:
                self.clamp.into(enter, enter)
        elif self.clamp is not None:
            self.clamp.into(block, enter)
        else:
            enter.copy_(block)
        if code is not None and self.clamp is not None:
            opened = self.clamp.open(enter, self.open)
            if self.pool:
                _part(code, opened.shape).add_(self.bits.copy_(opened), alpha=1 << len(self.pool.stages))
            else:
                code.copy_(opened)
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

    def __init__(self, block: Tensor, pool: Max, coded: torch.dtype | None = None) -> None:
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
        if coded is not None:
            self.wins = [torch.empty_like(made) for made in self.made]
            self.bits = [torch.empty_like(made, dtype=coded) for made in self.made]

    def run(self, block: Tensor, into: Tensor | None, code: Tensor | None = None) -> None:
        """All maxima; the last one into `into`, or kept as the others are; who won, into `code`."""
        if self.padded is not None:
            self.inside.copy_(block)
            block = self.padded
        last = len(self.stages) - 1
        if last < 0 and into is not None:
            into.copy_(block)
        for i, (dim, offset) in enumerate(self.stages):
            length = block.shape[dim] - offset
            a, b = block.narrow(dim, 0, length), block.narrow(dim, offset, length)
            if code is not None:
                torch.ge(a, b, out=self.wins[i])
                if i:
                    _part(code, a.shape).add_(self.bits[i].copy_(self.wins[i]), alpha=1 << i)
                else:
                    code.copy_(self.wins[i])
            out = self.made[i] if into is None or i < last or into.dtype != block.dtype else into
            torch.maximum(a, b, out=out)
            if i == last and into is not None and out is not into:
                into.copy_(out)
            block = out


class _Backward:
    """The buffers of one size of block for its backward."""

    def __init__(
        self,
        grad: Tensor,
        target: Tensor,
        lines: Sequence[Line],
        pool: Max | None,
        dense: list[int],
        coded: torch.dtype | None,
    ) -> None:
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
        self.pool = _MaxBackward(target, pool, shape, dtype, coded) if pool else None
        direct = self.pool is None and dtype == grad.dtype and coded is None
        self.result = None if direct else grad.new_empty(shape, dtype=dtype)
        self.open = None if coded is None else _Bit(grad.new_empty(shape, dtype=dtype), coded)

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
        if self.open is not None:
            opened = self.open.of(block, len(self.pool.stages) if self.pool else None)
            assert self.result is not None
            out = torch.mul(out, opened, out=into if self.pool is None and into.dtype == out.dtype else self.result)
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


class _Bit:
    """One bit of a code as numbers to multiply by."""

    def __init__(self, wins: Tensor, coded: torch.dtype) -> None:
        self.wins, self.bits = wins, torch.empty_like(wins, dtype=coded)

    def of(self, code: Tensor, bit: int | None) -> Tensor:
        """1 where the bit is set, else 0; with None the code itself."""
        code = _part(code, self.wins.shape)
        if bit is None:
            return self.wins.copy_(code)
        torch.bitwise_right_shift(code, bit, out=self.bits)
        return self.wins.copy_(self.bits.bitwise_and_(1))


class _MaxBackward:
    """From the gradient of a dense max pool to that of its input: each goes to the first of its largest samples."""

    def __init__(
        self, block: Tensor, pool: Max, dense: list[int], dtype: torch.dtype, coded: torch.dtype | None
    ) -> None:
        self.again = _MaxForward(block, pool) if coded is None else None
        self.stages = pool.stages
        self.grads, self.wins, self.bits = [], [], []
        shape = list(dense)
        for dim, offset in reversed(pool.stages):
            self.wins.append(block.new_empty(shape, dtype=dtype))
            self.bits.append(None if coded is None else _Bit(self.wins[-1], coded))
            shape = list(shape)
            shape[dim] += offset
            self.grads.append(block.new_empty(shape, dtype=dtype))
        self.pads = pool.pads
        self.direct = not any(map(any, pool.pads)) and bool(self.stages) and dtype == block.dtype

    def run(self, grad: Tensor, block: Tensor, into: Tensor) -> None:
        """Args: grad, of the pool's output; block, its input or its code; into, the gradient of its input."""
        again = self.again
        values: list[Tensor] = []
        if again is not None:
            if self.stages and (len(self.stages) > 1 or again.padded is not None):
                again.run(block, None)
            values = [again.padded if again.padded is not None else block, *again.made]
        for i, (dim, offset) in enumerate(reversed(self.stages)):
            wins, bit, stage = self.wins[i], self.bits[i], len(self.stages) - 1 - i
            length = wins.shape[dim]
            if bit is not None:
                bit.of(block, stage)
            else:
                a, b = (values[stage].narrow(dim, begin, length) for begin in (0, offset))
                if wins.dtype == a.dtype:
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
