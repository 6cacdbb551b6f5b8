"""What all figures in files look like: colours, marks and lines by measurement, titles, legends, names that fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blurify.reporting import words
from blurify.reporting.content import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS, MARKERS, LINES = ("#a34a00", "#0b57b0", "#a8176f"), ("s", "o", "D"), ("--", "-", "-.")
_LONGEST = 40  # characters of a name; its end says more than its start


def new_figure(width: float, height: float) -> Figure:
    """An empty figure on white, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white", layout="constrained")


def legend(report: Report, on: Axes | Figure, **place: Any) -> None:
    """Which marks are which model's."""
    from matplotlib.lines import Line2D

    if len(report.roles) == 1:
        return
    handles: list[Any] = [
        Line2D([], [], color=colour, marker=marker, ls=style, markerfacecolor="white" if index == 0 else colour)
        for index, (colour, marker, style) in enumerate(zip(COLOURS, MARKERS, LINES, strict=True))
    ][: len(report.roles)]
    labels = [f"{role}: {short(item.model)}" for role, item in zip(report.roles, report.measurements, strict=True)]
    for text in on.legend(handles, labels, frameon=False, **place).get_texts():
        text.set_parse_math(False)


def title(axes: Axes, text: str, **more: Any) -> None:
    """A title at the left, as plain text."""
    axes.set_title(text, loc="left", parse_math=False, **more)


def short(name: str, longest: int = _LONGEST) -> str:
    """A name that fits, in characters that every file format can hold."""
    text = words.plain(name)
    return text if len(text) <= longest else f"\N{HORIZONTAL ELLIPSIS}{text[1 - longest :]}"
