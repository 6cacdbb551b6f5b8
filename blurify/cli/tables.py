"""Tables that fit: the columns that the terminal has room for, in the order of use; all of them where asked."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from blurify.cli import console

PIPED_WIDTH = 120
"""How wide a row may be where no terminal says it, nor COLUMNS."""

_GAP, _INDENT = 2, 2
_LEAST_PROSE = 30  # columns of text that wraps: below, it is a tower of single words


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: what stands above it.
        right: flush right, for numbers.
        use: 0 is always shown; of the others the largest are left out first where there is no room.
        prose: text that may wrap between words, on a terminal.
    """

    heading: str
    right: bool = False
    use: int = 0
    prose: bool = False


def width() -> int:
    """How wide lines may be: the terminal's width; in a pipe COLUMNS, else `PIPED_WIDTH`."""
    if console.on_terminal():
        from rich.console import Console

        return Console().width
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdigit() and int(given) > 0 else PIPED_WIDTH


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    styles: Sequence[str] = (),
    wide: bool = False,
) -> tuple[str, ...]:
    """Print a table of one line a row, cells two spaces apart; no word is broken that fits on a line.

    Where not all columns have room, those of least use are left out. Where even the others have none, the first cell
    of each row, a name, stands on a line of its own.

    Args:
        columns: what they are.
        rows: the cells, as text.
        styles: one rich style a row, for terminals.
        wide: all columns, however long the lines become, and nothing wrapped.

    Returns:
        The headings that were left out.
    """
    room = None if wide else width()
    cells = [[" ".join(cell.split()) or ("" if console.on_terminal() else "-") for cell in row] for row in rows]
    widths = [max((len(row[index]) for row in cells), default=0) for index in range(len(columns))]
    widths = [max(one, len(column.heading)) for one, column in zip(widths, columns, strict=True)]
    shown, alone = list(range(len(columns))), False
    if room is not None:
        shown = _fitting(columns, widths, room)
        alone = _needed(columns, widths, shown) > room and len(shown) > 1
    layout = _Layout(columns, widths, shown, alone, room)
    for line in layout.lines([column.heading for column in columns], heading=True):
        console.say_whole(line, "bold")
    for index, row in enumerate(cells):
        for line in layout.lines(row):
            console.say_whole(line, styles[index] if styles else "")
    return tuple(column.heading for index, column in enumerate(columns) if index not in shown)


def fits(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> bool:
    """Whether all columns have room side by side."""
    widths = [
        max(len(cell) for cell in (column.heading, *cells)) for column, *cells in zip(columns, *rows, strict=True)
    ]
    return _needed(columns, widths, range(len(columns))) <= width()


def _fitting(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """The columns that have room, in their order: those of most use first, then whatever still fits beside them."""
    shown: list[int] = []
    for at in sorted(range(len(columns)), key=lambda at: (columns[at].use, at)):
        if not columns[at].use or _needed(columns, widths, [*shown, at]) <= room:
            shown.append(at)
    return sorted(shown)


def _needed(columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int]) -> int:
    """The least width of these columns together."""
    return sum(_least(columns[at], widths[at]) for at in shown) + _GAP * (len(shown) - 1)


def _least(column: Column, natural: int) -> int:
    return min(natural, max(_LEAST_PROSE, len(column.heading))) if column.prose and console.on_terminal() else natural


@dataclass(frozen=True)
class _Layout:
    """How wide each shown column is, and what a row looks like.

    Attributes:
        columns, widths: of all columns.
        shown: the places of those that are printed.
        alone: the first cell of a row has a line of its own.
        room: how wide a line may be; None where that does not matter.
    """

    columns: Sequence[Column]
    widths: Sequence[int]
    shown: Sequence[int]
    alone: bool
    room: int | None

    def lines(self, row: Sequence[str], *, heading: bool = False) -> list[str]:
        """One row, as the lines that it takes."""
        first, rest = [], list(self.shown)
        indent = 0
        if self.alone:
            rest, indent = rest[1:], _INDENT
            first = self._broken(row[self.shown[0]])
        parts = [self._cell(at, row[at], self._width(at, rest, indent), heading=heading) for at in rest]
        height = max((len(part) for part in parts), default=0)
        lines = []
        for number in range(height):
            cells = [
                (part[number] if number < len(part) else "").ljust(self._width(at, rest, indent))
                for at, part in zip(rest, parts, strict=True)
            ]
            lines.append((" " * indent + (" " * _GAP).join(cells)).rstrip())
        if self.room is not None:
            lines = [
                piece for line in lines for piece in (_folded(line, self.room) if len(line) > self.room else [line])
            ]
        return [*first, *lines]

    def _broken(self, name: str) -> list[str]:
        """A name, on several lines only where it is longer than one: broken behind a dot or slash where there is."""
        return [name] if self.room is None else _folded(name, self.room)

    def _width(self, at: int, rest: Sequence[int], indent: int) -> int:
        if not self.columns[at].prose or self.room is None:
            return self.widths[at]
        others = sum(self.widths[other] for other in rest if other != at) + _GAP * (len(rest) - 1) + indent
        return max(1, min(self.widths[at], max(self.room - others, _least(self.columns[at], self.widths[at]))))

    def _cell(self, at: int, text: str, width: int, *, heading: bool) -> list[str]:
        if self.columns[at].right:
            return [text.rjust(width)]
        if len(text) <= width or not self.columns[at].prose:
            return [text]
        return textwrap.wrap(text, width, break_on_hyphens=not heading) or [""]


def _folded(text: str, room: int) -> list[str]:
    """Text in pieces of at most `room`, each as long as can be, ended by a dot, slash or space if one is there."""
    pieces = []
    while len(text) > room:
        at = max(text.rfind(mark, 1, room) + 1 for mark in "./ ") or room
        pieces.append(text[:at].rstrip(" "))
        text = text[at:]
    return [*pieces, text]


def say_left_out(left_out: Sequence[str]) -> None:
    """Say on a terminal which columns had no room."""
    if left_out and console.on_terminal():
        console.say(f"no room for: {', '.join(left_out)} (--wide or --json shows all)", style="dim")
