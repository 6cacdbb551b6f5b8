"""The curve of a ranking on the page and in files: figures are the ranking's, marks stand where their values are."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import json
import re
from pathlib import Path

import pytest

from blurify import cli
from blurify.metrics.files import Context, write_measurements
from blurify.metrics.results import Estimate
from blurify.reporting import Report, charts, content, render, write_figures
from tests.report_data import measurement, plan, ranking

TITLE = "Answers kept against aliasing removed"


def page(**changes: object) -> str:
    report = Report((measurement(),), plan(), ranking=ranking(), **changes)  # type: ignore[arg-type]
    return html.unescape(render(report))


def table(text: str) -> list[list[str]]:
    """The cells of the trade-off's table, each row as what a reader sees."""
    section = text.partition('<section aria-labelledby="trade-off">')[2].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section.partition("<tbody>")[2], re.DOTALL)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def test_the_table_has_the_figures_in_the_order_of_the_ranking() -> None:
    first, second, third = table(page())
    assert first == ["1", "maxpool", "maxpool", "24.1% → 4.1%", "0.06", "97.0%", "97.0% 91.0 to 100.0%", "24.0%"]
    assert second[1:] == [
        "layer2.0.conv1", "conv", "31.3% → 11.3%", "0.24", "88.0%", "84.0% 78.0 to 90.0%", "47.9%"
    ]  # fmt: skip
    assert third[0] == "3" and third[6:] == ["86.0% 80.0 to 92.0%", "46.7%"]


def test_the_marks_stand_where_their_values_are() -> None:
    points = content.trade_off(Report((measurement(),), ranking=ranking()))
    drawn = charts.trade_off(points, height=200)
    right = {tick.text: tick.at for tick in drawn.x_ticks}
    assert [mark.y for mark in drawn.marks] == pytest.approx(
        [drawn.bottom - 200 * kept for kept in (1, 0.97, 0.84, 0.86)]
    )
    unit = (right["40%"] - right["0%"]) / 0.4
    assert [mark.x for mark in drawn.marks] == pytest.approx(
        [right["0%"] + unit * removed for removed in (0, 0.2397, 0.4794, 0.4674)]
    )
    assert [(line.x1, line.x2) for line in drawn.lines] == [
        (one.x, other.x) for one, other in zip(drawn.marks, drawn.marks[1:], strict=False)
    ]
    assert drawn.marks[0].low is None and drawn.marks[2].low == pytest.approx(drawn.bottom - 200 * 0.78)
    assert drawn.marks[2].text == "2 sites, layer2.0.conv1 too: 84.0% kept, 47.9% removed"


def test_a_site_that_aliases_more_than_before_stays_on_the_chart() -> None:
    points = [content.TradeOff("no site", 0.0, 1.0), content.TradeOff("a", -0.1, 0.9), content.TradeOff("b", 0.3, 0.8)]
    drawn = charts.trade_off(points)
    assert drawn.marks[1].x < drawn.marks[0].x < drawn.marks[2].x and drawn.marks[1].x >= 14


def test_other_outputs_are_called_what_they_are() -> None:
    found = dataclasses.replace(ranking(classes=False), sites=ranking(classes=False).sites)
    text = html.unescape(render(Report((measurement(),), plan(), ranking=found)))
    assert "1 less the relative error" in text and "same top-1 as the original" not in text
    assert table(text)[0][4:7] == ["0.03", "97.0%", "97.0%"]


def test_without_a_ranking_there_is_no_such_section() -> None:
    assert TITLE not in html.unescape(render(Report((measurement(),), plan())))
    assert page().count(TITLE) == 2  # in the list of sections, and over its own


def test_hostile_names_stay_text() -> None:
    report = Report((measurement(),), ranking=ranking(first="<script>alert(1)</script>"))
    assert "<script>alert" not in render(report) and "&lt;script&gt;alert" in render(report)


def test_the_command_shows_what_the_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Together with a file of before, which knows nothing of rankings."""
    write_measurements(tmp_path / "old.json", [measurement(converted=True)], context=Context(plan()))
    assert "ranking" not in json.loads((tmp_path / "old.json").read_text())
    write_measurements(tmp_path / "ranked.json", [measurement()], context=Context(plan(), ranking=ranking()))
    out = tmp_path / "report.html"
    for sources, count in ((["old.json"], 0), (["ranked.json"], 2), (["ranked.json", "old.json"], 2)):
        arguments = [str(tmp_path / source) for source in sources]
        assert cli.main(["report", *arguments, "-o", str(out), "--force"]) == 0, capsys.readouterr().err
        assert html.unescape(out.read_text(encoding="utf-8")).count(TITLE) == count


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_figure_is_written_with_the_others(tmp_path: Path) -> None:
    bare = dataclasses.replace(measurement(), consistency=None, equivariance=None, stability=None, worst_case=None)
    for classes in (True, False):
        written = write_figures(
            Report((bare,), ranking=ranking(classes=classes, first="a $x_ <&")), tmp_path, force=True
        )
        assert [path.stem for path in written[::2]] == ["aliasing", "trade-off"]
    text = html.unescape((tmp_path / "trade-off.svg").read_text())
    assert "a $x_ <&" in text and "aliasing removed at the sites" in text


def test_an_estimate_without_values_does(tmp_path: Path) -> None:
    """As another program may write it."""
    found = ranking()
    site = dataclasses.replace(found.sites[0], before=Estimate(0.2, 0.1, 0.3, 5))
    assert render(Report((measurement(),), ranking=dataclasses.replace(found, sites=(site, *found.sites[1:]))))
