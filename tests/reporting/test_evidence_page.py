"""Evidence on the page and in files: every figure is the evidence's, names are harmless, what is missing is said."""

from __future__ import annotations

import base64
import dataclasses
import html
import importlib.util
import io
import itertools
import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from blurify import cli, reporting
from blurify.errors import BlurifyError
from blurify.metrics.differences import PAIRED, Difference
from blurify.metrics.files import Context, write_measurements
from blurify.metrics.results import EmbeddingDrift, Estimate, LayerMap, Output
from blurify.reporting import Report, content, evidence_charts, evidence_page, heatmaps, render, write_figures
from blurify.reporting.page import _change
from tests.report_data import PNG, evidence, measurement, plan
from tests.reporting.test_page_without_a_browser import Tree
from tests.reporting.test_reporting import HOSTILE, Page

BEFORE, AFTER = measurement(), measurement(converted=True)
THREE = (BEFORE, AFTER, replace(AFTER, model="adapted.pt"))
matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")


def report(models: int = 2, **changes: object) -> Report:
    return Report(THREE[:models], plan(), evidence=evidence(models), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(report(same_weights=True)))


def test_the_verdict_stands_on_top(full: Page) -> None:
    text = html.unescape(render(report(same_weights=True)))
    at = text.index('class="verdict bad"')
    assert text.index("<h1>") < at < text.index("<nav")
    assert "Not ready for use until it is adapted or fine-tuned:" in full.text


def test_sections_are_those_of_the_evidence(full: Page) -> None:
    wanted = {
        "Pictures whose answer flips", "Probability against shift", "Agreement against aliasing", "Cost",
        "The site that aliases most",
    }  # fmt: skip
    assert wanted <= set(full.sections()) and "Without pictures" not in full.text
    without = Page(render(Report((BEFORE, AFTER), plan())))
    assert not wanted & set(without.sections()) and "Without pictures that flip" in without.text
    partly = replace(evidence(), flips=None, latency=None, missing={"flips": "it gives a <label> map"})
    page = Page(render(Report((BEFORE, AFTER), plan(), evidence=partly)))
    assert "Without pictures whose answer flips (it gives a <label> map)." in page.text
    alike = replace(evidence(), missing={"spectra": "why", "features": "why"})
    assert (
        "Without spectra and feature maps under a shift (why)." in Page(render(Report(THREE[:2], evidence=alike))).text
    )
    assert not {"Pictures whose answer flips", "Cost"} & set(page.sections())


def test_flips_show_both_answers_and_the_shift(full: Page) -> None:
    (rows,) = [rows for name, rows in full.tables.items() if name == "Answers for chelsea.png, flip 1"]
    assert rows == [
        ["Model", "1 px left", "the middle", "Answer"],
        ["before", "tiger cat 43.0%", "Egyptian cat 41.0%", "flips"],
        ["after", "tiger cat 43.0%", "tiger cat 43.0%", "stays"],
    ]
    assert "before, 12; after, 5" in full.text
    assert [tag for tag, attributes in full.tags if attributes.get("src") == PNG].count("img") == 4 * 2 + 3 + 1
    none = replace(evidence(), flips=replace(evidence().flips, shown=()))  # type: ignore[type-var]
    assert "None was found on the way" in Page(render(Report((BEFORE, AFTER), evidence=none))).text
    bare = evidence().flips
    assert bare is not None
    hidden = replace(bare, shown=tuple(replace(flip, shown=()) for flip in bare.shown))
    text = render(Report((BEFORE, AFTER), evidence=replace(evidence(), flips=hidden)))
    assert "tiger cat" in text and '<div class="pair">\n<div><img src="data' not in text


@pytest.mark.parametrize(
    ("place", "said"),
    [((0, 0), "the middle"), ((0, -3), "3 px left"), ((2, 0), "2 px down"), ((-1, 4), "1 px up and 4 px right")],
)
def test_places_in_words(place: tuple[int, int], said: str) -> None:
    assert evidence_page.place_words(place) == said


def test_curves_stand_where_their_values_are(full: Page) -> None:
    curve = evidence().curves[0]
    drawn = evidence_charts.shifts(curve, height=200)
    for series, values in enumerate(curve.probabilities):
        marks = [mark for mark in drawn.marks if mark.series == series]
        assert [(drawn.bottom - mark.y) / 200 for mark in marks] == pytest.approx(values)
        steps = {round(other.x - one.x, 6) for one, other in itertools.pairwise(marks)}
        assert len(steps) == 1
    assert [tick.text for tick in drawn.x_ticks] == ["−8", "0", "+8"]
    (rows,) = [rows for name, rows in full.tables.items() if name == "Probability by shift of chelsea.png, curve 1"]
    assert [row[0] for row in rows[1:]] == [f"{shift:+d}".replace("-", "−") if shift else "0" for shift in curve.shifts]
    assert rows[1][1:] == [f"{100 * part[0]:.1f}%" for part in curve.probabilities]


def test_spectra_stand_where_their_values_are() -> None:
    found = evidence().spectra
    assert found is not None
    drawn = evidence_charts.spectra(found, height=300)
    right = {tick.text: tick.at for tick in drawn.x_ticks}
    assert [guide.at for guide in drawn.guides] == [right["1"]]
    up = {float(tick.text.removesuffix(" dB").replace("−", "-")): tick.at for tick in drawn.y_ticks}
    (low, at_low), (high, at_high) = min(up.items()), max(up.items())
    first = drawn.lines[0]
    level = low + (at_low - first.y1) / (at_low - at_high) * (high - low)
    assert level == pytest.approx(10.0)  # of a power of 10
    unit = right["1"] - right["0"]
    assert first.x1 == pytest.approx(right["0"] + unit * (found.edges[0] + found.edges[1]) / 2)
    silent = replace(found, models=(replace(found.models[0], power=(0.0,) * 16), None))  # type: ignore[type-var]
    assert evidence_charts.spectra(silent).lines == ()


def test_feature_maps_have_the_pixels_of_their_grids() -> None:
    from PIL import Image

    grid = evidence().features.maps[0].still  # type: ignore[union-attr]
    data = base64.b64decode(evidence_page.drawn(grid).partition(",")[2])
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    assert picture.size == (28, 28)
    for y, x in ((0, 0), (5, 20), (27, 27)):
        assert picture.getpixel((x, y)) == heatmaps.SCALE[round(grid.shares[y][x] * 255)]


def test_agreement_comes_first_and_against_aliasing(full: Page) -> None:
    headline = next(rows for name, rows in full.tables.items() if name.startswith("Headline"))
    assert headline[1][0].startswith("Same answer as the original") and headline[1][1:3] == ["–", "37.5% 24.2 to 53.0%"]
    found = evidence_page.standings(report(3))
    assert [(item.name, item.kept and item.kept.value) for item in found] == [
        ("first", None), ("second", 0.375), ("third", pytest.approx(0.925)),
    ]  # fmt: skip
    shares = [site.share.value for site in BEFORE.aliasing.sites]  # type: ignore[union-attr]
    assert found[0].aliasing == pytest.approx(sum(shares) / len(shares))
    first, *rest = plan().sites
    void = replace(plan(), sites=(replace(first, action="skip", rule="global-pool", edits=()), *rest))
    without = evidence_page.standings(Report(THREE, void, evidence=evidence(3)))
    assert without[0].aliasing == pytest.approx(sum(shares[1:]) / len(shares[1:]))  # as the headline has it
    drawn = evidence_charts.standings(found, height=100)
    assert [(drawn.bottom - mark.y) / 100 for mark in drawn.marks] == pytest.approx([1, 0.375, 0.925])
    assert evidence_page.standings(Report((BEFORE,), evidence=evidence(1))) == []


def test_less_confidence_is_not_called_better(full: Page) -> None:
    table = full.table("Headline figures")
    assert table["Probability change, one pixel lower is better"][2].endswith("smaller, but so is its confidence")
    assert table["Other answer, one-pixel shift lower is better"][2].endswith("better")
    assert full.table("Consistency; small")["Probability change, one pixel lower is better"][2].endswith("confidence")
    sure = replace(evidence().agreements[0], confidence_other=evidence().agreements[0].confidence)
    page = Page(render(Report((BEFORE, AFTER), evidence=replace(evidence(), agreements=(sure,)))))
    assert page.table("Headline figures")["Probability change, one pixel lower is better"][2].endswith("better")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.3, 0.1, "too few pictures; not clear"),
        (-0.02, 0.06, "too few pictures; not clear"),
        (-0.02, 0.03, "not clear"),
        (0.01, 0.3, "better"),
    ],
)
def test_too_few_pictures_is_said_where_the_interval_is_wide(low: float, high: float, said: str) -> None:
    found = _change(Difference((low + high) / 2, low, high, PAIRED, 20), "higher")
    assert found["verdict"] == said


def test_a_caveat_is_said_in_place_of_better() -> None:
    found = _change(Difference(0.2, 0.1, 0.3, PAIRED, 20, caveat="other answers"), "higher")
    assert found["verdict"] == "neither better nor worse: other answers" and found["tone"] == ""


def test_the_page_says_what_the_output_was_taken_for(full: Page) -> None:
    assert "taken for" not in full.text
    taken = Output("classes", "1", (2,), "its values are probabilities", "N,K", "probabilities", ("0 (4)",))
    one = replace(BEFORE, output=taken)
    text = " ".join(Page(render(Report((one,), plan()))).text.split())
    assert "output 1 (2) taken for classes: its values are probabilities; left aside: 0 (4)" in text
    other = replace(AFTER, output=replace(taken, name="0"))
    text = " ".join(Page(render(Report((one, other), plan()))).text.split())
    assert "output, before 1 (2) taken" in text and "output, after 0 (2) taken" in text


def test_cost_has_times_beside_multiply_adds(full: Page) -> None:
    rows = full.table("Multiply-adds and times")
    assert rows["before"] == ["1.81 G", "20 ms 19 ms to 31 ms", "–", "20 ms"]
    assert rows["after"] == ["2 G (+10%)", "26 ms 19 ms to 31 ms", "1.30 times 1.00 to 1.50", "26 ms"]
    assert "A Processor, cpu" in full.text and "1 thread" in full.text
    alone = Page(render(Report((BEFORE,), plan(), evidence=evidence(1))))
    assert alone.table("Multiply-adds and times")["measured"] == ["1.81 G", "20 ms 19 ms to 31 ms", "20 ms"]
    assert full.text.count("Multiply-adds at ") == 0
    elsewhere = replace(plan(), input_shapes=((1, 3, 320, 320),))
    counted = render(Report((BEFORE,), elsewhere, evidence=evidence(1)))
    assert ">Multiply-adds at 3×320×320</th>" in counted  # the times are of another size
    strangers = Report((AFTER, BEFORE), plan(), evidence=evidence(2))
    assert Page(render(strangers)).table("Multiply-adds and times")["second"][0] == "–"


def test_identities_have_no_row_of_their_own() -> None:
    """In files of before, too: what only hands on repeats the row above."""
    assert BEFORE.equivariance is not None
    drop = LayerMap("bn1.drop", "Identity", (2, 2), (64, 112, 112), ((0.0, 0.1), (0.1, 0.2)))
    layers = (*BEFORE.equivariance.layers, drop)
    old = replace(BEFORE, equivariance=replace(BEFORE.equivariance, layers=layers))
    assert "bn1.drop" not in render(Report((old,))) and "bn1.drop" not in [
        x.name for x in content.layers(Report((old,)))
    ]


@pytest.mark.parametrize("models", [1, 2, 3])
def test_the_page_is_valid(models: int) -> None:
    page = Tree(render(report(models))).open[0]
    for table in page.all("table"):
        _, head, body = table.children
        for row in body.children:
            assert len(row.children) == len(list(head.all("th"))), row.text
    ids = [element.attributes["id"] for element in page.all("h2", "title", "desc", "svg") if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    captions = [table.children[0].text for table in page.all("table")]
    assert len(captions) == len(set(captions))


def test_hostile_names_stay_text() -> None:
    hostile = evidence(2, name=HOSTILE, first=HOSTILE)
    hostile = replace(hostile, missing={"latency": HOSTILE}, latency=replace(hostile.latency, machine=HOSTILE))  # type: ignore[type-var]
    page = render(Report((BEFORE, AFTER), plan(), evidence=hostile))
    assert "<script>" not in page and "onerror='" not in page and "{{ 7" not in page.replace("&#34;&amp;{{ 7", "")
    Tree(page)
    assert html.unescape(page).count("<script>alert(1)</script>") >= 5


def test_evidence_of_other_models_is_refused() -> None:
    with pytest.raises(BlurifyError, match="not of 2 models"):
        Report((BEFORE, AFTER), evidence=evidence(3))


@matplotlib
def test_figures_are_files_too(tmp_path: Path) -> None:
    bare = tuple(replace(item, stability=None, worst_case=None, equivariance=None, consistency=None) for item in THREE)
    shown = Report(bare, evidence=evidence(3, name="a $x_ <&.png", first="b $y^ <&"))
    written = write_figures(shown, tmp_path)
    names = {path.stem for path in written}
    assert names == {"aliasing", "flips", "shift-curves", "spectra", "site-features", "agreement"}
    for name in names:
        data = (tmp_path / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and min(struct.unpack(">II", data[16:24])) > 300
    text = html.unescape((tmp_path / "shift-curves.svg").read_text())
    assert "a $x_ <&.png" in text and "b $y^ <&" in text
    assert write_figures(Report((BEFORE,)), tmp_path / "none")[-1].stem == "worst-case"


def test_the_command_shows_the_evidence_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "m.json", tmp_path / "report.html"
    write_measurements(path, [BEFORE, AFTER], context=Context(plan(), evidence=evidence()))
    assert cli.main(["report", str(path), "-o", str(out)]) == 0, capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == render(Report((BEFORE, AFTER), plan(), evidence=evidence()))
    data = json.loads(path.read_text())
    data["evidence"]["curves"][0]["shown"] = "https://example.org/x.png"
    path.write_text(json.dumps(data))
    assert cli.main(["report", str(path), "-o", str(out), "--force"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_measures_them_and_can_leave_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Report] = []
    monkeypatch.setattr(reporting, "render", lambda report: seen.append(report) or "")
    model = "python:blurify.demo:trained_network"
    common = [
        "report",
        model,
        "--convert",
        "--images",
        "4",
        "--metrics=aliasing",
        "--force",
        "-o",
        str(tmp_path / "r.html"),
    ]
    (tmp_path / "names").write_text("\n".join(f"digit {number}" for number in range(10)))
    assert cli.main([*common, "--class-names", str(tmp_path / "names")]) == 0, capsys.readouterr().err
    assert cli.main([*common, "--no-pictures", "--no-latency"]) == 0
    found, bare = (report.evidence for report in seen)
    assert found and found.missing == {} and found.latency and found.models == {2}
    assert found.curves[0].answers[0].words.startswith("digit ") and found.curves[0].shown
    assert bare and bare.latency is None and bare.curves and "data:image" not in json.dumps(bare.to_dict())
    assert [curve.probabilities for curve in bare.curves] == [curve.probabilities for curve in found.curves]
    (tmp_path / "names").write_text("a\nb")
    capsys.readouterr()
    assert cli.main([*common, "--no-latency", "--class-names", str(tmp_path / "names")]) == 0
    assert "2 class names for 10 classes" in capsys.readouterr().out
    assert cli.main([*common, "--class-names", str(tmp_path / "nowhere")]) == 2
    assert re.fullmatch(r"error: the class names .* can't be read .*\n", capsys.readouterr().err)


def test_measurements_may_know_their_agreement() -> None:
    """A file whose measurements hold it themselves needs no evidence."""

    known = dataclasses.replace(AFTER, agreement=evidence().agreements[0])
    assert content.agreement_of(Report((BEFORE, known)), 1) is known.agreement
    assert content.agreement_of(Report((BEFORE, AFTER)), 1) is None


def test_measure_keeps_them_for_a_report_made_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = "python:blurify.demo:trained_network", tmp_path / "m.json"
    options = [model, "--convert", "--images", "3", "--metrics=aliasing", "--evidence"]
    assert cli.main(["measure", *options, "-o", str(path)]) == 0, capsys.readouterr().err
    assert cli.main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 0
    assert "Probability against shift" in Page((tmp_path / "r.html").read_text(encoding="utf-8")).sections()
    capsys.readouterr()
    assert cli.main(["measure", *options]) == 2
    assert capsys.readouterr().err.startswith("error: --evidence goes into a file")


def test_metrics_without_a_section_have_a_table() -> None:
    """A metric that is new to the page shows all the same."""
    from blurify.metrics.results import HalfPatch

    def patch(right: int) -> HalfPatch:
        steady = Estimate.of([float(index < right) for index in range(100)])
        return HalfPatch((16, 16), steady, Estimate.of([0.1] * 100, yes_or_no=False), steady, steady)

    pair = Report(tuple(replace(item, half_patch=patch(n)) for item, n in ((BEFORE, 50), (AFTER, 90))), plan())
    page = Page(render(pair))
    assert "Further figures" in page.sections()
    rows = page.table("Shifts by parts of a patch")
    assert rows["Half higher is better"][0].startswith("50.0%") and rows["Half higher is better"][2].endswith("better")
    assert rows["Half change lower is better"][2].endswith("not clear")
    assert "Further figures" not in Page(render(report())).sections()


def test_a_page_of_signals_speaks_of_signals() -> None:
    """All but names, which are somebody's own: of the model, of a file, of a site."""
    heard = [
        replace(one, model="my picture model", settings={**one.settings, "signal": {"layout": "N,T"}})
        for one in (BEFORE, AFTER)
    ]
    page = render(Report(tuple(heard), plan("crop.pixel"), evidence=evidence(2, name="picture of a pixel.wav")))
    text = Page(page).text
    for name in ("my picture model", "crop.pixel", "picture of a pixel.wav", "pictures/val"):
        assert name in text
        text = text.replace(name, "")
    assert not re.findall(r"\b(?:pictures?|pixels?|crops?|px)\b", text, re.IGNORECASE)
    assert "Other answer, one-sample shift" in text and "Signals whose answer flips" in text
    unchanged = render(report())
    assert "Pictures whose answer flips" in unchanged and "one-pixel shift" in unchanged


def test_figures_of_signals_speak_of_signals(tmp_path: Path) -> None:
    heard = tuple(
        replace(one, model="net", settings={**one.settings, "signal": {"layout": "N,T"}}) for one in (BEFORE, AFTER)
    )
    for path in write_figures(Report(heard, plan(), evidence=evidence(2, name="a.wav")), tmp_path):
        if path.suffix == ".svg":
            drawn = re.sub(r"<[^>]*>", " ", path.read_text())
            assert not re.findall(r"\b(?:pictures?|pixels?|crops?|px)\b", drawn, re.IGNORECASE), path.name


def test_what_is_measured_of_embeddings_is_named_and_not_called_missing() -> None:
    drift = Estimate.of([0.1] * 100, yes_or_no=False)
    found = EmbeddingDrift(drift, drift, drift, drift, drift)
    page = Page(render(Report((replace(BEFORE, consistency=None, embedding=found),), plan())))
    rows = page.table("Embeddings under shifts")
    assert [name for name in rows if "nearest" in name or "drift" in name][:2] == [
        "Cosine drift, two crops lower is better", "Cosine drift, one pixel lower is better",
    ]  # fmt: skip
    missing = "it was not measured: consistency"
    assert missing not in page.text
    assert missing in Page(render(Report((replace(BEFORE, consistency=None),), plan()))).text
