"""What `convert` and the others make of a file: published weights, found architectures, classes of the user's own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import timm
import torch

import blurify
from blurify.files import checkpoints
from tests.command_line import error_of, out_of

SHAPE = ["--input-shape", "1,3,64,64"]


@pytest.fixture
def published(tmp_path: Path) -> tuple[str, torch.nn.Module]:
    """A published anti-aliased ResNet-18 of 3 taps in a file, as such files are, and as its authors build it."""
    aliased = pytest.importorskip("antialiased_cnns")
    torch.manual_seed(0)
    model = aliased.resnet18(filter_size=3).eval()
    path = tmp_path / "resnet18_lpf3.pth.tar"
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, path
    )
    return str(path), model


ARCH = ["--arch", "torchvision/resnet18"]


def test_published_weights_are_converted_as_they_were_trained(
    published: tuple[str, torch.nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, theirs = published
    out = tmp_path / "aa.safetensors"
    said = out_of(capsys, "convert", path, *ARCH, "-o", out, *SHAPE)
    assert "weights of antialiased_cnns (7 filters of 3 taps)" in said and "published/resnet" in said
    assert "it is ready for use" in said and "blurify adapt" not in said
    ours = checkpoints.load(out)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    plan = json.loads(out_of(capsys, "inspect", path, *ARCH, "--json", *SHAPE))
    assert plan["recipe"] == blurify.plan_of(ours).recipe.to_dict() and plan["recipe"]["filter"]["size"] == 3
    assert plan["adapt"] is None and "antialiased_cnns" in plan["note"]


def test_published_weights_name_their_architecture(
    published: tuple[str, torch.nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = published
    said = error_of(capsys, "inspect", path)
    assert "antialiased_cnns" in said and said.rstrip().endswith("add --arch torchvision/resnet18")
    assert "don't fit timm/resnet50: add --arch torchvision/resnet18" in error_of(
        capsys, "inspect", path, "--arch", "timm/resnet50"
    )
    assert "take the names of torchvision/resnet18" in out_of(capsys, "inspect", path, "--arch", "auto", *SHAPE)


@pytest.mark.parametrize(
    ("options", "kernel", "taps"), [(["--recipe", "zhang2019"], None, 4), (["--filter-size", "5"], 2, 5)]
)
def test_the_users_recipe_wins(
    published: tuple[str, torch.nn.Module],
    options: list[str],
    kernel: int | None,
    taps: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, _ = published
    out = tmp_path / "aa.pt"
    said = out_of(capsys, "convert", path, *ARCH, "-o", out, *options, *SHAPE)
    assert "the weights were trained with published/resnet and 3 taps" in said and "ready for use" not in said
    plan = blurify.plan_of(checkpoints.load(out))
    assert plan is not None
    assert (plan.recipe.maxpool_kernel_size, plan.recipe.filter_size) == (kernel, taps)
    assert "the weights were trained with" in out_of(capsys, "inspect", path, *ARCH, *options, *SHAPE)


def test_filters_that_are_not_the_published_ones(
    published: tuple[str, torch.nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained or other filters are no filters that a recipe makes: nothing is guessed."""
    _, theirs = published
    weights = theirs.state_dict()
    weights["layer2.0.conv2.0.filt"] = weights["layer2.0.conv2.0.filt"] * 1.5
    torch.save(weights, tmp_path / "own.pt")
    assert "don't fit torchvision/resnet18" in error_of(capsys, "inspect", tmp_path / "own.pt", *ARCH)


def test_the_architecture_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.pt")
    assert "add --arch auto to look for it" in error_of(capsys, "inspect", tmp_path / "w.pt")
    for command in (["inspect"], ["convert", "-o", tmp_path / "aa.pt"]):
        said = out_of(capsys, *command, tmp_path / "w.pt", "--arch", "auto")
        assert "took timm/test_resnet for it: all" in said and "num_classes=3, read off" in said
    assert checkpoints.load(tmp_path / "aa.pt").num_classes == 3


OWN = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 10))
"""


def test_every_command_takes_the_users_own_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"own_cli_net_{os.getpid()}"
    source = tmp_path / f"{name}.py"
    source.write_text(OWN)
    shape = ["--input-shape", "1,3,32,32"]
    whole, aa = tmp_path / "net.pt", tmp_path / "aa.pt"
    sys.path.insert(0, str(tmp_path))
    try:
        torch.save(__import__(name).Net(), whole)
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules[name]
    path_before = list(sys.path)
    own = ["--source", source]
    try:
        assert name in error_of(capsys, "inspect", whole, *shape)
        assert f"--source {source}" in out_of(capsys, "inspect", whole, *own, *shape)
        assert f"--source {source}" in out_of(capsys, "convert", whole, *own, *shape, "-o", aa)
        assert "in force" in out_of(capsys, "check", aa, *own)
        out_of(capsys, "revert", aa, *own, "-o", tmp_path / "back.pt")
        measure = ["--size", "32", "--mean", "0,0,0", "--std", "1,1,1", "--images", "8", "--metrics", "consistency"]
        assert "consistency" in out_of(capsys, "measure", whole, aa, *own, *measure, "--device", "cpu")
        weights = tmp_path / "weights.pt"
        torch.save(torch.load(whole, weights_only=False).state_dict(), weights)
        out_of(capsys, "inspect", weights, "--arch", f"python:{name}:Net", *own, *shape)
    finally:
        sys.path[:] = path_before


def test_every_command_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("inspect", "convert", "adapt", "measure", "report", "check", "revert"):
        said = out_of(capsys, command, "--help")
        assert "--source" in said and "--weights" in said, command
