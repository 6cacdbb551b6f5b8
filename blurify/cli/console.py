"""What every command prints with: rich on a terminal, plain aligned text in a pipe, errors in one line on stderr.

Rich is imported where it prints: what goes into a pipe needs none of it.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from blurify.cli.signals import Stop
from blurify.errors import BlurifyError, VerificationError, printable

TRACEBACK = "BLURIFY_TRACEBACK"
_INTERRUPTED, _PIPE_CLOSED = 130, 141  # 128 + the signal's number, as shells have it
_PACE = 600.0  # seconds over which a bar looks back
_UNUSABLE_NAMES = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)  # what no look at a file can get around


def on_terminal() -> bool:
    """Whether stdout is a terminal: rich output there, plain text elsewhere."""
    return sys.stdout.isatty()


def say(line: str = "", style: str = "") -> None:
    """Print one line; the style counts on a terminal only."""
    line = printable(line)
    if on_terminal():
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False).print(Text(line, style=style))
    else:
        print(line)


def print_json(data: Any) -> None:
    """Print data as JSON, the same on a terminal and in a pipe."""
    print(json.dumps(data, indent=2))


def say_whole(line: str, style: str = "") -> None:
    """Print one line that is laid out already, or to be copied: it is not wrapped here."""
    line = printable(line)
    if on_terminal():
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False, soft_wrap=True).print(Text(line, style=style))
    else:
        print(line)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr while something runs; nothing where stderr is not a terminal.

    Raises:
        KeyboardInterrupt: a signal came before.
    """
    if (stop := _stop.get()) is not None:
        stop.again()
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(printable(what))):
        yield


@contextlib.contextmanager
def bar(name: str, prefix: str = "") -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on stderr where that is a terminal, else None.

    Args:
        name: what it says at first.
        prefix: what stands before that which it is told.

    Yields:
        a function to be told (what is done, how far, of how much; 0 where that is not known).
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    shown = Console(stderr=True, highlight=False)
    # Where a step takes a minute, the time left is told by more than the last half of one.
    with Progress(*columns, console=shown, transient=True, speed_estimate_period=_PACE) as progress:
        task = progress.add_task(printable(name), total=None)
        now = ""

        def told(what: str, done: int, of: int) -> None:
            nonlocal now
            if what != now:  # the pace of something else, and what a run of before has done, tell nothing of this
                now = what
                progress.reset(task, description=printable(prefix + what), total=of or None, completed=max(done - 1, 0))
            progress.update(task, description=printable(prefix + what), completed=done, total=of or None)

        yield told


@dataclass
class Outcome:
    """The exit code of a command, as it stands."""

    code: int = 0


_stop: contextvars.ContextVar[Stop | None] = contextvars.ContextVar("_stop", default=None)
_from_a_file = contextvars.ContextVar("_from_a_file", default="")


def came_from_a_file(path: str) -> None:
    """Say that the model at hand was pickled by somebody: what its state makes our code raise is bad input."""
    _from_a_file.set(path)


@contextlib.contextmanager
def one_line_errors(stop: Stop | None = None) -> Iterator[Outcome]:
    """Turn every exception of the body into an exit code, and one line on stderr that says what to do.

    After a signal, that is what is said, whatever the code underneath made of the exception that it raised.

    BLURIFY_TRACEBACK=1 shows the traceback as well. Warnings and log lines of the libraries underneath are kept quiet
    for the same reason: what reaches stderr is ours.
    """
    outcome = Outcome()
    _from_a_file.set("")
    _stop.set(stop)
    _quieten_libraries()
    try:
        yield outcome
    except KeyboardInterrupt:
        outcome.code = _INTERRUPTED
    except BrokenPipeError:
        _let_go_of_stdout()
        outcome.code = _PIPE_CLOSED
    except SystemExit as error:  # typer and rich turn some of the above into this
        outcome.code = error.code if isinstance(error.code, int) else 1
        _let_go_of_stdout()
    except Exception as error:
        outcome.code, message = _explain(error)
        if stop is not None and stop.code is not None:
            return
        if os.environ.get(TRACEBACK, "") not in ("", "0"):
            traceback.print_exc()
        print_error(message)
    finally:
        _stop.set(None)
        if stop is not None and stop.code is not None and outcome.code:
            outcome.code = stop.code
            if stop.line:
                with contextlib.suppress(OSError):  # a terminal that was closed
                    print_error(stop.line)


def print_error(message: str) -> None:
    """Print `error: ...` in one line on stderr."""
    line = printable(" ".join(message.split()))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, highlight=False, soft_wrap=True).print(Text("error: ", style="bold red") + Text(line))
    else:
        print(f"error: {line}", file=sys.stderr)


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code of an exception and the line for it."""
    if isinstance(error, VerificationError):
        return 1, str(error)
    if isinstance(error, BlurifyError):
        return 2, str(error)
    format_message = getattr(error, "format_message", None)  # typer's own usage errors, whichever click it carries
    if format_message is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return getattr(error, "exit_code", 2), f"{format_message().rstrip('.')}{hint}"
    if isinstance(error, OSError) and error.filename is not None and error.errno in _UNUSABLE_NAMES:
        return 2, f"{error.filename} can't be used: {error.strerror}"
    if path := _from_a_file.get():
        return 2, (
            f"{path} holds a model that can't be handled ({type(error).__name__}: {str(error)[:300]}): its state may "
            f"be damaged (set {TRACEBACK}=1 for the traceback)"
        )
    return 1, f"{type(error).__name__}: {error} (set {TRACEBACK}=1 for the traceback)"


def _quieten_libraries() -> None:
    if os.environ.get(TRACEBACK, "") not in ("", "0"):
        return
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _let_go_of_stdout() -> None:
    """Keep the interpreter from complaining at exit that nobody reads stdout."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
