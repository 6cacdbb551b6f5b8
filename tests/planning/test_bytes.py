"""What plans say of bytes: by hand on the least networks, and site by site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

import blurify
from blurify.spec.plan import Plan

IMAGE = torch.zeros(1, 3, 16, 16)
FLOAT = 4


def planned(*layers: nn.Module, recipe: object = None) -> Plan:
    return blurify.inspect(nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), *layers), IMAGE, recipe, memory=True)


def test_of_the_original_by_hand() -> None:
    plan = planned(nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(inplace=True))
    full, half = 4 * 16 * 16, 8 * 8 * 8
    assert plan.written == FLOAT * (full + full + half)  # two results of the dense part, one that is overwritten
    # the image, what relu returned (which the second convolution reads too), what the last relu returned
    assert plan.kept == FLOAT * (3 * 16 * 16 + full + half)


def test_a_dense_convolution_by_hand() -> None:
    plan = planned(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 2, 1), recipe={"filter": {"padding": "zeros"}})
    (site,) = plan.converted
    dense, half = 8 * 16 * 16, 8 * 8 * 8
    # the convolution and its relu are four times as large; the blur pads (one before, two behind) and returns
    assert site.extra_written == FLOAT * (2 * (dense - half) + 8 * 19 * 19 + half)
    # of the dense part a byte a sample stays, where relu let it through; the last convolution keeps the blur's result
    assert site.extra_kept == dense


def test_a_max_pool_gives_its_indices_back() -> None:
    plan = planned(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    (site,) = plan.converted
    indices = 8 * 4 * 8 * 8  # of int64
    relu, code = FLOAT * 4 * 16 * 16, 4 * 16 * 15  # its result; a byte for each maximum of two columns
    assert site.extra_kept == code - relu - indices


def test_a_max_pool_that_reads_no_activation_keeps_what_it_reads() -> None:
    plan = planned(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    (site,) = plan.converted
    assert site.extra_kept == -8 * 4 * 8 * 8  # the indices: what it reads is kept with or without a blur


def test_a_blur_before_a_pointwise_convolution_replaces_what_that_kept() -> None:
    plan = planned(nn.Tanh(), nn.Conv2d(4, 8, 1, 2), recipe={"filter": {"padding": "zeros"}})
    (site,) = plan.converted
    assert site.rule == "commuted"
    assert site.extra_written == FLOAT * (4 * 19 * 19 + 4 * 8 * 8)
    assert site.extra_kept == FLOAT * 4 * 8 * 8  # tanh keeps its result too


class TwoWays(nn.Module):
    """Two convolutions that are added: they share a blur."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.one, self.two = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(4, 8, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.relu(self.one(x) + self.two(x)).mean((2, 3))


def test_what_two_sites_share_counts_once_and_at_the_first() -> None:
    plan = blurify.inspect(TwoWays(), IMAGE, {"filter": {"padding": "zeros"}}, memory=True)
    one, two = plan.converted
    dense, half, pixels = 8 * 16 * 16, 8 * 8 * 8, 8 * 8
    blur = 8 * 19 * 19 + half
    assert one.extra_written == FLOAT * (3 * (dense - half) + blur)  # itself, the sum, relu
    assert two.extra_written == FLOAT * (dense - half)
    assert one.extra_macs == 3 * half * 4 * 9 + 8 * pixels * 16
    assert two.extra_macs == 3 * half * 4


class Repeats(nn.Module):
    """One pool that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 4, 3, 1, 1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.pool(self.stem(x)))


def test_every_run_of_a_site_counts() -> None:
    (site,) = blurify.inspect(Repeats(), IMAGE).sites
    assert site.extra_macs == 4 * (8 * 8 + 4 * 4) * 16


def test_costs_are_asked_for_and_are_no_part_of_what_a_plan_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.MaxPool2d(2))
    plain, priced = blurify.inspect(net, IMAGE), blurify.inspect(net, IMAGE, memory=True)
    assert plain.written is None and plain.extra_written is None and plain.sites[0].extra_kept is None
    assert priced.written and plain == priced
    again = Plan.from_dict(priced.to_dict())
    assert (again.written, again.extra_kept) == (priced.written, priced.extra_kept)
    old = priced.to_dict()
    del old["written"], old["kept"]
    for site in old["sites"]:
        del site["extra_written"], site["extra_kept"]
    assert Plan.from_dict(old).kept is None
    converted = blurify.convert(net, example_inputs=IMAGE, memory=True)
    carried = blurify.plan_of(converted)
    assert carried is not None and carried.extra_written == priced.extra_written


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (5, 3, 16, 16)])
def test_bytes_grow_with_the_batch(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.MaxPool2d(2))
    one, more = (blurify.inspect(net, torch.zeros(n, *shape[1:]), memory=True) for n in (1, shape[0]))
    assert (more.written, more.extra_written) == (shape[0] * one.written, shape[0] * one.extra_written)
    assert (more.kept, more.extra_kept) == (shape[0] * one.kept, shape[0] * one.extra_kept)


def test_a_model_that_can_not_be_counted_still_has_a_plan() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool = nn.Conv2d(3, 4, 3, 1, 1), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(self.stem(x))
            if torch.is_grad_enabled():
                raise ValueError("not for training")
            return x

    plan = blurify.inspect(Reads(), IMAGE, memory=True)
    assert plan.written and plan.extra_written and plan.kept is None and plan.extra_kept is None


class Joins(nn.Module):
    """Two strided convolutions whose activations are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.one, self.two = nn.Conv2d(4, 2, 3, 2, 1), nn.Conv2d(4, 6, 5, 2, 2)
        self.head = nn.Conv2d(8, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([torch.relu(self.one(x)), torch.relu(self.two(x))], 1))


class JoinsDense(Joins):
    """The same function, blurred behind the concatenation by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.one.stride = self.two.stride = (1, 1)
        self.blur = blurify.BlurPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.blur(torch.cat([torch.relu(self.one(x)), torch.relu(self.two(x))], 1)))


def test_a_blur_goes_before_a_concatenation_which_then_writes_less() -> None:
    """Both forms filter every channel once: the same function and multiply-adds; the concatenation is what differs."""
    torch.manual_seed(0)
    net, x = Joins().eval(), torch.randn(1, 3, 16, 16)
    after = JoinsDense().eval()
    after.load_state_dict(net.state_dict())
    plan = blurify.inspect(net, x, memory=True)
    assert [site.placement for site in plan.converted] == ["in Joins.forward", "in Joins.forward"]
    converted = blurify.convert(net, example_inputs=x)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), after(x), rtol=1e-5, atol=1e-6)
    behind = blurify.inspect(after, x, memory=True)
    assert plan.written is not None and plan.extra_written is not None and behind.written is not None
    assert plan.macs + plan.extra_macs == behind.macs
    # concatenated densely, 8 channels of 16 x 16 are written and not of 8 x 8
    assert behind.written - (plan.written + plan.extra_written) == pytest.approx(FLOAT * 8 * (16**2 - 8**2), abs=64)


class Odd(nn.Module):
    """Activations of which some can't run with what reads them, or only look as if they could."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 8, 3, 1, 1), nn.ReLU()
        self.given = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.twice = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.Hardtanh(), nn.MaxPool2d(2))
        self.last = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(this, x: Tensor) -> Tensor:
        y = this.conv(x)
        y = this.given(y) + nn.functional.avg_pool2d(y, 2)
        return torch.relu(this.last(this.twice(this.relu(y)))) + this.relu(this.last(this.twice(y)))


class Called(nn.Module):
    """A convolution and an activation that is called in one of many ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.way, self.act, self.acts = nn.Conv2d(4, 8, 3, 2, 1), way, relu, nn.ModuleList([nn.ReLU()])
        self.inner = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())

    def _act(self, x: Tensor) -> Tensor:
        return relu(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.way == "function":
            x = relu(x)
        elif self.way == "attribute":
            x = self.act(x)
        elif self.way == "list":
            x = self.acts[0](x)
        elif self.way == "name":
            act = self.acts[0]
            x = act(x)
        elif self.way == "method":
            x = self._act(x)
        elif self.way == "block":
            x = self.inner(x)
        elif self.way == "tensor":
            x = x.relu()
        else:
            for act in self.acts:
                x = act(x)
        return x * 1.5


def pooled(*members: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 8, 3, 1, 1), *members, nn.Conv2d(8, 2, 1))


POOL = nn.MaxPool2d(2)
NETS = {
    "odd": Odd(),
    "average": pooled(nn.ReLU(), nn.AvgPool2d(2)),
    "shared": pooled(nn.ReLU(), POOL, nn.Conv2d(8, 8, 1), POOL),
    "shared, apart": nn.Sequential(
        pooled(nn.ReLU(), POOL), nn.Conv2d(2, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), POOL)
    ),
    "flat": pooled(nn.Flatten(2), nn.Sequential(nn.ReLU(True), nn.MaxPool1d(2)), nn.Unflatten(2, (16, 32))),
    "dropped": pooled(nn.Sequential(nn.Dropout2d(0.5), nn.ReLU(True), nn.MaxPool2d(2))),
    "norm": pooled(nn.BatchNorm2d(8), nn.ReLU6(True), nn.MaxPool2d(3, 2, 1)),
}


WAYS = ("function", "attribute", "list", "name", "method", "block", "tensor", "loop")


@pytest.mark.parametrize("name", [*NETS, *WAYS])
def test_which_activations_run_with_their_blur_is_known_before(name: str) -> None:
    model = NETS[name] if name in NETS else Called(name)
    recipe, x = {"conv": {"stem": "convert"}}, torch.randn(2, 4, 32, 32)
    plan = blurify.inspect(model, x, recipe, memory=True)
    kept: dict[int, Any] = {}
    converted = blurify.convert(model, recipe, example_inputs=x)
    own = {one.untyped_storage()._cdata for one in (*converted.parameters(), *converted.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: (kept.update({one.untyped_storage()._cdata: one.untyped_storage()}), one)[1], lambda one: one
    ):
        converted(x)
    assert plan.kept is not None and plan.extra_kept is not None
    found = sum(one.nbytes() for place, one in kept.items() if place not in own)
    assert plan.kept + plan.extra_kept == pytest.approx(found, abs=256)  # statistics of norms
