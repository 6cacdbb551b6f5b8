"""Ranking of sites: against conversions made one by one through the public functions, and known costs and gains."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError
from blurify.metrics.aliasing import aliasing
from blurify.metrics.files import Context, read_all, write_measurements
from blurify.metrics.results import Agreement, Estimate, Measurement
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures
from blurify.metrics.trade_off import RankedSite, Ranking, Step
from blurify.spec.recipes import Recipe
from blurify.tuning.ranking import rank_sites

SIDE, COUNT = 32, 14
PLAIN = Preprocessing((SIDE, SIDE), (SIDE, SIDE), 3, (0.5,) * 3, (0.25,) * 3)
EXAMPLE = torch.zeros(1, 3, SIDE, SIDE)


def pictures(count: int = COUNT) -> TensorPictures:
    """Noise that was smoothed a little: something of every frequency."""
    noise = torch.rand(count, 3, SIDE + 2, SIDE + 2, generator=torch.Generator().manual_seed(0))
    return TensorPictures(nn.functional.avg_pool2d(noise, 3, 1), name="noise")


def seen() -> Tensor:
    return (pictures().canvases - 0.5) / 0.25


class Net(nn.Module):
    """Four sites of each kind of cost, one of them with brackets in its name."""

    def __init__(self, *, dense: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stages = nn.ModuleDict({"a[0]": nn.Conv2d(8, 8, 3, 2, 1), "a0": nn.Conv2d(8, 8, 3, 2, 1)})
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(8, 6, 1)
        self.dense = dense
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=1.6 / module.weight[0].numel() ** 0.5)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.stages["a[0]"](x))
        x = torch.relu(self.stages["a0"](x))
        x = self.head(nn.functional.avg_pool2d(self.pool(x), 2))
        return {"map": x, "mean": x.mean((2, 3))} if self.dense else 4 * x.mean((2, 3))


def converted(model: nn.Module, recipe: Any, kept: list[str]) -> nn.Module:
    """With these sites converted, by leaving out the edits of the others from the plan's names as they are printed."""
    names = [site.name for site in blurify.inspect(model, EXAMPLE, recipe).converted]
    left = [name.replace("[", "[[]") for name in names if name not in kept]
    wanted = dataclasses.replace(blurify.spec.recipes.load_recipe(recipe), skip_names=tuple(left))
    return blurify.convert(model, wanted, example_inputs=EXAMPLE, verify=False)


def loss(model: nn.Module, other: nn.Module) -> tuple[float, float]:
    """(lost, kept) of a classifier, or of the two outputs of the dense net."""
    with torch.no_grad():
        here, there = model(seen()), other(seen())
    if isinstance(here, dict):
        errors = []
        for name in here:
            o, c = here[name].double(), there[name].double()
            errors.append(float((o - c).square().sum() / (o - o.mean(0)).square().sum()))
        return sum(errors) / 2, max(0.0, 1 - sum(errors) / 2)
    p, q = here.double().softmax(1), there.double().softmax(1)
    return float((p * (p / q).log()).sum(1).mean()), float((here.argmax(1) == there.argmax(1)).double().mean())


def share(model: nn.Module, name: str) -> float:
    found = aliasing(Subject(model, PLAIN), pictures())
    return next(site.share.value for site in found.sites if site.site == name)


@pytest.mark.parametrize(("dense", "recipe"), [(False, "zhang2019"), (True, "gentle"), (False, "light")])
def test_each_figure_is_that_of_the_conversion_made_by_hand(dense: bool, recipe: str) -> None:
    model = Net(dense=dense).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = rank_sites(Subject(model, PLAIN, "net"), recipe, pictures(), batch_size=5)
    assert (found.model, found.data, found.recipe.name, found.aliasing_images) == ("net", "noise", recipe, COUNT)
    every = [site.name for site in blurify.inspect(model, EXAMPLE, recipe).converted]
    assert len(every) >= 4 and sorted(site.site for site in found.sites) == sorted(every)
    for site in found.sites:
        alone = converted(model, recipe, [site.site])
        assert (site.agreement.lost, site.agreement.kept) == pytest.approx(loss(model, alone), rel=1e-4, abs=1e-6)
        assert site.before.value == pytest.approx(share(model, site.site), abs=1e-6)
        assert site.after.value == pytest.approx(share(alone, site.site), abs=1e-6)
    prices = [lost / gain if gain > 0 else float("inf") for lost, gain in
              ((site.agreement.lost, site.before.value - site.after.value) for site in found.sites)]  # fmt: skip
    assert prices == sorted(prices) and len(set(prices)) > 1
    total = sum(site.before.value for site in found.sites)
    for count, step in enumerate(found.curve, 1):
        prefix = [site.site for site in found.sites[:count]]
        wanted = loss(model, converted(model, recipe, prefix))
        assert step.sites == count
        assert (step.agreement.lost, step.agreement.kept) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        removed = sum(site.before.value - site.after.value for site in found.sites[:count])
        assert step.removed == pytest.approx(removed / total)
    assert len(found.curve) == len(every)
    assert blurify.plan_of(model) is None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def resnet() -> nn.Module:
    """Where a convolution and a shortcut share a blur point, or not, as both are converted or one."""
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10)


@pytest.mark.parametrize("make", [Net, resnet])
def test_the_chosen_recipe_plans_exactly_the_first_sites(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    found = rank_sites(Subject(model, PLAIN), None, pictures(4), aliasing_images=2)
    for count in {1, len(found.sites) // 2, len(found.sites) - 1}:
        plan = blurify.inspect(model, EXAMPLE, found.first(count))
        assert {site.name for site in plan.converted} == {site.site for site in found.sites[:count]}
    assert found.first(len(found.sites)) == Recipe(description=found.recipe.description)


def ranking(*kept: float) -> Ranking:
    """As many sites as figures; the figures are those of the curve."""

    def agreement(value: float) -> Agreement:
        return Agreement(10, same=Estimate.of([value] * 10), divergence=Estimate.of([1 - value] * 10, bounded=False))

    share = Estimate.of([0.5, 0.25], yes_or_no=False)
    sites = [RankedSite(f"s{n}", "conv", agreement(0.9), share, share) for n in range(len(kept))]
    curve = [Step(n, agreement(value), n / 10) for n, value in enumerate(kept, 1)]
    return Ranking("m", "d", Recipe(skip_names=("mine",)), tuple(sites), tuple(curve), 2)


@pytest.mark.parametrize(("keep", "left"), [(0.99, ("s1", "s2", "s3")), (0.9, ("s3",)), (0.7, ("s3",)), (0.5, ())])
def test_the_largest_prefix_that_keeps_enough_is_chosen(keep: float, left: tuple[str, ...]) -> None:
    """Also where fewer sites would keep less: the curve need not fall."""
    chosen = ranking(1.0, 0.6, 0.9, 0.5).choose(keep)
    assert chosen.skip_names == ("mine", *left)
    assert chosen.name == ("zhang2019" if not left else f"zhang2019, {4 - len(left)} of 4 sites")


def test_where_nothing_keeps_enough_it_says_what_does() -> None:
    with pytest.raises(BlurifyError, match=r"keeps 95% .* on d: one site converted keep 80.0%.*gentle") as caught:
        ranking(0.8, 0.6).choose(0.95)
    assert "\n" not in str(caught.value)
    for keep in (0, 1.5, float("nan")):
        with pytest.raises(BlurifyError, match="a share above 0"):
            ranking(0.8).choose(keep)


def test_a_file_of_measurements_keeps_the_ranking(tmp_path: Any) -> None:
    found = ranking(1.0, 0.6)
    write_measurements(tmp_path / "x.json", [Measurement("m", "d", 3)], context=Context(ranking=found))
    assert read_all(tmp_path / "x.json")[1].ranking == found
    data = json.loads((tmp_path / "x.json").read_text())
    for wrong in ({"format": 9}, {"format": 1}, {**data["ranking"], "curve": 3}, {**data["ranking"], "more": 1}):
        (tmp_path / "y.json").write_text(json.dumps({**data, "ranking": wrong}))
        with pytest.raises(BlurifyError, match="rank"):
            read_all(tmp_path / "y.json")


def test_what_cannot_be_ranked() -> None:
    done = blurify.convert(Net().eval(), example_inputs=EXAMPLE, verify=False)
    with pytest.raises(BlurifyError, match="converted already"):
        rank_sites(Subject(done, PLAIN), None, pictures())
    with pytest.raises(BlurifyError, match="nothing to rank"):
        rank_sites(Subject(Net(), PLAIN), Recipe(skip_names=("*",)), pictures())
