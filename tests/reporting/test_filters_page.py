"""The filters on the page and on the command line, against gains computed here."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

import blurify
from blurify.cli import responses as printed
from blurify.reporting import filters
from blurify.spec.methods import Flat, Fourier
from blurify.spec.plan import Plan
from blurify.spec.recipes import Recipe
from blurify.spec.responses import filters_of


def plan_of(recipe: Recipe, stride: int = 2) -> Plan:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d((1, stride)))
    return blurify.inspect(net, torch.zeros(1, 1, 32, 32), recipe)


def test_each_filter_of_a_plan_is_there_once_with_its_sites() -> None:
    found = filters.section(plan_of(Recipe(filter=Flat(7)), stride=3))
    assert [(item["name"], item["factor"], item["sites"]) for item in found] == [
        ("flat, 7 taps", 2, "1 site"),
        ("flat, 7 taps", 3, "1 site"),
    ]
    (both,) = filters.section(plan_of(Recipe(filter=Flat(7))))
    assert both["sites"] == "2 sites"
    assert (both["nyquist"], both["dc"]) == ("\N{MINUS SIGN}6.02", "1.0000")
    assert filters.section(plan_of(Recipe(filter_size=1))) == []


def test_the_curve_is_the_gain() -> None:
    (entry,) = filters.section(plan_of(Recipe(filter_size=3)))
    chart = entry["chart"]
    top = {tick.text: tick.at for tick in chart.y_ticks}
    # [1, 2, 1] / 4 passes cos(w / 2)**2: 1 at 0, a half at pi / 2, nothing at pi.
    ends = (chart.lines[0].y1, chart.lines[len(chart.lines) // 2].y1, chart.lines[-1].y2)
    assert ends == pytest.approx((top["1"], (top["1"] + top["0"]) / 2, top["0"]))
    assert [mark.text for mark in chart.marks] == ["gain 1.000 at 0", "gain 0.854 at 0.5", "gain 0.500 at 1"]
    assert [mark.y for mark in chart.marks] == sorted(mark.y for mark in chart.marks)


def test_an_ideal_filter_has_no_taps_of_its_own() -> None:
    (entry,) = filters.section(plan_of(Recipe(filter=Fourier())))
    assert entry["taps"].startswith("as many as")
    assert entry["aliased"] == "0.0%"


def test_inspect_prints_taps_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    (used,) = filters_of(plan_of(Recipe(filter_size=3)))
    text = "\n".join(printed.lines(used))
    assert "0.25 0.5 0.25" in text
    assert "1.0000 at 0, -1.38 dB at 1/2, -6.02 dB at 1" in text
    assert re.search(r"-3 dB at 0\.728", text)
    assert "9 multiply-adds a value in 2-d" in text
    (average,) = filters_of(plan_of(Recipe(filter_size=2)))
    assert "0 multiply-adds" in printed.lines(average)[-1]  # it runs as an average pool
    (ideal,) = filters_of(plan_of(Recipe(filter=Fourier())))
    assert "grow with the map" in printed.lines(ideal)[-1] and ideal.response.to_dict()["macs"] is None
    printed.print_filters(plan_of(Recipe(filter=Flat(7))))
    said = capsys.readouterr().out
    assert "flat, 7 taps against a subsampling by 2, padding reflect" in said
    assert "-0.03125 0 0.28125 0.5 0.28125 0 -0.03125" in said


def test_inspect_gives_filters_as_json() -> None:
    (found,) = json.loads(json.dumps(printed.as_json(plan_of(Recipe(filter=Fourier())))))
    assert found["method"] == {"kind": "fourier", "window": "none"}
    assert (found["factor"], found["taps"], found["aliased"]) == (2, None, 0.0)
