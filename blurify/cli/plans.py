"""A plan in words: the table of sites, one line a site, the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from blurify.cli import console
from blurify.cli.drifting import drifts, print_drift
from blurify.cli.tables import Column, print_table, say_left_out
from blurify.metrics.sizes import amount, bytes_line, dimensions, file_size

if TYPE_CHECKING:
    from blurify.metrics.results import Estimate
    from blurify.spec.plan import Plan, Site

Shares: TypeAlias = "Mapping[str, Estimate]"
"""How much each site aliases, by its name."""

_MOST_REASONS = 12


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a directory."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def print_plan(plan: Plan, shares: Shares | None = None, *, wide: bool = False) -> None:
    """What the model is, the table of its sites, and the totals.

    Args:
        shares: how much the sites alias; they are then listed by it, the most first.
        wide: all columns, however long the lines become.
    """
    console.say(headline(plan), style="bold")
    if plan.sites:
        sites = plan.sites
        if shares is not None:
            unknown = len(sites)
            sites = tuple(sorted(sites, key=lambda site: -shares[site.name].value if site.name in shares else unknown))
        _print_sites(sites, shares, drift=drifts(plan), wide=wide)
    print_totals(plan)
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
        "written": plan.written,
        "extra_written": plan.extra_written,
        "kept": plan.kept,
        "extra_kept": plan.extra_kept,
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


def print_totals(plan: Plan) -> None:
    """The totals: sites and multiply-adds, and bytes where they were asked for."""
    console.say(totals_line(plan))
    if plan.sites and (line := bytes_line(plan.written, plan.extra_written, plan.kept, plan.extra_kept)):
        console.say(line)


def print_site_lines(plan: Plan) -> None:
    """One line a site; on a terminal dim where it was skipped."""
    rows = [
        (
            site.name,
            site.action,
            f"{site.kind} {dimensions(site.kernel_size)}/{dimensions(site.stride)}",
            site.reason if site.action == "skip" else site.placement or site.reason,
        )
        for site in plan.sites
    ]
    styles = ["dim" if site.action == "skip" else "" for site in plan.sites]
    columns = (Column("site"), Column("action"), Column("what", use=1), Column(_WHERE, prose=True))
    print_table(columns, rows, styles=styles, wide=not console.on_terminal())


def _sites(count: int) -> str:
    return f"{count} site" if count == 1 else f"{count} sites"


def _extra(site: Site) -> str:
    return f"{'+' if site.extra_macs > 0 else ''}{amount(site.extra_macs)}" if site.action == "blur" else ""


def _bytes(count: int | None, site: Site) -> str:
    """The cell of a column of bytes that a conversion adds or saves."""
    if count is None or site.action != "blur":
        return ""
    return f"{'+' if count > 0 else '-' if count < 0 else ''}{file_size(abs(count))}"


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


_WHERE = "where the blur goes, or why not"


def _print_sites(sites: tuple[Site, ...], shares: Shares | None, *, drift: bool, wide: bool) -> None:
    """A line a site, then the reasons that had no room."""
    known = any(site.extra_written is not None for site in sites)
    columns = (
        Column("site"), *[Column("aliasing", right=True, use=1)] * (shares is not None), Column("action"),
        Column("kind", use=1), Column("k/s", use=2), Column("rule", use=3), Column("+macs", right=True, use=4),
        *[Column("+written", right=True, use=9), Column("+kept", right=True, use=8)] * known,
        *[Column("drift", right=True, use=5)] * drift, Column("in->out", use=7), Column(_WHERE, prose=True, use=6),
    )  # fmt: skip
    rows = [
        (
            site.name,
            *_share(site, shares, interval=wide or not console.on_terminal()),
            site.action,
            site.kind,
            f"{_short(site.kernel_size)}/{_short(site.stride)}",
            site.rule,
            _extra(site).replace(" ", ""),
            *(_bytes(count, site).replace(" ", "") for count in (site.extra_written, site.extra_kept) if known),
            *_drift(site, drift),
            f"{dimensions(site.input_shape[1:])}->{dimensions(site.output_shape[1:])}",
            f"{site.placement}: {site.reason}" if wide and site.placement else site.placement or site.reason,
        )
        for site in sites
    ]
    styles = ["dim" if site.action == "skip" else "" for site in sites]
    left_out = print_table(columns, rows, styles=styles, wide=wide)
    if _WHERE in left_out:
        _print_reasons(sites)
    say_left_out(left_out)


def _print_reasons(sites: tuple[Site, ...]) -> None:
    """Why sites are left alone: each reason once."""
    found = Counter((site.rule, " ".join(site.reason.split())) for site in sites if site.action == "skip")
    for (rule, reason), count in found.most_common(_MOST_REASONS):
        console.say(f"{rule} ({_sites(count)}): {reason}", style="dim")
    if len(found) > _MOST_REASONS:
        console.say(f"{len(found) - _MOST_REASONS} more reasons: --wide or --json shows all", style="dim")


def _short(values: tuple[int, ...]) -> str:
    return "-" if not values else str(values[0]) if len(set(values)) == 1 else dimensions(values)
