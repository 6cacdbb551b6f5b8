"""Names of files, layers and classes are somebody else's: no terminal may take them for commands, and all can print."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from blurify import cli
from blurify.cli import console, keeping, tables
from blurify.errors import printable

TITLE, RED, BELL = "\x1b]0;mine\x07", "\x1b[31m", "\x07"
NET = f"""
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    body = nn.Sequential()
    for name, layer in (("c{RED!s}", nn.Conv2d(3, 4, 3, padding=1)), ("r", nn.ReLU()), ("p{TITLE!s}", nn.MaxPool2d(2))):
        body.add_module(name, layer)
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
"""


def commands(text: str) -> list[str]:
    return [character for character in text if not character.isprintable() and character not in "\n\t"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net_of_hostile_names.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in (f"a{RED}{BELL}", os.fsdecode(b"b\xff")):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for name in ("1", "<script>alert(1)<"):
            Image.new("RGB", (40, 40), (90, 9, 200)).save(tmp_path / "photos" / folder / f"{name}{TITLE}.png")
    return tmp_path


MODEL = (
    *("python:net_of_hostile_names:net", "--convert", "--size", "24", "--canvas", "32", "--device", "cpu"),
    *("--data", "photos", "--output", "0:classes", "--metrics", "consistency,aliasing"),
)


def test_measure_prints_no_commands(here: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["measure", *MODEL]) == 0
    sys.stdout.flush()
    captured = capfdbinary.readouterr()
    out = captured.out.decode("ascii")
    assert commands(out + captured.err.decode("ascii")) == []
    assert "the 2 class folders (a?[31m?, b?)" in out and "0.p?]0;mine?  maxpool" in out


def test_an_error_says_no_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "photos" / f"a{RED}{BELL}" / f"0{TITLE}.png").write_bytes(b"no picture")
    assert cli.main(["measure", *MODEL]) == 2
    line = capsys.readouterr().err
    assert "0?]0;mine?.png" in line and commands(line) == []


def test_a_page_has_nothing_that_html_forbids(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    assert cli.main(["report", *MODEL, "--no-latency", "-o", "r.html"]) == 0
    page = (here / "r.html").read_text(encoding="utf-8")
    assert commands(page.replace("\u00a0", "").replace("\u202f", "").replace("\u2009", "")) == []
    assert "0.p\ufffd]0;mine\ufffd" in page and "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;" in page


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", shown)
    name = f"evil{TITLE}\u202e\x9b31m\r"
    console.say(name)
    console.print_error(name)
    keeping.tell(name)
    tables.print_table([tables.Column(name)], [[name]])
    with console.working(name):
        pass
    with console.bar(name, name) as watch:
        assert watch is not None
        watch(name, 1, 2)
    text = shown.getvalue()
    assert text.count("evil?]0;mine???31m?") >= 7
    for command in (TITLE, "\x07", "\u202e", "\x9b"):
        assert command not in text


def test_what_is_replaced_and_what_is_not() -> None:
    kept = "é 中 a\tb\n\u00a0\u200d👩"
    assert printable(kept) == kept
    assert printable("".join(map(chr, (0, 8, 11, 27, 31, 127, 128, 159, 0x202A, 0x2069, 0xD800)))) == "?" * 11
