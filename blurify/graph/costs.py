"""Multiply-adds of a forward, counted where they happen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from blurify.graph.modes import DispatchMode


class MultiplyAdds(DispatchMode):
    """Counts the multiply-adds of the convolutions and matrix products that run while it is active.

    By torch's own formulas (`torch.utils.flop_counter`). Its `FlopCounterMode` is not used: it follows modules by
    hooks that every thread shares.

    Attributes:
        total: what was counted.
        is_counting: whether it is active.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.is_counting = False

    def __enter__(self) -> Any:
        self.is_counting = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.is_counting = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None and "attention" in str(func):  # a fused kernel that torch has no formula for
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=out) // 2
        return out

    def add_recurrent(self, tokens: Tensor, weights: list[Tensor]) -> None:
        """Count an LSTM that was not run: every token meets every weight matrix once."""
        count = math.prod(tokens.shape[:-1])
        self.total += count * sum(weight.numel() for weight in weights if weight.ndim == 2)


LSTM: Callable[..., Any] = torch._VF.lstm  # type: ignore[attr-defined]
"""The torch call of an LSTM, whose meta kernel is slow and not run."""
