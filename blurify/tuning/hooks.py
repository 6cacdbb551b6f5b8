"""Look at what modules are given or give, in one forward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

Key = TypeVar("Key")


@contextlib.contextmanager
def told_once(
    modules: Mapping[Key, nn.Module], tell: Callable[[Key, Tensor], None], *, given: bool = False
) -> Iterator[None]:
    """Within it, tell of each module the first tensor that it gives; with `given`, the first that it is called with.

    What comes later in the forward may write to that tensor.
    """
    waiting = set(modules)

    def see(key: Key, value: object) -> None:
        if key in waiting and isinstance(value, Tensor):
            waiting.discard(key)
            tell(key, value)

    def before(key: Key) -> Callable[..., None]:
        return lambda _, args: see(key, args[0] if args else None)

    def after(key: Key) -> Callable[..., None]:
        return lambda _, __, out: see(key, out)

    with contextlib.ExitStack() as stack:
        for key, module in modules.items():
            hooked: Any = (
                module.register_forward_pre_hook(before(key)) if given else module.register_forward_hook(after(key))
            )
            stack.callback(hooked.remove)
        yield
