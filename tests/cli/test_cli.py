"""The command line: exit codes, plain text in a pipe, JSON, one-line errors, a start without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import blurify
from blurify import cli
from blurify.cli import console, options, plans
from blurify.errors import BlurifyError, VerificationError
from blurify.files import opening, sources
from blurify.spec.recipes import Recipe, load_recipe, recipe_names

SITES = ("pool", "down")


class Small(nn.Module):
    """Two sites, neither of them a stem."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.down(self.pool(self.conv(x))))


def small() -> nn.Module:
    """A factory for `python:tests.cli.test_cli:small`."""
    return Small()


def no_sites() -> nn.Module:
    """A factory of a model that never subsamples."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def no_pools() -> nn.Module:
    """A factory of a model that subsamples by convolutions only."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())


def converted() -> nn.Module:
    """A factory of a model that is converted already."""
    return blurify.convert(Small().eval(), example_inputs=torch.zeros(1, 3, 32, 32), verify=False)


@pytest.fixture(autouse=True)
def models_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """MODEL 'small', 'no-sites' or 'broken' instead of a real one: loading has its own tests."""
    makers = {"small": small, "no-sites": no_sites, "no-pools": no_pools, "converted": converted}
    real = opening.open_model

    def open_model(spec: str, **more: object) -> sources.LoadedModel:
        if spec == "broken":
            raise RuntimeError("first line\nsecond line")
        if spec == "interrupted":
            raise KeyboardInterrupt
        if spec == "unproven":
            raise VerificationError("the identity check failed")
        if spec in makers:
            return sources.LoadedModel(makers[spec]().eval(), sources.ModelSource(spec, "module"))
        return real(spec, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "open_model", open_model)
    monkeypatch.delenv(console.TRACEBACK, raising=False)


SHAPE = ["--input-shape", "1,3,32,32"]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr holds, which must be one line that starts with 'error: '; stdout must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_inspect_prints_one_plain_line_a_site(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["inspect", "small", *SHAPE]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.isascii() and "\x1b" not in captured.out
    lines = captured.out.splitlines()
    assert len(lines) == 2 + len(SITES) + 6
    assert lines.pop().startswith("next: blurify convert small -o OUT")
    assert "blurify adapt small --data DIR" in lines.pop()
    assert "--recipe aligned" in lines.pop() and lines.pop().startswith("drift: ")
    assert re.fullmatch(r"a forward writes .* -> .*, a training step keeps .* -> .* for its backward", lines.pop())
    assert lines[1].split()[:7] == ["site", "action", "kind", "k/s", "rule", "+macs", "+kept"]
    assert [line.split()[0] for line in lines[2:-1]] == list(SITES)
    assert lines[2].split()[1:7] == ["blur", "maxpool", "2/2", "maxpool", "+32.8k", "-16.4kB"]
    assert lines[-1].startswith("2 sites")


def test_inspect_json_holds_every_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "small", "--json", *SHAPE]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [site["name"] for site in data["sites"]] == list(SITES)
    assert data["totals"]["sites"] == data["totals"]["converted"] == 2
    assert data["input_shapes"] == [[1, 3, 32, 32]]


def test_inspect_takes_a_recipe_and_a_filter_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "small", "--json", "--recipe", "pool-only", "--filter-size", "3", *SHAPE]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {site["name"]: site["action"] for site in data["sites"]} == {"pool": "blur", "down": "skip"}
    assert all(site["reason"] for site in data["sites"])
    assert data["recipe"]["filter"]["size"] == 3


@pytest.mark.parametrize("command", [["inspect", "no-sites"], ["inspect", "no-sites", "--json"]])
def test_inspect_without_sites_says_so(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, *SHAPE]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["sites"] == [] if "--json" in command else "no sites" in out


def test_convert_writes_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "aa.pt"
    assert cli.main(["convert", "small", "-o", str(out), "--filter-size", "3", *SHAPE]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.isascii()
    lines = captured.out.splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [[name, "blur"] for name in SITES]
    assert lines[-2].startswith(f"wrote {out} (")
    assert lines[-1].startswith(f"then: blurify measure small {out} --data DIR")
    loaded = blurify.load(out, allow=["tests.cli.test_cli.Small", f"{Small.__module__}.Small"])
    plan = blurify.plan_of(loaded)
    assert plan is not None and len(plan.converted) == 2
    assert plan.recipe.filter_size == 3


def test_what_to_do_next_can_be_done_with_a_model_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file never runs the code that builds its model by itself: the commands to copy say --arch."""
    out, spec = tmp_path / "aa.pt", "python:tests.cli.test_cli:Small"
    assert cli.main(["convert", spec, "-o", str(out), "--filter-size", "3", *SHAPE]) == 0
    *_, warning, _, last = capsys.readouterr().out.splitlines()
    assert f"blurify adapt {out} --arch {spec} --data DIR" in warning
    assert last.startswith(f"then: blurify measure {spec} {out} --arch {spec} --data DIR")
    assert cli.main(["inspect", str(out), *SHAPE]) == 2
    assert cli.main(["inspect", str(out), "--arch", spec, *SHAPE]) == 0


def test_convert_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "aa.pt"
    assert cli.main(["convert", "small", "-o", str(out), "--json", *SHAPE]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [site["name"] for site in data["plan"]["sites"]] == list(SITES)
    assert data["file"] == {"path": str(out), "bytes": out.stat().st_size}
    assert data["proof"]["sites_converted"] == 2 and data["proof"]["lines"]


def test_convert_without_proof_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "small", "-o", str(tmp_path / "aa.pt"), "--no-verify", *SHAPE]) == 0
    assert "not verified" in capsys.readouterr().out


def test_convert_without_sites_writes_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "aa.pt"
    assert cli.main(["convert", "no-sites", "-o", str(out), *SHAPE]) == 0
    assert "no sites" in capsys.readouterr().out
    assert not out.exists()
    assert cli.main(["convert", "no-sites", "-o", str(out), "--write-unchanged", *SHAPE]) == 0
    assert out.exists()


def test_converting_twice_is_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = blurify.convert(Small().eval(), example_inputs=(torch.randn(1, 3, 32, 32),))
    source = sources.ModelSource("small", "module")
    monkeypatch.setattr(opening, "open_model", lambda spec, **more: sources.LoadedModel(done, source))
    assert cli.main(["convert", "small", "-o", str(tmp_path / "aa.pt"), *SHAPE]) == 0
    assert "already converted" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_target_is_checked_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """'broken' would exit 1 if it were loaded."""
    there = tmp_path / "there.pt"
    there.write_bytes(b"mine")
    assert cli.main(["convert", "broken", "-o", str(there)]) == 2
    assert "--force" in error_line(capsys)
    assert there.read_bytes() == b"mine"
    assert cli.main(["convert", "broken", "-o", str(tmp_path / "nowhere" / "aa.pt")]) == 2
    assert "nowhere" in error_line(capsys)
    assert cli.main(["convert", "broken", "-o", str(tmp_path)]) == 2
    error_line(capsys)
    assert cli.main(["convert", "small", "-o", str(there), "--force", *SHAPE]) == 0
    assert there.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect"], "MODEL"),
        (["inspect", "small", "--filter-size", "many"], "--filter-size"),
        (["inspect", "small", "--filter-size", "9"], "1 (the identity) to 7"),
        (["inspect", "small", "--no-such-option"], "--no-such-option"),
        (["inspekt", "small"], "inspect"),
        (["convert", "small"], "--output"),
        (["inspect", "small", "--input-shape", "big"], "1,3,224,224"),
        (["inspect", "small", "--input-shape", "1,0,2"], "1,3,224,224"),
        (["inspect", "small", "--input-shape", "1,4,32,32"], "4"),
        (["inspect", "small", "--recipe", "pool-onyl"], "pool-only"),
        (["inspect", "no/such/file.pt"], "no/such/file.pt"),
        (["inspect", "x" * 300], "name too long"),
        (["convert", "small", "-o", "x" * 300], "name too long"),
        (["inspect", "small", "--input-shape", "1,3,99999999,9999999"], "memory"),
        (["inspect", "small", "--input-shape", f"1,{10**30}"], "memory"),
    ],
)
def test_bad_usage_is_one_line_and_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert says in error_line(capsys)


def test_a_failed_proof_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "unproven"]) == 1
    assert error_line(capsys) == "error: the identity check failed\n"


def test_the_unexpected_is_one_line_and_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "broken"]) == 1
    assert "RuntimeError: first line second line (set BLURIFY_TRACEBACK=1" in error_line(capsys)
    monkeypatch.setenv(console.TRACEBACK, "1")
    assert cli.main(["inspect", "broken"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "interrupted"]) == 130
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("blurify ")
    assert cli.main([]) == 0
    assert "inspect" in capsys.readouterr().out
    for command in ("inspect", "convert", "check", "revert", "demo"):
        assert cli.main([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"Example: blurify {command}" in out
        assert len(out.splitlines()) < 70  # one screen


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from blurify.cli import main; assert main(['inspect', '--help']) == 0; "
        "print('loaded:', [name for name in ('torch', 'timm', 'torchvision', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_closed_pipe_is_quiet() -> None:
    """As `blurify --help | head -n 0`: the reader is gone before anything is written."""
    running = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.stdin.read(); from blurify.cli import main; sys.exit(main(['--help']))",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdin and running.stdout and running.stderr
    running.stdout.close()
    running.stdin.close()
    assert running.stderr.read() == b""
    running.stderr.close()
    assert running.wait() in (1, 141)


def test_on_a_terminal_the_table_fits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["inspect", "small", *SHAPE]) == 0
    out = capsys.readouterr().out
    assert "after-activation" in out and "no room for:" in out
    assert max(map(len, out.splitlines())) <= 100


def test_shapes_and_amounts() -> None:
    assert options.parse_shape("1,3,224,224") == options.parse_shape("1x3x224x224") == (1, 3, 224, 224)
    for text in ("", "a", "1,,2", "1,-3", "0"):
        with pytest.raises(BlurifyError):
            options.parse_shape(text)
    inputs = options.example_inputs(["2,3,4,4", "1,5"])
    assert inputs is not None and [tuple(tensor.shape) for tensor in inputs] == [(2, 3, 4, 4), (1, 5)]
    assert plans.amount(1_820_000_000) == "1.82 G"
    assert plans.amount(-2_000) == "-2 k"
    assert plans.amount(0) == "0"


CONVERTS = {
    "inspect": ["inspect", "small", *SHAPE, "--json"],
    "convert": ["convert", "small", *SHAPE, "--json", "--force", "-o", "OUT.pt"],
    "diff": ["diff", "small", "small", *SHAPE, "--json"],
}


@pytest.mark.parametrize("command", CONVERTS)
def test_taps_and_padding_on_every_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*CONVERTS[command], "--taps", "1,2,1", "--padding", "zeros"]) == 0
    out = json.loads(capsys.readouterr().out)
    if command != "diff":
        data = out.get("plan", out)
        assert data["recipe"]["filter"] == {"taps": [1.0, 2.0, 1.0], "padding": "zeros"}


def test_all_commands_that_convert_take_the_same_filters(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("inspect", "convert", "adapt", "diff", "measure", "certify", "report", "zoo"):
        assert cli.main([command, "--help"]) == 0
        out = capsys.readouterr().out
        assert all(option in out for option in ("--recipe", "--filter-size", "--taps", "--padding")), command
        assert "blurify recipes" in " ".join(out.split()) or command == "diff"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--taps", "1,x"], "no filter"),
        (["--taps", ""], "no filter"),
        (["--taps", "1,-1"], "positive sum"),
        (["--taps", "1,nan"], "no filter"),
        (["--taps", "1,2,1", "--filter-size", "3"], "two ways"),
        (["--padding", "zero"], "did you mean zeros?"),
        (["--filter-size", "9"], "choose 1"),
    ],
)
def test_filters_that_do_not_exist(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "small", *SHAPE, *options]) == 2
    assert says in error_line(capsys)


def test_padding_wins_over_that_of_site_tables() -> None:
    recipe = Recipe.from_dict(
        {"site": [{"match": "pool", "padding": "circular"}, {"match": "down", "taps": [1, 2, 1]}]}
    )
    other = recipe.with_filter(padding="zeros")
    assert other.padding == "zeros" and [dict(one.settings).get("taps") for one in other.sites] == [(1.0, 2.0, 1.0)]


def test_recipes_are_listed_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed == recipe_names()
    for name in ("light", "published/resnet"):
        assert cli.main(["recipes", name]) == 0
        mine = tmp_path / "mine.toml"
        mine.write_text(capsys.readouterr().out)
        assert load_recipe(mine).to_dict() == {**load_recipe(name).to_dict(), "name": "mine"}
    assert cli.main(["recipes", "lite"]) == 2
    assert "'light'" in error_line(capsys)


def test_inspect_of_a_converted_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "converted", *SHAPE]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("converted already by recipe zhang2019: 2 of 2 sites blurred")
    assert not any(line.startswith("next: blurify convert") for line in out)


def test_nothing_to_convert_has_no_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "no-pools", *SHAPE, "--recipe", "pool-only", "-o", str(tmp_path / "x.pt")]) == 0
    out = capsys.readouterr().out
    assert "nothing to convert" in out and "identity:" not in out and "audit:" not in out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("efficientnet_lite0", "did you mean timm/efficientnet_lite0?"),
        ("resnet18", "did you mean timm/resnet18 or torchvision/resnet18?"),
        ("fasterrcnn_resnet50_fpm", "torchvision/fasterrcnn_resnet50_fpn"),
    ],
)
def test_an_architecture_without_its_library(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", typed]) == 2
    assert meant in error_line(capsys)


def test_a_refused_shape_is_not_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "small", "--input-shape", "1,4,32,32"]) == 2
    assert "it takes an input of shape 1x3x" in error_line(capsys)


def test_dir_has_the_public_names_only() -> None:
    assert sorted(dir(blurify)) == sorted([*blurify.__all__, "__version__"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    environment = {**os.environ, "_BLURIFY_COMPLETE": f"complete_{shell}", "COMP_WORDS": "blurify inspect --recipe li",
                   "COMP_CWORD": "3", "_TYPER_COMPLETE_ARGS": "blurify inspect --recipe li",
                   "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from blurify.cli import main; sys.exit(main([]))"],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "light" in done.stdout and "zhang2019" not in done.stdout
