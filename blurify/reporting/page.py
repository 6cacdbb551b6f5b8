"""The page: what was measured as one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blurify.errors import BlurifyError, printable
from blurify.metrics.differences import Difference
from blurify.metrics.pareto import ParetoPoint, ParetoTable
from blurify.metrics.results import Estimate
from blurify.metrics.sizes import amount, bytes_line, file_size
from blurify.reporting import charts, content, evidence_page, filters, heatmaps, words
from blurify.reporting.content import Curve, Layer, Report, Row
from blurify.reporting.definitions import definitions
from blurify.reporting.further import LAYERS, further
from blurify.reporting.verdict import verdict

if TYPE_CHECKING:
    from blurify.spec.adapted import Stage
    from blurify.spec.plan import Site

TEMPLATES = Path(__file__).parent / "templates"
_DASH = "\N{EN DASH}"
_WIDE = 0.05  # as far as that from none, a difference that is not clear may yet be large
_SMALL = 150.0  # pixels: height of a chart of one corruption


def require(package: str) -> None:
    """Raise BlurifyError where a package of the extra `report` is not installed."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise BlurifyError(
            f"a report needs {package}, which is not installed: pip install 'blurify[report]'"
        ) from error


def render(report: Report) -> str:
    """The page as HTML.

    All text of others (names of models, sites, files) is escaped; the page carries a content security policy that
    forbids scripts and the network all the same.

    Raises:
        BlurifyError: jinja2 is not installed.
    """
    require("jinja2")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(place=lambda number: f"{number:.2f}", words=" and ".join)
    text: str = environment.get_template("page.html.j2").render(page=_page(report))
    text = report.told(text)
    # JSON may hold half a surrogate pair, which no file can, and names may hold what HTML forbids.
    return printable(text, "\N{REPLACEMENT CHARACTER}")


def _page(report: Report) -> dict[str, Any]:
    """Everything that the template shows, as plain values."""
    several = len(report.measurements)
    shown = content.layers(report)
    alike = [layer for layer in shown if layer.comparable]
    unsure = [content.less_sure(content.agreement_of(report, index)) for index in range(1, several)]
    page: dict[str, Any] = {
        "title": report.measurements[0].model,
        "roles": [
            {"name": role, "model": measured.model, "converted": measured.converted}
            for role, measured in zip(report.roles, report.measurements, strict=True)
        ],
        "pair": several > 1,
        "three": several > 2,
        "changes": ["change"] if several == 2 else [f"change, {role}" for role in report.roles[1:]],
        "unpaired": any(not difference.paired for known in report.compared for difference in known.values()),
        "before_after": report.roles == ("before", "after"),
        "path": report.roles == ("original", "converted", "adapted"),
        "same_weights": report.same_weights,
        "pictures": _pictures(report),
        "taken": _taken(report),
        "verdict": verdict(report),
        "headlines": evidence_page.agreements(report)
        + [_figure(row, unsure) for row in _headline_rows(report)]
        + _means(report, alike),
        "flips": evidence_page.flips(report),
        "curves": evidence_page.curves(report),
        "against": evidence_page.agreement_against_aliasing(report),
        "cost": evidence_page.cost(report),
        "worst_site": evidence_page.worst_site(report),
        "missing": content.missing(report),
        "without": evidence_page.missing(report),
        "differences": report.differences,
        "plan": _plan(report),
        "filters": filters.section(report.plan) if report.plan is not None else [],
        "adapting": _adapting(report),
        "consistency": _rows_section(content.consistency(report), unsure),
        "circular": any(item.consistency and item.consistency.circular for item in report.measurements),
        "dense": any(item.consistency and item.consistency.dense for item in report.measurements),
        "equivariance": _equivariance(report, shown),
        "aliasing": _aliasing(report),
        "trade_off": _trade_off(report),
        "pareto": _pareto(report.pareto),
        "stability": _stability(report),
        "worst_case": _worst_case(report),
        "further": _further(report),
        "methods": definitions(report),
        "settings": _settings(report),
        "command": report.command,
        "versions": [
            (name, version)
            for name, version in report.versions.items()
            if not any(name in measured.settings for measured in report.measurements)  # where it stands in full
        ],
    }
    page["sections"] = [(id, name) for id, name, key in _SECTIONS if key is None or page[key]]
    return page


_SECTIONS = (
    ("summary", "Summary", None),
    ("flips", "Pictures whose answer flips", "flips"),
    ("curves", "Probability against shift", "curves"),
    ("against", "Agreement against aliasing", "against"),
    ("cost", "Cost", "cost"),
    ("sites", "Sites", "plan"),
    ("filters", "Filters", "filters"),
    ("worst-site", "The site that aliases most", "worst_site"),
    ("adapting", "Adapting", "adapting"),
    ("consistency", "Consistency", "consistency"),
    ("equivariance", "Equivariance maps", "equivariance"),
    ("aliasing", "Aliasing by depth", "aliasing"),
    ("trade-off", "Answers kept against aliasing removed", "trade_off"),
    ("pareto", "Partial conversions by cost", "pareto"),
    ("stability", "Stability", "stability"),
    ("worst-case", "Worst case", "worst_case"),
    ("further", "Further figures", "further"),
    ("methods", "What the figures mean", None),
    ("again", "How to measure this again", None),
)


def _pictures(report: Report) -> list[tuple[str, str]]:
    found = [f"{measured.images} from {measured.data}" for measured in report.measurements]
    if len(set(found)) == 1:
        return [("pictures", found[0])]
    return [(f"pictures, {role}", text) for role, text in zip(report.roles, found, strict=True)]


def _taken(report: Report) -> list[tuple[str, str]]:
    """What the models' output was taken for; nothing where no file says so."""
    found = [
        str(item.output).removeprefix("output ") if item.output is not None else "" for item in report.measurements
    ]
    if len(set(found)) == 1:
        return [("output", found[0])] if found[0] else []
    return [(f"output, {role}", text) for role, text in zip(report.roles, found, strict=True) if text]


def _headline_rows(report: Report) -> list[Row]:
    wanted = ("steady", "worst")
    return content.consistency(report) + [row for row in content.worst_case(report) if row.name in wanted]


def _figure(row: Row, unsure: Sequence[bool] = ()) -> dict[str, Any]:
    """A row of a table of figures: label, one cell a measurement, the changes.

    Args:
        row: the figures.
        unsure: of each of the others, whether it is clearly less sure of its answers than the first: its probabilities
            then move less for that alone, and that is not called better.
    """
    changes = [_change(difference, row.better) for difference in row.differences]
    for change, less in zip(changes, unsure if row.name == "pixel_change" else (), strict=False):
        if less and change["tone"] == "better":
            change |= {"verdict": "smaller, but so is its confidence", "tone": ""}
    return {
        "label": row.label,
        "better": row.better,
        "cells": [_cell(item) for item in row.estimates],
        "changes": changes,
    }


def _change(difference: Difference | None, better: str, *, share: bool = True) -> dict[str, Any]:
    """The cell of the change: how large it is, its interval, what that allows to say."""
    if difference is None:
        return {"change": "", "within": "", "verdict": "", "tone": ""}
    verdict = content.verdict(difference, better) if better else ""
    if caveat := getattr(difference, "caveat", ""):  # the figure is not what it looks like, whatever its interval
        verdict = f"neither better nor worse: {caveat}"
    elif share and verdict.startswith("not clear") and max(abs(difference.low), abs(difference.high)) > _WIDE:
        verdict = f"too few pictures; {verdict}"
    low, high = (words.points(end) if share else _signed(end) for end in (difference.low, difference.high))
    return {
        "change": _amount_of_change(difference.value, share=share),
        "within": f"{low} to {high}",
        "verdict": verdict,
        "tone": tone if difference.clear and (tone := verdict.partition(",")[0]) in ("better", "worse") else "",
    }


def _amount_of_change(value: float, *, share: bool) -> str:
    return f"{words.points(value)} points" if share else _signed(value)


def _signed(value: float) -> str:
    return words.signed(f"{value:+.3f}") if math.isfinite(value) else "no number"


def _cell(item: Estimate | None) -> dict[str, str]:
    if item is None:
        return {"value": _DASH, "interval": "not measured"}
    return {"value": words.percent(item.value), "interval": words.interval(item)}


def _means(report: Report, shown: Sequence[Layer]) -> list[dict[str, Any]]:
    """Headlines that are means over parts of the network or kinds of perturbation, without an interval of their own."""
    rows = []
    flips = content.flip_rates(report)
    if flips:
        series = _values(zip(*(row.estimates for row in flips), strict=True))
        names = [f"stability.flip_rate.{row.name}" for row in flips]
        rows.append(_mean_row(report, "Flip rate, mean of", "perturbations", names, series))
    curve = content.aliasing(report)
    if curve is not None:
        kept = content.that_can_alias(report, curve.points)
        if kept:
            series = _values([part[index] for index in kept] for part in curve.series)
            names = [f"aliasing.{curve.points[index]}" for index in kept]
            rows.append(_mean_row(report, "Energy that aliases, mean of", "sites", names, series))
    if shown:
        means = [
            [found.mean if found else None for found in column]
            for column in zip(*(layer.maps for layer in shown), strict=True)
        ]
        names = [f"equivariance.{layer.name}" for layer in shown]
        rows.append(_mean_row(report, "Distance from equivariance, mean of", "layers", names, means, share=False))
    return rows


def _values(series: Iterable[Sequence[Estimate | None]]) -> list[list[float | None]]:
    return [[item.value if item else None for item in part] for part in series]


def _mean_row(
    report: Report,
    label: str,
    parts: str,
    names: Sequence[str],
    series: Sequence[Sequence[float | None]],
    *,
    share: bool = True,
) -> dict[str, Any]:
    """A mean over what all measurements have; where they have nothing in common each has its own, and no change.

    Args:
        report: of these measurements.
        label, parts: how the row is called, and what it is a mean over.
        names: of the figures that it is a mean over.
        series: one entry a measurement, in it one entry a figure.
        share: the figures are shares; else distances.
    """
    shared = {name: values for name, values in zip(names, zip(*series, strict=True), strict=True) if None not in values}
    measured = [[value for value in part if value is not None] for part in series]
    if shared:
        measured = [list(part) for part in zip(*shared.values(), strict=True)]
    means = [_mean(part) if part else None for part in measured]
    counts = list(dict.fromkeys(len(part) for part in measured if part))
    say = words.percent if share else words.distance
    changes = [
        _change(difference, "lower", share=share) for difference in content.mean_differences(report, list(shared))
    ]
    for change, mean in zip(changes, means[1:], strict=True):
        if not change["change"] and shared and means[0] is not None and mean is not None:
            change["change"] = _amount_of_change(mean - means[0], share=share)
    return {
        "label": f"{label} {' and '.join(map(str, counts))} {parts}",
        "better": "lower",
        "cells": [
            {"value": _DASH, "interval": "not measured"} if mean is None else {"value": say(mean), "interval": ""}
            for mean in means
        ],
        "changes": changes,
    }


def _mean(values: Sequence[float | None]) -> float:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found)


def _rows_section(rows: list[Row], unsure: Sequence[bool] = ()) -> dict[str, Any] | None:
    """A chart of intervals and its table."""
    if not rows:
        return None
    return {"chart": charts.dots(rows), "rows": [_figure(row, unsure) for row in rows], "says": _says(rows)}


def _says(rows: Sequence[Row]) -> str:
    """A chart of intervals in words."""
    return "; ".join(
        f"{row.label}: {' to '.join(words.percent(item.value) for item in row.estimates if item)}" for row in rows
    )


def _plan(report: Report) -> dict[str, Any] | None:
    plan = report.plan
    if plan is None:
        return None
    curve = content.aliasing(report)
    shares: list[dict[str, Estimate | None]] = (
        [dict(zip(curve.points, part, strict=True)) for part in curve.series] if curve else []
    )
    return {
        "sites": [_site(number, site, shares) for number, site in enumerate(plan.sites, 1)],
        "shares": bool(curve),
        "columns": [
            "#",
            "Site",
            "Kind",
            "Kernel / stride",
            "Input → output",
            "Action",
            *["Aliasing"] * bool(curve),
            "Extra multiply-adds",
            *["Extra bytes written", "Extra bytes kept"] * bool(plan.written is not None),
            "Rule: where the blur goes, or why not",
        ],
        "model": plan.model,
        "recipe": plan.recipe.name,
        "filter": plan.recipe.method.words(),
        "inputs": ", ".join(words.dimensions(shape) for shape in plan.input_shapes),
        "done": any(measured.converted for measured in report.measurements),
        "blurred": len(plan.converted),
        "skipped": len(plan.skipped),
        "macs": amount(plan.macs),
        "macs_after": amount(plan.macs + plan.extra_macs),
        "growth": f"{plan.extra_macs / plan.macs:+.0%}" if plan.macs else "",
        "bytes": words.arrows(bytes_line(plan.written, plan.extra_written, plan.kept, plan.extra_kept)),
    }


def _site(number: int, site: Site, shares: Sequence[dict[str, Estimate | None]]) -> dict[str, Any]:
    blurred = site.action == "blur"
    return {
        "number": number,
        "name": site.name,
        "kind": site.kind,
        "window": f"{words.dimensions(site.kernel_size)} / {words.dimensions(site.stride)}",
        "input": words.dimensions(site.input_shape[1:]),
        "output": words.dimensions(site.output_shape[1:]),
        "action": site.action,
        "rule": site.rule,
        "reason": f"{site.placement}: {site.reason}" if blurred and site.placement else site.reason,
        "extra": words.signed(f"{'+' if site.extra_macs > 0 else ''}{amount(site.extra_macs)}") if blurred else _DASH,
        "extra_bytes": [_bytes(count) if blurred else _DASH for count in (site.extra_written, site.extra_kept)],
        "shares": " → ".join(_cell(part.get(site.name))["value"] for part in shares),
    }


def _bytes(count: int | None) -> str:
    """Bytes that a conversion adds to a site, or saves."""
    if count is None:
        return _DASH
    return words.signed(f"{'+' if count > 0 else '-' if count < 0 else ''}{file_size(abs(count))}")


def _equivariance(report: Report, shown: Sequence[Layer]) -> dict[str, Any] | None:
    measured = [item.equivariance for item in report.measurements if item.equivariance]
    if not shown:
        return None
    highest = content.largest_distance(shown)
    columns = list(zip(*(layer.maps for layer in shown), strict=True))
    means = [[found.mean if found else None for found in column] for column in columns]
    alike = [[mean for mean, layer in zip(part, shown, strict=True) if layer.comparable] for part in means]
    return {
        "chart": charts.depth([layer.name for layer in shown], means),
        "says": "; ".join(
            f"{role}: mean of all layers {words.distance(_mean(part))}"
            for role, part in zip(report.roles, alike, strict=True)
            if any(value is not None for value in part)
        ),
        "layers": [
            _layer(number, layer, report.roles, highest, measured[0].step) for number, layer in enumerate(shown, 1)
        ],
        "flat": sum(layer.flat for layer in shown),
        "highest": words.distance(highest),
        "scale": heatmaps.address([[*heatmaps.SCALE]]),
        "images": measured[0].images,
        "input": words.dimensions(measured[0].input_shape),
        "largest_shift": measured[0].largest_shift,
        "step": measured[0].step,
        "circular": measured[0].circular,
    }


def _layer(number: int, layer: Layer, roles: Sequence[str], highest: float, step: int) -> dict[str, Any]:
    maps: list[dict[str, Any] | None] = []
    for role, found in zip(roles, layer.maps, strict=True):
        if found is None:
            maps.append(None)
            continue
        rows, columns = len(found.distances), len(found.distances[0])
        largest = max((value, dy, dx) for dy, row in enumerate(found.distances) for dx, value in enumerate(row))
        where = f"a shift of {largest[1] * step} down and {largest[2] * step} right"
        maps.append(
            {
                "role": role,
                "picture": heatmaps.picture(found.distances, highest),
                "says": f"Map of {layer.name}, {role}: {rows} by {columns} shifts, mean distance "
                f"{words.distance(found.mean)}, largest {words.distance(largest[0])} at {where}",
                "rows": rows,
                "columns": columns,
                "mean": words.distance(found.mean),
                "largest": words.distance(largest[0]),
                # Across, in percent of the room that a map has: maps of other than square strides keep their shape.
                "width": 100 * columns / max(rows, columns),
            }
        )
    return {
        "number": number,
        "name": layer.name,
        "kind": layer.kind,
        "stride": " → ".join(words.dimensions(stride) for stride in layer.strides),
        "comparable": layer.comparable,
        "flat": layer.flat,
        "maps": maps,
    }


def _aliasing(report: Report) -> dict[str, Any] | None:
    curve = content.aliasing(report)
    if curve is None:
        return None
    sites = [
        {site.site: site for site in (item.aliasing.sites if item.aliasing else ())} for item in report.measurements
    ]
    rows = []
    for number, name in enumerate(curve.points, 1):
        found = [part.get(name) for part in sites]
        like = next(site for site in found if site)
        cells = [{**_cell(site.share if site else None), "blurred": bool(site and site.blurred)} for site in found]
        stride = words.dimensions(like.stride)
        rows.append({"number": number, "name": name, "kind": like.kind, "stride": stride, "cells": cells})
    images = next(item.aliasing.images for item in report.measurements if item.aliasing)
    return {"chart": charts.curves(curve), "rows": rows, "images": images, "says": _curve_says(curve, report.roles)}


def _trade_off(report: Report) -> dict[str, Any] | None:
    ranking = report.ranking
    points = content.trade_off(report)
    if ranking is None or len(points) < 2:
        return None
    classes = ranking.curve[0].agreement.same is not None
    last = points[-1]
    return {
        "chart": charts.trade_off(points),
        "says": f"no site converted: {words.percent(1.0)} kept; all {len(ranking.sites)} converted: "
        f"{words.percent(last.kept)} kept, {words.percent(last.removed)} of the aliasing removed",
        "classes": classes,
        "labels": ranking.curve[0].agreement.same_labels is not None,
        "model": ranking.model,
        "recipe": ranking.recipe.name,
        "data": ranking.data,
        "images": ranking.curve[0].agreement.images,
        "aliasing_images": ranking.aliasing_images,
        "lost": "KL alone" if classes else "Error alone",
        "rows": [
            {
                "number": step.sites,
                "name": site.site,
                "kind": site.kind,
                "aliasing": f"{words.percent(site.before.value)} → {words.percent(site.after.value)}",
                "lost": f"{site.agreement.lost:.3g}",
                "alone": words.percent(site.agreement.kept),
                "kept": {
                    "value": words.percent(step.agreement.kept),
                    "interval": words.interval(step.agreement.answers) if step.agreement.answers else "",
                },
                "removed": words.signed(words.percent(step.removed)),
            }
            for site, step in zip(ranking.sites, ranking.curve, strict=True)
        ],
    }


_MOST_STEPS = 3  # named in a row; the rest is counted


def _pareto(table: ParetoTable | None) -> dict[str, Any] | None:
    if table is None:
        return None
    first, last = table.points[0], table.points[-1]
    answers = None if first.agreement is None else first.answers
    what = "classes" if first.agreement and first.agreement.same else "labels" if answers else "outputs"
    says = [f"{_left(table, last)} of the aliasing is left at {_cost(table, last, 'macs')} multiply-adds"]
    if last.kept is not None:
        says.append(f"{words.percent(last.kept)} of the answers are kept")
    found = [(cost, name, charts.pareto(table, cost)) for cost, name in _COSTS]
    return {
        "model": table.model,
        "recipe": table.recipe.name,
        "data": table.data,
        "measured": table.measured,
        "outputs": what,
        "images": first.agreement.images if first.agreement else 0,
        "aliasing_images": table.aliasing_images,
        "aliasing_sites": table.aliasing_sites,
        "sites": table.sites,
        "steps": table.steps,
        "taken": sum(point.steps is not None for point in table.points) - 1,
        "present": any(point.present for point in table.points),
        "charts": [{"name": name, "chart": chart, "cost": cost} for cost, name, chart in found if chart is not None],
        "says": f"last of {len(table.points)} points: {', '.join(says)}",
        "memory": table.bytes is not None,
        "rows": [
            {
                "steps": _DASH if point.steps is None else point.steps,
                "what": [*point.what[:_MOST_STEPS], *_more(len(point.what) - _MOST_STEPS)],
                "sites": point.sites,
                "macs": _cost(table, point, "macs"),
                "bytes": _cost(table, point, "bytes"),
                "kept": {
                    "value": _DASH if point.kept is None else words.percent(point.kept),
                    "interval": words.interval(point.answers) if point.answers else "",
                },
                "left": _left(table, point),
                "front": front,
                "present": point.present,
            }
            for point, front in zip(table.points, table.front, strict=True)
        ],
    }


_COSTS = (("macs", "extra multiply-adds"), ("bytes", "extra activation memory"))


def _more(count: int) -> list[str]:
    return [f"and {count} more"] if count > 0 else []


def _cost(table: ParetoTable, point: ParetoPoint, cost: str) -> str:
    found = charts.cost_of(table, point, cost)
    return _DASH if found is None else words.signed(f"{found:+.2%}")


def _left(table: ParetoTable, point: ParetoPoint) -> str:
    left = table.left(point)
    return _DASH if left is None else words.percent(left)


def _adapting(report: Report) -> list[dict[str, Any]]:
    """The stages of every model that was adapted."""
    found = []
    for measured, record in zip(report.measurements, report.adapted, strict=False):
        if record is None or not record.stages:
            continue
        classes = all(stage.same is not None for stage in record.stages)
        reached = record.reached
        found.append(
            {
                "model": measured.model,
                "chart": charts.stages(record.stages),
                "says": "; ".join(_stage_says(stage) for stage in record.stages),
                "classes": classes,
                "data": record.data,
                "examples": record.examples,
                "checked": record.checked,
                "notes": record.notes,
                "reached": _stage_says(reached) if reached else "",
                "distance": "KL, nats" if record.outputs == "classes" else "Relative error",
                "seconds": words.seconds(math.fsum(stage.seconds for stage in record.stages)),
                "stages": [
                    {
                        "number": number,
                        "name": stage.name,
                        "same": _DASH if stage.same is None else words.percent(stage.same),
                        "distance": f"{stage.distance:.3g}",
                        "seconds": words.seconds(stage.seconds) if stage.seconds else _DASH,
                        "kept": "as it came" if stage.name == "converted" else "kept" if stage.kept else "taken back",
                        "back": not stage.kept,
                        "line": stage.line,
                    }
                    for number, stage in enumerate(record.stages, 1)
                ],
            }
        )
    return found


def _stage_says(stage: Stage) -> str:
    if stage.same is not None:
        text = f"{stage.name}: {words.percent(stage.same)} of the answers kept, KL {stage.distance:.3g} nats"
    else:
        text = f"{stage.name}: distance {stage.distance:.3g}"
    return text if stage.kept else f"{text}, taken back"


def _curve_says(curve: Curve, roles: Sequence[str]) -> str:
    """A curve in words: its ends and its largest value, a sentence a measurement."""
    said = []
    for role, part in zip(roles, curve.series, strict=True):
        found = [(item.value, point) for item, point in zip(part, curve.points, strict=True) if item]
        if found:
            top = max(found)
            said.append(
                f"{role}: {words.percent(found[0][0])} at {found[0][1]}, {words.percent(found[-1][0])} at "
                f"{found[-1][1]}, largest {words.percent(top[0])} at {top[1]}"
            )
    return "; ".join(said)


def _stability(report: Report) -> dict[str, Any] | None:
    flips = content.flip_rates(report)
    figure, found = "accuracy", content.corruptions(report, "accuracy")
    if not found:
        figure, found = "agreement", content.corruptions(report, "agreement")
    if not flips and not found:
        return None
    highest = charts.largest(found)
    tables = {name: [_corruption(curve) for curve in content.corruptions(report, name)] for name in _FIGURES}
    return {
        "flips": _rows_section(flips),
        "frames": sorted(
            {rate.frames for item in report.measurements if item.stability for rate in item.stability.flip_rates}
        ),
        "figure": figure,
        "words": _FIGURES[figure],
        "corruptions": [
            {
                "name": curve.label,
                "ends": [words.percent(part[-1].value) if part[-1] else _DASH for part in curve.series],
                "strongest": curve.points[-1],
                "chart": charts.curves(curve, height=_SMALL, highest=highest),
                "says": _curve_says(curve, report.roles),
            }
            for curve in found
        ],
        "tables": [
            {
                "caption": f"{_FIGURES[name]} by severity",
                "severities": max(len(row["points"]) for row in rows),
                "rows": rows,
            }
            for name, rows in tables.items()
            if rows
        ],
    }


_FIGURES = {"accuracy": "Accuracy under corruption", "agreement": "Same answer as for the clean picture"}


def _corruption(curve: Curve) -> dict[str, Any]:
    return {
        "name": curve.label,
        "points": curve.points,
        "series": [[_cell(item) for item in part] for part in curve.series],
    }


def _further(report: Report) -> list[dict[str, Any]]:
    """Tables of the figures that have no section of their own."""
    return [
        {
            "title": title,
            "named": title == LAYERS,
            "rows": [
                {
                    "label": row.label,
                    "better": row.better,
                    "cells": [_cell(item) if row.share else _number(item) for item in row.estimates],
                    "changes": [_change(item, row.better, share=row.share) for item in row.differences],
                }
                for row in rows
            ],
        }
        for title, rows in further(report)
    ]


def _number(item: Estimate | None) -> dict[str, str]:
    if item is None:
        return _cell(None)
    return {"value": f"{item.value:.4g}", "interval": words.signed(f"{item.low:.4g} to {item.high:.4g}")}


def _worst_case(report: Report) -> dict[str, Any] | None:
    section = _rows_section(content.worst_case(report))
    if section is None:
        return None
    grid = next(item.worst_case for item in report.measurements if item.worst_case)
    return {
        **section,
        "translations": ", ".join(words.signed(f"{value:.3g}") for value in grid.translations),
        "rotations": ", ".join(words.signed(f"{value:g}") for value in grid.rotations),
        "points": len(grid.translations) ** 2 * len(grid.rotations),
    }


def _settings(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles and settings: one list where both were measured alike."""
    found = [
        [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
         for name, value in measured.settings.items() if value != ""]
        for measured in report.measurements
    ]  # fmt: skip
    if all(settings == found[0] for settings in found):
        return [("Settings", found[0])]
    return [(f"Settings, {role}", settings) for role, settings in zip(report.roles, found, strict=True)]
