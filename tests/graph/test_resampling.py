"""Resampling sites: everything that makes a signal larger or smaller is listed, by module, function or hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import blurify
from blurify.graph.recorder import trace
from blurify.graph.resampling import find_resampling

SIZES = {1: (16,), 2: (16, 16), 3: (8, 16, 16)}


class Forward(nn.Module):
    """A forward given as a function of a convolution's features."""

    def __init__(self, function: Any, rank: int = 2, **modules: nn.Module) -> None:
        super().__init__()
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](2, 4, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x))


def listed(model: nn.Module, rank: int = 2) -> list[tuple[str, str, tuple[int, ...]]]:
    seen = trace(model, ((torch.zeros(1, 2, *SIZES[rank]),), {}))
    return [(site.name, site.op.kind, site.op.stride) for site in find_resampling(seen)]


def of(function: Any, rank: int = 2) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, stride) for _, kind, stride in listed(Forward(lambda self, x: function(x), rank), rank)]


def last(rank: int, factor: int) -> tuple[int, ...]:
    return (1,) * (rank - 1) + (factor,)


# --- modules


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_modules_of_every_rank_are_listed_by_their_path(rank: int) -> None:
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    adaptive = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
    adaptive_max = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[rank - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
    unpool = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)[rank - 1]
    net = Forward(
        lambda self, x: (self.t(x), self.up(x), self.down(x), self.a(x), self.m(x), self.un(*self.p(x))),
        rank,
        t=transposed(4, 3, 3, last(rank, 2)),
        up=nn.Upsample(scale_factor=3),
        down=nn.Upsample(scale_factor=0.5),
        a=adaptive(4),
        m=adaptive_max(2),
        p=pool(2, return_indices=True),
        un=unpool(2),
    )
    size = SIZES[rank]
    assert listed(net, rank) == [
        ("t", "convtranspose", last(rank, 2)),
        ("up", "upsample", (3,) * rank),
        ("down", "downsample", (2,) * rank),
        ("a", "adaptiveavgpool", tuple(n // 4 for n in size)),
        ("m", "adaptivemaxpool", tuple(n // 2 for n in size)),
        ("un", "maxunpool", (2,) * rank),
    ]


def test_modules_of_images() -> None:
    net = Forward(
        lambda self, x: (self.ps(x), self.pu(x), self.un(x), self.dc(x, self.off(x)), self.fo(self.un(x))),
        ps=nn.PixelShuffle(2), pu=nn.PixelUnshuffle(2), un=nn.Unfold(3, stride=(2, 1)), off=nn.Conv2d(4, 18, 3, 2, 1),
        dc=torchvision.ops.DeformConv2d(4, 4, 3, 2, 1), fo=nn.Fold((16, 16), 3, stride=(2, 1)),
    )  # fmt: skip
    assert listed(net) == [
        ("ps", "pixelshuffle", (2, 2)),
        ("pu", "pixelunshuffle", (2, 2)),
        ("dc", "deformconv", (2, 2)),
        ("fo", "fold", (2, 1)),
    ]


# --- functions, and by hand


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("function", "kind", "factor"),
    [
        (lambda x: F.interpolate(x, scale_factor=2), "upsample", 2),
        (lambda x: F.interpolate(x, size=[n // 2 for n in x.shape[2:]], mode="area"), "downsample", 2),
        (lambda x: (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[x.dim() - 3](
            x, torch.ones(4, 1, *(2,) * (x.dim() - 2), device=x.device), stride=2), "convtranspose", 2),
        (lambda x: x.repeat_interleave(2, -1), "repeat", -2),
    ],
)  # fmt: skip
def test_functions_of_every_rank(rank: int, function: Any, kind: str, factor: int) -> None:
    assert of(function, rank) == [(kind, last(rank, -factor) if factor < 0 else (factor,) * rank)]


def in_a_batch(x: Tensor) -> Tensor:
    """As detectors put pictures of different sizes into one tensor."""
    batch = x.new_full((1, 4, 20, 20), 0.0)
    batch[0, :, :16, :16].copy_(x[0])
    return batch


def zeros_between(x: Tensor) -> Tensor:
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    out[:, :, ::2, ::2] = x
    return out


def interleaved(x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], 1, 2 * x.shape[2], 2 * x.shape[3])
    for i in (0, 1):
        for j in (0, 1):
            out[:, :, i::2, j::2] = x[:, 2 * i + j : 2 * i + j + 1]
    return out


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(1, 4, 32, 32), ("repeat", (2, 2))),
        (lambda x: x.reshape(1, 4, 16, 1, 16, 1).tile(1, 1, 1, 3, 1, 1).flatten(4).flatten(2, 3), ("repeat", (3, 1))),
        (lambda x: F.pad(x.reshape(1, 4, 16, 1, 16, 1), (0, 1, 0, 0, 0, 1)).view(1, 4, 32, 32), ("zerostuff", (2, 2))),
        (lambda x: torch.stack([x, torch.zeros_like(x)], -1).flatten(-2), ("zerostuff", (1, 2))),
        (lambda x: F.pixel_shuffle(input=x, upscale_factor=2), ("pixelshuffle", (2, 2))),
        (lambda x: F.interpolate(input=x, scale_factor=2), ("upsample", (2, 2))),
        (lambda x: torch.stack([x, x, x], -1).flatten(-2), ("repeat", (1, 3))),
        (lambda x: torch.stack([x, -x], -1).flatten(-2), ("resample", (1, 2))),
        (lambda x: F.interpolate(in_a_batch(x), scale_factor=2), ("upsample", (2, 2))),
        (zeros_between, ("zerostuff", (2, 2))),
        (interleaved, ("pixelshuffle", (2, 2))),
        (lambda x: x.view(1, 1, 2, 2, 16, 16).permute(0, 1, 4, 2, 5, 3).reshape(1, 1, 32, 32),
         ("pixelshuffle", (2, 2))),
        (lambda x: x.unfold(2, 6, 2).unfold(3, 4, 4).flatten(4).amax(-1), ("unfold", (2, 4))),
        (lambda x: torch.kron(x, torch.ones(1, 1, 2, 2, device=x.device)), ("repeat", (2, 2))),
        (lambda x: x[:, :, torch.arange(0, 16, 2)], ("resample", (2, 1))),
        (lambda x: x.index_select(3, torch.arange(32, device=x.device) // 2), ("resample", (1, 2))),
        (lambda x: F.grid_sample(x, x.new_zeros(1, 4, 4, 2), align_corners=False), ("gridsample", (4, 4))),
        (lambda x: torchvision.ops.roi_align(x, [x.new_zeros(1, 4)], 4), ("roi", (4, 4))),
        (lambda x: torch._C._nn.upsample_nearest2d(x, (32, 32)), ("upsample", (2, 2))),
        (lambda x: torch.ops.aten.upsample_bilinear2d.vec(x, None, False, [2.0, 2.0]), ("upsample", (2, 2))),
    ],
)  # fmt: skip
def test_other_forms(function: Any, expected: Any) -> None:
    assert expected in of(function)


class Doubled(torch.autograd.Function):
    """A kernel of somebody's own: no torch call shows what it does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])


def test_calls_that_nobody_knows() -> None:
    assert of(Doubled.apply) == [("resample", (2, 2))]
    with torch.library._scoped_library("blurify_test", "DEF") as library:
        library.define("halve(Tensor x) -> Tensor")
        library.impl("halve", lambda x: x.new_empty(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2), "Meta")
        assert of(torch.ops.blurify_test.halve) == [("resample", (2, 2))]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_avg_pool2d(x, 16),
        lambda x: F.interpolate(x, scale_factor=1.0),
        lambda x: F.conv_transpose2d(x, x.new_ones(4, 4, 3, 3)),
        lambda x: x.view(1, 2, 2, 16, 16).transpose(1, 2).reshape(1, 4, 16, 16),  # channels in another order
        lambda x: F.pad(x, (8, 8, 8, 8)),
        lambda x: x[:, :, :4, :4],
        lambda x: torch.cat([x, x], 3),
        lambda x: x.repeat(1, 1, 2, 2),  # a tile beside another
        lambda x: x.mean(2, keepdim=True) * x,
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
        lambda x: F.softmax(x.flatten(2).transpose(1, 2) @ x.flatten(2), -1),
        lambda x: x.flatten(2).transpose(1, 2).reshape(1, 256, 2, 2).transpose(1, 2),  # heads
        lambda x: x.view(1, 4, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(4, 4, 8, 8),  # windows
        lambda x: x.view(1, 4, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 4, 4, 64),  # patches
        lambda x: x.view(1, 4, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 16, 8, 8),  # and as channels
        lambda x: F.unfold(x, 2, stride=2) * 2,
        lambda x: torch.stack((x[..., 0, ::2], x[..., 1, 1::2]), 2).reshape(1, 4, 16),  # coordinates of boxes
        lambda x: x + F.interpolate(torch.ones(1, 4, 8, 8, device=x.device), size=x.shape[2:]),  # a table
        lambda x: F.interpolate(torch.zeros_like(x)[:, :, ::2, ::2], scale_factor=2.0) + x,
    ],
)
def test_what_is_no_resampling(function: Any) -> None:
    assert of(function) == []


# --- what is said of them


def rules(model: nn.Module, recipe: Any = None, x: Tensor | None = None) -> dict[str, str]:
    plan = blurify.inspect(model, torch.zeros(1, 2, 16, 16) if x is None else x, recipe)
    assert all(site.reason and bool(site.edits) == (site.action == "blur") for site in plan.sites)
    return {site.name: site.rule for site in plan.sites}


def test_reasons_with_and_without_a_recipe_that_asks() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        up = F.interpolate(self.t(x), scale_factor=2, mode="bilinear")
        spread = F.interpolate(F.adaptive_avg_pool2d(x, 1), size=x.shape[2:])
        small = F.interpolate(x, size=(8, 8), mode="bilinear", antialias=True)
        return up, spread, small, F.interpolate(x, size=(13, 13)), self.p(x), F.interpolate(1 * (x > 0), scale_factor=2)

    net = Forward(forward, t=nn.ConvTranspose2d(4, 4, 4, 2, 1), p=nn.PixelUnshuffle(2))
    never = {
        ":interpolate": "interpolates", ":interpolate#2": "spread", ":interpolate#3": "antialiased",
        ":interpolate#4": "little", ":interpolate#5": "whole-numbers",
    }  # fmt: skip
    assert rules(net) == {**never, "t": "upsampling", "p": "resampling"}
    assert rules(net, "decoder") == {**never, "t": "after-upsampling", "p": "resampling"}
    assert rules(net, "resampling") == {**never, "t": "after-upsampling", "p": "before-resampling"}
    skips = {"resampling": {"up": "blur"}, "skip": {"kinds": ["convtranspose"]}}
    assert rules(net, skips)["t"] == "recipe"


class Filtered(nn.Module):
    """Upsampling with a fixed filter: behind zeros by hand, and as a transposed convolution's own kernel."""

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3, 3, 1]) / 4
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.register_buffer("kernel", (taps[:, None] * taps).expand(4, 1, 4, 4).clone())

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(self.conv(x), self.kernel, stride=2, padding=1, groups=4)
        return F.conv2d(F.pad(zeros_by_padding(x), (2, 1, 2, 1)), self.kernel, groups=4)


def zeros_by_padding(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)


def test_what_filters_already_is_left_alone() -> None:
    assert set(rules(Filtered(), "decoder").values()) == {"already-filtered", "other-resampling"}
    delta = Filtered()
    delta.kernel = torch.zeros(4, 1, 4, 4)
    delta.kernel[..., 1, 1] = 1.0
    assert rules(delta, "decoder")[":conv_transpose2d"] == "after-upsampling"


def test_modules_that_do_not_run_are_listed() -> None:
    net = Forward(lambda self, x: x, t=nn.ConvTranspose2d(4, 4, 2, 2), u=nn.Upsample(scale_factor=2))
    assert rules(net) == {"t": "not-run", "u": "not-run"}
