"""Adapting on the page: its stages as they are in the record; original, converted and adapted side by side."""

from __future__ import annotations

import html
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from blurify import cli
from blurify.errors import BlurifyError
from blurify.metrics.differences import differences
from blurify.metrics.files import Context, read_all, write_measurements
from blurify.reporting import Report, charts, content, render, words, write_figures
from blurify.spec.adapted import Adapted, Stage
from tests.report_data import measurement, plan
from tests.reporting.test_page_without_a_browser import Tree

RECORD = Adapted(
    "500 crops of 120 pictures",
    450,
    50,
    "classes",
    (
        Stage("converted", "converted: 20.0% same", 0.0, 1.5, 0.2),
        Stage("recalibrate", "moved 20 norms", 1.5, 0.5, 0.7),
        Stage("reconstruct", "refitted 4 <layers>; worse, so it is taken back", 3.0, 0.9, 0.5, kept=False),
        Stage("distil", "200 steps", 312.0, 0.05, 0.96),
    ),
    ("450 examples are <few>",),
)
BEFORE, CONVERTED = measurement(), measurement(converted=True)
AFTER = measurement(converted=True, model="adapted.pt", consistency=BEFORE.consistency)
THREE = (BEFORE, CONVERTED, AFTER)


def report(record: Adapted | None = RECORD, **changes: object) -> Report:
    return Report(THREE, plan(), adapted=(None, None, record), **changes)  # type: ignore[arg-type]


def cells(text: str, caption: str) -> list[list[str]]:
    """A table of the page, headings first, each row as what a reader sees."""
    table = next(part for part in re.findall(r"<table.*?</table>", text, re.DOTALL) if f"<caption>{caption}" in part)
    rows = [
        re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    ]
    return [[html.unescape(" ".join(re.sub(r"<[^>]+>", " ", cell).split())) for cell in row] for row in rows]


def test_the_stages_are_those_of_the_record() -> None:
    text = render(report())
    rows = cells(text, "Stages of adapting")[1:]
    assert [row[1:6] for row in rows] == [
        ["converted", "20.0%", "1.5", "–", "as it came"],
        ["recalibrate", "70.0%", "0.5", "1.5 s", "kept"],
        ["reconstruct", "50.0%", "0.9", "3.0 s", "taken back"],
        ["distil", "96.0%", "0.05", "5 min 12 s", "kept"],
    ]
    assert [row[6] for row in rows] == [stage.line for stage in RECORD.stages]
    assert "<few>" not in text and "450 examples are &lt;few&gt;" in text
    seen = html.unescape(re.sub(r"<[^>]+>", "", text))
    assert "the weights of adapted.pt differ from the original’s on purpose" in seen
    assert "500 crops of 120 pictures: 450 to learn from, 50 held back" in seen


def test_the_chart_goes_on_from_what_was_kept() -> None:
    drawn = charts.stages(RECORD.stages, height=200)
    assert [round((drawn.bottom - mark.y) / 200, 6) for mark in drawn.marks] == [0.2, 0.7, 0.5, 0.96]
    assert [mark.series for mark in drawn.marks] == [1, 1, 0, 1]
    first, second, back, last = drawn.marks
    assert [(line.x1, line.x2) for line in drawn.lines] == [(first.x, second.x), (second.x, last.x)]
    assert back.text == "reconstruct: 50.0%, taken back"
    values = charts.stages([Stage("converted", "", 0, 3.0), Stage("distil", "", 1, 0.5)], height=200)
    assert [tick.text for tick in values.y_ticks][-1] == "3" and values.marks[0].y == values.bottom - 200
    assert charts.stages([Stage("converted", "", 0.0, float("inf"))]).marks == ()


def test_other_outputs_have_a_distance() -> None:
    record = Adapted("9 examples", 8, 1, "values", (Stage("converted", "", 0.0, 0.8), Stage("distil", "", 2.0, 0.1)))
    rows = cells(render(report(record)), "Stages of adapting")
    assert rows[0][3] == "Relative error" and rows[2][2:5] == ["–", "0.1", "2.0 s"]


def test_three_models_are_compared_with_the_first() -> None:
    found = report(same_weights=True)
    assert found.roles == ("original", "converted", "adapted")
    assert found.compared == (differences(BEFORE, CONVERTED), differences(BEFORE, AFTER))
    text = render(found)
    rows = cells(text, "Headline figures")
    assert rows[0][1:] == ["original", "converted", "adapted", "change, converted", "change, adapted"]
    row = next(row for row in rows if row[0].startswith("Same answer, two crops"))
    assert row[4].startswith("+7.3 points") and row[5].startswith("+0.0 points") and row[5].endswith("not clear")
    mean = next(row for row in rows if row[0].startswith("Flip rate, mean of"))
    assert mean[4] == mean[5] and mean[5].endswith("better")  # both have the same flip rates
    assert all(text.count(f'class="swatch s{series}"') for series in range(3)) and 'class="mark turned"' in text
    assert "Original, converted and adapted" in text and "Converted, no more:" in text and "Not fine-tuned" not in text
    assert "original → converted → adapted" in text


def test_the_page_of_three_is_valid() -> None:
    page = Tree(render(report())).open[0]
    for table in page.all("table"):
        _, head, body = table.children
        for row in body.children:
            assert len(row.children) == len(list(head.all("th"))), row.text
    named = [
        element.attributes["id"] for element in page.all("h2", "title", "desc", "svg") if "id" in element.attributes
    ]
    assert len(named) == len(set(named)) and "adapting" in named


def test_order_and_roles() -> None:
    turned = Report((AFTER, BEFORE, CONVERTED), plan(), adapted=(RECORD, None, None))
    assert turned.in_order == report() and report().in_order == report()
    assert Report(THREE).roles == ("first", "second", "third") and Report(THREE).in_order == Report(THREE)
    two = Report((BEFORE, AFTER), adapted=(None, RECORD))
    assert two.roles == ("before", "after") and two.in_order is two
    assert "Stages of adapting" in render(two) and "Stages of adapting" in render(Report((AFTER,), adapted=(RECORD,)))
    other = replace(AFTER, settings={**AFTER.settings, "seed": 3})
    assert Report((BEFORE, CONVERTED, other)).differences == ("seed",)
    assert "they were not measured alike" in html.unescape(
        re.sub(r"<[^>]+>", "", render(Report((BEFORE, AFTER, other))))
    )
    with pytest.raises(BlurifyError, match="1 records of adapting for 3"):
        Report(THREE, adapted=(RECORD,))


def test_marks_of_three_stand_side_by_side() -> None:
    curve = content.aliasing(report())
    assert curve is not None
    drawn = charts.curves(curve)
    first = [next(mark for mark in drawn.marks if mark.series == series).x for series in range(3)]
    assert first[1] == pytest.approx(drawn.x_ticks[0].at) and first[1] - first[0] == pytest.approx(first[2] - first[1])


def test_files_keep_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, measured, record in zip(("one", "two", "three"), THREE, (None, None, RECORD), strict=True):
        adapted = () if record is None else (record,)
        write_measurements(tmp_path / f"{name}.json", [measured], context=Context(plan(), adapted=adapted))
    assert "adapted" not in json.loads((tmp_path / "one.json").read_text())
    assert read_all(tmp_path / "three.json")[1].adapted == (RECORD,)
    out = tmp_path / "report.html"
    paths = [str(tmp_path / f"{name}.json") for name in ("three", "one", "two")]
    assert cli.main(["report", *paths, "-o", str(out)]) == 0, capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == render(report())
    data = json.loads((tmp_path / "three.json").read_text())
    for wrong in ([None, None], 3, [{"format": 7}], [3]):
        (tmp_path / "bad.json").write_text(json.dumps(data | {"adapted": wrong}))
        assert cli.main(["report", str(tmp_path / "bad.json"), "-o", str(out), "--force"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_figures_of_three(tmp_path: Path) -> None:
    bare = tuple(replace(item, stability=None, worst_case=None) for item in THREE)
    written = write_figures(Report(bare, adapted=(None, None, RECORD)), tmp_path)
    assert {path.stem for path in written} == {"consistency", "heatmaps", "aliasing"}
    assert all(role in (tmp_path / "aliasing.svg").read_text() for role in ("original: ", "converted: ", "adapted: "))


def test_times() -> None:
    assert [words.seconds(value) for value in (0.04, 59.94, 60, 3599.7, float("nan"))] == [
        "0.0 s", "59.9 s", "1 min 0 s", "60 min 0 s", "no number"
    ]  # fmt: skip
