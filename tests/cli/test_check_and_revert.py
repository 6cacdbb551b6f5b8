"""`blurify check` and `blurify revert`: what they print and write; the library's part has its own tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import blurify
from blurify import cli
from blurify.cli import console
from blurify.files import checkpoints
from blurify.files.opening import open_model

NAMED = "timm/test_resnet"


@dataclass(frozen=True)
class Found:
    """What `blurify.check` returns, as far as the command knows it."""

    problems: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        return list(self.problems) or ["the plan is in force: 4 sites"]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, stride=2))


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(console.TRACEBACK, raising=False)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A converted model that exists as a pickled module only."""
    path = tmp_path / "whole.pt"
    checkpoints.save(blurify.convert(net(), example_inputs=torch.zeros(1, 3, 32, 32)), path)
    return path


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A converted model that its name tells how to build."""
    path = tmp_path / "named.safetensors"
    loaded = open_model(NAMED, pretrained=False)
    checkpoints.save(blurify.convert(loaded.model), path, source=loaded.source)
    return path


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: ")
    return said.err


@pytest.mark.parametrize("problems", [(), ("pool: its stride is 2, not 1", "down: there is no blur")])
def test_check_says_what_the_library_finds(
    problems: tuple[str, ...], named: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[nn.Module] = []
    monkeypatch.setattr(blurify, "check", lambda model: seen.append(model) or Found(problems), raising=False)
    code = 1 if problems else 0
    assert cli.main(["check", str(named)]) == code
    said = capsys.readouterr()
    assert said.err == "" and said.out.splitlines() == Found(problems).lines()
    assert cli.main(["check", str(named), "--json"]) == code
    data = json.loads(capsys.readouterr().out)
    assert data == {"in_force": not problems, "problems": list(problems), "lines": Found(problems).lines()}
    assert all(blurify.plan_of(model) is not None for model in seen) and len(seen) == 2


def test_revert_writes_a_pickled_original(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(blurify, "revert", lambda model: net(), raising=False)
    out = tmp_path / "original.pt"
    assert cli.main(["revert", str(whole), "-o", str(out), "--trust"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {out} (") and "whole module" in said
    again = torch.load(out, weights_only=False)
    assert type(again) is nn.Sequential and blurify.plan_of(again) is None
    assert torch.equal(again[0].weight, net()[0].weight)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.pt", "original.pt"}  # nothing half-written


def test_revert_writes_weights_where_a_name_tells_the_rest(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = open_model(NAMED, pretrained=False).model
    monkeypatch.setattr(blurify, "revert", lambda model: original, raising=False)
    out = tmp_path / "original.pt"
    assert cli.main(["revert", str(named), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "state_dict" in said and f"--arch {NAMED}" in said
    tensors = torch.load(out, weights_only=True)
    assert list(tensors) == list(original.state_dict())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in original.state_dict().items())
    before = out.read_bytes()
    assert f"{out} exists: add --force" in failure(capsys, "revert", named, "-o", out)
    assert out.read_bytes() == before
    assert cli.main(["revert", str(named), "-o", str(out), "--force", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == {
        "file": {"path": str(out), "bytes": out.stat().st_size, "holds": "state_dict"}, "arch": NAMED, "rest": None
    }  # fmt: skip


def test_revert_into_safetensors(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "original.safetensors"
    assert cli.main(["revert", str(named), "-o", str(out)]) == 0
    assert "state_dict" in capsys.readouterr().out
    expected = blurify.revert(blurify.load(named)).state_dict()
    found = safetensors.torch.load_file(out)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_revert_carries_over_what_a_training_checkpoint_holds(tmp_path: Path) -> None:
    model = open_model(NAMED, pretrained=False).model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, converted, back = (tmp_path / name for name in ("first.pt", "converted.pt", "back.pt"))
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7}, first)
    assert cli.main(["convert", str(first), "--arch", NAMED, "-o", str(converted)]) == 0
    assert cli.main(["revert", str(converted), "-o", str(back)]) == 0
    there, here = torch.load(first, weights_only=True), torch.load(back, weights_only=True)
    assert here.keys() == there.keys() and here["epoch"] == 7 and here["optimizer"] == there["optimizer"]
    assert all(torch.equal(here["state_dict"][name], value) for name, value in there["state_dict"].items())


@pytest.mark.parametrize("name", ["out/", "out.h5", "out.npz"])
def test_revert_writes_no_other_format_under_its_ending(
    name: str, named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert failure(capsys, "revert", named, "-o", f"{tmp_path}/{name}")
    assert sorted(tmp_path.iterdir()) == before


def test_revert_leaves_nothing_of_what_cannot_be_pickled(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = net()
    odd.way = lambda x: x
    monkeypatch.setattr(blurify, "revert", lambda model: odd, raising=False)
    assert "can't be pickled" in failure(capsys, "revert", whole, "-o", tmp_path / "original.pt", "--trust")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.pt"]


def test_what_is_no_converted_model(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain.pt"
    torch.save(open_model(NAMED, pretrained=False).model.state_dict(), plain)
    out = tmp_path / "out.pt"
    for command in (["check"], ["revert", "-o", out]):
        assert "carries no plan" in failure(capsys, *command, plain, "--arch", NAMED)
        assert "none.pt" in failure(capsys, *command, tmp_path / "none.pt")
    assert not out.exists()


def test_check_of_a_file_that_was_changed_after_its_conversion(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library's own answer, for a pool that somebody put back."""
    model = blurify.load(whole)
    model[2] = nn.MaxPool2d(2)
    torch.save(model, tmp_path / "changed.pt")
    assert cli.main(["check", str(tmp_path / "changed.pt")]) == 1
    assert "the pool '2' was replaced" in capsys.readouterr().out
    assert cli.main(["check", str(whole)]) == 0
    assert "all 2 blurs" in capsys.readouterr().out
