"""Find out who reads the stride of a convolution: setting it changes whatever does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import nn

_READ = "_blurify_read"


@contextmanager
def watched_strides(model: nn.Module) -> Iterator[set[str]]:
    """While the body runs, collect the paths of modules whose `stride` is read by other code than their own methods.

    A parent that pads by its convolution's stride (TF "same" padding) is such a reader: it would pad for another stride
    once that is set. The model must be a copy that nobody else uses.
    """
    read: set[str] = set()
    changed: list[tuple[nn.Module, type]] = []
    for path, module in model.named_modules():
        if (
            "stride" in vars(module)
            and "weight" in module._parameters
            and not isinstance(module, torch.jit.ScriptModule)
        ):
            changed.append((module, type(module)))
            module.__dict__[_READ] = (read, path)
            try:
                cls: Any = type(module)
                module.__class__ = _watched(cls)
            except Exception:  # a class that can't be changed or derived from: then it is not watched
                del module.__dict__[_READ]
                changed.pop()
    try:
        yield read
    finally:
        for module, cls in changed:
            module.__class__ = cls
            del module.__dict__[_READ]


@lru_cache(maxsize=4096)
def _is_method(cls: Any, code: CodeType) -> bool:
    own = inspect.getattr_static(cls, code.co_name, None)
    return getattr(own, "__code__", None) is code


@lru_cache(maxsize=1024)
def _watched(cls: Any) -> type:
    def get(self: Any) -> Any:
        read, path = self.__dict__[_READ]
        if not _is_method(cls, sys._getframe(1).f_code):
            read.add(path)
        return self.__dict__["stride"]

    def put(self: Any, value: Any) -> None:
        self.__dict__["stride"] = value

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "stride": property(get, put)}
    return type(cls.__name__, (cls,), names)
