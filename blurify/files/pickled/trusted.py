"""A file that the user trusts: Python's own unpickler makes, and runs, whatever it says."""

from __future__ import annotations

import pickle
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, one_line
from blurify.files.pickled.content import WRAPPERS, Content
from blurify.files.pickled.names import MOVED, own_members
from blurify.files.pickled.refusals import defined_in_script, printable
from blurify.files.sources.own_file import look_here


class Trusted(Content):
    """The content as the objects that it is."""

    def __init__(self, path: Path, source: types.ModuleType | None = None) -> None:
        self.path = path

        class Unpickler(_Unpickler):
            where, own = path, source

        module = types.SimpleNamespace(
            __name__=__name__, Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load()
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.root = torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
        except BlurifyError:
            raise
        except MemoryError as error:
            raise BlurifyError(f"there is not enough memory to read {path}: close other programs") from error
        except Exception as error:  # whatever its code does
            if "TORCH_FORCE_WEIGHTS_ONLY_LOAD" in one_line(error) or "explicit pickle_module" in one_line(error):
                raise BlurifyError("unset TORCH_FORCE_WEIGHTS_ONLY_LOAD: it forbids what --trust asks for") from error
            raise BlurifyError(
                f"{path} can't be read as a checkpoint: it is damaged, cut off, or no model "
                f"({type(error).__name__}: {one_line(error)})"
            ) from error

    def is_module(self, value: Any) -> bool:
        """By its class, or by having what modules have."""
        return isinstance(value, nn.Module)

    def is_tensor(self, value: Any) -> bool:
        """By what would make it."""
        return isinstance(value, Tensor)

    def items(self, value: Any) -> list[tuple[Any, Any]] | None:
        """Not hashed yet."""
        return list(value.items()) if isinstance(value, Mapping) else None

    def inside(self, value: Any) -> Any:
        """Found in its state."""
        holder = WRAPPERS.get(f"{type(value).__module__}.{type(value).__qualname__}")
        return getattr(value, holder, None) if holder is not None else None

    def module(self, value: Any) -> tuple[nn.Module, list[nn.Module] | None]:
        """See `Content.module`."""
        return value, None

    def tensors(self, items: Sequence[tuple[str, Any]]) -> Mapping[str, Tensor]:
        """See `Content.tensors`."""
        return dict(items)

    def metadata(self, value: Any) -> Any:
        """See `Content.metadata`."""
        return getattr(value, "_metadata", None)

    def plain(self, value: Any) -> Any:
        """See `Content.plain`."""
        return value

    def entries(self, value: Any) -> Mapping[str, Any]:
        """See `Content.entries`."""
        return {key: one for key, one in value.items() if isinstance(key, str)}

    def explain(self) -> str | None:
        """See `Content.explain`."""
        return None

    def kind(self, value: Any) -> str:
        """See `Content.kind`."""
        return type(value).__name__


class _Unpickler(pickle.Unpickler):
    """Python's own; only old names of ours, and those of the user's own module, are told their homes.

    Attributes:
        where: the file, for messages.
        own: the user's module.
    """

    where: ClassVar[Path]
    own: ClassVar[types.ModuleType | None] = None

    def find_class(self, module: str, name: str) -> Any:
        home, dot, moved = MOVED.get(f"{module}.{name}", "").rpartition(".")
        if dot:
            return super().find_class(home, moved)
        own = self.own
        if own is not None and module.rpartition(".")[2] in (own.__name__.rpartition(".")[2], "__main__"):
            members = own_members(own)
            if name in members:
                return members[name]
        look_here()
        try:
            return super().find_class(module, name)
        except ModuleNotFoundError as error:
            lacking = error.name or module
            raise BlurifyError(
                f"{self.where} needs the module {printable(lacking)}: run from its directory, install it, or add "
                f"--source {printable(lacking.rpartition('.')[2])}.py"
            ) from error
        except AttributeError as error:
            if module == "__main__":
                raise BlurifyError(defined_in_script(self.where, f"{module}.{name}")) from error
            raise BlurifyError(
                f"{self.where} needs {printable(name)} of the module {printable(module)}, which has none: install the "
                "version that the model was saved with"
            ) from error
