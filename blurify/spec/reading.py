"""Read frozen data from what a file says: every field of its declared type, nothing larger than needed."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

LONGEST_TEXT = 10_000
LONGEST = 100_000
LARGEST = 2**62

_T = TypeVar("_T")


def read_fields(cls: type[_T], fields: Mapping[str, Any]) -> _T:
    """An instance of a dataclass with these fields.

    Raises:
        ValueError: a field is unknown, missing or of another type.
    """
    known: Any = cls
    hints = _hints(known)
    for name, value in fields.items():
        if name not in hints:
            raise ValueError(f"a {cls.__name__} has no {name[:80]!r}")
        if not fits(value, hints[name]):
            raise ValueError(f"{name} of a {cls.__name__} can't be {str(value)[:80]!r}")
    return cls(**fields)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type, and of a size that a model can need."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return type(value) in (str, int, bool) and value in parts
    if origin is tuple:
        if not isinstance(value, tuple) or len(value) > LONGEST:
            return False
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(fits(one, parts[0]) for one in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if hint in (None, type(None)):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return type(value) is int and abs(value) <= LARGEST
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT
    return isinstance(hint, type) and isinstance(value, hint)


def require(condition: bool, what: str) -> None:
    """Raise ValueError, which says what can't be, unless the condition holds."""
    if not condition:
        raise ValueError(what)
