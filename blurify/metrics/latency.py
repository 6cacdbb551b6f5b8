"""How long models take for a picture: they take turns, so that what else the machine does befalls all alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from blurify.errors import BlurifyError
from blurify.metrics.evidence import Latency, Timing
from blurify.metrics.subject import Subject, Watch

Clock = Callable[[], float]
ROUNDS = 15
SECONDS = 6.0
_FEWEST = 3
_WARM = 2


def latency(
    subjects: Sequence[Subject],
    *,
    batch: int = 1,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    wall: Clock = time.perf_counter,
    cpu: Clock = time.process_time,
    watch: Watch | None = None,
) -> Latency:
    """The time that each of some models takes for one picture, on the machine and threads at hand.

    After two runs each to warm up, the models run in turn, one run each a round, every other round in the opposite
    order; a round more as long as there is time. Of each there are the median over the rounds with its quartiles, and
    those of its time over the first's in the same round, which a machine that is busy for a while hardly moves. Times
    are of whole runs, normalising the pictures included, and over the pictures of a run.

    Args:
        subjects: the models, on one device.
        batch: pictures a run.
        rounds: at most; at least three are measured, whatever the time.
        seconds: for the rounds of all models together.
        wall, cpu: tell the time, in seconds.
        watch: told of each round.

    Raises:
        BlurifyError: a model refuses such a batch.
    """
    if batch < 1 or rounds < 1:
        raise BlurifyError(f"a batch of {batch} and {rounds} rounds are no measurement: give at least 1 of each")
    geometry = subjects[0].preprocessing
    pictures = torch.rand(batch, geometry.channels, *geometry.crop, generator=torch.Generator().manual_seed(0))
    walls: list[list[float]] = [[] for _ in subjects]
    cpus: list[list[float]] = [[] for _ in subjects]
    for subject in subjects:
        for _ in range(_WARM):
            _run(subject, pictures)
    begun = wall()
    for number in range(rounds):
        order = list(range(len(subjects)))
        for index in order if number % 2 == 0 else reversed(order):
            started, worked = wall(), cpu()
            _run(subjects[index], pictures)
            walls[index].append((wall() - started) / batch)
            cpus[index].append((cpu() - worked) / batch)
        if watch is not None:
            watch("latency", number + 1, rounds)
        if number + 1 >= min(_FEWEST, rounds) and wall() - begun > seconds:
            break
    timings = []
    for times, worked_times in zip(walls, cpus, strict=True):
        ratios = [one / other if other > 0 else 1.0 for one, other in zip(times, walls[0], strict=True)]
        low, middle, high = quartiles(times)
        ratio_low, ratio, ratio_high = quartiles(ratios)
        timings.append(Timing(middle, low, high, statistics.median(worked_times), ratio, ratio_low, ratio_high))
    first = subjects[0]
    return Latency(
        tuple(timings),
        len(walls[0]),
        batch,
        (geometry.channels, *geometry.crop),
        first.device.type,
        machine(first.device),
        torch.get_num_threads(),
        str(first.dtype).removeprefix("torch."),
    )


def _run(subject: Subject, pictures: torch.Tensor) -> None:
    subject.run(pictures)
    if subject.device.type == "cuda":
        torch.cuda.synchronize(subject.device)
    elif subject.device.type == "mps":
        torch.mps.synchronize()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile, linear between two values."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def machine(device: torch.device) -> str:
    """What the processor or accelerator is called; '' where nothing says so."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
