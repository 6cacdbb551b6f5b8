"""A conversion survives the programs that save weights and build the class again: with the real libraries."""

from __future__ import annotations

import copy
import json
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import blurify
from blurify.files import opening
from blurify.spec.plan import Plan
from blurify.surgery.marking import mark_of_configuration, marked_weights


@pytest.fixture(scope="module")
def converted() -> nn.Module:
    """A converted network of timm, small; its original's function is another one."""
    return blurify.convert(new(), example_inputs=torch.zeros(1, 3, 64, 64), verify=False)


def new(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet10t", num_classes=5).eval()


def picture() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def same(one: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        a, b = one(picture()), other(picture())
    return torch.equal(getattr(a, "logits", a), getattr(b, "logits", b))


def test_the_state_dict_stays_the_originals(converted: nn.Module) -> None:
    own, theirs = converted.state_dict(), new().state_dict()
    assert list(own) == list(theirs) and all(torch.equal(own[name], theirs[name]) for name in own)
    new().load_state_dict(own, strict=True)  # with the plan in its metadata


def test_torch_save_of_a_state_dict(converted: nn.Module, tmp_path: Path) -> None:
    torch.save(converted.state_dict(), tmp_path / "w.pth")
    plain = torch.load(tmp_path / "w.pth", weights_only=True)
    fresh = new(1)
    fresh.load_state_dict(plain)
    assert not same(fresh, converted)  # the blurs are gone, and torch says nothing
    assert same(blurify.reload(new(1), plain), converted)
    again = blurify.reload(new(1), tmp_path / "w.pth")
    assert same(again, converted) and blurify.check(again)


def test_what_is_gone_is_said(converted: nn.Module, tmp_path: Path) -> None:
    save_file(dict(converted.state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(blurify.BlurifyError, match="carries no plan"):
        blurify.reload(new(1), tmp_path / "w.safetensors")
    with pytest.raises(blurify.BlurifyError, match="carry no plan"):
        blurify.reload(new(1), new().state_dict())
    with pytest.raises(blurify.BlurifyError, match="configuration has no plan"):
        blurify.reload(new(1))


def test_another_model_is_refused_and_stays_as_it_is(converted: nn.Module) -> None:
    other = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    before = copy.deepcopy(other)
    with pytest.raises(blurify.BlurifyError):
        blurify.reload(other, converted.state_dict())
    assert blurify.plan_of(other) is None and same(other, before)


def test_timms_checkpoint_saver(converted: nn.Module, tmp_path: Path) -> None:
    from timm.utils import CheckpointSaver, ModelEmaV3

    ema = ModelEmaV3(converted, decay=0.5)
    ema.update(converted)
    saver = CheckpointSaver(
        converted, torch.optim.SGD(converted.parameters(), 0.1), model_ema=ema, args=None,
        checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), max_history=2,
    )  # fmt: skip
    saver.save_checkpoint(0, metric=1.0)
    path = tmp_path / "model_best.pth.tar"
    assert same(blurify.reload(new(1), path), converted)
    opened = opening.open_model(str(path), arch="timm/resnet10t?num_classes=5", pretrained=False)
    assert same(opened.model, converted) and "its blurs are put back" in opened.note


def test_timms_directory_for_the_hub(converted: nn.Module, tmp_path: Path) -> None:
    from timm.models import save_for_hf

    save_for_hf(converted, str(tmp_path / "hub"))
    lost = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert not same(lost, converted) and not blurify.check(lost)
    with pytest.warns(UserWarning, match="blurify.reload"):
        blurify.convert(lost, example_inputs=picture(), verify=False)
    assert same(blurify.reload(lost), converted)
    assert same(opening.open_model(str(tmp_path / "hub")).model, converted)


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config).eval()
    done = blurify.convert(model, example_inputs=picture(), verify=False)
    assert not hasattr(model.config, "blurify")  # the original's is its own
    done.save_pretrained(tmp_path / "hf")
    lost = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert not same(lost, done)
    condition = blurify.check(lost)
    assert not condition and "blurify.reload" in condition.lines()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = blurify.reload(lost)
    assert same(back, done) and blurify.check(back) and blurify.plan_of(back) == blurify.plan_of(done)
    assert same(opening.open_model(str(tmp_path / "hf")).model, done)
    assert not hasattr(blurify.revert(back).config, "blurify")


def test_lightning(converted: nn.Module, tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")

    class Task(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    trainer = lightning.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False,
    )  # fmt: skip
    task = Task(copy.deepcopy(converted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, torch.utils.data.DataLoader(torch.zeros(2, 3, 64, 64), batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    task.eval()
    whole = blurify.reload(Task(new(1)).eval(), tmp_path / "last.ckpt")
    assert same(whole.net, task.net)
    assert same(blurify.reload(new(1), tmp_path / "last.ckpt"), task.net)
    loaded = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert same(blurify.reload(Task(new(1)).eval(), loaded).net, task.net)


@pytest.mark.parametrize("wrapper", ["averaged", "parallel", "compiled", "two deep"])
def test_wrappers(converted: nn.Module, wrapper: str) -> None:
    inner = copy.deepcopy(converted)
    wrapped: nn.Module = {
        "averaged": lambda: torch.optim.swa_utils.AveragedModel(inner),
        "parallel": lambda: nn.DataParallel(inner),
        "compiled": lambda: torch.compile(inner, backend="eager"),
        "two deep": lambda: nn.ModuleDict({"teacher": nn.Sequential(inner)}),
    }[wrapper]()
    found = marked_weights({"epoch": 3, "model": wrapped.state_dict()})
    assert found is not None and found[1].plan == blurify.plan_of(converted)
    assert same(blurify.reload(new(1), wrapped.state_dict()), converted)


def test_a_converted_model_takes_its_own_weights_again(converted: nn.Module) -> None:
    other = blurify.convert(new(2), example_inputs=torch.zeros(1, 3, 64, 64), verify=False)
    assert same(blurify.reload(other, converted.state_dict()), converted)
    light = blurify.convert(new(2), "light", example_inputs=torch.zeros(1, 3, 64, 64), verify=False)
    with pytest.raises(blurify.BlurifyError, match="another plan"):
        blurify.reload(light, converted.state_dict())


def test_reverted_models_carry_no_plan(converted: nn.Module) -> None:
    original = blurify.revert(converted)
    assert marked_weights(original.state_dict()) is None and mark_of_configuration(original) is None
    with blurify.reverted(copy.deepcopy(converted)) as inside:
        assert marked_weights(inside.state_dict()) is None
    assert marked_weights(inside.state_dict()) is not None


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": 9}', '{"format": 1, "blur": "x", "plan": 3}', "{" * 5000]
)
def test_a_mark_that_is_no_plan_is_refused(converted: nn.Module, text: str) -> None:
    weights = converted.state_dict()
    for entry in weights._metadata.values():  # type: ignore[attr-defined]
        if "blurify" in entry:
            entry["blurify"] = text
    with pytest.raises(blurify.BlurifyError, match="plan"):
        blurify.reload(new(1), weights)


def test_a_mark_of_somebody_elses_runs_nothing(converted: nn.Module) -> None:
    """A plan that names a part which does not exist, or a blur that does not belong there, is refused."""
    weights = converted.state_dict()
    for entry in weights._metadata.values():  # type: ignore[attr-defined]
        if "blurify" in entry:
            said = json.loads(entry["blurify"])
            said["plan"]["sites"][1]["edits"][0]["module"] = "__class__"
            entry["blurify"] = json.dumps(said)
    fresh = new(1)
    with pytest.raises(blurify.BlurifyError):
        blurify.reload(fresh, weights)
    assert type(fresh) is type(new()) and isinstance(fresh.forward, types.MethodType)
    assert Plan is type(blurify.plan_of(converted))
