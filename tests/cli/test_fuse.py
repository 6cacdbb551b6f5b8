"""`blurify fuse`: a program that computes what the converted model does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import blurify
from blurify import cli


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuse") / "aa.pt"
    arguments = ["convert", "timm/test_resnet", "--random", "--no-verify", "--input-shape", "1,3,64,64", "-o"]
    assert cli.main([*arguments, str(path)]) == 0
    return path


def test_a_program_of_the_same_function(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = tmp_path / "fused.pt2"
    assert cli.main(["fuse", str(converted), "-o", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fused"]["norms"] and data["fused"]["error"] < 1e-4
    model, program = blurify.load(converted), torch.export.load(out).module()
    x = torch.randn(3, 3, 70, 64)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
    # it is known for what it is
    assert cli.main(["convert", str(out), "-o", str(tmp_path / "again.pt2")]) == 2
    assert "blurred twice" in capsys.readouterr().err
    assert cli.main(["fuse", str(converted), "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main(["fuse", str(converted), "-o", str(out), "--force"]) == 0
    said = capsys.readouterr().out
    assert "folded into the convolution before it" in said and "multiply-adds" in said and "compared" in said


def test_bad_input_is_one_line(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["fuse", str(converted), "-o", str(tmp_path / "fused.pt")]) == 2
    assert "name a .pt2 or .onnx" in capsys.readouterr().err
    assert cli.main(["fuse", "timm/test_resnet", "-o", str(tmp_path / "fused.pt2")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())
