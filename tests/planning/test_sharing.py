"""Convolutions that alone read a module's input share one blur of it: the same function for fewer multiply-adds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import blurify
from blurify.surgery.apply import apply_plan

LIGHT = {"conv": {"placement": "cheap"}}
X = torch.randn(2, 3, 21, 24, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block with a strided shortcut."""

    def __init__(self, leaks: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.shortcut = nn.Conv2d(4, 6, 1, 2)
        self.leaks = leaks

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x)
        return torch.relu(y) + x.mean() if self.leaks else torch.relu(y)


def net(**how: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), Block(**how), nn.Conv2d(6, 2, 1)).eval()


def apart(model: nn.Module, x: Tensor) -> Tensor:
    """The block with a blur before each of its convolutions, by hand."""
    one, pool = blurify.BlurPool2d(1, factor=2), blurify.BlurPool2d(2)
    block = model[2]  # type: ignore[index]
    shortcut = nn.functional.conv2d(pool(y := model[1](model[0](x))), block.shortcut.weight, block.shortcut.bias)  # type: ignore[index]
    return model[3](torch.relu(block.conv2(torch.relu(block.conv1(one(y)))) + shortcut))  # type: ignore[index, no-any-return]


@pytest.mark.parametrize("size", [(21, 24), (16, 16), (5, 7)])
def test_one_blur_for_both_is_the_same_function(size: tuple[int, int]) -> None:
    model = net()
    converted = blurify.convert(model, LIGHT, example_inputs=X)
    plan = blurify.plan_of(converted)
    assert plan is not None and [site.placement for site in plan.converted] == ["before 2", "before 2"]
    assert len(plan.edits) == 1 and plan.converted[0].edits == plan.converted[1].edits
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), apart(model, x), rtol=1e-5, atol=1e-6)
        assert torch.equal(blurify.revert(converted)(x), model(x))
    assert blurify.check(converted)


def test_its_costs_count_once() -> None:
    plan = blurify.inspect(net(), X, LIGHT, memory=True)
    blur = 2 * 4 * 21 * 24 * 16
    assert [site.extra_macs for site in plan.converted] == [blur, 0]
    first, second = plan.converted
    # both kept the map that the stem's relu keeps too; now they keep the blurred one
    assert first.extra_written and first.extra_kept == 2 * 4 * 21 * 24 * 4
    assert second.extra_written == second.extra_kept == 0


def test_what_others_read_too_is_blurred_apart() -> None:
    plan = blurify.inspect(net(leaks=True), X, LIGHT)
    assert [site.placement for site in plan.converted] == ["before 2.conv1", "before 2.shortcut"]
    assert [site.rule for site in plan.converted] == ["blurred-input", "commuted"]


def test_other_filters_are_not_shared() -> None:
    recipe = {**LIGHT, "site": [{"match": "2.shortcut", "filter": {"size": 3}}]}
    plan = blurify.inspect(net(), X, recipe)
    assert len({site.blur_paths for site in plan.converted}) == 2


def test_a_plan_from_before_is_carried_out_as_it_was(tmp_path: object) -> None:
    """Plans of earlier versions have a blur for each."""
    model = net()
    old = blurify.inspect(net(leaks=True), X, LIGHT)  # whose plan is what this model's was
    before = blurify.Plan.from_dict({**old.to_dict(), "model": blurify.inspect(model, X, LIGHT).model})
    apply_plan(model, before)
    path = f"{tmp_path}/old.pt"
    blurify.save(model, path)
    again = blurify.load(path, allow=[f"{Block.__module__}.Block"])
    loaded = blurify.plan_of(again)
    assert loaded is not None and [site.rule for site in loaded.converted] == ["blurred-input", "commuted"]
    with torch.no_grad():
        torch.testing.assert_close(again(X), apart(blurify.revert(again), X), rtol=1e-5, atol=1e-6)
