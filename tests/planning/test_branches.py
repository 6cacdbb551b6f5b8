"""Branches that meet in a sum or a concatenation are treated alike: blurred, or left alone with the cause."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify
from blurify.graph.branches import partners
from blurify.graph.recorder import trace
from blurify.graph.sites import find_sites

IMAGE = torch.zeros(1, 3, 32, 32)


class Block(nn.Module):
    """A main path and a shortcut over the same features, joined by a function."""

    def __init__(self, shortcut: Any, join: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.b = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.plain, self.powers = nn.MaxPool2d(2), nn.LPPool2d(2, 2)
        self.shortcut, self.join = shortcut, join
        self.later = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.join(self.b(self.a(x).relu()), self.shortcut(self, x))
        return self.later(x[:, :4]).relu()


def with_indices(self: Any, x: Tensor) -> Tensor:
    y, indices = self.pool(x)
    return y + 0 * indices.float()


def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def together(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def rules(net: nn.Module, image: Tensor = IMAGE) -> dict[str, str]:
    return {site.name: site.rule for site in blurify.inspect(net, image).sites if site.rule != "not-run"}


def meet(net: nn.Module, image: Tensor = IMAGE) -> dict[str, set[str]]:
    seen = trace(net, ((image,), {}))
    return partners(seen.graph, find_sites(seen))


def test_both_are_left_alone_where_one_must_be() -> None:
    for join in (add, together):
        net = Block(with_indices, join)
        assert rules(net) == {"a": "branch", "pool": "returns-indices", "later": "after-activation"}
        reason = next(site.reason for site in blurify.inspect(net, IMAGE).sites if site.name == "a")
        assert "pool (returns-indices)" in reason
    assert rules(Block(lambda self, x: self.powers(x), add))["a"] == "branch"


def test_both_are_blurred_where_both_can_be() -> None:
    net = Block(lambda self, x: self.plain(x), add)
    assert rules(net) == {"a": "after-activation", "plain": "maxpool", "later": "after-activation"}


def test_what_the_user_leaves_alone_binds_no_other() -> None:
    sites = blurify.inspect(Block(lambda self, x: self.plain(x), add), IMAGE, {"skip": {"names": ["plain"]}}).sites
    assert [site.rule for site in sites][:3] == ["after-activation", "recipe", "after-activation"]


def test_which_meet() -> None:
    net = Block(lambda self, x: self.plain(x), add)
    assert meet(net) == {"a": {"plain"}, "plain": {"a"}}
    # Without a subsampling of its own, a shortcut of the same features meets nothing.
    assert meet(Block(lambda self, x: F.interpolate(x, scale_factor=0.5), add)) == {}


def test_windows_meet_the_whole_map() -> None:
    """A main path that pools in windows and a shortcut that pools all at once."""

    class Windows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            y = x.view(n, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 8, 8)
            y = F.max_pool2d(y, 2).view(n, h // 8, w // 8, c, 4, 4)
            return F.max_pool2d(x, 2) + y.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h // 2, w // 2)

    names = set(meet(Windows()))
    assert len(names) == 2 and all(len(other) == 1 for other in meet(Windows()).values())
    assert set(rules(Windows()).values()) == {"maxpool"}


def test_a_decoder_and_its_skip_do_not_meet() -> None:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            a = self.one(x).relu()
            b = self.two(a).relu()
            c = self.three(b).relu()
            return torch.cat([b, F.interpolate(c, scale_factor=2.0)], 1)

    assert meet(UNet()) == {}
