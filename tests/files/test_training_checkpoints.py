"""Checkpoints as training programs write them: by the real libraries, read, converted, and taken up by them again."""

from __future__ import annotations

import argparse
import datetime
import pickle
import types
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import blurify
from blurify.errors import BlurifyError
from blurify.files import checkpoints, opening
from blurify.files.pickled import carrying

ARCH = "timm/test_resnet?num_classes=10"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=10).eval()


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return type(one) is type(other) and list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and (one == other or one is other)


def same(model: nn.Module, reference: nn.Module) -> bool:
    return equal(dict(model.state_dict()), dict(reference.state_dict()))


def converted(loaded: Any, path: Path) -> nn.Module:
    """Convert what was loaded and write it with what stood around it."""
    result = blurify.convert(loaded.model, verify=False)
    checkpoints.save(result, path, source=loaded.source, rest=loaded.rest)
    return result


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()(torch.randn(4, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    model.eval()
    return optimizer


@pytest.fixture(scope="module")
def from_timm(tmp_path_factory):
    """What timm's own training script leaves."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    folder = tmp_path_factory.mktemp("timm")
    model = network()
    averaged = ModelEmaV3(model)
    optimizer = trained(model)
    arguments = argparse.Namespace(model="test_resnet", lr=0.1, output=Path("somewhere"))
    saver = CheckpointSaver(model, optimizer, args=arguments, model_ema=averaged, checkpoint_dir=str(folder))
    saver.save_checkpoint(3, metric=np.float64(0.5))
    return folder / "last.pth.tar", model, averaged.module


def test_timm_averaged_weights_first_and_either_by_choice(from_timm):
    path, model, averaged = from_timm
    assert not same(model, averaged)
    for wanted, expected, said in ((None, averaged, "(--weights model takes 'state_dict')"), ("ema", averaged, ""),
                                   ("model", model, "took the weights under 'state_dict'"),
                                   ("state_dict", model, ""), ("state_dict_ema", averaged, "averaged")):  # fmt: skip
        loaded = opening.open_model(str(path), arch=ARCH, weights=wanted)
        assert same(loaded.model, expected)
        assert said in loaded.note


def test_timm_everything_else_is_carried_over_and_timm_goes_on(from_timm, tmp_path):
    path, model, averaged = from_timm
    loaded = opening.open_model(str(path), arch=ARCH, weights="model")
    out = tmp_path / "converted.pth.tar"
    blurred = converted(loaded, out)
    before, after = (torch.load(file, weights_only=False) for file in (path, out))
    assert list(after) == [*before, "blurify"]
    assert all(equal(before[key], after[key]) for key in before if key != "state_dict")
    assert after["args"] == before["args"] and type(after["metric"]) is np.float64
    assert equal(dict(before["state_dict"]), dict(after["state_dict"]))

    again = blurify.load(out)
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(image), blurred(image))
    for ema, expected in ((True, averaged), (False, model)):
        theirs = network(1)
        timm.models.load_checkpoint(theirs, str(out), use_ema=ema, weights_only=False)
        assert same(theirs, expected)
    theirs = network(1)
    timm.models.resume_checkpoint(theirs, str(out), torch.optim.AdamW(theirs.parameters()), weights_only=False)
    assert same(theirs, model)


def test_the_converted_file_is_a_training_checkpoint_again(from_timm, tmp_path):
    path, *_ = from_timm
    converted(opening.open_model(str(path), arch=ARCH), tmp_path / "once.pt")
    loaded = opening.open_model(str(tmp_path / "once.pt"))
    assert loaded.rest is not None and loaded.rest.place == ("state_dict_ema",)
    checkpoints.save(loaded.model, tmp_path / "twice.pt", source=loaded.source, rest=loaded.rest)
    once, twice = (torch.load(tmp_path / name, weights_only=False) for name in ("once.pt", "twice.pt"))
    assert list(once) == list(twice) and all(equal(once[key], twice[key]) for key in once if key != "state_dict_ema")


def test_torchvision_references(tmp_path):
    model, other = network(), network(1)
    averaged = AveragedModel(other)
    torch.save(
        {"model": model.state_dict(), "model_ema": averaged.state_dict(), "epoch": 4, "scaler": None,
         "args": argparse.Namespace(lr=0.1, data=Path("x"))},
        tmp_path / "model_4.pth",
    )  # fmt: skip
    loaded = opening.open_model(str(tmp_path / "model_4.pth"), arch=ARCH)
    assert same(loaded.model, other)
    assert "'model_ema' (--weights model takes 'model')" in loaded.note and "'module.'" in loaded.note
    assert same(opening.open_model(str(tmp_path / "model_4.pth"), arch=ARCH, weights="model").model, model)
    converted(loaded, tmp_path / "out.pth")
    after = torch.load(tmp_path / "out.pth", weights_only=False)
    theirs = AveragedModel(network(2))
    theirs.load_state_dict(after["model_ema"])  # with its counter, and its prefix
    assert same(theirs.module, other)


def test_lightning_resumes_from_the_converted_checkpoint(tmp_path):
    pl = pytest.importorskip("pytorch_lightning")

    class Lit(pl.LightningModule):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = network()
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(10))

        def training_step(self, batch: Any, index: int) -> Any:
            return self.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(8, 3, 64, 64), torch.arange(8)), batch_size=4
    )
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                  "default_root_dir": str(tmp_path), "accelerator": "cpu", "enable_checkpointing": False}  # fmt: skip
    trainer, lit = pl.Trainer(max_epochs=1, **quiet), Lit()
    trainer.fit(lit, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = opening.open_model(str(tmp_path / "last.ckpt"), arch=ARCH)
    assert same(loaded.model, lit.net)
    assert "took 'net.' off" in loaded.note and "left out 1 that do not begin with it (loss.weight)" in loaded.note
    converted(loaded, tmp_path / "out.ckpt")
    theirs = Lit.load_from_checkpoint(tmp_path / "out.ckpt", weights_only=False)
    assert same(theirs.net, lit.net) and theirs.hparams.lr == 0.1
    onwards = pl.Trainer(max_epochs=2, **quiet)
    onwards.fit(theirs, data, ckpt_path=tmp_path / "out.ckpt", weights_only=False)
    assert onwards.global_step == 4


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "encoder.backbone."])
def test_any_one_prefix_is_found_and_named(tmp_path, prefix):
    model = network()
    torch.save({prefix + name: value for name, value in model.state_dict().items()}, tmp_path / "x.pt")
    loaded = opening.open_model(str(tmp_path / "x.pt"), arch=ARCH)
    assert same(loaded.model, model)
    assert f"took {prefix!r} off the names" in loaded.note


def test_two_whole_models_are_not_guessed_between(tmp_path):
    student, teacher = network(), network(1)
    both = {f"{who}.{name}": value for who, model in (("model", student), ("teacher", teacher))
            for name, value in model.state_dict().items()}  # fmt: skip
    torch.save({"state_dict": both, "epoch": 1}, tmp_path / "x.pt")
    with pytest.raises(BlurifyError, match="several models") as refused:
        opening.open_model(str(tmp_path / "x.pt"), arch=ARCH)
    advice = str(refused.value).rpartition("--weights ")[2]
    assert advice == "model."
    assert same(opening.open_model(str(tmp_path / "x.pt"), arch=ARCH, weights=advice).model, student)
    assert same(opening.open_model(str(tmp_path / "x.pt"), arch=ARCH, weights="teacher.").model, teacher)


@pytest.mark.parametrize("wanted", ["ema", "nothing", "epoch", "state_dict.conv1"])
def test_weights_that_are_not_there(tmp_path, wanted):
    torch.save({"state_dict": network().state_dict(), "epoch": 1}, tmp_path / "x.pt")
    with pytest.raises(BlurifyError, match="it has 'state_dict'"):
        opening.open_model(str(tmp_path / "x.pt"), arch=ARCH, weights=wanted)


def test_a_module_with_a_training_state_around_it(tmp_path):
    model = network()
    optimizer = trained(model)
    whole = {"model": model, "optimizer": optimizer.state_dict(), "epoch": 7, "updates": None}
    torch.save(whole, tmp_path / "x.pt")
    loaded = opening.open_model(str(tmp_path / "x.pt"))
    blurred = converted(loaded, tmp_path / "out.pt")
    after = torch.load(tmp_path / "out.pt", weights_only=False)
    assert list(after) == list(whole) and equal(after["optimizer"], whole["optimizer"]) and after["epoch"] == 7
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(after["model"](image), blurred(image))
    assert blurify.plan_of(opening.open_model(str(tmp_path / "out.pt")).model) is not None


class Anything:
    """A class that no reader knows."""

    def __init__(self) -> None:
        self.values, self.me = [1, 2, {"three": (3, None, True)}], self

    def __setstate__(self, state: Any) -> None:
        Anything.made += 1
        self.__dict__.update(state)

    made = 0


class Ordered(list):
    """Pickled with what was appended, and with items."""


def test_objects_of_any_class_are_carried_over_without_being_made(tmp_path):
    shared = torch.arange(4.0)
    beside = {
        "any": Anything(), "set": {1, "two"}, "frozen": frozenset({3}), "counts": Counter("aab"), "bytes": b"\x00\xff",
        "list": Ordered([1, shared]), "ordered": OrderedDict(a=shared[1:]), "keys": {(1, 2): "pair", None: 0, 1.5: "x"},
        "big": list(range(2500)), "dtype": torch.float16, "size": torch.Size([1, 2]), "array": np.arange(3),
        "function": torch.relu, "class": nn.Conv2d, "date": datetime.date(2026, 1, 2),
    }  # fmt: skip
    Anything.made = 0
    torch.save({"state_dict": network().state_dict(), **beside}, tmp_path / "x.pt")
    loaded = opening.open_model(str(tmp_path / "x.pt"), arch=ARCH)
    converted(loaded, tmp_path / "out.pt")
    assert Anything.made == 0
    assert loaded.rest is not None and not loaded.rest.made[1]
    after = torch.load(tmp_path / "out.pt", weights_only=False)
    assert after["any"].values == beside["any"].values and after["any"].me is after["any"]
    assert after["list"][1].data_ptr() == after["ordered"]["a"].data_ptr() - 4  # they still share their storage
    assert np.array_equal(after["array"], beside["array"])
    left = set(beside) - {"any", "list", "array"}
    assert {name for name in left if not equal(after[name], beside[name])} == set()
    assert torch.equal(after["list"][1], shared) and type(after["list"]) is Ordered


class Sparse:
    def __reduce__(self) -> Any:
        return torch._utils._rebuild_sparse_tensor, (torch.sparse_coo, (torch.zeros(1, 1), torch.ones(1), (2,), True))


def test_what_can_not_be_written_again_is_named(tmp_path):
    torch.save({"state_dict": network().state_dict(), "odd": Sparse(), "epoch": 3}, tmp_path / "x.pt")
    loaded = opening.open_model(str(tmp_path / "x.pt"), arch=ARCH)
    converted(loaded, tmp_path / "out.pt")
    assert loaded.rest is not None and list(loaded.rest.made[1]) == ["odd"]
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)) == ["state_dict", "epoch", "blurify"]


def test_a_name_can_not_smuggle_operations(tmp_path):
    """In the format a name ends with its line: what follows in it would be operations of the file that is written."""

    class Hostile:
        def __reduce_ex__(self, protocol: int) -> Any:
            raise AssertionError

    class Writer(pickle._Pickler):  # type: ignore[name-defined]
        dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

        def hostile(self, value: Any) -> None:
            self.write(pickle.PROTO + b"\x04")
            self.save("collections")
            self.save("Counter\ncos\nsystem\n(S'touch ran'\ntR")
            self.write(pickle.STACK_GLOBAL)

        dispatch[Hostile] = hostile

    torch.save({"state_dict": network().state_dict(), "odd": Hostile()}, tmp_path / "x.pt",
               pickle_module=types.SimpleNamespace(__name__="x", Pickler=Writer))  # fmt: skip
    try:
        loaded = opening.open_model(str(tmp_path / "x.pt"), arch=ARCH)
    except BlurifyError:
        return
    converted(loaded, tmp_path / "out.pt")
    assert loaded.rest is not None and list(loaded.rest.made[1]) == ["odd"]
    assert b"touch ran" not in (tmp_path / "out.pt").read_bytes()


def test_only_tensors_for_other_programs(from_timm, tmp_path):
    path, _, averaged = from_timm
    loaded = opening.open_model(str(path), arch=ARCH)
    result = blurify.convert(loaded.model, verify=False)
    checkpoints.save(result, tmp_path / "x.pt", source=loaded.source, rest=loaded.rest, plain=True)
    assert equal(torch.load(tmp_path / "x.pt", weights_only=True), dict(averaged.state_dict()))
    from safetensors.torch import load_file

    checkpoints.save(result, tmp_path / "x.safetensors", source=loaded.source, rest=loaded.rest, plain=True)
    found = load_file(tmp_path / "x.safetensors")
    assert equal(dict(sorted(found.items())), dict(sorted(averaged.state_dict().items())))


def test_the_format_that_wrote_the_rest_is_pickle(tmp_path):
    """The nodes are written by Python's own pickler: what it writes of plain data is what torch.save writes."""
    content = {"a": [1, 2.5, None, "x"], "b": ({"c": True},)}
    torch.save(content, tmp_path / "one.pt")
    torch.save(content, tmp_path / "other.pt", pickle_module=carrying.WRITER)
    assert equal(torch.load(tmp_path / "other.pt", weights_only=True), content)
