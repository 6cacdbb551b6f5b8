"""Where features are: the recipe `aligned` moves none, and what others move is what the plan says.

Three ways to know where a feature looks, none of which is the walk through the graph that predicts it: the centroid of
its impulse response by autograd, the centroid of the response to a smooth bump, and a run on coordinates.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError
from blurify.proof.positions import compared, drift_between, positions_of
from blurify.spec.alignment import Drift, in_words
from blurify.spec.filters import binomial_taps, centred_taps, compose_taps, offset_of
from blurify.spec.plan import Plan

DEFAULT, ALIGNED = "zhang2019", "aligned"
THREE = {"filter": {"size": 3}}
OWN = {"filter": {"taps": [1, 2, 3]}}  # its centre of mass is between two samples, and in the middle of none


def conv(ins: int, outs: int, kernel: int = 3, stride: Any = 1, dims: int = 2) -> nn.Sequential:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](ins, outs, kernel, stride, padding=kernel // 2)
    return nn.Sequential(layer, nn.ReLU())


class Residual(nn.Module):
    """A shortcut that is averaged and one that is strided, as in ResNet-D and ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = conv(3, 4, 7, 2), nn.MaxPool2d(3, 2, 1)
        self.main1, self.main2 = conv(4, 4, 3, 2), conv(4, 4, 3, 2)
        self.short1 = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(4, 4, 1))
        self.short2 = nn.Conv2d(4, 4, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = self.main1(x) + self.short1(x)
        return self.main2(x) + self.short2(x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 4)
        self.pool1, self.down2 = nn.MaxPool2d(2), conv(4, 4, 3, 2)
        self.up2, self.d, self.e = nn.ConvTranspose2d(4, 4, 2, 2), conv(8, 4), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(self.pool1(a))
        c = self.c(self.down2(b))
        up = self.up2(c)
        d = self.d(torch.cat([F.pad(up, (0, b.shape[-1] - up.shape[-1], 0, b.shape[-2] - up.shape[-2])), b], 1))
        return self.e(torch.cat([F.interpolate(d, a.shape[-2:], mode="bilinear"), a], 1))


class OneD(nn.Module):
    """Strides of 3 and 4, an even max pool, average pools of even and odd kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.three, self.pool = conv(1, 4, 5, dims=1), conv(4, 4, 5, 3, dims=1), nn.MaxPool1d(2)
        self.average, self.odd, self.four = nn.AvgPool1d(4), nn.AvgPool1d(3, 3), conv(4, 4, 7, 4, dims=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.four(self.odd(self.average(self.pool(self.three(self.stem(x))))))


class ThreeD(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = conv(1, 4, dims=3), nn.MaxPool3d((1, 2, 2))
        self.conv, self.average = conv(4, 4, 3, 2, dims=3), nn.AvgPool3d((1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.average(self.conv(self.pool(self.stem(x))))


class Rectangular(nn.Module):
    """Other strides in other dimensions, a pool of mixed parity, a slice, functional calls, a patchify convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.high = conv(3, 4), conv(4, 4, 3, (1, 2)), nn.MaxPool2d((3, 2), (2, 1), (1, 0))
        self.mixed, self.patches = nn.AvgPool2d((2, 3)), nn.Conv2d(4, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed(self.high(self.wide(self.stem(x))))
        x = self.patches(x).relu()
        x = F.max_pool2d(x, 2, 2, 0)
        return x[:, :, ::2, ::2]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (1, 3, 128, 160)),
    "residual at odd sizes": (Residual, (1, 3, 129, 151)),
    "U-Net": (UNet, (1, 3, 64, 96)),
    "U-Net at odd sizes": (UNet, (1, 3, 63, 97)),
    "1-d": (OneD, (1, 1, 2880)),
    "1-d at an odd size": (OneD, (1, 1, 2885)),
    "3-d": (ThreeD, (1, 1, 24, 64, 64)),
    "rectangular": (Rectangular, (1, 3, 128, 192)),
}


def converted(model: nn.Module, recipe: Any, x: Tensor) -> tuple[nn.Module, Plan]:
    model = blurify.convert(model, recipe, example_inputs=x, verify=False)
    plan = blurify.plan_of(model)
    assert plan is not None and plan.alignment is not None
    return model, plan


# --- measured by coordinates


@pytest.mark.parametrize("name", NETS)
def test_aligned_moves_no_feature_map_of_any_module(name: str) -> None:
    build, shape = NETS[name]
    model, x = build().eval(), torch.zeros(shape)
    result, plan = converted(model, ALIGNED, x)
    assert plan.alignment.largest == 0 and not plan.alignment.meetings
    found = drift_between(model, result, ((x,), {}))
    assert found.most < 1e-6 and len(found.drifts) > 5
    assert len(plan.converted) >= 2


@pytest.mark.parametrize("size", [2, 4, 5])
def test_aligned_moves_nothing_with_other_filters(size: int) -> None:
    for name in ("residual", "1-d", "rectangular"):
        build, shape = NETS[name]
        model, x = build().eval(), torch.zeros(shape)
        result, _ = converted(model, {"filter": {"size": size, "aligned": True}, "conv": {"stem": "convert"}}, x)
        assert drift_between(model, result, ((x,), {})).most < 1e-6, name


@pytest.mark.parametrize("recipe", [DEFAULT, "light", THREE, OWN], ids=str)
@pytest.mark.parametrize("name", ["U-Net", "U-Net at odd sizes", "1-d", "3-d", "rectangular"])
def test_what_other_recipes_move_is_what_the_plan_says(name: str, recipe: Any) -> None:
    build, shape = NETS[name]
    model, x = build().eval(), torch.zeros(shape)
    result, plan = converted(model, recipe, x)
    found = drift_between(model, result, ((x,), {}))
    count = 0
    for site in plan.sites:
        if site.rule in ("after-activation", "split"):
            path = site.name.rpartition(".")[0]  # the Sequential around convolution and activation
        else:
            path = site.name
        if path in found.drifts:
            assert within(found.drifts[path], site.drift), (site.name, found.drifts[path], site.drift)
            count += 1
    assert count >= 2
    (output,) = plan.alignment.outputs
    assert within(found.drifts[""], output), (found.drifts[""], output)
    # Odd filters move nothing but what averages of an even kernel hand on.
    moves = recipe != THREE or any(site.kind == "avgpool" for site in plan.converted)
    assert plan.alignment.largest > 0.4 if moves else plan.alignment.largest == 0


def within(measured: tuple[float, ...], predicted: Drift) -> bool:
    return all(low - 1e-5 <= one <= high + 1e-5 for one, (low, high) in zip(measured, predicted, strict=True))


PUBLISHED: dict[str, tuple[Callable[[], nn.Module], float]] = {
    # Half a sample at every stage behind the stem, whose stride is 2: at 2, 4, 8 and 16 pixels.
    "resnet18": (torchvision.models.resnet18, 15.0),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(width_mult=0.25), 15.0),
    # Five max pools, from the first pixel on.
    "vgg11": (lambda: torchvision.models.vgg11().features, 15.5),
    # One max pool; the average pools of its transitions stay where they were.
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2, 2, 2), 16), 1.0),
}


@pytest.mark.parametrize("size", [128, 97])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_drift_as_predicted_and_aligned_ones_do_not(name: str, size: int) -> None:
    build, expected = PUBLISHED[name]
    model, x = build().eval(), torch.zeros(1, 3, size, size)
    before = positions_of(model, ((x,), {}))
    result, plan = converted(model, DEFAULT, x)
    assert plan.alignment.largest == expected and not plan.alignment.meetings
    assert compared(before, positions_of(result, ((x,), {}))).largest == pytest.approx(expected, abs=1e-6)
    result, plan = converted(model, ALIGNED, x)
    assert plan.alignment.largest == 0
    assert compared(before, positions_of(result, ((x,), {}))).most < 1e-6


# --- the coordinates against impulse responses, and a bump that is followed


def test_coordinates_are_centroids_of_impulse_responses() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 1, 5, 2, 2, bias=False),
        nn.AvgPool2d(2),
        blurify.BlurPool2d(2, taps=(1, 2, 3)),
        nn.Conv2d(1, 1, 3, padding=1),
    ).double()
    for layer in (model[0], model[3]):
        nn.init.constant_(layer.weight, 1.0)
    shape, places = positions_of(model, ((torch.zeros(1, 1, 96, 80, dtype=torch.float64),), {}))["", 0]
    x = torch.ones(1, 1, 96, 80, dtype=torch.float64, requires_grad=True)
    (response,) = torch.autograd.grad(model(x)[0, 0, 6, 4], x)
    weights = response[0, 0] / response.sum()
    centroid = [(weights.sum(1 - dim) * torch.arange(weights.shape[dim])).sum().item() for dim in (0, 1)]
    rows = [place.view(shape[1:])[0, 6, 4].item() for place in places]
    assert rows == pytest.approx(centroid, abs=1e-9)


@pytest.mark.parametrize("recipe", [DEFAULT, ALIGNED])
@pytest.mark.parametrize("name", ["residual", "1-d", "3-d"])
def test_a_bump_stays_where_it_is_or_goes_where_the_plan_says(name: str, recipe: str) -> None:
    """With positive weights rectifiers pass everything on: the model itself runs, and its features are looked at."""
    build, shape = NETS[name]
    shape = tuple(size if index < 2 else size * 2 for index, size in enumerate(shape))
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0 if parameter.ndim > 1 else 0.0)
    bump = torch.ones(shape)
    for dim, size in enumerate(shape[2:], start=2):
        along = torch.exp(-(((torch.arange(size) - size / 2 - 1.3) / (size / 12)) ** 2) / 2)
        bump = bump * along.view([-1 if d == dim else 1 for d in range(len(shape))])
    result, plan = converted(model, recipe, bump)
    before, after = (centroid_of(net(bump)) for net in (model, result))
    steps = [n / m for n, m in zip(shape[2:], model(bump).shape[2:], strict=True)]
    # Features that look to the right see a bump to the left.
    measured = tuple((a - b) * step for a, b, step in zip(before, after, steps, strict=True))
    (output,) = plan.alignment.outputs
    slack = 0.04 * max(steps)
    assert all(low - slack <= one <= high + slack for one, (low, high) in zip(measured, output, strict=True)), (
        measured,
        output,
    )
    assert (plan.alignment.outputs_drift == 0) == (recipe == ALIGNED)


def centroid_of(y: Tensor) -> list[float]:
    weights = (y[0].sum(0) / y[0].sum()).detach().double()
    coordinates = torch.meshgrid(*(torch.arange(n).double() for n in weights.shape), indexing="ij")
    return [float((weights * along).sum()) for along in coordinates]


# --- what the plan says


def test_the_drift_of_five_pools_is_fifteen_and_a_half_pixels() -> None:
    layers = [layer for _ in range(5) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))]
    plan = blurify.inspect(nn.Sequential(*layers), torch.zeros(1, 3, 224, 224))
    assert [in_words(site.drift) for site in plan.sites] == ["0.5", "1.5", "3.5", "7.5", "15.5"]
    assert plan.alignment is not None and plan.alignment.outputs == (((15.5, 15.5), (15.5, 15.5)),)


def test_average_pools_are_the_other_way_round() -> None:
    net = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 3, 3, padding=1), nn.AvgPool2d(2))
    words = {
        size: [in_words(site.drift) for site in blurify.inspect(net, torch.zeros(1, 3, 64, 64), recipe=r).sites]
        for size, r in ((4, DEFAULT), (3, {"filter": {"size": 3}}))
    }
    assert words == {4: ["0", "0"], 3: ["-0.5", "-1.5"]}


def test_it_says_where_branches_meet_that_are_apart() -> None:
    x = torch.zeros(1, 3, 128, 160)
    meetings = blurify.inspect(Residual(), x).alignment.meetings  # type: ignore[union-attr]
    # An average stays where it was, a strided convolution on a grid of 4 pixels moves by 2; then both are 4 further.
    assert [(one.place, [in_words(drift) for drift in one.drifts]) for one in meetings] == [(":add", ["1", "3"])]
    assert in_words(blurify.inspect(Residual(), x).alignment.outputs[0]) == "5..7"  # type: ignore[union-attr]


def test_gates_and_pooled_context_are_at_no_position() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pool, self.gate, self.b = conv(3, 4), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            gate = self.gate(a.mean((2, 3), keepdim=True)).sigmoid()
            y = self.pool(a) * gate
            return self.b(y) + F.interpolate(F.adaptive_avg_pool2d(a, 1), y.shape[-2:])

    alignment = blurify.inspect(Gated(), torch.zeros(1, 3, 32, 32)).alignment
    assert alignment is not None and not alignment.meetings and alignment.outputs == (((0.5, 0.5), (0.5, 0.5)),)


def test_positions_survive_tokens_and_channels_last() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pool, self.mix, self.pool2 = conv(3, 4), nn.MaxPool2d(2), nn.Linear(4, 4), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.a(x))
            n, c, h, w = x.shape
            tokens = self.mix(x.flatten(2).transpose(1, 2))
            x = tokens.reshape(n, h, w, c)[:, ::1].permute(0, 3, 1, 2)
            return self.pool2(x).permute(0, 2, 3, 1)

    plan = blurify.inspect(Tokens(), torch.zeros(1, 3, 32, 48))
    assert [in_words(site.drift) for site in plan.sites] == ["0.5", "1.5"]
    assert plan.alignment is not None and plan.alignment.outputs == (((1.5, 1.5), (1.5, 1.5)),)


def test_scores_of_classes_have_no_positions() -> None:
    plan = blurify.inspect(timm.create_model("test_resnet"))
    assert plan.alignment is not None and plan.alignment.outputs == () and plan.alignment.largest > 0


def test_a_plan_keeps_it_and_older_plans_have_none() -> None:
    plan = blurify.inspect(Residual(), torch.zeros(1, 3, 128, 160), recipe=ALIGNED)
    data = json.loads(json.dumps(plan.to_dict()))
    assert Plan.from_dict(data) == plan
    del data["alignment"]
    for site in data["sites"]:
        del site["drift"]
    older = Plan.from_dict(data)
    assert older.alignment is None and {site.drift for site in older.sites} == {()}


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(alignment={"outputs": [[["x", 1]]], "meetings": [], "largest": 0.0}),
        lambda data: data.update(alignment={"outputs": 3, "meetings": [], "largest": 0.0}),
        lambda data: data.update(alignment={"outputs": [], "meetings": [], "largest": float("inf")}),
        lambda data: data["sites"][0].update(drift=[[0.0, 0.0]] * 4),
        lambda data: data["sites"][1]["edits"][0]["blur"].update(centre=[float("nan"), 0.0]),
        lambda data: data["sites"][1]["edits"][0]["blur"].update(centre=[1e9, 0.0]),
        lambda data: data["sites"][1]["edits"][0]["blur"].update(centre=[0.0]),
    ],
)
def test_what_a_file_says_of_it_is_checked(change: Callable[[Any], None]) -> None:
    data = json.loads(json.dumps(blurify.inspect(Residual(), torch.zeros(1, 3, 128, 160), recipe=ALIGNED).to_dict()))
    change(data)
    with pytest.raises(BlurifyError):
        Plan.from_dict(data)


# --- filters and layers


@pytest.mark.parametrize("centre", [-1.0, -0.25, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("taps", [binomial_taps(2), binomial_taps(3), binomial_taps(4), compose_taps((0.5, 0.5), 3)])
def test_centred_taps_have_their_centre_of_mass_there(taps: tuple[float, ...], centre: float) -> None:
    moved, whole = centred_taps(taps, centre)
    start = whole - (len(taps) - 1) // 2
    assert sum((start + k) * tap for k, tap in enumerate(moved)) == pytest.approx(centre)
    assert sum(moved) == pytest.approx(1) and len(moved) - len(taps) in (0, 1)


def test_half_a_sample_is_the_next_binomial() -> None:
    assert centred_taps(binomial_taps(3), 0.5) == (pytest.approx(binomial_taps(4)), 0)
    assert centred_taps(binomial_taps(4), 0.0)[0] == pytest.approx(binomial_taps(5))
    assert offset_of(binomial_taps(4)) == 0.5 and offset_of(binomial_taps(5)) == 0


def test_a_centred_layer_filters_symmetrically_and_says_so() -> None:
    layer = blurify.BlurPool1d(1, 4, factor=2, centre=0).double()
    impulse = torch.zeros(1, 1, 9, dtype=torch.float64)
    impulse[..., 4] = 1
    assert layer(impulse)[0, 0, 2:7].tolist() == pytest.approx(binomial_taps(5))
    assert "centre=0.0" in repr(layer)
    assert blurify.BlurPool1d(2, 1, centre=3)(torch.arange(8.0).view(1, 1, 8)).flatten().tolist() == [0, 2, 4, 6]
    for wrong in ({"centre": "left"}, {"centre": (0, 0)}, {"centre": 0, "shift": 1}, {"centre": float("nan")}):
        with pytest.raises(BlurifyError):
            blurify.BlurPool1d(2, 4, **wrong)


def test_the_recipe_is_proven_by_all_that_others_are() -> None:
    for build, shape in (NETS["residual"], NETS["rectangular"]):
        proof = blurify.proof_of(blurify.convert(build(), ALIGNED, example_inputs=torch.zeros(shape)))
        assert proof is not None and proof.sites_left == 0 and proof.sites_compared == proof.sites_converted > 3


def test_a_filter_that_looks_elsewhere_than_planned_is_refused() -> None:
    model = blurify.convert(Residual(), ALIGNED, example_inputs=torch.zeros(1, 3, 64, 64))
    plan = blurify.plan_of(model)
    assert plan is not None
    from blurify.proof.filters import wrong_filters

    assert not wrong_filters(model, plan)

    def other(edit: Any) -> Any:
        blur = edit.blur
        return edit if blur is None else dataclasses.replace(edit, blur=dataclasses.replace(blur, centre=(0.25, 0.0)))

    sites = [dataclasses.replace(site, edits=tuple(map(other, site.edits))) for site in plan.sites]
    assert wrong_filters(model, dataclasses.replace(plan, sites=tuple(sites)))


# --- what the coordinates make of attention, and of windows


class Attention(nn.Module):
    """Tokens that look at each other, all over the map or in windows, in several ways to write it."""

    def __init__(self, how: str, side: int = 0) -> None:
        super().__init__()
        self.how, self.side = how, side
        self.qkv, self.proj = nn.Linear(6, 18), nn.Linear(6, 6)

    def mixed(self, x: Tensor) -> Tensor:  # (N, tokens, C)
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.how == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        if self.how == "linear":
            return q @ (k.mT @ v)
        if self.how == "channels first":
            return (v.mT @ (q @ k.mT).softmax(-1).mT).mT
        if self.how == "einsum":
            return torch.einsum("...ij,...jd->...id", torch.einsum("bid,bjd->bij", q, k).softmax(-1), v)
        if self.how == "half of the keys":  # which are other places than the queries are
            return (q @ k[:, ::2].mT).softmax(-1) @ v[:, ::2]
        return (q @ k.mT).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        side = self.side or h
        windows = x.view(n, c, h // side, side, w // side, side).permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, c)
        y = self.proj(self.mixed(windows))
        y = y.view(n, h // side, w // side, side, side, c).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
        return y


class Outlook(nn.Module):
    """Overlapping windows that are folded back onto the map."""

    def forward(self, x: Tensor) -> Tensor:
        return F.fold(F.unfold(x, 3, padding=1, stride=2), x.shape[2:], 3, padding=1, stride=2)


MIXERS: dict[str, Callable[[], nn.Module]] = {
    **{
        how: lambda how=how: Attention(how, 4)  # type: ignore[misc]
        for how in ("by hand", "fused", "linear", "channels first", "einsum", "half of the keys")
    },
    "all over the map": lambda: Attention("by hand"),
    "folded": Outlook,
}


@pytest.mark.parametrize("name", MIXERS)
def test_what_attention_mixes_is_followed(name: str) -> None:
    """Strides behind windows: the means of windows would be a staircase, of which no filter keeps the steps."""
    x = torch.zeros(1, 3, 96, 96)
    net = nn.Sequential(conv(3, 6, 3, 2), MIXERS[name](), conv(6, 6, 3, 2), nn.MaxPool2d(2), conv(6, 4, 3, 2)).eval()
    for recipe in (ALIGNED, DEFAULT):
        result, plan = converted(net, recipe, x)
        found = drift_between(net, result, ((x,), {}))
        assert found.largest == pytest.approx(plan.alignment.largest, abs=1e-6)  # type: ignore[union-attr]
        assert {path for path, _ in net.named_children()} <= set(found.drifts)


def test_a_recurrent_layer_hands_positions_on() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 3, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            rows, _ = self.lstm(x.permute(0, 2, 3, 1).reshape(n * h, w, c))
            return rows.reshape(n, h, w, c).permute(0, 3, 1, 2)

    x = torch.zeros(1, 3, 64, 64)
    net = nn.Sequential(conv(3, 6, 3, 2), Rows(), conv(6, 6, 3, 2)).eval()
    result, _ = converted(net, ALIGNED, x)
    found = drift_between(net, result, ((x,), {}))
    assert found.most < 1e-6 and "2" in found.drifts
