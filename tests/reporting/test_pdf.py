"""The page as a PDF, by the browser that there is; and one clear line where there is none."""

from __future__ import annotations

import re
import subprocess
import zlib
from pathlib import Path

import pytest

from blurify import cli
from blurify.errors import BlurifyError
from blurify.metrics.files import Context, write_measurements
from blurify.reporting import pdf
from tests.browser import find_browser
from tests.report_data import evidence, measurement, plan


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "measured.json"
    both = measurement(), measurement(converted=True)
    return write_measurements(path, both, context=Context(plan(), evidence=evidence()))


def test_the_command_prints_a_pdf(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_browser()  # skips where there is none
    out = tmp_path / "report.pdf"
    assert cli.main(["report", str(measured), "-o", str(out)]) == 0, capsys.readouterr().err
    data = out.read_bytes()
    assert data.startswith(b"%PDF") and b"%%EOF" in data[-64:]
    assert len(re.findall(rb"/Type\s*/Page\b", data)) >= 5
    # The pictures are in it, and what is folded on the screen takes room on paper.
    assert data.count(b"/Subtype /Image") >= 4 and len(streams(data)) > 10
    assert cli.main(["report", str(measured), "-o", str(out)]) == 2 and "exists" in capsys.readouterr().err


def streams(data: bytes) -> list[bytes]:
    found = []
    for part in re.findall(rb"stream\r?\n(.*?)endstream", data, re.DOTALL):
        try:
            found.append(zlib.decompress(part))
        except zlib.error:
            continue
    return found


def test_without_a_browser_one_line_says_what_to_do(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(pdf.CHOSEN, "no-such-browser")
    out = tmp_path / "report.pdf"
    assert cli.main(["report", str(measured), "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no no-such-browser" in said and "-o report.html" in said and not out.exists()
    monkeypatch.delenv(pdf.CHOSEN)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BlurifyError, match="no Chromium or Chrome"):
        pdf.find_browser()


def test_a_browser_that_fails_leaves_no_file(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "browser"
    bad.write_text("#!/bin/sh\necho it is out of order >&2\nexit 7\n")
    bad.chmod(0o755)
    monkeypatch.setenv(pdf.CHOSEN, str(bad))
    out = tmp_path / "report.pdf"
    assert cli.main(["report", str(measured), "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert "did not print the page (it is out of order)" in said and said.count("\n") == 1 and not out.exists()

    def slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("browser", 120)

    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(BlurifyError, match="did not print the page"):
        pdf.printed(b"<p>")
