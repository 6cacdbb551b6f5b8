"""The report in a real browser (headless Chromium): light, dark, on a phone, and as a screen reader is told of it."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blurify.reporting import Report, heatmaps, render
from blurify.spec.adapted import Adapted, Stage
from blurify.spec.plan import Plan
from tests.browser import Browser, running_browser
from tests.report_data import evidence, measurement, pareto, plan

PHONE = {"width": 360, "height": 800, "phone": True}
WIDE = {"width": 1200, "height": 900}
LONG = "python:a.module.with.a.rather.long.name:and_a_factory_whose_name_is_long_too_without_any_place_to_break_it"

# Every text that shows, with its colour and the first ground behind it that is not see-through.
TEXTS = """(() => {
  document.querySelectorAll('details').forEach(item => item.open = true);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return colour;
    }
    return 'none';
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || element.closest('style, .unseen, .skip')) continue;
    if (element.matches('title, desc')) continue;
    const style = getComputedStyle(element);
    if (!element.getClientRects().length || style.visibility === 'hidden') continue;
    const colour = element.namespaceURI.endsWith('svg') ? style.fill : style.color;
    let opacity = 1;
    for (let at = element; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
    const size = parseFloat(style.fontSize);
    found.push({text, where: element.tagName, colour, ground: ground(element), opacity, size});
  }
  return found;
})()"""

# The pixels of every map, as the browser decoded them.
MAPS = """Promise.all([...document.querySelectorAll('img.map')].map(async image => {
  await image.decode();
  const canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const box = image.getBoundingClientRect();
  return {alt: image.alt, columns: canvas.width, rows: canvas.height, across: box.width, down: box.height,
          pixels: [...context.getImageData(0, 0, canvas.width, canvas.height).data]};
}))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it."""
    report = Report(
        (measurement(), measurement(converted=True)), plan(), "blurify measure a b --metrics all", {"torch": "2.15.0"},
        pareto=pareto(),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("pages") / "full.html"
    path.write_text(render(report), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def evident(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with the evidence on it, of two models or three."""
    several = (measurement(), *[measurement(converted=True)] * (request.param - 1))
    report = Report(several, memory(plan()), "blurify report a b", evidence=evidence(request.param), same_weights=True)
    path = tmp_path_factory.mktemp("pages") / "evident.html"
    path.write_text(render(report), encoding="utf-8")
    return path


def memory(found: Plan) -> Plan:
    """With the bytes of each site, so that the table has all its columns."""
    sites = tuple(
        dataclasses.replace(site, extra_written=1000 * index, extra_kept=7) for index, site in enumerate(found.sites)
    )
    return dataclasses.replace(found, sites=sites, written=10**7, kept=10**7)


def luminance(colour: str) -> float:
    """Relative luminance of a computed colour (WCAG 2.2)."""
    channels = [float(part) for part in re.findall(r"[\d.]+", colour)]
    assert len(channels) == 3, f"{colour} is not opaque, or no rgb()"
    linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_loads_without_a_complaint_and_without_the_network(browser: Browser, full: Path) -> None:
    browser.open(full)
    assert browser.run("document.title") == "How shift-invariant is torchvision/resnet18?"
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [full.as_uri()]
    assert browser.run("document.images.length") == 13  # twelve maps and the scale
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_browser_reports_what_the_policy_stops(browser: Browser, full: Path, tmp_path: Path) -> None:
    """The test above can fail: a script and a picture from elsewhere are seen, and stopped."""
    page = tmp_path / "bad.html"
    bad = "<script>document.title = 'run'</script><img src='http://127.0.0.1:9/x.png' alt='x'></main>"
    page.write_text(full.read_text(encoding="utf-8").replace("</main>", bad), encoding="utf-8")
    browser.open(page)
    assert browser.run("document.title") != "run"
    assert len(browser.complaints) >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(browser: Browser, full: Path, scheme: str) -> None:
    browser.open(full, **PHONE, scheme=scheme)
    assert browser.run("innerWidth") == 360
    browser.run("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert browser.run("document.documentElement.scrollWidth") <= 360
    wide = browser.run(
        "[...document.querySelectorAll('body *')].filter(item => !item.closest('.scroll') && !item.closest('.skip')"
        " && item.getBoundingClientRect().right > 361).map(item => item.outerHTML.slice(0, 80))"
    )
    assert wide == []
    # The wide table scrolls in a box of its own, which the keyboard reaches and a screen reader is told of.
    boxes = browser.run(
        "[...document.querySelectorAll('.scroll')].map(box => [box.scrollWidth > box.clientWidth, box.tabIndex,"
        " box.getAttribute('role'), box.getAttribute('aria-label')])"
    )
    assert any(scrolls for scrolls, *_ in boxes)
    assert all(index == 0 and role == "region" and label for _, index, role, label in boxes)
    assert browser.run("[...document.querySelectorAll('table')].every(table => table.closest('.scroll'))")


def test_long_names_fit_a_phone(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "long.html"
    first, second = (measurement(converted=converted, model=LONG, data=LONG) for converted in (False, True))
    page.write_text(render(Report((first, second), plan(LONG), LONG, pareto=pareto(first=LONG))), encoding="utf-8")
    browser.open(page, **PHONE)
    assert browser.run("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("width", [360, 1200])
def test_labels_of_charts_do_not_touch(browser: Browser, full: Path, width: int) -> None:
    browser.open(full, width=width, height=800)
    touching = browser.run(
        """[...document.querySelectorAll('svg.chart')].flatMap(chart => {
          const place = item => [item.textContent, item.getBoundingClientRect()];
          const texts = [...chart.querySelectorAll('text')].map(place);
          const found = [], frame = chart.getBoundingClientRect();
          texts.forEach(([one, a], index) => {
            if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push([one, 'outside']);
            texts.slice(index + 1).forEach(([other, b]) => {
              if (a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2)
                found.push([one, other]);
            });
          });
          return found;
        })"""
    )
    assert touching == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Browser, full: Path, scheme: str) -> None:
    browser.open(full, **WIDE, scheme=scheme)
    texts: list[dict[str, Any]] = browser.run(TEXTS)
    assert {"P", "TD", "TH", "text", "H2", "SUMMARY", "SMALL", "FIGCAPTION", "CODE"} <= {
        item["where"] for item in texts
    }
    dark = luminance(texts[0]["ground"]) < 0.2
    assert dark == (scheme == "dark")
    faint = {
        (item["where"], item["colour"], item["ground"], round(contrast(item["colour"], item["ground"]), 2))
        for item in texts
        if contrast(item["colour"], item["ground"]) < 4.5 or item["opacity"] < 1
    }
    assert faint == set()
    assert min(item["size"] for item in texts) >= 11


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_stand_out(browser: Browser, full: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.11: parts of charts that carry meaning have a contrast of 3 with the page."""
    browser.open(full, **WIDE, scheme=scheme)
    ground = browser.run("getComputedStyle(document.documentElement).backgroundColor")
    painted = browser.run(
        """[['.chart rect.mark', 'stroke'], ['.chart circle.mark', 'fill'], ['.chart .curve', 'stroke'],
            ['.chart .whisker', 'stroke'], ['.chart .ring', 'stroke'],
            ['.swatch', 'borderTopColor']].flatMap(([what, paint]) =>
             [...document.querySelectorAll(what)].map(item => getComputedStyle(item)).map(style =>
               [what, style[paint], +style.opacity]))"""
    )
    assert len({what for what, _, _ in painted}) == 6 and len({colour for _, colour, _ in painted}) == 3
    for what, colour, opacity in {tuple(item) for item in painted}:
        mixed = [
            opacity * float(ink) + (1 - opacity) * float(paper)
            for ink, paper in zip(re.findall(r"[\d.]+", colour), re.findall(r"[\d.]+", ground), strict=True)
        ]
        assert contrast(f"rgb{tuple(mixed)}", ground) >= 3, (what, colour, opacity)


def test_what_a_screen_reader_is_told(browser: Browser, full: Path) -> None:
    browser.open(full)
    browser.run("document.querySelectorAll('details').forEach(item => item.open = true)")
    told = browser.accessible()
    pictures = [node["name"] for node in told if node["role"] in ("image", "img")]
    assert len(pictures) == 13 + 5 + 1 + 2 + 6  # maps and scale, charts, the filter, partial conversions, corruptions
    assert all(len(name) > 8 for name in pictures)
    assert len(set(pictures)) == len(pictures)
    assert {"main", "navigation", "banner", "table", "figure", "columnheader", "rowheader"} <= {
        node["role"] for node in told
    }
    tables = [node["name"] for node in told if node["role"] == "table"]
    assert all(tables) and len(set(tables)) == len(tables) == 11
    assert browser.run("document.documentElement.lang") == "en"
    # A description says in words what each chart shows.
    described = browser.run(
        "[...document.querySelectorAll('svg.chart')].map(chart => chart.getAttribute('aria-labelledby').split(' ').map("
        "id => document.getElementById(id).textContent.trim()))"
    )
    assert all(len(parts) == 2 and all(parts) for parts in described)
    assert any("85.1% to 92.4%" in description for _, description in described)


def test_structure_of_headings_tables_and_ids(browser: Browser, full: Path) -> None:
    browser.open(full)
    levels = browser.run("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(item => +item.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    bare = browser.run(
        "[...document.querySelectorAll('table')].filter(table => !table.caption || !table.tHead ||"
        " ![...table.tHead.querySelectorAll('th')].every(head => head.scope === 'col' && head.textContent.trim()) ||"
        " ![...table.tBodies[0].rows].every(row => row.querySelector('th[scope=row]')) ||"
        " ![...table.tBodies[0].rows].every(row => row.cells.length === table.tHead.rows[0].cells.length)).length"
    )
    assert bare == 0
    ids = browser.run("[...document.querySelectorAll('[id]')].map(item => item.id)")
    assert len(set(ids)) == len(ids)
    targets = browser.run(
        "[...document.querySelectorAll('a[href]')].map(link => !!document.getElementById(link.hash.slice(1)))"
    )
    assert len(targets) == 12 and all(targets)


def test_maps_have_the_colours_of_the_data(browser: Browser, full: Path) -> None:
    browser.open(full)
    maps = browser.run(MAPS)
    before = measurement().equivariance
    after = measurement(converted=True).equivariance
    assert before and after
    layers = [layer for pair in zip(before.layers[1:], after.layers[1:], strict=True) for layer in pair]
    highest = max(value for layer in layers for row in layer.distances for value in row)
    assert len(maps) == len(layers)
    for shown, layer in zip(maps, layers, strict=True):
        assert layer.name in shown["alt"]
        assert (shown["rows"], shown["columns"]) == layer.stride
        assert shown["across"] == pytest.approx(shown["down"], abs=1) and shown["across"] > 80
        pixels = [tuple(shown["pixels"][index : index + 3]) for index in range(0, len(shown["pixels"]), 4)]
        values = [value for row in layer.distances for value in row]
        assert pixels == [heatmaps.SCALE[round(value / highest * 255)] for value in values]
        assert pixels[values.index(min(values))] != pixels[values.index(max(values))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_screenshots_are_not_blank(
    browser: Browser, full: Path, tmp_path: Path, scheme: str, size: dict[str, Any]
) -> None:
    image = pytest.importorskip("PIL.Image")
    browser.open(full, **size, scheme=scheme)
    (tmp_path / "page.png").write_bytes(data := browser.screenshot())
    picture = image.open(io.BytesIO(data)).convert("L")
    counts = picture.histogram()
    ground = max(range(256), key=counts.__getitem__)
    assert (ground > 200) == (scheme == "light")
    assert picture.height > 3000
    # In every stretch of the page that is as high as a window there is something to see.
    for top in range(0, picture.height - 900, 900):
        part = picture.crop((0, top, picture.width, top + 900)).histogram()
        assert part[ground] < 0.995 * sum(part) and sum(count > 0 for count in part) > 20


def test_prints_with_its_tables_open(browser: Browser, full: Path) -> None:
    browser.open(full, scheme="dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    ground, height = browser.run(
        "[getComputedStyle(document.documentElement).backgroundColor,"
        " document.querySelector('details table').getBoundingClientRect().height]"
    )
    assert luminance(ground) > 0.9, "ink is for text"
    assert height > 50, "what is folded on the screen is printed"


# --- evidence, at the widths of a laptop and of a phone

SIZES = [{"width": 1280, "height": 900}, {"width": 390, "height": 800, "phone": True}]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["1280", "390"])
def test_evidence_fits_and_stands_out(browser: Browser, evident: Path, scheme: str, size: dict[str, Any]) -> None:
    browser.open(evident, **size, scheme=scheme)
    assert browser.complaints == [] and [url for url in browser.requests if not url.startswith("data:")] == [
        evident.as_uri()
    ]
    texts: list[dict[str, Any]] = browser.run(TEXTS)
    faint = {
        (item["text"], round(contrast(item["colour"], item["ground"]), 2))
        for item in texts
        if contrast(item["colour"], item["ground"]) < 4.5 or item["opacity"] < 1
    }
    assert faint == set() and min(item["size"] for item in texts) >= 11
    assert browser.run("document.documentElement.scrollWidth") <= size["width"]
    outside = browser.run(
        "[...document.querySelectorAll('body *')].filter(item => !item.closest('.scroll') && !item.closest('.skip')"
        f" && item.getBoundingClientRect().right > {size['width'] + 1}).map(item => item.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    shown = browser.run(
        "[...document.querySelectorAll('.flips img, img.feature, img.thumb')].map(image => ["
        "image.getBoundingClientRect().width, image.getBoundingClientRect().height])"
    )
    assert len(shown) > 10 and all(min(box) >= 60 for box in shown)
    assert browser.run(
        "[...document.querySelectorAll('img.feature')].every(image => "
        "Math.abs(image.getBoundingClientRect().width - image.getBoundingClientRect().height) < 1.5)"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sites_are_cards_on_a_phone(browser: Browser, evident: Path, scheme: str) -> None:
    """No cell lies beyond the edge, each says what it is, and the screen reader still has a table."""
    browser.open(evident, width=390, height=800, phone=True, scheme=scheme)
    cells = browser.run(
        """[...document.querySelectorAll('table.sites tbody tr')].map(row => [...row.cells].map(cell => {
          const box = cell.getBoundingClientRect(), range = document.createRange();
          range.selectNodeContents(cell);
          const text = range.getBoundingClientRect();
          return [box.left, Math.max(box.right, text.right), box.height,
                  getComputedStyle(cell, '::before').content.replaceAll('"', ''), cell.textContent.trim()];
        }))"""
    )
    headings = browser.run(
        "[...document.querySelectorAll('table.sites thead th')].map(cell => cell.textContent.trim())"
    )
    assert len(cells) == 5 and all(len(row) == len(headings) == 11 for row in cells)
    for row in cells:
        for index, (left, right, height, says, text) in enumerate(row):
            assert left >= 0 and right <= 390 and height > 10 and text
            assert index == 1 or (headings[index].startswith(says) and says), "each cell says which column it is of"
    box = browser.run(
        "(box => [box.scrollWidth, box.clientWidth])(document.querySelector('table.sites').closest('.scroll'))"
    )
    assert box[0] <= box[1]
    told = browser.accessible()
    assert {"Extra bytes kept", "Input → output"} <= {node["name"] for node in told if node["role"] == "columnheader"}
    assert "layer2.0.conv1" in {node["name"] for node in told if node["role"] == "rowheader"}


def test_three_models_fit_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Their changes, and what adapting did, would else stand where nobody looks: beyond the edge."""
    stage = Stage("recalibrate", "moved the statistics of 4 of 7 batch norms", 12.5, 0.012, 0.97)
    record = Adapted("photos", 500, 64, "classes", (Stage("converted", "", 0.0, 0.3, 0.93), stage))
    three = (measurement(), measurement(converted=True), measurement(converted=True, model="adapted.pt"))
    page = tmp_path / "three.html"
    report = Report(three, plan(), adapted=(None, None, record), evidence=evidence(3))
    page.write_text(render(report), encoding="utf-8")
    browser.open(page, width=390, height=800, phone=True)
    boxes = browser.run(
        "['Headline figures', 'Multiply-adds and times, by model', 'Stages of adapting of adapted.pt'].map(name => {"
        "const box = document.querySelector(`.scroll[aria-label='${name}']`);"
        "return [box.scrollWidth, box.clientWidth, box.querySelectorAll('[data-label]').length]})"
    )
    assert all(wide <= room and cells > 5 for wide, room, cells in boxes)


def test_sites_are_a_table_that_fits_a_laptop(browser: Browser, evident: Path) -> None:
    browser.open(evident, width=1280, height=900)
    display, scroll, client = browser.run(
        "(table => [getComputedStyle(table.rows[1]).display, table.closest('.scroll').scrollWidth,"
        " table.closest('.scroll').clientWidth])(document.querySelector('table.sites'))"
    )
    assert display == "table-row" and scroll <= client


def test_tables_that_scroll_on_a_phone_show_it(browser: Browser, evident: Path) -> None:
    """By a shade at the edge where they go on, in the pixels, and it is gone at the end."""
    image = pytest.importorskip("PIL.Image")
    browser.open(evident, width=390, height=800, phone=True)
    place = browser.run(
        """(() => {
          document.querySelectorAll('details').forEach(part => { part.open = true; });
          const box = [...document.querySelectorAll('.scroll')].find(box => box.scrollWidth > box.clientWidth + 40
                                                                       && box.getBoundingClientRect().height > 60);
          box.id = 'looked-at';
          const at = box.getBoundingClientRect();
          return [at.left + scrollX, at.top + scrollY, at.width, at.height];
        })()"""
    )
    edges = []
    for left in (0, 100_000):
        browser.run(f"document.getElementById('looked-at').scrollLeft = {left}")
        picture = image.open(io.BytesIO(browser.screenshot())).convert("L")
        x, y = round(place[0] + place[2]) - 2, round(place[1])
        edges.append([picture.getpixel((x, y + down)) for down in range(4, round(place[3]) - 4)])
    at_start, at_end = (sorted(edge)[len(edge) // 2] for edge in edges)
    assert at_end > 250 and at_start < at_end - 25


def test_lines_of_spectra_and_shifts_are_there(browser: Browser, evident: Path) -> None:
    browser.open(evident, width=1280, height=900)
    count, guides = browser.run(
        "[document.querySelectorAll('[aria-labelledby^=chart-spectra] .curve').length,"
        " document.querySelectorAll('.guide').length]"
    )
    assert count >= 2 * 15 and guides == 1
    colour, ground = browser.run(
        "[getComputedStyle(document.querySelector('.guide')).stroke,"
        " getComputedStyle(document.documentElement).backgroundColor]"
    )
    assert contrast(colour, ground) >= 3


def test_what_a_screen_reader_is_told_of_evidence(browser: Browser, evident: Path) -> None:
    browser.open(evident)
    browser.run("document.querySelectorAll('details').forEach(item => item.open = true)")
    told = browser.accessible()
    pictures = [node["name"] for node in told if node["role"] in ("image", "img")]
    assert all(len(name) > 8 for name in pictures) and len(set(pictures)) == len(pictures)
    tables = [node["name"] for node in told if node["role"] == "table"]
    assert all(tables) and len(set(tables)) == len(tables)


def test_labels_of_evidence_do_not_touch(browser: Browser, evident: Path) -> None:
    for width in (390, 1280):
        test_labels_of_charts_do_not_touch(browser, evident, width)


def test_paper_cuts_no_table(browser: Browser, evident: Path) -> None:
    """A4 between its margins, at 96 dots an inch."""
    browser.open(evident, width=718, height=1000)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("document.documentElement.scrollWidth") <= 718
    beyond = browser.run(
        "[...document.querySelectorAll('table, img, svg')].filter(item => item.getBoundingClientRect().right > 719)"
        ".map(item => item.outerHTML.slice(0, 80))"
    )
    assert beyond == []
