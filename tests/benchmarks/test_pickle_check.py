"""Every architecture through the reader of pickles: the program on tiny ones, and what its comparison sees."""

import copy
import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import pickle_check  # noqa: E402

from tests import warm  # noqa: E402

TINY = ["timm/test_resnet", "timm/test_vit"]


def program(*arguments):
    return warm.run(
        [sys.executable, "benchmarks/pickle_check.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_what_is_pickled_comes_back_and_a_run_goes_on_where_it_was(tmp_path):
    done = program(*TINY, "-j", "1", "--work", tmp_path, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "pickle_check.json").read_text())
    assert found["models"] == found["loaded"] == found["equal"] == found["same_plan"] == 2 and found["failed"] == {}
    assert found["with_sites"] == found["converted_again"] == found["outputs_equal"] == 1 and found["tensors"] > 150
    again = program(*TINY, "-j", "1", "--work", tmp_path, "--out", tmp_path)
    assert "[1/2]" not in again.stdout and json.loads((tmp_path / "pickle_check.json").read_text()) == found


def test_a_part_of_the_zoo_does_not_become_the_result(tmp_path):
    done = program(*TINY, "--work", tmp_path)
    assert done.returncode == 2 and "give --out" in done.stderr


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.twin = nn.Conv2d(3, 4, 3)
        self.twin.weight = self.conv.weight
        self.stages = nn.Sequential(nn.ReLU(), nn.LSTM(4, 4))
        self.register_buffer("grid", torch.tensor([0.0, 1.0]), persistent=False)
        self.act = functools.partial(nn.functional.leaky_relu, negative_slope=0.2)
        self.pool = nn.functional.max_pool2d
        self.sizes = {"low": (1, 2.0), "high": [3, None]}


CHANGES = {
    "bits": lambda net: net.conv.weight.data[0, 0, 0, 0].add_(1e-3),
    "dtype": lambda net: net.stages.half(),
    "frozen": lambda net: net.conv.bias.requires_grad_(False),
    "untied": lambda net: setattr(net.twin, "weight", nn.Parameter(net.conv.weight.detach().clone())),
    "mode": lambda net: net.stages.eval(),
    "class": lambda net: net.stages.__setitem__(0, nn.ReLU6()),
    "tree": lambda net: net.stages.append(nn.ReLU()),
    "persistent": lambda net: net._non_persistent_buffers_set.clear(),
    "partial": lambda net: net.act.keywords.update(negative_slope=0.3),
    "function": lambda net: setattr(net, "pool", nn.functional.avg_pool2d),
    "value": lambda net: net.sizes.update(low=(1, 2)),
    "order": lambda net: net.sizes.update(low=net.sizes.pop("low")),
    "attribute": lambda net: setattr(net.conv, "note", 1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_comparison_sees(what):
    net = Net()
    other = copy.deepcopy(net)
    assert pickle_check.same(net, other) == len({*net.parameters(), *net.buffers()})
    CHANGES[what](other)
    with pytest.raises(AssertionError):
        pickle_check.same(net, other)
