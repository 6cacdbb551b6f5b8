"""What files of blurify 0.1.0 name and later versions no longer make: the hooks that ran a blur."""

from __future__ import annotations

from typing import Any


def blur_output(module: Any, args: Any, output: Any) -> Any:
    """Forward hook: what the module returns, blurred."""
    return module.blur_output(output)


def blur_input(module: Any, args: Any, index: int = 0) -> Any:
    """Forward pre-hook: the module's positional argument `index`, blurred."""
    return (*args[:index], module.blur_input(args[index]), *args[index + 1 :])
