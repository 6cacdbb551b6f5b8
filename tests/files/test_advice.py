"""What a refusal advises is followed, and works."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

import blurify
from blurify.errors import BlurifyError
from blurify.files import opening

INPUT = torch.zeros(1, 3, 32, 32)


def small() -> nn.Module:
    """A network with a site, of torch's own classes."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU()).eval()


def refused(path: Path, content: Any, **options: Any) -> str:
    """The one line about a file."""
    torch.save(content, path)
    with pytest.raises(BlurifyError) as caught:
        opening.open_model(str(path), **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def accepted(path: Path, content: Any, **options: Any) -> nn.Module:
    """The model in a file, converted."""
    torch.save(content, path)
    model = opening.open_model(str(path), **options).model
    converted = blurify.convert(model, example_inputs=INPUT)
    plan = blurify.plan_of(converted)
    assert plan is not None and plan.converted
    return converted


def quantised() -> nn.Module:
    """A quantised network: torch announces that it will move, and that it is CPU only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), {nn.Linear})


def test_a_quantised_model_is_told_to_be_quantised_later(tmp_path: Path) -> None:
    for content in (quantised(), quantised().state_dict(), {"state_dict": quantised().state_dict()}):
        said = refused(tmp_path / "q.pt", content, arch="timm/resnet18")
        assert "quantised" in said and "can't be converted" in said and "--allow" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = accepted(tmp_path / "float.pt", small())
        later = torch.ao.quantization.quantize_dynamic(converted, {nn.Linear})
        assert later(INPUT).shape == converted(INPUT).shape


def test_a_traced_model(tmp_path: Path) -> None:
    said = refused(tmp_path / "fx.pt", torch.fx.symbolic_trace(small()))
    assert "traced by torch.fx" in said and "--allow" not in said
    accepted(tmp_path / "plain.pt", small())
    accepted(tmp_path / "fx.pt", torch.fx.symbolic_trace(small()), trust=True)


def test_a_compiled_model(tmp_path: Path) -> None:
    model = torch.compile(small())
    said = refused(tmp_path / "c.pt", model)
    assert "torch.save(model._orig_mod, PATH)" in said and "--allow" not in said
    accepted(tmp_path / "c.pt", model._orig_mod)


def test_numbers_of_numpy(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1()
    model.scale = np.float32(3)
    said = refused(tmp_path / "n.pt", model)
    assert "numpy" in said and "torch.save(model.state_dict(), PATH)" in said and "--allow" not in said
    accepted(tmp_path / "w.pt", model.state_dict(), arch="torchvision/squeezenet1_1")
    accepted(tmp_path / "n.pt", model, trust=True)


def test_weights_that_are_arrays_of_numpy(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1()
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    said = refused(tmp_path / "a.pt", arrays, arch="torchvision/squeezenet1_1")
    assert "torch.from_numpy(array)" in said and "--allow" not in said
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    accepted(tmp_path / "a.pt", tensors, arch="torchvision/squeezenet1_1")


def test_a_pruned_model(tmp_path: Path) -> None:
    model = small()
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    said = refused(tmp_path / "p.pt", model)
    assert "torch.nn.utils.prune.remove(layer, 'weight')" in said and "--allow" not in said
    prune.remove(model[2], "weight")
    accepted(tmp_path / "p.pt", model)


def test_an_optimizer(tmp_path: Path) -> None:
    said = refused(tmp_path / "o.pt", torch.optim.SGD(small().parameters(), lr=0.1))
    assert "optimizer" in said and "--allow" not in said


class Wrapped(nn.Module):
    """A class of this module, around one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def activation(x: torch.Tensor) -> torch.Tensor:
    """A function of this module."""
    return x


def test_allow_is_advised_for_classes_alone(tmp_path: Path) -> None:
    said = refused(tmp_path / "c.pt", Wrapped())
    assert f"--allow {__name__}.Wrapped" in said and "--source" in said
    accepted(tmp_path / "c.pt", Wrapped(), allow=[f"{__name__}.Wrapped"])

    model = Wrapped()
    model.after = activation
    for allow in ([], [f"{__name__}.Wrapped"]):
        said = refused(tmp_path / "f.pt", model, allow=allow)
        assert f"{__name__}.activation, which is no class" in said and "add --source test_advice.py" in said
    with pytest.raises(BlurifyError, match=r"--source FILE\.py"):
        opening.open_model(str(tmp_path / "f.pt"), allow=[f"{__name__}.activation"])
    accepted(tmp_path / "f.pt", model, source=Path(__file__))


def test_a_function_is_told_by_its_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that a file names is not imported to find out what it has."""
    from blurify.files.pickled.refusals import is_no_class

    (tmp_path / "advised.py").write_text("raise SystemExit('was run')\ndef swish(x): ...\nclass Net: ...\n")
    monkeypatch.chdir(tmp_path)
    assert is_no_class("advised.swish") and not is_no_class("advised.Net") and not is_no_class("nowhere.swish")
