"""Signals that ask the program to end let it tidy up first.

Python's own answer to SIGTERM and SIGHUP is to end at once, with whatever is half written where it is. Here they
raise an exception in the main thread instead, so that every `finally` runs. Python raises it between two of its own
instructions only, and code underneath may swallow it: so a thread beside it waits for a while, and then removes what
was being written and ends the program.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

GRACE = 10.0
"""Seconds from the signal until the program is ended without having tidied up."""

_NAMES = ("SIGTERM", "SIGHUP", "SIGINT")


class Stopped(KeyboardInterrupt):
    """The program was asked to end: what is said of an interrupt from the keyboard holds for it, too.

    Attributes:
        code: the exit code that shells have for it.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


class Stop:
    """Which signal came.

    Attributes:
        number: of the first signal; None while none came.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def code(self) -> int | None:
        """The exit code that shells have for it."""
        return None if self.number is None else 128 + self.number

    def again(self) -> None:
        """Raise what the signal raised, where code in between (imports, mostly) has swallowed it."""
        if self.number is not None:
            raise KeyboardInterrupt if self.number == signal.SIGINT else Stopped(self.number)

    @property
    def line(self) -> str:
        """What to say; '' after an interrupt from the keyboard, which needs no explanation."""
        if self.number is None or self.number == signal.SIGINT:
            return ""
        return f"stopped by {signal.Signals(self.number).name}: no unfinished file is left"


@contextlib.contextmanager
def watched() -> Iterator[Stop]:
    """Have signals raise `Stopped` (SIGINT: KeyboardInterrupt) in the body, and end the program where it stays in it.

    Signals that the caller ignores (nohup) or handles stay as they are. Processes forked from the body end at once.

    Yields:
        what tells afterwards whether one came, whatever became of the exception.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield stop
        return
    owner = os.getpid()

    def raise_it(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a worker that was forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if stop.number is not None and number != signal.SIGINT:
            return  # it is tidying up already
        stop.number = stop.number or number
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    before: dict[int, Any] = {}
    for number in (getattr(signal, name) for name in _NAMES):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, raise_it)
    with _ended_after_grace(stop, owner, {number for number in before if number != signal.SIGINT}):
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _ended_after_grace(stop: Stop, owner: int, numbers: set[int]) -> Iterator[None]:
    """A thread that learns of signals from the system, also where the main thread is in other code than Python's."""
    told, telling = socket.socketpair()
    telling.setblocking(False)
    done = threading.Event()

    def wait() -> None:
        while (got := told.recv(1)) and got[0] not in numbers:
            pass
        if got and not done.wait(GRACE) and os.getpid() == owner:
            stop.number = stop.number or got[0]
            _end(stop)

    thread = threading.Thread(target=wait, name="blurify-signals", daemon=True)
    thread.start()
    previous = signal.set_wakeup_fd(telling.fileno(), warn_on_full_buffer=False)
    _forget_in_forks()
    global _wakeup
    _wakeup = telling.fileno()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        _wakeup = -1
        done.set()
        telling.close()
        thread.join()
        told.close()


_wakeup = -1
_registered = False
_masks: list[Any] = []


def _forget_in_forks() -> None:
    """A forked worker must not tell this process's thread of its own signals, from its first instruction on."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def _before_fork() -> None:
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _NAMES]))


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _in_child() -> None:
    with contextlib.suppress(ValueError):  # the fork of another thread than the main one
        if _wakeup >= 0:
            signal.set_wakeup_fd(-1)
    _after_fork()


def _end(stop: Stop) -> None:
    unfinished = sys.modules.get("blurify.files.unfinished")  # nothing is being written where it was not imported
    if unfinished is not None:
        unfinished.remove_mine()
    with contextlib.suppress(Exception):
        os.write(2, f"error: {stop.line}\n".encode())
    os._exit(stop.code or 1)
