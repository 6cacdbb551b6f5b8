"""The charts and maps of evidence as figures of matplotlib: the same as on the page, one figure a section."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blurify.reporting import charts, evidence_page, heatmaps, words
from blurify.reporting.content import Report
from blurify.reporting.drawing import COLOURS, LINES, MARKERS, legend, new_figure, short, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("flips", "shift-curves", "spectra", "site-features", "agreement")


def figures(report: Report) -> dict[str, Figure | None]:
    """The figures by name; None for those without evidence."""
    return {
        "flips": _flips(report),
        "shift-curves": _curves(report),
        "spectra": _spectra(report),
        "site-features": _features(report),
        "agreement": _standings(report),
    }


def _pixels(address: str) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def _flips(report: Report) -> Figure | None:
    found = report.evidence.flips if report.evidence is not None else None
    shown = [flip for flip in found.shown if flip.shown] if found is not None else []
    if not shown:
        return None
    columns = min(3, len(shown))
    bands = -(-len(shown) // columns)
    figure = new_figure(4.4 * columns, (2.5 + 0.2 * len(report.roles)) * bands + 0.4)
    grid = figure.subplots(bands, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, flip in enumerate(shown):
        band, column = divmod(number, columns)
        for index, (address, place) in enumerate(zip(flip.shown, flip.places, strict=True)):
            axes = grid[band, 2 * column + index]
            axes.imshow(_pixels(address))
            lines = [f"{short(flip.picture, 26)}" if index == 0 else "", report.told(evidence_page.place_words(place))]
            for role, pair in zip(report.roles, flip.answers, strict=True):
                one = pair[index]
                who = f"{role}: " if len(report.roles) > 1 and index == 0 else ""
                lines.append(f"{who}{short(one.words, 20)} {words.percent(one.probability)}")
            title(axes, "\n".join(lines), fontsize=7)
    figure.suptitle(report.told("Pictures whose answer flips under a shift of one pixel"), x=0.01, ha="left")
    return figure


def _curves(report: Report) -> Figure | None:
    found = report.evidence.curves if report.evidence is not None else ()
    if not found:
        return None
    figure = new_figure(3.2 * len(found) + 0.4, 3.0)
    for axes, curve in zip(figure.subplots(1, len(found), sharey=True, squeeze=False)[0], found, strict=True):
        for series, values in enumerate(curve.probabilities):
            _line(axes, series, curve.shifts, values, marked=True)
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y")
        axes.set_xticks(sorted({curve.shifts[0], 0, curve.shifts[-1]}))
        axes.set_xlabel(report.told(f"window moved {'right' if curve.axis == 'x' else 'down'}, pixels"))
        answers = "\n".join(short(found.words, 34) for found in curve.answers)
        title(axes, f"{short(curve.picture, 30)}\n{answers}", fontsize=8)
    figure.axes[0].set_ylabel("probability of its answer")
    legend(report, figure, loc="outside lower left", ncols=2)
    return figure


def _spectra(report: Report) -> Figure | None:
    found = report.evidence.spectra if report.evidence is not None else None
    if found is None:
        return None
    figure = new_figure(7.0, 3.4)
    axes = figure.subplots()
    middles = [(low + high) / 2 for low, high in itertools.pairwise(found.edges)]
    for series, part in enumerate(found.models):
        if part is not None:
            drawn = [(x, words.decibels(power)) for x, power in zip(middles, part.power, strict=True) if power > 0]
            _line(axes, series, [x for x, _ in drawn], [y for _, y in drawn])
    axes.axvline(1.0, color="#525c67", linestyle=":", linewidth=1)
    axes.text(1.0, 1.0, " new Nyquist frequency", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
    axes.grid(axis="y")
    axes.set_xlabel("frequency, in new Nyquist frequencies")
    axes.set_ylabel("mean power, dB")
    title(axes, f"Spectrum just before the subsampling at {short(found.site)}")
    legend(report, axes, loc="best")
    return figure


def _features(report: Report) -> Figure | None:
    found = report.evidence.features if report.evidence is not None else None
    kept = [(role, maps) for role, maps in zip(report.roles, found.maps, strict=True) if maps] if found else []
    if found is None or not kept:
        return None
    from matplotlib.colors import ListedColormap

    scale = ListedColormap([tuple(sample / 255 for sample in colour) for colour in heatmaps.SCALE])
    figure = new_figure(6.2, 2.3 * len(kept) + 0.5)
    grid = figure.subplots(len(kept), 3, squeeze=False)
    for (role, maps), row in zip(kept, grid, strict=True):
        parts = ((maps.still, "as it is"), (maps.back, "shifted, and back"), (maps.apart, "difference"))
        for (part, name), axes in zip(parts, row, strict=True):
            axes.imshow(part.shares, cmap=scale, vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            error = f", all channels {words.percent(maps.error)}" if name == "difference" else ""
            who = f"{role}, " if len(report.roles) > 1 else ""
            title(axes, f"{who}{name}{error}", fontsize=7)
    text = f"under a shift of {found.shift} pixels"
    text = f"Channel {found.channel} at {short(found.site)} {report.told(text)}"
    figure.suptitle(text, x=0.01, ha="left", parse_math=False)
    return figure


def _standings(report: Report) -> Figure | None:
    found = evidence_page.standings(report)
    if not found:
        return None
    figure = new_figure(6.0, 3.6)
    axes = figure.subplots()
    for item in found:
        value = 1.0 if item.kept is None else item.kept.value
        ends = None if item.kept is None else [[value - item.kept.low], [item.kept.high - value]]
        colour = COLOURS[item.series]
        axes.errorbar(
            [item.aliasing], [value], yerr=ends, fmt=MARKERS[item.series], color=colour, capsize=2,
            markerfacecolor="white" if item.series == 0 else colour,
        )  # fmt: skip
    across, up = charts.ticks_to(max(item.aliasing for item in found)), charts.ticks_to(1.0)
    axes.set_xticks(across, [charts.share(value) for value in across])
    axes.set_yticks(up, [charts.share(value) for value in up])
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlim(-0.02 * across[-1], 1.05 * across[-1])
    axes.grid(axis="y")
    axes.set_xlabel("aliasing, mean of the sites")
    title(axes, "Answers kept against aliasing; bars: 95% intervals")
    legend(report, axes, loc="best")
    return figure


def _line(axes: Axes, series: int, x: Sequence[float], y: Sequence[float], *, marked: bool = False) -> None:
    colour = COLOURS[series]
    axes.plot(
        x, y, color=colour, linestyle=LINES[series], linewidth=1.4, markersize=3.5,
        marker=MARKERS[series] if marked else None, markerfacecolor="white" if series == 0 else colour,
    )  # fmt: skip
