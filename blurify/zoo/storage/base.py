"""What a run and its workers ask of the place where the files are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

LOCK = ".lock"
"""The file that says whose the storage is; workers read it to see that they have the same storage as their run."""


class Storage(Protocol):
    """Files by name, such as 'summary.json' and 'timm/resnet18.safetensors'.

    Whatever can't be read or written raises OSError.

    Attributes:
        where: the absolute path or the URL.
        lock: a descriptor that holds the lock for as long as any process has it open; None where there is none.
    """

    where: str
    lock: int | None

    def at(self, name: str) -> str:
        """How a user is told of a file."""
        ...

    # The run has it to itself between these two.

    def take(self) -> str:
        """Make it where it does not exist, and keep others out of it.

        Returns:
            what `check` is to be given.

        Raises:
            BlurifyError: it can't be made, read or written, or another run is at work in it.
        """
        ...

    def let_go(self) -> None:
        """Let others in."""
        ...

    def beat(self) -> None:
        """Show that this run is alive; to be called several times a minute.

        Raises:
            BlurifyError: another run took it over, because this one was silent for too long.
        """
        ...

    def lines(self, name: str) -> list[bytes]:
        """The lines that `append` wrote, without one that was being written when the run was killed."""
        ...

    def append(self, name: str, line: bytes) -> None:
        """Add a line, so that it stays; b'' only makes the file."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Write a small file whole or not at all."""
        ...

    def sizes(self) -> dict[str, int]:
        """The bytes of all that is in the folders ('timm/resnet18.safetensors'); -1 for what is no file."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file."""
        ...

    def tidy(self) -> None:
        """Remove what was half written when its writer was killed."""
        ...

    # What its workers do, in other processes and on other machines.

    def check(self, token: str) -> None:
        """See that it is the storage that `take` took.

        Raises:
            BlurifyError: it is another one, or can't be read here.
        """
        ...

    def store(self, name: str, write: Callable[[Path], object]) -> int:
        """Have a file written, which appears under its name complete or not at all and replaces what was there.

        Args:
            name: of the file.
            write: writes it at the path that it is given, whose ending is that of the name.

        Returns:
            its bytes.

        Raises:
            BlurifyError: it can't be written.
        """
        ...
