"""Continue a signal beyond its borders, by any amount and in every way that a blur can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("reflect", "replicate", "zeros", "circular")


def extend_by(x: Tensor, pads: Sequence[tuple[int, int]], padding: str) -> Tensor:
    """Continue x by `pads` (left, right) samples, one pair a spatial dimension; negative amounts crop instead."""
    amounts = [(max(left, 0), max(right, 0)) for left, right in pads]
    if padding in ("reflect", "circular"):
        for dim, (left, right) in enumerate(amounts):
            # F.pad goes on for less than a period. An export with dynamic sizes asks that the map is larger than that.
            if max(left, right) and x.shape[dim + 2] <= max(left, right):
                x = _extend_periodically(x, dim + 2, left, right, padding)
                amounts[dim] = (0, 0)
    if any(map(any, amounts)):
        x = F.pad(x, flat_pads(amounts), "constant" if padding == "zeros" else padding)
    for dim, (left, right) in enumerate(pads):
        if left < 0 or right < 0:
            x = x.narrow(dim + 2, max(-left, 0), x.shape[dim + 2] - max(-left, 0) - max(-right, 0))
    return x


def _extend_periodically(x: Tensor, dim: int, left: int, right: int, padding: str) -> Tensor:
    """Continue a dimension of size n beyond its period: n samples (circular), 2n - 2 (reflect; 1 for n = 1)."""
    n = x.shape[dim]
    index = torch.arange(-left, n + right, device=x.device)
    if padding == "circular":
        return x.index_select(dim, index % n)
    index = index % max(2 * n - 2, 1)
    return x.index_select(dim, torch.minimum(index, 2 * n - 2 - index).clamp_(min=0))


def flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """The amounts in the order of F.pad: last dimension first."""
    return [amount for pair in reversed(pads) for amount in pair]
