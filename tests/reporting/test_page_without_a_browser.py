"""The page as far as no browser is needed to judge it: valid structure, names for all that shows, enough contrast.

What these say of rules the tests in test_report_page.py say of pixels, where there is a browser.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from blurify.reporting import Report, render
from blurify.reporting.page import TEMPLATES
from tests.report_data import measurement, plan, ranking

VOID = {"meta", "link", "br", "img", "line", "rect", "circle"}
# What may stand in a paragraph: anything else would end it there, whatever the closing tag says.
PHRASING = {"bdi", "br", "code", "i", "img", "small", "span", "strong"}
HOLDS = {
    "table": {"caption", "thead", "tbody"}, "thead": {"tr"}, "tbody": {"tr"}, "tr": {"th", "td"}, "ul": {"li"},
    "dl": {"dt", "dd"}, "p": PHRASING, "h1": PHRASING, "h2": PHRASING, "h3": PHRASING, "h4": PHRASING,
    "summary": PHRASING,
}  # fmt: skip
TEXT, QUIET_MARKS = 4.5, 3.0  # WCAG 2.2: 1.4.3 and 1.4.11


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Element] = field(default_factory=list)
    own: str = ""

    def all(self, *tags: str) -> Iterator[Element]:
        """The elements below of these tags, in order."""
        for child in self.children:
            if child.tag in tags:
                yield child
            yield from child.all(*tags)

    @property
    def text(self) -> str:
        return " ".join((self.own + " " + " ".join(child.text for child in self.children)).split())


class Tree(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open = [Element("", {})]
        self.feed(text)
        assert len(self.open) == 1, "something is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.open[-1].own += data


@pytest.fixture(scope="module", params=["pair", "alone"])
def page(request: pytest.FixtureRequest) -> Element:
    both = measurement(), measurement(converted=True)
    shown = both if request.param == "pair" else both[:1]
    return Tree(render(Report(shown, plan(), "blurify measure a b", ranking=ranking()))).open[0]


def test_elements_stand_where_they_may(page: Element) -> None:
    for parent in page.all(*HOLDS):
        strangers = {child.tag for child in parent.children} - HOLDS[parent.tag]
        assert not strangers, f"<{parent.tag}> holds {strangers}"
    assert [child.tag for child in page.children] == ["html"]
    (html,) = page.children
    assert html.attributes["lang"] == "en" and [child.tag for child in html.children] == ["head", "body"]


def test_tables_have_captions_and_headings_and_no_ragged_rows(page: Element) -> None:
    captions = []
    for table in page.all("table"):
        caption, head, body = table.children
        captions.append(caption.text)
        headings = list(head.all("th"))
        assert all(heading.attributes.get("scope") == "col" and heading.text for heading in headings)
        for row in body.children:
            assert len(row.children) == len(headings), row.text
            assert any(cell.attributes.get("scope") == "row" for cell in row.children)
    assert len(captions) >= 7 and all(captions) and len(set(captions)) == len(captions)


def test_names_lead_somewhere_and_are_said_once(page: Element) -> None:
    everything = list(page.all(*{element.tag for element in _walk(page)}))
    ids = [element.attributes["id"] for element in everything if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in everything:
        for name in ("aria-labelledby", "aria-describedby"):
            for target in (element.attributes.get(name) or "").split():
                assert target in ids
        if element.tag == "a":
            href = element.attributes["href"] or ""
            assert href.startswith("#") and href[1:] in ids
    levels = [int(heading.tag[1]) for heading in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_pictures_say_what_they_show(page: Element) -> None:
    said = [image.attributes["alt"] or "" for image in page.all("img")]
    for chart in page.all("svg"):
        assert chart.attributes["role"] == "img"
        title, description = chart.children[:2]
        assert (title.tag, description.tag) == ("title", "desc") and description.text
        said.append(title.text)
    assert len(said) > 10 and all(len(words) > 8 for words in said) and len(set(said)) == len(said)
    for box in page.all("div"):
        if box.attributes.get("class") == "scroll":
            assert box.attributes["tabindex"] == "0" and box.attributes["aria-label"]


def _walk(element: Element) -> Iterator[Element]:
    for child in element.children:
        yield child
        yield from _walk(child)


# --- colours, by the style sheet

STYLE = (TEMPLATES / "style.css").read_text(encoding="utf-8")


def colours(scheme: str) -> dict[str, tuple[float, float, float]]:
    """The named colours of a scheme, 0..1."""
    light, dark = re.findall(r":root\s*{([^}]*)}", STYLE)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))
    return {name: tuple(int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)) for name, text in found.items()}


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Of two colours (WCAG 2.2)."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_wcags() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0x77 / 255,) * 3, (1, 1, 1)) == pytest.approx(4.48, abs=0.005)  # the known near miss


def test_both_schemes_name_the_same_colours() -> None:
    assert colours("light").keys() == colours("dark").keys()
    light, dark = re.findall(r":root\s*{([^}]*)}", STYLE)
    assert set(re.findall(r"--[\w-]+(?=:)", light)) == set(re.findall(r"--[\w-]+(?=:)", dark))
    rest = re.sub(r":root\s*{[^}]*}", "", STYLE)
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(|hsla?\(", rest), "a colour that has no name is in one scheme only"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_by_its_rules(scheme: str) -> None:
    named = colours(scheme)
    rest = re.sub(r":root\s*{[^}]*}", "", STYLE)
    inks = set(re.findall(r"(?:[;{\s])(?:color|fill): var\(--([\w-]+)\)", rest))
    grounds = set(re.findall(r"background(?:-color)?: var\(--([\w-]+)\)", rest))
    assert {"text", "quiet", "link", "good", "bad", "s0", "s1", "s2"} <= inks and grounds == {"ground", "raised"}
    faint = {
        (ink, ground): round(contrast(named[ink], named[ground]), 2)
        for ink, ground in itertools.product(inks - {"ground"}, grounds)
        if contrast(named[ink], named[ground]) < TEXT
    }
    assert faint == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_of_charts_stand_out_by_their_rules(scheme: str) -> None:
    named = colours(scheme)
    opacities = [float(number) for number in re.findall(r"opacity: ([\d.]+)", STYLE)]
    assert opacities and min(opacities) < 1
    for series in ("s0", "s1", "s2"):
        for opacity in (*opacities, 1.0):
            pairs = zip(named[series], named["ground"], strict=True)
            mixed = tuple(opacity * ink + (1 - opacity) * paper for ink, paper in pairs)
            assert contrast(mixed, named["ground"]) >= QUIET_MARKS
