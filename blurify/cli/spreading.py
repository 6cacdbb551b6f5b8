"""Options that several commands share: a dataclass whose fields become options of each."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def with_options(
    parameter: str, shared: type, *, behind: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a dataclass; it gets them together, as one argument.

    Args:
        parameter: the command's keyword-only parameter that takes the dataclass.
        shared: the dataclass; its annotations are those of options.
        behind: the option that they follow in the help, where the command has it; else they are the last.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(shared, include_extras=True)
        options = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in dataclasses.fields(shared)
        ]
        signature = inspect.signature(command, eval_str=True)
        own = [one for name, one in signature.parameters.items() if name != parameter]
        names = [option.name for option in options]

        @functools.wraps(command)
        def run(*given: Any, **named: Any) -> None:
            together = shared(**{name: named.pop(name) for name in names})
            command(*given, **named, **{parameter: together})

        at = next((place for place, one in enumerate(own, 1) if one.name == behind), len(own))
        after = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own[at:]]
        # typer reads the options from here.
        run.__signature__ = signature.replace(parameters=[*own[:at], *options, *after])  # type: ignore[attr-defined]
        return run

    return decorate
