import io
import itertools
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.files import checkpoints, tensors
from tests import warm

TYPES = list(tensors._NAMES)


def written(values, metadata=None):
    file = io.BytesIO()
    tensors.write_tensors(file, values, metadata or {})
    return file.getvalue()


def some(dtype, *shape):
    return torch.arange(7.0, 7.0 + torch.Size(shape).numel()).reshape(shape).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_bytes_are_those_of_safetensors(dtype):
    try:
        expected = save({"a": some(dtype, 3, 5)})
    except KeyError:
        pytest.skip(f"this safetensors has no {dtype}")
    assert written({"a": some(dtype, 3, 5)}) == expected


def test_order_names_and_padding_are_those_of_safetensors():
    common = (torch.float32, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.uint8, torch.float64)
    values = {
        f"{name}.{dtype}": some(dtype, *shape)
        for dtype, (name, shape) in itertools.product(
            common, [("b", (3,)), ("a", ()), ('ü\n"\\é', (0, 4)), ("z", (1, 2))]
        )
    }
    for metadata in ({}, {"format": "pt"}, {"x": "\x01é\u2028 \U0001f600"}):
        for count in range(1, len(values) + 1):
            part = dict(list(values.items())[:count])
            assert written(part, metadata) == save(part, metadata or None)


def test_strides_views_and_lazy_conjugates():
    base = some(torch.float32, 6, 8)
    complex_ = torch.complex(base, -base)
    values = {
        "t": base.t(),
        "step": base[:, ::3],
        "part": base[2:4],
        "expanded": base[:1].expand(4, 8),
        "channels": some(torch.float32, 2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conj": complex_.conj(),
        "neg": complex_.conj().imag,
        "parameter": nn.Parameter(base),
    }
    plain = {name: value.detach().resolve_conj().resolve_neg().contiguous().clone() for name, value in values.items()}
    assert written(values) == save(plain)


def test_long_tensors_go_in_pieces(monkeypatch):
    monkeypatch.setattr(tensors, "_CHUNK", 16)
    values = {"a": some(torch.float32, 37), "b": some(torch.int8, 3, 3)}
    assert written(values) == save(values)


def test_big_endian(monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    value = torch.complex(some(torch.float32, 2), some(torch.float32, 2))
    data = written({"a": value})
    assert data[-16:] == value.view(torch.uint8).reshape(-1, 4).flip(1).numpy().tobytes()


class Holder(nn.Module):
    def __init__(self, **buffers):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.pool(x)


def converted(model):
    return blurify.convert(model.eval(), example_inputs=torch.zeros(1, 2, 16, 16), verify=False)


def test_every_type_comes_back(tmp_path):
    buffers = {f"of_{str(dtype).removeprefix('torch.')}": some(dtype, 2, 3) for dtype in TYPES}
    model = converted(Holder(**buffers))
    checkpoints.save(model, tmp_path / "m.safetensors")
    again = checkpoints.load(tmp_path / "m.safetensors", model=Holder(**buffers))
    for name, value in model.state_dict().items():
        found = again.state_dict()[name]
        assert found.dtype == value.dtype and torch.equal(found.view(torch.uint8), value.view(torch.uint8))


def test_what_safetensors_has_no_place_for(tmp_path):
    for value, words in [
        (torch.zeros(2, dtype=torch.complex128), r"odd is not a plain tensor \(torch.complex128\).*save as \.pt"),
        (torch.zeros(2, 2).to_sparse(), "odd is not a plain tensor"),
        (torch.zeros(2, device="meta"), "odd is not a plain tensor"),
    ]:
        with pytest.raises(BlurifyError, match=words):
            checkpoints.save(converted(Holder(odd=value)), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_mapped_anew_and_stay_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_MAPPED", 10)
    values = {name: some(torch.float32, 8) * i for i, name in enumerate("abcdef")}
    (tmp_path / "x").write_bytes(save(values))
    stored = tensors.StoredTensors(tmp_path / "x")
    stored.share({"again": "c"})
    found = dict(stored)
    assert set(found) == {*values, "again"} and len(stored) == 7
    assert all(torch.equal(found[name], value) for name, value in values.items())
    assert torch.equal(found["again"], values["c"])
    (tmp_path / "x").write_bytes(b"gone")
    with pytest.raises(BlurifyError, match="damaged"):
        dict(stored)


def test_the_header_of_a_model_is_aligned_and_readable(tmp_path):
    checkpoints.save(converted(Holder(a=torch.ones(3))), tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and json.loads(data[8 : 8 + length])["__metadata__"]["format"] == "pt"
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("a"), torch.ones(3))


MEMORY = """
import resource, sys, torch, blurify
from torch import nn
from blurify.files import checkpoints
from blurify.files.sources import ModelSource

class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.big = nn.ParameterList(torch.zeros(4, 2**20).add_(i) for i in range(12))  # 12 of 16 MiB
    def forward(self, x):
        return self.pool(x)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

x = torch.zeros(1, 1, 8, 8)
blurify.convert(nn.Sequential(nn.MaxPool2d(2)), example_inputs=x, verify=False)  # what all this imports
path, action = sys.argv[1:]
if action == "save":
    model = blurify.convert(Big().eval(), example_inputs=x, inplace=True, verify=False)
    source = ModelSource("x", "factory", "python:__main__:Big")
    begin = peak()
    checkpoints.save(model, path, source=source)
else:
    begin = peak()
    model = checkpoints.load(path, arch="python:__main__:Big")
    assert all(bool((part == i).all()) for i, part in enumerate(model.big))
print(peak() - begin)
"""


@pytest.mark.parametrize(("name", "most"), [("m.safetensors", 1.25), ("m.pt", 2.1)])
def test_memory(tmp_path, name, most):
    """Saving takes no memory of a model's size, loading little more than the model itself (with a pickle, twice)."""

    def mebibytes(action):
        return float(
            warm.run(
                [sys.executable, "-c", MEMORY, tmp_path / name, action],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": str(Path(blurify.__file__).parents[1])},
            ).stdout
        )

    size = 12 * 16
    assert mebibytes("save") < 0.2 * size
    assert mebibytes("load") < most * size
