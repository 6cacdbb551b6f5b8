"""What filters already, in every spelling that people use; and what looks like it, and does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify
from blurify.graph.filters import aliased_share, response

IMAGE = torch.zeros(1, 3, 32, 32)
FIR = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
BINOMIAL = torch.tensor([1.0, 2.0, 1.0]) / 4


class Around(nn.Module):
    """A layer behind a learned, dense convolution of 4 channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv2d(3, 4, 3, padding=1), layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(self.first(x).relu())


def rules(layer: nn.Module, inputs: Any = IMAGE) -> set[str]:
    return {site.rule for site in blurify.inspect(Around(layer), inputs).sites}


def resampled(x: Tensor, taps: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Upsample by zeros, filter, subsample: one image a channel, as generators write it in plain torch."""
    _, channels, height, width = x.shape
    kernel = taps[:, None] * taps[None]
    out = x.reshape(-1, height, 1, width, 1, 1)
    out = F.pad(out, [0, 0, 0, up - 1, 0, 0, 0, up - 1]).view(-1, height * up, width * up, 1)
    out = F.pad(out, [0, 0, *pad, *pad])
    out = out[:, 0 : out.shape[1], 0 : out.shape[2], :].permute(0, 3, 1, 2)
    out = out.reshape([-1, 1, height * up + sum(pad), width * up + sum(pad)])
    out = F.conv2d(out, torch.flip(kernel, [0, 1]).view(1, 1, *kernel.shape).to(out.dtype))
    size = height * up + sum(pad) - len(taps) + 1, width * up + sum(pad) - len(taps) + 1
    out = out.reshape(-1, 1, *size).permute(0, 2, 3, 1)[:, ::down, ::down, :]
    return out.view(-1, channels, out.shape[1], out.shape[2])


class FilteredConv(nn.Module):
    """A FIR filter in views and pads, then a strided convolution of scaled weights: a discriminator's down-sampling."""

    def __init__(self, taps: Tensor = FIR) -> None:
        super().__init__()
        self.register_buffer("taps", taps)
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(F.conv2d(resampled(x, self.taps, pad=(2, 2)), self.weight * 0.1, stride=2), 0.2)


class FilteredSlice(FilteredConv):
    def forward(self, x: Tensor) -> Tensor:
        return resampled(x, self.taps, down=2, pad=(2, 1))


class Depthwise(nn.Module):
    """A fixed depthwise kernel, with a stride of its own or before something strided."""

    def __init__(self, kernel: Any, *, stride: int = 2, after: Any = None, how: str = "buffer") -> None:
        super().__init__()
        self.stride, self.after = stride, after
        kernel = torch.as_tensor(kernel)
        kernel = kernel[:, None] * kernel[None] if kernel.dim() == 1 else kernel
        kernel = kernel.expand(4, 1, *kernel.shape[-2:]).clone()
        if how == "buffer":
            self.register_buffer("kernel", kernel)
        elif how == "attribute":
            self.kernel = kernel
        else:
            self.kernel = nn.Parameter(kernel, requires_grad=how == "trained")

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel.to(x), stride=self.stride, groups=x.shape[1])
        return x if self.after is None else self.after(x)


class Root(nn.Module):
    """A pool in the 2-norm: squares are averaged by a fixed window, of a kernel that is made when it is first seen."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is None:
            window = torch.hann_window(5, periodic=False)[1:-1]
            window = window[:, None] * window[None]
            self.kernel = (window / window.sum()).repeat(x.shape[1], 1, 1, 1).to(x)
        return torch.sqrt(F.conv2d(x**2, self.kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12)


class Diagonal(nn.Module):
    """A kernel for all channels that is zero off the diagonal, filled in anew at every run."""

    def __init__(self, taps: Tensor = FIR, mixed: bool = False) -> None:
        super().__init__()
        self.mixed = mixed
        self.register_buffer("taps", taps[:, None] * taps[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), "reflect")
        weight = x.new_zeros([x.shape[1], x.shape[1], *self.taps.shape])
        rows = torch.arange(x.shape[1], device=x.device)
        weight[rows, rows] = self.taps.to(weight)[None].expand(x.shape[1], -1, -1)
        if self.mixed:
            weight = weight + weight.flip(0)
        return F.conv2d(x, weight, stride=2)


class Halves(nn.Module):
    """Rows, then columns; the stride comes with each or behind both."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.together = together
        self.register_buffer("taps", torch.tensor([1.0, 1.0]) / 2)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.taps.view(1, 1, 2, 1).repeat(4, 1, 1, 1), self.taps.view(1, 1, 1, 2).repeat(4, 1, 1, 1)
        if self.together:
            return F.max_pool2d(F.conv2d(F.conv2d(x, rows, groups=4), columns, groups=4), 1, 2)
        return F.conv2d(F.conv2d(x, rows, stride=(2, 1), groups=4), columns, stride=(1, 2), groups=4)


FILTERED = {
    "views and pads, then a conv": FilteredConv(),
    "views and pads, then a slice": FilteredSlice(),
    "two-norm pool": Root(),
    "diagonal": Diagonal(),
    "buffer": Depthwise(BINOMIAL),
    "attribute": Depthwise(BINOMIAL, how="attribute"),
    "frozen": Depthwise(BINOMIAL, how="frozen"),
    "halves, strided": Halves(False),
    "halves, then a pool": Halves(True),
    "then a conv": Depthwise(BINOMIAL, stride=1, after=nn.Conv2d(4, 4, 3, 2, 1)),
    "frozen, then a crop and a pool": Depthwise(
        BINOMIAL, stride=1, how="frozen", after=lambda x: F.max_pool2d(x[:, :, 1:-1, 1:-1].contiguous(), 2)
    ),
    "a dense average pool": nn.Sequential(nn.AvgPool2d(2, 1), nn.Conv2d(4, 4, 3, 2, 1)),
}

NOT_FILTERED = {
    "trained": Depthwise(BINOMIAL, how="trained"),
    "a frozen layer": nn.Conv2d(4, 4, 3, 2, 1, groups=4).requires_grad_(False),
    "zero-sum": Depthwise(torch.tensor([-1.0, 2.0, -1.0])),
    "sharpening": Depthwise(torch.tensor([-1.0, 4.0, -1.0]) / 2),
    "a delta": FilteredConv(torch.tensor([0.0, 1.0, 0.0, 0.0])),
    "mixes channels": Diagonal(mixed=True),
    "only rows are filtered": Depthwise(
        torch.tensor([[0.0, 0, 0], [1, 2, 1], [0, 0, 0]]) / 4, stride=1, after=nn.MaxPool2d(2)
    ),
    "an activation between": Depthwise(BINOMIAL, stride=1, after=nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))),
    "a filter that subsamples itself": Depthwise(BINOMIAL, stride=2, after=nn.MaxPool2d(2)),
    "moved to channels": Depthwise(BINOMIAL, stride=1, after=nn.Sequential(nn.PixelUnshuffle(2), nn.MaxPool2d(2))),
}


@pytest.mark.parametrize("name", FILTERED)
def test_a_fixed_low_pass_is_known_in_any_spelling(name: str) -> None:
    assert rules(FILTERED[name]) == {"already-filtered"}


@pytest.mark.parametrize("name", NOT_FILTERED)
def test_what_lets_through_what_would_alias_is_no_filter(name: str) -> None:
    assert rules(NOT_FILTERED[name]) - {"already-filtered"}


def test_freezing_a_model_changes_no_plan() -> None:
    """Only values tell a filter from what was learned and then frozen."""
    torch.manual_seed(0)
    net = Around(nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.MaxPool2d(2)))
    before = [site.rule for site in blurify.inspect(net, IMAGE).sites]
    assert [site.rule for site in blurify.inspect(net.requires_grad_(False), IMAGE).sites] == before


def test_the_share_is_that_of_the_energy_beyond_the_new_limit() -> None:
    """Against sines of every frequency, filtered and measured one by one."""
    taps = FIR
    positions = torch.arange(64, dtype=torch.float64)
    power = []
    for index in range(-31, 33):
        wave = torch.exp(2j * torch.pi * index / 64 * positions)
        out = sum(tap * wave.roll(-shift) for shift, tap in enumerate(taps.tolist()))
        power.append((abs(index) / 64 > 0.25, float(out.abs().pow(2).mean())))
    beyond = [value for is_beyond, value in power if is_beyond]
    expected = sum(beyond) / len(beyond) / float(taps.sum()) ** 2
    assert aliased_share(response(taps.view(1, 1, 4)), (2,)) == pytest.approx(expected, rel=1e-6)


# --- the stem


class Fixed(nn.Module):
    """Something fixed between the image and the first learned convolution."""

    def __init__(self, function: Any, channels: int = 3) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("binomial", (BINOMIAL[:, None] * BINOMIAL[None]).repeat(3, 1, 1, 1))
        self.register_buffer("colours", torch.rand(3, 3))
        self.register_buffer("edges", torch.randn(6, 3, 3, 3))
        self.learned = nn.Parameter(torch.rand(3, 3))
        self.conv1, self.conv2 = nn.Conv2d(channels, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(self.function(self, x)).relu()).relu()


FIXED = {
    "normaliser": lambda self, x: (x * 2 - 1).clamp(-1, 1),
    "resampler": lambda self, x: F.interpolate(x, size=(48, 48), mode="bilinear", antialias=True),
    "blur": lambda self, x: F.conv2d(F.pad(x, (1, 1, 1, 1)), self.binomial, stride=2, groups=3),
    "average": lambda self, x: F.avg_pool2d(x, 2),
    "channels repeated": lambda self, x: x.mean(1, keepdim=True).repeat(1, 3, 1, 1),
    "colours": lambda self, x: torch.einsum("bchw,dc->bdhw", x, self.colours),
    "colours, channels last": lambda self, x: torch.matmul(x.permute(0, 2, 3, 1), self.colours).permute(0, 3, 1, 2),
    "filter bank": lambda self, x: F.conv2d(x, self.edges, padding=1)[:, :3],
}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_fixed_before_it_does_not_hide_the_stem(name: str) -> None:
    sites = blurify.inspect(Fixed(FIXED[name]), IMAGE).sites
    assert {site.name: site.rule for site in sites if site.name.startswith("conv")} == {
        "conv1": "stem", "conv2": "after-activation"
    }  # fmt: skip


def test_what_is_learned_before_it_makes_it_no_stem() -> None:
    net = Fixed(lambda self, x: torch.einsum("bchw,dc->bdhw", x, self.learned))
    assert [site.rule for site in blurify.inspect(net, IMAGE).sites] == ["after-activation"] * 2


def test_weights_that_are_buffers_make_no_stems() -> None:
    """A model whose weights were all turned to constants still has one stem."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU())
    for layer in (net[0], net[2]):
        weight = layer.weight.detach()
        del layer.weight
        layer.register_buffer("weight", weight)
    assert [site.rule for site in blurify.inspect(net, IMAGE).sites] == ["stem", "after-activation"]


class Halved(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", FIR.view(1, 1, 4))

    def forward(self, x):
        return F.conv1d(x, self.kernel, stride=2, padding=1)


class Made(nn.Module):
    """Makes its resamplers in its forward, as julius does for Demucs: modules that are none of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 3, 2, 1)

    def forward(self, x):
        x = Halved().to(x.device)(x)
        y = self.b(self.a(x).relu()).relu()
        return Halved().to(x.device)(y[:, :1])


def test_a_filter_that_the_forward_makes_is_one_too():
    rules = [site.rule for site in blurify.inspect(Made(), torch.zeros(1, 1, 64)).sites]
    assert rules == ["already-filtered", "after-activation", "already-filtered"]


@pytest.mark.parametrize("size", [2, 3, 5, 16])
def test_a_small_map_that_is_padded_by_more_than_itself_is_still_what_was_filtered(size):
    """As NASNet's 7x7 kernels have it at small inputs, which pad 3 samples to 9."""

    class Same(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(F.pad(x, (3, 3, 3, 3)), self.weight, self.bias)

    converted = blurify.convert(
        nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), Same(4, 4, 7, 2, groups=4), nn.Conv2d(4, 4, 1)).eval(),
        example_inputs=torch.zeros(1, 4, size, size),
    )
    assert [site.rule for site in blurify.plan_of(converted).converted] == ["blurred-input"]
