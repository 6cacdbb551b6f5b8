"""What the command line says of positions: the column, where branches are apart, the recipe that it suggests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import blurify
from tests.command_line import out_of


class Skips(nn.Module):
    """A U-Net of one level, and a second skip from the image's own grid."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x).relu()
        return self.out(torch.cat([self.up(self.b(self.pool(a)).relu()), a], 1))


def classes() -> nn.Module:
    """A factory of a classifier: nobody asks where its scores are."""
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers)


SKIPS, CLASSES = f"python:{__name__}:Skips", f"python:{__name__}:classes"
SHAPE = ("--input-shape", "1,3,32,48")


def test_inspect_shows_the_drift_and_where_branches_are_apart(capsys: pytest.CaptureFixture[str]) -> None:
    lines = out_of(capsys, "inspect", SKIPS, *SHAPE).splitlines()
    assert "drift" in lines[1].split() and "0.5" in lines[2].split()
    assert "drift: features end up to 0.5 input pixels from where the original has them" in lines
    assert "drift: branches that meet are apart at one place, :cat (0 and 0.5 input pixels)" in lines
    (line,) = [line for line in lines if "--recipe aligned" in line]
    assert "move by up to 0.5 input pixels" in line


def test_nothing_is_suggested_where_nothing_drifts_or_nobody_cares(capsys: pytest.CaptureFixture[str]) -> None:
    aligned = out_of(capsys, "inspect", SKIPS, *SHAPE, "--recipe", "aligned")
    assert "drift: none" in aligned and "aligned keeps everything in place" not in aligned and "drift  " not in aligned
    scores = out_of(capsys, "inspect", CLASSES, *SHAPE)
    assert "drift: features end up to 0.5" in scores and "--recipe aligned" not in scores


def test_inspect_json_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(out_of(capsys, "inspect", SKIPS, *SHAPE, "--json"))
    assert data["sites"][0]["drift"] == [[0.5, 0.5]] * 2
    assert data["alignment"]["outputs"] == [[[0.0, 0.5]] * 2] and data["totals"]["drift"] == 0.5
    assert data["alignment"]["meetings"] == [{"place": ":cat", "drifts": [[[0.0, 0.0]] * 2, [[0.5, 0.5]] * 2]}]
    assert "--recipe aligned" in data["suggestion"]


def test_convert_suggests_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = out_of(capsys, "convert", SKIPS, *SHAPE, "-o", tmp_path / "a.pt")
    assert sum("--recipe aligned" in line for line in out.splitlines()) == 1
    out = out_of(capsys, "convert", SKIPS, *SHAPE, "-o", tmp_path / "b.pt", "--recipe", "aligned")
    assert "--recipe aligned" not in out and "audit: tracing the result finds 0 of the 1 converted" in out
    plan = blurify.plan_of(blurify.load(tmp_path / "b.pt", model=Skips()))
    assert plan is not None and plan.recipe.aligned and plan.alignment is not None and plan.alignment.largest == 0
