"""How long measuring will take, said before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blurify.cli import console
from blurify.cli.keeping import tell
from blurify.cli.tables import Column, print_table

if TYPE_CHECKING:
    from blurify.metrics.expected import Expected
    from blurify.metrics.kept import Kept
    from blurify.metrics.subject import Subject

LONG = 30.0
"""Seconds from which on one is told before the work begins."""

Expectations = Sequence[tuple[str, Sequence["Expected"]]]
"""Of each model, by name."""


def total(found: Expectations) -> float:
    """Seconds of all models and metrics."""
    return sum(one.seconds for _, each in found for one in each)


def left(found: Expectations, kept: Sequence[Kept | None], subjects: Sequence[Subject]) -> Expectations:
    """The same without what is there already of each model."""
    from blurify.metrics.keeping import of_output, steps_of

    def rest(one: Expected, known: Kept | None, subject: Subject) -> Expected:
        if known is None:
            return one
        name = steps_of([one.metric], subject)[-1]
        return replace(one, seconds=one.seconds * (1 - of_output(known, subject).share(name)))

    return [
        (model, [rest(one, known, subject) for one in each])
        for (model, each), known, subject in zip(found, kept, subjects, strict=True)
    ]


def warn(found: Expectations, most_shift: int) -> None:
    """Say on stderr how long it will take, where that is long, and what makes it shorter."""
    whole = total(found)
    if whole < LONG:
        return
    metrics = _by_metric(found)
    longest_first = sorted((name for name in metrics if metrics[name][1]), key=lambda name: -metrics[name][1])
    parts = ", ".join(f"{name} {_about(name, found)}{in_words(metrics[name][1])}" for name in longest_first)
    models = f" for {len(found)} models" if len(found) > 1 else ""
    tell(f"this takes about {in_words(whole)}{models}: {parts}")
    tell(f"shorter: {_shorter(metrics, most_shift)}; Ctrl-C loses nothing: the same command goes on")


def show(found: Expectations, most_shift: int, *, json: bool) -> None:
    """Print the estimate, and nothing else."""
    metrics = _by_metric(found)
    if json:
        console.print_json({"estimate": as_json(found)})
        return
    columns = (Column("metric"), Column("forwards", right=True), Column("about", right=True))
    rows = [
        (name, f"{forwards:,}", f"{_about(name, found)}{in_words(seconds)}")
        for name, (forwards, seconds) in metrics.items()
    ]
    rows.append(("in all", f"{sum(forwards for forwards, _ in metrics.values()):,}", in_words(total(found))))
    print_table(columns, rows)
    which = f"{len(found)} models" if len(found) > 1 else found[0][0]
    console.say(f"forwards of one picture, by {which}; seconds by a batch that was timed")
    console.say(f"shorter: {_shorter(metrics, most_shift)}")


def as_json(found: Expectations) -> dict[str, Any]:
    """Plain data."""
    return {
        "seconds": total(found),
        "models": [
            {
                "model": model,
                "metrics": [
                    {
                        "metric": one.metric,
                        "forwards": one.forwards,
                        "seconds": one.seconds,
                        "at_most": one.at_most,
                    }
                    for one in expected
                ],
            }
            for model, expected in found
        ],
    }


def in_words(seconds: float) -> str:
    """'40 s', '3 min', '2.5 h'."""
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _about(metric: str, found: Expectations) -> str:
    return "up to " if any(one.at_most for _, each in found for one in each if one.metric == metric) else ""


def _by_metric(found: Expectations) -> dict[str, tuple[int, float]]:
    """Forwards and seconds of each metric, over all models."""
    sums: dict[str, tuple[int, float]] = {}
    for _, each in found:
        for one in each:
            forwards, seconds = sums.get(one.metric, (0, 0.0))
            sums[one.metric] = forwards + one.forwards, seconds + one.seconds
    return sums


def _shorter(metrics: Mapping[str, object], most_shift: int) -> str:
    ways = ["--images N", "--metrics LIST"]
    if "equivariance" in metrics and most_shift > 1:
        ways.insert(1, f"--most-shift {most_shift // 2} (a quarter of the shifts)")
    return ", ".join(ways)
