"""`blurify report`: what was measured, as one page and as figures."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blurify.cli import console
from blurify.cli.measure import measure
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from blurify.reporting import Report

_MEASURED = ".json"


def report(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="MEASURED.json|MODEL...",
            help="A file of blurify measure -o (or two, one a model); or MODEL [MODEL2], to be measured first, with "
            "any option of blurify measure: --data, --convert, --images, ...",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page: one HTML file that needs nothing else.")
    ],
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures here too, as PNG and SVG.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Show how shift-invariant a model is, before and after: one page to read in a browser, without any network.

    It shows what the file holds: measure with --metrics all for every section. A MODEL is measured so by itself.
    """
    with console.working("loading"):
        from blurify import reporting
        from blurify.files import atomic

    for source in sources:
        if Path(source).expanduser().resolve() == output.expanduser().resolve():
            raise BlurifyError(f"{output} is what the report is made from: give --output another name")
    atomic.check_target(output, force=force)  # before the work, so that none is wasted
    reporting.require("jinja2")
    if figures is not None:
        reporting.check_figures(figures, force=force)
    files = [source for source in sources if source.lower().endswith(_MEASURED)]
    found = _read(sources) if files else _measured(context, sources)
    with console.working("drawing"):
        page = reporting.render(found).encode()
        written = reporting.write_figures(found, figures, force=force) if figures is not None else []
        atomic.write_bytes(output.expanduser(), page, force=force)
    console.say(f"wrote {output} ({len(page) / 1e3:.0f} kB)", style="bold")
    if written:
        console.say(f"wrote {len(written)} figures to {figures}")


def _read(paths: list[str]) -> Report:
    """What some files hold, together."""
    from blurify.metrics import files
    from blurify.reporting import Report

    for path in paths:
        if not path.lower().endswith(_MEASURED):
            raise BlurifyError(
                f"{path} does not go with a file of measurements: give such files alone, or models and the options of "
                "blurify measure"
            )
    found = [files.read_all(path) for path in paths]
    measurements = tuple(measurement for part, _ in found for measurement in part)
    about = [context for _, context in found]
    # Measured apart, the converted model is the one whose plan was carried out.
    by_done = sorted(found, key=lambda item: not any(measurement.converted for measurement in item[0]))
    plans = [context.plan for _, context in by_done if context.plan is not None]
    return Report(
        measurements,
        plans[0] if plans else None,
        "\n".join(context.command for context in about if context.command),
        {name: version for context in about for name, version in context.versions.items()},
        same_weights=any(context.same_weights for context in about),
    )


def _measured(context: typer.Context, arguments: list[str]) -> Report:
    """Measure as `blurify measure` does, which also understands the options."""
    if "--json" in arguments:
        raise BlurifyError("a report is a page: for JSON, blurify measure has --json")
    chosen = any(item.split("=")[0] == "--metrics" for item in arguments)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(measure)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / f"measured{_MEASURED}")
        with contextlib.redirect_stdout(io.StringIO()):  # the page says it all
            typer.main.get_command(app).main(
                [*arguments, *([] if chosen else ["--metrics", "all"]), "--output", path],
                prog_name="blurify measure",
                standalone_mode=False,
                obj=context.find_root().obj,
            )
        return _read([path])
