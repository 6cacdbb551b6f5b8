"""Tensors of a traced graph that no input and no training changes: whether they are constant, and their values."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from blurify.graph.recorder import unseen
from blurify.graph.sites import function_name

_MADE = frozenset("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor".split())
"""What takes only the dtype, shape or device of its first tensor."""

_LIKE = frozenset("to type_as expand_as view_as reshape_as".split())
"""What takes only the dtype, shape or device of its second tensor."""


def is_constant(node: Node, model: nn.Module, *, frozen: bool = False) -> bool:
    """Whether a tensor comes from buffers, plain attributes and numbers alone.

    Args:
        node: it, in a trace of the model.
        model: the model as the user has it; the copy that was traced no longer knows what was frozen.
        frozen: let parameters count that are not trained (`requires_grad` is off).
    """
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "placeholder" or current.target is unseen or current.meta.get("origin") == "unknown":
            return False
        if current.meta.get("origin") == "parameter" and not (frozen and _is_frozen(current, model)):
            return False
        todo.extend(_read(current))
    return True


def has_parameters(node: Node) -> bool:
    """Whether a tensor comes from a parameter, frozen or not."""
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            if current.meta.get("origin") == "parameter":
                return True
            todo.extend(_read(current))
    return False


def constant_value(node: Node, model: nn.Module) -> Tensor | None:
    """The value of a constant tensor; None where it can't be told (a model without data, code that was not seen)."""
    try:
        with torch.no_grad():
            value = _evaluated(node, model)
    except Exception:  # something in between can't be run again
        return None
    return value if isinstance(value, Tensor) and not value.is_meta else None


def _is_frozen(node: Node, model: nn.Module) -> bool:
    try:
        return not attrgetter(str(node.target))(model).requires_grad
    except AttributeError:
        return False


def _read(node: Node) -> list[Node]:
    """The tensors whose values a node depends on."""
    name = function_name(node)
    if name in _MADE:
        return [one for one in node.all_input_nodes if one is not node.args[0]]
    return node.all_input_nodes[:1] if name in _LIKE else node.all_input_nodes


def _evaluated(node: Node, model: nn.Module) -> Any:
    if node.op == "get_attr":
        kept = node.meta.get("value")
        found: Tensor = kept if kept is not None else attrgetter(str(node.target))(model).detach()
        return found if found.is_meta else found.cpu()  # together with constants that the forward made
    blank = set(node.all_input_nodes) - set(_read(node))

    def value(argument: Any) -> Any:
        if isinstance(argument, Node):
            if argument in blank:  # of which only the kind and the shape matter; one number takes no memory
                return torch.zeros((), dtype=argument.meta["dtype"], device="cpu").expand(argument.meta["shape"])
            return _evaluated(argument, model)
        if isinstance(argument, tuple | list):
            return type(argument)(value(item) for item in argument)
        return argument.__class__("cpu") if isinstance(argument, torch.device) else argument

    target: Any = node.target
    args, kwargs = value(node.args), {key: value(item) for key, item in node.kwargs.items()}
    if function_name(node) == "setitem":
        written = args[0].clone()
        target(written, *args[1:], **kwargs)
        return written
    if any(isinstance(arg, Tensor) for arg in args[:1]) and _writes(node):
        args = (args[0].clone(), *args[1:])  # the model's own tensor stays as it is
    return target(*args, **kwargs)


def _writes(node: Node) -> bool:
    name: str = getattr(node.target, "__name__", "")
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
