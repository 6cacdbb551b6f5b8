"""The list of what a file may name: it fits the libraries that are installed, and holds nothing that it should not."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from blurify.files.pickled import names

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import pickle_names  # noqa: E402

DOCUMENT = json.loads((ROOT / "blurify" / "files" / "pickled" / "known.json").read_text())


def test_every_layer_of_the_installed_libraries_is_known_or_left_out_with_a_reason():
    taken, left = pickle_names.library_modules()
    known = names.known()["modules"]
    # Of another release, only what its architectures need must be there: see below.
    same = {top for top in ("torch", "torchvision", "timm") if version(top) == DOCUMENT["versions"][top]}
    assert not {full for full in taken - known if full.partition(".")[0] in same}, "run make pickle-names"
    assert not left.keys() & known
    assert all(left.values())


FAMILIES = [f"timm/{min(timm.list_models(module=module), key=len)}" for module in timm.list_modules()] + [
    f"torchvision/{name}"
    for name in ("googlenet", "raft_small", "retinanet_resnet50_fpn", "ssd300_vgg16", "s3d", "swin_t", "fcn_resnet50")
]
CHUNKS = 8


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_what_architectures_need_is_on_the_list(chunk):
    """One of each family of the installed release: `make pickle-names` looks at all."""
    known = names.known()
    for spec in FAMILIES[chunk::CHUNKS]:
        _, needed = pickle_names.names_in_model(spec)
        for kind, some in needed.items():
            assert set(some) <= known[kind], f"{spec} needs more than the list has: run make pickle-names"
        assert needed["modules"], spec


def test_the_program_sees_what_runs_text():
    assert pickle_names.runs_text(Dangerous) == "calls eval"
    assert not pickle_names.runs_text(nn.Conv2d)


class Dangerous(nn.Module):
    def forward(self, x):
        return eval(self.text)


def test_the_list_says_what_it_was_made_with():
    assert DOCUMENT["architectures"] == 1480
    assert set(DOCUMENT["versions"]) == {"python", "torch", "torchvision", "timm"}


def test_values_are_functions_of_tensors_and_layers():
    for full in names.known()["values"]:
        value = names._look_up(full)
        if value is None:
            continue  # of another release
        assert names.is_function(value) or (isinstance(value, type) and issubclass(value, nn.Module)), full
        assert full.split(".")[0] in ("torch", "timm", "torchvision")


@pytest.mark.parametrize(
    "full",
    ["torch.load", "torch.compile", "torch.nn.modules.container.ParameterDict", "torch.fx.graph_module.GraphModule",
     "timm.models._features_fx.FeatureGraphNet", "torch.nn.utils.parametrize.ParametrizationList",
     "torch.nn.modules.lazy.LazyModuleMixin", "torch.nn.parallel.distributed.DistributedDataParallel",
     "torchvision.models.feature_extraction.DualGraphModule", "builtins.eval"],
)  # fmt: skip
def test_what_is_not_on_the_list(full):
    assert not any(full in kind for kind in names.known().values())


def test_names_that_are_looked_up_are_what_they_are_called():
    """No name on the list is another library's object by a second way."""
    for kind in ("modules", "records", "enums"):
        for full in names.known()[kind]:
            found = names._look_up(full)
            if found is None:
                continue  # of another release
            assert isinstance(found, type) and f"{found.__module__}.{found.__qualname__}" == full
    assert torch.nn.Conv2d is names._look_up("torch.nn.modules.conv.Conv2d")


def test_looking_up_names_leaves_other_packages_as_they_were() -> None:
    """ultralytics puts functions of its own in the place of torch.save and PIL.Image.open when it is imported."""
    program = (
        "import torch, PIL.Image\n"
        "before = torch.save, torch.load, PIL.Image.open\n"
        "from blurify.files.pickled import names\n"
        "from blurify.files.pickled.tree import Name\n"
        "found = names.Names().module(Name('ultralytics.nn.tasks', 'DetectionModel'))\n"
        "assert before == (torch.save, torch.load, PIL.Image.open)\n"
        "print(found)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and ("DetectionModel" in done.stdout or "None" in done.stdout), done.stderr
