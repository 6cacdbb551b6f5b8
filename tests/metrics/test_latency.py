"""Times by a clock of the test's own."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics.latency import latency, quartiles
from blurify.metrics.subject import Preprocessing, Subject

GEOMETRY = Preprocessing((4, 4), (5, 5), channels=1, mean=(0.0,), std=(1.0,))


class Clock:
    """Time that passes only where something takes it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Takes(nn.Module):
    """Takes so long a run, one time after the other, and writes down that it ran."""

    def __init__(self, clock: Clock, name: str, ran: list[str], *times: float) -> None:
        super().__init__()
        self.clock, self.name, self.ran, self.times = clock, name, ran, [1000.0, 1000.0, *times]

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.times[min(self.ran.count(self.name), len(self.times) - 1)]
        self.ran.append(self.name)
        return x.flatten(1)


def test_medians_quartiles_and_ratios_of_runs_in_turn() -> None:
    clock, ran = Clock(), []
    first, second = (1.0, 2.0, 4.0, 3.0, 5.0), (2.0, 6.0, 4.0, 12.0, 5.0)
    subjects = [Subject(Takes(clock, "a", ran, *first), GEOMETRY), Subject(Takes(clock, "b", ran, *second), GEOMETRY)]
    found = latency(subjects, batch=2, rounds=5, seconds=1e9, wall=clock, cpu=lambda: clock() / 2)
    assert ran == [*"aabb", *"ab", *"ba", *"ab", *"ba", *"ab"], "two runs to warm up, then in turn, the order turned"
    assert (found.rounds, found.batch, found.shape, found.device) == (5, 2, (1, 4, 4), "cpu")
    for timing, times in zip(found.models, (first, second), strict=True):
        assert timing.wall == statistics.median(times) / 2 and timing.cpu == timing.wall / 2
        assert (timing.low, timing.high) == (sorted(times)[1] / 2, sorted(times)[3] / 2)
    # 2, 3, 1, 4, 1: not the ratio of the medians.
    assert (found.models[1].ratio_low, found.models[1].ratio, found.models[1].ratio_high) == (1, 2, 3)
    assert found.models[0].ratio == 1 and found.threads == torch.get_num_threads()


def test_it_stops_when_time_is_up_but_not_before_three_rounds() -> None:
    clock, ran = Clock(), []
    subject = Subject(Takes(clock, "a", ran, *[10.0] * 20), GEOMETRY)
    assert latency([subject], seconds=1.0, wall=clock, cpu=clock).rounds == 3
    ran.clear()
    assert latency([subject], seconds=45.0, wall=clock, cpu=clock).rounds == 5
    ran.clear()
    assert latency([subject], rounds=1, seconds=0.0, wall=clock, cpu=clock).rounds == 1


def test_what_can_not_be_timed() -> None:
    with pytest.raises(BlurifyError, match="at least 1"):
        latency([], batch=0)
    with pytest.raises(BlurifyError, match="refuses"):
        latency([Subject(nn.Linear(3, 3), GEOMETRY)])


def test_quartiles() -> None:
    assert quartiles([3.0]) == (3, 3, 3) and quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
