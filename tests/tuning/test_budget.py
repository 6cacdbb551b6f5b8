"""Budgets: kept as torch's own counter and torch's own saved tensors say, and spent on what removes most."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

import blurify
from blurify.cli.answers import parse_extra
from blurify.errors import BlurifyError
from blurify.metrics.pictures import FolderPictures, open_folder
from blurify.metrics.preprocessing import preprocessing_of
from blurify.metrics.results import Agreement, Estimate
from blurify.metrics.subject import Subject
from blurify.metrics.trade_off import RankedSite, Ranking, Step
from blurify.spec.filters import binomial_taps, leakage
from blurify.spec.plan import Site
from blurify.spec.recipes import Recipe, load_recipe
from blurify.tuning.budget import Budget, within_budget
from tests.command_line import error_of, out_of

SPEC = "python:tests.tuning.test_budget:make"


def make() -> nn.Module:
    """A max pool, a strided convolution with an activation, a strided 1x1 one without, an average pool."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 1, 2), nn.AvgPool2d(2), nn.Conv2d(32, 8, 1), nn.Flatten(), nn.LazyLinear(9),
    )  # fmt: skip


def small() -> nn.Module:
    net = make().eval()
    net(torch.zeros(1, 3, 32, 32))
    return net


class UNet(nn.Module):
    """Two max pools and a strided convolution down, nearest and transposed upsampling back, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.down, self.pool = nn.Conv2d(16, 16, 3, 2, 1), nn.MaxPool2d(2)
        self.up, self.out = nn.ConvTranspose2d(16, 16, 2, 2), nn.Conv2d(24, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x).relu()
        two = self.second(self.pool(one)).relu()
        two = two + self.up(self.down(two).relu())
        return self.out(torch.cat([one, nn.functional.interpolate(two, scale_factor=2.0)], 1))


def sound() -> nn.Module:
    """One dimension: a stride of 4, a max pool, an average pool of stride 3 and a 1x1 shortcut."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 9, padding=4), nn.ReLU(), nn.Conv1d(8, 16, 9, 4, 4), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(16, 16, 1, 2), nn.AvgPool1d(3), nn.Conv1d(16, 4, 3),
    )  # fmt: skip


IMAGE = torch.zeros(1, 3, 32, 32)
BIG = torch.zeros(1, 3, 64, 64)


def narrow_repvgg() -> nn.Module:
    """Three blocks whose branches share a blur."""
    blocks = tuple(ByoBlockCfg(type="rep", d=1, s=2, c=channels, gs=0) for channels in (16, 24, 32))
    return ByobNet(ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=16), num_classes=9)


MODELS = {
    "small": (small, IMAGE),
    "unet": (UNet, IMAGE),
    "sound": (sound, torch.zeros(1, 2, 384)),
    "resnet": (lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=9), BIG),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2, 2), 16, num_classes=9), BIG),
    "mobilenetv2": (
        lambda: torchvision.models.MobileNetV2(9, 0.5, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 2, 2]]),
        BIG,
    ),
    "efficientnet_b0": (lambda: torchvision.models.efficientnet_b0(), BIG),
    "repvgg": (narrow_repvgg, BIG),
}


def flops(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops()


def kept(model: nn.Module, x: Tensor) -> int:
    """Bytes that a real forward in train mode keeps, by the addresses of its storages."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(x)
    model.eval()
    return sum(found.values())


def converted(model: nn.Module, recipe: Recipe, x: Tensor) -> nn.Module:
    return blurify.convert(model, recipe, example_inputs=x, verify=False)


def sites(model: nn.Module, recipe: Recipe, x: Tensor) -> dict[str, Site]:
    return {site.name: site for site in blurify.inspect(model, x, recipe).sites}


def taps(site: Site) -> int:
    return next(len(edit.blur.method.taps) for edit in site.edits if edit.blur is not None)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "efficientnet_b0")) for n in MODELS])
def test_budgets_of_multiply_adds_are_kept_as_torch_counts_them(name: str) -> None:
    make, x = MODELS[name]
    model = make().eval()
    before, full = flops(model, x), flops(converted(model, Recipe(), x), x)
    costs = []
    for share in (0.0, 0.003, 0.1, 10.0):
        chosen = within_budget(model, Recipe(), Budget(flops=share), x)
        assert blurify.inspect(model, x, chosen.recipe).converted, "what costs nothing is anti-aliased all the same"
        after = flops(converted(model, chosen.recipe, x), x)
        assert before <= after <= before * (1 + share)
        assert chosen.spent.extra_macs * 2 == after - before
        costs.append(after)
    assert costs == sorted(costs)
    assert costs[0] == before and costs[-1] == full  # all that the recipe wants, where the budget has room for it


def test_nothing_extra_still_anti_aliases_what_costs_nothing() -> None:
    net = small()
    recipe = within_budget(net, Recipe(), Budget(flops=0.0), IMAGE).recipe
    found = sites(net, recipe, IMAGE)
    assert {name: site.rule for name, site in found.items()} == {
        "2": "maxpool", "3": "blurred-input", "5": "commuted", "6": "recipe",
    }  # fmt: skip
    assert {taps(site) for site in found.values() if site.action == "blur"} == {2}  # averages, as pools are
    assert "0.0% extra multiply-adds: its cheapest form adds +" in found["6"].reason
    model = blurify.convert(net, recipe, example_inputs=IMAGE)
    x = torch.randn(2, 3, 32, 32)
    pool = blurify.BlurPool2d(1, taps=(1, 1), factor=2)
    middle = nn.functional.max_pool2d(net[:2](x), 2, 1)
    by_hand = nn.functional.avg_pool2d(nn.functional.pad(middle, (0, 1, 0, 1), mode="reflect"), 2, 2)
    by_hand = net[3:5](nn.functional.avg_pool2d(nn.functional.pad(by_hand, (0, 1, 0, 1), mode="reflect"), 2, 1))
    by_hand = net[6:](nn.functional.conv2d(pool(by_hand), net[5].weight, net[5].bias, 2))
    assert torch.allclose(model(x), by_hand, atol=1e-5)


def test_an_odd_filter_is_not_mixed_with_an_even_one() -> None:
    """They would be half a sample apart; so nothing is free."""
    found = sites(small(), within_budget(small(), Recipe(filter_size=3), Budget(flops=0.0), IMAGE).recipe, IMAGE)
    assert {site.action for site in found.values()} == {"skip"}


@pytest.mark.parametrize("name", ["small", "unet", "sound", "resnet"])
def test_budgets_of_memory_are_kept_as_saved_tensors_show(name: str) -> None:
    make, x = MODELS[name]
    model = make().eval()
    x = x.repeat(2, *[1] * (x.ndim - 1))
    before, full = kept(model, x), kept(converted(model, Recipe(), x), x)
    done = []
    for share in (0.0, 0.1, 10.0)[name == "resnet" :]:
        chosen = within_budget(model, Recipe(), Budget(memory=share), x)
        after = kept(converted(model, chosen.recipe, x), x)
        assert after <= before * (1 + share)
        assert (chosen.spent.bytes, chosen.spent.extra_bytes) == (before, after - before)
        done.append(sum(site.action == "blur" for site in sites(model, chosen.recipe, x).values()))
    assert done == sorted(done) and after == full


def test_both_budgets_hold_together() -> None:
    net, x = small(), IMAGE.repeat(2, 1, 1, 1)
    chosen = within_budget(net, Recipe(), Budget(flops=0.05, memory=0.05), x)
    model = converted(net, chosen.recipe, x)
    assert flops(model, x) <= 1.05 * flops(net, x) and kept(model, x) <= 1.05 * kept(net, x)
    assert "of at most +5.0%" in chosen.spent.line(Budget(flops=0.05, memory=0.05))


def test_branches_that_share_a_blur_are_chosen_together() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.one, self.two = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            return (self.one(x) + self.two(x)).relu()

    for share in (0.0, 0.01, 0.05, 0.2, 0.5, 3.0):
        found = sites(Branches(), within_budget(Branches(), Recipe(), Budget(flops=share), IMAGE).recipe, IMAGE)
        assert found["one"].action == found["two"].action == "blur"
        assert taps(found["one"]) == taps(found["two"])


def test_what_leaks_of_white_noise() -> None:
    assert leakage((1.0,)) == pytest.approx(1)
    assert leakage((0.5, 0.5)) == pytest.approx(0.5 - 1 / np.pi, abs=1e-3)  # the mean of cos^2(w/2)
    values = [leakage(binomial_taps(size)) for size in range(1, 8)]
    assert values == sorted(values, reverse=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (37, 37, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def smoothing() -> nn.Module:
    """A trained layer, as far as anyone can tell, that averages."""
    conv = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
    nn.init.constant_(conv.weight, 1 / 25)
    return conv


def test_with_pictures_the_site_that_aliases_most_for_its_cost_comes_first(photos: Path) -> None:
    """Two equal max pools: the first reads noise, the second what averages have smoothed."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), smoothing(), smoothing(), nn.MaxPool2d(2),
        nn.Conv2d(4, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 64, 9),
    ).eval()  # fmt: skip
    used = preprocessing_of(net, None, size=(32, 32))
    pictures: FolderPictures = open_folder(photos, used, images=6)
    recipe = Recipe(filter_size=3)
    costs = {site.name: site.extra_macs for site in sites(net, recipe, IMAGE).values()}
    limit = (max(costs.values()) + 1) * 2 / flops(net, IMAGE)
    chosen = within_budget(net, recipe, Budget(limit), IMAGE, subject=Subject(net, used, "net"), pictures=pictures)
    done = {name: site.action for name, site in sites(net, chosen.recipe, IMAGE).items()}
    assert done == {"1": "blur", "4": "skip"}
    by_rule = within_budget(net, recipe, Budget(limit), IMAGE)  # which only knows that the second one is cheaper
    assert {name: site.action for name, site in sites(net, by_rule.recipe, IMAGE).items()} == {"1": "skip", "4": "blur"}


def test_convert_by_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, shape = "python:tests.tuning.test_budget:small", ["--input-shape", "1,3,32,32"]
    out = tmp_path / "out.pt"
    data = json.loads(out_of(capsys, "convert", spec, "-o", out, "--max-extra-flops", "0%", "--json", *shape))
    assert data["budget"]["extra_macs"] == 0 and data["totals"]["converted"] == 3
    text = out_of(capsys, "convert", spec, "-o", out, "--max-extra-flops", "2%", "--max-extra-memory", "20%",
                  "--data", photos, "--images", 6, "--keep-agreement", "1%", "--force", *shape)  # fmt: skip
    assert "budget kept, as measured: multiply-adds +" in text and "activation memory" in text
    assert flops(blurify.load(out, arch=spec), IMAGE) <= 1.02 * flops(small(), IMAGE)
    assert "no share" in error_of(capsys, "convert", spec, "-o", out, "--force", "--max-extra-flops", "-5%")


def answering() -> nn.Module:
    """A classifier with two sites, each of which costs some of its answers on noise."""
    torch.manual_seed(13)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 64, 9),
    ).eval()  # fmt: skip
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=1.5 / module.weight[0].numel() ** 0.5)
    return net


def test_costs_are_those_of_what_is_left_when_answers_are_to_be_kept_too(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = "python:tests.tuning.test_budget:answering", tmp_path / "out.pt"
    common = ["--data", photos, "--images", 6, "--input-shape", "1,3,32,32"]
    ranking = json.loads(out_of(capsys, "inspect", spec, "--rank", "--json", *common))["ranking"]
    first, both = (step["agreement"]["same"]["value"] for step in ranking["curve"])
    assert first > both, "the test needs a net of which one site alone keeps more"
    budget = ["--max-extra-flops", "1000%", "--max-extra-memory", "1000%"]
    arguments = ["convert", spec, "-o", out, *common, *budget, "--json"]
    full = json.loads(out_of(capsys, *arguments))
    done = json.loads(out_of(capsys, *arguments, "--keep-agreement", f"{first:.4f}", "--force"))
    assert (full["totals"]["converted"], done["totals"]["converted"]) == (2, 1)
    model = blurify.load(out, arch=spec)
    assert 2 * done["budget"]["extra_macs"] == flops(model, IMAGE) - flops(answering(), IMAGE)
    assert done["budget"]["extra_bytes"] == kept(model, IMAGE) - kept(answering(), IMAGE)
    assert done["budget"]["extra_macs"] < full["budget"]["extra_macs"]
    # Where the budget has room for nothing, there are no sites to choose among.
    nothing = [*arguments, "--keep-agreement", "50%", "--force", "--write-unchanged", "--filter-size", 3]
    nothing[nothing.index("1000%")] = "0%"
    assert json.loads(out_of(capsys, *nothing))["totals"]["converted"] == 0


def test_of_what_keeps_enough_answers_what_keeps_the_budget_too() -> None:
    agreed = [Agreement(4, same=Estimate.of([1.0] * 4)) for _ in range(3)]
    share = Estimate.of([0.5, 0.25], yes_or_no=False)
    ranked = tuple(RankedSite(f"s{n}", "conv", one, share, share) for n, one in enumerate(agreed))
    curve = tuple(Step(n, one, n / 3) for n, one in enumerate(agreed, 1))
    ranking = Ranking("m", "d", Recipe(), ranked, curve, 2)
    assert ranking.choose(0.9) == Recipe()
    assert ranking.choose(0.9, lambda recipe: len(recipe.skip_names) >= 2).skip_names == ("s1", "s2")
    with pytest.raises(BlurifyError, match="does not keep the budget"):
        ranking.choose(0.9, lambda recipe: False)


def test_shares_and_limits_that_are_none() -> None:
    assert [parse_extra("x", text) for text in ("0", "10%", "0.25", "150 %", None)] == [0.0, 0.1, 0.25, 1.5, None]
    for text in ("", "ten", "-1%", "1e3", "nan"):
        with pytest.raises(BlurifyError, match="no share"):
            parse_extra("x", text)
    with pytest.raises(BlurifyError, match="needs a limit"):
        within_budget(small(), Recipe(), Budget(), IMAGE)
    with pytest.raises(BlurifyError, match="converted already"):
        within_budget(converted(small(), Recipe(), IMAGE), Recipe(), Budget(0.1), IMAGE)


def test_the_critical_path_is_shortcuts_and_main_path() -> None:
    rules = {s.name: s.rule for s in blurify.inspect(torchvision.models.resnet18(), BIG, "critical-path").sites}
    assert rules.pop("conv1") == "stem" and rules.pop("maxpool") == "recipe"
    assert set(rules.values()) == {"after-activation", "commuted"} and len(rules) == 6
    assert load_recipe("critical-path").stem == "skip"
