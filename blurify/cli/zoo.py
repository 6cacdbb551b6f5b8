"""`blurify zoo`: batch-convert architectures."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blurify.cli import console, options
from blurify.cli.filtering import Filters, with_filters
from blurify.cli.tables import Column, print_table, say_left_out
from blurify.errors import BlurifyError, printable
from blurify.metrics.sizes import amount

if TYPE_CHECKING:
    from blurify.zoo import Progress, Record, Summary

_MOST_ROWS = 100


@with_filters
def zoo(
    patterns: Annotated[
        list[str],
        typer.Argument(
            metavar="PATTERN...",
            help="Globs: resnet* (timm and torchvision), timm/resnet*, torchvision/*; resnet50.* names timm's "
            "pretrained tags, vgg16:* torchvision's weights; or python:package.module:factory.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR|URL",
            help="Directory, or a URL such as s3://bucket/prefix, for the models, journal and summary.",
        ),
    ],
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            help="Worker processes.",
            show_default="one a core, at most 4; one a CPU of a cluster",
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained/--random", help="Pretrained weights, or random ones (downloads nothing).")
    ] = True,
    inspect_only: Annotated[
        bool, typer.Option("--inspect-only", help="Only list the sites; converts and downloads nothing.")
    ] = False,
    recipe: options.Recipe = None,
    format: Annotated[str, typer.Option("--format", metavar="safetensors|pt", help="Kind of file.")] = "safetensors",
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N parts (1-based); give each part a DIR of its own."),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Longest that one model may take.")] = 900.0,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="Most memory of one worker.", show_default="a share of the machine"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do again what is done already; replace files.")] = False,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Where the workers run: on this machine, or on a Ray cluster.")
    ] = "local",
    engine_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The Ray cluster; 'local' starts one here for this run.",
            show_default="RAY_ADDRESS, else the one that runs on this machine",
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(metavar="N", help="How often a model is done again whose node was lost (ray).")
    ] = 2,
    wide: options.Wide = False,
    json: options.Json = False,
    *,
    filters: Filters,
) -> None:
    """Convert every architecture that matches, in parallel, each with its proof; a rerun does only what is missing.

    What a model does (crash, hang, take all memory) is that model's result and no other's. Failed models are tried
    again by a rerun. A model without a site to convert is 'inspected' and gets no file. Exit code 1: some failed.
    """
    filters.check()
    from blurify import zoo as library
    from blurify.spec.recipes import load_recipe

    settings = library.Settings(
        inspect_only=inspect_only, pretrained=pretrained, recipe=filters.on(load_recipe(recipe)),
        format=format, jobs=jobs, timeout=timeout, memory=memory, force=force,
        engine=engine, address=engine_address, retries=retries,
    )  # fmt: skip
    part = parse_shard(shard)
    with console.working("listing the architectures"):
        names = library.select(patterns, pretrained=pretrained and not inspect_only, shard=part)
    with _terminable(), _watching(quiet=json) as watch:
        summary = library.run(names, output, settings, watch=watch)
    if json:
        console.print_json(summary.to_dict())
    else:
        _print_summary(summary, output, wide=wide)
    if summary.failed:
        raise typer.Exit(1)


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """'2/8' -> (2, 8). Raises BlurifyError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise BlurifyError(f"--shard {text!r} is no part: give I/N, such as 1/4 for the first of four")
    return int(match[1]), int(match[2])


def result_line(record: Record) -> str:
    """What came of one model, in one line."""
    if record["status"] == "failed":
        return f"{record['model']}: failed: {record['error']}"
    sites = record["sites"]
    what = f"{record['converted']} of {sites} site{'' if sites == 1 else 's'}"
    if record["status"] == "inspected":
        what += " to convert"
    else:
        what += f", identity error {record['identity_error']:.1e} ({record['identity_dtype']})"
    return f"{record['model']}: {record['status']}: {what}, {record['seconds']['total']:.1f} s"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Schedulers stop a job with SIGTERM: end as cleanly as on Ctrl-C.

    Nothing is done about Ctrl-C itself. Where whoever started this had SIGINT ignored, as a shell has it for what a
    script runs in the background, Python leaves it so: what somebody types at a terminal is not meant for such a job.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _watching(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar with what is running on a terminal, a line a model in a pipe."""
    if quiet or not console.on_terminal():

        def say(progress: Progress) -> None:
            if progress.finished is not None and not quiet:
                print(f"[{progress.done}/{progress.total}] {printable(result_line(progress.finished))}", flush=True)

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[running]}"),
    )  # fmt: skip
    with Bar(*columns, console=Console(highlight=False), transient=True) as bar:
        task = bar.add_task("models", total=None, running="starting")

        def show(progress: Progress) -> None:
            running = ", ".join(name.partition("/")[2] or name for name in progress.running)
            bar.update(task, completed=progress.done, total=progress.total, running=running or "starting")
            if progress.finished is not None and progress.finished["status"] == "failed":
                bar.console.print(printable(result_line(progress.finished)), style="red", markup=False)

        yield show


def _print_summary(summary: Summary, where: str, *, wide: bool) -> None:
    from blurify.zoo.journal import SUMMARY_CSV, SUMMARY_JSON
    from blurify.zoo.storage import within

    as_json, as_csv = within(where, SUMMARY_JSON), within(where, SUMMARY_CSV)
    records: Sequence[Record] = summary.records
    if len(records) > _MOST_ROWS:
        console.say(f"{len(records)} models; all of them are in {as_csv}, those that failed:")
        records = summary.failed
    if records:
        _print_table(records, wide=wide)
    statuses = [record["status"] for record in summary.records]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("converted", "inspected", "failed"))
    sites, blurred = (sum(record.get(field, 0) for record in summary.records) for field in ("sites", "converted"))
    console.say(f"{len(statuses)} models: {counts}; sites: {sites}, {blurred} to blur", style="bold")
    console.say(f"wrote {as_json} and {as_csv}")


def _print_table(records: Sequence[Record], *, wide: bool) -> None:
    columns = (
        Column("model"), Column("status"), Column("sites", right=True, use=2), Column("blurred", right=True, use=1),
        Column("macs", right=True, use=6), Column("extra", right=True, use=4), Column("identity", right=True, use=5),
        Column("s", right=True, use=7), Column("cause or skipped", prose=True, use=3),
    )  # fmt: skip
    styles = {"failed": "red", "inspected": "dim", "converted": ""}
    rows = [_row(record) for record in records]
    left_out = print_table(columns, rows, styles=[styles[record["status"]] for record in records], wide=wide)
    if columns[-1].heading in left_out:
        for record in records:
            if record["status"] == "failed":
                console.say(result_line(record), style="red")
    say_left_out(left_out)


def _row(record: Record) -> tuple[str, ...]:
    seconds = f"{record['seconds'].get('total', 0):.1f}"
    if "sites" not in record:
        return record["model"], record["status"], "", "", "", "", "", seconds, record["error"]
    error: Any = record.get("identity_error")
    macs = record["macs"]
    return (
        record["model"],
        record["status"],
        str(record["sites"]),
        str(record["converted"]),
        amount(macs).replace(" ", ""),
        f"{record['extra_macs'] / macs:+.0%}" if macs else "",
        "" if error is None else f"{error:.1e}",
        seconds,
        record.get("error") or ", ".join(f"{count} {rule}" for rule, count in record["skipped_by_rule"].items()),
    )
