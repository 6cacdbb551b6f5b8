"""The plan as a file: written, edited, followed, compared; and what a damaged or hostile one does."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import blurify
from blurify import cli
from blurify.errors import BlurifyError
from blurify.files import plan_files
from blurify.spec.plan_file import PlanFile, followed
from tests.command_line import error_of, out_of

SPEC = "python:tests.cli.test_plan_files:make"
IMAGE = torch.zeros(1, 3, 32, 32)


def make() -> nn.Module:
    """A stem, a convolution before an activation, a max pool, and a shortcut-like last convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1, 2)
    ).eval()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    plan_files.write(blurify.inspect(make(), IMAGE), path)
    return path


def edited(path: Path, **changes: Any) -> Path:
    """The file with changed lines: '2' is `site='2'`, whose keys are replaced (None takes one away)."""
    data = json.loads(path.read_text())
    for name, change in changes.items():
        line = next(line for line in data["sites"] if line["site"] == name.removeprefix("_"))
        line.update(change)
        for key in [key for key, value in line.items() if value is None]:
            del line[key]
    other = path.with_name("edited.json")
    other.write_text(json.dumps(data))
    return other


def test_a_plan_that_is_not_edited_converts_to_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, with_it, without = tmp_path / "plan.json", tmp_path / "with.safetensors", tmp_path / "without.safetensors"
    shape = ["--input-shape", "1,3,32,32"]
    out = out_of(capsys, "inspect", SPEC, "--recipe", "light", "--plan", plan, *shape)
    assert f"wrote {plan}" in out
    out_of(capsys, "convert", SPEC, "--plan", plan, "-o", with_it)
    out_of(capsys, "convert", SPEC, "--recipe", "light", "-o", without, *shape)
    assert with_it.read_bytes() == without.read_bytes()


def test_edits_of_the_file_are_carried_out(written: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = edited(
        written,
        _0={"action": "blur"},
        _2={"placement": "before", "filter": {"size": 3, "padding": "zeros"}},
        _4={"action": "skip"},
    )
    out = tmp_path / "out.pt"
    data = json.loads(out_of(capsys, "convert", SPEC, "--plan", path, "-o", out, "--json"))
    assert data["proof"]["sites_converted"] == 3
    plan = blurify.plan_of(blurify.load(out, arch=SPEC))
    assert plan is not None
    done = {site.name: (site.action, site.rule) for site in plan.sites}
    assert done == {"0": ("blur", "after-activation"), "2": ("blur", "blurred-input"), "4": ("skip", "recipe"),
                    "5": ("blur", "commuted")}  # fmt: skip
    blur = next(edit.blur for edit in plan.sites[1].edits if edit.blur is not None)
    assert (blur.method.taps, blur.padding) == ((0.25, 0.5, 0.25), "zeros")
    # What was carried out is what the file says, and by the API too.
    assert cli.main(["diff", str(path), str(out), "--arch", SPEC]) == 0
    assert blurify.plan_of(blurify.convert(make(), str(path))).sites == plan.sites  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_5": {"placement": "after"}}, "the blur of '5' can't go after it"),
        ({"_4": {"placement": "after"}}, "placement is for convolutions, and '4' is a maxpool"),
        ({"_2": {"site": "22"}}, "a site '22', which the model does not have: the nearest site is '2'"),
        ({"_2": {"action": "blurr"}}, "action of '2'"),
        ({"_2": {"filter": {"size": 9}}}, "'size' in [filter] of '2'"),
        ({"_2": {"filter": 3}}, "the filter of '2'"),
        ({"_2": {"taps": 3}}, "unknown key 'taps' in '2'"),
        ({"_2": {"is": {"kind": "maxpool"}}}, "of another model: '2' is a conv"),
        ({"_2": {"is": {"stride": [3, 3]}}}, "of another model: '2' is a conv of stride [2, 2]"),
        ({"_2": {"is": {"stride": "x"}}}, "stride of '2'"),
        ({"_2": {"site": "4"}}, "has '4' twice"),
    ],
)
def test_what_can_not_be_had_is_told_in_one_line(
    written: Path, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = error_of(capsys, "convert", SPEC, "--plan", edited(written, **changes), "-o", tmp_path / "out.pt")
    assert words in line and not (tmp_path / "out.pt").exists()


def test_a_site_that_the_file_leaves_out_is_named(written: Path) -> None:
    data = json.loads(written.read_text())
    del data["sites"][1]
    written.write_text(json.dumps(data))
    with pytest.raises(BlurifyError, match="says nothing of the site '2'"):
        blurify.inspect(make(), recipe=written)


def test_a_site_that_can_not_be_blurred_is_refused_with_its_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LPPool2d(2, 2))
    file = PlanFile.of(blurify.inspect(net, IMAGE)).to_text()
    with pytest.raises(BlurifyError, match="can't be blurred, lppool: no low-pass rule"):
        plan_files.follow(
            net, PlanFile.from_text(file.replace('"action": "skip"', '"action": "blur"'), "f"), "f", IMAGE
        )


def test_options_that_contradict_each_other(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.pt"
    assert "leave --recipe" in error_of(capsys, "convert", SPEC, "--plan", written, "--recipe", "light", "-o", out)
    assert "no plan file" in error_of(capsys, "convert", SPEC, "--plan", tmp_path / "none.json", "-o", out)
    assert "ends in .json" in error_of(capsys, "inspect", SPEC, "--plan", tmp_path / "plan.txt")
    assert "--force" in error_of(capsys, "inspect", SPEC, "--plan", written)


def test_diff_says_what_differs_and_by_its_exit_code(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = edited(written, _4={"action": "skip"}, _2={"filter": {"size": 3}})
    shape = ["--input-shape", "1,3,32,32"]
    assert cli.main(["diff", str(written), SPEC, *shape]) == 0
    capsys.readouterr()
    assert cli.main(["diff", str(written), str(other), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is False and set(found["sites"]) == {"2", "4"}
    assert found["sites"]["4"] == {"action": ["blur", "skip"]}
    assert found["sites"]["2"] == {"filter": [{"size": 4, "padding": "reflect"}, {"size": 3}]}
    assert found["totals"] == {"converted": [3, 2]}  # what the edits cost is not known before they are carried out
    assert cli.main(["diff", SPEC, SPEC, "--recipe", "zhang2019", "--recipe", "light", *shape]) == 1
    out = capsys.readouterr().out
    assert "placement" in out and "extra macs" in out
    assert "no plan file" in error_of(capsys, "diff", written, tmp_path / "none.json")


JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 10**40, 1e308, float("nan"), "", "x" * 20_000, "after", [], {}, [[]], {"size": 4}, [1, [2]],
    {"taps": [1e400]}, [{"site": "2"}], {"match": "*", "skip": True}, [{"regex": "(a+)+$", "skip": True}], "\ud800",
)  # fmt: skip


def test_whatever_stands_in_the_file_one_clear_line_is_the_worst(written: Path) -> None:
    base = blurify.inspect(make(), IMAGE)
    good = json.loads(written.read_text())
    chance = random.Random(0)
    refused = 0
    for _ in range(600):
        data = json.loads(json.dumps(good))
        for _ in range(chance.choice((1, 1, 2))):
            where: Any = data
            while True:
                keys = list(where) if isinstance(where, dict) else list(range(len(where)))
                if not keys:
                    break
                key = chance.choice(keys)
                if isinstance(where[key], dict | list) and where[key] and chance.random() < 0.8:
                    where = where[key]
                    continue
                where[key] = chance.choice(JUNK)
                if isinstance(where, dict) and chance.random() < 0.1:
                    where[chance.choice(("site", "recipe", "because", "x"))] = chance.choice(JUNK)
                break
        text = json.dumps(data)
        try:
            followed(PlanFile.from_text(text, "plan.json"), base, "plan.json")
        except BlurifyError as error:
            refused += 1
            assert "\n" not in str(error) and 10 < len(str(error)) < 1000
    assert refused > 200
    for text in (
        "",
        "[",
        "[]",
        "{}",
        "[" * 100_000,
        '{"blurify": "plan"}',
        '{"a": 1, "a": 2}',
        written.read_text()[:-5],
    ):
        with pytest.raises(BlurifyError, match=r"plan\.json"):
            PlanFile.from_text(text, "plan.json")
