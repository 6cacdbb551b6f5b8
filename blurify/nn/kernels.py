"""Blurs, and dense max pools with a blur, as Triton kernels: one pass over memory each way, on CUDA.

Not in use unless the environment says BLURIFY_TRITON=1: no GPU has measured them yet. They are checked against the
plain formula by tests, in Triton's interpreter where there is no GPU. Imported only when asked for; needs the package
triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from blurify.nn.blocks import Max
from blurify.nn.lines import Line
from blurify.nn.padding import fold_by

_MODES = {"zeros": 0, "replicate": 1, "circular": 2, "reflect": 3}
_BLOCK = 256


@triton.jit
def _source(i, n, mode: tl.constexpr):  # type: ignore[no-untyped-def]
    """`lines.source`; negative where there is a zero."""
    n = n + i * 0  # a tensor, also where the compiler knows it to be 1
    at = i
    if mode == 0:
        at = tl.where((i >= 0) & (i < n), i, -1)
    if mode == 1:
        at = tl.minimum(tl.maximum(i, 0), n - 1)
    if mode == 2:
        at = ((i % n) + n) % n
    if mode == 3:
        period = tl.maximum(2 * n - 2, 1)
        at = ((i % period) + period) % period
        at = tl.maximum(tl.minimum(at, 2 * n - 2 - at), 0)
    return at


@triton.jit
def _place(at, C, H, W, last: tl.constexpr):  # type: ignore[no-untyped-def]
    """(n, c, h, w) of the numbers of a tensor, in the order in which they lie."""
    if last:
        c, rest = at % C, at // C
        w, rest = rest % W, rest // W
        h, n = rest % H, rest // H
    else:
        w, rest = at % W, at // W
        h, rest = rest % H, rest // H
        c, n = rest % C, rest // C
    return n, c, h, w


@triton.jit
def _first_largest(x, base, h, w, H, W, sh, sw, live, KH: tl.constexpr, KW: tl.constexpr, PH, PW, DH, DW):  # type: ignore[no-untyped-def]
    """The maximum of the window of dense position (h, w), and which sample has it: the first one, or the last NaN."""
    best = tl.full(h.shape, float("-inf"), tl.float32)
    winner = h * 0 - 1
    for a in tl.static_range(KH):
        for b in tl.static_range(KW):
            r, s = h - PH + a * DH, w - PW + b * DW
            inside = live & (r >= 0) & (r < H) & (s >= 0) & (s < W)
            value = tl.load(x + base + r * sh + s * sw, mask=inside, other=float("-inf")).to(tl.float32)
            better = inside & ((value > best) | (value != value) | (winner < 0))
            best = tl.where(better, value, best)
            winner = tl.where(better, r * W + s, winner)
    return best, winner


@triton.jit
def _filter(  # type: ignore[no-untyped-def]
    x, out, th, tw, total, C, H, W, DENSE_H, DENSE_W, OH, OW, xn, xc, xh, xw, SH, SW, LH, LW, PH, PW, DH, DW,
    TH: tl.constexpr, TW: tl.constexpr, MODE_H: tl.constexpr, MODE_W: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < total
    n, c, h, w = _place(at, C, OH, OW, LAST)
    base = n.to(tl.int64) * xn + c.to(tl.int64) * xc
    found = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TH):
        r = _source(h * SH - LH + i, DENSE_H, MODE_H)
        for j in tl.static_range(TW):
            s = _source(w * SW - LW + j, DENSE_W, MODE_W)
            inside = live & (r >= 0) & (s >= 0)
            if KH * KW > 1:
                value, _ = _first_largest(x, base, r, s, H, W, xh, xw, inside, KH, KW, PH, PW, DH, DW)
                value = tl.where(inside, value, 0.0)
            else:
                value = tl.load(x + base + r * xh + s * xw, mask=inside, other=0.0).to(tl.float32)
            found += tl.load(th + i) * tl.load(tw + j) * value
    tl.store(out + at, found.to(out.dtype.element_ty), mask=live)


@triton.jit
def _spread(  # type: ignore[no-untyped-def]
    grad, out, th, tw, total, C, RH, RW, OH, OW, gn, gc, gh, gw, SH, SW,
    TH: tl.constexpr, TW: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < total
    n, c, h, w = _place(at, C, RH, RW, LAST)
    base = n.to(tl.int64) * gn + c.to(tl.int64) * gc
    found = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TH):
        r = h - i
        good = live & (r >= 0) & (r % SH == 0) & (r // SH < OH)
        for j in tl.static_range(TW):
            s = w - j
            inside = good & (s >= 0) & (s % SW == 0) & (s // SW < OW)
            value = tl.load(grad + base + (r // SH) * gh + (s // SW) * gw, mask=inside, other=0.0).to(tl.float32)
            found += tl.load(th + i) * tl.load(tw + j) * value
    tl.store(out + at, found.to(out.dtype.element_ty), mask=live)


@triton.jit
def _route(  # type: ignore[no-untyped-def]
    grad, x, out, total, C, H, W, DENSE_H, DENSE_W, gn, gc, gh, gw, xn, xc, xh, xw, PH, PW, DH, DW,
    KH: tl.constexpr, KW: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < total
    n, c, h, w = _place(at, C, H, W, LAST)
    base = n.to(tl.int64) * xn + c.to(tl.int64) * xc
    from_ = n.to(tl.int64) * gn + c.to(tl.int64) * gc
    found = tl.zeros((BLOCK,), tl.float32)
    for a in tl.static_range(KH):
        for b in tl.static_range(KW):
            r, s = h + PH - a * DH, w + PW - b * DW
            inside = live & (r >= 0) & (r < DENSE_H) & (s >= 0) & (s < DENSE_W)
            _, winner = _first_largest(x, base, r, s, H, W, xh, xw, inside, KH, KW, PH, PW, DH, DW)
            mine = inside & (winner == h * W + w)
            found += tl.load(grad + from_ + r * gh + s * gw, mask=mine, other=0.0).to(tl.float32)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=live)


def fits(lines: Sequence[Line], pool: Max | None, x: Tensor) -> bool:
    """Whether the kernels can do this: two dimensions, up to 8 taps and windows of up to 9, fewer than 2^31 numbers."""
    windows = 1 if pool is None else pool.kernel[0] * pool.kernel[-1]
    small = len(lines) == 2 and max(len(line.taps) for line in lines) <= 8 and windows <= 9
    return small and x.dim() == 4 and x.numel() < 2**31 and x.dtype in (torch.float16, torch.bfloat16, torch.float32)


def filtered(x: Tensor, lines: Sequence[Line], pool: Max | None, channels_last: bool) -> Tensor:
    """`blocks.filtered`."""
    kernel, padding, dilation = _of(pool)
    dense = pool.sizes(x.shape[2:]) if pool else list(x.shape[2:])
    sizes = [line.size(n) for line, n in zip(lines, dense, strict=True)]
    out = _empty(x, sizes, channels_last)
    th, tw = _taps(lines, x)
    _filter[_grid(out)](
        x, out, th, tw, out.numel(), x.shape[1], *x.shape[2:], *dense, *sizes, *x.stride(),
        lines[0].stride, lines[1].stride, lines[0].left, lines[1].left, *padding, *dilation,
        len(lines[0].taps), len(lines[1].taps), _MODES[lines[0].padding], _MODES[lines[1].padding], *kernel,
        channels_last, _BLOCK,
    )  # fmt: skip
    return out


def spread(
    grad: Tensor, lines: Sequence[Line], pool: Max | None, sizes: Sequence[int], x: Tensor | None, channels_last: bool
) -> Tensor:
    """`blocks.spread`."""
    kernel, padding, dilation = _of(pool)
    dense = pool.sizes(sizes) if pool else list(sizes)
    # The gradient of the map with what goes on beyond its borders; negative amounts crop, and get zeros.
    reach = [n + line.left + line.right for n, line in zip(dense, lines, strict=True)]
    padded = _empty(grad, reach, channels_last)
    th, tw = _taps(lines, grad)
    _spread[_grid(padded)](
        grad, padded, th, tw, padded.numel(), grad.shape[1], *reach, *grad.shape[2:], *grad.stride(),
        lines[0].stride, lines[1].stride, len(lines[0].taps), len(lines[1].taps), channels_last, _BLOCK,
    )  # fmt: skip
    for dim, line in enumerate(lines):
        padded = fold_by(padded, [(line.left, line.right) if d == dim else (0, 0) for d in range(2)], line.padding)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if pool is None or x is None:
        return padded.contiguous(memory_format=layout)
    out = _empty(grad, sizes, channels_last)
    _route[_grid(out)](
        padded, x, out, out.numel(), x.shape[1], *sizes, *dense, *padded.stride(), *x.stride(), *padding, *dilation,
        *kernel, channels_last, _BLOCK,
    )  # fmt: skip
    return out


def _of(pool: Max | None) -> tuple[tuple[int, ...], ...]:
    return (pool.kernel, pool.padding, pool.dilation) if pool else ((1, 1), (0, 0), (1, 1))


def _empty(like: Tensor, sizes: Sequence[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*like.shape[:2], *sizes)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _taps(lines: Sequence[Line], like: Tensor) -> list[Tensor]:
    return [torch.tensor(line.taps, dtype=torch.float32, device=like.device) for line in lines]


def _grid(out: Tensor) -> Any:
    return (triton.cdiv(out.numel(), _BLOCK),)
