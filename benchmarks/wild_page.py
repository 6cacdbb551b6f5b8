"""Write docs/wild.md from what `make wild-check` found."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from blurify.planning.reasons import REASONS

Row = dict[str, Any]
COLUMNS = (
    "model", "library", "status", "stage", "error", "class", "guessed", "input_shapes", "parameters", "sites",
    "converted",
    "skipped_by_rule", "macs", "extra_macs", "identity_error", "identity_dtype", "sites_compared", "sites_shown",
    "sites_left", "tensors_equal",
)  # fmt: skip
_BY_RULE = {"stem", "patchify-stem", "already-filtered", "global-pool"}

HEAD = """\
# Other libraries

{count:,} models of {libraries} libraries other than timm and torchvision ([zoo.md](zoo.md)), with random weights and
from small configurations, each in a process of its own: inspected, and where there is something to convert, converted
with the default recipe and proven (with the one-tap filter the original function, the same tensors, no converted site
left). This page is written by `make wild-check` with [wild.json](../benchmarks/wild.json) and
[wild.csv](../benchmarks/wild.csv) (one row a model); the models are listed in
[benchmarks/wild](../benchmarks/wild/catalog.py). blurify {blurify}, torch {torch}, Python {python}.
"""


def report(rows: Sequence[Row], versions: dict[str, str]) -> dict[str, Any]:
    """The totals and every cause."""
    by_library: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_library[row["library"]].append(row)
    proven = [row for row in rows if row["status"] == "converted"]
    return {
        "command": "python -m benchmarks.wild_check",
        "versions": versions,
        "models": len(rows),
        "libraries": {
            name: {
                "models": len(found),
                **Counter(row["status"] for row in found),
                "sites": sum(row.get("sites", 0) for row in found),
                "sites_converted": sum(row.get("converted", 0) for row in found),
                "inputs_found_out": sum(bool(row.get("guessed")) for row in found),
            }
            for name, found in by_library.items()
        },
        "proofs": {
            "models": len(proven),
            "largest_error": {
                dtype: max(row["identity_error"] for row in proven if row["identity_dtype"] == dtype)
                for dtype in sorted({row["identity_dtype"] for row in proven})
            },
            "sites_compared": sum(row["sites_compared"] for row in proven),
            "sites_shown": sum(row["sites_shown"] for row in proven),
            "sites_left": sum(row["sites_left"] for row in proven),
        },
        "failed": {
            row["model"]: {"stage": row["stage"], "error": row["error"]} for row in rows if row["status"] == "failed"
        },
        "not_converted_inside": {
            row["model"]: left for row in rows
            if (left := {k: v for k, v in row.get("skipped_by_rule", {}).items() if k not in _BY_RULE})
        },
        "inputs_not_found_out": {
            row["model"]: row.get("guess_error", "") for row in rows if row.get("guessed") is False
        },
    }  # fmt: skip


def page(data: dict[str, Any], rows: Sequence[Row]) -> str:
    """The page as Markdown."""
    parts = [HEAD.format(count=data["models"], libraries=len(data["libraries"]), **data["versions"])]
    lines = [
        (
            name, *(f"{found.get(key, 0):,}" for key in ("models", "converted", "inspected", "failed")),
            f"{found['inputs_found_out']:,}", f"{found['sites']:,}", f"{found['sites_converted']:,}",
        )
        for name, found in data["libraries"].items()
    ]  # fmt: skip
    columns = (
        "library",
        "models",
        "converted and proven",
        "nothing to convert",
        "failed",
        "inputs found out",
        "sites",
        "blurred",
    )
    parts.append("## In numbers\n\n" + table(columns, lines))
    proofs = data["proofs"]
    errors = ", ".join(f"{error:.1e} ({dtype})" for dtype, error in proofs["largest_error"].items())
    parts.append(
        f"Largest relative error of a proof: {errors}. Sites compared: {proofs['sites_compared']:,}; at "
        f"{proofs['sites_shown']:,} a blur off by one sample was seen to make a difference. Converted sites that a "
        f"second look still finds: {proofs['sites_left']}.\n"
    )
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.get("skipped_by_rule", {}))
    parts.append("## Why sites are left alone\n\n" + table(
        ("rule", "sites", "in words"),
        [(f"`{rule}`", f"{n:,}", REASONS.get(rule, "").format("...")) for rule, n in counts.most_common()],
    ))  # fmt: skip
    ours = {m: f for m, f in data["failed"].items() if f["stage"] in ("guess", "inspect", "convert")}
    theirs = {m: f for m, f in data["failed"].items() if m not in ours}
    parts.append("## Failed in blurify\n\n" + _list({m: f"{f['stage']}: {f['error']}" for m, f in ours.items()}))
    parts.append(
        "## Not to be built or run here\n\nBefore blurify had anything to do with them: the library does not run with "
        "these versions, wants weights from the network, or its settings here are wrong.\n\n"
        + _list({m: f"{f['stage']}: {f['error']}" for m, f in theirs.items()})
    )
    inside = {
        m: ", ".join(f"{n} {rule}" for rule, n in left.items()) for m, left in data["not_converted_inside"].items()
    }
    parts.append("## Sites inside a network that stay as they are\n\n" + _list(inside))
    return "\n".join(parts)


def _list(found: dict[str, str]) -> str:
    return "".join(f"- `{model}`: {text}\n" for model, text in found.items()) or "None.\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def to_csv(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
