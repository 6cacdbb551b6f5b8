"""A command that is killed, or has no room, leaves the old file or the new one and nothing else: a small sample.

All of it is `python benchmarks/kills.py`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kills import SUFFIXES, Runs

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("kills"), "timm/resnet18")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kills_leave_the_old_file_or_the_new_one(runs: Runs, suffix: str) -> None:
    for when in ("writing", "writing", "anywhere"):
        asked = runs.killed(signal.SIGTERM, when, suffix)
        assert asked.good, asked
    found = runs.killed(signal.SIGKILL, "writing", suffix)
    assert found.good, found


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disks_leave_the_old_file(runs: Runs, suffix: str) -> None:
    for case in (runs.limited(suffix), runs.on_small_disk(suffix)):
        assert case.good, case
