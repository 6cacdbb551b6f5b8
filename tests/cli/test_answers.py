"""What `convert` and `inspect` say of a trained model's answers: the warning, the count, the choice of sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import blurify
from blurify.cli.answers import parse_share
from blurify.errors import BlurifyError
from blurify.files import opening, sources
from blurify.metrics import files
from tests.command_line import error_of, out_of

COUNT = 12
SHAPE = ["--input-shape", "1,3,32,32"]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # where a model says nothing


class Net(nn.Sequential):
    """A classifier with two sites, each of which costs some of its answers."""

    def __init__(self, *, dense: bool = False) -> None:
        torch.manual_seed(8)
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2),
            *(() if dense else (nn.Flatten(), nn.Linear(8 * 64, 9))),
        )  # fmt: skip
        for module in self:
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=1.5 / module.weight[0].numel() ** 0.5)


@pytest.fixture(autouse=True)
def models_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """MODEL 'net' or 'dense' instead of a real one."""
    real = opening.open_model

    def open_model(spec: str, **more: Any) -> sources.LoadedModel:
        if spec in ("net", "dense"):
            return sources.LoadedModel(Net(dense=spec == "dense").eval(), sources.ModelSource(spec, "module"))
        return real(spec, **more)

    monkeypatch.setattr(opening, "open_model", open_model)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noise of the canvas' own size, 8/7 of 32."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (37, 37, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return folder


def shown(photos: Path) -> list[Tensor]:
    """What the model sees of each picture."""
    found = []
    for path in sorted(photos.iterdir()):
        pixels = torch.from_numpy(np.array(Image.open(path))).float() / 255
        found.append(((pixels - MEAN) / STD)[2:34, 2:34].permute(2, 0, 1)[None])
    return found


def answers(model: nn.Module, photos: Path) -> list[int]:
    with torch.no_grad():
        return [int(model(picture).argmax()) for picture in shown(photos)]


def test_a_trained_model_is_called_not_ready_with_the_command_that_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "with space.pt"
    lines = out_of(capsys, "convert", "net", "-o", out, "--allow", "a.B", *SHAPE).splitlines()
    (warning,) = (line for line in lines if "NOT READY FOR USE" in line)
    assert warning.endswith(f"blurify adapt '{out}' --allow a.B --data DIR -o '{tmp_path / 'with space_adapted.pt'}'")
    (proof,) = (line for line in lines if line.startswith("identity: "))
    assert "without any blur" in proof and "with the blur the answers are others" in proof
    assert "original function" not in proof


@pytest.mark.parametrize("more", [["--random"], ["--filter-size", "1"], ["--recipe", "none.toml"]])
def test_there_is_no_warning_where_nothing_is_lost(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("none.toml").write_text('[skip]\nnames = ["*"]\n')
    for command in (["convert", "net", "-o", "x.pt"], ["inspect", "net"]):
        assert "blurify adapt" not in out_of(capsys, *command, *more, *SHAPE)


def test_inspect_says_so_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    *_, last, then = out_of(capsys, "inspect", "net", *SHAPE).splitlines()
    assert then.startswith("next: blurify convert net -o OUT")
    assert "not enough" in last and last.endswith("blurify adapt net --data DIR -o OUT")
    data = json.loads(out_of(capsys, "inspect", "net", "--json", *SHAPE))
    assert data["adapt"] == "blurify adapt net --data DIR -o OUT" and data["answers"] is None


@pytest.mark.parametrize("command", [["convert", "net", "-o", "x.pt"], ["inspect", "net"]])
@pytest.mark.parametrize("verify", [["--no-verify"], []])
def test_the_answers_that_change_are_counted(
    command: list[str],
    verify: list[str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    verify = verify if command[0] == "convert" else []
    original = Net().eval()
    converted = blurify.convert(original, example_inputs=torch.zeros(1, 3, 32, 32), verify=False)
    pairs = list(zip(answers(original, photos), answers(converted, photos), strict=True))
    changes = sum(one != other for one, other in pairs)
    assert 0 < changes < COUNT  # else the test would not tell
    arguments = [*command, *verify, "--data", photos.name, "--device", "cpu", *SHAPE]
    out = out_of(capsys, *arguments)
    assert f"on {COUNT} pictures of {photos.name}: " in out and f"{changes} answers change, KL " in out
    data = json.loads(out_of(capsys, *arguments, "--json", *(["--force"] if command[0] == "convert" else [])))
    found = data["answers"]
    assert (found["changed"], found["images"], found["same"]["count"]) == (changes, COUNT, COUNT)
    assert found["same"]["value"] == pytest.approx(1 - changes / COUNT)
    few = json.loads(
        out_of(capsys, *arguments, "--json", "--images", 5, *(["--force"] if verify or "-o" in command else []))
    )
    assert few["answers"]["images"] == 5


def test_other_outputs_have_a_relative_error(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = Net(dense=True).eval()
    converted = blurify.convert(original, example_inputs=torch.zeros(1, 3, 32, 32), verify=False)
    with torch.no_grad():
        here, there = (torch.cat([model(picture) for picture in shown(photos)]) for model in (original, converted))
    error = float((here - there).square().sum() / (here - here.mean(0)).square().sum())
    assert error > 0.1
    out = out_of(capsys, "inspect", "dense", "--data", photos, "--device", "cpu", *SHAPE)
    assert f"the outputs are off by a relative error of {error:.3g} (" in out


def test_keep_agreement_converts_no_more_than_it_may(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--data", photos, "--device", "cpu", "--json", *SHAPE]
    ranking = json.loads(out_of(capsys, "inspect", "net", "--rank", *common))["ranking"]
    kept = [step["agreement"]["same"]["value"] for step in ranking["curve"]]
    assert kept[0] > kept[1]  # else the test would not tell
    keep = f"{100 * kept[0]}%"
    data = json.loads(out_of(capsys, "convert", "net", "-o", "x.pt", "--keep-agreement", keep, *common))
    blurred = [site["name"] for site in data["plan"]["sites"] if site["action"] == "blur"]
    assert blurred == [ranking["sites"][0]["site"]]
    assert data["answers"]["same"]["value"] == pytest.approx(kept[0])
    loaded = blurify.load("x.pt", allow=[f"{Net.__module__}.Net"])
    assert sum(map(int.__eq__, answers(Net().eval(), photos), answers(loaded, photos))) == round(kept[0] * COUNT)
    line = error_of(capsys, "convert", "net", "-o", "y.pt", "--keep-agreement", "100%", *common)
    assert "no conversion keeps 100%" in line and not Path("y.pt").exists()


def test_the_ranking_goes_into_a_file_that_reads_back(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ranked.json"
    arguments = ["inspect", "net", "--data", photos, "--device", "cpu", "--rank", "-o", path, *SHAPE]
    out = out_of(capsys, *arguments)
    (measured,), context = files.read_all(path)
    assert measured.aliasing is not None and context.ranking is not None and context.plan is not None
    assert [site.site for site in context.ranking.sites] == [
        line.split()[0] for line in out.split("sites ranked by")[1].splitlines()[2:4]
    ]
    assert "--force" in error_of(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["convert", "net", "-o", "x.pt", "--keep-agreement", "90%"], "add --data"),
        (["convert", "net", "-o", "x.pt", "--keep-agreement", "0"], "such as 90% or 0.9"),
        (["convert", "net", "-o", "x.pt", "--images", "0"], "--images 0"),
        (["convert", "net", "-o", "x.pt", "--data", "nowhere"], "no folder nowhere"),
        (["inspect", "net", "--rank"], "add --data"),
        (["inspect", "net", "-o", "x.json"], "add --rank"),
    ],
)
def test_bad_usage(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in error_of(capsys, *arguments, *SHAPE)


def test_shares() -> None:
    assert parse_share("--x", "90%") == parse_share("--x", " .9") == parse_share("--x", "0.90") == 0.9
    assert parse_share("--x", "1") == 1 and parse_share("--x", None) is None
    for text in ("90", "-1", "0", "101%", "nan", "", "90%%"):
        with pytest.raises(BlurifyError, match="--x"):
            parse_share("--x", text)
