"""Functions inside what a decorator made of them, and the same thing around another function.

A decorator may call what it was given in any way (`func.__get__(self)(x)`, by a list, by a partial, in an object's
`__call__`, in code that has no source). It holds the function all the same; a copy of it that holds another one does to
that whatever it did to the first.
"""

from __future__ import annotations

import copy
import functools
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn

WRAPPED = "<wrapped>"
"""The text of a step from a decorated function to what it holds; its number says which of these functions."""

_MOST = 300  # parts of what a decorator made that are looked at: they hold a function, and a few settings


def held_functions(value: Any) -> list[FunctionType]:
    """The Python functions that a decorated function holds, itself left out, each once; in an order that stays."""
    seen = {id(value)}
    todo, found = [value], []
    for _ in range(_MOST):
        if not todo:
            break
        for part in _parts(todo.pop(0)):
            if id(part) not in seen:
                seen.add(id(part))
                todo.append(part)
                if isinstance(part, FunctionType):
                    found.append(part)
    return found


def holding(value: Any, old: FunctionType, new: FunctionType) -> Any:
    """A copy of what a decorator made that holds `new` where it held `old`; what holds neither is the same object."""
    return _holding(value, old, {id(old): new})


def _parts(value: Any) -> list[Any]:
    if isinstance(value, FunctionType):
        return [*(_content(cell) for cell in value.__closure__ or ()), *vars(value).values()]
    if isinstance(value, functools.partial | functools.partialmethod):
        return [value.func]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if type(value) in (list, tuple):
        return list(value)
    if type(value) is dict:
        return list(value.values())
    return list(vars(value).values()) if _is_wrapper(value) else []


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is still empty
        return None


def _is_wrapper(value: Any) -> bool:
    """Whether a value is an object by which a class may stand for a function: called, or bound to an instance."""
    if isinstance(value, type | nn.Module | Tensor) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    return callable(value) or hasattr(type(value), "__get__")


def _holding(value: Any, old: FunctionType, made: dict[int, Any]) -> Any:
    if id(value) in made:
        return made[id(value)]
    if old not in held_functions(value):
        return value
    if isinstance(value, FunctionType):
        closure = tuple(CellType(_content(cell)) for cell in value.__closure__ or ())
        function = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
        function.__kwdefaults__, function.__qualname__ = copy.copy(value.__kwdefaults__), value.__qualname__
        function.__module__, function.__doc__ = value.__module__, value.__doc__
        made[id(value)] = function  # which it may hold itself
        for own, cell in zip(value.__closure__ or (), closure, strict=True):
            changed = _holding(_content(own), old, made)
            if changed is not _content(own):
                cell.cell_contents = changed
        function.__dict__.update({key: _holding(part, old, made) for key, part in vars(value).items()})
        return function
    if isinstance(value, functools.partial | functools.partialmethod):
        return type(value)(_holding(value.func, old, made), *value.args, **value.keywords)
    if isinstance(value, staticmethod | classmethod):
        return type(value)(_holding(value.__func__, old, made))
    if isinstance(value, dict):
        return {key: _holding(part, old, made) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_holding(part, old, made) for part in value)
    other = made[id(value)] = copy.copy(value)
    vars(other).update({key: _holding(part, old, made) for key, part in vars(value).items()})
    return other
