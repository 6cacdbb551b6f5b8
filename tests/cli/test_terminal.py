"""What the command line looks like at 80 and 120 columns and in a pipe, against what it looked like when read by us.

After a change that is meant: BLURIFY_SNAPSHOTS=write pytest tests/cli/test_terminal.py, then read the difference.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SNAPSHOTS = HERE / "snapshots"
WIDTHS = (80, 120)


@pytest.fixture(scope="module")
def on_terminal(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What a terminal of each width shows: of a spinner, what is left of it at the end."""
    ours, theirs = pty.openpty()
    folder = tmp_path_factory.mktemp("terminal")
    child = _start(folder, [str(width) for width in WIDTHS], theirs)
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so where the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    assert child.wait(timeout=300) == 0
    assert (folder / "errors").read_text() == ""
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(pieces).decode()).replace("\r\n", "\n")
    parts = re.split(r"^##### (\d+)\n", shown, flags=re.MULTILINE)
    return {int(width): text for width, text in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.fixture(scope="module")
def piped(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pipe")
    child = _start(folder, ["pipe"], subprocess.PIPE)
    shown, _ = child.communicate(timeout=300)
    assert child.returncode == 0
    assert (folder / "errors").read_text() == ""
    return shown.decode().partition("\n")[2]


def _start(folder: Path, widths: list[str], out: int) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, HERE / "on_a_terminal.py", folder, *widths],
        stdin=subprocess.DEVNULL, stdout=out, stderr=(folder / "errors").open("wb"), cwd=folder,
        env={**environment, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip


def _same_as_before(name: str, shown: str) -> None:
    """Compare with the file, leaving out what differs from one machine to the next: folders, and rounding errors."""
    shown = re.sub(r"(\S*/)?(?:terminal|pipe)\d+/", "", shown)
    shown = re.sub(r"relative\s+error\s+\S+", "relative error E", shown)
    shown = re.sub(r"/\S*/on_a_terminal\.py", "on_a_terminal.py", shown)
    shown = "\n".join(line.rstrip() for line in shown.split("\n"))
    path = SNAPSHOTS / name
    if os.environ.get("BLURIFY_SNAPSHOTS") == "write":
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", WIDTHS)
def test_terminal(on_terminal: dict[int, str], width: int) -> None:
    _same_as_before(f"{width}.txt", on_terminal[width])


def test_pipe(piped: str) -> None:
    _same_as_before("pipe.txt", piped)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_longer_than_the_terminal(on_terminal: dict[int, str], width: int) -> None:
    sections = re.split(r"^=== ", on_terminal[width], flags=re.MULTILINE)
    assert len(sections) == 12
    for section in sections:
        if "--wide" not in section.partition("\n")[0]:
            lines = [line for line in section.split("\n") if "# " not in line]  # commands are to be copied whole
            assert max(map(len, lines)) <= width


def test_wide_shows_all_columns_on_one_line_each(on_terminal: dict[int, str]) -> None:
    section = next(part for part in on_terminal[80].split("=== ") if "--wide" in part.partition("\n")[0])
    row = next(line for line in section.split("\n") if line.startswith("backbone."))
    assert row.split()[1:4] == ["blur", "conv", "3/2"] and "8x8x8->8x4x4" in row and row.endswith("blur before it")


def test_a_name_is_never_broken_where_it_has_room(on_terminal: dict[int, str], piped: str) -> None:
    name = "backbone.a_feature_extractor_with_a_long_name.0.conv_depthwise"
    for shown in (*on_terminal.values(), piped):
        assert shown.count(name) >= 4
