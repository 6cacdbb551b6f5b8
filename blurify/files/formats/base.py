"""What a file format is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from blurify.files.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn


class Format(ABC):
    """One way to keep a model in a file.

    Attributes:
        name: what it is called in messages.
        suffixes: the endings that mean this format and no other; none where it is the one for any other ending.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def sniff(self, start: bytes, path: Path) -> bool:
        """Whether a file is of this format, by its first bytes and its name."""

    @abstractmethod
    def read(self, path: Path, *, allow: Sequence[str] = (), trust: bool = False) -> Checkpoint:
        """What a file holds, on the CPU.

        Args:
            path: a file that `sniff` knows.
            allow: qualified names of classes that it may consist of besides those of torch, torchvision and timm.
            trust: run whatever code it contains.

        Raises:
            BlurifyError: it is damaged, holds no model, or needs classes that are not allowed.
        """

    @abstractmethod
    def write(self, file: BinaryIO, model: nn.Module, header: dict[str, Any]) -> None:
        """Write a converted model into an open file.

        Args:
            file: open for writing.
            model: the model.
            header: what `checkpoint.header_of` made.

        Raises:
            BlurifyError: this format can't hold the model.
        """
