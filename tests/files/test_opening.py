import argparse
import socket
import sys

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from blurify.errors import BlurifyError
from blurify.files import opening, sources, weights

ARCH = "timm/test_convnext"


@pytest.fixture(scope="module")
def network():
    return timm.create_model("test_convnext").eval()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm/resnet18x", "did you mean timm/resnet18 "),
        ("timm/resnet18.a9_in1k", "no weights 'a9_in1k'"),
        ("timm/", "lacks the name"),
        ("timm/resnet10t?num_class=3", "num_class"),
        ("timm/resnet10t?num_classes", "no option"),
        ("timm/resnet10t?checkpoint_path=x", "can't be set there"),
        ("torchvision/resnet19", "did you mean torchvision/resnet1"),
        ("torchvision/resnet18:NOPE", "IMAGENET1K_V1"),
        ("torchvision/quantized_resnet50", "use torchvision/resnet50"),
        ("python:torch.nn", "python:package.module:factory"),
        ("python:no.such:thing", "no module 'no'"),
        ("python:torch.nn:Linea", "did you mean Linear"),
        ("python:torch.nn:Linear", "missing 2 required"),
        ("python:os:getcwd", "gave a str"),
        ("python:os:sep", "is a str"),
    ],
)
def test_wrong_names(spec, words):
    with pytest.raises(BlurifyError) as caught:
        opening.open_model(spec, pretrained=False)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_architectures_without_weights():
    nameless = next(name for name in timm.list_models("*resnet*") if not timm.is_model_pretrained(name))
    with pytest.raises(BlurifyError, match="--random"):
        opening.open_model(f"timm/{nameless}")


@pytest.mark.parametrize("spec", ["timm/resnet18", "torchvision/resnet18"])
def test_weights_that_cannot_be_downloaded(spec, no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BlurifyError) as caught:
        opening.open_model(spec)
    assert str(caught.value) == (
        f"the pretrained weights of {spec} can't be downloaded (Name or service not known): use --random for random "
        f"weights,"
        f" or give a checkpoint file with --arch {spec}"
    )


@pytest.mark.parametrize(
    "spec",
    [
        "timm/resnet10t?num_classes=3&in_chans=1",
        "torchvision/googlenet",
        "torchvision/fcn_resnet50",
        "torchvision/fasterrcnn_mobilenet_v3_large_fpn",
        "torchvision/r3d_18?num_classes=5",
        "python:torch.nn:Linear?in_features=3&out_features=2",
    ],
)
def test_random_factories_need_no_network(spec, no_network):
    loaded = opening.open_model(spec, pretrained=False)
    assert not loaded.model.training and loaded.source.kind == "factory"
    again = sources.ModelSource.from_dict(loaded.source.to_dict())
    assert again == loaded.source
    model, _ = sources.build(again.arch, pretrained=False, weightless=True)
    assert model.state_dict().keys() == loaded.model.state_dict().keys()
    if "num_classes=3" in spec:
        assert loaded.model.num_classes == 3 and loaded.model.conv1[0].in_channels == 1


def test_weightless_is_what_the_weights_would_make_of_it(no_network):
    """The weights of torchvision decide about more than numbers; `rebuild` must get the same architecture."""
    model, arch = sources.build("torchvision/googlenet", pretrained=False, weightless=True)
    assert arch == "torchvision/googlenet:IMAGENET1K_V1"
    assert model.transform_input and model.aux1 is None
    assert not sources.build("torchvision/googlenet", pretrained=False)[0].transform_input
    assert not nn.Linear(1, 1).load_state_dict({"weight": torch.ones(1, 1), "bias": torch.ones(1)}).missing_keys


def test_python_factory_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine_for_test.py").write_text(
        "from torch import nn\ndef net(width=4):\n    return nn.Conv2d(3, width, 3)\nready = nn.ReLU()\nbroken = "
        "lambda: 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert opening.open_model("python:mine_for_test:net?width=7").model.out_channels == 7
    assert type(opening.open_model("python:mine_for_test:ready").model) is nn.ReLU
    with pytest.raises(BlurifyError, match="ZeroDivisionError"):
        opening.open_model("python:mine_for_test:broken")


WRAPPERS = [
    lambda sd: sd,
    lambda sd: {"state_dict": sd, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    lambda sd: {"model": sd, "optimizer": {"state": {}, "param_groups": []}},
    lambda sd: {"state_dict": {k: v * 0 for k, v in sd.items()}, "state_dict_ema": sd},
    lambda sd: {"model_ema": sd},
    lambda sd: {"model_state_dict": sd},
    lambda sd: {"ema": {"module": sd}},
    lambda sd: {"net": sd},
    lambda sd: {"module": sd},
    lambda sd: {"something": sd, "epoch": 1},
    lambda sd: {"module." + k: v for k, v in sd.items()},
    lambda sd: {"_orig_mod." + k: v for k, v in sd.items()},
    lambda sd: {"state_dict": {"module._orig_mod." + k: v for k, v in sd.items()}},
    lambda sd: {"state_dict": {"net." + k: v for k, v in sd.items()}},
    lambda sd: {"n_averaged": torch.tensor(3), **{"module." + k: v for k, v in sd.items()}},
]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=range(len(WRAPPERS)))
def test_weights_in_every_wrapper(tmp_path, network, wrap):
    path = tmp_path / "w.pth"
    torch.save(wrap(network.state_dict()), path)
    with pytest.raises(BlurifyError, match="--arch"):
        opening.open_model(str(path))
    loaded = opening.open_model(str(path), arch=ARCH)
    assert same(loaded.model, network)
    assert loaded.source == sources.ModelSource("w.pth", "weights", ARCH)


def test_legacy_weights_safetensors_and_wrapped_modules(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "hidden.bin")
    for name in ("old.pth", "w.safetensors", "hidden.bin"):
        assert same(opening.open_model(str(tmp_path / name), arch=ARCH).model, network)
    torch.save({"epoch": 1, "ema": None, "model": network}, tmp_path / "wrapped.pt")
    loaded = opening.open_model(str(tmp_path / "wrapped.pt"))
    assert same(loaded.model, network) and loaded.source.kind == "module" and "'model'" in loaded.note


def test_dtypes_are_the_files(tmp_path, network):
    weights = {k: v.bfloat16() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    torch.save(weights, tmp_path / "w.pt")
    loaded = opening.open_model(str(tmp_path / "w.pt"), arch=ARCH).model.state_dict()
    assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in weights.items())


def test_weights_that_do_not_fit(tmp_path, network):
    weights = network.state_dict()
    torch.save(
        {k: v for k, v in weights.items() if not k.startswith("head.fc")} | {"extra": torch.ones(1)}, tmp_path / "a.pt"
    )
    with pytest.raises(BlurifyError) as caught:
        opening.open_model(str(tmp_path / "a.pt"), arch=ARCH)
    assert "2 of " in str(caught.value) and "head.fc.weight" in str(caught.value)
    assert "1 are not in the architecture (extra)" in str(caught.value)

    small = timm.create_model("test_convnext", num_classes=10)
    torch.save(small.state_dict(), tmp_path / "b.pt")
    with pytest.raises(BlurifyError) as caught:  # what the user said stands
        opening.open_model(str(tmp_path / "b.pt"), arch=f"{ARCH}?num_classes=1000")
    assert "head.fc.weight (10, 64) in the file, (1000, 64) in the architecture" in str(caught.value)
    assert same(opening.open_model(str(tmp_path / "b.pt"), arch=f"{ARCH}?num_classes=10").model, small)
    with pytest.raises(BlurifyError, match="don't fit"):
        opening.open_model(str(tmp_path / "a.pt"), arch="torchvision/squeezenet1_1")


def test_tied_parameters_stay_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

    model = Tied()
    weights.fill(model, {k: v.half() for k, v in Tied().state_dict().items()}, where="w", arch="Tied")
    assert model.b.weight is model.a.weight and model.a.weight.dtype == torch.float16


def write(path, content):
    path.write_bytes(content)
    return path


def test_files_that_are_no_checkpoints(tmp_path, network):
    whole = tmp_path / "model.pt"
    torch.save(network, whole)
    scripted = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), scripted)
    contents = {
        "list.pt": [1, 2],
        "dict.pt": {"epoch": 3},
        "empty_dict.pt": {},
        "tensor.pt": torch.zeros(1),
        "none.pt": None,
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    cases = [
        (tmp_path, "is a directory"),
        (tmp_path / "modle.pt", "did you mean"),
        (tmp_path / "no" / "model.pt", "doesn't exist either"),
        ("resnet50", "timm/resnet50"),
        (write(tmp_path / "empty.pt", b""), "is empty"),
        (write(tmp_path / "text.pt", b"hello\n" * 100), "not a checkpoint"),
        (write(tmp_path / "page.pt", b"<!DOCTYPE html><html>"), "web page"),
        (write(tmp_path / "lfs.pt", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
        (write(tmp_path / "cut.pt", whole.read_bytes()[:-3000]), "damaged, cut off"),
        (write(tmp_path / "cut.safetensors", b"\x10\0\0\0\0\0\0\0{}"), "damaged"),
        (write(tmp_path / "pickle.pt", b"\x80\x02K\x01."), "damaged"),
        (scripted, "TorchScript"),
        (tmp_path / "list.pt", "holds a list"),
        (tmp_path / "dict.pt", "'epoch'"),
        (tmp_path / "empty_dict.pt", "empty dictionary"),
        (tmp_path / "tensor.pt", "holds a Tensor"),
        (tmp_path / "none.pt", "holds a NoneType"),
    ]
    for path, words in cases:
        with pytest.raises(BlurifyError) as caught:
            opening.open_model(str(path), arch=ARCH)
        assert words in str(caught.value) and "\n" not in str(caught.value), path


def test_arch_of_an_architecture():
    with pytest.raises(BlurifyError, match="--arch"):
        opening.open_model(ARCH, arch=ARCH)
    with pytest.raises(BlurifyError, match="no architecture"):
        sources.build("resnet18", pretrained=False)


def test_torchvision_none_is_random(no_network):
    loaded = opening.open_model("torchvision/squeezenet1_1:NONE", pretrained=False)
    assert isinstance(loaded.model, torchvision.models.SqueezeNet)
    assert loaded.source.arch == "torchvision/squeezenet1_1:NONE"
