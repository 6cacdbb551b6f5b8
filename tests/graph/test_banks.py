"""Fixed filter banks that keep all of their input are left alone; what loses something is not one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify
from blurify.graph.banks import _is_invertible

ROOT = math.sqrt(3)
HAAR = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
DAUBECHIES = torch.tensor([1 + ROOT, 3 + ROOT, 3 - ROOT, 1 - ROOT]) / (4 * math.sqrt(2))
LONGER = torch.stack([DAUBECHIES, DAUBECHIES.flip(0) * torch.tensor([1.0, -1.0, 1.0, -1.0])])


def in_two_dimensions(bank: Tensor) -> Tensor:
    """(bands, taps) -> (bands^2, 1, taps, taps), every product of two."""
    return torch.einsum("ai,bj->abij", bank, bank).flatten(0, 1)[:, None]


class Bank(nn.Module):
    def __init__(self, kernel: Tensor, how: str = "buffer") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        kernel = kernel.repeat(4, 1, 1, 1)
        if how == "buffer":
            self.register_buffer("kernel", kernel)
        else:
            self.kernel = nn.Parameter(kernel, requires_grad=how == "trained")

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.first(x).relu(), self.kernel, stride=2, groups=4).relu()


def rule(model: nn.Module) -> str:
    (site,) = blurify.inspect(model, torch.zeros(1, 3, 32, 32)).sites
    return site.rule


@pytest.mark.parametrize("bank", [HAAR, LONGER, torch.eye(2)])
def test_a_bank_that_keeps_all_is_left_alone(bank: Tensor) -> None:
    assert rule(Bank(in_two_dimensions(bank))) == "keeps-all"


def test_a_bank_that_loses_something_is_not() -> None:
    kernel = in_two_dimensions(HAAR)
    assert rule(Bank(kernel[:3])) != "keeps-all"  # a band is missing
    assert rule(Bank(kernel[[0, 1, 2, 2]])) != "keeps-all"  # one twice
    assert rule(Bank(kernel, "trained")) != "keeps-all" and rule(Bank(kernel, "frozen")) != "keeps-all"


def test_learned_weights_that_became_buffers_are_no_bank() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, 48, 3, 2, 1), nn.ReLU())
    before = [site.rule for site in blurify.inspect(net, torch.zeros(1, 3, 32, 32)).sites]
    for layer in (net[0], net[2]):
        weight = layer.weight.detach()
        del layer.weight
        layer.register_buffer("weight", weight)
    assert [site.rule for site in blurify.inspect(net, torch.zeros(1, 3, 32, 32)).sites] == before


@pytest.mark.parametrize(
    "bank", [HAAR, LONGER, LONGER[:, :3], torch.rand(2, 4, generator=torch.Generator().manual_seed(1))]
)
def test_against_the_rank_of_the_whole_circular_transform(bank: Tensor) -> None:
    """As a plain matrix from 32 samples to 32 values."""
    rows = []
    for start in range(0, 32, 2):
        for band in bank.double():
            row = torch.zeros(32, dtype=torch.float64)
            for tap, value in enumerate(band):
                row[(start + tap) % 32] += value
            rows.append(row)
    values = torch.linalg.svdvals(torch.stack(rows))
    assert _is_invertible(bank.double()[:, None], (2,), (1,)) == bool(values[-1] > 0.1 * values[0])
