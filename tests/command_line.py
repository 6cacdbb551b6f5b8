"""Run one command line, and what it printed."""

import pytest

from blurify import cli


def out_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that succeeds says, and says on stdout alone."""
    assert cli.main([*map(str, arguments)]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command with bad usage or input."""
    assert cli.main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err
