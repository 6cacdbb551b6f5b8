"""The class of a module that was edited: a subclass of its own, of the same name, that runs its blurs.

No edit is a hook: a blur is called by a forward, where every tool sees it. An instance moves to its subclass and back
by its `__class__`; it pickles as its original class and what was changed, all of it plain data.
"""

from __future__ import annotations

import contextvars
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.nn.joining import Joined, after
from blurify.nn.rewriting import AFTER, Expression, Rewritten, rewrite
from blurify.nn.sequential import WithBlurs
from blurify.nn.source import CannotRewriteError

Change = tuple[Any, ...]
"""One change of a class, as plain data:

- ('expression', path, child, form, index): see `rewriting.Expression`;
- ('input', child, index): the positional argument `index` of the forward goes through a child first;
- ('output', child): what the forward returns goes through a child;
- ('member', child): a child of a Sequential is one of its blurs;
- ('joined',): members of a Sequential run in pairs (see `joining`).
"""

JOINED: Change = ("joined",)
_KINDS = {"expression": 5, "input": 3, "output": 2, "member": 2, "joined": 1}
_OUTER = "_blurify_forward"  # a forward that was set on the instance, below the blurs of its output

_running: contextvars.ContextVar[tuple[int, ...]] = contextvars.ContextVar("_running", default=())

_classes: dict[tuple[type, tuple[Change, ...]], type[nn.Module]] = {}


def changes_of(module: nn.Module) -> tuple[Change, ...]:
    """What was changed in the class of a module; nothing for a class as its author wrote it."""
    return getattr(type(module), "_blurify_changes", ())


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that its author wrote."""
    return getattr(type(module), "_blurify_base", type(module))


def edit_class(module: nn.Module, changes: Sequence[Change]) -> None:
    """Move one module to the class that has these changes, and those that it already has.

    Raises:
        CannotRewriteError: a forward can't be compiled again; the module is as it was.
    """
    set_changes(module, (*changes_of(module), *changes))


def set_changes(module: nn.Module, changes: Sequence[Change]) -> None:
    """Move one module to the class that has these changes and no others; with none, to its original class."""
    base = original_class(module)
    # As pickles have them, plain tuples.
    wanted = tuple(tuple(change) for change in changes)
    cls = edited_class(base, wanted, module) if wanted else base
    before = type(module)
    module.__class__ = cls
    _bind_again(module, before, cls)


def edited_class(
    base: type[nn.Module], changes: tuple[Change, ...], instance: nn.Module | None = None
) -> type[nn.Module]:
    """The subclass of `base` with these changes.

    Raises:
        CannotRewriteError: a forward's source is not at hand, or no longer has the expressions.
    """
    key = (base, changes)
    if key in _classes:
        return _classes[key]
    rewritten = rewrite(base, [Expression(*c[1:]) for c in changes if c[0] == "expression"], instance)
    namespace: dict[str, Any] = {
        **rewritten.methods,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_blurify_base": base,
        "_blurify_changes": changes,
        AFTER: staticmethod(after),
    }
    inputs = tuple((index, child) for kind, child, *rest in _those(changes, "input") for index in rest)
    outputs = tuple(child for _, child in _those(changes, "output"))
    if inputs or outputs:
        inner = namespace.get("forward", base.forward)
        namespace["forward"] = _blurring(inner, inputs, outputs)
    guarded = rewritten.overridden | ({"forward"} if inputs or outputs else set())
    if guarded:
        namespace["__setattr__"] = _guard(base, guarded, rewritten, keeps=bool(inputs or outputs))
    blurs = frozenset(child for _, child in _those(changes, "member"))
    bases = (*(Joined,) * (JOINED in changes), *(WithBlurs,) * bool(blurs), base)
    if blurs:
        namespace["_blurify_blurs"] = blurs
    # What the class was made of beyond its base: nothing, for most.
    more: tuple[Any, ...] = (rewritten.stored,) if rewritten.stored else ()

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        reduced: Any = base.__reduce_ex__(self, 2)
        return (edited_instance, (base, changes, *more), *reduced[2:])

    namespace["__reduce_ex__"] = __reduce_ex__
    cls = types.new_class(base.__name__, bases, exec_body=lambda target: target.update(namespace))
    if not rewritten.stored:
        _classes[key] = cls
    return cls


def edited_instance(
    base: type[nn.Module], changes: tuple[Change, ...], stored: dict[str, Any] | None = None
) -> nn.Module:
    """An empty instance of the edited class (how pickle and deepcopy bring one back).

    Args:
        base: the class that its author wrote.
        changes: what was changed in it.
        stored: functions of the instance that were on the way to an expression, by its names for them.

    Raises:
        BlurifyError: these are no changes that blurify wrote.
    """
    if not (isinstance(base, type) and issubclass(base, nn.Module)) or not all(map(_is_change, changes)):
        raise BlurifyError("this file's edited module is not one that blurify wrote: convert the original model again")
    instance: nn.Module | None = None
    if stored:
        instance = nn.Module()
        instance.__dict__.update(stored)
    cls = edited_class(base, tuple(changes), instance)
    return cls.__new__(cls)


def _is_change(change: Any) -> bool:
    if not isinstance(change, tuple) or not change or _KINDS.get(change[0]) != len(change):
        return False
    if change == JOINED:
        return True
    child = change[2] if change[0] == "expression" else change[1]
    return isinstance(child, str) and child.isidentifier()


def _those(changes: tuple[Change, ...], kind: str) -> list[Change]:
    return [change for change in changes if change[0] == kind]


def _blurring(
    inner: Callable[..., Any], inputs: tuple[tuple[int, str], ...], outputs: tuple[str, ...]
) -> Callable[..., Any]:
    """A forward with blurs of its inputs and outputs around another one."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__.get(_OUTER)
        if own is not None and id(self) in _running.get():
            return inner(self, *args, **kwargs)  # what was set calls what was there: blurred once, outside
        for index, child in inputs:
            args = (*args[:index], getattr(self, child)(args[index]), *args[index + 1 :])
        if own is None:
            out = inner(self, *args, **kwargs)
        else:
            token = _running.set((*_running.get(), id(self)))
            try:
                out = own(*args, **kwargs)
            finally:
                _running.reset(token)
        for child in outputs:
            out = getattr(self, child)(out)
        return out

    forward.__wrapped__ = inner  # type: ignore[attr-defined]  # its signature is the author's
    forward.__doc__, forward.__qualname__ = inner.__doc__, inner.__qualname__
    return forward


def _guard(base: type[nn.Module], names: frozenset[str], rewritten: Rewritten, *, keeps: bool) -> Callable[..., None]:
    """A `__setattr__` that does not let a method with a blur in it be replaced on the instance in silence.

    Tools that fuse layers set `module.forward = module.forward_fused`. Blurs of a module's inputs and output are kept
    around what is set; a forward with rewritten expressions can't take its blurs along.
    """

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if name not in names:
            base.__setattr__(self, name, value)
            return
        function = getattr(value, "__func__", None)
        if name == "forward" and function in rewritten.methods.values():
            base.__setattr__(self, name, value)  # another entry whose expressions have their blurs
        elif name == "forward" and keeps and "forward" not in rewritten.overridden:
            self.__dict__[_OUTER] = value
        else:
            raise BlurifyError(
                f"{base.__name__}.{name} holds a blur, and would lose it if it were replaced: do this to the original "
                "model (blurify.revert), then convert it"
            )

    return __setattr__


def _bind_again(module: nn.Module, before: type, after: type) -> None:
    """Bound methods that an instance keeps (`self.run = self._run`) follow it to its new class."""
    for name, value in vars(module).items():
        if not isinstance(value, types.MethodType) or value.__self__ is not module:
            continue
        method = value.__func__.__name__
        if getattr(before, method, None) is value.__func__ and isinstance(
            getattr(after, method, None), types.FunctionType
        ):
            module.__dict__[name] = types.MethodType(getattr(after, method), module)


__all__ = [
    "CannotRewriteError",
    "Change",
    "changes_of",
    "edit_class",
    "edited_class",
    "edited_instance",
    "original_class",
    "set_changes",
]
