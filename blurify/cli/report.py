"""`blurify report`: what was measured, as one page and as figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blurify.cli import console
from blurify.cli.gathering import More, gathered
from blurify.cli.keeping import Keeping
from blurify.cli.measuring import Choices, command_line, entry_and_file, measured, with_choices
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from blurify.reporting import Report

_MEASURED = ".json"


@with_choices
def report(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="MEASURED.json|MODEL...",
            help="A file of blurify measure -o (or up to three, one a model); or MODEL [MODEL2 [MODEL3]], such as the "
            "original, the converted and the adapted one, to be measured first, with any option of blurify measure: "
            "--data, --convert, --images, ...",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="The page: one HTML file that needs nothing else; or FILE.pdf. [required]",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures here too, as PNG and SVG.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    metrics: Annotated[str, typer.Option(metavar="LIST", help="As for blurify measure.")] = "all",
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Embed some of the pictures, such as those that flip.")
    ] = True,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time the models too: a few seconds.")] = True,
    class_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the classes, one a line or as JSON.",
            show_default="the model's own, or ImageNet's for 1000",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
    *,
    choices: Choices,
) -> None:
    """Show how shift-invariant a model is, before and after: one page to read in a browser, without any network.

    It shows what the file holds: measure with --metrics all for every section. A MODEL is measured so by itself. Of an
    adapted model it shows every stage; three models stand side by side as original, converted and adapted.
    """
    choices, output = entry_and_file(choices, output, (".html", ".htm", ".pdf"))
    if output is None:
        raise BlurifyError("nothing says where to write the page: give -o FILE, such as -o report.html")
    with console.working("loading"):
        from blurify import reporting
        from blurify.files import atomic
        from blurify.metrics.class_names import read_class_names
        from blurify.reporting import pdf

    for source in sources:
        if Path(source).expanduser().resolve() == output.expanduser().resolve():
            raise BlurifyError(f"{output} is what the report is made from: give -o another name")
    atomic.check_target(output, force=force)  # before the work, so that none is wasted
    reporting.require("jinja2")
    printed = output.suffix.lower() == ".pdf"
    if printed:
        pdf.find_browser()
    if figures is not None:
        reporting.check_figures(figures, force=force)
    names = read_class_names(class_names) if class_names is not None else ()
    if json:
        raise BlurifyError("a report is a page: for JSON, blurify measure has --json")
    if any(_is_file(source) for source in sources):
        # --output may have named the page, and then says nothing of a model.
        options = [name for name in vars(choices) if name != "entry" or choices.entry is not None]
        given = _given(context, "metrics", "pictures", "latency", "class_names", *options)
        found, keeping = _read([*sources, *given]), Keeping()
    else:
        more = More(pictures=pictures, latency=latency, class_names=names)
        found, keeping = _measured(sources, metrics, choices, more, command_line(context))
    with keeping, console.working("drawing"):
        page = reporting.render(found).encode()
        if printed:
            page = pdf.printed(page)
        written = reporting.write_figures(found, figures, force=force) if figures is not None else []
        atomic.write_bytes(output.expanduser(), page, force=force)
    console.say(f"wrote {output} ({len(page) / 1e3:.0f} kB)", style="bold")
    if written:
        console.say(f"wrote {len(written)} figures to {figures}")


def _is_file(source: str) -> bool:
    return source.lower().endswith(_MEASURED)


def _given(context: typer.Context, *names: str) -> list[str]:
    """Those of some options that stand on the command line, as they are called there."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]


def _read(paths: list[str]) -> Report:
    """What some files hold, together."""
    from blurify.metrics import files
    from blurify.reporting import Report

    for path in paths:
        if not _is_file(path):
            raise BlurifyError(
                f"{path} does not go with a file of measurements: give such files alone, or models and the options of "
                "blurify measure"
            )
    found = [files.read_all(path) for path in paths]
    measurements = tuple(measurement for part, _ in found for measurement in part)
    about = [context for _, context in found]
    # Measured apart, the converted model is the one whose plan was carried out.
    by_done = sorted(found, key=lambda item: not any(measurement.converted for measurement in item[0]))
    adapted = tuple(record for part, context in found for record in context.adapted or (None,) * len(part))
    plans = [context.plan for _, context in by_done if context.plan is not None]
    return Report(
        measurements,
        plans[0] if plans else None,
        "\n".join(context.command for context in about if context.command),
        {name: version for context in about for name, version in context.versions.items()},
        same_weights=any(context.same_weights for context in about),
        ranking=next((context.ranking for context in about if context.ranking is not None), None),
        adapted=adapted if any(adapted) else (),
        pareto=next((context.pareto for context in about if context.pareto is not None), None),
        # It is of all models of one file: of several files, each has its own alone, and they don't go together.
        evidence=about[0].evidence if len(about) == 1 else None,
    ).in_order


def _measured(models: list[str], metrics: str, choices: Choices, more: More, command: str) -> tuple[Report, Keeping]:
    """Measure as `blurify measure` does, and gather what a page shows besides."""
    from blurify.reporting import MOST, Report

    if len(models) > MOST:
        raise BlurifyError(
            f"a report shows one model, or two or three side by side, not {len(models)}: leave {models[MOST]} out"
        )
    if len(models) == MOST and choices.convert:
        raise BlurifyError("--convert makes the second model of one: leave it out where three are given")
    found = measured(models, metrics, choices, command=command, in_context=True)
    about = found.context
    assert about is not None  # it was asked for
    ordered = Report(
        found.results, about.plan, about.command, about.versions, same_weights=about.same_weights,
        adapted=about.adapted, pareto=found.pareto,
    ).in_order  # fmt: skip
    subjects = [found.subjects[found.results.index(measurement)] for measurement in ordered.measurements]
    evidence = gathered(
        dataclasses.replace(found, subjects=tuple(subjects), results=ordered.measurements), choices, more
    )
    return dataclasses.replace(ordered, evidence=evidence), found.keeping
