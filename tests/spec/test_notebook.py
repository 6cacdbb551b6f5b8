"""What notebooks show: small tables, every figure in them, other people's text escaped, no script."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import torch
from torch import nn

import blurify
from blurify.metrics.results import Estimate
from blurify.spec.notebook import MOST_ROWS, table
from tests.report_data import measurement, plan

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&"


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)
        assert {name for name, _ in attrs} <= {"style", "scope"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rows(text: str) -> list[list[str]]:
    found = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in found]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in cells]


def test_a_plan_is_a_table_of_its_sites() -> None:
    text = plan()._repr_html_()
    shown = rows(text)[1:]
    assert [row[:2] for row in shown] == [[site.name, site.action] for site in plan().sites]
    assert shown[0][2:] == ["conv 7×7 / 2×2", "3×224×224 → 64×112×112", plan().sites[0].reason]
    assert shown[1][4] == "in maxpool"
    assert "5 sites: 3 blurred, 2 skipped; multiply-adds 1.81 G → 2 G (+10%)" in html.unescape(text)


def test_what_inspect_returns_shows_itself() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
    assert rows(blurify.inspect(net, torch.zeros(1, 1, 8, 8))._repr_html_())[1][:2] == ["2", "blur"]
    assert "0 sites" in blurify.inspect(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(1, 1, 8, 8))._repr_html_()


def test_a_measurement_shows_each_figure_with_its_interval() -> None:
    found = measurement(skipped={"half-patch": "no patches <here>"})
    shown = {row[0]: row[1:] for row in rows(found._repr_html_())}
    assert shown["consistency: agreement"] == ["0.8511", "0.8311 to 0.8711", "480", ""]
    assert shown["aliasing: layer2.0.conv1"][0] == "0.3127"
    assert "no patches &lt;here&gt;" in found._repr_html_() and "480 pictures from pictures/val" in found._repr_html_()
    few = Estimate.of([1.0, 0.0, 1.0, 1.0])
    assert found.consistency is not None
    import dataclasses

    small = dataclasses.replace(found, consistency=dataclasses.replace(found.consistency, agreement=few))
    assert {row[0]: row[1:] for row in rows(small._repr_html_())}["consistency: agreement"][3] == "too few pictures"


def test_names_of_others_are_escaped_and_nothing_is_fetched() -> None:
    for text in (measurement(model=HOSTILE, data=HOSTILE)._repr_html_(), plan(HOSTILE)._repr_html_()):
        assert Tags(text).seen <= {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "bdi"}
        assert "<script>alert(1)</script>" in html.unescape(text)
        # Neither ink nor ground of its own: it suits light notebooks and dark ones.
        assert not re.search(r"[^-]color:|background", text)


def test_long_tables_are_cut_and_say_so() -> None:
    text = table("many", ("a",), [(str(number),) for number in range(MOST_ROWS + 7)])
    assert len(rows(text)) == MOST_ROWS + 1 and "and 7 more" in text
