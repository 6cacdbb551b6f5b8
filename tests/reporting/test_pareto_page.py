"""Partial conversions on the page and in files: the figures are the table's, marks stand where their values are."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import itertools
import math
import re
from pathlib import Path

import pytest

from blurify import cli
from blurify.metrics.files import Context, write_measurements
from blurify.metrics.pareto import ParetoTable
from blurify.reporting import Report, charts, render, write_figures
from tests.report_data import measurement, pareto, plan

TITLE = "Partial conversions by cost"
MINUS = "\N{MINUS SIGN}"


def section(table: ParetoTable) -> str:
    text = html.unescape(render(Report((measurement(),), plan(), pareto=table)))
    return text.partition('<section aria-labelledby="pareto">')[2].partition("</section>")[0]


def rows(table: ParetoTable) -> list[list[str]]:
    """The cells of the table, each row as what a reader sees."""
    found = re.findall(r"<tr.*?>(.*?)</tr>", section(table).partition("<tbody>")[2], re.DOTALL)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in found]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def test_the_table_has_the_figures_and_marks_the_front_and_the_present_one() -> None:
    found = rows(pareto())
    assert found[0] == ["0", "nothing", "0", "+0.00%", "+0.00%", "100.0% 94.0 to 100.0%", "100.0%", "on the front"]
    assert found[1][1:5] == ["maxpool: average of two samples", "1", "+0.00%", f"{MINUS}10.00%"]
    assert found[1][5:] == ["90.0% 84.0 to 96.0%", "70.0%", "on the front"]
    assert found[2][3] == "+1.23%" and found[2][-1] == "dominated"
    assert found[3][1].endswith("c: as the recipe says and 1 more") and "d: as" not in found[3][1]
    assert found[5][:2] == ["\N{EN DASH}", "the present conversion"] and found[5][-1] == "present on the front"
    text = section(pareto())
    assert "4 of 7 steps shown" in text and "100 pictures from" in text and "same top-1" in text


def test_without_pictures_it_says_so_and_has_no_answers() -> None:
    found, text = rows(pareto(measured=False)), section(pareto(measured=False))
    assert "No picture was shown" in text and "nothing is said of the answers" in text and "Answers kept" not in text
    assert found[3][2:] == ["3", "+16.00%", "+25.00%", "30.0%", "on the front"]
    assert "answers kept" not in text


def test_other_outputs_are_called_what_they_are() -> None:
    text = section(pareto(classes=False))
    assert "1 less the relative error" in text and "same top-1" not in text and "95% intervals" not in text
    assert rows(pareto(classes=False))[1][5] == "90.0%"
    table = pareto()
    maps = tuple(
        dataclasses.replace(point, agreement=dataclasses.replace(point.agreement, same=None, same_labels=found))
        for point in table.points
        if point.agreement is not None and (found := point.agreement.same) is not None
    )
    assert "share of positions with the same label" in section(dataclasses.replace(table, points=maps))


def test_the_marks_stand_where_their_values_are() -> None:
    table = pareto()
    for cost, values in (("macs", (0, 0, 0.0123, 0.16, 0.3, 0.09)), ("bytes", (0, -0.1, -0.1, 0.25, 0.4, 0.05))):
        drawn = charts.pareto(table, cost, height=200)
        assert drawn is not None
        at = {tick.text: tick.at for tick in drawn.x_ticks}
        end = max((name for name in at if MINUS not in name), key=lambda name: float(name.rstrip("%")))
        unit = (at[end] - at["0%"]) / math.sqrt(float(end.rstrip("%")) / 100)
        expected = [at["0%"] + unit * math.copysign(math.sqrt(abs(value)), value) for value in values]
        kept = [mark for mark in drawn.marks if mark.series == charts.KEPT]
        left = [mark for mark in drawn.marks if mark.series == charts.LEFT]
        assert [mark.x for mark in kept] == [mark.x for mark in left] == pytest.approx(expected)
        assert [mark.y for mark in kept] == pytest.approx(
            [drawn.bottom - 200 * share for share in (1, 0.9, 0.9, 0.7, 0.72, 0.95)]
        )
        assert [mark.y for mark in left] == pytest.approx(
            [drawn.bottom - 200 * share for share in (1, 0.7, 0.71, 0.3, 0.1, 0.4)]
        )
        assert [mark.small for mark in kept] == [False, False, True, False, False, False]
        assert [mark.ringed for mark in kept] == [False] * 5 + [True]
        assert kept[3].low == pytest.approx(drawn.bottom - 200 * 0.64) and left[3].low is None
        # Along the greedy order only, and over multiply-adds only: by memory the points are in no order.
        assert len(drawn.lines) == (8 if cost == "macs" else 0)
        assert all(0 <= tick.at <= 100 for tick in drawn.x_ticks)
    assert kept[1].text == f"maxpool: average of two samples: 90.0% of the answers kept at {MINUS}10.00%"


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0.29), (-0.089, 0.19), (-1e-5, 0.3), (-0.3, 1e-5), (0, 0), (-0.5, -0.1), (0, 1e-7), (0, 40)]
)
def test_costs_have_round_ticks_that_stand_apart(low: float, high: float) -> None:
    ticks = charts.cost_ticks(low, high)
    ends = min(low, *ticks), max(high, *ticks)
    reach = charts.root(ends[1]) - charts.root(ends[0])
    assert 0.0 in ticks and 2 <= len(ticks) <= 8 and reach > 0
    assert all(charts.root(b) - charts.root(a) > 0.15 * reach for a, b in itertools.pairwise(ticks))
    assert all(len(charts.share(tick)) <= 7 for tick in ticks)


def test_a_cost_that_is_not_known_has_no_chart_and_no_column() -> None:
    table = pareto()
    bare = dataclasses.replace(
        table, bytes=None, points=tuple(dataclasses.replace(point, extra_bytes=None) for point in table.points)
    )
    assert charts.pareto(bare, "bytes") is None and charts.pareto(bare, "macs") is not None
    text = section(bare)
    assert "activation memory" not in text and text.count("<svg") == 1
    assert {len(row) for row in rows(bare)} == {7}
    nothing = dataclasses.replace(table, points=tuple(dataclasses.replace(p, aliasing=None) for p in table.points))
    assert {row[-2] for row in rows(nothing)} == {"\N{EN DASH}"}


def test_hostile_names_stay_text() -> None:
    text = render(Report((measurement(),), pareto=pareto(first="<script>alert(1)</script>")))
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_the_command_shows_what_the_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_measurements(tmp_path / "old.json", [measurement(converted=True)], context=Context(plan()))
    write_measurements(tmp_path / "new.json", [measurement()], context=Context(plan(), pareto=pareto()))
    out = tmp_path / "report.html"
    for sources, count in ((["old.json"], 0), (["new.json"], 2), (["new.json", "old.json"], 2)):
        arguments = [str(tmp_path / source) for source in sources]
        assert cli.main(["report", *arguments, "-o", str(out), "--force"]) == 0, capsys.readouterr().err
        assert html.unescape(out.read_text(encoding="utf-8")).count(TITLE) == count


def test_the_command_measures_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the embedded digits, with the figures."""
    pytest.importorskip("matplotlib")
    out, figures = tmp_path / "r.html", tmp_path / "figures"
    network = "python:blurify.demo:trained_network"
    arguments = ["report", network, "--convert", "--metrics", "consistency", "--images", "12", "--pareto", "4", "-o",
                 str(out), "--figures", str(figures)]  # fmt: skip
    assert cli.main(arguments) == 0, capsys.readouterr().err
    text = html.unescape(out.read_text(encoding="utf-8"))
    assert text.count(TITLE) == 2 and '<span class="tag present">present</span>' in text
    assert "it was shown 12 pictures from" in text
    assert (figures / "pareto.png").is_file() and (figures / "pareto.svg").is_file()


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_figure_is_written_with_the_others(tmp_path: Path) -> None:
    bare = dataclasses.replace(
        measurement(), consistency=None, equivariance=None, stability=None, worst_case=None, aliasing=None
    )
    for table in (pareto(), pareto(measured=False), pareto(classes=False, first="a $x_ <&")):
        written = write_figures(Report((bare,), pareto=table), tmp_path, force=True)
        assert [path.name for path in written] == ["pareto.png", "pareto.svg"]
        text = html.unescape((tmp_path / "pareto.svg").read_text())
        assert "extra multiply-adds" in text and "the present conversion" in text
        assert ("answers kept" in text) == table.measured
