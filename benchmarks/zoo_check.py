"""The audit of the whole zoo: `make zoo-check`, or `python benchmarks/zoo_check.py [PATTERN...]`.

First all of timm is inspected in one go, as `blurify zoo 'timm/*' --inspect-only` does, by the clock. Then every
architecture of timm and torchvision is inspected again, and timed against building it and running one bare forward of
it on the meta device (with real data where it needs values); whatever has a site to convert is then converted on random
weights and proven (identity check, same keys and bits, no site left). Where a forward of the native input takes more
than a budget, the proof takes the smallest input for which the plan is the same, site by site. What failed beside
another is tried once more alone.

With --recipe another recipe than the default is proven, and with --positions the drift of all feature maps is also
measured (by running original and conversion on coordinates, blurify/proof/positions.py), beside the predicted one.

All steps go through `blurify.zoo`, so a run that was stopped goes on where it was; --fresh starts over. Writes
benchmarks/zoo.json (versions, command, totals, times, exceptions) and benchmarks/zoo.csv (one row a model).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import statistics
import sys
import time
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from blurify import zoo
from blurify.errors import BlurifyError
from blurify.spec.recipes import load_recipe
from blurify.zoo.journal import Record, to_csv, totals

HERE = Path(__file__).parent
WORK = HERE.parent / ".cache" / "zoo-check"
PATTERNS = ["timm/*", "torchvision/*"]
PROOF_GMACS = 1.0
RATIO = 1.5  # wanted of all of timm: inspecting, against building and one bare forward
TIMM_SECONDS = 200.0  # inspecting all of timm with two processes on two cores
# What the default recipe only lists: upsampling, and subsampling in other ways than by a stride.
RESAMPLED = ("upsampling", "interpolates", "spread", "resampling", "antialiased", "little", "other-resampling")
PACKAGES = ("blurify", "torch", "torchvision", "timm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("patterns", nargs="*", default=PATTERNS, help="as for blurify zoo (default: everything)")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a model (default 900)")
    parser.add_argument("--memory", type=float, default=None, help="GiB a worker (default: a share of the machine)")
    parser.add_argument(
        "--proof-gmacs", type=float, default=PROOF_GMACS, help="a forward beyond this is proven smaller"
    )
    parser.add_argument("--recipe", default=None, metavar="NAME|FILE", help="what to convert with (default: zhang2019)")
    parser.add_argument("--positions", action="store_true", help="also measure how far feature maps drift")
    parser.add_argument("--inspect-only", action="store_true", help="only the first step")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    parser.add_argument("--work", type=Path, default=WORK, help="where the journals are (default .cache/zoo-check)")
    parser.add_argument("--out", type=Path, default=HERE, help="where zoo.json and zoo.csv go (default benchmarks/)")
    options = parser.parse_args()
    if options.out == HERE and (options.inspect_only or options.recipe or options.patterns != PATTERNS):
        parser.error(
            "benchmarks/ holds the result of the whole zoo by the default recipe: give --out for anything else"
        )
    recipe = load_recipe(options.recipe)
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)

    names = zoo.select(options.patterns, pretrained=False)
    print(f"{len(names)} architectures", flush=True)
    shared: dict[str, Any] = {"jobs": options.jobs, "timeout": options.timeout, "memory": options.memory}
    by_the_clock = inspected_by_the_clock(names, options.work, shared)
    inspected, inspect_wall = step(
        "inspect",
        names,
        options.work,
        zoo.Settings(inspect_only=True, pretrained=False, measure=True, recipe=recipe, **shared),
    )
    records = {record["model"]: record for record in inspected}
    wall = {"inspect": inspect_wall}
    if not options.inspect_only:
        wanted = [record["model"] for record in inspected if record["status"] != "failed" and record["converted"]]
        settings = zoo.Settings(
            pretrained=False, write=False, proof_macs=int(options.proof_gmacs * 1e9), recipe=recipe,
            positions=options.positions, **shared,
        )  # fmt: skip
        converted, wall["convert"] = step("convert", wanted, options.work, settings)
        failed = [record["model"] for record in converted if record["status"] == "failed"]
        if failed and options.jobs > 1:  # the largest fit when they have the machine to themselves
            alone = dataclasses.replace(settings, jobs=1, memory=None)
            again, wall["convert-alone"] = step("convert", failed, options.work, alone)
            mended = {record["model"]: record for record in again}
            converted = [mended.get(record["model"], record) for record in converted]
        for record in converted:
            # One row a model: the times of the inspection are those of the first step, which measures them.
            seconds = {**records[record["model"]]["seconds"]}
            seconds |= {f"convert-{stage}": value for stage, value in record["seconds"].items()}
            records[record["model"]] = {**records[record["model"]], **record, "seconds": seconds}
    rows = [records[name] for name in names]

    report = {
        "command": command(sys.argv[1:]),
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "machine": {"system": platform.system(), "machine": platform.machine(), "jobs": options.jobs},
        "totals": {
            library: totals(r for r in rows if r["model"].startswith(library)) for library in zoo_libraries(rows)
        },
        "inspection_by_the_clock": by_the_clock,
        "inspection_ratio_wanted_of_timm": RATIO,
        "inspection": {
            library: timing([r for r in inspected if r["model"].startswith(library)]) for library in zoo_libraries(rows)
        },
        "proofs": proofs(rows),
        "drift": drift(rows),
        "failed": {row["model"]: row["error"] for row in rows if row["status"] == "failed"},
        "not_converted_inside": left_inside(rows),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "zoo.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "zoo.csv").write_text(to_csv(rows))
    print(json.dumps(report, indent=1))
    print("wall seconds of this run: " + ", ".join(f"{what} {seconds:.0f}" for what, seconds in wall.items()))
    slow = any(found.get("ratio", 0) > RATIO for name, found in report["inspection"].items() if name == "timm")
    return 1 if report["failed"] or slow else 0


def command(arguments: list[str]) -> str:
    """The command line, without where its files are: that is of one machine, and changes nothing."""
    kept = ["python", "benchmarks/zoo_check.py"]
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--out", "--work"):
            next(rest, None)
        elif not argument.startswith(("--out=", "--work=")):
            kept.append(argument)
    return " ".join(kept)


def step(what: str, names: list[str], work: Path, settings: zoo.Settings) -> tuple[list[Record], float]:
    """Run one step over all names, a line for each that is done; what an earlier run did is not done again."""

    def say(progress: zoo.Progress) -> None:
        if progress.finished is not None:
            record = progress.finished
            line = record.get("error") or f"{record['converted']} of {record['sites']} sites"
            print(
                f"{what} [{progress.done}/{progress.total}] {record['model']}: {record['status']}: {line}", flush=True
            )

    begin = time.monotonic()
    summary = zoo.run(names, work / what, settings, watch=say)
    return list(summary.records), time.monotonic() - begin


def inspected_by_the_clock(names: list[str], work: Path, shared: dict[str, Any]) -> dict[str, Any]:
    """How long it takes to inspect all of timm's architectures and nothing else, from the start to the summary.

    Measured once and kept: a run that goes on where another was stopped has no time of its own.
    """
    timm = [name for name in names if name.startswith("timm/")]
    kept = work / f"inspection-by-the-clock-{zlib.crc32(' '.join(timm).encode()):08x}.json"
    if timm and not kept.is_file():
        shutil.rmtree(work / "clock", ignore_errors=True)
        _, wall = step("clock", timm, work, zoo.Settings(inspect_only=True, pretrained=False, **shared))
        found = {"library": "timm", "models": len(timm), "jobs": shared["jobs"], "wall_seconds": round(wall, 1)}
        kept.write_text(json.dumps(found | {"wall_seconds_wanted": TIMM_SECONDS}))
    found = json.loads(kept.read_text()) if timm else {}
    return found


def timing(rows: list[Record]) -> dict[str, Any]:
    """Seconds of building, of one bare meta forward and of inspecting, summed over the models; and their ratio."""
    timed = [row["seconds"] for row in rows if {"build", "bare-forward", "inspect"} <= row["seconds"].keys()]
    if not timed:
        return {}
    sums = {stage: sum(seconds[stage] for seconds in timed) for stage in ("build", "bare-forward", "inspect", "total")}
    ratios = sorted((s["build"] + s["inspect"]) / (s["build"] + s["bare-forward"]) for s in timed)
    return {
        "models": len(timed),
        "seconds": {stage: round(value, 1) for stage, value in sums.items()},
        # What an inspection takes without the bare forward that is only run here.
        "seconds_of_inspection_alone": round(sums["total"] - sums["bare-forward"], 1),
        "ratio": round((sums["build"] + sums["inspect"]) / (sums["build"] + sums["bare-forward"]), 3),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_largest": round(ratios[-1], 3),
    }


def proofs(rows: list[Record]) -> dict[str, Any]:
    """How the identity check came out, by precision; at how many sites it compared, and would have shown a mistake."""
    proven = [row for row in rows if row.get("identity_error") is not None]
    result: dict[str, Any] = {"models": len(proven)}
    errors: dict[str, dict[str, float]] = {}
    for row in proven:
        errors.setdefault(row["identity_dtype"], {})[row["model"]] = row["identity_error"]
    result["identity"] = {
        how: {
            "models": len(found),
            "largest_error": max(found.values()),
            "of": max(found, key=lambda name: found[name]),
        }
        for how, found in sorted(errors.items())
    }
    result["sites_compared"] = sum(row["sites_compared"] for row in proven)
    result["sites_shown"] = sum(row["sites_shown"] for row in proven)
    result["on_a_smaller_input"] = sum(row["proof_input_shapes"] != row["input_shapes"] for row in proven)
    result["sites_left"] = sum(row["sites_left"] for row in proven)
    return result


def drift(rows: list[Record]) -> dict[str, Any]:
    """How far feature maps are from where the original has them, in input pixels: as predicted, and as measured."""
    predicted = {row["model"]: row["drift"] for row in rows if row.get("drift") is not None and row["converted"]}
    measured = {row["model"]: row["drift_measured"] for row in rows if row.get("drift_measured") is not None}
    return {
        "models": len(predicted),
        "not_followed": [row["model"] for row in rows if row.get("converted") and row.get("drift") is None],
        "none_predicted": sum(value == 0 for value in predicted.values()),
        "largest_predicted": max(predicted.values(), default=None),
        "branches_apart": sum(bool(row.get("meetings")) for row in rows),
        "measured": len(measured),
        "none_measured": sum(value < 1e-4 for value in measured.values()),
        "largest_measured": max(measured.values(), default=None),
        "of": max(measured, key=lambda name: measured[name], default=None),
        "not_measured": {row["model"]: row["drift_error"] for row in rows if row.get("drift_error")},
    }


def left_inside(rows: list[Record]) -> dict[str, dict[str, int]]:
    """Models with sites that are skipped for another reason than what is left alone by rule."""
    fine = {"stem", "patchify-stem", "already-filtered", "global-pool", *RESAMPLED}
    found = {row["model"]: {k: v for k, v in row.get("skipped_by_rule", {}).items() if k not in fine} for row in rows}
    return {model: rules for model, rules in found.items() if rules}


def zoo_libraries(rows: list[Record]) -> list[str]:
    return sorted({row["model"].partition("/")[0] for row in rows})


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        import blurify

        return f"{blurify.__version__} (a checkout)" if name == "blurify" else "not installed"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BlurifyError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
