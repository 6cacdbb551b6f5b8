"""`convert --adapt`, and what `inspect`, `check`, `revert` and `measure -o` say of an adapted model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import blurify
from blurify.files import checkpoints, opening, sources
from blurify.metrics import files
from blurify.spec.adapted import Adapted, Stage
from tests.cli.test_answers import SHAPE, Net
from tests.command_line import error_of, out_of

SOON = ["--minutes", "0.02", "--device", "cpu", *SHAPE]
ALLOW = ["--allow", f"{Net.__module__}.Net"]


@pytest.fixture(autouse=True)
def models_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """MODEL 'net' instead of a real one."""
    real = opening.open_model

    def open_model(spec: str, **more: Any) -> sources.LoadedModel:
        if spec == "net":
            return sources.LoadedModel(Net().eval(), sources.ModelSource(spec, "module"))
        return real(spec, **more)

    monkeypatch.setattr(opening, "open_model", open_model)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Smooth pictures of the canvas' own size, 8/7 of 32."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        small.resize((37, 37)).save(folder / f"{number:02}.png")
    return folder


RECORD = Adapted(
    "500 crops of 120 pictures", 450, 50, "classes",
    (
        Stage("converted", "converted: bad", 0.0, 1.5, 0.2),
        Stage("recalibrate", "moved 3 norms", 1.5, 0.5, 0.7),
        Stage("reconstruct", "refitted 4 layers; worse, so it is taken back", 3.0, 0.9, 0.5, kept=False),
    ),
    ("few",),
)  # fmt: skip
SUMMARY = (
    "adapted on 500 crops of 120 pictures: 70.0% of the answers are the original's, KL 0.5 nats (after recalibrate, "
    "50 examples held back)"
)


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """A file of a model that says that it was adapted."""
    from blurify.surgery.carrying import carry_adapted

    model = blurify.convert(Net().eval(), example_inputs=torch.zeros(1, 3, 32, 32), verify=False)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    carry_adapted(model, RECORD)
    path = tmp_path / "adapted.pt"
    checkpoints.save(model, path)
    return path


def test_summary_is_of_the_last_stage_that_was_kept() -> None:
    assert RECORD.summary() == SUMMARY and RECORD.reached == RECORD.stages[1]
    values = Adapted("9 examples", 8, 1, "values", (Stage("distil", "", 1.0, 0.0123),))
    assert values.summary() == "adapted on 9 examples: relative error 0.0123 (after distil, 1 examples held back)"
    assert Adapted("9 examples", 8, 1, "values", ()).summary() == "adapted on 9 examples"


@pytest.mark.parametrize("verify", [["--no-verify"], []])
def test_convert_adapts_and_writes_the_adapted_model(
    verify: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "aa.pt"
    lines = out_of(
        capsys, "convert", "net", "-o", out, "--adapt", photos, "--data", photos, *verify, *SOON
    ).splitlines()
    text = "\n".join(lines)
    assert "NOT READY FOR USE" not in text and text.count("identity: ") == (0 if verify else 1)
    assert text.count("not verified (--no-verify)") == (1 if verify else 0)
    order = [next(n for n, line in enumerate(lines) if line.startswith(start)) for start in (
        "site ", "converted: ", "on 8 pictures", "wrote ", "next: blurify measure net ",
    )]  # fmt: skip
    assert order == sorted(order) and len(set(lines)) == len(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aa.pt", "photos"]  # no state is left behind
    model = blurify.load(out, allow=[f"{Net.__module__}.Net"])
    record = blurify.adapted_of(model)
    assert record is not None and [stage.name for stage in record.stages] == [
        "converted", "recalibrate", "reconstruct", "refine", "distil"
    ]  # fmt: skip
    assert list(model.state_dict()) == list(Net().state_dict()) and blurify.check(model)
    assert any(stage.kept for stage in record.stages[1:])
    assert not all(torch.equal(mine, its) for mine, its in zip(model.parameters(), Net().parameters(), strict=True))


def test_convert_says_what_was_adapted_in_json(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "aa.pt"
    data = json.loads(out_of(capsys, "convert", "net", "-o", out, "--adapt", photos, "--json", *SOON))
    assert data["adapt"] is None and data["proof"] is not None
    found = Adapted.from_dict(data["adapted"])
    assert found == blurify.adapted_of(blurify.load(out, allow=[f"{Net.__module__}.Net"]))
    plain = json.loads(out_of(capsys, "convert", "net", "-o", out, "--force", "--json", *SHAPE))
    assert plain["adapted"] is None and plain["adapt"]


def test_nothing_is_adapted_where_nothing_changes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = out_of(capsys, "convert", "net", "-o", tmp_path / "a.pt", "--adapt", photos, "--filter-size", 1, *SOON)
    assert "not adapted: the one-tap filter changes no answers" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--minutes", "3"], "add --adapt DIR"),
        (["--adapt", "nowhere", "--minutes", "0"], "--minutes 0"),
        (["--adapt", "nowhere"], "no folder nowhere"),
    ],
)
def test_bad_usage(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in error_of(capsys, "convert", "net", "-o", tmp_path / "a.pt", *arguments, *SHAPE)
    assert not list(tmp_path.iterdir())


def test_a_converted_model_is_for_the_other_command(
    adapted: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(capsys, "convert", adapted, *ALLOW, "-o", tmp_path / "b.pt", "--adapt", photos)
    assert "is converted already: blurify adapt takes it" in said


def test_inspect_and_check_say_that_a_model_was_adapted(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("inspect", "check"):
        assert out_of(capsys, command, adapted, *ALLOW).splitlines().count(SUMMARY) == 1
        data = json.loads(out_of(capsys, command, adapted, *ALLOW, "--json"))
        assert Adapted.from_dict(data["adapted"]) == RECORD


def test_revert_says_whose_weights_these_are(adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "back.pt"
    said = out_of(capsys, "revert", adapted, *ALLOW, "-o", out)
    assert "the weights are not the original's, they are adapted to the blurs" in said and SUMMARY in said
    assert "the original's whole module" not in said
    again: nn.Module = torch.load(out, weights_only=False)
    assert blurify.plan_of(again) is None and blurify.adapted_of(again) is None
    data = json.loads(out_of(capsys, "revert", adapted, *ALLOW, "-o", out, "--force", "--json"))
    assert Adapted.from_dict(data["adapted"]) == RECORD


def test_measure_keeps_the_record_and_report_shows_it(
    adapted: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2")
    path, page = tmp_path / "found.json", tmp_path / "page.html"
    how = ["--data", photos, "--device", "cpu", "--size", "32", *ALLOW]
    out_of(capsys, "measure", "net", adapted, *how, "--metrics", "consistency", "-o", path)
    _, context = files.read_all(path)
    assert context.adapted == (None, RECORD) and not context.same_weights
    out_of(capsys, "report", path, "-o", page)
    assert '<h2 id="adapting">Adapting</h2>' in page.read_text(encoding="utf-8")
    converted = tmp_path / "converted.pt"
    out_of(capsys, "convert", "net", "-o", converted, *SHAPE)
    arguments = ["net", converted, adapted, *how, "--metrics", "consistency,aliasing,equivariance"]
    out_of(capsys, "report", *arguments, "-o", page, "--force")
    text = page.read_text(encoding="utf-8")
    assert "Original, converted and adapted" in text and '<h2 id="adapting">Adapting</h2>' in text
    out_of(capsys, "measure", converted, *how, "--metrics", "consistency", "-o", tmp_path / "second.json")
    out_of(capsys, "report", path, tmp_path / "second.json", "-o", page, "--force")
    assert "Original, converted and adapted" in page.read_text(encoding="utf-8")
    assert "leave" in error_of(capsys, "report", "net", "net", "net", "net", "-o", tmp_path / "no.html")
    assert "--convert" in error_of(capsys, "report", "net", converted, adapted, "--convert", "-o", tmp_path / "no.html")
