"""Batch norms and what their inputs look like: the first and second moments of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def running_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that normalise by statistics of the training data, by path: batch norms of every make, frozen too."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(mean := getattr(module, "running_mean", None), Tensor)
        and isinstance(variance := getattr(module, "running_var", None), Tensor)
        and mean.ndim == 1
        and mean.shape == variance.shape
    }


@dataclass(frozen=True)
class Moments:
    """Of each channel over all batches and positions: float64 (C,)."""

    mean: Tensor
    variance: Tensor

    def same(self, other: Moments) -> bool:
        """Bit for bit."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.variance, other.variance)


class Tally:
    """Adds up moments batch by batch."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | None = None
        self._spread: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """One batch (N, C, ...), whose moments are merged as Chan, Golub and LeVeque (1979) do."""
        dims = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x.detach().float(), dims, correction=0)
        mean, variance, count = mean.double().cpu(), variance.double().cpu(), x.numel() // x.shape[1]
        if self._mean is None or self._spread is None:
            self._count, self._mean, self._spread = count, mean, variance * count
            return
        total = self._count + count
        step = mean - self._mean
        self._mean = self._mean + step * (count / total)
        self._spread = self._spread + variance * count + step.square() * (self._count * count / total)
        self._count = total

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return self._mean is None

    @property
    def moments(self) -> Moments:
        """Of all that was added."""
        assert self._mean is not None and self._spread is not None
        return Moments(self._mean, self._spread / self._count)


def moments_of(batches: Sequence[Tensor]) -> Moments:
    """The moments of the channels of some batches (N, C, ...)."""
    tally = Tally()
    for batch in batches:
        tally.add(batch)
    return tally.moments


@torch.no_grad()
def move(norm: nn.Module, original: Moments, converted: Moments) -> None:
    """Move a norm's statistics by what changed between two networks on the same pictures.

    What the training data had and a few pictures have not is kept: the running variance is scaled by the ratio of the
    two variances seen, and the running mean keeps its distance, in standard deviations, from the mean seen.
    """
    mean: Tensor = norm.running_mean  # type: ignore[assignment]
    variance: Tensor = norm.running_var  # type: ignore[assignment]
    old_mean, old_variance = mean.double().cpu(), variance.double().cpu()
    floor = _LEAST * old_variance + torch.finfo(torch.float32).tiny  # a dead channel's ratio would be noise
    ratio = ((converted.variance + floor) / (original.variance + floor)).clamp(1 / _MOST, _MOST)
    variance.copy_(old_variance * ratio)
    mean.copy_(converted.mean + (old_mean - original.mean) * ratio.sqrt())


_LEAST = 1e-3
_MOST = 16.0
