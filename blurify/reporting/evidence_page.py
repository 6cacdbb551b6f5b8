"""The sections of evidence on the page: pictures, curves, maps, spectra and times, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blurify.metrics.evidence import Answer, Evidence, Flip, Grid, ShiftCurve, Timing
from blurify.metrics.results import Estimate
from blurify.metrics.sizes import amount
from blurify.reporting import content, evidence_charts, heatmaps, words
from blurify.reporting.content import Report
from blurify.reporting.evidence_charts import Standing
from blurify.spec.plan import Plan

_DASH = "\N{EN DASH}"
_RELATED = ("before", "original")  # what the first is where the plan is that of the others' conversion
NAMES = {
    "flips": "pictures whose answer flips",
    "curves": "probability against shift",
    "features": "feature maps under a shift",
    "spectra": "spectra",
    "latency": "latency",
    "agreements": "agreement with the original",
}


def missing(report: Report) -> list[str]:
    """What of the evidence is not there, and why, in words."""
    found = report.evidence
    if found is None:
        return ["pictures that flip, curves, feature maps, spectra and latency: blurify measure --evidence takes them"]
    by_reason: dict[str, list[str]] = {}
    for name, why in found.missing.items():
        if name in NAMES:
            by_reason.setdefault(why, []).append(NAMES[name])
    return [f"{' and '.join(names)} ({why})" for why, names in by_reason.items()]


def flips(report: Report) -> dict[str, Any] | None:
    """Pictures whose answer flips under a shift of one pixel."""
    found = report.evidence.flips if report.evidence is not None else None
    if found is None:
        return None
    counted = [f"{role}, {changed}" for role, changed in zip(report.roles, found.changed, strict=True)]
    return {
        "images": found.images,
        "steps": found.steps,
        "changed": found.changed[0] if len(report.roles) == 1 else "; ".join(counted),
        "cards": [_flip(number, flip, report.roles) for number, flip in enumerate(found.shown, 1)],
    }


def _flip(number: int, flip: Flip, roles: Sequence[str]) -> dict[str, Any]:
    places = [place_words(place) for place in flip.places]
    return {
        "number": number,
        "picture": flip.picture,
        "places": places,
        "shown": [
            {"address": address, "says": f"{flip.picture}, flip {number}, window at {place}"}
            for address, place in zip(flip.shown, places, strict=False)
        ],
        "rows": [
            {"role": role, "cells": [_answer(one) for one in pair], "flips": pair[0].label != pair[1].label}
            for role, pair in zip(roles, flip.answers, strict=True)
        ],
    }


def place_words(place: tuple[int, int]) -> str:
    """Where a window lies, from the middle: (0, -3) -> '3 px left'."""
    down, right = place
    parts = [
        f"{abs(value)} px {names[value > 0]}"
        for value, names in ((down, ("up", "down")), (right, ("left", "right")))
        if value
    ]
    return " and ".join(parts) or "the middle"


def _answer(found: Answer) -> dict[str, str]:
    return {"name": found.words, "probability": words.percent(found.probability)}


def curves(report: Report) -> list[dict[str, Any]]:
    """The probability of the answer against the shift, a chart a picture."""
    return [
        _curve(number, curve, report.roles)
        for number, curve in enumerate(report.evidence.curves if report.evidence is not None else (), 1)
    ]


def _curve(number: int, curve: ShiftCurve, roles: Sequence[str]) -> dict[str, Any]:
    spans = [f"{words.percent(min(part))} to {words.percent(max(part))}" for part in curve.probabilities]
    return {
        "number": number,
        "picture": curve.picture,
        "shown": curve.shown,
        "chart": evidence_charts.shifts(curve),
        "axis": "window moved right, pixels" if curve.axis == "x" else "window moved down, pixels",
        "says": "; ".join(
            f"{role}, {found.words}: {span}" for role, found, span in zip(roles, curve.answers, spans, strict=True)
        ),
        "answers": [
            {"role": role, "name": found.words, "span": span}
            for role, found, span in zip(roles, curve.answers, spans, strict=True)
        ],
        "rows": [
            {
                "shift": words.signed(f"{shift:+d}") if shift else "0",
                "cells": [words.percent(part[index]) for part in curve.probabilities],
            }
            for index, shift in enumerate(curve.shifts)
        ],
    }


def worst_site(report: Report) -> dict[str, Any] | None:
    """Feature maps and spectra at the site that aliases most."""
    found = report.evidence
    if found is None or (found.features is None and found.spectra is None):
        return None
    site = found.spectra.site if found.spectra is not None else found.features.site  # type: ignore[union-attr]
    return {"site": site, "features": _features(found, report.roles), "spectra": _spectra(found, report.roles)}


def _features(evidence: Evidence, roles: Sequence[str]) -> dict[str, Any] | None:
    found = evidence.features
    if found is None:
        return None
    rows = []
    for role, maps in zip(roles, found.maps, strict=True):
        if maps is None:
            continue
        grids = ((maps.still, "as it is"), (maps.back, "shifted, and back"), (maps.apart, "difference"))
        rows.append(
            {
                "role": role,
                "error": words.percent(maps.error),
                "maps": [
                    {
                        "address": drawn(grid),
                        "name": name,
                        "rows": grid.rows,
                        "columns": grid.columns,
                        "says": f"{role}, channel {found.channel} at {found.site}: {name}",
                    }
                    for grid, name in grids
                ],
            }
        )
    return {
        "picture": found.picture,
        "shown": found.shown,
        "shift": f"{found.shift} pixel{'s' * (found.shift != 1)}",
        "channel": found.channel,
        "rows": rows,
    }


def drawn(grid: Grid) -> str:
    """A map as the `data:` address of a PNG in the page's scale of colours."""
    return heatmaps.address([[heatmaps.colour(value) for value in row] for row in grid.shares])


def _spectra(evidence: Evidence, roles: Sequence[str]) -> dict[str, Any] | None:
    found = evidence.spectra
    if found is None:
        return None
    above = [
        (role, words.percent(part.above)) for role, part in zip(roles, found.models, strict=True) if part is not None
    ]
    return {
        "chart": evidence_charts.spectra(found),
        "images": found.images,
        "stride": words.dimensions(found.stride),
        "above": [{"role": role, "share": text} for role, text in above],
        "says": f"above the new Nyquist frequency: {'; '.join(f'{role}, {text}' for role, text in above)}",
    }


def standings(report: Report) -> list[Standing]:
    """Each model's agreement with the first and its aliasing; none unless two can be placed, by the same sites."""
    curve = content.aliasing(report)
    if curve is None or len(report.measurements) < 2:
        return []
    counted = content.that_can_alias(report, curve.points)
    shared = [part for part in ([line[index] for line in curve.series] for index in counted) if None not in part]
    if not shared:
        return []
    means = [sum(item.value for item in part if item) / len(part) for part in zip(*shared, strict=True)]
    found = [Standing(0, report.roles[0], means[0], None)]
    for index in range(1, len(report.measurements)):
        agreement = content.agreement_of(report, index)
        same = (agreement.same or agreement.same_labels) if agreement is not None else None
        if same is not None:
            found.append(Standing(index, report.roles[index], means[index], same))
    return found if len(found) > 1 else []


def agreement_against_aliasing(report: Report) -> dict[str, Any] | None:
    """The chart of the models, and its table."""
    found = standings(report)
    if not found:
        return None
    rows = [
        {
            "role": item.name,
            "aliasing": words.percent(item.aliasing),
            "kept": _cell(item.kept) if item.kept is not None else {"value": _DASH, "interval": ""},
        }
        for item in found
    ]
    chart = evidence_charts.standings(found)
    return {"chart": chart, "rows": rows, "says": "; ".join(mark.text for mark in chart.marks)}


def agreements(report: Report) -> list[dict[str, Any]]:
    """Rows of the headline table: how far the others answer as the first."""
    found = [content.agreement_of(report, index) for index in range(1, len(report.measurements))]
    if not any(found):
        return []
    nothing = {"change": "", "within": "", "verdict": "", "tone": ""}
    own = "the original" if report.roles[0] in ("before", "original") else "the first"
    rows = []
    for label, better, name in (
        (f"Same answer as {own}", "higher", "same"),
        (f"First five classes among those of {own}", "higher", "top5"),
        (f"Same where {own} is sure", "higher", "sure"),
        (f"Same labels as {own}", "higher", "same_labels"),
        (f"Divergence from {own}, nats", "lower", "divergence"),
    ):
        parts = [getattr(item, name, None) for item in found]
        if any(parts):
            say = _number if name == "divergence" else _cell
            cells = [{"value": _DASH, "interval": ""}, *(say(part) if part else _absent() for part in parts)]
            rows.append({"label": label, "better": better, "cells": cells, "changes": [nothing] * len(found)})
    sure = [item for item in found if item is not None and item.confidence and item.confidence_other]
    if len(sure) == len(found) and sure[0].confidence is not None:
        cells = [_cell(sure[0].confidence), *(_cell(item.confidence_other) for item in sure if item.confidence_other)]
        row = {"label": "Confidence, mean", "better": "nearer the first", "cells": cells}
        rows.append({**row, "changes": [nothing] * len(found)})
    errors = [item.relative_error if item is not None else None for item in found]
    if any(error is not None for error in errors):
        cells = [{"value": _DASH, "interval": ""}]
        cells += [_absent() if error is None else {"value": f"{error:.3g}", "interval": ""} for error in errors]
        label = f"Relative error to {own}"
        rows.append({"label": label, "better": "lower", "cells": cells, "changes": [nothing] * len(found)})
    return rows


def _cell(item: Estimate) -> dict[str, str]:
    return {"value": words.percent(item.value), "interval": words.interval(item)}


def _number(item: Estimate) -> dict[str, str]:
    return {"value": f"{item.value:.3g}", "interval": f"{item.low:.3g} to {item.high:.3g}"}


def _absent() -> dict[str, str]:
    return {"value": _DASH, "interval": "not measured"}


def cost(report: Report) -> dict[str, Any] | None:
    """Latency beside multiply-adds; None where no time was taken."""
    found = report.evidence.latency if report.evidence is not None else None
    if found is None:
        return None
    plan = report.plan
    rows = []
    for index, (role, timing) in enumerate(zip(report.roles, found.models, strict=True)):
        macs = _DASH
        if plan is not None and plan.macs and (index == 0 or report.roles[0] in _RELATED):
            total = plan.macs + (plan.extra_macs if report.measurements[index].converted else 0)
            macs = amount(total) + (f" ({_signed_share(total / plan.macs - 1)})" if total != plan.macs else "")
        rows.append({"role": role, "macs": macs, **_times(timing, first=index == 0)})
    return {
        "rows": rows,
        "macs": "Multiply-adds" + _elsewhere(plan, found.shape),
        "rounds": found.rounds,
        "batch": f"{found.batch} picture{'s' * (found.batch != 1)} of {words.dimensions(found.shape)}",
        "where": ", ".join(filter(None, (found.machine, found.device))),
        "threads": f"{found.threads} thread{'s' * (found.threads != 1)}",
        "dtype": found.dtype,
    }


def _elsewhere(plan: Plan | None, shape: Sequence[int]) -> str:
    """' at 3x224x224' where a plan counts them for an input of another size than the one that was timed."""
    counted = [tuple(sizes[1:]) for sizes in plan.input_shapes] if plan is not None else []
    return f" at {words.dimensions(counted[0])}" if len(counted) == 1 and counted[0] != tuple(shape) else ""


def _times(timing: Timing, *, first: bool) -> dict[str, Any]:
    ms = words.milliseconds
    ratio = {"value": _DASH, "interval": ""}
    if not first:
        span = f"{timing.ratio_low:.2f} to {timing.ratio_high:.2f}"
        ratio = {"value": f"{timing.ratio:.2f} times", "interval": span}
    return {
        "wall": {"value": ms(timing.wall), "interval": f"{ms(timing.low)} to {ms(timing.high)}"},
        "cpu": ms(timing.cpu),
        "ratio": ratio,
    }


def _signed_share(value: float) -> str:
    return words.signed(f"{value:+.0%}")
