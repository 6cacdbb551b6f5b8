"""What a command that measures keeps of it while it runs: a command that was stopped goes on when it is run again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blurify.errors import one_line, printable

if TYPE_CHECKING:
    from blurify.metrics.kept import Kept
    from blurify.metrics.results import Measurement
    from blurify.metrics.subject import Pictures, Subject


class Keeping:
    """What one command keeps, model by model.

    Args:
        metrics: what is measured of each model; what is kept of others is not spoken of.
        fresh: begin anew.
    """

    def __init__(self, metrics: Sequence[str] = (), *, fresh: bool = False) -> None:
        self._metrics = metrics
        self._fresh = fresh
        self._kept: list[Kept] = []
        self._measured: list[Measurement] = []  # of each model, all that is done
        self._whole = True  # nothing is lost

    def of(self, subject: Subject, pictures: Pictures) -> Kept | None:
        """What is kept of a model, to be handed to metrics. Says so where a stopped run left something."""
        from blurify.metrics import keeping

        try:
            name = keeping.name_of(subject, pictures)
        except OSError as error:  # a picture that is gone: measuring says so, if it is among those to be read yet
            self._say_lost(one_line(error))
            return None
        known = next((known for known in self._kept if known.journal.path.stem == name), None)
        if known is not None or name is None:
            return known
        try:
            kept = keeping.open_kept(name, subject, pictures, fresh=self._fresh)
        except OSError as error:
            self._say_lost(f"{error.filename}: {error.strerror}" if error.strerror else one_line(error))
            return None
        if kept is None:
            self._say_lost("another run of the same is under way")
            return None
        self._kept.append(kept)
        if keeping.of_output(kept, subject).knows(keeping.steps_of(self._metrics, subject)):
            tell(
                f"going on with a run that was stopped: some results of {subject.name} are there already (--fresh "
                "measures all anew)"
            )
        return kept

    def told(self, found: Measurement) -> None:
        """A metric of a model is done."""
        if self._measured and self._measured[-1].model == found.model:
            self._measured.pop()
        self._measured.append(found)
        self.check()

    def check(self) -> None:
        """Say so, once, where results can't be written down any more."""
        for kept in self._kept:
            if kept.journal.trouble and self._whole:
                self._say_lost(f"{kept.journal.path}: {kept.journal.trouble}")

    def stopped(self, *, quiet: bool) -> None:
        """Show what was measured, and say how to go on. `quiet`: not what was measured."""
        from blurify.cli import measurements

        self.check()
        found = self._measured
        if found and not quiet:
            measurements.print_measurements(found)
        if self._kept and self._whole:
            tell("stopped: what was measured is kept; run the same command again to go on (--fresh measures all anew)")
        elif self._kept:
            tell("stopped: what was measured since results can't be written down is lost")

    def close(self, *, done: bool) -> None:
        """Let go of it; where the command is done, what was kept is removed."""
        for kept in self._kept:
            kept.close(done=done)
        self._kept = []

    def __enter__(self) -> Keeping:
        """While the results are brought to where they are to be: what is kept is removed where that went well."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                sys.stdout.flush()  # the disk that it goes to may be full
        except BaseException:
            self.close(done=False)
            raise
        self.close(done=kind is None)

    def _say_lost(self, reason: str) -> None:
        if self._whole:
            tell(f"note: results are not kept ({reason}): a run that is stopped begins anew")
        self._whole = False


def tell(line: str) -> None:
    """One line on stderr."""
    line = printable(line)
    with contextlib.suppress(OSError):  # a terminal that was closed
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.text import Text

            Console(stderr=True, highlight=False).print(Text(line, style="yellow"))
        else:
            print(line, file=sys.stderr, flush=True)
