"""What `torch.distributed.checkpoint` wrote: a directory with an index, and the pieces of each tensor in files.

The index (`.metadata`) is a pickle, read as an inert tree; each piece is what torch.save wrote of one tensor. So a
checkpoint of many processes is read by one, without any of them, and without running what stands in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, one_line
from blurify.files import pickled
from blurify.files.pickled.content import Content
from blurify.files.pickled.tree import Call, DictNode, ListNode, UnreadableError, entry, read_tree

INDEX = ".metadata"
_LARGEST = 2**40  # elements of a tensor


@dataclass(frozen=True)
class _Piece:
    """Where a part of a tensor begins in it, how large it is, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    length: int


@dataclass(frozen=True)
class _Pieces:
    """A tensor by its pieces."""

    name: str
    size: tuple[int, ...]
    pieces: tuple[_Piece, ...]


class Distributed(Content):
    """The values of such a directory: dictionaries in dictionaries, tensors, and things that are not read.

    Args:
        path: the directory.

    Raises:
        BlurifyError: its index is damaged or names files outside of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with (path / INDEX).open("rb") as file:
                self.root: Any = self._read(read_tree(file).root)
        except (UnreadableError, OSError, ValueError, TypeError, RecursionError) as error:
            raise self._damaged(one_line(error)) from error

    def _damaged(self, why: str) -> BlurifyError:
        return BlurifyError(f"{self.path} can't be read as a distributed checkpoint: its {INDEX} is damaged ({why})")

    def _read(self, root: Any) -> dict[str, Any]:
        index = _fields(root)
        places = {_text(key): tuple(_plain(one)) for key, one in _items(index.get("planner_data"))}
        stored: dict[tuple[str, tuple[int, ...] | None], Any] = {}
        for key, value in _items(index.get("storage_data")):
            at = _fields(key)
            offset = at.get("offset")
            stored[_text(at.get("fqn")), None if offset is None else _size(offset)] = _fields(value)
        whole: dict[str, Any] = {}
        for key, value in _items(index.get("state_dict_metadata")):
            name = _text(key)
            described = _fields(value)
            held: Any = None
            if "chunks" in described:
                pieces = tuple(self._piece(name, chunk, stored) for chunk in _plain(described["chunks"]))
                held = _Pieces(name, _size(described["size"]), pieces)
                _check_whole(held)
            _put(whole, places.get(name, (name,)), held)
        return whole

    def _piece(self, name: str, chunk: Any, stored: Mapping[Any, Any]) -> _Piece:
        fields = _fields(chunk)
        offsets, sizes = _size(fields["offsets"]), _size(fields["sizes"])
        where = stored.get((name, offsets))
        if where is None:
            raise ValueError(f"no file has {name}")
        file = _text(where.get("relative_path"))
        if "/" in file or "\\" in file or file in ("", ".", ".."):
            raise ValueError(f"{name} lies in another directory")
        if where.get("transform_descriptors") is not None:
            raise ValueError(f"{name} was compressed or encrypted, which is not read")
        begin, length = where.get("offset"), where.get("length")
        if type(begin) is not int or type(length) is not int or begin < 0 or length < 0:
            raise ValueError(f"{name} has no place in its file")
        return _Piece(offsets, sizes, file, begin, length)

    def is_module(self, value: Any) -> bool:
        """There are none."""
        return False

    def is_tensor(self, value: Any) -> bool:
        """By having pieces."""
        return isinstance(value, _Pieces)

    def items(self, value: Any) -> list[tuple[Any, Any]] | None:
        """See `Content.items`."""
        return list(value.items()) if isinstance(value, dict) else None

    def inside(self, value: Any) -> Any:
        """Nothing is a wrapper."""
        return None

    def module(self, value: Any) -> tuple[nn.Module, list[nn.Module] | None]:
        """There are none."""
        raise BlurifyError(f"{self.path} holds no module")

    def tensors(self, items: Sequence[tuple[str, Any]]) -> Mapping[str, Tensor]:
        """See `Content.tensors`."""
        return _Joined(self.path, dict(items))

    def metadata(self, value: Any) -> Any:
        """It keeps none."""

    def plain(self, value: Any) -> Any:
        """Nothing of it is."""
        raise BlurifyError(f"{self.path} carries a plan that can't be read")

    def entries(self, value: Any) -> Mapping[str, Any]:
        """Named, but not to be written again: they lie in files of their own."""
        return _Elsewhere(self.path, list(value))

    def explain(self) -> str | None:
        """See `Content.explain`."""
        return None

    def kind(self, value: Any) -> str:
        """See `Content.kind`."""
        return "dict" if isinstance(value, dict) else "Tensor" if isinstance(value, _Pieces) else "object"


class _Joined(Mapping[str, Tensor]):
    """Tensors, each put together from its pieces when it is asked for."""

    def __init__(self, path: Path, held: Mapping[str, _Pieces]) -> None:
        self._path, self._held = path, held

    def __getitem__(self, name: str) -> Tensor:
        held = self._held[name]
        joined: Tensor | None = None
        for piece in held.pieces:
            part = self._part(name, piece)
            if tuple(part.shape) != piece.sizes:
                raise BlurifyError(f"{piece.file} in {self._path} has another part of {name} than its index says")
            if piece.sizes == held.size:
                return part
            if joined is None:
                joined = torch.empty(held.size, dtype=part.dtype)
            place = tuple(slice(begin, begin + size) for begin, size in zip(piece.offsets, piece.sizes, strict=True))
            joined[place] = part
        assert joined is not None
        return joined

    def _part(self, name: str, piece: _Piece) -> Tensor:
        file = self._path / piece.file
        try:
            with file.open("rb") as opened:
                opened.seek(piece.begin)
                content = opened.read(piece.length)
        except OSError as error:
            raise BlurifyError(f"{file} can't be read: {error.strerror}") from error
        if len(content) != piece.length:
            raise BlurifyError(f"{file} is cut off: get or save it again")
        found = pickled.read(file, content=content)
        if not found.is_tensor(found.root):
            raise BlurifyError(f"{file} has no tensor where {name} should be")
        return found.tensors([(name, found.root)])[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._held[name].size

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class _Elsewhere(Mapping[str, Any]):
    """Names of entries that are not carried into another file."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, names

    def __getitem__(self, name: str) -> Any:
        raise BlurifyError(f"it stays in {self._path}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _put(whole: dict[str, Any], place: tuple[Any, ...], value: Any) -> None:
    """Set a value under a row of keys; numbers, which lead into lists, are written as text."""
    *outer, last = (str(key) for key in place)
    for key in outer:
        inner = whole.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{key} is a value and a dictionary")
        whole = inner
    whole[last] = value


def _check_whole(held: _Pieces) -> None:
    """Ask whether the pieces of a tensor lie in it and are as many elements as it has."""
    if not held.pieces or math.prod(held.size) > _LARGEST:
        raise ValueError(f"{held.name} is no tensor")
    for piece in held.pieces:
        ends = [begin + size for begin, size in zip(piece.offsets, piece.sizes, strict=True)]
        if len(ends) != len(held.size) or any(end > most for end, most in zip(ends, held.size, strict=True)):
            raise ValueError(f"a part of {held.name} lies outside of it")
        # A file must have the bytes: an index alone can't ask for memory.
        if math.prod(piece.sizes) > 8 * piece.length:
            raise ValueError(f"a part of {held.name} is larger than what is stored of it")
    if sum(math.prod(piece.sizes) for piece in held.pieces) != math.prod(held.size):
        raise ValueError(f"parts of {held.name} are missing, or stored twice")


def _fields(node: Any) -> dict[str, Any]:
    """The attributes that an object in a pickle would have."""
    if isinstance(node, Call) and not node.state:
        return {}
    state = node.state[0] if isinstance(node, Call) else None
    if not isinstance(state, DictNode):
        raise ValueError("something else stands where a record should")
    names = {key for key, _ in state.items if type(key) is str}
    return {name: entry(state.items, name) for name in names}


def _items(node: Any) -> list[tuple[Any, Any]]:
    """The items of a dictionary; none of what is None."""
    if node is None:
        return []
    if not isinstance(node, DictNode):
        raise ValueError("something else stands where a dictionary should")
    return node.items


def _plain(node: Any) -> Sequence[Any]:
    """The members of a list or tuple."""
    if isinstance(node, ListNode):
        return node.appended
    if isinstance(node, tuple):
        return node
    raise ValueError("something else stands where a list should")


def _size(node: Any) -> tuple[int, ...]:
    """A torch.Size."""
    values = _plain(node.args[0]) if isinstance(node, Call) and len(node.args) == 1 else _plain(node)
    if not all(type(one) is int and one >= 0 for one in values):
        raise ValueError("a size that is none")
    return tuple(values)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("something else stands where a name should")
    return value
