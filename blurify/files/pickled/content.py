"""What a file of torch.save holds: questions about its values; modules and tensors made of those that are wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from blurify.errors import BlurifyError, one_line
from blurify.files.pickled.archive import open_archive
from blurify.files.pickled.building import Builder, LazyTensors, RefusedError
from blurify.files.pickled.carrying import Carried
from blurify.files.pickled.names import Names, attack
from blurify.files.pickled.refusals import explain_missing
from blurify.files.pickled.tree import Stored, UnreadableError, entry, walk


class Content(ABC):
    """The values in a file; what a value is depends on the subclass.

    Attributes:
        path: the file.
        root: the value of the whole file.
    """

    path: Path
    root: Any

    @abstractmethod
    def is_module(self, value: Any) -> bool:
        """Whether a value is a module, perhaps one that is refused."""

    @abstractmethod
    def is_tensor(self, value: Any) -> bool:
        """Whether a value is a tensor."""

    @abstractmethod
    def items(self, value: Any) -> list[tuple[Any, Any]] | None:
        """The items of a dictionary, None for anything else."""

    @abstractmethod
    def inside(self, value: Any) -> Any:
        """What a wrapper of torch (DataParallel, AveragedModel, ...) holds, None for anything else."""

    @abstractmethod
    def module(self, value: Any) -> tuple[nn.Module, list[nn.Module] | None]:
        """Make a module.

        Returns:
            It, and those of its modules whose edits by blurify were left out and are to be made again; None where the
            file was trusted, and so did that itself.

        Raises:
            BlurifyError: it holds what is not made, or the file is damaged.
        """

    @abstractmethod
    def tensors(self, items: Sequence[tuple[str, Any]]) -> Mapping[str, Tensor]:
        """Tensors by name, read when they are asked for.

        Raises:
            BlurifyError: one is of a kind that is not read, or the file is damaged (also when it is asked for).
        """

    @abstractmethod
    def metadata(self, value: Any) -> Any:
        """What the modules of a state_dict said of themselves (its `_metadata`), as plain data; None where nothing."""

    @abstractmethod
    def plain(self, value: Any) -> Any:
        """JSON's own data. Raises BlurifyError where it is something else."""

    @abstractmethod
    def entries(self, value: Any) -> Mapping[str, Any]:
        """What a dictionary has under its keys that are text, ready to be written again by `carrying.WRITER`.

        Raises:
            BlurifyError: an entry can't be (when it is asked for).
        """

    @abstractmethod
    def explain(self) -> str | None:
        """Where the file has neither a module nor weights: why that may be, in a line."""

    @abstractmethod
    def kind(self, value: Any) -> str:
        """What a value is, in a word."""


WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
"""Modules of torch that only hold another one, and under which name."""


class Inert(Content):
    """The content as an inert tree."""

    def __init__(
        self, path: Path, allow: Sequence[str], content: bytes | None = None, source: ModuleType | None = None
    ) -> None:
        self.path = path
        names = Names(allow, source)
        try:
            self._archive = open_archive(path, content)
        except (UnreadableError, OSError, MemoryError, RecursionError) as error:
            raise self._error(error) from error
        self.root = self._archive.tree.root
        self._builder = Builder(self._archive, names)
        self._named = [names.full(name) for name in self._archive.tree.names]
        hostile = attack(name for name in self._named if name not in names.trusted)
        if hostile is not None:
            raise BlurifyError(
                f"{path} calls {_printable(hostile)}, which no model needs: it may be an attack, and nothing of it was "
                "run; get the weights from a source that you trust, best as .safetensors"
            )

    def _error(self, error: BaseException) -> BlurifyError:
        if isinstance(error, RefusedError):
            return BlurifyError(f"{self.path} holds {error}: that is only loaded with --trust, if you trust the file")
        if isinstance(error, MemoryError):
            return BlurifyError(f"there is not enough memory to read {self.path}: close other programs")
        if isinstance(error, RecursionError):
            return BlurifyError(f"{self.path} is nested too deeply to be a model")
        if isinstance(error, OSError):
            return BlurifyError(f"{self.path} can't be read: {error.strerror or one_line(error)}")
        return BlurifyError(
            f"{self.path} can't be read as a checkpoint: it is damaged, cut off, or no model ({one_line(error)})"
        )

    def is_module(self, value: Any) -> bool:
        """By its class, or by having what modules have."""
        return self._builder.module_class(value) is not None or self._may_be_module(value)

    def _may_be_module(self, value: Any) -> bool:
        """An object of a class that is not known, with what modules have."""
        items = self._state(value)
        return items is not None and {"_modules", "_parameters"} <= {key for key, _ in items if type(key) is str}

    def _state(self, value: Any) -> list[tuple[Any, Any]] | None:
        state = getattr(value, "state", ())
        return self._builder.items(state[0]) if state else None

    def inside(self, value: Any) -> Any:
        """Found in its state."""
        holder = WRAPPERS.get(self._builder.called(value))
        if holder is None:
            return None
        modules = entry(self._state(value), "_modules")
        return entry(self._builder.items(modules), holder) if modules is not None else None

    def is_tensor(self, value: Any) -> bool:
        """By what would make it."""
        return self._builder.is_tensor(value)

    def items(self, value: Any) -> list[tuple[Any, Any]] | None:
        """Not hashed yet."""
        return self._builder.items(value)

    def module(self, value: Any) -> tuple[nn.Module, list[nn.Module] | None]:
        """See `Content.module`."""
        missing = self._builder.missing(value)
        if missing:
            raise BlurifyError(explain_missing(self.path, missing))
        try:
            return self._builder.module(value), self._builder.edited
        except BlurifyError:
            raise
        except (RefusedError, UnreadableError, OSError, MemoryError, RecursionError) as error:
            raise self._error(error) from error
        except Exception as error:  # the code of a class, __setstate__, that meets a state which it never wrote
            raise self._error(ValueError(f"its state is none that it wrote: {one_line(error)}")) from error

    def tensors(self, items: Sequence[tuple[str, Any]]) -> Mapping[str, Tensor]:
        """See `Content.tensors`."""
        missing = self._builder.missing(tuple(value for _, value in items))
        if missing:
            raise BlurifyError(explain_missing(self.path, missing))
        return LazyTensors(dict(items), self._builder, self._error)

    def metadata(self, value: Any) -> Any:
        """See `Content.metadata`."""
        try:
            return self._builder.metadata(value)
        except (RefusedError, UnreadableError, RecursionError):  # not what torch writes: it says nothing then
            return None

    def plain(self, value: Any) -> Any:
        """See `Content.plain`."""
        try:
            return self._builder.plain(value)
        except (RefusedError, UnreadableError, RecursionError) as error:
            raise BlurifyError(f"{self.path} carries a plan that can't be read ({one_line(error)})") from error

    def entries(self, value: Any) -> Mapping[str, Any]:
        """As nodes, of which only tensors are made. See `Content.entries`."""
        items = {key: node for key, node in self._builder.items(value) or () if type(key) is str}
        builder = self._builder
        return Carried(items, builder.is_tensor, builder.value, builder.name_of, self._error)

    def explain(self) -> str | None:
        """See `Content.explain`."""
        missing = self._builder.missing(self.root)
        return explain_missing(self.path, missing, nothing=True) if missing else None

    def kind(self, value: Any) -> str:
        """See `Content.kind`."""
        if self._builder.items(value) is not None:
            return "dict"
        if self._builder.is_tensor(value):
            return "Tensor"
        if isinstance(value, Stored):
            return "reference"
        called = self._builder.called(value)
        kind = type(value).__name__
        return _printable(called.rpartition(".")[2]) or (kind.removesuffix("Node").lower() if "Node" in kind else kind)

    def size(self) -> int:
        """How many nodes and values there are."""
        return sum(1 for _ in walk(self.root))


def _printable(text: str) -> str:
    return ascii(text)[1:-1][:120]
