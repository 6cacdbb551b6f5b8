"""Continue a signal beyond its borders, by any amount and in every way that a blur can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blurify.nn.lines import source

PADDINGS = ("reflect", "replicate", "zeros", "circular", "causal")


def extend_by(x: Tensor, pads: Sequence[tuple[int, int]], padding: str) -> Tensor:
    """Continue x by `pads` (left, right) samples, one pair a spatial dimension; negative amounts crop instead."""
    if padding == "causal":  # a reflection would show the first windows what comes later
        x = extend_by(x, [*pads[:-1], (0, 0)], "reflect")
        return extend_by(x, [*[(0, 0)] * (len(pads) - 1), pads[-1]], "replicate")
    amounts = [(max(left, 0), max(right, 0)) for left, right in pads]
    if padding in ("reflect", "circular"):
        for dim, (left, right) in enumerate(amounts):
            # F.pad goes on for less than a period. An export with dynamic sizes asks that the map is larger than that.
            if max(left, right) and x.shape[dim + 2] <= max(left, right):
                x = _extend_periodically(x, dim + 2, left, right, padding)
                amounts[dim] = (0, 0)
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        return _by_pieces(x, pads, padding)
    if any(map(any, amounts)):
        x = F.pad(x, flat_pads(amounts), "constant" if padding == "zeros" else padding)
    for dim, (left, right) in enumerate(pads):
        if left < 0 or right < 0:
            x = x.narrow(dim + 2, max(-left, 0), x.shape[dim + 2] - max(-left, 0) - max(-right, 0))
    return x


def fold_by(grad: Tensor, pads: Sequence[tuple[int, int]], padding: str) -> Tensor:
    """The transpose of `extend_by`: what reached the samples beyond the borders goes to the samples they were made of.

    Args:
        grad: (N, C, *spatial), of what `extend_by` returned.
        pads, padding: as given to it.
    """
    if padding == "causal":
        grad = fold_by(grad, [*[(0, 0)] * (len(pads) - 1), pads[-1]], "replicate")
        return fold_by(grad, [*pads[:-1], (0, 0)], "reflect")
    for dim, (left, right) in enumerate(pads, start=2):
        if not left and not right:
            continue
        n = grad.shape[dim] - left - right
        inner = F.pad(grad, [0, 0] * (grad.dim() - 1 - dim) + [-left, -right])  # negative amounts crop, in a new tensor
        for place in (*range(-left, 0), *range(n, n + right)):
            at = source(place, n, padding)
            if at is not None:
                inner.select(dim, at).add_(grad.select(dim, left + place))
        grad = inner
    return grad


def _extend_periodically(x: Tensor, dim: int, left: int, right: int, padding: str) -> Tensor:
    """Continue a dimension of size n beyond its period: n samples (circular), 2n - 2 (reflect; 1 for n = 1)."""
    n = x.shape[dim]
    index = torch.arange(-left, n + right, device=x.device)
    if padding == "circular":
        return x.index_select(dim, index % n)
    index = index % max(2 * n - 2, 1)
    return x.index_select(dim, torch.minimum(index, 2 * n - 2 - index).clamp_(min=0))


def _by_pieces(x: Tensor, pads: Sequence[tuple[int, int]], padding: str) -> Tensor:
    """`extend_by`, for the tracing ONNX exporter, which loses the size of what F.pad or narrow returns.

    Later layers may need it (an adaptive pool, for example). Of slices with constant ends it knows the size.
    """
    for dim, (left, right) in enumerate(pads):
        dims = (slice(None),) * (dim + 2)

        def piece(begin: int | None, end: int | None, dims: tuple[slice, ...] = dims, x: Tensor = x) -> Tensor:
            return x[(*dims, slice(begin, end))]

        before, after = max(left, 0), max(right, 0)
        if padding == "circular":
            borders = [[piece(-before, None)] * bool(before), [piece(None, after)] * bool(after)]
        elif padding == "zeros":
            borders = [[torch.zeros_like(piece(None, 1))] * before, [torch.zeros_like(piece(None, 1))] * after]
        elif padding == "replicate":
            borders = [[piece(None, 1)] * before, [piece(-1, None)] * after]
        else:
            borders = [
                [piece(i, i + 1) for i in range(before, 0, -1)],
                [piece(-2 - i, -1 - i) for i in range(after)],
            ]
        inner = piece(max(-left, 0) or None, min(right, 0) or None) if min(left, right) < 0 else x
        x = torch.cat([*borders[0], inner, *borders[1]], dim + 2) if any(borders) else inner
    return x


def flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """The amounts in the order of F.pad: last dimension first."""
    return [amount for pair in reversed(pads) for amount in pair]
