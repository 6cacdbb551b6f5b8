"""What `[[site]]` tables and `site_filter` do to a model's plan."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError
from blurify.spec.methods import Flat, Taps
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import load_recipe

IMAGE = torch.zeros(1, 3, 32, 32)


class Net(nn.Module):
    """A stem, a max pool, a strided convolution and its shortcut, an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2)
        self.conv, self.short = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(8, 16, 1, 2)
        self.last, self.average = nn.Conv2d(16, 16, 3, 1, 1), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        return self.average(self.last(F.relu(self.conv(x))) + self.short(x))


class TwoPools(nn.Module):
    """One expression makes both sites."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for _ in range(2):
            x = F.max_pool2d(x, 2)
        return x


class Branches(nn.Module):
    """Two strided convolutions that are added before the nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return F.relu(self.one(x) + self.two(x))


def plan(*tables: dict, net: type[nn.Module] = Net, **recipe: object) -> Plan:
    return blurify.inspect(net(), IMAGE, blurify.Recipe(sites=tables, **recipe))  # type: ignore[arg-type]


def by_name(plan: Plan) -> dict[str, Site]:
    return {site.name: site for site in plan.sites}


def taps_of(site: Site) -> list[tuple[float, ...]]:
    return [edit.blur.method.taps for edit in site.edits if edit.blur is not None]


def test_each_site_gets_what_its_tables_say() -> None:
    sites = by_name(
        plan(
            {"match": "conv", "placement": "before", "taps": 2},
            {"match": "stem", "skip": False},
            {"kind": "maxpool", "skip": True, "because": "as it was trained"},
            {"kind": "avgpool", "taps": 3, "padding": "zeros"},
        )
    )
    assert {name: site.rule for name, site in sites.items()} == {
        "stem": "after-activation", "pool": "recipe", "conv": "blurred-input", "short": "commuted",
        "average": "avgpool",
    }  # fmt: skip
    assert "as it was trained" in sites["pool"].reason
    assert taps_of(sites["conv"]) == [(0.5, 0.5)] and taps_of(sites["average"]) == [(0.25, 0.5, 0.25)]
    assert taps_of(sites["short"]) == [(0.125, 0.375, 0.375, 0.125)]
    assert [edit.blur.padding for edit in sites["average"].edits if edit.blur] == ["zeros"]


def test_a_recipe_with_tables_converts_proves_and_is_the_same_again() -> None:
    recipe = blurify.Recipe(sites=({"regex": "co.*|pool", "taps": 3}, {"match": "average", "skip": True}))
    net = Net().eval()
    converted = blurify.convert(net, recipe, example_inputs=IMAGE)
    proof = blurify.proof_of(converted)
    assert proof is not None and proof.sites_converted == 3
    again = blurify.convert(converted, recipe, example_inputs=IMAGE)
    assert blurify.plan_of(again) == blurify.plan_of(converted)
    assert taps_of(by_name(blurify.plan_of(converted))["pool"]) == [(0.25, 0.5, 0.25)]  # type: ignore[arg-type]
    identity = blurify.convert(net, recipe, filter_size=1, example_inputs=IMAGE)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(identity(x), net(x), atol=1e-6)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"match": "con", "skip": True}, "match 'con', which matches no site of this model: the nearest site is 'co"),
        ({"match": ["conv", "xyz*"], "skip": True}, "'xyz*', which matches no site"),
        ({"regex": "shor", "skip": True}, "regex 'shor', which matches no site of this model: the nearest site is 's"),
        ({"match": "c*", "kind": "maxpool", "skip": True}, "the nearest site is 'conv', a conv of stride 2x2"),
    ],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_names_the_nearest_site(table: dict, words: str) -> None:
    with pytest.raises(BlurifyError, match="table 1 of the recipe") as caught:
        plan(table)
    assert words in str(caught.value)


def test_tables_without_a_pattern_are_for_many_models_and_may_match_nothing() -> None:
    assert plan({"kind": "slice", "skip": True}, {"channels": "999..", "taps": 3}).converted


def test_one_expression_that_makes_two_sites_can_not_filter_them_differently() -> None:
    assert [site.action for site in plan(net=TwoPools).sites] == ["blur", "blur"]
    for tables in ({"depth": 1, "taps": 3}, {"depth": 2, "taps": 3}):
        sites = plan(tables, net=TwoPools).sites
        assert [(site.action, site.rule) for site in sites] == [("skip", "source")] * 2


def test_branches_that_share_a_blur_can_not_have_different_ones() -> None:
    assert {site.rule for site in plan(net=Branches).sites} == {"after-activation"}
    with pytest.raises(BlurifyError, match="'one' and 'two' share one blur"):
        plan({"match": "one", "taps": 3}, net=Branches)
    rules = [site.rule for site in plan({"match": "one", "skip": True}, net=Branches).sites]
    assert rules == ["recipe", "commuted"]  # the other one is blurred by itself


def test_site_filter_is_asked_of_every_site_and_kept_as_data() -> None:
    asked: list[tuple[str, str]] = []

    def choose(site: Site) -> object:
        asked.append((site.name, site.action))
        return {"conv": {"taps": 5, "placement": "before"}, "pool": False, "stem": {"skip": False}}.get(site.name)

    found = blurify.inspect(Net(), IMAGE, site_filter=choose)  # type: ignore[arg-type]
    assert asked == [("stem", "skip"), *((name, "blur") for name in ("pool", "conv", "short", "average"))]
    sites = by_name(found)
    assert [sites[name].action for name in ("stem", "pool", "short")] == ["blur", "skip", "blur"]
    assert (sites["conv"].rule, len(taps_of(sites["conv"])[0])) == ("blurred-input", 5)
    assert blurify.inspect(Net(), IMAGE, Plan.from_dict(found.to_dict()).recipe).sites == found.sites
    nothing = blurify.inspect(Net(), IMAGE, site_filter=lambda site: None)
    assert nothing == blurify.inspect(Net(), IMAGE)


def test_what_site_filter_may_not_return_is_told() -> None:
    for answer, words in (("yes", "site_filter returned 'yes' for 'stem'"), ({"tap": 3}, "unknown key 'tap'")):
        with pytest.raises(BlurifyError, match=words):
            blurify.inspect(Net(), IMAGE, site_filter=lambda site, answer=answer: answer)  # type: ignore[misc]


def test_a_table_may_bring_a_filter_of_another_kind_and_taps_may_replace_one() -> None:
    tables = [{"match": "layer4.*", "filter": {"kind": "flat", "size": 7}}, {"match": "maxpool", "taps": [1, 2, 1]}]
    model, image = torchvision.models.resnet18().eval(), torch.rand(1, 3, 64, 64)
    for wanted in ({"site": tables}, load_recipe({"site": tables}).to_dict()):
        plan = blurify.inspect(model, image, recipe=wanted)
        kinds = {site.name: site.edits[-1].blur.method for site in plan.converted}
        assert kinds["layer4.0.conv1"] == kinds["layer4.0.downsample.0"] == Flat(7)
        assert kinds["maxpool"] == Taps((0.25, 0.5, 0.25)) and len(kinds["layer3.0.conv1"].taps) == 4
    plan = blurify.inspect(
        model, image, recipe={"filter": {"kind": "flat"}, "site": [{"match": "layer4.*", "taps": 3}]}
    )
    kinds = {site.name: site.edits[-1].blur.method.kind for site in plan.converted}
    assert kinds["layer4.0.conv1"] == "taps" and kinds["layer3.0.conv1"] == "flat"
    aligned = {"filter": {"aligned": True, "size": 3}, "site": [{"match": "layer4.*", "taps": [1, 4, 6, 4, 1]}]}
    plan = blurify.inspect(model, image, recipe=aligned)
    assert all(site.edits[-1].blur.centre == (0.0, 0.0) for site in plan.converted)
