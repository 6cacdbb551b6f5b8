"""A plan in words: the table of sites, one line a site, the totals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from blurify.cli import console
from blurify.cli.drifting import drifts, print_drift
from blurify.metrics.sizes import amount, dimensions

if TYPE_CHECKING:
    from blurify.metrics.results import Estimate
    from blurify.spec.plan import Plan, Site

Shares: TypeAlias = "Mapping[str, Estimate]"
"""How much each site aliases, by its name."""


def file_size(count: int) -> str:
    """Bytes for people: 44700000 -> '44.7 MB'."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a directory."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def print_plan(plan: Plan, shares: Shares | None = None) -> None:
    """What the model is, the table of its sites, and the totals.

    Args:
        shares: how much the sites alias; they are then listed by it, the most first.
    """
    console.say(headline(plan), style="bold")
    if plan.sites:
        sites = plan.sites
        if shares is not None:
            unknown = len(sites)
            sites = tuple(sorted(sites, key=lambda site: -shares[site.name].value if site.name in shares else unknown))
        if console.on_terminal():
            _print_rich(sites, shares, drift=drifts(plan))
        else:
            _print_plain(sites, shares, drift=drifts(plan))
    console.say(totals_line(plan))
    print_drift(plan)


def headline(plan: Plan) -> str:
    """The model, the input that it was traced with, and what is wanted."""
    inputs = ", ".join(dimensions(shape) for shape in plan.input_shapes)
    own = len(plan.recipe.sites)
    sites = f" ({own} [[site]] table{'s' * (own > 1)})" if own else ""
    used = plan.recipe.method.words()
    return f"{plan.model or 'model'}  input {inputs}  recipe {plan.recipe.name}{sites}  filter {used}"


def totals(plan: Plan) -> dict[str, Any]:
    """The totals for JSON."""
    return {
        "sites": len(plan.sites),
        "converted": len(plan.converted),
        "skipped": len(plan.skipped),
        "kinds": plan.count("kind"),
        "rules": plan.count("rule"),
        "macs": plan.macs,
        "extra_macs": plan.extra_macs,
        "drift": plan.alignment.largest if plan.alignment is not None else None,
    }


def totals_line(plan: Plan) -> str:
    """The totals in one line; for a model without sites, that it has none."""
    if not plan.sites:
        return "no sites: this model never subsamples with a stride, there is nothing to anti-alias"
    kinds = ", ".join(f"{count} {kind}" for kind, count in plan.count("kind").items())
    line = f"{_sites(len(plan.sites))} ({kinds}): {len(plan.converted)} blurred, {len(plan.skipped)} skipped"
    if plan.macs:
        after = plan.macs + plan.extra_macs
        line += f"; multiply-adds {amount(plan.macs)} -> {amount(after)} ({plan.extra_macs / plan.macs:+.0%})"
    return line


def print_site_lines(plan: Plan) -> None:
    """One line a site; on a terminal dim where it was skipped."""
    whats = [f"{site.kind} {dimensions(site.kernel_size)}/{dimensions(site.stride)}" for site in plan.sites]
    names = max((len(site.name) for site in plan.sites), default=0)
    kinds = max(map(len, whats), default=0)
    for site, what in zip(plan.sites, whats, strict=True):
        skipped = site.action == "skip"
        done = site.reason if skipped else site.placement or site.reason
        console.say(
            f"{site.action}  {site.name:<{names}}  {what:<{kinds}}  {' '.join(done.split())}",
            style="dim" if skipped else "",
        )


def _sites(count: int) -> str:
    return f"{count} site" if count == 1 else f"{count} sites"


def _extra(site: Site) -> str:
    return f"{'+' if site.extra_macs > 0 else ''}{amount(site.extra_macs)}" if site.action == "blur" else ""


def _share(site: Site, shares: Shares | None, *, interval: bool) -> tuple[str, ...]:
    """The cell of the column 'aliasing', if there is one."""
    if shares is None:
        return ()
    share = shares.get(site.name)
    if share is None:
        return ("",)
    return (f"{share.value:.2%} ({100 * share.low:.2f}..{100 * share.high:.2f})" if interval else f"{share.value:.2%}",)


def _drift(site: Site, drift: bool) -> tuple[str, ...]:
    """The cell of the column 'drift', if there is one: in input pixels."""
    from blurify.spec.alignment import in_words

    return (in_words(site.drift).replace(" ", ""),) if drift else ()


def _print_plain(sites: tuple[Site, ...], shares: Shares | None, *, drift: bool) -> None:
    aliasing = () if shares is None else ("aliasing",)
    columns = (
        "site", *aliasing, "kind", "kernel", "stride", "in", "out", "action", "extra-macs", *["drift"] * drift,
        "where", "reason",
    )  # fmt: skip
    rows = [
        (
            site.name,
            *_share(site, shares, interval=True),
            site.kind,
            dimensions(site.kernel_size),
            dimensions(site.stride),
            dimensions(site.input_shape),
            dimensions(site.output_shape),
            site.action,
            _extra(site).replace(" ", ""),
            *_drift(site, drift),
            " ".join(site.placement.split()),
            " ".join(site.reason.split()),
        )
        for site in sites
    ]
    console.print_table(columns, rows, right=("extra-macs", "drift", "aliasing"))


def _print_rich(sites: tuple[Site, ...], shares: Shares | None, *, drift: bool) -> None:
    """On a terminal the width is scarce: shapes without the batch, and where the blur goes or why it does not."""
    from rich.console import Console

    wide = Console().width >= 150
    aliasing = () if shares is None else ("aliasing",)
    columns = (
        "site", *aliasing, "kind", "k/s", "in → out", "action", "+ macs", *["drift"] * drift,
        "where the blur goes, or why not",
    )  # fmt: skip
    rows = [
        (
            site.name,
            *_share(site, shares, interval=False),
            site.kind,
            f"{_short(site.kernel_size)}/{_short(site.stride)}",
            f"{dimensions(site.input_shape[1:])} → {dimensions(site.output_shape[1:])}",
            site.action,
            _extra(site),
            *_drift(site, drift),
            f"{site.placement}: {site.reason}" if wide and site.placement else site.placement or site.reason,
        )
        for site in sites
    ]
    styles = ["dim" if site.action == "skip" else "" for site in sites]
    console.print_table(columns, rows, right=("+ macs", "drift", "aliasing"), styles=styles)


def _short(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else dimensions(values)
