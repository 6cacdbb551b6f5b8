"""`--output`, and models of every kind of output, at the command line."""

from __future__ import annotations

import json
import math
import struct
import wave
from pathlib import Path

import pytest
from PIL import Image

from blurify.metrics import Measurement
from blurify.metrics.files import read_measurements
from tests.command_line import error_of, out_of

NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, make, sizes=(4, 2)):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.a, self.b = (nn.Linear(8, size) for size in sizes)
        self.make = make

    def forward(self, x):
        features = self.trunk(x)
        return self.make(self.a(features), self.b(features), features)


class Finder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 1, 3, 2, 1)

    def forward(self, x):
        self.first(x)
        box = torch.tensor([[8.0, 8.0, 20.0, 20.0]])
        return [{"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])} for _ in x]


def rnet(): return Net(lambda a, b, f: (a, b.softmax(1)))
def heads(): return Net(lambda a, b, f: (a, b))
def features(): return Net(lambda a, b, f: f)
def three(): return Net(lambda a, b, f: (a, b.softmax(1)), (4, 3))
def finder(): return Finder()
def frames():
    return nn.Sequential(
        nn.Conv1d(1, 8, 9, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    )
'''  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with networks, six pictures of noise, and two tones."""
    import torch

    (tmp_path / "kinds_of_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(6):
        noise = torch.rand(9, 9, 3, generator=torch.Generator().manual_seed(index))
        Image.fromarray((255 * noise).byte().numpy()).resize((40, 40)).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "tones").mkdir()
    for pitch in (220, 440):
        with wave.open(str(tmp_path / "tones" / f"{pitch}.wav"), "wb") as opened:
            opened.setparams((1, 2, 8000, 0, "NONE", ""))
            values = [int(20000 * math.sin(2 * math.pi * pitch * at / 8000)) for at in range(2000)]
            opened.writeframes(struct.pack(f"<{len(values)}h", *values))
    return tmp_path


PICTURES = ("--data", "photos", "--size", "32", "--device", "cpu", "--metrics", "consistency")
SOUND = ("--data", "tones", "--size", "256", "--device", "cpu")


def test_what_was_taken_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = out_of(capsys, "measure", "python:kinds_of_nets:rnet", *PICTURES)
    line = "output 1 (2) taken for classes: its values are probabilities, they sum to 1; left aside: 0 (4)"
    assert line in out.splitlines() and "consistency: same answer in two random crops" in out
    data = json.loads(out_of(capsys, "measure", "python:kinds_of_nets:rnet", *PICTURES, "--json"))
    taken = data["measurements"][0]["output"]
    assert (taken["kind"], taken["name"], taken["shape"], taken["others"]) == ("classes", "1", [2], ["0 (4)"])
    out = out_of(capsys, "measure", "python:kinds_of_nets:features", *PICTURES)
    assert "output (8) taken for an embedding: it is pooled features" in out
    for row in ("embedding: cosine drift between two random crops", "embedding: own picture is nearest, shift by one"):
        assert row in out
    assert "same answer" not in out


def test_an_entry_is_chosen(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "measure", "python:kinds_of_nets:heads", *PICTURES)
    assert "0 (4: classes or embedding), 1 (2: classes or embedding); say which entry" in line
    out = out_of(capsys, "measure", "python:kinds_of_nets:heads", *PICTURES, "--output", "1")
    assert "output 1 (2) taken for classes: chosen, and the last layer of b is linear" in out
    out = out_of(capsys, "measure", "python:kinds_of_nets:heads", *PICTURES, "--output", "0:embedding", "--convert")
    assert "output 0 (4) taken for an embedding: chosen" in out and "difference" in out
    for wanted, message in (("7", "no entry '7'"), ("0:box", "'box' is no kind of output"), ("", "--output is empty")):
        assert message in error_of(capsys, "measure", "python:kinds_of_nets:heads", *PICTURES, "--output", wanted)


def test_a_file_may_still_be_named_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "python:kinds_of_nets:rnet"
    out_of(capsys, "measure", model, *PICTURES, "--output", "a.json")
    out_of(capsys, "measure", model, *PICTURES, "-o", "b.json", "--output", "1")
    (one,), (other,) = read_measurements("a.json"), read_measurements("b.json")
    assert isinstance(one, Measurement) and one.consistency == other.consistency
    assert "both name a file" in error_of(capsys, "measure", model, *PICTURES, "-o", "c.json", "--output", "d.json")
    assert "give -o FILE" in error_of(capsys, "report", "a.json")
    out_of(capsys, "report", "a.json", "--output", "a.html")
    assert (here / "a.html").stat().st_size > 1000
    assert "--output does not go with a file of measurements" in error_of(
        capsys, "report", "a.json", "-o", "b.html", "--output", "1"
    )


@pytest.mark.parametrize("kind", ["1", "0:embedding", "1:dense"])
def test_a_report_of_every_kind(kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "python:kinds_of_nets:heads"
    out_of(capsys, "report", model, *PICTURES, "--output", kind, "--convert", "-o", "r.html")
    assert "<html" in (here / "r.html").read_text()


def test_detections(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A box that stays in its place, whatever the picture does: after one pixel it overlaps itself by 11 of 13 rows."""
    data = json.loads(out_of(capsys, "measure", "python:kinds_of_nets:finder", *PICTURES, "--json"))
    (found,) = data["measurements"]
    assert found["output"]["kind"] == "detections" and found["consistency"] is None
    assert found["detections"]["pixel_overlap"]["value"] == pytest.approx(11 / 13)
    out = out_of(capsys, "measure", "python:kinds_of_nets:finder", *PICTURES)
    assert "output taken for detections" in out and "shift by one pixel: boxes matched" in out
    # Two of them, with fewer pictures in the last batch than in the others.
    out = out_of(capsys, "measure", *["python:kinds_of_nets:finder"] * 2, *PICTURES, "--batch-size", "4")
    assert "agreement of python:kinds_of_nets:finder is not measured" in out and "a list of boxes for each" in out
    line = error_of(capsys, "measure", "python:kinds_of_nets:finder", *PICTURES, "--least-score", "0.95")
    assert "no box of a score of 0.95" in line
    assert "--least-score 2 is no score" in error_of(
        capsys, "measure", "python:kinds_of_nets:finder", *PICTURES, "--least-score", "2"
    )


def test_two_models_of_different_kinds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ("python:kinds_of_nets:rnet", "python:kinds_of_nets:features")
    assert "gives classes and python:kinds_of_nets:features embedding" in error_of(capsys, "measure", *pair, *PICTURES)
    pair = ("python:kinds_of_nets:rnet", "python:kinds_of_nets:three")
    assert "tells 2 classes apart and python:kinds_of_nets:three 3" in error_of(capsys, "measure", *pair, *PICTURES)


def test_signals(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "python:kinds_of_nets:frames"
    out = out_of(capsys, "measure", model, *SOUND, "--convert", "--rate", "8000")
    assert "12 signals (tones), 256 samples from 293, seed 0" in out
    assert "consistency: same answer in two random windows" in out and "shift by one sample: other answer" in out
    assert "aliasing: share of energy" in out and "picture" not in out and "crop" not in out
    out = out_of(capsys, "measure", model, *SOUND, "--images", "4", "--output", "embedding", "--standardise")
    assert "4 signals" in out and "nobody says what the model takes" in out and "own signal is nearest" in out
    (alone,) = json.loads(out_of(capsys, "measure", model, "--data", "tones/220.wav", *SOUND[2:], "--json"))[
        "measurements"
    ]
    assert alone["images"] == 6 and alone["settings"]["signal"] == {
        "layout": "N,C,T", "rate": None, "standardised": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frames", *SOUND, "--rate", "16000"], "has 8000 samples a second, the model takes 16000"),
        (["frames", *SOUND, "--rate", "0"], "--rate 0 is no number"),
        (["frames", *SOUND, "--labels"], "--labels can't be had: no class folders"),
        (["frames", *SOUND, "--metrics", "stability"], "leave stability out for signals"),
        (["frames", *SOUND[:2], "--size", "5000"], "no signal in tones is as long as the canvas of 5714 samples"),
        (["frames", "--data", "photos"], "not pictures"),
        (["rnet", *PICTURES, "--rate", "8000"], "--rate is for signals"),
        (["rnet", *PICTURES, "--standardise"], "--standardise is for signals"),
        (["rnet", *SOUND], "takes no signals of 256 samples"),
    ],
)
def test_errors(arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *more = arguments
    assert message in error_of(capsys, "measure", f"python:kinds_of_nets:{name}", *more)
