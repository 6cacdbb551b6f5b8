"""Write docs/zoo.md from benchmarks/zoo.json and benchmarks/zoo.csv: `python benchmarks/zoo_page.py [--check]`.

With --check nothing is written, and the exit code is 1 where the page is not what the data say.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from blurify.planning.reasons import REASONS

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "zoo.md"
Row = dict[str, str]

HEAD = """\
# The whole zoo

Every architecture of timm {timm} and torchvision {torchvision} was inspected, and every one with a site to convert was
converted on random weights with the default recipe and proven{but}: with the one-tap filter it computes the original
function, all tensors of its `state_dict` keep their names and bits, and tracing the result finds no converted site
left.

This page is made from [zoo.json](../benchmarks/zoo.json) and [zoo.csv](../benchmarks/zoo.csv) (one row a model) by
`benchmarks/zoo_page.py`; `make zoo-check` makes those (`{command}`; Python {python}, torch {torch}).
"""


OTHERS = HERE / "zoo-recipes"
"""Audits by other recipes: a folder for each, with its zoo.json and zoo.csv."""


def page(data: dict[str, Any], rows: Sequence[Row], others: dict[str, dict[str, Any]] | None = None) -> str:
    """The page as Markdown; `others` are audits by other recipes than the default, by name."""
    but = f", but for the {len(data['failed'])} under Exceptions" * bool(data["failed"])
    parts = [HEAD.format(command=data["command"], but=but, **data["versions"])]
    parts.append("## In numbers\n\n" + _libraries(data))
    parts.append("## The proof\n\n" + _proof(data))
    if others:
        parts.append("## Other recipes\n\n" + _others(others))
    parts.append("## Why sites are left alone\n\n" + _reasons(data))
    parts.append("## Exceptions\n\n" + _exceptions(data))
    parts.append("## By family\n\n" + _families(rows))
    parts.append("## What inspecting costs\n\n" + _times(data))
    return "\n".join(parts)


def _libraries(data: dict[str, Any]) -> str:
    rows = []
    for library, total in data["totals"].items():
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in total["kinds"].items())
        rows.append((
            library, *(f"{total[key]:,}" for key in ("models", "converted", "inspected", "failed", "sites")),
            f"{total['sites_converted']:,}", kinds,
        ))  # fmt: skip
    return table(
        ("library", "models", "converted and proven", "nothing to convert", "failed", "sites", "blurred", "kinds"), rows
    )


def _proof(data: dict[str, Any]) -> str:
    proofs = data["proofs"]
    rows = [
        (how, f"{found['models']:,}", f"{found['largest_error']:.1e}", f"`{found['of']}`")
        for how, found in proofs["identity"].items()
    ]
    note = (
        f"\nLargest relative error at any converted site and in any output, with the one-tap filter; each site goes on "
        f"with the original's own value. float64 decides where float32 is too noisy (limits: 1e-4, 1e-9). "
        f"Sites compared: {proofs['sites_compared']:,}; at {proofs['sites_shown']:,} of them a blur off by one sample "
        f"was seen to make "
        f"a difference (slices are left as they are by that filter; some features are constant). "
        f"{proofs['on_a_smaller_input']:,} of {proofs['models']:,} were proven on the "
        f"smallest input for which the plan is the same, site by site, because their own takes too long. "
        f"Converted sites that a second look still finds: {proofs['sites_left']}.\n"
    )
    return table(("compared in", "models", "largest error", "of"), rows) + note


def _others(others: dict[str, dict[str, Any]]) -> str:
    rows, notes = [], []
    for name, data in others.items():
        total, proofs, drift = data["totals"].values(), data["proofs"], data["drift"]
        count = {key: sum(one[key] for one in total) for key in ("models", "converted", "failed", "sites_converted")}
        errors = ", ".join(f"{one['largest_error']:.1e} ({how})" for how, one in proofs["identity"].items())
        moved = "not measured"
        if drift["measured"]:
            moved = f"{_pixels(drift['largest_measured'])} ({drift['measured']:,} models)"
        rows.append((
            f"`{name}`", f"{count['models']:,}", f"{count['converted']:,}", f"{count['failed']:,}",
            f"{count['sites_converted']:,}", errors, f"{proofs['sites_shown']:,} of {proofs['sites_compared']:,}",
            _pixels(drift["largest_predicted"]), moved,
        ))  # fmt: skip
        notes.append(f"- `{name}`: `{data['command']}`" + _causes(data["failed"], drift))
    columns = (
        "recipe", "models", "converted and proven", "failed", "blurred", "largest error", "shown",
        "largest drift predicted", "measured",
    )  # fmt: skip
    return (
        table(columns, rows)
        + "\nThe same audit with other recipes; drift in input pixels, between where a feature lies and where the "
        "original has it. It is measured by running both on coordinates, without the graph that it is predicted from "
        "(`blurify/proof/positions.py`).\n\n" + "\n".join(notes) + "\n"
    )


def _causes(failed: dict[str, str], drift: dict[str, Any]) -> str:
    lines = [f"    - `{model}` failed: {error}" for model, error in failed.items()]
    by_cause: dict[str, list[str]] = defaultdict(list)
    for model, error in drift["not_measured"].items():
        by_cause[error].append(model)
    lines += [
        f"    - drift not measured of {len(models)} (`{models[0]}`{', ...' * (len(models) > 1)}): {error}"
        for error, models in sorted(by_cause.items(), key=lambda item: -len(item[1]))
    ]
    if drift["not_followed"]:
        names = drift["not_followed"]
        lines.append(f"    - drift not predicted of {len(names)} (`{names[0]}`{', ...' * (len(names) > 1)})")
    return "".join(f"\n{line}" for line in lines)


def _pixels(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value >= 1e-4 else "0" if value == 0 else f"{value:.0e}"


def _reasons(data: dict[str, Any]) -> str:
    counts: Counter[str] = Counter()
    for total in data["totals"].values():
        counts.update(total["skipped_by_rule"])
    rows = [(f"`{rule}`", f"{count:,}", REASONS.get(rule, "").format("...")) for rule, count in counts.most_common()]
    return table(("rule", "sites", "in words"), rows)


def _exceptions(data: dict[str, Any]) -> str:
    lines = []
    if data["failed"]:
        lines += ["Failed:\n", *(f"- `{model}`: {error}" for model, error in data["failed"].items()), ""]
    if data["not_converted_inside"]:
        lines.append("Models with sites inside the network that stay as they are:\n")
        lines += [
            f"- `{model}`: " + ", ".join(f"{count} {rule}" for rule, count in rules.items())
            for model, rules in data["not_converted_inside"].items()
        ]
    return "\n".join(lines or ["None: every site inside a network that can alias is converted."]) + "\n"


def _families(rows: Sequence[Row]) -> str:
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        module = row["class"].rpartition(".")[0].removeprefix("torchvision.models.").removeprefix("timm.models.")
        families[f"{row['model'].partition('/')[0]} {module or '(failed)'}"].append(row)
    lines = []
    for family, members in sorted(families.items()):
        extra = [
            int(row["extra_macs"]) / int(row["macs"])
            for row in members
            if row["status"] == "converted" and int(row["macs"] or 0)
        ]
        lines.append((
            family, str(len(members)), str(sum(row["status"] == "converted" for row in members)),
            str(_total(members, "sites")), str(_total(members, "converted")),
            f"{statistics.median(extra):+.0%}" if extra else "",
        ))  # fmt: skip
    return table(("family", "models", "converted", "sites", "blurred", "extra multiply-adds (median)"), lines)


def _times(data: dict[str, Any]) -> str:
    lines = []
    clock = data["inspection_by_the_clock"]
    if clock:
        lines.append(
            f"`blurify zoo 'timm/*' --inspect-only -j {clock['jobs']}` takes {clock['wall_seconds']:.0f} s for all "
            f"{clock['models']:,} (wanted: {clock['wall_seconds_wanted']:.0f} s on two cores).\n\n"
        )
    lines.append(
        "Against building the model and running one bare forward of it on the meta device, or with data where it needs "
        f"values; seconds summed over models, {data['machine']['jobs']} processes side by side:\n\n"
    )
    rows = []
    for library, times in data["inspection"].items():
        if times:
            seconds = (f"{times['seconds'][stage]:.0f}" for stage in ("build", "bare-forward", "inspect"))
            ratios = (f"{times[name]:.2f}" for name in ("ratio", "ratio_median", "ratio_largest"))
            rows.append((library, f"{times['models']:,}", *seconds, *ratios))
    lines.append(
        table(("library", "models", "build", "bare forward", "inspect", "ratio", "median", "largest"), rows)
        + "\nThe ratio is (build + inspect) / (build + bare forward): of the sums (wanted of timm: at most "
        f"{data['inspection_ratio_wanted_of_timm']}), then the median and the largest of the models. Detectors need "
        "data: there the forwards of a trace run on real pictures.\n"
    )
    return "".join(lines)


def _total(rows: Iterable[Row], column: str) -> int:
    return sum(int(row[column] or 0) for row in rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def others(data: Path = HERE) -> dict[str, dict[str, Any]]:
    """The audits by other recipes that lie beside the data."""
    found = sorted((data / OTHERS.name).glob("*/zoo.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="only compare the page with the data")
    parser.add_argument("--data", type=Path, default=HERE, help="where zoo.json and zoo.csv are (default benchmarks/)")
    parser.add_argument("--page", type=Path, default=PAGE, help="what to write (default docs/zoo.md)")
    options = parser.parse_args()
    with open(options.data / "zoo.csv", newline="", encoding="utf-8") as file:
        text = page(
            json.loads((options.data / "zoo.json").read_text()), list(csv.DictReader(file)), others(options.data)
        )
    if options.check:
        same = options.page.is_file() and options.page.read_text(encoding="utf-8") == text
        print(f"{options.page} is {'what the data say' if same else 'out of date: run python benchmarks/zoo_page.py'}")
        return 0 if same else 1
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
