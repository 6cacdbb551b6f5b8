"""Small tables in HTML, as notebooks show objects (`_repr_html_`): no script, nothing from elsewhere, all text escaped.

They have no colours of their own but lines of half the text's, so that they suit light notebooks and dark ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_TABLE = "border-collapse: collapse; margin: .4em 0; font-variant-numeric: tabular-nums"
_CELL = (
    "text-align: left; vertical-align: top; padding: .2em .9em .2em 0; border-bottom: 1px solid rgba(128, 128, 128, .5)"
)
_QUIET = "opacity: .8; margin: .2em 0"
MOST_ROWS = 60


def table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, says: str = "", note: str = ""
) -> str:
    """A table under a line of text.

    Args:
        caption: what it is of.
        headings: of the columns; the first column's cells are the headings of the rows.
        rows: plain text; beyond the first `MOST_ROWS` they are counted.
        says: what it comes to, before the table.
        note: below it.
    """
    head = "".join(f'<th scope="col" style="{_CELL}">{escape(name)}</th>' for name in headings)
    left = len(rows) - MOST_ROWS
    body = "".join(_row(row) for row in rows[:MOST_ROWS])
    if left > 0:
        note = f"and {left} more. {note}".strip()
    parts = [
        f"<p><strong>{escape(caption)}</strong></p>",
        f"<p>{escape(says)}</p>" if says else "",
        f'<table style="{_TABLE}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>' if rows else "",
        f'<p style="{_QUIET}">{escape(note)}</p>' if note else "",
    ]
    return f'<div style="overflow-x: auto; max-width: 100%">{"".join(parts)}</div>'


def _row(cells: Sequence[str]) -> str:
    first, *rest = cells
    parts = [f'<th scope="row" style="{_CELL}; font-weight: 600"><bdi>{escape(first)}</bdi></th>']
    parts += [f'<td style="{_CELL}">{escape(cell)}</td>' for cell in rest]
    return f"<tr>{''.join(parts)}</tr>"


def times(values: Sequence[int]) -> str:
    """(3, 3) -> '3×3'."""
    return "×".join(map(str, values))


def amount(number: float) -> str:
    """A count with a unit: 1820000000 -> '1.82 G'."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"
