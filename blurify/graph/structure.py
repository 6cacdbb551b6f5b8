"""Tensors in nested tuples, lists, dicts and dataclasses, as forwards take and return them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""What a forward is called with: (args, kwargs)."""


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts and dataclasses, in order."""
    found: list[Tensor] = []
    map_tensors(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same nested structure with the function of each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, tuple | list):
        items = [map_tensors(item, function) for item in value]
        return type(value)(items) if type(value) in (tuple, list) else tuple(items)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        changed = copy.copy(value)
        for name in value.__dataclass_fields__:  # also of a frozen one
            if hasattr(value, name):
                object.__setattr__(changed, name, map_tensors(getattr(value, name), function))
        return changed
    return value
