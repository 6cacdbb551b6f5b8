"""What a file format is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import BinaryIO, ClassVar

from blurify.files import atomic
from blurify.files.checkpoint import Checkpoint, Reading, Saved


class Format(ABC):
    """One way to keep a model in a file.

    Attributes:
        name: what it is called in messages.
        opens_again: a model that was written is the converted model again when it is read, with its plan.
        suffixes: the endings that mean this format and no other; none where it is the one for any other ending.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    opens_again: ClassVar[bool] = True

    @abstractmethod
    def sniff(self, start: bytes, path: Path) -> bool:
        """Whether a file is of this format, by its first bytes (none of a directory) and its name."""

    @abstractmethod
    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """What a file holds, on the CPU.

        Args:
            path: a file, or a directory, that `sniff` knows.
            reading: what the user allows.

        Raises:
            BlurifyError: it is damaged, holds no model, or needs classes that are not allowed.
        """

    def check_target(self, path: Path, *, force: bool = False) -> None:
        """Ask whether a model can be written under a name: worth asking before the work is done.

        Raises:
            BlurifyError: something is there (and not `force`), or it can't be written.
        """
        atomic.check_target(path, force=force)

    def keeps_rest(self, path: Path) -> bool:
        """Whether a file of this name has room for what stood around the weights in a training checkpoint."""
        return False

    def write(self, path: Path, saved: Saved, *, force: bool) -> None:
        """Write a converted model under a name, complete or not at all.

        Args:
            path: the target.
            saved: the model, and what goes with it.
            force: replace what is there.

        Raises:
            BlurifyError: this format can't hold the model, or the target can't be written, or reads back otherwise.
        """
        atomic.write_file(
            path, lambda file: self.put(file, saved), force=force, check=lambda written: self.check(written, saved)
        )

    def check(self, path: Path, saved: Saved) -> None:  # noqa: B027 (a format may have nothing to compare)
        """Ask whether a file that was written, and has not got its name yet, holds what was meant.

        Raises:
            BlurifyError: it does not.
        """

    @abstractmethod
    def put(self, file: BinaryIO, saved: Saved) -> None:
        """Write a converted model into a file that is open for writing.

        Raises:
            BlurifyError: this format can't hold the model.
        """
