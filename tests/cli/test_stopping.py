"""SIGTERM and SIGHUP end a command by way of everything that cleans up."""

from __future__ import annotations

import os
import signal

import pytest

from blurify.cli import console
from blurify.cli.stopping import stopped_by_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_cleaning_up_and_the_code_of_shells(number: int, code: int) -> None:
    cleaned = []
    with console.one_line_errors() as outcome, stopped_by_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)
    assert outcome.code == code and cleaned
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_error_that_a_library_made_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with console.one_line_errors() as outcome, stopped_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            raise RuntimeError("PytorchStreamWriter failed") from None
    assert outcome.code == 143 and capsys.readouterr().err == ""


def test_what_others_handle_or_ignore_is_left_to_them() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)  # nohup
        assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, ignored)


def test_a_forked_child_ends_as_it_would_have() -> None:
    with stopped_by_signals():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
