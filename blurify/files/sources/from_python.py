"""`python:package.module:factory`: a function, a class or a model of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blurify.errors import BlurifyError, one_line
from blurify.files.sources.own_file import import_from_here
from blurify.spec.words import did_you_mean, nearest

if TYPE_CHECKING:
    from torch import nn


def build_python(spec: str, options: dict[str, Any]) -> nn.Module:
    """Import the module, from the working directory too, and call what makes the model.

    Raises:
        BlurifyError: there is no such module or name in it, it fails, or it makes no nn.Module.
    """
    import torch

    module_name, colon, attribute = spec.removeprefix("python:").partition(":")
    if not colon or not module_name or not attribute:
        raise BlurifyError(f"{spec!r} must name a module and what makes the model in it: python:package.module:factory")
    try:
        found: Any = import_from_here(module_name)
    except ModuleNotFoundError as error:
        raise BlurifyError(
            f"{spec}: there is no module {error.name!r} here: run from the directory that holds it, install it, or add "
            "--source FILE.py"
        ) from error
    except Exception as error:  # whatever the user's own module raises
        raise BlurifyError(
            f"{spec}: importing {module_name} failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")]
            raise BlurifyError(f"{spec}: {module_name} has no {part!r}{did_you_mean(nearest(part, names))}")
        found = getattr(found, part)
    if isinstance(found, torch.nn.Module) and not options:
        return found
    if not callable(found) or isinstance(found, torch.nn.Module):
        raise BlurifyError(f"{spec} is a {type(found).__name__}: name a function or class that makes an nn.Module")
    try:
        model = found(**options)
    except Exception as error:
        raise BlurifyError(f"{spec} failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, torch.nn.Module):
        raise BlurifyError(f"{spec} gave a {type(model).__name__}, not an nn.Module")
    return model
