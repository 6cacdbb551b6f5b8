"""Safetensors to safetensors without reading the weights: the same file as by reading them, and a proof with them."""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import blurify
from blurify.cli import main
from blurify.errors import BlurifyError, VerificationError
from blurify.files import checkpoints, opening
from blurify.files.tensors import StoredTensors
from blurify.graph import supplying
from blurify.graph.copies import without_weights
from blurify.proof import identity


def stored(path: Path, name: str, change: Any = None, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state if change is None else change(state), path)
    return model.eval()


def opened(path: Path, arch: str) -> Any:
    loaded = opening.open_model(str(path), arch=arch, lazily=True)
    assert loaded.tensors is not None and all(parameter.is_meta for parameter in loaded.model.parameters())
    return loaded


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("test_resnet", None),
        ("test_resnet", lambda state: {f"module.{key}": value for key, value in state.items()}),
        ("test_efficientnet", lambda state: {key: value.half() if value.is_floating_point() else value
                                             for key, value in state.items()}),
        ("test_vit", None),
        ("test_byobnet", lambda state: {**state, "n_averaged": torch.tensor(3)}),
        ("swin_tiny_patch4_window7_224", None),  # has buffers that no file has
        ("densenet121", None),
    ],
)  # fmt: skip
def test_the_same_file_as_by_reading_the_weights(tmp_path, name, change):
    arch = f"timm/{name}"
    stored(tmp_path / "in.safetensors", name, change)
    loaded = opened(tmp_path / "in.safetensors", arch)
    with supplying.supplied(loaded.tensors):
        result = blurify.convert(loaded.model)
    whole = opening.open_model(str(tmp_path / "in.safetensors"), arch=arch)
    expected = blurify.convert(whole.model)
    assert blurify.plan_of(result) == blurify.plan_of(expected)
    if blurify.plan_of(expected) is None:
        return
    checkpoints.save(result, tmp_path / "one.safetensors", source=loaded.source, tensors=loaded.tensors)
    checkpoints.save(expected, tmp_path / "other.safetensors", source=whole.source)
    assert filecmp.cmp(tmp_path / "one.safetensors", tmp_path / "other.safetensors", shallow=False)
    proof, other = blurify.proof_of(result), blurify.proof_of(expected)
    assert (proof.sites_compared, proof.sites_shown) == (other.sites_compared, other.sites_shown)


def test_sharded_files_are_streamed_too(tmp_path):
    import json

    model = stored(tmp_path / "all.safetensors", "test_resnet")
    names = sorted(model.state_dict())
    state = load_file(tmp_path / "all.safetensors")
    for part, kept in (("a", names[::2]), ("b", names[1::2])):
        save_file({name: state[name] for name in kept}, tmp_path / f"{part}.safetensors")
    places = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    loaded = opened(tmp_path / "model.safetensors.index.json", "timm/test_resnet")
    result = blurify.convert(loaded.model, verify=False)
    checkpoints.save(result, tmp_path / "out.safetensors", source=loaded.source, tensors=loaded.tensors)
    found = load_file(tmp_path / "out.safetensors")
    assert {name: torch.equal(found[name], state[name]) for name in names} == dict.fromkeys(names, True)


def test_the_proof_reads_the_weights_of_the_file(tmp_path, monkeypatch):
    """A file with NaN in one weight can't be proven; with made-up weights nobody would know."""

    def broken(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "conv1.0.weight": torch.full_like(state["conv1.0.weight"], torch.nan)}

    stored(tmp_path / "in.safetensors", "test_resnet", broken)
    loaded = opened(tmp_path / "in.safetensors", "timm/test_resnet")
    with supplying.supplied(loaded.tensors), pytest.raises(VerificationError, match="no finite number"):
        blurify.convert(loaded.model)


def test_the_proof_finds_a_wrong_conversion(tmp_path, monkeypatch):
    stored(tmp_path / "in.safetensors", "test_resnet")
    loaded = opened(tmp_path / "in.safetensors", "timm/test_resnet")
    apply_plan = identity.apply_plan

    def wrong(model: nn.Module, plan: Any) -> None:
        apply_plan(model, plan)
        model.get_submodule("layer3.0.conv2").dilation = (2, 2)
        model.get_submodule("layer3.0.conv2").padding = (2, 2)

    monkeypatch.setattr(identity, "apply_plan", wrong)
    with supplying.supplied(loaded.tensors), pytest.raises(VerificationError, match=r"layer3\.0\.conv2"):
        blurify.convert(loaded.model)


def test_the_outputs_are_those_of_the_weights(tmp_path):
    model = stored(tmp_path / "in.safetensors", "test_resnet")
    loaded = opened(tmp_path / "in.safetensors", "timm/test_resnet")
    image = torch.randn(1, 3, 64, 64)
    with supplying.supplied(loaded.tensors), supplying.with_weights(loaded.model):
        found = loaded.model(image)
    with torch.no_grad():
        assert torch.equal(found, model(image))
    with pytest.raises(RuntimeError, match="no data for"), supplying.supplied({}), supplying.with_weights(loaded.model):
        loaded.model(image)


def test_tied_parameters_stay_tied_without_data():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
            self.other.weight = self.one.weight
            self.register_buffer("grid", torch.arange(3.0), persistent=False)

    with without_weights():
        model = Tied()
    assert model.one.weight is model.other.weight and model.one.weight.is_meta
    assert torch.equal(model.grid, torch.arange(3.0))
    assert not nn.Linear(2, 2).weight.is_meta


def test_files_that_do_not_fit_are_told_as_ever(tmp_path):
    stored(tmp_path / "in.safetensors", "test_resnet", num_classes=7)
    for lazily in (True, False):
        with pytest.raises(BlurifyError, match="don't fit timm/test_efficientnet"):
            opening.open_model(str(tmp_path / "in.safetensors"), arch="timm/test_efficientnet", lazily=lazily)


def test_places_in_the_file_are_those_of_the_library(tmp_path):
    state = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(7), "c": torch.ones(0, 4, dtype=torch.bfloat16)}
    save_file(state, tmp_path / "x.safetensors")
    found = StoredTensors(tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    for name, value in state.items():
        one = found.stored(name)
        assert (one.dtype, one.shape, found.shape(name)) == (value.dtype, value.shape, value.shape)
        raw = content[one.begin : one.begin + one.length]
        assert raw == bytes(value.contiguous().view(torch.uint8).flatten().tolist() if value.dim() else
                            value.view(1).view(torch.uint8).tolist())  # fmt: skip


def test_a_forward_that_needs_its_weights_is_read_whole(tmp_path, capsys, monkeypatch):
    """From the command line: it is converted all the same."""
    stored(tmp_path / "in.safetensors", "test_resnet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supplying._Supplying, "_with_data", lambda self, value: value)  # as if it got nothing
    assert main(["convert", "in.safetensors", "--arch", "timm/test_resnet", "-o", "out.safetensors"]) == 0
    assert "wrote out.safetensors" in capsys.readouterr().out
    assert blurify.plan_of(blurify.load("out.safetensors")).converted


def test_pools_without_data(tmp_path):
    """densenet's average pools are compared with their filters, on whatever device they are."""
    with torch.device("meta"):
        model = timm.create_model("densenet121")
    assert blurify.proof_of(blurify.convert(model)) is not None


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_large_convolutions_are_computed_in_parts(monkeypatch, groups, dims):
    """The same values, of which no part of the weights is larger than what is allowed."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](8, 24, 3, stride=2, padding=1, groups=groups)
    weights, most = dict(conv.state_dict()), 200
    with without_weights():
        empty = type(conv)(8, 24, 3, stride=2, padding=1, groups=groups)
    sizes: list[int] = []
    convolution = torch.convolution

    def watched(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.append(weight.numel() * 4)
        return convolution(x, weight, *others)

    monkeypatch.setattr(supplying, "_PART", most)
    monkeypatch.setattr(torch, "convolution", watched)
    x = torch.randn(2, 8, *(9,) * dims)
    with supplying.supplied(weights), supplying.with_weights(empty):
        found = empty(x)
    assert torch.allclose(found, conv(x), atol=1e-6)
    one = conv.weight[0].numel() * 4 * (24 // groups if groups > 1 else 1)  # the least: a channel, or a group
    assert sum(sizes) == conv.weight.numel() * 4 and max(sizes) <= max(most, one) and len(sizes) > 1


def test_the_proof_by_parts_is_that_of_the_whole(tmp_path, monkeypatch):
    stored(tmp_path / "in.safetensors", "test_resnet")
    proofs = []
    for most in (2**25, 500):
        monkeypatch.setattr(supplying, "_PART", most)
        loaded = opened(tmp_path / "in.safetensors", "timm/test_resnet")
        with supplying.supplied(loaded.tensors):
            proofs.append(blurify.proof_of(blurify.convert(loaded.model)))
    assert proofs[0].sites_shown == proofs[1].sites_shown > 0
    assert max(proof.identity_error for proof in proofs) < 1e-4
