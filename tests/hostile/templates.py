"""Good files that hostile ones are made of: small, and the same every time."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

import blurify
from blurify.files.checkpoint import header_of
from blurify.files.sources import ModelSource

ARCH = "timm/test_resnet"


def small_model() -> nn.Module:
    """A network with one of each common layer, a pool and a strided convolution."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.GroupNorm(2, 6), nn.GELU(), nn.Dropout(0.1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()


@functools.cache
def models() -> dict[str, nn.Module]:
    """The models in the files."""
    torch.manual_seed(0)
    return {"small": small_model(), "resnet": timm.create_model("test_resnet").eval(), "recurrent": recurrent()}


def recurrent() -> nn.Module:
    """Layers whose `__setstate__` is their own."""
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, 2), nn.Upsample(scale_factor=2), nn.Softmax(1), nn.Conv1d(4, 4, 3, 2)
    ).eval()


@functools.cache
def converted() -> tuple[nn.Module, dict[str, Any]]:
    """A converted model and its header."""
    model = blurify.convert(models()["resnet"], verify=False)
    plan = blurify.plan_of(model)
    assert plan is not None
    return model, header_of(plan, ModelSource(ARCH, "factory", ARCH))


def saved(content: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@functools.cache
def files() -> dict[str, bytes]:
    """The good files, by a name that ends as theirs would."""
    model, header = converted()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    legacy = {"_use_new_zipfile_serialization": False}
    metadata = {"format": "pt", "blurify": json.dumps({**header, "shared": {}})}
    made = {
        "module.pt": saved(models()["small"]),
        "legacy.pt": saved(models()["small"], **legacy),
        "resnet.pt": saved(models()["resnet"]),
        "weights.pt": saved({"state_dict": weights, "epoch": 3}),
        "legacy-weights.pt": saved(weights, **legacy),
        "protocol4.pt": saved(models()["small"], pickle_protocol=4),
        "planned.pt": saved({"state_dict": weights, "blurify": header}),
        "planned.safetensors": safetensors_bytes(weights, metadata),
        "weights.safetensors": safetensors_bytes(weights),
    }
    with TemporaryDirectory() as folder:
        blurify.save(model, Path(folder) / "x.pt")
        made["converted.pt"] = (Path(folder) / "x.pt").read_bytes()
    return made


def needs_arch(name: str) -> bool:
    """Whether a file holds only weights."""
    return "weights" in name


def pickle_in(archive: bytes) -> bytes:
    """The pickle of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith("data.pkl")]
        return opened.read(name)


def with_pickle(archive: bytes, pickled: bytes) -> bytes:
    """The same archive around another pickle."""
    return with_entries(archive, lambda name, content: pickled if name.endswith("data.pkl") else content)


def with_entries(archive: bytes, change: Any, **options: Any) -> bytes:
    """The same archive with other contents, written by Python."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(zipfile.ZipInfo(info.filename), content)
    return buffer.getvalue()
