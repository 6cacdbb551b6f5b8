"""The audit of other libraries: what it says of models that convert, that fail, and that take too long or too much."""

import argparse
import time

import pytest
import torch
from torch import nn

from benchmarks import wild_check, wild_page
from benchmarks.wild.catalog import Library, Model, libraries


def strided():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def hangs():
    time.sleep(60)


def dies():
    import os

    os._exit(3)


def broken():
    raise RuntimeError("weights are elsewhere")


class Unhappy(nn.Module):
    """Runs, but not for blurify, whose copies of it fail."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)

    def forward(self, x):
        return self.conv(x)

    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")


def picture():
    return torch.zeros(1, 3, 16, 16)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    models = [
        Model("good", strided, picture),
        Model("flat", lambda: nn.Conv2d(3, 4, 3), picture),
        Model("broken", broken, picture),
        Model("hangs", hangs, picture),
        Model("dies", dies, picture),
        Model("unhappy", Unhappy, picture),
    ]
    library = Library("fake", (), lambda: iter(models))
    hanging = argparse.Namespace(work=work, only="hangs", again=False, timeout=1.0, memory=100.0)
    wild_check.one_library(library, hanging)
    options = argparse.Namespace(work=work, only="", again=False, timeout=300.0, memory=100.0)
    wild_check.one_library(library, options)
    first = wild_check.read(work / "fake.jsonl")
    wild_check.one_library(library, options)  # all are known: nothing is done again
    assert (work / "fake.jsonl").read_text().count("\n") == len(models)
    return first


def test_each_model_ends_as_it_should_and_says_why(rows):
    assert {name: (row["status"], row["stage"]) for name, row in rows.items()} == {
        "fake/good": ("converted", ""),
        "fake/flat": ("inspected", ""),
        "fake/broken": ("failed", "build"),
        "fake/hangs": ("failed", "build"),
        "fake/dies": ("failed", "build"),
        "fake/unhappy": ("failed", "inspect"),
    }
    assert rows["fake/good"]["converted"] == 1 and rows["fake/good"]["sites_left"] == 0
    assert rows["fake/broken"]["error"] == "RuntimeError: weights are elsewhere"
    assert rows["fake/hangs"]["error"] == "it takes longer than 1 s"
    assert rows["fake/dies"]["error"] == "the process died"
    assert "no copies" in rows["fake/unhappy"]["error"]


def test_the_page_tells_failures_of_blurify_from_those_of_libraries(rows):
    found = list(rows.values())
    text = wild_page.page(wild_page.report(found, {"blurify": "1", "torch": "2", "python": "3"}), found)
    ours, theirs = text.split("## Failed in blurify")[1].split("## Not to be built")
    assert "fake/unhappy" in ours and "fake/broken" not in ours
    assert all(f"fake/{name}" in theirs for name in ("broken", "hangs", "dies"))
    assert "| fake | 6 | 1 | 1 | 4 |" in text


def test_there_are_a_dozen_libraries_each_with_what_it_needs():
    known = libraries()
    assert len({library.name for library in known}) == len(known) >= 12
    assert all(library.packages for library in known)
