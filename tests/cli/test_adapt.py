"""`blurify adapt` as a program: a killed run goes on to the same bits; files, refusals and notes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blurify
from blurify import cli
from tests import warm

ARCH = "timm/test_resnet?num_classes=10"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for index in range(40):
        coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 72), Image.Resampling.BICUBIC).save(found / f"{index:02d}.png")
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    import timm

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), path)
    return path


def _arguments(weights: Path, folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "adapt", str(weights), "--arch", ARCH, "--data", str(folder), "-o", str(out), "--size", "64", "--device", "cpu",
        "--crops", "60", "--batch-size", "2", *more,
    ]  # fmt: skip


# The command line, which is killed when it asks for the so manieth time whether its state is to be kept. That is asked
# at every step, and done at every tenth.
KILLED = """
import os, signal, sys
from blurify.cli import main
from blurify.tuning import keeping
left, due = int(sys.argv[1]), keeping.Kept.due
def asked(kept, step):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return due(kept, step)
keeping.Kept.due = asked
keeping.Kept.__init__.__defaults__ = (None, 1e9, 10)
sys.exit(main(sys.argv[2:]))
"""


def test_killed_and_started_again_it_ends_at_the_same_bits(weights, folder, tmp_path):
    more = ("--steps", "60", "--stages", "reconstruct,refine,distil")
    assert cli.main(_arguments(weights, folder, tmp_path / "whole.safetensors", *more)) == 0
    out = tmp_path / "killed.safetensors"
    state = tmp_path / ".killed.safetensors.adapting"

    def run(left: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, left, *_arguments(weights, folder, out, *more)]
        return warm.run(command, capture_output=True, text=True)

    kept = []
    for left in (30, 20):  # in the third stage before it kept anything, and behind that
        killed = run(left)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        kept.append(torch.load(state)["stage"])
    assert kept == ["refine", "distil"] and not out.exists()
    again = run(0)
    assert again.returncode == 0, again.stderr
    assert "going on with a run that was stopped" in again.stdout
    assert not state.exists()
    whole, resumed = (blurify.load(path) for path in (tmp_path / "whole.safetensors", out))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    stages = [[stage.name for stage in blurify.adapted_of(model).stages] for model in (whole, resumed)]
    assert stages[0] == stages[1] == ["converted", "reconstruct", "refine", "distil"]


def test_it_says_what_each_stage_did_and_the_file_is_a_converted_model(weights, folder, tmp_path, capsys):
    out, log = tmp_path / "adapted.pt", tmp_path / "log.jsonl"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jpg").write_bytes(b"no picture")
    for path in sorted(folder.iterdir())[:12]:
        (tmp_path / "more" / path.name).write_bytes(path.read_bytes())
    arguments = _arguments(weights, tmp_path / "more", out, "--steps", "5", "--log", str(log))
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for word in (
        "converted:",
        "recalibrate:",
        "reconstruct:",
        "refine:",
        "distil:",
        "same answer on",
        "a.jpg",
        "wrote",
    ):
        assert word in text
    model = blurify.load(out)
    assert blurify.check(model)
    assert blurify.plan_of(model).converted
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events[0] == "start" and events[-1] == "end" and events.count("step") == 5
    assert cli.main(arguments) == 2  # the file is there
    assert "--force" in capsys.readouterr().err
    assert cli.main([*arguments, "--force", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert next(stage["name"] for stage in found["adapted"]["stages"]) == "converted"


def test_a_converted_file_is_adapted_and_an_adapted_one_refused(weights, folder, tmp_path, capsys):
    converted, once = tmp_path / "converted.pt", tmp_path / "once.pt"
    assert cli.main(["convert", str(weights), "--arch", ARCH, "-o", str(converted), "--input-shape", "1,3,64,64"]) == 0
    arguments = ["--data", str(folder), "--stages", "recalibrate", "--size", "64", "--device", "cpu"]
    assert cli.main(["adapt", str(converted), *arguments, "-o", str(once)]) == 0
    capsys.readouterr()
    assert cli.main(["adapt", str(once), *arguments, "-o", str(tmp_path / "twice.pt")]) == 2
    assert "adapted already" in capsys.readouterr().err
    assert cli.main(["adapt", str(converted), *arguments, "-o", str(tmp_path / "x.pt"), "--filter-size", "3"]) == 2
    assert "converted already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--stages", "distill"), "choose from"),
        (("--minutes", "0"), "minutes"),
        (("--steps", "0"), "steps"),
        (("--batch-size", "0"), "at least 1"),
        (("--outputs", "logits"), "classes or values"),
        (("--size", "64", "--mean", "x"), "--mean"),
        (("--data", "nowhere"), "no folder"),
        (("--precision", "fp8", "--steps", "1"), "precision"),
    ],
)
def test_bad_usage_is_one_line(weights, folder, tmp_path, capsys, wrong, said):
    out = tmp_path / "out.pt"
    assert cli.main([*_arguments(weights, folder, out), *wrong]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
