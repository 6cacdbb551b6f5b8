"""The report: every figure is the measurement's, names are harmless, sections come and go, figures are valid files."""

from __future__ import annotations

import base64
import html
import importlib.util
import itertools
import json
import math
import re
import statistics
import struct
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from blurify import cli, reporting
from blurify.errors import BlurifyError
from blurify.metrics.differences import PAIRED, UNPAIRED, Difference, differences
from blurify.metrics.files import Context, write_measurements
from blurify.metrics.results import Agreement, Aliasing, Equivariance, Estimate, LayerMap, Measurement, Stability
from blurify.reporting import Report, charts, content, heatmaps, render, words, write_figures
from tests.report_data import IMAGES, measurement, plan

BEFORE, AFTER = measurement(), measurement(converted=True)
HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&{{ 7 * 7 }}</style>"


def both(**changes: Any) -> Report:
    return Report((measurement(**changes), measurement(converted=True, **changes)), plan())


class Page(HTMLParser):
    """A page taken apart: text, tables as rows of cells, headings, pictures, tags and their attributes."""

    VOID = ("meta", "link", "br", "img", "line", "rect", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[tuple[int, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        assert self._open == [], f"never closed: {self._open}"
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag in ("h1", "h2", "h3", "h4"):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"
        if tag == "table":
            self.tables[" ".join(self._caption.split())] = [
                [" ".join(cell.split()) for cell in row] for row in self._rows
            ]

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += f" {data}"
        if "caption" in self._open:
            self._caption += data
        if {"td", "th"} & {*self._open}:
            self._rows[-1][-1] += f" {data}"
        for level, tag in enumerate(("h1", "h2", "h3", "h4"), 1):
            if tag in self._open:
                self.headings[-1] = (level, self.headings[-1][1] + data)

    def table(self, caption: str) -> dict[str, list[str]]:
        """The rows of the one table whose caption begins so, by their first heading cell or first cell."""
        (found,) = [rows for name, rows in self.tables.items() if name.startswith(caption)]
        return {row[0]: row[1:] for row in found[1:]}

    def sections(self) -> list[str]:
        return [name.strip() for level, name in self.headings if level == 2]


def numbers(text: str) -> list[float]:
    return [float(part.replace("\N{MINUS SIGN}", "-")) for part in re.findall("[+\N{MINUS SIGN}-]?\\d+\\.?\\d*", text)]


def says(cell: str, estimate: Estimate) -> bool:
    """Whether a cell holds value, low and high of an estimate, in percent and rounded."""
    value, low, high = numbers(cell)
    wanted = (estimate.value, estimate.low, estimate.high)
    return all(abs(shown / 100 - true) <= 0.00051 for shown, true in zip((value, low, high), wanted, strict=True))


# --- every figure on the page is the measurement's


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(both()))


def test_consistency_figures(full: Page) -> None:
    for table in (full.table("Headline figures"), full.table("Consistency; small")):
        for label, name in (
            ("Same answer, two crops higher is better", "agreement"),
            ("Other answer, one-pixel shift lower is better", "pixel_flips"),
            ("Probability change, one pixel lower is better", "pixel_change"),
            ("Accuracy higher is better", "accuracy"),
        ):
            first, second, change = table[label]
            before, after = getattr(BEFORE.consistency, name), getattr(AFTER.consistency, name)
            assert says(first, before)
            assert says(second, after)
            assert numbers(change)[0] / 100 == pytest.approx(after.value - before.value, abs=0.0006)


def without_pictures(measured: Measurement) -> Measurement:
    """As in a file of before: no values of single pictures."""

    def bare(data: Any) -> Any:
        if isinstance(data, dict):
            return {key: bare(item) for key, item in data.items() if key not in ("packed", "over_pictures")}
        return [bare(item) for item in data] if isinstance(data, list | tuple) else data

    return Measurement.from_dict(bare(measured.to_dict()))


def test_the_verdict_is_that_of_the_paired_difference(full: Page) -> None:
    """Accuracy's intervals overlap widely, and yet almost every picture is a little better off."""
    table = full.table("Headline figures")
    wanted = differences(BEFORE, AFTER)
    for label, name, said in (
        ("Same answer, two crops higher is better", "agreement", "better"),
        ("Accuracy higher is better", "accuracy", "better"),
    ):
        found = wanted[f"consistency.{name}"]
        change = table[label][2]
        assert change.endswith(f" {said}") and found.paired
        shown = [number / 100 for number in numbers(change)]
        assert shown == pytest.approx([found.value, found.low, found.high], abs=0.0006)
    swapped = Page(render(Report((replace(AFTER, converted=False), replace(BEFORE, converted=True)))))
    assert swapped.table("Headline")["Other answer, one-pixel shift lower is better"][2].endswith("worse")
    assert "Unpaired:" not in full.text


def test_means_are_compared_picture_by_picture_too(full: Page) -> None:
    table = full.table("Headline figures")
    (flips,) = [row for label, row in table.items() if label.startswith("Flip rate, mean of 8")]
    value, low, high = (number / 100 for number in numbers(flips[2]))
    columns = [
        [math.fsum(part) / 8 for part in zip(*(item.rate.values for item in found.stability.flip_rates), strict=True)]
        for found in (BEFORE, AFTER)
    ]
    changes = [after - before for before, after in zip(*columns, strict=True)]
    mean, error = statistics.fmean(changes), statistics.stdev(changes) / math.sqrt(len(changes))
    assert (value, low, high) == pytest.approx((mean, mean - 1.96 * error, mean + 1.96 * error), abs=0.001)
    assert flips[2].endswith(" better")
    (distance,) = [row for label, row in table.items() if label.startswith("Distance from equivariance, mean of")]
    assert len(numbers(distance[2])) == 1, "the layer of stride 1 has no values of single pictures here"


def test_files_of_before_are_compared_unpaired_and_the_page_says_so() -> None:
    report = Report((without_pictures(BEFORE), without_pictures(AFTER)), plan())
    found = Page(render(report))
    table = found.table("Headline figures")
    assert table["Same answer, two crops higher is better"][2].endswith("better, unpaired")
    assert table["Accuracy higher is better"][2].endswith("not clear, unpaired")
    assert "Unpaired:" in found.text
    elsewhere = Report((BEFORE, replace(AFTER, data="elsewhere")))
    assert Page(render(elsewhere)).table("Headline")["Accuracy higher is better"][2].endswith("not clear, unpaired")


@pytest.mark.parametrize(
    ("low", "value", "high", "better", "verdict"),
    [
        (0.1, 0.2, 0.3, "higher", "better"),
        (0.1, 0.2, 0.3, "lower", "worse"),
        (-0.3, -0.2, -0.1, "lower", "better"),
        (-0.1, 0.2, 0.3, "higher", "not clear"),
        (math.nan, math.nan, math.nan, "higher", ""),
    ],
)
def test_verdicts(low: float, value: float, high: float, better: str, verdict: str) -> None:
    assert content.verdict(Difference(value, low, high, PAIRED, 9), better) == verdict
    if verdict:
        assert content.verdict(Difference(value, low, high, UNPAIRED, 9), better) == f"{verdict}, unpaired"
        assert content.verdict(Difference(value, low, high, PAIRED, 9, p=0.06), better) == "not clear"
        doubtful = Difference(value, low, high, PAIRED, 9, caveat="less sure")
        assert content.verdict(doubtful, better) == ("not clear" if verdict == "not clear" else "less sure")
    assert content.verdict(None, better) == ""


def test_the_mean_of_figures_with_a_caveat_has_it_too() -> None:
    """The answers are others: that all flip rates together are lower is not better; that they are higher is worse."""
    yes, no = (Estimate.of([float(n < bound) for n in range(IMAGES)]) for bound in (IMAGES, IMAGES // 5))
    kept = Agreement(IMAGES, same=no, consistent=yes, consistent_and_same=no, original=BEFORE.model)
    names = [f"stability.flip_rate.{item.perturbation}" for item in BEFORE.stability.flip_rates]
    for first, second, caveat in ((BEFORE, AFTER, "other answers"), (AFTER, BEFORE, "")):
        consistent = replace(second.consistency, accuracy=None)  # labels would know better
        other = replace(second, consistency=consistent, agreement=replace(kept, original=first.model))
        report = Report((replace(first, consistency=replace(first.consistency, accuracy=None)), other))
        (found,) = content.mean_differences(report, names)
        assert found is not None and found.beyond_chance and found.caveat == caveat


def test_flip_rates_and_worst_case_and_means(full: Page) -> None:
    table = full.table("Flip rates; small")
    assert BEFORE.stability and AFTER.stability and BEFORE.worst_case and AFTER.worst_case and BEFORE.aliasing
    for before, after in zip(BEFORE.stability.flip_rates, AFTER.stability.flip_rates, strict=True):
        first, second, _ = table[before.perturbation.replace("-", " ") + " lower is better"]
        assert says(first, before.rate) and says(second, after.rate)
    table = full.table("Worst case; small")
    for label, name in (
        ("Same answer, whole grid", "steady"),
        ("Accuracy, unmoved", "unmoved"),
        ("Accuracy, mean of the grid", "mean"),
        ("Right on the whole grid", "worst"),
    ):
        first, second, _ = table[f"{label} higher is better"]
        assert says(first, getattr(BEFORE.worst_case, name)) and says(second, getattr(AFTER.worst_case, name))
    means = full.table("Headline figures")
    rates = [rate.rate.value for rate in BEFORE.stability.flip_rates]
    shown = means["Flip rate, mean of 8 perturbations lower is better"][0]
    assert numbers(shown)[0] / 100 == pytest.approx(sum(rates) / len(rates), abs=0.0006)
    shares = [site.share.value for site in BEFORE.aliasing.sites]
    shown = means["Energy that aliases, mean of 5 sites lower is better"][0]
    assert numbers(shown)[0] / 100 == pytest.approx(sum(shares) / len(shares), abs=0.0006)


def test_corruptions(full: Page) -> None:
    assert BEFORE.stability and AFTER.stability
    for caption, name in (("Accuracy under corruption", "accuracy"), ("Same answer as for", "agreement")):
        (rows,) = [rows[1:] for title, rows in full.tables.items() if title.startswith(caption)]
        wanted = [
            (item.corruption.replace("-", " "), role, getattr(item, name))
            for pair in zip(BEFORE.stability.corruptions, AFTER.stability.corruptions, strict=True)
            for role, item in zip(("before", "after"), pair, strict=True)
        ]
        for (title, role, *cells), (corruption, model, estimates) in zip(rows, wanted, strict=True):
            assert (title, role) == (corruption, model)
            assert all(says(cell, estimate) for cell, estimate in zip(cells, estimates, strict=True))


def test_aliasing_and_sites(full: Page) -> None:
    assert BEFORE.aliasing and AFTER.aliasing
    rows = full.table("Share of energy above")
    for number, (before, after) in enumerate(zip(BEFORE.aliasing.sites, AFTER.aliasing.sites, strict=True), 1):
        name, kind, _, first, second = rows[str(number)]
        assert (name, kind) == (before.site, before.kind)
        assert says(first, before.share) and says(second.removesuffix(" filtered"), after.share)
        assert second.endswith(" filtered") == after.blurred
    sites = full.table("All sites")
    for number, (site, before, after) in enumerate(
        zip(plan().sites, BEFORE.aliasing.sites, AFTER.aliasing.sites, strict=True), 1
    ):
        name, kind, _, shapes, action, shares, extra, reason = sites[str(number)]
        assert (name, kind, action) == (site.name, site.kind, site.action)
        assert site.reason in reason and reason.startswith(f"{site.rule} :")
        assert shapes == " → ".join("×".join(map(str, shape[1:])) for shape in (site.input_shape, site.output_shape))
        assert [part / 100 for part in numbers(shares)] == pytest.approx(
            [before.share.value, after.share.value], abs=0.0006
        )
        assert extra == (
            "–" if action == "skip" else {"maxpool": "+12.8 M", "layer2.0.conv1": "+175 M"}.get(name, "−2 k")
        )


def test_equivariance_table_and_maps(full: Page) -> None:
    assert BEFORE.equivariance and AFTER.equivariance
    rows = full.table("Distance from equivariance")
    for number, (before, after) in enumerate(
        zip(BEFORE.equivariance.layers, AFTER.equivariance.layers, strict=True), 1
    ):
        name, kind, _, *shown = rows[str(number)]
        flat = [[value for row in layer.distances for value in row] for layer in (before, after)]
        wanted = [part for values in flat for part in (sum(values) / len(values), max(values))]
        assert (name, kind) == (before.name, before.kind)
        assert [float(value) for value in shown] == pytest.approx(wanted, abs=0.00051)
    alts = [
        attributes["alt"] or "" for tag, attributes in full.tags if tag == "img" and attributes.get("class") == "map"
    ]
    assert len(alts) == 2 * 6  # the layer of stride 1 has no map
    assert alts[0] == (
        "Map of conv1, before: 2 by 2 shifts, mean distance 0.084, largest 0.124 at a shift of 1 down and 1 right"
    )


def pixels(address: str) -> list[list[tuple[int, ...]]]:
    """A PNG as rows of RGB, read without our writer's help."""
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, depth, colours, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colours) == (8, 2)
    raw = zlib.decompress(chunks[b"IDAT"])
    rows = [raw[row * (1 + 3 * width) : (row + 1) * (1 + 3 * width)] for row in range(height)]
    return [[tuple(row[1 + 3 * x : 4 + 3 * x]) for x in range(width)] for row in rows if row[0] == 0]


def test_map_pixels_follow_the_distances_on_one_scale() -> None:
    addresses = re.findall(r'class="map" src="([^"]+)"', render(both()))
    assert BEFORE.equivariance and AFTER.equivariance
    maps = [layer for pair in zip(BEFORE.equivariance.layers, AFTER.equivariance.layers, strict=True) for layer in pair]
    by_colour: dict[tuple[int, ...], set[float]] = {}
    for address, layer in zip(addresses, maps[2:], strict=True):
        for row, values in zip(pixels(address), layer.distances, strict=True):
            for colour, value in zip(row, values, strict=True):
                by_colour.setdefault(colour, set()).add(value)
    highest = max(value for layer in maps for row in layer.distances for value in row)
    assert all(max(values) - min(values) <= highest / 255 for values in by_colour.values())
    assert by_colour[heatmaps.SCALE[0]] >= {0.0} and highest in by_colour[heatmaps.SCALE[-1]]


def test_layers_of_another_stride_are_shown_and_not_compared() -> None:
    """A convolution whose blur comes later keeps a smaller stride in the converted network: other features."""
    assert BEFORE.equivariance and AFTER.equivariance
    other = LayerMap("layer2", "Sequential", (4, 4), (64, 56, 56), ((0.9, 0.9), (0.9, 0.9)))
    layers = tuple(other if layer.name == "layer2" else layer for layer in AFTER.equivariance.layers)
    after = replace(AFTER, equivariance=replace(AFTER.equivariance, layers=layers))
    page = Page(render(Report((BEFORE, after), plan())))
    rows = {row[0]: row[1:] for row in page.table("Distance from equivariance").values()}
    assert rows["layer2"][1] == "8×8 → 4×4 other features: not compared" and rows["layer1"][1] == "4×4"
    means = [
        [layer.mean for layer in found.layers if layer.name != "layer2"]
        for found in (BEFORE.equivariance, after.equivariance)
        if found
    ]
    (label,) = [name for name in page.table("Headline") if name.startswith("Distance from equivariance, mean of")]
    assert f"mean of {len(means[0])} layers" in label
    shown = [numbers(cell)[0] for cell in page.table("Headline")[label][:2]]
    assert shown == pytest.approx([sum(part) / len(part) for part in means], abs=0.0006)


def test_a_conversion_alone_is_said_to_be_no_more() -> None:
    report = both()
    assert "Not fine-tuned" not in render(report)
    page = Page(render(replace(report, same_weights=True)))
    assert "Not fine-tuned: the anti-aliased network has exactly" in page.text


def test_a_global_pool_is_no_part_of_the_mean_of_aliasing() -> None:
    report = both()
    assert report.plan and BEFORE.aliasing
    sites = tuple(replace(site, rule="global-pool") if site.name == "pool" else site for site in report.plan.sites)
    page = Page(render(replace(report, plan=replace(report.plan, sites=sites))))
    shares = [site.share.value for site in BEFORE.aliasing.sites if site.site != "pool"]
    shown = page.table("Headline figures")["Energy that aliases, mean of 4 sites lower is better"][0]
    assert numbers(shown)[0] / 100 == pytest.approx(sum(shares) / len(shares), abs=0.0006)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.853, "85.3%"), (0.0042, "0.42%"), (0.00012, "0.012%"), (0.9996, "99.960%"), (0.995, "99.50%"), (1.0, "100.0%")],
)
def test_shares_near_the_ends_keep_their_digits(value: float, text: str) -> None:
    assert words.percent(value) == text


# --- the scale of colours


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of sRGB (IEC 61966-2-1), from 0..255."""
    linear = [(v / 255 / 12.92 if v <= 10.31475 else ((v / 255 + 0.055) / 1.055) ** 2.4) for v in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def lightness(colour: tuple[float, ...]) -> float:
    """CIE L*."""
    y = luminance(colour)
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_scale_rises_evenly_in_lightness_which_everybody_sees() -> None:
    levels = [lightness(colour) for colour in heatmaps.SCALE]
    coarse = levels[::5]
    assert all(later > earlier for earlier, later in itertools.pairwise(coarse))
    assert levels[0] < 15 and levels[-1] > 85
    # Even: a quarter of the scale is never less than a seventh of all lightness.
    assert min(levels[i + 63] - levels[i] for i in range(192)) > (levels[-1] - levels[0]) / 7


def test_scale_for_the_colour_blind() -> None:
    """Deuteranopia by the matrix of Machado et al. 2009 (severity 1, linear RGB): steps stay apart and in order."""
    matrix = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))

    def seen(colour: tuple[int, ...]) -> float:
        linear = [(v / 255 / 12.92 if v <= 10.31475 else ((v / 255 + 0.055) / 1.055) ** 2.4) for v in colour]
        red, green, blue = (sum(w * v for w, v in zip(row, linear, strict=True)) for row in matrix)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    levels = [seen(colour) for colour in heatmaps.SCALE[::8]]
    assert all(later > earlier for earlier, later in itertools.pairwise(levels))


def test_colour_of_what_is_no_number() -> None:
    assert heatmaps.colour(math.nan) == heatmaps.UNKNOWN not in heatmaps.SCALE
    assert (heatmaps.colour(-1.0), heatmaps.colour(2.0)) == (heatmaps.SCALE[0], heatmaps.SCALE[-1])


# --- names of others do no harm


def test_hostile_names_stay_text() -> None:
    assert BEFORE.aliasing and BEFORE.equivariance
    site = replace(BEFORE.aliasing.sites[0], site=HOSTILE)
    layer = replace(BEFORE.equivariance.layers[1], name=HOSTILE, kind=HOSTILE)
    changes = {
        "model": HOSTILE,
        "data": HOSTILE,
        "settings": {HOSTILE: HOSTILE, "list": [HOSTILE]},
        "aliasing": replace(BEFORE.aliasing, sites=(site, *BEFORE.aliasing.sites[1:])),
        "equivariance": replace(BEFORE.equivariance, layers=(layer,)),
    }
    clean = Page(render(Report((BEFORE, AFTER), plan(), "command", {"torch": "1"})))
    dirty = Page(
        render(
            Report((replace(BEFORE, **changes), replace(AFTER, **changes)), plan(HOSTILE), HOSTILE, {"torch": HOSTILE})
        )
    )
    assert {tag for tag, _ in dirty.tags} == {tag for tag, _ in clean.tags}
    assert not any(name.startswith("on") for _, attributes in dirty.tags for name in attributes)
    assert all(
        (attributes["src"] or "").startswith("data:image/png;") for tag, attributes in dirty.tags if tag == "img"
    )
    assert dirty.text.count("{{ 7 * 7 }}") > 10 and "&49" not in dirty.text


def test_page_needs_nothing_else_and_forbids_it() -> None:
    text = render(both())
    taken = Page(text)
    (policy,) = [attributes["content"] or "" for tag, attributes in taken.tags if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    for tag, attributes in taken.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert "url(" not in text and "@import" not in text


def test_half_a_surrogate_pair_can_be_written() -> None:
    render(Report((replace(BEFORE, model="a\ud800b"),))).encode("utf-8")


# --- sections come and go


def test_full_page_has_all_sections(full: Page) -> None:
    assert full.sections() == [
        "Summary", "Sites", "Filters", "Consistency", "Equivariance maps", "Aliasing by depth", "Stability",
        "Worst case", "What the figures mean", "How to measure this again",
    ]  # fmt: skip
    assert "Not on this page" not in full.text
    levels = [level for level, _ in full.headings]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


@pytest.mark.parametrize(
    ("part", "title", "words_"),
    [
        ("consistency", "Consistency", "consistency"),
        ("equivariance", "Equivariance maps", "equivariance maps"),
        ("aliasing", "Aliasing by depth", "aliasing by site"),
        ("stability", "Stability", "stability to perturbations and corruptions"),
        ("worst_case", "Worst case", "worst case over translations and rotations"),
    ],
)
def test_what_was_not_measured_is_not_there_and_the_page_says_so(part: str, title: str, words_: str) -> None:
    found = Page(render(both(**{part: None})))
    assert title not in found.sections()
    assert re.search(f"Not on this page, because it was not measured: [^.]*{words_}", found.text)


def test_two_networks_are_not_called_before_and_after() -> None:
    sites = tuple(replace(site, site=f"other.{site.site}") for site in BEFORE.aliasing.sites)[:2]
    layers = tuple(replace(layer, name=f"other.{layer.name}") for layer in BEFORE.equivariance.layers)
    other = replace(
        AFTER, aliasing=replace(AFTER.aliasing, sites=sites), equivariance=replace(AFTER.equivariance, layers=layers)
    )
    report = Report((BEFORE, other))
    assert report.roles == ("first", "second")
    text = Page(render(report)).text
    count = len(BEFORE.aliasing.sites)
    assert f"Energy that aliases, mean of {count} and 2 sites" in text


def test_means_are_over_what_both_have() -> None:
    kept = BEFORE.aliasing.sites[:2]
    found = Page(render(Report((replace(BEFORE, aliasing=replace(BEFORE.aliasing, sites=kept)), AFTER)))).text
    assert "Energy that aliases, mean of 2 sites" in found


def test_maps_made_differently_are_called_so() -> None:
    other = replace(AFTER, equivariance=replace(AFTER.equivariance, step=2))
    assert "equivariance's step" in Report((BEFORE, other)).differences


def test_what_could_not_be_measured_says_why() -> None:
    found = Page(render(both(stability=None, skipped={"stability": "it gives a label map"})))
    assert "stability to perturbations and corruptions (it gives a label map)" in found.text


def test_one_model_alone() -> None:
    found = Page(render(Report((BEFORE,))))
    assert "Sites" not in found.sections()
    assert "the table of sites" in found.text
    rows = found.table("Headline figures")
    assert BEFORE.consistency and says(*rows["Same answer, two crops higher is better"], BEFORE.consistency.agreement)
    assert "change" not in found.tables["Consistency; small: 95% intervals"][0]


def test_a_plan_that_was_not_carried_out_says_so(full: Page) -> None:
    assert "a conversion has blurred 3 and left 2 alone" in full.text
    assert "a conversion would blur 3 and leave 2 alone" in Page(render(Report((BEFORE,), plan()))).text


def test_two_models_that_are_not_before_and_after() -> None:
    found = Page(render(Report((BEFORE, replace(BEFORE, model="other")))))
    assert found.tables["Headline figures; small: 95% intervals, where there are any"][0][1:3] == ["first", "second"]


def test_different_settings_are_pointed_out() -> None:
    other = replace(AFTER, data="elsewhere", settings={**AFTER.settings, "seed": 1})
    found = Page(render(Report((BEFORE, other))))
    assert "data and seed differ" in found.text
    assert "Settings, before" in [name for _, name in found.headings]


def test_without_labels_agreement_is_drawn() -> None:
    assert BEFORE.stability and BEFORE.consistency
    bare = tuple(replace(item, accuracy=()) for item in BEFORE.stability.corruptions)
    changes: dict[str, Any] = {
        "stability": replace(BEFORE.stability, corruptions=bare),
        "consistency": replace(BEFORE.consistency, accuracy=None),
    }
    found = Page(render(both(**changes)))
    assert "Accuracy under corruption" not in [name for _, name in found.headings]
    assert "accuracy (no labels were used)" in found.text


def test_layers_that_only_one_model_has_keep_their_place() -> None:
    assert BEFORE.equivariance and AFTER.equivariance
    first, second, *rest = AFTER.equivariance.layers
    extra = LayerMap("pool.blurpool", "BlurPool2d", (4, 4), (1, 2, 2), ((0.0, 0.5), (0.25, 1.0)))
    after = replace(AFTER, equivariance=replace(AFTER.equivariance, layers=(first, second, extra, *rest)))
    rows = Page(render(Report((BEFORE, after)))).table("Distance from equivariance")
    assert rows["3"] == ["pool.blurpool", "BlurPool2d", "4×4", "not there", "not there", "0.438", "1.000"]


def test_figures_that_are_no_numbers_are_said_not_drawn() -> None:
    nothing = Estimate(math.nan, math.nan, math.nan, 3)
    assert BEFORE.consistency and BEFORE.aliasing
    changes: dict[str, Any] = {
        "consistency": replace(BEFORE.consistency, agreement=nothing),
        "aliasing": Aliasing(tuple(replace(site, share=nothing) for site in BEFORE.aliasing.sites), 3),
        "equivariance": Equivariance(
            (LayerMap("a", "Conv2d", (2, 2), (1, 2, 2), ((0.0, math.nan), (math.nan, math.nan))),), 1, (3, 4, 4), 1
        ),
    }
    text = render(both(**changes))
    assert "no number" in text and not re.search(r'"-?(nan|inf)', text)


# --- charts


@pytest.mark.parametrize("highest", [1e-5, 0.0042, 0.05, 0.1, 0.103, 0.3, 0.51, 0.86, 1.0])
def test_ticks_reach_the_highest_value_in_round_steps(highest: float) -> None:
    ticks = charts.ticks_to(highest)
    assert ticks[0] == 0 and highest * (1 - 1e-6) <= ticks[-1] <= 1 and 3 <= len(ticks) <= 6
    (step,) = {round(later - earlier, 10) for earlier, later in itertools.pairwise(ticks)}
    assert f"{step:e}".partition("e")[0].rstrip("0").rstrip(".") in ("1", "2", "2.5", "5")


def test_marks_stand_where_their_values_are() -> None:
    rows = [content.Row("a", (Estimate(0.25, 0.2, 0.3, 9), Estimate(1.0, 0.9, 1.0, 9)), "higher")]
    chart = charts.dots(rows)
    axis = {tick.text: tick.at for tick in chart.ticks}
    quarter, whole = chart.rows[0].marks
    assert whole.x == axis["100%"] and quarter.x == pytest.approx(axis["0%"] + (axis["100%"] - axis["0%"]) / 4)
    curve = content.Curve("c", ("x", "y"), ((Estimate(0.1, 0.0, 0.2, 9), None), (None, Estimate(0.2, 0.1, 0.2, 9))))
    drawn = charts.curves(curve, height=100)
    assert [mark.y for mark in drawn.marks] == [drawn.bottom - 50, drawn.bottom - 100]
    assert drawn.lines == ()  # a line needs two neighbouring points


# --- figures in files


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_figures_are_valid_files(tmp_path: Path) -> None:
    import matplotlib.image

    assert BEFORE.stability
    few = Stability(BEFORE.stability.flip_rates[:2], BEFORE.stability.corruptions[:2])
    written = write_figures(both(model="a $x_ model <&", stability=few), tmp_path / "new" / "figures")
    names = ("consistency", "heatmaps", "aliasing", "stability", "corruptions", "worst-case")
    assert [path.name for path in written] == [f"{name}.{end}" for name in names for end in ("png", "svg")]
    for path in written:
        if path.suffix == ".png":
            image = matplotlib.image.imread(path)
            assert image.shape[0] > 200 and image.std() > 0.01
        else:
            root = ElementTree.parse(path).getroot()
            assert root.tag.endswith("svg")
            assert b"http://www.w3.org" in path.read_bytes() and b"<script" not in path.read_bytes()
    assert "layer2.0.conv1" in html.unescape((tmp_path / "new" / "figures" / "aliasing.svg").read_text())
    with pytest.raises(BlurifyError, match=r"exists: add --force"):
        write_figures(both(), tmp_path / "new" / "figures")


def test_figures_only_of_what_was_measured(tmp_path: Path) -> None:
    assert BEFORE.worst_case
    bare = Measurement("m", "d", 3, worst_case=BEFORE.worst_case)
    assert [path.name for path in write_figures(Report((bare,)), tmp_path)] == ["worst-case.png", "worst-case.svg"]


def test_nowhere_to_write_figures(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BlurifyError, match="--figures takes a directory"):
        write_figures(both(), tmp_path / "file")


# --- wrong input


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BlurifyError, match=r"jinja2, which is not installed: pip install 'blurify\[report\]'"):
        render(both())
    with pytest.raises(BlurifyError, match=r"matplotlib, which is not installed: pip install 'blurify\[report\]'"):
        write_figures(both(), tmp_path)


@pytest.mark.parametrize("count", [0, 4])
def test_one_to_three_measurements(count: int) -> None:
    with pytest.raises(BlurifyError, match=f"not {count}"):
        Report((BEFORE,) * count)


@pytest.mark.parametrize("distances", [(), ((),), ((0.0, 1.0), (0.0,))])
def test_maps_that_are_no_rectangles(distances: tuple[tuple[float, ...], ...]) -> None:
    layer = LayerMap("a", "Conv2d", (2, 2), (1, 2, 2), distances)
    with pytest.raises(BlurifyError, match="is no rectangle"):
        Report((replace(BEFORE, equivariance=Equivariance((layer,), 1, (3, 4, 4), 1)),))


def test_empty_parts_are_left_out() -> None:
    empty = replace(
        BEFORE, stability=Stability((), ()), aliasing=Aliasing((), 3), equivariance=Equivariance((), 1, (3, 4, 4), 1)
    )
    found = Page(render(Report((empty,), replace(plan(), sites=()))))
    assert "Stability" not in found.sections() and "Aliasing by depth" not in found.sections()


@pytest.mark.parametrize(
    ("value", "text"), [(0.853, "85.3%"), (0.0042, "0.42%"), (0.0, "0.0%"), (1.0, "100.0%"), (math.nan, "no number")]
)
def test_percent(value: float, text: str) -> None:
    assert words.percent(value) == text


# --- the command


DEMO = "python:blurify.demo:trained_network"


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "measured.json"
    write_measurements(path, [BEFORE, AFTER], context=Context(plan(), "blurify measure a b", {"torch": "2.15.0"}))
    return path


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command line that fails with exit code 2."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    return said.err


def test_command_shows_a_file_of_measurements(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert cli.main(["report", str(measured), "-o", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out} (")
    assert out.read_text(encoding="utf-8") == render(
        Report((BEFORE, AFTER), plan(), "blurify measure a b", {"torch": "2.15.0"})
    )
    assert "exists: add --force" in failure(capsys, "report", measured, "-o", out)
    assert cli.main(["report", str(measured), "-o", str(out), "--force"]) == 0


def test_command_shows_two_files_side_by_side(tmp_path: Path) -> None:
    write_measurements(tmp_path / "one.json", [BEFORE])
    write_measurements(tmp_path / "two.json", [AFTER], context=Context(plan()))
    out = tmp_path / "report.html"
    assert cli.main(["report", str(tmp_path / "one.json"), str(tmp_path / "two.json"), "-o", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == render(both())


def test_command_measures_a_model_with_the_options_of_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Report] = []
    monkeypatch.setattr(reporting, "render", lambda report: seen.append(report) or render(report))
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    options = ["--convert", "--images", "6", "--metrics=consistency,aliasing", "--seed", "3"]
    assert cli.main(["report", DEMO, *options, "-o", str(out), "--figures", str(figures)]) == 0
    said = capsys.readouterr().out
    names = {path.stem for path in figures.iterdir()} - {"flips"}  # where any does
    assert names == {"consistency", "aliasing", "shift-curves", "spectra", "site-features", "agreement"}
    written = len(list(figures.iterdir()))
    assert said.startswith(f"wrote {out}") and f"wrote {written} figures" in said and said.count("\n") == 2
    (report,) = seen
    before, after = report.measurements
    assert (before.images, before.settings["seed"], before.converted, after.converted) == (6, 3, False, True)
    assert before.stability is None and before.consistency and after.consistency and before.aliasing
    found = Page(out.read_text(encoding="utf-8"))
    first, second, _ = found.table("Headline figures")["Same answer, two crops higher is better"]
    assert says(first, before.consistency.agreement) and says(second, after.consistency.agreement)
    sites = found.table("All sites")
    assert [row[0] for row in sites.values()] == [site.site for site in before.aliasing.sites]
    assert {row[4] for row in sites.values()} == {"blur", "skip"}
    assert f"blurify report {DEMO} --convert --images 6" in found.text and torch.__version__ in found.text


@pytest.mark.parametrize(
    ("content_", "says_"),
    [
        (None, "there is no file"),
        ("nonsense", "holds no measurements"),
        ("[]", "holds no measurements"),
        ('{"measurements": []}', "holds no measurements"),
        ('{"measurements": [{"format": 99}]}', "format 99"),
        ('{"measurements": [{"format": 1, "model": "m", "data": "d", "images": "many"}]}', "is not a measurement"),
        (
            '{"measurements": [{"format": 1, "model": "m", "data": "d", "images": 1}], "plan": {"format": 7}}',
            "format 7",
        ),
        ('{"measurements": [{"format": 1, "model": "m", "data": "d", "images": 1}], "versions": 3}', "no measurements"),
        (
            '{"measurements": [{"format": 1, "model": "m", "data": "d", "images": 1, "settings": "text"}]}',
            "is no record",
        ),
        ('{"measurements": [{"format": 1, "model": "m", "data": "d", "images": 1, "skipped": []}]}', "is no record"),
    ],
)
def test_command_with_a_file_that_is_none(
    content_: str | None, says_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    if content_ is not None:
        path.write_text(content_)
    assert says_ in failure(capsys, "report", path, "-o", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_command_with_wrong_usage(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert "--seed does not go with a file" in failure(capsys, "report", measured, "--seed", 3, "-o", out)
    assert "not 4" in failure(capsys, "report", measured, measured, "-o", out)
    assert "No such option" in failure(capsys, "report", DEMO, "--nonsense", "-o", out)
    assert "has --json" in failure(capsys, "report", DEMO, "--json", "-o", out)
    assert "doesn't exist" in failure(capsys, "report", measured, "-o", tmp_path / "none" / "report.html")
    assert "takes a directory" in failure(capsys, "report", measured, "-o", out, "--figures", measured)
    # Nothing is measured, so that nothing is lost, where the result has no place.
    unmeasured = ("report", DEMO, "--data", tmp_path / "not-looked-at", "-o", out)
    assert "can't be made" in failure(capsys, *unmeasured, "--figures", measured / "below")
    assert "what the report is made from" in failure(capsys, "report", measured, "-o", measured, "--force")
    assert not out.exists() and Measurement.from_dict(json.loads(measured.read_text())["measurements"][0])


def test_command_without_the_extra(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    said = failure(capsys, "report", measured, "-o", tmp_path / "report.html")
    assert said == "error: a report needs jinja2, which is not installed: pip install 'blurify[report]'\n"
