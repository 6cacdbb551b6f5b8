"""What a report shows besides figures, measured as the command line has it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blurify.cli import console
from blurify.cli.devices import memory_errors
from blurify.cli.measuring import Choices, Found
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from blurify.metrics.evidence import Evidence


@dataclass(frozen=True)
class More:
    """What a report shows besides figures, by its own options."""

    pictures: bool = True
    latency: bool = True
    class_names: tuple[str, ...] = ()


def gathered(found: Found, choices: Choices, more: More) -> Evidence:
    """All that a report measures besides the figures of `blurify measure`."""
    from blurify.metrics import class_names
    from blurify.metrics.gathering import count_classes, gather

    assert found.pictures is not None  # it was measured just now
    names: tuple[str, ...] = ()
    with contextlib.suppress(BlurifyError):  # a model without classes has no names for them
        classes = count_classes(found.subjects[0])
        names = class_names.class_names(classes, more.class_names or found.categories)
        if more.class_names and len(more.class_names) != classes:  # not an error: all is measured already
            names = ()
            console.say(f"{len(more.class_names)} class names for {classes} classes: the page has numbers instead")
    with memory_errors("a smaller --batch-size"), console.bar("pictures, curves and spectra") as watch:
        return gather(
            found.subjects, found.pictures, measurements=found.results,
            plan=found.context.plan if found.context is not None else None, classes=names, seed=choices.seed,
            batch_size=choices.batch_size, circular=choices.circular, shown=more.pictures, timed=more.latency,
            watch=watch, kept=found.keeping.of(found.subjects[0], found.pictures),
        )  # fmt: skip
