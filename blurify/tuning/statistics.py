"""Batch norms and what their inputs look like: the first and second moments of each channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blurify.graph.structure import Inputs
from blurify.tuning.hooks import told_once


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


def norm_moments(model: nn.Module, batches: Sequence[Inputs], paths: Iterable[str]) -> dict[str, Moments]:
    """What enters some norms of a model over all batches, by path: of their first call; none for a norm never run."""
    tallies = {path: Tally() for path in paths}
    watched = {path: model.get_submodule(path) for path in tallies}
    for args, kwargs in batches:
        with told_once(watched, lambda path, x: tallies[path].add(x), given=True), torch.no_grad():
            model(*args, **kwargs)
    return {path: tally.moments for path, tally in tallies.items() if not tally.empty}


@torch.no_grad()
def move(norm: nn.Module, unmoved: nn.Module, original: Moments, converted: Moments) -> None:
    """Set a norm's statistics to the original's, moved by what changed between the two networks on the same pictures.

    What the training data had and a few pictures have not is kept: the running variance is scaled by the ratio of the
    two variances seen, and the running mean keeps its distance, in standard deviations, from the mean seen.

    Args:
        norm: of the converted model.
        unmoved: the same norm of the original.
        original, converted: what enters the two on the same pictures.
    """
    old_mean, old_variance = running(unmoved)
    floor = _LEAST * old_variance + torch.finfo(torch.float32).tiny  # a dead channel's ratio would be noise
    ratio = ((converted.variance + floor) / (original.variance + floor)).clamp(1 / _MOST, _MOST)
    put(norm, converted.mean + (old_mean - original.mean) * ratio.sqrt(), old_variance * ratio)


def running(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A norm's running mean and variance, float64 (C,) on the CPU."""
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean.detach().double().cpu(), variance.detach().double().cpu()


@torch.no_grad()
def put(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Set a norm's running mean and variance."""
    norm.running_mean.copy_(mean)  # type: ignore[operator,union-attr]
    norm.running_var.copy_(variance)  # type: ignore[operator,union-attr]


_LEAST = 1e-3
_MOST = 16.0
