"""Being told to stop: SIGTERM and SIGHUP end a command as Ctrl-C does, by way of everything that cleans up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_ASKED = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within it, the signals that ask a process to end raise SystemExit with 128 and their number, as shells have it.

    By default they end Python at once: an unfinished file would stay. A signal that somebody else handles or ignores
    (nohup) is left to that.

    Raises:
        SystemExit: at the end, too, where a library turned the one that a signal raised into an error of its own.
    """
    owner, code = os.getpid(), 0

    def stop(number: int, frame: Any) -> NoReturn:
        nonlocal code
        if os.getpid() != owner:  # a child that was forked: it ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        code = 128 + number
        raise SystemExit(code)

    handled: list[int] = []
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        handled = [number for number in _ASKED if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if code:
            raise SystemExit(code) from error
        raise
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
