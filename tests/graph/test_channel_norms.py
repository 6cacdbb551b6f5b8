"""Norms over the channels are pointwise in space: what follows them is reached through them, in any spelling."""

from __future__ import annotations

from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify

IMAGE = torch.randn(2, 3, 21, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """A dense convolution, a strided one, a function of what that makes, and a dense one at the end."""

    def __init__(self, function: Any, width: int = 6) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, 2, 1)
        self.norm, self.last = nn.LayerNorm(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2d = timm.layers.LayerNorm2d(width)
        self.groups = nn.GroupNorm(1, width)
        self.linear = nn.Linear(width, width)
        self.scale, self.shift = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        nn.init.uniform_(self.norm.weight), nn.init.uniform_(self.norm.bias)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.down(self.first(x))))


def written_out(self: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + 1e-6)
    return F.gelu(self.scale[:, None, None] * x + self.shift[:, None, None])


def root_mean_square(self: Any, x: Tensor) -> Tensor:
    return F.relu(x * torch.rsqrt(x.pow(2).mean(dim=1, keepdim=True) + 1e-6) * self.scale.view(1, -1, 1, 1))


def by_var_mean(self: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, keepdim=True, unbiased=False)
    return F.silu((x - mean) * (variance + 1e-6).rsqrt())


POINTWISE = {
    "moved, normed, moved back": lambda self, x: self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu(),
    "the activation with channels last": lambda self, x: F.gelu(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),
    "by moving a dimension": lambda self, x: self.norm(x.movedim(1, -1)).movedim(-1, 1).relu(),
    "by two transpositions": lambda self, x: (
        self.norm(x.transpose(1, 2).transpose(2, 3)).transpose(2, 3).transpose(1, 2).relu()
    ),
    "timm's": lambda self, x: F.gelu(self.norm2d(x)),
    "written out": written_out,
    "root mean square": root_mean_square,
    "by var_mean": by_var_mean,
    "unit length": lambda self, x: F.normalize(x, dim=1).relu(),
    "scaled with channels last": lambda self, x: (
        (self.norm(x.permute(0, 2, 3, 1)) * self.scale + self.shift).relu().permute(0, 3, 1, 2)
    ),
}

NOT_POINTWISE = {
    "over the positions too": lambda self, x: self.groups(x).relu(),
    "over the last dimension, which is a width": lambda self, x: F.layer_norm(x, (x.size(-1),)).relu(),
    "response over positions": lambda self, x: (x * x.norm(dim=(2, 3), keepdim=True)).relu(),
    "no activation": lambda self, x: self.norm2d(x),
    "never moved back before what mixes": lambda self, x: self.linear(F.gelu(self.norm(x.permute(0, 2, 3, 1)))).permute(
        0, 3, 1, 2
    ),
    "rows for channels": lambda self, x: x.permute(0, 2, 1, 3).softmax(1).permute(0, 2, 1, 3).relu(),
}


def converted(function: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = Net(function).double().eval()
    return net, blurify.convert(net, example_inputs=IMAGE)


@pytest.mark.parametrize("name", POINTWISE)
def test_the_blur_goes_behind_the_activation(name: str) -> None:
    net, out = converted(POINTWISE[name])
    assert [site.rule for site in blurify.plan_of(out).sites] == ["after-activation"]
    with torch.no_grad():
        net.down.stride = (1, 1)
        dense = net.function(net, net.down(net.first(IMAGE)))
        expected = net.last(blurify.BlurPool2d(2)(dense))
        torch.testing.assert_close(out(IMAGE), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NOT_POINTWISE)
def test_what_mixes_positions_or_bends_nothing_is_not_passed(name: str) -> None:
    _, out = converted(NOT_POINTWISE[name])
    assert [site.rule for site in blurify.plan_of(out).sites] == ["blurred-input"]


def test_patches_are_still_blurred_before() -> None:
    """What a ConvNeXt subsamples by keeps the cheap form."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 2, 2), timm.layers.LayerNorm2d(8), nn.GELU())
    assert [site.rule for site in blurify.inspect(net, IMAGE.float()).sites] == ["blurred-input"]


def test_statistics_bend_nothing_by_themselves() -> None:
    """The squares and roots of a norm are no activation: the blur waits for the one behind it."""
    plan = blurify.inspect(Net(written_out), IMAGE.float())
    assert plan.sites[0].rule == "after-activation"
    edits = [edit for edit in plan.sites[0].edits if hasattr(edit, "path")]
    assert not edits or all("gelu" in edit.path[-1][1] for edit in edits), plan.sites[0].edits
