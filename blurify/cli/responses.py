"""`blurify inspect --filters`: what each filter of a plan does to each frequency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blurify.cli import console

if TYPE_CHECKING:
    from blurify.spec.plan import Plan
    from blurify.spec.responses import UsedFilter

_MOST_TAPS = 32


def print_filters(plan: Plan) -> None:
    """Each filter that the plan uses: its taps and its frequency response, a few lines each."""
    from blurify.spec.responses import filters_of

    found = filters_of(plan)
    if not found:
        console.say("no filters: nothing is blurred")
        return
    console.say("filters: frequencies in units of the new Nyquist frequency, 1, above which everything aliases")
    for used in found:
        console.say(_headline(used), style="bold")
        for line in lines(used):
            console.say(f"  {line}")


def lines(used: UsedFilter) -> list[str]:
    """The taps and the figures of a filter."""
    found = used.response
    taps = "as many as the map has samples" if found.taps is None else _taps(found.taps)
    cut = "none" if found.half_power is None else f"{found.half_power:.3f}"
    cost = (
        "multiply-adds that grow with the map" if found.macs is None else f"{found.macs} multiply-adds a value in 2-d"
    )
    return [
        f"taps      {taps}",
        f"gain      {found.dc:.4f} at 0, {_db(found.half)} at 1/2, {_db(found.nyquist)} at 1",
        f"passband  largest change up to 1/2 {_db(found.droop)}, -3 dB at {cut}",
        f"aliasing  {found.aliased:.1%} of what passes of white noise lies above 1",
        f"cost      {cost}",
    ]


def as_json(plan: Plan) -> list[dict[str, Any]]:
    """The same for JSON."""
    from blurify.spec.responses import filters_of

    return [
        {**used.response.to_dict(), "padding": used.padding, "sites": list(used.sites)} for used in filters_of(plan)
    ]


def _headline(used: UsedFilter) -> str:
    count = len(used.sites)
    found = used.response
    sites = f"{count} site" if count == 1 else f"{count} sites"
    return f"filter {found.method.words()} against a subsampling by {found.factor}, padding {used.padding} ({sites})"


def _taps(taps: tuple[float, ...]) -> str:
    shown = [f"{tap:.5g}" for tap in taps[:_MOST_TAPS]]
    return " ".join(shown) + (f" ... ({len(taps)} in all; --json has them)" if len(taps) > _MOST_TAPS else "")


def _db(value: float | None) -> str:
    return "nothing" if value is None else f"{value + 0.0:.2f} dB"
