"""Whatever the geometry of a site: the original's output size, and with the identity filter its values."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from timm.layers import AvgPool2dSame, Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn

import blurify
from blurify.spec.edits import SetStride

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
LARGEST = {1: 17, 2: 12, 3: 7}
CHANNELS = 2

Sizes = list[tuple[int, ...]]


# --- the check


def prepared(net: nn.Module) -> nn.Module:
    """Float64, and no parameter or statistic with a value that would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point() and tensor.numel():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.25)
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.weight.data.sub_(0.75)
    return net.double().eval()


def signal(size: tuple[int, ...], channels: int = CHANNELS) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)


def check(
    net: nn.Module,
    sizes: Sizes,
    *,
    recipe: Any = None,
    rules: set[str] | None = None,
    sites: int = 1,
    channels: int = CHANNELS,
) -> blurify.Plan:
    """Convert at the first size; at all of them the output has the original's shape and, unfiltered, its values.

    `rules` are those that may have decided, so that a site which is skipped by mistake does not pass unseen.
    """
    prepared(net)
    example_inputs = signal(sizes[0], channels)
    blurred = blurify.convert(net, recipe, filter_size=4, example_inputs=example_inputs, verify=False)
    plan = blurify.plan_of(blurred)
    assert plan is not None
    assert len(plan.sites) == sites, plan.sites
    for site in plan.sites:
        assert site.reason
        if rules is not None:
            assert site.rule in rules, site
    same = blurify.convert(net, recipe, filter_size=1, example_inputs=example_inputs, verify=False)
    for size in sizes:
        x = signal(size, channels)
        with torch.no_grad():
            expected = net(x)
            actual = same(x)
            assert blurred(x).shape == expected.shape
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    return plan


# --- geometries


def tuples(rank: int, low: int, high: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(low, high)] * rank)


@st.composite
def strides(draw: Any, rank: int, high: int = 5) -> tuple[int, ...]:
    stride = draw(tuples(rank, 1, high))
    assume(max(stride) > 1)
    return stride


@st.composite
def sizes_from(draw: Any, least: tuple[int, ...], count: int = 3) -> Sizes:
    """Sizes at which a window fits, the smallest one among the likely ones."""
    most = LARGEST[len(least)]
    return [tuple(draw(st.integers(n, max(n, most))) for n in least) for _ in range(count)]


def least_size(kernel: Any, padding: Any, dilation: Any) -> tuple[int, ...]:
    return tuple(max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True))


@st.composite
def convs(draw: Any, ranks: tuple[int, ...] = (1, 2, 3)) -> tuple[int, dict[str, Any], Sizes]:
    rank = draw(st.sampled_from(ranks))
    kernel = draw(tuples(rank, 1, 5 if rank < 3 else 3))
    stride = draw(strides(rank))
    padding = draw(tuples(rank, 0, 3))
    dilation = draw(tuples(rank, 1, 3 if rank < 3 else 2))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    least = least_size(kernel, padding, dilation)
    if mode in ("reflect", "circular"):
        least = tuple(max(n, p + 1) for n, p in zip(least, padding, strict=True))
    groups = draw(st.sampled_from([1, 2]))
    options = {
        "kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode,
        "groups": groups, "bias": draw(st.booleans()),
    }  # fmt: skip
    return rank, options, draw(sizes_from(least))


@st.composite
def pools(draw: Any, kind: str) -> tuple[int, dict[str, Any], Sizes]:
    rank = draw(st.sampled_from((1, 2, 3)))
    kernel = draw(tuples(rank, 1, 5 if rank < 3 else 3))
    stride = draw(strides(rank))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    options: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding}
    options["ceil_mode"] = draw(st.booleans())
    dilation = (1,) * rank
    if kind == "max":
        dilation = options["dilation"] = draw(tuples(rank, 1, 3 if rank < 3 else 2))
    else:
        options["count_include_pad"] = draw(st.booleans())
    least = least_size(kernel, padding, dilation)
    if kind == "avg" and rank == 3:  # PyTorch asks for more there
        least = tuple(map(max, least, kernel))  # type: ignore[arg-type]
    return rank, options, draw(sizes_from(least))


# --- networks: a dense pointwise convolution first (the site is no stem), then the site


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def after(name: str, rank: int) -> nn.Module:
    return {
        "nothing": nn.Identity(),
        "relu": nn.ReLU(),
        "relu-inplace": nn.ReLU(inplace=True),
        "bn-relu": nn.Sequential(NORM[rank](CHANNELS), nn.ReLU()),
        "swish": Swish(),
        "hardswish": nn.Sequential(NORM[rank](CHANNELS), nn.Hardswish()),
    }[name]


AFTER = ("nothing", "relu", "relu-inplace", "bn-relu", "swish", "hardswish")
RULES = {
    "zhang2019": {"after-activation", "commuted", "blurred-input"},
    "light": {"commuted", "blurred-input"},
    "full": {"after-activation", "commuted", "blurred-input"},
}


def head(rank: int) -> nn.Module:
    return CONV[rank](CHANNELS, CHANNELS, 1)


def network(rank: int, *layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(head(rank), *layers, CONV[rank](CHANNELS, CHANNELS, 3, padding=1))


@given(case=convs(), name=st.sampled_from(AFTER), recipe=st.sampled_from(list(RULES)))
@settings(max_examples=150)
def test_conv_module(case: Any, name: str, recipe: str) -> None:
    rank, options, sizes = case
    conv = CONV[rank](CHANNELS, CHANNELS, **options)
    plan = check(network(rank, conv, after(name, rank)), sizes, recipe=recipe, rules=RULES[recipe])
    extent = [d * (k - 1) + 1 for d, k in zip(options["dilation"], options["kernel_size"], strict=True)]
    patchify = max(extent) > 1 and all(e <= s for e, s in zip(extent, options["stride"], strict=True))
    if name != "nothing" and recipe != "light" and not patchify:
        assert plan.sites[0].rule == "after-activation"


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("stride", [2, 3])
def test_pointwise_conv_that_pads(mode: str, stride: int) -> None:
    """It does not commute with the blur: its first sample is padding."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 1, stride, 1, padding_mode=mode)
    check(network(2, conv), [(6, 7), (5, 5), (8, 4)], rules={"blurred-input", "commuted"})


@given(case=convs(), recipe=st.sampled_from(["full", {"conv": {"stem": "split"}}]))
@settings(max_examples=40)
def test_stem(case: Any, recipe: Any) -> None:
    rank, options, sizes = case
    stem = CONV[rank](CHANNELS, CHANNELS, **options)
    check(nn.Sequential(stem, nn.ReLU(), head(rank)), sizes, recipe=recipe)


@pytest.mark.parametrize("size", [(11, 13), (12, 9), (7, 7), (4, 5)])
def test_split_stem(size: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    plan = check(net, [(16, 16), size], recipe={"conv": {"stem": "split"}}, rules={"split"})
    assert plan.sites[0].edits[0] == SetStride("0", (2, 2), (4, 4))


@given(case=pools("max"), recipe=st.sampled_from([None, "light", "full"]))
@settings(max_examples=80)
def test_max_pool_module(case: Any, recipe: str | None) -> None:
    rank, options, sizes = case
    check(nn.Sequential(head(rank), MAX[rank](**options)), sizes, recipe=recipe, rules={"maxpool"})


@given(case=pools("max"), kernel=st.integers(1, 4))
@settings(max_examples=40)
def test_max_pool_with_another_kernel_keeps_the_size(case: Any, kernel: int) -> None:
    rank, options, sizes = case
    net = prepared(nn.Sequential(head(rank), MAX[rank](**options)))
    recipe = {"maxpool": {"kernel_size": kernel}}
    converted = blurify.convert(net, recipe, example_inputs=signal(sizes[0]), verify=False)
    for size in sizes:
        assert converted(signal(size)).shape == net(signal(size)).shape


@given(case=pools("avg"), recipe=st.sampled_from([None, "light", "full"]))
@settings(max_examples=80)
def test_average_pool_module(case: Any, recipe: str | None) -> None:
    rank, options, sizes = case
    net = nn.Sequential(head(rank), AVG[rank](**options))
    plan = check(net, sizes, recipe=recipe, rules={"avgpool", "global-pool"})
    covers = all(k >= n for k, n in zip(options["kernel_size"], sizes[0], strict=True))
    assert (plan.sites[0].rule == "global-pool") == covers


# --- the same, as calls in a forward


class FunctionalConv(nn.Module):
    def __init__(self, rank: int, style: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.first = head(rank)
        groups = options["groups"]
        self.weight = nn.Parameter(torch.rand(CHANNELS, CHANNELS // groups, *options["kernel_size"]))
        self.bias = nn.Parameter(torch.rand(CHANNELS)) if options["bias"] else None
        self.rank, self.style, self.options = rank, style, options

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        o = self.options
        function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[self.rank]
        if self.style == "positional":
            x = function(x, self.weight, self.bias, o["stride"], o["padding"], o["dilation"], o["groups"])
        elif self.style == "keywords":
            x = function(
                input=x, weight=self.weight, bias=self.bias, stride=o["stride"], padding=o["padding"],
                dilation=o["dilation"], groups=o["groups"],
            )  # fmt: skip
        else:
            x = (torch.conv1d, torch.conv2d, torch.conv3d)[self.rank - 1](
                x, self.weight, self.bias, stride=o["stride"], padding=o["padding"], dilation=o["dilation"],
                groups=o["groups"],
            )  # fmt: skip
        return F.relu(x) if self.style == "positional" else x


@given(case=convs(), style=st.sampled_from(["positional", "keywords", "torch"]), light=st.booleans())
@settings(max_examples=80)
def test_functional_conv(case: Any, style: str, light: bool) -> None:
    rank, options, sizes = case
    options["padding_mode"] = "zeros"
    check(
        FunctionalConv(rank, style, options), sizes, recipe="light" if light else None,
        rules={"after-activation", "blurred-input", "commuted"},
    )  # fmt: skip


class FunctionalPool(nn.Module):
    def __init__(self, rank: int, kind: str, style: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.first = head(rank)
        self.rank, self.kind, self.style, self.options = rank, kind, style, options

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        o, maximum = self.options, self.kind == "max"
        if self.style == "keywords":
            pool = getattr(F, f"{self.kind}_pool{self.rank}d")
            return pool(x, **o)
        if self.style == "torch" and maximum:
            pool = getattr(torch, f"max_pool{self.rank}d")
            return pool(x, o["kernel_size"], o["stride"], o["padding"], o["dilation"], o["ceil_mode"])
        if maximum:
            return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.rank - 1](
                x, o["kernel_size"], o["stride"], o["padding"], o["dilation"], o["ceil_mode"]
            )
        return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[self.rank - 1](
            x, o["kernel_size"], o["stride"], o["padding"], o["ceil_mode"], o["count_include_pad"]
        )


@given(case=pools("max"), style=st.sampled_from(["positional", "keywords", "torch"]))
@settings(max_examples=60)
def test_functional_max_pool(case: Any, style: str) -> None:
    rank, options, sizes = case
    check(FunctionalPool(rank, "max", style, options), sizes, rules={"maxpool"})


@given(case=pools("avg"), style=st.sampled_from(["positional", "keywords"]))
@settings(max_examples=60)
def test_functional_average_pool(case: Any, style: str) -> None:
    rank, options, sizes = case
    check(FunctionalPool(rank, "avg", style, options), sizes, rules={"avgpool", "global-pool"})


class BarePools(nn.Module):
    """No stride given: it is the kernel's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x), 2)
        return F.avg_pool2d(x, (2, 1)) + F.max_pool2d(x, (2, 1), ceil_mode=False)


@pytest.mark.parametrize("sizes", [[(8, 8), (9, 11)], [(11, 5), (4, 2)]])
def test_pools_without_a_stride(sizes: Sizes) -> None:
    plan = check(BarePools(), sizes, rules={"maxpool", "avgpool"}, sites=3)
    assert [site.stride for site in plan.sites] == [(2, 2), (2, 1), (2, 1)]


# --- shortcuts and branches


class Residual(nn.Module):
    """Added branches before one activation: a block, its shortcut, and branches as re-parameterised networks have."""

    def __init__(self, rank: int, stride: tuple[int, ...], kernels: tuple[int, ...], activate: bool) -> None:
        super().__init__()
        self.first = head(rank)
        self.branches = nn.ModuleList(
            nn.Sequential(CONV[rank](CHANNELS, CHANNELS, k, stride, k // 2), NORM[rank](CHANNELS)) for k in kernels
        )
        self.act = nn.ReLU() if activate else nn.Identity()
        self.last = CONV[rank](CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.branches[0](x)
        for branch in self.branches[1:]:
            y = y + branch(x)
        return self.last(self.act(y))


@given(data=st.data(), kernels=st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=3), activate=st.booleans())
@settings(max_examples=50)
def test_added_branches(data: Any, kernels: list[int], activate: bool) -> None:
    rank = data.draw(st.sampled_from((1, 2, 3)))
    stride = data.draw(strides(rank, 3))
    sizes = data.draw(sizes_from((1,) * rank))
    plan = check(Residual(rank, stride, tuple(kernels), activate), sizes, rules=RULES["full"], sites=len(kernels))
    if activate and max(stride) < 3 and min(stride) == 2 and 1 not in kernels:
        assert {site.rule for site in plan.sites} == {"after-activation"}
        assert len({edit.blur_path for edit in plan.edits if edit.blur_path is not None}) == 1


class Shortcut(nn.Module):
    """A ResNet's last block: its own activation inside the block, none behind the shortcut's convolution."""

    def __init__(self, rank: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.first = head(rank)
        self.conv1 = CONV[rank](CHANNELS, CHANNELS, 3, stride, 1)
        self.conv2 = CONV[rank](CHANNELS, CHANNELS, 3, padding=1)
        self.shortcut = CONV[rank](CHANNELS, CHANNELS, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


@given(data=st.data())
@settings(max_examples=30)
def test_shortcut(data: Any) -> None:
    rank = data.draw(st.sampled_from((1, 2, 3)))
    stride = data.draw(strides(rank, 2))
    plan = check(Shortcut(rank, stride), data.draw(sizes_from((1,) * rank)), rules=RULES["full"], sites=2)
    assert [site.rule for site in plan.sites] == ["after-activation", "commuted"]


# --- modules that compute their own padding or weights


class OwnSameConv(nn.Conv2d):
    """A user's TF-style convolution, which pads in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for n, k, s, d in zip(x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True):
            total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
            pads = [total // 2, total - total // 2, *pads]
        return self._conv_forward(F.pad(x, pads), self.weight, self.bias)


def same_pads(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    pads: list[int] = []
    for n, k, s, d in zip(x.shape[-2:], kernel, stride, dilation, strict=True):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads)


def same_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    x = same_pads(x, conv.kernel_size, conv.stride, conv.dilation)  # type: ignore[arg-type]
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, (0, 0), conv.dilation, conv.groups)


class HelperSameConv(nn.Conv2d):
    """The same by way of helper functions."""

    def forward(self, x: Tensor) -> Tensor:
        return same_conv(x, self)


class PadsToMultiple(nn.Conv2d):
    """Pads only where the size asks for it."""

    def forward(self, x: Tensor) -> Tensor:
        (sh, sw), (h, w) = self.stride, x.shape[-2:]
        return super().forward(F.pad(x, (0, -w % sw, 0, -h % sh)))


class PadsByOne(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize(
    ("cls", "kernel"), [(PadsToMultiple, 1), (PadsToMultiple, 2), (PadsToMultiple, 3), (PadsByOne, 2), (PadsByOne, 3)]
)
@pytest.mark.parametrize("stride", [2, 3])
def test_conv_that_pads_by_hand(cls: type[nn.Conv2d], kernel: int, stride: int, act: bool) -> None:
    net = network(2, cls(CHANNELS, CHANNELS, kernel, stride), nn.ReLU() if act else nn.Identity())
    check(net, [(12, 6), (9, 7), (4, 11)], rules=RULES["full"])


def test_pointwise_conv_that_pads_by_hand() -> None:
    check(network(2, PadsByOne(CHANNELS, CHANNELS, 1, 2)), [(12, 6), (9, 7)], rules={"blurred-input", "commuted"})


class OwnSamePool(nn.MaxPool2d):
    """A user's TF-style max pool."""

    def forward(self, x: Tensor) -> Tensor:
        x = same_pads(x, self.kernel_size, self.stride, (1, 1))  # type: ignore[arg-type]
        return F.max_pool2d(x, self.kernel_size, self.stride)


SAME_CONVS = (Conv2dSame, OwnSameConv, HelperSameConv, ScaledStdConv2dSame)


@given(data=st.data(), cls=st.sampled_from(SAME_CONVS), recipe=st.sampled_from(list(RULES)), act=st.booleans())
@settings(max_examples=80)
def test_conv_with_same_padding(data: Any, cls: type[nn.Module], recipe: str, act: bool) -> None:
    kernel, stride = data.draw(tuples(2, 1, 5)), data.draw(strides(2))
    dilation = data.draw(tuples(2, 1, 3))
    sizes = data.draw(sizes_from((1, 1)))
    conv = cls(CHANNELS, CHANNELS, kernel, stride=stride, dilation=dilation)  # type: ignore[call-arg]
    net = network(2, conv, nn.ReLU() if act else nn.Identity())
    check(net, sizes, recipe=recipe, rules=RULES[recipe])


@given(data=st.data(), cls=st.sampled_from([MaxPool2dSame, AvgPool2dSame, OwnSamePool]))
@settings(max_examples=50)
def test_pool_with_same_padding(data: Any, cls: type[nn.Module]) -> None:
    kernel, stride = data.draw(tuples(2, 1, 5)), data.draw(strides(2))
    sizes = data.draw(sizes_from((1, 1)))
    check(nn.Sequential(nn.Conv2d(2, 2, 1), cls(kernel, stride)), sizes, rules={"maxpool", "avgpool", "global-pool"})


@given(data=st.data(), cls=st.sampled_from([StdConv2d, ScaledStdConv2d]), act=st.booleans())
@settings(max_examples=30)
def test_standardised_conv(data: Any, cls: type[nn.Module], act: bool) -> None:
    kernel, stride = data.draw(st.sampled_from([1, 3, 5])), data.draw(st.integers(2, 4))
    conv = cls(CHANNELS, CHANNELS, kernel, stride=stride, padding=kernel // 2)  # type: ignore[call-arg]
    net = network(2, conv, nn.SiLU() if act else nn.Identity())
    check(net, data.draw(sizes_from((1, 1))), rules=RULES["full"])


# --- the blur itself, end to end


def slow_taps(filter_size: int, stride: int) -> np.ndarray:
    """The filter for strides 1 to 5, from its definition."""
    binomial = np.array([math.comb(filter_size - 1, k) for k in range(filter_size)]) / 2 ** (filter_size - 1)
    if stride == 1:
        return np.ones(1)
    if stride == 4:
        stretched = np.zeros(2 * filter_size - 1)
        stretched[::2] = binomial
        return np.convolve(binomial, stretched)
    taps = np.ones(1)
    for _ in range(filter_size - 1):
        taps = np.convolve(taps, np.ones(stride) / stride)
    return taps


def reflected(index: int, n: int) -> int:
    while not 0 <= index < n:
        index = -index if index < 0 else 2 * (n - 1) - index
        if n == 1:
            return 0
    return index


def slow_blur(x: Tensor, stride: tuple[int, ...], filter_size: int) -> Tensor:
    """Sum over the window of every output sample, in float64, one dimension after the other."""
    array = x.numpy()
    for dim, step in enumerate(stride, start=2):
        taps, n = slow_taps(filter_size, step), array.shape[dim]
        rows = []
        for start in range(-((len(taps) - 1) // 2), n - (len(taps) - 1) // 2, step):
            picked = [array.take(reflected(start + i, n), axis=dim) for i in range(len(taps))]
            rows.append(sum(tap * row for tap, row in zip(taps, picked, strict=True)))
        array = np.stack(rows, axis=dim)
    return torch.from_numpy(array)


@given(data=st.data(), filter_size=st.integers(1, 7))
@settings(max_examples=40)
@example(data=None, filter_size=4)
def test_conv_and_relu_is_dense_conv_relu_slow_blur(data: Any, filter_size: int) -> None:
    rank = data.draw(st.sampled_from((1, 2))) if data else 2
    stride = data.draw(strides(rank)) if data else (2, 2)
    size = data.draw(tuples(rank, 1, 14)) if data else (9, 12)
    kernel = max(stride) + 1  # no patchify convolution
    first, conv = head(rank), CONV[rank](CHANNELS, CHANNELS, kernel, stride, kernel // 2)
    net = prepared(nn.Sequential(first, conv, nn.ReLU()))
    x = signal(size)
    converted = blurify.convert(net, filter_size=filter_size, example_inputs=x, verify=False)
    with torch.no_grad():
        dense = (F.conv1d, F.conv2d)[rank - 1](first(x), conv.weight, conv.bias, 1, kernel // 2)
        expected = slow_blur(dense.relu(), stride, filter_size)
        torch.testing.assert_close(converted(x), expected, rtol=1e-12, atol=1e-12)


@given(data=st.data(), filter_size=st.integers(1, 7))
@settings(max_examples=30)
def test_max_pool_is_dense_max_pool_slow_blur(data: Any, filter_size: int) -> None:
    stride, size = data.draw(strides(2)), data.draw(tuples(2, 3, 14))
    net = prepared(nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(3, stride, 1)))
    x = signal(size)
    converted = blurify.convert(net, filter_size=filter_size, example_inputs=x, verify=False)
    with torch.no_grad():
        expected = slow_blur(F.max_pool2d(net[0](x), 3, 1, 1), stride, filter_size)
        torch.testing.assert_close(converted(x), expected, rtol=1e-12, atol=1e-12)


@given(data=st.data(), filter_size=st.integers(2, 7))
@settings(max_examples=30)
def test_average_pool_is_the_filter(data: Any, filter_size: int) -> None:
    """At even sizes a pool of kernel 2 and stride 2 becomes the published BlurPool, exactly."""
    size = tuple(2 * n for n in data.draw(tuples(2, 2, 6)))
    net = prepared(nn.Sequential(nn.Conv2d(2, 2, 1), nn.AvgPool2d(2)))
    x = signal(size)
    converted = blurify.convert(net, filter_size=filter_size, example_inputs=x, verify=False)
    with torch.no_grad():
        expected = slow_blur(net[0](x), (2, 2), filter_size)
        torch.testing.assert_close(converted(x), expected, rtol=1e-12, atol=1e-12)


@given(data=st.data(), filter_size=st.integers(1, 7))
@settings(max_examples=30)
def test_shortcut_commutes(data: Any, filter_size: int) -> None:
    """`BlurPool -> 1x1 conv`, as the shortcut is converted, equals `1x1 conv -> BlurPool`, bias included."""
    rank = data.draw(st.sampled_from((1, 2)))
    stride, size = data.draw(strides(rank)), data.draw(tuples(rank, 1, 14))
    first, conv = head(rank), CONV[rank](CHANNELS, CHANNELS, 1, stride)
    net = prepared(nn.Sequential(first, conv))
    x = signal(size)
    converted = blurify.convert(net, filter_size=filter_size, example_inputs=x, verify=False)
    assert blurify.plan_of(converted).sites[0].rule == "commuted"
    with torch.no_grad():
        dense = (F.conv1d, F.conv2d)[rank - 1](first(x), conv.weight, conv.bias)
        torch.testing.assert_close(converted(x), slow_blur(dense, stride, filter_size), rtol=1e-12, atol=1e-12)
