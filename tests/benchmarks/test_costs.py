"""The costs that plans predict, against what is measured: small models in each run, twelve in the committed result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import blurify
from benchmarks import costs

ROOT = Path(__file__).resolve().parents[2]
NOTED = json.loads((ROOT / "benchmarks" / "costs.json").read_text())


class Shares(nn.Module):
    """Convolutions that are added before and after their nonlinearity, and a pool that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.wide, self.narrow = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 1, 2)
        self.short = nn.Conv2d(4, 6, 1, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.mean = nn.AvgPool2d(2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        y = torch.relu(self.wide(x) + self.narrow(x)) + self.short(x)
        return self.head(self.mean(self.pool(self.pool(y))))


SMALL = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None),
    "unet": lambda: costs.UNet(width=4),
    "shares": Shares,
}


@pytest.mark.parametrize("name", SMALL)
def test_predicted_costs_are_the_measured_ones(name: str) -> None:
    torch.manual_seed(0)
    row = costs.compared(name, SMALL[name]().eval(), torch.randn(2, 3, 64, 64))
    assert row["sites"]
    assert costs.within_limits(row), row["off"]
    for what in costs.LIMITS:  # a prediction that the conversion changes nothing would be off by more than the limit
        assert row["predicted"]["after"][what] != row["predicted"]["before"][what]


@pytest.mark.parametrize("recipe", ["aps", "flc", "full", "light", "aligned"])
def test_other_layers_are_asked_too(recipe: str) -> None:
    """Nothing is assumed of a layer: Fourier filters, chosen phases and dense stems are predicted as near."""
    torch.manual_seed(0)
    net, x = Shares().eval(), torch.randn(2, 3, 32, 32)
    plan = blurify.inspect(net, x, recipe, memory=True)
    found = costs.measure(blurify.convert(net, recipe, example_inputs=x, verify=False), x)
    assert plan.written is not None and plan.extra_written is not None
    assert plan.kept is not None and plan.extra_kept is not None
    assert plan.written + plan.extra_written == pytest.approx(found.written, rel=costs.LIMITS["written"])
    assert plan.kept + plan.extra_kept == pytest.approx(found.kept, rel=costs.LIMITS["kept"])


def test_the_measuring_by_hand() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu_(self.conv(x)).view(2, -1) * 2

    found = costs.measure(Net(), torch.zeros(1, 1, 8, 8))
    assert found.macs == 2 * 64 * 9
    assert found.written == 4 * 128 * 2  # the convolution's result, which relu_ overwrites, and the product
    assert found.kept == 4 * (64 + 128)  # the image for the weights' gradient, the result for the nonlinearity's


def test_twelve_models_are_within_the_limits() -> None:
    assert [row["model"] for row in NOTED["models"]] == list(costs.MODELS) and len(costs.MODELS) == 12
    assert all(map(costs.within_limits, NOTED["models"]))


def test_the_page_says_what_was_measured() -> None:
    assert (ROOT / "docs" / "costs.md").read_text() == costs.page(NOTED)
