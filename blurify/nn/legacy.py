"""What files of blurify 0.1.0 name: hooks that ran a blur, and the rewriting of forwards."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from blurify.nn.edited import Change, edit_class, edited_instance

_FORMS = {"wrap": "wrap"}


def blur_output(module: Any, args: Any, output: Any) -> Any:
    """Forward hook: what the module returns, blurred."""
    return module.blur_output(output)


def blur_input(module: Any, args: Any, index: int = 0) -> Any:
    """Forward pre-hook: the module's positional argument `index`, blurred."""
    return (*args[:index], module.blur_input(args[index]), *args[index + 1 :])


def rewritten_instance(base: type[nn.Module], rewrites: tuple[Any, ...]) -> nn.Module:
    """An empty instance of a class whose forward routes expressions through children."""
    return edited_instance(base, changes_of_rewrites(rewrites))


def changes_of_rewrites(rewrites: tuple[Any, ...]) -> tuple[Change, ...]:
    """What 0.1.0 pickled as Rewrite objects, as changes of a class."""
    return tuple(
        ("expression", tuple(tuple(step) for step in one.path), one.child, _FORMS.get(one.op, "call"), 0)
        for one in rewrites
    )


def without_hooks(model: nn.Module) -> bool:
    """Turn the hooks of 0.1.0 into subclasses that call their blurs themselves; says whether there were any."""
    found = False
    for module in model.modules():
        changes: list[Change] = []
        for key, hook in list(module._forward_pre_hooks.items()):
            function = hook.func if isinstance(hook, functools.partial) else hook
            if function is blur_input:
                index = hook.keywords.get("index", 0) if isinstance(hook, functools.partial) else 0
                changes.append(("input", "blur_input", index))
                del module._forward_pre_hooks[key]
        for key, after in list(module._forward_hooks.items()):
            if after is blur_output:
                changes.append(("output", "blur_output"))
                del module._forward_hooks[key]
        if changes:
            edit_class(module, changes)
            found = True
    return found
