"""Forwards in lockstep: the same as one after the other, but that a layer may change before any batch gets there."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from blurify.tuning.lockstep import in_lockstep
from tests.tuning.networks import Small, pictures, trained


def _batches(count: int = 3) -> list:
    return [((pictures(4, seed),), {}) for seed in range(count)]


def test_every_batch_waits_before_a_layer_that_changes_for_all():
    model = trained(Small())
    batches = _batches()
    seen: list[tuple[str, int]] = []

    def visit(path: str, given: list[Tensor]) -> None:
        seen.append((path, len(given)))
        if path == "mix":
            with torch.no_grad():
                model.mix.weight.mul_(2)

    answers = in_lockstep(model, batches, ["down", "mix"], visit)
    assert seen == [("down", 3), ("mix", 3)]
    with torch.no_grad():  # the weight is doubled now: for every batch it was before the layer ran
        assert all(torch.equal(answer, model(*args)) for answer, (args, _) in zip(answers, batches, strict=True))


def test_what_a_layer_gets_is_what_it_gets_alone():
    model, batches, kept = trained(Small()), _batches(), []
    in_lockstep(model, batches, ["norm2"], lambda _, given: kept.extend(one.clone() for one in given))
    for (args, _), found in zip(batches, kept, strict=True):
        inside = []
        handle = model.norm2.register_forward_pre_hook(lambda _, given, inside=inside: inside.append(given[0]))
        with torch.no_grad():
            model(*args)
        handle.remove()
        assert torch.equal(inside[0], found)


@pytest.mark.parametrize("where", ["visit", "forward"])
def test_an_error_ends_all_forwards_and_takes_the_hooks_away(where):
    class Failing(Small):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            if where == "forward":
                raise ValueError("the model's own")
            return out

    model = trained(Small())
    model.__class__ = Failing
    before = threading.active_count()

    def visit(path: str, given: list[Tensor]) -> None:
        if where == "visit":
            raise ValueError("the visitor's own")

    with pytest.raises(ValueError, match="own"):
        in_lockstep(model, _batches(), ["down", "mix"], visit)
    assert threading.active_count() == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_batches_that_take_other_ways_are_visited_in_groups():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large, self.end = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.small(x) if len(x) < 3 else self.large(x))

    seen = []
    batches = [((torch.randn(count, 3),), {}) for count in (2, 4, 2)]
    in_lockstep(Forked(), batches, ["small", "large", "end"], lambda path, given: seen.append((path, len(given))))
    assert sorted(seen) == [("end", 1), ("end", 2), ("large", 1), ("small", 2)]
