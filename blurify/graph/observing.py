"""Run a model on real tensors and keep the values of a few ops of its forward."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Set
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blurify.graph.recorder import Call, Key, recording


class Observer(TorchFunctionMode):
    """Keeps what the ops with certain keys (of an earlier trace) return, while it is active around a forward.

    Attributes:
        values: the kept tensors by key, each a copy of its own: what comes later may write to the original.
    """

    def __init__(self, model: nn.Module, keys: Set[Key]) -> None:
        super().__init__()
        self.values: dict[Key, Tensor] = {}
        self.current: Call | None = None
        self.thread = threading.get_ident()
        self._keys = keys
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._numbers: Counter[str | None] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        written = out is None and getattr(func, "__name__", "") == "__setitem__"
        several = isinstance(out, tuple | list) and any(isinstance(item, Tensor) for item in out)
        if self.current is not None and (isinstance(out, Tensor) or written or several):
            key = self.current.key(func)
            if key in self._keys:
                value = (
                    next(item for item in out if isinstance(item, Tensor)) if several else args[0] if written else out
                )
                self.values[key] = value.detach().clone()
        return out

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A module call begins."""
        path = self._paths.get(id(module))
        self.current = Call(path, module, self.current, number=self._numbers[path])
        self._numbers[path] += 1
        return self.current

    def leave(self, call: Call, out: Any) -> None:
        """It ends."""


def observing(observer: Observer) -> Any:
    """The context in which an observer sees a forward; gradients are off and warnings quiet in it."""
    return recording(observer)
