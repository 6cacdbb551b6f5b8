import json
import os
import sys

import pytest
import torch
from safetensors import safe_open
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.files import checkpoints, opening, sources
from tests import warm

ARCH = "timm/resnet10t"


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    return opening.open_model(ARCH, pretrained=False)


@pytest.fixture(scope="module")
def converted(loaded):
    model = blurify.convert(loaded.model, verify=False)
    assert blurify.plan_of(model).converted
    return model


def check_same(model, reference):
    ours, theirs = model.state_dict(), reference.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)
    x = torch.randn(2, 3, 64, 64, dtype=next(reference.parameters()).dtype)
    with torch.no_grad():
        assert torch.equal(model(x), reference(x))
    assert type(model).__name__ == type(reference).__name__ and not model.training
    assert blurify.plan_of(model) == blurify.plan_of(reference)


IN_A_NEW_PROCESS = """
import sys, torch, blurify
x, y = torch.load(sys.argv[1])
for path in sys.argv[2:]:
    model = blurify.load(path)
    with torch.no_grad():
        assert torch.equal(model(x), y)
    print(type(model).__module__, type(model).__name__, len(blurify.plan_of(model).converted))
"""


def test_round_trip_in_a_new_process(tmp_path, loaded, converted):
    paths = [tmp_path / name for name in ("module.pt", "weights.pt", "weights.safetensors")]
    for path in paths:
        source = None if path.name == "module.pt" else loaded.source
        assert checkpoints.save(converted, path, source=source) == path
        check_same(checkpoints.load(path), converted)
    assert sorted(tmp_path.iterdir()) == paths
    x = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        torch.save((x, converted(x)), tmp_path / "xy.pt")
    done = warm.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path / "xy.pt"), *map(str, paths)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == [f"timm.models.resnet ResNet {len(blurify.plan_of(converted).converted)}"] * 3


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_files_are_models_to_the_command_line_too(tmp_path, loaded, converted, name):
    checkpoints.save(converted, tmp_path / name, source=loaded.source)
    opened = opening.open_model(str(tmp_path / name))
    check_same(opened.model, converted)
    assert opened.source == loaded.source
    assert opening.open_model(ARCH, pretrained=False).source == loaded.source


@pytest.mark.parametrize("architecture", ["timm/densenet121", "torchvision/googlenet", "timm/test_resnet"])
def test_modules_with_rewritten_forwards(tmp_path, architecture):
    torch.manual_seed(0)
    source = opening.open_model(architecture, pretrained=False)
    model = blurify.convert(source.model, verify=False)
    for name, given in (("a.pt", None), ("b.pt", source.source), ("c.safetensors", source.source)):
        checkpoints.save(model, tmp_path / name, source=given)
        check_same(checkpoints.load(tmp_path / name), model)


def test_the_dictionary_is_plain_data_for_the_original_class(tmp_path, loaded, converted):
    checkpoints.save(converted, tmp_path / "m.pth", source=loaded.source)
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    assert set(content) == {"state_dict", "blurify"} and content["blurify"]["format"] == 1
    assert content["blurify"] == json.loads(json.dumps(content["blurify"]))
    sources.build(ARCH, pretrained=False)[0].load_state_dict(content["state_dict"], strict=True)


def test_safetensors_metadata(tmp_path, loaded, converted):
    checkpoints.save(converted, tmp_path / "m.safetensors", source=loaded.source)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["blurify"])
        assert set(file.keys()) == set(converted.state_dict())
    assert header["source"] == loaded.source.to_dict() and header["plan"]["sites"]


def test_safetensors_without_a_source(tmp_path, loaded, converted):
    path = tmp_path / "m.safetensors"
    checkpoints.save(converted, path)
    with pytest.raises(BlurifyError, match="model=the original model"):
        checkpoints.load(path)
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    check_same(checkpoints.load(path, model=loaded.model), converted)
    assert blurify.plan_of(loaded.model) is None  # the given model stays as it is
    assert all(torch.equal(v, before[k]) for k, v in loaded.model.state_dict().items())
    check_same(checkpoints.load(path, arch=ARCH), converted)
    check_same(checkpoints.load(path, model=converted), converted)
    with pytest.raises(BlurifyError, match="don't fit"):
        checkpoints.load(path, arch="timm/test_convnext")


def test_code_named_by_a_file_is_not_run(tmp_path, converted):
    marker = tmp_path / "ran"
    (tmp_path / "codeinfile.py").write_text(f"open({str(marker)!r}, 'w')\n")
    source = sources.ModelSource("python:codeinfile:net", "factory", "python:codeinfile:net")
    checkpoints.save(converted, tmp_path / "m.safetensors", source=source)
    with pytest.raises(BlurifyError, match="add --arch python:codeinfile:net"):
        checkpoints.load(tmp_path / "m.safetensors")
    assert not marker.exists()


def test_what_a_file_names_is_not_fetched(tmp_path, converted):
    source = sources.ModelSource("x", "factory", "timm/hf-hub:somebody/something")
    checkpoints.save(converted, tmp_path / "m.safetensors", source=source)
    with pytest.raises(BlurifyError, match="add --arch timm/hf-hub:somebody/something to fetch it"):
        checkpoints.load(tmp_path / "m.safetensors")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.again.weight = self.conv.weight
        self.register_buffer("table", torch.arange(12.0).view(3, 4).t())
        self.register_buffer("part", self.table[1:3])

    def forward(self, x):
        return self.again(self.pool(self.conv(x).relu()))


def test_shared_tensors_and_views(tmp_path):
    model = blurify.convert(Tied().eval(), verify=False)
    checkpoints.save(model, tmp_path / "m.safetensors")
    again = checkpoints.load(tmp_path / "m.safetensors", model=Tied().eval())
    check_same(again, model)
    assert again.again.weight is again.conv.weight
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert "again.weight" not in file.keys()  # noqa: SIM118
    checkpoints.save(model, tmp_path / "m.pt")
    with pytest.raises(BlurifyError, match=rf"--allow {__name__}\.Tied"):
        checkpoints.load(tmp_path / "m.pt")
    check_same(checkpoints.load(tmp_path / "m.pt", allow=[f"{__name__}.Tied"]), model)


def test_half_precision(tmp_path, loaded):
    import copy

    half = copy.deepcopy(loaded.model).bfloat16()
    model = blurify.convert(half, verify=False)
    for name in ("m.pt", "m.safetensors"):
        checkpoints.save(model, tmp_path / name, source=loaded.source)
        check_same(checkpoints.load(tmp_path / name), model)


def test_unconverted(tmp_path, loaded):
    with pytest.raises(BlurifyError, match="carries no plan"):
        checkpoints.save(loaded.model, tmp_path / "m.pt")
    torch.save(loaded.model, tmp_path / "m.pt")
    torch.save(loaded.model.state_dict(), tmp_path / "w.pt")
    for name in ("m.pt", "w.pt"):
        with pytest.raises(BlurifyError, match="carries no plan"):
            checkpoints.load(tmp_path / name)


def test_targets_that_cannot_be_written(tmp_path, converted, monkeypatch):
    path = tmp_path / "m.pt"
    path.write_text("mine")
    with pytest.raises(BlurifyError, match="--force"):
        checkpoints.save(converted, path)
    assert path.read_text() == "mine"
    checkpoints.save(converted, path, force=True)
    check_same(checkpoints.load(path), converted)
    for target, words in [
        (tmp_path, "is a directory"),
        (tmp_path / "no" / "m.pt", "doesn't exist"),
        (path / "m.pt", "is not a directory"),
    ]:
        with pytest.raises(BlurifyError, match=words):
            checkpoints.save(converted, target)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BlurifyError, match="no ordinary file"):
        checkpoints.save(converted, tmp_path / "pipe", force=True)
    with pytest.raises(BlurifyError, match="no ordinary file"):
        checkpoints.load(tmp_path / "pipe")
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(BlurifyError, match="not writable"):
        checkpoints.save(converted, tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_failing_writes_leave_nothing(tmp_path, converted, monkeypatch, name):
    (tmp_path / name).write_text("before")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BlurifyError, match="the disk is full"):
        checkpoints.save(converted, tmp_path / name, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "before"


def test_models_that_cannot_be_pickled(tmp_path, loaded):
    model = blurify.convert(loaded.model, verify=False)
    model.extra = lambda x: x
    with pytest.raises(BlurifyError, match=r"can't be pickled.*safetensors"):
        checkpoints.save(model, tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_damaged_headers(tmp_path, loaded, converted):
    path = tmp_path / "m.pt"
    checkpoints.save(converted, path, source=loaded.source)
    content = torch.load(path, weights_only=True)
    plan = content["blurify"]["plan"]
    site = next(site for site in plan["sites"] if site["edits"])
    broken = {"edit": "Rewrite", "module": "", "path": [], "op": "wrap", "child": "x"}
    for change, words in [
        ({"format": 99}, "another version"),
        ({"plan": None}, "another version"),
        ({"plan": {"format": 1}}, "not a plan"),
        ({"source": {"kind": "x"}}, "--arch"),
        ({"plan": {**plan, "sites": [{**site, "edits": [broken]}]}}, "can't be carried out"),
    ]:
        torch.save({**content, "blurify": {**content["blurify"], **change}}, path)
        with pytest.raises(BlurifyError, match=words):
            checkpoints.load(path)


def test_a_plan_that_is_no_longer_in_force(tmp_path, monkeypatch, loaded, converted):
    for name, source in (("m.pt", None), ("m.safetensors", loaded.source)):
        checkpoints.save(converted, tmp_path / name, source=source)
    found = ["the blur of layer1 is gone", "another"]
    monkeypatch.setattr("blurify.surgery.force.problems", lambda model, plan: found)
    words = "no longer in force: the blur of layer1 is gone; convert the original model again"
    with pytest.raises(BlurifyError, match=words):
        checkpoints.save(converted, tmp_path / "new.pt")
    assert not (tmp_path / "new.pt").exists()
    for name in ("m.pt", "m.safetensors"):
        for read in (checkpoints.load, opening.open_model):
            with pytest.raises(BlurifyError, match=words):
                read(str(tmp_path / name))
    found.clear()
    check_same(checkpoints.load(tmp_path / "m.pt"), converted)
