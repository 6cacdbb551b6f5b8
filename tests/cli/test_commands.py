"""The table that the help is made of says what the commands say of themselves."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import pytest

from blurify.cli.commands import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_is_the_first_of_its_docstring(name: str) -> None:
    function = getattr(importlib.import_module(f"blurify.cli.{name}"), name)
    assert " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split()) == COMMANDS[name][0]
    assert COMMANDS[name][1].startswith(f"blurify {name}")


def imported_by(*arguments: str) -> set[str]:
    code = (
        "import json, sys; from blurify.cli import main; code = main(sys.argv[1:]);"
        "print(json.dumps([name for name in sys.modules if name.startswith('blurify.cli.')])); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return {name.rpartition(".")[2] for name in json.loads(done.stdout.splitlines()[-1])} & set(COMMANDS)


def test_the_help_imports_no_command_and_a_command_no_other() -> None:
    assert imported_by("--help") == set()
    assert "zoo" not in imported_by("inspect", "--help")


def test_all_are_listed_and_a_near_miss_is_named() -> None:
    done = subprocess.run([sys.executable, "-m", "blurify", "--help"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line[:2] == "  "][
        : len(COMMANDS)
    ] == list(COMMANDS)
    wrong = subprocess.run([sys.executable, "-m", "blurify", "inpsect"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "Did you mean 'inspect'" in wrong.stderr
