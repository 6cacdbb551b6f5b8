"""The charts as PNG and SVG files, drawn by matplotlib on white."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blurify.errors import BlurifyError
from blurify.files import atomic
from blurify.reporting import charts, content, evidence_figures, heatmaps, words
from blurify.reporting.content import Curve, Layer, Report, Row, TradeOff
from blurify.reporting.drawing import COLOURS, LINES, MARKERS, legend, new_figure, short, title
from blurify.reporting.page import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from blurify.metrics.pareto import ParetoTable

NAMES = (
    "consistency", "heatmaps", "aliasing", "trade-off", "pareto", "stability", "corruptions", "worst-case",
    *evidence_figures.NAMES,
)  # fmt: skip
FORMATS = ("png", "svg")
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "blurify", "font.size": 9.0, "axes.spines.top": False,
          "axes.spines.right": False, "axes.edgecolor": "#525c67", "grid.color": "#e3e7eb"}  # fmt: skip
_DPI = 160
_MOST_NAMES = 12  # beside the marks of one curve
_ACROSS = 8  # layers side by side
_ASIDE = 0.07  # of the way to the next point
_BARS = "bars: 95% intervals"
_BETTER = {"higher": "(higher is better)", "lower": "(lower is better)"}


def check_figures(directory: str | Path, *, force: bool = False) -> None:
    """Raise BlurifyError where the figures can't be written into `directory`: worth asking before the work is done.

    The directory is made where it does not exist: only that tells whether it can be.
    """
    require("matplotlib")
    directory = Path(directory).expanduser()
    if directory.exists() and not directory.is_dir():
        raise BlurifyError(f"{directory} is a file: --figures takes a directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BlurifyError(f"the directory {directory} can't be made: {error.strerror}") from error
    for path in (directory / f"{name}.{format}" for name in NAMES for format in FORMATS):
        atomic.check_target(path, force=force)


def write_figures(report: Report, directory: str | Path, *, force: bool = False) -> list[Path]:
    """Write every figure that there are measurements for, as NAME.png and NAME.svg.

    Args:
        report: what to draw.
        directory: is made where it does not exist.
        force: replace files that are there.

    Returns:
        The files.

    Raises:
        BlurifyError: matplotlib is not installed, or a file exists or can't be written.
    """
    check_figures(directory, force=force)
    from matplotlib import rc_context

    directory = Path(directory).expanduser()
    written = []
    with rc_context(_STYLE):
        for name, figure in _figures(report).items():
            for format in FORMATS:
                path = directory / f"{name}.{format}"
                atomic.write_file(path, functools.partial(_draw, figure, format), force=force)
                figure.set_layout_engine("none")  # laid out once; the other formats look the same
                written.append(path)
    return written


def _figures(report: Report) -> dict[str, Figure]:
    """The figures by name, those without measurements left out."""
    flips, grid = content.flip_rates(report), content.worst_case(report)
    steady = content.consistency(report)
    maps = [layer for layer in content.layers(report) if layer.comparable and not layer.flat]
    curve = content.aliasing(report)
    kept = content.trade_off(report)
    accuracy = content.corruptions(report, "accuracy")
    corrupted = accuracy or content.corruptions(report, "agreement")
    what = "Accuracy under corruption" if accuracy else "Same answer as for the clean picture"
    found: dict[str, Figure | None] = {
        "consistency": _dots(report, steady, f"Consistency; {_BARS}") if steady else None,
        "heatmaps": _heatmaps(report, maps) if maps else None,
        "aliasing": _depth(report, curve) if curve else None,
        "trade-off": _trade_off(kept) if len(kept) > 1 else None,
        "pareto": _pareto(report.pareto) if report.pareto is not None else None,
        "stability": _dots(report, flips, f"Flip rates; {_BARS}") if flips else None,
        "corruptions": _multiples(report, corrupted, f"{what}, by severity; {_BARS}") if corrupted else None,
        "worst-case": _dots(report, grid, f"Worst case over translations and rotations; {_BARS}") if grid else None,
        **evidence_figures.figures(report),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _draw(figure: Figure, format: str, file: BinaryIO) -> None:
    # Neither a date nor matplotlib's version: the same report gives the same files.
    metadata: dict[str, Any] = {"Date": None, "Creator": "blurify"} if format == "svg" else {"Software": "blurify"}
    figure.savefig(file, format=format, dpi=_DPI, metadata=metadata)


def _dots(report: Report, rows: Sequence[Row], heading: str) -> Figure:
    """Estimates with their intervals, one row a figure."""
    figure = new_figure(7.5, 1.1 + 0.42 * len(rows) * len(report.measurements) ** 0.5)
    axes = figure.subplots()
    highest = 0.0
    for number, row in enumerate(rows):
        for series, item in enumerate(row.estimates):
            if charts.drawable(item):
                offset = (series - (len(row.estimates) - 1) / 2) * (0.3 if len(row.estimates) < 3 else 0.25)
                _mark(
                    axes,
                    series,
                    [item.value],
                    [number + offset],
                    xerr=[[item.value - item.low], [item.high - item.value]],
                )
                highest = max(highest, item.high)
    # Which way is good, beside each: one figure may hold both kinds.
    labels = [f"{short(report.told(row.label), 60)} {_BETTER[row.better]}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    ticks = charts.ticks_to(highest)
    axes.set_xticks(ticks, [charts.share(value) for value in ticks])
    axes.set_xlim(-0.015 * ticks[-1], ticks[-1] * 1.015)  # marks at the ends stay whole
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(left=False)
    title(axes, heading)
    legend(report, figure, loc="outside lower left", ncols=2)
    return figure


def _mark(axes: Axes, series: int, x: Sequence[float], y: Sequence[float], **errors: Any) -> None:
    colour = COLOURS[series]
    axes.errorbar(
        x, y, fmt=MARKERS[series], color=colour, markersize=5, elinewidth=1.6, capsize=2,
        markerfacecolor="white" if series == 0 else colour, **errors,
    )  # fmt: skip


def _curve(axes: Axes, curve: Curve, highest: float) -> None:
    """A line a measurement through the points of a curve, broken where one is not known."""
    for series, part in enumerate(curve.series):
        middle = (len(curve.series) - 1) / 2
        aside = _ASIDE * (series - middle) / middle if middle else 0.0  # so that equal values all show
        values = [item.value if charts.drawable(item) else math.nan for item in part]
        places = [number + aside for number in range(1, len(part) + 1)]
        axes.plot(places, values, color=COLOURS[series], linestyle=LINES[series], linewidth=1.4)
        for place, item in zip(places, part, strict=True):
            if charts.drawable(item):
                _mark(axes, series, [place], [item.value], yerr=[[item.value - item.low], [item.high - item.value]])
    ticks = charts.ticks_to(highest)
    axes.set_yticks(ticks, [charts.share(value) for value in ticks])
    axes.set_ylim(-0.02 * ticks[-1], ticks[-1] * 1.02)  # marks at the ends stay whole
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _depth(report: Report, curve: Curve) -> Figure:
    figure = new_figure(max(7.5, 1.5 + 0.24 * len(curve.points)), 4.2)
    axes = figure.subplots()
    _curve(axes, curve, charts.largest([curve]))
    axes.set_xticks(
        range(1, len(curve.points) + 1), [short(name) for name in curve.points], rotation=60, ha="right",
        rotation_mode="anchor", parse_math=False,
    )  # fmt: skip
    title(axes, f"Share of energy above the new Nyquist frequency, by site; {_BARS}")
    legend(report, axes, loc="best")
    return figure


def _trade_off(points: Sequence[TradeOff]) -> Figure:
    """Answers kept over aliasing removed, the name of each further site beside its mark."""
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    removed, kept = [point.removed for point in points], [point.kept for point in points]
    axes.plot(removed, kept, color=COLOURS[0], linestyle=LINES[1], linewidth=1.4)
    for point in points:
        ends = (
            None if point.low is None or point.high is None else [[point.kept - point.low], [point.high - point.kept]]
        )
        _mark(axes, 0, [point.removed], [point.kept], yerr=ends)
    if len(points) <= _MOST_NAMES:
        for point in points:
            axes.annotate(
                short(point.label), (point.removed, point.kept), xytext=(6, 4), textcoords="offset points",
                fontsize=7, parse_math=False,
            )  # fmt: skip
    across, up = charts.ticks_to(max(removed)), charts.ticks_to(1.0)
    axes.set_xticks(across, [charts.share(value) for value in across])
    axes.set_yticks(up, [charts.share(value) for value in up])
    axes.set_ylim(-0.02, 1.05)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_xlabel("aliasing removed at the sites")
    title(axes, f"Answers kept, one site more at each mark; {_BARS}")
    return figure


def _pareto(table: ParetoTable) -> Figure | None:
    """Answers kept and aliasing left over what partial conversions cost; marks of dominated ones are small."""
    costs = {"macs": "extra multiply-adds", "bytes": "extra activation memory"}
    known = [cost for cost in costs if all(charts.cost_of(table, point, cost) is not None for point in table.points)]
    if not known:
        return None
    figure = new_figure(0.8 + 4.2 * len(known), 4.0)
    for cost, axes in zip(known, figure.subplots(1, len(known), sharey=True, squeeze=False)[0], strict=True):
        across = [charts.cost_of(table, point, cost) or 0.0 for point in table.points]
        for series, name in ((charts.LEFT, "aliasing left"), (charts.KEPT, "answers kept")):
            _costs(axes, table, series, name, across, joined=cost == "macs")
        axes.set_xscale("function", functions=(_roots, _squares))
        ticks = charts.cost_ticks(min(across), max(across))
        axes.set_xticks(ticks, [words.signed(charts.share(value)) for value in ticks])
        axes.minorticks_off()
        first, last = (charts.root(end(*across, *ticks)) for end in (min, max))
        margin = 0.03 * (last - first)
        ends = first - margin, last + margin
        axes.set_xlim(*(math.copysign(end * end, end) for end in ends))
        axes.set_xlabel(f"{costs[cost]} (scale of square roots)")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        shares = [value for point in table.points for value in (point.kept, table.left(point)) if value is not None]
        up = charts.ticks_to(max(1.0, *shares), most=None)
        axes.set_yticks(up, [charts.share(value) for value in up])
        axes.set_ylim(-0.03 * up[-1], 1.05 * up[-1])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower left", ncols=3)
    heading = f"Partial conversions of {short(table.model)} by cost; small marks: dominated by another"
    figure.suptitle(heading, x=0.01, ha="left", parse_math=False)
    return figure


def _costs(axes: Axes, table: ParetoTable, series: int, name: str, across: Sequence[float], *, joined: bool) -> None:
    """One series over a cost."""
    values = [point.kept if series == charts.KEPT else table.left(point) for point in table.points]
    shown = [
        (x, y, point, front)
        for x, y, point, front in zip(across, values, table.points, table.front, strict=True)
        if y is not None
    ]
    colour = COLOURS[series]
    on_the_way = [(x, y) for x, y, point, _ in shown if point.steps is not None]
    if joined:
        axes.plot(*zip(*on_the_way, strict=True), color=colour, linestyle=LINES[series], linewidth=1.4)
    for number, (x, y, point, front) in enumerate(shown):
        ends = None
        if series == charts.KEPT and point.answers is not None:
            ends = [[y - point.answers.low], [point.answers.high - y]]
        axes.errorbar(
            [x], [y], yerr=ends, fmt=MARKERS[series], color=colour, markersize=6 if front else 3.5, elinewidth=1.2,
            capsize=2, markerfacecolor="white" if series == 0 else colour, label=name if number == 0 else None,
        )  # fmt: skip
        if point.present:
            label = "the present conversion" if series == charts.LEFT else None
            axes.plot([x], [y], "o", color=COLOURS[2], markersize=13, markerfacecolor="none", label=label)


def _roots(values: Any) -> Any:
    import numpy as np

    return np.copysign(np.sqrt(np.abs(values)), values)


def _squares(values: Any) -> Any:
    import numpy as np

    return np.copysign(np.square(values), values)


def _multiples(report: Report, curves: Sequence[Curve], heading: str) -> Figure:
    """One small chart a curve, all on the same axes."""
    columns = min(4, len(curves))
    lines = math.ceil(len(curves) / columns)
    figure = new_figure(2.4 * columns, 0.8 + 1.8 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    highest = charts.largest(curves)
    for number, axes in enumerate(grid.flat):
        if number >= len(curves):
            axes.set_visible(False)
            continue
        _curve(axes, curves[number], highest)
        axes.set_xticks(range(1, len(curves[number].points) + 1))
        title(axes, short(curves[number].label), fontsize=9)
    figure.suptitle(heading, x=0.01, ha="left")
    legend(report, figure, loc="outside lower left", ncols=2)
    return figure


def _heatmaps(report: Report, layers: Sequence[Layer]) -> Figure:
    """The maps of each layer, one measurement below the other, on one scale of colours."""
    from matplotlib.colors import ListedColormap

    models = len(report.measurements)
    columns = min(_ACROSS, len(layers))
    bands = math.ceil(len(layers) / columns)
    figure = new_figure(max(4.0, 1.5 * columns + 0.8), bands * (1.35 * models + 0.35) + 0.9)
    grid = figure.subplots(bands * models, columns, squeeze=False)
    colours = [tuple(sample / 255 for sample in colour) for colour in heatmaps.SCALE]
    scale = ListedColormap(colours).with_extremes(bad="grey")
    highest = content.largest_distance(layers) or 1.0
    drawn = None
    for axes in grid.flat:
        axes.set_axis_off()
    for number, layer in enumerate(layers):
        band, column = divmod(number, columns)
        for series, (role, found) in enumerate(zip(report.roles, layer.maps, strict=True)):
            if found is None:
                continue
            axes = grid[band * models + series, column]
            drawn = axes.imshow(found.distances, cmap=scale, vmin=0, vmax=highest, interpolation="nearest")
            name = f"{short(layer.name, 18)}\n" if series == 0 else ""
            title(axes, f"{name}{role + ', ' if models > 1 else ''}mean {words.distance(found.mean)}", fontsize=7)
    figure.colorbar(drawn, ax=grid, shrink=0.6, label="distance from equivariance (0: none)")  # type: ignore[arg-type]
    figure.suptitle("Equivariance maps: down, shifts in y; across, shifts in x", x=0.01, ha="left")
    return figure
