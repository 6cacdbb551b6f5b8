"""Where models run, and what to say where there is no such place or not enough of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from blurify.errors import BlurifyError, one_line

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """The device of a name; 'auto' is an accelerator where there is one. Raises BlurifyError where it is not there."""
    import torch

    if name == "auto":
        found = next((kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()), "cpu")
        return torch.device(found)
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # every backend has its own way to be missing
        raise BlurifyError(f"--device {name} can't be used ({one_line(error, 120)}): give auto or cpu") from error
    return device


@contextlib.contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Say what to give where memory runs out."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise BlurifyError(f"memory ran out ({one_line(error, 120)}): give {remedy}") from error
        raise
