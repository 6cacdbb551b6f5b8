"""Every file that a released version of blurify wrote still loads, and still computes what it did."""

from pathlib import Path

import golden_nets
import pytest
import torch
from safetensors.torch import load_file

import blurify

FILES = sorted(
    path for path in (Path(__file__).parents[1] / "golden").glob("*/*") if path.name != "expected.safetensors"
)


def load(path, **more):
    if path.name.startswith("weights"):
        return blurify.load(path, model=golden_nets.build(), **more)
    return blurify.load(path, allow=["golden_nets.Net", "golden_nets.Block"], **more)


def check(model, expected):
    with torch.no_grad():
        found = model(expected["input"])
    torch.testing.assert_close(found, expected["output"], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, expected["original"], rtol=1e-3, atol=1e-4)


def test_there_are_golden_files():
    assert {"module.pt", "weights.pt", "weights.safetensors"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_golden_files_load_and_compute_what_they_did(path, tmp_path):
    model = load(path)
    expected = load_file(path.parent / "expected.safetensors")
    check(model, expected)
    plan = blurify.plan_of(model)
    assert plan is not None and plan.converted
    # What was loaded from an old file can be saved by this version, too.
    for name in ("module.pt", "weights.safetensors"):
        blurify.save(model, tmp_path / name)
        again = load(tmp_path / name)
        check(again, expected)
        assert blurify.plan_of(again) == plan


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name == "module.pt"], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_old_names_are_known_to_trust_too(path):
    check(load(path, trust=True), load_file(path.parent / "expected.safetensors"))


def test_the_program_that_writes_them(tmp_path, monkeypatch):
    import make_golden

    monkeypatch.setattr("sys.argv", ["make_golden.py", "--out", str(tmp_path)])
    make_golden.main()
    folder = tmp_path / blurify.__version__
    expected = load_file(folder / "expected.safetensors")
    assert sorted(path.name for path in folder.iterdir()) == [
        "expected.safetensors", "module.pt", "weights.pt", "weights.safetensors"
    ]  # fmt: skip
    for name in ("module.pt", "weights.pt", "weights.safetensors"):
        check(load(folder / name), expected)
    with pytest.raises(SystemExit, match="never written again"):
        make_golden.main()
