"""Pareto tables: each point against the conversion made by hand, the order against budgets, and what they are told."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError
from blurify.metrics.aliasing import aliasing
from blurify.metrics.files import Context, read_all, write_measurements
from blurify.metrics.pareto import ParetoPoint, ParetoTable
from blurify.metrics.results import Agreement, Estimate, Measurement
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures
from blurify.spec.recipes import Recipe, load_recipe
from blurify.tuning.budget import Budget, within_budget
from blurify.tuning.pareto import base_recipe, pareto_table
from tests.command_line import error_of, out_of
from tests.tuning.test_budget import flops, kept, photos  # noqa: F401

SIDE, COUNT = 32, 10
PLAIN = Preprocessing((SIDE, SIDE), (SIDE, SIDE), 3, (0.5,) * 3, (0.25,) * 3)
IMAGE = torch.zeros(1, 3, SIDE, SIDE)
SPEC = "python:tests.tuning.test_pareto:Net"


class Net(nn.Module):
    """A max pool, a strided convolution and a strided 1x1 one, of random weights that are easily led astray."""

    def __init__(self, *, dense: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2)
        self.conv, self.short = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1, 2)
        self.head, self.last = nn.Conv2d(8, 10, 1), nn.Linear(160, 10)
        self.dense = dense
        for module in (self.stem, self.conv, self.short, self.head, self.last):
            nn.init.normal_(module.weight, std=1.6 / module.weight[0].numel() ** 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = self.head(self.short(torch.relu(self.conv(x))))
        return x if self.dense else self.last(x.flatten(1))


def pictures() -> TensorPictures:
    noise = torch.rand(COUNT, 3, SIDE + 2, SIDE + 2, generator=torch.Generator().manual_seed(0))
    return TensorPictures(nn.functional.avg_pool2d(noise, 3, 1), name="noise")


def seen() -> Tensor:
    return (pictures().canvases - 0.5) / 0.25


def table(net: nn.Module, recipe: Any = None, **more: Any) -> ParetoTable:
    return pareto_table(net, recipe, subject=Subject(net, PLAIN, "net"), pictures=pictures(), **more)


def converted(net: nn.Module, recipe: Any) -> nn.Module:
    return blurify.convert(net, recipe, example_inputs=IMAGE, verify=False)


def same(net: nn.Module, other: nn.Module) -> Any:
    """The share of equal labels: of pictures, or of their positions."""
    with torch.no_grad():
        return pytest.approx(float((net(seen()).argmax(1) == other(seen()).argmax(1)).double().mean()), abs=1e-6)


def mean_aliasing(net: nn.Module) -> float:
    shares = [site.share.value for site in aliasing(Subject(net, PLAIN), pictures()).sites if site.site != "stem"]
    assert len(shares) == 3
    return sum(shares) / 3


@pytest.mark.parametrize("dense", [False, True])
def test_each_point_is_what_the_conversion_made_by_hand_is(dense: bool) -> None:
    net = Net(dense=dense)
    weights = copy.deepcopy(net.state_dict())
    found = table(net, most=6)
    assert (found.model, found.data, found.sites, found.aliasing_sites) == ("net", "noise", 3, 3)
    assert (found.macs * 2, found.bytes) == (flops(net, IMAGE), kept(Net(dense=dense), IMAGE))
    assert len(found.points) <= 6 < found.steps + 1, "the test needs more steps than points"
    for point in found.points:
        by_hand = converted(net, point.recipe)
        assert point.extra_macs * 2 == flops(by_hand, IMAGE) - flops(net, IMAGE)
        assert point.extra_bytes == kept(converted(Net(dense=dense), point.recipe), IMAGE) - found.bytes
        plan = blurify.plan_of(by_hand)
        assert point.sites == (len(plan.converted) if plan else 0)
        assert point.kept == same(by_hand, net)
        assert point.aliasing == pytest.approx(mean_aliasing(by_hand), abs=1e-6)
        assert found.left(point) == pytest.approx(mean_aliasing(by_hand) / mean_aliasing(net), abs=1e-6)
    first, last = found.points[0], found.points[-1]
    assert (first.steps, first.what, first.sites, first.kept) == (0, ("nothing",), 0, 1.0)
    assert last.sites == 3 and last.kept < 1
    assert blurify.inspect(net, IMAGE, last.recipe).edits == blurify.inspect(net, IMAGE).edits
    assert blurify.plan_of(net) is None
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


def test_the_order_is_that_in_which_a_budget_takes_sites_and_filters() -> None:
    net = Net()
    subject = Subject(net, PLAIN)
    found = table(net, most=50)
    assert [point.steps for point in found.points if point.steps is not None] == list(range(found.steps + 1))
    ends = [p for p, after in zip(found.points, found.points[1:], strict=False) if after.extra_macs > p.extra_macs]
    assert len(ends) > 3
    for point in ends:  # the last of those that cost as much
        budget = Budget(point.extra_macs / found.macs)
        chosen = within_budget(net, Recipe(), budget, IMAGE, subject=subject, pictures=pictures())
        assert chosen.spent.extra_macs == point.extra_macs
        assert blurify.inspect(net, IMAGE, chosen.recipe).edits == blurify.inspect(net, IMAGE, point.recipe).edits
    forms = [what for point in found.points for what in point.what]
    assert "pool: average of two samples" in forms and "conv: as the recipe says" in forms
    assert any(what.startswith("conv: before the convolution") for what in forms)


def test_the_present_conversion_is_marked_or_one_more() -> None:
    net = Net()
    (whole,) = [point for point in table(net, present=converted(net, None), most=4).points if point.present]
    assert whole.steps is not None and whole.sites == 3
    other = converted(net, {"skip": {"kinds": ["conv"]}, "filter": {"size": 3}})
    found = table(net, present=other, most=5)
    assert len(found.points) == 5 and [point.present for point in found.points] == [False] * 4 + [True]
    assert (found.points[-1].steps, found.points[-1].what) == (None, ("the present conversion",))
    assert found.points[-1].extra_macs * 2 == flops(other, IMAGE) - flops(net, IMAGE)
    assert found.points[-1].kept == same(other, net)
    # Adapted: the plan of the last point, and other weights, with which it is measured.
    adapted = converted(net, None)
    with torch.no_grad():
        adapted.last.weight.neg_()
    point = table(net, present=adapted, most=4).points[-1]
    assert (point.present, point.steps, point.sites) == (True, None, 3)
    assert point.kept == same(adapted, net) and point.kept < 0.5


def test_without_pictures_costs_are_counted_and_the_rest_is_by_rule() -> None:
    net = Net()
    found = pareto_table(net, None, IMAGE, name="net")
    assert not found.measured and found.data == "" and found.points[0].aliasing == 1.0
    assert {point.kept for point in found.points} == {None}
    for point in found.points:
        assert point.extra_macs * 2 == flops(converted(net, point.recipe), IMAGE) - flops(net, IMAGE)
    left = [found.left(point) for point in found.points]
    assert left == sorted(left, reverse=True) and left[-1] < 0.05
    costs = [point.extra_macs for point in found.points]
    assert costs == sorted(costs) and costs[1] == 0


def test_networks_of_one_dimension_have_a_table_too() -> None:
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 4, 3, 2), nn.ReLU())
    found = pareto_table(net, "light", torch.zeros(2, 2, 64))
    assert found.points[-1].sites == 2 and found.points[-1].extra_macs > 0


def point(macs: int, size: int | None, share: float | None, left: float | None) -> ParetoPoint:
    agreed = None if share is None else Agreement(4, same=Estimate(share, 0, 1, 4))
    return ParetoPoint(0, ("x",), 1, macs, size, agreed, left, Recipe())


def test_what_is_dominated() -> None:
    points = (
        point(0, 0, 1.0, 1.0),
        point(5, 0, 0.9, 0.5),
        point(5, 0, 0.9, 0.6),  # more aliasing than the one before, for the same
        point(6, 0, 0.9, 0.5),  # dearer
        point(5, 1, 0.9, 0.4),
        point(5, 1, 0.9, 0.4),  # equals do not dominate one another
        point(-1, 0, 1.0, 1.0),  # cheaper than nothing at all
    )
    found = ParetoTable("m", "d", Recipe(), 100, 10, 3, 4, points)
    assert found.front == (False, True, False, False, True, True, True)
    bare = ParetoTable("m", "", Recipe(), 100, None, 3, 4, (point(0, None, None, 1.0), point(0, None, None, 0.5)))
    assert bare.front == (False, True) and not bare.measured
    assert bare.left(bare.points[1]) == 0.5
    assert found.left(point(0, 0, 1.0, None)) is None


def test_what_has_no_table() -> None:
    with pytest.raises(BlurifyError, match="at least 4"):
        pareto_table(Net(), None, IMAGE, most=3)
    with pytest.raises(BlurifyError, match="converted already"):
        pareto_table(converted(Net(), None), None, IMAGE)
    with pytest.raises(BlurifyError, match="nothing to choose"):
        pareto_table(Net(), Recipe(skip_names=("*",)), IMAGE)


def test_the_recipe_that_a_conversion_was_a_part_of() -> None:
    net = Net()
    part = within_budget(net, load_recipe("light"), Budget(0.0), IMAGE).recipe
    assert part.sites and base_recipe(blurify.inspect(net, IMAGE, part)) == load_recipe("light")
    own = Recipe(name="mine, of 2 sites", filter_size=3)
    assert base_recipe(blurify.inspect(net, IMAGE, own)) == own
    assert base_recipe(blurify.inspect(net, IMAGE, "flat")) == load_recipe("flat")


def test_files_hold_it(tmp_path: Path) -> None:
    found = pareto_table(Net(), None, IMAGE)
    write_measurements(tmp_path / "x.json", [Measurement("m", "d", 3)], context=Context(pareto=found))
    assert read_all(tmp_path / "x.json")[1].pareto == found
    data = json.loads((tmp_path / "x.json").read_text())
    rows = data["pareto"]["points"]
    assert [row["dominated"] for row in rows] == [not front for front in found.front]
    assert Recipe.from_dict(rows[-1]["recipe"]) == found.points[-1].recipe
    for wrong in ({"format": 9}, {"format": 1}, {**data["pareto"], "points": []}, {**data["pareto"], "more": 1},
                  {**data["pareto"], "points": [{**rows[0], "sites": "all"}]}):  # fmt: skip
        (tmp_path / "y.json").write_text(json.dumps({**data, "pareto": wrong}))
        with pytest.raises(BlurifyError, match="Pareto table"):
            read_all(tmp_path / "y.json")
    without = dataclasses.replace(found, points=found.points[:1])
    assert ParetoTable.from_dict(json.loads(json.dumps(without.to_dict()))) == without


# --- the command line


COMMON = ["--device", "cpu", "--images", 6]


def test_inspect_and_measure_print_it(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    by_rule = out_of(capsys, "inspect", SPEC, "--pareto", 5, "--input-shape", "1,3,32,32")
    assert "5 partial conversions of" in by_rule and "aliasing is by rule" in by_rule and " kept" not in by_rule
    path = tmp_path / "p.json"
    shape = ["--input-shape", "1,3,32,32"]
    text = out_of(capsys, "inspect", SPEC, "--data", photos, "--pareto", 5, "-o", path, *COMMON, *shape)
    assert "each measured on 6 pictures" in text and "100.0% (61.0..100.0)" in text
    held = read_all(path)[1].pareto
    assert held is not None and len(held.points) == 5
    assert [line.split()[0] for line in text.split("aliasing left")[1].splitlines()[1:6]] == [
        str(one.steps) for one in held.points
    ]
    out = tmp_path / "aa.pt"
    out_of(capsys, "convert", SPEC, "-o", out, "--max-extra-flops", "0%", *shape)
    measured = ["measure", SPEC, out, "--arch", SPEC, "--data", photos, "--size", 32, "--canvas", 37, *COMMON]
    data = json.loads(out_of(capsys, *measured, "--metrics", "consistency", "--pareto", 12, "--json"))["pareto"]
    assert data["recipe"]["name"] == "zhang2019" and len(data["points"]) <= 12
    (present,) = [row for row in data["points"] if row["present"]]
    assert present["extra_macs"] == 0 and present["sites"] > 0 and data["data"] == str(photos)
    # The converted one alone: its original is in it.
    alone = json.loads(
        out_of(capsys, *[*measured[:1], *measured[2:]], "--metrics", "consistency", "--pareto", 4, "--json")
    )
    assert sum(row["present"] for row in alone["pareto"]["points"]) == 1
    assert alone["pareto"]["points"][0]["kept"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", SPEC, "--pareto", 3], "at least 4"),
        (["measure", SPEC, "--pareto", 0], "at least 4"),
        (["inspect", SPEC, "--pareto", 5, "-o", "x.json"], "add --data"),
        (["inspect", SPEC, "-o", "x.json"], "add --rank or --pareto"),
        (["report", "x.json", "--pareto", 5, "-o", "r.html"], "x.json does not exist|models and the options|--pareto"),
    ],
)
def test_bad_usage(arguments: list[Any], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, *arguments)
    assert any(one in error for one in says.split("|"))
