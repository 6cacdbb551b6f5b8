"""The Pareto table of a model in words: a line a partial conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blurify.cli import console
from blurify.cli.tables import Column, print_table, say_left_out

if TYPE_CHECKING:
    from blurify.metrics.pareto import ParetoPoint, ParetoTable

_FRONT, _PRESENT = "*", "present"


def print_pareto(table: ParetoTable, *, wide: bool = False) -> None:
    """What partial conversions cost and buy, from none to all sites; all columns where that is asked, or in a pipe."""
    console.say()
    console.say(title(table), style="bold")
    # Long texts stand last, so that the columns of figures stay together in a pipe.
    columns = [
        Column("steps", right=True, use=2), Column("sites", right=True), Column("extra macs", right=True),
        Column("extra memory", right=True, use=1), *([Column("kept", right=True)] if table.measured else []),
        Column("aliasing left", right=True), Column("mark"), Column("what is converted besides", prose=True, use=3),
    ]  # fmt: skip
    rows, styles = [], []
    for point, front in zip(table.points, table.front, strict=True):
        marks = [_FRONT] * front + [_PRESENT] * point.present
        rows.append(
            (
                "" if point.steps is None else str(point.steps), str(point.sites), _share(point.extra_macs, table.macs),
                _share(point.extra_bytes, table.bytes), *([_kept(point)] if table.measured else []),
                _left(table.left(point)), " ".join(marks), "; ".join(point.what),
            )
        )  # fmt: skip
        styles.append("bold" if point.present else "" if front else "dim")
    say_left_out(print_table(columns, rows, styles=styles, wide=wide or not console.on_terminal()))
    console.say(f"{_FRONT} no other point is at least as good in every column and better in one")


def title(table: ParetoTable) -> str:
    """What the table is of, and how it came about."""
    told = f"{len(table.points)} partial conversions of {table.model} by {table.recipe.name}, of {table.steps} steps"
    if not table.measured:
        return f"{told}; costs are counted, aliasing is by rule (--data DIR measures it, and the answers)"
    agreed = table.points[0].agreement
    images = agreed.images if agreed is not None else 0
    answers = "equal answers" if table.points[0].answers is not None else "1 - relative error of the outputs"
    return (
        f"{told}, each measured on {images} pictures of {table.data} (aliasing: {table.aliasing_images}) with the "
        f"weights as they are; kept: {answers}"
    )


def _share(part: int | None, whole: int | None) -> str:
    if part is None or not whole:
        return "" if part is None else f"{part:+d}"
    return f"{part / whole:+.2%}"


def _kept(point: ParetoPoint) -> str:
    if point.kept is None:
        return ""
    found = point.answers
    ends = f" ({100 * found.low:.1f}..{100 * found.high:.1f})" if found is not None else ""
    return f"{point.kept:.1%}{ends}"


def _left(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
